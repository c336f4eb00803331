"""What a graph explains: the metric, the likeliest logits, given tokens, a feature or a direction at a position.

In come the clean and baseline runs; out come `Target`s, each with the reading vector or probe by which edges reach it and
its weight in the metric. This module knows no edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitgraph.errors import MetricError
from circuitgraph.metrics import Metric
from circuitgraph.model import Model
from circuitgraph.nodes import Node, Site

LOGIT_MASS = 0.95
MAX_LOGITS = 10


@dataclass(frozen=True, eq=False)
class Target:
    """A node at the top of the graph. weight [batch] is d metric / d target; gradient [batch, pos, d_model] is d target / d
    stream at its end; clean, baseline [batch] its values in both runs. token: the text of a logit's token."""

    node: Node
    weight: Tensor
    gradient: Tensor
    clean: Tensor
    baseline: Tensor
    token: str | None = None


@dataclass(frozen=True)
class LogitTargets:
    """Token ids and their weights, which sum to 1: the metric is their weighted mean logit above the mean of all."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]

    def metric(self) -> Metric:
        """sum_i w_i (logit_i - mean logit) of the last position."""

        def top_logits(logits: Tensor) -> Tensor:
            last = logits[:, -1]
            weights = torch.tensor(self.weights, dtype=last.dtype, device=last.device)
            return last[:, list(self.tokens)] @ weights - last.mean(-1) * weights.sum()

        return Metric("logits", top_logits)


def likeliest_logits(logits: Tensor, *, mass: float = LOGIT_MASS, limit: int = MAX_LOGITS) -> LogitTargets:
    """The most likely next tokens after the last position until they have that probability mass, at most `limit`.

    Probabilities are means over the examples and become the weights, scaled to sum to 1.
    """
    top = logits[:, -1].softmax(-1).mean(0).topk(min(limit, logits.shape[-1]))
    n = min(int((top.values.cumsum(0) < mass).sum()) + 1, len(top.values))
    chosen = top.values[:n] / top.values[:n].sum()
    return LogitTargets(tuple(top.indices[:n].tolist()), tuple(chosen.tolist()))


def given_logits(model: Model, tokens: Sequence[str]) -> LogitTargets:
    """The logits of these tokens with equal weights. MetricError for a text that is not one known token, a token that is
    given twice, or none at all."""
    if not tokens:
        raise MetricError("targets is an empty list; expected token texts such as ' Mary'")
    ids: list[int] = []
    for text in tokens:
        if not isinstance(text, str):
            raise MetricError(f"target {text!r} is {type(text).__name__}; expected a token's text such as ' Mary'")
        found = model.continuation(text)
        if len(found) != 1:
            raise MetricError(
                f"target {text!r} is {len(found)} tokens; expected one token, with its leading space if it has one"
            )
        if found[0] == model.unknown_token:
            raise MetricError(f"target {text!r} is not in the model's vocabulary")
        if found[0] in ids:
            raise MetricError(f"target {text!r} is given twice, as token {found[0]}; give every token once")
        ids.append(found[0])
    return LogitTargets(tuple(ids), (1 / len(ids),) * len(ids))


def logit_targets(
    model: Model, chosen: LogitTargets, clean: Tensor, baseline: Tensor, stream: Tensor, scale: Tensor | None
) -> list[Target]:
    """One target per logit (less the mean logit) at the last position.

    clean, baseline: logits [batch, pos, vocab] of both runs; stream [batch, pos, d_model] at the end and the final norm's
    scale [batch, pos, 1] in the clean run, which is frozen. A soft cap on the logits is not part of it.
    """
    vectors = model.unembedding(chosen.tokens)
    targets = []
    for i, token in enumerate(chosen.tokens):
        reading = torch.zeros_like(stream)
        reading[:, -1] = vectors[i] if scale is None else vectors[i] / scale[:, -1]
        values = [run[:, -1, token] - run[:, -1].mean(-1) for run in (clean, baseline)]
        node = Node("logit", Site("logit"), stream.shape[1] - 1, token)
        weight = torch.full_like(values[0], chosen.weights[i])
        text = model.token_strings([token])[0]
        targets.append(Target(node, weight, reading, values[0], values[1], text))
    return targets
