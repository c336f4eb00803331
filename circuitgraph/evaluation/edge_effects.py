"""Measured effects of edges: how the target changes when the source's write is removed from what it reads.

Everything between source and target keeps its clean value, except what edges pass: skip connections of transcoders and
frozen components. These and the target's own block compute anew, so that norms, attention patterns and neurons answer
to the change as they do in the model, unless they are frozen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from circuitgraph.attribution.tables import FeatureTable, NodeTable
from circuitgraph.attribution.targets import Target
from circuitgraph.attribution.treatment import ComponentTreatment, frozen_outputs
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.errors import CircuitGraphError, did_you_mean
from circuitgraph.interventions.freeze import frozen_sites
from circuitgraph.metrics import Metric
from circuitgraph.models.model import Model, Replace
from circuitgraph.models.variants import BATCH_ROWS, variants_at_once
from circuitgraph.nodes import Node, Site
from circuitgraph.progress import Progress, no_progress
from circuitgraph_kernels import pre_activations

FREEZABLE = ("norms", "attention")  # the names of `interventions.freeze` that mean something here


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
    batch_rows: int = BATCH_ROWS,
    progress: Progress = no_progress,
) -> Tensor:
    """The measured effect of each pair: the target's value in the clean run minus its value without the source.

    Without the source means: what it writes, clean minus baseline, is taken from the stream that the target reads. The
    value of a feature is its pre-activation, that of the metric node the metric, that of a target what the target
    says. With norms frozen the effect is comparable with the sum of `local_weight` over all kinds of edges between the
    two nodes; with attention frozen too, with that over the kinds that are neither q nor k.

    Args:
        model: The model.
        dictionaries: Its dictionaries.
        tokens: Token ids [batch, pos].
        metric: A metric of logits.
        tables: Tables of all nodes, clean minus baseline; the sources must be in them.
        pairs: (source, target).
        treatment: How components without a dictionary are treated.
        freeze: "norms" (their scales), "attention" (patterns): what keeps its clean value.
        targets: What target nodes stand for.
        batch_rows: Rows of one forward pass.
        progress: Told (stage, pairs done, pairs in all).

    Returns the effects [pairs, batch]. Raises CircuitGraphError for a target without a value, such as an error.
    """
    check_freeze(freeze)
    _check_targets([target for _, target in pairs], targets or {}, metric)
    columns = {node: (table, i) for table in tables for i, node in enumerate(table.nodes())}
    targets = targets or {}
    groups: dict[Site, list[int]] = {}
    for i, (_, target) in enumerate(pairs):
        groups.setdefault(_read_at(model, dictionaries, targets, target), []).append(i)
    run = _Runs.of(model, dictionaries, tokens, treatment or ComponentTreatment(), freeze, {*groups, *metric.sites})

    def value(target: Node, logits: Tensor, read: Tensor) -> Tensor:
        if target in targets:
            return targets[target].value(logits, dict.fromkeys(targets[target].sites, read))
        return _pre(dictionaries, target, read) if target.kind == "feature" else metric(logits)

    done, step = 0, variants_at_once(tokens, batch_rows=batch_rows)
    effects: Tensor = run.logits.new_zeros(len(pairs), len(tokens))
    for at, indices in groups.items():
        sources = sorted({pairs[i][0] for i in indices}, key=lambda node: node.order)
        for first in range(0, len(sources), step):
            progress("measuring edges", done, len(pairs))
            variants = {source: variant for variant, source in enumerate(sources[first : first + step])}
            logits, read = run.without([columns[source] for source in variants], at)
            for i in (i for i in indices if pairs[i][0] in variants):
                source, target = pairs[i]
                without = value(target, logits[variants[source]], read[variants[source]])
                effects[i] = value(target, run.logits, run.clean[at]) - without
                done += 1
    return effects


def check_freeze(freeze: Sequence[str]) -> None:
    """CircuitGraphError for a name that means nothing here."""
    for name in freeze:
        if name not in FREEZABLE:
            raise CircuitGraphError(
                f"{name!r} cannot be frozen while edges are measured; expected {' or '.join(FREEZABLE)}."
                f"{did_you_mean(name, FREEZABLE)}"
            )


def _check_targets(nodes: Sequence[Node], targets: Mapping[Node, Target], metric: Metric) -> None:
    """CircuitGraphError for a target whose value is not known: an error, or a metric of what is inside the model."""
    for target in nodes:
        if target not in targets and (
            target.kind not in ("feature", "metric") or (target.kind == "metric" and metric.sites)
        ):
            raise CircuitGraphError(
                f"edges into {str(target)!r} are not measured; expected a feature, a target of the graph, or a metric"
                " of logits"
            )


def _read_at(model: Model, dictionaries: Dictionaries, targets: Mapping[Node, Target], target: Node) -> Site:
    """Where the target reads: its own site or its dictionary's, or for logits and the metric the end of the stream.

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


