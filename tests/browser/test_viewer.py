"""The page in a real browser: it opens from disk, obeys no hostile string, and answers clicks and keys."""

from __future__ import annotations

import json
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest
from playwright import sync_api
from support import CHROMIUM
from support.graphs import HOSTILE, example_graph, with_targets

from circuitgraph.errors import GraphError
from circuitgraph.formats import load, save, text_to_graph
from circuitgraph.render import html, labels, show

METRIC = "metric@14"
SVG = "{http://www.w3.org/2000/svg}"
AXE = Path(html.__file__).with_name("viewer") / "node_modules" / "axe-core" / "axe.min.js"


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

    def __init__(self, browser: sync_api.Browser, path: Path, **context) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(offline=True, viewport={"width": 1440, "height": 900}, **context)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.open(path.as_uri())

    def open(self, address: str) -> None:
        self.page.goto("about:blank")
        self.requests.clear()
        self.page.goto(address)
        self.page.wait_for_selector("html[data-ready]")

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_text_contents()

    def count(self, selector: str) -> int:
        return self.page.locator(selector).count()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def call(self, function: str, *arguments):
        return self.page.evaluate(f"(given) => circuitgraph.{function}(...given)", list(arguments))

    @property
    def selected(self) -> str | None:
        return self.call("state")["selected"]

    @property
    def shown(self) -> dict:
        return self.call("shown")

    def place(self, node: str) -> tuple[float, float]:
        return tuple(self.call("place", node))

    def click_node(self, node: str) -> None:
        self.page.mouse.click(*self.place(node))

    def pick(self, node: str) -> None:
        """Select any node, shown or not, as the search does."""
        self.call("load", self.call("state") | {"selected": node, "opened": [node], "search": ""})

    def download(self, button: str) -> str:
        self.page.click("#export summary")
        with self.page.expect_download() as waiting:
            self.page.click(button)
        return waiting.value.path()


@pytest.fixture
def open_page(browser: sync_api.Browser):
    opened: list[Viewer] = []

    def open_path(path: Path, **context) -> Viewer:
        opened.append(Viewer(browser, path, **context))
        return opened[-1]

    yield open_path
    for viewer in opened:
        assert viewer.complaints == []
        assert all(url.startswith(("file:", "data:", "blob:")) for url in viewer.requests), viewer.requests
        viewer.context.close()


@pytest.fixture
def open_viewer(open_page, tmp_path: Path):
    def open_graph(graph: nx.MultiDiGraph, *, context=None, **how) -> Viewer:
        save(graph, tmp_path / "graph.html", **how)
        return open_page(tmp_path / "graph.html", **(context or {}))

    return open_graph


@pytest.fixture
def viewer(open_viewer) -> Viewer:
    return open_viewer(example_graph())


def backbone(graph: nx.MultiDiGraph, inputs: int, limit: int) -> set[tuple[str, str, str]]:
    """The edges that a backbone of `limit` edges has, by the definition: strongest first, backwards from the metric."""
    taken, inside = [], {METRIC}
    while len(taken) < limit:
        open_edges = []
        for node in inside:
            ranked = sorted(graph.in_edges(node, keys=True, data="weight"), key=lambda edge: -abs(edge[3]))
            open_edges += ranked[: inputs * (4 if node == METRIC else 1)]
        rest = [edge for edge in open_edges if edge[:3] not in taken]
        if not rest:
            break
        best = max(rest, key=lambda edge: abs(edge[3]))
        taken.append(best[:3])
        inside.add(best[0])
    return set(taken)


def test_the_page_opens_on_the_backbone_and_counts_what_it_hides(viewer: Viewer) -> None:
    graph = example_graph()
    expected = backbone(graph, 3, 60)
    assert {tuple(edge) for edge in viewer.shown["edges"]} == expected and len(expected) == 60
    nodes = {end for source, target, _ in expected for end in (source, target)}
    assert set(viewer.shown["nodes"]) == nodes
    weights = [abs(graph.edges[edge]["weight"]) for edge in expected]
    total = sum(abs(weight) for *_, weight in graph.edges(data="weight"))
    share = f"{100 * sum(weights) / total:.0f}%"
    assert viewer.text("#status") == (
        f"{len(nodes)} of 120 nodes · 60 of 408 edges · {share} of the edge weight · hidden: 348 outside the backbone"
    )
    assert viewer.page.title() == "logit difference circuit · example-4l"


def test_the_picture_has_ink(viewer: Viewer) -> None:
    painted = """() => { const canvas = document.getElementById("base");
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        const seen = new Set(); for (let i = 0; i < data.length; i += 4) seen.add(data[i] << 16 | data[i+1] << 8 | data[i+2]);
        return [...seen]; }"""
    seen = set(viewer.page.evaluate(painted))
    for colour in ("positive", "negative", "band"):
        assert int(labels.LIGHT[colour][1:], 16) in seen, colour
    assert len(seen) > 100


def test_all_edges_are_one_key_away(viewer: Viewer) -> None:
    viewer.press("b")
    assert len(viewer.shown["edges"]) == example_graph().number_of_edges() and len(viewer.shown["nodes"]) == 120
    assert viewer.text("#status") == "120 of 120 nodes · 408 of 408 edges · 100% of the edge weight"
    viewer.press("b")
    assert len(viewer.shown["edges"]) == 60


def test_the_header_shows_both_prompts_and_the_evidence(viewer: Viewer) -> None:
    assert viewer.texts("#prompts mark") == [" John", " Anna"]
    assert "".join(example_graph().graph["tokens"]["clean"]) in viewer.texts("#prompts dd")
    facts = viewer.texts("#facts div")
    assert "faithfulness83%measured" in facts
    assert any(fact.startswith("input from errors") and fact.endswith("estimated") for fact in facts)
    assert viewer.texts(".token.changed span") == ["·John", "·Anna"]


def test_the_models_answer_stands_above_the_grid(viewer: Viewer) -> None:
    logits = example_graph().graph["logits"]
    rows = viewer.page.locator("#outputs .answer")
    for i, side in enumerate(("clean", "corrupted")):
        assert rows.nth(i).locator("code").all_text_contents() == [labels.visible(token) for token, _ in logits[side]]
        assert rows.nth(i).locator("li").first.inner_text().split() == [
            labels.visible(logits[side][0][0]), f"{logits[side][0][1]:.0%}",
        ]  # fmt: skip
    assert "logit difference 3.42" in rows.first.inner_text() and "−2.95" in rows.last.inner_text()


