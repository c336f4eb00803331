"""Attribution graphs for Neuronpedia and circuit-tracer: their schema, their unwritten rules, and the way back."""

from __future__ import annotations

import itertools
import json
import re

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.format_graphs import graphs
from support.graph_files import circuit_tracer_file
from support.graphs import example_graph
from support.neuronpedia_schema import SCHEMA

from circuitgraph.errors import GraphError
from circuitgraph.formats import feature_examples, graph_to_text, load, save, with_sources
from circuitgraph.formats import write_feature_examples as write_examples
from circuitgraph.formats.neuronpedia import neuronpedia_value
from circuitgraph.formats.neuronpedia_names import cantor, fields_of, uncantor
from circuitgraph.formats.neuronpedia_read import value_from_neuronpedia
from circuitgraph.nodes import NODE_KINDS, Node, Site


def value_of(graph, **settings):
    return json.loads(json.dumps(neuronpedia_value(graph, **{"slug": "a graph"} | settings)))


def foreign(graph):
    """The file as another program would have written it: without our block."""
    value = value_of(graph)
    del value["circuitgraph"]
    return value


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graph=graphs())
def test_every_graph_is_valid_and_keeps_the_unwritten_rules(graph):
    value = value_of(graph)
    jsonschema.Draft7Validator(SCHEMA).validate(value)
    nodes, only = value["nodes"], value.get("qk_only_nodes", {})
    ids = [node["node_id"] for node in nodes]
    assert len(set(ids) | set(only)) == len(ids) + len(only)
    known = set(ids) | set(only)
    pairs = [(link["source"], link["target"]) for link in value["links"]]
    assert len(set(pairs)) == len(pairs) and {end for pair in pairs for end in pair} <= set(ids)
    logits = [node for node in [*nodes, *only.values()] if node["feature_type"] == "logit"]
    assert len(logits) == max(1, [kind for _, kind in graph.nodes(data="kind")].count("probe"))
    for logit in logits:
        assert re.fullmatch(r'[^"]*"[^"]*" \(p=\d\.\d{3}\)', logit["clerp"]) and logit["clerp"].count("(p=") == 1
    layers = [int(node["layer"]) for node in nodes if node["layer"] != "E" and node["feature_type"] != "logit"]
    assert max(layers) >= 1
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", value["metadata"]["slug"] + value["metadata"]["scan"])
    assert not re.search("[<>]", "".join(node["clerp"] for node in [*nodes, *only.values()]))
    for node in nodes:
        for results in node.get("qk_tracing_results", {}).values():
            assert {pair[0] for pair in results} <= known
    assert {name for pin in value["qParams"]["supernodes"] for name in pin[1:]} <= known


def test_parallel_links_are_one_and_q_and_k_stand_apart():
    graph = example_graph()
    moved = [(u, v, d) for u, v, k, d in graph.edges(keys=True, data=True) if k == "ov"][:20]
    graph.add_edges_from((u, v, "residual", d | {"kind": "residual", "local_weight": 0.5}) for u, v, d in moved)
    value, ids = value_of(graph), {}
    for row in value["circuitgraph"]["nodes"]:
        ids[row["id"]] = fields_of(Node.parse(row["id"]), 4, 15)["node_id"]
    weights, traced = {}, {}
    for source, target, kind, data in graph.edges(keys=True, data=True):
        if kind in ("q", "k"):
            traced.setdefault((ids[target], kind), []).append([ids[source], data["local_weight"]])
        else:
            weights[ids[source], ids[target]] = weights.get((ids[source], ids[target]), 0) + data["local_weight"]
    assert len(weights) > 200 and len(traced) > 10
    found = {(link["source"], link["target"]): link["weight"] for link in value["links"]}
    assert found == pytest.approx(weights)
    for node in [*value["nodes"], *value["qk_only_nodes"].values()]:
        results = node.get("qk_tracing_results", {})
        for kind in "qk":
            pairs = results.get(f"top_{kind}_marginal_contributors", [])
            assert sorted(pairs) == sorted(traced.get((node["node_id"], kind), []))
            assert [abs(w) for _, w in pairs] == sorted((abs(w) for _, w in pairs), reverse=True)


