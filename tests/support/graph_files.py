"""Graph files as other programs write them."""

from __future__ import annotations

import json
import random

import torch

from circuitgraph.formats.eap import component_edges, component_names
from circuitgraph.formats.neuronpedia_names import cantor


def eap_file(path, n_layers=2, n_heads=2):
    """Write a graph as EAP-IG writes it, of a model with so many layers and heads; MLPs and one head are strong in it."""
    rng = random.Random(0)

    def score(source, target):
        strong = all(name[0] in "ilm" or name == "a0.h1" for name in (source, target))
        return rng.gauss(0, 10 if strong else 1)

    names = {name: {"in_graph": True} for name in component_names(n_layers, n_heads)}
    edges = {
        f"{s}->{t}" + (f"<{q}>" if q else ""): {"score": score(s, t), "in_graph": rng.random() < 0.5}
        for s, t, q in component_edges(n_layers, n_heads, False)
    }
    config = {"n_layers": n_layers, "n_heads": n_heads, "parallel_attn_mlp": False, "d_model": 8}
    path.write_text(json.dumps({"cfg": config, "nodes": names, "edges": edges}))


def circuit_tracer_file():
    """A graph as circuit-tracer writes it: two features, an error, two tokens, two logits. Small enough for paper."""

    def node(name, kind, layer, feature, pos, **more):
        base = {"node_id": name, "feature": feature, "layer": layer, "ctx_idx": pos, "feature_type": kind}
        return base | {"jsNodeId": name, "clerp": "", "token_prob": 0.0, "activation": None} | more

    nodes = [
        node("E_5_0", "embedding", "E", 0, 0, clerp='Emb: "a"'),
        node("E_6_1", "embedding", "E", 1, 1, clerp='Emb: "b"'),
        node("0_3_1", "cross layer transcoder", "0", cantor(0, 3), 1, activation=2.0),
        node("1_4_1", "cross layer transcoder", "1", cantor(1, 4), 1, activation=4.0),
        node("0_-1_1", "mlp reconstruction error", "0", -1, 1),
        node("3_7_1", "logit", "3", 7, 1, clerp='Output "x" (p=0.750)', token_prob=0.75),
        node("3_8_1", "logit", "3", 8, 1, clerp='Output "y" (p=0.250)', token_prob=0.25),
    ]
    links = [("E_5_0", "0_3_1", 2.0), ("0_3_1", "1_4_1", 3.0), ("0_-1_1", "1_4_1", 1.0)]
    links += [("1_4_1", "3_7_1", 8.0), ("1_4_1", "3_8_1", 4.0), ("E_6_1", "3_7_1", -2.0)]
    return {
        "metadata": {
            "slug": "s",
            "scan": "gemma-2-2b",
            "prompt_tokens": ["a", "b"],
            "prompt": "ab",
            "schema_version": 1,
        },
        "qParams": {"pinnedIds": ["1_4_1"], "supernodes": [["group", "0_3_1", "1_4_1"]], "linkType": "both"},
        "nodes": nodes,
        "links": [{"source": s, "target": t, "weight": w} for s, t, w in links],
    }


def component_graph(model, seed=0, parallel=False):
    """A graph of components with random scores whose circuit are the edges above -0.3."""
    generator = torch.Generator().manual_seed(seed)
    edges = {}
    for source, target, letter in component_edges(model.n_layers, model.n_heads, parallel):
        score = float(torch.randn(1, generator=generator))
        edges[f"{source}->{target}" + (f"<{letter}>" if letter else "")] = {"score": score, "in_graph": score > -0.3}
    names = component_names(model.n_layers, model.n_heads)
    config = {
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "parallel_attn_mlp": parallel,
        "d_model": model.d_model,
    }
    return {"cfg": config, "nodes": {name: {"in_graph": True} for name in names}, "edges": edges}
