"""Tiny random checkpoints of the model families, written as Hugging Face writes them, and two references that read them.

In come a folder and the name of a family; out come a checkpoint with a word tokenizer beside it, and for such a folder the
plain Hugging Face model and TransformerLens' HookedTransformer. Knows nothing of circuitgraph. Sizes are chosen so that a mistake shows: eps is large enough
to matter, gains and biases are random, rotary angles differ within a head (four rotated dimensions at least, as two are
the same in the half-split and the interleaved convention), windows and soft caps are small enough to bite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

WORDS = ["<pad>", "<bos>", "<unk>", *["a", "b", "c", "d", "e", "f", "g", "h"], "."]

N_LAYERS = 2
EPS = 1e-3
TOKENS = torch.tensor([[1, 3, 4, 5, 6, 9, 10], [1, 7, 4, 3, 3, 8, 11]])  # longer than any sliding window below


@dataclass(frozen=True)
class Family:
    """What a family's checkpoint is made of: transformers' model type, its settings, and the scale of its weights."""

    model_type: str
    settings: Mapping[str, Any]
    weight: float = 0.35  # standard deviation of matrices: scores of order 1, neither uniform nor saturated patterns
    embedding: float = 0.5
    rms: bool = True

    @property
    def precision(self) -> torch.dtype:
        """The precision of a float64 model: transformers' RMSNorm, rotary angles and softmax of NeoX are float32 inside."""
        return torch.float64 if self.model_type == "gpt2" else torch.float32


_ROTARY = {"rope_type": "default", "rope_theta": 100.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,  # wavelengths 6, 20, 63, 199: one kept, two blended, one stretched
}
_DECODER = {
    "hidden_size": 16,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
    "rms_norm_eps": EPS,
    "rope_parameters": _ROTARY,
    "tie_word_embeddings": False,
}
_GPT2 = {"n_embd": 16, "n_layer": N_LAYERS, "n_head": 4, "n_positions": 16, "layer_norm_epsilon": EPS}
_NEOX = {
    "hidden_size": 16,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
    "layer_norm_eps": EPS,
    "rope_parameters": {**_ROTARY, "partial_rotary_factor": 0.5},
}
_GEMMA = {**_DECODER, "query_pre_attn_scalar": 5, "sliding_window": 3, "tie_word_embeddings": True}
_SLIDING_THEN_FULL = ["sliding_attention", "full_attention"]

FAMILIES: dict[str, Family] = {
    "gpt2": Family("gpt2", {**_GPT2, "tie_word_embeddings": False}, rms=False),
    "gpt_neox": Family("gpt_neox", {**_NEOX, "use_parallel_residual": True}, rms=False),
    "gpt_neox_serial": Family("gpt_neox", {**_NEOX, "use_parallel_residual": False}, rms=False),
    "llama": Family("llama", _DECODER),
    "llama3": Family("llama", {**_DECODER, "rope_parameters": _LLAMA3}),
    "mistral": Family("mistral", {**_DECODER, "sliding_window": 3}),
    "qwen2": Family("qwen2", {k: v for k, v in _DECODER.items() if k != "head_dim"}),
    "qwen3": Family("qwen3", _DECODER),
    "gemma2": Family(
        "gemma2",
        {**_GEMMA, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.5, "layer_types": _SLIDING_THEN_FULL},
    ),
    "gemma3": Family(
        "gemma3_text",
        {
            **_GEMMA,
            "layer_types": _SLIDING_THEN_FULL,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
                "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
            },
        },
    ),
}


def save_family(folder: Path, family: str, *, seed: int = 0) -> Path:
    """The folder, after a random tiny checkpoint of the family and the word tokenizer of `save_tiny_gpt2` are written to it.

    Matrices are normal with the family's scales; gains are their neutral value (1, or 0 where the model adds 1) plus noise
    of 0.3; biases are noise of 0.2.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    made = FAMILIES[family]
    save_tiny_gpt2(folder)
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        (folder / name).unlink(missing_ok=True)
    ids = {"vocab_size": len(WORDS), "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(made.model_type, **ids, **made.settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.2 * noise if name.endswith("bias") else parameter + 0.3 * noise)
            else:
                embeds = any(part in name for part in ("embed", "wte", "wpe", "lm_head"))
                parameter.copy_((made.embedding if embeds else made.weight) * noise)
    model.save_pretrained(folder)
    return folder


def hf_model(folder: Path, *, dtype: torch.dtype = torch.float64) -> Any:
    """The plain Hugging Face model of a folder: eager attention, eval mode, weights without gradients."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval().requires_grad_(False)


