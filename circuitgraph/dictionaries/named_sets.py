"""Sets of dictionaries that have a name: `gpt2-small/z` for the RELEASE/ID of every layer.

In comes `sets.json` and the registry that the sae-lens package carries; out come `NamedSet` values and the sources that a
name stands for. The numbers of layers in `sets.json` are general knowledge of the models, not of the registry. This module
loads no dictionary and knows no model.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETS = Path(__file__).parent / "sets.json"


@dataclass(frozen=True)
class NamedSet:
    """A set of dictionaries with a name, one for each layer of the model and each place.

    patterns: as sets.json writes them. sources: the RELEASE/ID they match, which `load_dictionaries` takes.
    """

    name: str
    model: str
    patterns: tuple[str, ...]
    sources: tuple[str, ...]


def read_registry() -> dict[str, Any]:
    """release -> its entry (model, saes_map id -> path) in the registry of the installed sae-lens."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return dict(get_pretrained_saes_directory())


def list_sets(registry: Mapping[str, Any], *, model: str | None = None) -> list[NamedSet]:
    """The named sets, of one model if given, with their patterns resolved to RELEASE/ID of the registry, by layer."""
    sets = []
    for name, entry in sets_file()["sets"].items():
        if model is None or entry["model"] == model:
            sources = tuple(source for pattern in entry["dictionaries"] for source in _resolve(registry, pattern))
            sets.append(NamedSet(name, entry["model"], tuple(entry["dictionaries"]), sources))
    return sets


def is_set(name: str) -> bool:
    """Whether sets.json has a set of this name."""
    return name in sets_file()["sets"]


def set_sources(name: str) -> list[tuple[str, str]]:
    """(release, id) of every dictionary in the set of this name, by pattern and layer."""
    sources = next(found.sources for found in list_sets(read_registry()) if found.name == name)
    return [(release, key) for release, _, key in (source.partition("/") for source in sources)]


def suggestions(name: str, registry: Iterable[str] = ()) -> str:
    """` Did you mean ...?` with the nearest names of sets, and of releases of the registry; else the empty string."""
    near = difflib.get_close_matches(name, sets_file()["sets"], n=2, cutoff=0.6)
    release, _, rest = name.partition("/")
    near += [f"{found}/{rest}" for found in difflib.get_close_matches(release, list(registry), n=2, cutoff=0.6)]
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


@functools.cache
def sets_file() -> dict[str, Any]:
    """{"layers": {model: number}, "sets": {name: {"model", "dictionaries"}}}."""
    data: dict[str, Any] = json.loads(SETS.read_text(encoding="utf-8"))
    return data


def _resolve(registry: Mapping[str, Any], pattern: str) -> list[str]:
    """The sources RELEASE/ID that the pattern matches, by layer."""
    release, _, ids = pattern.partition("/")
    if release not in registry:
        return []
    found = fnmatch.filter(registry[release].saes_map, ids)
    return [f"{release}/{key}" for key in sorted(found, key=lambda key: [int(n) for n in re.findall(r"\d+", key)])]
