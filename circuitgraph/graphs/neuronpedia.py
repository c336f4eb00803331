"""What a graph's model and dictionaries are called on Neuronpedia, as its provenance keeps it.

graph.graph["provenance"]["neuronpedia"] = {"model": "gpt2-small", "sources": {"z.5": "5-att-kk", ...}}
"""

from __future__ import annotations

from typing import Any

import networkx as nx

from circuitgraph.errors import GraphError
from circuitgraph.nodes import Site


def sources_of(graph: nx.MultiDiGraph) -> dict[str, str]:
    """Site -> name of its dictionary there; empty where the provenance names none, GraphError where it is malformed."""
    sources = _object(_names(graph).get("sources", {}), "provenance.neuronpedia.sources")
    for site, name in sources.items():
        if not isinstance(name, str):
            raise GraphError(f"the source of {site} is {name!r}; expected a string")
    return {str(Site.parse(site)): name for site, name in sources.items()}


def model_id_of(graph: nx.MultiDiGraph) -> str:
    """The model's name there; its own name, without folder or organisation, where the provenance has none."""
    model = _names(graph).get("model") or graph.graph["provenance"].get("model")
    return str(model).rstrip("/").rpartition("/")[2] if model else "unknown"


def _names(graph: nx.MultiDiGraph) -> dict[str, Any]:
    return _object(graph.graph.get("provenance", {}).get("neuronpedia", {}), "provenance.neuronpedia")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise GraphError(f"{where} is {'a list' if isinstance(value, list) else repr(value)}; expected an object")
    return value
