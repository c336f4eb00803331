"""Two pairs of different form, whose positions are aligned by the words they name."""

from __future__ import annotations

from circuitgraph.prompts import PromptPair

# Two forms: other lengths, other distances, and the two names in another order.
FIRST = PromptPair("a f b g c d g e", "a f b g c d f e", (" c",), (" d",), {"IO": 1, "S1": 3, "S2": 6})
SECOND = PromptPair("d d c h b f e h a", "d d c h b f e f a", (" b",), (" d",), {"S1": 3, "IO": 5, "S2": 7})
# The positions of their tokens, counted by hand; the first is <bos>.
ALIGNED = (
    ["start", "start+1", "IO", "IO+1", "S1", "S1+1", "S1+2", "S2", "END"],
    ["start", "start+1", "start+2", "start+3", "S1", "S1+1", "IO", "IO+1", "S2", "END"],
)
EVERYTHING = {"edge_threshold": 0.0, "max_nodes": 100_000}


def counted(model, aligned):
    """The aligned positions as counted by hand, for a model that prepends no <bos>."""
    if len(model.tokens("a")) == 2:
        return aligned
    shifted = {"start+1": "start", "start+2": "start+1", "start+3": "start+2"}
    return [shifted.get(name, name) for name in aligned[1:]]


def aligned_names(graph):
    return graph.graph["provenance"]["alignment"]["positions"]
