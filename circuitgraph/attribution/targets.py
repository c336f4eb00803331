"""Targets: what a graph explains in place of a metric. Logits, their differences, features at positions, directions.

An `Objective` is a weighted sum of targets. It serves as the metric, and each of its targets is a node at the top of
the graph, with an input direction by which edges reach it. `attribution.objective` makes one of the caller's words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitgraph.attribution.runs import CleanRun, CorruptedRun
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.metrics import Metric
from circuitgraph.models.model import Model
from circuitgraph.nodes import Node, Site
from circuitgraph_kernels import pre_activations


@dataclass(frozen=True, eq=False)
class Probe:
    """A direction to explain: vector . activation at a site and position.

    Args:
        site: Where the activation is read.
        vector: The direction.
        pos: The position; a negative one counts from the end.
        name: What the graph calls it.
    """

    site: Site | str
    vector: Tensor
    pos: int = -1
    name: str = ""


# A token's text, a feature's node such as "mlp_out.3/f17@5", two tokens whose logits are subtracted, or a direction.
TargetSpec = str | tuple[str, str] | Probe


@dataclass(frozen=True)
class LogitTarget:
    """sum_j c_j (logit_j - mean logit) at the last position, for some tokens j."""

    name: str
    tokens: tuple[int, ...]
    coefficients: tuple[float, ...] = (1.0,)
    sites: tuple[Site, ...] = ()  # nothing but the logits is measured

    def value(
        self, logits: Float[Tensor, "batch pos vocab"], recorded: Mapping[Site, Tensor]
    ) -> Float[Tensor, " batch"]:
        """Its value in a run."""
        last = logits[:, -1]
        coefficients = torch.tensor(self.coefficients, dtype=last.dtype, device=last.device)
        return last[:, list(self.tokens)] @ coefficients - last.mean(-1) * coefficients.sum()

    def on_logits(self, like: Float[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
        """Its coefficient on every logit, on the device and in the precision of `like`."""
        coefficients = torch.full_like(like, -sum(self.coefficients) / len(like))
        for token, coefficient in zip(self.tokens, self.coefficients, strict=True):
            coefficients[token] += coefficient
        return coefficients

    def record(self) -> dict[str, Any]:
        """What a graph keeps of it."""
        return {"tokens": list(self.tokens), "coefficients": list(self.coefficients)}


@dataclass(frozen=True, eq=False)
class SiteTarget:
    """vector . x at a site and position, or the pre-activation of a dictionary's feature that reads x.

    Args:
        name: What the graph calls it.
        site: Where x is read.
        pos: The position.
        vector: The direction: for a feature its input direction.
        measured_at: Where x is recorded: `site`, or the MLP's input for ln2_normalized, which not every model computes.
        gain: Of the norm, by which what is recorded there is divided, None for 1.
        shift: The bias of the norm, which is subtracted before.
        dictionary: The dictionary of a feature, None for a direction.
        feature: Its index.
    """

    name: str
    site: Site
    pos: int
    vector: Tensor
    measured_at: Site
    gain: Tensor | None = None
    shift: Tensor | None = None
    dictionary: Dictionary | None = None
    feature: int | None = None

    @property
    def sites(self) -> tuple[Site, ...]:
        """What its value is computed from besides the logits."""
        return (self.measured_at,)

    def value(
        self, logits: Float[Tensor, "batch pos vocab"], recorded: Mapping[Site, Tensor]
    ) -> Float[Tensor, " batch"]:
        """Its value in a run, without the dictionary's scale where it normalises what it reads."""
        x = recorded[self.measured_at][:, self.pos]
        x = x if self.shift is None else x - self.shift
        x = x if self.gain is None else x / self.gain
        if self.dictionary is None:
            return x @ self.vector
        return pre_activations(x, self.dictionary.weights)[:, self.feature]

    def record(self) -> dict[str, Any]:
        """What a graph keeps of it."""
        if self.dictionary is not None:
            return {"node": self.name}
        return {"site": str(self.site), "pos": self.pos, "vector": self.vector.tolist()}


