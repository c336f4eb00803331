"""What the commands share: options made from settings, loading, progress. Only click is imported at first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from circuitgraph.progress import Progress, no_progress
from circuitgraph.settings import Settings, type_of

_MODEL = "Model name, local folder, or 'demo'."
_SOURCES = "Folder, sae-lens RELEASE/ID, or 'demo'; may be repeated."

DTYPES = ("float32", "bfloat16", "float16", "float64")


def options_of(*kinds: type[Settings], skip: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """An option for every field of these settings, with its default, its help text and its choices.

    Values are checked by the settings themselves, so that a wrong one says the same from Python and from the shell.
    """
    unique = {each.name: each for kind in kinds for each in fields(kind)}
    chosen = [each for each in unique.values() if each.metadata["command_line"] and each.name not in skip]

    def decorate(command: Any) -> Any:
        for each in reversed(chosen):
            facts, flag = each.metadata, f"--{each.name.replace('_', '-')}"
            choices = f" One of: {', '.join(facts['choices'])}." if facts["choices"] else ""
            settings: dict[str, Any] = {"default": each.default, "help": facts["help"] + choices}
            if type_of(each) is bool:
                on_and_off = f"{flag}/--no-{each.name.replace('_', '-')}" if each.default else flag
                command = click.option(on_and_off, each.name, is_flag=True, show_default=each.default, **settings)(
                    command
                )
            else:
                shown = each.default is not None
                command = click.option(flag, each.name, type=type_of(each), show_default=shown, **settings)(command)
        return command

    return decorate


def common_options(command: Any) -> Any:
    """--quiet and --debug, which every command has."""
    command = click.option("--quiet", is_flag=True, help="No progress on stderr.")(command)
    return click.option("--debug", is_flag=True, help="Show the traceback of an error.")(command)


def device_option(command: Any) -> Any:
    """--device: where the model runs."""
    return click.option(
        "--device",
        default=None,
        help="Where the model runs, for instance cpu or cuda:0.  [default: the library's choice]",
    )(command)


def model_options(command: Any) -> Any:
    """--model and --dictionaries, by default the embedded ones."""
    command = click.option("--dictionaries", default=["demo"], show_default=True, multiple=True, help=_SOURCES)(command)
    return click.option("--model", default="demo", show_default=True, help=_MODEL)(command)


def required_model_options(command: Any) -> Any:
    """--model and --dictionaries, which must be given."""
    command = click.option("--dictionaries", required=True, multiple=True, help=_SOURCES)(command)
    return click.option("--model", required=True, help=_MODEL)(command)


def loading_options(command: Any) -> Any:
    """--dtype and --lazy: how the model and the dictionaries are loaded."""
    names = click.Choice(DTYPES)
    command = click.option(
        "--dtype", default="float32", show_default=True, type=names, help="What the model computes in."
    )(command)
    return click.option("--lazy", is_flag=True, help="Read a dictionary's weights when used, and free them after.")(
        command
    )


def report(graph: Any, quiet: bool) -> None:
    """What the graph says of its making, and its size, on stderr."""
    if not quiet:
        for line in graph.graph["reports"]:
            click.echo(line, err=True)
        click.echo(f"{graph.number_of_nodes()} nodes, {graph.number_of_edges()} edges", err=True)


def load_all(
    prompts: Path | None,
    model: str,
    dictionaries: tuple[str, ...],
    progress: Progress,
    *,
    device: str | None = None,
    dtype: str = "float32",
    lazy: bool = False,
) -> tuple[Any, Any, Any]:
    """The model, its dictionaries and the pairs that the options name; the prompts are read first, None without any."""
    from circuitgraph.dictionaries.load import load_dictionaries
    from circuitgraph.doors import as_dictionaries
    from circuitgraph.models.load import load_model
    from circuitgraph.models.model import DTYPES as dtypes
    from circuitgraph.prompts import read_pairs

    pairs = None if prompts is None else read_pairs(prompts)
    progress("loading the model", 0, 1)
    loaded = load_model(model, device=device, dtype=dtypes[dtype])
    found = load_dictionaries(dictionaries, loaded, lazy=lazy) if dictionaries else as_dictionaries(None, loaded)
    return loaded, found, pairs


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress]:
    """A function (stage, done, total) that moves a progress bar on stderr."""
    if quiet:
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda stage, done, total: bar.update(
            task, description=stage, completed=done, total=total if total > 1 else None
        )
