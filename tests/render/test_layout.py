"""Text, colours and places of a drawn graph: what is shown, that it can be read, and that nothing covers it."""

from __future__ import annotations

import networkx as nx
import pytest
from support.graphs import example_graph, with_targets

from circuitgraph.render import labels
from circuitgraph.render.layout import curve, lay_out, place_captions


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a b", "·a·b"),
        ("\n\t", "⏎⇥"),
        ("\r\x00\x7f", r"\x0d\x00\x7f"),
        ("\u202e\u2028\ufeff\ud800\xa0", r"\u202e\u2028\ufeff\ud800\xa0"),
        ("\uffff\U0001ffff", r"\uffff\u1ffff"),
        ("漢字🙂é<>&\"'\\", "漢字🙂é<>&\"'\\"),
    ],
)
def test_hidden_characters_become_visible_and_all_others_stay(text: str, shown: str) -> None:
    assert labels.visible(text) == shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "+0.123"),
        (-3.1, "−3.10"),
        (0.0, "0"),
        (1234.0, "+1234"),
        (99.96, "+100"),
        (-2e-7, "−2.00e-7"),
        (1e9, "+1.00e9"),
    ],
)
def test_numbers_have_three_digits_and_a_sign(value: float, text: str) -> None:
    assert labels.signed(value) == text


def test_every_colour_is_readable_on_its_page() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def contrast(a: str, b: str) -> float:
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    for palette in (labels.LIGHT, labels.DARK):
        for name in ("ink", "muted", "accent", "negative"):
            for ground in ("page", "band", "raised"):
                assert contrast(palette[name], palette[ground]) >= 4.5, (name, ground)
        assert contrast(palette["ink"], palette["mark"]) >= 4.5
        for name in (*labels.EDGE_NAMES, *labels.SPARE, "other", "positive"):
            assert contrast(palette[name], palette["page"]) >= 3, name


def test_facts_say_what_is_measured_and_what_is_estimated() -> None:
    facts = {name: (value, basis) for name, value, basis, _ in labels.facts(example_graph())}
    assert facts["logit difference"] == ("3.42 clean, −2.95 corrupted", "measured")
    assert facts["faithfulness"] == ("83%", "measured")
    assert facts["estimate against effect"] == ("r = 0.937", "measured")
    assert facts["input from errors"][1] == "estimated"


def test_positions_run_right_and_layers_run_up() -> None:
    graph = example_graph()
    layout = lay_out(graph)
    column = {each.pos: each for each in layout.columns}
    for node, data in graph.nodes(data=True):
        x, y = layout.centres[node]
        radius = layout.radii[node]
        assert column[data["pos"]].x <= x - radius and x + radius <= column[data["pos"]].x + column[data["pos"]].width
        assert y - radius >= 0 and y + radius <= layout.height
    height = {site: layout.centres[node][1] for node, site in graph.nodes(data="site")}
    assert (
        height["embed"] > height["z.0"] > height["mlp_out.0"] > height["z.1"] > height["mlp_out.3"] > height["metric"]
    )


@pytest.mark.parametrize("sizes", [(4, 15, 120), (12, 24, 200), (6, 60, 200), (2, 3, 300), (1, 1, 40)])
def test_no_two_nodes_and_no_two_captions_overlap(sizes: tuple[int, int, int]) -> None:
    graph = example_graph(*sizes)
    layout = lay_out(graph)
    places = sorted((*layout.centres[node], layout.radii[node]) for node in graph)
    for number, (x, y, radius) in enumerate(places):
        for other_x, other_y, other in places[number + 1 :]:
            assert (x - other_x) ** 2 + (y - other_y) ** 2 >= (radius + other) ** 2 * 0.95
    captions = place_captions(graph, layout)
    boxes = [
        (c.x - labels.text_width(c.text, 10) / 2, c.y - 9, c.x + labels.text_width(c.text, 10) / 2, c.y)
        for c in captions
    ]
    assert captions
    for number, a in enumerate(boxes):
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in boxes[number + 1 :])


def test_a_picture_for_a_readme_stays_within_its_width() -> None:
    for sizes in ((4, 15, 120), (12, 24, 200)):
        assert 600 <= lay_out(example_graph(*sizes)).width <= 1200


def test_neighbours_in_a_cell_stand_below_what_they_are_joined_to() -> None:
    graph = nx.MultiDiGraph(tokens={"clean": ["a"], "corrupted": ["a"]}, n_layers=2)
    for layer in range(2):
        for feature in range(6):
            node = f"mlp_out.{layer}/f{feature}@0"
            graph.add_node(
                node, kind="feature", site=f"mlp_out.{layer}", layer=layer, pos=0, feature=feature, attribution=1.0
            )
    for feature in range(6):
        graph.add_edge(f"mlp_out.0/f{feature}@0", f"mlp_out.1/f{5 - feature}@0", key="mlp", kind="mlp", weight=1.0)
    centres = lay_out(graph).centres
    below = sorted(range(6), key=lambda feature: centres[f"mlp_out.0/f{feature}@0"][0])
    above = sorted(range(6), key=lambda feature: centres[f"mlp_out.1/f{feature}@0"][0])
    assert [5 - feature for feature in below] == above


def test_parallel_edges_of_one_pair_arrive_apart() -> None:
    layout = lay_out(example_graph())
    ends = {curve(layout, "embed@0", "z.3/f2223@0", kind)[3] for kind in ("ov", "q", "k")}
    assert len(ends) == 3


def test_a_layer_without_nodes_keeps_its_row() -> None:
    graph = example_graph(n_nodes=16)
    graph.remove_nodes_from([node for node, data in graph.nodes(data=True) if data["layer"] == 1])
    assert 1 in {row.layer for row in lay_out(graph).rows}


def test_targets_stand_between_the_metric_and_the_layers_in_shapes_of_their_own() -> None:
    graph = with_targets(example_graph())
    layout = lay_out(graph)
    rows = [(row.layer, row.text) for row in layout.rows]
    assert rows[:3] == [(None, "metric"), (None, "logit"), (3, "resid")]
    logits = [node for node, kind in graph.nodes(data="kind") if kind == "logit"]
    heights = {layout.centres[node][1] for node in logits}
    assert len(logits) == 2 and len(heights) == 1
    below = [layout.centres[node][1] for node, layer in graph.nodes(data="layer") if layer is not None]
    assert layout.centres["metric@14"][1] < heights.pop() < min(below)
    shapes = {labels.shape(data) for _, data in graph.nodes(data=True) if labels.is_top(data)}
    others = {labels.shape(data) for _, data in graph.nodes(data=True) if not labels.is_top(data)}
    assert len(shapes) == 3 and not shapes & others
    assert {layout.radii[node] for node in graph if labels.is_top(graph.nodes[node])} == {10.0}
    assert max(layout.radii[node] for node in graph if not labels.is_top(graph.nodes[node])) == 10.0
    assert labels.caption(graph, logits[0]) == "·Mary" and labels.caption(graph, "resid_post.3/p2@14") == "a direction"


def test_the_completeness_is_told_as_what_the_rest_does_alone() -> None:
    graph = example_graph()
    graph.graph["evidence"]["complement_faithfulness"] = 0.04
    name, value, basis, explanation = next(fact for fact in labels.facts(graph) if fact[1] == "4%")
    assert (name, basis) == ("rest alone", "measured") and "near 0%" in explanation and value
