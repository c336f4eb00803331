"""Interventions as values: what is done to which part of the model, at which positions, and their text form.

    mlp_out.3/f17@5=0             set a feature's activation at position 5; a neuron's likewise (mlp_post.3/n40=1.5)
    mlp_out.3/f17*=2              scale it, here at every position
    z.2/h1@4:=mean                ablate: zero, mean, resample or corrupted; here a head from position 4 on
    mlp_out.3/error@2:5=other     the value of another run, named by the caller; here an error at positions 2 to 4
    resid_post.1@5=corrupted:0.3  between another run's value (0) and its own (1); here the whole vector at a site
    resid_pre.4@5+=3*z.2/f17      steer: add 3 times what one unit of the feature writes
    resid_pre.4@5-=z.2/f17        delete: subtract what the node itself writes in this run, at its own position, here

What fits a model and its dictionaries is checked by `checks`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from circuitgraph.errors import CircuitGraphError, GraphError
from circuitgraph.nodes import Node, Site

Part = Literal["feature", "error", "head", "neuron", "vector"]
_LETTER: dict[Part, str] = {"feature": "f", "head": "h", "neuron": "n"}


@dataclass(frozen=True)
class Span:
    """The positions start, start + 1, ... before stop; stop None: to the end, and to what is generated behind it."""

    start: int = 0
    stop: int | None = None

    def __str__(self) -> str:
        if self == Span():
            return ""
        if self.stop == self.start + 1:
            return f"@{self.start}"
        return f"@{self.start}:{'' if self.stop is None else self.stop}"

    def overlaps(self, other: Span) -> bool:
        """Whether the two have a position in common."""
        return self.start < (other.stop or math.inf) and other.start < (self.stop or math.inf)

    def within(self, n_pos: int) -> slice:
        """The slice of the first n_pos positions."""
        return slice(min(self.start, n_pos), n_pos if self.stop is None else min(self.stop, n_pos))


@dataclass(frozen=True)
class SitePart:
    """A part of what a site holds: a feature, head or neuron (these with an index), the error, or the whole vector."""

    site: Site
    part: Part
    index: int | None = None
    span: Span = Span()

    def __str__(self) -> str:
        return f"{self.name}{self.span}"

    @property
    def name(self) -> str:
        """The target without its positions."""
        if self.part == "vector":
            return str(self.site)
        return f"{self.site}/{self.part}" if self.part == "error" else f"{self.site}/{_LETTER[self.part]}{self.index}"

    @classmethod
    def of(cls, node: Node) -> SitePart:
        """The target that is this node of a graph; CircuitGraphError for the metric, biases and positions."""
        span = Span(node.pos, node.pos + 1)
        if node.kind == "embedding":
            return cls(node.site, "vector", None, span)
        if node.kind not in ("feature", "error"):
            raise CircuitGraphError(f"node {str(node)!r} is a {node.kind}, on which nothing can intervene")
        return cls(node.site, "feature" if node.kind == "feature" else "error", node.feature, span)

    @classmethod
    def parse(cls, text: str) -> SitePart:
        """The target that `str(target)` wrote; CircuitGraphError otherwise."""
        match = _TARGET.fullmatch(text)
        if match is None:
            raise CircuitGraphError(
                f"intervention target {text!r} does not parse: expected SITE, SITE/f17, SITE/error, z.LAYER/h1 or"
                " mlp_post.LAYER/n5, with @5, @2:7 or @4: behind it for some positions only"
            )
        try:
            site = Site.parse(match["site"])
        except GraphError as error:
            raise CircuitGraphError(f"intervention target {text!r}: {error}") from None
        start, stop = match["start"], match["stop"]
        if start is None:
            span = Span()
        elif not match["colon"]:
            span = Span(int(start), int(start) + 1)
        else:
            span = Span(int(start), int(stop) if stop else None)
        if span.stop is not None and span.stop <= span.start:
            raise CircuitGraphError(f"intervention target {text!r} has no positions: {span.stop} is not behind {start}")
        letter, index = match["letter"], match["index"]
        if letter is None:
            return cls(site, "error" if match["error"] else "vector", None, span)
        part = next(part for part, own in _LETTER.items() if own == letter)
        return cls(site, part, int(index), span)


@dataclass(frozen=True)
class Set:
    """The target's value becomes `value`; for an error, a head or a vector this can only be 0."""

    target: SitePart
    value: float

    def __str__(self) -> str:
        return f"{self.target}={self.value:g}"