def hf_blocks(model: Any) -> Any:
    """The transformer blocks of a plain Hugging Face model, first to last."""
    if hasattr(model, "transformer"):
        return model.transformer.h
    return model.gpt_neox.layers if hasattr(model, "gpt_neox") else model.model.layers


def hooked_transformer(folder: Path) -> Any:
    """The HookedTransformer of a folder in float64, weights unprocessed and without gradients.

    Its own loader knows published names only, so the settings are read from the checkpoint's config here; the weights go
    through its own converters.
    """
    from transformer_lens import HookedTransformer, HookedTransformerConfig, loading_from_pretrained

    hf = hf_model(folder)
    config = HookedTransformerConfig(
        **_oracle_settings(hf.config), original_architecture=type(hf).__name__, dtype=torch.float64, device="cpu"
    )
    weights = loading_from_pretrained.get_pretrained_state_dict(str(folder), config, hf, dtype=torch.float64)
    oracle = HookedTransformer(config, move_to_device=False)
    raw = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
    oracle.load_and_process_state_dict(weights, **dict.fromkeys(raw, False))
    return oracle.eval().requires_grad_(False)


def _oracle_settings(config: Any) -> dict[str, Any]:
    if config.model_type == "gpt2":
        return {
            "d_model": config.n_embd,
            "n_layers": config.n_layer,
            "n_heads": config.n_head,
            "d_head": config.n_embd // config.n_head,
            "d_mlp": config.n_inner or 4 * config.n_embd,
            "n_ctx": config.n_positions,
            "d_vocab": config.vocab_size,
            "eps": config.layer_norm_epsilon,
            "act_fn": config.activation_function,
            "normalization_type": "LN",
        }
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    everywhere = rope.get("full_attention", rope)
    settings = {
        "d_model": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "d_head": d_head,
        "d_mlp": config.intermediate_size,
        "n_ctx": config.max_position_embeddings,
        "d_vocab": config.vocab_size,
        "positional_embedding_type": "rotary",
        "rotary_base": int(everywhere["rope_theta"]),
        "rotary_dim": int(everywhere.get("partial_rotary_factor", 1) * d_head),
    }
    if config.model_type == "gpt_neox":
        parallel = {"parallel_attn_mlp": config.use_parallel_residual}
        return (
            settings
            | parallel
            | {"eps": config.layer_norm_eps, "act_fn": config.hidden_act, "normalization_type": "LN"}
        )
    settings |= {
        "n_key_value_heads": config.num_key_value_heads,
        "eps": config.rms_norm_eps,
        "act_fn": getattr(config, "hidden_activation", None) or config.hidden_act,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "use_qk_norm": config.model_type in ("qwen3", "gemma3_text"),
    }
    if "sliding_attention" in rope:
        settings["rotary_base_local"] = int(rope["sliding_attention"]["rope_theta"])
    if everywhere["rope_type"] == "llama3":
        settings |= {
            "use_NTK_by_parts_rope": True,
            "NTK_original_ctx_len": everywhere["original_max_position_embeddings"],
            "NTK_by_parts_low_freq_factor": everywhere["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": everywhere["high_freq_factor"],
            "NTK_by_parts_factor": everywhere["factor"],
        }
    if getattr(config, "sliding_window", None):
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
        local = ["local" if kind == "sliding_attention" else "global" for kind in kinds]
        settings |= {"use_local_attn": True, "window_size": config.sliding_window, "attn_types": local}
    if config.model_type.startswith("gemma"):
        settings |= {
            "attn_scale": config.query_pre_attn_scalar**0.5,
            "use_normalization_before_and_after": True,
            "attn_scores_soft_cap": config.attn_logit_softcapping or -1.0,
            "output_logits_soft_cap": config.final_logit_softcapping or -1.0,
        }
    return settings


def save_tiny_gpt2(folder: Path, *, n_layers: int = 2, seed: int = 0) -> Path:
    """A random GPT-2 of width 16 with 2 heads, learned positions and biases and gains that are not trivial, and a word
    tokenizer that prepends <bos>, written as an ordinary Hugging Face folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    special = {"bos_token": "<bos>", "eos_token": "<bos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    config = GPT2Config(
        vocab_size=len(WORDS),
        n_positions=16,
        n_embd=16,
        n_layer=n_layers,
        n_head=2,
        bos_token_id=1,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    model = GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = name.endswith("weight") and "ln_" in name
            parameter.copy_(1 + 0.3 * noise if gain else (0.5 if parameter.ndim > 1 else 0.2) * noise)
    model.save_pretrained(folder)
    return folder
