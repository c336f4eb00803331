"""Dictionaries of other publishers: Gemma Scope's params files and dictionary_learning's ae.pt.

In come a file and the place given for it, which most of these files do not name; out comes a Dictionary. Weights are used
as stored: where a publisher renormalises decoders on loading, activations differ by that factor and effects do not. This
module knows nothing of sae-lens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from circuitgraph.dictionaries.build import (
    Request,
    build,
    check_layer,
    feature_count,
    pick,
    refuse_unknown,
    short_name,
)
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.dictionaries.files import from_reader, from_safetensors, read_json, read_npz, read_state_dict
from circuitgraph.dictionaries.processing import Parts
from circuitgraph.dictionaries.sources import DictionarySite, agreed_site, site_of_module
from circuitgraph.errors import DictionaryError

_PLAIN = {key: key for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
_THRESHOLD = {"threshold": "threshold"}


# Gemma Scope -------------------------------------------------------------------------------------------------


def read_gemma_scope(path: Path, request: Request) -> Dictionary:
    """An .npz file as Gemma Scope publishes it: jumprelu, b_dec not subtracted from the input."""
    name = short_name(path)
    if any("embedding" in part for part in path.parts[:-1]):
        raise DictionaryError(
            f"dictionary {name} is one of Gemma Scope's for embeddings, which are scaled; not supported"
        )
    place = agreed_site(name, None, request.place)
    check_layer(name, _layer_of(path), place)

    def interpret(tensors: Mapping[str, Tensor]) -> Parts:
        picked = pick(name, tensors, _PLAIN | _THRESHOLD)
        refuse_unknown(name, tensors, {*_PLAIN, *_THRESHOLD}, "Gemma Scope")
        return Parts(picked, {"activation": "jumprelu"})

    return build(name, from_reader(lambda: read_npz(path, name)), interpret, place, request)


def read_gemma_scope_2(path: Path, request: Request) -> Dictionary:
    """A params.safetensors file of Gemma Scope 2, placed by the config.json beside it if that names its modules."""
    name = short_name(path.parent)
    config = path.parent / "config.json"
    cfg = read_json(config, name) if config.is_file() else {}
    reads = site_of_module(str(cfg.get("hf_hook_point_in")))
    writes = site_of_module(str(cfg.get("hf_hook_point_out"))) if cfg.get("hf_hook_point_out") else reads
    place = agreed_site(name, DictionarySite(reads, writes) if reads and writes else None, request.place)
    check_layer(name, _layer_of(path), place)

    def interpret(tensors: Mapping[str, Tensor]) -> Parts:
        return gemma_scope_2(name, tensors)

    return build(name, from_safetensors([path], name), interpret, place, request)


def gemma_scope_2(name: str, tensors: Mapping[str, Tensor]) -> Parts:
    """The tensors of Gemma Scope 2: jumprelu; affine_skip_connection is [d_in, d_out] as ours."""
    names = {"W_enc": "w_enc", "b_enc": "b_enc", "W_dec": "w_dec", "b_dec": "b_dec"} | _THRESHOLD
    if "affine_skip_connection" in tensors:
        names["W_skip"] = "affine_skip_connection"
    picked = pick(name, tensors, names)
    refuse_unknown(name, tensors, set(names.values()), "Gemma Scope 2")
    return Parts(picked, {"activation": "jumprelu"})


def _layer_of(path: Path) -> int | None:
    return next((int(m[1]) for part in reversed(path.parts[:-1]) if (m := re.match(r"layer_(\d+)(?=_|$)", part))), None)


# dictionary_learning -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """One class of dictionary_learning: its keys under our names, and the fields of SaeWeights it means."""

    activation: str
    names: dict[str, str]
    other: frozenset[str] = frozenset()  # keys that are no weights
    settings: dict[str, Any] = field(default_factory=lambda: {"apply_b_dec_to_input": True})


_LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
_TOP_K = _LINEAR | {"b_enc": "encoder.bias", "b_dec": "b_dec"}
_GATED = {"b_dec": "decoder_bias", "r_mag": "r_mag", "b_gate": "gate_bias", "b_mag": "mag_bias"}
_KINDS = {
    "AutoEncoder": _Kind("relu", _LINEAR | {"b_enc": "encoder.bias", "b_dec": "bias"}),
    "GatedAutoEncoder": _Kind("gated", _LINEAR | _GATED),
    "AutoEncoderTopK": _Kind("topk", _TOP_K, frozenset({"k", "threshold"})),
    "BatchTopKSAE": _Kind("batchtopk", _TOP_K | _THRESHOLD, frozenset({"k"})),
    "MatryoshkaBatchTopKSAE": _Kind("batchtopk", _PLAIN | _THRESHOLD, frozenset({"k", "group_sizes"})),
    "JumpReluAutoEncoder": _Kind("jumprelu", _PLAIN | _THRESHOLD, settings={"apply_b_dec_to_input": False}),
}


def read_dictionary_learning(path: Path, request: Request) -> Dictionary:
    """An ae.pt file as dictionary_learning writes it, with the config.json beside it if there is one."""
    name = short_name(path.parent)
    config = path.parent / "config.json"
    trainer = read_json(config, name).get("trainer") if config.is_file() else None
    trainer = trainer if isinstance(trainer, dict) else {}
    place = agreed_site(name, None, request.place)
    check_layer(name, trainer.get("layer"), place)

    def interpret(tensors: Mapping[str, Tensor]) -> Parts:
        return _dictionary_learning(name, tensors, trainer)

    return build(name, from_reader(lambda: read_state_dict(path, name)), interpret, place, request)


def _dictionary_learning(name: str, tensors: Mapping[str, Tensor], trainer: Mapping[str, Any]) -> Parts:
    class_name = str(trainer.get("dict_class") or _class_of_keys(name, set(tensors)))
    if class_name not in _KINDS:
        raise DictionaryError(f"dictionary {name} is a {class_name}; supported are {', '.join(_KINDS)}")
    kind = _KINDS[class_name]
    picked = pick(name, tensors, kind.names)
    refuse_unknown(name, tensors, {*kind.names.values(), *kind.other}, class_name)
    if "encoder.weight" in tensors:  # torch.nn.Linear keeps [out, in]
        picked |= {key: picked[key].T for key in ("W_enc", "W_dec") if picked[key].ndim == 2}
    settings = {"activation": kind.activation, **kind.settings}
    if kind.activation == "topk":
        k = tensors.get("k")
        whole = k.tolist() if k is not None and not k.is_meta else k if k is not None else trainer.get("k")
        settings["k"] = feature_count(name, whole)
    return Parts(picked, settings)


def _class_of_keys(name: str, keys: set[str]) -> str:
    """The only class whose state dict has these keys; AutoEncoderTopK and BatchTopKSAE share theirs."""
    fitting = [
        class_name
        for class_name, kind in _KINDS.items()
        if set(kind.names.values()) <= keys <= {*kind.names.values(), *kind.other}
        and ("k" in keys) == ("k" in kind.other)
    ]
    if len(fitting) == 1:
        return fitting[0]
    found = f"may be {' or '.join(fitting)}" if fitting else f"holds {', '.join(sorted(keys)) or 'nothing'}"
    raise DictionaryError(
        f"dictionary {name} {found}; expected one of {', '.join(_KINDS)}; put its config.json, with trainer.dict_class,"
        " beside it"
    )
