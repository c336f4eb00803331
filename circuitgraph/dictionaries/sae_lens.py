"""Dictionaries of sae-lens: a folder that it wrote, a name in its registry, or a loaded object.

Folders are read without sae-lens, which takes seconds to import; only names of its registry need it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from circuitgraph.dictionaries.build import Request, build, feature_count, pick
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.dictionaries.files import Tensors, from_safetensors, held, read_json
from circuitgraph.dictionaries.processing import Parts
from circuitgraph.dictionaries.registry import suggestions
from circuitgraph.dictionaries.sources import PROCESSINGS, DictionarySite, agreed_site, site_of_module
from circuitgraph.errors import DictionaryError
from circuitgraph.models.layout import site_of_hook
from circuitgraph.models.model import Model
from circuitgraph.nodes import Site

# sae-lens' architecture -> activation of SaeWeights; BatchTopK and Matryoshka are saved as jumprelu
_ARCHITECTURES = {
    "standard": "relu",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu": "jumprelu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
    "topk": "topk",
    "gated": "gated",
}
_REFUSED = {
    "matching_pursuit": "chooses its features one after another in a loop, so no feature is linear in the input",
    "temporal": "predicts part of its output from earlier tokens, so decoding its features is not what it computes",
    "abstopk": "keeps features by magnitude, negative ones too, which no encoder here does",
}
# Loaders of sae-lens whose dictionaries were trained on processed weights although their cfg does not say so, and what
# was done to the weights.
_TRAINED_ON = {
    # Kissane and Krzyzanowski trained on HookedTransformer.from_pretrained without further arguments.
    "connor_rob_hook_z": frozenset(PROCESSINGS),
}


def read_sae_lens_folder(folder: Path, request: Request) -> Dictionary:
    """The dictionary that sae-lens' `save_inference_model` wrote into the folder."""
    name = folder.absolute().name
    for file in ("cfg.json", "sae_weights.safetensors"):
        if not (folder / file).is_file():
            raise DictionaryError(f"dictionary {folder}: {file} is missing")
    cfg = _upgraded(name, read_json(folder / "cfg.json", name))
    return _from_sae_lens(name, cfg, from_safetensors([folder / "sae_weights.safetensors"], name), request)


def load_sae_lens_release(release: str, sae_id: str, request: Request) -> Dictionary:
    """The dictionary of that release and id in sae-lens' registry, through sae-lens itself."""
    from sae_lens import SAE
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    name = f"{release}/{sae_id}"
    registry = get_pretrained_saes_directory()
    entry = registry.get(release)
    loader = entry.conversion_func if entry else None
    if loader == "mntss_clt_layer_transcoder":
        raise DictionaryError(
            f"dictionary {name} is one layer of a cross-layer transcoder; sae-lens adds up what it writes to all"
            f" layers, which gives no reconstruction; expected the whole set, for instance hf://{entry.repo_id}"
        )

    def load() -> Any:
        try:
            with warnings.catch_warnings():  # it asks for a model with processed weights, which is not needed here
                warnings.filterwarnings("ignore", r"\s*This SAE has non-empty model_from_pretrained_kwargs")
                return SAE.from_pretrained(release, sae_id)
        except Exception as error:  # the library raises whatever the hub raises; the cause is kept
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            hint = "" if entry else suggestions(name, registry)
            raise DictionaryError(f"dictionary {name} does not load through sae-lens: {reason}{hint}") from error

    sae = load()
    tensors = held(sae.state_dict())
    if request.lazy:
        outline = tensors.outline()
        tensors = Tensors(lambda: dict(load().state_dict()), lambda: outline)
    return _from_sae_lens(name, sae.cfg.to_dict(), tensors, request, _TRAINED_ON.get(loader or "", frozenset()))


def is_sae_lens_object(value: object) -> bool:
    """Whether this is a sae_lens.SAE; sae-lens is not imported to find out."""
    library = sys.modules.get("sae_lens")
    return library is not None and isinstance(value, library.SAE)


def from_sae_lens_object(sae: Any, request: Request) -> Dictionary:
    """The dictionary of a loaded sae_lens.SAE. It is a copy: later changes of the object do not reach it.

    Args:
        sae: The object, for inference; one in training is refused.
        request: What to load it for.
    """
    cfg = sae.cfg.to_dict()
    name = f"{type(sae).__name__}({(cfg.get('metadata') or {}).get('hook_name')})"
    if hasattr(sae, "process_state_dict_for_saving_inference"):
        raise DictionaryError(
            f"dictionary {name} is still in training; save it with save_inference_model and load that folder"
        )
    tensors = {key: value.detach().clone() for key, value in sae.state_dict().items()}
    return _from_sae_lens(name, cfg, held(tensors), request)


