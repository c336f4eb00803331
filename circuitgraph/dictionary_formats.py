"""Published dictionary formats -> Dictionary: one small function per format.

In come folders or sae-lens names; out comes {site written: Dictionary}, checked against the model. Files are read as
safetensors and JSON only. This module runs no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitgraph.dictionary import Dictionary, check_fit
from circuitgraph.errors import DictionaryError
from circuitgraph.model import Model, site_of_hook
from circuitgraph.nodes import Site
from circuitgraph_kernels import SaeWeights

# sae-lens architecture -> activation of SaeWeights
_ARCHITECTURES = {
    "standard": "relu",
    "transcoder": "relu",
    "jumprelu": "jumprelu",
    "jumprelu_transcoder": "jumprelu",
    "topk": "topk",
    "gated": "gated",
}


def load_dictionaries(sources: str | Path | Sequence[str | Path], model: Model) -> dict[Site, Dictionary]:
    """{site written: Dictionary} of all sources, in forward order, in the model's dtype and on its device.

    A source is a folder in sae-lens' format (cfg.json + sae_weights.safetensors), a folder of such folders, or
    "RELEASE/ID" of sae-lens' registry (needs the hub or its cache). Raises DictionaryError for a folder without
    dictionaries, weights that do not fit the model, NaN weights, two dictionaries for one site, and architectures
    that are not linear in their features.
    """
    if isinstance(sources, str | Path):
        sources = [sources]
    found: dict[Site, Dictionary] = {}
    for dictionary in (d for source in sources for d in _load_source(source, model)):
        check_fit(dictionary, model)
        if dictionary.writes in found:
            other = found[dictionary.writes].name
            raise DictionaryError(
                f"dictionaries {other} and {dictionary.name} both write {dictionary.writes}; give one per site"
            )
        found[dictionary.writes] = dictionary
    if not found:
        raise DictionaryError("no dictionaries were given; expected at least one folder or sae-lens name")
    return dict(sorted(found.items(), key=lambda item: item[0].depth))


def _load_source(source: str | Path, model: Model) -> Iterable[Dictionary]:
    folder = Path(source).expanduser()
    if (folder / "cfg.json").is_file():
        return [read_sae_lens_folder(folder, model)]
    if folder.is_dir():
        inner = sorted(path.parent for path in folder.glob("*/cfg.json"))
        if not inner:
            raise DictionaryError(
                f"folder {source} holds no dictionary: expected cfg.json and sae_weights.safetensors, or folders with them"
            )
        return [read_sae_lens_folder(path, model) for path in inner]
    release, slash, name = str(source).partition("/")
    if not slash or folder.is_absolute() or str(source).startswith((".", "~")):
        raise DictionaryError(
            f"dictionary source {source} does not exist; give a folder, or RELEASE/ID of sae-lens' registry"
        )
    return [load_sae_lens_release(release, name, model)]


def read_sae_lens_folder(folder: Path, model: Model) -> Dictionary:
    """The dictionary that sae-lens' `save_inference_model` wrote into the folder."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in ("cfg.json", "sae_weights.safetensors"):
        if not (folder / name).is_file():
            raise DictionaryError(f"dictionary {folder}: {name} is missing")
    try:
        cfg = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "sae_weights.safetensors")
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise DictionaryError(f"dictionary {folder}: {error}") from None
    if not isinstance(cfg, dict):
        raise DictionaryError(f"dictionary {folder}: cfg.json holds {type(cfg).__name__}; expected an object")
    if "apply_b_dec_to_input" not in cfg or cfg.get("activation_fn_str", "relu") != "relu" or "activation_fn" in cfg:
        raise DictionaryError(
            f"dictionary {folder} was written before sae-lens 6; load it with sae-lens and save it again"
        )
    if cfg.get("normalize_activations") == "expected_average_only_in":
        raise DictionaryError(
            f"dictionary {folder}: normalize_activations 'expected_average_only_in' was not folded into the weights"
        )
    return _from_sae_lens(str(folder.name), cfg, tensors, model)


