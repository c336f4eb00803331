"""The native graph file: versioned JSON that loses nothing and is byte-identical when written again.

The layout, documented by native.schema.json beside this file:

    {"format": "circuitgraph", "version": 3,
     "counts": {"edges": 479, "nodes": 183},                          how many lines follow
     "graph": {graph attributes},
     "nodes": [{"id": "z.2/f17@5", ...node attributes}, ...],         in forward order
     "edges": [{"source": id, "target": id, "kind": "ov", ...}, ...]} by target, source, kind

One node or edge stands on a line, its id or ends first, then the other keys sorted. NaN, Inf and numbers beyond 64 bits
are refused. A name that ends in .gz is gzipped. A file is written in pieces and, while its lines stand as above, read
in pieces. Files of versions 1 and 2 are read too (`versions`).
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import add
from pathlib import Path
from typing import Any

import networkx as nx

from circuitgraph.errors import GraphError
from circuitgraph.files import write_atomically
from circuitgraph.formats.build import Builder, check, in_order
from circuitgraph.formats.untrusted import one_line, open_bytes, parse_json, read_text, reading
from circuitgraph.formats.values import dumps, plain_graph, take_object
from circuitgraph.formats.versions import known_version
from circuitgraph.graphs.schema import VERSION

FORMAT = "circuitgraph"
SCHEMA = Path(__file__).with_name("native.schema.json")
MAX_LINE = 16 << 20
CHUNK = 500  # lines that are encoded or decoded at once
_NOT_OURS = (
    'this is no circuitgraph file: expected a JSON object with "format": "circuitgraph"; for a file of another'
    " program say its format"
)
_HEAD = ("format", "version", "counts", "graph")


def graph_to_text(graph: nx.MultiDiGraph) -> str:
    """The graph as the text of a native file. GraphError if it breaks the schema."""
    return "".join(_pieces(graph))


def text_to_graph(text: str) -> nx.MultiDiGraph:
    """The graph of a native file's text, of this version or an older one. GraphError if it is not one."""
    return value_to_graph(parse_json(text))


def write_graph(graph: nx.MultiDiGraph, path: str | Path) -> None:
    """Write the graph as a native file, gzipped if the name ends in .gz; nothing is written if anything fails."""
    pieces = (piece.encode("ascii") for piece in _pieces(graph))
    write_atomically(path, gzip_pieces(pieces) if Path(path).suffix == ".gz" else pieces)


def read_graph(path: str | Path) -> nx.MultiDiGraph:
    """The graph in a native file. GraphError, with the file's name, for anything else."""
    with reading(path):
        with open_bytes(path) as file:
            graph = _read_lines(file)
        if graph is not None:
            return graph
        text = read_text(path)
        if not text.lstrip().startswith(("{", "[")):
            raise GraphError(_NOT_OURS)
        return text_to_graph(text)


def value_to_graph(data: Any) -> nx.MultiDiGraph:
    """The graph of a native file's JSON value; GraphError if it is not one."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise GraphError(_NOT_OURS)
    version = known_version(data.get("version"))
    for name, kind in (("graph", dict), ("nodes", list), ("edges", list)):
        if not isinstance(data.get(name), kind):
            raise GraphError(f"{name!r} is missing or no {kind.__name__}")
    builder = Builder(data["graph"], version)
    for row in data["nodes"]:
        _add_node(builder, dict(row) if isinstance(row, dict) else row)
    for row in data["edges"]:
        _add_edge(builder, dict(row) if isinstance(row, dict) else row)
    return builder.finished() if version == 1 else _counted(builder, data.get("counts"))


def graph_to_value(graph: nx.MultiDiGraph) -> dict[str, Any]:
    """The graph as the JSON value of a native file."""
    value: dict[str, Any] = json.loads(graph_to_text(graph))
    return value


def gzip_pieces(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces as one gzip stream that holds neither a name nor a time, so that equal content gives equal bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as packed:
        for piece in pieces:
            packed.write(piece)
            if buffer.tell() > 1 << 16:
                yield buffer.getvalue()
                buffer.seek(0)
                buffer.truncate()
    yield buffer.getvalue()


def _pieces(graph: nx.MultiDiGraph) -> Iterator[str]:
    """The file's text in pieces of about a thousand lines."""
    graph = plain_graph(graph)
    check(graph)
    nodes, edges = in_order(graph)
    head = zip(_HEAD, (FORMAT, VERSION, {"nodes": len(nodes), "edges": len(edges)}, graph.graph), strict=True)
    yield "{\n" + "".join(f'"{name}": {dumps(value, name)},\n' for name, value in head)
    quoted = {key: dumps(key, "node") for key in nodes}
    starts = [f'{{"id": {quoted[key]}, ' for key in nodes]
    yield from _list("nodes", ("id",), starts, [graph.nodes[key] for key in nodes])
    yield ",\n"
    starts = [f'{{"source": {quoted[source]}, "target": {quoted[target]}, ' for source, target, _ in edges]
    yield from _list("edges", ("source", "target"), starts, [data for *_, data in edges])
    yield "\n}\n"


