"""The residual stream as components read it: from where, and how it changes from the baseline to the clean run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from circuitgraph.models.model import Model
from circuitgraph.nodes import Site


def entry_depth(model: Model, site: Site) -> int:
    """Writers below this depth reach the site: everything before its attention or MLP.

    A site of the stream itself reads what stands there.
    """
    if site.part == "stream":
        return site.depth
    return Site("ln1_scale" if site.part == "attention" or model.parallel else "ln2_scale", site.layer).depth


@dataclass(frozen=True, eq=False)
class StreamChange:
    """Clean minus baseline at every recorded site; with baseline zero (None) all that the clean run has there."""

    model: Model
    clean: Mapping[Site, Tensor]
    baseline: Mapping[Site, Tensor] | None

    def at(self, site: Site) -> Tensor:
        """The change at the site, shaped as what was recorded there."""
        return self.clean[site] if self.baseline is None else self.clean[site] - self.baseline[site]

    def before(self, site: Site) -> Float[Tensor, "batch pos d_model"]:
        """The change of the stream that enters the attention or MLP of the site; of a site of the stream, its own."""
        if site.part == "stream":
            return self.at(site)
        stream = self.at(Site("resid_post", site.block - 1)) if site.block else self.at(Site("embed"))
        if not site.block and Site("pos_embed") in self.clean:
            stream = stream + self.at(Site("pos_embed"))
        if site.part == "attention" or self.model.parallel:
            return stream
        return stream + self.at(Site("attn_out", site.layer))

    @property
    def end(self) -> Float[Tensor, "batch pos d_model"]:
        """The change of the stream behind the last layer."""
        return self.at(Site("resid_post", self.model.n_layers - 1))
