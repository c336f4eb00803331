"""Running circuits that are sets of edges between components: what a component reads is put together edge by edge.

A component reads the sum of what the kept edges bring from this run and the dropped ones from another run. Heads read
with q, k and v apart, and every norm takes its scale from what is really read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitgraph.attribution.runs import resample_rows
from circuitgraph.components.shape import ComponentShape
from circuitgraph.errors import ModelError
from circuitgraph.evaluation.conditions import metric_rounding
from circuitgraph.metrics import Metric, MetricFunction, build_metric
from circuitgraph.models.formulas import AttentionState
from circuitgraph.models.model import Model
from circuitgraph.models.tokens import tokenize_pairs
from circuitgraph.nodes import Site
from circuitgraph.prompts import PromptPair

_ELEMENTS = 1 << 25  # numbers held at once for all circuits of one pass
_ROUNDINGS = 4096  # of a whole forward pass


@dataclass(frozen=True, eq=False)
class ComponentRun:
    """The run of some token ids in which every edge is kept, and what circuits on these ids need.

    written [writers, batch, pos, d_model]: what each component adds to the stream (a head before a post-norm; input is
    the stream that enters layer 0). states: rotations per layer. hidden: which keys its mask hides, [query, key].
    """

    tokens: Tensor
    written: Tensor
    logits: Tensor
    states: Sequence[AttentionState]
    hidden: Sequence[Tensor]

    def take(self, rows: slice) -> ComponentRun:
        """The same of some examples only."""
        return ComponentRun(self.tokens[rows], self.written[:, rows], self.logits[rows], self.states, self.hidden)


def component_shape(model: Model) -> ComponentShape:
    """The shape of the model's graph of components."""
    return ComponentShape(model.n_layers, model.n_heads, model.parallel)


def run_components(model: Model, tokens: Tensor) -> ComponentRun:
    """The run of token ids [batch, pos] with what every component writes in it.

    Raises ModelError where a formula of attention is not known, or where the components do not make up the model.
    """
    layers = range(model.n_layers)
    scores = [Site("attn_scores", layer) for layer in layers]
    if missing := [str(site) for site in scores if not model.has(site)]:
        raise ModelError(f"{model.name} does not show its attention scores ({missing[0]}); its edges cannot be run")
    sites = {Site("resid_pre", 0), *scores, *(site for layer in layers for site in model.attention_sites(layer))}
    logits, values = model.run(tokens, record=sorted(sites))
    states = [model.attention_state(layer, values) for layer in layers]
    hidden = [values[site][0, 0] < model.hidden_below for site in scores]
    start = values[Site("resid_pre", 0)]
    shape = component_shape(model)
    nothing = start.new_zeros(shape.n_writers, *start.shape)
    run = ComponentRun(tokens, start[None], logits, states, hidden)
    every = torch.ones(1, shape.n_writers, shape.n_readers, dtype=torch.bool, device=start.device)
    again, change = _forward(model, run, nothing, every)
    missing_by = float((again[0] - logits).abs().max())
    if missing_by > _ROUNDINGS * model.eps * float(logits.abs().max()):
        raise ModelError(
            f"{model.name}: with every edge kept the logits differ by {missing_by:.2g} from the model's; its"
            " components do not make it up, so circuits of edges cannot be run"
        )
    return ComponentRun(tokens, -change[0], logits, states, hidden)


def run_component_circuits(model: Model, clean: ComponentRun, other: Tensor, kept: Tensor) -> Tensor:
    """Logits of circuits of edges on the clean ids, [circuits, batch, pos, vocab].

    Args:
        model: The model.
        clean: The run of the ids.
        other: What edges bring that are not kept, by their writer, [writers, batch, pos, d_model]: `written` of a
            corrupted run, or a mean of it.
        kept: The circuits, [circuits, writers, readers].
    """
    return _forward(model, clean, other, kept.to(clean.logits.device))[0]


