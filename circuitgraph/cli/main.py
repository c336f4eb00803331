"""The command line: parse, call one function, write, say where.

Result paths and figures go to stdout, everything else to stderr; errors are one line and exit code 1. This module imports
only click until a command runs, so that --help is quick, and it decides nothing: defaults are read from the functions.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from circuitgraph import __version__
from circuitgraph.cli.files import convert, examples, export, import_
from circuitgraph.cli.measure import evaluate, intervene, measure
from circuitgraph.cli.options import common_options as _common
from circuitgraph.cli.options import defaults_of as _defaults
from circuitgraph.cli.options import device_option as _device
from circuitgraph.cli.options import load_all as _load
from circuitgraph.cli.options import loading_options as _loading
from circuitgraph.cli.options import model_options as _model
from circuitgraph.cli.options import option as _option
from circuitgraph.cli.options import progress_bar as _progress
from circuitgraph.cli.options import report as _report
from circuitgraph.errors import CircuitGraphError

_DISCOVER = _defaults("discover.py", "discover_circuit")
_PRUNE = _defaults("graphs/prune.py", "prune_graph")
_DEMO = _defaults("demo/run.py", "run_demo")
_CHECK = _defaults("evaluation/dictionary_check.py", "check_dictionaries")


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


for _command in (evaluate, intervene, measure, export, import_, convert, examples):
    main.add_command(_command)


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
@_option(_DEMO, "align", "role: prompts of every form of the task in one graph; position: of one form.")
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
    help="What to explain: metric, logits (the likeliest next tokens), token texts, features such as mlp_out.3/f17@5, or"
    " directions as SITE@POS=FILE.npy; may be repeated.",
)
@click.option(
    "--target-weights", multiple=True, type=float, help="One weight per target, in their order; may be repeated."
)
@_option(_DISCOVER, "baseline", "What clean is compared with: corrupted, zero or mean.")
@_option(_DISCOVER, "method", "gradient or integrated.")
@_option(_DISCOVER, "steps", "Steps of integrated gradients.")
@_option(_DISCOVER, "rule", "Quadrature rule of integrated gradients: gauss-legendre, midpoint, left or right.")
@_option(_DISCOVER, "attention", "Attention without a dictionary: component, through or cut.")
@_option(_DISCOVER, "mlp", "MLPs without a dictionary: component, through or cut.")
@_option(_DISCOVER, "qk", "q and k edges by derivative, or by recompute (the change of the pattern).")
@click.option("--errors-as-targets", is_flag=True, default=False, help="Errors are targets too: trace what they read.")
@_option(_DISCOVER, "align", "What is one node in several pairs: the same position, or the same role.")
@_option(_DISCOVER, "positions", "Nodes at each position, or one node per feature: the sum over positions.")
@_option(_DISCOVER, "max_nodes", "Candidates: the nodes with the largest attribution.")
@_option(_DISCOVER, "max_traced", "Trace the inputs of so many features, the most influential first.", type=int)
@_option(_DISCOVER, "edge_threshold", "Smallest |weight| of an edge, as a fraction of the metric's difference.")
@_option(_DISCOVER, "relative_threshold", "Smallest share of an edge in what its target reads.")
@_option(_DISCOVER, "top_k", "At most this many inputs per node.", type=int)
@_option(_DISCOVER, "node_influence", "Keep the nodes that carry this share of all influence.", type=float)
@_option(_DISCOVER, "edge_influence", "Keep the edges that carry this share of it.", type=float)
@_option(_DISCOVER, "memory", "GiB that input directions may take at once.")
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
    target_weights: tuple[float, ...],
    device: str | None,
    dtype: str,
    lazy: bool,
    quiet: bool,
    debug: bool,
    **settings: Any,
) -> None:
    """Build the circuit graph of the prompt pairs in PROMPTS (JSON lines, or auto-circuit's JSON)."""
    from circuitgraph.attribution.targets import read_targets
    from circuitgraph.discover import discover_circuit
    from circuitgraph.files import check_writable
    from circuitgraph.formats import write_graph

    check_writable(output)
    settings["targets"] = read_targets(targets, target_weights)
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
    from circuitgraph.graphs.prune import prune_graph

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
@_common
def render(
    graph: Path, output: Path, compare: Path | None, neuronpedia: tuple[str, ...], quiet: bool, debug: bool
) -> None:
    """Draw GRAPH as a page or picture, by the suffix of the output."""
    from circuitgraph.formats import read_graph
    from circuitgraph.render import write_rendering

    links = dict(_site_and_id(text) for text in neuronpedia)
    other = None if compare is None else read_graph(compare)
    names = (graph.stem, compare.stem if compare else "")
    write_rendering(read_graph(graph), output, compare=other, names=names, links=links)
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
@_common
def show(graph: Path, top: int, quiet: bool, debug: bool) -> None:
    """Summarise GRAPH: counts per kind and layer, strongest nodes and edges, evidence."""
    from circuitgraph.formats import read_graph
    from circuitgraph.graphs.summary import summary_text

    click.echo(summary_text(read_graph(graph), top=top), nl=False)


@main.command()
@click.argument("prompts", type=click.Path(path_type=Path))
@_model
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

    from circuitgraph.evaluation.dictionary_check import check_dictionaries, check_text
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
    from circuitgraph.dictionaries.registry import list_releases, list_sets, read_registry, registry_text

    registry = read_registry()
    text = registry_text(list_releases(registry, model=model), list_sets(registry, model=model))
    click.echo(text, nl=False)
