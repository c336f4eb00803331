"""What a graph explains in place of a metric: logits, their differences, a feature at a position, a direction.

In come the user's words for it and the clean and baseline runs; out come a `Metric`, their weighted sum, and one `Target` per
target, with the input direction by which edges reach it. This module knows no edges.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitgraph.attribution.runs import CleanRun, CorruptedRun
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.errors import CircuitGraphError, GraphError, MetricError, did_you_mean
from circuitgraph.metrics import Metric
from circuitgraph.models.model import Model
from circuitgraph.nodes import DICTIONARY_SITES, Node, Site
from circuitgraph.paths.input_paths import check_input_site
from circuitgraph_kernels import pre_activations

LOGIT_MASS = 0.95
MAX_LOGITS = 10


@dataclass(frozen=True, eq=False)
class Probe:
    """A direction to explain: vector [d] . activation at the site and position; a negative position counts from the end."""

    site: Site | str
    vector: Tensor
    pos: int = -1
    name: str = ""


# A token's text, a feature's node such as "mlp_out.3/f17@5", two tokens whose logits are subtracted, or a direction.
TargetSpec = str | tuple[str, str] | Probe


@dataclass(frozen=True)
class LogitTarget:
    """sum_j c_j (logit_j - mean logit) of the last position."""

    name: str
    tokens: tuple[int, ...]
    coefficients: tuple[float, ...] = (1.0,)
    sites: tuple[Site, ...] = ()

    def value(self, logits: Tensor, recorded: Mapping[Site, Tensor]) -> Tensor:
        """[batch]."""
        last = logits[:, -1]
        coefficients = torch.tensor(self.coefficients, dtype=last.dtype, device=last.device)
        return last[:, list(self.tokens)] @ coefficients - last.mean(-1) * coefficients.sum()

    def on_logits(self, like: Tensor) -> Tensor:
        """What every logit counts for, [vocab] like the given ones."""
        coefficients = torch.full_like(like, -sum(self.coefficients) / len(like))
        for token, coefficient in zip(self.tokens, self.coefficients, strict=True):
            coefficients[token] += coefficient
        return coefficients

    def record(self) -> dict[str, Any]:
        return {"tokens": list(self.tokens), "coefficients": list(self.coefficients)}


@dataclass(frozen=True, eq=False)
class SiteTarget:
    """vector . x[pos] at a site, or with `feature` the pre-activation of a dictionary's feature that reads there.

    measured_at: where x is recorded: `site`, or the MLP's input for ln2_normalized, which some models compute aside.
    """

    name: str
    site: Site
    pos: int
    vector: Tensor
    measured_at: Site
    gain: Tensor | None = None
    shift: Tensor | None = None
    dictionary: Dictionary | None = None
    feature: int | None = None

    @property
    def sites(self) -> tuple[Site, ...]:
        return (self.measured_at,)

    def value(self, logits: Tensor, recorded: Mapping[Site, Tensor]) -> Tensor:
        """[batch]."""
        x = recorded[self.measured_at][:, self.pos]
        x = x if self.shift is None else x - self.shift
        x = x if self.gain is None else x / self.gain
        if self.dictionary is None:
            return x @ self.vector
        return pre_activations(x, self.dictionary.weights)[:, self.feature]

    def record(self) -> dict[str, Any]:
        if self.dictionary is not None:
            return {"node": self.name}
        return {"site": str(self.site), "pos": self.pos, "vector": self.vector.tolist()}


Target = LogitTarget | SiteTarget


@dataclass(frozen=True, eq=False)
class Objective:
    """Goals and their weights: the metric is the weighted sum of their values."""

    targets: tuple[Target, ...]
    weights: tuple[float, ...]

    def metric(self) -> Metric:
        """sum_i w_i t_i, called "logits" if all are single logits, else by the one target's name or "targets"."""
        weighted = list(zip(self.targets, self.weights, strict=True))

        def targets(logits: Tensor, recorded: Mapping[Site, Tensor] | None = None) -> Tensor:
            values = [weight * target.value(logits, recorded or {}) for target, weight in weighted]
            return torch.stack(values).sum(0)

        plain = all(isinstance(target, LogitTarget) and len(target.tokens) == 1 for target in self.targets)
        name = "logits" if plain else self.targets[0].name if len(self.targets) == 1 else "targets"
        sites = {site for target in self.targets for site in target.sites}
        return Metric(name, targets, tuple(sorted(sites)))

    @property
    def reads(self) -> list[Site]:
        """The sites inside the model whose input directions are traced."""
        return [target.site for target in self.targets if isinstance(target, SiteTarget)]

    def nodes(self, n_pos: int) -> list[Node]:
        """The node of each target in a graph of so many positions."""
        return _nodes(self.targets, n_pos)

    def record(self) -> list[dict[str, Any]]:
        """The targets as a graph keeps them; `recorded_objective` reads them."""
        pairs = zip(self.targets, self.weights, strict=True)
        return [{"name": target.name, "weight": weight} | target.record() for target, weight in pairs]