@dataclass(frozen=True, eq=False)
class ComponentCircuits:
    """Runs circuits of edges (a `conditions.CircuitRunner`) on some prompts; a circuit is a mask [writers, readers].

    clean, corrupted: the runs of the prompts, None without corrupted ones. seed: of resampling.
    """

    model: Model
    clean: ComponentRun
    corrupted: ComponentRun | None
    metric: Metric
    seed: int

    @property
    def clean_metric(self) -> Tensor:
        return self.metric(self.clean.logits)

    @functools.cached_property
    def rounding(self) -> float:
        return metric_rounding(self.model, self.metric, self.clean.logits, {})

    def metric_of(
        self,
        circuits: Sequence[Tensor],
        baseline: str,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Tensor:
        """The metric of each circuit, [circuits, batch], as many in one pass as fit."""
        other = self.written(baseline)
        batch, n_pos = self.clean.tokens.shape
        width = self.model.d_model * (6 * self.model.n_heads + len(other)) + self.clean.logits.shape[-1]
        step = max(1, _ELEMENTS // (width * n_pos * batch))
        rows = max(1, min(batch, _ELEMENTS // (width * n_pos)))
        parts = [slice(first, first + rows) for first in range(0, batch, rows)]
        metrics = []
        for first in range(0, len(circuits), step):
            progress(first, len(circuits))
            kept = torch.stack(list(circuits[first : first + step]))
            logits = [run_component_circuits(self.model, self.clean.take(rows), other[:, rows], kept) for rows in parts]
            metrics += [self.metric(of_circuit) for of_circuit in torch.cat(logits, 1)]
        return torch.stack(metrics)

    def written(self, baseline: str) -> Tensor:
        """What dropped edges bring, [writers, batch, pos, d_model].

        corrupted   the corrupted run, as in MIB
        mean        its mean over the examples, per position
        resample    the corrupted run of another example
        zero        nothing but positions, which are no component
        """
        if baseline == "zero":
            zero, site = torch.zeros_like(self.clean.written), Site("pos_embed")
            if self.model.has(site):
                zero[0] = self.model.run(self.clean.tokens, record=[site])[1][site]
            return zero
        assert self.corrupted is not None, "baselines are chosen by what the prompts have"
        written = self.corrupted.written
        if baseline == "mean":
            return written.mean(1, keepdim=True).expand_as(written)
        return written[:, resample_rows(written.shape[1], self.seed)] if baseline == "resample" else written


def component_circuits(
    model: Model, pairs: Sequence[PromptPair], metric: str | MetricFunction, *, seed: int
) -> ComponentCircuits:
    """What runs circuits of edges on these prompts.

    Args:
        model: The model.
        pairs: The prompts, all of one length.
        metric: The metric's name, or a function of logits.
        seed: Of resampling.

    Raises PromptError for prompts that do not fit, MetricError for a metric that needs answers that the pairs do not
    have, ModelError as `run_components`.
    """
    tokens = tokenize_pairs(model, pairs)
    score = build_metric(metric, tokens.answers, tokens.wrong_answers)
    clean = run_components(model, tokens.clean.to(model.device))
    corrupted = None if tokens.corrupted is None else run_components(model, tokens.corrupted.to(model.device))
    return ComponentCircuits(model, clean, corrupted, score, seed)


class _Pass:
    """What was written so far in one pass of n circuits, and what readers make of it.

    change [n, writers, batch, pos, d_model]: the other run minus this one. dropped [n, writers, readers]: 1 for edges
    that bring the other run. With a post-norm behind attention, heads are mixed before it and every reader passes the
    mixture through it.
    """

    def __init__(self, model: Model, clean: ComponentRun, other: Tensor, kept: Tensor) -> None:
        self.model, self.shape, self.other = model, component_shape(model), other
        self.dropped = (~kept).to(other.dtype)
        self.change = other.new_empty(len(kept), *other.shape)
        self.stream = clean.written[0].expand(len(kept), *other.shape[1:])
        self.attention: list[Tensor] = []  # of each layer with a post-norm, before it
        self.write(0, self.stream[:, None])

    def write(self, first: int, values: Tensor) -> None:
        """Note what the writers from `first` on write, [n, writers, batch, pos, d_model]."""
        rows = slice(first, first + values.shape[1])
        self.change[:, rows] = self.other[rows] - values

    def read(self, readers: slice, n_before: int) -> Tensor:
        """What these readers read of the stream and the first n_before writers, [n, readers, batch, pos, d_model]."""
        dropped = self.dropped[:, :n_before, readers].transpose(1, 2)
        read = self.stream[:, None].expand(-1, dropped.shape[1], -1, -1, -1)
        if not self.attention:
            return read + self._mixed(dropped, slice(0, n_before))
        direct = dropped.clone()
        for layer, whole in enumerate(self.attention):
            heads = self.shape.heads(layer)
            if heads.stop > n_before:
                break
            direct[..., heads] = 0
            mixed = whole[:, None] + self._mixed(dropped[..., heads], heads)
            passed = (
                _apply(self.model, layer, "ln1_post", mixed) - _apply(self.model, layer, "ln1_post", whole)[:, None]
            )
            read = read + passed
        return read + self._mixed(direct, slice(0, n_before))

    def _mixed(self, dropped: Tensor, writers: slice) -> Tensor:
        change = self.change[:, writers]
        mixed: Tensor = (dropped @ change.flatten(2)).unflatten(2, change.shape[2:])
        return mixed


def _forward(model: Model, clean: ComponentRun, other: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of each circuit [circuits, batch, pos, vocab], and what each component writes, `other` minus this run."""
    state, n = _Pass(model, clean, other, kept), len(kept)
    shape = state.shape
    for layer in range(model.n_layers):
        heads, inputs = shape.heads(layer), shape.head_inputs(layer)
        mlp = slice(inputs.stop, inputs.stop + 1)
        before = state.read(mlp, shape.writers_before(layer)) if shape.parallel else None
        written = _attend(clean, layer, _apply(model, layer, "ln1", state.read(inputs, shape.writers_before(layer))))
        attention = written.sum(1)
        bias = clean.states[layer].weights.b_O
        attention = attention if bias is None else attention + bias
        state.write(heads.start, written)
        state.stream = state.stream + _apply(model, layer, "ln1_post", attention)
        if model.norm(Site("z", layer), "ln1_post") is not None:
            state.attention.append(attention)
        read = state.read(mlp, shape.writers_before(layer, mlp=True)) if before is None else before
        for part in ("ln2", "mlp", "ln2_post"):
            read = _apply(model, layer, part, read)
        state.write(heads.stop, read)
        state.stream = state.stream + read[:, 0]
    end = state.read(slice(shape.n_readers - 1, shape.n_readers), shape.n_writers)
    logits, _ = model.run(clean.tokens.repeat(n, 1), start=(model.n_layers, end.flatten(0, 2)))
    return logits.unflatten(0, (n, -1)), state.change


def _attend(clean: ComponentRun, layer: int, normed: Tensor) -> Tensor:
    """What each head writes, [n, heads, batch, pos, d_model], from its normed q, k and v inputs [n, 3 heads, ...]."""
    state = clean.states[layer]
    weights, n_heads = state.weights, state.weights.W_Q.shape[0]

    def project(part: int, W: Tensor, b: Tensor | None) -> Tensor:
        read = normed[:, part * n_heads : (part + 1) * n_heads]
        W = W.repeat_interleave(n_heads // len(W), 0)
        projected: Tensor = (read.flatten(2, 3) @ W).unflatten(2, read.shape[2:4])
        return projected if b is None else projected + b.repeat_interleave(n_heads // len(b), 0)[:, None, None]

    q = state.positioned(project(0, weights.W_Q, weights.b_Q), weights.q_gain)
    k = state.positioned(project(1, weights.W_K, weights.b_K), weights.k_gain)
    scores = q @ k.transpose(-1, -2) * weights.scale
    if weights.soft_cap is not None:
        scores = weights.soft_cap * torch.tanh(scores / weights.soft_cap)
    pattern = scores.masked_fill(clean.hidden[layer], -torch.inf).softmax(-1)
    z = pattern @ project(2, weights.W_V, weights.b_V)
    written: Tensor = (z.flatten(2, 3) @ weights.W_O).unflatten(2, z.shape[2:4])
    return written


def _apply(model: Model, layer: int, part: str, x: Tensor) -> Tensor:
    """`layout.apply` of x [..., batch, pos, d_model]."""
    applied: Tensor = model.layout.apply(layer, part, x.flatten(0, -3)).unflatten(0, x.shape[:-2])
    return applied
