"""Every Triton kernel compiles for every architecture, without spills, within its chips' limits, with 64-bit offsets.

Needs no GPU. The compiler runs in processes of its own: in this one, TRITON_INTERPRET=1 means interpreted kernels. The
tests that compile are marked slow. A quick test notices when the committed report is older than the sources.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from circuitgraph_kernels import SaeWeights, _tiles, _triton_kernels, sae_attribution
from circuitgraph_kernels import compile as compiler
from circuitgraph_kernels.compile import SOURCES, fingerprint, narrow_offsets, variants

KERNELS = Path(__file__).parents[2] / "kernels"
PACKAGE = KERNELS / "circuitgraph_kernels"
ARCHS = list(_tiles.SCREEN)
# The tiles of sm_80 also serve chips of 8.6, 8.9 and 12.0, where a block has 99 KiB.
SHARED = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
TENSOR_MEMORY = 512  # columns; a kernel that needs more compiles to three instructions, one of them a trap
TENSOR_CORE = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA"}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = {torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32", torch.int64: "i64"}
LONG = {"fp32": "float32", "fp64": "float64"}
Row = dict[str, Any]


def run_compile(*arguments: str, root: Path = KERNELS) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment |= {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "circuitgraph_kernels.compile", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def compile_rows(*arguments: str, root: Path = KERNELS) -> list[Row]:
    done = run_compile("--json", *arguments, root=root)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()[1:]]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """All rows of all architectures: two minutes of CPU time, one process each."""
    with ThreadPoolExecutor(len(ARCHS)) as pool:
        return sum(pool.map(lambda arch: compile_rows("--arch", arch), ARCHS), [])


def check(rows: list[Row], is_right: Callable[[Row], bool]) -> None:
    assert rows
    wrong = [row for row in rows if not is_right(row)]
    assert not wrong, "\n" + "\n".join(map(str, wrong))


def rows_of_tile(row: Row) -> int:
    return int(re.search(r" (\d+)x", row["variant"])[1])


@pytest.mark.slow
def test_no_kernel_uses_local_memory(rows: list[Row]) -> None:
    check(rows, lambda row: row["stack"] == 0 and row["spills"] == 0 and row["registers"] <= 255)


@pytest.mark.slow
def test_every_kernel_fits_into_the_shared_and_tensor_memory_of_its_chips(rows: list[Row]) -> None:
    check(rows, lambda row: row["shared"] <= SHARED[row["arch"]] and row["tmem"] <= TENSOR_MEMORY)


@pytest.mark.slow
def test_no_kernel_is_only_a_trap(rows: list[Row]) -> None:
    check(rows, lambda row: row["traps"] == 0 and row["instructions"] > 50)


@pytest.mark.slow
def test_the_screen_runs_on_the_tensor_cores_of_its_generation(rows: list[Row]) -> None:
    def runs_on_them(row: Row) -> bool:
        # HGMMA and UTCHMMA multiply at least 64 rows
        expected = TENSOR_CORE[row["arch"]] if rows_of_tile(row) >= 64 else "HMMA"
        return bool(row["tensor_core"]) and all(name.split(".")[0] == expected for name in row["tensor_core"])

    screens = [row for row in rows if row["kernel"] == "screen"]
    assert {(row["arch"], rows_of_tile(row)) for row in screens} == {
        (arch, tile.rows) for arch, tiles in _tiles.SCREEN.items() for tile in tiles.values()
    }
    check(screens, runs_on_them)


@pytest.mark.slow
def test_rows_are_gathered_128_bits_at_a_time(rows: list[Row]) -> None:
    """A thread's share of both rows: PAIRS x 128 elements over 128 threads. W in bfloat16 takes half as many loads."""
    check([row for row in rows if row["kernel"] == "refine"], lambda row: row["loads_128"] >= 16)
    check([row for row in rows if row["kernel"] == "gather_dots"], lambda row: row["loads_128"] >= 6)
    check([row for row in rows if row["kernel"] == "screen"], lambda row: row["copies_128"] >= 24)


