"""circuitgraph: circuit graphs of language models that carry their evidence.

    model = load_model("gpt2")
    dictionaries = load_dictionaries([...], model)
    graph = discover(model, dictionaries, read_pairs("pairs.jsonl"))     # READ discover.py FIRST
    circuit = prune_graph(graph, max_nodes=100)
    circuit = attach_evidence(circuit, evaluate_circuit(circuit, model, dictionaries))
    save(circuit, "circuit.json")

A graph is a networkx.MultiDiGraph; its attributes are described in circuitgraph.graph. Names are imported on first use,
so that `import circuitgraph` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuitgraph.attribution.targets import Probe
    from circuitgraph.components.evaluate import ComponentEvaluation, evaluate_components
    from circuitgraph.dictionaries.load import load_dictionaries
    from circuitgraph.discovery import discover
    from circuitgraph.errors import CircuitGraphError
    from circuitgraph.evaluation.dictionary_check import DictionaryCheck, check_dictionaries
    from circuitgraph.evaluation.evaluate import attach_evidence, evaluate_circuit, measure_graph
    from circuitgraph.evaluation.report import Evaluation
    from circuitgraph.formats import load, save
    from circuitgraph.graphs.prune import prune_graph
    from circuitgraph.graphs.tensors import GraphTensors, tensors
    from circuitgraph.interventions.attention import compare_attention
    from circuitgraph.interventions.generate import generate
    from circuitgraph.interventions.run import run_with_interventions
    from circuitgraph.models.model import load_model
    from circuitgraph.nodes import Node, Site
    from circuitgraph.prompts import PromptPair, read_pairs
    from circuitgraph.render import render_dot, render_html, render_svg, show
    from circuitgraph.tasks import make_pairs

_HOME = {
    "CircuitGraphError": "errors",
    "ComponentEvaluation": "components.evaluate",
    "DictionaryCheck": "evaluation.dictionary_check",
    "Evaluation": "evaluation.report",
    "GraphTensors": "graphs.tensors",
    "Node": "nodes",
    "Probe": "attribution.targets",
    "PromptPair": "prompts",
    "Site": "nodes",
    "attach_evidence": "evaluation.evaluate",
    "check_dictionaries": "evaluation.dictionary_check",
    "compare_attention": "interventions.attention",
    "discover": "discovery",
    "evaluate_circuit": "evaluation.evaluate",
    "evaluate_components": "components.evaluate",
    "generate": "interventions.generate",
    "load": "formats",
    "load_dictionaries": "dictionaries.load",
    "load_model": "models.model",
    "make_pairs": "tasks",
    "measure_graph": "evaluation.evaluate",
    "prune_graph": "graphs.prune",
    "read_pairs": "prompts",
    "render_dot": "render",
    "render_html": "render",
    "render_svg": "render",
    "run_with_interventions": "interventions.run",
    "save": "formats",
    "show": "render",
    "tensors": "graphs.tensors",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'circuitgraph' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"circuitgraph.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
