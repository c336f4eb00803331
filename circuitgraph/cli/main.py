"""The command line: parse, call one function, write, say where.

Result paths and figures go to stdout, everything else to stderr; an error is one line and exit code 1. Only click is
imported until a command runs, so that --help is quick. Options, defaults and help texts come from `settings`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from circuitgraph.cli.files import convert, examples
from circuitgraph.cli.measure import evaluate, intervene, measure
from circuitgraph.cli.options import (
    common_options,
    device_option,
    load_all,
    loading_options,
    model_options,
    options_of,
    progress_bar,
    report,
    required_model_options,
)
from circuitgraph.errors import CircuitGraphError
from circuitgraph.presets import PRESETS, find_preset
from circuitgraph.settings import (
    Compute,
    Demo,
    DictionaryChecks,
    Discovery,
    Pruning,
    refuse_metric_beside_targets,
    resolve,
)


class _Lines(click.Group):
    """A group whose commands print an error of ours as one line and exit with 1, or raise it with --debug."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CircuitGraphError as error:
            if any(arguments.get("debug") for arguments in ctx.obj or ()):
                raise
            click.echo(f"{type(error).__name__}: {error}", err=True)
            ctx.exit(1)


class _Command(click.Command):
    """A command whose arguments the group sees, so that it knows of --debug."""

    def invoke(self, ctx: click.Context) -> Any:
        ctx.ensure_object(list).append(ctx.params)
        return super().invoke(ctx)


