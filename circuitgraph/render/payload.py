"""What the viewer's page carries: a graph, or two of them side by side, as plain JSON values.

They are columns: names and tokens as text, numbers as typed arrays, edges strongest first, and every other attribute
beside them, so that the page can write the graph back. Words, shapes and colours come from `labels`, rows and the order
in a cell from `layout`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx

from circuitgraph.graphs.neuronpedia import model_id_of, sources_of
from circuitgraph.graphs.schema import VERSION, metric_scale
from circuitgraph.render import labels
from circuitgraph.render.columns import Column, floats, integers
from circuitgraph.render.layout import check_finite, find_cells, row_keys
from circuitgraph.render.looks import LOOKS

MAX_NODES, MAX_EDGES = 2_000, 50_000  # what the page stays quick with; see viewer/README.md
PLACE = ("kind", "site", "layer", "pos", "feature")
NODE_NUMBERS = ("attribution", "effect", "activation", "baseline_activation", "influence")
EDGE_NUMBERS = ("weight", "local_weight", "weight_abs")
BOTH, ONLY_A, ONLY_B = 0, 1, 2


def payload(
    graph: nx.MultiDiGraph,
    other: nx.MultiDiGraph | None = None,
    *,
    names: Sequence[str] = ("A", "B"),
    links: Mapping[str, str] | None = None,
    max_nodes: int = MAX_NODES,
    max_edges: int = MAX_EDGES,
) -> dict[str, Any]:
    """Everything the page shows of `graph`, beside `other` if that is given.

    links: site -> the Neuronpedia id of its dictionary (`gpt2-small/5-att-kk`), beside those in the provenance.
    """
    for each in (graph, other):
        if each is not None:
            check_finite(each)
    shown, left_out = _strongest(graph if other is None else _union(graph, other), max_nodes, max_edges)
    cells = find_cells(shown)
    rows = row_keys(shown, cells)
    row_number = {key: number for number, (key, *_) in enumerate(rows)}
    order = [(node, row_number[row]) for (row, _), nodes in sorted(cells.items()) for node in nodes]
    edges = labels.ranked_edges(shown)
    kinds = labels.edge_kinds(shown)
    return {
        "statement": labels.statement(shown),
        "graph": dict(graph.graph),
        "version": VERSION,
        "scale": metric_scale(graph) if "metric" in graph.graph else 0.0,
        "looks": LOOKS.record(),
        "metric": labels.metric_name(graph),
        "change": labels.change_name(graph),
        "model": labels.model_name(graph),
        "facts": labels.facts(graph),
        "links": _links(graph) | dict(links or {}),
        "left_out": left_out,
        "rows": [[layer, text] for _, layer, text in rows],
        "kinds": [
            [kind, labels.edge_name(kind), labels.EDGE_MEANINGS.get(kind, ""), colour] for kind, colour in kinds.items()
        ],
        "nodes": _nodes(shown, order, other),
        "edges": _edges(shown, edges, {node: i for i, (node, _) in enumerate(order)}, list(kinds), other),
        **_forms(shown),
        **({} if other is None else {"compare": _comparison(graph, other, names)}),
    }


def _strongest(graph: nx.MultiDiGraph, max_nodes: int, max_edges: int) -> tuple[nx.MultiDiGraph, list[str]]:
    """(the graph without its weakest parts where it is too large for a page, a sentence for each thing left out)."""
    left_out = []
    if len(graph) > max_nodes:
        ranked = sorted(
            graph,
            key=lambda n: (not labels.is_top(graph.nodes[n]), -abs(graph.nodes[n].get("attribution") or 0.0), n),
        )
        left_out.append(
            f"{len(graph) - max_nodes:,} of {len(graph):,} nodes are not in this page: it holds the {max_nodes:,}"
            " with the"
            " largest |attribution|, to stay quick"
        )
        graph = graph.subgraph(ranked[:max_nodes])
    if graph.number_of_edges() > max_edges:
        count = graph.number_of_edges()
        kept = graph.edge_subgraph([edge[:3] for edge in labels.ranked_edges(graph)[:max_edges]])
        left_out.append(
            f"{count - max_edges:,} of {count:,} edges are not in this page: it holds the {max_edges:,} with the"
            " largest"
            " |weight|, to stay quick"
        )
        smaller = nx.MultiDiGraph(**graph.graph)
        smaller.add_nodes_from(graph.nodes(data=True))
        smaller.add_edges_from(kept.edges(keys=True, data=True))
        graph = smaller
    return graph, left_out


def _links(graph: nx.MultiDiGraph) -> dict[str, str]:
    """Site -> MODEL/SOURCE on Neuronpedia, of the dictionaries that the provenance names there."""
    return {site: f"{model_id_of(graph)}/{source}" for site, source in sources_of(graph).items()}


def _forms(graph: nx.MultiDiGraph) -> dict[str, Any]:
    """Kinds of nodes in words with the shape they are drawn in, and how the legend merges them."""
    legend = labels.legend(graph)
    found = {labels.kind_name(data): labels.shape(data) for _, data in graph.nodes(data=True)}
    place = {form: number for number, (form, _) in enumerate(legend)}
    return {
        "forms": [[name, place[form]] for name, form in sorted(found.items())],
        "legend": [[name, labels.shape_path(form, 10)] for form, name in legend],
    }


def _nodes(graph: nx.MultiDiGraph, order: Sequence[tuple[str, int]], other: nx.MultiDiGraph | None) -> dict[str, Any]:
    data = [graph.nodes[node] for node, _ in order]
    forms = {name: i for i, name in enumerate(sorted({labels.kind_name(each) for each in data}))}
    sites = sorted({str(each.get("site", "")) for each in data})
    kinds = sorted({str(each.get("kind", "")) for each in data})
    tokens = sorted({str(token) for each in data for token in each.get("top_tokens") or ()})
    number = {token: i for i, token in enumerate(tokens)}
    known = {*PLACE, *NODE_NUMBERS, "top_tokens", "in_both", "other"}
    columns = {
        "id": [node for node, _ in order],
        "row": integers([row for _, row in order]),
        "form": integers([forms[labels.kind_name(each)] for each in data]),
        "kinds": kinds,
        "kind": integers([kinds.index(str(each.get("kind", ""))) for each in data]),
        "sites": sites,
        "site": integers([sites.index(str(each.get("site", ""))) for each in data]),
        "tokens": tokens,
        "top_tokens": [[number[str(token)] for token in each.get("top_tokens") or ()] for each in data],
        "more": _more(data, known),
        **{name: floats([each.get(name) for each in data]) for name in ("layer", "pos", "feature")},
        **_present(data, NODE_NUMBERS),
    }
    if other is not None:
        columns["in"] = integers([each["in_both"] for each in data])
        columns |= {
            f"other_{name}": column for name, column in _present([d["other"] for d in data], NODE_NUMBERS).items()
        }
    return columns


def _edges(
    graph: nx.MultiDiGraph,
    edges: Sequence[labels.Edge],
    numbers: Mapping[str, int],
    kinds: list[str],
    other: nx.MultiDiGraph | None,
) -> dict[str, Any]:
    data = [each for *_, each in edges]
    heads = [each.get("heads") or () for each in data]
    columns: dict[str, Any] = {
        "source": integers([numbers[source] for source, *_ in edges]),
        "target": integers([numbers[target] for _, target, *_ in edges]),
        "kind": integers([kinds.index(str(kind)) for _, _, kind, _ in edges]),
        "more": _more(data, {"kind", "heads", *EDGE_NUMBERS, "in_both", "other"}),
        **_present(data, EDGE_NUMBERS),
    }
    columns.setdefault("weight", floats([0.0] * len(data)))
    if any(heads):
        columns["n_heads"] = integers([len(each) for each in heads])
        columns["heads"] = floats([head for each in heads for head in each])
    if other is not None:
        columns["in"] = integers([each["in_both"] for each in data])
        columns["other_weight"] = floats([each["other"].get("weight", 0.0) for each in data])
    return columns


def _present(data: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Column]:
    """A column for each of these numbers that any row has."""
    return {
        name: floats([each.get(name) for each in data])
        for name in names
        if any(each.get(name) is not None for each in data)
    }


def _more(data: Sequence[Mapping[str, Any]], known: set[str]) -> dict[str, dict[str, Any]]:
    """row -> the attributes that no column holds: labels, notes, and whatever a later release writes."""
    rest = ((str(i), {key: each[key] for key in each if key not in known}) for i, each in enumerate(data))
    return {row: attributes for row, attributes in rest if attributes}


def _union(graph: nx.MultiDiGraph, other: nx.MultiDiGraph) -> nx.MultiDiGraph:
    """Nodes and edges of both graphs with the attributes of the first that has them.

    `in_both` says where each is, `other` holds what the second graph knows of it. Weights and attributions of what is
    only in the second graph are its own, so that ranking and layout see them.
    """
    union = nx.MultiDiGraph(**graph.graph)
    for node in sorted({*graph, *other}):
        a, b = graph.nodes.get(node), other.nodes.get(node)
        union.add_node(node, **(b if a is None else a), **_side(a, b))
    for source, target, kind in sorted({*graph.edges(keys=True), *other.edges(keys=True)}):
        a = graph.edges.get((source, target, kind))
        b = other.edges.get((source, target, kind))
        union.add_edge(source, target, key=kind, **(b if a is None else a), **_side(a, b))
    return union


def _side(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"in_both": ONLY_B if a is None else ONLY_A if b is None else BOTH, "other": dict(b or {})}


def _comparison(graph: nx.MultiDiGraph, other: nx.MultiDiGraph, names: Sequence[str]) -> dict[str, Any]:
    """How the two graphs are called, and what the header says of each."""
    return {
        "names": [labels.visible(str(name), " ") for name in names],
        "facts": labels.facts(other),
        "model": labels.model_name(other),
        "tokens": other.graph.get("tokens") or {},
        "same_tokens": (graph.graph.get("tokens") or {}) == (other.graph.get("tokens") or {}),
    }
