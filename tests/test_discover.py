"""The one function that goes the whole way keeps its promises on settings, progress and provenance."""

from __future__ import annotations

import pytest
import torch
from support.close import assert_close
from support.dictionary_kinds import random_dictionary

from circuitgraph.attribution.targets import Probe
from circuitgraph.discovery import discover
from circuitgraph.errors import CircuitGraphError
from circuitgraph.graphs.schema import check_graph
from circuitgraph.metrics import build_metric
from circuitgraph.models.tokens import tokenize_pairs
from circuitgraph.prompts import PromptPair


def graph_of(tiny_model, tiny_dictionaries, tiny_pairs, **settings):
    return discover(tiny_pairs, tiny_model, tiny_dictionaries, **settings)


def weights(graph):
    return {(u, v, k): abs(w) for u, v, k, w in graph.edges(keys=True, data="weight")}


def test_the_edge_threshold_is_a_fraction_of_the_metrics_difference(tiny_model, tiny_dictionaries, tiny_pairs):
    everything = graph_of(tiny_model, tiny_dictionaries, tiny_pairs, edge_threshold=0.0)
    metric = everything.graph["metric"]
    unit = abs(metric["clean"] - metric["corrupted"])
    assert unit != pytest.approx(1.0, rel=0.2), "a difference of 1 would not tell a fraction from a number"
    kept = weights(graph_of(tiny_model, tiny_dictionaries, tiny_pairs, edge_threshold=0.1))
    assert min(kept.values()) > 0.1 * unit
    into_metric = {edge: w for edge, w in weights(everything).items() if edge[2] == "metric" and w > 0.1 * unit}
    assert into_metric and into_metric == {edge: w for edge, w in kept.items() if edge[2] == "metric"}


def test_top_k_keeps_the_strongest_inputs_of_each_target(tiny_model, tiny_dictionaries, tiny_pairs):
    everything = weights(graph_of(tiny_model, tiny_dictionaries, tiny_pairs, edge_threshold=0.0))
    kept = graph_of(tiny_model, tiny_dictionaries, tiny_pairs, edge_threshold=0.0, top_k=3)
    for target in kept:
        inputs = {edge: w for edge, w in everything.items() if edge[1] == target}
        strongest = sorted(inputs, key=lambda edge: -inputs[edge])[:3]
        assert set(kept.in_edges(target, keys=True)) <= set(strongest)
    assert len(kept.in_edges("metric@5")) == 3


def test_candidates_are_the_nodes_with_the_largest_attribution(tiny_model, tiny_dictionaries, tiny_pairs):
    everything = graph_of(tiny_model, tiny_dictionaries, tiny_pairs, edge_threshold=0.0)
    ranked = sorted((abs(a), n) for n, a in everything.nodes(data="attribution") if n != "metric@5")
    few = graph_of(tiny_model, tiny_dictionaries, tiny_pairs, edge_threshold=0.0, max_nodes=12)
    assert set(few) - {"metric@5"} <= {node for _, node in ranked[-12:]} and len(few) > 6
    assert few.graph["reports"][0].startswith("max_nodes 12: 12 of ")


def test_provenance_names_everything_that_was_used(tiny_model, tiny_dictionaries, tiny_pairs):
    graph = graph_of(
        tiny_model, tiny_dictionaries, tiny_pairs, baseline="mean", method="integrated", steps=4, rule="midpoint"
    )
    check_graph(graph)
    provenance = graph.graph["provenance"]
    assert provenance["model"] == "tiny" and provenance["dtype"] == "float64"
    assert provenance["dictionaries"] == {str(site): d.name for site, d in tiny_dictionaries.items()}
    assert [prompt["clean"] for prompt in provenance["prompts"]] == [pair.clean for pair in tiny_pairs]
    expected = {
        "metric": "logit_difference",
        "baseline": "mean",
        "method": "integrated",
        "steps": 4,
        "rule": "midpoint",
    }
    assert expected.items() <= provenance["settings"].items()
    assert {"torch", "transformer-lens"} <= set(provenance["versions"])
    assert graph.graph["tokens"]["clean"] == ["<bos>", "a", "b", "c", "d", "e"] and graph.graph["n_examples"] == 2
    tokens, probabilities = zip(*graph.graph["logits"]["clean"], strict=True)
    assert (
        len(set(tokens)) == 5 and list(probabilities) == sorted(probabilities, reverse=True) and sum(probabilities) <= 1
    )


