"""Translates dictionaries of a model whose weights TransformerLens had processed to the model as it is loaded.

The translated dictionary gives the same activations here as the original in the processed model, and the model stays
as it is.

With x the activation of this model, the processed model has, at the same tokens::

    center_writing_weights   x - mean(x) in the residual stream and in what is written to it (LayerNorm models only)
    fold_value_biases        z - b_V
    fold_ln                  the output of ln2 before its gain and bias where it was after them, at the MLP's input;
                             and b_V + b_ln1 @ W_V for b_V
    center_unembed           nothing that a dictionary reads
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from circuitgraph.dictionaries.sources import DictionarySite
from circuitgraph.errors import DictionaryError
from circuitgraph.models.model import Model
from circuitgraph.nodes import STREAM_SITES, Site
from circuitgraph_kernels.weights import compute_dtype


@dataclass(frozen=True)
class Parts:
    """What a dictionary is made of.

    Args:
        tensors: By the name of the field of SaeWeights; also W_skip [d_in, d_out].
        settings: The other fields of SaeWeights.
    """

    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]


Translate = Callable[[Parts], Parts]


def translation(
    name: str, wanted: frozenset[str], site: DictionarySite, model: Model
) -> tuple[DictionarySite, Translate]:
    """Where a dictionary belongs in this model, and the function that translates its parts.

    Args:
        name: The dictionary's name, for error messages.
        wanted: The processing of the model that it was trained on.
        site: What it reads and writes there.
        model: This model.

    Raises DictionaryError if this model is itself processed in a way that the dictionary was not trained on and that
    changes what it reads or writes. The returned function raises it for a dictionary that normalises its input, if the
    processed model's activations have another norm.
    """
    has = frozenset(getattr(model, "processing", frozenset()))
    if not model.centres:  # TransformerLens leaves out what RMSNorm does not allow
        has, wanted = (names - {"center_writing_weights"} for names in (has, wanted))
    _refuse(name, wanted, has, site)
    lacking = wanted - has
    if "fold_ln" in lacking and site.reads.kind == "mlp_in":
        site = replace(site, reads=Site("ln2_normalized", site.reads.layer))
    reads_z, writes_z = (end.kind == "z" and "fold_value_biases" in wanted for end in (site.reads, site.writes))
    if "fold_value_biases" not in lacking and "fold_ln" not in lacking:
        reads_z = writes_z = False
    centred = "center_writing_weights" in lacking and site.reads.kind in STREAM_SITES

    def translate(parts: Parts) -> Parts:
        if not (reads_z or writes_z or centred):
            return parts
        wide = compute_dtype(model.dtype)
        widened = {
            key: value.to(torch.promote_types(value.dtype, wide))
            for key, value in parts.tensors.items()
            if key != "W_dec"
        }
        parts = without_input_bias(_with(parts, **widened))
        if centred:
            parts = _centred(name, parts)
        if reads_z:
            parts = _shifted(name, parts, model.value_bias(site.reads, norm="fold_ln" in lacking))
        if writes_z:
            bias = model.value_bias(site.writes, norm="fold_ln" in lacking)
            parts = _with(parts, b_dec=_sum(parts.tensors["b_dec"], bias))
        return parts

    return site, translate


def _refuse(name: str, wanted: frozenset[str], has: frozenset[str], site: DictionarySite) -> None:
    """DictionaryError if processing has taken something from this model that the dictionary needs."""
    extra = has - wanted
    kinds = {site.reads.kind, site.writes.kind}
    lost = None
    if "center_writing_weights" in extra and site.reads.kind in STREAM_SITES:
        lost = "center_writing_weights"
    elif "fold_ln" in extra and ("mlp_in" in kinds or ("z" in kinds and "fold_value_biases" in has | wanted)):
        lost = "fold_ln"
    elif "fold_value_biases" in extra and "z" in kinds:
        lost = "fold_value_biases"
    if lost:
        raise DictionaryError(
            f"dictionary {name} at {site} was trained on a model without {lost}, but this model is loaded with it;"
            " load the model without weight processing"
        )


def without_input_bias(parts: Parts) -> Parts:
    """The same dictionary with its b_dec, where that is subtracted from the input, folded into the encoder's biases."""
    if not parts.settings.get("apply_b_dec_to_input"):
        return parts
    if parts.settings.get("normalize", "none") != "none":
        return parts  # what is subtracted is b_dec in units of the norm, which stays
    tensors = parts.tensors
    parts = _with(parts, **_biases(parts, -_product(tensors["b_dec"], tensors["W_enc"])))
    return replace(parts, settings={**parts.settings, "apply_b_dec_to_input": False})


def _centred(name: str, parts: Parts) -> Parts:
    """(x - mean(x)) @ W = x @ (W - mean of each column)."""
    normalize = parts.settings.get("normalize", "none")
    if normalize == "layer_norm":  # it subtracts the mean itself
        return parts
    if normalize != "none":
        raise DictionaryError(
            f"dictionary {name} divides its input by its norm ({normalize}) and was trained on a model with"
            " center_writing_weights, where that norm is another; load the model with center_writing_weights"
        )
    changes = {}
    for key in {"W_enc", "W_skip"} & parts.tensors.keys():
        wide = _wide(parts.tensors[key])
        changes[key] = wide - wide.mean(dim=0)
    return _with(parts, **changes)


def _shifted(name: str, parts: Parts, shift: Tensor) -> Parts:
    """(x - shift) @ W = x @ W - shift @ W."""
    if parts.settings.get("normalize", "none") != "none":
        if not bool(shift.any()):
            return parts
        raise DictionaryError(
            f"dictionary {name} normalises its input and was trained on a model with fold_value_biases, where that"
            " input is another; load the model with fold_value_biases"
        )
    tensors = parts.tensors
    changes = _biases(parts, -_product(shift, tensors["W_enc"]))
    if "W_skip" in tensors:
        changes["b_dec"] = _sum(tensors["b_dec"], -_product(shift, tensors["W_skip"]))
    return _with(parts, **changes)


def _biases(parts: Parts, shift: Tensor) -> dict[str, Tensor]:
    """The encoder's biases after adding `shift` to x @ W_enc."""
    tensors = parts.tensors
    if "b_gate" not in tensors:
        return {"b_enc": _sum(tensors["b_enc"], shift)}
    scale = _wide(tensors["r_mag"]).exp()
    return {"b_gate": _sum(tensors["b_gate"], shift), "b_mag": _sum(tensors["b_mag"], shift * scale)}


def _with(parts: Parts, **changes: Tensor) -> Parts:
    return replace(parts, tensors={**parts.tensors, **changes})


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(compute_dtype(tensor.dtype))


def _sum(first: Tensor, second: Tensor) -> Tensor:
    """In the wider dtype, on the first one's device: the weights of a file are not on the model's yet."""
    return _wide(first) + _wide(second).to(first.device)


def _product(vector: Tensor, matrix: Tensor) -> Tensor:
    dtype = torch.promote_types(compute_dtype(vector.dtype), compute_dtype(matrix.dtype))
    return vector.to(matrix.device, dtype) @ matrix.to(dtype)
