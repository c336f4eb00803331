"""hf:// sources and named sets: offline, from a cache laid out as the hub's client leaves it, or a stubbed loader."""

from __future__ import annotations

import pytest
import torch
from support.circuit_tracer_files import config, save_clt, save_set
from support.close import assert_close
from support.published_files import attention
from support.sae_lens_files import save

from circuitgraph.dictionaries.hub import fetch
from circuitgraph.dictionaries.load import load_dictionaries
from circuitgraph.errors import DictionaryError
from circuitgraph.nodes import Site

COMMITS = {"main": "0" * 40, "v2": "1" * 40}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function (repository, revision) -> its folder in an otherwise empty cache; nothing is fetched."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def repository(name, revision="main"):
        root = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / revision).write_text(COMMITS[revision])
        folder = root / "snapshots" / COMMITS[revision]
        folder.parent.mkdir(exist_ok=True)
        return folder

    return repository


@pytest.mark.parametrize("lazy", [False, True])
def test_a_folder_of_a_repository(tiny_model, hub, lazy):
    save(hub("user/saes") / "layer 1" / "x", hook="blocks.1.hook_mlp_out")
    (found,) = load_dictionaries("hf://user/saes/layer 1/x", tiny_model, lazy=lazy).values()
    assert found.writes == Site("mlp_out", 1) and bool(found.weights.W_dec.any())


def test_a_whole_repository_and_a_revision_of_it(tiny_model, hub):
    save_set(hub("user/set"))
    save_clt(hub("user/set", "v2"))
    assert [len(d.sites) for d in load_dictionaries("hf://user/set", tiny_model).values()] == [1, 1]
    assert [len(d.sites) for d in load_dictionaries("hf://user/set@v2", tiny_model).values()] == [2, 1]


def test_a_file_with_the_settings_beside_it(tiny_model, hub):
    folder = hub("user/attention")
    folder.mkdir()
    path = attention(folder)
    (found,) = load_dictionaries(f"z.1=hf://user/attention/{path.name}?processing=none", tiny_model).values()
    assert found.writes == Site("z", 1)


def test_a_set_that_lists_files_of_the_hub(tiny_model, hub, tmp_path):
    save_set(hub("user/one"))
    save_set(hub("user/two", "v2"), skip=True)
    folder = tmp_path / "set"
    folder.mkdir()
    config(folder, transcoders=["hf://user/one/layer_0.safetensors", "hf://user/two/layer_1.safetensors?revision=v2"])
    first, second = load_dictionaries(folder, tiny_model).values()
    assert first.W_skip is None and second.W_skip is not None


