"""The commands about files of other tools: convert and examples."""

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
    report,
)
from circuitgraph.settings import Examples, resolve

_GRAPH_FILE = click.Path(path_type=Path)


def _format_options(command: Any) -> Any:
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
@click.argument("file", type=_GRAPH_FILE)
@click.option("-o", "--output", required=True, type=_GRAPH_FILE, help="File to write; its suffix names the format.")
@click.option("--from", "from_", help="Format of FILE, if neither suffix nor content tells it: native, eap, gexf, ...")
@click.option("--to", "to", help="Format to write, if the suffix does not name it: neuronpedia, mib, graphml, ...")
@_format_options
@common_options
def convert(
    file: Path, output: Path, from_: str | None, to: str | None, quiet: bool, debug: bool, **options: Any
) -> None:
    """Read FILE of any readable format and write it in any writable one; older graph files become new ones."""
    from circuitgraph.formats import check_save, load, parse_sources, save, with_sources

    sources, scan = parse_sources(options.pop("sources")), options.pop("scan")
    options = {name: value for name, value in options.items() if value}
    check_save(output, format=to, **options)
    graph = load(file, format=from_)
    if sources or scan:
        graph = with_sources(graph, scan, sources)
    save(graph, output, format=to, **options)
    report(graph, quiet)
    click.echo(output)


@click.command()
@click.argument("graph", type=_GRAPH_FILE)
@click.argument("corpus", type=_GRAPH_FILE)
@click.option(
    "-o", "--output", required=True, type=_GRAPH_FILE, help="Folder of the exported graph; files go to features/MODEL."
)
@model_options
@click.option("--neuronpedia-model", "scan", help="What the model is called in the exported graph.")
@options_of(Examples)
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
    from circuitgraph.formats import load

    resolve(Examples, None, {name: value for name, value in settings.items() if name != "scan"})
    circuit, texts = load(graph), read_texts(corpus)
    with progress_bar(quiet) as progress:
        loaded, found, _ = load_all(None, model, dictionaries, progress, device=device, dtype=dtype, lazy=lazy)
        files, left_out = write_corpus_examples(circuit, loaded, found, texts, output, progress=progress, **settings)
    for line in () if quiet else left_out:
        click.echo(line, err=True)
    click.echo(f"{len(files)} files in {files[0].parent}")
