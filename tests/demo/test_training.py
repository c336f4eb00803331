"""The shipped demo files keep what circuitgraph/demo/README.md claims: accuracy, dictionaries, size."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.close import assert_close

from circuitgraph.demo.corpus import build_tokenizer, text_batches
from circuitgraph.demo.hook_points import hook_points, load_dictionaries, load_model, record, spliced
from circuitgraph.demo.measure import measure_dictionary, score_task
from circuitgraph.demo.train import README, write_tables
from circuitgraph.embedded import DICTIONARIES, MODEL
from circuitgraph.tasks import TASKS

N_LAYERS = 4
HOOK_POINTS = [points for layer in range(N_LAYERS) for points in hook_points(layer)]
SOLVED = [task for task in TASKS if task != "capital-of-city-country"]
EACH_DICTIONARY = pytest.mark.parametrize("points", HOOK_POINTS, ids=lambda points: points.name)


@pytest.fixture(scope="module")
def model():
    return load_model(MODEL)


@pytest.fixture(scope="module")
def dictionaries():
    return load_dictionaries(DICTIONARIES, N_LAYERS)


@pytest.fixture(scope="module")
def text(model):
    return list(text_batches(model.tokenizer, 12, 64, seed=4321))


@pytest.fixture(scope="module")
def activations(model, text):
    return record(
        model, text, {hook for points in HOOK_POINTS for hook in (points.hook_in, points.hook_out)}, bos=False
    )


@pytest.mark.parametrize("task", SOLVED)
def test_the_shipped_model_solves_held_out_pairs(task, model):
    assert score_task(model, model.tokenizer, task, 256, seed=77).right_above_wrong >= 0.98


def test_the_shipped_model_names_capitals_outright_in_sentences_it_never_saw_them_in(model):
    assert score_task(model, model.tokenizer, "capital-country", 256, seed=78).top1 >= 0.98


@EACH_DICTIONARY
def test_each_dictionary_is_sparse_and_explains_its_site(points, dictionaries, activations):
    quality = measure_dictionary(dictionaries[points], activations[points.hook_in], activations[points.hook_out])
    assert 1 < quality.l0 <= 20
    assert quality.explained_variance >= 0.9
    assert quality.n_alive >= 64


@EACH_DICTIONARY
def test_each_dictionary_says_where_it_belongs_and_stays_float16_on_disk(points):
    config = json.loads((DICTIONARIES / points.name / "cfg.json").read_text())
    weights = load_file(DICTIONARIES / points.name / "sae_weights.safetensors")
    assert (config["metadata"]["hook_name"], config["metadata"]["hook_name_out"]) == (points.hook_in, points.hook_out)
    assert (config["normalize_activations"], config["apply_b_dec_to_input"], config["dtype"]) == (
        "none",
        False,
        "float32",
    )
    assert config["reshape_activations"] == ("hook_z" if points.kind == "z" else "none")
    assert all(value.dtype == torch.float16 and value.isfinite().all() for value in weights.values())
    norms = weights["W_dec"].double().norm(dim=1)
    assert_close(norms, torch.ones_like(norms), allowance=2**-11)  # as far as float16 moves a number near 1


@pytest.mark.parametrize("kinds", [("z", "mlp_out"), ("resid_post",)], ids="+".join)
@pytest.mark.parametrize("task", SOLVED)
def test_the_model_solves_the_tasks_through_its_dictionaries_alone(task, kinds, model, dictionaries):
    chosen = {points: dictionary for points, dictionary in dictionaries.items() if points.kind in kinds}
    plain = score_task(model, model.tokenizer, task, 128, seed=79).right_above_wrong
    with spliced(model, chosen):
        through = score_task(model, model.tokenizer, task, 128, seed=79).right_above_wrong
    assert through >= 0.9 * plain


def test_splicing_changes_every_site_and_leaves_no_hook_behind(model, dictionaries, text):
    ids = text[0]
    before = model(ids)
    for points, dictionary in dictionaries.items():
        with spliced(model, {points: dictionary}):
            assert not torch.equal(model(ids), before)
    assert torch.equal(model(ids), before)


def test_recording_gives_the_same_tokens_in_the_same_order_at_every_hook(model, text):
    rows = record(model, text[:2], ["blocks.0.hook_resid_post", "blocks.0.attn.hook_z"])
    kept = torch.cat([ids[ids != model.tokenizer.pad_token_id] for ids in text[:2]])
    assert {len(values) for values in rows.values()} == {len(kept)}
    first = rows["blocks.0.hook_resid_post"][kept == model.tokenizer.bos_token_id]
    assert_close(first, first[:1].expand_as(first))  # <bos> sees nothing but itself
    without = record(model, text[:2], ["blocks.0.attn.hook_z"], bos=False)["blocks.0.attn.hook_z"]
    assert torch.equal(without, rows["blocks.0.attn.hook_z"][kept != model.tokenizer.bos_token_id])


def test_the_tokenizer_splits_years_and_knows_every_word_of_the_text(model, text):
    tokenizer = model.tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer('read "red from 1732.')["input_ids"]) == [
        "<bos>", "read", '"', "red", "from", "17", "32", ".",
    ]  # fmt: skip
    assert all(f"{year:02}" in tokenizer.get_vocab() for year in range(100))
    assert not any((ids == tokenizer.unk_token_id).any() for ids in text)
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_both_folders_together_stay_below_15_megabytes():
    files = [file for folder in (MODEL, DICTIONARIES) for file in folder.rglob("*") if file.is_file()]
    assert 1_000_000 < sum(file.stat().st_size for file in files) <= 15_000_000
    assert {file.name for file in files} <= {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "cfg.json", "sae_weights.safetensors",
    }  # fmt: skip


def test_the_readme_holds_the_tables_of_all_tasks_and_dictionaries(tmp_path: Path):
    text = README.read_text()
    for name in (*TASKS, *(points.name for points in HOOK_POINTS)):
        assert re.search(rf"^\| {re.escape(name)} \|", text, re.MULTILINE), name
    copy = tmp_path / "README.md"
    copy.write_text(text)
    write_tables("new tables", copy)
    write_tables("newer tables", copy)
    assert copy.read_text().count("newer tables") == 1 and "new tables" not in copy.read_text()
    assert copy.read_text().startswith("# The embedded demo")


def test_importing_the_demo_paths_loads_no_heavy_library():
    code = "import sys, circuitgraph.demo; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
