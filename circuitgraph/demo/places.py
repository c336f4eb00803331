"""Where the demo's dictionaries sit in the demo model: reading activations there, and splicing reconstructions in.

In come a folder, token ids and dictionaries of sae-lens; out come a model, activations, and a model that computes with
reconstructions. This module does not know how dictionaries are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from sae_lens import SAE
from transformer_lens.model_bridge import TransformerBridge

Hook = Callable[[torch.nn.Module, object, torch.Tensor], torch.Tensor | None]


@dataclass(frozen=True)
class Place:
    """A dictionary's name (that of its site) and the hooks it reads and writes; they differ for a transcoder."""

    name: str
    hook_in: str
    hook_out: str

    @property
    def kind(self) -> str:
        """The name without its layer: "z", "mlp_out" or "resid_post"."""
        return self.name.partition(".")[0]


def places(layer: int) -> tuple[Place, Place, Place]:
    """The three dictionaries of a layer: attention's z (heads concatenated), the MLP's transcoder, the residual stream."""
    block = f"blocks.{layer}"
    z, resid = f"{block}.attn.hook_z", f"{block}.hook_resid_post"
    return (
        Place(f"z.{layer}", z, z),
        Place(f"mlp_out.{layer}", f"{block}.ln2.hook_normalized", f"{block}.hook_mlp_out"),
        Place(f"resid_post.{layer}", resid, resid),
    )


def load_model(folder: Path) -> TransformerBridge:
    """The saved model in float32 on the CPU, without gradients; it carries its tokenizer."""
    model = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
    model.requires_grad_(False)
    return model


def load_dictionaries(folder: Path, n_layers: int) -> dict[Place, SAE]:
    """The saved dictionaries of all layers in float32, without gradients."""
    loaded = {place: SAE.load_from_disk(folder / place.name) for layer in range(n_layers) for place in places(layer)}
    for dictionary in loaded.values():
        dictionary.requires_grad_(False)
    return loaded


@torch.no_grad()
def record(
    model: TransformerBridge, batches: Iterable[torch.Tensor], hooks: Iterable[str], *, bos: bool = True
) -> dict[str, torch.Tensor]:
    """Activations [token, d] at `hooks` for all tokens but padding (and <bos>, if not `bos`); one row order for all hooks."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in hooks}
    for ids in batches:
        mask = ids != model.tokenizer.pad_token_id
        keep = mask if bos else mask & (ids != model.tokenizer.bos_token_id)
        with ExitStack() as stack:
            for name, rows in seen.items():
                stack.callback(model.hook_dict[name].register_forward_hook(_appending(rows, keep)).remove)
            model(ids, attention_mask=mask.long())
    return {name: torch.cat(rows) for name, rows in seen.items()}


@contextmanager
def spliced(model: TransformerBridge, dictionaries: Mapping[Place, SAE]) -> Iterator[None]:
    """While open, the model computes with the dictionaries' outputs in place of its own activations: no error terms."""
    with ExitStack() as stack:
        for place, dictionary in dictionaries.items():
            inputs: list[torch.Tensor] = []
            stack.callback(model.hook_dict[place.hook_in].register_forward_hook(_appending(inputs)).remove)
            hook = _replacing(dictionary, inputs)
            stack.callback(model.hook_dict[place.hook_out].register_forward_hook(hook).remove)
        yield


def _appending(rows: list[torch.Tensor], keep: torch.Tensor | None = None) -> Hook:
    """Appends the activation [batch, pos, d], or only its tokens [token, d] where `keep` [batch, pos] holds."""

    def hook(_module: torch.nn.Module, _inputs: object, value: torch.Tensor) -> None:
        rows.append(value.flatten(2) if keep is None else value.flatten(2)[keep])

    return hook


def _replacing(dictionary: SAE, inputs: list[torch.Tensor]) -> Hook:
    """Returns the reconstruction of what `_appending` put last into `inputs`; torch calls hooks in order of entry."""

    def hook(_module: torch.nn.Module, _inputs: object, value: torch.Tensor) -> torch.Tensor:
        return reconstruct(dictionary, inputs.pop()).view_as(value)

    return hook


def encode(dictionary: SAE, x: torch.Tensor) -> torch.Tensor:
    """Feature activations [..., d_sae] of `x` [..., d_in]; sae-lens wants the heads of z apart, whatever their number."""
    acts: torch.Tensor = dictionary.encode(x.unsqueeze(-2) if dictionary.cfg.reshape_activations == "hook_z" else x)
    return acts


def reconstruct(dictionary: SAE, x: torch.Tensor) -> torch.Tensor:
    """What the dictionary makes of `x` [..., d_in]: [..., d_out]."""
    output: torch.Tensor = dictionary.decode(encode(dictionary, x))
    return output.reshape(*x.shape[:-1], -1)
