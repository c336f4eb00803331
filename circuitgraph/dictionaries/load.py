"""Dictionary sources -> {site written: Dictionary}: which format each source is in.

In come folders, files, names or sae-lens objects; out come Dictionaries, checked against the model, all of them or none.
The formats themselves are in the modules imported here; this one reads no weights and runs no model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from circuitgraph.dictionaries.build import Request
from circuitgraph.dictionaries.circuit_tracer import read_transcoder_set
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.dictionaries.hub import PREFIX, fetch
from circuitgraph.dictionaries.named_sets import is_set, set_sources, suggestions
from circuitgraph.dictionaries.neurons import neurons
from circuitgraph.dictionaries.pt_files import read_pair
from circuitgraph.dictionaries.publishers import read_dictionary_learning, read_gemma_scope, read_gemma_scope_2
from circuitgraph.dictionaries.sae_lens import (
    from_sae_lens_object,
    is_sae_lens_object,
    load_sae_lens_release,
    read_sae_lens_folder,
)
from circuitgraph.dictionaries.sources import NEURONS, Source, parse_source
from circuitgraph.errors import DictionaryError
from circuitgraph.models.model import Model
from circuitgraph.nodes import Site

if TYPE_CHECKING:
    from sae_lens import SAE

_EXPECTED = "cfg.json and sae_weights.safetensors, config.yaml, ae.pt, params.npz or params.safetensors"
_SUFFIXES = (".npz", ".pt", ".safetensors")


def load_dictionaries(
    sources: str | Path | SAE | Iterable[str | Path | SAE], model: Model, *, lazy: bool = False
) -> Dictionaries:
    """The dictionaries of all sources, by the site that they write, in forward order, in the model's dtype and on its device.

    lazy: sizes are checked now, and weights are read when they are used and freed when nobody holds them, so that large sets
    need not fit in memory; what is wrong with their values is found then. Matrices stored in half precision stay in it,
    unless the model is in float64.

    A source is a loaded sae_lens.SAE or one of these, with `SITE=` or `READS>WRITES=` in front where it does not name
    its place itself ("resid_post.5=/x/params.npz", "ln2_normalized.3>mlp_out.3=/x/folder"):

        a folder in sae-lens' format (cfg.json + sae_weights.safetensors), or a folder of such folders
        a folder of circuit-tracer (config.yaml): the transcoders of every layer, or a cross-layer transcoder
        "RELEASE/ID" of sae-lens' registry (needs the hub or its cache), or a named set of them ("gpt2-small/z")
        a folder of dictionary_learning (ae.pt, config.json), or its ae.pt; always with a site
        an .npz of Gemma Scope, or its folder; always with a site; a params.safetensors of Gemma Scope 2, or its folder
        a .pt with {name}_cfg.json (Kissane's attention SAEs) or {name}.json (the TinyStories study) beside it
        a .pt of Dunefsky's transcoders, which names its hook
        "hf://USER/REPO[/PATH][@REVISION]" for a file or folder of these on the hub
        "SITE=identity" for the neurons of a site, "KIND=identity" for those of every layer

    Where the file does not say, or says wrongly, how the weights of the model it was trained on were processed,
    `?processing=` and names of TransformerLens' settings, or `none`, after the path say it. Dictionaries are translated to
    the model as it is loaded.

    Raises DictionaryError for a source without dictionaries, a site that its dictionary was not trained for, broken
    files, weights that do not fit the model, two dictionaries for one site, and kinds that are not linear in their
    features. No code in a file is executed.
    """
    if isinstance(sources, str) or is_sae_lens_object(sources) or not isinstance(sources, Iterable):
        sources = [sources]
    found: dict[Site, Dictionary] = {}
    writers: dict[Site, tuple[int, str]] = {}  # the layers of one cross-layer transcoder write one site together
    for number, source in enumerate([_parse(source) for source in sources]):  # all of them before a weight is read
        for dictionary in _load(source, Request(model, lazy=lazy)):
            for site in dictionary.sites:
                owner, other = writers.setdefault(site, (number, dictionary.name))
                if owner != number or (site == dictionary.writes and site in found):
                    other = found[site].name if site in found else other
                    raise DictionaryError(
                        f"dictionaries {other} and {dictionary.name} both write {site}; give one per site"
                    )
            found[dictionary.writes] = dictionary
    if not found:
        raise DictionaryError("no dictionaries were given; expected at least one folder or sae-lens name")
    return Dictionaries(found)


def _parse(source: str | Path | SAE) -> Source | SAE:
    if isinstance(source, str | Path):
        return parse_source(str(source))
    if is_sae_lens_object(source):
        return source
    raise DictionaryError(
        f"dictionary source {type(source).__name__} is unknown; expected a folder, a file, a name or a sae_lens.SAE"
    )


def _load(source: Source | SAE, request: Request) -> list[Dictionary]:
    if not isinstance(source, Source):
        return [from_sae_lens_object(source, request)]
    request = replace(request, place=source.place, processing=source.processing)
    if source.path == NEURONS and (source.kind or source.place or not Path(NEURONS).exists()):
        return neurons(source.kind, request)
    path = fetch(source.path) if source.path.startswith(PREFIX) else Path(source.path).expanduser()
    if path.is_dir():
        return _load_folder(source.path, path, request)
    if path.is_file():
        return [_load_file(source.path, path, request)]
    if is_set(source.path):
        return _load_set(source, request)
    release, slash, name = source.path.partition("/")
    if not slash or path.is_absolute() or source.path.startswith((".", "~")):
        raise DictionaryError(
            f"dictionary source {source.path} does not exist; give a folder, or RELEASE/ID of sae-lens' registry."
            f"{suggestions(source.path)}"
        )
    return [load_sae_lens_release(release, name, request)]


def _load_set(source: Source, request: Request) -> list[Dictionary]:
    if source.place is not None:
        raise DictionaryError(
            f"dictionary {source.path} is a set for every layer, but {source.place} was given; expected no site"
        )
    return [load_sae_lens_release(release, key, request) for release, key in set_sources(source.path)]


def _load_file(text: str, path: Path, request: Request) -> Dictionary:
    if path.suffix == ".npz":
        return read_gemma_scope(path, request)
    if path.suffix == ".safetensors":
        return read_gemma_scope_2(path, request)
    if path.suffix == ".pt":
        return read_pair(path, request) or read_dictionary_learning(path, request)
    raise DictionaryError(
        f"dictionary {text} is a {path.suffix or 'nameless'} file; expected one of {', '.join(_SUFFIXES)},"
        f" or a folder with {_EXPECTED}"
    )


def _load_folder(text: str, folder: Path, request: Request) -> list[Dictionary]:
    if (folder / "cfg.json").is_file():
        return [read_sae_lens_folder(folder, request)]
    if (folder / "config.yaml").is_file():
        return read_transcoder_set(folder, request)
    for file in ("ae.pt", "params.npz", "params.safetensors"):
        if (folder / file).is_file():
            return [_load_file(text, folder / file, request)]
    inner = sorted(path.parent for path in folder.glob("*/cfg.json"))
    if not inner:
        raise DictionaryError(f"folder {text} holds no dictionary: expected {_EXPECTED}, or folders with them")
    if request.place is not None and len(inner) > 1:
        raise DictionaryError(
            f"folder {text} holds {len(inner)} dictionaries, but one site, {request.place}, was given;"
            " expected one folder per site"
        )
    return [read_sae_lens_folder(path, request) for path in inner]
