"""One dictionary: its weights, the site that it reads and the sites that it writes.

The formulas of encoder and decoder are circuitgraph_kernels'; how dictionaries are loaded is in load.py.
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
    """An SAE, a transcoder, one layer of a cross-layer transcoder, or neurons: features between two sites of a model.

        x_hat = encode(x) @ W_dec + bias (+ x @ W_skip)

    An SAE reads and writes the same site. A transcoder reads the MLP's input and writes mlp_out. One layer of a
    cross-layer transcoder writes `writes` and each site of `later`: W_dec [d_sae, n_sites * d] and b_dec hold the
    columns of one site after the other. Do not change a dictionary once it is made.

    Args:
        weights: The weights. DeferredWeights are read from their file when they are asked for and freed when nobody
            holds them, so keep them in a variable for as long as they are needed; sizes are known without reading.
        reads: The site of its input x.
        writes: The first site that it writes.
        name: What it was loaded by.
        W_skip: [d_in, d_out], the matrix of a linear skip connection; may be deferred too.
        later: The further sites that it writes, in forward order.
        neuronpedia: MODEL/SOURCE of the pages of its features on Neuronpedia (gpt2-small/5-att-kk).
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
        self._weights = weights
        self._W_skip = W_skip
        self.reads = reads
        self.writes = writes
        self.name = name
        self.later = later
        self.neuronpedia = neuronpedia
        self.d_in: int = weights.d_in
        self.d_sae: int = weights.d_sae
        self.d_out: int = weights.d_out
        self.activation: str = weights.activation
        self.normalize: str = weights.normalize

    def __repr__(self) -> str:
        if self.later:
            kind = f"cross-layer transcoder {self.reads} -> {self.writes} to {self.later[-1]}"
        elif self.reads != self.writes:
            kind = f"transcoder {self.reads} -> {self.writes}"
        else:
            kind = f"{'neurons' if self.activation == 'identity' else 'SAE'} at {self.writes}"
        skip = ", linear skip" if self.skips else ""
        return f"<Dictionary {self.name!r}: {kind}, {self.d_sae} {self.activation} features{skip}>"

    @property
    def weights(self) -> SaeWeights:
        """The weights; read now if they are deferred."""
        return self._weights.get() if isinstance(self._weights, Deferred) else self._weights

    @property
    def W_skip(self) -> Tensor | None:
        """The matrix of the skip connection [d_in, d_out]; read now if it is deferred. None without one."""
        return self._W_skip.get() if isinstance(self._W_skip, Deferred) else self._W_skip

    @property
    def skips(self) -> bool:
        """Whether it has a skip connection."""
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
        """The reconstruction x_hat [..., d_out]; of a cross-layer transcoder its part at each site, side by side.

        Args:
            acts: Feature activations [..., d_sae].
            x: The input [..., d_in], for a dictionary that normalises it or has a skip connection.
        """
        x_hat = decode(acts, self.weights, x)
        return x_hat + self.skipped(x) if self.skips else x_hat

    def bias(self, x: Tensor) -> Tensor:
        """What the decoder adds whatever the activations are: b_dec [d_out], or [..., d_out] where x is normalised."""
        return output_bias(self.weights, x)

    def affine(self, x: Tensor) -> Tensor:
        """What it writes for x [..., d_in] besides its features, [..., d_out]: the bias and what skips them."""
        return self.bias(x) + self.skipped(x) if self.skips else self.bias(x)

    def skipped(self, x: Tensor | None) -> Tensor:
        """The skip connection's output x @ W_skip [..., d_out]; DictionaryError without x or without W_skip."""
        W_skip = self.W_skip
        if x is None or W_skip is None:
            raise DictionaryError(
                f"dictionary {self.name}: the skip connection needs x and W_skip; one of them is None"
            )
        return x @ W_skip.to(x.dtype)

    def input_directions(self, features: Tensor) -> Tensor:
        """d(pre-activation) / d(input) of some features, [n, d_in], with scale and shift of a normalised input frozen.

        These are columns of W_enc, for a gated SAE times the scale of its magnitude path, and centred if the input is.

        Args:
            features: Indices [n].
        """
        weights = self.weights
        vectors = weights.encoder_rows[features]
        vectors = vectors.to(compute_dtype(vectors.dtype))
        if weights.r_mag is not None:
            vectors = vectors * weights.r_mag[features].to(vectors.dtype).exp()[:, None]
        return vectors - vectors.mean(-1, keepdim=True) if weights.normalize == "layer_norm" else vectors


def check_fit(dictionary: Dictionary, model: Model) -> None:
    """Raise DictionaryError unless the dictionary's sites and sizes are the model's."""
    name = dictionary.name
    d_out, remainder = divmod(dictionary.d_out, len(dictionary.sites))
    if remainder:
        raise DictionaryError(
            f"dictionary {name} writes vectors of size {dictionary.d_out}, which {len(dictionary.sites)} sites"
            " cannot share; the file is broken"
        )
    ends = [(dictionary.reads, dictionary.d_in, "reads"), *((site, d_out, "writes") for site in dictionary.sites)]
    for site, size, verb in ends:
        if site.layer is not None and site.layer >= model.n_layers:
            raise DictionaryError(
                f"dictionary {name} {verb} {site}, but {model.name} has layers 0-{model.n_layers - 1}"
            )
        if not model.has(site):
            raise DictionaryError(f"dictionary {name} {verb} {site}, which {model.name} does not have")
        if size != model.width(site):
            raise DictionaryError(
                f"dictionary {name} {verb} vectors of size {size} at {site}, where {model.name} has"
                f" {model.width(site)}; it was trained for another model"
            )
    skip = dictionary._W_skip  # a deferred one is checked when it is read
    expected = (dictionary.d_in, dictionary.d_out)
    if isinstance(skip, Tensor) and (tuple(skip.shape) != expected or not bool(torch.isfinite(skip).all())):
        raise DictionaryError(
            f"dictionary {name}: W_skip has shape {tuple(skip.shape)} or holds NaN or Inf; expected finite {expected}"
        )