def test_only_the_files_of_a_dictionary_are_asked_for(monkeypatch, tmp_path):
    asked = {}

    def snapshot_download(repository, *, revision, allow_patterns):
        asked.update(repository=repository, revision=revision, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.pt").write_bytes(b"")
    assert fetch("hf://user/repo/a/x.pt@v2") == tmp_path / "a" / "x.pt"
    expected = ["a/x.pt", "a/x.json", "a/x_cfg.json", "a/config.json"]
    assert asked == {"repository": "user/repo", "revision": "v2", "patterns": expected}
    assert fetch("hf://user/repo/a") == tmp_path / "a"
    assert (
        asked["revision"] is None and "a/cfg.json" in asked["patterns"] and "a/layer_*.safetensors" in asked["patterns"]
    )
    assert all(pattern.startswith("a/") and pattern != "a/*" for pattern in asked["patterns"])
    fetch("hf://user/repo")
    assert {"config.yaml", "W_dec_*.safetensors"} <= set(asked["patterns"])


BAD = {
    "no repository": ("hf://user", "hf://user names no repository; expected hf://USER/REPO"),
    "empty": ("hf://", "names no repository"),
    "a way out": ("hf://user/repo/../x", "names no repository"),
    "not in the cache": ("hf://user/none", "hf://user/none was not fetched: "),
    "no such folder": ("hf://user/set/nothing", "user/set has no nothing of a known format"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_what_the_hub_does_not_have_is_refused_in_one_line(tiny_model, hub, text, message):
    save_set(hub("user/set"))
    with pytest.raises(DictionaryError, match=message) as caught:
        load_dictionaries(text, tiny_model)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


# named sets ------------------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path, monkeypatch):
    """sae-lens' loader, giving a random dictionary for any RELEASE/ID, and the list of what it was asked for."""
    from sae_lens import SAE

    asked = []

    def from_pretrained(release, sae_id):
        asked.append((release, sae_id))
        hook = sae_id if "hook" in sae_id else "blocks.0.hook_mlp_out"
        return SAE.load_from_disk(
            save(tmp_path / str(len(asked)), hook=hook.replace("hook_z", "attn.hook_z"), seed=len(asked))
        )

    monkeypatch.setattr(SAE, "from_pretrained", from_pretrained)
    return asked


@pytest.fixture
def two_layers(monkeypatch):
    """The registry, with only the first two layers of each release."""
    import circuitgraph.dictionaries.registry as sets

    original = sets._resolve
    monkeypatch.setattr(sets, "_resolve", lambda registry, pattern: original(registry, pattern)[:2])


@pytest.mark.parametrize("lazy", [False, True])
def test_a_named_set_is_its_dictionaries(tiny_model, published, two_layers, lazy):
    found = load_dictionaries("pythia-70m-deduped/feature-circuits", tiny_model, lazy=lazy)
    assert [str(site) for site in found] == [
        f"{k}.{i}" for i in range(2) for k in ("attn_out", "mlp_out", "resid_post")
    ]
    assert ("pythia-70m-deduped-mlp-sm", "blocks.1.hook_mlp_out") in published and len(published) == 6
    acts = found[Site("mlp_out", 1)].encode(torch.randn(4, 16).double())
    assert bool(acts.any()) and len(published) == 6 + lazy


def test_attention_saes_of_the_registry_were_trained_on_a_processed_model(tiny_model, published, two_layers):
    """Their loader in sae-lens records nothing of that."""
    ours = load_dictionaries("gpt2-small/z", tiny_model)[Site("z", 1)]
    del published[:]
    plain = load_dictionaries("gpt2-small/z?processing=none", tiny_model)[Site("z", 1)]
    bias = tiny_model.value_bias(Site("z", 1), norm=True)
    assert_close(ours.weights.b_dec, plain.weights.b_dec + bias)
    assert float(bias.abs().max()) > 0.1
    other = load_dictionaries("pythia-70m-deduped-res-sm/blocks.0.hook_resid_post", tiny_model)
    assert float(other[Site("resid_post", 0)].weights.W_enc.mean(0).abs().max()) > 0.01


def test_a_set_takes_no_site(tiny_model, published):
    with pytest.raises(DictionaryError, match="gpt2-small/z is a set for every layer, but z.0 was given"):
        load_dictionaries("z.0=gpt2-small/z", tiny_model)
    assert not published


TYPOS = {
    "a set": ("gpt2-smal/z", "Did you mean 'gpt2-small/z'"),
    "a set without a slash": ("gpt2-small-z", "does not exist; .* Did you mean 'gpt2-small/z'"),
    "a release": ("gpt2-small-hook-z-k/blocks.0.hook_z", "Did you mean 'gpt2-small-hook-z-kk/blocks.0.hook_z'"),
    "an id": ("gpt2-small-hook-z-kk/blocks.99.hook_z", "ID blocks.99.hook_z not found in release"),
}


@pytest.mark.parametrize(("text", "message"), TYPOS.values(), ids=TYPOS)
def test_a_typo_gets_the_nearest_name(tiny_model, text, message):
    with pytest.raises(DictionaryError, match=message) as caught:
        load_dictionaries(text, tiny_model)
    assert "\n" not in str(caught.value)


def test_layers_of_cross_layer_transcoders_are_refused_in_the_form_that_sae_lens_gives_them(tiny_model, published):
    from circuitgraph.dictionaries.registry import read_registry

    summed = [
        (f"{release}/{next(iter(entry.saes_map))}", entry.repo_id)
        for release, entry in read_registry().items()
        if entry.conversion_func == "mntss_clt_layer_transcoder"
    ]
    assert summed
    for name, repository in summed:
        with pytest.raises(DictionaryError, match=f"is one layer of a cross-layer .* for instance hf://{repository}"):
            load_dictionaries(name, tiny_model)
    assert not published


def test_the_listing_says_that_sets_are_sources():
    from click.testing import CliRunner

    from circuitgraph.cli.main import main

    result = CliRunner().invoke(main, ["dictionaries", "--model", "gpt2-small"])
    assert result.exit_code == 0 and "can be given as a source: --dictionaries gpt2-small/z" in result.output
