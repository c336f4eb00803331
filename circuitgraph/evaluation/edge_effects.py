"""Edges, measured: what the source's write, taken away where the target reads, does to the target.

In come the model, the clean run, node tables and pairs of nodes; out come changes of pre-activations and of the metric.
Everything between source and target keeps its clean value but what edges pass: the skip connections of transcoders, and
components that are through. These and the target's own block compute anew, so that norms, attention patterns and neurons answer
to the change as they do in the model, unless they are frozen. This module knows no weights of edges.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from circuitgraph.attribution.tables import FeatureTable, NodeTable
from circuitgraph.attribution.targets import Target
from circuitgraph.attribution.treatment import ComponentTreatment, frozen_outputs
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.errors import CircuitGraphError, did_you_mean
from circuitgraph.metrics import Metric
from circuitgraph.models.model import Model, Replace
from circuitgraph.nodes import Node, Site
from circuitgraph.progress import Progress, no_progress
from circuitgraph_kernels import pre_activations

_FROZEN = {"norms": ("ln1_scale", "ln1_post_scale", "ln2_scale", "ln2_post_scale"), "attention": ("pattern",)}
_STREAM = ("resid_pre", "resid_post")


def measure_edges(
    model: Model,
    dictionaries: Dictionaries,
    tokens: Tensor,
    metric: Metric,
    tables: Sequence[NodeTable],
    pairs: Sequence[tuple[Node, Node]],
    *,
    treatment: ComponentTreatment | None = None,
    freeze: Sequence[str] = (),
    targets: Mapping[Node, Target] | None = None,
    batch_rows: int = 512,
    progress: Progress = no_progress,
) -> Tensor:
    """The measured effect of each (source, target), [pairs, batch]: the target's value in the clean run minus its value when
    what the source writes (clean minus baseline) is taken from the stream that the target reads.

    The value of a feature is its pre-activation, that of the metric the metric, and that of a target what its target says. treatment:
    what components without a dictionary are. freeze: "norms" (their scales) and "attention" (patterns) keep their clean values; with norms frozen it is comparable with
    the sum of `local_weight` over the kinds of edges between the two, with both with that over the kinds that are neither q
    nor k. The pairs' sources must be in the tables.
    """
    check_freeze(freeze)
    _check_targets([target for _, target in pairs], targets or {}, metric)
    places = {node: (table, i) for table in tables for i, node in enumerate(table.nodes())}
    targets = targets or {}
    groups: dict[Site, list[int]] = {}
    for i, (_, target) in enumerate(pairs):
        groups.setdefault(_read_at(model, dictionaries, targets, target), []).append(i)
    run = _Runs.of(model, dictionaries, tokens, treatment or ComponentTreatment(), freeze, {*groups, *metric.sites})

    def value(target: Node, logits: Tensor, read: Tensor) -> Tensor:
        if target in targets:
            return targets[target].value(logits, dict.fromkeys(targets[target].sites, read))
        return _pre(dictionaries, target, read) if target.kind == "feature" else metric(logits)

    batch, done = len(tokens), 0
    step = max(1, batch_rows // batch)
    effects: Tensor = run.logits.new_zeros(len(pairs), batch)
    for at, indices in groups.items():
        sources = sorted({pairs[i][0] for i in indices}, key=lambda node: node.order)
        for first in range(0, len(sources), step):
            progress("measuring edges", done, len(pairs))
            chosen = {source: n for n, source in enumerate(sources[first : first + step])}
            logits, read = run.without([places[source] for source in chosen], at)
            for i in (i for i in indices if pairs[i][0] in chosen):
                source, target = pairs[i]
                rows = slice(chosen[source] * batch, (chosen[source] + 1) * batch)
                effects[i] = value(target, run.logits, run.clean[at]) - value(target, logits[rows], read[rows])
                done += 1
    return effects


def check_freeze(freeze: Sequence[str]) -> None:
    """CircuitGraphError for a name that means nothing here."""
    for name in freeze:
        if name not in _FROZEN:
            raise CircuitGraphError(
                f"{name!r} cannot be frozen while edges are measured; expected {' or '.join(_FROZEN)}."
                f"{did_you_mean(name, _FROZEN)}"
            )


def _check_targets(nodes: Sequence[Node], targets: Mapping[Node, Target], metric: Metric) -> None:
    """CircuitGraphError for a target whose value is not known: an error, or a metric of what stands inside the model."""
    for target in nodes:
        if target not in targets and (
            target.kind not in ("feature", "metric") or (target.kind == "metric" and metric.sites)
        ):
            raise CircuitGraphError(
                f"edges into {str(target)!r} are not measured; expected a feature, a target with its target, or a metric of logits"
            )


def _read_at(model: Model, dictionaries: Dictionaries, targets: Mapping[Node, Target], target: Node) -> Site:
    """Where the target reads: its target's or dictionary's site, or for logits and the metric the end of the residual stream.

    What enters a block is read where it leaves the one before, as nothing is taken in between.
    """
    sites = targets[target].sites if target in targets else ()
    if not sites and target.kind != "feature":
        return Site("resid_post", model.n_layers - 1)
    reads = sites[0] if sites else dictionaries[target.site].reads
    return Site("resid_post", reads.layer - 1) if reads.kind == "resid_pre" and reads.layer else reads


def _pre(dictionaries: Dictionaries, target: Node, x: Tensor) -> Tensor:
    """The target's pre-activation [batch] for x [batch, pos, d_in] where its dictionary reads."""
    return pre_activations(x[:, target.pos], dictionaries[target.site].weights)[:, target.feature]


