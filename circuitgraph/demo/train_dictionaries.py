"""Trains the demo's dictionaries: TopK autoencoders by sae-lens, and BatchTopK transcoders by a loop of our own.

They are trained on the model's activations over the training text, those at <bos> included. The tasks' prompts are not
used.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from sae_lens import (
    SAE,
    JumpReLUTranscoder,
    JumpReLUTranscoderConfig,
    SAETrainer,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import mse_loss
from transformer_lens.model_bridge import TransformerBridge

from circuitgraph.demo.corpus import text_batches
from circuitgraph.demo.hook_points import HookPoints, hook_points, record

D_SAE, K = 1024, 16
# z learns slowest; explained variance of z.0 after 800 steps: 0.919 at 1e-3, 0.940 at 2e-3 (0.901 with K = 12 at 1e-3).
RATE = {"z": 2e-3, "mlp_out": 1e-3, "resid_post": 1e-3}
TEXT_BATCHES, TEXT_SEED = 400, 7  # of 64 documents each, together 360,000 tokens: 3 GB at all hooks
BATCH, N_STEPS = 1024, 800
DEAD_AFTER, AUX_WEIGHT = 200, 1 / 32


def train_dictionaries(
    model: TransformerBridge, folder: Path, layers: Iterable[int], *, n_steps: int = N_STEPS
) -> float:
    """Train and save three dictionaries per layer. Each has a seed of its own, so that it does not depend on the
    others.

    Args:
        model: The demo model.
        folder: Each dictionary gets a folder in it, named by its site, with weights in float16.
        layers: The layers to train for.
        n_steps: Steps for each dictionary.

    Returns CPU seconds.
    """
    start = time.process_time()
    every = [points for layer in layers for points in hook_points(layer)]
    hooks = sorted({hook for points in every for hook in (points.hook_in, points.hook_out)})
    activations = record(model, text_batches(model.tokenizer, TEXT_BATCHES, 64, TEXT_SEED), hooks)
    for points in every:
        x, y = activations[points.hook_in], activations[points.hook_out]
        torch.manual_seed(zlib.crc32(points.name.encode()))
        rate = RATE[points.kind]
        dictionary = _train_sae(x, rate, n_steps) if x is y else _train_transcoder(x, y, rate, n_steps)
        _save(dictionary, points, folder / points.name)
        print(f"{points.name}  {time.process_time() - start:.0f} s", flush=True)
    return time.process_time() - start


def _train_sae(x: Tensor, rate: float, n_steps: int) -> TopKTrainingSAE:
    """A TopK autoencoder of x [token, d] with decoder rows of length 1."""
    config = TopKTrainingSAEConfig(
        d_in=x.shape[1], d_sae=D_SAE, k=K, apply_b_dec_to_input=False,
        normalize_activations="expected_average_only_in",  # the scale is folded into the weights at the end
    )  # fmt: skip
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=n_steps * BATCH, train_batch_size_samples=BATCH, lr=rate, lr_end=rate,
            lr_warm_up_steps=50, lr_decay_steps=n_steps // 4,  # linear to 0; sae-lens wants an `lr_end`, unused here
            dead_feature_window=DEAD_AFTER, n_batches_for_norm_estimate=50,
        ),
        TopKTrainingSAE(config),
        (x[rows] for rows in _shuffled(len(x))),
    )  # fmt: skip
    sae = trainer.fit()
    sae.fold_W_dec_norm()
    sae.cfg.rescale_acts_by_decoder_norm = False
    return sae


def _train_transcoder(x: Tensor, y: Tensor, rate: float, n_steps: int) -> JumpReLUTranscoder:
    """A transcoder from x to y [token, d]: BatchTopK while it trains, then one threshold that gives the same mean L0.

    The loss is the mean squared error in units where y has mean square 1, plus a term that makes features which were
    silent for `DEAD_AFTER` steps explain the error that the others leave.
    """
    config = JumpReLUTranscoderConfig(d_in=x.shape[1], d_out=y.shape[1], d_sae=D_SAE, apply_b_dec_to_input=False)
    transcoder = JumpReLUTranscoder(config)
    scale = y.pow(2).mean().sqrt()
    with torch.no_grad():
        transcoder.W_dec /= transcoder.W_dec.norm(dim=1, keepdim=True)
        transcoder.b_dec += y.mean(0) / scale
    optimizer = torch.optim.Adam(transcoder.parameters(), lr=rate)
    factor = lambda step: min(1.0, (step + 1) / 50, 4 * (n_steps - step) / n_steps)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    silent_for = torch.zeros(D_SAE)
    for _, rows in zip(range(n_steps), _shuffled(len(x)), strict=False):
        target = y[rows] / scale
        strengths = _strengths(transcoder, x[rows])
        kept = strengths * (strengths >= _least_kept(strengths))
        unit = transcoder.W_dec / transcoder.W_dec.norm(dim=1, keepdim=True)
        error = target - kept @ unit - transcoder.b_dec
        silent_for = torch.where((kept > 0).any(0), 0, silent_for + 1)
        silent = silent_for > DEAD_AFTER
        loss = error.pow(2).mean() + AUX_WEIGHT * _silent_loss(strengths[:, silent], unit[silent], error.detach())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return _fold(transcoder, x[: 64 * BATCH], float(scale))


def _strengths(transcoder: JumpReLUTranscoder, x: Tensor) -> Tensor:
    """The length of what each feature would write, relu(x W_enc + b_enc) |W_dec| [token, d_sae]."""
    pre_acts: Tensor = x @ transcoder.W_enc + transcoder.b_enc
    strengths: Tensor = pre_acts.relu() * transcoder.W_dec.norm(dim=1)
    return strengths


def _least_kept(strengths: Tensor) -> Tensor:
    """The least strength that is kept if the whole batch keeps `K` features per token on average."""
    return strengths.detach().flatten().topk(K * len(strengths), sorted=False).values.min()


def _silent_loss(strengths: Tensor, unit: Tensor, error: Tensor) -> Tensor:
    """The mean squared difference between the error and what each token's 32 strongest silent features write."""
    if strengths.shape[1] == 0:
        return error.new_zeros(())
    values, which = strengths.topk(min(32, strengths.shape[1]), dim=1)
    return mse_loss(torch.zeros_like(strengths).scatter(1, which, values) @ unit, error)


