"""Where attention looks, in the model as it is and under interventions.

In come prompts and interventions; out come both patterns, by layer, head, query and key. This module draws nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.errors import CircuitGraphError
from circuitgraph.interventions.run import Interventions, Prompts, prompt_tokens, run_intervention_sets
from circuitgraph.models.model import Model
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

    @property
    def change(self) -> Tensor:
        """intervened - clean."""
        return self.intervened - self.clean

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer, head, query and key that it can see: positions, tokens, and both weights."""
        heads = range(self.clean.shape[1])
        places = [
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
            for i, h, q, k in places
        ]


def compare_attention(
    model: Model,
    dictionaries: Dictionaries,
    prompts: Prompts,
    interventions: Interventions,
    *,
    layers: Sequence[int] | None = None,
    queries: Sequence[int] | None = None,
    references: Mapping[str, Prompts] | None = None,
    freeze: Sequence[str | Site] = (),
    seed: int = 0,
) -> AttentionComparison:
    """The patterns of all layers (or these) for the last position (or these queries), without and with the interventions."""
    tokens, _ = prompt_tokens(model, prompts)
    n_pos = tokens.shape[1]
    chosen = tuple(range(model.n_layers) if layers is None else layers)
    asked = (n_pos - 1,) if queries is None else tuple(queries)
    for what, given, n in (("layer", chosen, model.n_layers), ("query position", asked, n_pos)):
        for number in given:
            if not 0 <= number < n:
                raise CircuitGraphError(f"there is no {what} {number}; expected 0-{n - 1}")
    sites = [Site("pattern", layer) for layer in chosen]
    runs = run_intervention_sets(
        model, dictionaries, prompts, [[], interventions], references=references, freeze=freeze, cache=sites, seed=seed
    )
    clean, intervened = (
        torch.stack([run.activations[site][:, :, list(asked)].mean(0) for site in sites]) for run in runs
    )
    return AttentionComparison(chosen, asked, tuple(model.token_strings(tokens[0].tolist())), clean, intervened)
