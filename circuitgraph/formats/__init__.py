"""Graph files: `save` and `load` for every format, one module per format, all of them in `kinds`."""

from circuitgraph.formats.feature_examples import feature_examples, write_feature_examples
from circuitgraph.formats.kinds import FORMATS, format_table
from circuitgraph.formats.native import graph_to_text, text_to_graph
from circuitgraph.formats.neuronpedia_links import (
    feature_url,
    graph_quick_list_url,
    node_url,
    parse_sources,
    quick_list_url,
    with_sources,
)
from circuitgraph.formats.save_load import check_save, load, save

__all__ = [
    "FORMATS",
    "check_save",
    "feature_examples",
    "feature_url",
    "format_table",
    "graph_quick_list_url",
    "graph_to_text",
    "load",
    "node_url",
    "parse_sources",
    "quick_list_url",
    "save",
    "text_to_graph",
    "with_sources",
    "write_feature_examples",
]
