"""Files of the Hugging Face hub as local paths: `hf://USER/REPO[/PATH][@REVISION]`.

Only the files that a dictionary may consist of are fetched.
"""

from __future__ import annotations

from pathlib import Path

from circuitgraph.dictionaries.files import SUFFIXES
from circuitgraph.errors import DictionaryError

PREFIX = "hf://"
# What a folder of any format may consist of.
_FILES = (
    "cfg.json",
    "sae_weights.safetensors",
    "config.json",
    "ae.pt",
    "params.npz",
    "params.safetensors",
    "config.yaml",
    "layer_*.safetensors",
    "W_enc_*.safetensors",
    "W_dec_*.safetensors",
)


def fetch(text: str) -> Path:
    """The local path of a file or folder on the hub, in the hub's cache.

    Args:
        text: `hf://USER/REPO[/PATH][@REVISION]`.

    Raises DictionaryError if neither the hub nor its cache has it.
    """
    from huggingface_hub import snapshot_download

    repository, inside, revision = _parse(text)
    if inside.endswith(SUFFIXES):
        folder, _, file = inside.rpartition("/")
        prefix, stem = f"{folder}/" if folder else "", file.rpartition(".")[0]
        patterns = [inside, *(f"{prefix}{name}" for name in (f"{stem}.json", f"{stem}_cfg.json", "config.json"))]
    else:
        patterns = [f"{inside}/{name}" if inside else name for name in _FILES]
    try:
        root = snapshot_download(repository, revision=revision, allow_patterns=patterns)
    except Exception as error:  # the library raises whatever the network and the hub raise; the cause stays attached
        reason = " ".join(str(error).split())[:200]
        raise DictionaryError(f"dictionary {text} was not fetched: {reason or type(error).__name__}") from error
    path = Path(root) / inside
    if not path.exists():
        raise DictionaryError(
            f"dictionary {text}: {repository} has no {inside or 'files'} of a known format; expected"
            " hf://USER/REPO/PATH"
        )
    return path


def _parse(text: str) -> tuple[str, str, str | None]:
    """Repository, path inside it, revision. circuit-tracer writes the revision as ?revision=."""
    rest = text.removeprefix(PREFIX).replace("?revision=", "@")
    rest, _, revision = rest.partition("@")
    parts = rest.strip("/").split("/")
    if len(parts) < 2 or not all(parts) or ".." in parts:
        raise DictionaryError(f"dictionary {text} names no repository; expected hf://USER/REPO[/PATH][@REVISION]")
    return "/".join(parts[:2]), "/".join(parts[2:]), revision or None
