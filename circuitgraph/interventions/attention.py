"""Where attention looks, in the model as it is and under interventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuitgraph.doors import DictionariesLike, ModelLike, as_dictionaries, as_model
from circuitgraph.errors import CircuitGraphError
from circuitgraph.interventions.language import Interventions
from circuitgraph.interventions.references import Prompts, prompt_tokens
from circuitgraph.interventions.run import run_intervention_sets
from circuitgraph.nodes import Site


@dataclass(frozen=True, eq=False)
class AttentionComparison:
    """Attention [layers, heads, queries, keys] of the clean and the intervened run, means over the examples.

    layers and queries say which; keys are all positions. tokens: the first prompt's, by position, so that a token that
    stands there twice stays two.
    """

    layers: tuple[int, ...]
    queries: tuple[int, ...]
    tokens: tuple[str, ...]
    clean: Tensor
    intervened: Tensor

    def __repr__(self) -> str:
        most = sorted(self.rows(), key=lambda row: -abs(row["intervened"] - row["clean"]))[:5]
        shown = [
            f"layer {row['layer']} head {row['head']}, {row['query_token']!r} at {row['query']} to"
            f" {row['key_token']!r} at {row['key']}: {row['clean']:.3f} -> {row['intervened']:.3f}"
            for row in most
        ]
        sizes = f"{len(self.layers)} layers, {self.clean.shape[1]} heads, queries {list(self.queries)}"
        return "\n".join([f"attention of {sizes}; it changes most at", *shown])

    @property
    def change(self) -> Tensor:
        """intervened - clean."""
        return self.intervened - self.clean

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer, head, query and key that it can see: positions, tokens, and both weights."""
        heads = range(self.clean.shape[1])
        visible = [
            (i, h, q, k)
            for i in range(len(self.layers))
            for h in heads
            for q, query in enumerate(self.queries)
            for k in range(query + 1)
        ]
        return [
            {
                "layer": self.layers[i],
                "head": h,
                "query": self.queries[q],
                "query_token": self.tokens[self.queries[q]],
                "key": k,
                "key_token": self.tokens[k],
                "clean": float(self.clean[i, h, q, k]),
                "intervened": float(self.intervened[i, h, q, k]),
            }
            for i, h, q, k in visible
        ]


def compare_attention(
    prompts: Prompts,
    model: ModelLike,
    dictionaries: DictionariesLike | None,
    interventions: Interventions,
    *,
    layers: Sequence[int] | None = None,
    queries: Sequence[int] | None = None,
    references: Mapping[str, Prompts] | None = None,
    freeze: Sequence[str | Site] = (),
    seed: int = 0,
) -> AttentionComparison:
    """The attention patterns without and with the interventions.

    Args:
        prompts: As of `run_with_interventions`.
        model: As there.
        dictionaries: As there.
        interventions: As there.
        layers: Which layers; None for all.
        queries: Positions that look; None for the last.
        references: As there.
        freeze: As there.
        seed: As there.

    Raises CircuitGraphError for a layer or position that is not there.
    """
    loaded = as_model(model)
    found = as_dictionaries(dictionaries, loaded)
    tokens, _ = prompt_tokens(loaded, prompts)
    n_pos = tokens.shape[1]
    chosen = tuple(range(loaded.n_layers) if layers is None else layers)
    asked = (n_pos - 1,) if queries is None else tuple(queries)
    for what, given, n in (("layer", chosen, loaded.n_layers), ("query position", asked, n_pos)):
        for number in given:
            if not 0 <= number < n:
                raise CircuitGraphError(f"there is no {what} {number}; expected 0-{n - 1}")
    sites = [Site("pattern", layer) for layer in chosen]
    runs = run_intervention_sets(
        prompts, loaded, found, [(), interventions], references=references, freeze=freeze, cache=sites, seed=seed
    )
    clean, intervened = (
        torch.stack([run.activations[site][:, :, list(asked)].mean(0) for site in sites]) for run in runs
    )
    return AttentionComparison(chosen, asked, tuple(loaded.token_strings(tokens[0].tolist())), clean, intervened)
