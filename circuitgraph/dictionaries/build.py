"""Tensors under our names become a Dictionary, checked, on the model's device and in the dtype that it computes in.

Every reader of a file format ends here: it hands over the file's tensors and a function that gives them the names of
SaeWeights' fields. Matrices that are stored in half precision stay in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitgraph.dictionaries.dictionary import Dictionary, check_fit
from circuitgraph.dictionaries.files import Tensors
from circuitgraph.dictionaries.lazy import Deferred, DeferredWeights
from circuitgraph.dictionaries.processing import Parts, Translate, translation
from circuitgraph.dictionaries.sources import DictionarySite
from circuitgraph.errors import DictionaryError
from circuitgraph.models.model import DTYPES, Model
from circuitgraph.nodes import Site
from circuitgraph_kernels import SaeWeights
from circuitgraph_kernels.weights import compute_dtype


@dataclass(frozen=True)
class Request:
    """What a dictionary is loaded for.

    Args:
        model: The model that it shall fit.
        site: Where the user says that it belongs: what it reads and writes, or only the site that it writes.
        processing: What the user says was done to the weights of the model it was trained on.
        lazy: Check sizes now, and read the weights when they are used.
    """

    model: Model
    site: DictionarySite | Site | None = None
    processing: frozenset[str] | None = None
    lazy: bool = False


def build(
    name: str,
    tensors: Tensors,
    interpret: Callable[[Mapping[str, Tensor]], Parts],
    site: DictionarySite,
    request: Request,
    *,
    trained_on: frozenset[str] = frozenset(),
    later: tuple[Site, ...] = (),
    neuronpedia: str | None = None,
) -> Dictionary:
    """The dictionary that these tensors are.

    Args:
        name: What it is loaded by.
        tensors: The file's tensors.
        interpret: Gives them our names; it must work on an outline too, which has no numbers.
        site: What it reads and writes in the model it was trained on.
        request: What it is loaded for.
        trained_on: What its publisher had done to that model's weights, unless the request says otherwise.
        later: The further sites of a cross-layer transcoder.
        neuronpedia: Its MODEL/SOURCE on Neuronpedia.

    Raises DictionaryError, which names the tensor, for broken weights and for those that do not fit the model.
    """
    wanted = trained_on if request.processing is None else request.processing
    site, translate = translation(name, wanted, site, request.model)

    def weights() -> SaeWeights:
        return _weights(name, interpret(tensors.read()), translate, request)

    def skip() -> Tensor:
        return _skip(name, interpret(tensors.read()), translate, request)

    stored: SaeWeights | DeferredWeights
    W_skip: Tensor | Deferred[Tensor] | None
    if request.lazy:
        parts = interpret(tensors.outline())
        _check_kinds(name, parts.tensors)
        _check_shapes(name, parts.tensors)
        translate(parts)  # for what it refuses
        (d_in, d_sae), d_out = parts.tensors["W_enc"].shape, parts.tensors["W_dec"].shape[1]
        activation, normalize = parts.settings["activation"], parts.settings.get("normalize", "none")
        stored = DeferredWeights(weights, d_in, d_sae, d_out, activation, normalize)
        W_skip = Deferred(skip) if "W_skip" in parts.tensors else None
    else:
        parts = interpret(tensors.read())
        stored = _weights(name, parts, translate, request)
        W_skip = _skip(name, parts, translate, request) if "W_skip" in parts.tensors else None
    dictionary = Dictionary(stored, site.reads, site.writes, name, W_skip, later, neuronpedia)
    check_fit(dictionary, request.model)
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


def refuse_unknown(name: str, tensors: Mapping[str, Tensor], known: set[str], kind: str) -> None:
    """DictionaryError if there are tensors that this kind of dictionary does not have, so that it is another kind."""
    unknown = sorted(set(tensors) - known)
    if unknown:
        raise DictionaryError(
            f"dictionary {name} holds {', '.join(unknown)}, which its kind ({kind}) does not have; expected only"
            f" {', '.join(sorted(known))}; it is a kind that is not supported"
        )


def check_layer(name: str, layer: object, site: DictionarySite) -> None:
    """DictionaryError if the file says that it was trained for another layer than that of the site."""
    if isinstance(layer, int) and not isinstance(layer, bool) and site.reads.layer != layer:
        raise DictionaryError(
            f"dictionary {name} was trained for layer {layer}, but {site} was given; expected a site of layer {layer}"
        )


def feature_count(name: str, value: object) -> int:
    """The k of a topk dictionary, from a file; DictionaryError unless it is a whole number."""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not whole or isinstance(value, bool):
        raise DictionaryError(f"dictionary {name}: k is {value!r}; expected the number of active features per token")
    return int(value)  # type: ignore[call-overload, no-any-return]


def short_name(path: Path) -> str:
    """The last two parts of a path, since publishers give every file and many folders the same name."""
    return "/".join(path.absolute().parts[-2:])


def _weights(name: str, parts: Parts, translate: Translate, request: Request) -> SaeWeights:
    _check_kinds(name, parts.tensors)
    for key, value in parts.tensors.items():
        _check_values(name, key, value)
    _check_shapes(name, parts.tensors)
    parts = translate(parts)
    tensors = {key: value for key, value in parts.tensors.items() if key != "W_skip"}
    dtypes = {key: _dtype(key, value, request.model) for key, value in tensors.items()}
    dtypes["W_enc"] = dtypes["W_dec"] = torch.promote_types(dtypes["W_enc"], dtypes["W_dec"])
    converted: dict[str, Any] = {
        key: _convert(name, key, value, dtypes[key], request.model) for key, value in tensors.items()
    }
    if "b_gate" in converted:
        converted["b_enc"] = torch.zeros_like(converted["b_gate"])
    try:
        return SaeWeights(**converted, **parts.settings)
    except ValueError as error:
        raise DictionaryError(f"dictionary {name}: {str(error).removeprefix('SaeWeights: ')}") from None


def _skip(name: str, parts: Parts, translate: Translate, request: Request) -> Tensor:
    value = translate(parts).tensors["W_skip"]
    _check_values(name, "W_skip", value)
    return _convert(name, "W_skip", value, _dtype("W_skip", value, request.model), request.model)


def _check_kinds(name: str, tensors: Mapping[str, Tensor]) -> None:
    for key, value in tensors.items():
        if value.layout != torch.strided or value.dtype not in DTYPES.values():
            raise DictionaryError(
                f"dictionary {name}: weight {key} is {value.dtype}, {value.layout}; expected plain floating-point"
                " numbers"
            )


def _check_values(name: str, key: str, value: Tensor) -> None:
    """A threshold of +inf is a dead feature."""
    if not bool((~value.isnan() if key == "threshold" else value.isfinite()).all()):
        raise DictionaryError(f"dictionary {name}: weight {key} contains NaN or Inf; the file is broken")


def _check_shapes(name: str, tensors: Mapping[str, Tensor]) -> None:
    """W_enc [d_in, d_sae], W_dec [d_sae, d_out], W_skip [d_in, d_out]; the biases say what d_sae and d_out are."""
    bias = tensors["b_gate"] if "b_gate" in tensors else tensors["b_enc"]
    for key, value in (("its encoder bias", bias), ("b_dec", tensors["b_dec"])):
        if value.ndim != 1:
            raise DictionaryError(f"dictionary {name}: {key} has shape {tuple(value.shape)}; expected one dimension")
    d_sae, d_out = len(bias), len(tensors["b_dec"])
    d_in = tensors["W_enc"].numel() // max(d_sae, 1)
    expected = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out)}
    if "W_skip" in tensors:
        expected["W_skip"] = (d_in, d_out)
    for key, wanted in expected.items():
        shape = tuple(tensors[key].shape)
        if shape == wanted:
            continue
        if shape == wanted[::-1]:
            what = "it looks transposed; transpose it and save it again"
        else:
            what = "the file is broken, or its tensors are of different dictionaries"
        raise DictionaryError(f"dictionary {name}: {key} has shape {shape}; expected {wanted} by its biases; {what}")


def _dtype(key: str, value: Tensor, model: Model) -> torch.dtype:
    """What to keep a tensor in: the dtype computed in, or half precision for matrices stored so, unless in float64."""
    narrow = value.dtype.itemsize == 2 and key in ("W_enc", "W_dec", "W_skip")
    wide = compute_dtype(model.dtype)
    return value.dtype if narrow and wide != torch.float64 else wide


def _convert(name: str, key: str, value: Tensor, dtype: torch.dtype, model: Model) -> Tensor:
    converted = value.to(model.device, dtype)
    if bool((converted.isinf() & value.isfinite().to(converted.device)).any()):
        raise DictionaryError(
            f"dictionary {name}: weight {key} holds {float(value.abs().max()):.3g}, more than {dtype} can hold;"
            " load the model in float64"
        )
    return converted
