"""The command line: parse, call one function, write, say where.

Result paths and figures go to stdout, everything else to stderr; errors are one line and exit code 1. This module imports
only click until a command runs, so that --help is quick, and it decides nothing: defaults are read from the functions.
"""

from __future__ import annotations

import ast
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from circuitgraph import __version__
from circuitgraph.errors import CircuitGraphError


def _defaults(module: str, function: str) -> dict[str, Any]:
    """The keyword defaults of a function, read from its source: importing it would cost seconds."""
    tree = ast.parse((Path(__file__).parent / module).read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return {arg.arg: ast.literal_eval(value) for arg, value in pairs if isinstance(value, ast.Constant)}


def _option(defaults: dict[str, Any], name: str, help: str, **settings: Any) -> Callable[[Any], Any]:
    """An option for the keyword `name` of a function, with the function's own default and its type."""
    default = defaults[name]
    if default is not None:
        settings.setdefault("type", type(default))
    return click.option(
        f"--{name.replace('_', '-')}", name, default=default, show_default=default is not None, help=help, **settings
    )


_DISCOVER = _defaults("discover.py", "discover_circuit")
_PRUNE = _defaults("prune.py", "prune_graph")
_DEMO = _defaults("demo/run.py", "run_demo")
_CHECK = _defaults("check.py", "check_dictionaries")


def _common(command: Any) -> Any:
    """--quiet and --debug, which every command has."""
    command = click.option("--quiet", is_flag=True, help="No progress on stderr.")(command)
    return click.option("--debug", is_flag=True, help="Show the traceback of an error.")(command)


def _device(command: Any) -> Any:
    return click.option(
        "--device",
        default=None,
        help="Where the model runs, for instance cpu or cuda:0.  [default: the library's choice]",
    )(command)


def _loading(command: Any) -> Any:
    """--dtype and --lazy: how the model and the dictionaries are loaded."""
    names = click.Choice(["float32", "bfloat16", "float16", "float64"])
    command = click.option(
        "--dtype", default="float32", show_default=True, type=names, help="What the model computes in."
    )(command)
    return click.option("--lazy", is_flag=True, help="Read a dictionary's weights when used, and free them after.")(
        command
    )


class _Lines(click.Group):
    """A group whose commands print an error of ours as one line and exit with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CircuitGraphError as error:
            if "--debug" in sys.argv:
                raise
            click.echo(f"{type(error).__name__}: {error}", err=True)
            ctx.exit(1)


@click.group(cls=_Lines)
@click.version_option(__version__)
def main() -> None:
    """Circuit graphs of language models that carry their evidence."""


@main.command()
@_option(_DEMO, "task", "What the embedded model is asked to do: ioi, greater-than, gendered-pronoun, ... ")
@click.option(
    "--out",
    default="circuitgraph-demo",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of the three files.",
)
@_option(_DEMO, "n_pairs", "Prompt pairs to average over.")
@_option(_DEMO, "max_nodes", "Nodes that the circuit may have.")
@_option(_DEMO, "seed", "Seed of the prompt pairs.")
@_device
@_common
def demo(out: Path, device: str | None, quiet: bool, debug: bool, **settings: Any) -> None:
    """Find, measure and draw a circuit of the embedded trained model: circuit.json, circuit.svg, circuit.html."""
    from circuitgraph.demo.run import run_demo

    with _progress(quiet) as progress:
        result = run_demo(out, device=device, progress=progress, **settings)
    for line in result.lines():
        click.echo(line)


@main.command()
@click.argument("prompts", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="Model name, local folder, or 'demo'.")
@click.option(
    "--dictionaries", required=True, multiple=True, help="Folder, sae-lens RELEASE/ID, or 'demo'; may be repeated."
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Graph file to write (.json).")
@click.option(
    "--preset", help="Settings of the field's graphs: leap, attribution-graph, sparse-feature-circuit, mixed."
)
@_option(_DISCOVER, "metric", "logit_difference, probability_difference, logit or log_probability.")
@click.option(
    "--targets",
    default=["metric"],
    show_default=True,
    multiple=True,
    help="What to explain: metric, logits (the likeliest next tokens), or token texts; may be repeated.",
)
@_option(_DISCOVER, "baseline", "What clean is compared with: corrupted, zero or mean.")
@_option(_DISCOVER, "method", "gradient or integrated.")
@_option(_DISCOVER, "steps", "Steps of integrated gradients.")
@_option(_DISCOVER, "rule", "Quadrature rule of integrated gradients: gauss-legendre, midpoint, left or right.")
@_option(_DISCOVER, "attention", "Attention without a dictionary: component, through or cut.")
@_option(_DISCOVER, "mlp", "MLPs without a dictionary: component, through or cut.")
@_option(_DISCOVER, "qk", "q and k edges by derivative, or by recompute (the change of the pattern).")
@_option(_DISCOVER, "max_nodes", "Candidates: the nodes with the largest attribution.")
@_option(_DISCOVER, "max_readers", "Trace the inputs of so many features, the most influential first.", type=int)
@_option(_DISCOVER, "edge_threshold", "Smallest |weight| of an edge, as a fraction of the metric's difference.")
@_option(_DISCOVER, "relative_threshold", "Smallest share of an edge in what its target reads.")
@_option(_DISCOVER, "top_k", "At most this many inputs per node.", type=int)
@_option(_DISCOVER, "node_influence", "Keep the nodes that carry this share of all influence.", type=float)
@_option(_DISCOVER, "edge_influence", "Keep the edges that carry this share of it.", type=float)
@_option(_DISCOVER, "memory", "GiB that reading vectors may take at once.")
@_option(_DISCOVER, "backend", "Backend of the attribution kernel.")
@click.option("--length", type=int, help="Use only pairs of this many tokens.")
@click.option("--examples", type=click.IntRange(min=1), help="Use only this many pairs, drawn at random.")
@click.option("--seed", default=0, show_default=True, help="Seed of the draw.")
@_loading
@_device
@_common
@click.pass_context
def discover(
    ctx: click.Context,
    /,
    prompts: Path,
    model: str,
    dictionaries: tuple[str, ...],
    output: Path,
    length: int | None,
    examples: int | None,
    seed: int,
    preset: str | None,
    targets: tuple[str, ...],
    device: str | None,
    dtype: str,
    lazy: bool,
    quiet: bool,
    debug: bool,
    **settings: Any,
) -> None:
    """Build the circuit graph of the prompt pairs in PROMPTS (JSON lines, or auto-circuit's JSON)."""
    from circuitgraph.discover import discover_circuit
    from circuitgraph.files import check_writable
    from circuitgraph.formats import write_graph

    check_writable(output)
    settings["targets"] = targets[0] if targets in (("metric",), ("logits",)) else list(targets)
    if preset is not None:
        from circuitgraph.presets import find_preset

        source = click.core.ParameterSource.DEFAULT
        settings |= {k: v for k, v in find_preset(preset).items() if ctx.get_parameter_source(k) == source}
    with _progress(quiet) as progress:
        loaded, found, pairs = _load(
            prompts, model, dictionaries, length, examples, seed, device, progress, dtype=dtype, lazy=lazy
        )
        graph = discover_circuit(loaded, found, pairs, progress=progress, **settings)
        if examples is not None:
            graph.graph["provenance"]["settings"]["seed"] = seed
        write_graph(graph, output)
    _report(graph, quiet)
    click.echo(output)


@main.command()
@click.argument("graph", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Graph file to write (.json).")
@_option(_PRUNE, "node_threshold", "Smallest |attribution| of a node, as a fraction of the metric's difference.")
@_option(_PRUNE, "edge_threshold", "Smallest |weight| of an edge, as a fraction of the metric's difference.")
@_option(_PRUNE, "top_k", "At most this many inputs per node.", type=int)
@_option(_PRUNE, "max_nodes", "At most this many nodes, the strongest.", type=int)
@_common
def prune(graph: Path, output: Path, quiet: bool, debug: bool, **settings: Any) -> None:
    """Cut GRAPH down to what matters, always reachable from the metric."""
    from circuitgraph.formats import read_graph, write_graph
    from circuitgraph.prune import prune_graph

    smaller = prune_graph(read_graph(graph), **settings)
    write_graph(smaller, output)
    _report(smaller, quiet)
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
@_common
def render(graph: Path, output: Path, quiet: bool, debug: bool) -> None:
    """Draw GRAPH as a page or picture, by the suffix of the output."""
    from circuitgraph.formats import read_graph
    from circuitgraph.render import write_rendering

    write_rendering(read_graph(graph), output)
    click.echo(output)


@main.command()
@click.argument("graph", type=click.Path(path_type=Path))
@click.option(
    "--top", default=10, show_default=True, type=click.IntRange(min=1), help="Strongest nodes and edges to list."
)
@_common
def show(graph: Path, top: int, quiet: bool, debug: bool) -> None:
    """Summarise GRAPH: counts per kind and layer, strongest nodes and edges, evidence."""
    from circuitgraph.formats import read_graph
    from circuitgraph.summary import summary_text

    click.echo(summary_text(read_graph(graph), top=top), nl=False)


_GRAPH_FILE = click.Path(path_type=Path)


def _graph_output(help: str) -> Callable[[Any], Any]:
    return click.option("-o", "--output", required=True, type=_GRAPH_FILE, help=help)


def _format_settings(command: Any) -> Any:
    """What only some formats take: names on Neuronpedia, the nine circuits of MIB."""
    source = "What a dictionary is called on Neuronpedia, for instance z.5=5-att-kk; may be repeated."
    for option in (
        click.option("--slug", help="Name of the graph on Neuronpedia.  [default: the name of the file]"),
        click.option("--neuronpedia-source", "sources", multiple=True, metavar="SITE=SOURCE", help=source),
        click.option("--neuronpedia-model", "scan", help="What the model is called there, for instance gpt2-small."),
        click.option("--circuits", is_flag=True, help="mib: nine circuits instead of scores."),
    ):
        command = option(command)
    return command


@main.command()
@click.argument("graph", type=_GRAPH_FILE)
@_graph_output("File to write; its suffix names the format.")
@click.option("--format", "format_", help="Format, if the suffix does not name it: neuronpedia, eap, mib, graphml, ...")
@_format_settings
@_common
def export(graph: Path, output: Path, format_: str | None, quiet: bool, debug: bool, **settings: Any) -> None:
    """Write GRAPH in another format: Neuronpedia, EAP-IG, GraphML, GEXF, Cytoscape, DOT, CSV, Parquet, links."""
    from circuitgraph.formats import export_graph, read_graph

    export_graph(_named_there(read_graph(graph), settings), output, format_, **settings)
    click.echo(output)


@main.command("import")
@click.argument("file", type=_GRAPH_FILE)
@_graph_output("Graph file to write (.json or .json.gz).")
@click.option("--format", "format_", help="Format of FILE, if neither suffix nor content tells it.")
@_common
def import_(file: Path, output: Path, format_: str | None, quiet: bool, debug: bool) -> None:
    """Read FILE of any readable format and write it as a graph file."""
    from circuitgraph.formats import import_graph, write_graph

    graph = import_graph(file, format_)
    write_graph(graph, output)
    _report(graph, quiet)
    click.echo(output)


@main.command()
@click.argument("file", type=_GRAPH_FILE)
@_graph_output("File to write; its suffix names the format.")
@click.option("--from", "from_", help="Format of FILE, if neither suffix nor content tells it.")
@click.option("--to", "to", help="Format to write, if the suffix does not name it.")
@_format_settings
@_common
def convert(
    file: Path, output: Path, from_: str | None, to: str | None, quiet: bool, debug: bool, **settings: Any
) -> None:
    """Read FILE of any readable format and write it in any writable one; older graph files become new ones."""
    from circuitgraph.formats import export_graph, import_graph

    export_graph(_named_there(import_graph(file, from_), settings), output, to, **settings)
    click.echo(output)


def _named_there(graph: Any, settings: dict[str, Any]) -> Any:
    """The graph with the names that the options give; settings are left with what the format is told."""
    from circuitgraph.formats import parse_sources, with_sources

    sources, scan = parse_sources(settings.pop("sources")), settings.pop("scan")
    for name in [name for name, value in settings.items() if value is None or value is False]:
        del settings[name]
    return with_sources(graph, scan, sources) if sources or scan else graph


@main.command()
@click.argument("prompts", type=click.Path(path_type=Path))
@click.option("--model", default="demo", show_default=True, help="Model name, local folder, or 'demo'.")
@click.option(
    "--dictionaries",
    default=["demo"],
    show_default=True,
    multiple=True,
    help="Folder, sae-lens RELEASE/ID, or 'demo'; may be repeated.",
)
@_option(_CHECK, "metric", "The metric whose effect the error nodes carry: logit_difference, logit, ...")
@_option(_CHECK, "baseline", "What clean is compared with for that effect: corrupted, zero or mean.")
@_option(_CHECK, "n_listed", "Tokens to list per site where the error carries most of the effect.")
@click.option("--length", type=int, help="Use only pairs of this many tokens.")
@click.option("--examples", type=click.IntRange(min=1), help="Use only this many pairs, drawn at random.")
@click.option("--seed", default=0, show_default=True, help="Seed of the draw.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures to this file (.json)."
)
@_loading
@_device
@_common
def check(
    prompts: Path,
    model: str,
    dictionaries: tuple[str, ...],
    length: int | None,
    examples: int | None,
    seed: int,
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

    from circuitgraph.check import check_dictionaries, check_text
    from circuitgraph.files import check_writable, write_atomically

    if json_file is not None:
        check_writable(json_file)
    with _progress(quiet) as progress:
        loaded, found, pairs = _load(
            prompts, model, dictionaries, length, examples, seed, device, progress, dtype=dtype, lazy=lazy
        )
        result = check_dictionaries(loaded, found, pairs, progress=progress, **settings)
        if json_file is not None:
            write_atomically(json_file, json.dumps(result.record(), indent=2, allow_nan=False) + "\n")
    click.echo(check_text(result), nl=False)
    if json_file is not None:
        click.echo(json_file)


@main.command("dictionaries")
@click.option("--model", help="Only the releases and sets of this model, named as the registry names it.")
@_common
def list_dictionaries(model: str | None, quiet: bool, debug: bool) -> None:
    """List the dictionaries that sae-lens's registry knows, and the sets that have a name."""
    from circuitgraph.dictionary_sets import list_sets, read_registry
    from circuitgraph.registry import list_releases, registry_text

    registry = read_registry()
    text = registry_text(list_releases(registry, model=model), list_sets(registry, model=model))
    click.echo(text, nl=False)


def _load(
    prompts: Path,
    model: str,
    dictionaries: tuple[str, ...],
    length: int | None,
    examples: int | None,
    seed: int,
    device: str | None,
    progress: Callable[[str, int, int], None],
    *,
    dtype: str = "float32",
    lazy: bool = False,
) -> tuple[Any, Any, Any]:
    """The model, its dictionaries and the pairs that the options name; the prompts are read first."""
    import random

    from circuitgraph import demo as embedded
    from circuitgraph.dictionary_formats import load_dictionaries
    from circuitgraph.model import DTYPES, load_model
    from circuitgraph.prompts import read_pairs
    from circuitgraph.tokens import pairs_of_length

    pairs = read_pairs(prompts)
    progress("loading the model", 0, 1)
    loaded = load_model(embedded.MODEL if model == "demo" else model, device=device, dtype=DTYPES[dtype])
    sources = [
        path for name in dictionaries for path in (embedded.circuit_dictionaries() if name == "demo" else [name])
    ]
    found = load_dictionaries(sources, loaded, lazy=lazy)
    if length is not None:
        pairs = pairs_of_length(loaded, pairs, length)
    if examples is not None and examples < len(pairs):
        pairs = random.Random(seed).sample(pairs, examples)
    return loaded, found, pairs


def _report(graph: Any, quiet: bool) -> None:
    if not quiet:
        for line in graph.graph["reports"]:
            click.echo(line, err=True)
        click.echo(f"{graph.number_of_nodes()} nodes, {graph.number_of_edges()} edges", err=True)


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A function (stage, done, total) that moves a progress bar on stderr."""
    if quiet:
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda stage, done, total: bar.update(
            task, description=stage, completed=done, total=total if total > 1 else None
        )
