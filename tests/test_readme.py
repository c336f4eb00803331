"""The documents cannot lie: programs run, commands and options are listed, links and names lead somewhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from circuitgraph.cli.main import main

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = (ROOT / "circuitgraph" / "cli" / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
HIDDEN = {".venv", "node_modules", ".pytest_cache"}
DOCUMENTS = sorted(path for path in ROOT.rglob("*.md") if not HIDDEN & set(path.relative_to(ROOT).parts))
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
# Words of before, which mean nothing any more. The changelog tells what became of them.
OLD_WORDS = ("--trace-errors", "--max-readers", "recompute", "through|", "discover_circuit", "prune_graph", "inflow")


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_program_runs_and_has_at_most_twelve_lines(tmp_path):
    (program,) = blocks(README, "python")
    assert len([line for line in program.splitlines() if line.strip()]) <= 12
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in tmp_path.iterdir()} == {"circuit.json", "circuit.html"}
    assert float(re.search(r"^faithfulness (\S+)", done.stdout, re.MULTILINE)[1]) > 0.5


def test_ci_runs_the_readmes_test_command():
    (command,) = (block.strip() for block in blocks(README, "sh") if "pytest" in block)
    assert command in CONTRIBUTING
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    install, test = command.replace("pip install ", "pip install -q ").rsplit(" && ", 1)
    assert lines.index("rm -rf .venv") < lines.index(install) < lines.index(test)


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_and_option_is_listed(name):
    assert f"| `{name}` |" in COMMANDS
    usage = re.search(rf"^    circuitgraph {name}\b.*?\n\n", COMMANDS, re.MULTILINE | re.DOTALL)
    assert usage, f"circuitgraph {name} is not listed"
    of_many = ("--output", "--quiet", "--debug", "--device")
    options = [
        option for parameter in main.commands[name].params for option in parameter.opts + parameter.secondary_opts
    ]
    listed = {*re.findall(r"--[a-z-]+", usage[0]), *(option for option in of_many if option in COMMANDS)}
    assert not [option for option in options if option.startswith("--") and option not in listed]
    known = {*options, *(option for other in main.params for option in other.opts)}
    assert not [option for option in re.findall(r"(?<=[\[ |])--[a-z-]+", usage[0]) if option not in known]


def flow() -> list[set[str]]:
    """The rows of imports that test_architecture enforces."""
    tree = ast.parse((ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8"))
    values = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    return ast.literal_eval(values["FLOW"])


def test_every_module_is_in_the_map_in_its_row():
    rows, number = {}, 0
    for line in re.findall(r"^\| .*$", CONTRIBUTING, re.MULTILINE):
        row, names = (cell.strip() for cell in line.split("|")[1:3])
        number = int(row) if row.isdigit() else number
        rows.setdefault(number, set()).update(re.findall(r"`(\w+)`", names))
    expected = [names - {"__init__", "__main__"} for names in flow()]
    assert [rows[number] for number in sorted(rows) if number] == [names for names in expected if names]


def test_the_stops_from_a_prompt_to_the_page_are_there():
    stops = re.findall(r"`([\w/]+\.py):(\w+)`", CONTRIBUTING)
    assert 10 <= len(stops) <= 13
    for path, name in stops:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}:{name}"


def test_every_file_that_contributing_names_is_there():
    names = re.findall(r"`((?:circuitgraph|tests|kernels|examples)/[\w./-]*)`", CONTRIBUTING)
    assert len(names) > 20
    assert not [name for name in names if "NAME" not in name and not (ROOT / name).exists()]


@each_document
def test_every_link_leads_to_a_file_and_a_heading(path: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        name, _, heading = target.partition("#")
        other = (path.parent / name).resolve() if name else path
        assert other.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, target


@each_document
def test_no_word_of_before_is_left(path: Path):
    text = path.read_text(encoding="utf-8")
    if path.name != "CHANGELOG.md":
        assert not [word for word in OLD_WORDS if word in text]
