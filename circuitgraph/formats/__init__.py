"""Graph files: one module per format."""

from circuitgraph.formats.native import graph_to_text, read_graph, text_to_graph, write_graph

__all__ = ["graph_to_text", "read_graph", "text_to_graph", "write_graph"]
