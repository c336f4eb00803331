"""Which interventions do not fit: found before anything runs, and named."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Collection

import torch

from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.errors import CircuitGraphError, did_you_mean
from circuitgraph.interventions.edits import sites_written
from circuitgraph.interventions.language import (
    Delete,
    Intervention,
    Interventions,
    Patch,
    Set,
    SitePart,
    Span,
    Steer,
    interventions_of,
)
from circuitgraph.interventions.references import References
from circuitgraph.models.model import Model
from circuitgraph.nodes import Site

HEADS_AND_NEURONS = {"head": "z", "neuron": "mlp_post"}  # the sites that are made of them
STREAM_SITES = ("embed", "resid_pre", "attn_out", "mlp_out", "resid_post")
VECTOR_SITES = (*STREAM_SITES, *HEADS_AND_NEURONS.values())


def check_interventions(
    model: Model,
    dictionaries: Dictionaries,
    interventions: Interventions,
    *,
    n_pos: int,
    references: References,
    frozen: Collection[Site] = (),
) -> tuple[Intervention, ...]:
    """The interventions, each of which names something that is there and no two of which set one thing twice.

    Args:
        model: The model.
        dictionaries: Its dictionaries.
        interventions: Interventions or their text.
        n_pos: How many tokens the prompts have.
        references: The runs that can be patched from.
        frozen: Sites that keep the value of the run without interventions.

    Raises CircuitGraphError for an unknown site, feature, head or neuron, a position beyond the prompt, a run that
    does not exist, a dictionary that is absent, a conflict, or a change that a frozen site would hide.
    """
    checked = interventions_of(interventions)
    for one in checked:
        try:
            _check_target(model, dictionaries, one.target)
            _check_span(one.target.span, n_pos)
            _check_size(model, one)
            _check_kind(model, dictionaries, one, references)
            _check_frozen(dictionaries, one, frozen)
        except CircuitGraphError as error:
            raise CircuitGraphError(f"intervention {str(one)!r}: {error}") from None
    for one, other in itertools.combinations(checked, 2):
        _check_conflict(dictionaries, one, other)
    return checked


def _check_size(model: Model, one: Intervention) -> None:
    """CircuitGraphError for a number that is no number, or beyond what the model computes in."""
    largest = torch.finfo(model.layout.dtype).max
    for name in ("value", "factor", "amount", "keep"):
        number = getattr(one, name, 0.0)
        if not isinstance(number, numbers.Real) or not abs(float(number)) <= largest:
            raise CircuitGraphError(f"{name} is {number!r}; expected a number of at most {largest:.3g} in size")


def _check_target(model: Model, dictionaries: Dictionaries, target: SitePart) -> None:
    site, part, index = target.site, target.part, target.index
    if not model.has(site):
        raise CircuitGraphError(
            f"{model.name} has no site {site}; it has {model.n_layers} layers (0-{model.n_layers - 1})"
        )
    if part == "feature":
        if site not in dictionaries:
            known = [str(key) for key in dictionaries]
            raise CircuitGraphError(
                f"no dictionary writes first at {site}; there are dictionaries at {', '.join(known) or 'no site'}."
                f"{did_you_mean(str(site), known)}"
            )
        if index is None or index >= dictionaries[site].d_sae:
            raise CircuitGraphError(
                f"the dictionary at {site} has no feature {index}; it has 0-{dictionaries[site].d_sae - 1}"
            )
    elif part in HEADS_AND_NEURONS:
        if site.kind != HEADS_AND_NEURONS[part]:
            raise CircuitGraphError(
                f"there are no {part}s at {site}; they are at {HEADS_AND_NEURONS[part]}.{site.block}"
            )
        n = model.n_heads if part == "head" else model.width(site)
        if index is None or index >= n:
            raise CircuitGraphError(f"{site} has no {part} {index}; it has 0-{n - 1}")
    elif part == "error" and not dictionaries.writers(site):
        raise CircuitGraphError(
            f"no dictionary writes at {site}, so nothing there is an error; {site} alone means the whole vector"
        )
    elif part == "vector" and site.kind not in VECTOR_SITES:
        raise CircuitGraphError(f"nothing can intervene at {site}; expected one of {', '.join(VECTOR_SITES)}")


def _check_span(span: Span, n_pos: int) -> None:
    last = span.start if span.stop is None else span.stop - 1
    if max(span.start, last) >= n_pos:
        raise CircuitGraphError(
            f"position {max(span.start, last)} is beyond the prompt, which has {n_pos} tokens (0-{n_pos - 1})"
        )


def _check_kind(model: Model, dictionaries: Dictionaries, one: Intervention, references: References) -> None:
    if isinstance(one, Set) and one.value != 0 and one.target.part not in ("feature", "neuron"):
        raise CircuitGraphError(
            f"{one.target.part} {one.target.name} is many numbers and cannot be set to {one.value:g}; set it to 0,"
            " scale it, or patch it from another run"
        )
    if isinstance(one, Patch) and one.reference not in references.names:
        reason = references.missing.get(one.reference)
        raise CircuitGraphError(
            f"there is no run {one.reference!r} to patch from{f', since {reason}' if reason else ''}; expected one of"
            f" {', '.join(sorted(references.names))}.{did_you_mean(one.reference, references.names)}"
        )
    if isinstance(one, Steer | Delete):
        if one.target.part != "vector" or one.target.site.kind not in STREAM_SITES:
            raise CircuitGraphError(
                f"only the residual stream can be added to: expected a site among {', '.join(STREAM_SITES)}, without a"
                " part"
            )
        _check_target(model, dictionaries, one.write)
        if isinstance(one, Steer) and one.write.part not in ("feature", "neuron"):
            raise CircuitGraphError(f"{one.write.name} writes no fixed vector; steer with a feature or a neuron")
        if isinstance(one, Delete) and one.write.site.output.depth > one.target.site.depth:
            raise CircuitGraphError(f"{one.write.name} is written after {one.target.site}; there is nothing to delete")


def _check_frozen(dictionaries: Dictionaries, one: Intervention, frozen: Collection[Site]) -> None:
    """A frozen site right behind a changed one would hide the change; at the changed site itself the two add up."""
    for site in sites_written(dictionaries, one):
        if site.output != site and site.output in frozen:
            raise CircuitGraphError(f"it would change nothing, since {site.output} is frozen behind {site}")


def _check_conflict(dictionaries: Dictionaries, one: Intervention, other: Intervention) -> None:
    """CircuitGraphError if both say what one thing is, somewhere."""
    if isinstance(one, Steer | Delete) or isinstance(other, Steer | Delete):
        for delete, change in ((one, other), (other, one)):
            if not isinstance(delete, Delete) or isinstance(change, Steer | Delete):
                continue
            if delete.write.name == change.target.name and delete.target.span.overlaps(change.target.span):
                raise CircuitGraphError(
                    f"interventions {str(one)!r} and {str(other)!r} conflict: what {change.target.name} writes is"
                    " changed, so deleting it is not defined"
                )
        return
    a, b = one.target, other.target
    if not a.span.overlaps(b.span) or not set(sites_written(dictionaries, one)) & set(
        sites_written(dictionaries, other)
    ):
        return
    together = {a.part, b.part} <= {"feature", "error"} or a.part == b.part != "vector"
    if a.name == b.name or not together:
        raise CircuitGraphError(
            f"interventions {str(one)!r} and {str(other)!r} conflict: both say what {a.site} is at the same positions"
        )