def load_sae_lens_release(release: str, name: str, model: Model) -> Dictionary:
    """The dictionary of that release and id in sae-lens' registry, through sae-lens itself."""
    from sae_lens import SAE

    try:
        sae = SAE.from_pretrained(release, name)
    except Exception as error:  # the library raises whatever the hub raises; the cause stays attached
        reason = " ".join(str(error).split())[:300]
        raise DictionaryError(
            f"dictionary {release}/{name} does not load through sae-lens: {reason or type(error).__name__}"
        ) from error
    return _from_sae_lens(f"{release}/{name}", sae.cfg.to_dict(), dict(sae.state_dict()), model)


def _from_sae_lens(name: str, cfg: dict[str, Any], tensors: dict[str, Tensor], model: Model) -> Dictionary:
    architecture = cfg.get("architecture", "standard")
    if not isinstance(architecture, str) or architecture not in _ARCHITECTURES or "W_skip" in tensors:
        what = "a skip connection" if "W_skip" in tensors else f"architecture {architecture!r}"
        raise DictionaryError(
            f"dictionary {name} has {what}; supported are {', '.join(_ARCHITECTURES)}, without skip connections"
        )
    if cfg.get("normalize_activations") not in (None, "none", "expected_average_only_in"):
        raise DictionaryError(
            f"dictionary {name} normalises its inputs by {cfg['normalize_activations']!r}, which is not supported yet"
        )
    reads, writes = _sites(name, cfg)
    for key, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise DictionaryError(f"dictionary {name}: weight {key} contains NaN or Inf; the file is broken")
    tensors = {key: value.to(model.device, model.dtype) for key, value in tensors.items()}
    try:
        weights = _weights(architecture, cfg, tensors)
    except KeyError as error:
        raise DictionaryError(f"dictionary {name}: {error} is missing from its weights or cfg.json") from None
    except ValueError as error:
        raise DictionaryError(f"dictionary {name}: {error}") from None
    return Dictionary(weights, reads, writes, name)


def _weights(architecture: str, cfg: dict[str, Any], tensors: dict[str, Tensor]) -> SaeWeights:
    gated = architecture == "gated"
    return SaeWeights(
        W_enc=tensors["W_enc"],
        b_enc=torch.zeros_like(tensors["b_gate"]) if gated else tensors["b_enc"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        activation=_ARCHITECTURES[architecture],
        threshold=tensors["threshold"] if "jumprelu" in architecture else None,
        k=int(cfg["k"]) if architecture == "topk" else None,
        apply_b_dec_to_input=bool(cfg.get("apply_b_dec_to_input", False)),
        rescale_acts_by_decoder_norm=bool(cfg.get("rescale_acts_by_decoder_norm", False)),
        b_gate=tensors["b_gate"] if gated else None,
        r_mag=tensors["r_mag"] if gated else None,
        b_mag=tensors["b_mag"] if gated else None,
    )


def _sites(name: str, cfg: dict[str, Any]) -> tuple[Site, Site]:
    metadata = cfg.get("metadata") or cfg
    if not isinstance(metadata, dict):
        raise DictionaryError(f"dictionary {name}: metadata in cfg.json is {metadata!r}; expected an object")
    hook = metadata.get("hook_name")
    hook_out = metadata.get("hook_name_out") or hook
    if not hook:
        raise DictionaryError(
            f"dictionary {name}: cfg.json names no hook_name; add metadata.hook_name, for instance 'blocks.0.hook_mlp_out'"
        )
    sites = []
    for hook_name in (hook, hook_out):
        site = site_of_hook(str(hook_name))
        if site is None:
            raise DictionaryError(
                f"dictionary {name}: hook {hook_name!r} is no site of a residual stream, attention or MLP output"
            )
        sites.append(site)
    return sites[0], sites[1]
