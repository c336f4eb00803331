"""Dictionaries in a .pt of weights and a .json of settings beside it, and the transcoders that circuit-finder reads.

In comes the .pt; out comes a Dictionary, or None where the file is none of these. The layouts are those of Kissane and
Krzyzanowski's attention SAEs ({name}.pt, {name}_cfg.json), of the TinyStories study ({name}.pt, {name}.json) and of
Dunefsky and Chlenski's transcoders (one .pt whose name tells the hook). This module knows no other publisher.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from circuitgraph.dictionaries.build import Request, build, pick, refuse_unknown, short_name
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.dictionaries.files import from_reader, read_json, read_state_dict
from circuitgraph.dictionaries.processing import Parts, without_input_bias
from circuitgraph.dictionaries.sources import PROCESSINGS, DictionarySite, agreed_site
from circuitgraph.errors import DictionaryError
from circuitgraph.models.layout import site_of_hook
from circuitgraph.nodes import Site

_NAMES = {key: key for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
# All three were trained on HookedTransformer.from_pretrained without further arguments, which processes all weights.
_TRAINED_ON = frozenset(PROCESSINGS)
# The class of the settings that the transcoders' files carry in their pickle.
_SETTINGS = ("sae_training.config.LanguageModelSAERunnerConfig",)


def read_pair(path: Path, request: Request) -> Dictionary | None:
    """The dictionary of a .pt with {name}_cfg.json or {name}.json beside it, or whose name holds a transcoder's hook."""
    for suffix, key_of_hook in (("_cfg.json", "act_name"), (".json", "act")):
        cfg = path.with_name(path.stem + suffix)
        if cfg.is_file():
            return _read_sae(path, cfg, key_of_hook, request)
    match = re.search(r"blocks\.(\d+)\.(ln2\.hook_normalized|mlp\.hook_in)(?=[_.]|$)", path.stem)
    return _read_transcoder(path, match, request) if match else None


def _read_sae(path: Path, settings: Path, key_of_hook: str, request: Request) -> Dictionary:
    """acts = relu((x - b_dec) W_enc + b_enc), x_hat = acts W_dec + b_dec; `act_name` is a hook, `act` one of `layer`."""
    name = short_name(path)
    cfg = read_json(settings, name)
    hook = cfg.get(key_of_hook)
    if cfg.get("head_idx") is not None:
        raise DictionaryError(f"dictionary {name} reads head {cfg['head_idx']} alone; such are not supported")
    site = site_of_hook(str(hook) if key_of_hook == "act_name" else f"blocks.{cfg.get('layer')}.{hook}")
    if site is None:
        layer = f" in layer {cfg.get('layer')!r}" if key_of_hook == "act" else ""
        raise DictionaryError(
            f"dictionary {name}: {key_of_hook} in {settings.name} is {hook!r}{layer}; expected the hook of a residual"
            " stream, attention or MLP, for instance 'mlp.hook_post' with its layer"
        )
    place = agreed_site(name, DictionarySite(site, site), request.place)

    def interpret(tensors: Mapping[str, Tensor]) -> Parts:
        picked = pick(name, tensors, _NAMES)
        refuse_unknown(name, tensors, set(_NAMES), "a pair of .pt and .json")
        return Parts(picked, {"activation": "relu", "apply_b_dec_to_input": True})

    tensors = from_reader(lambda: read_state_dict(path, name))
    return build(name, tensors, interpret, place, request, trained_on=_TRAINED_ON)


def _read_transcoder(path: Path, match: re.Match[str], request: Request) -> Dictionary:
    """acts = relu((x - b_dec) W_enc + b_enc), mlp_out = acts W_dec + b_dec_out, with the hook of x in the file's name."""
    name = short_name(path)
    reads = site_of_hook(f"blocks.{match[1]}.{match[2]}")
    assert reads is not None
    place = agreed_site(name, DictionarySite(reads, Site("mlp_out", reads.layer)), request.place)

    def interpret(tensors: Mapping[str, Tensor]) -> Parts:
        picked = pick(name, tensors, _NAMES | {"b_dec_out": "b_dec_out"})
        refuse_unknown(name, tensors, set(picked), "a transcoder with b_dec_out")
        b_dec_out = picked.pop("b_dec_out")
        parts = without_input_bias(Parts(picked, {"activation": "relu", "apply_b_dec_to_input": True}))
        return Parts({**parts.tensors, "b_dec": b_dec_out}, parts.settings)

    tensors = from_reader(lambda: read_state_dict(path, name, key="state_dict", inert=_SETTINGS))
    return build(name, tensors, interpret, place, request, trained_on=_TRAINED_ON)
