"""Trains the demo model: a GPT-2 of 4 layers on the text of `circuitgraph.tasks`.

It learns to predict every next word. The tasks are in the text and are not trained for; they only show the progress.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from circuitgraph.demo.corpus import MAX_LENGTH, build_tokenizer, text_batches
from circuitgraph.demo.measure import score_task
from circuitgraph.tasks import TASKS

N_STEPS, BATCH, PEAK_RATE, WARM_UP = 3000, 64, 1.5e-3, 100


def train_model(folder: Path, *, n_steps: int = N_STEPS, seed: int = 0) -> float:
    """Train and save the model.

    Args:
        folder: Gets weights (float16) and tokenizer, as `save_pretrained` writes them.
        n_steps: Optimiser steps.
        seed: Seed of the weights and the text.

    Returns CPU seconds.
    """
    start = time.process_time()
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = _new_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, n_steps))
    for step, ids in enumerate(text_batches(tokenizer, n_steps, BATCH, seed=seed + 1), start=1):
        logits = model(ids[:, :-1], attention_mask=(ids[:, :-1] != tokenizer.pad_token_id).long()).logits
        loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=tokenizer.pad_token_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 500 == 0 or step == n_steps:
            seconds = time.process_time() - start
            print(f"step {step}  loss {loss.item():.3f}  {_progress(model, tokenizer)}  {seconds:.0f} s", flush=True)
    _save(model, tokenizer, folder)
    return time.process_time() - start


def _new_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=MAX_LENGTH, n_embd=128, n_layer=4, n_head=4,
            tie_word_embeddings=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip


def _rate(step: int, n_steps: int) -> float:
    """The learning rate as a share of the peak: linear warm-up, then a cosine to 0."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (n_steps - WARM_UP)))


def _progress(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> str:
    scores = {task: score_task(lambda ids: model(ids).logits, tokenizer, task, 256, seed=2) for task in TASKS}
    return "  ".join(f"{task} {score.right_above_wrong:.3f}/{score.top1:.3f}" for task, score in scores.items())


def _save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors leaves it readable by its owner only
    # The file has half the bytes, and loaders that follow config.json compute in float32.
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
