"""The hook points of the demo's dictionaries: recording activations there, and splicing reconstructions in.

This serves training and measuring with sae-lens' own objects. Everything else loads the dictionaries by
`circuitgraph.dictionaries`.
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
class HookPoints:
    """Where one dictionary reads and writes.

    Args:
        name: The dictionary's name, which is the site it writes: "z.0".
        hook_in: TransformerLens' name of the hook that it reads.
        hook_out: The one that it writes; only a transcoder's is another.
    """

    name: str
    hook_in: str
    hook_out: str

    @property
    def kind(self) -> str:
        """The kind of site: "z", "mlp_out" or "resid_post"."""
        return self.name.partition(".")[0]


def hook_points(layer: int) -> tuple[HookPoints, HookPoints, HookPoints]:
    """Those of a layer's dictionaries: of z (heads concatenated), of the MLP (a transcoder), of the residual stream."""
    block = f"blocks.{layer}"
    z, resid = f"{block}.attn.hook_z", f"{block}.hook_resid_post"
    return (
        HookPoints(f"z.{layer}", z, z),
        HookPoints(f"mlp_out.{layer}", f"{block}.ln2.hook_normalized", f"{block}.hook_mlp_out"),
        HookPoints(f"resid_post.{layer}", resid, resid),
    )


def load_model(folder: Path) -> TransformerBridge:
    """The saved model in float32 on the CPU, without gradients; it carries its tokenizer."""
    model = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
    model.requires_grad_(False)
    return model


def load_dictionaries(folder: Path, n_layers: int) -> dict[HookPoints, SAE]:
    """The saved dictionaries of all layers, as sae-lens loads them, in float32, without gradients."""
    every = [points for layer in range(n_layers) for points in hook_points(layer)]
    loaded = {points: SAE.load_from_disk(folder / points.name) for points in every}
    for dictionary in loaded.values():
        dictionary.requires_grad_(False)
    return loaded


@torch.no_grad()
def record(
    model: TransformerBridge, batches: Iterable[torch.Tensor], hooks: Iterable[str], *, bos: bool = True
) -> dict[str, torch.Tensor]:
    """Activations [token, d] at some hooks, at every token but padding, in one order of tokens for all hooks.

    Args:
        model: The demo model.
        batches: Token ids [batch, pos], right-padded.
        hooks: TransformerLens' names.
        bos: Whether to include the first token, <bos>.
    """
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
def spliced(model: TransformerBridge, dictionaries: Mapping[HookPoints, SAE]) -> Iterator[None]:
    """Inside this context the model computes with reconstructions, without error terms, at the dictionaries' hooks."""
    with ExitStack() as stack:
        for points, dictionary in dictionaries.items():
            inputs: list[torch.Tensor] = []
            stack.callback(model.hook_dict[points.hook_in].register_forward_hook(_appending(inputs)).remove)
            hook = _replacing(dictionary, inputs)
            stack.callback(model.hook_dict[points.hook_out].register_forward_hook(hook).remove)
        yield


def _appending(rows: list[torch.Tensor], keep: torch.Tensor | None = None) -> Hook:
    """A hook that appends the activation [batch, pos, d], or [token, d] where `keep` [batch, pos] is true."""

    def hook(_module: torch.nn.Module, _inputs: object, value: torch.Tensor) -> None:
        rows.append(value.flatten(2) if keep is None else value.flatten(2)[keep])

    return hook


def _replacing(dictionary: SAE, inputs: list[torch.Tensor]) -> Hook:
    """A hook that returns the reconstruction of the last input. The hook that appends it must be registered before."""

    def hook(_module: torch.nn.Module, _inputs: object, value: torch.Tensor) -> torch.Tensor:
        return reconstruct(dictionary, inputs.pop()).view_as(value)

    return hook


def encode(dictionary: SAE, x: torch.Tensor) -> torch.Tensor:
    """Feature activations [..., d_sae] of x [..., d_in]; sae-lens wants z by heads, and one head will do."""
    acts: torch.Tensor = dictionary.encode(x.unsqueeze(-2) if dictionary.cfg.reshape_activations == "hook_z" else x)
    return acts


def reconstruct(dictionary: SAE, x: torch.Tensor) -> torch.Tensor:
    """The reconstruction [..., d_out] from x [..., d_in]."""
    output: torch.Tensor = dictionary.decode(encode(dictionary, x))
    return output.reshape(*x.shape[:-1], -1)
