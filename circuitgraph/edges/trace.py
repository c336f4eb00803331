"""Edges between nodes: typed, with exact derivatives, traced from the targets down.

A *target* is a node whose inputs are traced. The work is done in five steps:

    1  targets            First the metric, or the targets that replace it.
    2  input directions   What a target reads is, for each kind of path, one vector r per position of the stream
                          (`paths.input_paths`). All that is not on the path, and norm scales, are frozen at the
                          clean run.
    3  products           Each vector times what the nodes write, clean minus baseline (`edges.products`):

                              local_weight = (write_u . r) * delta_u               contribution to v's pre-activation
                              weight       = node_gradient(v) * local_weight       contribution to the metric through v

                          Where a node is the sum of a feature over positions, its edges are added up (`edges.weights`).
    4  selection          Edges with a large enough |weight| stay (`edges.selection`).
    5  next targets       Features that are the source of an edge that stays are traced in their turn: layer by layer
                          downwards, or with max_traced the most influential on the targets first.

The input direction of the metric is dm/d(resid_post of the last layer). Paths pass linear skip connections, and
attention and MLPs that are frozen. They end at a dictionary of the residual stream, whose own nodes carry on. A feature
of a cross-layer transcoder writes at several sites; everything it writes below the target is summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuitgraph.attribution.attribute import Attribution
from circuitgraph.attribution.tables import FeatureTable, NodeTable
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.edges.influence import node_influence
from circuitgraph.edges.position_sums import Groups
from circuitgraph.edges.products import EdgeProducts, barriers
from circuitgraph.edges.selection import Selection
from circuitgraph.edges.table import EdgeCollector, EdgeTable
from circuitgraph.edges.weights import IncomingEdges
from circuitgraph.errors import CircuitGraphError, DictionaryError
from circuitgraph.models.model import Model
from circuitgraph.nodes import STREAM_SITES, EdgeKind, Node, Site
from circuitgraph.paths.input_paths import InputPaths, check_input_site
from circuitgraph.paths.linear_maps import skip_map
from circuitgraph.paths.stream import StreamChange
from circuitgraph.progress import Progress, no_progress
from circuitgraph.settings import Compute, Edges


@dataclass(frozen=True, eq=False)
class TracedEdges:
    """The edges that stay, and what the traced targets read in all, by node id, means over the examples.

    total_input: The sum of the local weights of all sources, before selection.
    stream_input: What the target reads of the change of the streams themselves. The two are equal up to rounding where
        every source is a node. q and k edges with qk "ablate" are not additive and are left out of both.
    weights: [n_nodes] The weights of the targets in the metric, 0 for other nodes.
    """

    table: EdgeTable
    total_input: Mapping[int, float]
    stream_input: Mapping[int, float]
    weights: Tensor


def trace_edges(
    run: Attribution,
    tables: Sequence[NodeTable],
    settings: Edges,
    compute: Compute | None = None,
    progress: Progress = no_progress,
) -> TracedEdges:
    """The edges between nodes that pass the settings and reach the metric, from the targets down.

    Args:
        run: Runs, gradients, targets and frozen components.
        tables: The nodes at single positions, also where edges are between sums over positions.
        settings: How q and k edges are computed, which features are traced and which edges stay.
        compute: Its memory bounds what input directions and products take at once. One target is always held.
        progress: Told (stage, steps done, steps in all).

    Raises DictionaryError or ModelError for dictionaries whose inputs cannot be traced, CircuitGraphError for qk
    "ablate" with frozen components or without recorded attention scores.
    """
    if settings.qk == "ablate" and run.frozen:
        raise CircuitGraphError("qk 'ablate' does not pass frozen attention or MLPs; take qk 'derivative', or 'node'")
    if settings.qk == "ablate" and not any(site.kind == "attn_scores" for site in run.clean.attached):
        raise CircuitGraphError(
            "qk 'ablate' needs the attention scores; record them with run_attribution(..., scores=True)"
        )
    memory = (compute or Compute()).memory * (1 << 30)
    tracer = Tracer(run, tables, settings, int(memory))
    tracer.trace_objective()
    if settings.max_traced is None:
        tracer.trace_downwards(progress)
    else:
        tracer.trace_most_influential(settings.max_traced, progress)
    return tracer.result()


def check_inputs(model: Model, dictionaries: Iterable[Dictionary], qk: str = "derivative") -> None:
    """DictionaryError or ModelError unless the inputs of all these dictionaries' features can be traced."""
    for dictionary in dictionaries:
        check_input_site(model, dictionary.reads)
        reads, sites = dictionary.reads, dictionary.sites
        if astray := [
            site for site in sites if site.output.kind not in STREAM_SITES or (site.output != site and sites[1:])
        ]:
            raise DictionaryError(
                f"dictionary {dictionary.name} writes {astray[0]}, and what is written there is not simply added to the"
                f" stream; edges need one of {', '.join(STREAM_SITES)}, or a single z or mlp_post"
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
    """Numbers the nodes, traces targets batch by batch and collects the edges that stay.

    Nodes are numbered table by table; the nodes of the objective and the metric follow. `kept` marks the sources of
    edges that stay: the next targets.
    """

    def __init__(self, run: Attribution, tables: Sequence[NodeTable], settings: Edges, memory: int) -> None:
        self.run, self.model, self.clean = run, run.model, run.clean.values
        self.change = StreamChange(run.model, self.clean, run.baseline.values)
        self.tables, self.settings, self.memory = tables, settings, memory
        self.selection = Selection(
            settings.edge_threshold * run.full_share, settings.relative_threshold, settings.top_k
        )
        dictionaries = [table.dictionary for table in tables if isinstance(table, FeatureTable)]
        check_inputs(self.model, dictionaries, settings.qk)
        skips = [
            skip_map(self.model, d.reads, d.writes, W_skip, self.clean)
            for d in dictionaries
            if (W_skip := d.W_skip) is not None
        ]
        written = [dictionary.writes for dictionary in dictionaries]
        self.products = EdgeProducts(tables, [*skips, *run.frozen.values()], barriers(written))
        self.groups = [Groups.of(table, settings.positions) for table in tables]
        self.nodes: list[Node] = [node for group in self.groups for node in group.nodes]
        sizes = torch.tensor([0, *(len(group.nodes) for group in self.groups)])
        self.offsets: list[int] = sizes.cumsum(0).tolist()
        self.collector = EdgeCollector(self.nodes)
        self.kept = [torch.zeros(len(g.nodes), dtype=torch.bool, device=g.number.device) for g in self.groups]
        traceable = [i for i, table in enumerate(tables) if table.reads_at is not None]
        self.traceable = sorted(traceable, key=lambda i: -tables[i].site.depth)
        self.weights = torch.zeros(len(self.nodes), dtype=torch.float64)
        self.total_inputs: dict[int, float] = {}
        self.stream_inputs: dict[int, float] = {}

    def trace_objective(self) -> None:
        """The inputs of the metric; or those of the objective's nodes, and their edges to the metric."""
        gradient, targets, first = self.run.stream_gradient, self.run.targets, len(self.nodes)
        top = [*(target.node for target in targets), Node("metric", Site("metric"), gradient.shape[1] - 1)]
        self.nodes += top if self.settings.positions == "each" else [replace(node, pos=0) for node in top]
        self.weights = torch.zeros(len(self.nodes), dtype=torch.float64)
        if not targets:
            self.weights[-1] = 1
            self._trace_stream(torch.tensor([first]), gradient[:, None], torch.ones_like(gradient[:, :1, 0]))
            return
        ids = torch.arange(first, first + len(targets))
        weights = torch.stack([target.weight for target in targets], 1)
        logits = [i for i, target in enumerate(targets) if target.gradient is not None]
        if logits:
            gradient = torch.stack([t.gradient for t in targets if t.gradient is not None], 1)
            self._trace_stream(ids[logits], gradient, weights[:, logits])
        for i, target in enumerate(targets):
            if target.reads is not None and target.vector is not None:
                here, row = slice(i, i + 1), torch.zeros(1, dtype=torch.int64, device=weights.device)
                incoming, paths = IncomingEdges(self.groups, ids[here]), self._paths_of(target.reads)
                self._add_inputs(incoming, paths, target.vector[None], target.node.pos, weights[:, here], row)
                self._select(incoming)
        zero = self.change.baseline is None
        local = torch.stack([t.clean if zero or t.corrupted is None else t.clean - t.corrupted for t in targets], 1)
        self.weights[first:-1] = weights.mean(0).to("cpu", torch.float64)
        weight = weights * local
        metric_ids = torch.full_like(ids, len(self.nodes) - 1)
        self.collector.add("metric", ids, metric_ids, weight.mean(0), weight.mean(0), weight.abs().mean(0), None)

    def trace_downwards(self, progress: Progress) -> None:
        """Trace every source of a kept edge, last layer first, since its own sources are lower."""
        for done, index in enumerate(self.traceable):
            progress("tracing edges", done, len(self.traceable))
            self.trace(index, self.kept[index].nonzero().flatten())

    def trace_most_influential(self, budget: int, progress: Progress) -> None:
        """Trace `budget` nodes in up to four rounds, the most influential on the targets first in each."""
        traced = torch.zeros(self.offsets[-1], dtype=torch.bool)
        traceable = torch.zeros_like(traced)
        for index in self.traceable:
            traceable[self.offsets[index] : self.offsets[index + 1]] = True
        while (done := int(traced.sum())) < budget:
            progress("tracing edges", done, budget)
            influence = node_influence(self.collector.table(), self.weights)[: len(traced)]
            waiting = torch.where(traceable & ~traced, influence, 0)
            chosen = waiting.topk(min(budget - done, max(256, -(-budget // 4)), len(waiting))).indices
            chosen = chosen[waiting[chosen] > 0].sort().values
            if not len(chosen):
                break
            traced[chosen] = True
            for index in self.traceable:
                start, stop = self.offsets[index : index + 2]
                nodes = chosen[(chosen >= start) & (chosen < stop)] - start
                self.trace(index, nodes.to(self.tables[index].pos.device))

    def trace(self, index: int, nodes: Tensor) -> None:
        """The inputs of these nodes (by number, ascending) of a table of features, or of errors that are targets."""
        table, groups = self.tables[index], self.groups[index]
        if not len(nodes) or table.reads_at is None:
            return
        paths = self._paths_of(table.reads_at)
        for batch in self._batches(index, nodes, paths):
            incoming = IncomingEdges(self.groups, (batch + self.offsets[index]).cpu())
            columns = groups.columns(batch)
            rows, positions = torch.searchsorted(batch, groups.number[columns]), table.pos[columns]
            for pos in torch.unique(positions).tolist():
                here = positions == pos
                targets = table.take(columns[here])
                assert targets.reads is not None
                self._add_inputs(incoming, paths, targets.reads, pos, targets.node_gradient, rows[here])
            self._select(incoming)

    def result(self) -> TracedEdges:
        """The edges that were kept until now."""
        return TracedEdges(self.collector.table(), self.total_inputs, self.stream_inputs, self.weights)

    def _paths_of(self, reads: Site) -> InputPaths:
        """Paths into what reads at the site. Projections for the last such site are dropped."""
        self.products.forget()
        return InputPaths(self.model, reads, self.clean, self.run.slopes, ablate=self.settings.qk == "ablate")

    def _batches(self, index: int, nodes: Tensor, paths: InputPaths) -> Iterator[Tensor]:
        """The nodes in batches that fit into the memory. Nodes at single positions are batched by position."""
        pos, groups = self.tables[index].pos, self.groups[index]
        if not groups.single:
            yield from nodes.split(self._fitting(paths, int(pos.max())))
            return
        for at in torch.unique(pos[nodes]).tolist():
            yield from nodes[pos[nodes] == at].split(self._fitting(paths, at))

    def _fitting(self, paths: InputPaths, pos: int) -> int:
        """How many targets at positions up to pos fit into the memory.

        Counted are, by kind of path, the products with every source by head, their sum, and that times the gradient;
        dense input directions where maps stand between; and the sums that wait for further positions.
        """
        kinds, heads = (3, self.model.n_heads) if paths.state is not None else (1, 1)
        batch = len(self.clean[Site("embed")])
        below = [i for i, table in enumerate(self.tables) if table.site.depth < paths.entry]
        numbers = kinds * (heads + 2) * batch * sum(len(self.tables[i]) for i in below)
        numbers += kinds * (heads + batch) * sum(len(self.groups[i].nodes) for i in below if not self.groups[i].single)
        if self.products.crossed(paths.entry):
            numbers += heads * batch * (pos + 1) * self.model.d_model * 4
        return max(1, self.memory // (8 * max(1, numbers)))

    def _trace_stream(self, ids: Tensor, gradient: Tensor, node_gradient: Tensor) -> None:
        """The inputs of targets ids [r] that read the end of the stream, gradient [batch, r, pos, d_model]."""
        incoming, rows = IncomingEdges(self.groups, ids), torch.arange(len(ids), device=gradient.device)
        for block in self.products.of_stream(gradient):
            incoming.add(block, node_gradient, rows)
        self._note(ids, torch.einsum("brpd,bpd->br", gradient, self.change.end))
        self._select(incoming)

    def _add_inputs(
        self,
        incoming: IncomingEdges,
        inputs: InputPaths,
        vectors: Tensor,
        pos: int,
        node_gradient: Tensor,
        rows: Tensor,
    ) -> None:
        """Add what some of the targets read at one position, with vectors [r, d_in] or [batch, r, d_in]; rows [r] says
        which of them they are."""
        paths = inputs.paths(vectors, pos)
        for block in self.products.of_paths(paths):
            incoming.add(block, node_gradient, rows)
        change = self.change.before(inputs.reads)
        linear = [path.of_stream(change) for path in paths if path.softmax is None]
        self._note(incoming.ids[rows.cpu()], torch.stack(torch.broadcast_tensors(*linear)).sum(0))

    def _note(self, ids: Tensor, stream: Tensor) -> None:
        """Add what targets ids [r] read of the stream, [batch, r], to their stream_input."""
        for i, value in zip(ids.tolist(), stream.mean(0).tolist(), strict=True):
            self.stream_inputs[i] = self.stream_inputs.get(i, 0.0) + value

    def _select(self, incoming: IncomingEdges) -> None:
        """Collect the edges that pass, and mark their sources in `kept`."""
        ids, kinds = incoming.ids, [kind for kind, _ in incoming.weights]
        weights = [_mean(edges.weight) for edges in incoming.weights.values()]
        local = [_mean(edges.local) for edges in incoming.weights.values()]
        inputs = [x.sum(-1) for x, kind in zip(local, kinds, strict=True) if self._additive(kind)]
        total = torch.stack(inputs).sum(0) if inputs else torch.zeros(len(ids))
        self.total_inputs |= dict(zip(ids.tolist(), total.tolist(), strict=True))
        passing = self.selection.passing(weights, local)
        for ((kind, table), edges), weight, local_weight, keep in zip(
            incoming.weights.items(), weights, local, passing, strict=True
        ):
            r, c = keep.nonzero(as_tuple=True)
            if not len(r):
                continue
            sources = c + edges.first
            self.kept[table][sources] = True
            self.collector.add(
                kind,
                sources + self.offsets[table],
                ids.to(r.device)[r],
                weight[r, c],
                local_weight[r, c],
                edges.weight[:, r, c].abs().mean(0),
                None if edges.heads is None else _mean(edges.heads)[r, :, c],
            )

    def _additive(self, kind: EdgeKind) -> bool:
        """Whether the edges of all sources add up to what the target reads."""
        return self.settings.qk != "ablate" or kind not in ("q", "k")


def _mean(x: Tensor) -> Tensor:
    """The mean over the examples; of one example no copy."""
    return x[0] if len(x) == 1 else x.mean(0)
