"""Typed edges between nodes, with exact derivatives, from the targets down.

In come node tables, clean activations and targets; out comes a table of edges. Norm scales and everything outside the path
are frozen at the clean run. This module decides who reads and which edges stay; input directions are `reading`'s, products
`products`', and it knows no graph.

Edge u -> v: u writes write_u * delta_u (or a difference vector) into the residual stream at its position, v reads it
through a path of one kind with input direction r:

    local_weight = (write_u . r) * delta_u                contribution to v's pre-activation
    weight       = node_gradient(v) * local_weight        contribution to the metric through v

For the metric r = dm/d(resid_post of the last layer). A linear skip connection between u and v, and attention and MLPs
that are `through`, are passed; a dictionary of the residual stream between them is not: its own nodes carry on. A
cross-layer transcoder's feature writes at several sites, and what stands below the reader is summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitgraph.attribution.tables import FeatureTable, NodeTable
from circuitgraph.attribution.targets import TargetNode
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.edges.influence import node_influence
from circuitgraph.edges.products import Block, EdgeProducts, barriers
from circuitgraph.edges.table import EdgeCollector, EdgeTable
from circuitgraph.errors import CircuitGraphError, DictionaryError
from circuitgraph.models.model import Model
from circuitgraph.nodes import Node, Site
from circuitgraph.paths.input_paths import InputPaths, check_input_site
from circuitgraph.paths.linear_maps import LinearMap, skip_map
from circuitgraph.progress import Progress, no_progress

QK = ("derivative", "ablate")
_TYPED = ("ov", "q", "k")  # kinds that keep a loading per head

# Sites whose value is added to the stream, or is the stream.
_ADDED = ("resid_pre", "attn_out", "mlp_out", "resid_post")


@dataclass(frozen=True)
class Selection:
    """Which edges stay. threshold: smallest |weight|, in the metric's unit. relative_threshold: smallest |local_weight|
    as a share of what the target reads in all, sum of |local_weight|. top_k: inputs per target, and those as
    large as the last of them. max_traced: features (and errors that are targets) whose inputs are traced, the most
    influential first; None traces every one that a kept edge leaves."""

    threshold: float = 0.0
    relative_threshold: float = 0.0
    top_k: int | None = None
    max_traced: int | None = None


@dataclass(frozen=True, eq=False)
class TracedEdges:
    """The edges that stay, and per target that was traced what it reads in all, by node id, means over the examples.

    total_input: sum of local weights of all sources before selection; stream_input: what it reads of the difference of the streams
    themselves, which does not know the nodes. The two are equal up to rounding where every source is a node. Differences
    of patterns (qk "ablate") are no sums and are left out of both. weights [n_nodes]: of the targets in the metric.
    """

    table: EdgeTable
    total_input: Mapping[int, float]
    stream_input: Mapping[int, float]
    weights: Tensor


def attribute_edges(
    model: Model,
    tables: Sequence[NodeTable],
    clean: Mapping[Site, Tensor],
    metric_gradient: Tensor,
    *,
    base: Mapping[Site, Tensor] | None = None,
    targets: Sequence[TargetNode] = (),
    slopes: Mapping[Site, Tensor] | None = None,
    maps: Sequence[LinearMap] = (),
    qk: str = "derivative",
    selection: Selection | None = None,
    memory: int = 1 << 30,
    tracer_type: type[Tracer] | None = None,
    progress: Progress = no_progress,
) -> TracedEdges:
    """Edges that pass the selection and reach the metric.

    First the inputs of the targets (of the metric itself without any), then those of every feature that was kept as the
    source of a kept edge: layer by layer downwards, or with max_traced the most influential first. metric_gradient
    [batch, pos, d_model] is dm/d(resid_post of the last layer). base: the baseline's activations, None for zero. slopes:
    `gradients.mlp_slopes`, needed for dictionaries that read behind an MLP's neurons. qk "ablate" takes the difference
    of the pattern with and without each source for q and k edges. memory: bytes that input directions and what they read
    may take at once; one reader at one position, and the targets' own vectors, are held whatever they take.
    tracer_type: `position_sums.SumTracer` for sums over positions.
    Raises DictionaryError or ModelError for dictionaries whose inputs cannot be traced, CircuitGraphError for qk "ablate"
    through components.
    """
    if qk == "ablate" and maps:
        raise CircuitGraphError("qk 'ablate' passes no component that is 'frozen'; take 'derivative' or 'node'")
    if qk == "ablate" and not any(site.kind == "attn_scores" for site in clean):
        raise CircuitGraphError("qk 'ablate' needs the attention scores; record them with sites_of(..., scores=True)")
    tracer = (tracer_type or Tracer)(model, tables, clean, base, slopes, maps, qk, selection or Selection(), memory)
    tracer.trace_targets(metric_gradient, targets)
    if tracer.selection.max_traced is None:
        for done, index in enumerate(tracer.readable):
            progress("tracing edges", done, len(tracer.readable))
            tracer.trace(index, tracer.kept[index].nonzero().flatten())
    else:
        tracer.trace_most_influential(tracer.selection.max_traced, progress)
    return tracer.result()


def check_inputs(model: Model, dictionaries: Iterable[Dictionary], qk: str = "derivative") -> None:
    """DictionaryError or ModelError unless the inputs of all these dictionaries' features can be traced."""
    for dictionary in dictionaries:
        check_input_site(model, dictionary.reads)
        reads, sites = dictionary.reads, dictionary.sites
        if astray := [site for site in sites if site.output.kind not in _ADDED or (site.output != site and sites[1:])]:
            raise DictionaryError(
                f"dictionary {dictionary.name} writes {astray[0]}, and what is written there is not simply added to the"
                f" stream; edges need one of {', '.join(_ADDED)}, or a single z or mlp_post"
            )
        passable = reads.kind in ("ln2_normalized", "mlp_in") and sites == (Site("mlp_out", reads.layer),)
        if dictionary.skips and not passable:
            raise DictionaryError(
                f"dictionary {dictionary.name} skips from {reads} to {', '.join(map(str, sites))}; edges pass skip"
                " connections from the MLP's input to the mlp_out of the same layer only"
            )
        if dictionary.skips and qk == "ablate":
            raise DictionaryError(
                f"dictionary {dictionary.name} skips, and qk 'ablate' passes no skip connections; take 'derivative'"
            )


