"""What is measured of a circuit, whatever it is made of: conditions, intervals, curves over size, CPR and CMD.

A circuit C of the model M is run by a `CircuitRunner`, which knows what circuits are made of: nodes of dictionaries
(`evaluation.node_circuits`) or edges between heads and MLPs (`components.run`). The statistics are the same for both.
With m the metric and 0 the circuit without anything, in which all has its baseline value,

    faithfulness             (m(C) - m(0)) / (m(M) - m(0))
    complement_faithfulness  the same of everything that is not in C; near 0 where C lacks nothing that matters
    CPR                      the area under faithfulness over the size of circuits, signed order
    CMD                      the area of |1 - faithfulness| over the size of circuits, absolute order

CPR, CMD and the sizes are MIB's (Mueller et al. 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, get_args

import torch
from torch import Tensor

from circuitgraph.attribution.runs import BaselineKind, check_baseline
from circuitgraph.errors import CircuitGraphError, did_you_mean
from circuitgraph.metrics import Metric
from circuitgraph.models.model import Model
from circuitgraph.nodes import Site
from circuitgraph_kernels import compute_dtype

EVALUATION_BASELINES: tuple[str, ...] = get_args(BaselineKind)
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # the sizes of MIB's circuits, as shares of all
ORDERS = ("absolute", "signed", "random")

C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)


class CircuitRunner(Protocol[C_contra]):
    """Runs circuits of one model on the prompts of an evaluation.

    clean_metric is the metric of the whole model, [batch]; rounding is how far roundings alone may move its mean.
    """

    @property
    def clean_metric(self) -> Tensor: ...

    @property
    def rounding(self) -> float: ...

    def metric_of(
        self,
        circuits: Sequence[C_contra],
        baseline: str,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Tensor:
        """The metric of each of n circuits, [n, batch]; what is not in a circuit has its value in the baseline."""
        ...


@dataclass(frozen=True)
class Interval:
    """A number and the bounds of 95 % of its bootstrap resamples over the examples; these are None for one example."""

    value: float
    low: float | None
    high: float | None

    def __repr__(self) -> str:
        return interval_text(self)


@dataclass(frozen=True)
class Condition:
    """A circuit C, its complement and the empty circuit 0 under one baseline and one treatment of error nodes.

    errors: "keep" (all run freely), "circuit" (those of the circuit, or complement), "stream" (those of it at
    residual-stream dictionaries), "remove" (none); None for circuits of components, which have no error nodes. m(0) has
    every error removed. Shares are None where m(M) - m(0) is no larger than rounding.
    """

    baseline: str
    errors: str | None
    metric_empty: float
    metric_circuit: float
    metric_complement: float
    faithfulness: Interval | None
    complement_faithfulness: Interval | None


@dataclass(frozen=True)
class Point:
    """The circuit of the first n_chosen nodes or edges of an order, of which n_kept are left after pruning to paths.

    Circuits of nodes are not pruned. complement_faithfulness is None for circuits of edges between components.
    """

    fraction: float
    n_chosen: int
    n_kept: int
    faithfulness: float
    complement_faithfulness: float | None


@dataclass(frozen=True)
class Curve:
    """Circuits of growing size: by |score| ("absolute"), by score ("signed") or drawn with the seed ("random")."""

    order: str
    points: tuple[Point, ...]


@dataclass(frozen=True, eq=False)
class SizedCircuit(Generic[C]):
    """A circuit of one size of a curve, before it is run; `complement` where the curve shows it too."""

    n_chosen: int
    n_kept: int
    circuit: C
    complement: C | None = None


def choose_baselines(
    given: Sequence[str] | None,
    n_pairs: int,
    *,
    corrupted: bool,
    own: str | None = None,
    known: Sequence[str] = EVALUATION_BASELINES,
) -> list[str]:
    """The names of the baselines to measure, each once, the graph's own first.

    Args:
        given: What the caller asked for; None for all that the prompts allow.
        n_pairs: How many prompt pairs there are; mean and resample need two.
        corrupted: Whether the pairs have corrupted prompts, which all baselines but zero are made of.
        own: The baseline that the graph was built with, which is always measured.
        known: The baselines that are measured where the caller names none.

    Raises CircuitGraphError for a name that is unknown, or that these prompts do not allow.
    """
    if given is None:
        given = [name for name in known if name == "zero" or (corrupted and (n_pairs > 1 or name == "corrupted"))]
    names = list(dict.fromkeys([*([own] if own else []), *given])) or ["corrupted" if corrupted else "zero"]
    for name in names:
        if name not in EVALUATION_BASELINES:
            raise CircuitGraphError(
                f"baseline {name!r} is unknown; expected one of {', '.join(EVALUATION_BASELINES)}."
                f"{did_you_mean(name, EVALUATION_BASELINES)}"
            )
        check_baseline(name, n_pairs, has_corrupted=corrupted)
    return names


def metric_rounding(model: Model, metric: Metric, logits: Tensor, recorded: Mapping[Site, Tensor]) -> float:
    """How far the roundings of a forward pass may move the metric, mean over the examples.

    The metric adds up terms of size |dm/dlogit * logit|, or reads numbers of its own size inside the model. Each
    carries the roundings of a product of d_model terms, and of 2 n_layers + 1 sums that were stored in the model's
    dtype; the roundings of n steps grow as sqrt(n).

    Args:
        model: The model that ran.
        metric: The metric of its logits.
        logits: The clean logits, [batch, pos, vocab].
        recorded: What the metric reads besides the logits, [batch, pos, d] each.
    """
    with torch.enable_grad():
        leaf = logits.detach().clone().requires_grad_()
        values = metric(leaf, recorded)
        gradient = None
        if values.requires_grad:
            (gradient,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
    terms = torch.zeros_like(values) if gradient is None else (gradient * leaf).flatten(1).abs().sum(1)
    size = float(torch.maximum(values.abs(), terms).detach().mean())
    computed = float(torch.finfo(compute_dtype(model.dtype)).eps)
    return size * (model.eps * math.sqrt(2 * model.n_layers + 1) + computed * math.sqrt(model.d_model))


def total_effect(clean: float, empty: float, rounding: float) -> float | None:
    """m(M) - m(0), means over the examples; None where it is no larger than rounding."""
    return clean - empty if abs(clean - empty) > rounding else None


def ratio(
    numerator: Tensor, denominator: Tensor, *, rounding: float = 0.0, seed: int, n_bootstrap: int = 1000
) -> Interval | None:
    """mean(numerator) / mean(denominator) with its bootstrap interval; None where the denominator is only rounding.

    Examples are drawn together for both means. Draws whose denominator is only rounding have no ratio and are left out.

    Args:
        numerator: One number per example, [batch].
        denominator: The same examples, [batch].
        rounding: The largest |mean(denominator)| that says nothing.
        seed: Of the draws.
        n_bootstrap: How many draws.
    """
    if abs(float(denominator.mean())) <= rounding:
        return None
    value, n = float(numerator.mean() / denominator.mean()), len(numerator)
    if n < 2:
        return Interval(value, None, None)
    rows = torch.randint(n, (n_bootstrap, n), generator=torch.Generator().manual_seed(seed)).to(numerator.device)
    below = denominator[rows].mean(1)
    drawn = (numerator[rows].mean(1) / below)[below.abs() > rounding].double()
    if not len(drawn):
        return Interval(value, None, None)
    bounds = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64, device=drawn.device))
    return Interval(value, float(bounds[0]), float(bounds[1]))


def measure_conditions(
    runner: CircuitRunner[C],
    baselines: Sequence[str],
    circuits: Mapping[str | None, tuple[C, C]],
    nothing: C,
    *,
    seed: int,
) -> tuple[Condition, ...]:
    """One condition for every baseline and treatment of errors.

    Args:
        runner: What runs circuits.
        baselines: The baselines' names.
        circuits: Treatment of errors -> (the circuit, its complement).
        nothing: The empty circuit, m(0).
        seed: Of the bootstrap.
    """
    conditions = []
    every = [nothing, *(circuit for both in circuits.values() for circuit in both)]
    for baseline in baselines:
        empty, *measured = runner.metric_of(every, baseline)
        total = runner.clean_metric - empty
        for errors, inside, outside in zip(circuits, measured[::2], measured[1::2], strict=True):
            conditions.append(
                Condition(
                    baseline,
                    errors,
                    metric_empty=float(empty.mean()),
                    metric_circuit=float(inside.mean()),
                    metric_complement=float(outside.mean()),
                    faithfulness=ratio(inside - empty, total, rounding=runner.rounding, seed=seed),
                    complement_faithfulness=ratio(outside - empty, total, rounding=runner.rounding, seed=seed),
                )
            )
    return tuple(conditions)


def circuit_sizes(n: int) -> list[int]:
    """How many of n nodes or edges MIB's circuits have, one size per fraction."""
    return [int(n * fraction) for fraction in FRACTIONS]


