"""A submission to the circuit track of MIB: one folder per task and model.

In comes a graph of components (see `eap`), out comes a folder TASK_MODEL with either one file of float scores or nine files of
the strongest edges, one for each share of edges that MIB measures. This module uploads nothing.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import networkx as nx

from circuitgraph.errors import CircuitGraphError, GraphError
from circuitgraph.files import write_atomically
from circuitgraph.formats.eap import eap_value, read_eap
from circuitgraph.formats.values import dumps

SCORES = "importances.json"
PERCENTAGES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)  # of all edges


def write_mib(graph: nx.MultiDiGraph, folder: str | Path, *, circuits: bool = False) -> list[Path]:
    """The files written into `folder`, named for instance ioi_gpt2: importances.json, or with circuits=True nine circuits."""
    value, folder = eap_value(graph), Path(folder)
    if "_" not in folder.name.strip("_"):
        raise GraphError(f"MIB wants a folder named TASK_MODEL, for instance ioi_gpt2, not {folder.name!r}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CircuitGraphError(f"cannot make folder {folder}: {error.strerror}; choose another -o") from None
    contents = {SCORES: value}
    if circuits:
        contents = {f"circuit_{percent:g}.json": strongest(value, percent) for percent in PERCENTAGES}
    for name, content in contents.items():
        write_atomically(folder / name, dumps(content, name))
    return [folder / name for name in contents]


def read_mib(folder: str | Path) -> nx.MultiDiGraph:
    """The graph of the scores in a submission's folder."""
    if not Path(folder).is_dir():
        raise GraphError(f"{folder} is no folder; a MIB submission is a folder with {SCORES}")
    if not (Path(folder) / SCORES).is_file():
        raise GraphError(
            f"folder {folder} holds no {SCORES}; folders are read as MIB submissions, other graphs are files"
        )
    return read_eap(Path(folder) / SCORES)


def strongest(value: dict[str, Any], percent: float) -> dict[str, Any]:
    """The file's value with the floor(percent) strongest |score| in the circuit, without those that join no input to logits.

    Ties keep the order of the file.
    """
    edges = value["edges"]
    ranked = sorted(edges, key=lambda name: -abs(edges[name]["score"]))
    circuit = nx.MultiDiGraph((*_ends(name), name) for name in ranked[: math.floor(len(edges) * percent / 100 + 1e-9)])
    circuit.add_nodes_from(("input", "logits"))
    live = (nx.descendants(circuit, "input") | {"input"}) & (nx.ancestors(circuit, "logits") | {"logits"})
    kept = {name for source, target, name in circuit.edges(keys=True) if source in live and target in live}
    ends = {end for name in kept for end in _ends(name)}
    return {
        "cfg": value["cfg"],
        "nodes": {name: node | {"in_graph": name in ends} for name, node in value["nodes"].items()},
        "edges": {name: edge | {"in_graph": name in kept} for name, edge in edges.items()},
    }


def _ends(name: str) -> tuple[str, str]:
    source, _, target = name.partition("->")
    return source, target.partition("<")[0]
