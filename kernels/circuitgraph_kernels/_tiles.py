"""Tile sizes of the Triton kernels, by architecture and number of rows.

Chosen from what the compiler reports (`python -m circuitgraph_kernels.compile`): the largest tile that needs no local
memory and whose shared memory fits every chip of its row. Nothing is tuned at run time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """One program's block of the screen's product, and how it is compiled."""

    rows: int
    features: int
    depth: int
    warps: int
    stages: int


# Operands are padded to these, so every tile has to divide them.
FEATURES, DEPTH = 128, 64
# By the number of rows up to which a tile serves (0: any number). With few rows, reading W takes the time, so only the
# rows of the tile shrink.
SCREEN = {
    "sm_80": {
        16: Tile(16, 128, 64, 4, 4),
        32: Tile(32, 128, 64, 4, 4),
        64: Tile(64, 128, 64, 4, 3),
        0: Tile(128, 128, 64, 8, 3),
    },
    "sm_90": {
        16: Tile(16, 128, 64, 4, 4),
        32: Tile(32, 128, 64, 4, 4),
        64: Tile(64, 128, 64, 4, 4),
        0: Tile(128, 128, 64, 8, 3),
    },
    "sm_100": {
        16: Tile(16, 128, 64, 4, 4),
        32: Tile(32, 128, 64, 4, 4),
        64: Tile(64, 128, 64, 4, 4),
        0: Tile(128, 128, 64, 8, 4),
    },
}
PAIRS = 16  # candidates per program of the refine
WORDS = 16  # words of the mask per program of count and expand


# Stated in every launch, because Triton's own default for fused multiply-add is changing.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def refine_options(dtype: torch.dtype) -> dict[str, int | bool]:
    """How the refine is compiled: float64 needs 8 bytes of local memory with 4 warps on sm_80, none with 8."""
    return {**OPTIONS, "num_warps": 8 if dtype == torch.float64 else 4}


def screen_tile(rows: int, arch: str) -> Tile:
    """The tile for this many rows."""
    tiles = SCREEN[arch]
    return next((tile for limit, tile in tiles.items() if rows <= limit), tiles[0])


def architecture(device: torch.device) -> str:
    """The row of the table for a device: its own generation, or the last one before it with as little shared memory."""
    if device.type != "cuda":
        return "sm_80"  # the interpreter
    major, minor = torch.cuda.get_device_capability(device)
    return {(9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}.get((major, minor), "sm_80")


def depth_block(width: int) -> int:
    """Elements per step along a row: fixed by the width, because it decides the order of the sum."""
    return max(16, min(128, 1 << (width - 1).bit_length()))