@pytest.mark.slow
def test_no_product_with_a_stride_is_32_bits_wide(rows: list[Row]) -> None:
    check(rows, lambda row: row["narrow_offsets"] == 0)


@pytest.mark.slow
def test_that_check_fails_where_rows_are_not_widened(tmp_path: Path) -> None:
    copy = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = copy / "_triton_kernels.py"
    widened = "return i_row.to(tl.int64) * stride"
    assert source.read_text().count(widened) == 1
    source.write_text(source.read_text().replace(widened, "return i_row * stride"))
    broken = compile_rows("--arch", "sm_80", "--kernel", "round_rows", "decode_rows", root=tmp_path)
    check(broken, lambda row: row["narrow_offsets"] > 0)


def test_the_check_follows_an_offset_through_loops_and_branches() -> None:
    def count(product: str) -> int:
        return narrow_offsets(f"""
            %c = arith.constant 64 : i32 loc(#loc1)
            %i = tt.get_program_id x : i32 loc(#loc1)
            %block = arith.muli %i, %c : i32 loc(#loc1)
            %row = tt.splat %block : i32 -> tensor<64xi32> loc(#loc1)
            {product} loc(#loc1)
            %sum:2 = scf.for %j = %z to %d step %c iter_args(%first = %offset, %other = %z) -> (i32, i32)  : i32 {{
              %either = scf.if %flag -> (i32) {{
                scf.yield %first : i32 loc(#loc1)
              }} else {{
                scf.yield %other : i32 loc(#loc1)
              }} loc(#loc1)
              scf.yield %either, %other : i32, i32 loc(#loc1)
            }} loc(#loc1)
            %p = tt.addptr %base, %sum#0 : !tt.ptr<f32>, i32 loc(#loc1)
        """)

    assert count("%offset = arith.muli %row, %stride : tensor<64xi32>") == 1
    assert count("%offset = arith.muli %row, %c : tensor<64xi32>") == 1
    assert count("%offset = arith.muli %i, %stride : i32") == 1
    assert count("%offset = arith.muli %row, %stride : tensor<64xi64>") == 0
    assert count("%offset = arith.muli %i, %c : i32") == 0
    assert count("%unused = arith.muli %row, %stride : tensor<64xi32>") == 0


def test_every_kernel_that_is_launched_is_compiled() -> None:
    kernels, called = set(), set()
    for name in ("_triton_kernels.py", "_triton_products.py"):
        for function in ast.parse((PACKAGE / name).read_text()).body:
            if isinstance(function, ast.FunctionDef):
                kernels.add(function.name)
                calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
                called |= {call.id for call in calls if isinstance(call, ast.Name)}
    for arch in ARCHS:
        assert {variant.kernel for variant in variants(arch)} == kernels - called


def test_what_is_launched_is_what_is_compiled() -> None:
    """Types of the arguments, kind and options of every launch of float32 inputs are those of one of the variants."""
    launched = set()
    chosen = ("ACTIVATION", "MODE", "RUNS", "SCALED", "DTYPE")

    def described(kernel: str, arguments: Iterable[str], keywords: dict[str, Any]) -> tuple[object, ...]:
        options = {} if kernel == "screen" else {k: v for k, v in keywords.items() if k.islower()}
        constants = {k: LONG.get(str(v), str(v)) for k, v in keywords.items() if k in chosen}
        return kernel, *arguments, *sorted(constants.items()), *sorted(options.items())

    run = type(_triton_kernels.screen).run

    def recorded(self: Any, *arguments: object, grid: object, warmup: bool, **keywords: Any) -> object:
        types = [f"*{TYPES[each.dtype]}" if isinstance(each, Tensor) else "number" for each in arguments]
        launched.add(described(self.__name__, types, keywords))
        return run(self, *arguments, grid=grid, warmup=warmup, **keywords)

    random = torch.Generator().manual_seed(0)
    x, W_enc, W_dec = (torch.randn(*shape, generator=random).to(DEVICE) for shape in ((3, 4, 16), (16, 40), (40, 16)))
    gated = {name: torch.zeros(40, device=DEVICE) for name in ("b_gate", "r_mag", "b_mag")}
    with patch.object(type(_triton_kernels.screen), "run", recorded):
        for activation, more in {"relu": {}, "topk": {"k": 4}, "gated": gated, "identity": {}}.items():
            weights = SaeWeights(
                W_enc, torch.zeros_like(W_enc[0]), W_dec, torch.zeros_like(W_dec[0]), activation, **more
            )
            sae_attribution(*x, weights, backend="triton")
    expected = {
        described(
            variant.kernel,
            [each if isinstance(each, str) else "number" for each in variant.arguments],
            _tiles.OPTIONS | variant.options | variant.constants,
        )
        for variant in variants(_tiles.architecture(torch.device(DEVICE)))
    }
    assert {kernel for kernel, *_ in launched} >= {"screen", "refine", "compact", "token_errors"}
    assert launched <= expected, launched - expected


