"""Links to Neuronpedia: the page of one feature, and a quick list of many. Nothing is opened."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

import networkx as nx

from circuitgraph.errors import GraphError
from circuitgraph.files import write_atomically
from circuitgraph.graphs.neuronpedia import model_id_of, sources_of
from circuitgraph.nodes import Node, Site

PAGES = "https://www.neuronpedia.org"
QUICK_LIST = "https://neuronpedia.org/quick-list/"


def feature_url(model: str, source: str, feature: int) -> str:
    """The page of one feature: https://www.neuronpedia.org/gpt2-small/5-att-kk/7515."""
    return f"{PAGES}/{quote(model, safe='')}/{quote(source, safe='')}/{feature}"


def quick_list_url(model: str, features: Iterable[tuple[str, int]], name: str = "Features") -> str:
    """The quick list of (source, feature) pairs, in their order."""
    rows = [{"modelId": model, "layer": source, "index": str(feature)} for source, feature in features]
    return f"{QUICK_LIST}?name={quote(name)}&features={quote(json.dumps(rows))}"


def node_url(graph: nx.MultiDiGraph, node: str) -> str | None:
    """The page of a feature node; None where its dictionary has no source, or it is no feature."""
    parsed = Node.parse(node)
    source = sources_of(graph).get(str(parsed.site))
    if parsed.feature is None or source is None:
        return None
    return feature_url(model_id_of(graph), source, parsed.feature)


def graph_quick_list_url(graph: nx.MultiDiGraph, nodes: Iterable[str], name: str = "Features") -> str:
    """The quick list of these nodes' features, each once; GraphError where a dictionary has no source."""
    sources, features = sources_of(graph), []
    for node in map(Node.parse, nodes):
        if node.feature is None:
            raise GraphError(f"node {str(node)!r} is no feature; quick lists hold features only")
        if str(node.site) not in sources:
            raise GraphError(
                f"the dictionary at {node.site} has no Neuronpedia source in the provenance; see with_sources"
            )
        features.append((sources[str(node.site)], node.feature))
    return quick_list_url(model_id_of(graph), dict.fromkeys(features), name)


def write_links(graph: nx.MultiDiGraph, path: str | Path) -> None:
    """Write one line for each feature whose dictionary has a source, the strongest first, and a quick list of all of
    them.
    """
    sources = sources_of(graph)
    features = [key for key in graph if Node.parse(key).kind == "feature" and str(Node.parse(key).site) in sources]
    if not features:
        raise GraphError("no feature of the graph is of a dictionary with a Neuronpedia source; name them: SITE=SOURCE")
    features.sort(key=lambda key: (-abs(graph.nodes[key]["attribution"]), Node.parse(key).order))
    lines = [f"{key}\t{node_url(graph, key)}" for key in features]
    lines.append(f"quick list\t{graph_quick_list_url(graph, features)}")
    write_atomically(path, "\n".join(lines) + "\n")


def with_sources(graph: nx.MultiDiGraph, model: str | None, sources: Mapping[str, str]) -> nx.MultiDiGraph:
    """A copy of the graph that knows these names of its model and dictionaries too."""
    result = graph.copy()
    known = sources_of(graph) | {str(Site.parse(site)): source for site, source in sources.items()}
    named = {"model": model or model_id_of(graph), "sources": known}
    result.graph["provenance"] = graph.graph["provenance"] | {"neuronpedia": named}
    return result


def parse_sources(texts: Iterable[str]) -> dict[str, str]:
    """Site -> source of texts such as `z.5=5-att-kk`."""
    found = {}
    for text in texts:
        site, equals, source = text.partition("=")
        if not equals or not source:
            raise GraphError(f"source {text!r} does not parse: expected SITE=SOURCE, for instance z.5=5-att-kk")
        found[str(Site.parse(site))] = source
    return found
