"""What the compiler makes of every Triton kernel: registers, spills, shared memory, tensor cores. Needs no GPU.

Each variant that is launched is compiled for d = 768 and described in one line. tests/kernels/test_compile.py judges
the numbers. kernels/aot.jsonl is what `python -m circuitgraph_kernels.compile --json` printed. Its first line says from
which sources, so that a quick test notices when it must be made again.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from circuitgraph_kernels import _tiles

# The launches that are described. 1 is compiled in, multiples of 16 are known as such, and a capacity is neither.
D, D_SAE, N_TOKENS, N_ROWS, CAPACITY = 768, 24576, 150, 300, 9001
N_WORDS = D_SAE // 32
STRIDE_K = N_TOKENS * D


# The files that decide what is compiled.
SOURCES = ("_tiles.py", "_triton.py", "_triton_kernels.py", "_triton_products.py", "_triton_screen.py", "compile.py")


class Refused(ValueError):
    """Nothing can be compiled: a name is unknown, or Triton is missing or interprets its kernels."""


@dataclass(frozen=True)
class Variant:
    """One launch: arguments in order as pointer types or example numbers, constants by name."""

    kernel: str
    name: str
    arguments: Sequence[object]
    constants: dict[str, Any]
    options: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """One row of the report."""

    arch: str
    kernel: str
    variant: str
    registers: int  # per thread
    stack: int  # bytes per thread
    spills: int  # instructions that read or write local memory
    shared: int  # bytes, static and dynamic
    tmem: int  # columns
    tensor_core: dict[str, int]  # opcode -> how often
    loads_128: int  # LDG of 128 bits
    copies_128: int  # LDGSTS (cp.async) of 128 bits
    instructions: int
    traps: int  # those of the tcgen05 guard not counted
    narrow_offsets: int  # see narrow_offsets()
    seconds: float  # to compile, without a cache
    triton: str


def fingerprint() -> str:
    """A hash of the sources, the same on every machine."""
    folder = Path(__file__).parent
    texts = (f"{name}\n{(folder / name).read_text(encoding='utf-8')}" for name in SOURCES)
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def variants(arch: str) -> list[Variant]:
    """The launches of `_triton_screen` and `_triton` with a baseline and float32, and some others."""
    from circuitgraph_kernels._triton import ENTRIES_PER_STEP

    f32: dict[str, Any] = {"DTYPE": "float32"}
    words = {"BW": _tiles.WORDS, "RUNS": 2}
    depth, pairs = {"BD": _tiles.depth_block(D)}, {"BP": _tiles.PAIRS, "BD": _tiles.depth_block(D)}
    mask = [N_TOKENS, N_WORDS, N_WORDS]

    found = _screens(arch)
    for x in ("fp32", "bf16", "fp64"):
        found.append(Variant("round_rows", x, [f"*{x}", "*fp16", *["*fp32"] * 3, N_TOKENS, D, D, D], depth))
    found.append(Variant("count", "2 runs", ["*i32", "*i32", *mask], words))
    found.append(Variant("expand", "2 runs", ["*i32", "*i64", "*i32", "*i32", *mask, CAPACITY], words))
    found += _refines()

    arguments: list[object] = ["*i32", "*i32", *["*fp32"] * 3, "*i64", "*i64", "*i64", *["*fp32"] * 3, 1, CAPACITY]
    found.append(Variant("compact", "fp32", arguments, {"BP": ENTRIES_PER_STEP}))
    arguments = [*["*fp32"] * 3, "*i64", "*fp32", D, N_TOKENS, STRIDE_K, D, D, CAPACITY]
    found.append(Variant("token_errors", "fp32", arguments, f32 | depth | {"BN": ENTRIES_PER_STEP}))
    for name, w in (("fp32", "*fp32"), ("fp32, W bf16", "*bf16")):
        found.append(Variant("decode_rows", name, ["*i64", "*fp32", "*i64", w, "*fp32", D, D], f32 | pairs))
    for name, x, w in (("fp32", "*fp32", "*fp32"), ("fp32, W bf16", "*fp32", "*bf16"), ("fp64", "*fp64", "*fp64")):
        dtype = {"DTYPE": x.replace("*fp", "float")}
        arguments = [x, "*i64", w, "*i64", x, CAPACITY, D, STRIDE_K, D, D]
        found.append(Variant("gather_dots", name, arguments, dtype | pairs))
    return found


def _screens(arch: str) -> list[Variant]:
    """Every tile as a mask; for topk the largest and the smallest."""
    table = _tiles.SCREEN[arch]
    sizes = {tile: limit or N_ROWS for limit, tile in table.items()}
    by_rows = sorted(sizes, key=lambda tile: tile.rows)
    modes = [("mask", tile) for tile in by_rows]
    modes += [(mode, tile) for mode in ("rank", "group") for tile in (by_rows[0], by_rows[-1])]
    found = []
    for mode, tile in modes:
        out = "*fp32" if mode == "group" else "*i32"
        arguments = [
            "*fp16",
            *["*fp32"] * 4,
            "*fp16",
            *["*fp32"] * 5,
            out,
            -(-sizes[tile] // tile.rows),
            D_SAE,
            N_WORDS,
        ]
        constants = {"D": D, "BM": tile.rows, "BF": tile.features, "BK": tile.depth, "MODE": mode}
        options = {"num_warps": tile.warps, "num_stages": tile.stages}
        name = f"{mode} {tile.rows}x{tile.features}x{tile.depth} {tile.warps} warps {tile.stages} stages"
        found.append(Variant("screen", name, arguments, constants, options))
    return found


def _refines() -> list[Variant]:
    def refine(kind: str, runs: int, x: str = "fp32", w: str = "fp32", k: int = 1, scaled: bool = False) -> Variant:
        read = [f"*{x}", f"*{x}", f"*{w}", f"*{w}", *[f"*{x}"] * 6, f"*{w}"]
        arguments = ["*i32", "*i32", "*i64", *read, *[f"*{x}"] * 4, D, D, k, CAPACITY, D, D, D, STRIDE_K, D, D]
        constants = {"ACTIVATION": kind, "RUNS": runs, "SCALED": scaled, "DTYPE": x.replace("fp", "float")}
        blocks = {"BP": _tiles.PAIRS, "BD_IN": _tiles.depth_block(D), "BD_OUT": _tiles.depth_block(D)}
        rest = [f"W {w}"] * (w != x) + [f"{k} gradients"] * (k != 1) + ["scaled"] * scaled
        name = ", ".join([f"{kind} {runs} run{'s' * (runs > 1)} {x}", *rest])
        options = _tiles.refine_options(getattr(torch, x.replace("fp", "float")))
        return Variant("refine", name, arguments, constants | blocks, options)

    found = [refine(kind, 2) for kind in ("threshold", "gated", "topk", "identity")]
    found += [refine("threshold", 1), refine("topk", 1)]
    found += [refine(kind, 2, w="bf16") for kind in ("threshold", "gated")]
    found += [refine("threshold", 2, k=3), refine("threshold", 2, scaled=True)]
    return [*found, refine("threshold", 2, "fp64", "fp64")]


def narrow_offsets(ttir: str) -> int:
    """How many 32-bit products reach an address in this Triton IR: each can wrap at 2^31 in a large tensor.

    Not counted is a program's index times a constant, the start of its block: it counts rows or columns, and their
    number fits 32 bits. What may not is such a number times a stride.
    """
    # Names of sibling regions can be equal; a name then has several definitions and counts as all of them.
    definitions: defaultdict[str, set[str]] = defaultdict(set)
    regions: list[set[str]] = []
    reached: set[str] = set()
    for line in (raw.strip().split(" loc(")[0] for raw in ttir.splitlines()):
        results = regions.pop() if line.startswith("}") and regions else set()  # "} else {" goes on with them
        if found := re.match(r"(?:scf\.for )?((?:%\w+(?::\d+)?,? )+)= (.*)", line):
            carried = re.findall(r"(%\w+) = %", found[2])  # index and variables of a loop
            results = {*_names(found[1]), *carried}
            for name in results:
                definitions[name].add(found[2])
            if found[2].startswith("tt.addptr"):
                reached.add(_names(found[2])[1])
        elif line.startswith("scf.yield"):
            for name in regions[-1]:
                definitions[name].add(line)
        if line.endswith("{"):
            regions.append(results)

    pending = list(reached)
    while pending:
        for text in definitions[pending.pop()]:
            if not text.startswith(("tt.load", "arith.cmp", "tt.get_program_id")):
                pending += set(_names(text)) - reached
                reached.update(_names(text))

    def is_program(name: str) -> bool:
        return any(
            text.startswith("tt.get_program_id")
            or (text.startswith(("arith.divsi", "arith.remsi")) and is_program(_names(text)[0]))
            for text in definitions[name]
        )

    def starts_block(text: str) -> bool:
        factors = _names(text)
        constants = [any(each.startswith("arith.constant") for each in definitions[name]) for name in factors]
        return text.endswith(": i32") and any(constants) and any(map(is_program, factors))

    products = [text for name in reached for text in definitions[name] if text.startswith("arith.muli")]
    return sum(bool(re.search(r"[ x]i32>?$", text)) and not starts_block(text) for text in products)


def _names(text: str) -> list[str]:
    return re.findall(r"%\w+", text)


def _chosen(arch: str, kernels: Iterable[str] | None) -> list[Variant]:
    if importlib.util.find_spec("triton") is None:
        raise Refused("triton is not installed, expected it to compile kernels: pip install triton")
    if os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y"):
        raise Refused("TRITON_INTERPRET is set, so kernels are interpreted and cannot be compiled; unset it")
    _check("arch", [arch], _tiles.SCREEN)
    everything = variants(arch)
    names = list(dict.fromkeys(variant.kernel for variant in everything))
    chosen = names if kernels is None else list(kernels)
    _check("kernel", chosen, names)
    return [variant for variant in everything if variant.kernel in chosen]


def _check(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise Refused(f"{what} is {name!r}, expected one of {', '.join(known)}.{hint}")


def _compiled(arch: str, chosen: Iterable[Variant]) -> Iterator[Facts]:
    """One after the other, in a cache of their own: seconds are then those of a first launch."""
    with tempfile.TemporaryDirectory() as folder, _cache(folder):
        for variant in chosen:
            try:
                facts = _facts(arch, variant, Path(folder))
            except Exception as error:
                raise RuntimeError(f"{variant.kernel} ({variant.name}) does not compile for {arch}") from error
            yield facts


@contextmanager
def _cache(folder: str) -> Iterator[None]:
    name = "TRITON_CACHE_DIR"
    before = os.environ.get(name)
    os.environ[name] = folder
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _facts(arch: str, variant: Variant, folder: Path) -> Facts:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from circuitgraph_kernels import _triton_kernels, _triton_products

    module = _triton_kernels if hasattr(_triton_kernels, variant.kernel) else _triton_products
    function = getattr(module, variant.kernel)
    source = ASTSource(function, *_specialized(function, variant))
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    started = time.perf_counter()
    kernel = triton.compile(source, target, _tiles.OPTIONS | variant.options)
    seconds = time.perf_counter() - started

    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    usage = dict(re.findall(r"(\w+):(\d+)", _tool("cuobjdump", "-res-usage", str(binary)).partition("Function")[2]))
    opcodes, traps = _opcodes(_tool("nvdisasm", str(binary)))
    wide = [opcode for opcode in opcodes.elements() if ".128" in opcode]
    return Facts(
        arch,
        variant.kernel,
        variant.name,
        registers=int(usage["REG"]),
        stack=int(usage["STACK"]),
        spills=sum(n for opcode, n in opcodes.items() if opcode.startswith(("LDL", "STL"))),
        shared=int(usage["SHARED"]) + kernel.metadata.shared,
        tmem=getattr(kernel.metadata, "tmem_size", None) or 0,
        tensor_core={name: n for name, n in sorted(opcodes.items()) if re.match(r"[HID]G?MMA|UTC\w*MMA", name)},
        loads_128=sum(opcode.startswith("LDG.") for opcode in wide),
        copies_128=sum(opcode.startswith("LDGSTS.") for opcode in wide),
        instructions=opcodes.total() - opcodes["NOP"],
        traps=traps,
        narrow_offsets=narrow_offsets(kernel.asm["ttir"]),
        seconds=round(seconds, 1),
        triton=triton.__version__,
    )


def _specialized(function: Any, variant: Variant) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], Any]]:
    """Signature, constants and attributes, by the rules of a launch: see `variants`."""
    import triton.language as tl

    signature, attributes = {}, {}
    constants = variant.constants | {"DTYPE": getattr(tl, variant.constants.get("DTYPE", "float32"))}
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    runtime = [name for name in function.arg_names if name not in constants]
    values = dict(zip(runtime, variant.arguments, strict=True))
    for index, name in enumerate(function.arg_names):
        value = values.get(name, 1)
        signature[name] = value if isinstance(value, str) else "constexpr" if value == 1 else "i32"
        if value == 1:
            constants.setdefault(name, 1)
        elif isinstance(value, str) or value % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _tool(name: str, *arguments: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def _opcodes(sass: str) -> tuple[Counter[str], int]:
    """How often each opcode occurs, and how many traps there are in the kernel itself.

    Every tcgen05 kernel ends with two functions of ptxas that trap, called only if it gives back tensor memory that it
    did not allocate.
    """
    opcodes: Counter[str] = Counter()
    traps, in_guard = 0, False
    for line in sass.splitlines():
        if label := re.match(r"([\w$.]+):$", line):
            in_guard = "tcgen05_guardrail_trap" in label[1] or (in_guard and label[1].startswith(".L"))
        elif opcode := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+\{?\s*(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
            opcodes[opcode[1]] += 1
            traps += opcode[1] == "BPT.TRAP" and not in_guard
    return opcodes, traps


def _row(cells: Iterable[object]) -> str:
    kernel, variant, *numbers, tensor_core, seconds = map(str, cells)
    return f"{kernel:17}{variant:36}" + "".join(f"{cell:>7}" for cell in numbers) + f"{seconds:>8}  {tensor_core}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="circuitgraph_kernels.compile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=list(_tiles.SCREEN), metavar="NAME", help="default: all")
    parser.add_argument("--kernel", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--json", action="store_true", help="one line of JSON for the sources and one per variant")
    options = parser.parse_args(arguments)
    try:
        plans = {arch: _chosen(arch, options.kernel) for arch in options.arch}
    except Refused as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    shown = [each.name for each in fields(Facts)]
    if options.json:
        print(json.dumps({"sources": fingerprint()}), flush=True)
    else:
        print("regs, tmem: number; stack, shared: bytes; spill, ldg128, async128, sass, trap, narrow: instructions")
    for arch, plan in plans.items():
        if not options.json:
            head = ("regs", "stack", "spill", "shared", "tmem", "ldg128", "async", "sass", "trap", "narrow")
            print(_row((arch, "", *head, "tensor core", "s")))
        for facts in _compiled(arch, plan):
            cells = asdict(facts)
            if options.json:
                print(json.dumps(cells), flush=True)
                continue
            cells["tensor_core"] = ", ".join(f"{name} x{n}" for name, n in facts.tensor_core.items())
            order = [n for n in shown if n not in ("arch", "triton", "tensor_core", "seconds")]
            print(_row([*(cells[n] for n in order), cells["tensor_core"], cells["seconds"]]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
