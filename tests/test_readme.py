"""The README cannot lie: its program runs, its commands are the ones that CI runs, and every option is in it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from support import ROOT

from circuitgraph.cli.main import main

README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_program_runs_and_has_twelve_lines(tmp_path):
    (program,) = _blocks("python")
    assert len([line for line in program.splitlines() if line.strip()]) <= 12
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in tmp_path.iterdir()} == {"circuit.json", "circuit.html"}
    assert float(re.search(r"faithfulness (\S+)", done.stdout)[1]) > 0.5


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "quickstart.py", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "agreement.html").stat().st_size > 10_000 and "faithfulness" in done.stdout


def test_ci_runs_the_readmes_test_command():
    command = next(block for block in _blocks("sh") if "pytest" in block).strip()
    assert "\n" not in command
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    install, test = command.replace("pip install ", "pip install -q ").rsplit(" && ", 1)
    assert lines.index("rm -rf .venv") < lines.index(install) < lines.index(test)


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_and_option_is_mentioned(name):
    assert f"circuitgraph {name}" in README
    missing = [
        option
        for parameter in main.commands[name].params
        for option in parameter.opts
        if option.startswith("--") and option not in README
    ]
    assert not missing


def test_every_folder_and_module_is_in_the_file_tree():
    tree = next(block for block in _blocks("text") if "circuitgraph/" in block)
    modules = {path.name for path in (ROOT / "circuitgraph").glob("*.py")} - {"__init__.py", "__main__.py"}
    folders = {f"{path.name}/" for path in (ROOT / "circuitgraph").iterdir() if (path / "__init__.py").exists()}
    assert not [name for name in modules | folders if name not in tree]


def test_every_local_link_and_picture_exists():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert target.startswith("https://") or (ROOT / target).exists(), target
