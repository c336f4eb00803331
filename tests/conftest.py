"""Small models and dictionaries with random weights, made anew in each session; nothing is downloaded."""

from __future__ import annotations

import functools
import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # in programs that tests start as well

import pytest
import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are defined, so before anything imports Triton


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The folder of a random two-layer GPT-2."""
    from support.families import save_tiny_gpt2

    return save_tiny_gpt2(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_model(tiny_folder):
    """The random two-layer GPT-2 in float64."""
    from circuitgraph.models.load import load_model

    return load_model(tiny_folder, dtype=torch.float64)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """family -> the folder of its tiny checkpoint, written once."""
    from support.families import save_family

    root = tmp_path_factory.mktemp("families")
    return functools.cache(lambda family: save_family(root / family, family))


@pytest.fixture(scope="session")
def loaded(folder):
    """family -> our model of its checkpoint in float64, loaded once."""
    from circuitgraph.models.load import load_model

    return functools.cache(lambda family: load_model(folder(family), dtype=torch.float64))


@pytest.fixture(scope="session")
def tiny_dictionaries(tiny_model):
    """A z-SAE and a transcoder per layer, with different activations and both places a transcoder may read."""
    from support.dictionary_kinds import random_dictionary

    from circuitgraph.dictionaries.collection import Dictionaries
    from circuitgraph.dictionaries.dictionary import check_fit

    dictionaries = [
        random_dictionary("z.0", "z.0", activation="relu", seed=0),
        random_dictionary("ln2_normalized.0", "mlp_out.0", activation="jumprelu", seed=1),
        random_dictionary("z.1", "z.1", activation="topk", seed=2),
        random_dictionary("mlp_in.1", "mlp_out.1", activation="relu", seed=3),
    ]
    for dictionary in dictionaries:
        check_fit(dictionary, tiny_model)
    return Dictionaries(dictionaries)


@pytest.fixture(scope="session")
def tiny_pairs():
    """Two pairs of one length that differ at one position each."""
    from circuitgraph.prompts import PromptPair

    return [
        PromptPair("a b c d e", "a b f d e", (" g",), (" h",)),
        PromptPair("c a h b d", "c e h b d", (" f",), (" b",)),
    ]


@pytest.fixture(scope="module")
def workplace(tiny_folder, tmp_path_factory):
    """A folder with dictionaries, prompts and a graph that `discover` wrote."""
    from support.command import model_options, run
    from support.sae_lens_files import save

    folder = tmp_path_factory.mktemp("cli")
    for layer in range(2):
        save(folder / "dictionaries" / f"z.{layer}", hook=f"blocks.{layer}.attn.hook_z", seed=layer)
        hooks = {"hook": f"blocks.{layer}.ln2.hook_normalized", "hook_out": f"blocks.{layer}.hook_mlp_out"}
        save(folder / "dictionaries" / f"mlp_out.{layer}", architecture="transcoder", seed=9 + layer, **hooks)
    lines = [
        {"clean": "a b c d e", "corrupted": "a b f d e", "answers": [" g"], "wrong_answers": [" h"]},
        {"clean": "c a h b d", "corrupted": "c e h b d", "answers": [" f"], "wrong_answers": [" b"]},
        {"clean": "c a", "corrupted": "c e", "answers": [" f"], "wrong_answers": [" b"]},
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run(
        "discover",
        folder / "pairs.jsonl",
        *model_options(tiny_folder, folder),
        "--length",
        6,
        "-o",
        folder / "graph.json",
    )
    assert result.exit_code == 0, result.output
    return folder
