"""Tensors and settings from files. Nothing in a file is executed: a pickle that holds more than tensors is refused.

What the tensors mean is for the readers of each format to say.
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
from circuitgraph.models.model import DTYPES

# Files of weights that can be a source of their own.
SUFFIXES = (".npz", ".pt", ".safetensors")

# As safetensors' headers spell them: F64, F32, F16, BF16. Tensors of other types are read, to be refused by name.
_DTYPES = {name.replace("bfloat", "BF").replace("float", "F"): dtype for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Tensors:
    """The tensors of one dictionary, perhaps still on disk.

    Args:
        read: Gives them all.
        outline: Gives their shapes and dtypes: tensors of more than one number are on the meta device, without numbers.
            It reads as little as the format allows.
    """

    read: Callable[[], dict[str, Tensor]]
    outline: Callable[[], dict[str, Tensor]]


def held(tensors: Mapping[str, Tensor]) -> Tensors:
    """Tensors that are in memory already."""
    return Tensors(lambda: dict(tensors), lambda: _without_numbers(tensors))


def from_safetensors(paths: Sequence[Path], name: str) -> Tensors:
    """Every tensor of some safetensors files, mapped into memory, so that only what is used is read from disk."""
    return Tensors(
        lambda: {key: value for path in paths for key, value in _read_safetensors(path, name).items()},
        lambda: {key: value for path in paths for key, value in _outline_safetensors(path, name).items()},
    )


def from_npz(path: Path, name: str) -> Tensors:
    """Every array of an .npz file."""
    return Tensors(lambda: _read_npz(path, name), lambda: _outline_npz(path, name))


def from_state_dict(path: Path, name: str, *, key: str | None = None, inert: Sequence[str] = ()) -> Tensors:
    """Every tensor of a state dict that torch.save wrote; anything else in the pickle is refused, not executed.

    Args:
        path: The file.
        name: The dictionary's name, for error messages.
        key: Where in the file's dict the state dict is, unless the file holds nothing else.
        inert: Classes, as the pickle names them, whose objects may be beside it; they become empty shells, and no code
            of theirs is imported.
    """
    return Tensors(
        lambda: _read_state_dict(path, name, key, inert),
        lambda: _without_numbers(_read_state_dict(path, name, key, inert, mmap=zipfile.is_zipfile(path))),
    )


def read_yaml(path: Path, name: str) -> dict[str, Any]:
    """The mapping in a YAML file of plain values; DictionaryError for anything else."""
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
    """The object in a JSON file; DictionaryError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DictionaryError(f"dictionary {name}: {path.name} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise DictionaryError(f"dictionary {name}: {path.name} holds {type(value).__name__}; expected an object")
    return value


def _without_numbers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key: value if value.numel() <= 1 or value.layout != torch.strided else value.to("meta")
        for key, value in tensors.items()
    }


def _read_safetensors(path: Path, name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise _unreadable(path, name, "a safetensors file", error) from None


def _outline_safetensors(path: Path, name: str) -> dict[str, Tensor]:
    """By the header."""
    from safetensors import SafetensorError, safe_open

    outline = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (it is no mapping)
                header = file.get_slice(key)
                shape, dtype = header.get_shape(), _DTYPES.get(header.get_dtype())
                small = dtype is None or math.prod(shape) <= 1
                outline[key] = file.get_tensor(key) if small else torch.empty(shape, dtype=dtype, device="meta")
    except (OSError, SafetensorError, ValueError) as error:
        raise _unreadable(path, name, "a safetensors file", error) from None
    return outline


_NPZ = "an .npz file of plain arrays"
_NPZ_ERRORS = (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error)


def _open_npz(path: Path) -> np.lib.npyio.NpzFile:
    arrays = np.load(path, allow_pickle=False)
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise ValueError("it holds a single array")
    return arrays


def _read_npz(path: Path, name: str) -> dict[str, Tensor]:
    try:
        with _open_npz(path) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    except _NPZ_ERRORS as error:
        raise _unreadable(path, name, _NPZ, error) from None


def _outline_npz(path: Path, name: str) -> dict[str, Tensor]:
    """By the header of each array."""
    outline = {}
    try:
        with _open_npz(path) as arrays:
            for member in arrays.zip.namelist():  # type: ignore[union-attr]
                key = member.removesuffix(".npy")
                with arrays.zip.open(member) as file:  # type: ignore[union-attr]
                    first = np.lib.format.read_magic(file) == (1, 0)
                    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
                    shape, _, dtype = read(file)
                if math.prod(shape) <= 1:
                    outline[key] = torch.from_numpy(arrays[key])
                else:
                    outline[key] = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, device="meta")
    except _NPZ_ERRORS as error:
        raise _unreadable(path, name, _NPZ, error) from None
    return outline


def _read_state_dict(
    path: Path, name: str, key: str | None, inert: Sequence[str], *, mmap: bool = False
) -> dict[str, Tensor]:
    """mmap: leave the numbers on disk until they are used."""
    expected = "a state dict of plain tensors"
    shells: list[Any] = [(type("Shell", (), {}), path_of_class) for path_of_class in inert]
    try:
        with torch.serialization.safe_globals(shells):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises whatever its unpickler meets; nothing of the file has been executed
        reason = f"{type(error).__name__}, so nothing of it was loaded or executed"
        raise _unreadable(path, name, expected, reason) from None
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