AGAIN = "make it again: python -m circuitgraph_kernels.compile --json > kernels/aot.jsonl"


def test_the_committed_report_is_of_these_sources() -> None:
    first, *rows = (json.loads(line) for line in (KERNELS / "aot.jsonl").read_text().splitlines())
    assert first == {"sources": fingerprint()}, AGAIN
    expected = [(arch, variant.kernel, variant.name) for arch in ARCHS for variant in variants(arch)]
    assert [(row["arch"], row["kernel"], row["variant"]) for row in rows] == expected, AGAIN


@pytest.mark.parametrize("name", SOURCES)
def test_a_change_in_a_source_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    copy = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = fingerprint()
    monkeypatch.setattr(compiler, "__file__", str(copy / "compile.py"))
    assert fingerprint() == before
    with (copy / name).open("a") as file:
        file.write("# changed")
    assert fingerprint() != before


def test_every_kernel_stands_in_a_file_that_is_watched() -> None:
    holders = {path.name for path in PACKAGE.glob("*.py") if "@triton.jit" in path.read_text()}
    assert holders >= {"_triton_kernels.py", "_triton_products.py"} and holders <= set(SOURCES)


@pytest.mark.slow
def test_the_committed_report_is_this_one(rows: list[Row]) -> None:
    """Numbers are compared where the Triton is the same: they depend on its compiler."""
    committed = [json.loads(line) for line in (KERNELS / "aot.jsonl").read_text().splitlines()[1:]]

    def shown(row: Row, other: Row) -> Row:
        names = set(row) - {"seconds"} if row["triton"] == other["triton"] else {"arch", "kernel", "variant"}
        return {name: row[name] for name in names}

    assert len(rows) == len(committed)
    for row, other in zip(rows, committed, strict=True):
        assert shown(row, other) == shown(other, row), AGAIN


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        ([], {"TRITON_INTERPRET": "1"}, "TRITON_INTERPRET is set, so kernels are interpreted and cannot be compiled"),
        (["--kernel", "count", "refin"], {}, "gather_dots. Did you mean 'refine'?"),
        (["--arch", "sm_80", "sm_70"], {}, "arch is 'sm_70', expected one of sm_80, sm_90, sm_100. Did you mean"),
        (["--arch", "ampere"], {}, "arch is 'ampere', expected one of sm_80, sm_90, sm_100."),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    variables: dict[str, str],
    message: str,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused(capsys, arguments, message)


def test_without_triton_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # counts as not installed
    refused(capsys, [], "triton is not installed")


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert compiler.main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err and printed.err.count("\n") == 1


@pytest.mark.slow
def test_the_table_has_one_line_per_variant() -> None:
    done = run_compile("--arch", "sm_80", "--kernel", "count", "compact")
    assert done.returncode == 0, done.stderr
    _, head, *lines = done.stdout.splitlines()
    assert head.split()[:3] == ["sm_80", "regs", "stack"]
    assert [line.split()[0] for line in lines] == ["count", "compact"]
