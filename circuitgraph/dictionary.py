"""A sparse dictionary at its place in the model.

In come weights and sites; out come feature activations, reconstructions, reading vectors and write vectors. The formulas
live in circuitgraph_kernels; this module adds where the dictionary reads and writes, and knows no file format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitgraph.errors import DictionaryError
from circuitgraph.model import Model
from circuitgraph.nodes import Site
from circuitgraph_kernels import SaeWeights, decode, encode, output_bias


@dataclass(frozen=True, eq=False)
class Dictionary:
    """An SAE (reads == writes), a transcoder (reads the MLP input, writes mlp_out) or one layer of a cross-layer transcoder.

    x_hat = acts @ W_dec + bias (+ x @ W_skip), with W_skip [d_in, d_out] for a transcoder with a linear skip connection. A
    cross-layer transcoder writes at `writes` and at each site of `later`: W_dec [d_sae, n_sites * d] and b_dec hold the
    columns of one site after the other. `name` is what it was loaded by.
    """

    weights: SaeWeights
    reads: Site
    writes: Site
    name: str
    W_skip: Tensor | None = None
    later: tuple[Site, ...] = ()

    @property
    def d_sae(self) -> int:
        return self.weights.W_dec.shape[0]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site it writes, in forward order."""
        return (self.writes, *self.later)

    def columns(self, site: Site) -> slice:
        """Which columns of W_dec, of b_dec and of what `decode` returns belong to the site."""
        size = self.weights.d_out // len(self.sites)
        start = self.sites.index(site) * size
        return slice(start, start + size)

    def encode(self, x: Tensor) -> Tensor:
        """Feature activations [..., d_sae] of x [..., d_in] at the site that is read."""
        return encode(x, self.weights)

    def decode(self, acts: Tensor, x: Tensor | None = None) -> Tensor:
        """x_hat [..., d_out] for activations of x [..., d_in]; x is needed if it is normalised or skips.

        For a cross-layer transcoder: this layer's part of the reconstruction at each of its sites, side by side.
        """
        x_hat = decode(acts, self.weights, x)
        return x_hat if self.W_skip is None else x_hat + self.skipped(x)

    def bias(self, x: Tensor) -> Tensor:
        """What the decoder adds whatever the activations: b_dec [d_out], or [..., d_out] where x is normalised."""
        return output_bias(self.weights, x)

    def skipped(self, x: Tensor | None) -> Tensor:
        """x @ W_skip [..., d_out]; DictionaryError without x, or for a dictionary that does not skip."""
        if x is None or self.W_skip is None:
            raise DictionaryError(
                f"dictionary {self.name}: the skip connection needs x and W_skip; one of them is None"
            )
        return x @ self.W_skip.to(x.dtype)

    def reading_vectors(self, features: Tensor) -> Tensor:
        """d(pre-activation)/d(input) of the features [n], [n, d_in], scale and shift of a normalised input frozen.

        Columns of W_enc; for a gated SAE times the scale of its magnitude path; centred where the input is.
        """
        weights = self.weights
        vectors = weights.encoder_rows[features]
        if weights.r_mag is not None:
            vectors = vectors * weights.r_mag[features].exp()[:, None]
        return vectors - vectors.mean(-1, keepdim=True) if weights.normalize == "layer_norm" else vectors


def reconstruct(dictionaries: Mapping[Site, Dictionary], site: Site, values: Mapping[Site, Tensor]) -> Tensor:
    """x_hat [..., d] at a site from the activations read: the sum over all dictionaries that write there.

    Raises DictionaryError if none does.
    """
    parts = [
        dictionary.decode(dictionary.encode(x), x)[..., dictionary.columns(site)]
        for dictionary in dictionaries.values()
        if site in dictionary.sites
        for x in [values[dictionary.reads]]
    ]
    if not parts:
        raise DictionaryError(f"no dictionary writes {site}; nothing is reconstructed there")
    return sum(parts[1:], parts[0])


def check_fit(dictionary: Dictionary, model: Model) -> None:
    """DictionaryError unless the dictionary's sites and sizes are the model's."""
    weights, name = dictionary.weights, dictionary.name
    d_out, left = divmod(weights.W_dec.shape[1], len(dictionary.sites))
    if left:
        raise DictionaryError(
            f"dictionary {name} writes vectors of size {weights.W_dec.shape[1]}, which {len(dictionary.sites)} sites"
            " cannot share; the file is broken"
        )
    places = [(dictionary.reads, weights.W_enc.shape[0], "reads")]
    for site, size, verb in places + [(site, d_out, "writes") for site in dictionary.sites]:
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
    skip = dictionary.W_skip
    expected = (weights.W_enc.shape[0], weights.W_dec.shape[1])
    if skip is not None and (tuple(skip.shape) != expected or not bool(torch.isfinite(skip).all())):
        raise DictionaryError(
            f"dictionary {name}: W_skip has shape {tuple(skip.shape)} or holds NaN or Inf; expected finite {expected}"
        )
