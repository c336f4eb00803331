"""Sources with an explicit place, sae-lens objects in memory, and what sae-lens saves under another architecture."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support.close import assert_close
from support.sae_lens_files import D_SAE, D, save

from circuitgraph.dictionaries.load import load_dictionaries
from circuitgraph.errors import DictionaryError
from circuitgraph.nodes import Site


def same_numbers(ours, theirs):
    """encode and decode equal those of sae-lens' own class, in float64."""
    theirs = theirs.to(dtype=torch.float64)
    x = torch.randn(7, D, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    expected = theirs.encode(x)
    acts = ours.encode(x)
    assert 0 < int((expected != 0).sum()) < expected.numel()
    assert_close(acts, expected)
    assert_close(ours.decode(acts), theirs.decode(expected))


# places --------------------------------------------------------------------------------------------------------


def test_a_site_in_front_places_a_dictionary_that_names_none(tiny_model, tmp_path):
    folder = save(tmp_path / "one", metadata={})
    (found,) = load_dictionaries(f"resid_post.1={folder}", tiny_model).values()
    assert (found.reads, found.writes) == (Site("resid_post", 1), Site("resid_post", 1))


def test_a_transcoder_is_placed_by_two_sites(tiny_model, tmp_path):
    folder = save(tmp_path / "one", architecture="transcoder", metadata={})
    (found,) = load_dictionaries([f"ln2_normalized.1>mlp_out.1={folder}"], tiny_model).values()
    assert (str(found.reads), str(found.writes)) == ("ln2_normalized.1", "mlp_out.1")


def test_a_site_that_agrees_with_the_folder_changes_nothing(tiny_model, tmp_path):
    folder = save(tmp_path / "one", hook="blocks.1.attn.hook_z")
    plain, placed = (load_dictionaries(source, tiny_model) for source in (folder, f"z.1={folder}"))
    assert list(plain) == list(placed) == [Site("z", 1)]
    assert torch.equal(plain[Site("z", 1)].weights.W_dec, placed[Site("z", 1)].weights.W_dec)


def test_a_path_may_hold_an_equals_sign(tiny_model, tmp_path, monkeypatch):
    save(tmp_path / "lr=0.1")
    assert list(load_dictionaries(tmp_path / "lr=0.1", tiny_model)) == [Site("mlp_out", 0)]
    monkeypatch.chdir(tmp_path)
    assert list(load_dictionaries("lr=0.1", tiny_model)) == [Site("mlp_out", 0)]
    assert list(load_dictionaries(["mlp_out.0=lr=0.1"], tiny_model)) == [Site("mlp_out", 0)]


BAD_PLACES = {
    "misspelt": ("mlp_outt.0={}", "site 'mlp_outt.0' is no place for a dictionary; expected .* Did you mean 'mlp_out'"),
    "a real site": ("pattern.0={}", "site 'pattern.0' is no place for a dictionary; expected KIND.LAYER"),
    "no layer": ("mlp_out={}", "site 'mlp_out' has no layer; expected KIND.LAYER"),
    "no number": ("mlp_out.x={}", "site 'mlp_out.x' has no layer"),
    "global": ("embed={}", "site 'embed' is no place for a dictionary"),
    "second half": ("mlp_in.0>mlp_ou.0={}", "site 'mlp_ou.0' is no place .* Did you mean 'mlp_out'"),
    "no site": ("={}", "site '' is no place for a dictionary"),
    "no path": ("mlp_out.0=", "has no path after the '='; expected for instance mlp_out.0=PATH"),
    "another site": ("z.0={}", "was trained for mlp_out.0, but z.0 was given; expected mlp_out.0="),
    "another layer": ("mlp_out.1={}", "was trained for mlp_out.0, but mlp_out.1 was given"),
    "an arrow too many": ("mlp_in.0>mlp_out.0={}", "was trained for mlp_out.0, but mlp_in.0>mlp_out.0 was given"),
    "no such folder": ("mlp_out.0={}x", "does not exist; give a folder"),
}


@pytest.mark.parametrize(("text", "message"), BAD_PLACES.values(), ids=BAD_PLACES)
def test_a_bad_place_is_refused_in_one_line(tiny_model, tmp_path, text, message):
    folder = save(tmp_path / "one")
    with pytest.raises(DictionaryError, match=message) as caught:
        load_dictionaries(text.format(folder), tiny_model)
    assert "\n" not in str(caught.value)


def test_one_site_is_not_enough_for_two_folders(tiny_model, tmp_path):
    save(tmp_path / "a", metadata={})
    save(tmp_path / "b", metadata={})
    with pytest.raises(DictionaryError, match="holds 2 dictionaries, but one site, z.0, was given"):
        load_dictionaries(f"z.0={tmp_path}", tiny_model)


def test_bad_text_is_found_before_any_file_is_read(tiny_model, tmp_path):
    broken = save(tmp_path / "one")
    (broken / "cfg.json").write_text("{")
    with pytest.raises(DictionaryError, match="Did you mean 'mlp_out'"):
        load_dictionaries([broken, f"mlp_outt.0={broken}"], tiny_model)


# objects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk", "gated", "transcoder", "jumprelu_transcoder"])
def test_an_object_in_memory_loads_like_its_folder(tiny_model, tmp_path, architecture):
    from sae_lens import SAE

    hook_out = "blocks.0.hook_mlp_out" if "transcoder" in architecture else None
    hook = "blocks.0.ln2.hook_normalized" if hook_out else "blocks.0.hook_mlp_out"
    sae = SAE.load_from_disk(save(tmp_path / "one", architecture=architecture, hook=hook, hook_out=hook_out))
    (ours,) = load_dictionaries([sae], tiny_model).values()
    assert ours.writes == Site("mlp_out", 0) and (ours.reads != ours.writes) == bool(hook_out)
    assert list(load_dictionaries(sae, tiny_model)) == [ours.writes]
    same_numbers(ours, sae)


def test_a_loaded_object_is_copied(tiny_folder, tmp_path):
    from sae_lens import SAE

    from circuitgraph.models.load import load_model

    sae = SAE.load_from_disk(save(tmp_path / "one"))  # float32, as the model is: nothing needs converting
    (ours,) = load_dictionaries([sae], load_model(tiny_folder, dtype=torch.float32)).values()
    before = ours.weights.W_dec.clone()
    assert torch.equal(before, sae.W_dec)
    with torch.no_grad():
        sae.W_dec.add_(1.0)
    assert torch.equal(ours.weights.W_dec, before)


def test_an_object_in_training_or_with_an_unfolded_norm_is_refused(tiny_model, tmp_path):
    from sae_lens import SAE, StandardTrainingSAE, StandardTrainingSAEConfig

    training = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=D, d_sae=D_SAE))
    with pytest.raises(DictionaryError, match="is still in training; save it with save_inference_model"):
        load_dictionaries(training, tiny_model)
    unfolded = SAE.load_from_disk(save(tmp_path / "one", normalize_activations="expected_average_only_in"))
    with pytest.raises(DictionaryError, match="was not folded into the weights"):
        load_dictionaries(unfolded, tiny_model)