@dataclass(frozen=True)
class _Kind:
    """How to read the tensors of one dictionary; finetuned: the file has a factor for each feature, which is used."""

    name: str
    architecture: str
    settings: Mapping[str, Any]
    finetuned: bool

    def interpret(self, tensors: Mapping[str, Tensor]) -> Parts:
        biases = ("b_gate", "r_mag", "b_mag") if self.architecture == "gated" else ("b_enc",)
        threshold = ("threshold",) if "jumprelu" in self.architecture else ()
        skip = ("W_skip",) if "skip" in self.architecture else ()
        fields = ("W_enc", "W_dec", "b_dec", *biases, *threshold, *skip)
        picked = pick(self.name, tensors, {field: field for field in fields})
        if "W_skip" in tensors and not skip:
            raise DictionaryError(
                f"dictionary {self.name} has a skip connection, which its architecture {self.architecture!r} has not"
            )
        if skip and picked["W_skip"].ndim == 2:
            picked["W_skip"] = picked["W_skip"].T  # stored as [d_out, d_in]
        factor = tensors.get("scaling_factor", tensors.get("finetuning_scaling_factor"))
        if factor is not None:
            picked["W_dec"] = self._scaled(picked["W_dec"], factor)
        return Parts(picked, self.settings)

    def _scaled(self, W_dec: Tensor, factor: Tensor) -> Tensor:
        """sae-lens before 6 multiplied activations by a factor before decoding; sae-lens 6 leaves out factors of 1."""
        if factor.is_meta or (not self.finetuned and bool((factor == 1).all())):
            return W_dec
        if not self.finetuned or factor.shape != W_dec.shape[:1]:
            raise DictionaryError(
                f"dictionary {self.name} holds a scaling_factor of shape {tuple(factor.shape)},"
                f" finetuning_scaling_factor being {self.finetuned}; expected one factor per feature and"
                " finetuning_scaling_factor true, or none"
            )
        return W_dec * factor[:, None]


def _from_sae_lens(
    name: str, cfg: Mapping[str, Any], tensors: Tensors, request: Request, trained_on: frozenset[str] = frozenset()
) -> Dictionary:
    architecture = cfg.get("architecture", "standard")
    _check_architecture(name, architecture)
    metadata = cfg.get("metadata") or cfg
    if not isinstance(metadata, dict):
        raise DictionaryError(f"dictionary {name}: metadata in cfg.json is {metadata!r}; expected an object")
    site = agreed_site(name, _own_site(name, metadata, request), request.site)
    transcoder = "transcoder" in architecture
    settings = {
        "activation": _ARCHITECTURES[architecture],
        "k": feature_count(name, cfg.get("k")) if architecture == "topk" else None,
        "apply_b_dec_to_input": bool(cfg.get("apply_b_dec_to_input", False)),
        "rescale_acts_by_decoder_norm": bool(cfg.get("rescale_acts_by_decoder_norm", False)),
        "normalize": _normalization(name, cfg.get("normalize_activations"), transcoder),
    }
    if transcoder and settings["apply_b_dec_to_input"]:
        raise DictionaryError(
            f"dictionary {name} is a transcoder with apply_b_dec_to_input, which none has; the cfg is broken"
        )
    kind = _Kind(name, architecture, settings, bool(cfg.get("finetuning_scaling_factor", False)))
    trained_on |= _processing(name, metadata, site)
    return build(
        name, tensors, kind.interpret, site, request, trained_on=trained_on, neuronpedia=_neuronpedia(name, metadata)
    )


def _neuronpedia(name: str, metadata: Mapping[str, Any]) -> str | None:
    """MODEL/SOURCE of the dictionary on Neuronpedia, if sae-lens knows it."""
    page = metadata.get("neuronpedia_id")
    if page and (not isinstance(page, str) or not all(page.partition("/"))):
        raise DictionaryError(
            f"dictionary {name}: neuronpedia_id is {page!r}; expected MODEL/SOURCE, for instance gpt2-small/5-att-kk"
        )
    return page or None


def _check_architecture(name: str, architecture: object) -> None:
    if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
        reason = f", which {_REFUSED[str(architecture)]}" if str(architecture) in _REFUSED else ""
        raise DictionaryError(
            f"dictionary {name} has architecture {architecture!r}{reason}; supported are {', '.join(_ARCHITECTURES)}"
        )