def test_hostile_strings_are_shown_and_never_run(open_viewer) -> None:
    assert len(HOSTILE) >= 30
    viewer = open_viewer(example_graph(n_pos=len(HOSTILE), hostile=True))
    shown = viewer.texts(".token > span:first-child")
    expected = [
        labels.visible(token) for token in example_graph(n_pos=len(HOSTILE), hostile=True).graph["tokens"]["clean"]
    ]
    assert shown == expected
    viewer.press("b")
    for _ in range(6):
        viewer.press("[")
        viewer.page.mouse.move(*viewer.place(viewer.selected))
    viewer.press("t", "p")
    assert viewer.page.evaluate("[window.PWNED, document.querySelectorAll('img, iframe, b:empty').length]") == [None, 0]
    assert viewer.count("script") == 2


def test_hostile_labels_notes_reports_and_groups_are_shown_and_never_run(open_viewer) -> None:
    graph = example_graph(n_nodes=30)
    graph.graph["reports"] = HOSTILE
    graph.graph["provenance"] = {"model": HOSTILE[0], HOSTILE[1]: HOSTILE[2]}
    graph.graph["groups"] = [{"label": HOSTILE[0], "nodes": ["embed@3", "embed@4"]}, [HOSTILE[1], "embed@5"]]
    graph.nodes["embed@3"].update(label=HOSTILE[0], note=HOSTILE[1], top_tokens=HOSTILE, later={HOSTILE[2]: HOSTILE[3]})
    viewer = open_viewer(graph)
    assert viewer.texts(".reports li") == [labels.visible(text, " ") for text in HOSTILE]
    viewer.page.click("#tray-toggle")
    assert viewer.page.locator(".group-name").first.input_value() == HOSTILE[0]
    viewer.pick("embed@3")
    assert viewer.page.input_value("#label") == HOSTILE[0] and viewer.page.input_value("#note") == HOSTILE[1]
    assert viewer.texts(".tokens-list code") == [labels.visible(text) for text in HOSTILE]
    assert viewer.page.evaluate("window.PWNED") is None and viewer.count("img") == 0


def test_hostile_labels_survive_the_url_the_json_and_python(open_viewer) -> None:
    graph = example_graph()
    given = dict(zip(sorted(graph), HOSTILE, strict=False))
    viewer = open_viewer(graph)
    viewer.call("load", {"labels": given, "selected": "embed@3"})
    sync_api.expect(viewer.page).to_have_url(re.compile("#.*labels"))
    viewer.open(viewer.page.url)
    assert viewer.call("state")["labels"] == given and len(given) == len(HOSTILE)
    saved = json.loads(viewer.call("json"))
    assert {node["id"]: node["label"] for node in saved["nodes"] if node["id"] in given} == given
    assert all(f'["label"] = {json.dumps(HOSTILE[i])[:4]}' in viewer.call("python") for i in (0, 1, 5))
    compile(viewer.call("python"), "copied", "exec")
    assert viewer.page.evaluate("window.PWNED") is None


def test_the_page_makes_hidden_characters_visible_as_the_pictures_do(viewer: Viewer) -> None:
    graph = example_graph()
    for number, text in enumerate(HOSTILE):
        graph.nodes["embed@3"]["top_tokens"] = [text]
        assert labels.visible(text) != "" and number >= 0
    tokens = ["\x00", "\u202e", "\ufeff", "\xa0", "\uffff", "\ufdd0", "\ue000", "漢", "\t\n ", "\U000e0001"]
    viewer.call("load", {"labels": {"embed@3": "".join(tokens)}, "pins": ["embed@3"], "tray": True})
    box = viewer.page.locator("#tray .box text").first.text_content()
    assert labels.visible("".join(tokens), " ").startswith(box.rstrip("…")) and len(box) > 10


def test_a_click_shows_the_inputs_and_outputs_of_a_node(viewer: Viewer) -> None:
    graph = example_graph()
    viewer.press("b")
    node = max(graph, key=lambda each: min(graph.in_degree(each), graph.out_degree(each)))
    viewer.click_node(node)
    assert viewer.selected == node and viewer.text("#node-name") == node
    assert f"Inputs ({graph.in_degree(node)})" in viewer.texts("#panel caption")
    assert f"Outputs ({graph.out_degree(node)})" in viewer.texts("#panel caption")
    while viewer.page.locator("#panel button", has_text=re.compile(r"show \d+ more")).count():
        viewer.page.locator("#panel button", has_text=re.compile(r"show \d+ more")).first.click()
    rows = viewer.page.locator("#panel tr[data-edge]")
    shown = sorted(rows.locator("td:nth-child(3)").all_text_contents())
    weights = [weight for *_, weight in (*graph.in_edges(node, data="weight"), *graph.out_edges(node, data="weight"))]
    assert shown == sorted(labels.signed(weight) for weight in weights)
    assert set(viewer.shown["focus"]) == {*graph.predecessors(node), *graph.successors(node), node}
    box = viewer.page.locator("#stage").bounding_box()
    viewer.page.mouse.click(box["x"] + 10, 640)  # beside the grid, where nothing is
    assert viewer.selected is None and viewer.shown["focus"] is None


def test_shares_are_of_the_total_absolute_input(viewer: Viewer) -> None:
    graph = example_graph()
    viewer.click_node(METRIC)
    for button in viewer.page.locator("#panel button", has_text="more").all():
        button.click()
    weights = sorted((abs(weight) for *_, weight in graph.in_edges(METRIC, data="weight")), reverse=True)
    shares = [100 * weight / sum(weights) for weight in weights]
    expected = ["<1%" if 0 < share < 0.5 else f"{int(share + 0.5)}%" for share in shares]
    assert viewer.texts("#panel tr[data-edge] td:nth-child(4)") == expected and len(expected) > 5


