"""Sites and nodes have one text form that parses back, and an order that is the forward pass."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitgraph.errors import GraphError
from circuitgraph.nodes import LAYER_SITES, Node, Site

layers = st.integers(0, 200)
positions = st.integers(0, 10**6)
layer_sites = st.builds(Site, st.sampled_from(LAYER_SITES), layers)
nodes = st.one_of(
    st.builds(Node, st.just("feature"), layer_sites, positions, st.integers(0, 10**7)),
    st.builds(Node, st.sampled_from(["error", "bias"]), layer_sites, positions),
    st.builds(Node, st.just("embedding"), st.just(Site("embed")), positions),
    st.builds(Node, st.just("pos_embedding"), st.just(Site("pos_embed")), positions),
    st.builds(Node, st.just("metric"), st.just(Site("metric")), positions),
)


@given(nodes)
def test_text_form_parses_back(node):
    assert Node.parse(str(node)) == node


@given(nodes, nodes)
def test_text_form_is_unique(a, b):
    assert (str(a) == str(b)) == (a == b)


def test_text_forms_are_as_documented():
    assert str(Node("feature", Site("mlp_out", 3), 5, 1024)) == "mlp_out.3/f1024@5"
    assert str(Node("error", Site("resid_post", 7), 5)) == "resid_post.7/error@5"
    assert str(Node("embedding", Site("embed"), 2)) == "embed@2"


def test_order_is_the_forward_pass():
    texts = [
        "embed@1",
        "pos_embed@0",
        "z.0/f3@0",
        "z.0/f1@2",
        "z.0/error@2",
        "mlp_out.0/f0@0",
        "z.1/bias@0",
        "z.1/f0@0",
        "metric@4",
    ]
    assert sorted(random.Random(0).sample(texts, len(texts)), key=lambda text: Node.parse(text).order) == texts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mlp_out.3",
        "mlp_out.3/f1",
        "mlp_out.3/f-1@2",
        "mlp_out.3@2",
        "embed",
        "mlp_out.x/f1@2",
        "mlp_uot.3/f1@2",
        "a b@1",
        "embed@1\n",
    ],
)
def test_what_is_no_node_is_refused_with_its_text(text):
    with pytest.raises(GraphError, match="expected|unknown|names no"):
        Node.parse(text)


def test_a_misspelt_site_gets_the_nearest_one():
    with pytest.raises(GraphError, match="'mlp_uot.3' is unknown.*Did you mean 'mlp_out'"):
        Site.parse("mlp_uot.3")
