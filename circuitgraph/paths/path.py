"""One path from the residual stream into targets: their input directions, kept as factors until they are needed.

An input direction per target, head and position would be large. Most products do not need it: a path projects what the
sources write into the space that its heads read, once for all targets. Only where something linear stands between
source and target are the directions themselves made (`Path.dense`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from circuitgraph.models.formulas import Rotation
from circuitgraph.models.layout import Norm
from circuitgraph.nodes import EdgeKind
from circuitgraph.paths.softmax import Softmax


@dataclass(frozen=True, eq=False)
class Projection:
    """Vectors of the stream as a component reads them: through the Jacobian of its norm and the weights of each head.

    Args:
        norm: The norm in front, without its scale, which is a factor of the path.
        W: The weights of each head; None for one head that reads the stream itself.
        group: Query heads per head of W.
        head_gain: The gain of a norm per head.
        rotation: Rotary positions.
    """

    norm: Norm | None = None
    W: Float[Tensor, "kv_heads d_model d_head"] | None = None
    group: int = 1
    head_gain: Tensor | None = None
    rotation: Rotation | None = None

    def of(
        self, x: Float[Tensor, "#batch n d_model"], pos: Int[Tensor, " n"]
    ) -> Float[Tensor, "some_batch n heads d_head"]:
        """Vectors x at positions pos as each head reads them, without frozen scales."""
        if self.norm is not None:
            x = self.norm.apply(x)
        if self.W is None:
            return rearrange(x, "batch n d -> batch n 1 d")
        y = torch.einsum("bnd,hdx->bnhx", x, self.W)
        if self.head_gain is not None:
            y = y * self.head_gain
        if self.rotation is not None:
            y = self.rotation.apply(y, pos)
        return y if self.group == 1 else y.repeat_interleave(self.group, 2)

    def back(
        self, a: Float[Tensor, "batch targets heads d_head"], pos: Int[Tensor, " n"]
    ) -> Float[Tensor, "batch targets heads n d_model"]:
        """The transpose: directions a in the space of the heads as directions of the stream at these positions."""
        y = a[:, :, None].expand(-1, -1, len(pos), -1, -1)  # [batch, targets, n, heads, d_head]
        if self.W is None:
            y = rearrange(y, "batch targets n heads d -> batch targets heads n d")
        else:
            if self.rotation is not None:
                y = self.rotation.undo(y, pos)
            if self.head_gain is not None:
                y = y * self.head_gain
            y = torch.einsum("brnhx,hdx->brhnd", y, self.W.repeat_interleave(self.group, 0))
        return y if self.norm is None else self.norm.pull_back(y)


@dataclass(frozen=True, eq=False)
class Path:
    """A path from the stream at positions first..last into targets that stand at one position.

    What a target reads of x is factor * (vectors . projection(x)), per head. With `softmax` it is what the target loses
    when projection(x) * factor is taken out of the query or key, which is not linear.

    Args:
        kind: The kind of edge.
        entry: Sources below this depth are read.
        projection: How the stream is read.
        vectors: The targets' directions in the space of the heads.
        factor: What depends on the position: attention, and the frozen scale of the norm.
        first: The first position that is read.
        last: The last one.
        softmax: The attention at the targets' position, for q and k paths by ablation.
    """

    kind: EdgeKind
    entry: int
    projection: Projection
    vectors: Float[Tensor, "#batch #targets heads d_head"]
    factor: Float[Tensor, " batch #targets #heads n"]
    first: int
    last: int
    softmax: Softmax | None = None

    def read(
        self,
        projected: Float[Tensor, "#batch n heads d_head"],
        pos: Int[Tensor, " n"],
        amount: Float[Tensor, "batch n"] | None,
    ) -> Float[Tensor, "batch targets heads n"]:
        """What the targets read of n sources.

        Args:
            projected: What `projection` makes of one unit of each source.
            pos: Their positions.
            amount: How many units there are, None for 1.
        """
        if self.softmax is not None:
            change = projected * rearrange(self.factor[:, 0, :, pos - self.first], "batch heads n -> batch n heads 1")
            change = change if amount is None else change * amount[..., None, None]
            if self.kind == "q":
                return self.softmax.without_query(change)
            return self.softmax.without_key(change, pos)
        product = torch.einsum("brhx,bnhx->brhn", self.vectors, projected) * self.factor[..., pos - self.first]
        return product if amount is None else product * amount[:, None, None]

    def of_stream(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch targets"]:
        """What the targets read of a whole change of the stream, along a linear path."""
        pos = torch.arange(self.first, self.last + 1, device=x.device)
        return self.read(self.projection.of(x[:, pos], pos), pos, None).sum((2, 3))

    def dense(self) -> Float[Tensor, "batch targets heads n d_model"]:
        """The input directions themselves, at positions first..last."""
        pos = torch.arange(self.first, self.last + 1, device=self.factor.device)
        targets = max(self.vectors.shape[1], self.factor.shape[1])
        a = self.vectors.expand(len(self.factor), targets, -1, -1)
        return self.projection.back(a, pos) * self.factor[..., None]