def test_an_attention_node_shows_its_inputs_and_heads_by_kind(viewer: Viewer) -> None:
    graph = example_graph()
    node = max((each for each, site in graph.nodes(data="site") if site.startswith("z.")), key=graph.in_degree)
    viewer.pick(node)
    kinds = {kind for *_, kind in graph.in_edges(node, keys=True)}
    named = [labels.EDGE_NAMES[kind] for kind in labels.EDGE_NAMES if kind in kinds]
    assert viewer.texts("#panel .heads .badge") == named and len(named) > 1
    assert [text.split(":")[0] for text in viewer.texts("#panel .group th[scope=rowgroup]")] == named
    assert viewer.count("#panel .heads .bar") == 4 * len(kinds)
    sums = [sum(d["heads"][0] for *_, d in graph.in_edges(node, data=True) if d["kind"] == kind) for kind in ("ov",)]
    name = viewer.page.locator("#panel .heads .head-bars").first.get_attribute("aria-label")
    assert name.startswith(f"heads: 0 {labels.signed(sums[0])},")


def test_a_node_shows_what_was_measured_beside_what_was_estimated(viewer: Viewer) -> None:
    graph = example_graph()
    node, effect = next((each, value) for each, value in graph.nodes(data="effect") if value is not None)
    viewer.pick(node)
    facts = viewer.texts("#panel .facts div")
    assert f"attribution{labels.signed(graph.nodes[node]['attribution'])}estimated" in facts
    assert f"effect{labels.signed(effect)}measured" in facts


def test_attributes_of_a_later_release_are_shown(open_viewer) -> None:
    graph = example_graph()
    graph.nodes["embed@3"]["hop_count"] = 7
    graph.graph["evidence"]["completeness_residual"] = 0.25
    for edge in list(graph.edges(keys=True))[:1]:
        graph.add_edge(*edge[:2], key="through_attention", kind="through_attention", weight=2.5, local_weight=1.0)
    viewer = open_viewer(graph)
    assert "through attention1" in viewer.texts("#kinds .chip")
    assert "completeness residual+0.250" in viewer.texts("#panel .facts div")
    viewer.pick("embed@3")
    assert "hop count7" in viewer.texts("#panel .facts div")


def test_links_to_neuronpedia_are_safe_and_only_for_features(open_viewer) -> None:
    graph = example_graph()
    feature = next(n for n, d in graph.nodes(data=True) if d["kind"] == "feature" and d["layer"] == 2)
    site = graph.nodes[feature]["site"]
    viewer = open_viewer(graph, links={site: "gpt2-small/2-att-kk", "z.0": "javascript:alert(1)//x"})
    viewer.pick(feature)
    link = viewer.page.locator("#panel a")
    number = graph.nodes[feature]["feature"]
    assert link.get_attribute("href") == f"https://www.neuronpedia.org/gpt2-small/2-att-kk/{number}"
    assert link.get_attribute("rel") == "noopener noreferrer"
    for other in (
        "embed@2",
        next(n for n, d in graph.nodes(data=True) if d["site"] == "z.0" and d["kind"] == "feature"),
    ):
        viewer.pick(other)
        assert viewer.count("#panel a") == 0


def test_the_keyboard_walks_from_the_metric_to_an_embedding(viewer: Viewer) -> None:
    graph = example_graph()
    viewer.press("ArrowDown")
    assert viewer.selected == METRIC
    steps = [METRIC]
    while graph.in_degree(steps[-1]):
        viewer.press("[")
        steps.append(viewer.selected)
        inputs = graph.in_edges(steps[-2], data="weight")
        assert steps[-1] == max(inputs, key=lambda edge: abs(edge[2]))[0]
    assert len(steps) > 2 and graph.nodes[steps[-1]]["layer"] is None or graph.nodes[steps[-1]]["kind"] != "metric"
    viewer.press("]")
    assert viewer.selected == max(graph.out_edges(steps[-1], data="weight"), key=lambda edge: abs(edge[2]))[1]
    assert viewer.text("#status").startswith(viewer.selected)
    viewer.press("Escape")
    assert viewer.selected is None


def test_arrows_walk_across_the_grid(viewer: Viewer) -> None:
    viewer.press("b")
    viewer.pick("embed@5")
    viewer.press("ArrowRight")
    assert viewer.selected == "embed@6"
    viewer.press("ArrowLeft", "ArrowLeft")
    assert viewer.selected == "embed@4"
    below = viewer.place("embed@4")[1]
    viewer.press("ArrowUp")
    assert viewer.place(viewer.selected)[1] < below


def test_a_row_of_a_table_leads_to_its_node(viewer: Viewer) -> None:
    viewer.press("ArrowDown")
    viewer.page.locator("#panel .link").first.focus()
    viewer.press("Enter")
    assert viewer.selected != METRIC and viewer.page.evaluate("document.activeElement.id") == "node-name"


def test_fewer_edges_are_drawn_when_fewer_are_asked_for(viewer: Viewer) -> None:
    graph = example_graph()
    viewer.press("b")
    viewer.page.fill("#count", "50")
    viewer.press("Enter")
    strongest = sorted(graph.edges(keys=True, data="weight"), key=lambda edge: -abs(edge[3]))[:50]
    assert [tuple(edge) for edge in viewer.shown["edges"]] == [edge[:3] for edge in strongest]
    assert viewer.text("#status").endswith("hidden: 358 weaker")
    viewer.page.locator("#strongest").evaluate(
        "(slider) => { slider.value = 1000; slider.dispatchEvent(new Event('input')); slider.dispatchEvent(new Event('change')); }"
    )
    assert len(viewer.shown["edges"]) == 408 and viewer.page.input_value("#count") == "408"


def test_the_backbone_grows_with_the_inputs_a_node_keeps(viewer: Viewer) -> None:
    viewer.page.fill("#count", "408")
    viewer.press("Enter")
    sizes = []
    for inputs in (1, 2, 5):
        viewer.page.fill("#inputs", str(inputs))
        viewer.press("Enter")
        shown = {tuple(edge) for edge in viewer.shown["edges"]}
        assert shown == backbone(example_graph(), inputs, 408)
        sizes.append(len(shown))
    assert sizes == sorted(set(sizes))


