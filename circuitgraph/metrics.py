"""Metrics: what an experiment measures of a model's logits, one number per example.

The named metrics read the logits at the last position. A function of the caller's may read any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitgraph.errors import MetricError, did_you_mean
from circuitgraph.nodes import Site
from circuitgraph.settings import METRICS

MetricFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Metric:
    """A function of a run that gives one number per example; larger means that the model does the task better.

    Args:
        name: What reports call it.
        function: logits [batch, pos, vocab] -> [batch]; with `sites`, (logits, {site: activations}) -> [batch].
        sites: Where the run must be recorded for it.
    """

    name: str
    function: Callable[..., Tensor]
    sites: tuple[Site, ...] = ()

    def __call__(self, logits: Tensor, recorded: Mapping[Site, Tensor] | None = None) -> Tensor:
        """The metric of each example, [batch].

        Args:
            logits: [batch, pos, vocab].
            recorded: Activations at `sites`.

        Raises MetricError if the function returns anything else, NaN or Inf, or loses the gradient.
        """
        values = self.function(logits, recorded) if self.sites else self.function(logits)
        if not isinstance(values, Tensor) or values.shape != logits.shape[:1]:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise MetricError(
                f"metric {self.name!r} returned {shape}; expected one number per example, shape ({len(logits)},)"
            )
        detached = logits.requires_grad and not values.requires_grad and not self.sites
        if not values.is_floating_point() or detached:
            raise MetricError(
                f"metric {self.name!r} has no gradient (dtype {values.dtype}); it must be differentiable by the logits"
            )
        if not bool(values.isfinite().all()):
            row = int((~values.isfinite()).nonzero()[0])
            raise MetricError(
                f"metric {self.name!r} is {float(values[row])} for example {row}; expected a finite number"
            )
        return values


def _logit_difference(logits: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    return (logits * right).sum(-1) / right.sum(-1) - (logits * wrong).sum(-1) / wrong.sum(-1)


def _probability_difference(logits: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    return (logits.softmax(-1) * (right - wrong)).sum(-1)


def _logit(logits: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    return (logits * right).sum(-1) / right.sum(-1)


def _log_probability(logits: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    return logits.log_softmax(-1).masked_fill(right == 0, -torch.inf).logsumexp(-1)


# name -> (function of the last position's logits and the 0/1 masks of right and wrong tokens, needs wrong answers)
_NAMED = {
    "logit_difference": (_logit_difference, True),
    "probability_difference": (_probability_difference, True),
    "logit": (_logit, False),
    "log_probability": (_log_probability, False),
}


def build_metric(
    metric: str | MetricFunction, answers: Sequence[Sequence[int]], wrong_answers: Sequence[Sequence[int]]
) -> Metric:
    """The metric of that name, or the given function as one.

        logit_difference        mean logit of the answers - mean logit of the wrong answers
        probability_difference  summed probability of the answers - that of the wrong answers
        logit                   mean logit of the answers
        log_probability         log of the summed probability of the answers

    Args:
        metric: A name, or a function logits [batch, pos, vocab] -> [batch].
        answers: Token ids of the right answers, one list per example.
        wrong_answers: Those of the wrong answers.

    Raises MetricError for an unknown name, and for examples without the answers that the metric needs.
    """
    if callable(metric):
        return Metric(getattr(metric, "__name__", type(metric).__name__), metric)
    if metric not in _NAMED:
        raise MetricError(
            f"metric {metric!r} is unknown; expected one of {', '.join(METRICS)}, or a function"
            f" from logits [batch, pos, vocab] to [batch].{did_you_mean(metric, METRICS)}"
        )
    function, needs_wrong = _NAMED[metric]
    for i, (right, wrong) in enumerate(zip(answers, wrong_answers, strict=True)):
        if not right or (needs_wrong and not wrong):
            side = "wrong answer" if right else "answer"
            raise MetricError(f"metric {metric!r} needs at least one {side} for every pair; pair {i + 1} has none")

    def named(logits: Tensor) -> Tensor:
        last = logits[:, -1]
        return function(last, _mask(last, answers), _mask(last, wrong_answers))

    return Metric(metric, named)


def _mask(last: Tensor, ids: Sequence[Sequence[int]]) -> Tensor:
    """[batch, vocab], 1 at each example's ids."""
    if len(last) != len(ids):
        raise MetricError(f"the metric was built for {len(ids)} examples and got logits of {len(last)}")
    mask = torch.zeros(len(ids), last.shape[-1])
    for row, tokens in enumerate(ids):
        mask[row, list(tokens)] = 1.0
    return mask.to(last)
