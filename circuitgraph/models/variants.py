"""Variants: changed runs of the same prompts, side by side in one forward pass.

How many fit into one pass and from which layer they start is decided here; `Model.run_variants` runs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from einops import rearrange, repeat
from torch import Tensor

from circuitgraph.nodes import Site

BATCH_ROWS = 512  # rows of one forward pass
_NUMBERS = 1 << 25  # in one table of activations [rows, pos, width]


def variants_at_once(tokens: Tensor, *, width: int = 1, batch_rows: int = BATCH_ROWS) -> int:
    """How many variants one forward pass takes, at least one.

    Args:
        tokens: Token ids [batch, pos] of one variant.
        width: Numbers per position of the widest table that an edit makes, for instance of feature activations.
        batch_rows: Rows that one pass may have.
    """
    batch, n_pos = tokens.shape
    rows = min(batch_rows, _NUMBERS // (n_pos * width))
    return max(1, rows // batch)


def entry_layer(site: Site, n_layers: int) -> int:
    """The highest layer from which a run can start and still reach the site; n_layers for what follows all blocks."""
    return {"embedding": 0, "output": n_layers}.get(site.part, site.block)


def start_layer(n_layers: int, edited: Iterable[Site], wanted: Iterable[Site], clean: Mapping[Site, Tensor]) -> int:
    """The layer that variants start from. Below it, they all are the clean run.

    It is the lowest layer that an edit touches, where an edit of the stream at the end of a block touches the next one.
    What edits read and what is observed below that layer is the clean run's; where the clean run lacks it, and where it
    lacks the stream that enters the layer, variants start lower.

    Args:
        n_layers: Blocks of the model.
        edited: Sites that are edited.
        wanted: Sites whose values are read or observed.
        clean: What is known of the clean run.
    """
    layers = [entry_layer(site, n_layers) + (site.kind == "resid_post") for site in edited]
    layers += [entry_layer(site, n_layers) for site in wanted if site not in clean]
    lowest = min(layers, default=n_layers)
    return max(layer for layer in range(lowest + 1) if layer == 0 or Site("resid_post", layer - 1) in clean)


class VariantValues(Mapping[Site, Tensor]):
    """Activations by site with an axis for variants, [n, batch, pos, ...]: clean below the start, then recorded."""

    def __init__(self, n: int, recorded: Mapping[Site, Tensor], below: Mapping[Site, Tensor]) -> None:
        self.n, self.recorded, self.below = n, recorded, below

    def __getitem__(self, site: Site) -> Tensor:
        value = self.below[site] if site in self.below else self.recorded[site]
        if site in self.below or len(value) % self.n:  # one row may stand for all, as of positions
            return repeat(value, "... -> n ...", n=self.n)
        return rearrange(value, "(n batch) ... -> n batch ...", n=self.n)

    def __iter__(self) -> Iterator[Site]:
        yield from {**self.recorded, **self.below}

    def __len__(self) -> int:
        return len({**self.recorded, **self.below})
