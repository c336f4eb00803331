"""A sparse dictionary at its place in the model.

In come weights and two sites; out come feature activations, reconstructions and write vectors. The formulas live in
circuitgraph_kernels; this module adds where the dictionary reads and writes, and knows no file format.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from circuitgraph.errors import DictionaryError
from circuitgraph.model import Model
from circuitgraph.nodes import Site
from circuitgraph_kernels import SaeWeights, decode, encode


@dataclass(frozen=True, eq=False)
class Dictionary:
    """An SAE (reads == writes) or transcoder (reads the MLP input, writes mlp_out), with the name it was loaded by."""

    weights: SaeWeights
    reads: Site
    writes: Site
    name: str

    @property
    def d_sae(self) -> int:
        return self.weights.W_dec.shape[0]

    def encode(self, x: Tensor) -> Tensor:
        """Feature activations [..., d_sae] of x [..., d_in] at the site that is read."""
        return encode(x, self.weights)

    def decode(self, acts: Tensor) -> Tensor:
        """x_hat [..., d_out] = acts @ W_dec + b_dec at the site that is written."""
        return decode(acts, self.weights)


def check_fit(dictionary: Dictionary, model: Model) -> None:
    """DictionaryError unless the dictionary's sites and sizes are the model's."""
    weights, name = dictionary.weights, dictionary.name
    for site, size, verb in (
        (dictionary.reads, weights.W_enc.shape[0], "reads"),
        (dictionary.writes, weights.W_dec.shape[1], "writes"),
    ):
        if site.layer is not None and site.layer >= model.n_layers:
            raise DictionaryError(
                f"dictionary {name} {verb} {site}, but {model.name} has layers 0-{model.n_layers - 1}"
            )
        if not model.has(site):
            raise DictionaryError(f"dictionary {name} {verb} {site}, which {model.name} does not have")
        if size != model.width(site):
            raise DictionaryError(
                f"dictionary {name} {verb} vectors of size {size} at {site}, where {model.name} has {model.width(site)};"
                " it was trained for another model"
            )
