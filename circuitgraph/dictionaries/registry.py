"""What can be loaded by name: the releases of sae-lens' registry, and our named sets of them (`gpt2-small/z`).

The registry comes with the sae-lens package, so nothing is downloaded. It does not state hooks and widths: they are
read from the names of releases and dictionaries, and "?" means unknown. `sets.json` holds the named sets, and how many
layers each model has, which the registry does not say either.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitgraph.errors import CircuitGraphError
from circuitgraph.text import table_text

SETS = Path(__file__).parent / "sets.json"

_LAYER = re.compile(r"^blocks\.(\d+)\.|(?:^|[/_])layer_?(\d+)|^l(\d+)[amr]_")
_WIDTH = re.compile(
    r"width_(\d+[km])|width-2pow(\d+)|[-_]w?(\d+[kx])(?=[-_]|$)|hook_[a-z_]+_(\d{3,})(?=[:_]|$)|_ds(\d+)_"
)
# Patterns that tell the hook, tried in this order on the dictionary's id, then on its path, then on the release's name.
_HOOKS = (
    (r"transcoder|clt", "transcoder"),
    (r"hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out|z)(?![a-z])", None),
    (r"(resid_post|attn_out|mlp_out)(?![a-z])", None),
    (r"^embedding", "embed"),
    (r"^l\d+a_|-att(?![a-z])", "attn_out"),
    (r"^l\d+m_|-mlp(?![a-z])", "mlp_out"),
    (r"^l\d+r_|-res(?![a-z])", "resid_post"),
)
# Corrections for the dictionaries that one of sae-lens' loaders reads: name of the loader -> hook by name -> hook.
_LOADERS = {
    "gemma_2": {"attn_out": "z"},
    "gemma_3": {"attn_out": "z"},
    "goodfire": {"?": "resid_post"},
    "qwen_scope": {"?": "resid_post"},
}


@dataclass(frozen=True)
class Release:
    """One release of the registry.

    Args:
        name: The RELEASE of RELEASE/ID.
        model: The model that its dictionaries belong to.
        n_dictionaries: How many it has.
        hooks: Hook -> the layers that its dictionaries cover, ascending; "?" for dictionaries whose names tell no hook.
        widths: The widths, as the names spell them.
        complete: Whether one hook has every layer of the model; None if the model's number of layers is unknown.
    """

    name: str
    model: str
    n_dictionaries: int
    hooks: Mapping[str, tuple[int, ...]]
    widths: tuple[str, ...]
    complete: bool | None


@dataclass(frozen=True)
class NamedSet:
    """A named set of dictionaries: one for each layer of a model and each hook.

    Args:
        name: What `load_dictionaries` takes.
        model: The model that it belongs to.
        patterns: As sets.json writes them, RELEASE/ID with `*`.
        sources: The RELEASE/ID that they match, by pattern and layer.
    """

    name: str
    model: str
    patterns: tuple[str, ...]
    sources: tuple[str, ...]


def read_registry() -> dict[str, Any]:
    """release -> its entry (model, saes_map id -> path, ...) in the registry of the installed sae-lens."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return dict(get_pretrained_saes_directory())


@functools.cache
def sets_file() -> dict[str, Any]:
    """{"layers": {model: number}, "sets": {name: {"model", "dictionaries"}}}."""
    data: dict[str, Any] = json.loads(SETS.read_text(encoding="utf-8"))
    return data


# releases ------------------------------------------------------------------------------------------------------


def list_releases(registry: Mapping[str, Any], *, model: str | None = None) -> list[Release]:
    """The releases of the registry, ordered by model and name.

    Args:
        registry: From `read_registry`.
        model: Only those of this model.

    Raises CircuitGraphError, with the nearest names, for a model that has none.
    """
    layers = sets_file()["layers"]
    models = {entry.model for entry in registry.values()}
    if model is not None and model not in models:
        raise CircuitGraphError(f"sae-lens's registry has no dictionaries of model {model!r}.{_nearest(model, models)}")
    releases = [
        _release(name, entry, layers.get(entry.model))
        for name, entry in registry.items()
        if model is None or entry.model == model
    ]
    return sorted(releases, key=lambda release: (release.model, release.name))


def _release(name: str, entry: Any, n_layers: int | None) -> Release:
    layers: dict[str, set[int]] = {}
    widths: set[str] = set()
    for key, path in entry.saes_map.items():
        hook = _hook((key, path, name))
        hook = _LOADERS.get(entry.conversion_func or "", {}).get(hook, hook)
        match = _LAYER.search(key)
        layers.setdefault(hook, set()).update(int(digits) for digits in (match.groups() if match else ()) if digits)
        widths |= _width((key, path, name))
    complete = None if n_layers is None else set(range(n_layers)) in layers.values()
    hooks = {hook: tuple(sorted(layers[hook])) for hook in sorted(layers)}
    return Release(name, entry.model, len(entry.saes_map), hooks, tuple(sorted(widths, key=_size)), complete)


