"""Dictionary sources -> {site written: Dictionary}: which format each source is in.

In come folders, files, sae-lens names or sae-lens objects; out come Dictionaries, checked against the model, all of
them or none. The formats themselves are in dictionary_sae_lens and dictionary_published; this module reads no weights
and runs no model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from circuitgraph.dictionary import Dictionary
from circuitgraph.dictionary_published import read_dictionary_learning, read_gemma_scope
from circuitgraph.dictionary_sae_lens import (
    from_sae_lens_object,
    is_sae_lens_object,
    load_sae_lens_release,
    read_sae_lens_folder,
)
from circuitgraph.dictionary_sources import Source, parse_source
from circuitgraph.errors import DictionaryError
from circuitgraph.model import Model
from circuitgraph.nodes import Site

if TYPE_CHECKING:
    from sae_lens import SAE

_EXPECTED = "cfg.json and sae_weights.safetensors, ae.pt, or params.npz"
_FILES = {".npz": read_gemma_scope, ".pt": read_dictionary_learning}


def load_dictionaries(sources: str | Path | SAE | Iterable[str | Path | SAE], model: Model) -> dict[Site, Dictionary]:
    """{site written: Dictionary} of all sources, in forward order, in the model's dtype and on its device.

    A source is a loaded sae_lens.SAE or one of these, with `SITE=` or `READS>WRITES=` in front where it does not name
    its place itself ("resid_post.5=/x/params.npz", "ln2_normalized.3>mlp_out.3=/x/folder"):

        a folder in sae-lens' format (cfg.json + sae_weights.safetensors), or a folder of such folders
        "RELEASE/ID" of sae-lens' registry (needs the hub or its cache)
        a folder of dictionary_learning (ae.pt, config.json), or its ae.pt; always with a site
        an .npz of Gemma Scope, or its folder; always with a site

    Raises DictionaryError for a source without dictionaries, a site that its dictionary was not trained for, broken
    files, weights that do not fit the model, two dictionaries for one site, and kinds that are not linear in their
    features. No code in a file is executed.
    """
    if isinstance(sources, str) or is_sae_lens_object(sources) or not isinstance(sources, Iterable):
        sources = [sources]
    found: dict[Site, Dictionary] = {}
    for source in [_parse(source) for source in sources]:  # all of them before the first weight is read
        for dictionary in _load(source, model):
            if dictionary.writes in found:
                other = found[dictionary.writes].name
                raise DictionaryError(
                    f"dictionaries {other} and {dictionary.name} both write {dictionary.writes}; give one per site"
                )
            found[dictionary.writes] = dictionary
    if not found:
        raise DictionaryError("no dictionaries were given; expected at least one folder or sae-lens name")
    return dict(sorted(found.items(), key=lambda item: item[0].depth))


def _parse(source: str | Path | SAE) -> Source | SAE:
    if isinstance(source, str | Path):
        return parse_source(str(source))
    if is_sae_lens_object(source):
        return source
    raise DictionaryError(
        f"dictionary source {type(source).__name__} is unknown; expected a folder, a file, a name or a sae_lens.SAE"
    )


def _load(source: Source | SAE, model: Model) -> list[Dictionary]:
    if not isinstance(source, Source):
        return [from_sae_lens_object(source, model)]
    path = Path(source.path).expanduser()
    if path.is_dir():
        return _load_folder(source, path, model)
    if path.is_file():
        read = _FILES.get(path.suffix)
        if read is None:
            raise DictionaryError(
                f"dictionary {source.path} is a {path.suffix or 'nameless'} file; expected one of {', '.join(_FILES)},"
                f" or a folder with {_EXPECTED}"
            )
        return [read(path, model, source.place)]
    release, slash, name = source.path.partition("/")
    if not slash or path.is_absolute() or source.path.startswith((".", "~")):
        raise DictionaryError(
            f"dictionary source {source.path} does not exist; give a folder, or RELEASE/ID of sae-lens' registry"
        )
    return [load_sae_lens_release(release, name, model, source.place)]


def _load_folder(source: Source, folder: Path, model: Model) -> list[Dictionary]:
    if (folder / "cfg.json").is_file():
        return [read_sae_lens_folder(folder, model, source.place)]
    if (folder / "ae.pt").is_file():
        return [read_dictionary_learning(folder / "ae.pt", model, source.place)]
    if (folder / "params.npz").is_file():
        return [read_gemma_scope(folder / "params.npz", model, source.place)]
    inner = sorted(path.parent for path in folder.glob("*/cfg.json"))
    if not inner:
        raise DictionaryError(f"folder {source.path} holds no dictionary: expected {_EXPECTED}, or folders with them")
    if source.place is not None and len(inner) > 1:
        raise DictionaryError(
            f"folder {source.path} holds {len(inner)} dictionaries, but one site, {source.place}, was given;"
            " expected one folder per site"
        )
    return [read_sae_lens_folder(path, model, source.place) for path in inner]
