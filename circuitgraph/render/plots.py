"""Plots of what was measured: curves, scatter plots, heat maps and histograms, with Plotly.

Nothing else in the package needs Plotly, or Kaleido for still pictures; where they are missing, one line says so.
"""

from __future__ import annotations

import html
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import networkx as nx

from circuitgraph.components.evaluate import ComponentEvaluation
from circuitgraph.errors import CircuitGraphError, RenderError
from circuitgraph.evaluation.report import Evaluation, Evidence
from circuitgraph.files import write_atomically

BLUE, RED, GREY = "#2166ac", "#b2182b", "#777777"
STILL = (".png", ".svg", ".pdf")


def curve_plot(evaluation: Evidence, what: str = "nodes") -> Any:
    """Faithfulness (solid) and complement_faithfulness (dashed) over the size of circuits, one colour per order.

    Args:
        evaluation: What was measured; circuits of edges between components have no complements.
        what: What circuits are made of, "nodes" or "edges".
    """
    traces: list[dict[str, Any]] = []
    for curve, color in zip(evaluation.curves, (BLUE, RED, GREY), strict=False):
        for part, dash in (("faithfulness", "solid"), ("complement_faithfulness", "dash")):
            shares = [getattr(point, part) for point in curve.points]
            if None in shares:
                continue
            traces.append(
                {
                    "type": "scatter",
                    "x": [point.n_chosen for point in curve.points],
                    "y": shares,
                    "name": f"{part}, {curve.order}",
                    "line": {"dash": dash, "color": color},
                }
            )
    return _figure(traces, "Circuits of growing size", what, "share of m(model) - m(empty)", xaxis={"type": "log"})


def noise_plot(evaluation: Evaluation) -> Any:
    """The metric between the corrupted and the clean value of the circuit's nodes, noising and denoising."""
    traces = [
        {
            "type": "scatter",
            "x": [point.share for point in evaluation.noise],
            "y": [getattr(point, part) for point in evaluation.noise],
            "name": part,
            "line": {"color": color},
        }
        for part, color in (("noising", RED), ("denoising", BLUE))
    ]
    return _figure(traces, "From corrupted to clean", "share of clean", "metric")


def prediction_plot(graph: nx.MultiDiGraph, evaluation: Evaluation, *, edges: bool = False) -> Any:
    """Estimated against measured: a point per measured node (or pair of connected nodes), and the diagonal."""
    if edges:
        local: dict[tuple[str, str], float] = {}
        for source, target, weight in graph.edges(data="local_weight"):
            local[source, target] = local.get((source, target), 0.0) + weight
        points = [(f"{u} -> {v}", local[u, v], effect) for (u, v), effect in evaluation.edge_effects.items()]
    else:
        points = [(key, graph.nodes[key]["attribution"], effect) for key, effect in evaluation.effects.items()]
    numbers = [value for _, *pair in points for value in pair] or [0.0]
    ends = [min(numbers), max(numbers)]
    traces = [
        {
            "type": "scatter",
            "x": ends,
            "y": ends,
            "mode": "lines",
            "line": {"color": GREY, "dash": "dot"},
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "x": [estimate for _, estimate, _ in points],
            "y": [effect for *_, effect in points],
            "text": [html.escape(name) for name, *_ in points],
            "mode": "markers",
            "marker": {"color": BLUE},
        },
    ]
    what = "local weight" if edges else "attribution"
    return _figure(
        traces, f"{what} against measured effect", f"{what} (estimated)", "effect (measured)", showlegend=False
    )


