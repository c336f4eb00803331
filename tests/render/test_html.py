"""What the page promises: it carries the graph whole, runs nothing but its own code, needs no network, and is small."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from click.testing import CliRunner
from support.graphs import HOSTILE, example_graph, with_targets

from circuitgraph.cli.main import main
from circuitgraph.errors import RenderError
from circuitgraph.formats import save
from circuitgraph.render import html as page_module
from circuitgraph.render import labels, render_html, render_svg, show
from circuitgraph.render.columns import floats, integers
from circuitgraph.render.looks import LOOKS
from circuitgraph.render.notebook import show_in_ipython
from circuitgraph.render.payload import payload

VIEWER = Path(page_module.__file__).with_name("viewer")
CODE_LIMIT = 90_000  # bytes of script and style in a page


def data_of(page: str) -> dict:
    encoding, text = re.search(r'id="data" data-encoding="(\w+)">(.*?)</script>', page, re.S).groups()
    return json.loads(gzip.decompress(base64.b64decode(text)) if encoding == "gzip" else text)


def numbers(column: dict) -> list[float]:
    return np.frombuffer(base64.b64decode(column["data"]), dtype=f"<{column['type']}").tolist()


@pytest.mark.parametrize(
    ("values", "kind"),
    [([0, 255], "u1"), ([256], "u2"), ([65_535], "u2"), ([65_536], "u4"), ([], "u1")],
)
def test_integers_take_the_narrowest_type(values: list[int], kind: str) -> None:
    column = integers(values)
    assert column["type"] == kind and numbers(column) == values


def test_floats_lose_nothing_and_take_32_bits_where_that_is_enough() -> None:
    single = [0.5, -1.25, float(np.float32(0.1)), 2.0**100]
    assert floats(single)["type"] == "f4" and numbers(floats(single)) == single
    double = [0.1, 1e-300, 1e300]
    assert floats(double)["type"] == "f8" and numbers(floats(double)) == double
    absent = numbers(floats([1.0, None]))
    assert absent[0] == 1.0 and np.isnan(absent[1]) and floats([1.0, None])["type"] == "f4"


def test_the_page_carries_every_number_and_attribute() -> None:
    graph = example_graph()
    graph.nodes["embed@3"].update(note="mine", later={"a": 1})
    data = data_of(render_html(graph))
    nodes, edges = data["nodes"], data["edges"]
    names, kinds = nodes["id"], [kind for kind, *_ in data["kinds"]]
    assert sorted(names) == sorted(graph) and len(names) == 120
    assert dict(zip(names, numbers(nodes["attribution"]), strict=True)) == dict(graph.nodes(data="attribution"))
    assert nodes["more"][str(names.index("embed@3"))] == {"note": "mine", "later": {"a": 1}}
    ends = [numbers(edges[name]) for name in ("source", "target", "kind", "weight", "local_weight", "n_heads")]
    heads = iter(numbers(edges["heads"]))
    for source, target, kind, weight, local, n_heads in zip(*ends, strict=True):
        expected = graph.edges[names[source], names[target], kinds[kind]]
        assert (weight, local) == (expected["weight"], expected["local_weight"])
        assert [next(heads) for _ in range(n_heads)] == expected.get("heads", [])
    sizes = [abs(weight) for weight in numbers(edges["weight"])]
    assert len(sizes) == graph.number_of_edges() and sizes == sorted(sizes, reverse=True)
    assert data["graph"] == json.loads(json.dumps(graph.graph))


def test_a_large_graph_leaves_out_its_weakest_parts_and_says_so() -> None:
    graph = example_graph()
    data = payload(graph, max_nodes=50, max_edges=40)
    assert len(data["nodes"]["id"]) == 50 and "metric@14" in data["nodes"]["id"]
    kept, left = data["nodes"]["id"], set(graph) - set(data["nodes"]["id"])
    size = dict(graph.nodes(data="attribution"))
    assert min(abs(size[n]) for n in kept if n != "metric@14") >= max(abs(size[n]) for n in left) > 0
    assert len(numbers(data["edges"]["weight"])) == 40
    assert re.fullmatch(r"70 of 120 nodes are not in this page: .*", data["left_out"][0])
    assert re.fullmatch(r"\d+ of \d+ edges are not in this page: it holds the 40 with .*", data["left_out"][1])
    assert payload(graph)["left_out"] == []


def test_a_large_graph_keeps_its_targets() -> None:
    graph = with_targets(example_graph())
    for node in graph:
        if graph.nodes[node]["kind"] in ("logit", "probe"):
            graph.nodes[node]["attribution"] = 1e-9
    names = payload(graph, max_nodes=20)["nodes"]["id"]
    assert len(names) == 20 and {"logit/t7@14", "logit/t9@14", "resid_post.3/p2@14", "metric@14"} <= set(names)


def test_a_comparison_carries_both_graphs_and_where_each_part_is() -> None:
    a, b = example_graph(), example_graph(seed=1)
    data = payload(a, b, names=("first", "second"))
    names, kinds = data["nodes"]["id"], [kind for kind, *_ in data["kinds"]]
    side = dict(zip(names, numbers(data["nodes"]["in"]), strict=True))
    assert {n for n, where in side.items() if where == 0} == set(a) & set(b) != set()
    assert {n for n, where in side.items() if where == 1} == set(a) - set(b) != set()
    assert {n for n, where in side.items() if where == 2} == set(b) - set(a) != set()
    columns = [numbers(data["edges"][name]) for name in ("source", "target", "kind", "in", "weight", "other_weight")]
    for source, target, kind, where, weight, other in zip(*columns, strict=True):
        edge = (names[source], names[target], kinds[kind])
        in_a, in_b = a.edges.get(edge), b.edges.get(edge)
        assert where == (0 if in_a and in_b else 1 if in_a else 2)
        assert weight == (in_a or in_b)["weight"] and other == (in_b or {"weight": 0.0})["weight"]
    assert data["compare"]["names"] == ["first", "second"]


def test_links_come_from_the_provenance_and_the_caller() -> None:
    graph = example_graph(n_nodes=5)
    graph.graph["provenance"]["neuronpedia"] = {"model": "m", "sources": {"z.0": "0-att", "z.1": "1-att"}}
    assert payload(graph, links={"z.1": "own/1"})["links"] == {"z.0": "m/0-att", "z.1": "own/1"}


def test_hostile_strings_travel_as_data_only() -> None:
    page = render_html(example_graph(n_pos=len(HOSTILE), hostile=True))
    assert page.count("<script") == 2 and page.count("</script") == 2
    assert page.count("<!--") == 0 and "PWNED=1>" not in page
    assert data_of(page)["graph"]["tokens"]["clean"][: len(HOSTILE) - 1].count(HOSTILE[0]) == 1


@pytest.mark.parametrize("token", HOSTILE)
def test_every_hostile_token_returns_from_the_page_as_it_went_in(token: str) -> None:
    graph = example_graph(n_nodes=20)
    graph.graph["tokens"]["clean"][4] = token
    graph.graph["provenance"] = {token: token}
    graph.graph["reports"] = [token]
    graph.nodes["embed@3"]["label"] = token
    page = render_html(graph)
    data = data_of(page)
    assert data["graph"]["tokens"]["clean"][4] == token and data["graph"]["reports"] == [token]
    assert {"label": token} in data["nodes"]["more"].values()
    raw = re.search(r'data-encoding="json">(.*?)</script>', page, re.S)[1]
    assert not re.search(r"[<>&\u2028\u2029]", raw) and raw.isascii()


def test_a_large_page_is_compressed_and_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = example_graph(hostile=True)
    plain = render_html(graph)
    monkeypatch.setattr(page_module, "COMPRESS_ABOVE", 1000)
    packed = render_html(graph)
    assert 'data-encoding="gzip"' in packed and len(packed) < len(plain)
    assert data_of(packed) == data_of(plain)
    assert packed == render_html(graph)


def test_the_policy_allows_the_pages_own_script_and_style_and_nothing_else() -> None:
    page = render_html(example_graph())
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy and "base-uri 'none'; form-action 'none'" in policy
    for tag in ("style", "script"):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_the_page_needs_no_other_file_and_no_network() -> None:
    page = render_html(example_graph())
    markup = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S)
    assert re.findall(r"\b(?:src|href)=\S*", markup) == ['href="data:,">']
    known = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml", "http://www.w3.org/1999/xlink"}
    known |= {"http://www.w3.org/XML/1998/namespace", "http://www.w3.org/2000/xmlns/"}
    assert set(re.findall(r"https?://[^\s\"'`<$]*", page)) <= known | {"https://www.neuronpedia.org/"}
    sources = "".join(path.read_text(encoding="utf-8") for path in sorted((VIEWER / "src").glob("*.js")))
    bundle = (VIEWER / "bundle" / "viewer.js").read_text(encoding="utf-8")
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "fetch(",
        "</script",
        "<!--",
    ):
        assert word not in sources and word not in bundle, word


def test_the_code_of_a_page_stays_small() -> None:
    page = render_html(nx.MultiDiGraph())
    code = [re.search(rf"<{tag}>(.*?)</{tag}>", page, re.S)[1].encode() for tag in ("script", "style")]
    assert 50_000 < len(code[0]) + len(code[1]) <= CODE_LIMIT


def test_the_bundle_was_built_from_these_sources() -> None:
    names = [f"src/{path.name}" for path in (VIEWER / "src").iterdir()]
    digest = hashlib.sha256()
    for name in sorted([*names, "build.mjs", "package-lock.json", "package.json"]):
        digest.update(f"{name}\n".encode())
        digest.update((VIEWER / name).read_bytes())
    recorded = (VIEWER / "bundle" / "sources.sha256").read_text().strip()
    assert digest.hexdigest() == recorded, (
        "run `npm ci && npm run build` in circuitgraph/render/viewer and commit bundle/"
    )


@pytest.mark.skipif(
    shutil.which("node") is None or not (VIEWER / "node_modules" / "esbuild").exists(),
    reason="needs node, and `npm ci` in circuitgraph/render/viewer, which needs the network",
)
def test_a_rebuild_gives_the_committed_bundle(tmp_path: Path) -> None:
    subprocess.run(["node", "build.mjs", str(tmp_path)], cwd=VIEWER, check=True, capture_output=True)
    for name in ("viewer.js", "viewer.css", "sources.sha256"):
        assert (tmp_path / name).read_bytes() == (VIEWER / "bundle" / name).read_bytes(), name


def test_nothing_of_other_packages_is_inside() -> None:
    assert "dependencies" not in json.loads((VIEWER / "package.json").read_text(encoding="utf-8"))
    imported = [
        line for path in (VIEWER / "src").glob("*.js") for line in re.findall(r'from "(.*?)"', path.read_text())
    ]
    assert len(imported) > 50 and all(name.startswith("./") for name in imported)


def test_sources_of_the_viewer_are_small() -> None:
    for path in (VIEWER / "src").iterdir():
        assert path.read_text(encoding="utf-8").count("\n") <= 400, path.name


def test_the_page_and_the_pictures_draw_by_the_same_numbers() -> None:
    data = payload(example_graph())
    assert data["looks"] == LOOKS.record() and data["version"] == 3
    sources = "".join(path.read_text(encoding="utf-8") for path in (VIEWER / "src").glob("*.js"))

    def used(looks: dict, where: str = "") -> None:
        for name, value in looks.items():
            if isinstance(value, dict):
                used(value, f"{name}.")
            assert re.search(rf"\.{name}\b", sources), f"the viewer does not read looks.{where}{name}"

    used(data["looks"])


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_provenance_that_is_no_json_is_a_render_error(value: object) -> None:
    graph = example_graph(n_nodes=5)
    graph.graph["provenance"] = {"value": value}
    with pytest.raises(RenderError, match="cannot be written as JSON"):
        render_html(graph)


def test_a_notebook_gets_a_sandboxed_frame_and_a_picture() -> None:
    graph = example_graph(hostile=True)
    view = show(graph, height=500)
    bundle = view._repr_mimebundle_()
    frame = re.fullmatch(r'<iframe ([^<]*) srcdoc="([^"]*)"></iframe>', bundle["text/html"], re.S)
    assert 'sandbox="allow-scripts allow-downloads allow-popups"' in frame[1] and "height:500px" in frame[1]
    assert html.unescape(frame[2]) == render_html(graph)
    assert bundle["image/svg+xml"] == render_svg(graph)
    assert bundle["text/plain"] == "circuit graph: 120 nodes, 408 edges"
    assert "not in this page" in show(graph, max_edges=10).page and show(graph).page == render_html(graph)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch):
    """An IPython shell, as a notebook's kernel has one."""
    import IPython
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    yield shell
    InteractiveShell.clear_instance()
    assert IPython.get_ipython() is None


