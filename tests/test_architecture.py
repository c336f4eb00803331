"""The house rules that a machine can check: imports flow one way, files stay small, nothing is public by accident."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

PACKAGE = ROOT / "circuitgraph"

# A module imports only from rows above its own.
FLOW = [
    {"errors", "shares", "text", "embedded", "lazy_names", "circuitgraph_kernels"},
    {"settings", "files", "nodes", "progress", "prompts"},
    {"presets", "models", "metrics", "tasks"},
    {"dictionaries", "paths"},
    {"doors"},
    {"attribution"},
    {"edges", "interventions"},
    {"graphs"},
    {"discovery"},
    {"evaluation"},
    {"components"},
    {"render"},
    {"formats"},
    {"corpus"},
    {"demo", "studies"},
    {"cli"},
    {"__init__", "__main__"},
]
ROW = {name: row for row, names in enumerate(FLOW) for name in names}
FILES = sorted(path.relative_to(ROOT) for path in PACKAGE.rglob("*.py"))
KERNELS = sorted(path.relative_to(ROOT) for path in (ROOT / "kernels").rglob("*.py"))


def _module(path: Path) -> str:
    """The name in FLOW of a file: its folder inside the package, or its stem."""
    inside = path.relative_to("circuitgraph")
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def _imports(path: Path) -> set[str]:
    """Every module of ours that a file imports anywhere: at the top, inside functions, for type checking."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            names = [node.module or ""]
            if node.module == "circuitgraph":
                names = [f"circuitgraph.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "circuitgraph":
                found.add(parts[1] if len(parts) > 1 else "__init__")
            elif parts[0] == "circuitgraph_kernels":
                found.add("circuitgraph_kernels")
    return found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_follow_the_flow(path):
    own = _module(path)
    backward = {name for name in _imports(path) - {own} if ROW[name] >= ROW[own]}
    assert not backward, f"{path} imports {sorted(backward)}, which come after or beside it in FLOW"


@pytest.mark.parametrize("path", KERNELS, ids=str)
def test_the_kernels_package_knows_nothing_of_circuitgraph(path):
    assert not _imports(path) - {"circuitgraph_kernels"}


def test_every_module_has_its_place_in_the_flow():
    assert {_module(path) for path in FILES} | {"circuitgraph_kernels"} == set(ROW)


@pytest.mark.parametrize("path", FILES + KERNELS, ids=str)
def test_files_are_small_and_say_what_they_are(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    assert text.count("\n") <= 400, f"{path} holds more than one idea"
    assert max(map(len, text.split("\n"))) <= 120, f"{path} has lines of more than 120 characters"
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
    printing = path.name in ("bench.py", "compile.py") or path.name.startswith("train")
    assert "print(" not in text or printing, f"{path} prints"
    assert '"cuda"' not in text or path in KERNELS, f"{path} names a device"
    assert 'device="cuda"' not in text or path.name == "bench.py", f"{path} chooses a device"


def test_kernels_is_a_source_root_and_no_package():
    """transformers imports a package called `kernels` when it finds one."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_the_top_level_is_fixed():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    # an unpacked source distribution is no git checkout
    paths = tracked.stdout.splitlines() if tracked.returncode == 0 else [path.name for path in ROOT.iterdir()]
    top = {path.split("/")[0] for path in paths}
    allowed = {"pyproject.toml", "circuitgraph", "kernels", "tests", "examples", "README.md", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} <= allowed


def test_public_names_are_exactly_those_listed():
    import circuitgraph

    modules = {path.stem if path.name != "__init__.py" else path.parent.name for path in PACKAGE.glob("*")}
    assert not modules & set(circuitgraph.__all__), "a function named like its module would hide it, or be hidden by it"
    for name in circuitgraph.__all__:
        assert getattr(circuitgraph, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        circuitgraph.no_such_name  # noqa: B018


@pytest.mark.parametrize("arguments", [["--help"], ["discover", "--help"], ["demo", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments):
    program = (
        "import sys; from click.testing import CliRunner; from circuitgraph.cli.main import main;"
        f"result = CliRunner().invoke(main, {arguments!r}); assert result.exit_code == 0, result.output;"
        "print(sorted({'torch', 'numpy', 'networkx', 'transformers', 'transformer_lens', 'sae_lens'} & set(sys.modules)))"
    )
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
