"""The notebooks run, are small, and use nothing but public names."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path

import pytest
from support import ROOT

import circuitgraph

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def private_names(program: str) -> list[str]:
    """What the program uses of circuitgraph that is not public."""
    found = []
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cg":
            found += [node.attr] if node.attr not in circuitgraph.__all__ else []
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "circuitgraph":
            public = getattr(importlib.import_module(node.module), "__all__", ())
            found += [f"{node.module}.{alias.name}" for alias in node.names if alias.name not in public]
    return found


def test_there_are_three_notebooks():
    assert [path.stem for path in NOTEBOOKS] == [
        "first_circuit",
        "interventions_and_evidence",
        "own_model_and_dictionaries",
    ]


@each_notebook
def test_a_notebook_is_small_and_every_cell_compiles_with_public_names_only(path):
    assert path.stat().st_size < 60_000
    cells = code_cells(path)
    assert len(cells) >= 4
    for cell in cells:
        assert not private_names("".join(cell["source"]))


@each_notebook
def test_the_outputs_are_those_of_one_run_from_top_to_bottom(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs and {output["output_type"] for output in outputs} <= {"stream", "execute_result"}
    assert all(output.get("name") != "stderr" for output in outputs)


def test_a_private_name_is_found():
    assert private_names("import circuitgraph as cg\ncg.discover_circuit()") == ["discover_circuit"]
    assert private_names("from circuitgraph.models import formulas") == ["circuitgraph.models.formulas"]
    assert not private_names("import circuitgraph as cg\ncg.discover()")


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs(path, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    before = [cell.get("outputs", []) for cell in notebook.cells]
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    for cell, old in zip(notebook.cells, before, strict=True):
        new = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        assert bool(new) == bool(old), f"cell {cell['id']} shows something else than before"