def test_kinds_signs_heads_and_nodes_can_be_hidden_and_are_counted(viewer: Viewer) -> None:
    graph = example_graph()
    viewer.press("b")
    n_ov = sum(kind == "ov" for *_, kind in graph.edges(keys=True))
    viewer.page.locator("#kinds .chip", has_text="OV").click()
    assert "ov" not in {kind for *_, kind in viewer.shown["edges"]}
    assert viewer.text("#status").endswith(f"hidden: {n_ov} of hidden kinds")
    viewer.page.locator("#kinds .chip", has_text="OV").click()
    viewer.page.select_option("#sign", "-")
    n_plus = sum(weight >= 0 for *_, weight in graph.edges(data="weight"))
    assert (
        viewer.text("#status").endswith(f"hidden: {n_plus} of the other sign")
        and len(viewer.shown["edges"]) == 408 - n_plus
    )
    viewer.page.select_option("#sign", "")
    viewer.page.select_option("#heads", "2.1")

    def kept(target: str, heads: list[float] | None) -> bool:
        sizes = [abs(head) for head in heads or ()]
        return not heads or (graph.nodes[target]["layer"] == 2 and sizes.index(max(sizes)) == 1)

    assert len(viewer.shown["edges"]) == sum(kept(v, d.get("heads")) for _, v, d in graph.edges(data=True)) > 0
    viewer.page.select_option("#heads", "")
    viewer.page.locator("#chips .chip", has_text="error").click()
    errors = {node for node, kind in graph.nodes(data="kind") if kind == "error"}
    touching = sum(source in errors or target in errors for source, target in graph.edges())
    assert not errors & set(viewer.shown["nodes"])
    assert viewer.text("#status").endswith(f"hidden: {touching} at hidden nodes")


def test_the_strongest_nodes_that_carry_a_share_stay(viewer: Viewer) -> None:
    graph = example_graph()
    viewer.press("b")
    viewer.page.locator("#carried").evaluate(
        "(slider) => { slider.value = 60; slider.dispatchEvent(new Event('input')); }"
    )
    sizes = {node: abs(value) for node, value in graph.nodes(data="attribution") if node != METRIC}
    left, kept = 0.6 * sum(sizes.values()), set()
    for node in sorted(sizes, key=lambda each: -sizes[each]):
        if left > 0:
            kept.add(node)
        left -= sizes[node]
    assert 5 < len(kept) < 60 and set(viewer.shown["nodes"]) - {METRIC} <= kept
    among = [edge for edge in graph.edges(keys=True) if {*edge[:2]} <= kept | {METRIC}]
    assert {tuple(edge) for edge in viewer.shown["edges"]} == set(among) != set()
    assert viewer.text("#carried-text") == "60%"


def test_search_marks_matches_and_enter_selects_them_in_turn(viewer: Viewer) -> None:
    graph = example_graph()
    viewer.press("b", "/")
    viewer.page.keyboard.type("attention l2")
    expected = [node for node, data in graph.nodes(data=True) if data["site"] == "z.2"]
    assert sorted(viewer.shown["focus"]) == sorted(expected)
    assert f"{len(expected)} matches for “attention l2”, {len(expected)} in the picture" in viewer.text("#status")
    viewer.press("Enter")
    first = viewer.selected
    viewer.press("n")
    assert {first, viewer.selected} <= set(expected) and first != viewer.selected
    viewer.press("Escape")
    assert viewer.page.input_value("#search") == "" and viewer.selected is None
    feature = graph.nodes[first]["feature"]
    viewer.press("/")
    viewer.page.keyboard.type(f"#{feature} pos:{graph.nodes[first]['pos']}")
    assert viewer.shown["focus"] == [first]


def test_a_found_node_comes_into_the_picture_with_its_way_to_the_metric(viewer: Viewer) -> None:
    graph = example_graph()
    hidden = next(n for n in sorted(graph) if n not in viewer.shown["nodes"] and nx.has_path(graph, n, METRIC))
    viewer.press("/")
    viewer.page.keyboard.type(hidden)
    assert ", 0 in the picture" in viewer.text("#status")
    viewer.press("Enter")
    assert viewer.selected == hidden and hidden in viewer.shown["nodes"]
    drawn = nx.DiGraph([edge[:2] for edge in viewer.shown["edges"]])
    assert nx.has_path(drawn, hidden, METRIC)
    viewer.press("Escape")
    assert hidden not in viewer.shown["nodes"]


def test_tracing_shows_the_path_of_the_largest_product_of_shares(viewer: Viewer) -> None:
    graph = example_graph()
    total = {node: sum(abs(w) for *_, w in graph.in_edges(node, data="weight")) for node in graph}
    shares = nx.DiGraph()
    for source, target, weight in graph.edges(data="weight"):
        share = abs(weight) / total[target]
        if share > (shares.get_edge_data(source, target) or {"share": 0})["share"]:
            shares.add_edge(source, target, share=share)

    def best(node: str) -> float:
        return (
            1.0
            if node == METRIC
            else max((d["share"] * best(t) for _, t, d in shares.out_edges(node, data=True)), default=0.0)
        )

    start = max((n for n in graph if n != METRIC and METRIC not in graph.succ[n]), key=best)
    viewer.pick(start)
    viewer.press("t")
    path = viewer.call("state")["path"]
    product = 1.0
    for source, target, kind in path:
        product *= abs(graph.edges[source, target, kind]["weight"]) / total[target]
    assert path[0][0] == start and path[-1][1] == METRIC and len(path) > 1
    assert product == pytest.approx(best(start)) and product > 0
    assert set(viewer.shown["focus"]) == {end for source, target, _ in path for end in (source, target)}
    viewer.page.click("text=pin the path")
    assert set(viewer.call("state")["pins"]) == set(viewer.shown["focus"])


