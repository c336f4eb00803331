"""Graphs of the field as settings of one engine: data, not logic.

leap                    z-SAEs and transcoders as nodes, typed ov, q, k, mlp and metric edges (IndirectLEAP)
attribution-graph       transcoders as nodes, attention frozen, compared with nothing, the likeliest logits explained,
                        pruned by influence (circuit-tracer)
sparse-feature-circuit  residual, attention and MLP SAEs as nodes, errors as targets too, integrated gradients
                        (feature-circuits)
mixed                   whatever dictionaries there are; components without one are frozen

discover(prompts, model, dictionaries, preset="leap", max_nodes=500)
"""

from __future__ import annotations

from circuitgraph.errors import CircuitGraphError, did_you_mean
from circuitgraph.settings import Discovery

PRESETS: dict[str, Discovery] = {
    "leap": Discovery(),
    "attribution-graph": Discovery(
        baseline="zero",
        attention="frozen",
        targets="logits",
        max_nodes=1_000_000,
        max_traced=7500,
        edge_threshold=0.0,
        node_influence=0.8,
        edge_influence=0.98,
    ),
    "sparse-feature-circuit": Discovery(method="integrated", steps=10, rule="left", errors_as_targets=True),
    "mixed": Discovery(attention="frozen", mlp="frozen"),
}


def find_preset(name: str) -> Discovery:
    """The settings of that name; CircuitGraphError with the nearest name for another."""
    if name not in PRESETS:
        raise CircuitGraphError(
            f"preset {name!r} is unknown; expected one of {', '.join(PRESETS)}.{did_you_mean(str(name), PRESETS)}"
        )
    return PRESETS[name]
