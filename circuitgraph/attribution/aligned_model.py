"""A model that is run by aligned position, so that whatever intervenes at positions does so at aligned ones.

`AlignedModel` is a `Model`: it is given token ids by aligned position, records and replaces activations by aligned
position, and its logits end with each example's last position.
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
    """The model for copies of these examples, [n * batch, aligned] at a time, in the order of the pairs."""

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
        """`Model.run` by aligned position. Edits at aligned positions that an example does not have are ignored."""
        n = len(tokens) // len(self.pairs.clean)
        alignment = self.alignment.repeated(n)
        padded = self.pairs.clean.repeat(n, 1).to(tokens.device)
        if start is not None:
            start = start[0], alignment.scatter(start[1], start[1].new_zeros(*padded.shape, start[1].shape[-1]))
        logits, recorded = super().run(
            alignment.scatter(tokens, padded),
            record=record,
            replace={site: _aligned(site, function, alignment) for site, function in (replace or {}).items()},
            start=start,
            differentiable=differentiable,
        )
        return self.pairs.at_end(logits), alignment.gather(recorded)


def align_model(model: Model, tokens: TokenizedPairs, alignment: Alignment) -> tuple[Model, TokenizedPairs]:
    """The model by aligned position, and the pairs as it is run on them; both unchanged where nothing is moved."""
    if alignment.trivial:
        return model, tokens
    own = {field.name: getattr(model, field.name) for field in fields(model)}
    at = alignment.index.clamp(min=0)  # the token at a position that an example does not have is never run
    corrupted = None if tokens.corrupted is None else tokens.corrupted.gather(1, at)
    moved = replace(tokens, clean=tokens.clean.gather(1, at), corrupted=corrupted, lengths=None)
    return AlignedModel(**own, pairs=tokens, alignment=alignment), moved


def _aligned(site: Site, function: Replace, alignment: Alignment) -> Replace:
    """The replacement by position that does by aligned position what this one does."""

    def edit(x: Tensor, recorded: Mapping[Site, Tensor]) -> Tensor:
        aligned = alignment.gather({site: x})[site]
        return alignment.scatter(function(aligned, _Gathered(alignment, recorded)), x, site)

    return edit


class _Gathered(Mapping[Site, Tensor]):
    """Recorded activations by aligned position, moved when they are asked for."""

    def __init__(self, alignment: Alignment, recorded: Mapping[Site, Tensor]) -> None:
        self.alignment, self.recorded = alignment, recorded

    def __getitem__(self, site: Site) -> Tensor:
        return self.alignment.gather({site: self.recorded[site]})[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.recorded)

    def __len__(self) -> int:
        return len(self.recorded)