def _hook(names: Iterable[str]) -> str:
    """The hook that the first telling name tells; "?" if none does."""
    for text in names:
        for pattern, hook in _HOOKS:
            if match := re.search(pattern, text):
                return hook or match[1]
    return "?"


def _width(names: Iterable[str]) -> set[str]:
    """The width in the first name that has one, as it is spelled there (16k, 24576, 8x; 2pow12 as 4096)."""
    for text in names:
        if match := _WIDTH.search(text):
            return {str(2 ** int(match[2]))} if match[2] else {next(group for group in match.groups() if group)}
    return set()


def _size(width: str) -> tuple[bool, float]:
    """Sort key of a width as names spell it; multiples of the model's width (8x) come last."""
    return width.endswith("x"), float(width.rstrip("kmx")) * {"k": 1e3, "m": 1e6}.get(width[-1], 1)


def _nearest(model: str, models: Iterable[str]) -> str:
    """` Did you mean ...?` with at most five names: those that contain the word, else the nearest without its owner."""
    names = sorted(models)
    word = model.rpartition("/")[2].lower()
    by_ending = {name.rpartition("/")[2].lower(): name for name in names}
    near = [name for name in names if word in name.lower()][:5]
    near = near or [by_ending[ending] for ending in difflib.get_close_matches(word, by_ending, n=1, cutoff=0.5)]
    return _did_you_mean(near)


# named sets ----------------------------------------------------------------------------------------------------


def list_sets(registry: Mapping[str, Any], *, model: str | None = None) -> list[NamedSet]:
    """The named sets, with the dictionaries of the registry that their patterns match.

    Args:
        registry: From `read_registry`.
        model: Only those of this model.
    """
    sets = []
    for name, entry in sets_file()["sets"].items():
        if model is None or entry["model"] == model:
            sources = tuple(source for pattern in entry["dictionaries"] for source in _resolve(registry, pattern))
            sets.append(NamedSet(name, entry["model"], tuple(entry["dictionaries"]), sources))
    return sets


def is_set(name: str) -> bool:
    """Whether there is a named set of this name."""
    return name in sets_file()["sets"]


def set_sources(name: str) -> list[tuple[str, str]]:
    """(release, id) of every dictionary in the set of this name, by pattern and layer."""
    sources = next(named.sources for named in list_sets(read_registry()) if named.name == name)
    return [(release, key) for release, _, key in (source.partition("/") for source in sources)]


def suggestions(name: str, registry: Iterable[str] = ()) -> str:
    """` Did you mean ...?` with the nearest names of sets, and of releases of the registry; else the empty string."""
    near = difflib.get_close_matches(name, sets_file()["sets"], n=2, cutoff=0.6)
    release, _, rest = name.partition("/")
    near += [f"{known}/{rest}" for known in difflib.get_close_matches(release, list(registry), n=2, cutoff=0.6)]
    return _did_you_mean(near)


def _did_you_mean(names: Sequence[str]) -> str:
    return f" Did you mean {' or '.join(map(repr, names))}?" if names else ""


def _resolve(registry: Mapping[str, Any], pattern: str) -> list[str]:
    """The sources RELEASE/ID that the pattern matches, by layer."""
    release, _, ids = pattern.partition("/")
    if release not in registry:
        return []
    keys = fnmatch.filter(registry[release].saes_map, ids)
    return [f"{release}/{key}" for key in sorted(keys, key=lambda key: [int(n) for n in re.findall(r"\d+", key)])]


# text ----------------------------------------------------------------------------------------------------------


def registry_text(releases: Sequence[Release], sets: Sequence[NamedSet]) -> str:
    """What `circuitgraph dictionaries` prints: a table of the releases and one of the named sets."""
    complete = {True: "yes", False: "no", None: "unknown"}
    rows = [
        [r.name, r.model, str(r.n_dictionaries), complete[r.complete], _hooks_text(r.hooks), ", ".join(r.widths)]
        for r in releases
    ]
    lines = table_text(["release", "model", "number", "every layer", "hooks and layers", "widths"], rows)
    if sets:
        named = [
            [s.name, s.model, str(len(s.sources)), pattern] if i == 0 else ["", "", "", pattern]
            for s in sets
            for i, pattern in enumerate(s.patterns)
        ]
        lines += ["", *table_text(["named set", "model", "number", "dictionaries (* stands for each layer)"], named)]
        lines += ["", "A named set, or RELEASE/ID, can be given as a source: --dictionaries " + sets[0].name]
    return "\n".join(lines) + "\n"


def _hooks_text(hooks: Mapping[str, tuple[int, ...]]) -> str:
    return "; ".join(f"{hook} {ranges(layers)}".rstrip() for hook, layers in hooks.items())


def ranges(numbers: Sequence[int]) -> str:
    """Ascending whole numbers as text: 0-3, 5, 7-8."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
