"""Graphs: their schema, building and pruning one, where it came from, and its summary."""
