"""Saving a graph in any format and loading one of any format, by the suffix of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx

from circuitgraph.errors import GraphError, did_you_mean
from circuitgraph.files import check_writable
from circuitgraph.formats.cytoscape import value_from_cyjs
from circuitgraph.formats.eap import value_from_eap
from circuitgraph.formats.kinds import FORMATS, Format
from circuitgraph.formats.native import read_graph, value_to_graph
from circuitgraph.formats.neuronpedia_read import value_from_neuronpedia
from circuitgraph.formats.untrusted import open_bytes, parse_json, read_text, reading
from circuitgraph.graphs.schema import require_graph

_SUFFIXES = {suffix: item for item in FORMATS.values() for suffix in item.suffixes}


def save(graph: nx.MultiDiGraph, path: str | Path, format: str | None = None, **options: Any) -> None:
    """Write the graph as the suffix says: .json, .html, .svg, .png, .graphml, .csv, ... (all in `FORMATS`).

    Whatever was at `path` before is unchanged if anything fails.

    Args:
        graph: The circuit graph.
        path: The file that is written; a folder for mib.
        format: Its name, where the suffix does not tell it, as for a Neuronpedia file called .json.
        **options: What only some formats take: compare, names and links of .html, slug and scan of neuronpedia,
            circuits of mib.

    Raises GraphError for an unknown format, an option that it does not take and a graph that it cannot hold, and
    CircuitGraphError where nothing can be written.
    """
    require_graph(graph, with_metric=False)
    check_save(path, format=format, **options)
    chosen = _chosen(path, format, "write")
    assert chosen.write is not None
    chosen.write(graph, path, **options)


def check_save(path: str | Path, format: str | None = None, **options: Any) -> None:
    """Raise what `save` would raise whatever the graph: to be asked before a long computation, not after it."""
    chosen = _chosen(path, format, "write")
    if chosen.write is None:
        raise GraphError(f"format {chosen.name} is read, not written; choose one of {', '.join(_able('write'))}")
    for name in options:
        if name not in chosen.options:
            takes = [item.name for item in FORMATS.values() if name in item.options]
            hint = f"; {' and '.join(takes)} does" if takes else ""
            raise GraphError(f"format {chosen.name} takes no option {name!r}{hint}")
    chosen.ready()
    if chosen.suffixes:  # without one it is a folder, which is made
        check_writable(path)


def load(path: str | Path, format: str | None = None) -> nx.MultiDiGraph:
    """The graph in a file of any readable format, told by the suffix, and by the content for .json.

    Args:
        path: The file, or the folder of a mib circuit.
        format: Its name, where neither suffix nor content tells it.

    Raises GraphError, with the file's name, for what is no graph.
    """
    if format is None and Path(path).is_dir():
        format = "mib"
    chosen = _chosen(path, format, "read")
    if chosen.read is None:
        raise GraphError(f"format {chosen.name} is written, not read; readable are {', '.join(_able('read'))}")
    return _load_json(path) if format is None and chosen.name == "native" else chosen.read(path)


def _load_json(path: str | Path) -> nx.MultiDiGraph:
    with reading(path):
        with open_bytes(path) as file:
            start = file.read(12)
        if start == b'{\n"format": ' or not start.lstrip().startswith((b"{", b"[")):
            return read_graph(path)
        value = parse_json(read_text(path))
        if isinstance(value, dict):
            if "elements" in value:
                return value_from_cyjs(value)
            if "cfg" in value and "edges" in value:
                return value_from_eap(value)
            if "metadata" in value or "qParams" in value or "links" in value:
                return value_from_neuronpedia(value)
        return value_to_graph(value)


def _chosen(path: str | Path, name: str | None, what: str) -> Format:
    """The format of that name, else the one with the longest suffix that the file's name ends in."""
    if name is not None:
        if name not in FORMATS:
            known = ", ".join(FORMATS)
            raise GraphError(f"format {name!r} is unknown; expected one of {known}.{did_you_mean(name, FORMATS)}")
        return FORMATS[name]
    file = Path(path).name.lower()
    fitting = [suffix for suffix in _SUFFIXES if file.endswith(suffix)]
    if fitting:
        return _SUFFIXES[max(fitting, key=len)]
    able, found = _able(what), Path(file).suffix
    known_suffixes = [suffix for item in able.values() for suffix in item.suffixes]
    raise GraphError(
        f"cannot tell the format of {str(path)!r}: it has {repr(found) if found else 'no suffix'}, expected one of"
        f" {', '.join(known_suffixes)}, or name one of {', '.join(able)}.{did_you_mean(found, known_suffixes)}"
    )


def _able(what: str) -> dict[str, Format]:
    return {name: item for name, item in FORMATS.items() if getattr(item, what) is not None}