@torch.no_grad()
def _fold(transcoder: JumpReLUTranscoder, x: Tensor, scale: float) -> JumpReLUTranscoder:
    """The same map in units of y: decoder rows of length 1, and a threshold that keeps `K` features on average."""
    gain = transcoder.W_dec.norm(dim=1) * scale
    transcoder.W_dec.data = transcoder.W_dec / transcoder.W_dec.norm(dim=1, keepdim=True)
    transcoder.W_enc.data = transcoder.W_enc * gain
    transcoder.b_enc.data = transcoder.b_enc * gain
    transcoder.b_dec.data = transcoder.b_dec * scale
    thresholds = [_least_kept(_strengths(transcoder, rows)) for rows in torch.split(x, BATCH)]
    transcoder.threshold.data = torch.stack(thresholds).mean().expand(D_SAE).clone()
    return transcoder


def _shuffled(n: int) -> Iterator[Tensor]:
    """Row numbers 0 to n - 1 in batches, epoch after epoch without end, in an order by torch's global seed."""
    while True:
        yield from (rows for rows in torch.split(torch.randperm(n), BATCH) if len(rows) == BATCH)


def _save(dictionary: SAE, points: HookPoints, folder: Path) -> None:
    """Write sae-lens' format with weights in half precision; cfg.json says float32, so that loaders compute in it."""
    dictionary.cfg.metadata = SAEMetadata(
        model_name="circuitgraph-demo", hook_name=points.hook_in, hook_name_out=points.hook_out
    )
    dictionary.cfg.reshape_activations = "hook_z" if points.kind == "z" else "none"
    inference = getattr(dictionary.cfg, "get_inference_sae_cfg_dict", dictionary.cfg.to_dict)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(inference(), indent=2, sort_keys=True) + "\n")
    weights = {name: value.detach().half().contiguous() for name, value in dictionary.state_dict().items()}
    (folder / "sae_weights.safetensors").write_bytes(save(weights))
