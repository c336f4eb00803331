"""What a target loses when one source is taken out of a query or a key: the softmax with it and without it.

The derivative of a saturated head is 0, though without its strongest source the head would look elsewhere. This
difference is exact for one source at a time, and not additive.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Softmax:
    """The attention of one query position.

    Args:
        query: The query as it enters the scores.
        keys: The keys as they enter the scores.
        s: What the value at each key adds to each target.
        hidden: What the model's mask hides.
        scale: The factor of the scores.
        soft_cap: The soft cap on the scores, None without one.
    """

    query: Float[Tensor, "batch heads d_head"]
    keys: Float[Tensor, "batch key heads d_head"]
    s: Float[Tensor, "batch targets heads key"]
    hidden: Bool[Tensor, "batch heads key"]
    scale: float
    soft_cap: float | None

    def without_query(self, change: Float[Tensor, "batch n heads d_head"]) -> Float[Tensor, "batch targets heads n"]:
        """What targets lose when each of n changes is taken out of the query."""
        moved = self._products[:, None] - torch.einsum("bnhx,bkhx->bnhk", change, self.keys)
        pattern = self._capped(moved).masked_fill(self.hidden[:, None], -torch.inf).softmax(-1)
        return torch.einsum("brhk,bnhk->brhn", self.s, self._pattern[:, None] - pattern)

    def without_key(
        self, change: Float[Tensor, "batch n heads d_head"], at: Int[Tensor, " n"]
    ) -> Float[Tensor, "batch targets heads n"]:
        """What targets lose when each of n changes is taken out of the key at its position, which moves one score.

        The weight of the key is p = sigmoid(score - logsumexp of the other scores), and the other keys keep their
        shares among themselves. So what is lost is the change of p, times s at the key less the others' mean of s.
        Computed in this form it stays accurate when a head is saturated.
        """
        logs, mean = self._others
        moved = self._products[..., at] - torch.einsum("bhx,bnhx->bhn", self.query, change)
        before, after = (
            (self._capped(products) - logs[..., at]).sigmoid().masked_fill(self.hidden[..., at], 0)
            for products in (self._products[..., at], moved)
        )
        return (before - after)[:, None] * (self.s - mean)[..., at]

    @cached_property
    def _products(self) -> Float[Tensor, "batch heads key"]:
        return torch.einsum("bhx,bkhx->bhk", self.query, self.keys)

    @cached_property
    def _pattern(self) -> Float[Tensor, "batch heads key"]:
        return self._capped(self._products).masked_fill(self.hidden, -torch.inf).softmax(-1)

    @cached_property
    def _others(self) -> tuple[Float[Tensor, "batch heads key"], Float[Tensor, "batch targets heads key"]]:
        """Of all keys but one: their logsumexp and their mean of s; -inf and 0 for a key that is alone."""
        scores = self._capped(self._products).masked_fill(self.hidden, -torch.inf)
        itself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
        others = scores[:, :, None].masked_fill(itself, -torch.inf)  # [batch, heads, key, other key]
        return others.logsumexp(-1), torch.einsum("brhj,bhkj->brhk", self.s, others.softmax(-1).nan_to_num(0))

    def _capped(self, products: Tensor) -> Tensor:
        scores = products * self.scale
        return scores if self.soft_cap is None else self.soft_cap * torch.tanh(scores / self.soft_cap)
