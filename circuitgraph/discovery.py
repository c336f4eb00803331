"""The whole way from prompts to a circuit graph. READ THIS FIRST.

1  run_attribution    run the model, differentiate the metric, attribute it to every node    attribution/attribute.py
2  choose_candidates  the nodes with the largest attribution become candidates               edges/candidates.py
3  trace_edges        from the metric down, what each target reads of which candidate        edges/trace.py
4  prune_edges        keep the nodes and edges that carry the influence, if asked            edges/influence.py
5  graph_of_edges     a networkx graph of what is left, with where it came from              graphs/build.py
"""

from __future__ import annotations

from typing import Any

import networkx as nx

from circuitgraph.attribution.attribute import run_attribution
from circuitgraph.doors import DictionariesLike, ModelLike, PairsLike, as_dictionaries, as_model, as_pairs, choose_pairs
from circuitgraph.edges.candidates import choose_candidates
from circuitgraph.edges.influence import prune_edges
from circuitgraph.edges.trace import check_inputs, trace_edges
from circuitgraph.errors import CircuitGraphError
from circuitgraph.graphs.build import graph_of_edges
from circuitgraph.presets import find_preset
from circuitgraph.progress import Progress, no_progress
from circuitgraph.settings import Compute, Discovery, refuse_metric_beside_targets, resolve


def discover(
    prompts: PairsLike,
    model: ModelLike,
    dictionaries: DictionariesLike | None = None,
    *,
    preset: str | None = None,
    settings: Discovery | None = None,
    backend: str = Compute.backend,
    memory: float = Compute.memory,
    progress: Progress = no_progress,
    **changes: Any,
) -> nx.MultiDiGraph:
    """The circuit graph of the metric's difference between clean and baseline, averaged over the pairs.

    Args:
        prompts: A text, a `PromptPair`, a list of these, or a prompt file.
        model: A name, a folder, a loaded model of TransformerLens or Hugging Face, or a `Model`.
        dictionaries: A name, a folder, an SAE, or a list or mapping of these; None for the model's components alone.
        preset: The name of a `presets.PRESETS` entry to start from.
        settings: Settings to start from, in place of a preset.
        backend: "auto", "torch", "triton" or "reference": what the attribution kernel runs on.
        memory: GiB that input directions and what they read may take at once.
        progress: Told (stage, steps done, steps in all).
        **changes: Fields of `settings.Discovery` over the preset, for instance max_nodes=500. Each is described there.

    Returns a networkx.MultiDiGraph whose attributes `graphs.schema` describes.
    Raises a CircuitGraphError for prompts, metrics or dictionaries that do not fit, before the model runs.
    """
    if preset is not None and settings is not None:
        raise CircuitGraphError(f"preset {preset!r} and settings are both given; give one of them to start from")
    start = settings if preset is None else find_preset(preset)
    chosen = resolve(Discovery, start, changes)
    refuse_metric_beside_targets(chosen, changes)
    compute = Compute(backend=backend, memory=memory)
    given = as_pairs(prompts)
    loaded = as_model(model)
    found = as_dictionaries(dictionaries, loaded)
    pairs = choose_pairs(given, loaded, chosen)
    check_inputs(loaded, found.values(), chosen.qk)

    run = run_attribution(
        loaded, found, pairs, chosen, scores=chosen.qk == "ablate", backend=backend, progress=progress
    )
    candidates = choose_candidates(run, chosen)
    traced = trace_edges(run, candidates.columns, chosen, compute, progress)
    pruned = prune_edges(traced.table, traced.weights, chosen, progress)
    return graph_of_edges(run, chosen, candidates, traced, pruned)