def test_the_label_of_the_logit_can_be_taken_apart_whatever_the_names_are():
    graph = example_graph()
    graph.graph["metric"]["name"] = 'p (p=9) "<b>'
    graph.graph["logits"]["clean"][0] = ['"(p=1)</b>', 0.5]
    (label,) = (node["clerp"] for node in value_of(graph)["nodes"] if node["feature_type"] == "logit")
    assert label.split("(p=")[1].split(")")[0] == "0.500" and label.split('"')[1] == "″(p =1)‹/b›"


def test_kinds_of_nodes_have_the_names_that_their_pages_know():
    rows = value_of(example_graph())["nodes"]
    by_type = {
        kind: [row for row in rows if row["feature_type"] == kind] for kind in {row["feature_type"] for row in rows}
    }
    assert set(by_type) == {
        "cross layer transcoder", "lorsa", "mlp reconstruction error", "lorsa error", "embedding", "bias", "logit",
    }  # fmt: skip
    for row in by_type["lorsa"] + by_type["cross layer transcoder"]:
        assert uncantor(row["feature"])[0] == int(row["layer"]) and row["activation"] > 0
    assert all(row["feature"] == -1 for row in by_type["bias"] + by_type["lorsa error"])
    influence = [row["influence"] for row in rows if row["feature_type"] != "logit"]
    assert max(influence) == pytest.approx(1) and 0 < min(influence) < 0.2


@given(layer=st.integers(0, 200), index=st.integers(0, 2**24))
def test_cantor_numbers_decode(layer, index):
    assert uncantor(cantor(layer, index)) == (layer, index)


def test_ids_of_one_cell_do_not_collide():
    sites = [Site(kind, layer) for kind in ("z", "attn_out", "mlp_out", "mlp_post", "resid_post") for layer in (0, 1)]
    nodes = [Node("feature", site, pos, index) for site in sites for pos in (0, 1) for index in (0, 1, 2)]
    nodes += [Node(kind, site, pos) for kind in ("error", "bias") for site in sites for pos in (0, 1)]
    nodes += [
        Node("embedding", Site("embed"), 1),
        Node("pos_embedding", Site("pos_embed"), 1),
        Node("metric", Site("metric"), 1),
        *(Node("logit", Site("logit"), 1, token) for token in (5, 7)),
        *(Node("probe", site, 1, number) for site in (Site("z", 1), Site("logit")) for number in (0, 1, 7)),
    ]
    assert {node.kind for node in nodes} == set(NODE_KINDS)
    assert len({fields_of(node, 2, 2)["node_id"] for node in nodes}) == len(nodes)


def test_groups_pins_and_sources_go_there_and_changes_come_back():
    graph = example_graph()
    features = [key for key in graph if graph.nodes[key]["kind"] == "feature"]
    graph.graph["groups"] = [{"label": "movers", "nodes": features[:2]}]
    graph.graph["pins"] = features[:1]
    graph = with_sources(graph, "gpt2-small", {"mlp_out.0": "0-tres-dc", "mlp_out.1": "1-tres-dc", "z.0": "0-att-kk"})
    value = value_of(graph)
    assert value["metadata"]["scan"] == "gpt2-small"
    assert value["metadata"]["feature_details"] == {
        "neuronpedia_source_set": "tres-dc", "neuronpedia_lorsa_source_set": "att-kk",
    }  # fmt: skip
    ids = [fields_of(Node.parse(key), 4, 15)["node_id"] for key in features]
    assert value["qParams"]["supernodes"] == [["movers", *ids[:2]]] and value["qParams"]["pinnedIds"] == ids[:1]
    assert graph_to_text(value_from_neuronpedia(value)) == graph_to_text(graph)
    value["qParams"] |= {"supernodes": [["others", ids[3]]], "pinnedIds": ids[4:6] + ["gone"]}
    changed = value_from_neuronpedia(value)
    assert changed.graph["groups"] == [{"label": "others", "nodes": [features[3]]}]
    assert changed.graph["pins"] == features[4:6]


def test_the_list_of_graphs_beside_the_file_names_each_graph_once(tmp_path):
    for name in ("a", "b", "a"):
        save(example_graph(), tmp_path / f"{name}.json", "neuronpedia", scan="gpt2")
    listed = json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"]
    assert [item["slug"] for item in listed] == ["a", "b"] and listed[0]["scan"] == "gpt2"
    assert listed[0] == json.loads((tmp_path / "a.json").read_text())["metadata"]
    (tmp_path / "graph-metadata.json").write_text("[]")
    with pytest.raises(GraphError, match="graph-metadata.json: the list is a list; expected an object"):
        save(example_graph(), tmp_path / "c.json", "neuronpedia")
    assert not (tmp_path / "c.json").exists()


