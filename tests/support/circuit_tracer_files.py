"""Sets of transcoders of random weights as circuit-tracer writes them."""

from __future__ import annotations

import torch
import yaml
from safetensors.torch import save_file

D, D_SAE, N = 16, 24, 2


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 11 * len(shape)))


def config(folder, **changes):
    values = {
        "model_name": "org/tiny", "model_kind": "transcoder_set", "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
    } | changes  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
    return folder


def per_layer(layer, *, threshold=False, skip=False):
    tensors = {
        "W_enc": randn(D_SAE, D, seed=layer), "W_dec": randn(D_SAE, D, seed=layer + 10), "b_enc": randn(D_SAE, seed=layer),
        "b_dec": randn(D, seed=layer + 5),
    }  # fmt: skip
    if threshold:
        tensors["activation_function.threshold"] = randn(D_SAE, seed=layer + 3).abs()
    if skip:
        tensors["W_skip"] = randn(D, D, seed=layer + 20)
    return tensors


def save_set(folder, *, n_layers=N, threshold=False, skip=False, **changes):
    folder.mkdir()
    for layer in range(n_layers):
        save_file(per_layer(layer, threshold=threshold, skip=skip), folder / f"layer_{layer}.safetensors")
    return config(folder, **changes)


def cross_layer(layer, *, n_layers=N, threshold=False, skip=False):
    encoder = {
        f"W_enc_{layer}": randn(D_SAE, D, seed=layer), f"b_enc_{layer}": randn(D_SAE, seed=layer), f"b_dec_{layer}": randn(D, seed=layer + 5),
    }  # fmt: skip
    if threshold:
        encoder[f"threshold_{layer}"] = randn(D_SAE, seed=layer + 3).abs()
    if skip:
        encoder[f"W_skip_{layer}"] = randn(D, D, seed=layer + 20)
    return encoder, {f"W_dec_{layer}": randn(D_SAE, n_layers - layer, D, seed=layer)}


def save_clt(folder, *, n_layers=N, threshold=False, skip=False, **changes):
    folder.mkdir()
    for layer in range(n_layers):
        encoder, decoder = cross_layer(layer, n_layers=n_layers, threshold=threshold, skip=skip)
        save_file(encoder, folder / f"W_enc_{layer}.safetensors")
        save_file(decoder, folder / f"W_dec_{layer}.safetensors")
    return config(folder, model_kind="cross_layer_transcoder", **changes)
