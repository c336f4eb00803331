"""Plots show the numbers they are given, work offline, and escape what they are given."""

from __future__ import annotations

import importlib

import pytest
from support import CHROMIUM
from support.graph_files import component_graph

from circuitgraph.components.evaluate import evaluate_components
from circuitgraph.discovery import discover
from circuitgraph.errors import RenderError
from circuitgraph.evaluation.evidence import evaluate
from circuitgraph.formats.eap import value_from_eap
from circuitgraph.graphs.pruning import prune
from circuitgraph.render import plots


@pytest.fixture(scope="module")
def evaluated(tiny_model, tiny_dictionaries, tiny_pairs):
    graph = prune(discover(tiny_pairs, tiny_model, tiny_dictionaries, edge_threshold=0.0), max_nodes=20)
    return graph, evaluate(graph, tiny_model, tiny_dictionaries, baselines=(), n_edges=9, n_dropped=0)


def test_the_curves_and_the_noise_are_those_of_the_evaluation(evaluated):
    _, evaluation = evaluated
    figure = plots.curve_plot(evaluation)
    assert len(figure.data) == 6 and figure.data[3].name == "complement_faithfulness, signed"
    assert list(figure.data[0].y) == [point.faithfulness for point in evaluation.curves[0].points]
    assert list(plots.noise_plot(evaluation).data[1].y) == [point.denoising for point in evaluation.noise]


def test_the_scatter_plots_hold_each_measured_node_and_edge(evaluated):
    graph, evaluation = evaluated
    points = plots.prediction_plot(graph, evaluation).data[1]
    assert dict(zip(points.text, points.y, strict=True)) == evaluation.effects
    assert list(points.x) == [graph.nodes[key]["attribution"] for key in evaluation.effects]
    edges = plots.prediction_plot(graph, evaluation, edges=True).data[1]
    assert list(edges.y) == list(evaluation.edge_effects.values()) and len(edges.x) == 9


def test_the_heat_map_and_histograms_hold_every_attribution(evaluated):
    graph, _ = evaluated
    total = sum(a for key, a in graph.nodes(data="attribution") if not key.startswith("metric"))
    heat = plots.heat_map(graph).data[0]
    assert sum(map(sum, heat.z)) == pytest.approx(total) and len(heat.y) == 3 and len(set(heat.x)) == 6
    features = [
        a
        for _, (a, k) in ((n, (d["attribution"], d["kind"])) for n, d in graph.nodes(data=True))
        if k in ("feature", "error")
    ]
    shown = [value for trace in plots.histograms(graph).data for value in trace.x]
    assert sorted(shown) == sorted(features) and shown


def test_files_are_offline_and_the_same_each_time(evaluated, tmp_path):
    figure = plots.curve_plot(evaluated[1])
    one, two = (plots.write_plot(figure, tmp_path / name) for name in ("one.html", "two.html"))
    assert one.read_bytes() == two.read_bytes() and 'src="http' not in one.read_text()
    assert '"complement_faithfulness, signed"' in plots.write_plot(figure, tmp_path / "one.json").read_text()
    with pytest.raises(RenderError, match="cannot tell the format of .*one.gif"):
        plots.write_plot(figure, tmp_path / "one.gif")
    with pytest.raises(RenderError, match="there is no folder|no such file"):
        plots.write_plot(figure, tmp_path / "no" / "one.html")


@pytest.mark.parametrize(("missing", "message"), [("plotly", "plots need Plotly"), ("kaleido", "needs Kaleido")])
def test_what_is_not_installed_is_named(evaluated, tmp_path, monkeypatch, missing, message):
    original = importlib.import_module

    def absent(name):
        if name.split(".")[0] == missing:
            raise ImportError(name)
        return original(name)

    figure = plots.curve_plot(evaluated[1])
    monkeypatch.setattr(plots.importlib, "import_module", absent)
    with pytest.raises(RenderError, match=message):
        plots.write_plot(figure, tmp_path / "one.png") if missing == "kaleido" else plots.curve_plot(evaluated[1])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on this machine")
def test_with_kaleido_a_plot_is_a_still_picture(evaluated, tmp_path):
    figure = plots.curve_plot(evaluated[1])
    png, svg = (plots.write_plot(figure, tmp_path / f"plot.{kind}").read_bytes() for kind in ("png", "svg"))
    assert png.startswith(b"\x89PNG") and len(png) > 5000
    assert svg.startswith(b"<svg") and b"Circuits of growing size" in svg


def test_the_edge_curves_are_those_of_the_evaluation(tiny_model, tiny_pairs):
    graph = value_from_eap(component_graph(tiny_model))
    evaluation = evaluate_components(graph, tiny_model, tiny_pairs, baselines=["corrupted"])
    figure = plots.component_plots(evaluation)["edge_curves"]
    assert [trace.name for trace in figure.data] == [f"faithfulness, {curve.order}" for curve in evaluation.curves]
    assert list(figure.data[1].y) == [point.faithfulness for point in evaluation.curves[1].points]
    assert plots.component_plots(evaluate_components(graph, tiny_model, tiny_pairs, curves=False)) == {}