def test_features_carry_activations_and_the_tokens_they_promote(tiny_model, tiny_dictionaries, tiny_pairs):
    import torch

    graph = graph_of(tiny_model, tiny_dictionaries, tiny_pairs[:1])
    features = {n: d for n, d in graph.nodes(data=True) if d["kind"] == "feature" and d["site"] == "mlp_out.1"}
    assert len(features) > 5
    for attributes in features.values():
        write = tiny_dictionaries[next(s for s in tiny_dictionaries if str(s) == "mlp_out.1")].weights.W_dec[
            attributes["feature"]
        ]
        best = int(((write - write.mean()) * tiny_model.library.ln_final.weight @ tiny_model.library.W_U).argmax())
        assert attributes["top_tokens"][0] == tiny_model.token_strings([best])[0]
        assert attributes["activation"] != attributes["baseline_activation"] and isinstance(
            attributes["activation"], float
        )
    assert torch.is_grad_enabled()


def test_progress_tells_the_stages(tiny_model, tiny_dictionaries, tiny_pairs):
    told = []
    graph_of(tiny_model, tiny_dictionaries, tiny_pairs, progress=lambda *stage: told.append(stage))
    assert (
        ("tracing edges", 0, 4) in told and ("tracing edges", 3, 4) in told and len({stage for stage, *_ in told}) == 4
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "integratd"}, "Did you mean 'integrated'"),
        ({"max_nodes": 0}, "max_nodes is 0; expected a whole number >= 1"),
        ({"top_k": 0}, "top_k is 0; expected a whole number >= 1"),
        ({"max_nodes": 2.5}, "max_nodes is 2.5; expected a whole number >= 1"),
        ({"max_traced": "7"}, "max_traced is '7'; expected a whole number >= 1"),
        ({"edge_threshold": "1"}, "edge_threshold is '1'; expected a number"),
        ({"memory": float("inf")}, "memory is inf; expected a number above 0"),
        ({"targets": Probe("z.1", torch.ones(16))}, "targets is one Probe; expected 'metric', 'logits' or a list"),
        ({"targets": [torch.ones(2, 2)]}, "a target is of type Tensor; expected a token's text"),
        ({"edge_threshold": -0.1}, "edge_threshold is -0.1; expected a number >= 0"),
        ({"edge_threshold": float("nan")}, "edge_threshold is nan"),
        ({"backend": "tritn"}, "backend 'tritn' is unknown; expected one of auto, .* Did you mean 'triton'"),
        ({"metric": lambda logits: logits[:, -1].argmax(-1)}, "has no gradient .dtype torch.int64"),
        ({"metric": lambda logits: logits[:, -1, 0].detach()}, "has no gradient"),
        ({"method": "integrated", "steps": 0}, "steps is 0"),
    ],
)
def test_nonsense_is_refused(tiny_model, tiny_dictionaries, tiny_pairs, settings, message):
    with pytest.raises(CircuitGraphError, match=message):
        graph_of(tiny_model, tiny_dictionaries, tiny_pairs, **settings)


def test_a_dictionary_of_the_residual_stream_stands_between_what_is_below_and_above(
    tiny_model, tiny_dictionaries, tiny_pairs
):

    from circuitgraph.nodes import Node, Site

    middle = Site("resid_post", 0)
    more = tiny_dictionaries | {middle: random_dictionary("resid_post.0", "resid_post.0")}
    graph = graph_of(tiny_model, more, tiny_pairs, edge_threshold=0.0)
    ends = [(Node.parse(u).site.depth, Node.parse(v).site.depth, kind) for u, v, kind in graph.edges(keys=True)]
    assert not [1 for source, target, _ in ends if source < middle.depth < target], "an edge jumps over the dictionary"
    into = {kind for _, target, kind in ends if target == middle.depth}
    assert into == {"residual"} and sum(source == middle.depth for source, _, _ in ends) > 50


