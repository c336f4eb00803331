"""Graphs of older files in today's words.

Version 1 had no counts. Versions 1 and 2 called things otherwise (see `_SETTINGS`), and wrote a copy of the clean
prompt, with its metric, where there was no corrupted one. A file without a version is one of version 2.
"""

from __future__ import annotations

from typing import Any

from circuitgraph.errors import GraphError
from circuitgraph.formats.untrusted import one_line
from circuitgraph.graphs.schema import VERSION

# setting -> what it is called now and, where they changed, its values
_TREATMENTS = {"component": "node", "through": "frozen", "cut": "dropped"}
_SETTINGS: dict[str, tuple[str, dict[str, str]]] = {
    "attention": ("attention", _TREATMENTS),
    "mlp": ("mlp", _TREATMENTS),
    "qk": ("qk", {"recompute": "ablate"}),
    "max_readers": ("max_traced", {}),
    "trace_errors": ("errors_as_targets", {}),
}
_EVIDENCE = {"completeness": "complement_faithfulness"}
_ALIGNMENT = {"places": "positions"}
_NODE = {"inflow": "stream_input"}


def known_version(version: Any) -> int:
    """The version of a file; GraphError if this release does not read it."""
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= VERSION:
        raise GraphError(
            f"the file has version {one_line(repr(version))[:40]}; this release reads versions 1 to {VERSION}"
        )
    return version


def todays_facts(facts: dict[str, Any], version: int) -> dict[str, Any]:
    """The graph attributes of a file of that version as this release writes them."""
    if version == VERSION:
        return facts
    found = dict(facts)
    if isinstance(found.get("provenance"), dict):
        found["provenance"] = _provenance(found["provenance"])
    if "evidence" in found:
        found["evidence"] = _renamed_throughout(found["evidence"], _EVIDENCE)
    if _corrupted_is_a_copy(found):
        found["tokens"] = found["tokens"] | {"corrupted": None}
        found["metric"] = found["metric"] | {"corrupted": None}
    return found


def todays_node(attributes: dict[str, Any], facts: dict[str, Any], version: int) -> dict[str, Any]:
    """The attributes of a node of such a file, whose graph attributes are `facts` in today's words."""
    if version == VERSION:
        return attributes
    found = _renamed(attributes, _NODE)
    metric = facts.get("metric")
    if found.get("kind") == "metric" and isinstance(metric, dict) and metric.get("corrupted", 0.0) is None:
        found["attribution"] = metric.get("clean")
    return found


def _provenance(given: dict[str, Any]) -> dict[str, Any]:
    found = dict(given)
    if isinstance(found.get("settings"), dict):
        settings = {}
        for name, value in found["settings"].items():
            renamed, values = _SETTINGS.get(name, (name, {}))
            settings[renamed] = values.get(value, value) if isinstance(value, str) else value
        found["settings"] = settings
    if isinstance(found.get("alignment"), dict):
        found["alignment"] = _renamed(found["alignment"], _ALIGNMENT)
    return found


def _corrupted_is_a_copy(facts: dict[str, Any]) -> bool:
    """Whether nothing in a file knows of another prompt: neither its tokens, its prompts nor its metric."""
    tokens, metric, provenance = (facts.get(name) for name in ("tokens", "metric", "provenance"))
    if not (isinstance(tokens, dict) and isinstance(metric, dict) and isinstance(provenance, dict)):
        return False
    prompts = provenance.get("prompts", [])
    return (
        tokens.get("clean") == tokens.get("corrupted")
        and metric.get("corrupted") in (metric.get("clean"), 0.0)
        and isinstance(prompts, list)
        and all(isinstance(p, dict) and p.get("corrupted", p.get("clean")) == p.get("clean") for p in prompts)
    )


def _renamed(given: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in given.items()}


def _renamed_throughout(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {names.get(name, name): _renamed_throughout(item, names) for name, item in value.items()}
    return [_renamed_throughout(item, names) for item in value] if isinstance(value, list) else value