def heat_map(graph: nx.MultiDiGraph) -> Any:
    """Attribution summed over the nodes of each layer (embeddings below) and token position."""
    tokens = graph.graph["tokens"]["clean"]
    total = [[0.0] * len(tokens) for _ in range(graph.graph["n_layers"] + 1)]
    for _, data in graph.nodes(data=True):
        if data["kind"] != "metric":
            total[0 if data["layer"] is None else data["layer"] + 1][data["pos"]] += data["attribution"]
    largest = max((abs(value) for row in total for value in row), default=0.0) or 1.0
    trace = {
        "type": "heatmap",
        "z": total,
        "x": [f"{pos} {html.escape(token)}" for pos, token in enumerate(tokens)],
        "y": ["embeddings", *(f"layer {layer}" for layer in range(graph.graph["n_layers"]))],
        "colorscale": [[0, RED], [0.5, "#f7f7f7"], [1, BLUE]],
        "zmin": -largest,
        "zmax": largest,
    }
    return _figure([trace], "Attribution by layer and token", "", "")


def histograms(graph: nx.MultiDiGraph) -> Any:
    """The attributions of the features and errors of each site, as one histogram per site."""
    by_site: dict[str, list[float]] = {}
    for _, data in graph.nodes(data=True):
        if data["kind"] in ("feature", "error"):
            by_site.setdefault(data["site"], []).append(data["attribution"])
    traces = [
        {"type": "histogram", "x": values, "name": site, "opacity": 0.6} for site, values in sorted(by_site.items())
    ]
    return _figure(traces, "Attributions by site", "attribution", "nodes", barmode="overlay")


def evaluation_plots(graph: nx.MultiDiGraph, evaluation: Evaluation) -> dict[str, Any]:
    """Every plot that an evaluated graph allows, by file name."""
    plots = {"nodes": prediction_plot(graph, evaluation), "heat_map": heat_map(graph), "histograms": histograms(graph)}
    if evaluation.edge_effects:
        plots["edges"] = prediction_plot(graph, evaluation, edges=True)
    if evaluation.curves:
        plots["curves"] = curve_plot(evaluation)
    if evaluation.noise:
        plots["noise"] = noise_plot(evaluation)
    return plots


def component_plots(evaluation: ComponentEvaluation) -> dict[str, Any]:
    """Every plot that an evaluated graph of components allows, by file name."""
    return {"edge_curves": curve_plot(evaluation, "edges")} if evaluation.curves else {}


def write_plot(figure: Any, path: str | Path) -> Path:
    """The path of the written figure: .html (one file, offline), .json, or with Kaleido .png, .svg, .pdf."""
    path = Path(path)
    if path.suffix == ".html":
        content: str | bytes = figure.to_html(include_plotlyjs=True, div_id="plot")
    elif path.suffix == ".json":
        content = figure.to_json()
    elif path.suffix in STILL:
        try:
            importlib.import_module("kaleido")
            content = figure.to_image(format=path.suffix[1:])
        except Exception as error:  # Kaleido drives a browser and raises whatever that raises
            raise RenderError(
                f"cannot write {path}: a still picture needs Kaleido and a Chromium ({type(error).__name__}); pip"
                " install kaleido, or write .html"
            ) from None
    else:
        raise RenderError(f"cannot tell the format of {str(path)!r}; expected .html, .json, {', '.join(STILL)}")
    try:
        write_atomically(path, content)
    except CircuitGraphError as error:
        raise RenderError(str(error)) from error
    return path


def write_plots(plots: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """The HTML files written, one per plot, in a folder that is made if it is not there."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RenderError(f"cannot create folder {folder}: {error.strerror}; choose another --plots") from None
    return [write_plot(figure, folder / f"{name}.html") for name, figure in plots.items()]


def _figure(traces: Sequence[dict[str, Any]], title: str, x: str, y: str, **layout: Any) -> Any:
    try:
        graph_objects = importlib.import_module("plotly.graph_objects")
    except ImportError:
        raise RenderError("plots need Plotly, which is not installed; pip install plotly") from None
    axes = {"xaxis": {"title": {"text": x}} | layout.pop("xaxis", {}), "yaxis": {"title": {"text": y}}}
    return graph_objects.Figure(data=list(traces), layout={"title": {"text": title}, **axes, **layout})
