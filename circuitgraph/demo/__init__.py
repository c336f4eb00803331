"""The embedded demo: a small GPT-2 that solves the tasks of `circuitgraph.tasks`, and dictionaries trained on it.

Out come two folders, `MODEL` (Hugging Face format) and `DICTIONARIES` (one sae-lens folder for each site, named after it).
`python -m circuitgraph.demo.train` made them. This module imports nothing but pathlib and knows not what is in the folders.
"""

from __future__ import annotations

from pathlib import Path

MODEL: Path = Path(__file__).parent / "mini_english"
DICTIONARIES: Path = Path(__file__).parent / "dictionaries"


def circuit_dictionaries() -> list[Path]:
    """The dictionaries that a circuit graph is built from: attention outputs (z) and MLP transcoders of every layer."""
    return sorted(path for path in DICTIONARIES.iterdir() if path.name.startswith(("z.", "mlp_out.")))
