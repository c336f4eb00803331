"""Which edges into the traced targets stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """Which edges stay.

    Args:
        threshold: The smallest |weight|, in the metric's unit.
        relative_threshold: The smallest |local_weight|, as a share of its sum over the target's sources.
        top_k: Edges into each target, and those as large as the last of them. None for no limit.
    """

    threshold: float = 0.0
    relative_threshold: float = 0.0
    top_k: int | None = None

    def passing(
        self, weights: Sequence[Float[Tensor, "targets _"]], local_weights: Sequence[Float[Tensor, "targets _"]]
    ) -> list[Bool[Tensor, "targets _"]]:
        """Which edges stay, for each kind of edge and table of sources.

        Args:
            weights: The weights of the edges of each kind from each table, [targets, sources].
            local_weights: Their local weights.
        """
        passed = [(weight.abs() > self.threshold) & (weight != 0) for weight in weights]
        if self.relative_threshold and weights:
            total = torch.stack([local.abs().sum(-1) for local in local_weights]).sum(0)[:, None]
            passed = [
                keep & (local.abs() >= self.relative_threshold * total)
                for keep, local in zip(passed, local_weights, strict=True)
            ]
        if self.top_k is not None and weights:
            sizes = torch.cat([weight.abs() * keep for weight, keep in zip(weights, passed, strict=True)], -1)
            smallest = sizes.topk(min(self.top_k, sizes.shape[-1]), dim=-1).values[:, -1:]
            passed = [keep & (weight.abs() >= smallest) for weight, keep in zip(weights, passed, strict=True)]
        return passed
