"""Dictionaries of random weights as publishers write them: Gemma Scope, dictionary_learning, a .pt with a .json beside it."""

from __future__ import annotations

import json
from collections import OrderedDict

import numpy as np
import torch

D, D_SAE, K = 16, 24, 5


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 7 * len(shape)))


def rows():
    return randn(9, D, seed=3).double()


def gemma_tensors(d=D):
    return {
        "W_enc": randn(d, D_SAE).numpy(),
        "W_dec": randn(D_SAE, d, seed=1).numpy(),
        "b_enc": randn(D_SAE).numpy(),
        "b_dec": randn(d, seed=1).numpy(),
        "threshold": randn(D_SAE, seed=2).abs().numpy(),
    }


def save_gemma(tmp_path, tensors=None, layer=1):
    path = tmp_path / f"layer_{layer}" / "width_16k" / "average_l0_71" / "params.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, **(gemma_tensors() if tensors is None else tensors))
    return path


def learned(class_name):
    """The state dict of a class of dictionary_learning: Linear keeps [out, in]."""
    linear = {"encoder.weight": randn(D_SAE, D), "decoder.weight": randn(D, D_SAE, seed=1)}
    own = {"W_enc": randn(D, D_SAE), "W_dec": randn(D_SAE, D, seed=1), "b_enc": randn(D_SAE), "b_dec": randn(D)}
    k, threshold = {"k": torch.tensor(K)}, {"threshold": torch.tensor(0.7)}
    top_k = {"b_dec": randn(D)} | linear | {"encoder.bias": randn(D_SAE)} | k | threshold
    states = {
        "AutoEncoder": {"bias": randn(D)} | linear | {"encoder.bias": randn(D_SAE)},
        "GatedAutoEncoder": linear
        | {"decoder_bias": randn(D), "r_mag": 0.3 * randn(D_SAE), "gate_bias": randn(D_SAE, seed=1)}
        | {"mag_bias": randn(D_SAE, seed=2)},
        "AutoEncoderTopK": top_k,
        "BatchTopKSAE": top_k,
        "MatryoshkaBatchTopKSAE": own | k | threshold | {"group_sizes": torch.tensor([8, 16])},
        "JumpReluAutoEncoder": own | {"threshold": randn(D_SAE, seed=2).abs()},
    }
    return OrderedDict(states[class_name])


def save_learned(folder, state, class_name=None, **trainer):
    """ae.pt, and with a class name the config.json that the training script leaves beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "ae.pt")
    if class_name:
        names = {
            "dict_class": class_name,
            "activation_dim": D,
            "dict_size": D_SAE,
            "layer": 1,
            "lm_name": "tiny",
            "k": K,
        }
        (folder / "config.json").write_text(json.dumps({"trainer": names | trainer, "buffer": {"ctx_len": 128}}))
    return folder


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


class Canary:
    """Unpickling it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


def weights(d=D, **changes):
    tensors = {
        "W_enc": randn(d, D_SAE),
        "W_dec": randn(D_SAE, d, seed=1),
        "b_enc": randn(D_SAE),
        "b_dec": randn(d, seed=1),
    }
    return {key: value for key, value in (tensors | changes).items() if value is not None}


def attention(folder, tensors=None, **cfg):
    """Kissane and Krzyzanowski: NAME.pt, NAME_cfg.json."""
    values = {
        "act_name": "blocks.1.attn.hook_z",
        "act_size": D,
        "dict_size": D_SAE,
        "layer": 1,
        "model_name": "gpt2-small",
    }
    torch.save(weights() if tensors is None else tensors, folder / "gpt2-small_L1_Hcat_z.pt")
    (folder / "gpt2-small_L1_Hcat_z_cfg.json").write_text(json.dumps(values | cfg))
    return folder / "gpt2-small_L1_Hcat_z.pt"