def test_a_graph_of_circuit_tracer_is_read_with_weights_that_can_be_checked_on_paper():
    graph = value_from_neuronpedia(circuit_tracer_file())
    late, early, metric = "mlp_out.1/f4@1", "mlp_out.0/f3@1", "metric@1"
    assert set(graph) == {"embed@0", "embed@1", early, late, "mlp_out.0/error@1", metric}
    edge = graph.edges[late, metric, "metric"]
    assert edge["weight"] == edge["local_weight"] == 0.75 * 8 + 0.25 * 4 == 7
    assert edge["logit_weights"] == {"3_7_1": 8.0, "3_8_1": 4.0}
    # attribution 7 at activation 4: slope 1.75; the early feature gives 3 of the late one's input
    assert graph.edges[early, late, "mlp"]["weight"] == 3 * 1.75 == graph.nodes[early]["attribution"]
    assert graph.nodes["mlp_out.0/error@1"]["attribution"] == 1.75
    assert graph.edges["embed@0", early, "mlp"]["weight"] == 2 * (3 * 1.75 / 2)
    assert graph.graph["metric"] == {"name": "probability_weighted_logits", "clean": 7 - 1.5, "corrupted": None}
    assert graph.graph["pins"] == [late] and graph.graph["groups"] == [{"label": "group", "nodes": [early, late]}]
    assert graph.graph["tokens"]["clean"] == ["a", "b"] and graph.graph["n_layers"] == 2


def test_what_a_query_and_a_key_add_together_is_counted_as_left_out():
    value = circuit_tracer_file()
    reports = len(value_from_neuronpedia(value).graph["reports"])
    names = [node["node_id"] for node in value["nodes"]]
    early = names[:2]
    value["nodes"][3]["qk_tracing_results"] = {
        "pair_wise_contributors": [[*early, 0.5], [*reversed(early), 0.25]],
        "top_q_marginal_contributors": [[early[0], 0.5]],
        "top_k_marginal_contributors": [[early[1], 0.75]],
    }
    value["nodes"][2]["qk_tracing_results"] = None
    graph = value_from_neuronpedia(value)
    assert {(kind, d["local_weight"]) for *_, kind, d in graph.edges(keys=True, data=True) if kind in "qk"} == {
        ("q", 0.5), ("k", 0.75)
    }  # fmt: skip
    assert graph.graph["reports"][reports:] == [
        "2 contributions of a query and a key together were left out: an edge has one source"
    ]


