"""Dictionaries of sae-lens: a folder it wrote, a name in its registry, or a loaded object.

In come cfg and state dict as sae-lens 6 has them; out comes a Dictionary. Folders are read without sae-lens, which is
imported for names of its registry only. This module knows no other publisher.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from circuitgraph.dictionary import Dictionary
from circuitgraph.dictionary_build import build, feature_count, pick
from circuitgraph.dictionary_files import read_json, read_safetensors
from circuitgraph.dictionary_sources import Place, agreed_place
from circuitgraph.errors import DictionaryError
from circuitgraph.model import Model
from circuitgraph.model_layout import site_of_hook

# sae-lens architecture -> activation of SaeWeights; BatchTopK and Matryoshka save themselves as jumprelu
_ARCHITECTURES = {
    "standard": "relu",
    "transcoder": "relu",
    "jumprelu": "jumprelu",
    "jumprelu_transcoder": "jumprelu",
    "topk": "topk",
    "gated": "gated",
}
_REFUSED = {
    "matching_pursuit": "chooses its features one after another in a loop, so no feature is linear in the input",
    "temporal": "predicts part of its output from earlier tokens, so decoding its features is not what it computes",
    "abstopk": "keeps features by magnitude, negative ones too, which no encoder here does",
}


def read_sae_lens_folder(folder: Path, model: Model, place: Place | None = None) -> Dictionary:
    """The dictionary that sae-lens' `save_inference_model` wrote into the folder."""
    name = folder.absolute().name
    for file in ("cfg.json", "sae_weights.safetensors"):
        if not (folder / file).is_file():
            raise DictionaryError(f"dictionary {folder}: {file} is missing")
    cfg = read_json(folder / "cfg.json", name)
    if "apply_b_dec_to_input" not in cfg or cfg.get("activation_fn_str", "relu") != "relu" or "activation_fn" in cfg:
        raise DictionaryError(
            f"dictionary {folder} was written before sae-lens 6; load it with sae-lens and save it again"
        )
    return _from_sae_lens(name, cfg, read_safetensors(folder / "sae_weights.safetensors", name), model, place)


def load_sae_lens_release(release: str, sae_id: str, model: Model, place: Place | None = None) -> Dictionary:
    """The dictionary of that release and id in sae-lens' registry, through sae-lens itself."""
    from sae_lens import SAE

    name = f"{release}/{sae_id}"
    try:
        sae = SAE.from_pretrained(release, sae_id)
    except Exception as error:  # the library raises whatever the hub raises; the cause stays attached
        reason = " ".join(str(error).split())[:300]
        raise DictionaryError(
            f"dictionary {name} does not load through sae-lens: {reason or type(error).__name__}"
        ) from error
    return _from_sae_lens(name, sae.cfg.to_dict(), dict(sae.state_dict()), model, place)


def is_sae_lens_object(value: object) -> bool:
    """Whether this is a sae_lens.SAE; false without importing sae-lens if nobody has imported it."""
    library = sys.modules.get("sae_lens")
    return library is not None and isinstance(value, library.SAE)


def from_sae_lens_object(sae: Any, model: Model) -> Dictionary:
    """A copy of a loaded sae_lens.SAE; what happens to the object later does not reach it."""
    cfg = sae.cfg.to_dict()
    name = f"{type(sae).__name__}({(cfg.get('metadata') or {}).get('hook_name')})"
    if hasattr(sae, "process_state_dict_for_saving_inference"):
        raise DictionaryError(
            f"dictionary {name} is still in training; save it with save_inference_model and load that folder"
        )
    tensors = {key: value.detach().clone() for key, value in sae.state_dict().items()}
    return _from_sae_lens(name, cfg, tensors, model, None)


def _from_sae_lens(
    name: str, cfg: dict[str, Any], tensors: dict[str, Tensor], model: Model, given: Place | None
) -> Dictionary:
    architecture = cfg.get("architecture", "standard")
    _check_architecture(name, architecture, tensors)
    _check_normalization(name, cfg.get("normalize_activations"))
    place = agreed_place(name, _own_place(name, cfg, given), given)
    biases = ("b_gate", "r_mag", "b_mag") if architecture == "gated" else ("b_enc",)
    threshold = ("threshold",) if "jumprelu" in architecture else ()
    fields = ("W_enc", "W_dec", "b_dec", *biases, *threshold)
    return build(
        name,
        pick(name, tensors, {field: field for field in fields}),
        place,
        model,
        activation=_ARCHITECTURES[architecture],
        k=feature_count(name, cfg.get("k")) if architecture == "topk" else None,
        apply_b_dec_to_input=bool(cfg.get("apply_b_dec_to_input", False)),
        rescale_acts_by_decoder_norm=bool(cfg.get("rescale_acts_by_decoder_norm", False)),
    )


def _check_architecture(name: str, architecture: object, tensors: dict[str, Tensor]) -> None:
    supported = f"supported are {', '.join(_ARCHITECTURES)}, without skip connections"
    if "W_skip" in tensors:
        raise DictionaryError(f"dictionary {name} has a skip connection; {supported}")
    if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
        reason = f", which {_REFUSED[str(architecture)]}" if str(architecture) in _REFUSED else ""
        raise DictionaryError(f"dictionary {name} has architecture {architecture!r}{reason}; {supported}")


def _check_normalization(name: str, normalization: object) -> None:
    if normalization == "expected_average_only_in":  # sae-lens sets "none" where it folds
        raise DictionaryError(
            f"dictionary {name}: normalize_activations {normalization!r} was not folded into the weights; load it with"
            " sae-lens, call fold_activation_norm_scaling_factor and save it again"
        )
    if normalization not in (None, "none"):
        raise DictionaryError(
            f"dictionary {name} normalises its inputs by {normalization!r}, which is not supported yet"
        )


def _own_place(name: str, cfg: dict[str, Any], given: Place | None) -> Place | None:
    """The place its hooks name; None for a dictionary that names no hook but was given a place."""
    metadata = cfg.get("metadata") or cfg
    if not isinstance(metadata, dict):
        raise DictionaryError(f"dictionary {name}: metadata in cfg.json is {metadata!r}; expected an object")
    hook = metadata.get("hook_name")
    if not hook:
        if given is not None:
            return None
        raise DictionaryError(
            f"dictionary {name}: its cfg names no hook_name; set metadata.hook_name, for instance"
            " 'blocks.0.hook_mlp_out', or give SITE=PATH"
        )
    sites = []
    for hook_name in (hook, metadata.get("hook_name_out") or hook):
        site = site_of_hook(str(hook_name))
        if site is None:
            raise DictionaryError(
                f"dictionary {name}: hook {hook_name!r} is no site of a residual stream, attention or MLP output"
            )
        sites.append(site)
    return Place(sites[0], sites[1])
