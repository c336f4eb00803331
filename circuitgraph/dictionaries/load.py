"""Loading dictionaries: which format each source is in, and all of them as one `Dictionaries`.

READ THIS FIRST to find how a format is read: `_load`, `_load_file` and `_load_folder` choose the reader by what is
there. Either every source loads and fits the model, or the first that does not raises an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from circuitgraph.dictionaries.build import Request
from circuitgraph.dictionaries.circuit_tracer import read_transcoder_set
from circuitgraph.dictionaries.collection import Dictionaries, check_key
from circuitgraph.dictionaries.dictionary import Dictionary, check_fit
from circuitgraph.dictionaries.files import SUFFIXES
from circuitgraph.dictionaries.hub import PREFIX, fetch
from circuitgraph.dictionaries.neurons import neurons
from circuitgraph.dictionaries.publishers import (
    read_dictionary_learning,
    read_gemma_scope,
    read_gemma_scope_2,
    read_pt,
)
from circuitgraph.dictionaries.registry import is_set, set_sources, suggestions
from circuitgraph.dictionaries.sae_lens import (
    from_sae_lens_object,
    is_sae_lens_object,
    load_sae_lens_release,
    read_sae_lens_folder,
)
from circuitgraph.dictionaries.sources import NEURONS, Source, parse_site, parse_source
from circuitgraph.embedded import DEMO, circuit_dictionaries
from circuitgraph.errors import DictionaryError
from circuitgraph.models.model import Model
from circuitgraph.nodes import Site

if TYPE_CHECKING:
    from sae_lens import SAE

DictionarySource: TypeAlias = "Dictionary | SAE | str | Path"
DictionarySources: TypeAlias = "DictionarySource | Iterable[DictionarySource] | Mapping[Site | str, DictionarySource]"

_EXPECTED = "cfg.json and sae_weights.safetensors, config.yaml, ae.pt, params.npz or params.safetensors"


def load_dictionaries(sources: DictionarySources, model: Model, *, lazy: bool = False) -> Dictionaries:
    """The dictionaries of all sources, in the model's dtype and on its device.

    Args:
        sources: One source, a list of several, or a mapping from the site that each writes. A source is

            - a loaded sae_lens.SAE, or a Dictionary
            - a folder in sae-lens' format (cfg.json + sae_weights.safetensors), or a folder of such folders
            - a folder of circuit-tracer (config.yaml): the transcoders of every layer, or a cross-layer transcoder
            - "RELEASE/ID" of sae-lens' registry (needs the hub or its cache), or a named set of them ("gpt2-small/z")
            - a folder of dictionary_learning (ae.pt, config.json), or its ae.pt; always with a site
            - an .npz of Gemma Scope, or its folder; always with a site
            - a params.safetensors of Gemma Scope 2, or its folder
            - a .pt with {name}_cfg.json (Kissane's attention SAEs) or {name}.json (the TinyStories study) beside it
            - a .pt of Dunefsky's transcoders, which names its hook
            - "hf://USER/REPO[/PATH][@REVISION]" for a file or folder of these on the hub
            - "SITE=identity" for the neurons of a site, "KIND=identity" for those of every layer
            - "demo" for those of the embedded model

            `SITE=` or `READS>WRITES=` in front of a path says where its dictionary belongs if its files do not
            ("resid_post.5=/x/params.npz", "ln2_normalized.3>mlp_out.3=/x/folder"). `?processing=` behind it, with names
            of TransformerLens' settings or `none`, says how the weights of the model that it was trained on were
            processed, if its files do not say so or are wrong. Dictionaries are translated to the model at hand.
        model: The model that they must fit.
        lazy: Check sizes now; read weights when they are used, and free them when nobody holds them, so that large sets
            need not fit in memory. What is wrong with their values is found then. Matrices stored in half precision
            stay in it, unless the model is in float64.

    Raises DictionaryError for no source, a source without dictionaries, a site that its dictionary was not trained for,
    broken files, weights that do not fit the model, two dictionaries for one site, and kinds that are not linear in
    their features. Nothing in a file is executed.
    """
    loaded: dict[Site, Dictionary] = {}
    owners: dict[Site, tuple[int, str]] = {}  # the layers of one cross-layer transcoder write one site together
    entries = [(_parse(source), site) for source, site in _entries(sources)]  # all of them before a weight is read
    for number, (source, given) in enumerate(entries):
        owner = -1 if isinstance(source, Dictionary) else number
        for dictionary in _load(source, Request(model, given, lazy=lazy)):
            if given is not None:
                check_key(given, dictionary)
            for site in dictionary.sites:
                first, name = owners.setdefault(site, (owner, dictionary.name))
                if first != owner or (site == dictionary.writes and site in loaded):
                    name = loaded[site].name if site in loaded else name
                    raise DictionaryError(
                        f"dictionaries {name} and {dictionary.name} both write {site}; give one per site"
                    )
            loaded[dictionary.writes] = dictionary
    if not loaded:
        raise DictionaryError("no dictionaries were given; expected at least one folder or sae-lens name")
    return Dictionaries(loaded)


def _entries(sources: DictionarySources) -> list[tuple[DictionarySource, Site | None]]:
    """(source, the site under which a mapping has it)."""
    if isinstance(sources, Mapping):
        return [
            (source, site if isinstance(site, Site) else parse_site(str(site), _name(source)))
            for site, source in sources.items()
        ]
    alone = isinstance(sources, str | Path | Dictionary) or is_sae_lens_object(sources)  # an SAE can be iterated over
    alone = alone or not isinstance(sources, Iterable)
    return [(sources, None)] if alone else [(source, None) for source in sources]  # type: ignore[union-attr]


def _name(source: object) -> str:
    return str(source) if isinstance(source, str | Path) else type(source).__name__


def _parse(source: DictionarySource) -> Source | SAE | Dictionary:
    if isinstance(source, str | Path):
        return parse_source(str(source))
    if isinstance(source, Dictionary) or is_sae_lens_object(source):
        return source
    raise DictionaryError(
        f"dictionary source {type(source).__name__} is unknown; expected a folder, a file, a name or a sae_lens.SAE"
    )


def _load(source: Source | SAE | Dictionary, request: Request) -> list[Dictionary]:
    if isinstance(source, Dictionary):
        check_fit(source, request.model)
        return [source]
    if not isinstance(source, Source):
        return [from_sae_lens_object(source, request)]
    request = replace(request, site=source.site or request.site, processing=source.processing)
    if source.path == DEMO:
        return _load_demo(request)
    if source.path == NEURONS and (source.kind or request.site or not Path(NEURONS).exists()):
        return neurons(source.kind, request)
    path = fetch(source.path) if source.path.startswith(PREFIX) else Path(source.path).expanduser()
    if path.is_dir():
        return _load_folder(source.path, path, request)
    if path.is_file():
        return [_load_file(source.path, path, request)]
    if is_set(source.path):
        _refuse_site(source.path, request)
        return [load_sae_lens_release(release, key, request) for release, key in set_sources(source.path)]
    release, slash, name = source.path.partition("/")
    if not slash or path.is_absolute() or source.path.startswith((".", "~")):
        raise DictionaryError(
            f"dictionary source {source.path} does not exist; give a folder, or RELEASE/ID of sae-lens' registry."
            f"{suggestions(source.path)}"
        )
    return [load_sae_lens_release(release, name, request)]


def _load_demo(request: Request) -> list[Dictionary]:
    _refuse_site(DEMO, request)
    return [read_sae_lens_folder(folder, request) for folder in circuit_dictionaries()]


def _refuse_site(name: str, request: Request) -> None:
    if request.site is not None:
        raise DictionaryError(
            f"dictionary {name} is a set for every layer, but {request.site} was given; expected no site"
        )


def _load_file(text: str, path: Path, request: Request) -> Dictionary:
    if path.suffix == ".npz":
        return read_gemma_scope(path, request)
    if path.suffix == ".safetensors":
        return read_gemma_scope_2(path, request)
    if path.suffix == ".pt":
        return read_pt(path, request) or read_dictionary_learning(path, request)
    raise DictionaryError(
        f"dictionary {text} is a {path.suffix or 'nameless'} file; expected one of {', '.join(SUFFIXES)},"
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
    inside = sorted(path.parent for path in folder.glob("*/cfg.json"))
    if not inside:
        raise DictionaryError(f"folder {text} holds no dictionary: expected {_EXPECTED}, or folders with them")
    if request.site is not None and len(inside) > 1:
        raise DictionaryError(
            f"folder {text} holds {len(inside)} dictionaries, but one site, {request.site}, was given;"
            " expected one folder per site"
        )
    return [read_sae_lens_folder(path, request) for path in inside]