BROKEN = {
    "dangling link": (lambda d: d["links"][0].update(source="E_9_9"), "link 1 names 'E_9_9'"),
    "backward link": (
        lambda d: d["links"].append({"source": "1_4_1", "target": "0_3_1", "weight": 1}),
        "link 7.* does not run forward",
    ),
    "link from a logit": (lambda d: d["links"][0].update(source="3_7_1"), "link 1 leaves the logit"),
    "link twice": (lambda d: d["links"].append(d["links"][0]), "link 7 repeats 'E_5_0' -> '0_3_1'"),
    "id twice": (lambda d: d["nodes"].append(d["nodes"][0]), "node 8 repeats the id"),
    "one node, two ids": (lambda d: d["nodes"].append(d["nodes"][2] | {"node_id": "x"}), "two of its nodes are one"),
    "no logit": (lambda d: (d["nodes"].__delitem__(slice(5, 7)), d["links"].__delitem__(slice(3, 6))), "no logit node"),
    "weight is null": (lambda d: d["links"][0].update(weight=None), "link 1: weight is None; expected a finite number"),
    "probability": (lambda d: d["nodes"][5].update(token_prob=7), "has probability 7"),
    "no probability": (lambda d: d["nodes"][5].update(token_prob=None, clerp="x"), "a logit without a probability"),
    "layer": (lambda d: d["nodes"][2].update(layer="x"), "layer is 'x'"),
    "wrong code": (lambda d: d["nodes"][2].update(layer="1"), "codes layer 0, but its layer is 1"),
    "unknown type": (lambda d: d["nodes"][2].update(feature_type="neuron"), "feature_type 'neuron' is unknown"),
    "no tokens": (lambda d: d["metadata"].pop("prompt_tokens"), "metadata.prompt_tokens is None"),
    "beyond the prompt": (lambda d: d["nodes"][2].update(ctx_idx=9), "stands at position 9; the prompt has 2 tokens"),
    "no links": (lambda d: d.pop("links"), "'links' is missing"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_attribution_graph_is_refused(change, message):
    value = circuit_tracer_file()
    change(value)
    with pytest.raises(GraphError, match=message):
        value_from_neuronpedia(value)


def test_without_our_block_nodes_links_and_q_and_k_come_back():
    graph = example_graph()
    again = value_from_neuronpedia(foreign(graph))
    assert len(again) == len(graph)
    merged = {(u, v) for u, v, k in graph.edges(keys=True) if k not in ("q", "k")}
    assert sum(1 for *_, k in again.edges(keys=True) if k in ("ov", "mlp", "metric")) == len(merged) > 200
    kinds = [sum(1 for *_, k in g.edges(keys=True) if k in "qk") for g in (graph, again)]
    assert kinds[0] == kinds[1] > 20


def test_feature_files_hold_ranked_examples(tmp_path):
    acts = np.zeros((50, 3))
    acts[:40, 1] = np.arange(40)
    value = feature_examples(acts, [["a", "b", "c"]] * 50, index=7, transcoder_id="t", top_logits=["x"])
    peaks = [[max(e["tokens_acts_list"]) for e in q["examples"]] for q in value["examples_quantiles"]]
    assert peaks[0] == list(range(39, 19, -1)) and all(peak > 0 for peak in itertools.chain(*peaks)) and len(peaks) == 5
    assert value["act_max"] == 39 and value["activation_frequency"] == 39 / 150 and sum(value["histogram"]) == 39
    assert value["examples_quantiles"][0]["examples"][0]["train_token_ind"] == 1
    (path,) = write_examples(tmp_path, "gpt2 small", {(2, 7): value})
    assert (
        path == tmp_path / "features" / "gpt2-small" / f"{cantor(2, 7)}.json" and json.loads(path.read_text()) == value
    )
    with pytest.raises(
        GraphError, match=r"acts has shape \(50, 3\); expected one number for each token of each of 2 texts"
    ):
        feature_examples(acts, [["a", "b", "c"]] * 2, index=7, transcoder_id="t")
    with pytest.raises(GraphError, match="acts holds NaN"):
        feature_examples(acts * np.nan, [["a", "b", "c"]] * 50, index=7, transcoder_id="t")


def test_a_file_read_without_our_block_can_be_written_again(tmp_path):
    (tmp_path / "theirs.json").write_text(json.dumps(circuit_tracer_file()))
    graph = load(tmp_path / "theirs.json")
    save(graph, tmp_path / "again.neuronpedia.json")
    assert graph_to_text(load(tmp_path / "again.neuronpedia.json")) == graph_to_text(graph)


def test_logits_that_a_graph_explains_are_their_logits(tmp_path, tiny_model, tiny_dictionaries, tiny_pairs):
    from circuitgraph.discovery import discover

    graph = discover(tiny_pairs[:1], tiny_model, tiny_dictionaries, targets="logits", baseline="zero")
    value = value_of(graph)
    jsonschema.Draft7Validator(SCHEMA).validate(value)
    logits = [node for node in value["nodes"] if node["feature_type"] == "logit"]
    ours = [data for _, data in graph.nodes(data=True) if data["kind"] == "logit"]
    assert len(logits) == len(ours) >= 2 and all(node["is_target_logit"] for node in logits)
    assert {node["feature"] for node in logits} == {data["feature"] for data in ours}
    assert max(node["token_prob"] for node in logits) > 0.1
    ends = {link["target"] for link in value["links"]} | {link["source"] for link in value["links"]}
    assert ends <= {node["node_id"] for node in value["nodes"]} | set(value.get("qk_only_nodes", {}))
    save(graph, tmp_path / "g.neuronpedia.json")
    back = load(tmp_path / "g.neuronpedia.json")
    assert dict(back.nodes(data=True)) == dict(graph.nodes(data=True))
    assert sorted(back.edges(keys=True, data="weight")) == sorted(graph.edges(keys=True, data="weight"))
