"""Time, memory and accuracy of feature attribution at one site, side by side in one run.

`python -m circuitgraph_kernels.bench` prints one table per size. With --json it appends one line per row to a file.
Where a result disagrees with the float64 reference, the table says WRONG instead of a ratio. On a CPU each row is a
process of its own on one thread; on a GPU the ceilings of the machine are measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from circuitgraph_kernels import SaeWeights, sae_attribution
from circuitgraph_kernels._candidates import CPU, CUDA, FLOOR, PARAMETERS, sums

MAX_ERROR = 1e-4  # relative to the largest score; float32 gives about 1e-6, bfloat16 weights about 1e-2
UNIT = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss per MiB
SIZES = {  # T, d, d_sae
    "cpu": ((160, 768, 24576), (40, 512, 32768)),
    "cuda": tuple(
        (tokens, d, d_sae)
        for d, d_sae in ((768, 24576), (512, 32768), (2304, 16384), (2304, 65536))  # GPT-2, Pythia, Gemma 16k and 65k
        for tokens in (16, 160, 1600)
    ),
}


@dataclass(frozen=True)
class Size:
    """Tokens, widths and how many features are active per token and run."""

    tokens: int
    d: int
    d_sae: int
    active: int


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    seconds: float  # CPU seconds of one call on a CPU, GPU seconds on a GPU; the median
    first: float  # wall seconds of the first call: compilation, warm-up, what is kept per dictionary
    peak_mib: float  # growth of the peak in the first call
    error: float  # to the float64 reference, relative to the largest score
    pairs: float  # features per token that are active in either run


Case = tuple[Tensor, Tensor, Tensor, SaeWeights]


def make_case(size: Size, device: str) -> Case:
    """Random unit encoder columns, and a bias that leaves `active` of the features on for each token."""
    random = torch.Generator().manual_seed(0)
    W_dec = torch.randn(size.d_sae, size.d, generator=random)
    W_dec /= torch.linalg.vector_norm(W_dec, dim=1, keepdim=True)
    W_enc = W_dec.clone().T  # laid out as SaeWeights wants it: a copy would raise the peak that memory is counted from
    b_enc = torch.full((size.d_sae,), -statistics.NormalDist().inv_cdf(1 - size.active / size.d_sae))
    b_dec = 0.1 * torch.randn(size.d, generator=random)
    weights = SaeWeights(W_enc.to(device), b_enc.to(device), W_dec.to(device), b_dec.to(device))
    clean, other, gradient = torch.randn(3, size.tokens, size.d, generator=random).to(device)
    return clean, 0.8 * clean + 0.6 * other, gradient, weights


def measure(name: str, size: Size, device: str, repeats: int) -> Row:
    """One row; the error of the floor, which computes no attributions, is NaN."""
    torch.set_num_threads(1)
    warm = make_case(Size(4, 64, 256, 8), device)
    if "compile" not in name:
        CUDA[name](warm[3])(*warm[:3])  # loads code, so that its pages are not counted
    case = make_case(size, device)
    run = CUDA[name](case[3])
    before = _peak(device)
    started = time.perf_counter()
    scores = run(*case[:3]).detach()
    _finish(device)
    first, peak = time.perf_counter() - started, (_peak(device) - before)
    seconds = statistics.median(_seconds(lambda: run(*case[:3]), device) for _ in range(repeats))
    error, pairs = compare(scores, case)
    hidden = "compile" in name or "sae-lens" in name  # what they allocate beforehand raised the peak already
    return Row(seconds, first, math.nan if hidden else peak, math.nan if name == FLOOR else error, pairs)


def compare(scores: Tensor, case: Case) -> tuple[float, float]:
    """Largest difference to the float64 reference relative to the largest score, and the active pairs per token."""
    *rows, weights = case
    W_enc, b_enc, W_dec, b_dec = (getattr(weights, name).detach().double() for name in PARAMETERS)
    exact = SaeWeights(W_enc, b_enc, W_dec, b_dec)
    expected, pairs = [], 0
    for start in range(0, len(rows[0]), 160):  # the reference holds several [tokens, d_sae] tensors
        clean, baseline, gradient = (x[start : start + 160].double() for x in rows)
        reference = sae_attribution(clean, baseline, gradient, exact, backend="reference")
        expected.append(sums(reference, exact))
        pairs += len(reference.token)
    total = torch.stack([each[: weights.d_sae] for each in expected]).sum(dim=0)
    target = torch.cat((total, *(each[weights.d_sae :] for each in expected)))
    return float((scores - target).abs().max() / target.abs().max()), pairs / len(rows[0])


@dataclass(frozen=True)
class Ceilings:
    """What the GPU reached in this run: bytes and floating-point operations per second."""

    memory: float
    cache: float
    float16: float
    float32: float


def ceilings() -> Ceilings:
    """Copies of 2 GiB and of 16 MiB (which stay in L2), and products of two [8192, 8192] matrices."""

    def best(work: Callable[[], object]) -> float:
        return min(_seconds(work, "cuda") for _ in range(20))

    def copy(size: int) -> float:
        source, target = torch.zeros(2, size // 4, device="cuda")
        return 2 * size / best(lambda: target.copy_(source))

    def product(dtype: torch.dtype) -> float:
        a, b = torch.randn(2, 8192, 8192, device="cuda").to(dtype)
        return float(2 * 8192**3 / best(lambda: a @ b))

    return Ceilings(copy(2**31), copy(2**24), product(torch.float16), product(torch.float32))


def counted_floor(size: Size, pairs: float, limits: Ceilings) -> float:
    """Seconds that the exact pipeline cannot beat: the screen's product or its weights, then the gathered rows."""
    screen = max(4 * size.tokens * size.d * size.d_sae / limits.float16, 2 * size.d * size.d_sae / limits.memory)
    gathered = size.tokens * pairs * size.d * 8  # one row of W_enc and one of W_dec per pair, float32
    return screen + gathered / limits.cache