def test_one_of_several_targets_can_be_seen_alone(open_viewer) -> None:
    graph = with_targets(example_graph())
    viewer = open_viewer(graph)
    chips = viewer.page.locator("[data-target]")
    words = dict(text.split("weight") for text in chips.all_text_contents())
    assert words == {
        "·Mary71%, ": " 0.750, adds +2.50",
        "·John8.0%, ": " −0.250, adds −1.25",
        "a direction": " 1.00, adds +0.750",
    }
    everything = {tuple(edge) for edge in viewer.shown["edges"]}
    viewer.press("b")
    for target, text in (("logit/t9@14", "John"), ("resid_post.3/p2@14", "a direction")):
        chips.filter(has_text=text).click()
        below = {*nx.ancestors(graph, target), target}
        ways = {(u, v, k) for u, v, k in graph.edges(keys=True) if v in below or u == target}
        assert {tuple(edge) for edge in viewer.shown["edges"]} == ways and 10 < len(ways) < graph.number_of_edges()
        assert f"{graph.number_of_edges() - len(ways)} on no way to the chosen target" in viewer.text("#status")
        assert viewer.call("state")["target"] == target
        assert viewer.page.locator('[data-target][aria-pressed="true"]').count() == 1
    viewer.press("b")
    drawn = nx.DiGraph([edge[:2] for edge in viewer.shown["edges"]])
    assert set(drawn.pred[METRIC]) == {target} and all(nx.has_path(drawn, node, target) for node in {*drawn} - {METRIC})
    viewer.press("ArrowDown", "[")
    assert viewer.selected == target
    viewer.press("[")
    assert viewer.selected in graph.pred[target]
    sync_api.expect(viewer.page).to_have_url(re.compile("target.*p2%4014.*selected"))
    viewer.open(viewer.page.url)
    assert viewer.call("state")["target"] == target
    chips.filter(has_text="a direction").click()
    assert viewer.call("state")["target"] is None
    viewer.press("Escape")
    assert {tuple(edge) for edge in viewer.shown["edges"]} == everything


def test_a_node_says_what_it_reads_in_all_and_how_much_edges_explain(open_viewer) -> None:
    graph = example_graph()
    graph.nodes["embed@3"].update(stream_input=-2.0, unexplained=-0.5)
    graph.nodes["embed@4"].update(stream_input=0.001, unexplained=0.75)
    viewer = open_viewer(graph)

    def lines() -> list[str]:
        return [text for text in viewer.texts("#panel .facts div") if re.match("reads in all|by ", text)]

    viewer.pick("embed@3")
    assert lines() == ["reads in all−2.00measured", "by its edges−1.50 (75%)estimated", "by no edge−0.500 (25%)"]
    viewer.pick("embed@4")
    assert lines() == ["reads in all+0.00100measured", "by its edges−0.749estimated", "by no edge+0.750"]
    assert "stream_input" not in viewer.text("#panel") and "unexplained" not in viewer.text("#panel")


def test_a_moved_limit_shows_what_a_fresh_page_shows(viewer: Viewer) -> None:
    viewer.page.select_option("#sign", "-")
    viewer.page.locator("#kinds .chip", has_text="MLP").click()
    for count in (5, 90, 30):
        viewer.page.fill("#count", str(count))
        viewer.press("Enter")
    state, shown, status = viewer.call("state"), viewer.shown, viewer.text("#status")
    viewer.page.reload()
    viewer.page.wait_for_selector("html[data-ready]")
    viewer.call("load", state)
    assert viewer.shown == shown and viewer.text("#status") == status
    assert 5 < len(shown["edges"]) <= 30 and "of the other sign" in status and "of hidden kinds" in status


def test_what_matters_keeps_its_caption_and_the_tooltip_tells_the_others(open_viewer) -> None:
    graph = example_graph(12, 60, 600, n_edges=4000)
    metric = "metric@59"
    for number, (node, data) in enumerate(graph.nodes(data=True)):
        if data["pos"] == 59 and number % 2 and node != metric:
            data["label"] = f"words of mine {number}"
    viewer = open_viewer(graph)
    viewer.press("b")
    drawn = {element.text for element in ET.fromstring(viewer.call("svg")).iter(f"{SVG}text")}
    assert "logit difference" in drawn
    assert {graph.nodes[node]["label"] for node in viewer.shown["nodes"] if "label" in graph.nodes[node]} <= drawn
    captions = {node: labels.caption(graph, node) for node in viewer.shown["nodes"]}
    silent = [node for node, text in captions.items() if text and text not in drawn and node != metric]
    assert silent
    viewer.press("b")
    node = next(node for node in viewer.shown["nodes"] if captions.get(node) and node != metric)
    viewer.page.mouse.move(*viewer.place(node))
    assert captions[node] in viewer.text("#tooltip")


def test_tokens_of_narrow_columns_do_not_cover_each_other(open_viewer) -> None:
    graph = example_graph(6, 1000, 1200, n_edges=4000)
    viewer = open_viewer(graph)
    boxes = viewer.page.evaluate(
        """[...document.querySelectorAll(".token")].filter((cell) => cell.style.visibility !== "hidden")
        .map((cell) => [cell.getBoundingClientRect().left, cell.getBoundingClientRect().right, Number(cell.dataset.pos)])"""
    )
    boxes.sort()
    assert 20 < len(boxes) < 200
    assert all(before[1] <= after[0] + 0.01 for before, after in zip(boxes, boxes[1:], strict=False))
    shown = {pos for *_, pos in boxes}
    filled = {graph.nodes[node]["pos"] for node in viewer.shown["nodes"]}
    assert len(filled & shown) > 0.6 * len(filled)


def test_pins_and_groups_make_a_small_graph_with_summed_edges(viewer: Viewer) -> None:
    graph = example_graph()
    viewer.press("b")
    nodes = [source for source, *_ in sorted(graph.in_edges(METRIC, data="weight"), key=lambda e: -abs(e[2]))][:3]
    for node in nodes:
        viewer.pick(node)  # the grid may be too small for all of them beside the tray
        viewer.press("p")
    assert viewer.call("state")["pins"] == nodes and viewer.count("#tray .box") == 4
    viewer.press("g")
    viewer.page.keyboard.type("movers")
    viewer.press("Enter")
    viewer.press("Tab")
    assert viewer.call("state")["groups"] == [{"label": "movers", "nodes": nodes}]
    assert viewer.texts("#tray .box.group text") == ["movers", "3 nodes"]
    total = sum(weight for u, _, weight in graph.in_edges(METRIC, data="weight") if u in nodes)
    assert viewer.page.locator("#tray .sum title").all_text_contents() == [
        f"movers → logit difference: {labels.signed(total)} (metric)"
    ]
    viewer.page.click("text=dissolve")
    assert viewer.call("state")["groups"] == [] and viewer.count("#tray .box") == 4
    viewer.page.locator("#tray .actions button", has_text="clear").click()
    assert viewer.call("state")["pins"] == []


