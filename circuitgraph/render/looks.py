"""Numbers that the pictures and the viewer have in common. The page carries them, so that each stands once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Curve:
    """The cubic from the top of an edge's source to the bottom of its target, in px and in radii of the two."""

    side: float = 0.55  # radii by which Q arrives at the left and K at the right, so that parallel edges stay apart
    start: float = 0.4  # of that, how far at the source
    top: float = 0.7  # radii above the source's centre where it starts
    bottom: float = 0.8  # radii below the target's centre where it ends
    bend: float = 14.0  # least px between an end and its control point
    steep: float = 0.45  # of the rise, the same
    lean: float = 6.0  # px by which Q and K lean to their side
    upright: float = 40.0  # px across, below which an edge is nearly upright and bows out beside the nodes it passes
    bow: float = 34.0  # most px that it does
    bow_slope: float = 0.16  # of the rise above bow_from px
    bow_from: float = 70.0


@dataclass(frozen=True)
class Lines:
    """Width in px and opacity of an edge: base + slope * strength ** power."""

    width: tuple[float, float, float] = (0.5, 3.6, 1.5)
    opacity: tuple[float, float, float] = (0.16, 0.74, 1.0)
    dash: tuple[float, float] = (7.0, 4.5)  # of negative edges, px drawn and px left out


@dataclass(frozen=True)
class Captions:
    """The most characters of a caption, by what it is."""

    label: int = 20
    metric: int = 24
    token: int = 14
    promoted: int = 10


@dataclass(frozen=True)
class Looks:
    """All of them. Radii: the smallest node has `least_radius` of the largest one's."""

    least_radius: float = 0.4
    cell_padding: float = 12.0  # px beside the nodes of the fullest cell of a column
    token_padding: float = 10.0  # px beside the token of a column
    curve: Curve = field(default_factory=Curve)
    lines: Lines = field(default_factory=Lines)
    captions: Captions = field(default_factory=Captions)

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


LOOKS = Looks()