def _peak(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / UNIT


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _seconds(work: Callable[[], object], device: str) -> float:
    """CPU seconds of the process, or GPU seconds between two events."""
    if device == "cpu":
        started = time.process_time()
        work()
        return time.process_time() - started
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def _table(size: Size, device: str, names: list[str], repeats: int, limits: Ceilings | None, path: Path | None) -> bool:
    """Print one size; True where every result was right."""
    rows: dict[str, Row] = {}
    for name in names:
        pool = multiprocessing.get_context("spawn").Pool(1)
        rows[name] = pool.apply(measure, (name, size, device, repeats))
        pool.close()  # instead of killing it: torch.compile has workers of its own
        pool.join()
    baseline = rows[names[0]].seconds
    pairs = rows[names[0]].pairs
    floor = rows[FLOOR].seconds if FLOOR in rows else math.nan
    if limits is not None:
        floor = counted_floor(size, pairs, limits)
    machine = f"{platform.machine()}, {_chip(device)}, torch {torch.__version__}"
    print(f"\n{machine}; T={size.tokens} d={size.d} d_sae={size.d_sae}", end=" ")
    print(f"with {pairs:.0f} features active per token in either run; median of {repeats}")
    heads = ("seconds", "times faster", "of the floor", "first s", "peak MiB", "error")
    print(f"{'':48}" + "".join(f"{head:>14}" for head in heads))
    right = True
    for name, row in rows.items():
        wrong = name != FLOOR and not row.error < (2e-2 if "bfloat16" in name else MAX_ERROR)
        right = right and not wrong
        ratio = "WRONG" if wrong else f"{baseline / row.seconds:.1f}"
        texts = [f"{row.seconds:.6f}", ratio, _number(row.seconds / floor, ".2f"), f"{row.first:.2f}"]
        texts += [_number(row.peak_mib, ".0f"), _number(row.error, ".1e")]
        print(f"{name:48}" + "".join(f"{text:>14}" for text in texts), flush=True)
        if path is not None:
            facts = {"machine": machine, **asdict(size), "name": name, **asdict(row), "floor": floor}
            facts |= {} if limits is None else {"ceilings": asdict(limits)}
            clean = {key: None if isinstance(x, float) and math.isnan(x) else x for key, x in facts.items()}
            with path.open("a") as file:
                file.write(json.dumps(clean) + "\n")
    return right


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"


def _chip(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"one thread of {_processor()} ({torch.backends.cpu.get_cpu_capability()})"


def _processor() -> str:
    """The name of the CPU, where the system tells it."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "an unknown CPU"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", action="append", metavar="T,D,D_SAE", help="instead of the default sizes; repeatable")
    parser.add_argument("--active", type=int, default=60, help="features active per token and run")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", action="append", metavar="TEXT", help="rows whose name holds TEXT, besides the first")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one line per row")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch finds no CUDA device")
    sizes = [tuple(map(int, size.split(","))) for size in options.size or ()] or SIZES[options.device]
    known = list(CPU if options.device == "cpu" else CUDA)
    names = [n for i, n in enumerate(known) if i == 0 or not options.only or any(text in n for text in options.only)]
    limits = ceilings() if options.device == "cuda" else None
    if limits is not None:
        print("ceilings, per second: " + ", ".join(f"{key} {value:.3g}" for key, value in asdict(limits).items()))
    fine = [
        _table(
            Size(size[0], size[1], size[2], options.active),
            options.device,
            names,
            options.repeats,
            limits,
            options.json,
        )
        for size in sizes
    ]
    return int(not all(fine))


if __name__ == "__main__":
    sys.exit(main())
