"""What interventions do to the activations at a site.

A dictionary is spliced in as x + decode(edited) - decode(acts), of which only the edited features are computed: no
intervention, or one that changes nothing, leaves x as it is bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.interventions.language import Delete, Intervention, Patch, Scale, Set, SitePart, Steer
from circuitgraph.models.model import Model
from circuitgraph.nodes import Site

ZERO = "zero"


@dataclass(frozen=True, eq=False)
class RunValues:
    """The activations of one run, and what the dictionaries make of them, encoded on first use."""

    dictionaries: Dictionaries
    values: Mapping[Site, Tensor]
    _acts: dict[Site, Tensor] = field(default_factory=dict, repr=False)

    def acts(self, key: Site) -> Tensor:
        """Feature activations [batch, pos, d_sae] of the dictionary that writes at `key`."""
        if key not in self._acts:
            dictionary = self.dictionaries[key]
            self._acts[key] = dictionary.encode(self.values[dictionary.reads])
        return self._acts[key]

    def error(self, site: Site) -> Tensor:
        """What the dictionaries that write there miss, [batch, pos, d]; all of it where none does."""
        return self.dictionaries.error(site, self.values)


def sites_read(model: Model, dictionaries: Dictionaries, intervention: Intervention) -> set[Site]:
    """Every site whose value in this run the intervention needs."""
    sites: set[Site] = set()
    targets = [intervention.target]
    if isinstance(intervention, Steer | Delete):
        targets = [intervention.write]
        post = model.output_norm(intervention.write.site)
        sites |= set() if post is None else {post[1]}
    for target in targets:
        if target.part in ("feature", "error"):
            sites |= {dictionary.reads for dictionary in _touched(dictionaries, target)}
        if target.part != "feature" and not isinstance(intervention, Steer):
            sites.add(target.site)
    return sites


def sites_written(dictionaries: Dictionaries, intervention: Intervention) -> tuple[Site, ...]:
    """Every site that the intervention changes."""
    target = intervention.target
    return dictionaries[target.site].sites if target.part == "feature" else (target.site,)


def edit_rows(
    model: Model,
    dictionaries: Dictionaries,
    site: Site,
    one: Intervention,
    x: Tensor,
    run: RunValues,
    references: Mapping[str, RunValues],
) -> Tensor:
    """x [batch, pos, d] at a site after an intervention on it; `run` has what the nodes are before all changes."""
    target, at, x = one.target, one.target.span.within(x.shape[1]), x.clone()
    if isinstance(one, Steer | Delete):
        amount = one.amount if isinstance(one, Steer) else -one.amount
        x[:, at] += amount * _written(model, dictionaries, one, run, x)[:, at]
    elif target.part in ("feature", "error"):
        own = _value(model, target, run)[:, at]
        change = _new_value(model, one, own, at, references) - own
        if target.index is not None:
            dictionary = dictionaries[target.site]
            change = change[..., None] * dictionary.weights.W_dec[target.index, dictionary.columns(site)].to(x)
        x[:, at] += change
    else:
        columns = _columns(model, target)
        x[:, at, columns] = _new_value(model, one, x[:, at, columns], at, references)
    return x


def _value(model: Model, target: SitePart, run: RunValues) -> Tensor:
    """The target's value in a run, [batch, pos] for a feature, else [batch, pos, size]."""
    if target.part == "feature":
        return run.acts(target.site)[..., target.index]
    return run.error(target.site) if target.part == "error" else run.values[target.site][..., _columns(model, target)]


def _new_value(
    model: Model, one: Set | Scale | Patch, own: Tensor, at: slice, references: Mapping[str, RunValues]
) -> Tensor:
    """What the intervention makes of the value `own` at the positions `at`."""
    if isinstance(one, Set):
        return torch.full_like(own, one.value)
    if isinstance(one, Scale):
        return own * one.factor
    other = torch.zeros_like(own)
    if one.reference != ZERO:
        other = _value(model, one.target, references[one.reference])[:, at].expand_as(own)
    return other if one.keep == 0 else one.keep * own + (1 - one.keep) * other


def _written(model: Model, dictionaries: Dictionaries, one: Steer | Delete, run: RunValues, x: Tensor) -> Tensor:
    """What the node adds to the stream before the target x, [batch, pos, d_model]; one unit of it when steering."""
    node, steer = one.write, isinstance(one, Steer)
    if node.part == "feature":
        dictionary = dictionaries[node.site]
        row = dictionary.weights.W_dec[node.index].to(x)
        sites = [site for site in dictionary.sites if steer or site.output.depth <= one.target.site.depth]
        vector = torch.stack([model.write(site, row[dictionary.columns(site)]) for site in sites]).sum(0)
        written = vector.expand_as(x) if steer else run.acts(node.site)[..., node.index, None] * vector
    elif steer:
        unit = x.new_zeros(*x.shape[:2], model.width(node.site))
        unit[..., _columns(model, node)] = 1
        written = model.write(node.site, unit)
    else:
        value = run.error(node.site) if node.part == "error" else run.values[node.site]
        alone = torch.zeros_like(value)
        alone[..., _columns(model, node)] = value[..., _columns(model, node)]
        written = model.write(node.site, alone)
    post = model.output_norm(node.site)
    return written if post is None else written / run.values[post[1]]


def _columns(model: Model, target: SitePart) -> slice:
    if target.index is None:
        return slice(None)
    size = model.d_head if target.part == "head" else 1
    return slice(target.index * size, (target.index + 1) * size)


def _touched(dictionaries: Dictionaries, target: SitePart) -> list[Dictionary]:
    return [dictionaries[target.site]] if target.part == "feature" else dictionaries.writers(target.site)
