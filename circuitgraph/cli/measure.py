"""The commands that run the model to check a graph or to see what an intervention does: evaluate, measure, intervene.

Like the rest of the command line they parse, call one function, write, and say where.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from circuitgraph.cli.options import (
    common_options,
    defaults_of,
    device_option,
    load_all,
    model_options,
    option,
    progress_bar,
)

_EVALUATE = defaults_of("evaluation/evaluate.py", "evaluate_circuit")
_COMPONENTS = defaults_of("components/evaluate.py", "evaluate_components")
_MEASURE = defaults_of("evaluation/evaluate.py", "measure_graph")
_INTERVENE = defaults_of("interventions/report.py", "report_interventions")


_FREEZE = click.option(
    "--freeze",
    multiple=True,
    help="What keeps its clean value when edges are measured: norms, attention; may be repeated.",
)


def _graph_and_model(command: Any) -> Any:
    """GRAPH [PROMPTS] --model --dictionaries and what chooses among the prompts."""
    for decorate in (
        click.option(
            "--seed", default=0, show_default=True, help="Seed of draws, resampling, bootstrap, random order."
        ),
        click.option("--examples", type=click.IntRange(min=1), help="Use only this many pairs, drawn at random."),
        click.option("--length", type=int, help="Use only pairs of this many tokens."),
        model_options,
        click.argument("prompts", required=False, type=click.Path(path_type=Path)),
        click.argument("graph", type=click.Path(path_type=Path)),
    ):
        command = decorate(command)
    return command


@click.command()
@_graph_and_model
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Report to write (.json).")
@click.option(
    "--plots", type=click.Path(path_type=Path), help="Also draw the curves and scatter plots into this folder."
)
@option(_EVALUATE, "n_patched", "Strongest nodes to patch one by one.")
@option(_EVALUATE, "n_edges", "Strongest connected pairs of nodes to measure.")
@_FREEZE
@option(_EVALUATE, "n_dropped", "Weakest nodes to drop one by one.")
@click.option(
    "--curves/--no-curves", default=_EVALUATE["curves"], show_default=True, help="Circuits of growing size; noising."
)
@click.option(
    "--baselines",
    multiple=True,
    help="Further baselines: corrupted, zero, mean, resample.  [default: all that the pairs allow]",
)
@option(_EVALUATE, "top_k", "How many of the strongest to compare, estimated against measured.")
@click.option("--metric", help="Another metric than the graph's; logit_difference for a graph of heads and MLPs.")
@option(_COMPONENTS, "selection", "How a graph of heads and MLPs chooses its edges: top-n or greedy.")
@device_option
@common_options
def evaluate(
    graph: Path,
    prompts: Path | None,
    model: str,
    dictionaries: tuple[str, ...],
    length: int | None,
    examples: int | None,
    seed: int,
    output: Path,
    plots: Path | None,
    baselines: tuple[str, ...],
    metric: str | None,
    selection: str,
    curves: bool,
    device: str | None,
    quiet: bool,
    debug: bool,
    **settings: Any,
) -> None:
    """Measure the circuit GRAPH by running the model, on the prompts it was built from or on the pairs in PROMPTS.

    A graph of heads and MLPs (EAP-IG, MIB) is measured by its edges and needs PROMPTS; --dictionaries, --n-... and --top-k
    are for graphs of features.
    """
    import json

    from circuitgraph.components.evaluate import component_evaluation_text, evaluate_components
    from circuitgraph.errors import PromptError
    from circuitgraph.evaluation.evaluate import evaluate_circuit
    from circuitgraph.evaluation.report import evaluation_text
    from circuitgraph.files import check_writable, write_atomically
    from circuitgraph.formats import load
    from circuitgraph.render.plots import component_plots, evaluation_plots, write_plots

    check_writable(output)
    circuit = load(graph)
    components = "components" in circuit.graph
    if components and prompts is None:
        raise PromptError(f"{graph} is a graph of heads and MLPs, which names no prompts; give PROMPTS behind it")
    with progress_bar(quiet) as progress:
        sources = () if components else dictionaries
        loaded, found, pairs = load_all(prompts, model, sources, length, examples, seed, device, progress)
        common: dict[str, Any] = {"baselines": baselines or None, "curves": curves, "seed": seed, "progress": progress}
        result: Any
        if components:
            named = metric or _COMPONENTS["metric"]
            result = evaluate_components(circuit, loaded, pairs, metric=named, selection=selection, **common)
            text, pictures = component_evaluation_text(result), lambda: component_plots(result)
        else:
            result = evaluate_circuit(circuit, loaded, found, pairs=pairs, metric=metric, **common, **settings)
            text, pictures = evaluation_text(result), lambda: evaluation_plots(circuit, result)
        write_atomically(output, json.dumps(result.record(), indent=2, allow_nan=False) + "\n")
        drawn = [] if plots is None else write_plots(pictures(), plots)
    click.echo(text, nl=False)
    for path in (output, *drawn):
        click.echo(path)


@click.command()
@_graph_and_model
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="File to write (.json, .html, ...)."
)
@option(_MEASURE, "n_patched", "Strongest nodes to patch one by one.")
@option(_MEASURE, "n_edges", "Strongest connected pairs of nodes to measure.")
@_FREEZE
@device_option
@common_options
def measure(
    graph: Path,
    prompts: Path | None,
    model: str,
    dictionaries: tuple[str, ...],
    length: int | None,
    examples: int | None,
    seed: int,
    output: Path,
    device: str | None,
    quiet: bool,
    debug: bool,
    **settings: Any,
) -> None:
    """Write GRAPH again with the measured effect of its nodes and edges, and its faithfulness, as evidence."""
    from circuitgraph.evaluation.evaluate import measure_graph
    from circuitgraph.formats import check_save, load, save

    check_save(output)
    circuit = load(graph)
    with progress_bar(quiet) as progress:
        loaded, found, pairs = load_all(prompts, model, dictionaries, length, examples, seed, device, progress)
        save(measure_graph(circuit, loaded, found, pairs=pairs, seed=seed, progress=progress, **settings), output)
    click.echo(output)


@click.command()
@click.argument("prompts", type=click.Path(path_type=Path))
@model_options
@click.option(
    "--set",
    "interventions",
    required=True,
    multiple=True,
    help="What to change, for instance 'mlp_out.3/f17@5=0'; may be repeated, all together.",
)
@click.option(
    "--freeze",
    multiple=True,
    help="What keeps its value: attention, norms, final_norm, mlp, or a site; may be repeated.",
)
@option(_INTERVENE, "metric", "logit_difference, probability_difference, logit or log_probability.")
@option(_INTERVENE, "top_k", "Likeliest next tokens to list.")
@click.option("--length", type=int, help="Use only pairs of this many tokens.")
@click.option("--examples", type=click.IntRange(min=1), help="Use only this many pairs, drawn at random.")
@click.option("--seed", default=0, show_default=True, help="Seed of draws and of resampling.")
@device_option
@common_options
def intervene(
    prompts: Path,
    model: str,
    dictionaries: tuple[str, ...],
    interventions: tuple[str, ...],
    length: int | None,
    examples: int | None,
    seed: int,
    device: str | None,
    quiet: bool,
    debug: bool,
    **settings: Any,
) -> None:
    """Run the clean prompts in PROMPTS with and without interventions: the metric, and the likeliest next tokens."""
    from circuitgraph.interventions.language import parse_intervention
    from circuitgraph.interventions.report import report_interventions

    chosen = [parse_intervention(one) for one in interventions]
    with progress_bar(quiet) as progress:
        loaded, found, pairs = load_all(prompts, model, dictionaries, length, examples, seed, device, progress)
        text = report_interventions(loaded, found, pairs, chosen, seed=seed, **settings)
    click.echo(text, nl=False)
