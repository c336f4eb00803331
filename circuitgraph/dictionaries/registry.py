"""What sae-lens's registry holds: releases of dictionaries per model, and the sets that have a name here.

In comes the registry that the sae-lens package carries (nothing is downloaded) and the named sets; out come `Release`
values and the text of both. Hooks and widths are read from the names of releases and dictionaries, since the registry
does not state them; a name that says nothing gives an unknown. This module loads no dictionary and knows no model.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuitgraph.dictionaries.named_sets import NamedSet, sets_file
from circuitgraph.errors import CircuitGraphError
from circuitgraph.text import table_text

_LAYER = re.compile(r"^blocks\.(\d+)\.|(?:^|[/_])layer_?(\d+)|^l(\d+)[amr]_")
_WIDTH = re.compile(
    r"width_(\d+[km])|width-2pow(\d+)|[-_]w?(\d+[kx])(?=[-_]|$)|hook_[a-z_]+_(\d{3,})(?=[:_]|$)|_ds(\d+)_"
)
# What a name says about the place, tried from the top in the dictionary's id, its path, and the release's name.
_HOOKS = (
    (r"transcoder|clt", "transcoder"),
    (r"hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out|z)(?![a-z])", None),
    (r"(resid_post|attn_out|mlp_out)(?![a-z])", None),
    (r"^embedding", "embed"),
    (r"^l\d+a_|-att(?![a-z])", "attn_out"),
    (r"^l\d+m_|-mlp(?![a-z])", "mlp_out"),
    (r"^l\d+r_|-res(?![a-z])", "resid_post"),
)
# Where sae-lens's loader of that name says otherwise.
_LOADERS = {
    "gemma_2": {"attn_out": "z"},
    "gemma_3": {"attn_out": "z"},
    "goodfire": {"?": "resid_post"},
    "qwen_scope": {"?": "resid_post"},
}


@dataclass(frozen=True)
class Release:
    """One release: per hook the layers that its dictionaries cover, and their widths as the names spell them.

    hooks: hook -> layers, ascending; "?" for dictionaries whose name and release name no place. complete: whether one
    hook has every layer of the model; None if the number of layers is unknown. Which number a model has is general
    knowledge, kept in sets.json; the registry does not say.
    """

    name: str
    model: str
    n_dictionaries: int
    hooks: Mapping[str, tuple[int, ...]]
    widths: tuple[str, ...]
    complete: bool | None


def list_releases(registry: Mapping[str, Any], *, model: str | None = None) -> list[Release]:
    """The releases of the registry, of one model if given, ordered by model and name.

    CircuitGraphError with the nearest names for a model that has none.
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


def registry_text(releases: Sequence[Release], sets: Sequence[NamedSet]) -> str:
    """What `circuitgraph dictionaries` prints."""
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


def _release(name: str, entry: Any, n_layers: int | None) -> Release:
    hooks: dict[str, set[int]] = {}
    widths: set[str] = set()
    for key, path in entry.saes_map.items():
        hook = _hook((key, path, name))
        hook = _LOADERS.get(entry.conversion_func or "", {}).get(hook, hook)
        layer = _LAYER.search(key)
        hooks.setdefault(hook, set()).update(int(n) for n in (layer.groups() if layer else ()) if n)
        widths |= _width((key, path, name))
    complete = None if n_layers is None else any(found == set(range(n_layers)) for found in hooks.values())
    ordered = {hook: tuple(sorted(hooks[hook])) for hook in sorted(hooks)}
    return Release(name, entry.model, len(entry.saes_map), ordered, tuple(sorted(widths, key=_size)), complete)


def _hook(names: Iterable[str]) -> str:
    """The place that the first telling name tells; "?" if none does."""
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
    """Sort key of a width as names spell it; multiples of the model's width (8x) stand last."""
    return width.endswith("x"), float(width.rstrip("kmx")) * {"k": 1e3, "m": 1e6}.get(width[-1], 1)


def _nearest(model: str, models: Iterable[str]) -> str:
    """` Did you mean ...?` with at most five names: those that contain the word, else the nearest, owners left aside."""
    names = sorted(models)
    word = model.rpartition("/")[2].lower()
    by_ending = {name.rpartition("/")[2].lower(): name for name in names}
    near = [name for name in names if word in name.lower()][:5]
    near = near or [by_ending[ending] for ending in difflib.get_close_matches(word, by_ending, n=1, cutoff=0.5)]
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


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