class Tracer:
    """Numbers the nodes, traces readers group by group and collects the edges that stay."""

    def __init__(
        self,
        model: Model,
        tables: Sequence[NodeTable],
        clean: Mapping[Site, Tensor],
        base: Mapping[Site, Tensor] | None,
        slopes: Mapping[Site, Tensor] | None,
        maps: Sequence[LinearMap],
        qk: str,
        selection: Selection,
        memory: int,
    ) -> None:
        self.model, self.tables, self.clean, self.base, self.slopes = model, tables, clean, base, slopes
        self.qk, self.selection, self.memory = qk, selection, memory
        dictionaries = [table.dictionary for table in tables if isinstance(table, FeatureTable)]
        check_inputs(model, dictionaries, qk)
        skips = [
            skip_map(model, d.reads, d.writes, W_skip, clean) for d in dictionaries if (W_skip := d.W_skip) is not None
        ]
        written = [dictionary.writes for dictionary in dictionaries]
        self.products = EdgeProducts(tables, [*skips, *maps], barriers(written))
        self.nodes: list[Node] = [node for table in tables for node in table.nodes()]
        sizes = torch.tensor([0, *(len(table) for table in tables)])
        self.offsets: list[int] = sizes.cumsum(0).tolist()
        self.collector = EdgeCollector(self.nodes)
        self.kept = [torch.zeros_like(table.pos, dtype=torch.bool) for table in tables]
        readable = [i for i, table in enumerate(tables) if table.reads_at is not None]
        self.readable = sorted(readable, key=lambda i: -tables[i].site.depth)
        self.weights = torch.zeros(len(self.nodes), dtype=torch.float64)
        self.total_inputs: dict[int, float] = {}
        self.stream_inputs: dict[int, float] = {}

    def trace_targets(self, metric_gradient: Tensor, targets: Sequence[TargetNode]) -> None:
        """The inputs of the metric, or of the targets and their edges to the metric."""
        metric = Node("metric", Site("metric"), metric_gradient.shape[1] - 1)
        first = len(self.nodes)
        self.nodes += [*(target.node for target in targets), metric]
        self.weights = torch.zeros(len(self.nodes), dtype=torch.float64)
        if not targets:
            self.weights[-1] = 1
            ones = torch.ones_like(metric_gradient[:, :1, 0])
            self._keep(torch.tensor([first]), ones, self.products.of_stream(metric_gradient[:, None]))
            self._note([first], (metric_gradient * self._stream_end()).sum((1, 2))[:, None])
            return
        ids = torch.arange(first, first + len(targets))
        weights = torch.stack([target.weight for target in targets], 1)
        outer = [i for i, target in enumerate(targets) if target.gradient is not None]
        if outer:
            gradient = torch.stack([t.gradient for t in targets if t.gradient is not None], 1)
            self._keep(ids[outer], weights[:, outer], self.products.of_stream(gradient))
            self._note(ids[outer].tolist(), torch.einsum("brpd,bpd->br", gradient, self._stream_end()))
        for i, target in enumerate(targets):
            if target.reads is not None and target.vector is not None:
                self._trace_vectors(
                    self._reader(target.reads),
                    target.vector[None],
                    target.node.pos,
                    ids[i : i + 1],
                    weights[:, i : i + 1],
                )
        local = torch.stack([t.clean if self.base is None or t.corrupted is None else t.clean - t.corrupted for t in targets], 1)
        self.weights[first:-1] = weights.mean(0).to("cpu", torch.float64)
        weight = weights * local
        metric_ids = torch.full_like(ids, len(self.nodes) - 1)
        self.collector.add("metric", ids, metric_ids, weight.mean(0), weight.mean(0), weight.abs().mean(0), None)

    def trace(self, index: int, columns: Tensor) -> None:
        """The inputs of these columns of a table of features, or of errors that are targets."""
        table = self.tables[index]
        if not len(columns) or table.reads_at is None:
            return
        reader = self._reader(table.reads_at)
        positions = table.pos[columns]
        for pos in torch.unique(positions).tolist():
            for here in columns[positions == pos].split(self._group(reader, pos)):
                readers = table.take(here)
                ids = (here + self.offsets[index]).cpu()
                assert readers.reads is not None
                self._trace_vectors(reader, readers.reads, pos, ids, readers.node_gradient)

    def _reader(self, reads: Site) -> InputPaths:
        self.products.forget()
        return InputPaths(self.model, reads, self.clean, self.slopes, ablate=self.qk == "ablate")

    def _trace_vectors(self, reader: InputPaths, vectors: Tensor, pos: int, ids: Tensor, node_gradient: Tensor) -> None:
        """The inputs of the nodes ids [r] that read vectors [r, d_in] or [batch, r, d_in] at one position."""
        paths = reader.paths(vectors, pos)
        self._keep(ids, node_gradient, self.products.of_paths(paths))
        change = self._stream_before(reader.reads)
        linear = [path.of_stream(change).sum(2) for path in paths if path.softmax is None]
        self._note(ids.tolist(), torch.stack(torch.broadcast_tensors(*linear)).sum(0))

    def trace_most_influential(self, budget: int, progress: Progress) -> None:
        """Trace `budget` features in up to four rounds, the most influential on the targets first in each."""
        traced = torch.zeros(self.offsets[-1], dtype=torch.bool)
        readable = torch.zeros_like(traced)
        for index in self.readable:
            readable[self.offsets[index] : self.offsets[index + 1]] = True
        while (done := int(traced.sum())) < budget:
            progress("tracing edges", done, budget)
            influence = node_influence(self.collector.table(), self.weights)[: len(traced)]
            open_ = torch.where(readable & ~traced, influence, 0)
            chosen = open_.topk(min(budget - done, max(256, -(-budget // 4)), len(open_))).indices
            chosen = chosen[open_[chosen] > 0].sort().values
            if not len(chosen):
                break
            traced[chosen] = True
            for index in self.readable:
                start, stop = self.offsets[index : index + 2]
                here = chosen[(chosen >= start) & (chosen < stop)] - start
                self.trace(index, here.to(self.tables[index].pos.device))

    def _group(self, reader: InputPaths, pos: int) -> int:
        """How many readers at one position fit into the memory, with what they read of every source by path and head."""
        kinds, heads = (3, self.model.n_heads) if reader.state is not None else (1, 1)
        sources = sum(len(table) for table in self.tables if table.site.depth < reader.entry)
        numbers = kinds * (heads + 2) * sources  # by head, their sum, and that times the gradient
        if self.products.crossed(reader.entry):
            numbers += heads * (pos + 1) * self.model.d_model * 4
        return max(1, self.memory // (8 * len(self.clean[Site("embed")]) * max(1, numbers)))

    def _stream_end(self) -> Tensor:
        """The difference of the streams behind the last layer, [batch, pos, d_model]."""
        return self._difference(Site("resid_post", self.model.n_layers - 1))

    def _stream_before(self, reads: Site) -> Tensor:
        """The difference of the streams that a component reads, [batch, pos, d_model]."""
        layer = reads.block
        if reads.kind in ("resid_pre", "resid_post"):
            return self._difference(reads)
        before = self._difference(Site("resid_post", layer - 1)) if layer else self._difference(Site("embed"))
        if not layer and Site("pos_embed") in self.clean:
            before = before + self._difference(Site("pos_embed"))
        if reads.kind in ("z", "attn_out") or self.model.parallel:
            return before
        return before + self._difference(Site("attn_out", layer))

    def _difference(self, site: Site) -> Tensor:
        return self.clean[site] if self.base is None else self.clean[site] - self.base[site]

    def _note(self, ids: Sequence[int], stream: Tensor) -> None:
        for i, value in zip(ids, stream.mean(0).tolist(), strict=True):
            self.stream_inputs[i] = value

    def _keep(self, ids: Tensor, node_gradient: Tensor, blocks: Sequence[Block]) -> None:
        """Collect the edges of these blocks into readers ids [r] that pass; mark their sources in `kept`."""
        local = [block.local.sum(2) if block.local.shape[2] > 1 else block.local[:, :, 0] for block in blocks]
        self._select(ids, blocks, local, [node_gradient[:, :, None] * values for values in local])

    def _select(self, ids: Tensor, blocks: Sequence[Block], local: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        """The same with the local weights and weights [batch, r, columns] of each block."""
        means = [_mean(weight) for weight in weights]
        local_means = [_mean(values) for values in local]
        linear = [v for v, b in zip(local_means, blocks, strict=True) if self.qk != "ablate" or b.kind not in "qk"]
        total = torch.stack([values.sum(-1) for values in linear]).sum(0) if linear else torch.zeros(len(ids))
        self.total_inputs |= dict(zip(ids.tolist(), total.tolist(), strict=True))
        for block, weight, mean, local_mean, keep in zip(
            blocks, weights, means, local_means, self._passing(means, local_means), strict=True
        ):
            r, c = keep.nonzero(as_tuple=True)
            if not len(r):
                continue
            sources = self._mark(block.table, c + block.columns.start)
            heads = None
            if block.kind in _TYPED:
                heads = _mean(block.local)[r, :, c]
            self.collector.add(
                block.kind,
                sources,
                ids.to(r.device)[r],
                mean[r, c],
                local_mean[r, c],
                weight[:, r, c].abs().mean(0),
                heads,
            )

    def _mark(self, table: int, columns: Tensor) -> Tensor:
        """Mark these sources as kept; their ids."""
        self.kept[table][columns] = True
        return columns + self.offsets[table]

    def result(self) -> TracedEdges:
        """Everything found so far."""
        return TracedEdges(self.collector.table(), self.total_inputs, self.stream_inputs, self.weights)

    def _passing(self, means: Sequence[Tensor], local_means: Sequence[Tensor]) -> list[Tensor]:
        """Which edges [readers, columns] of each block pass the selection."""
        select = self.selection
        passed = [(mean.abs() > select.threshold) & (mean != 0) for mean in means]
        if select.relative_threshold and means:
            total = torch.stack([local.abs().sum(-1) for local in local_means]).sum(0)[:, None]
            passed = [
                keep & (local.abs() >= select.relative_threshold * total)
                for keep, local in zip(passed, local_means, strict=True)
            ]
        if select.top_k is not None and means:
            everything = torch.cat([mean.abs() * keep for mean, keep in zip(means, passed, strict=True)], -1)
            smallest = everything.topk(min(select.top_k, everything.shape[-1]), dim=-1).values[:, -1:]
            passed = [keep & (mean.abs() >= smallest) for mean, keep in zip(means, passed, strict=True)]
        return passed


def _mean(x: Tensor) -> Tensor:
    """The mean over the examples; of one example no copy."""
    return x[0] if len(x) == 1 else x.mean(0)
