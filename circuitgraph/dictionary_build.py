"""Tensors under our names -> Dictionary, checked before anything is built.

In come tensors called as the fields of SaeWeights are, settings and a place; out comes a Dictionary in the model's dtype
and on its device, or one line that says which tensor is wrong. This module knows no file format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from circuitgraph.dictionary import Dictionary, check_fit
from circuitgraph.dictionary_sources import Place
from circuitgraph.errors import DictionaryError
from circuitgraph.model import Model
from circuitgraph_kernels import SaeWeights

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def build(name: str, tensors: Mapping[str, Tensor], place: Place, model: Model, **settings: Any) -> Dictionary:
    """The dictionary of these tensors and settings (fields of SaeWeights) at that place of the model."""
    for key, value in tensors.items():
        _check_values(name, key, value)
    _check_shapes(name, tensors)
    converted: dict[str, Any] = {key: _convert(name, key, value, model) for key, value in tensors.items()}
    if "b_gate" in converted:
        converted["b_enc"] = torch.zeros_like(converted["b_gate"])
    try:
        weights = SaeWeights(**converted, **settings)
    except ValueError as error:
        raise DictionaryError(f"dictionary {name}: {str(error).removeprefix('SaeWeights: ')}") from None
    dictionary = Dictionary(weights, place.reads, place.writes, name)
    check_fit(dictionary, model)
    return dictionary


def pick(name: str, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """{our name: tensor} for {our name: the file's name}; DictionaryError names every key that is missing."""
    missing = [key for key in names.values() if key not in tensors]
    if missing:
        raise DictionaryError(
            f"dictionary {name}: {', '.join(map(repr, missing))} is missing from its weights, which hold"
            f" {', '.join(sorted(tensors)) or 'nothing'}; download or save it again"
        )
    return {ours: tensors[theirs] for ours, theirs in names.items()}


def feature_count(name: str, value: object) -> int:
    """The k of a topk dictionary, from a file; DictionaryError unless it is a whole number."""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not whole or isinstance(value, bool):
        raise DictionaryError(f"dictionary {name}: k is {value!r}; expected the number of active features per token")
    return int(value)  # type: ignore[call-overload, no-any-return]


def _check_values(name: str, key: str, value: Tensor) -> None:
    if value.layout != torch.strided or value.is_meta or value.dtype not in _DTYPES:
        raise DictionaryError(
            f"dictionary {name}: weight {key} is {value.dtype}, {value.layout}; expected plain floating-point numbers"
        )
    if not bool(value.isfinite().all()):
        raise DictionaryError(f"dictionary {name}: weight {key} contains NaN or Inf; the file is broken")


def _check_shapes(name: str, tensors: Mapping[str, Tensor]) -> None:
    """W_enc [d_in, d_sae] and W_dec [d_sae, d_out], where the biases say what d_sae and d_out are."""
    bias = tensors["b_gate"] if "b_gate" in tensors else tensors["b_enc"]
    for key, value in (("its encoder bias", bias), ("b_dec", tensors["b_dec"])):
        if value.ndim != 1:
            raise DictionaryError(f"dictionary {name}: {key} has shape {tuple(value.shape)}; expected one dimension")
    d_sae, d_out = len(bias), len(tensors["b_dec"])
    d_in = tensors["W_enc"].numel() // max(d_sae, 1)
    for key, expected in (("W_enc", (d_in, d_sae)), ("W_dec", (d_sae, d_out))):
        shape = tuple(tensors[key].shape)
        if shape == expected:
            continue
        if shape == expected[::-1]:
            what = "it looks transposed; transpose it and save it again"
        else:
            what = "the file is broken, or its tensors are of different dictionaries"
        raise DictionaryError(f"dictionary {name}: {key} has shape {shape}; expected {expected} by its biases; {what}")


def _convert(name: str, key: str, value: Tensor, model: Model) -> Tensor:
    converted = value.to(model.device, model.dtype)
    if not bool(converted.isfinite().all()):
        raise DictionaryError(
            f"dictionary {name}: weight {key} holds {float(value.abs().max()):.3g}, more than {model.dtype} can hold;"
            " load the model in float64"
        )
    return converted
