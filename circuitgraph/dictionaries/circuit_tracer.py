"""Sets of transcoders as circuit-tracer lays them out: a folder with config.yaml and one or two files per layer.

A cross-layer transcoder is such a set too. The files may be Gemma Scope's own, of either version.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitgraph.dictionaries.build import Request, build, feature_count, pick, refuse_unknown
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.dictionaries.files import from_npz, from_safetensors, read_yaml
from circuitgraph.dictionaries.hub import PREFIX, fetch
from circuitgraph.dictionaries.processing import Parts
from circuitgraph.dictionaries.publishers import gemma_scope_2
from circuitgraph.dictionaries.sources import DictionarySite
from circuitgraph.errors import DictionaryError, did_you_mean
from circuitgraph.models.layout import site_of_hook

_KINDS = ("transcoder_set", "cross_layer_transcoder")


def read_transcoder_set(folder: Path, request: Request) -> list[Dictionary]:
    """The transcoders of every layer of the model: all of them, or an error.

    Args:
        folder: The folder of config.yaml. For a cross-layer transcoder, each layer is a Dictionary of its own that
            knows the later sites it writes.
        request: What to load them for; it must name no site.
    """
    name = folder.absolute().name
    config = read_yaml(folder / "config.yaml", name)
    kind = config.get("model_kind", "transcoder_set")
    if kind not in _KINDS:
        raise DictionaryError(
            f"dictionary {name}: model_kind is {kind!r}; expected one of {', '.join(_KINDS)}."
            f"{did_you_mean(str(kind), _KINDS)}"
        )
    if request.site is not None:
        raise DictionaryError(
            f"dictionary {name} is a set with a transcoder for every layer, but {request.site} was given; expected no"
            " site"
        )
    crossing = kind == "cross_layer_transcoder"
    files = _files(name, folder, config, crossing, request.model.n_layers, request.model.name)
    sites = [_site(name, config, layer) for layer in range(len(files))]
    _warn_if_for_another_model(name, config.get("model_name"), request.model.name)
    if crossing:
        return [_cross_layer(f"{name}/layer_{i}", i, paths, sites, request) for i, paths in enumerate(files)]
    return [_per_layer(f"{name}/layer_{i}", paths[0], config, sites[i], request) for i, paths in enumerate(files)]


# one layer -----------------------------------------------------------------------------------------------------


def _per_layer(name: str, path: Path, config: Mapping[str, Any], site: DictionarySite, request: Request) -> Dictionary:
    """y = f(x W_enc^T + b_enc) W_dec + b_dec (+ x W_skip^T), as stored: W_enc [d_sae, d_in], W_skip [d_out, d_in]."""

    def interpret(tensors: Mapping[str, Tensor]) -> Parts:
        if "w_enc" in tensors:
            return gemma_scope_2(name, tensors)
        transposed = path.suffix != ".npz"  # Gemma Scope's own files, listed by its sets
        threshold = "activation_function.threshold" if transposed else "threshold"
        names = {key: key for key in ("W_enc", "W_dec", "b_enc", "b_dec")}
        names |= {"threshold": threshold} if threshold in tensors else {}
        names |= {"W_skip": "W_skip"} if "W_skip" in tensors else {}
        picked = pick(name, tensors, names)
        refuse_unknown(name, tensors, set(names.values()), "a transcoder of circuit-tracer")
        if transposed:
            picked |= {key: picked[key].T for key in {"W_enc", "W_skip"} & picked.keys() if picked[key].ndim == 2}
        return Parts(picked, _activation(name, config, "threshold" in picked))

    if path.suffix == ".npz":
        return build(name, from_npz(path, name), interpret, site, request)
    return build(name, from_safetensors([path], name), interpret, site, request)


def _activation(name: str, config: Mapping[str, Any], threshold: bool) -> dict[str, Any]:
    activation = config.get("activation", config.get("activation_function"))
    if threshold and activation in (None, "jump_relu", "jumprelu"):
        return {"activation": "jumprelu"}
    if not threshold and activation in (None, "relu"):
        return {"activation": "relu"}
    if not threshold and activation == "topk":
        return {"activation": "topk", "k": feature_count(name, config.get("k"))}
    raise DictionaryError(
        f"dictionary {name}: activation is {activation!r} {'with' if threshold else 'without'} a threshold in the"
        " weights; expected relu or topk without, jump_relu with one"
    )


def _cross_layer(
    name: str, layer: int, paths: tuple[Path, ...], sites: list[DictionarySite], request: Request
) -> Dictionary:
    """Layer `layer` of a cross-layer transcoder: W_enc [d_sae, d], W_dec [d_sae, n_sites, d]; b_dec is this layer's."""
    writes = [site.writes for site in sites[layer:]]

    def interpret(tensors: Mapping[str, Tensor]) -> Parts:
        if "w_enc" in tensors:  # Gemma Scope 2 keeps zeros for the layers before
            picked = dict(gemma_scope_2(name, tensors).tensors)
            if picked["W_dec"].ndim == 3:
                picked["W_dec"] = picked["W_dec"][:, -len(writes) :]
        else:
            names = {key: f"{key}_{layer}" for key in ("W_enc", "W_dec", "b_enc", "b_dec")}
            names |= {key: f"{key}_{layer}" for key in ("threshold", "W_skip") if f"{key}_{layer}" in tensors}
            picked = pick(name, tensors, names)
            refuse_unknown(name, tensors, set(names.values()), "a cross-layer transcoder of circuit-tracer")
            if picked["W_enc"].ndim == 2:
                picked["W_enc"] = picked["W_enc"].T
        shape = tuple(picked["W_dec"].shape)
        if len(shape) != 3 or shape[1] != len(writes):
            raise DictionaryError(
                f"dictionary {name}: W_dec has shape {shape}; expected [features, {len(writes)}, d_model], one part for"
                f" each of the layers {layer}-{layer + len(writes) - 1}"
            )
        picked["W_dec"] = picked["W_dec"].flatten(1)
        for key in {"b_dec", "W_skip"} & picked.keys():  # they belong to the first site
            missing = (len(writes) - 1) * picked[key].shape[-1]
            picked[key] = torch.nn.functional.pad(picked[key], (0, missing))
        return Parts(picked, {"activation": "jumprelu" if "threshold" in picked else "relu"})

    tensors = from_safetensors(paths, name)
    return build(name, tensors, interpret, sites[layer], request, later=tuple(writes[1:]))


