"""circuitgraph: circuit graphs of language models that carry their evidence.

    model = load_model("gpt2")
    dictionaries = load_dictionaries([...], model)
    graph = discover_circuit(model, dictionaries, read_pairs("pairs.jsonl"))     # READ discover.py FIRST
    circuit = prune_graph(graph, max_nodes=100)
    circuit = attach_evidence(circuit, evaluate_circuit(circuit, model, dictionaries))
    write_graph(circuit, "circuit.json")

A graph is a networkx.MultiDiGraph; its attributes are described in circuitgraph.graph. Names are imported on first use,
so that `import circuitgraph` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuitgraph.attention_comparison import compare_attention
    from circuitgraph.check import DictionaryCheck, check_dictionaries
    from circuitgraph.component_evaluation import ComponentEvaluation, evaluate_components
    from circuitgraph.dictionary_formats import load_dictionaries
    from circuitgraph.discover import discover_circuit
    from circuitgraph.errors import CircuitGraphError
    from circuitgraph.evaluate import attach_evidence, evaluate_circuit, measure_graph
    from circuitgraph.evaluation import Evaluation
    from circuitgraph.formats import read_graph, write_graph
    from circuitgraph.generation import generate
    from circuitgraph.model import load_model
    from circuitgraph.nodes import Node, Site
    from circuitgraph.prompts import PromptPair, read_pairs
    from circuitgraph.prune import prune_graph
    from circuitgraph.render import render_dot, render_html, render_svg, view_graph, write_rendering
    from circuitgraph.splice import run_with_interventions
    from circuitgraph.targets import Probe
    from circuitgraph.tasks import make_pairs

__version__ = "0.1.0"

_HOME = {
    "CircuitGraphError": "errors",
    "ComponentEvaluation": "component_evaluation",
    "DictionaryCheck": "check",
    "Evaluation": "evaluation",
    "Node": "nodes",
    "Probe": "targets",
    "PromptPair": "prompts",
    "Site": "nodes",
    "attach_evidence": "evaluate",
    "check_dictionaries": "check",
    "compare_attention": "attention_comparison",
    "discover_circuit": "discover",
    "evaluate_circuit": "evaluate",
    "evaluate_components": "component_evaluation",
    "generate": "generation",
    "load_dictionaries": "dictionary_formats",
    "load_model": "model",
    "make_pairs": "tasks",
    "measure_graph": "evaluate",
    "prune_graph": "prune",
    "read_graph": "formats",
    "read_pairs": "prompts",
    "render_dot": "render",
    "render_html": "render",
    "render_svg": "render",
    "run_with_interventions": "splice",
    "view_graph": "render",
    "write_graph": "formats",
    "write_rendering": "render",
}

__all__ = [*_HOME, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'circuitgraph' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"circuitgraph.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
