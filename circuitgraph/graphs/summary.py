"""A graph as a short text in aligned columns: counts per kind and layer, strongest nodes and edges, evidence."""

from __future__ import annotations

from collections import Counter

import networkx as nx

from circuitgraph.graphs.schema import require_graph
from circuitgraph.nodes import EDGE_KINDS, NODE_KINDS, Node
from circuitgraph.text import table_text


def summary_text(graph: nx.MultiDiGraph, *, top: int = 10) -> str:
    """The summary that `circuitgraph show` prints.

    Args:
        graph: The circuit graph.
        top: How many nodes and how many edges are listed, the strongest first.
    """
    require_graph(graph)
    facts = graph.graph
    metric = facts["metric"]
    lines = [f"prompt     {' '.join(facts['tokens']['clean'])!r}"]
    if facts["tokens"]["corrupted"] is not None:
        lines.append(f"corrupted  {' '.join(facts['tokens']['corrupted'])!r}")
    runs = [f"{run} {metric[run]:.4f}" for run in ("clean", "corrupted") if metric[run] is not None]
    lines += [
        f"examples   {facts['n_examples']}, of which this is the first",
        f"metric     {'  '.join([metric['name'], *runs])}",
        f"size       {graph.number_of_nodes()} nodes, {graph.number_of_edges()} edges",
    ]
    evidence = facts.get("evidence", {})
    measured = {name: value for name, value in evidence.items() if not isinstance(value, list | dict | None)}
    lines += [f"measured   {name} {_number(value)}" for name, value in sorted(measured.items())]
    lines += ["", *_counts(graph), "", *_strongest_nodes(graph, top), "", *_strongest_edges(graph, top)]
    return "\n".join(lines) + "\n"


def _counts(graph: nx.MultiDiGraph) -> list[str]:
    nodes = Counter((str(layer) if layer is not None else "-", kind) for _, layer, kind in _layers_and_kinds(graph))
    layers = sorted({layer for layer, _ in nodes}, key=lambda text: (text != "-", int(text) if text != "-" else -1))
    kinds = [kind for kind in NODE_KINDS if any(k == kind for _, k in nodes)]
    rows = [[layer, *(str(nodes[layer, kind] or "") for kind in kinds)] for layer in layers]
    edges = Counter(kind for *_, kind in graph.edges(data="kind"))
    return [
        *table_text(["layer", *kinds], rows),
        "",
        "edges      " + ", ".join(f"{edges[kind]} {kind}" for kind in EDGE_KINDS if edges[kind]),
    ]


def _layers_and_kinds(graph: nx.MultiDiGraph) -> list[tuple[str, int | None, str]]:
    return [(key, attributes.get("layer"), attributes["kind"]) for key, attributes in graph.nodes(data=True)]


def _strongest_nodes(graph: nx.MultiDiGraph, top: int) -> list[str]:
    nodes = [(key, attributes) for key, attributes in graph.nodes(data=True) if attributes["kind"] != "metric"]
    nodes.sort(key=lambda item: (-abs(item[1]["attribution"]), Node.parse(item[0]).order))
    rows = []
    for key, attributes in nodes[:top]:
        pos, tokens = attributes["pos"], graph.graph["tokens"]["clean"]
        effect = attributes.get("effect")
        rows.append(
            [
                key,
                repr(attributes["target"])
                if "target" in attributes
                else repr(tokens[pos])
                if pos < len(tokens)
                else "",
                f"{attributes['attribution']:+.4f}",
                "" if effect is None else f"{effect:+.4f}",
            ]
        )
    return table_text(["strongest nodes", "token", "attribution", "effect"], rows)


def _strongest_edges(graph: nx.MultiDiGraph, top: int) -> list[str]:
    edges = sorted(
        graph.edges(data=True),
        key=lambda e: (-abs(e[2]["weight"]), Node.parse(e[1]).order, Node.parse(e[0]).order, e[2]["kind"]),
    )
    rows = [[f"{source} -> {target}", data["kind"], f"{data['weight']:+.4f}"] for source, target, data in edges[:top]]
    return table_text(["strongest edges", "kind", "weight"], rows)


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
