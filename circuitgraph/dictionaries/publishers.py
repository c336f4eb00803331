"""Dictionaries in the files of their publishers: Gemma Scope, dictionary_learning, and a .pt that comes with a .json.

Most of these files do not name their site, so it has to be given. Weights are used as they are stored: where a
publisher normalises the decoder on loading, activations differ from the publisher's by that factor, and effects do not.
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
from circuitgraph.dictionaries.files import from_npz, from_safetensors, from_state_dict, read_json
from circuitgraph.dictionaries.processing import Parts, without_input_bias
from circuitgraph.dictionaries.sources import PROCESSINGS, DictionarySite, agreed_site, site_of_module
from circuitgraph.errors import DictionaryError
from circuitgraph.models.layout import site_of_hook
from circuitgraph.nodes import Site

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
    site = agreed_site(name, None, request.site)
    check_layer(name, _layer_of(path), site)

    def interpret(tensors: Mapping[str, Tensor]) -> Parts:
        picked = pick(name, tensors, _PLAIN | _THRESHOLD)
        refuse_unknown(name, tensors, {*_PLAIN, *_THRESHOLD}, "Gemma Scope")
        return Parts(picked, {"activation": "jumprelu"})

    return build(name, from_npz(path, name), interpret, site, request)


def read_gemma_scope_2(path: Path, request: Request) -> Dictionary:
    """A params.safetensors file of Gemma Scope 2, at the site that the config.json beside it names, if it does."""
    name = short_name(path.parent)
    config = path.parent / "config.json"
    cfg = read_json(config, name) if config.is_file() else {}
    reads = site_of_module(str(cfg.get("hf_hook_point_in")))
    writes = site_of_module(str(cfg.get("hf_hook_point_out"))) if cfg.get("hf_hook_point_out") else reads
    site = agreed_site(name, DictionarySite(reads, writes) if reads and writes else None, request.site)
    check_layer(name, _layer_of(path), site)

    def interpret(tensors: Mapping[str, Tensor]) -> Parts:
        return gemma_scope_2(name, tensors)

    return build(name, from_safetensors([path], name), interpret, site, request)


def gemma_scope_2(name: str, tensors: Mapping[str, Tensor]) -> Parts:
    """The tensors of Gemma Scope 2 under our names: jumprelu; affine_skip_connection is [d_in, d_out] as ours."""
    names = {"W_enc": "w_enc", "b_enc": "b_enc", "W_dec": "w_dec", "b_dec": "b_dec"} | _THRESHOLD
    if "affine_skip_connection" in tensors:
        names["W_skip"] = "affine_skip_connection"
    picked = pick(name, tensors, names)
    refuse_unknown(name, tensors, set(names.values()), "Gemma Scope 2")
    return Parts(picked, {"activation": "jumprelu"})


def _layer_of(path: Path) -> int | None:
    """The layer in the name of the innermost folder that has one."""
    matches = (re.match(r"layer_(\d+)(?=_|$)", folder) for folder in reversed(path.parts[:-1]))
    return next((int(match[1]) for match in matches if match), None)


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
    site = agreed_site(name, None, request.site)
    check_layer(name, trainer.get("layer"), site)

    def interpret(tensors: Mapping[str, Tensor]) -> Parts:
        return _dictionary_learning(name, tensors, trainer)

    return build(name, from_state_dict(path, name), interpret, site, request)


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
        value = k.tolist() if k is not None and not k.is_meta else k if k is not None else trainer.get("k")
        settings["k"] = feature_count(name, value)
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
    fault = f"may be {' or '.join(fitting)}" if fitting else f"holds {', '.join(sorted(keys)) or 'nothing'}"
    raise DictionaryError(
        f"dictionary {name} {fault}; expected one of {', '.join(_KINDS)}; put its config.json, with trainer.dict_class,"
        " beside it"
    )


# a .pt with a .json ------------------------------------------------------------------------------------------

# All three publishers trained on HookedTransformer.from_pretrained without further arguments: all weights processed.
_TRAINED_ON = frozenset(PROCESSINGS)
# The class of the settings that the transcoders' files carry in their pickle.
_SETTINGS = ("sae_training.config.LanguageModelSAERunnerConfig",)


def read_pt(path: Path, request: Request) -> Dictionary | None:
    """The dictionary of a .pt file whose hook is known from beside it or from its name.

    These are Kissane and Krzyzanowski's attention SAEs ({name}.pt, {name}_cfg.json), those of the TinyStories study
    ({name}.pt, {name}.json), and Dunefsky and Chlenski's transcoders (one .pt with the hook in its name).

    Returns None for a file that is none of these.
    """
    for suffix, key_of_hook in (("_cfg.json", "act_name"), (".json", "act")):
        settings = path.with_name(path.stem + suffix)
        if settings.is_file():
            return _read_pt_sae(path, settings, key_of_hook, request)
    match = re.search(r"blocks\.(\d+)\.(ln2\.hook_normalized|mlp\.hook_in)(?=[_.]|$)", path.stem)
    reads = site_of_hook(match[0]) if match else None
    return _read_pt_transcoder(path, reads, request) if reads else None


def _read_pt_sae(path: Path, settings: Path, key_of_hook: str, request: Request) -> Dictionary:
    """acts = relu((x - b_dec) W_enc + b_enc), x_hat = acts W_dec + b_dec, at the hook in `act_name` or `act`."""
    name = short_name(path)
    cfg = read_json(settings, name)
    hook = cfg.get(key_of_hook)
    if cfg.get("head_idx") is not None:
        raise DictionaryError(f"dictionary {name} reads head {cfg['head_idx']} alone; such are not supported")
    own = site_of_hook(str(hook) if key_of_hook == "act_name" else f"blocks.{cfg.get('layer')}.{hook}")
    if own is None:
        layer = f" in layer {cfg.get('layer')!r}" if key_of_hook == "act" else ""
        raise DictionaryError(
            f"dictionary {name}: {key_of_hook} in {settings.name} is {hook!r}{layer}; expected the hook of a residual"
            " stream, attention or MLP, for instance 'mlp.hook_post' with its layer"
        )
    site = agreed_site(name, DictionarySite(own, own), request.site)

    def interpret(tensors: Mapping[str, Tensor]) -> Parts:
        picked = pick(name, tensors, _PLAIN)
        refuse_unknown(name, tensors, set(_PLAIN), "a pair of .pt and .json")
        return Parts(picked, {"activation": "relu", "apply_b_dec_to_input": True})

    return build(name, from_state_dict(path, name), interpret, site, request, trained_on=_TRAINED_ON)


def _read_pt_transcoder(path: Path, reads: Site, request: Request) -> Dictionary:
    """acts = relu((x - b_dec) W_enc + b_enc), mlp_out = acts W_dec + b_dec_out."""
    name = short_name(path)
    site = agreed_site(name, DictionarySite(reads, Site("mlp_out", reads.layer)), request.site)

    def interpret(tensors: Mapping[str, Tensor]) -> Parts:
        picked = pick(name, tensors, _PLAIN | {"b_dec_out": "b_dec_out"})
        refuse_unknown(name, tensors, set(picked), "a transcoder with b_dec_out")
        b_dec_out = picked.pop("b_dec_out")
        parts = without_input_bias(Parts(picked, {"activation": "relu", "apply_b_dec_to_input": True}))
        return Parts({**parts.tensors, "b_dec": b_dec_out}, parts.settings)

    tensors = from_state_dict(path, name, key="state_dict", inert=_SETTINGS)
    return build(name, tensors, interpret, site, request, trained_on=_TRAINED_ON)
