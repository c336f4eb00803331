"""The command line, called in this process."""

from __future__ import annotations

from click.testing import CliRunner

from circuitgraph.cli.main import main


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def model_options(tiny_folder, folder):
    return "--model", tiny_folder, "--dictionaries", folder / "dictionaries"
