"""Graphs of the field as settings of one engine: data, not logic.

    leap                    z-SAEs and transcoders as nodes, typed ov, q, k, mlp and metric edges (IndirectLEAP)
    attribution-graph       transcoders as nodes, attention frozen and passed through, compared with nothing, the likeliest
                            logits explained, pruned by influence (circuit-tracer)
    sparse-feature-circuit  residual, attention and MLP SAEs as nodes, errors as targets too, integrated gradients
                            (feature-circuits)
    mixed                   whatever dictionaries there are; components without one are frozen and passed through

Every value is a keyword of `discover_circuit`: discover_circuit(model, dictionaries, pairs, **PRESETS["leap"]).
"""

from __future__ import annotations

from typing import Any

from circuitgraph.errors import CircuitGraphError, did_you_mean

PRESETS: dict[str, dict[str, Any]] = {
    "leap": {"baseline": "corrupted", "attention": "node", "mlp": "node", "edge_threshold": 0.001},
    "attribution-graph": {
        "baseline": "zero",
        "attention": "frozen",
        "mlp": "node",
        "targets": "logits",
        "max_nodes": 1_000_000,
        "max_traced": 7500,
        "edge_threshold": 0.0,
        "node_influence": 0.8,
        "edge_influence": 0.98,
    },
    "sparse-feature-circuit": {
        "baseline": "corrupted",
        "method": "integrated",
        "steps": 10,
        "rule": "left",
        "attention": "node",
        "mlp": "node",
        "errors_as_targets": True,
        "edge_threshold": 0.001,
    },
    "mixed": {"baseline": "corrupted", "attention": "frozen", "mlp": "frozen", "edge_threshold": 0.001},
}


def find_preset(name: str) -> dict[str, Any]:
    """The settings of that name; CircuitGraphError with the nearest names for another."""
    if name not in PRESETS:
        raise CircuitGraphError(
            f"preset {name!r} is unknown; expected one of {', '.join(PRESETS)}.{did_you_mean(name, PRESETS)}"
        )
    return dict(PRESETS[name])