def _normalization(name: str, normalization: object, transcoder: bool) -> str:
    if normalization in (None, "none"):
        return "none"
    if normalization in ("expected_average_only_in", "covariance_whitening"):  # sae-lens sets "none" where it folds
        raise DictionaryError(
            f"dictionary {name}: normalize_activations {normalization!r} was not folded into the weights; load it with"
            " sae-lens, call fold_activation_norm_scaling_factor or fold_activation_whitening and save it again"
        )
    if normalization not in ("layer_norm", "constant_norm_rescale"):
        raise DictionaryError(
            f"dictionary {name}: normalize_activations is {normalization!r}; expected none, layer_norm or"
            " constant_norm_rescale"
        )
    if transcoder:
        raise DictionaryError(
            f"dictionary {name} is a transcoder that normalises its inputs by {normalization!r} and does not undo it,"
            " so its output has no scale; it is not supported"
        )
    return str(normalization)


def _processing(name: str, metadata: Mapping[str, Any], site: DictionarySite) -> frozenset[str]:
    """What was done to the model's weights: nothing, except for what the arguments in the metadata ask for."""
    arguments = metadata.get("model_from_pretrained_kwargs") or {}
    if not isinstance(arguments, dict):
        raise DictionaryError(
            f"dictionary {name}: model_from_pretrained_kwargs is {arguments!r}; expected an object of settings"
        )
    if arguments.get("refactor_factored_attn_matrices") and site.reads.kind == "z":
        raise DictionaryError(
            f"dictionary {name} was trained on a model with refactor_factored_attn_matrices, whose z is another; not"
            " supported"
        )
    return frozenset(key for key in PROCESSINGS if arguments.get(key) is True)


def _own_site(name: str, metadata: Mapping[str, Any], request: Request) -> DictionarySite | None:
    """The sites of the hooks that it names; None if it names none and the user said where it belongs."""
    hook = metadata.get("hook_name")
    if not hook:
        if request.site is not None:
            return None
        raise DictionaryError(
            f"dictionary {name}: its cfg names no hook_name; set metadata.hook_name, for instance"
            " 'blocks.0.hook_mlp_out', or give SITE=PATH"
        )
    if metadata.get("hook_head_index") is not None:
        raise DictionaryError(
            f"dictionary {name} reads head {metadata['hook_head_index']} alone; dictionaries of single heads are not"
            " supported"
        )
    reads = _site(name, str(hook), metadata.get("hf_hook_name"), request.model)
    out = metadata.get("hook_name_out")
    return DictionarySite(
        reads, _site(name, str(out), metadata.get("hf_hook_name_out"), request.model) if out else reads
    )


def _site(name: str, hook: str, module: object, model: Model) -> Site:
    """The site of a hook. If the cfg also names a module of the Hugging Face model, the site is that module's."""
    site = site_of_module(str(module)) or site_of_hook(hook)
    if site is None:
        raise DictionaryError(
            f"dictionary {name}: hook {hook!r} is no site of a residual stream, attention or MLP output"
        )
    inner = site_of_module(str(module)) is None and hook.endswith((".attn.hook_out", ".mlp.hook_out"))
    if inner and model.output_norm(Site("z", 0)) is not None:
        raise DictionaryError(
            f"dictionary {name}: hook {hook!r} stands before the post-norm of {model.name}, which is no site here;"
            " expected hook_attn_out or hook_mlp_out, what is added to the stream"
        )
    return site


def _upgraded(name: str, cfg: dict[str, Any]) -> dict[str, Any]:
    """The cfg in the form of sae-lens 6. Earlier versions wrote it flat; sae-lens' own defaults fill the gaps."""
    if "metadata" in cfg:
        return cfg
    names = {
        "hook_point": "hook_name",
        "hook_point_head_index": "hook_head_index",
        "activation_fn_str": "activation_fn",
    }
    flat = {"apply_b_dec_to_input": True} | {names.get(key, key): value for key, value in cfg.items()}
    function, arguments = flat.get("activation_fn", "relu"), flat.get("activation_fn_kwargs") or {}
    if function == "topk" and isinstance(arguments, dict) and not arguments.get("signed"):
        flat |= {"architecture": "topk", "k": arguments.get("k")}
    elif function != "relu":
        raise DictionaryError(
            f"dictionary {name} was written before sae-lens 6 with activation {function!r} ({arguments}); expected relu"
            " or topk"
        )
    if isinstance(flat.get("normalize_activations"), bool):
        flat["normalize_activations"] = "expected_average_only_in" if flat["normalize_activations"] else "none"
    return flat
