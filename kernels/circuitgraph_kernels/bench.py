"""Time and memory of feature attribution at one site: dense autograd, as it is usually written, against this package.

In come sizes on the command line; out comes one table, each line measured in a process of its own on one thread.
Run `python -m circuitgraph_kernels.bench`; numbers are refused where a result disagrees with the float64 reference.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitgraph_kernels import SaeAttribution, SaeWeights, encode, sae_attribution

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
MAX_ERROR = 1e-4  # relative to the largest score; float32 gives about 1e-6
UNIT = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss per MiB


@dataclass(frozen=True)
class Sizes:
    """Tokens, widths and how many features are active per token."""

    tokens: int
    d_model: int
    d_sae: int
    active: int
    repeats: int


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    cpu_seconds: float
    peak_mib: float
    error: float
    entries: int


def dense_autograd(clean: Tensor, baseline: Tensor, gradient: Tensor, weights: SaeWeights) -> Tensor:
    """feature-circuits at one site: encode, decode, error, backward; then the same for the baseline without gradients.

    x_hat + error is put in place of x, d metric / d x passes straight through, and all features are kept.
    """
    x = clean.clone().requires_grad_()
    acts = encode(x, weights)
    acts.retain_grad()
    x_hat = acts @ weights.W_dec + weights.b_dec
    error = (x - x_hat).detach().requires_grad_()
    torch.autograd.backward(((x_hat + error) * gradient).sum())
    assert acts.grad is not None and error.grad is not None
    with torch.no_grad():
        baseline_acts = encode(baseline, weights)
        baseline_error = baseline - (baseline_acts @ weights.W_dec + weights.b_dec)
        feature_scores = (acts - baseline_acts) * acts.grad
        error_scores = ((error - baseline_error) * error.grad).sum(dim=-1)
    return torch.cat((feature_scores.sum(dim=0), error_scores))


def frozen_dense_autograd(clean: Tensor, baseline: Tensor, gradient: Tensor, weights: SaeWeights) -> Tensor:
    """The same with the dictionary's parameters frozen: two products less."""
    for name in PARAMETERS:
        getattr(weights, name).requires_grad_(False)
    return dense_autograd(clean, baseline, gradient, weights)


def compact(clean: Tensor, baseline: Tensor, gradient: Tensor, weights: SaeWeights) -> Tensor:
    """`sae_attribution`, list and sums."""
    return sums(sae_attribution(clean, baseline, gradient, weights, want="both", backend="torch"))


def sums(result: SaeAttribution) -> Tensor:
    """Feature sums, then errors: the layout in which all candidates are compared."""
    assert result.feature_sum is not None
    return torch.cat((result.feature_sum, result.error))


CANDIDATES: dict[str, Callable[..., Tensor]] = {
    "dense autograd, parameters require gradients": dense_autograd,
    "dense autograd, parameters frozen": frozen_dense_autograd,
    "circuitgraph_kernels, torch": compact,
}


def make_inputs(sizes: Sizes) -> tuple[Tensor, Tensor, Tensor, SaeWeights]:
    """Random unit encoder columns, and a bias that leaves `active` of the features on for each token."""
    random = torch.Generator().manual_seed(0)
    W_dec = torch.randn(sizes.d_sae, sizes.d_model, generator=random)
    W_dec /= torch.linalg.vector_norm(W_dec, dim=1, keepdim=True)
    W_enc = W_dec.clone().T  # laid out as SaeWeights wants it: a copy would raise the peak that memory is counted from
    b_enc = torch.full((sizes.d_sae,), -statistics.NormalDist().inv_cdf(1 - sizes.active / sizes.d_sae))
    b_dec = 0.1 * torch.randn(sizes.d_model, generator=random)
    weights = SaeWeights(W_enc, b_enc, W_dec, b_dec)
    for name in PARAMETERS:
        getattr(weights, name).requires_grad_()
    clean, other, gradient = torch.randn(3, sizes.tokens, sizes.d_model, generator=random)
    return clean, 0.8 * clean + 0.6 * other, gradient, weights


def measure(name: str, sizes: Sizes) -> Row:
    """Growth of the process's peak memory in the first call, then the median CPU time of the following ones."""
    torch.set_num_threads(1)
    run = CANDIDATES[name]
    run(*make_inputs(Sizes(4, 64, 256, 8, 1)))  # loads code, so that its pages are not counted
    inputs = make_inputs(sizes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scores = run(*inputs).detach()
    peak_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / UNIT
    seconds = []
    for _ in range(sizes.repeats):
        started = time.process_time()
        run(*inputs)
        seconds.append(time.process_time() - started)
    return Row(statistics.median(seconds), peak_mib, *compare(scores, inputs))


def compare(scores: Tensor, inputs: tuple[Tensor, Tensor, Tensor, SaeWeights]) -> tuple[float, int]:
    """Largest difference to the float64 reference relative to the largest score, and the number of active pairs."""
    clean, baseline, gradient, weights = inputs
    exact = SaeWeights(*(getattr(weights, name).detach().double() for name in PARAMETERS))
    double = clean.double(), baseline.double(), gradient.double()
    reference = sae_attribution(*double, exact, want="both", backend="reference")
    expected = sums(reference)
    return float((scores - expected).abs().max() / expected.abs().max()), len(reference.token)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("tokens", 160), ("d-model", 768), ("d-sae", 24576), ("active", 60), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    sizes = Sizes(**vars(parser.parse_args()))

    rows = {}
    for name in CANDIDATES:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows[name] = pool.apply(measure, (name, sizes))
    first, *_ = rows.values()
    pairs = first.entries / sizes.tokens
    print(f"{platform.machine()}, one thread, torch {torch.__version__}; T={sizes.tokens} d={sizes.d_model}", end=" ")
    print(f"d_sae={sizes.d_sae}, {pairs:.0f} features active per token in either run; median of {sizes.repeats}")
    print(f"{'':46}{'CPU s':>9}{'ratio':>8}{'peak MiB':>10}{'error':>10}")
    for name, row in rows.items():
        ratio = f"{first.cpu_seconds / row.cpu_seconds:.1f}x" if row.error < MAX_ERROR else "WRONG"
        print(f"{name:46}{row.cpu_seconds:>9.3f}{ratio:>8}{row.peak_mib:>10.0f}{row.error:>10.1e}")
    return int(any(row.error >= MAX_ERROR for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
