"""The files of top activations beside a graph: what its features do over a corpus, as Neuronpedia and circuit-tracer show it.

In come a graph, the model and dictionaries it was built with, and texts; out comes a folder of files, one per feature. The
running is done in `corpus`, the layout of a file in `formats.feature_examples`; this module puts the two together.
"""

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
from circuitgraph.nodes import Site
from circuitgraph.progress import Progress, no_progress

N_LOGITS, N_SLICE = 10, 5  # tokens that a feature promotes most and least; examples of each slice


def write_corpus_examples(
    graph: nx.MultiDiGraph,
    model: Model,
    dictionaries: Dictionaries,
    texts: Iterable[str],
    folder: str | Path,
    *,
    scan: str | None = None,
    n_top: int = 20,
    n_tokens: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress = no_progress,
) -> tuple[list[Path], list[str]]:
    """(the files under folder/features/SCAN, a sentence on each feature that has none).

    One file for each layer and index of the graph's features. Their layout gives the features of one layer that have one
    index one file, whatever dictionary they are of: the MLP's is written, and the attention's is named in the sentences.
    texts: read once, and never all at once. scan: the model's name in the exported graph [default: that of the provenance].
    """
    found = run_corpus(
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
    for site in sorted(found, key=lambda site: (site.kind in ATTENTION_SITES, site.depth)):
        for number, value in enumerate(_values(model, dictionaries[site], site, found[site])):
            place = (site.block, int(found[site].features[number]))
            if place in values:
                left_out.append(f"{site}/f{place[1]} has no file: another feature of layer {place[0]} has its number")
            else:
                values[place] = value
    return write_feature_examples(folder, scan or model_id_of(graph), values), left_out


def _values(model: Model, dictionary: Dictionary, site: Site, activity: Activity) -> Iterable[dict[str, Any]]:
    """The file's value of each feature."""
    rows = dictionary.weights.W_dec[activity.features.to(dictionary.weights.W_dec.device)]
    for i, index in enumerate(activity.features.tolist()):
        written = torch.stack(
            [model.write(at, rows[i, dictionary.columns(at)].to(model.dtype)) for at in dictionary.sites]
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
    """How many activations are in each of `N_BINS` bins from 0 to the largest, each taken for the middle of its fine bin."""
    largest, counts = float(activity.largest[i]), torch.zeros(N_BINS, dtype=torch.int64)
    if largest > 0:
        place = (_middles(activity, i) / largest * N_BINS).long().clamp(max=N_BINS - 1)
        counts.index_add_(0, place, activity.counts[i])
    return [int(count) for count in counts]


def _deciles(activity: Activity, i: int) -> list[float]:
    """The deciles of all activations; one between the smallest and the largest is 0 or the middle of a fine bin."""
    below = activity.n_values - int(activity.counts[i].sum())
    reached = activity.counts[i].cumsum(0) + below
    middles, found = _middles(activity, i), [float(activity.smallest[i])]
    for tenth in range(1, 10):
        rank = tenth * (activity.n_values - 1) // 10
        found.append(0.0 if rank < below else float(middles[int(torch.searchsorted(reached, rank, right=True))]))
    return [*found, float(activity.largest[i])]