def _written(table: NodeTable, column: int) -> Iterator[tuple[Site, Tensor]]:
    """What the node adds to the stream, clean minus baseline, [batch, d_model] for each site where it does."""
    if isinstance(table, FeatureTable):
        vectors = [table.amount[:, column, None] * write for write in table.writes[column]]
        yield from zip([site.output for site in table.dictionary.sites], vectors, strict=True)
    else:
        output = table.site.output
        yield Site("embed") if output.part == "embedding" else output, table.vectors[:, column]


@dataclass(frozen=True, eq=False)
class _Runs:
    """The clean run, and what all runs without a source share.

    frozen: sites that keep their clean value. passing: outputs of frozen components. skips: the dictionaries that skip,
    per output site. between: sites of the stream whose dictionaries stand between what is before and behind them.
    """

    model: Model
    tokens: Tensor
    logits: Tensor
    clean: Mapping[Site, Tensor]
    frozen: Collection[Site]
    passing: Collection[Site]
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
        frozen = frozen_sites(model, freeze)
        skipping = [dictionary for dictionary in dictionaries.values() if dictionary.skips]
        skips = {site: [d for d in skipping if site in d.sites] for d in skipping for site in d.sites}
        between = {site for site in dictionaries.written if site.part == "stream"}
        ends = {Site("resid_post", layer) for layer in range(model.n_layers)}
        sites = {*ends, *_outputs(model), *frozen, *read, *between, *(dictionary.reads for dictionary in skipping)}
        logits, clean = model.run(tokens, record=sorted(sites))
        return cls(model, tokens, logits, clean, frozen, frozen_outputs(model, dictionaries, treatment), skips, between)

    def without(self, sources: Sequence[tuple[NodeTable, int]], at: Site) -> tuple[Tensor, Tensor]:
        """Logits [sources, batch, pos, vocab] and what is read at `at`, each without what one source writes."""
        taken: dict[Site, list[tuple[int, int, Tensor]]] = {}
        for variant, (table, column) in enumerate(sources):
            for site, vector in _written(table, column):
                if site.depth <= at.depth:
                    taken.setdefault(site, []).append((variant, int(table.pos[column]), vector))
        lowest = min(taken, default=at)
        held = {*_outputs(self.model), *self.between, *self.frozen}
        held = {site for site in held if lowest.depth <= site.depth <= at.depth}
        edits = {site: self._edit(site, taken.get(site, [])) for site in {*held, *taken}}
        read = {dictionary.reads for site in edits for dictionary in self.skips.get(site, [])}
        logits, observed = self.model.run_variants(
            self.tokens, edits, len(sources), clean=self.clean, read=read, observe=[at]
        )
        return logits, observed[at]

    def _edit(self, site: Site, taken: Sequence[tuple[int, int, Tensor]]) -> Replace:
        """The site's clean value, or its own where a change passes, plus what skips pass, without what is taken."""
        passes = site in self.passing or (site.part in ("embedding", "stream") and site not in self.between)

        def edit(x: Tensor, values: Mapping[Site, Tensor]) -> Tensor:
            value = (x if passes else self.clean[site].expand_as(x)).clone()
            for dictionary in self.skips.get(site, []):
                change = values[dictionary.reads] - self.clean[dictionary.reads]
                value = value + dictionary.skipped(change)[..., dictionary.columns(site)]
            for variant, pos, vector in taken:
                value[variant, :, pos] -= vector
            return value

        return edit


def _outputs(model: Model) -> list[Site]:
    """Where attention and MLPs add to the stream."""
    return [Site(kind, layer) for layer in range(model.n_layers) for kind in ("attn_out", "mlp_out")]
