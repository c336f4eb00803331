"""Dictionaries of other publishers: Gemma Scope's params.npz and dictionary_learning's ae.pt.

In come a file and the place given for it, which these files do not name; out comes a Dictionary. Weights are used as
stored: where a publisher renormalises decoders on loading, activations differ by that factor and effects do not. This
module knows nothing of sae-lens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from circuitgraph.dictionary import Dictionary
from circuitgraph.dictionary_build import build, feature_count, pick
from circuitgraph.dictionary_files import read_json, read_npz, read_state_dict
from circuitgraph.dictionary_sources import Place, agreed_place
from circuitgraph.errors import DictionaryError
from circuitgraph.model import Model

_PLAIN = {key: key for key in ("W_enc", "b_enc", "W_dec", "b_dec")}


# Gemma Scope -------------------------------------------------------------------------------------------------


def read_gemma_scope(path: Path, model: Model, place: Place | None) -> Dictionary:
    """An .npz file as Gemma Scope publishes it: jumprelu, b_dec not subtracted from the input."""
    name = short_name(path)
    if any("embedding" in part for part in path.parts[:-1]):
        raise DictionaryError(
            f"dictionary {name} is one of Gemma Scope's for embeddings, which are scaled; not supported"
        )
    place = agreed_place(name, None, place)
    layer = next((int(m[1]) for part in reversed(path.parts) if (m := re.fullmatch(r"layer_(\d+)", part))), None)
    _check_layer(name, layer, place)
    tensors = read_npz(path, name)
    names = _PLAIN | {"threshold": "threshold"}
    picked = pick(name, tensors, names)
    _refuse_unknown(name, tensors, set(names), "Gemma Scope")
    return build(name, picked, place, model, activation="jumprelu")


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
_THRESHOLD = {"threshold": "threshold"}
_KINDS = {
    "AutoEncoder": _Kind("relu", _LINEAR | {"b_enc": "encoder.bias", "b_dec": "bias"}),
    "GatedAutoEncoder": _Kind("gated", _LINEAR | _GATED),
    "AutoEncoderTopK": _Kind("topk", _TOP_K, frozenset({"k", "threshold"})),
    "BatchTopKSAE": _Kind("batchtopk", _TOP_K | _THRESHOLD, frozenset({"k"})),
    "MatryoshkaBatchTopKSAE": _Kind("batchtopk", _PLAIN | _THRESHOLD, frozenset({"k", "group_sizes"})),
    "JumpReluAutoEncoder": _Kind("jumprelu", _PLAIN | _THRESHOLD, settings={"apply_b_dec_to_input": False}),
}


def read_dictionary_learning(path: Path, model: Model, place: Place | None) -> Dictionary:
    """An ae.pt file as dictionary_learning writes it, with the config.json beside it if there is one."""
    name = short_name(path.parent)
    config = path.parent / "config.json"
    trainer = read_json(config, name).get("trainer") if config.is_file() else None
    trainer = trainer if isinstance(trainer, dict) else {}
    place = agreed_place(name, None, place)
    _check_layer(name, trainer.get("layer"), place)
    tensors = read_state_dict(path, name)
    class_name = str(trainer.get("dict_class") or _class_of_keys(name, set(tensors)))
    if class_name not in _KINDS:
        raise DictionaryError(f"dictionary {name} is a {class_name}; supported are {', '.join(_KINDS)}")
    kind = _KINDS[class_name]
    picked = pick(name, tensors, kind.names)
    _refuse_unknown(name, tensors, {*kind.names.values(), *kind.other}, class_name)
    if "encoder.weight" in tensors:  # torch.nn.Linear keeps [out, in]
        picked |= {key: picked[key].T for key in ("W_enc", "W_dec") if picked[key].ndim == 2}
    k = tensors["k"].tolist() if "k" in tensors else trainer.get("k")
    k = feature_count(name, k) if kind.activation == "topk" else None
    return build(name, picked, place, model, activation=kind.activation, k=k, **kind.settings)


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


# both --------------------------------------------------------------------------------------------------------


def short_name(path: Path) -> str:
    """The last two parts of a path: publishers call every file and many folders alike."""
    return "/".join(path.absolute().parts[-2:])


def _check_layer(name: str, layer: object, place: Place) -> None:
    if isinstance(layer, int) and not isinstance(layer, bool) and place.reads.layer != layer:
        raise DictionaryError(
            f"dictionary {name} was trained for layer {layer}, but {place} was given; expected a site of layer {layer}"
        )


def _refuse_unknown(name: str, tensors: dict[str, Tensor], known: set[str], kind: str) -> None:
    unknown = sorted(set(tensors) - known)
    if unknown:
        raise DictionaryError(
            f"dictionary {name} holds {', '.join(unknown)}, which its kind ({kind}) does not have; expected only"
            f" {', '.join(sorted(known))}; it is a kind that is not supported"
        )
