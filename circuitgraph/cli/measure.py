"""The commands that run the model to check a graph or to see what an intervention does: evaluate, measure, intervene.

Like the rest of the command line they parse, call one function, write, and say where.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from circuitgraph.cli.options import (
    common_options,
    device_option,
    load_all,
    loading_options,
    model_options,
    options_of,
    progress_bar,
)
from circuitgraph.settings import ComponentEvaluating, Evaluating, Intervening, Measuring, resolve

_GRAPH = click.argument("graph", type=click.Path(path_type=Path))
_PROMPTS = click.argument("prompts", required=False, type=click.Path(path_type=Path))
_FREEZE = click.option(
    "--freeze",
    multiple=True,
    help="What keeps its clean value when edges are measured: norms, attention; may be repeated.",
)


@click.command()
@_GRAPH
@_PROMPTS
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Report to write (.json).")
@click.option(
    "--plots", type=click.Path(path_type=Path), help="Also draw the curves and scatter plots into this folder."
)
@model_options
@loading_options
@device_option
@click.option("--metric", help="Another metric than the graph's; logit_difference for a graph of heads and MLPs.")
@click.option(
    "--baselines",
    multiple=True,
    help="Further baselines: corrupted, zero, mean, resample; may be repeated.  [default: all that the prompts allow]",
)
@_FREEZE
@options_of(ComponentEvaluating, Evaluating, skip=("metric",))
@common_options
def evaluate(
    graph: Path,
    prompts: Path | None,
    output: Path,
    plots: Path | None,
    model: str,
    dictionaries: tuple[str, ...],
    dtype: str,
    lazy: bool,
    device: str | None,
    metric: str | None,
    baselines: tuple[str, ...],
    freeze: tuple[str, ...],
    quiet: bool,
    debug: bool,
    **settings: Any,
) -> None:
    """Measure the circuit GRAPH by running the model, on the prompts it was built from or on the pairs in PROMPTS.

    A graph of heads and MLPs (EAP-IG, MIB) is measured by its edges and needs PROMPTS; --dictionaries, --freeze,
    --n-... and --top-k are for graphs of features, --selection for those of heads and MLPs.
    """
    import json

    selection = settings.pop("selection")
    chosen = resolve(Evaluating, None, settings)  # before anything heavy is imported
    shared = {name: settings[name] for name in ("length", "examples", "seed", "curves")}
    of_components = resolve(ComponentEvaluating, None, {**shared, "selection": selection})

    from circuitgraph.components.evaluate import component_evaluation_text, evaluate_components
    from circuitgraph.errors import PromptError
    from circuitgraph.evaluation.evidence import evaluate as evaluate_features
    from circuitgraph.evaluation.report import evaluation_text
    from circuitgraph.files import check_folder, check_writable, write_atomically
    from circuitgraph.formats import load
    from circuitgraph.render.plots import component_plots, evaluation_plots, write_plots

    check_writable(output)
    if plots is not None:
        check_folder(plots, "--plots")
    circuit = load(graph)
    components = "components" in circuit.graph
    if components and prompts is None:
        raise PromptError(f"{graph} is a graph of heads and MLPs, which names no prompts; give PROMPTS behind it")
    sources = () if components else dictionaries
    with progress_bar(quiet) as progress:
        loaded, found, pairs = load_all(prompts, model, sources, progress, device=device, dtype=dtype, lazy=lazy)
        common: dict[str, Any] = {"baselines": baselines or None, "progress": progress}
        result: Any
        if components:
            common |= {"settings": of_components} | ({} if metric is None else {"metric": metric})
            result = evaluate_components(circuit, loaded, pairs, **common)
            text, pictures = component_evaluation_text(result), lambda: component_plots(result)
        else:
            common |= {"metric": metric, "freeze": freeze, "settings": chosen}
            result = evaluate_features(circuit, loaded, found, prompts=pairs, **common)
            text, pictures = evaluation_text(result), lambda: evaluation_plots(circuit, result)
        write_atomically(output, json.dumps(result.record(), indent=2, allow_nan=False) + "\n")
        drawn = [] if plots is None else write_plots(pictures(), plots)
    click.echo(text, nl=False)
    for path in (output, *drawn):
        click.echo(path)


@click.command()
@_GRAPH
@_PROMPTS
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="File to write (.json, .html, ...)."
)
@model_options
@loading_options
@device_option
@_FREEZE
@options_of(Measuring)
@common_options
def measure(
    graph: Path,
    prompts: Path | None,
    output: Path,
    model: str,
    dictionaries: tuple[str, ...],
    dtype: str,
    lazy: bool,
    device: str | None,
    freeze: tuple[str, ...],
    quiet: bool,
    debug: bool,
    **settings: Any,
) -> None:
    """Write GRAPH again with the measured effect of its nodes and edges, and its faithfulness, as evidence."""
    chosen = resolve(Measuring, None, settings)  # before anything heavy is imported

    from circuitgraph.evaluation.evidence import measure as with_evidence
    from circuitgraph.formats import check_save, load, save

    check_save(output)
    circuit = load(graph)
    how: dict[str, Any] = {"dtype": dtype, "lazy": lazy}
    with progress_bar(quiet) as progress:
        loaded, found, pairs = load_all(prompts, model, dictionaries, progress, device=device, **how)
        measured = with_evidence(
            circuit, loaded, found, prompts=pairs, freeze=freeze, settings=chosen, progress=progress
        )
        save(measured, output)
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
@loading_options
@device_option
@options_of(Intervening)
@common_options
def intervene(
    prompts: Path,
    model: str,
    dictionaries: tuple[str, ...],
    interventions: tuple[str, ...],
    freeze: tuple[str, ...],
    dtype: str,
    lazy: bool,
    device: str | None,
    quiet: bool,
    debug: bool,
    **settings: Any,
) -> None:
    """Run the clean prompts in PROMPTS with and without interventions: the metric, and the likeliest next tokens."""
    chosen = resolve(Intervening, None, settings)  # before anything heavy is imported

    from circuitgraph.interventions.language import interventions_of
    from circuitgraph.interventions.report import report_interventions

    given = interventions_of(interventions)
    with progress_bar(quiet) as progress:
        loaded, found, pairs = load_all(prompts, model, dictionaries, progress, device=device, dtype=dtype, lazy=lazy)
        text = report_interventions(pairs, loaded, found, given, freeze=freeze, settings=chosen)
    click.echo(text, nl=False)
