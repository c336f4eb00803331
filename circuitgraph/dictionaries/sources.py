"""The text that names a dictionary: `PATH`, `SITE=PATH` or `READS>WRITES=PATH`, each perhaps with `?processing=NAMES`.

This module takes the text apart, and says where a dictionary belongs if its file and the text both have a say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from circuitgraph.errors import DictionaryError, GraphError, did_you_mean
from circuitgraph.nodes import DICTIONARY_SITES, Site

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
    """The site that a dictionary reads and the one that it writes; an SAE reads and writes the same site."""

    reads: Site
    writes: Site

    def __str__(self) -> str:
        return str(self.reads) if self.reads == self.writes else f"{self.reads}>{self.writes}"


@dataclass(frozen=True)
class Source:
    """A source of dictionaries, taken apart.

    Args:
        path: A path, a name in sae-lens' registry, hf://..., or `identity`.
        site: The site given for it; None where it names its own.
        kind: For `KIND=identity`: the neurons at this kind of site in every layer.
        processing: What was done to the model that the dictionary was trained on; None if the file shall say it.
    """

    path: str
    site: DictionarySite | None = None
    kind: str | None = None
    processing: frozenset[str] | None = None


def parse_source(text: str) -> Source:
    """Take the text of a source apart.

    A `=` belongs to the path if a `/` stands before it, or if the whole text exists as a file or folder.

    Args:
        text: As the module describes it.

    Raises DictionaryError for an empty text, for text before the `=` that is no site, and for an unknown processing.
    """
    if not text.strip():
        raise DictionaryError(f"dictionary source {text!r} is empty; expected a folder, a file or a name")
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
    if path == NEURONS and before in DICTIONARY_SITES:
        return Source(path, kind=before, processing=processing)
    reads, arrow, writes = before.partition(">")
    first = parse_site(reads, path)
    return Source(path, DictionarySite(first, parse_site(writes, path) if arrow else first), processing=processing)


def parse_site(text: str, path: str) -> Site:
    """The site of a dictionary from its text, KIND.LAYER.

    Args:
        text: For instance "mlp_out.3".
        path: The dictionary's path, for the error message.

    Raises DictionaryError, with the nearest kind, for any other text.
    """
    kind = text.partition(".")[0]
    try:
        site = Site.parse(text)
    except GraphError:
        site = None
    if site is None or site.kind not in DICTIONARY_SITES:
        known = kind in DICTIONARY_SITES
        wrong = "has no layer" if known else "is no place for a dictionary"
        raise DictionaryError(
            f"dictionary {path}: site {text!r} {wrong}; expected KIND.LAYER, for instance 'mlp_out.3', with KIND one of"
            f" {', '.join(DICTIONARY_SITES)}.{'' if known else did_you_mean(kind, DICTIONARY_SITES)}"
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


def agreed_site(name: str, own: DictionarySite | None, given: DictionarySite | Site | None) -> DictionarySite:
    """Where a dictionary belongs, by its file and by what the user gave.

    Args:
        name: The dictionary's name, for the error message.
        own: What its file says, if anything.
        given: What the user said, if anything; a Site alone is what the dictionary writes, and it reads what its file
            says, or the same site.

    Raises DictionaryError if the two differ or if there is neither.
    """
    if isinstance(given, Site):
        given = own if own is not None and own.writes == given else DictionarySite(given, given)
    if own is not None and given is not None and own != given:
        raise DictionaryError(
            f"dictionary {name} was trained for {own}, but {given} was given; expected {own}={name}, or no site at all"
        )
    site = given or own
    if site is None:
        raise DictionaryError(
            f"dictionary {name} does not say where it reads; expected SITE=PATH or READS>WRITES=PATH,"
            f" for instance 'mlp_out.3={name}'"
        )
    return site


def site_of_module(name: str) -> Site | None:
    """The Site that `model.layers.N.MODULE.input|output` of Hugging Face means, or None if it means none of ours."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    kind = _MODULES.get(match[2]) if match else None
    return Site(kind, int(match[1])) if match and kind else None
