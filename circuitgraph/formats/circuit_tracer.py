"""circuit-tracer's `.pt` graphs -> a graph, without executing anything that is in them.

circuit-tracer saves objects of its own classes, which only running their code could restore, so files straight from it
are refused with the way to convert them; a file of tensors, numbers, strings, lists and dicts is read. Keys:
adjacency_matrix [n, n] (row: target, column: source; selected features, then errors by layer and position, then tokens,
then logits), active_features [m, 3] (layer, position, feature), selected_features [k], activation_values,
logit_probabilities, input_tokens, input_string, cfg with n_layers, and logit_targets ([text, token] each) or
logit_tokens.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx

from circuitgraph.errors import GraphError
from circuitgraph.formats.neuronpedia_names import MAX_LAYER
from circuitgraph.formats.neuronpedia_read import Parts, graph_of_parts
from circuitgraph.formats.untrusted import one_line, reading
from circuitgraph.formats.values import take_object, take_whole
from circuitgraph.nodes import Node, Site

if TYPE_CHECKING:
    from torch import Tensor

MAX_FILE = 4 << 30
CONVERT = (
    "where circuit-tracer is installed, write it as JSON and import that:"
    " circuit_tracer.utils.create_graph_files(graph_or_path=FILE, slug=NAME, output_path=FOLDER)"
)


def read_circuit_tracer(path: str | Path) -> nx.MultiDiGraph:
    """The graph of a `.pt` file; GraphError for one that holds more than tensors and plain values."""
    with reading(path):
        return graph_of_parts(_parts(_load(Path(path))))


def _load(path: Path) -> dict[str, Any]:
    import torch  # here and below: reading any other file must not cost its second

    _check_claims(path)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises whatever its unpickler meets; nothing of the file has been executed
        raise GraphError(
            f"it holds more than tensors and plain values ({type(error).__name__}), so nothing of it was loaded;"
            f" {CONVERT}"
        ) from None
    return take_object(dict(data) if isinstance(data, Mapping) else data, "the file")


def _check_claims(path: Path) -> None:
    """GraphError for a file that is larger than any graph, or that says it is, before anything is allocated."""
    if path.stat().st_size > MAX_FILE:
        raise GraphError(f"it is larger than {MAX_FILE >> 30} GiB; {CONVERT}")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            claimed = sum(item.file_size for item in archive.infolist())
        if claimed > path.stat().st_size:  # torch stores without compression
            raise GraphError(f"it claims {claimed} bytes in a file of {path.stat().st_size}")


def _parts(data: dict[str, Any]) -> Parts:
    matrix, active = _tensor(data, "adjacency_matrix", 2), _tensor(data, "active_features", 2)
    selected, probabilities = _tensor(data, "selected_features", 1), _tensor(data, "logit_probabilities", 1)
    activations, tokens = _tensor(data, "activation_values", 1), _tensor(data, "input_tokens", 1)
    config = data.get("cfg")
    n_layers = take_whole(config.get("n_layers") if isinstance(config, Mapping) else None, "cfg.n_layers", 1, MAX_LAYER)
    n_pos, n_features, n_logits = len(tokens), len(selected), len(probabilities)
    size = n_features + n_layers * n_pos + n_pos + n_logits
    if tuple(matrix.shape) != (size, size):
        raise GraphError(
            f"adjacency_matrix has shape {tuple(matrix.shape)}; {n_features} features, {n_layers} layers, {n_pos}"
            f" positions and {n_logits} logits make ({size}, {size})"
        )
    if active.shape[1] != 3 or len(activations) not in (len(active), n_features):
        raise GraphError(
            f"active_features has shape {tuple(active.shape)} and there are {len(activations)} activation_values"
        )
    if n_features and not 0 <= int(selected.min()) <= int(selected.max()) < len(active):
        raise GraphError(f"selected_features names features beyond the {len(active)} active ones")
    nodes: dict[str, Node] = {}
    attributes: dict[str, dict[str, Any]] = {}
    chosen = activations if len(activations) == n_features != len(active) else activations[selected.long()]
    for i, ((layer, pos, feature), activation) in enumerate(
        zip(active[selected.long()].tolist(), chosen.tolist(), strict=True)
    ):
        if not (0 <= layer < n_layers and 0 <= pos < n_pos and feature >= 0 and math.isfinite(activation)):
            raise GraphError(
                f"feature {i + 1} is ({layer}, {pos}, {feature}) with activation {activation}; it does not exist"
            )
        nodes[f"f{i}"] = Node("feature", Site("mlp_out", int(layer)), int(pos), int(feature))
        attributes[f"f{i}"] = {"activation": float(activation)}
    for layer in range(n_layers):
        for pos in range(n_pos):
            nodes[f"error {layer} {pos}"] = Node("error", Site("mlp_out", layer), pos)
    for pos in range(n_pos):
        nodes[f"token {pos}"] = Node("embedding", Site("embed"), pos)
    labels = _logit_labels(data, n_logits)
    logits = {f"logit {i}": (labels[i], p) for i, p in enumerate(probabilities.double().tolist())}
    names = [*nodes, *logits]
    for name in nodes:
        attributes.setdefault(name, {})
    rows, columns = matrix.nonzero(as_tuple=True)
    values = matrix[rows, columns].double().tolist()
    links = [(names[s], names[t], "", w) for t, s, w in zip(rows.tolist(), columns.tolist(), values, strict=True)]
    linked = {end for source, target, *_ in links for end in (source, target)}
    nodes = {name: node for name, node in nodes.items() if name in linked or node.kind == "embedding"}
    texts = [str(token) for token in tokens.tolist()]
    provenance = {"source": "circuit-tracer graph", "model": str(data.get("scan", "")), "token_ids": tokens.tolist()}
    prompt = data.get("input_string")
    provenance["prompts"] = [{"clean": prompt}] if isinstance(prompt, str) else []
    return Parts(texts, n_layers, nodes, attributes, logits, links, facts={"provenance": provenance})


def _tensor(data: dict[str, Any], name: str, dimensions: int) -> Tensor:
    import torch

    value = data.get(name)
    if isinstance(value, list | tuple) and dimensions == 1 and all(isinstance(item, int | float) for item in value):
        value = torch.tensor(value)
    if (
        not isinstance(value, torch.Tensor)
        or value.layout != torch.strided
        or value.is_meta
        or value.ndim != dimensions
    ):
        raise GraphError(
            f"{name} is {one_line(type(value).__name__)}; expected a tensor of {dimensions} dimensions; {CONVERT}"
        )
    if not bool(torch.isfinite(value).all()):
        raise GraphError(f"{name} holds NaN or Inf")
    return value.detach()


def _logit_labels(data: dict[str, Any], count: int) -> list[str]:
    import torch

    targets = data.get("logit_targets", data.get("logit_tokens"))
    values = targets.tolist() if isinstance(targets, torch.Tensor) and targets.ndim == 1 else targets
    if not isinstance(values, list | tuple) or len(values) != count:
        raise GraphError(f"logit_targets or logit_tokens must name the {count} logits; {CONVERT}")
    return [str(item[0]) if isinstance(item, list | tuple) and item else str(item) for item in values]
