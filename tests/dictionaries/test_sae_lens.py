"""Every architecture that sae-lens registers gives sae-lens' own numbers in float32, or is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.close import assert_close
from support.sae_lens_files import D_SAE, D, save

from circuitgraph.dictionaries.load import load_dictionaries
from circuitgraph.errors import DictionaryError
from circuitgraph.models.load import load_model
from circuitgraph.nodes import Site

REFUSED = {"matching_pursuit", "temporal", "abstopk"}
SUPPORTED = {
    "standard", "gated", "jumprelu", "topk", "transcoder", "skip_transcoder", "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
}  # fmt: skip
# Settings that change what an architecture computes; transcoders have none of them.
VARIANTS = {
    "plain": {},
    "no b_dec on input": {"apply_b_dec_to_input": False},
    "layer_norm": {"normalize_activations": "layer_norm"},
    "constant_norm_rescale": {"normalize_activations": "constant_norm_rescale"},
}


@pytest.fixture(scope="module")
def narrow_model(tiny_folder):
    return load_model(tiny_folder, dtype=torch.float32)


def own(architecture, **settings):
    """sae-lens' own object with random weights, at z.1 or from ln2_normalized.1 to mlp_out.1."""
    from sae_lens.registry import SAE_CLASS_REGISTRY

    cls, config = SAE_CLASS_REGISTRY[architecture]
    extra = {"k": 5} if architecture == "topk" else {}
    if "transcoder" in architecture:
        extra |= {"d_out": D, "apply_b_dec_to_input": False}
    cfg = config(d_in=D, d_sae=D_SAE, **extra | settings)
    cfg.metadata.hook_name = "blocks.1.ln2.hook_normalized" if "transcoder" in architecture else "blocks.1.attn.hook_z"
    cfg.metadata.hook_name_out = "blocks.1.hook_mlp_out" if "transcoder" in architecture else None
    sae = cls(cfg)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        if "jumprelu" in architecture:
            sae.threshold.abs_()
    return sae


def assert_sae_lens_numbers(ours, theirs):
    """encode, decode and, with the skip connection, forward; sae-lens keeps norms between encode and decode."""
    x = 2 * torch.randn(7, D, generator=torch.Generator().manual_seed(5)) + 0.4
    with torch.no_grad():
        expected, whole = theirs.encode(x), theirs(x)
    if ours.weights.normalize == "none" and not ours.weights.rescale_acts_by_decoder_norm:
        assert 0 < int((expected != 0).sum()) < expected.numel()
        assert_close(ours.encode(x), expected)
    acts = ours.encode(x)
    assert torch.equal(acts != 0, expected != 0)  # theirs are in units of the norm there
    assert_close(ours.decode(acts, x), whole)


def test_every_architecture_is_supported_or_refused():
    from sae_lens.registry import SAE_CLASS_REGISTRY

    assert set(SAE_CLASS_REGISTRY) == SUPPORTED | REFUSED


CASES = [
    (name, variant) for name in sorted(SUPPORTED) for variant in VARIANTS if variant == "plain" or "trans" not in name
]


@pytest.mark.parametrize("source", ["folder", "object", "lazy"])
@pytest.mark.parametrize(("architecture", "variant"), CASES, ids=lambda value: value)
def test_every_supported_architecture_gives_sae_lens_numbers(narrow_model, tmp_path, architecture, variant, source):
    sae = own(architecture, **VARIANTS[variant])
    sae.save_model(tmp_path / "one")
    given = sae if source == "object" else tmp_path / "one"
    (ours,) = load_dictionaries([given], narrow_model, lazy=source == "lazy").values()
    assert ours.writes == Site("mlp_out" if "trans" in architecture else "z", 1)
    assert (ours.W_skip is not None) == ("skip" in architecture)
    assert ours.weights.W_dec.dtype == torch.float32
    assert_sae_lens_numbers(ours, sae)


@pytest.mark.parametrize("architecture", sorted(REFUSED))
def test_every_other_architecture_is_refused_by_name(narrow_model, tmp_path, architecture):
    folder = save(tmp_path / "one", architecture=architecture)
    for lazy in (False, True):
        with pytest.raises(DictionaryError, match=f"has architecture '{architecture}', which .*supported are standard"):
            load_dictionaries(folder, narrow_model, lazy=lazy)