def test_an_object_without_a_hook_is_refused(tiny_model, tmp_path):
    from sae_lens import SAE

    with pytest.raises(DictionaryError, match="names no hook_name; set metadata.hook_name"):
        load_dictionaries(SAE.load_from_disk(save(tmp_path / "one", hook=None)), tiny_model)


@pytest.mark.parametrize("source", [5, None, [torch.ones(2)]], ids=str)
def test_other_objects_are_refused(tiny_model, source):
    with pytest.raises(DictionaryError, match="is unknown; expected a folder, a file, a name or a sae_lens.SAE"):
        load_dictionaries(source, tiny_model)


def test_loading_files_does_not_import_sae_lens():
    program = (
        "import sys, circuitgraph.dictionaries.load as f; f.is_sae_lens_object(3); print('sae_lens' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.stdout.strip() == "False", done.stderr


# architectures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rescale", [False, True], ids=["plain", "rescaled"])
@pytest.mark.parametrize("kind", ["BatchTopK", "MatryoshkaBatchTopK"])
def test_batch_topk_as_sae_lens_saves_it(tiny_model, tmp_path, kind, rescale):
    import sae_lens

    extra = {"matryoshka_widths": [8, D_SAE]} if kind.startswith("Matryoshka") else {}
    cfg = getattr(sae_lens, f"{kind}TrainingSAEConfig")(
        d_in=D, d_sae=D_SAE, k=4, rescale_acts_by_decoder_norm=rescale, **extra
    )
    cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    training = getattr(sae_lens, f"{kind}TrainingSAE")(cfg)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in training.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    training.topk_threshold.fill_(0.3)
    training.save_inference_model(tmp_path / "one")
    (ours,) = load_dictionaries(tmp_path / "one", tiny_model).values()
    assert ours.weights.activation == "jumprelu" and ours.writes == Site("resid_post", 1)
    assert float(ours.weights.threshold.min()) > 0.0
    same_numbers(ours, sae_lens.SAE.load_from_disk(tmp_path / "one"))


REFUSED = {
    "matching_pursuit": "chooses its features one after another in a loop",
    "temporal": "predicts part of its output from earlier tokens",
    "abstopk": "keeps features by magnitude, negative ones too",
}


@pytest.mark.parametrize(("architecture", "reason"), REFUSED.items(), ids=REFUSED)
def test_architectures_that_are_not_linear_are_refused_by_name(tiny_model, tmp_path, architecture, reason):
    folder = save(tmp_path / "one", architecture=architecture)
    with pytest.raises(DictionaryError, match=f"has architecture '{architecture}', which {reason}.*supported are"):
        load_dictionaries(folder, tiny_model)
