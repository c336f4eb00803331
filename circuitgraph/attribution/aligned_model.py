"""A model whose positions are the places of an alignment, so that whatever intervenes at positions does so at places.

In come a model, tokenized pairs and their alignment; out comes a `Model` that is run on token ids by place, records and
replaces activations by place, and whose logits end with each example's last position. This module changes no activation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from torch import Tensor

from circuitgraph.attribution.alignment import Alignment
from circuitgraph.models.model import Model, Replace
from circuitgraph.models.tokens import TokenizedPairs
from circuitgraph.nodes import Site


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class AlignedModel(Model):
    """The model for copies of these examples, [n * batch, places] at a time, in the order of the pairs."""

    pairs: TokenizedPairs
    alignment: Alignment

    def run(
        self,
        tokens: Tensor,
        *,
        record: Sequence[Site] = (),
        replace: Mapping[Site, Replace] | None = None,
        start: tuple[int, Tensor] | None = None,
        differentiable: bool = False,
    ) -> tuple[Tensor, dict[Site, Tensor]]:
        """`Model.run` by place. What is put where an example has no such place goes nowhere."""
        n = len(tokens) // len(self.pairs.clean)
        places = self.alignment.repeated(n)
        padded = self.pairs.clean.repeat(n, 1).to(tokens.device)
        if start is not None:
            start = start[0], places.spread(start[1], start[1].new_zeros(*padded.shape, start[1].shape[-1]))
        logits, recorded = super().run(
            places.spread(tokens, padded),
            record=record,
            replace={site: _by_place(site, function, places) for site, function in (replace or {}).items()},
            start=start,
            differentiable=differentiable,
        )
        return self.pairs.at_end(logits), places.gather(recorded)


def align_model(model: Model, tokens: TokenizedPairs, alignment: Alignment) -> tuple[Model, TokenizedPairs]:
    """The model by place and the pairs as it is run on them; both unchanged where places are positions."""
    if alignment.trivial:
        return model, tokens
    own = {field.name: getattr(model, field.name) for field in fields(model)}
    at = alignment.index.clamp(min=0)  # what stands where an example has no such place is never run
    corrupted = None if tokens.corrupted is None else tokens.corrupted.gather(1, at)
    placed = replace(tokens, clean=tokens.clean.gather(1, at), corrupted=corrupted, lengths=None)
    return AlignedModel(**own, pairs=tokens, alignment=alignment), placed


def _by_place(site: Site, function: Replace, places: Alignment) -> Replace:
    def edit(x: Tensor, recorded: Mapping[Site, Tensor]) -> Tensor:
        here = places.gather({site: x})[site]
        return places.spread(function(here, _Gathered(places, recorded)), x, site)

    return edit


class _Gathered(Mapping[Site, Tensor]):
    """Recorded activations by place, moved when they are asked for."""

    def __init__(self, places: Alignment, recorded: Mapping[Site, Tensor]) -> None:
        self.places, self.recorded = places, recorded

    def __getitem__(self, site: Site) -> Tensor:
        return self.places.gather({site: self.recorded[site]})[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.recorded)

    def __len__(self) -> int:
        return len(self.recorded)