def test_groups_are_suggested_by_what_nodes_share(viewer: Viewer) -> None:
    viewer.press("b")
    first = viewer.shown["nodes"][0]
    viewer.pick(first)
    viewer.press("p")
    suggested = viewer.page.locator(".suggest button")
    name, count = re.fullmatch(r"(.*) \((\d+)\)", suggested.first.inner_text()).groups()
    suggested.first.click()
    groups = viewer.call("state")["groups"]
    assert groups[0]["label"] == name and len(groups[0]["nodes"]) == int(count) > 1


def test_labels_notes_pins_and_groups_return_in_a_graph_that_the_library_reads(viewer: Viewer, tmp_path: Path) -> None:
    graph = example_graph()
    viewer.press("b")
    viewer.pick("embed@3")
    viewer.page.fill("#label", "the name")
    viewer.page.fill("#note", "seen twice")
    viewer.call(
        "load", viewer.call("state") | {"pins": ["embed@3", METRIC], "groups": [{"label": "g", "nodes": ["embed@3"]}]}
    )
    read = load(viewer.download("#save-graph"), "native")
    assert read.nodes["embed@3"]["label"] == "the name" and read.nodes["embed@3"]["note"] == "seen twice"
    assert read.graph["pins"] == ["embed@3", METRIC] and read.graph["groups"] == [{"label": "g", "nodes": ["embed@3"]}]
    graph.nodes["embed@3"].update(label="the name", note="seen twice")
    assert dict(read.nodes(data=True)) == {node: {**data} for node, data in graph.nodes(data=True)}
    assert {edge[:3]: edge[3] for edge in read.edges(keys=True, data=True)} == {
        edge[:3]: edge[3] for edge in graph.edges(keys=True, data=True)
    }
    save(read, tmp_path / "again.json")