def size_curves(
    runner: CircuitRunner[C],
    baseline: str,
    orders: Mapping[str, Sequence[SizedCircuit[C]]],
    empty: float,
    total: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Curve, ...]:
    """One curve per order.

    Args:
        runner: What runs circuits.
        baseline: What is outside the circuits.
        orders: Order -> its circuits, one for each of FRACTIONS.
        empty: m(0), mean over the examples.
        total: m(M) - m(0).
        progress: Told (circuits done, circuits in all).
    """
    circuits = [
        circuit
        for sized in orders.values()
        for point in sized
        for circuit in (point.circuit, point.complement)
        if circuit is not None
    ]
    shares = iter(((runner.metric_of(circuits, baseline, progress).double().mean(1) - empty) / total).tolist())
    return tuple(
        Curve(
            order,
            tuple(
                Point(fraction, s.n_chosen, s.n_kept, next(shares), None if s.complement is None else next(shares))
                for fraction, s in zip(FRACTIONS, sized, strict=True)
            ),
        )
        for order, sized in orders.items()
    )


def area(heights: Sequence[float]) -> float:
    """The area under heights at the FRACTIONS, by the trapezoid rule on their linear axis."""
    return float(torch.trapezoid(*(torch.tensor(numbers, dtype=torch.float64) for numbers in (heights, FRACTIONS))))


def cpr(curve: Curve) -> float:
    """The area under faithfulness from 0.1 % to 100 %, which MIB takes of the signed order."""
    return area([point.faithfulness for point in curve.points])


def cmd(curve: Curve) -> float:
    """The area of |1 - faithfulness| from 0.1 % to 100 %, which MIB takes of the absolute order."""
    return area([abs(1 - point.faithfulness) for point in curve.points])


def number_text(value: float, places: int = 4) -> str:
    """The number rounded, 0 without a sign."""
    return f"{round(value, places) + 0.0:.{places}f}"


def interval_text(interval: Interval | None) -> str:
    """A number with its bounds, to three places; "undefined" for None."""
    if interval is None:
        return "undefined"
    bounds = ""
    if interval.low is not None and interval.high is not None:
        bounds = f" [{number_text(interval.low, 3)}, {number_text(interval.high, 3)}]"
    return f"{number_text(interval.value, 3)}{bounds}"
