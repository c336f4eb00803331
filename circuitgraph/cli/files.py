"""The commands that turn graph files of one tool into those of another: export, import, convert, examples.

Like the rest of the command line they parse, call one function, write, and say where.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from circuitgraph.cli.options import (
    common_options,
    defaults_of,
    device_option,
    load_all,
    loading_options,
    model_options,
    option,
    progress_bar,
    report,
)

_EXAMPLES = defaults_of("corpus/files.py", "write_corpus_examples")
_GRAPH_FILE = click.Path(path_type=Path)


def _graph_output(help: str) -> Callable[[Any], Any]:
    return click.option("-o", "--output", required=True, type=_GRAPH_FILE, help=help)


def _format_settings(command: Any) -> Any:
    """What only some formats take: names on Neuronpedia, the nine circuits of MIB."""
    source = "What a dictionary is called on Neuronpedia, for instance z.5=5-att-kk; may be repeated."
    for decorate in (
        click.option("--slug", help="Name of the graph on Neuronpedia.  [default: the name of the file]"),
        click.option("--neuronpedia-source", "sources", multiple=True, metavar="SITE=SOURCE", help=source),
        click.option("--neuronpedia-model", "scan", help="What the model is called there, for instance gpt2-small."),
        click.option("--circuits", is_flag=True, help="mib: nine circuits instead of scores."),
    ):
        command = decorate(command)
    return command


@click.command()
@click.argument("graph", type=_GRAPH_FILE)
@_graph_output("File to write; its suffix names the format.")
@click.option("--format", "format_", help="Format, if the suffix does not name it: neuronpedia, eap, mib, graphml, ...")
@_format_settings
@common_options
def export(graph: Path, output: Path, format_: str | None, quiet: bool, debug: bool, **settings: Any) -> None:
    """Write GRAPH in another format: Neuronpedia, EAP-IG, GraphML, GEXF, Cytoscape, DOT, CSV, Parquet, links."""
    from circuitgraph.formats import export_graph, read_graph

    export_graph(_named_there(read_graph(graph), settings), output, format_, **settings)
    click.echo(output)


@click.command("import")
@click.argument("file", type=_GRAPH_FILE)
@_graph_output("Graph file to write (.json or .json.gz).")
@click.option("--format", "format_", help="Format of FILE, if neither suffix nor content tells it.")
@common_options
def import_(file: Path, output: Path, format_: str | None, quiet: bool, debug: bool) -> None:
    """Read FILE of any readable format and write it as a graph file."""
    from circuitgraph.formats import import_graph, write_graph

    graph = import_graph(file, format_)
    write_graph(graph, output)
    report(graph, quiet)
    click.echo(output)


@click.command()
@click.argument("file", type=_GRAPH_FILE)
@_graph_output("File to write; its suffix names the format.")
@click.option("--from", "from_", help="Format of FILE, if neither suffix nor content tells it.")
@click.option("--to", "to", help="Format to write, if the suffix does not name it.")
@_format_settings
@common_options
def convert(
    file: Path, output: Path, from_: str | None, to: str | None, quiet: bool, debug: bool, **settings: Any
) -> None:
    """Read FILE of any readable format and write it in any writable one; older graph files become new ones."""
    from circuitgraph.formats import export_graph, import_graph

    export_graph(_named_there(import_graph(file, from_), settings), output, to, **settings)
    click.echo(output)


@click.command()
@click.argument("graph", type=_GRAPH_FILE)
@click.argument("corpus", type=_GRAPH_FILE)
@_graph_output("Folder of the exported graph; the files go to features/MODEL in it.")
@model_options
@click.option("--neuronpedia-model", "scan", help="What the model is called in the exported graph.")
@option(_EXAMPLES, "n_top", "Windows to keep of each feature, the most active.")
@option(_EXAMPLES, "n_tokens", "Tokens of a window, BOS included.")
@option(_EXAMPLES, "batch_size", "Windows to run at once.")
@option(_EXAMPLES, "seed", "Seed of the draw among the windows where a feature is active.")
@loading_options
@device_option
@common_options
def examples(
    graph: Path,
    corpus: Path,
    output: Path,
    model: str,
    dictionaries: tuple[str, ...],
    device: str | None,
    dtype: str,
    lazy: bool,
    quiet: bool,
    debug: bool,
    **settings: Any,
) -> None:
    """Write what each feature of GRAPH does over CORPUS (a text on each line) as feature files of the graph's page."""
    from circuitgraph.corpus.activity import read_texts
    from circuitgraph.corpus.files import write_corpus_examples
    from circuitgraph.formats import read_graph

    circuit, texts = read_graph(graph), read_texts(corpus)
    with progress_bar(quiet) as progress:
        loaded, found, _ = load_all(None, model, dictionaries, None, None, 0, device, progress, dtype=dtype, lazy=lazy)
        files, left_out = write_corpus_examples(circuit, loaded, found, texts, output, progress=progress, **settings)
    for line in () if quiet else left_out:
        click.echo(line, err=True)
    click.echo(f"{len(files)} files in {files[0].parent}")


def _named_there(graph: Any, settings: dict[str, Any]) -> Any:
    """The graph with the names that the options give; settings are left with what the format is told."""
    from circuitgraph.formats import parse_sources, with_sources

    sources, scan = parse_sources(settings.pop("sources")), settings.pop("scan")
    for name in [name for name, value in settings.items() if value is None or value is False]:
        del settings[name]
    return with_sources(graph, scan, sources) if sources or scan else graph
