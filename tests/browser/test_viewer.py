"""The HTML page in a real browser: it opens from disk, obeys no hostile string, and answers clicks and keys."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest
from playwright import sync_api

from circuitgraph.render import labels, write_rendering
from tests.graphs import HOSTILE, example_graph

CHROMIUM = next(
    (
        path
        for path in ("/usr/bin/chromium", shutil.which("chromium"), shutil.which("google-chrome"))
        if path and Path(path).exists()
    ),
    None,
)


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail(
                "no Chromium on this machine, and CI must not skip the browser tests: install the package chromium"
            )
        pytest.skip("needs Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=["--no-sandbox"])


class Viewer:
    """A page that was opened from disk without a network, with what it said and asked for."""

    def __init__(self, browser: sync_api.Browser, graph: nx.MultiDiGraph, folder: Path) -> None:
        write_rendering(graph, folder / "graph.html")
        self.complaints: list[str] = []
        self.requests: list[str] = []
        context = browser.new_context(offline=True, viewport={"width": 1440, "height": 900})
        self.page = context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto((folder / "graph.html").as_uri())

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_text_contents()

    def count(self, selector: str) -> int:
        return self.page.locator(selector).count()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    @property
    def selected(self) -> str:
        return self.text("#node-name") if self.count("#node-name") else ""

    def click_node(self, name: str) -> None:
        self.page.locator(f'.node[aria-label^="{name},"]').dispatch_event("click")


@pytest.fixture
def open_viewer(browser: sync_api.Browser, tmp_path: Path):
    opened: list[Viewer] = []

    def open_graph(graph: nx.MultiDiGraph) -> Viewer:
        opened.append(Viewer(browser, graph, tmp_path))
        return opened[-1]

    yield open_graph
    for viewer in opened:
        assert viewer.complaints == []
        assert all(url.startswith(("file:", "data:")) for url in viewer.requests), viewer.requests
        viewer.page.context.close()


@pytest.fixture
def viewer(open_viewer) -> Viewer:
    return open_viewer(example_graph())


def strongest(graph: nx.MultiDiGraph, edges) -> tuple[str, str, float]:
    return max(edges, key=lambda edge: abs(edge[2]))


def test_the_page_draws_every_node_and_edge_and_says_so(viewer: Viewer) -> None:
    graph = example_graph()
    assert viewer.count(".node") == graph.number_of_nodes() == 120
    assert viewer.count(".edge") == graph.number_of_edges() == 408
    assert viewer.text("#status") == "120 of 120 nodes · 408 of 408 edges drawn · 100% of the edge weight"
    assert viewer.count(".edge.minus") == sum(weight < 0 for *_, weight in graph.edges(data="weight"))
    assert viewer.page.title() == "logit difference circuit · example-4l"


def test_the_header_shows_both_prompts_and_marks_what_differs(viewer: Viewer) -> None:
    assert viewer.texts("#prompts mark") == [" John", " Anna"]
    assert "".join(example_graph().graph["tokens"]["clean"]) in viewer.texts("#prompts dd")
    facts = viewer.texts("#facts div")
    assert "faithfulness83%measured" in facts
    assert any(fact.startswith("input from errors") and fact.endswith("estimated") for fact in facts)
    assert viewer.texts(".token.changed span") == ["·John", "·Anna"]


def test_hostile_strings_are_shown_and_never_run(open_viewer) -> None:
    viewer = open_viewer(example_graph(hostile=True))
    assert viewer.texts(".token > span:first-child") == [labels.visible(token) for token in HOSTILE]
    assert viewer.page.evaluate("window.PWNED") is None
    assert viewer.count("img") == 0 and viewer.count("b:text('hi')") == 0
    assert viewer.count("script") == 2
    for _ in range(6):
        viewer.press("[")
        viewer.page.locator(".node.selected").hover(force=True)
    assert viewer.page.evaluate("window.PWNED") is None and viewer.count("img") == 0


def test_hostile_labels_and_reports_are_shown_and_never_run(open_viewer) -> None:
    graph = example_graph(n_nodes=30)
    graph.graph["reports"] = HOSTILE
    graph.graph["provenance"] = {"model": HOSTILE[0], HOSTILE[1]: HOSTILE[2]}
    graph.nodes["embed@3"].update(label=HOSTILE[0], top_tokens=HOSTILE)
    viewer = open_viewer(graph)
    assert viewer.texts(".reports li") == [labels.visible(text, " ") for text in HOSTILE]
    viewer.click_node("embed@3")
    assert viewer.text("#panel .label") == HOSTILE[0]
    assert viewer.texts(".tokens-list code") == [labels.visible(text) for text in HOSTILE]
    assert viewer.page.evaluate("window.PWNED") is None and viewer.count("img") == 0


def test_a_click_shows_the_inputs_and_outputs_of_a_node(viewer: Viewer) -> None:
    graph = example_graph()
    node = max(graph, key=lambda each: min(graph.in_degree(each), graph.out_degree(each)))
    viewer.click_node(node)
    assert viewer.selected == node
    assert f"Inputs ({graph.in_degree(node)})" in viewer.texts("#panel caption")
    assert f"Outputs ({graph.out_degree(node)})" in viewer.texts("#panel caption")
    rows = viewer.page.locator("#panel tr[data-edge]")
    shown = sorted(rows.locator("td:nth-child(3)").all_text_contents())
    weights = [weight for *_, weight in (*graph.in_edges(node, data="weight"), *graph.out_edges(node, data="weight"))]
    assert shown == sorted(labels.signed(weight) for weight in weights)
    assert viewer.count(".edge.kept") == len(weights)
    assert viewer.count(".node.kept") == len({*graph.predecessors(node), *graph.successors(node), node})
    viewer.page.locator("#grid svg").click(position={"x": 3, "y": 3})
    assert viewer.selected == "" and viewer.count(".edge.kept") == 0


def test_shares_are_of_the_total_absolute_input(viewer: Viewer) -> None:
    graph = example_graph()
    viewer.click_node("metric@14")
    weights = sorted((abs(weight) for *_, weight in graph.in_edges("metric@14", data="weight")), reverse=True)
    shares = [100 * weight / sum(weights) for weight in weights]
    expected = ["<1%" if 0 < share < 0.5 else f"{int(share + 0.5)}%" for share in shares]
    assert viewer.texts("#panel tr[data-edge] td:nth-child(4)") == expected


def test_an_attention_node_shows_its_heads_by_kind_of_edge(viewer: Viewer) -> None:
    graph = example_graph()
    node = max((each for each, site in graph.nodes(data="site") if site.startswith("z.")), key=graph.in_degree)
    viewer.click_node(node)
    kinds = {kind for *_, kind in graph.in_edges(node, keys=True)}
    assert viewer.texts("#panel .heads .badge") == [
        labels.EDGE_NAMES[kind] for kind in labels.EDGE_NAMES if kind in kinds
    ]
    assert viewer.count("#panel .heads .bar") == 4 * len(kinds)
    assert viewer.count("#panel td .head-bars") == graph.in_degree(node)


def test_a_node_shows_what_was_measured_beside_what_was_estimated(viewer: Viewer) -> None:
    graph = example_graph()
    node, effect = next((each, value) for each, value in graph.nodes(data="effect") if value is not None)
    viewer.click_node(node)
    facts = viewer.texts("#panel .facts div")
    assert f"attribution{labels.signed(graph.nodes[node]['attribution'])}estimated" in facts
    assert f"effect{labels.signed(effect)}measured" in facts


def test_the_keyboard_walks_along_edges_and_across_the_grid(viewer: Viewer) -> None:
    graph = example_graph()
    viewer.press("ArrowDown")
    assert viewer.selected == "metric@14"
    source, *_ = strongest(graph, graph.in_edges("metric@14", data="weight"))
    viewer.press("[")
    assert viewer.selected == source
    target = strongest(graph, graph.out_edges(source, data="weight"))[1]
    viewer.press("]")
    assert viewer.selected == target
    viewer.click_node("embed@5")
    viewer.press("ArrowRight")
    assert viewer.selected == "embed@6"
    viewer.press("ArrowLeft", "ArrowLeft")
    assert viewer.selected == "embed@4"
    viewer.press("ArrowUp")
    assert graph.nodes[viewer.selected]["layer"] is not None
    viewer.press("Escape")
    assert viewer.selected == ""


def test_the_focus_follows_the_selection(viewer: Viewer) -> None:
    viewer.press("ArrowDown", "[")
    assert viewer.page.evaluate("document.activeElement.classList.contains('selected')")
    assert viewer.count('.node[tabindex="0"]') == 1
    viewer.page.locator("#panel .link").first.click()
    assert viewer.page.evaluate("document.activeElement.id") == "node-name"
    box, stage = (
        viewer.page.locator(".node.selected .shape").bounding_box(),
        viewer.page.locator("#stage").bounding_box(),
    )
    assert stage["y"] <= box["y"] <= stage["y"] + stage["height"] - 60


def test_fewer_edges_are_drawn_when_fewer_are_asked_for(viewer: Viewer) -> None:
    viewer.page.fill("#count", "50")
    viewer.press("Enter")
    assert viewer.count(".edge") == 50
    assert re.fullmatch(
        r"120 of 120 nodes · 50 of 408 edges drawn · \d+% of the edge weight · hidden: 358 weaker",
        viewer.text("#status"),
    )
    drawn = viewer.page.evaluate("[...document.querySelectorAll('.edge')].map((edge) => Number(edge.dataset.edge))")
    assert sorted(drawn) == list(range(50))
    viewer.page.locator("#strongest").evaluate(
        "(slider) => { slider.value = 1000; slider.dispatchEvent(new Event('input')); }"
    )
    assert viewer.count(".edge") == 408 and viewer.page.input_value("#count") == "408"


def test_kinds_and_errors_can_be_hidden_and_are_counted(viewer: Viewer) -> None:
    graph = example_graph()
    n_ov = sum(kind == "ov" for *_, kind in graph.edges(keys=True))
    viewer.page.locator("#kinds .kind-ov").click()
    assert viewer.count(".edge") == 408 - n_ov and viewer.count(".edge.kind-ov") == 0
    assert viewer.text("#status").endswith(f"hidden: {n_ov} of hidden kinds")
    viewer.page.locator("#kinds .kind-ov").click()
    viewer.page.locator("#errors").click()
    errors = {node for node, kind in graph.nodes(data="kind") if kind == "error"}
    touching = sum(source in errors or target in errors for source, target in graph.edges())
    assert viewer.page.locator(".node:visible").count() == 120 - len(errors)
    assert f"{120 - len(errors)} of 120 nodes" in viewer.text("#status")
    assert viewer.text("#status").endswith(f"hidden: {touching} at hidden errors")


def test_a_selected_node_says_how_many_of_its_edges_are_drawn(viewer: Viewer) -> None:
    graph = example_graph()
    viewer.page.fill("#count", "0")
    viewer.press("Enter")
    viewer.click_node("metric@14")
    assert viewer.text("#status").endswith(
        f"metric@14: 0 of {graph.in_degree('metric@14')} inputs, 0 of 0 outputs drawn"
    )


def test_search_marks_matches_and_enter_selects_them_in_turn(viewer: Viewer) -> None:
    graph = example_graph()
    viewer.press("/")
    viewer.page.keyboard.type("attention l2")
    expected = [node for node, data in graph.nodes(data=True) if data["site"] == "z.2"]
    assert viewer.count(".node.kept") == len(expected)
    assert f"{len(expected)} matches for “attention l2”" in viewer.text("#status")
    viewer.press("Enter")
    first = viewer.selected
    viewer.press("Enter")
    assert {first, viewer.selected} <= set(expected) and first != viewer.selected
    viewer.press("Escape")
    assert viewer.page.input_value("#search") == "" and viewer.selected == ""


def test_a_token_isolates_its_column(viewer: Viewer) -> None:
    viewer.page.locator('.token[data-pos="2"]').click()
    assert viewer.count(".node.kept") == sum(pos == 2 for _, pos in example_graph().nodes(data="pos"))
    viewer.page.locator('.token[data-pos="2"]').click()
    assert viewer.count(".faded") == 0


def test_hovering_a_node_or_an_edge_tells_about_it(viewer: Viewer) -> None:
    viewer.page.locator('.node[aria-label^="metric@14"]').hover()
    assert viewer.page.locator("#tooltip").is_visible() and viewer.text("#tooltip").startswith("metric@14")
    viewer.click_node("metric@14")
    viewer.page.locator(".reach path").first.dispatch_event("pointermove", {"bubbles": True})
    assert "→ metric@14" in viewer.text("#tooltip")
    viewer.page.mouse.move(1400, 20)
    assert viewer.page.locator("#tooltip").is_hidden()


def test_help_opens_and_closes_by_key(viewer: Viewer) -> None:
    viewer.press("?")
    assert viewer.page.locator("#help").is_visible()
    viewer.press("ArrowDown", "Escape")
    assert viewer.page.locator("#help").is_hidden() and viewer.selected == ""


def test_zooming_moves_tokens_with_their_columns(viewer: Viewer) -> None:
    def offset() -> float:
        token = viewer.page.locator('.token[data-pos="9"]').bounding_box()
        node = viewer.page.locator('.node[aria-label^="embed@9,"] .shape').bounding_box()
        return abs(token["x"] + token["width"] / 2 - node["x"] - node["width"] / 2)

    assert offset() < 2
    before = viewer.page.locator("#grid svg").bounding_box()["width"]
    viewer.press("+", "+")
    assert viewer.page.locator("#grid svg").bounding_box()["width"] > 1.3 * before
    assert offset() < 2
    viewer.press("0")
    assert viewer.page.locator("#grid svg").bounding_box()["width"] == pytest.approx(before, abs=1)


def test_a_large_graph_draws_at_most_two_thousand_edges_and_counts_the_rest(open_viewer) -> None:
    viewer = open_viewer(example_graph(8, 15, 400, n_edges=2300))
    assert "300 of 2,300 edges drawn" in viewer.text("#status") and "hidden: 2,000 weaker" in viewer.text("#status")
    viewer.page.fill("#count", "9999")
    viewer.press("Enter")
    assert viewer.count(".edge") == 2000
    assert "hidden: 300 weaker" in viewer.text("#status")


@pytest.mark.parametrize(("n_nodes", "statement"), [(0, "This graph is empty"), (1, "1 node and no edges")])
def test_a_graph_without_edges_says_so_and_survives_the_keys(n_nodes: int, statement: str, open_viewer) -> None:
    viewer = open_viewer(example_graph(n_nodes=n_nodes))
    assert statement in viewer.text(".statement")
    viewer.press("ArrowDown", "[", "]", "/", "a", "Enter", "Escape", "+", "0")
    assert viewer.count(".node") == n_nodes


def test_a_graph_without_attributes_opens(open_viewer) -> None:
    viewer = open_viewer(nx.MultiDiGraph())
    assert "This graph is empty" in viewer.text("#status")