def test_a_saved_graph_that_lost_a_row_is_refused(viewer: Viewer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that was cut and closed again is JSON, and yet not the graph."""
    text = Path(viewer.download("#save-graph")).read_text(encoding="utf-8")
    value = json.loads(text)
    assert value["version"] == 3 and value["counts"] == {"edges": 408, "nodes": 120}
    lines = text.splitlines()
    lost = [*lines[:-4], lines[-4].rstrip(","), "]", "}"]  # without its last edge
    assert len(json.loads("\n".join(lost))["edges"]) == 407
    with pytest.raises(GraphError, match="it holds 407 edges where counts says 408"):
        text_to_graph("\n".join(lost))
    monkeypatch.setattr(
        "circuitgraph.formats.native.read_text", None
    )  # what reads a file of another layout in one piece
    assert load(viewer.download("#save-graph"), "native").number_of_edges() == 408


def test_the_page_of_a_single_prompt_shows_no_corrupted_one(open_viewer) -> None:
    graph = example_graph()
    for name in ("tokens", "metric", "logits"):
        graph.graph[name] = graph.graph[name] | {"corrupted": None}
    graph.nodes[METRIC]["attribution"] = graph.graph["metric"]["clean"]
    viewer = open_viewer(graph)
    assert viewer.texts("#prompts dt") == ["clean"] and viewer.count("#prompts mark") == 0
    assert viewer.count(".token.changed") == 0 and viewer.texts("#tokens .side span") == ["clean"]
    assert "logit difference3.42measured" in viewer.texts("#facts div")
    assert viewer.count("#outputs .answer") == 1 and "corrupted" not in viewer.text("main")
    node = max((n for n in graph if n != METRIC), key=lambda n: abs(graph.nodes[n]["attribution"]))
    viewer.pick(node)
    share = abs(graph.nodes[node]["attribution"]) / 3.4213
    assert any(
        re.fullmatch(rf"of the metric−?{100 * share:.0f}%estimated", fact) for fact in viewer.texts("#panel .facts div")
    )
    viewer.pick(METRIC)
    assert "clean, no corrupted prompt+3.42measured" in viewer.texts("#panel .facts div")
    read = load(viewer.download("#save-graph"), "native")
    assert read.graph["metric"]["corrupted"] is None and read.graph["tokens"]["corrupted"] is None


def test_shares_of_a_metric_that_does_not_change_are_undefined(open_viewer) -> None:
    graph = example_graph()
    graph.graph["metric"] = graph.graph["metric"] | {"corrupted": graph.graph["metric"]["clean"]}
    viewer = open_viewer(graph)
    viewer.pick(next(node for node, kind in graph.nodes(data="kind") if kind == "feature"))
    assert "of the metricundefined: the metric does not changeestimated" in viewer.texts("#panel .facts div")
    assert viewer.page.locator("#facts div").first.get_attribute("title").endswith("so shares of it are undefined")


def test_the_copied_python_makes_the_shown_circuit(
    viewer: Viewer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(example_graph(), tmp_path / "circuit.json")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(viewer.call("python"), names)
    assert {tuple(edge) for edge in viewer.shown["edges"]} == set(names["circuit"].edges(keys=True))
    nodes = viewer.shown["nodes"][:3]
    viewer.call(
        "load", {"pins": nodes, "labels": {nodes[0]: 'a "b"\\'}, "groups": [{"label": "g", "nodes": nodes[:2]}]}
    )
    exec(viewer.call("python"), names)
    assert set(names["circuit"]) == {*nodes, METRIC} and names["circuit"].nodes[nodes[0]]["label"] == 'a "b"\\'
    assert names["circuit"].graph["groups"] == [{"label": "g", "nodes": nodes[:2]}]


def test_the_address_brings_the_state_back(viewer: Viewer) -> None:
    viewer.press("b")
    viewer.page.fill("#count", "77")
    viewer.press("Enter")
    viewer.page.locator("#kinds .chip", has_text="Q").click()
    viewer.click_node(METRIC)
    viewer.press("p")
    viewer.page.click("#theme")
    before = viewer.call("state")
    sync_api.expect(viewer.page).to_have_url(re.compile("#.*theme"))
    viewer.open(viewer.page.url)
    assert viewer.call("state") == before
    assert before["selected"] == METRIC and before["pins"] == [METRIC] and before["kinds_off"] == ["q"]
    assert len(viewer.shown["edges"]) == 77 and viewer.page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_broken_address_opens_the_default_view(viewer: Viewer) -> None:
    address = viewer.page.url.split("#")[0]
    for wrong in ("#%", "#[1]", '#{"mode":7,"pins":3,"labels":[],"selected":{},"path":[1],"groups":[0]}', "#null"):
        viewer.open(address + wrong)
        assert len(viewer.shown["edges"]) == 60


def test_the_state_goes_out_and_in_as_json(viewer: Viewer, tmp_path: Path) -> None:
    viewer.press("b")
    viewer.click_node(METRIC)
    saved = Path(viewer.download("#save-state")).read_text(encoding="utf-8")
    assert json.loads(saved)["selected"] == METRIC and json.loads(saved)["mode"] == "strongest"
    viewer.press("Escape", "b")
    (tmp_path / "state.json").write_text(saved)
    viewer.page.set_input_files("#load-state", tmp_path / "state.json")
    sync_api.expect(viewer.page.locator("#status")).to_contain_text("state loaded")
    assert viewer.call("state")["mode"] == "strongest"
    (tmp_path / "state.json").write_text("no JSON")
    viewer.page.set_input_files("#load-state", tmp_path / "state.json")
    sync_api.expect(viewer.page.locator("#status")).to_contain_text("this file is no saved state")


def test_the_picture_is_saved_as_svg_and_png(open_viewer) -> None:
    viewer = open_viewer(example_graph(hostile=True, n_pos=len(HOSTILE)))
    text = Path(viewer.download("#save-svg")).read_text(encoding="utf-8")
    root = ET.fromstring(text)
    paths = [path.get("d") for path in root.iter("{http://www.w3.org/2000/svg}path")]
    assert sum("C" in d and d.startswith("M") and "a" not in d for d in paths) == 60
    assert "Circuit" in text or "circuit" in text
    assert "<script" not in text and "<img" not in text
    assert Path(viewer.download("#save-png")).read_bytes().startswith(b"\x89PNG")


def test_a_token_isolates_its_column(viewer: Viewer) -> None:
    viewer.press("b")
    viewer.page.locator('.token[data-pos="2"]').click()
    graph = example_graph()
    assert set(viewer.shown["focus"]) == {node for node, pos in graph.nodes(data="pos") if pos == 2}
    viewer.page.locator('.token[data-pos="2"]').click()
    assert viewer.shown["focus"] is None


def test_hovering_a_node_or_an_edge_tells_about_it(viewer: Viewer) -> None:
    viewer.page.mouse.move(*viewer.place(METRIC))
    assert viewer.page.locator("#tooltip").is_visible() and viewer.text("#tooltip").startswith(METRIC)
    x, y = viewer.place(METRIC)
    source = viewer.shown["edges"][0]
    for step in range(200):
        start, end = viewer.place(source[0]), viewer.place(source[1])
        at = step / 200
        viewer.page.mouse.move(start[0] + (end[0] - start[0]) * at, start[1] + (end[1] - start[1]) * at)
        if viewer.page.locator("#tooltip").is_visible() and "→" in viewer.text("#tooltip .mono"):
            break
    else:
        pytest.fail("no point between the ends of the strongest edge shows an edge")
    viewer.page.mouse.move(1400, 20)
    assert viewer.page.locator("#tooltip").is_hidden() and x > 0 and y > 0


def test_zooming_moves_tokens_with_their_columns_and_fit_returns(viewer: Viewer) -> None:
    viewer.press("b")

    def offset() -> float:
        token = viewer.page.locator('.token[data-pos="9"]').bounding_box()
        return abs(token["x"] + token["width"] / 2 - viewer.place("embed@9")[0])

    assert offset() < 4
    before = viewer.place("embed@9")
    viewer.press("+", "+")
    assert viewer.place("embed@9") != before and offset() < 4
    viewer.page.mouse.move(600, 500)
    viewer.page.mouse.wheel(0, 400)
    viewer.page.mouse.down()
    viewer.page.mouse.move(640, 520, steps=3)
    viewer.page.mouse.up()
    assert offset() < 4 and viewer.selected is None
    viewer.press("0")
    assert viewer.place("embed@9") == pytest.approx(before, abs=1)


def test_the_wheel_keeps_what_is_under_the_pointer_and_a_drag_moves_everything_alike(viewer: Viewer) -> None:
    viewer.press("b")
    x, y = viewer.place(METRIC)
    before = viewer.place("embed@3")
    viewer.page.mouse.move(x, y)
    viewer.page.mouse.wheel(0, -200)
    assert viewer.place(METRIC) == pytest.approx((x, y), abs=0.5)
    factor = 2**0.4
    expected = (x + (before[0] - x) * factor, y + (before[1] - y) * factor)
    assert viewer.place("embed@3") == pytest.approx(expected, abs=0.5)
    viewer.page.mouse.move(x - 30, y + 40)
    viewer.page.mouse.down()
    viewer.page.mouse.move(x - 100, y + 90, steps=4)
    viewer.page.mouse.up()
    assert viewer.place(METRIC) == pytest.approx((x - 70, y + 50), abs=0.5) and viewer.selected is None
    viewer.click_node(METRIC)
    assert viewer.selected == METRIC


def test_two_fingers_zoom(open_viewer) -> None:
    viewer = open_viewer(example_graph(), context={"has_touch": True})
    session = viewer.context.new_cdp_session(viewer.page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        given = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": given})

    far = [viewer.place(node)[0] for node in viewer.shown["nodes"]]
    touch("touchStart", (500, 400), (600, 400))
    for wide in (110, 130, 160, 200):
        touch("touchMove", (500, 400), (500 + wide, 400))
    touch("touchEnd")
    wider = [viewer.place(node)[0] for node in viewer.shown["nodes"]]
    assert max(wider) - min(wider) == pytest.approx(2 * (max(far) - min(far)), rel=0.02)


def test_the_grid_comes_to_rest_in_windows_of_every_size(viewer: Viewer) -> None:
    """Turning the tokens changes the height of the grid, which must not turn them back."""
    counting = """() => { window.drawn = 0; const clear = CanvasRenderingContext2D.prototype.clearRect;
        CanvasRenderingContext2D.prototype.clearRect = function (...box) { window.drawn += 1; return clear.apply(this, box); }; }"""
    viewer.page.evaluate(counting)
    frames = "() => new Promise((done) => { let left = 8; const next = () => (left-- ? requestAnimationFrame(next) : done()); next(); })"
    turned = set()
    for width in range(1000, 1441, 40):
        for height in (600, 700, 800):
            viewer.page.set_viewport_size({"width": width, "height": height})
            viewer.page.evaluate(frames)
            viewer.page.evaluate("window.drawn = 0")
            viewer.page.evaluate(frames)
            assert viewer.page.evaluate("window.drawn") == 0, (width, height)
            turned.add(viewer.page.evaluate("document.getElementById('tokens').className"))
    assert turned == {"", "upright"}


def test_help_opens_and_closes_by_key(viewer: Viewer) -> None:
    viewer.press("?")
    assert viewer.page.locator("#help").is_visible()
    viewer.press("ArrowDown", "Escape")
    assert viewer.page.locator("#help").is_hidden() and viewer.selected is None


def test_two_graphs_are_compared(open_viewer) -> None:
    a, b = example_graph(), example_graph(seed=1)
    extra = [edge for edge in a.edges(keys=True, data=True) if edge[0] in b and edge[1] in b][:10]
    for number, (source, target, kind, data) in enumerate(extra):
        b.add_edge(source, target, key=kind, **(data | {"weight": data["weight"] + 0.5 * (number % 2)}))
    viewer = open_viewer(a, compare=b, names=("first", "second"))
    both = set(a.edges(keys=True)) & set(b.edges(keys=True))
    only_a, only_b = set(a.edges(keys=True)) - both, set(b.edges(keys=True)) - both
    assert both and only_a and only_b
    assert viewer.texts("#compare .chip small") == [str(len(both)), str(len(only_a)), str(len(only_b))]
    viewer.press("b")
    viewer.page.locator("#compare .chip", has_text="only A").click()
    viewer.page.locator("#compare .chip", has_text="both").click()
    assert {tuple(edge) for edge in viewer.shown["edges"]} == only_b
    assert f"hidden: {len(both) + len(only_a)} of hidden sides" in viewer.text("#status")
    viewer.page.locator("#compare .chip", has_text="only A").click()
    viewer.page.locator("#compare .chip", has_text="both").click()
    viewer.page.select_option("#weights", "B-A")

    def difference(edge: tuple[str, str, str]) -> float:
        return sum(sign * graph.edges[edge]["weight"] for graph, sign in ((b, 1), (a, -1)) if edge in graph.edges)

    ranked = sorted(both | only_a | only_b, key=lambda edge: -abs(difference(edge)))
    shown = [tuple(edge) for edge in viewer.shown["edges"]]
    equal = {edge for edge in both if difference(edge) == 0}
    assert shown[:20] == ranked[:20] and set(shown[-len(equal) :]) == equal != set()
    assert "first" in viewer.text("#model") and "A|B" not in viewer.text("#facts")
    assert load(viewer.download("#save-graph"), "native").number_of_edges() == a.number_of_edges()


def test_a_large_graph_opens_compressed(open_viewer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "COMPRESS_ABOVE", 1000)
    viewer = open_viewer(example_graph(8, 15, 400, n_edges=2300))
    assert viewer.page.get_attribute("#data", "data-encoding") == "gzip"
    assert "60 of 2,300 edges" in viewer.text("#status")


def test_a_page_that_leaves_something_out_says_so(open_page, tmp_path: Path) -> None:
    (tmp_path / "small.html").write_text(html.render_html(example_graph(), max_edges=100), encoding="utf-8")
    viewer = open_page(tmp_path / "small.html")
    assert "308 of 408 edges are not in this page" in viewer.text("#panel")
    assert "more was left out of this page" in viewer.text("#status")


@pytest.mark.parametrize(("n_nodes", "statement"), [(0, "This graph is empty"), (1, "1 node and no edges")])
def test_a_graph_without_edges_says_so_and_survives_the_keys(n_nodes: int, statement: str, open_viewer) -> None:
    viewer = open_viewer(example_graph(n_nodes=n_nodes))
    assert statement in viewer.text(".statement")
    viewer.press("ArrowDown", "[", "]", "t", "p", "g", "b", "/", "a", "Enter", "Escape", "+", "0")
    assert len(viewer.shown["nodes"]) == n_nodes
    viewer.call("svg"), viewer.call("python"), viewer.call("json")


def test_a_graph_without_attributes_opens(open_viewer) -> None:
    viewer = open_viewer(nx.MultiDiGraph())
    assert "This graph is empty" in viewer.text("#status")


def test_the_notebook_frame_runs_where_nothing_else_may(open_page, tmp_path: Path) -> None:
    page = f"<!DOCTYPE html><html data-ready><body>{show(example_graph())._repr_html_()}</body></html>"
    (tmp_path / "notebook.html").write_text(page, encoding="utf-8")
    viewer = open_page(tmp_path / "notebook.html")
    frame = viewer.page.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for()
    assert "60 of 408 edges" in frame.locator("#status").inner_text()
    frame.locator("#mode-strongest").click()
    assert "408 of 408 edges" in frame.locator("#status").inner_text()


@pytest.mark.skipif(
    not AXE.exists(), reason="needs axe-core: `npm ci` in circuitgraph/render/viewer, which needs the network"
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(scheme: str, open_viewer) -> None:
    viewer = open_viewer(with_targets(example_graph()), context={"color_scheme": scheme, "bypass_csp": True})
    viewer.page.add_script_tag(path=AXE)
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}

    def violations() -> list[str]:
        found = viewer.page.evaluate("(rules) => axe.run(document, rules).then((result) => result.violations)", rules)
        return [f"{each['id']}: {each['nodes'][0]['html'][:120]}" for each in found]

    assert violations() == []
    viewer.page.locator("[data-target]").first.click()
    viewer.press("ArrowDown", "[", "p", "[", "p", "g")
    viewer.call("load", viewer.call("state") | {"search": "", "tray": True})
    assert violations() == []
    viewer.press("Escape", "?")
    assert violations() == []