@dataclass(frozen=True)
class Scale:
    """The target's value times `factor`."""

    target: SitePart
    factor: float

    def __str__(self) -> str:
        return f"{self.target}*={self.factor:g}"


@dataclass(frozen=True)
class Patch:
    """The target's value in another run; with `keep` c it is c times its own plus 1 - c times the other's.

    reference: "zero", "mean" and "resample" (of the corrupted prompts), "corrupted", or a run that the caller named.
    """

    target: SitePart
    reference: str
    keep: float = 0.0

    def __str__(self) -> str:
        return f"{self.target}={self.reference}" + (f":{self.keep:g}" if self.keep else "")


@dataclass(frozen=True)
class Steer:
    """`amount` times what one unit of a feature or neuron writes is added to the residual stream at the target."""

    target: SitePart
    write: SitePart
    amount: float = 1.0

    def __str__(self) -> str:
        return f"{self.target}+={_times(self.amount)}{self.write.name}"


@dataclass(frozen=True)
class Delete:
    """`amount` times what the node writes in this run, at each position, is taken from the stream at the target."""

    target: SitePart
    write: SitePart
    amount: float = 1.0

    def __str__(self) -> str:
        return f"{self.target}-={_times(self.amount)}{self.write.name}"


Intervention = Set | Scale | Patch | Steer | Delete
Interventions = Intervention | str | Sequence[Intervention | str]


def interventions_of(given: Interventions) -> tuple[Intervention, ...]:
    """The interventions: one or several, as values or as their text."""
    several = [given] if isinstance(given, str | Intervention) else given
    return tuple(parse_intervention(one) if isinstance(one, str) else one for one in several)


def parse_intervention(text: str) -> Intervention:
    """The intervention that `str(intervention)` wrote; CircuitGraphError, which says what is wrong, otherwise."""
    match = _INTERVENTION.fullmatch(text.strip())
    if match is None:
        raise CircuitGraphError(
            f"intervention {text!r} does not parse: expected TARGET=VALUE, TARGET*=FACTOR, TARGET=RUN,"
            " TARGET=RUN:SHARE, SITE+=AMOUNT*NODE or SITE-=NODE, for instance 'mlp_out.3/f17@5=0'"
        )
    target, sign, right = SitePart.parse(match["target"].strip()), match["sign"], match["right"].strip()
    if sign in ("+", "-"):
        amount, star, name = right.rpartition("*")
        write = SitePart.parse(name.strip())
        if write.span != Span():
            raise CircuitGraphError(
                f"intervention {text!r}: {write.name} is written at the positions of {target.name}; give them on the"
                " left only"
            )
        kind = Steer if sign == "+" else Delete
        return kind(target, write, _number(text, amount) if star else 1.0)
    if sign == "*":
        return Scale(target, _number(text, right))
    if _RUN.fullmatch(right) is None:
        return Set(target, _number(text, right))
    name, _, share = right.partition(":")
    return Patch(target, name, _number(text, share) if share else 0.0)


def _number(text: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CircuitGraphError(
            f"intervention {text!r}: {word.strip()!r} is neither a finite number nor the name of a run"
        )
    return value


def _times(amount: float) -> str:
    return "" if amount == 1 else f"{amount:g}*"


_TARGET = re.compile(
    r"(?P<site>[a-z_0-9]+(\.\d+)?)(/((?P<error>error)|(?P<letter>[fhn])(?P<index>\d+)))?"
    r"(@(?P<start>\d+)((?P<colon>:)(?P<stop>\d+)?)?)?"
)
_INTERVENTION = re.compile(r"(?P<target>[^=*+-]+)(?P<sign>[*+-]?)=(?P<right>.+)")
_RUN = re.compile(r"(?!inf|nan)[A-Za-z_]\w*(:[^:]+)?")
