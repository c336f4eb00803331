"""A sparse dictionary at its place in the model.

In come weights and sites; out come feature activations, reconstructions, reading vectors and write vectors. The formulas
live in circuitgraph_kernels; this module adds where the dictionary reads and writes, and knows no file format.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from circuitgraph.dictionary_lazy import Held
from circuitgraph.errors import DictionaryError
from circuitgraph.model import Model
from circuitgraph.nodes import Site
from circuitgraph_kernels import SaeWeights, decode, encode, output_bias
from circuitgraph_kernels.weights import compute_dtype


@dataclass(frozen=True, eq=False)
class Dictionary:
    """An SAE (reads == writes), a transcoder (reads the MLP input, writes mlp_out) or one layer of a cross-layer transcoder.

    x_hat = acts @ W_dec + bias (+ x @ W_skip), with W_skip [d_in, d_out] for a transcoder with a linear skip connection. A
    cross-layer transcoder writes at `writes` and at each site of `later`: W_dec [d_sae, n_sites * d] and b_dec hold the
    columns of one site after the other. `name` is what it was loaded by.

    `weights` and `W_skip` may have been given as Deferred: then each is read from its file when it is asked for, and freed
    when nobody holds it, so keep it in a variable for as long as it is needed. The sizes are known without reading.
    """

    weights: SaeWeights = field(repr=False)
    reads: Site
    writes: Site
    name: str
    W_skip: Tensor | None = field(default=None, repr=False)
    later: tuple[Site, ...] = ()

    @property
    def d_in(self) -> int:
        return int(vars(self)["weights"].d_in)

    @property
    def d_sae(self) -> int:
        return int(vars(self)["weights"].d_sae)

    @property
    def d_out(self) -> int:
        """Columns of W_dec: the sizes of all sites it writes, together."""
        return int(vars(self)["weights"].d_out)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site it writes, in forward order."""
        return (self.writes, *self.later)

    def columns(self, site: Site) -> slice:
        """Which columns of W_dec, of b_dec and of what `decode` returns belong to the site."""
        size = self.d_out // len(self.sites)
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
        return x_hat if vars(self)["W_skip"] is None else x_hat + self.skipped(x)

    def bias(self, x: Tensor) -> Tensor:
        """What the decoder adds whatever the activations: b_dec [d_out], or [..., d_out] where x is normalised."""
        return output_bias(self.weights, x)

    def skipped(self, x: Tensor | None) -> Tensor:
        """x @ W_skip [..., d_out]; DictionaryError without x, or for a dictionary that does not skip."""
        W_skip = self.W_skip
        if x is None or W_skip is None:
            raise DictionaryError(
                f"dictionary {self.name}: the skip connection needs x and W_skip; one of them is None"
            )
        return x @ W_skip.to(x.dtype)

    def reading_vectors(self, features: Tensor) -> Tensor:
        """d(pre-activation)/d(input) of the features [n], [n, d_in], scale and shift of a normalised input frozen.

        Columns of W_enc; for a gated SAE times the scale of its magnitude path; centred where the input is.
        """
        weights = self.weights
        vectors = weights.encoder_rows[features]
        vectors = vectors.to(compute_dtype(vectors.dtype))
        if weights.r_mag is not None:
            vectors = vectors * weights.r_mag[features].to(vectors.dtype).exp()[:, None]
        return vectors - vectors.mean(-1, keepdim=True) if weights.normalize == "layer_norm" else vectors


for _name in ("weights", "W_skip"):  # after the dataclass has read its fields: it would take a descriptor for a default
    setattr(Dictionary, _name, Held(_name))


def check_fit(dictionary: Dictionary, model: Model) -> None:
    """DictionaryError unless the dictionary's sites and sizes are the model's."""
    name = dictionary.name
    d_out, left = divmod(dictionary.d_out, len(dictionary.sites))
    if left:
        raise DictionaryError(
            f"dictionary {name} writes vectors of size {dictionary.d_out}, which {len(dictionary.sites)} sites"
            " cannot share; the file is broken"
        )
    places = [(dictionary.reads, dictionary.d_in, "reads")]
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
    skip = vars(dictionary)["W_skip"]
    expected = (dictionary.d_in, dictionary.d_out)
    if isinstance(skip, Tensor) and (tuple(skip.shape) != expected or not bool(torch.isfinite(skip).all())):
        raise DictionaryError(
            f"dictionary {name}: W_skip has shape {tuple(skip.shape)} or holds NaN or Inf; expected finite {expected}"
        )