def _list(name: str, reserved: tuple[str, ...], starts: list[str], rows: list[dict[str, Any]]) -> Iterator[str]:
    """A list of the file, one row on a line: where it starts (its id, or its ends), then its attributes."""

    def place(first: int, i: int) -> str:
        return f"{name[:-1]} {starts[first + i].strip('{, ')}"

    before = f'"{name}": ['
    for first in range(0, len(rows), CHUNK):
        chunk, begun = rows[first : first + CHUNK], starts[first : first + CHUNK]
        if not set(reserved).isdisjoint(itertools.chain.from_iterable(chunk)):
            taken = next(i for i, row in enumerate(chunk) if not row.keys().isdisjoint(reserved))
            raise GraphError(f"{place(first, taken)} has an attribute called {' or '.join(reserved)}; rename it")
        lines = (dumps(row, place(first, i))[1:] for i, row in enumerate(chunk))
        yield before + "\n" + ",\n".join(map(add, begun, lines))
        before = ","
    yield before + "]" if not rows else "\n]"


def _read_lines(file: io.BufferedIOBase | Any) -> nx.MultiDiGraph | None:
    """The graph of a file whose lines stand as `_pieces` writes them; None if one does not, whatever the reason."""
    head = {}
    if file.readline(MAX_LINE) != b"{\n":
        return None
    for name in _HEAD:
        line, start = file.readline(MAX_LINE), f'"{name}": '.encode()
        if not line.startswith(start) or not line.endswith(b",\n"):
            return None
        head[name] = _value(line[len(start) : -2])
        if head[name] is None:
            return None
    if head["format"] != FORMAT:
        return None
    builder = Builder(take_object(head["graph"], "graph"), known_version(head["version"]))
    for name, add_row, last in (("nodes", _add_node, b"],\n"), ("edges", _add_edge, b"]\n")):
        first = file.readline(MAX_LINE)
        if first == f'"{name}": []'.encode() + last[1:]:
            continue
        if first != f'"{name}": [\n'.encode() or not _read_list(file, partial(add_row, builder), last):
            return None
    return _counted(builder, head["counts"]) if file.read(3) == b"}\n" else None


def _read_list(file: Any, add: Callable[[Any], None], last: bytes) -> bool:
    """Add every line up to the last one; False as soon as a line is not as expected."""
    while True:
        lines = [file.readline(MAX_LINE)]
        while lines[-1].endswith(b"},\n") and len(lines) < CHUNK:
            lines.append(file.readline(MAX_LINE))
        if not lines[-1].endswith((b"},\n", b"}\n")):
            return False
        more = lines[-1].endswith(b",\n")
        values = _value(b"[" + b"".join(lines)[: -2 if more else -1] + b"]")
        if values is None or len(values) != len(lines):
            return False
        for value in values:
            add(value)
        if not more:
            return bool(file.readline(MAX_LINE) == last)


def _value(line: bytes) -> Any:
    """The JSON value of a line; None if it is none, which reading the file in one piece will explain."""
    try:
        return parse_json(line.decode("utf-8"))
    except (GraphError, UnicodeDecodeError):
        return None


def _add_node(builder: Builder, row: Any) -> None:
    builder.add_node(_take(row, "id", "node", builder.n_nodes + 1), row)


def _add_edge(builder: Builder, row: Any) -> None:
    source = _take(row, "source", "edge", builder.n_edges + 1)
    builder.add_edge(source, _take(row, "target", "edge", builder.n_edges + 1), row)


def _take(row: Any, name: str, what: str, number: int) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(name), str):
        raise GraphError(f"{what} {number} has no {name!r}; expected an object with a string there")
    value: str = row.pop(name)
    return value


def _counted(builder: Builder, counts: Any) -> nx.MultiDiGraph:
    """The graph, if it has as many nodes and edges as its file says."""
    graph = builder.finished()
    for name, count in (("nodes", builder.n_nodes), ("edges", builder.n_edges)):
        said = take_object(counts, "counts").get(name)
        if said != count:
            raise GraphError(f"it holds {count} {name} where counts says {one_line(said)[:40]}")
    return graph
