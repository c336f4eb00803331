"""Attribution of SAE and transcoder features, computed only where features are active.

In come activations, gradients and the weights of one dictionary as plain tensors; out comes a list of
(token, feature) pairs with their attributions, and the attribution of the error node. This package
imports torch and knows nothing of models, prompts, sites or graphs.
"""

from circuitgraph_kernels._torch import gather_dot
from circuitgraph_kernels.sae_attribution import SaeAttribution, backend_name, sae_attribution
from circuitgraph_kernels.weights import ACTIVATIONS, SaeWeights, decode, encode, pre_activations

__all__ = [
    "ACTIVATIONS",
    "SaeAttribution",
    "SaeWeights",
    "backend_name",
    "decode",
    "encode",
    "gather_dot",
    "pre_activations",
    "sae_attribution",
]