# the set -------------------------------------------------------------------------------------------------------


def _files(
    name: str, folder: Path, config: Mapping[str, Any], crossing: bool, n_layers: int, model: str
) -> list[tuple[Path, ...]]:
    """The files of each layer; DictionaryError unless they are those of all layers of the model and no more."""
    listed = config.get("transcoders")
    if listed is not None:
        if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
            raise DictionaryError(f"dictionary {name}: transcoders in config.yaml is {listed!r:.80}; expected paths")
        files: dict[int, tuple[Path, ...]] = {
            layer: (_listed(name, folder, item),) for layer, item in enumerate(listed)
        }
    else:
        stem = "W_enc_" if crossing else "layer_"
        numbers = sorted(
            int(match[1])
            for path in folder.glob(f"{stem}*.safetensors")
            if (match := re.fullmatch(rf"{stem}(\d+)\.safetensors", path.name))
        )
        stems = (stem, "W_dec_") if crossing else (stem,)
        files = {layer: tuple(folder / f"{stem}{layer}.safetensors" for stem in stems) for layer in numbers}
    expected = set(range(max(n_layers, max(files, default=-1) + 1)))
    missing = sorted(layer for layer in expected if not all(path.is_file() for path in files.get(layer, (Path(),))))
    trained = f" (made for {config['model_name']})" if config.get("model_name") else ""
    if missing:
        raise DictionaryError(
            f"dictionary {name}{trained} lacks layer {', '.join(map(str, missing))}; expected files for layers"
            f" 0-{len(expected) - 1}"
        )
    if len(files) != n_layers:
        raise DictionaryError(
            f"dictionary {name}{trained} has layers 0-{len(files) - 1}, but {model} has layers 0-{n_layers - 1};"
            " it was trained for another model"
        )
    return [files[layer] for layer in range(n_layers)]


def _listed(name: str, folder: Path, item: str) -> Path:
    """The local path of an entry of `transcoders`: on the hub, or inside the folder."""
    if item.startswith(PREFIX):
        return fetch(item)
    path = (folder / item).resolve()
    if not path.is_relative_to(folder.resolve()) and not (folder / item).is_symlink():
        raise DictionaryError(
            f"dictionary {name}: {item} in config.yaml leads out of the folder; expected a path in it"
        )
    return folder / item


def _site(name: str, config: Mapping[str, Any], layer: int) -> DictionarySite:
    """What the transcoder of a layer reads and writes, by the hooks in the config."""
    sites = []
    for key in ("feature_input_hook", "feature_output_hook"):
        hook = config.get(key)
        if not isinstance(hook, str):
            raise DictionaryError(
                f"dictionary {name}: config.yaml has {key} {hook!r}; expected a hook, for instance 'hook_mlp_out'"
            )
        site = site_of_hook(f"blocks.{layer}.{hook.removeprefix('blocks.{layer}.')}")
        if site is None:
            reason = "is no site of a residual stream, attention or MLP output"
            if hook.endswith("hook_resid_mid"):
                reason = "is the residual stream between attention and MLP, which is no site here"
            raise DictionaryError(f"dictionary {name}: {key} {hook!r} {reason}; it is not supported")
        sites.append(site)
    return DictionarySite(sites[0], sites[1])


def _warn_if_for_another_model(name: str, trained: object, model: str) -> None:
    """A warning, no error: names of one model differ in harmless ways, and sizes are checked anyway."""
    plain = [re.sub(r"[^a-z0-9]", "", str(text).rpartition("/")[2].lower()) for text in (trained, model)]
    if trained and plain[0] != plain[1]:
        warnings.warn(f"dictionary {name} was trained on {trained} and is loaded for {model}", stacklevel=2)
