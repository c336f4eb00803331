"""The shapes in signatures are true: small graphs of every kind are found while beartype and jaxtyping check each call.

Checking every call makes these packages about twice as slow, so it is done here alone, in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAM = """
import sys
from pathlib import Path

from jaxtyping import TypeCheckError, install_import_hook

install_import_hook(["circuitgraph.paths", "circuitgraph.edges", "circuitgraph.attribution"], "beartype.beartype")

import torch
from support.aligned_pairs import EVERYTHING, FIRST, SECOND
from support.dictionary_kinds import dictionary_set
from support.families import save_family

from circuitgraph.discovery import discover
from circuitgraph.models.load import load_model
from circuitgraph.paths.path import Projection

torch.set_num_threads(1)
aligned = {"align": "role", "node_influence": 0.9}
for family, name, settings in [
    ("gpt2", "transcoders", aligned),
    ("gpt2", "residual", {"errors_as_targets": True, "positions": "sum", "baseline": "zero", **aligned}),
    ("gpt2", "neurons", {"targets": ["mlp_post.1/f1@7", " c"], "method": "integrated", "steps": 2}),
    ("gemma2", "cross_layer", {"baseline": "zero", "memory": 1e-5}),
    ("gemma2", "output_saes", {"qk": "ablate", **aligned}),
    ("qwen3", "skip_transcoders", {"targets": "logits", "attention": "frozen", "mlp": "frozen", "max_traced": 20}),
    ("llama", "skips_below_a_floor", {"attention": "frozen", "mlp": "frozen", "positions": "sum", "top_k": 30}),
]:
    folder = Path(sys.argv[1]) / family
    model = load_model(folder if folder.exists() else save_family(folder, family), dtype=torch.float64)
    pairs = [FIRST, SECOND] if "align" in settings else [FIRST]
    graph = discover(pairs, model, dictionary_set(model, name), **EVERYTHING, **settings)
    assert graph.number_of_edges() > 10, (family, name, graph.graph["reports"])

try:
    Projection().of(torch.zeros(2, 3), torch.arange(3))
except TypeCheckError:
    print("all shapes are true")
"""


def test_every_call_has_the_shapes_that_its_signature_states(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels", ROOT / "tests")))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip().endswith("all shapes are true"), done.stdout + done.stderr[-3000:]
