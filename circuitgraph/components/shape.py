"""The shape of a graph of components: how many heads and MLPs there are, who can read whom, in which order.

Writers are input, then the heads and the MLP of each layer; readers are the q, k and v inputs of all heads and the MLP
of each layer, then logits: the order of EAP-IG. Circuits are matrices [writers, readers] (`edge_masks`).
"""

from __future__ import annotations

from dataclasses import dataclass

from circuitgraph.nodes import Node

INPUTS = ("q", "k", "ov")  # kinds of the edges into a head, in the order of its readers


@dataclass(frozen=True)
class ComponentShape:
    """How many components there are, and who can read whom.

    parallel: attention and MLP of a layer read the same stream.
    """

    n_layers: int
    n_heads: int
    parallel: bool

    @property
    def n_writers(self) -> int:
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def n_readers(self) -> int:
        return self.n_layers * (3 * self.n_heads + 1) + 1

    def writers_before(self, layer: int, *, mlp: bool = False) -> int:
        """How many writers stand before the attention of the layer, or before its MLP; those are the first ones."""
        return 1 + layer * (self.n_heads + 1) + (self.n_heads if mlp and not self.parallel else 0)

    def heads(self, layer: int) -> slice:
        """The writers that are the heads of the layer; its MLP is the next one."""
        first = 1 + layer * (self.n_heads + 1)
        return slice(first, first + self.n_heads)

    def head_inputs(self, layer: int) -> slice:
        """The readers that are the q inputs, then k, then v of the layer's heads; its MLP is the next one."""
        first = layer * (3 * self.n_heads + 1)
        return slice(first, first + 3 * self.n_heads)

    def writer(self, node: Node) -> int:
        """The row of a graph's node."""
        if node.kind == "embedding":
            return 0
        first = self.writers_before(node.site.block)
        return first + (node.feature or 0 if node.site.kind == "z" else self.n_heads)

    def reader(self, node: Node, kind: str) -> int:
        """The column of a graph's edge of that kind into the node."""
        if node.kind == "metric":
            return self.n_readers - 1
        first = node.site.block * (3 * self.n_heads + 1)
        if node.site.kind != "z":
            return first + 3 * self.n_heads
        return first + (INPUTS.index(kind) if kind in INPUTS else 0) * self.n_heads + (node.feature or 0)
