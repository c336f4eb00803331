"""What opening and refiltering a large graph costs, beside cytoscape.js and vis-network, in CPU time of the browser.

Prints a table. It needs Playwright, Chromium and `npm ci` in this folder; nothing of it is used by the viewer:

    python circuitgraph/render/viewer/bench.py [--nodes 2000] [--edges 50000] [--repeat 3] [--ours]

Times are CPU milliseconds summed over the browser's processes, which a busy machine changes less than wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

from circuitgraph.render import labels, render_html
from circuitgraph.render.layout import lay_out

HERE = Path(__file__).parent
LAYERS, POSITIONS = 26, 24
TICK = 1000 / os.sysconf("SC_CLK_TCK")  # ms
QUIET = 0.4  # seconds without work after which a step is over
MOST = 20.0  # seconds after which a step counts as it is
SHOWN = 2_000  # edges drawn at first by the other two, and by ours in its second row


def random_graph(n_nodes: int, n_edges: int) -> nx.MultiDiGraph:
    """A graph with typed, signed, heavy-tailed edges over 26 layers and 24 positions; numbers as a model gives them."""
    rng = random.Random(0)
    tokens = [f" w{pos}" for pos in range(POSITIONS)]
    graph = nx.MultiDiGraph(
        tokens={"clean": tokens, "corrupted": tokens}, n_layers=LAYERS, n_examples=1, reports=[],
        metric={"name": "logit_difference", "clean": 3.0, "corrupted": -3.0},
    )  # fmt: skip
    graph.add_node(
        f"metric@{POSITIONS - 1}", kind="metric", site="metric", layer=None, pos=POSITIONS - 1, attribution=6.0
    )
    while len(graph) < n_nodes:
        kind, layer = rng.choice(("z", "mlp_out")), rng.randrange(LAYERS)
        pos, feature = rng.randrange(POSITIONS), rng.randrange(16384)
        name = f"{kind}.{layer}/f{feature}@{pos}"
        graph.add_node(name, kind="feature", site=f"{kind}.{layer}", layer=layer, pos=pos, feature=feature,
                       attribution=single(rng.gauss(0, 1) * rng.random() ** 3))  # fmt: skip
    order = {"z": 0, "mlp_out": 1, "metric": 2}
    depth = {
        n: ((LAYERS if d["layer"] is None else d["layer"]) * 3) + order[d["site"].partition(".")[0]]
        for n, d in graph.nodes(data=True)
    }
    names = sorted(graph)
    left = n_edges  # number_of_edges() counts them all each time
    while left:
        source, target = rng.choice(names), rng.choice(names)
        if depth[source] >= depth[target]:
            continue
        site = graph.nodes[target]["site"].partition(".")[0]
        kind = {"mlp_out": "mlp", "metric": "metric"}.get(site) or rng.choice(("ov", "q", "k"))
        left -= not graph.has_edge(source, target, kind)
        weight = single(rng.gauss(0, 1) * rng.random() ** 4)
        graph.add_edge(source, target, key=kind, kind=kind, weight=weight, local_weight=single(1.7 * weight))
    return graph


def single(value: float) -> float:
    """The value as a 32-bit float holds it."""
    return float(np.float32(value))


def cytoscape_page(data: str) -> str:
    """A page that draws the first edges with cytoscape.js, at the positions of our layout."""
    return _page("cytoscape/dist/cytoscape.min.js", data, """
      const edge = (e) => ({data: {id: "e" + e, source: "n" + data.source[e], target: "n" + data.target[e],
        w: data.width[e], c: data.colour[e], d: data.dash[e]}});
      const cy = cytoscape({container: document.getElementById("box"), layout: {name: "preset"}, style: [
        {selector: "node", style: {width: 10, height: 10}},
        {selector: "edge", style: {width: "data(w)", "line-color": "data(c)", "line-style": "data(d)",
          "curve-style": "haystack"}}],
        elements: data.x.map((x, i) => ({data: {id: "n" + i}, position: {x, y: data.y[i]}}))});
      window.show = (n) => cy.batch(() => { cy.edges().remove(); cy.add([...Array(n).keys()].map(edge)); });
    """)  # fmt: skip


def vis_page(data: str) -> str:
    """A page that draws the first edges with vis-network, at the positions of our layout."""
    return _page("vis-network/standalone/umd/vis-network.min.js", data, """
      const edges = new vis.DataSet();
      const nodes = data.x.map((x, i) => ({id: i, x, y: data.y[i], size: 5, shape: "dot"}));
      new vis.Network(document.getElementById("box"), {nodes: new vis.DataSet(nodes), edges},
        {physics: false, edges: {smooth: false}, interaction: {hideEdgesOnDrag: true}});
      window.show = (n) => { edges.clear(); edges.add([...Array(n).keys()].map((e) => ({
        id: e, from: data.source[e], to: data.target[e], width: data.width[e], color: data.colour[e],
        dashes: data.dash[e] !== "solid"}))); };
    """)  # fmt: skip


def _page(library: str, data: str, script: str) -> str:
    code = (HERE / "node_modules" / library).read_text(encoding="utf-8").replace("</script", "<\\/script")
    return (
        '<!DOCTYPE html><meta charset="utf-8"><div id="box" style="width:1000px;height:700px"></div>'
        f"<script>{code}</script><script>const data = {data};{script} show({SHOWN});"
        " document.documentElement.dataset.ready = '';</script>"
    )


def columns(graph: nx.MultiDiGraph) -> str:
    """Positions, ends and looks of everything as JSON, edges strongest first."""
    layout, edges = lay_out(graph), labels.ranked_edges(graph)
    number = {node: i for i, node in enumerate(graph)}
    reference, colours = labels.reference_weight(edges), labels.edge_kinds(graph)
    return json.dumps({
        "x": [layout.centres[node][0] for node in graph], "y": [layout.centres[node][1] for node in graph],
        "source": [number[u] for u, *_ in edges], "target": [number[v] for _, v, *_ in edges],
        "colour": [labels.LIGHT[colours[kind]] for _, _, kind, _ in edges],
        "dash": ["dashed" if d["weight"] < 0 else "solid" for *_, d in edges],
        "width": [round(labels.edge_width(labels.edge_strength(d["weight"], reference)), 2) for *_, d in edges],
    })  # fmt: skip


def browser_ticks() -> int:
    """Clock ticks that the browser under this process has used, its ended children included."""
    stats = {}
    for entry in Path("/proc").iterdir():
        try:
            text = (entry / "stat").read_text() if entry.name.isdecimal() else ""
        except OSError:
            continue
        if text:
            name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
            stats[int(entry.name)] = (int(rest[1]), name, sum(map(int, rest[11:15])))

    def ours(pid: int) -> bool:
        while pid in stats and pid != os.getpid():
            pid = stats[pid][0]
        return pid == os.getpid()

    return sum(ticks for pid, (_, name, ticks) in stats.items() if "chrom" in name and ours(pid))


def cost(page: Page, step: Callable[[], Any]) -> float:
    """CPU ms from the step until the browser is quiet."""
    before = last = browser_ticks()
    step()
    start = since = time.monotonic()
    while time.monotonic() - since < QUIET and time.monotonic() - start < MOST:
        time.sleep(0.1)  # not through the page, which would make work
        now = browser_ticks()
        if now > last + 1:
            since = time.monotonic()
        last = now
    return (last - before) * TICK


def measure(browser: Browser, path: Path, address: str, steps: list[str]) -> list[float]:
    """[opening, each step] in CPU ms."""
    context = browser.new_context(offline=True, viewport={"width": 1440, "height": 900})
    page = context.new_page()
    cost(page, lambda: page.goto("about:blank"))

    def opening() -> None:
        page.goto(path.as_uri() + address, timeout=120_000)
        page.wait_for_selector("html[data-ready]", state="attached", timeout=120_000)

    found = [cost(page, opening)]
    for step in steps:
        found.append(cost(page, lambda step=step: page.evaluate(step)))  # type: ignore[misc]
    context.close()
    return found


def main() -> None:
    """Measure all pages in turn, `repeat` times, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("nodes", 2_000), ("edges", 50_000), ("repeat", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ours", action="store_true", help="the viewer's two pages only, which need no `npm ci`")
    options = parser.parse_args()
    graph = random_graph(options.nodes, options.edges)
    limits = (SHOWN, min(20_000, options.edges), options.edges)
    slide = (
        "(() => {{ const count = document.getElementById('count'); count.value = {};"
        " count.dispatchEvent(new Event('change')); }})()"
    )
    strongest = "#%7B%22mode%22%3A%22strongest%22%7D"
    ours = render_html(graph)
    rows: list[tuple[str, str, str, list[str]]] = [
        ("viewer, backbone", ours, "", [slide.format(n) for n in (100, 200, 400)]),
        ("viewer, strongest", ours, strongest, [slide.format(n) for n in limits]),
    ]
    if not options.ours:
        data = columns(graph)
        shows = [f"show({n})" for n in limits]
        rows += [("vis-network", vis_page(data), "", shows), ("cytoscape.js", cytoscape_page(data), "", shows)]
    chromium = shutil.which("chromium")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        print(f"{options.nodes} nodes, {options.edges} edges; Chromium {browser.version} headless, no GPU; "
              f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
              f"CPU ms, median of {options.repeat}", flush=True)  # fmt: skip
        print(f"{'page':20}{'file MB':>9}{'open':>8}{'step 1':>8}{'step 2':>8}{'step 3':>8}")
        for name, text, address, steps in rows:
            path = Path(folder) / "page.html"
            path.write_text(text, encoding="utf-8")
            runs = [measure(browser, path, address, steps) for _ in range(options.repeat)]
            medians = [statistics.median(run[i] for run in runs) for i in range(1 + len(steps))]
            print(
                f"{name:20}{len(text.encode()) / 1e6:9.2f}" + "".join(f"{value:8.0f}" for value in medians), flush=True
            )
        browser.close()


if __name__ == "__main__":
    main()
