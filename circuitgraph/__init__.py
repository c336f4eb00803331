"""circuitgraph: circuit graphs of language models that carry their evidence.

    graph = discover("pairs.jsonl", "gpt2", "gpt2-small/z", preset="leap")       # READ discovery.py FIRST
    circuit = prune(graph, max_nodes=100)
    circuit = attach_evidence(circuit, evaluate(circuit, "gpt2", "gpt2-small/z"))
    save(circuit, "circuit.html")

A graph is a networkx.MultiDiGraph; `circuitgraph.graphs.schema` describes its attributes. Names are imported when they
are first used, so that `import circuitgraph` costs nothing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from circuitgraph.lazy_names import lazy_names

if TYPE_CHECKING:
    from circuitgraph.attribution.attribute import Attribution as Attribution
    from circuitgraph.attribution.attribute import attribute as attribute
    from circuitgraph.attribution.attributions import Attributions as Attributions
    from circuitgraph.attribution.attributions import load_attributions as load_attributions
    from circuitgraph.attribution.targets import Probe as Probe
    from circuitgraph.components.evaluate import ComponentEvaluation as ComponentEvaluation
    from circuitgraph.components.evaluate import evaluate_components as evaluate_components
    from circuitgraph.dictionaries.collection import Dictionaries as Dictionaries
    from circuitgraph.dictionaries.dictionary import Dictionary as Dictionary
    from circuitgraph.dictionaries.load import load_dictionaries as load_dictionaries
    from circuitgraph.discovery import discover as discover
    from circuitgraph.errors import CircuitGraphError as CircuitGraphError
    from circuitgraph.evaluation.dictionary_check import DictionaryCheck as DictionaryCheck
    from circuitgraph.evaluation.dictionary_check import check_dictionaries as check_dictionaries
    from circuitgraph.evaluation.evidence import attach_evidence as attach_evidence
    from circuitgraph.evaluation.evidence import evaluate as evaluate
    from circuitgraph.evaluation.evidence import measure as measure
    from circuitgraph.evaluation.report import Evaluation as Evaluation
    from circuitgraph.formats import load as load
    from circuitgraph.formats import save as save
    from circuitgraph.graphs.pruning import prune as prune
    from circuitgraph.graphs.schema import check_graph as check_graph
    from circuitgraph.graphs.summary import summary_text as summary_text
    from circuitgraph.graphs.tensors import tensors as tensors
    from circuitgraph.interventions.attention import compare_attention as compare_attention
    from circuitgraph.interventions.generation import Generation as Generation
    from circuitgraph.interventions.generation import generate as generate
    from circuitgraph.interventions.run import IntervenedRun as IntervenedRun
    from circuitgraph.interventions.run import run_with_interventions as run_with_interventions
    from circuitgraph.models.load import load_model as load_model
    from circuitgraph.models.model import Model as Model
    from circuitgraph.nodes import Node as Node
    from circuitgraph.nodes import Site as Site
    from circuitgraph.presets import PRESETS as PRESETS
    from circuitgraph.prompts import PromptPair as PromptPair
    from circuitgraph.prompts import read_pairs as read_pairs
    from circuitgraph.render import render_dot as render_dot
    from circuitgraph.render import render_html as render_html
    from circuitgraph.render import render_svg as render_svg
    from circuitgraph.render import show as show
    from circuitgraph.settings import Discovery as Discovery
    from circuitgraph.tasks import make_pairs as make_pairs

_HOMES = {
    "Attribution": "attribution.attribute",
    "Attributions": "attribution.attributions",
    "CircuitGraphError": "errors",
    "ComponentEvaluation": "components.evaluate",
    "Dictionaries": "dictionaries.collection",
    "Dictionary": "dictionaries.dictionary",
    "DictionaryCheck": "evaluation.dictionary_check",
    "Discovery": "settings",
    "Evaluation": "evaluation.report",
    "Generation": "interventions.generation",
    "IntervenedRun": "interventions.run",
    "Model": "models.model",
    "Node": "nodes",
    "PRESETS": "presets",
    "Probe": "attribution.targets",
    "PromptPair": "prompts",
    "Site": "nodes",
    "attach_evidence": "evaluation.evidence",
    "attribute": "attribution.attribute",
    "check_dictionaries": "evaluation.dictionary_check",
    "check_graph": "graphs.schema",
    "compare_attention": "interventions.attention",
    "discover": "discovery",
    "evaluate": "evaluation.evidence",
    "evaluate_components": "components.evaluate",
    "generate": "interventions.generation",
    "load": "formats",
    "load_attributions": "attribution.attributions",
    "load_dictionaries": "dictionaries.load",
    "load_model": "models.load",
    "make_pairs": "tasks",
    "measure": "evaluation.evidence",
    "prune": "graphs.pruning",
    "read_pairs": "prompts",
    "render_dot": "render",
    "render_html": "render",
    "render_svg": "render",
    "run_with_interventions": "interventions.run",
    "save": "formats",
    "show": "render",
    "summary_text": "graphs.summary",
    "tensors": "graphs.tensors",
}

__all__ = list(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, _HOMES)

if "IPython" in sys.modules:  # a plain graph then shows itself as the page
    from circuitgraph.render.notebook import show_in_ipython

    show_in_ipython()
