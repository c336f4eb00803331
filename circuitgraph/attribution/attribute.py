"""Every node's attribution: the way from prompts to node tables, which discovery, evaluation and checks start from.

1  the clean run, with its autograd graph, and the corrupted run
2  the gradient of the metric at every site that a node writes to
3  aligned positions take the place of positions, where prompts of different form are aligned by roles
4  the attribution of every feature that is active in either run, every error, embedding and bias, as tables
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from circuitgraph.attribution.alignment import Alignment, align_pairs
from circuitgraph.attribution.attributions import Attributions
from circuitgraph.attribution.gradients import mlp_slopes
from circuitgraph.attribution.node_attribution import attribute_nodes
from circuitgraph.attribution.node_gradients import node_gradients
from circuitgraph.attribution.objective import find_objective, likeliest_logits
from circuitgraph.attribution.runs import (
    Baseline,
    CleanRun,
    CorruptedRun,
    baseline_of,
    check_baseline,
    run_clean,
    run_corrupted,
    sites_of,
)
from circuitgraph.attribution.tables import NodeTable
from circuitgraph.attribution.targets import Objective, TargetNode, target_nodes
from circuitgraph.attribution.treatment import ComponentTreatment, error_targets, frozen_components
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.doors import DictionariesLike, ModelLike, PairsLike, as_dictionaries, as_model, as_pairs, choose_pairs
from circuitgraph.errors import CircuitGraphError
from circuitgraph.metrics import Metric, build_metric
from circuitgraph.models.model import Model
from circuitgraph.models.tokens import TokenizedPairs, tokenize_pairs
from circuitgraph.nodes import Node, Site
from circuitgraph.paths.linear_maps import LinearMap
from circuitgraph.progress import Progress, no_progress
from circuitgraph.prompts import PromptPair, record_of
from circuitgraph.settings import Compute, Nodes, as_record, refuse_metric_beside_targets, resolve
from circuitgraph.shares import full_share
from circuitgraph_kernels import backend_name


@dataclass(frozen=True, eq=False)
class Attribution:
    """The attribution of every node, and all that it was computed from.

    `nodes` are the results as columns; `top`, `above`, `by_site`, `to_pandas` and `save` are theirs. The other
    fields are for what goes on from here: activations, gradients and tables are by aligned position
    where the alignment is not trivial.

        objective        the targets that are explained in place of the metric; None for the metric
        clean, corrupted the two runs; corrupted is None where there are no corrupted prompts
        baseline         what clean is compared with
        gradients        site -> gradient of the metric there [batch, pos, d], plain or integrated
        stream_gradient  the plain gradient at the end of the residual stream [batch, pos, d_model]
        slopes           site -> slope of an MLP's neurons [batch, pos, d_mlp], where something reads behind them
        frozen           output site -> the linear map of every frozen component
        tables           node tables in forward order
    """

    model: Model
    dictionaries: Dictionaries
    pairs: tuple[PromptPair, ...]
    settings: Nodes
    tokens: TokenizedPairs
    alignment: Alignment
    objective: Objective | None
    metric: Metric
    clean: CleanRun
    corrupted: CorruptedRun | None
    baseline: Baseline
    gradients: Mapping[Site, Tensor]
    stream_gradient: Tensor
    slopes: Mapping[Site, Tensor]
    frozen: Mapping[Site, LinearMap]
    tables: Sequence[NodeTable]
    backend: str

    def __repr__(self) -> str:
        return repr(self.nodes)

    @cached_property
    def nodes(self) -> Attributions:
        """Every node's attribution as columns."""
        facts = {
            "metric": {"name": self.metric.name, **self.metric_means},
            "model": self.model.name,
            "dictionaries": {str(site): dictionary.name for site, dictionary in self.dictionaries.items()},
            "prompts": [record_of(pair) for pair in self.pairs],
            "settings": recorded_settings(self),
        }
        return Attributions.of_tables(self.tables, facts)

    def top(self, n: int = 10) -> list[tuple[Node, float]]:
        """The n nodes with the largest |mean attribution|; see `Attributions.top`."""
        return self.nodes.top(n)

    def above(self, threshold: float, *, signed: bool = False) -> Attributions:
        """The nodes above a threshold; see `Attributions.above`."""
        return self.nodes.above(threshold, signed=signed)

    def by_site(self) -> dict[Site, Attributions]:
        """The nodes of each site; see `Attributions.by_site`."""
        return self.nodes.by_site()

    def to_pandas(self) -> Any:
        """One row per node; see `Attributions.to_pandas`."""
        return self.nodes.to_pandas()

    def save(self, path: Any) -> None:
        """Write the columns to a file; see `Attributions.save`."""
        self.nodes.save(path)

    @property
    def treatment(self) -> ComponentTreatment:
        """How components without a dictionary are treated."""
        return ComponentTreatment(self.settings.attention, self.settings.mlp)

    @property
    def metric_means(self) -> dict[str, float | None]:
        """The metric's means over the examples, {clean, corrupted}."""
        corrupted = None if self.corrupted is None else float(self.corrupted.metric.mean())
        return {"clean": float(self.clean.metric.mean()), "corrupted": corrupted}

    @property
    def full_share(self) -> float:
        """What 100 % is, in the metric's unit; see `shares.full_share`."""
        clean = self.clean.metric
        return full_share(float(clean.mean()), self.metric_means["corrupted"], float(clean.abs().mean()))

    @cached_property
    def targets(self) -> list[TargetNode]:
        """The targets as nodes of a graph; none where the metric is explained."""
        if self.objective is None:
            return []
        return target_nodes(self.model, self.objective, self.clean, self.corrupted)

    def baseline_of(self, kind: str, *, seed: int = 0) -> Baseline:
        """Another baseline of the same prompts, from the runs at hand.

        Args:
            kind: "corrupted", "zero", "mean" or "resample".
            seed: Of the draw of "resample".

        Raises CircuitGraphError for a baseline that these prompts do not have.
        """
        if kind == "resample" and not self.alignment.trivial:
            raise CircuitGraphError(
                "baseline 'resample' takes another example's activations, which has other aligned positions here;"
                " expected corrupted, zero or mean for prompts of different form"
            )
        mean = None if self.alignment.trivial else self.alignment.mean
        return self.alignment.of_baseline(baseline_of(kind, self.corrupted, mean=mean, seed=seed))