Target = LogitTarget | SiteTarget


@dataclass(frozen=True, eq=False)
class Objective:
    """Targets and their weights in the metric, which is their weighted sum."""

    targets: tuple[Target, ...]
    weights: tuple[float, ...]

    def metric(self) -> Metric:
        """The weighted sum, called "logits" if all targets are logits, else by its only target, or "targets"."""
        weighted = list(zip(self.targets, self.weights, strict=True))

        def targets(logits: Tensor, recorded: Mapping[Site, Tensor] | None = None) -> Tensor:
            values = [weight * target.value(logits, recorded or {}) for target, weight in weighted]
            return torch.stack(values).sum(0)

        plain = all(isinstance(target, LogitTarget) and len(target.tokens) == 1 for target in self.targets)
        name = "logits" if plain else self.targets[0].name if len(self.targets) == 1 else "targets"
        sites = {site for target in self.targets for site in target.sites}
        return Metric(name, targets, tuple(sorted(sites)))

    @property
    def reads(self) -> list[Site]:
        """The sites where the targets inside the model read."""
        return [target.site for target in self.targets if isinstance(target, SiteTarget)]

    def nodes(self, n_pos: int) -> list[Node]:
        """The node of each target in a graph of so many positions."""
        nodes = []
        for i, target in enumerate(self.targets):
            if isinstance(target, SiteTarget):
                nodes.append(Node("probe", target.site, target.pos, i))
            elif target.coefficients == (1.0,):
                nodes.append(Node("logit", Site("logit"), n_pos - 1, target.tokens[0]))
            else:
                nodes.append(Node("probe", Site("logit"), n_pos - 1, i))
        return nodes

    def record(self) -> list[dict[str, Any]]:
        """The targets as a graph keeps them; `objective.recorded_objective` reads them."""
        pairs = zip(self.targets, self.weights, strict=True)
        return [{"name": target.name, "weight": weight} | target.record() for target, weight in pairs]


@dataclass(frozen=True, eq=False)
class TargetNode:
    """A target as a node at the top of the graph.

    Args:
        node: The node.
        name: What the graph calls it.
        weight: d metric / d target.
        clean: Its values in the clean run.
        corrupted: Its values in the corrupted run, None where there is none.
        gradient: d target / d(end of the stream); None for a target inside the model.
        reads: Where a target inside the model reads,
        vector: and its input direction there.
    """

    node: Node
    name: str
    weight: Float[Tensor, " batch"]
    clean: Float[Tensor, " batch"]
    corrupted: Float[Tensor, " batch"] | None
    gradient: Float[Tensor, "batch pos d_model"] | None = None
    reads: Site | None = None
    vector: Float[Tensor, " d"] | None = None


def target_nodes(
    model: Model, objective: Objective, clean: CleanRun, corrupted: CorruptedRun | None
) -> list[TargetNode]:
    """One node per target, with the final norm's scale and the slope of a soft cap on the logits of the clean run."""
    values = clean.values
    stream, scale = values[Site("resid_post", model.n_layers - 1)], values.get(Site("final_scale"))
    nodes = objective.nodes(stream.shape[1])
    made = []
    for target, weight, node in zip(objective.targets, objective.weights, nodes, strict=True):
        of_clean = target.value(clean.logits, values)
        of_corrupted = None if corrupted is None else target.value(corrupted.logits, corrupted.values)
        weights = torch.full_like(of_clean, weight)
        if isinstance(target, SiteTarget):
            vector = target.vector.to(stream)
            made.append(
                TargetNode(node, target.name, weights, of_clean, of_corrupted, reads=target.site, vector=vector)
            )
            continue
        last = clean.logits[:, -1]
        vector = model.unembedding(target.on_logits(last[0]), last).to(stream)
        gradient = torch.zeros_like(stream)
        gradient[:, -1] = vector if scale is None else vector / scale[:, -1]
        made.append(TargetNode(node, target.name, weights, of_clean, of_corrupted, gradient=gradient))
    return made
