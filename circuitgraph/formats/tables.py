"""Tables of nodes and edges: CSV, and Parquet where pyarrow is installed. For pandas, polars, R and spreadsheets.

`NAME.csv` stands for NAME.nodes.csv, NAME.edges.csv and NAME.graph.json (graph attributes and column types);
`NAME.parquet` for NAME.nodes.parquet and NAME.edges.parquet, whose metadata hold the graph attributes. Columns are
those of `flat`. An empty cell is a missing value and the cell `\\u` an empty text; texts that a spreadsheet would run
as a formula begin with an escape.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import networkx as nx

from circuitgraph.errors import GraphError
from circuitgraph.files import check_writable, write_atomically
from circuitgraph.formats.flat import BOOLEAN, INTEGER, NUMBER, STRING, from_flat, to_flat
from circuitgraph.formats.markup import escape, unescape, value_of
from circuitgraph.formats.untrusted import MAX_BYTES, parse_json, read_text, reading
from circuitgraph.formats.values import take_object, take_string

RESERVED = ("id", "source", "target")
MAX_ROWS = 10_000_000
_EMPTY = "\\u"
_Row = tuple[tuple[str, ...], dict[str, Any]]  # id or ends, the other cells
_FORMULA = ("=", "+", "-", "@")


def table_paths(path: str | Path) -> dict[str, Path]:
    """The files that NAME.csv or NAME.parquet stands for; any one of them stands for all."""
    path = Path(path)
    stem = path.name.removesuffix(path.suffix)
    if path.name.endswith(".graph.json"):
        path, stem = path.with_suffix(".csv"), path.name.removesuffix(".graph.json")
    for part in (".nodes", ".edges"):
        stem = stem.removesuffix(part)
    names = {"nodes": f"{stem}.nodes{path.suffix}", "edges": f"{stem}.edges{path.suffix}"}
    if path.suffix == ".csv":
        names["graph"] = f"{stem}.graph.json"
    return {part: path.with_name(name) for part, name in names.items()}


def _csv_paths(path: str | Path) -> dict[str, Path]:
    paths = table_paths(path)
    if "graph" not in paths:
        raise GraphError(f"{path}: the files of CSV tables are named after NAME.csv; give a name that ends in .csv")
    return paths


def write_csv(graph: nx.MultiDiGraph, path: str | Path) -> None:
    """Write NAME.nodes.csv, NAME.edges.csv and NAME.graph.json."""
    flat, paths = to_flat(graph, RESERVED), _csv_paths(path)
    for file in paths.values():
        check_writable(file)
    write_atomically(paths["nodes"], _csv(("id",), flat.node_columns, [((key,), row) for key, row in flat.nodes]))
    edges: list[_Row] = [((source, target), row) for source, target, row in flat.edges]
    write_atomically(paths["edges"], _csv(("source", "target"), flat.edge_columns, edges))
    value = {"graph": flat.facts, "node_columns": flat.node_columns, "edge_columns": flat.edge_columns}
    write_atomically(paths["graph"], json.dumps(value, indent=1) + "\n")


def read_csv(path: str | Path) -> nx.MultiDiGraph:
    """The graph of the three files that `write_csv` wrote."""
    paths = _csv_paths(path)
    with reading(paths["graph"]):
        value = take_object(parse_json(read_text(paths["graph"])), "the file")
        facts = take_string(value.get("graph"), "graph")
        types = {part: take_object(value.get(f"{part}_columns"), f"{part}_columns") for part in ("node", "edge")}
    with reading(paths["nodes"]):
        nodes = [(ends[0], row) for ends, row in _rows(paths["nodes"], ("id",), types["node"])]
    with reading(paths["edges"]):
        edges = [(ends[0], ends[1], row) for ends, row in _rows(paths["edges"], ("source", "target"), types["edge"])]
    with reading(path):
        return from_flat(facts, nodes, edges)


def write_parquet(graph: nx.MultiDiGraph, path: str | Path) -> None:
    """Write NAME.nodes.parquet and NAME.edges.parquet; GraphError without pyarrow."""
    pyarrow, parquet = _pyarrow()
    flat, paths = to_flat(graph, RESERVED), table_paths(path)
    for file in paths.values():
        check_writable(file)
    nodes = [{"id": key} | row for key, row in flat.nodes]
    edges = [{"source": source, "target": target} | row for source, target, row in flat.edges]
    kinds = {INTEGER: pyarrow.int64(), NUMBER: pyarrow.float64(), BOOLEAN: pyarrow.bool_(), STRING: pyarrow.string()}
    for part, first, columns, rows in (
        ("nodes", ("id",), flat.node_columns, nodes),
        ("edges", ("source", "target"), flat.edge_columns, edges),
    ):
        fields = [(escape(name), kinds[kind]) for name, kind in {**dict.fromkeys(first, STRING), **columns}.items()]
        schema = pyarrow.schema(fields, metadata={"circuitgraph": escape(flat.facts)})
        cells = [{escape(name): escape(v) if isinstance(v, str) else v for name, v in row.items()} for row in rows]
        buffer = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(cells, schema=schema), buffer)
        write_atomically(paths[part], buffer.getvalue())


def read_parquet(path: str | Path) -> nx.MultiDiGraph:
    """The graph of the two files that `write_parquet` wrote; GraphError without pyarrow."""
    pyarrow, parquet = _pyarrow()
    paths = table_paths(path)
    tables = {}
    for part, file in paths.items():
        with reading(file):
            try:
                tables[part] = _parquet_rows(parquet.ParquetFile(file))
            except (pyarrow.ArrowException, OSError) as error:
                if isinstance(error, FileNotFoundError):
                    raise
                raise GraphError(f"no Parquet table: {error}") from None
    (facts, nodes), (_, edges) = tables["nodes"], tables["edges"]
    with reading(path):
        return from_flat(
            facts,
            [(take_string(row.pop("id", None), "id"), row) for row in nodes],
            [
                (take_string(row.pop("source", None), "source"), take_string(row.pop("target", None), "target"), row)
                for row in edges
            ],
        )


def _csv(first: tuple[str, ...], columns: dict[str, str], rows: Iterable[_Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*first, *map(_text_cell, columns)])
    for ends, row in rows:
        writer.writerow([*map(_text_cell, ends), *(_cell(row.get(name)) for name in columns)])
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return _text_cell(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else repr(value)


def _text_cell(text: str) -> str:
    if text in ("", _EMPTY):
        return _EMPTY if text == "" else "\\u005cu"
    formula = text.startswith(_FORMULA)
    return f"\\u{ord(text[0]):04x}" + escape(text[1:]) if formula else escape(text)


def _rows(path: Path, first: tuple[str, ...], types: dict[str, Any]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """(ends, row) of each row of a CSV file."""
    csv.field_size_limit(MAX_BYTES)
    try:
        reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
        header = [_text(cell) for cell in next(reader, [])]
        if tuple(header[: len(first)]) != first or set(header[len(first) :]) != set(types):
            raise GraphError(f"its columns are not {', '.join(first)} and those that the .graph.json names")
        if len(set(header)) != len(header):
            raise GraphError("two of its columns have one name")
        for number, cells in enumerate(reader, 1):
            if len(cells) != len(header):
                raise GraphError(f"row {number} has {len(cells)} cells; expected {len(header)}")
            names = zip(header[len(first) :], cells[len(first) :], strict=True)
            row = {
                name: _text(cell) if types[name] == STRING else value_of(cell, str(types[name]))
                for name, cell in names
                if cell != ""
            }
            yield [_text(cell) for cell in cells[: len(first)]], row
    except csv.Error as error:
        raise GraphError(f"no CSV: {error}") from None


def _text(cell: str) -> str:
    return "" if cell == _EMPTY else unescape(cell)


def _parquet_rows(file: Any) -> tuple[str | None, list[dict[str, Any]]]:
    """The graph attributes and the rows without missing values."""
    meta = file.metadata
    size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    if meta.num_rows > MAX_ROWS or size > MAX_BYTES:
        raise GraphError(
            f"it claims {meta.num_rows} rows and {size >> 20} MiB; at most {MAX_ROWS} and {MAX_BYTES >> 20} are read"
        )
    facts = (file.schema_arrow.metadata or {}).get(b"circuitgraph")
    rows = [
        {unescape(name): unescape(v) if isinstance(v, str) else v for name, v in row.items() if v is not None}
        for row in file.read().to_pylist()
    ]
    return None if facts is None else unescape(facts.decode("utf-8")), rows


def check_parquet() -> None:
    """GraphError where pyarrow is not installed."""
    _pyarrow()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise GraphError(
            "Parquet needs pyarrow: pip install 'circuitgraph-engine[tables]'; .csv needs nothing"
        ) from None
    return pyarrow, pyarrow.parquet