@dataclass(frozen=True, eq=False)
class TargetNode:
    """A target as a node at the top of the graph. weight [batch] is d metric / d target; clean, corrupted [batch] its values in
    both runs. gradient [batch, pos, d_model] is d target / d stream at its end; None for what stands inside the model, which
    reads `vector` [d] at the node's site."""

    node: Node
    name: str
    weight: Tensor
    clean: Tensor
    corrupted: Tensor | None
    gradient: Tensor | None = None
    reads: Site | None = None
    vector: Tensor | None = None


def objective_of_logits(model: Model, tokens: Sequence[int], weights: Sequence[float]) -> Objective:
    """The logits of these token ids."""
    names = model.token_strings(list(tokens))
    return Objective(tuple(LogitTarget(n, (t,)) for n, t in zip(names, tokens, strict=True)), tuple(weights))


def likeliest_logits(model: Model, logits: Tensor, *, mass: float = LOGIT_MASS, limit: int = MAX_LOGITS) -> Objective:
    """The most likely next tokens after the last position until they have that probability mass, at most `limit`.

    Probabilities are means over the examples and become the weights, scaled to sum to 1.
    """
    top = logits[:, -1].softmax(-1).mean(0).topk(min(limit, logits.shape[-1]))
    n = min(int((top.values.cumsum(0) < mass).sum()) + 1, len(top.values))
    chosen = top.values[:n] / top.values[:n].sum()
    return objective_of_logits(model, top.indices[:n].tolist(), chosen.tolist())


def given_targets(
    model: Model,
    dictionaries: Dictionaries,
    specs: Sequence[TargetSpec] | Mapping[TargetSpec, float],
    n_pos: int,
) -> Objective:
    """What these words mean, with the weights of a mapping or equal ones that sum to 1.

    MetricError for a text that is neither one known token nor a feature of a dictionary at a position of the prompt, a target
    that is given twice, or none at all.
    """
    if not specs:
        raise MetricError("targets is an empty list; expected token texts such as ' Mary', or features, or probes")
    targets = [_target(model, dictionaries, spec, n_pos) for spec in specs]
    names, nodes = [target.name for target in targets], _nodes(targets, n_pos)
    for name, node in zip(names, nodes, strict=True):
        if names.count(name) > 1 or nodes.count(node) > 1:
            raise MetricError(f"target {name!r} is given twice; give every target once, and every probe a name")
    if not isinstance(specs, Mapping):
        return Objective(tuple(targets), (1 / len(targets),) * len(targets))
    weights = tuple(specs.values())
    for target, weight in zip(targets, weights, strict=True):
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < abs(weight) < float("inf"):
            raise MetricError(
                f"the weight of target {target.name!r} is {weight!r}; expected a finite number other than 0"
            )
    return Objective(tuple(targets), tuple(map(float, weights)))


def read_targets(texts: Sequence[str], weights: Sequence[float] = ()) -> Any:
    """`discover`'s targets from words of a command line: metric, logits, token texts, features, and directions as
    SITE@POS=FILE.npy. MetricError for a file that holds no vector, or not one weight per target."""
    if tuple(texts) in (("metric",), ("logits",)):
        if weights:
            raise MetricError(f"targets {texts[0]!r} has weights of its own; give weights with named targets only")
        return texts[0]
    specs = [_read_probe(text) or text for text in texts]
    if not weights:
        return specs
    if len(weights) != len(specs):
        raise MetricError(f"{len(specs)} targets have {len(weights)} weights; expected one weight per target")
    return dict(zip(specs, weights, strict=True))


