"""A sparse dictionary at its place in the model.

In come weights and sites; out come feature activations, reconstructions, input directions and write vectors. The formulas
live in circuitgraph_kernels; this module adds where the dictionary reads and writes, and knows no file format.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuitgraph.dictionaries.lazy import Deferred, DeferredWeights
from circuitgraph.errors import DictionaryError
from circuitgraph.models.model import Model
from circuitgraph.nodes import Site
from circuitgraph_kernels import SaeWeights, decode, encode, output_bias
from circuitgraph_kernels.weights import compute_dtype


class Dictionary:
    """An SAE (reads == writes), a transcoder (reads the MLP input, writes mlp_out) or one layer of a cross-layer transcoder.

    x_hat = acts @ W_dec + bias (+ x @ W_skip), with W_skip [d_in, d_out] for a transcoder with a linear skip connection. A
    cross-layer transcoder writes at `writes` and at each site of `later`: W_dec [d_sae, n_sites * d] and b_dec hold the
    columns of one site after the other. `name` is what it was loaded by, `neuronpedia` its MODEL/SOURCE there (gpt2-small/5-att-kk) if it
    has pages of its features. Do not change a dictionary once it is made.

    weights and W_skip may be given as Deferred: then each is read from its file when it is asked for, and freed when nobody
    holds it, so keep it in a variable for as long as it is needed. The sizes are known without reading.
    """

    def __init__(
        self,
        weights: SaeWeights | DeferredWeights,
        reads: Site,
        writes: Site,
        name: str,
        W_skip: Tensor | Deferred[Tensor] | None = None,
        later: tuple[Site, ...] = (),
        neuronpedia: str | None = None,
    ) -> None:
        self._weights, self._W_skip = weights, W_skip
        self.reads, self.writes, self.name, self.later = reads, writes, name, later
        self.neuronpedia = neuronpedia
        self.d_in, self.d_sae, self.d_out = weights.d_in, weights.d_sae, weights.d_out

    def __repr__(self) -> str:
        return f"Dictionary({self.name!r}, {self.reads} -> {', '.join(map(str, self.sites))}, {self.d_sae} features)"

    @property
    def weights(self) -> SaeWeights:
        return self._weights.get() if isinstance(self._weights, Deferred) else self._weights

    @property
    def W_skip(self) -> Tensor | None:
        return self._W_skip.get() if isinstance(self._W_skip, Deferred) else self._W_skip

    @property
    def skips(self) -> bool:
        """Whether it has a skip connection; reads no weights."""
        return self._W_skip is not None

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
        return x_hat + self.skipped(x) if self.skips else x_hat

    def bias(self, x: Tensor) -> Tensor:
        """What the decoder adds whatever the activations: b_dec [d_out], or [..., d_out] where x is normalised."""
        return output_bias(self.weights, x)

    def affine(self, x: Tensor) -> Tensor:
        """What it adds besides its features, [..., d_out], for x [..., d_in]: the bias and what passes the skip connection."""
        return self.bias(x) + self.skipped(x) if self.skips else self.bias(x)

    def skipped(self, x: Tensor | None) -> Tensor:
        """x @ W_skip [..., d_out]; DictionaryError without x, or for a dictionary that does not skip."""
        W_skip = self.W_skip
        if x is None or W_skip is None:
            raise DictionaryError(
                f"dictionary {self.name}: the skip connection needs x and W_skip; one of them is None"
            )
        return x @ W_skip.to(x.dtype)

    def input_directions(self, features: Tensor) -> Tensor:
        """d(pre-activation)/d(input) of the features [n], [n, d_in], scale and shift of a normalised input frozen.

        Columns of W_enc; for a gated SAE times the scale of its magnitude path; centred where the input is.
        """
        weights = self.weights
        vectors = weights.encoder_rows[features]
        vectors = vectors.to(compute_dtype(vectors.dtype))
        if weights.r_mag is not None:
            vectors = vectors * weights.r_mag[features].to(vectors.dtype).exp()[:, None]
        return vectors - vectors.mean(-1, keepdim=True) if weights.normalize == "layer_norm" else vectors


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
    skip = dictionary._W_skip  # a deferred one is checked when it is read
    expected = (dictionary.d_in, dictionary.d_out)
    if isinstance(skip, Tensor) and (tuple(skip.shape) != expected or not bool(torch.isfinite(skip).all())):
        raise DictionaryError(
            f"dictionary {name}: W_skip has shape {tuple(skip.shape)} or holds NaN or Inf; expected finite {expected}"
        )
