"""Graph files: one module per format, `kinds` for all of them."""

from circuitgraph.formats.kinds import FORMATS, export_graph, format_table, import_graph
from circuitgraph.formats.native import graph_to_text, read_graph, text_to_graph, write_graph

__all__ = [
    "FORMATS",
    "export_graph",
    "format_table",
    "graph_to_text",
    "import_graph",
    "read_graph",
    "text_to_graph",
    "write_graph",
]