def _read_probe(text: str) -> Probe | None:
    match = re.fullmatch(r"(?P<site>[a-z_0-9]+\.\d+)@(?P<pos>-?\d+)=(?P<path>.+)", text)
    if match is None:
        return None
    path = Path(match["path"])
    try:
        vector = np.load(path, allow_pickle=False)
        return Probe(match["site"], torch.from_numpy(vector), int(match["pos"]), path.stem)
    except (OSError, ValueError, TypeError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no array of numbers"
        raise MetricError(
            f"target {text!r}: {path} cannot be read ({reason}); expected numpy.save of a vector"
        ) from None


def recorded_objective(
    model: Model, dictionaries: Dictionaries, rows: Sequence[Mapping[str, Any]], n_pos: int
) -> Objective:
    """The targets of a graph's record. GraphError for a record that this version did not write."""
    targets: list[Target] = []
    try:
        for row in rows:
            if "tokens" in row:
                targets.append(LogitTarget(row["name"], tuple(row["tokens"]), tuple(row["coefficients"])))
            elif "node" in row:
                targets.append(_feature(model, dictionaries, row["node"], n_pos))
            else:
                probe = Probe(row["site"], torch.tensor(row["vector"], dtype=torch.float64), row["pos"], row["name"])
                targets.append(_probe(model, probe, n_pos))
        return Objective(tuple(targets), tuple(float(row["weight"]) for row in rows))
    except (KeyError, TypeError, ValueError) as error:
        raise GraphError(f"the graph's targets cannot be read ({error!r}); build the graph again") from None


def find_objective(
    model: Model,
    dictionaries: Dictionaries,
    specs: str | Sequence[TargetSpec] | Mapping[TargetSpec, float],
    n_pos: int,
    *,
    one_form: bool = True,
) -> Objective | None:
    """What `settings.Nodes.targets` means: None for "metric", and for "logits", which are known once the model has run.

    one_form: whether all prompts have the same aligned positions, which targets inside the model need. MetricError or
    CircuitGraphError for what means nothing.
    """
    if isinstance(specs, str) and specs in ("metric", "logits"):
        return None
    if not isinstance(specs, Mapping | Sequence) or isinstance(specs, str):
        given = repr(specs) if isinstance(specs, str) else f"one {type(specs).__name__}"
        raise CircuitGraphError(
            f"targets is {given}; expected 'metric', 'logits' or a list such as [' Mary', 'mlp_out.3/f17@5']"
        )
    objective = given_targets(model, dictionaries, specs, n_pos)
    if objective.reads and not one_form:
        raise CircuitGraphError(
            f"target {objective.targets[0].name!r} stands at one position of every prompt, and these prompts have the same role"
            " at different ones; build one graph per form of prompt (--length)"
        )
    return objective


def target_nodes(
    model: Model, objective: Objective, clean: CleanRun, corrupted: CorruptedRun | None
) -> list[TargetNode]:
    """One node per target. The final norm's scale and the slope of a soft cap on the logits are those of the clean run."""
    values = clean.values
    stream, scale = values[Site("resid_post", model.n_layers - 1)], values.get(Site("final_scale"))
    nodes = _nodes(objective.targets, stream.shape[1])
    made = []
    for target, weight, node in zip(objective.targets, objective.weights, nodes, strict=True):
        of_clean = target.value(clean.logits, values)
        of_corrupted = None if corrupted is None else target.value(corrupted.logits, corrupted.values)
        weights = torch.full_like(of_clean, weight)
        if isinstance(target, SiteTarget):
            vector = target.vector.to(stream)
            made.append(
                TargetNode(node, target.name, weights, of_clean, of_corrupted, reads=target.site, vector=vector)
            )
            continue
        last = clean.logits[:, -1]
        vector = model.unembedding(target.on_logits(last[0]), last).to(stream)
        gradient = torch.zeros_like(stream)
        gradient[:, -1] = vector if scale is None else vector / scale[:, -1]
        made.append(TargetNode(node, target.name, weights, of_clean, of_corrupted, gradient=gradient))
    return made


def _nodes(targets: Sequence[Target], n_pos: int) -> list[Node]:
    nodes = []
    for i, target in enumerate(targets):
        if isinstance(target, SiteTarget):
            nodes.append(Node("probe", target.site, target.pos, i))
        elif target.coefficients == (1.0,):
            nodes.append(Node("logit", Site("logit"), n_pos - 1, target.tokens[0]))
        else:
            nodes.append(Node("probe", Site("logit"), n_pos - 1, i))
    return nodes


def _target(model: Model, dictionaries: Dictionaries, spec: Any, n_pos: int) -> Target:
    if isinstance(spec, Probe):
        return _probe(model, spec, n_pos)
    if isinstance(spec, tuple) and len(spec) == 2:
        right, wrong = (_token(model, text) for text in spec)
        if right == wrong:
            raise MetricError(f"target {spec!r} is a logit less itself; expected two different tokens")
        return LogitTarget(f"{spec[0]} -{spec[1]}", (right, wrong), (1.0, -1.0))
    if isinstance(spec, str) and re.fullmatch(r"[a-z_0-9.]+/f[^/@]*@.*", spec):
        return _feature(model, dictionaries, spec, n_pos)
    token = _token(model, spec)
    return LogitTarget(model.token_strings([token])[0], (token,))


def _token(model: Model, text: Any) -> int:
    if not isinstance(text, str):
        raise MetricError(
            f"a target is of type {type(text).__name__}; expected a token's text such as ' Mary', a feature such as"
            " 'mlp_out.3/f17@5', two texts, or a Probe"
        )
    found = model.continuation(text)
    if len(found) != 1:
        raise MetricError(
            f"target {text!r} is {len(found)} tokens; expected one token, with its leading space if it has one"
        )
    if found[0] == model.unknown_token:
        raise MetricError(f"target {text!r} is not in the model's vocabulary")
    return found[0]


def _feature(model: Model, dictionaries: Dictionaries, text: str, n_pos: int) -> SiteTarget:
    try:
        node = Node.parse(text)
    except GraphError as error:
        raise MetricError(f"target {text!r} is no feature: {error}") from None
    dictionary = dictionaries.get(node.site)
    if node.kind != "feature" or dictionary is None:
        known = list(map(str, dictionaries))
        raise MetricError(
            f"target {text!r} is no feature of a given dictionary; their sites are {', '.join(known) or 'none'}."
            f"{did_you_mean(str(node.site), known)}"
        )
    feature = node.feature or 0
    if feature >= dictionary.d_sae:
        raise MetricError(f"target {text!r}: dictionary {dictionary.name} has features 0-{dictionary.d_sae - 1}")
    vector = dictionary.input_directions(torch.tensor([feature], device=dictionary.weights.b_enc.device))[0]
    return _site_target(model, text, dictionary.reads, _position(node.pos, n_pos, text), vector, dictionary, feature)


def _probe(model: Model, probe: Probe, n_pos: int) -> SiteTarget:
    site = probe.site if isinstance(probe.site, Site) else Site.parse(probe.site)
    name = probe.name or f"direction at {site}@{probe.pos}"
    vector = torch.as_tensor(probe.vector).detach()  # a weight of a trained model may ask for gradients
    if site.layer is None or site.kind not in DICTIONARY_SITES or not model.has(site):
        raise MetricError(
            f"target {name!r}: a probe cannot read {site}; expected one of {', '.join(DICTIONARY_SITES)} with a layer below"
            f" {model.n_layers}"
        )
    if vector.shape != (model.width(site),) or not bool(torch.isfinite(vector).all()) or not bool(vector.any()):
        raise MetricError(
            f"target {name!r}: the vector has shape {tuple(vector.shape)}; expected {model.width(site)} finite numbers, not"
            " all 0"
        )
    vector = vector.to(model.device, model.layout.dtype)
    return _site_target(model, name, site, _position(probe.pos, n_pos, name), vector)


def _position(pos: Any, n_pos: int, name: str) -> int:
    if not isinstance(pos, int) or not -n_pos <= pos < n_pos:
        raise MetricError(f"target {name!r}: position {pos!r} is not in the prompts, which have {n_pos} tokens")
    return pos % n_pos


def _site_target(
    model: Model,
    name: str,
    site: Site,
    pos: int,
    vector: Tensor,
    dictionary: Dictionary | None = None,
    feature: int | None = None,
) -> SiteTarget:
    check_input_site(model, site)
    norm, behind = model.norm(site, "ln2"), Site("mlp_in", site.layer)
    if site.kind != "ln2_normalized" or norm is None or not model.has(behind):
        return SiteTarget(name, site, pos, vector, site, dictionary=dictionary, feature=feature)
    if norm.gain is not None and bool((norm.gain == 0).any()):
        raise CircuitGraphError(
            f"target {name!r}: the norm in front of the MLP of layer {site.layer} has a gain of 0, so what stands before the"
            " gain cannot be measured; expected a model without"
        )
    return SiteTarget(name, site, pos, vector, behind, norm.gain, norm.bias, dictionary, feature)
