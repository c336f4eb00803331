"""Tensors and settings from files, without running anything that is in them.

In comes a path; out come {name: tensor} or a JSON object. A pickle that holds more than tensors is refused unread. This
module knows neither what the tensors mean nor what a dictionary is.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitgraph.errors import DictionaryError


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


def read_state_dict(path: Path, name: str) -> dict[str, Tensor]:
    """Every tensor of a state dict that torch.save wrote; anything else in the pickle is refused, not executed."""
    expected = "a state dict of plain tensors"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler meets; nothing of the file has been executed
        first = f"{type(error).__name__}, so nothing of it was loaded or executed"
        raise _unreadable(path, name, expected, first) from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise _unreadable(path, name, expected, f"it holds {type(state).__name__} with other values")
    return {str(key): value.detach() for key, value in state.items()}


def _unreadable(path: Path, name: str, expected: str, reason: object) -> DictionaryError:
    text = " ".join(str(reason).split())[:200]
    return DictionaryError(
        f"dictionary {name}: {path.name} is broken or no dictionary: {text or 'no reason given'}; expected {expected};"
        " download or save it again"
    )
