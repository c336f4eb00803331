"""Paths from the residual stream into a node: input directions by kind of edge, and linear maps that are passed."""