def _written(table: NodeTable, column: int) -> list[tuple[Site, Tensor]]:
    """What the node adds to the stream, clean minus baseline, [batch, d_model] for each place where it does."""
    if isinstance(table, FeatureTable):
        vectors = [table.amount[:, column, None] * write for write in table.writes[column]]
        return list(zip([site.output for site in table.dictionary.sites], vectors, strict=True))
    return [(table.site.output, table.vectors[:, column])]


@dataclass(frozen=True, eq=False)
class _Runs:
    """The clean run and what is shared by the runs without a source: the sites that are frozen, the outputs of components that
    are through, the dictionaries that skip per output site, and the sites of the residual stream whose dictionaries stand
    between what is before and behind them."""

    model: Model
    tokens: Tensor
    logits: Tensor
    clean: Mapping[Site, Tensor]
    frozen: Sequence[Site]
    through: Collection[Site]
    skips: Mapping[Site, Sequence[Dictionary]]
    between: Collection[Site]

    @classmethod
    def of(
        cls,
        model: Model,
        dictionaries: Dictionaries,
        tokens: Tensor,
        treatment: ComponentTreatment,
        freeze: Sequence[str],
        read: Collection[Site],
    ) -> _Runs:
        """The clean run with all that is needed of it; `read` is where targets read."""
        layers = range(model.n_layers)
        kinds = [kind for name in freeze for kind in _FROZEN[name]]
        frozen = [site for kind in kinds for layer in layers if model.has(site := Site(kind, layer))]
        skipping = [dictionary for dictionary in dictionaries.values() if dictionary.skips]
        skips = {site: [d for d in skipping if site in d.sites] for d in skipping for site in d.sites}
        parts = [Site(kind, layer) for kind in ("resid_pre", "attn_out", "mlp_out") for layer in layers]
        between = {site for site in set(dictionaries.written) if site.kind in _STREAM}
        sites = {*parts, *frozen, *read, *between, *(dictionary.reads for dictionary in skipping)}
        logits, clean = model.run(tokens, record=sorted(sites))
        through = frozen_outputs(model, dictionaries, treatment)
        return cls(model, tokens, logits, clean, frozen, through, skips, between)

    def without(self, sources: Sequence[tuple[NodeTable, int]], at: Site) -> tuple[Tensor, Tensor]:
        """Logits and what is read at `at`, where rows i * batch to (i + 1) * batch lack what source i writes."""
        batch, n, end = len(self.tokens), len(sources), at.block
        lost = [
            (site, i * batch, int(table.pos[column]), vector)
            for i, (table, column) in enumerate(sources)
            for site, vector in _written(table, column)
            if site.depth <= at.depth
        ]
        first = min((_entered(site) for site, *_ in lost), default=end)
        first = min(first, end)
        taken: dict[Site, list[tuple[int, int, Tensor]]] = {}
        for site, *change in lost:
            place = Site("resid_pre", first) if site.kind == "resid_post" and site.block < first else site
            place = Site("embed") if site.layer is None else place
            taken.setdefault(place, []).append(tuple(change))  # type: ignore[arg-type]
        parts = [Site(kind, layer) for layer in range(first, end + 1) for kind in ("attn_out", "mlp_out")]
        held = [site for site in self.between if first <= (site.block) and site.depth <= at.depth]
        replace = {site: self._replacement(site, n, taken.get(site, [])) for site in {*parts, *held, *taken}}
        frozen = [site for site in self.frozen if first <= site.block <= end]
        replace |= {site: self._replacement(site, n, []) for site in frozen}
        reads = {dictionary.reads for site in parts for dictionary in self.skips.get(site, [])}
        start = (first, self.clean[Site("resid_pre", first)].repeat(n, 1, 1)) if first else None
        record = sorted({at, *reads})
        logits, recorded = self.model.run(self.tokens.repeat(n, 1), record=record, replace=replace, start=start)
        return logits, recorded[at]

    def _replacement(self, site: Site, n: int, taken: Sequence[tuple[int, int, Tensor]]) -> Replace:
        """The site's clean value, its own where a change passes, plus what skips pass, without what is taken."""
        passes = site in self.through or (site.kind in ("embed", *_STREAM) and site not in self.between)
        batch = len(self.tokens)

        def edit(x: Tensor, recorded: Mapping[Site, Tensor]) -> Tensor:
            value = x.clone() if passes else self.clean[site].repeat(n, *[1] * (x.ndim - 1))
            for dictionary in self.skips.get(site, []):
                change = recorded[dictionary.reads] - self.clean[dictionary.reads].repeat(n, 1, 1)
                value = value + dictionary.skipped(change)[..., dictionary.columns(site)]
            for row, pos, vector in taken:
                value[row : row + batch, pos] -= vector
            return value

        return edit


def _entered(site: Site) -> int:
    """The layer that a run must start from to lack what is written at the site."""
    if site.layer is None:
        return 0
    return site.layer + 1 if site.kind == "resid_post" else site.layer
