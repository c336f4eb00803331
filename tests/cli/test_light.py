"""Commands that only look at a graph start at once: they import nothing that runs a model or draws plots."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.graphs import example_graph

from circuitgraph.formats import load, save

HEAVY = {
    "torch",
    "transformers",
    "transformer_lens",
    "sae_lens",
    "plotly",
    "triton",
    "pandas",
    "scipy",
    "rich",
    "IPython",
}
COMMANDS = {
    "show": ["show", "graph.json"],
    "prune": ["prune", "graph.json", "--max-nodes", "20", "-o", "out.json"],
    "render": ["render", "graph.json", "-o", "out.html"],
    "render, drawn by Graphviz": ["render", "graph.json", "-o", "out.dot"],
    "convert": ["convert", "graph.json", "-o", "out.graphml"],
    "convert, read as XML": ["convert", "graph.gexf", "-o", "out.svg"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_command_that_runs_no_model_imports_nothing_heavy(arguments, tmp_path):
    save(example_graph(), tmp_path / "graph.json")
    save(load(tmp_path / "graph.json"), tmp_path / "graph.gexf")
    program = (
        "import sys; from circuitgraph.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        f"except SystemExit as end: assert not end.code; print('heavy', sorted({HEAVY!r} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1:] == ["heavy []"], done.stdout + done.stderr
    assert len(done.stdout.splitlines()) > 1
