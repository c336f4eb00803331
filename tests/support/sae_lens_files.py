"""Dictionaries of random weights in sae-lens' folder format."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

D, D_SAE = 16, 24


def save(folder, *, architecture="standard", hook="blocks.0.hook_mlp_out", hook_out=None, d=D, seed=0, **cfg):
    """A random dictionary in sae-lens' format, in `folder`."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    tensors = {"W_enc": randn(d, D_SAE), "W_dec": randn(D_SAE, d), "b_dec": randn(d)}
    if architecture == "gated":
        tensors |= {"b_gate": randn(D_SAE), "r_mag": 0.1 * randn(D_SAE), "b_mag": randn(D_SAE)}
    else:
        tensors["b_enc"] = randn(D_SAE)
    if "jumprelu" in architecture:
        tensors["threshold"] = randn(D_SAE).abs()
    extra = {"k": 5, "rescale_acts_by_decoder_norm": False} if architecture == "topk" else {}
    extra |= {"d_out": d} if "transcoder" in architecture else {}
    metadata = {"sae_lens_version": "6.54.12", "model_name": "tiny", "hook_name": hook} | (
        {"hook_name_out": hook_out} if hook_out else {}
    )
    settings = {
        "architecture": architecture, "d_in": d, "d_sae": D_SAE, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": "transcoder" not in architecture,
        "normalize_activations": "none", "reshape_activations": "none", "metadata": metadata,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(settings | extra | cfg))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder
