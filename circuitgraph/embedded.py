"""Where the embedded model and its dictionaries lie: a small GPT-2 that solves the tasks of `circuitgraph.tasks`."""

from __future__ import annotations

from pathlib import Path

DEMO = "demo"  # the name that stands for both

MODEL: Path = Path(__file__).parent / "demo" / "mini_english"
DICTIONARIES: Path = Path(__file__).parent / "demo" / "dictionaries"


def circuit_dictionaries() -> list[Path]:
    """The dictionaries that a circuit graph is built from: attention outputs (z) and MLP transcoders of every layer."""
    return sorted(path for path in DICTIONARIES.iterdir() if path.name.startswith(("z.", "mlp_out.")))