@click.group(cls=_Lines)
@click.version_option(package_name="circuitgraph-engine")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Circuit graphs of language models that carry their evidence."""
    ctx.obj = []


main.command_class = _Command
for _command in (evaluate, intervene, measure, convert, examples):
    main.add_command(_command)


@main.command()
@click.option(
    "--out",
    default="circuitgraph-demo",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of the three files.",
)
@options_of(Demo)
@device_option
@common_options
def demo(out: Path, device: str | None, quiet: bool, debug: bool, **settings: Any) -> None:
    """Find, measure and draw a circuit of the embedded trained model: circuit.json, circuit.svg, circuit.html."""
    from circuitgraph.demo.run import run_demo

    with progress_bar(quiet) as progress:
        result = run_demo(out, device=device, progress=progress, **settings)
    for line in result.lines():
        click.echo(line)


@main.command()
@click.argument("prompts", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="File to write (.json, .html, ...)."
)
@click.option("--preset", help=f"Settings of the field's graphs: {', '.join(PRESETS)}.")
@required_model_options
@loading_options
@device_option
@click.option(
    "--targets",
    default=["metric"],
    show_default=True,
    multiple=True,
    help=Discovery.__dataclass_fields__["targets"].metadata["help"],
)
@click.option(
    "--target-weights", multiple=True, type=float, help="One weight per target, in their order; may be repeated."
)
@options_of(Discovery, Compute)
@common_options
@click.pass_context
def discover(
    ctx: click.Context,
    /,
    prompts: Path,
    model: str,
    dictionaries: tuple[str, ...],
    output: Path,
    preset: str | None,
    targets: tuple[str, ...],
    target_weights: tuple[float, ...],
    device: str | None,
    dtype: str,
    lazy: bool,
    quiet: bool,
    debug: bool,
    **settings: Any,
) -> None:
    """Build the circuit graph of the prompt pairs in PROMPTS (JSON lines, or auto-circuit's JSON)."""
    from circuitgraph.formats import check_save, save

    check_save(output)
    given = [name for name in settings if ctx.get_parameter_source(name) != click.core.ParameterSource.DEFAULT]
    compute = {name: settings.pop(name) for name in ("backend", "memory")}
    resolve(Compute, None, compute)
    start = None if preset is None else find_preset(preset)
    changes = {name: settings[name] for name in given if name in settings}
    chosen = resolve(Discovery, start, changes)  # before anything heavy is imported
    named = bool(target_weights) or ctx.get_parameter_source("targets") != click.core.ParameterSource.DEFAULT
    if named:
        chosen = dataclasses.replace(chosen, targets="metric" if targets == ("metric",) else targets)
    refuse_metric_beside_targets(chosen, changes)

    from circuitgraph.attribution.objective import read_targets
    from circuitgraph.discovery import discover as find_graph

    if named:
        changes["targets"] = read_targets(targets, target_weights)
    with progress_bar(quiet) as progress:
        loaded, found, pairs = load_all(prompts, model, dictionaries, progress, device=device, dtype=dtype, lazy=lazy)
        graph = find_graph(pairs, loaded, found, settings=start, progress=progress, **compute, **changes)
        save(graph, output)
    report(graph, quiet)
    click.echo(output)


@main.command()
@click.argument("graph", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="File to write (.json, .html, ...)."
)
@options_of(Pruning)
@common_options
def prune(graph: Path, output: Path, quiet: bool, debug: bool, **settings: Any) -> None:
    """Cut GRAPH down to what matters, always reachable from the metric."""
    from circuitgraph.formats import check_save, load, save
    from circuitgraph.graphs.pruning import prune as pruned

    check_save(output)
    smaller = pruned(load(graph), **settings)
    save(smaller, output)
    report(smaller, quiet)
    click.echo(output)


@main.command()
@click.argument("graph", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Picture to write: .html, .svg, .png, .pdf or .dot.",
)
@click.option(
    "--compare",
    type=click.Path(path_type=Path),
    help="A second graph (.json): the page shows what only one has, and the differences.",
)
@click.option(
    "--neuronpedia",
    multiple=True,
    metavar="SITE=ID",
    help="Where the features of a site are on Neuronpedia, as in mlp_out.5=gpt2-small/5-tres-dc; may be repeated.",
)
@common_options
def render(
    graph: Path, output: Path, compare: Path | None, neuronpedia: tuple[str, ...], quiet: bool, debug: bool
) -> None:
    """Draw GRAPH as a page or picture, by the suffix of the output."""
    from circuitgraph.formats import check_save, load, save

    options: dict[str, Any] = {"links": dict(_site_and_id(text) for text in neuronpedia)} if neuronpedia else {}
    if compare is not None:
        options |= {"compare": compare, "names": (graph.stem, compare.stem)}
    check_save(output, **options)
    if compare is not None:
        options["compare"] = load(compare)
    save(load(graph), output, **options)
    click.echo(output)


def _site_and_id(text: str) -> tuple[str, str]:
    site, equals, identity = text.partition("=")
    if not (site and equals and identity):
        raise click.BadParameter(
            f"{text!r} is not SITE=ID, as in mlp_out.5=gpt2-small/5-tres-dc", param_hint="--neuronpedia"
        )
    return site, identity


@main.command()
@click.argument("graph", type=click.Path(path_type=Path))
@click.option(
    "--top", default=10, show_default=True, type=click.IntRange(min=1), help="Strongest nodes and edges to list."
)
@common_options
def show(graph: Path, top: int, quiet: bool, debug: bool) -> None:
    """Summarise GRAPH: counts per kind and layer, strongest nodes and edges, evidence."""
    from circuitgraph.formats import load
    from circuitgraph.graphs.summary import summary_text

    click.echo(summary_text(load(graph), top=top), nl=False)


@main.command()
@click.argument("prompts", type=click.Path(path_type=Path))
@model_options
@loading_options
@device_option
@options_of(DictionaryChecks)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures to this file (.json)."
)
@common_options
def check(
    prompts: Path,
    model: str,
    dictionaries: tuple[str, ...],
    json_file: Path | None,
    device: str | None,
    dtype: str,
    lazy: bool,
    quiet: bool,
    debug: bool,
    **settings: Any,
) -> None:
    """Check dictionaries on the clean prompts in PROMPTS: splice, L0, explained variance, loss recovered, errors."""
    import json

    from circuitgraph.files import check_writable, write_atomically

    checks = resolve(DictionaryChecks, None, settings)  # before anything heavy is imported
    if json_file is not None:
        check_writable(json_file)

    from circuitgraph.evaluation.dictionary_check import check_dictionaries, check_text

    with progress_bar(quiet) as progress:
        loaded, found, pairs = load_all(prompts, model, dictionaries, progress, device=device, dtype=dtype, lazy=lazy)
        result = check_dictionaries(pairs, loaded, found, settings=checks, progress=progress)
        if json_file is not None:
            write_atomically(json_file, json.dumps(result.record(), indent=2, allow_nan=False) + "\n")
    click.echo(check_text(result), nl=False)
    if json_file is not None:
        click.echo(json_file)


@main.command("dictionaries")
@click.option("--model", help="Only the releases and sets of this model, named as the registry names it.")
@common_options
def list_dictionaries(model: str | None, quiet: bool, debug: bool) -> None:
    """List the dictionaries that sae-lens's registry knows, and the sets that have a name."""
    from circuitgraph.dictionaries.registry import list_releases, list_sets, read_registry, registry_text

    registry = read_registry()
    text = registry_text(list_releases(registry, model=model), list_sets(registry, model=model))
    click.echo(text, nl=False)
