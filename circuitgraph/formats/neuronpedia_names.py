"""How Neuronpedia and circuit-tracer call a node, and back.

A node of theirs has the identity fields node_id, feature, layer, ctx_idx, feature_type and jsNodeId. Their `feature` is
Cantor-coded with the layer; their ids have one number for a feature of either kind, so those that are not of an MLP
carry their site as well: an attention and an MLP feature of one index must not be one node.
"""

from __future__ import annotations

import math
from typing import Any

from circuitgraph.errors import GraphError
from circuitgraph.formats.values import take_string, take_whole
from circuitgraph.nodes import Node, Site

ATTENTION_SITES = ("z", "attn_out")
MAX_LAYER = 4096
_PROBES = 1 << 24  # above every token's id: numbers of targets that are no logit
_TYPES = {"feature": ("lorsa", "cross layer transcoder"), "error": ("lorsa error", "mlp reconstruction error")}
_SITES = {
    "cross layer transcoder": ("feature", "mlp_out"),
    "mlp reconstruction error": ("error", "mlp_out"),
    "lorsa": ("feature", "attn_out"),
    "lorsa error": ("error", "attn_out"),
    "bias": ("bias", "attn_out"),  # they do not say whose: the earlier component can reach all that the later can
}


def cantor(layer: int, index: int) -> int:
    """One number for (layer, index): (l + i)(l + i + 1) / 2 + i."""
    return (layer + index) * (layer + index + 1) // 2 + index


def uncantor(code: int) -> tuple[int, int]:
    """The (layer, index) of a number that `cantor` gave."""
    diagonal = (math.isqrt(8 * code + 1) - 1) // 2
    index = code - diagonal * (diagonal + 1) // 2
    return diagonal - index, index


def fields_of(node: Node, n_layers: int, n_pos: int) -> dict[str, Any]:
    """Their identity fields of a node. Errors and biases have feature -1, since their readers want a number."""
    pos, layer = node.pos, node.site.layer
    if node.kind == "metric":
        top = str(n_layers)
        return _fields(f"{top}_0_{pos}", 0, top, pos, "logit", f"L_0-{pos}")
    if node.kind == "logit":
        top, token = str(n_layers), node.feature or 0
        return _fields(f"{top}_{token}_{pos}", token, top, pos, "logit", f"L_{token}-{pos}")
    if node.kind == "probe":  # a number that is no token's
        top, probe = str(n_layers), _PROBES + (node.feature or 0)
        place = str(node.site).replace(".", "_")
        return _fields(f"{top}_{probe}_{pos}_{place}", probe, top, pos, "logit", f"L_{probe}-{pos}")
    if layer is None:
        slot = pos if node.kind == "embedding" else n_pos + pos  # two embeddings of one position are two squares
        return _fields(f"E_{slot}_{pos}", slot, "E", pos, "embedding", f"E_{slot}-{pos}")
    kind = _TYPES[node.kind][node.site.kind not in ATTENTION_SITES] if node.kind in _TYPES else "bias"
    number = {"error": -1, "bias": -2}.get(node.kind, node.feature)
    suffix = "" if node.site.kind == "mlp_out" else f"_{node.site.kind}"
    feature = -1 if node.feature is None else cantor(layer, node.feature)
    place = f"{layer}_{number}{suffix}"
    return _fields(f"{layer}_{number}_{pos}{suffix}", feature, str(layer), pos, kind, f"{place}-0")


def node_of(fields: dict[str, Any], where: str, coded: bool) -> Node | None:
    """The node of such fields, None for a logit; GraphError for what is no node of a transformer.

    coded: `feature` is Cantor-coded. A transcoder's feature is one of mlp_out, a lorsa feature one of attn_out.
    """
    kind = take_string(fields.get("feature_type"), f"{where}: feature_type")
    pos = take_whole(fields.get("ctx_idx"), f"{where}: ctx_idx", 0, 1 << 31)
    if kind == "logit":
        return None
    if kind == "embedding":
        return Node("embedding", Site("embed"), pos)
    if kind not in _SITES:
        raise GraphError(
            f"{where}: feature_type {kind[:60]!r} is unknown; expected one of"
            f" {', '.join((*_SITES, 'embedding', 'logit'))}"
        )
    ours, site = _SITES[kind]
    layer = layer_of(fields.get("layer"), where)
    if ours != "feature":
        return Node(ours, Site(site, layer), pos)  # type: ignore[arg-type]
    index = take_whole(fields.get("feature"), f"{where}: feature")
    if coded:
        coded_layer, index = uncantor(index)
        if coded_layer != layer:
            raise GraphError(
                f"{where}: feature {fields['feature']} codes layer {coded_layer}, but its layer is {layer}"
            )
    return Node("feature", Site(site, layer), pos, index)


def layer_of(value: Any, where: str) -> int:
    """The layer that a string or a number gives."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 8:
        value = int(value)
    return take_whole(value, f"{where}: layer", 0, MAX_LAYER)


def _fields(node_id: str, feature: int, layer: str, pos: int, kind: str, js_id: str) -> dict[str, Any]:
    return {
        "node_id": node_id, "feature": feature, "layer": layer, "ctx_idx": pos, "feature_type": kind, "jsNodeId": js_id,
    }  # fmt: skip
