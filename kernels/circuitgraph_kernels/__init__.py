"""Attribution of SAE and transcoder features, computed only where features are active.

`sae_attribution` takes activations, gradients and the weights of one dictionary as plain tensors. It gives a list of
(token, feature) pairs with their attributions, and the attribution of the error node. The package needs only torch, and
triton to run on a GPU.
"""

from circuitgraph_kernels.captured import CapturedAttribution
from circuitgraph_kernels.products import decode_entries, gather_dot
from circuitgraph_kernels.sae_attribution import SaeAttribution, backend_name, sae_attribution
from circuitgraph_kernels.weights import (
    ACTIVATIONS,
    SaeWeights,
    compute_dtype,
    decode,
    encode,
    output_bias,
    pre_activations,
)

__all__ = [
    "ACTIVATIONS",
    "CapturedAttribution",
    "SaeAttribution",
    "SaeWeights",
    "backend_name",
    "compute_dtype",
    "decode",
    "decode_entries",
    "encode",
    "gather_dot",
    "output_bias",
    "pre_activations",
    "sae_attribution",
]
