"""A submission to the circuit track of MIB: one folder per task and model.

A graph of components (see `eap`) becomes a folder TASK_MODEL with either one file of float scores or nine files of the
strongest edges, one for each share of edges that MIB measures. Nothing is uploaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx

from circuitgraph.components.shape import ComponentShape
from circuitgraph.errors import CircuitGraphError, GraphError
from circuitgraph.files import write_atomically
from circuitgraph.formats.eap import eap_value, edge_place, read_eap
from circuitgraph.formats.values import dumps

SCORES = "importances.json"


def write_mib(graph: nx.MultiDiGraph, folder: str | Path, *, circuits: bool = False) -> list[Path]:
    """The files written into `folder`, named for instance ioi_gpt2: importances.json, or with circuits=True nine
    circuits.
    """
    value, folder = eap_value(graph), Path(folder)
    if "_" not in folder.name.strip("_"):
        raise GraphError(f"MIB wants a folder named TASK_MODEL, for instance ioi_gpt2, not {folder.name!r}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CircuitGraphError(f"cannot make folder {folder}: {error.strerror}; choose another -o") from None
    contents = strongest(value) if circuits else {SCORES: value}
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


def strongest(value: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """File name -> the file's value with the strongest |score| in the circuit, for each share of edges that MIB
    measures.

    Edges that join no input to logits are left out. Ties keep the order of the file.
    """
    import torch

    from circuitgraph.components.edge_masks import prune_edges
    from circuitgraph.evaluation.conditions import FRACTIONS, circuit_sizes

    config, nodes, edges = value["cfg"], value["nodes"], value["edges"]
    shape = ComponentShape(config["n_layers"], config["n_heads"], config["parallel_attn_mlp"])
    ranked = sorted(edges, key=lambda name: -abs(edges[name]["score"]))
    places = [edge_place(shape, name) for name in ranked]
    circuits = {}
    for fraction, n in list(zip(FRACTIONS, circuit_sizes(len(ranked)), strict=True))[:-1]:  # the whole is no circuit
        circuit = torch.zeros(shape.n_writers, shape.n_readers, dtype=torch.bool)
        for place in places[:n]:
            circuit[place] = True
        pruned = prune_edges(shape, circuit).tolist()
        kept = {name for name, (row, column) in zip(ranked[:n], places, strict=False) if pruned[row][column]}
        ends = {end for name in kept for end in _ends(name)}
        circuits[f"circuit_{100 * fraction:g}.json"] = {
            "cfg": config,
            "nodes": {name: node | {"in_graph": name in ends} for name, node in nodes.items()},
            "edges": {name: edge | {"in_graph": name in kept} for name, edge in edges.items()},
        }
    return circuits


def _ends(name: str) -> tuple[str, str]:
    source, _, target = name.partition("->")
    return source, target.partition("<")[0]
