"""Circuits of heads and MLPs: the shape of their graphs, running and evaluating them."""
