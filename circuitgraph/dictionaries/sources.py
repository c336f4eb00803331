"""What the text of a dictionary source says: where it belongs, how its model was processed, and what to load.

In comes text such as `SITE=PATH`, `READS>WRITES=PATH` or `PATH?processing=fold_ln`; out come the place it names, if any,
the processing, if any, and the path. This module opens no file and knows no format: whether PATH exists, and whether its
dictionary fits the place, others decide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from circuitgraph.errors import DictionaryError, GraphError, did_you_mean
from circuitgraph.nodes import Site

# The kinds of site at which a dictionary may read or write.
KINDS = ("resid_pre", "z", "attn_out", "ln2_normalized", "mlp_in", "mlp_post", "mlp_out", "resid_post")
# What TransformerLens may do to a model's weights; its from_pretrained does all of it unless told otherwise.
PROCESSINGS = ("fold_ln", "center_writing_weights", "fold_value_biases", "center_unembed")
# `SITE=identity`: the neurons themselves.
NEURONS = "identity"

_SUFFIX = "?processing="
# Modules of a Hugging Face model as cfg files spell them -> kind of site.
_MODULES = {
    "output": "resid_post",
    "self_attn.o_proj.input": "z",
    "pre_feedforward_layernorm.output": "mlp_in",
    "post_feedforward_layernorm.output": "mlp_out",
}


@dataclass(frozen=True)
class DictionarySite:
    """What a dictionary reads and writes; for an SAE the same site twice."""

    reads: Site
    writes: Site

    def __str__(self) -> str:
        return str(self.reads) if self.reads == self.writes else f"{self.reads}>{self.writes}"


@dataclass(frozen=True)
class Source:
    """What to load, and what stood around it.

    path: a path, a name in sae-lens' registry, hf://..., or `identity`. kind: for `KIND=identity`, that kind of site in
    every layer. processing: what was done to the model that the dictionary was trained on; None leaves it to the file.
    """

    path: str
    place: DictionarySite | None = None
    kind: str | None = None
    processing: frozenset[str] | None = None


def parse_source(text: str) -> Source:
    """The parts of a source; DictionaryError for text before the `=` that names no place, or an unknown processing.

    A `=` belongs to the path where a `/` stands before it, and where the whole text exists as a file or folder.
    """
    if Path(text).expanduser().exists():
        return Source(text)
    text, suffix, names = text.partition(_SUFFIX)
    processing = _parse_processing(text, names) if suffix else None
    before, equals, path = text.partition("=")
    if not equals or "/" in before or Path(text).expanduser().exists():
        return Source(text, processing=processing)
    if not path:
        raise DictionaryError(
            f"dictionary source {text!r} has no path after the '='; expected for instance {before}=PATH"
        )
    if path == NEURONS and before in KINDS:
        return Source(path, kind=before, processing=processing)
    reads, arrow, writes = before.partition(">")
    first = _parse_site(reads, path)
    return Source(path, DictionarySite(first, _parse_site(writes, path) if arrow else first), processing=processing)


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


def _parse_processing(path: str, text: str) -> frozenset[str]:
    names = frozenset() if text == "none" else frozenset(name.strip() for name in text.split(","))
    for name in sorted(names - set(PROCESSINGS)):
        raise DictionaryError(
            f"dictionary {path}: processing {name!r} is unknown; expected 'none' or some of {', '.join(PROCESSINGS)},"
            f" separated by commas.{did_you_mean(name, PROCESSINGS)}"
        )
    return names


def agreed_site(name: str, own: DictionarySite | None, given: DictionarySite | None) -> DictionarySite:
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


def site_of_module(name: str) -> Site | None:
    """The Site that `model.layers.N.MODULE.input|output` means, or None if it means none of ours."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    kind = _MODULES.get(match[2]) if match else None
    return Site(kind, int(match[1])) if match and kind else None