def attribute(
    prompts: PairsLike,
    model: ModelLike,
    dictionaries: DictionariesLike | None = None,
    *,
    settings: Nodes | None = None,
    backend: str = Compute.backend,
    progress: Progress = no_progress,
    **changes: Any,
) -> Attribution:
    """The attribution of every node to the metric, clean minus baseline: an estimate, in the metric's unit.

        feature    (acts_clean - acts_base) * (g . W_dec[i])       for every feature active in either run
        error      (error_clean - error_base) . g                  one per position of every site

    with g the gradient of the metric at the site, of the clean run or integrated from the baseline (Marks et al. 2024).
    Positive: the node's clean value, in place of its baseline value, supports the answer.

    Args:
        prompts: A text, a `PromptPair`, a list of these, or a prompt file.
        model: A name, a folder, a loaded model of TransformerLens or Hugging Face, or a `Model`.
        dictionaries: A name, a folder, an SAE, or a list or mapping of these; None for the model's components alone.
        settings: The defaults, or all settings at once.
        backend: "auto", "torch", "triton" or "reference": what the attribution kernel runs on.
        progress: Told (stage, steps done, steps in all).
        **changes: Fields of `settings.Nodes` over `settings`: metric, targets, baseline, method, steps, rule,
            attention, mlp, errors_as_targets, align, length, examples, seed.

    Raises a CircuitGraphError for prompts, metrics or dictionaries that do not fit, before the model runs.
    """
    nodes = resolve(Nodes, settings, changes)
    refuse_metric_beside_targets(nodes, changes)
    given = as_pairs(prompts)
    loaded = as_model(model)
    found = as_dictionaries(dictionaries, loaded)
    pairs = choose_pairs(given, loaded, nodes)
    return run_attribution(loaded, found, pairs, nodes, backend=backend, progress=progress)