def test_a_skip_connection_that_is_not_square_is_turned_the_right_way(narrow_model, tmp_path):
    """From mlp_post, of size 64, to mlp_out, of size 16: a matrix the wrong way round would not fit."""
    sae = own("skip_transcoder")
    folder = save(
        tmp_path / "one",
        architecture="skip_transcoder",
        hook="blocks.1.mlp.hook_post",
        hook_out="blocks.1.hook_mlp_out",
    )
    tensors = {name: value.detach().clone() for name, value in sae.state_dict().items()}
    tensors |= {"W_enc": torch.randn(64, D_SAE), "W_skip": torch.randn(D, 64)}
    save_file(tensors, folder / "sae_weights.safetensors")
    (ours,) = load_dictionaries(folder, narrow_model).values()
    x = torch.randn(3, 64)
    assert_close(ours.skipped(x), x @ tensors["W_skip"].T)
    save_file(tensors | {"W_skip": torch.randn(64, D)}, folder / "sae_weights.safetensors")
    for lazy in (False, True):
        with pytest.raises(
            DictionaryError, match=r"W_skip has shape \(16, 64\); expected \(64, 16\).*looks transposed"
        ):
            load_dictionaries(folder, narrow_model, lazy=lazy)


# scaling factors -----------------------------------------------------------------------------------------------


def finetuned(folder, factor, **cfg):
    """A folder of sae-lens with a scaling factor among its weights, as versions before 6 left it."""
    save(folder, **cfg)
    weights = load_file(folder / "sae_weights.safetensors")
    save_file(weights | {"scaling_factor": factor}, folder / "sae_weights.safetensors")
    return folder


@pytest.mark.parametrize("lazy", [False, True])
def test_a_finetuned_factor_multiplies_activations_before_decoding(narrow_model, tmp_path, lazy):
    factor = torch.rand(D_SAE) + 0.5
    folder = finetuned(tmp_path / "one", factor, finetuning_scaling_factor=True)
    (ours,) = load_dictionaries(folder, narrow_model, lazy=lazy).values()
    (plain,) = load_dictionaries(save(tmp_path / "two"), narrow_model).values()
    x = torch.randn(5, D)
    acts = ours.encode(x)
    assert float(acts.max()) > 0.1
    assert_close(acts, plain.encode(x))
    assert_close(ours.decode(acts), plain.decode(acts * factor))


def test_a_factor_of_ones_changes_nothing_and_an_unused_one_is_refused(narrow_model, tmp_path):
    from sae_lens import SAE

    ones = finetuned(tmp_path / "ones", torch.ones(D_SAE), finetuning_scaling_factor=False)
    (ours,) = load_dictionaries(ones, narrow_model).values()
    assert_sae_lens_numbers(ours, SAE.load_from_disk(ones))
    for name, factor, used in (("unused", torch.ones(D_SAE) * 2, False), ("wrong", torch.ones(3), True)):
        folder = finetuned(tmp_path / name, factor, finetuning_scaling_factor=used)
        with pytest.raises(DictionaryError, match="expected one factor per feature and finetuning_scaling_factor true"):
            load_dictionaries(folder, narrow_model)


# before sae-lens 6 -----------------------------------------------------------------------------------------------


def flat(folder, architecture="standard", **changes):
    """A folder with the flat cfg.json of sae-lens before 6."""
    hook = "blocks.1.attn.hook_z"
    save(folder, hook=hook, architecture=architecture)
    cfg = {
        "hook_point": hook, "hook_point_head_index": None, "model_name": "tiny", "d_in": D, "d_sae": D_SAE, "dtype": "torch.float32",
        "device": "cpu", "activation_fn_str": "relu", "architecture": architecture, "apply_b_dec_to_input": True, "normalize_activations": False,
        "finetuning_scaling_factor": False, "prepend_bos": True, "context_size": 16, "sae_lens_version": "3.2.1",
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in (cfg | changes).items() if v != "absent"}))
    return folder


OLD = {
    "standard": {},
    "gated": {"architecture": "gated"},
    "jumprelu": {"architecture": "jumprelu"},
    "topk": {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}},
    "no b_dec on input": {"apply_b_dec_to_input": False},
    "defaults": {"apply_b_dec_to_input": "absent", "activation_fn_str": "absent", "normalize_activations": None},
    "layer_norm": {"normalize_activations": "layer_norm"},
}


@pytest.mark.parametrize("changes", OLD.values(), ids=OLD)
def test_a_folder_from_before_sae_lens_6_is_read_as_sae_lens_reads_it(narrow_model, tmp_path, changes):
    from sae_lens import SAE

    folder = flat(tmp_path / "one", **changes)
    (ours,) = load_dictionaries(folder, narrow_model).values()
    theirs = SAE.load_from_disk(folder)
    theirs.turn_off_forward_pass_hook_z_reshaping()  # ours reads z with its heads side by side
    assert_sae_lens_numbers(ours, theirs)


