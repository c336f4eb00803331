"""Graph files: one module per format, `kinds` for all of them."""

from circuitgraph.formats.feature_examples import feature_examples, write_feature_examples
from circuitgraph.formats.kinds import FORMATS, export_graph, format_table, import_graph
from circuitgraph.formats.native import graph_to_text, read_graph, text_to_graph, write_graph
from circuitgraph.formats.neuronpedia_links import (
    feature_url,
    graph_quick_list_url,
    node_url,
    parse_sources,
    quick_list_url,
    with_sources,
)

__all__ = [
    "FORMATS",
    "export_graph",
    "feature_examples",
    "feature_url",
    "format_table",
    "graph_quick_list_url",
    "graph_to_text",
    "import_graph",
    "node_url",
    "parse_sources",
    "quick_list_url",
    "read_graph",
    "text_to_graph",
    "with_sources",
    "write_feature_examples",
    "write_graph",
]