def test_two_dictionaries_of_one_attention_are_refused(tiny_model, tiny_dictionaries, tiny_pairs):

    from circuitgraph.nodes import Site

    more = tiny_dictionaries | {Site("attn_out", 1): random_dictionary("attn_out.1", "attn_out.1")}
    with pytest.raises(CircuitGraphError, match="dictionaries at z.1 and attn_out.1 explain the same attention"):
        graph_of(tiny_model, more, tiny_pairs)


def test_the_mean_of_one_pair_is_refused(tiny_model, tiny_dictionaries, tiny_pairs):
    with pytest.raises(CircuitGraphError, match="needs at least two pairs; got 1"):
        graph_of(tiny_model, tiny_dictionaries, tiny_pairs[:1], baseline="mean")


def test_attention_output_dictionaries_read_what_z_dictionaries_do(tiny_model, tiny_dictionaries, tiny_pairs):
    """A dictionary at attn_out whose encoder, seen through W_O, is that of a z-dictionary has the same inputs."""
    from circuitgraph.dictionaries.dictionary import Dictionary
    from circuitgraph.nodes import Site
    from circuitgraph_kernels import SaeWeights

    at_out, at_z = dict(tiny_dictionaries), dict(tiny_dictionaries)
    W_O, b_O = tiny_model.attention(1).W_O, tiny_model.attention(1).b_O
    weights = tiny_dictionaries[Site("z", 0)].weights
    z_weights = SaeWeights(
        W_O.flatten(0, 1) @ weights.W_enc, weights.b_enc + b_O @ weights.W_enc, weights.W_dec, weights.b_dec
    )
    at_z[Site("z", 1)] = Dictionary(z_weights, Site("z", 1), Site("z", 1), "at z")
    out = Site("attn_out", 1)
    del at_out[Site("z", 1)]
    at_out[out] = Dictionary(weights, out, out, "at attn_out")
    graphs = [graph_of(tiny_model, dictionaries, tiny_pairs, edge_threshold=0.0) for dictionaries in (at_z, at_out)]
    local = []
    for graph, name in zip(graphs, ("z.1", "attn_out.1"), strict=True):
        edges = graph.edges(keys=True, data="local_weight")
        local.append({(u, v.split("/")[1], k): w for u, v, k, w in edges if v.startswith(f"{name}/f")})
    shared = set(local[0]) & set(local[1])
    assert len(shared) > 100 and {kind for *_, kind in shared} == {"ov", "q", "k"}
    assert_close(*([weights[edge] for edge in shared] for weights in local))


def test_the_metric_node_has_the_metrics_difference_with_its_sign(tiny_model, tiny_dictionaries, tiny_pairs):
    """Measured by running the model; it changes its sign with the prompts, and is clean's own without a corrupted one."""
    graph = graph_of(tiny_model, tiny_dictionaries, tiny_pairs)
    tokens = tokenize_pairs(tiny_model, tiny_pairs)
    metric = build_metric("logit_difference", tokens.answers, tokens.wrong_answers)
    clean, corrupted = (float(metric(tiny_model.run(ids)[0]).mean()) for ids in (tokens.clean, tokens.corrupted))
    assert abs(clean - corrupted) > 0.1 and abs(clean) > 0.1
    assert graph.nodes["metric@5"]["attribution"] == pytest.approx(clean - corrupted)
    swapped = [PromptPair(pair.corrupted, pair.clean, pair.answers, pair.wrong_answers) for pair in tiny_pairs]
    other = graph_of(tiny_model, tiny_dictionaries, swapped)
    assert other.nodes["metric@5"]["attribution"] == pytest.approx(corrupted - clean)
    alone = [PromptPair(pair.clean, None, pair.answers, pair.wrong_answers) for pair in tiny_pairs]
    single = graph_of(tiny_model, tiny_dictionaries, alone, baseline="zero")
    assert single.nodes["metric@5"]["attribution"] == pytest.approx(clean)
