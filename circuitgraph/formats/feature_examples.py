"""What a feature does over a corpus, in the files that Neuronpedia and circuit-tracer show beside a graph.

They stand in `features/SCAN/CODE.json` beside a graph, where CODE is the feature's Cantor number and circuit-tracer's
server looks for it. Examples are texts, ranked by their largest activation: first the top ones, then a few from each of
equally large slices of the texts where the feature is active.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from circuitgraph.errors import CircuitGraphError, GraphError
from circuitgraph.files import write_atomically
from circuitgraph.formats.neuronpedia import safe_name
from circuitgraph.formats.neuronpedia_names import cantor
from circuitgraph.formats.values import dumps

N_SLICES, N_BINS = 4, 40
Example = tuple[Sequence[str], Sequence[float]]  # the tokens of a text, and the activation at each


def feature_examples(
    acts: ArrayLike,
    tokens: Sequence[Sequence[str]],
    *,
    index: int,
    transcoder_id: str,
    top_logits: Sequence[str] = (),
    bottom_logits: Sequence[str] = (),
    n_top: int = 20,
    n_slice: int = 5,
) -> dict[str, Any]:
    """The value of one feature's file. acts[i, t] is its activation at token t of text i; texts have one length."""
    values = np.asarray(acts, dtype=np.float64)
    if values.ndim != 2 or values.shape != (len(tokens), len(tokens[0]) if len(tokens) else 0) or not values.size:
        raise GraphError(
            f"acts has shape {values.shape}; expected one number for each token of each of {len(tokens)} texts"
        )
    if not np.isfinite(values).all():
        raise GraphError("acts holds NaN or Inf")
    if any(len(text) != values.shape[1] for text in tokens):
        raise GraphError(f"the texts differ in length; expected {values.shape[1]} tokens each")
    peaks = values.max(axis=1)
    ranked = np.argsort(-peaks, kind="stable")
    active = [(tokens[i], values[i].tolist()) for i in ranked[peaks[ranked] > 0]]
    counts, _ = np.histogram(values[values > 0], bins=N_BINS, range=(0.0, max(float(peaks.max()), 1e-30)))
    return examples_value(
        active[:n_top],
        active,
        index=index,
        transcoder_id=transcoder_id,
        top_logits=top_logits,
        bottom_logits=bottom_logits,
        n_slice=n_slice,
        extremes=(float(values.min()), float(values.max())),
        quantiles=np.quantile(values, np.linspace(0, 1, 11)).tolist(),
        histogram=counts.tolist(),
        frequency=float((values > 0).mean()),
    )


def examples_value(
    top: Sequence[Example],
    active: Sequence[Example],
    *,
    index: int,
    transcoder_id: str,
    top_logits: Sequence[str],
    bottom_logits: Sequence[str],
    n_slice: int,
    extremes: tuple[float, float],
    quantiles: Sequence[float],
    histogram: Sequence[int],
    frequency: float,
) -> dict[str, Any]:
    """The value of one feature's file, from the texts where it is most active, those where it is active at all, the
    smallest and largest activation, their deciles, how many > 0 there are in each of `N_BINS` bins from 0 to the
    largest, and the share of tokens where it is active.
    """
    parts = [("Top Activations", list(top))]
    for i, numbers in enumerate(np.array_split(np.arange(len(active)), N_SLICES)):
        few = np.unique(np.linspace(0, len(numbers) - 1, min(n_slice, len(numbers))).astype(int))
        parts.append((f"Subsample Interval {i}", [active[j] for j in numbers[few]]))
    return {
        "index": index,
        "transcoder_id": transcoder_id,
        "examples_quantiles": [
            {"quantile_name": name, "examples": [_example(*example) for example in examples]}
            for name, examples in parts
        ],
        "top_logits": list(top_logits),
        "bottom_logits": list(bottom_logits),
        "act_min": extremes[0],
        "act_max": extremes[1],
        "quantile_values": list(quantiles),
        "histogram": list(histogram),
        "activation_frequency": frequency,
    }


def write_feature_examples(
    folder: str | Path, scan: str, features: Mapping[tuple[int, int], Mapping[str, Any]]
) -> list[Path]:
    """The files written under folder/features/SCAN, one for each (layer, feature)."""
    place = Path(folder) / "features" / safe_name(scan)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CircuitGraphError(f"cannot make folder {place}: {error.strerror}; choose another folder") from None
    written = []
    for (layer, index), value in sorted(features.items()):
        if layer < 0 or index < 0:
            raise GraphError(f"feature ({layer}, {index}) has a negative number")
        path = place / f"{cantor(layer, index)}.json"
        write_atomically(path, dumps(dict(value), f"feature ({layer}, {index})"))
        written.append(path)
    return written


def _example(tokens: Sequence[str], acts: Sequence[float]) -> dict[str, Any]:
    return {
        "tokens": list(tokens),
        "tokens_acts_list": list(acts),
        "train_token_ind": int(np.argmax(acts)),
        "is_repeated_datapoint": False,
    }
