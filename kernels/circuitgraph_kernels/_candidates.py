"""Ways to attribute one site that the benchmark compares: as they are usually written, and this package.

Each takes the weights of a ReLU dictionary and gives a function of clean, baseline and gradient [T, d]. The function
returns the attribution of each feature summed over tokens, then the errors of the tokens: [d_sae + T].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from circuitgraph_kernels.captured import CapturedAttribution
from circuitgraph_kernels.sae_attribution import SaeAttribution, sae_attribution
from circuitgraph_kernels.weights import SaeWeights, encode

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
Run = Callable[[Tensor, Tensor, Tensor], Tensor]


def dense_autograd(weights: SaeWeights) -> Run:
    """feature-circuits at one site: encode, decode, error, backward; then the same for the baseline without gradients.

    x_hat + error is put in place of x, d metric / d x passes straight through, and all features are kept. The
    parameters require gradients, as they do when nobody turns them off.
    """
    for name in PARAMETERS:
        getattr(weights, name).requires_grad_()
    return _autograd(lambda x: encode(x, weights), lambda acts: acts @ weights.W_dec + weights.b_dec)


def frozen_autograd(weights: SaeWeights) -> Run:
    """The same with the dictionary's parameters frozen: two products less."""
    return _autograd(lambda x: encode(x, weights), lambda acts: acts @ weights.W_dec + weights.b_dec)


def sae_lens_autograd(weights: SaeWeights) -> Run:
    """The same through sae-lens's own object, with its parameters frozen."""
    from sae_lens import StandardSAE, StandardSAEConfig

    device = str(weights.W_enc.device)
    config: Any = StandardSAEConfig(d_in=weights.d_in, d_sae=weights.d_sae, apply_b_dec_to_input=False, device=device)
    sae: Any = StandardSAE(config)
    sae.load_state_dict({name: getattr(weights, name) for name in PARAMETERS})
    sae.requires_grad_(False)
    return _autograd(sae.encode, sae.decode)


def dense_products(weights: SaeWeights) -> Run:
    """Without autograd: two encodings, all gradients by one product, and the error by difference."""

    def run(clean: Tensor, baseline: Tensor, gradient: Tensor) -> Tensor:
        delta = torch.relu(clean @ weights.W_enc + weights.b_enc) - torch.relu(baseline @ weights.W_enc + weights.b_enc)
        scores = delta * (gradient @ weights.W_dec.T)
        error = (gradient * (clean - baseline)).sum(dim=-1) - scores.sum(dim=-1)
        return torch.cat((scores.sum(dim=0), error))

    return torch.no_grad()(run)


def compiled_products(weights: SaeWeights) -> Run:
    """The same through torch.compile."""
    compiled: Run = torch.compile(dense_products(weights), dynamic=False)
    return compiled


def encoder_products(weights: SaeWeights) -> Run:
    """The floor of every float32 way: the encoder's product for both runs into a reused buffer, and nothing else."""
    buffer = torch.empty(0)

    def run(clean: Tensor, baseline: Tensor, gradient: Tensor) -> Tensor:
        nonlocal buffer
        runs = torch.cat((clean, baseline))
        buffer = buffer if len(buffer) else runs.new_empty(len(runs), 4096)
        for start in range(0, weights.d_sae, 4096):
            columns = weights.W_enc[:, start : start + 4096]
            torch.mm(runs, columns, out=buffer.view(-1)[: len(runs) * columns.shape[1]].view(len(runs), -1))
        return torch.zeros(weights.d_sae + len(clean), device=clean.device)

    return torch.no_grad()(run)


def ours(backend: str, precision: str = "exact") -> Callable[[SaeWeights], Run]:
    """`sae_attribution`, and the sums of its list."""

    def make(weights: SaeWeights) -> Run:
        def run(clean: Tensor, baseline: Tensor, gradient: Tensor) -> Tensor:
            return sums(
                sae_attribution(clean, baseline, gradient, weights, backend=backend, precision=precision), weights
            )

        return run

    return make


def captured(weights: SaeWeights) -> Run:
    """The same with the list replayed as a CUDA graph."""
    graphs: dict[int, CapturedAttribution] = {}

    def run(clean: Tensor, baseline: Tensor, gradient: Tensor) -> Tensor:
        if len(clean) not in graphs:
            graphs[len(clean)] = CapturedAttribution(weights, len(clean), capacity=1024 * len(clean))
        return sums(graphs[len(clean)](clean, baseline, gradient), weights)

    return run


def sums(result: SaeAttribution, weights: SaeWeights) -> Tensor:
    """Feature sums, then errors: the layout in which all candidates are compared."""
    total = result.error.new_zeros(weights.d_sae).index_add_(0, result.feature, result.attribution)
    return torch.cat((total, result.error))


def _autograd(encoded: Callable[[Tensor], Tensor], decoded: Callable[[Tensor], Tensor]) -> Run:
    def run(clean: Tensor, baseline: Tensor, gradient: Tensor) -> Tensor:
        x = clean.clone().requires_grad_()
        acts = encoded(x)
        acts.retain_grad()
        x_hat = decoded(acts)
        error = (x - x_hat).detach().requires_grad_()
        torch.autograd.backward(((x_hat + error) * gradient).sum())
        assert acts.grad is not None and error.grad is not None
        with torch.no_grad():
            baseline_acts = encoded(baseline)
            baseline_error = baseline - decoded(baseline_acts)
            feature_scores = (acts - baseline_acts) * acts.grad
            error_scores = ((error - baseline_error) * error.grad).sum(dim=-1)
        return torch.cat((feature_scores.sum(dim=0), error_scores))

    return run


# Name -> how to make it; the first is what the others are compared with.
CPU: dict[str, Callable[[SaeWeights], Run]] = {
    "dense autograd, parameters require gradients": dense_autograd,
    "dense autograd, parameters frozen": frozen_autograd,
    "sae-lens encode and decode, autograd, frozen": sae_lens_autograd,
    "dense, three products": dense_products,
    "dense, three products, torch.compile": compiled_products,
    "encoder's two products alone": encoder_products,
    "circuitgraph_kernels, torch": ours("torch"),
}
CUDA: dict[str, Callable[[SaeWeights], Run]] = {
    **CPU,
    "circuitgraph_kernels, triton": ours("triton"),
    "circuitgraph_kernels, triton, bfloat16 weights": ours("triton", "bfloat16"),
    "circuitgraph_kernels, triton, CUDA graph": captured,
}
FLOOR = "encoder's two products alone"