def test_a_plain_graph_shows_itself_in_ipython_and_no_other_does(shell) -> None:
    graph = example_graph()
    before, _ = shell.display_formatter.format(graph)
    assert "text/html" not in before
    show_in_ipython()
    bundle, _ = shell.display_formatter.format(graph)
    assert bundle["text/html"] == show(graph)._repr_html_() and bundle["image/svg+xml"] == render_svg(graph)
    assert bundle["text/plain"] == "circuit graph: 120 nodes, 408 edges"
    foreign, _ = shell.display_formatter.format(nx.MultiDiGraph(name="roads"))
    assert "text/html" not in foreign and "MultiDiGraph" in foreign["text/plain"]
    graph.nodes["embed@3"]["attribution"] = float("nan")  # what cannot be drawn keeps its text
    assert "text/html" not in shell.display_formatter.format(graph)[0]


def test_outside_ipython_nothing_is_registered_or_imported() -> None:
    program = "import sys; from circuitgraph.render.notebook import show_in_ipython; show_in_ipython(); assert 'IPython' not in sys.modules"
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_view_is_named_in_one_line() -> None:
    assert repr(show(example_graph())) == "circuit graph: 120 nodes, 408 edges"


def test_node_kinds_are_named_and_shaped_by_the_labels() -> None:
    graph = example_graph()
    data = payload(graph)
    names, forms = data["nodes"]["id"], numbers(data["nodes"]["form"])
    for name, form in zip(names, forms, strict=True):
        words, place = data["forms"][form]
        assert words == labels.kind_name(graph.nodes[name])
        assert data["legend"][place][1] == labels.shape_path(labels.shape(graph.nodes[name]), 10)


def test_the_command_line_compares_and_links(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 1)):
        save(example_graph(seed=seed), tmp_path / f"{name}.json")
    page = tmp_path / "page.html"
    options = ["--compare", tmp_path / "two.json", "--neuronpedia", "z.2=m/2-att", "-o", page]
    done = CliRunner().invoke(main, ["render", str(tmp_path / "one.json"), *map(str, options)])
    assert done.output == f"{page}\n"
    data = data_of(page.read_text(encoding="utf-8"))
    assert data["compare"]["names"] == ["one", "two"] and data["links"] == {"z.2": "m/2-att"}
    assert set(data["nodes"]["id"]) == {*example_graph(), *example_graph(seed=1)}
    done = CliRunner().invoke(main, ["render", str(tmp_path / "one.json"), "--neuronpedia", "z.2", "-o", str(page)])
    assert done.exit_code == 2 and "'z.2' is not SITE=ID" in done.output
