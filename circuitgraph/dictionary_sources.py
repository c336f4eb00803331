"""Where a dictionary source says it belongs: `SITE=PATH` and `READS>WRITES=PATH`.

In comes the text of one source; out come the place it names, if any, and the path. This module opens no file and
knows no format: whether PATH exists, and whether its dictionary fits the place, others decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from circuitgraph.errors import DictionaryError, GraphError, did_you_mean
from circuitgraph.nodes import Site

# The kinds of site at which a dictionary may read or write.
KINDS = ("resid_pre", "z", "attn_out", "ln2_normalized", "mlp_in", "mlp_post", "mlp_out", "resid_post")


@dataclass(frozen=True)
class Place:
    """What a dictionary reads and writes; for an SAE the same site twice."""

    reads: Site
    writes: Site

    def __str__(self) -> str:
        return str(self.reads) if self.reads == self.writes else f"{self.reads}>{self.writes}"


@dataclass(frozen=True)
class Source:
    """A path, or a name in sae-lens' registry, and the place given in front of it."""

    path: str
    place: Place | None = None


def parse_source(text: str) -> Source:
    """The place and path of a source; DictionaryError for text before the `=` that names no place.

    A `=` belongs to the path where a `/` stands before it, and where the whole text exists as a file or folder.
    """
    before, equals, path = text.partition("=")
    if not equals or "/" in before or Path(text).expanduser().exists():
        return Source(text)
    if not path:
        raise DictionaryError(
            f"dictionary source {text!r} has no path after the '='; expected for instance {before}=PATH"
        )
    reads, arrow, writes = before.partition(">")
    first = _parse_site(reads, path)
    return Source(path, Place(first, _parse_site(writes, path) if arrow else first))


def _parse_site(text: str, path: str) -> Site:
    kind = text.partition(".")[0]
    try:
        site = Site.parse(text)
    except GraphError:
        site = None
    if site is None or site.kind not in KINDS:
        wrong = "has no layer" if kind in KINDS else "is no place for a dictionary"
        raise DictionaryError(
            f"dictionary {path}: site {text!r} {wrong}; expected KIND.LAYER, for instance 'mlp_out.3', with KIND one of"
            f" {', '.join(KINDS)}.{did_you_mean(kind, KINDS) if kind not in KINDS else ''}"
        )
    return site


def agreed_place(name: str, own: Place | None, given: Place | None) -> Place:
    """The place a file names or the one given for it; DictionaryError if they differ or if there is none."""
    if own is None and given is None:
        raise DictionaryError(
            f"dictionary {name} does not say where it reads; expected SITE=PATH or READS>WRITES=PATH,"
            f" for instance 'mlp_out.3={name}'"
        )
    if own is not None and given is not None and own != given:
        raise DictionaryError(
            f"dictionary {name} was trained for {own}, but {given} was given; expected {own}={name}, or no site at all"
        )
    place = given or own
    assert place is not None
    return place
