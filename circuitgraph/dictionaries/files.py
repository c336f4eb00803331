"""Tensors and settings from files, without running anything that is in them.

In comes a path; out come {name: tensor}, now or when asked for, or the object in a JSON or YAML file. A pickle that holds
more than tensors is refused unread. This module knows neither what the tensors mean nor what a dictionary is.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitgraph.errors import DictionaryError

# As safetensors' headers spell them; tensors of other types are read to be refused by name.
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Tensors:
    """The tensors of one dictionary, where they are: `read` gives them, `outline` their shapes and dtypes.

    In an outline, tensors of more than one number are on the meta device, that is without their numbers.
    """

    read: Callable[[], dict[str, Tensor]]
    outline: Callable[[], dict[str, Tensor]]


def held(tensors: Mapping[str, Tensor]) -> Tensors:
    """Tensors that are in memory already."""
    return from_reader(lambda: dict(tensors))


def from_reader(read: Callable[[], dict[str, Tensor]]) -> Tensors:
    """Tensors of files whose shapes cannot be known without reading them."""
    return Tensors(
        read,
        lambda: {
            key: value if value.numel() <= 1 or value.layout != torch.strided else value.to("meta")
            for key, value in read().items()
        },
    )


def from_safetensors(paths: Sequence[Path], name: str) -> Tensors:
    """Every tensor of some safetensors files, mapped into memory, so that only what is used is read from disk."""
    return Tensors(
        lambda: {key: value for path in paths for key, value in read_safetensors(path, name).items()},
        lambda: {key: value for path in paths for key, value in _outline(path, name).items()},
    )


def read_yaml(path: Path, name: str) -> dict[str, Any]:
    """The mapping in a YAML file of plain values."""
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DictionaryError(f"dictionary {name}: {path.name} is no YAML of plain values: {reason}") from None
    if not isinstance(value, dict):
        raise DictionaryError(f"dictionary {name}: {path.name} holds {type(value).__name__}; expected a mapping")
    return value


def read_json(path: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DictionaryError(f"dictionary {name}: {path.name} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise DictionaryError(f"dictionary {name}: {path.name} holds {type(value).__name__}; expected an object")
    return value


def read_safetensors(path: Path, name: str) -> dict[str, Tensor]:
    """Every tensor of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise _unreadable(path, name, "a safetensors file", error) from None


def _outline(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file by its header."""
    from safetensors import SafetensorError, safe_open

    outline = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (it is no mapping)
                header = file.get_slice(key)
                shape, dtype = header.get_shape(), _DTYPES.get(header.get_dtype())
                small = dtype is None or 0 in shape or math.prod(shape) == 1
                outline[key] = file.get_tensor(key) if small else torch.empty(shape, dtype=dtype, device="meta")
    except (OSError, SafetensorError, ValueError) as error:
        raise _unreadable(path, name, "a safetensors file", error) from None
    return outline


def read_npz(path: Path, name: str) -> dict[str, Tensor]:
    """Every array of an .npz file."""
    expected = "an .npz file of plain arrays"
    try:
        arrays = np.load(path, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        with arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, name, expected, error) from None


def read_state_dict(path: Path, name: str, *, key: str | None = None, inert: Sequence[str] = ()) -> dict[str, Tensor]:
    """Every tensor of a state dict that torch.save wrote; anything else in the pickle is refused, not executed.

    key: where in the file's dict the state dict stands, if it is not the whole. inert: classes, as the pickle names them,
    whose objects may stand beside it; they become empty shells, and no code of theirs is imported.
    """
    expected = "a state dict of plain tensors"
    shells: list[Any] = [(type("Shell", (), {}), path_of_class) for path_of_class in inert]
    try:
        with torch.serialization.safe_globals(shells):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler meets; nothing of the file has been executed
        first = f"{type(error).__name__}, so nothing of it was loaded or executed"
        raise _unreadable(path, name, expected, first) from None
    if key is not None and isinstance(state, Mapping) and key in state:
        state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise _unreadable(path, name, expected, f"it holds {type(state).__name__} with other values")
    return {str(key): value.detach() for key, value in state.items()}


def _unreadable(path: Path, name: str, expected: str, reason: object) -> DictionaryError:
    text = " ".join(str(reason).split())[:200]
    return DictionaryError(
        f"dictionary {name}: {path.name} is broken or no dictionary: {text or 'no reason given'}; expected {expected};"
        " download or save it again"
    )
