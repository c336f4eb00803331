"""Files of top activations beside a graph: what its features do over a corpus, for Neuronpedia and circuit-tracer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from circuitgraph.corpus.activity import Activity, features_of, run_corpus
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.formats.feature_examples import N_BINS, examples_value, write_feature_examples
from circuitgraph.formats.neuronpedia_names import ATTENTION_SITES
from circuitgraph.graphs.neuronpedia import model_id_of
from circuitgraph.models.model import Model
from circuitgraph.progress import Progress, no_progress
from circuitgraph.settings import Examples

N_LOGITS = 10  # how many of the tokens that a feature promotes most, and least
N_SLICE = 5  # examples of each slice of the activations


def write_corpus_examples(
    graph: nx.MultiDiGraph,
    model: Model,
    dictionaries: Dictionaries,
    texts: Iterable[str],
    folder: str | Path,
    *,
    scan: str | None = None,
    n_top: int = Examples.n_top,
    n_tokens: int = Examples.n_tokens,
    batch_size: int = Examples.batch_size,
    seed: int = Examples.seed,
    progress: Progress = no_progress,
) -> tuple[list[Path], list[str]]:
    """Write one file for each feature of the graph, named by layer and index, under folder/features/SCAN.

    The layout of these files cannot tell the dictionaries of one layer apart. If features of two of them have the same
    index, the file is the MLP's, and the attention's feature has none.

    Args:
        graph: Its features are looked at.
        model: The model that it was built with.
        dictionaries: The dictionaries that it was built with.
        texts: The corpus; it is read once and never held as a whole.
        folder: Where to write.
        scan: The model's name in the exported graph; by default the one in the graph's provenance.
        n_top, n_tokens, batch_size, seed, progress: As of `run_corpus`.

    Returns the files, and a sentence on each feature that has none.
    """
    activities = run_corpus(
        model,
        dictionaries,
        features_of(graph, dictionaries),
        texts,
        n_top=n_top,
        n_tokens=n_tokens,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    values: dict[tuple[int, int], dict[str, Any]] = {}
    left_out = []
    for site in sorted(activities, key=lambda site: (site.kind in ATTENTION_SITES, site.depth)):
        for value in _values(model, dictionaries[site], activities[site]):
            layer, index = site.block, int(value["index"])
            if (layer, index) in values:
                left_out.append(f"{site}/f{index} has no file: another feature of layer {layer} has its number")
            else:
                values[layer, index] = value
    return write_feature_examples(folder, scan or model_id_of(graph), values), left_out


def _values(model: Model, dictionary: Dictionary, activity: Activity) -> Iterable[dict[str, Any]]:
    """What the file of each feature holds."""
    W_dec = dictionary.weights.W_dec
    rows = W_dec[activity.features.to(W_dec.device)]
    for i, index in enumerate(activity.features.tolist()):
        written = torch.stack(
            [model.write(site, rows[i, dictionary.columns(site)].to(model.dtype)) for site in dictionary.sites]
        )
        logits = model.logit_lens(written.sum(0))
        n = min(N_LOGITS, len(logits))
        yield examples_value(
            _texts(model, activity.top.of(i)),
            sorted(_texts(model, activity.drawn.of(i)), key=lambda example: -max(example[1])),
            index=index,
            transcoder_id=dictionary.name,
            top_logits=model.token_strings(logits.topk(n).indices.tolist()),
            bottom_logits=model.token_strings((-logits).topk(n).indices.tolist()),
            n_slice=N_SLICE,
            extremes=(float(activity.smallest[i]), float(activity.largest[i])),
            quantiles=_deciles(activity, i),
            histogram=_histogram(activity, i),
            frequency=int(activity.counts[i].sum()) / activity.n_values,
        )


def _texts(model: Model, windows: Sequence[tuple[list[int], list[float]]]) -> list[tuple[list[str], list[float]]]:
    return [(model.token_strings(ids), acts) for ids, acts in windows]


def _middles(activity: Activity, i: int) -> Tensor:
    """The middle of each bin of feature i."""
    n_bins = activity.counts.shape[1]
    return (torch.arange(n_bins) + 0.5) * float(activity.limit[i]) / n_bins


def _histogram(activity: Activity, i: int) -> list[int]:
    """How many activations are in each of `N_BINS` bins from 0 to the largest, to the accuracy of the finer bins."""
    largest, counts = float(activity.largest[i]), torch.zeros(N_BINS, dtype=torch.int64)
    if largest > 0:
        coarse = (_middles(activity, i) / largest * N_BINS).long().clamp(max=N_BINS - 1)
        counts.index_add_(0, coarse, activity.counts[i])
    return [int(count) for count in counts]


def _deciles(activity: Activity, i: int) -> list[float]:
    """The 11 deciles of all activations; smallest and largest are exact, the others 0 or the middle of a fine bin."""
    below = activity.n_values - int(activity.counts[i].sum())
    reached = activity.counts[i].cumsum(0) + below
    middles, deciles = _middles(activity, i), [float(activity.smallest[i])]
    for tenth in range(1, 10):
        rank = tenth * (activity.n_values - 1) // 10
        deciles.append(0.0 if rank < below else float(middles[int(torch.searchsorted(reached, rank, right=True))]))
    return [*deciles, float(activity.largest[i])]
