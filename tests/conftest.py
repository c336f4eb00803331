"""Small models and dictionaries with random weights, made anew in each session; nothing is downloaded."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

WORDS = ["<pad>", "<bos>", "<unk>", *["a", "b", "c", "d", "e", "f", "g", "h"], "."]


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


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The folder of a random two-layer GPT-2."""
    return save_tiny_gpt2(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_model(tiny_folder):
    """The random two-layer GPT-2 in float64."""
    from circuitgraph.models.model import load_model

    return load_model(tiny_folder, dtype=torch.float64)


def random_dictionary(
    reads: str, writes: str, *, activation: str = "relu", d: int = 16, d_sae: int = 24, seed: int = 0
):
    """A float64 dictionary of random weights, about a third of its features active."""
    from circuitgraph.dictionaries.dictionary import Dictionary
    from circuitgraph.nodes import Site
    from circuitgraph_kernels import SaeWeights

    generator = torch.Generator().manual_seed(1000 + seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    settings = {"jumprelu": {"threshold": 0.2 * randn(d_sae).abs()}, "topk": {"k": 6}}.get(activation, {})
    weights = SaeWeights(
        randn(d, d_sae),
        0.3 * randn(d_sae) - 0.6,
        0.4 * randn(d_sae, d),
        0.3 * randn(d),
        activation=activation,
        **settings,
    )
    return Dictionary(weights, Site.parse(reads), Site.parse(writes), f"{writes}-{activation}")


@pytest.fixture(scope="session")
def tiny_dictionaries(tiny_model):
    """A z-SAE and a transcoder per layer, with different activations and both places a transcoder may read."""
    from circuitgraph.dictionaries.dictionary import check_fit

    dictionaries = [
        random_dictionary("z.0", "z.0", activation="relu", seed=0),
        random_dictionary("ln2_normalized.0", "mlp_out.0", activation="jumprelu", seed=1),
        random_dictionary("z.1", "z.1", activation="topk", seed=2),
        random_dictionary("mlp_in.1", "mlp_out.1", activation="relu", seed=3),
    ]
    for dictionary in dictionaries:
        check_fit(dictionary, tiny_model)
    from circuitgraph.dictionaries.collection import Dictionaries

    return Dictionaries(dictionaries)


@pytest.fixture(scope="session")
def tiny_pairs():
    """Two pairs of one length that differ at one position each."""
    from circuitgraph.prompts import PromptPair

    return [
        PromptPair("a b c d e", "a b f d e", (" g",), (" h",)),
        PromptPair("c a h b d", "c e h b d", (" f",), (" b",)),
    ]
