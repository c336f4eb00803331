"""Attribution-graph JSON of Neuronpedia and circuit-tracer, with the exact graph inside. Written here, read by
neuronpedia_read.

Their model of a graph is smaller than ours:

- one link per pair of nodes, its weight in units of the target's pre-activation: the sum of our `local_weight` over the
  kinds of edges that carry something (all but q and k);
- q and k edges become `qk_tracing_results` of the node they reach, as its marginal contributors;
  `pair_wise_contributors` stays empty, since what a query and a key source add to a score together is known for the
  pair only, and our edges hold what each does with all of the other side; nodes that have no link and are named only
  there stand in `qk_only_nodes`;
- attention features are `lorsa`, all other features `cross layer transcoder`;
- groups and pins of the graph are `supernodes` and `pinnedIds`; labels are `clerp`, in which < and > become ‹ and ›,
  since circuit-tracer's page takes a clerp as HTML;
- the metric is the logit node, whose label holds `(p=...)` because their pages take it apart;
- `influence` is the share of |attribution| that the node and all stronger ones have together: low is important.

The extra block `circuitgraph` holds the native file, from which nothing is missing.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import networkx as nx

from circuitgraph.errors import GraphError
from circuitgraph.files import check_writable, write_atomically
from circuitgraph.formats.groups import groups_of, pins_of
from circuitgraph.formats.native import graph_to_value
from circuitgraph.formats.neuronpedia_names import ATTENTION_SITES, fields_of
from circuitgraph.formats.untrusted import parse_json, read_text, reading
from circuitgraph.formats.values import take_list, take_number, take_object, take_string
from circuitgraph.graphs.neuronpedia import model_id_of, sources_of
from circuitgraph.nodes import Node, Site


def _version() -> str:
    """The installed version; "unknown" for a source tree on the path, which has no metadata."""
    try:
        return importlib.metadata.version("circuitgraph-engine")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


GENERATOR = {"name": "circuitgraph", "version": _version()}
INDEX = "graph-metadata.json"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_WHY = ("q", "k")  # kinds that say why attention looks somewhere and carry nothing


def write_neuronpedia(
    graph: nx.MultiDiGraph, path: str | Path, *, slug: str | None = None, scan: str | None = None
) -> None:
    """Write the file and its entry in `graph-metadata.json` beside it, from which circuit-tracer's local server lists
    graphs.

    slug: the graph's name, which must be the file's name for that server [default: the file's name]; scan: the model's
    name on Neuronpedia [default: that of the provenance].
    """
    path = Path(path)
    value = neuronpedia_value(graph, slug=slug or path.name.removesuffix(".json"), scan=scan)
    index = path.with_name(INDEX)
    if path.name == INDEX:
        raise GraphError(f"{INDEX} is the name of the list of graphs; choose another -o")
    listed = _listed(index, value["metadata"])
    check_writable(path)
    write_atomically(path, json.dumps(value, allow_nan=False))
    write_atomically(index, json.dumps({"graphs": listed}, indent=2, allow_nan=False) + "\n")


def neuronpedia_value(graph: nx.MultiDiGraph, *, slug: str, scan: str | None = None) -> dict[str, Any]:
    """The JSON value of the file."""
    exact = graph_to_value(graph)
    nodes = {key: Node.parse(key) for key in (row["id"] for row in exact["nodes"])}
    ids = ids_of(graph)
    links, traced = _links(exact["edges"], ids)
    linked = {link[end] for link in links for end in ("source", "target")} | set(traced)
    named = {contributor for results in traced.values() for name in results for (contributor, _) in results[name]}
    influence, sizes = _influence(exact["nodes"]), _sizes(graph)
    rows, only = [], {}
    parts = {key for key, node in nodes.items() if node.kind in ("logit", "probe")}
    whole = {ids[key] for key, node in nodes.items() if node.kind == "metric" and parts}
    links = [link for link in links if link["target"] not in whole]
    for row in exact["nodes"]:
        key = row["id"]
        if ids[key] in whole:  # their targets are the logits that make up the metric
            continue
        fields = _node(graph, row, nodes[key], sizes) | {"influence": influence.get(key)}
        if ids[key] in traced:
            fields["qk_tracing_results"] = {"pair_wise_contributors": []} | traced[ids[key]]
        if ids[key] in named and ids[key] not in linked:
            only[ids[key]] = fields
        else:
            rows.append(fields)
    placeholder = _placeholder(rows)
    value: dict[str, Any] = {
        "metadata": _metadata(graph, slug, scan),
        "qParams": {
            "linkType": "both",
            "pinnedIds": [ids[key] for key in pins_of(graph)],
            "clickedId": "",
            "supernodes": [[label, *(ids[key] for key in members)] for label, members in groups_of(graph) if members],
            "sg_pos": "",
        },
        "nodes": rows + placeholder,
        "links": links,
    }
    return value | ({"qk_only_nodes": only} if only else {}) | {"circuitgraph": exact}


def ids_of(graph: nx.MultiDiGraph) -> dict[str, str]:
    """Our name -> their node_id."""
    top, n_pos = _sizes(graph)
    return {key: fields_of(Node.parse(key), top, n_pos)["node_id"] for key in graph}


def safe_name(text: str) -> str:
    """The text with everything but letters, digits, `_`, `.` and `-` as `-`: what slugs and scans may hold."""
    return _UNSAFE.sub("-", text).strip("-.") or "graph"


def _sizes(graph: nx.MultiDiGraph) -> tuple[int, int]:
    """(the layer of the logit, one above all others; the number of positions)."""
    layers = [data["layer"] + 1 for _, data in graph.nodes(data=True) if data["layer"] is not None]
    return max([graph.graph["n_layers"], *layers]), max(1, len(graph.graph["tokens"]["clean"]))


def _links(edges: Iterable[dict[str, Any]], ids: Mapping[str, str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(links, node_id -> its q and k contributors with the strongest first)."""
    weights: dict[tuple[str, str], float] = {}
    traced: dict[str, dict[str, list[list[Any]]]] = {}
    for edge in edges:
        source, target, kind = ids[edge["source"]], ids[edge["target"]], edge["kind"]
        if kind in _WHY:
            results = traced.setdefault(target, {"top_q_marginal_contributors": [], "top_k_marginal_contributors": []})
            results[f"top_{kind}_marginal_contributors"].append([source, edge["local_weight"]])
        else:
            weights[source, target] = weights.get((source, target), 0.0) + edge["local_weight"]
    for results in traced.values():
        for contributors in results.values():
            contributors.sort(key=lambda pair: -abs(pair[1]))
    return [{"source": s, "target": t, "weight": w} for (s, t), w in weights.items()], traced


def _node(graph: nx.MultiDiGraph, row: dict[str, Any], node: Node, sizes: tuple[int, int]) -> dict[str, Any]:
    clean, fields = graph.graph["tokens"]["clean"], fields_of(node, *sizes)
    fields |= {"clerp": _label(graph, row, node), "activation": row.get("activation")}
    fields |= {
        "run_idx": 0,
        "reverse_ctx_idx": max(0, len(clean) - 1 - node.pos),
        "is_target_logit": node.kind in ("metric", "logit", "probe"),
    }
    if node.kind == "logit":
        return fields | {"token_prob": _likely(graph).get(str(row.get("token")), 0.0)}
    return fields | {"token_prob": _answer(graph)[1] if node.kind == "metric" else 0.0}


def _label(graph: nx.MultiDiGraph, row: dict[str, Any], node: Node) -> str:
    tokens = graph.graph["tokens"]["clean"]
    token = tokens[node.pos] if node.pos < len(tokens) else ""
    if node.kind == "metric":
        answer, probability = _answer(graph)
        name = _shown(graph.graph["metric"]["name"])
        return f'{name} "{_shown(answer)}" (p={probability:.3f})'
    if node.kind == "logit":
        text = str(row.get("token", node.feature))
        return f'Output "{_shown(text)}" (p={_likely(graph).get(text, 0.0):.3f})'
    if node.kind == "probe":  # their page wants a probability behind every target
        return f'TargetNode "{_shown(str(row.get("target", row.get("label", node))))}" (p=0.000)'
    if row.get("label"):
        return _shown(row["label"])
    if node.kind == "feature":
        promoted = row.get("top_tokens") or []
        return "promotes " + ", ".join(f'"{_shown(str(text))}"' for text in promoted) if promoted else ""
    words = {"embedding": "Emb:", "pos_embedding": "Emb: position of", "bias": f"Bias: {node.site.kind}"}
    return f'{words.get(node.kind, f"Err: {node.site.kind}")} "{_shown(token)}"'


def _shown(text: str) -> str:
    """Text that is safe in their pages: no tags, no quotes (the token is read from between quotes), no second `(p=`."""
    plain = text.replace("<", "‹").replace(">", "›").replace('"', "″").replace("(p=", "(p =")
    return "".join(c if c.isprintable() or c == " " else f"\\u{ord(c):04x}" for c in plain)


def _answer(graph: nx.MultiDiGraph) -> tuple[str, float]:
    """The answer of the first prompt and its probability; the likeliest token where no answer is recorded.

    The probability is 0 where the answer is not among the likeliest tokens, whose probabilities are all that a graph
    keeps.
    """
    found = _likely(graph)
    answers = _first_prompt(graph).get("answers")
    if isinstance(answers, list) and answers:
        return str(answers[0]), found.get(str(answers[0]), 0.0)
    return next(iter(found.items()), (graph.graph["metric"]["name"], 0.0))


def _likely(graph: nx.MultiDiGraph) -> dict[str, float]:
    """The likeliest next tokens of the first prompt and their probabilities, as far as the graph keeps them."""
    likely = take_object(graph.graph.get("logits", {}), "graph.logits").get("clean", [])
    found = {}
    for pair in take_list(likely, "graph.logits.clean"):
        token, probability = (*take_list(pair, "a token of graph.logits.clean"), None, None)[:2]
        found[take_string(token, "a token of graph.logits.clean")] = take_number(probability, "its probability")
    return found


def _first_prompt(graph: nx.MultiDiGraph) -> dict[str, Any]:
    prompts = take_list(graph.graph["provenance"].get("prompts", []), "provenance.prompts")
    return take_object(prompts[0], "the first prompt of the provenance") if prompts else {}


def _influence(rows: list[dict[str, Any]]) -> dict[str, float]:
    ranked = sorted((row for row in rows if row["kind"] != "metric"), key=lambda row: -abs(row["attribution"]))
    total, share, found = sum(abs(row["attribution"]) for row in ranked), 0.0, {}
    for row in ranked:
        share += abs(row["attribution"])
        found[row["id"]] = min(1.0, share / total) if total else 1.0
    return found


def _placeholder(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A node above layer 0, needed where nothing but the logit is there: their page takes a highest layer of 0 for
    none.
    """
    if any(row["layer"] not in ("E", "0") and row["feature_type"] != "logit" for row in rows):
        return []
    text = "placeholder: the page needs a node above layer 0"
    fields = {
        "node_id": "1_-3_0",
        "feature": -1,
        "layer": "1",
        "ctx_idx": 0,
        "feature_type": "unknown",
        "jsNodeId": "1_-3-0",
    }
    return [fields | {"clerp": text, "activation": None, "influence": 1.0, "run_idx": 0, "reverse_ctx_idx": 0}
            | {"is_target_logit": False, "token_prob": 0.0}]  # fmt: skip


def _metadata(graph: nx.MultiDiGraph, slug: str, scan: str | None) -> dict[str, Any]:
    facts = graph.graph
    settings = facts["provenance"].get("settings")
    prompt = _first_prompt(graph).get("clean")
    details = _feature_details(graph)
    dictionaries = facts["provenance"].get("dictionaries")
    return {
        "slug": safe_name(slug),
        "scan": safe_name(scan or model_id_of(graph)),
        "transcoder_list": sorted(map(str, dictionaries.values())) if isinstance(dictionaries, dict) else [],
        "prompt_tokens": list(facts["tokens"]["clean"]),
        "prompt": prompt if isinstance(prompt, str) else "".join(facts["tokens"]["clean"]),
        "node_threshold": 1.0,
        "schema_version": 1,
        "info": {"description": _description(graph), "generator": GENERATOR, "source_urls": []},
        "generation_settings": settings if isinstance(settings, dict) else {},
        "pruning_settings": {},
    } | ({"feature_details": details} if details else {})


def _description(graph: nx.MultiDiGraph) -> str:
    metric = graph.graph["metric"]
    runs = [f"{run} {metric[run]:.4g}" for run in ("clean", "corrupted") if metric[run] is not None]
    lines = [
        f"{metric['name']}: {', '.join(runs)}; the logit node is this metric.",
        "Influence is the share of |attribution| of the node and all stronger ones.",
        "A probability of 0.000 stands for: not among the likeliest tokens.",
    ]
    residual = sorted(
        {Node.parse(key).site.kind for key in graph} - {"z", "attn_out", "mlp_out", "embed", "pos_embed", "metric"}
    )
    if residual:
        lines.append(f"Features of {', '.join(residual)} are shown as cross layer transcoder features.")
    return " ".join(lines)


def _feature_details(graph: nx.MultiDiGraph) -> dict[str, str]:
    """The source sets of MLP and attention features, where each is one for all layers."""
    sets: dict[str, set[str]] = {}
    for site, source in sources_of(graph).items():
        name = "neuronpedia_lorsa_source_set" if Site.parse(site).kind in ATTENTION_SITES else "neuronpedia_source_set"
        sets.setdefault(name, set()).add(source.partition("-")[2] or source)
    return {name: next(iter(found)) for name, found in sorted(sets.items()) if len(found) == 1}


def _listed(index: Path, metadata: dict[str, Any]) -> list[Any]:
    """The list of graphs beside the file with this one in it, at its place if it was there before."""
    if not index.exists():
        return [metadata]
    with reading(index):
        listed = take_list(take_object(parse_json(read_text(index)), "the list").get("graphs"), "graphs")
        slugs = [take_object(item, "a graph of the list").get("slug") for item in listed]
    if metadata["slug"] in slugs:
        return [metadata if slug == metadata["slug"] else item for slug, item in zip(slugs, listed, strict=True)]
    return [*listed, metadata]