BAD_OLD = {
    "another function": ({"activation_fn_str": "tanh-relu"}, "with activation 'tanh-relu'"),
    "signed": ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5, "signed": True}}, "'signed': True"),
    "no k": ({"activation_fn_str": "topk"}, "k is None; expected the number of active features"),
    "unfolded": ({"normalize_activations": True}, "'expected_average_only_in' was not folded"),
    "one head": ({"hook_point_head_index": 1}, "reads head 1 alone"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_OLD.values(), ids=BAD_OLD)
def test_what_cannot_be_read_from_before_sae_lens_6_is_refused(narrow_model, tmp_path, changes, message):
    with pytest.raises(DictionaryError, match=message):
        load_dictionaries(flat(tmp_path / "one", **changes), narrow_model)


def test_the_weight_processing_of_an_old_folder_is_known(tiny_model, tmp_path):
    folder = flat(
        tmp_path / "one",
        hook_point="blocks.1.hook_resid_post",
        model_from_pretrained_kwargs={"center_writing_weights": True},
    )
    (ours,) = load_dictionaries(folder, tiny_model).values()
    assert float(ours.weights.W_enc.mean(0).abs().max()) < 1e-12
    (plain,) = load_dictionaries(f"{folder}?processing=none", tiny_model).values()
    assert float(plain.weights.W_enc.mean(0).abs().max()) > 0.1


# names on Neuronpedia --------------------------------------------------------------------------------------------


def test_a_dictionary_knows_its_pages_where_sae_lens_does(narrow_model, tmp_path):
    sae = own("standard")
    assert load_dictionaries(sae, narrow_model)[Site("z", 1)].neuronpedia is None
    sae.cfg.metadata.neuronpedia_id = "gpt2-small/1-att-kk"
    assert load_dictionaries(sae, narrow_model)[Site("z", 1)].neuronpedia == "gpt2-small/1-att-kk"
    sae.save_model(tmp_path / "new")
    old = flat(tmp_path / "old", neuronpedia_id="gpt2-small/1-att-kk")
    for folder in (tmp_path / "new", old):
        assert load_dictionaries(folder, narrow_model)[Site("z", 1)].neuronpedia == "gpt2-small/1-att-kk"


@pytest.mark.parametrize("value", [3, "1-att-kk", "gpt2-small/", {"a": 1}])
def test_a_name_that_is_no_page_is_refused(narrow_model, tmp_path, value):
    folder = flat(tmp_path / "old", neuronpedia_id=value)
    with pytest.raises(DictionaryError, match="neuronpedia_id is .*; expected MODEL/SOURCE"):
        load_dictionaries(folder, narrow_model)


# hooks -----------------------------------------------------------------------------------------------------------


def test_the_module_that_was_read_decides_where_a_cfg_names_it(narrow_model, tmp_path):
    """sae-lens calls the normed MLP input of Gemma 3 `hook_mlp_in`, which is something else in TransformerLens."""
    metadata = {
        "hook_name": "blocks.1.hook_mlp_in", "hf_hook_name": "model.layers.1.pre_feedforward_layernorm.output",
        "hook_name_out": "blocks.1.hook_mlp_out", "hf_hook_name_out": "model.layers.1.post_feedforward_layernorm.output",
    }  # fmt: skip
    (ours,) = load_dictionaries(
        save(tmp_path / "one", architecture="transcoder", metadata=metadata), narrow_model
    ).values()
    assert (str(ours.reads), str(ours.writes)) == ("mlp_in.1", "mlp_out.1")
    del metadata["hf_hook_name"]
    with pytest.raises(DictionaryError, match="hook 'blocks.1.hook_mlp_in' is no site"):
        load_dictionaries(save(tmp_path / "two", architecture="transcoder", metadata=metadata), narrow_model)


@pytest.mark.parametrize("hook", ["attn", "mlp"])
def test_a_hook_before_a_post_norm_is_refused_where_the_model_has_one(loaded, tmp_path, tiny_model, hook):
    gemma = loaded("gemma2")
    inner, added = f"blocks.1.{hook}.hook_out", f"blocks.1.hook_{hook}_out"
    for number, (name, model, refused) in enumerate(
        [(inner, tiny_model, False), (added, tiny_model, False), (inner, gemma, True), (added, gemma, False)]
    ):
        folder = saved_at(tmp_path / str(number), name)
        if refused:
            with pytest.raises(DictionaryError, match=f"hook '{inner}' stands before the post-norm of gemma2"):
                load_dictionaries(folder, model)
        else:
            (dictionary,) = load_dictionaries(folder, model).values()
            assert str(dictionary.writes) == f"{hook}_out.1"


def saved_at(folder, hook):
    """A standard SAE of width 16 at that hook, as sae-lens writes it."""
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    config = StandardSAEConfig(d_in=16, d_sae=24, metadata=SAEMetadata(hook_name=hook))
    StandardSAE(config).save_model(folder)
    return folder