def run_attribution(
    model: Model,
    dictionaries: Dictionaries,
    pairs: Sequence[PromptPair],
    settings: Nodes,
    *,
    objective: Objective | None = None,
    known_positions: Sequence[str] = (),
    scores: bool = False,
    backend: str = "auto",
    progress: Progress = no_progress,
) -> Attribution:
    """`attribute` of what has passed the doors.

    Args:
        model: The model.
        dictionaries: Its dictionaries.
        pairs: The pairs, all of which are used.
        settings: As of `attribute`.
        objective: What is explained, where that is known; else it is found by settings.targets.
        known_positions: Names of aligned positions that are numbered first, as in a graph to compare with.
        scores: Record the attention scores too, which edges by ablation need.
        backend: As of `attribute`.
        progress: As of `attribute`.
    """
    has_corrupted = any(pair.corrupted is not None for pair in pairs)  # some is refused with the tokens
    check_baseline(settings.baseline, len(pairs), has_corrupted=has_corrupted)
    resolved = _backend(backend, model)
    treatment = ComponentTreatment(settings.attention, settings.mlp)
    tokens = tokenize_pairs(model, pairs, by_role=settings.align == "role")
    alignment = align_pairs(tokens, settings.align, known_positions)
    n_pos = tokens.clean.shape[1]
    objective = objective or find_objective(model, dictionaries, settings.targets, n_pos, one_form=alignment.trivial)
    reads = [] if objective is None else list(objective.reads)
    if settings.errors_as_targets:
        reads += error_targets(model, dictionaries, treatment)
    sites = sites_of(model, dictionaries.values(), reads=reads, neurons=treatment.mlp == "frozen", scores=scores)

    progress("running clean and corrupted prompts", 0, 1)
    likeliest = objective is None and settings.targets == "logits"
    if likeliest:
        clean = run_clean(model, tokens, sites, lambda logits: likeliest_logits(model, logits).metric())
        objective = likeliest_logits(model, clean.logits)
    metric = _metric(settings, tokens, objective)
    if not likeliest:
        clean = run_clean(model, tokens, sites, metric)
    corrupted = run_corrupted(model, tokens, sites, metric)
    mean = None if alignment.trivial else alignment.mean
    base = baseline_of(settings.baseline, corrupted, mean=mean, seed=settings.seed)

    progress("gradients of the metric", 0, 1)
    how: dict[str, Any] = {"method": settings.method, "steps": settings.steps, "rule": settings.rule}
    gradients, stream_gradient = node_gradients(model, dictionaries, tokens, clean, base, metric, **how)
    end = Site("resid_post", model.n_layers - 1)
    stream_gradient = alignment.gather({end: stream_gradient})[end]
    slopes = alignment.gather(mlp_slopes(clean, [*dictionaries.reads, *reads]))
    frozen = frozen_components(model, dictionaries, clean, treatment, alignment)
    # from here on, everything is by aligned position
    clean, base, gradients = alignment.of_run(model, clean), alignment.of_baseline(base), alignment.gather(gradients)

    progress("attributing every feature", 0, 1)
    tables = attribute_nodes(
        model, dictionaries, clean.values, base, gradients, treatment=treatment, frozen=frozen,
        errors_as_targets=settings.errors_as_targets, backend=resolved,
    )  # fmt: skip
    return Attribution(
        model, dictionaries, tuple(pairs), settings, tokens, alignment, objective, metric, clean, corrupted, base,
        gradients, stream_gradient, slopes, frozen, alignment.mask(tables), resolved,
    )  # fmt: skip


def recorded_settings(run: Attribution) -> dict[str, Any]:
    """The settings as a graph's provenance keeps them: plain values, and only those that had a say."""
    record = as_record(run.settings, of=Nodes) | {"metric": run.metric.name, "backend": run.backend}
    if run.objective is not None:
        record["targets"] = run.objective.record()
    left_out = {name for name in ("length", "examples") if record[name] is None}
    left_out |= set() if run.settings.method == "integrated" else {"steps", "rule"}
    left_out |= {"seed"} if run.settings.examples is None else set()
    return {name: value for name, value in record.items() if name not in left_out}


def _metric(settings: Nodes, tokens: TokenizedPairs, objective: Objective | None) -> Metric:
    if objective is not None:
        return objective.metric()
    return build_metric(settings.metric, tokens.answers, tokens.wrong_answers)


def _backend(backend: str, model: Model) -> str:
    resolve(Compute, None, {"backend": backend})
    try:
        return backend_name(backend, model.device)
    except ValueError as error:
        raise CircuitGraphError(str(error)) from None
