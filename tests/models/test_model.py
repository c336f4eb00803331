"""The adapter: loading refuses what is broken, running reads and replaces what it says, layers can be skipped."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from support.close import assert_close
from support.families import save_family

from circuitgraph.doors import as_model
from circuitgraph.embedded import MODEL
from circuitgraph.errors import ModelError
from circuitgraph.models.layout import _BRIDGE_HOOKS, site_of_hook
from circuitgraph.models.load import load_model
from circuitgraph.nodes import Site

TOKENS = torch.tensor([[1, 3, 4, 5, 6], [1, 7, 4, 3, 3]])


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ModelError, match="does not exist; give a folder written by save_pretrained"):
        load_model(tmp_path / "none")


def test_demo_is_the_name_of_the_embedded_model():
    assert load_model("demo").name == load_model(MODEL).name == "mini_english"


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ModelError, match="holds no config.json"):
        load_model(tmp_path)


def test_an_unknown_name_offline_is_refused_in_one_line():
    with pytest.raises(ModelError, match="model 'no-such/model' does not load: .+") as caught:
        load_model("no-such/model")
    assert "\n" not in str(caught.value)


def test_a_broken_config_is_refused(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "broken")
    (folder / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    with pytest.raises(ModelError, match="does not load"):
        load_model(folder)


def test_nan_weights_are_refused_by_name(tiny_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_folder, tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.bias"][3] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"nan: weight .*mlp.*bias contains NaN or Inf"):
        load_model(folder)


def test_parameters_are_frozen(tiny_model):
    parameters = list(tiny_model.library.original_model.parameters())
    assert parameters and not any(p.requires_grad for p in parameters)


def test_an_already_loaded_model_is_accepted(tiny_model):
    again = load_model(tiny_model.library)
    assert again.library is tiny_model.library and again.n_layers == 2


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_model_of_transformers_is_the_same_as_its_folder(tmp_path, family):
    from transformers import AutoModelForCausalLM

    folder = save_family(tmp_path / family, family)
    given = AutoModelForCausalLM.from_pretrained(folder)
    model, expected = load_model(given), load_model(folder)
    assert model.name == expected.name == family and model.dtype == torch.float32 and model.differences == {}
    assert model.tokens("a b") == expected.tokens("a b")
    sites = [Site("z", 0), Site("pattern", 1), Site("mlp_out", 1)]
    (logits, values), (wanted, expectation) = (each.run(TOKENS, record=sites) for each in (model, expected))
    assert_close(logits, wanted)
    for site in sites:
        assert_close(values[site], expectation[site])
    assert not any(parameter.requires_grad for parameter in given.parameters())
    assert_close(as_model(given).run(TOKENS)[0], wanted)  # a second time, as it comes


def _without_tokenizer(folder):
    for path in folder.glob("*token*"):
        path.unlink()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path, family):
    """transformers gives an empty one for GPT-2, in which every prompt is nothing."""
    folder = save_family(tmp_path / family, family)
    _without_tokenizer(folder)
    with pytest.raises(ModelError, match="tokenizer"):
        load_model(folder)


def test_the_tokenizer_of_a_model_of_transformers_is_found_or_given(tiny_folder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    made = GPT2LMHeadModel(GPT2Config(vocab_size=12, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(
        ModelError, match=r"GPT2LMHeadModel does not say where its tokenizer is; give load_model\(model, tok"
    ):
        load_model(made)
    model = load_model(made, tokenizer=tokenizer)
    assert model.name == "GPT2LMHeadModel" and model.tokens("a b") == [1, 3, 4]
    folder = save_family(tmp_path / "moved", "llama")
    _without_tokenizer(folder)
    moved = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ModelError, match="no tokenizer in '.*moved', or it does not load; give load_model") as caught:
        load_model(moved)
    assert "\n" not in str(caught.value)
    assert load_model(moved, tokenizer=tokenizer).name == "moved"
    with pytest.raises(ModelError, match="tiny has a tokenizer of its own; give one only with a model of transformers"):
        load_model(tiny_folder, tokenizer=tokenizer)
    with pytest.raises(ModelError, match="moved is loaded already; its device and dtype are its own"):
        load_model(moved, dtype=torch.float64)


def test_a_model_of_transformers_that_is_run_in_another_way_is_refused(tiny_folder):
    """Here its attention computes something that the library does not know of."""
    from transformers import AutoModelForCausalLM

    given = AutoModelForCausalLM.from_pretrained(tiny_folder)
    attention = given.transformer.h[1].attn
    forward = attention.forward
    attention.forward = lambda *arguments, **settings: (
        tuple(2 * x for x in forward(*arguments, **settings)[:1]) + (None,)
    )
    with pytest.raises(ModelError, match="tiny: TransformerLens computes logits that differ from the model's own by"):
        load_model(given)


@pytest.fixture
def hooked_sae_transformer(tiny_folder):
    """A random HookedSAETransformer with the tokenizer of the tiny model."""
    from sae_lens import HookedSAETransformer
    from transformer_lens import HookedTransformerConfig
    from transformers import AutoTokenizer

    sizes = {"n_layers": 2, "d_model": 16, "n_ctx": 16, "d_head": 8, "n_heads": 2, "d_vocab": 12, "d_mlp": 32}
    config = HookedTransformerConfig(act_fn="gelu", model_name="hooked", seed=0, **sizes)
    model = HookedSAETransformer(config)
    model.set_tokenizer(AutoTokenizer.from_pretrained(tiny_folder))
    return model


def test_a_hooked_sae_transformer_is_accepted_and_shows_the_input_of_its_mlps(hooked_sae_transformer):
    with torch.no_grad():
        expected, cache = hooked_sae_transformer.run_with_cache(TOKENS)
    model = as_model(hooked_sae_transformer)
    assert model.name == "hooked" and model.differences == {}
    logits, values = model.run(TOKENS, record=[Site("mlp_in", 1), Site("z", 0)])
    assert_close(logits, expected)
    assert_close(values[Site("mlp_in", 1)], cache["blocks.1.mlp.hook_in"])
    assert_close(values[Site("z", 0)], cache["blocks.0.attn.hook_z"].flatten(2))


def test_a_hooked_sae_transformer_with_saes_attached_is_refused(hooked_sae_transformer):
    from sae_lens import StandardSAE, StandardSAEConfig

    config = StandardSAEConfig(d_in=16, d_sae=24)
    config.metadata.hook_name = "blocks.0.hook_resid_post"
    hooked_sae_transformer.add_sae(StandardSAE(config))
    with pytest.raises(
        ModelError, match=r"hooked has SAEs attached \(blocks.0.hook_resid_post\), so its logits are not"
    ):
        load_model(hooked_sae_transformer)
    hooked_sae_transformer.reset_saes()
    assert load_model(hooked_sae_transformer).n_layers == 2


def test_a_model_prints_as_one_line(tiny_model):
    assert repr(tiny_model) == "Model tiny: 2 layers, 2 heads, d_model 16, float64 on cpu"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_show_float32_that_lies_on_the_path_of_the_forward_pass(tiny_folder, dtype):
    model = load_model(tiny_folder, dtype=dtype)
    assert model.dtype == dtype
    sites = [Site("embed"), Site("resid_post", 0), Site("z", 1), Site("ln2_scale", 1)]
    plain, _ = model.run(TOKENS)
    logits, recorded = model.run(TOKENS, record=sites, differentiable=True)
    assert {logits.dtype, *(value.dtype for value in recorded.values())} == {torch.float32}
    assert torch.equal(plain, logits), "recording changes nothing"
    gradients = torch.autograd.grad(logits[0, -1, 3], [recorded[site] for site in sites[:3]])
    exact = load_model(tiny_folder, dtype=torch.float64)
    expected_logits, expected = exact.run(TOKENS, record=sites, differentiable=True)
    wanted = torch.autograd.grad(expected_logits[0, -1, 3], [expected[site] for site in sites[:3]])
    for gradient, reference in zip(gradients, wanted, strict=True):
        assert gradient.dtype == torch.float32 and float(reference.abs().max()) > 0.01
        assert float((gradient - reference).abs().max()) < 0.1 * float(reference.abs().max())


def test_other_precisions_and_a_second_device_are_refused(tiny_model, tiny_folder):
    with pytest.raises(ModelError, match="tiny cannot be loaded in torch.float8_e4m3fn; expected one of float32, bfl"):
        load_model(tiny_folder, dtype=torch.float8_e4m3fn)
    with pytest.raises(ModelError, match="is loaded already; its device and dtype are its own"):
        load_model(tiny_model.library, device="cpu")
    with pytest.raises(ModelError, match="model is int; expected a name, a folder, a TransformerBridge, a Hooked"):
        load_model(3)


def test_every_site_fires_and_the_stream_is_the_sum_of_its_parts(tiny_model):
    sites = [Site(kind, None if "{}" not in hook else 1) for kind, hook in _BRIDGE_HOOKS.items()]
    absent = {"ln1_post_scale", "ln2_post_scale", "rotary_cos", "rotary_sin", "mlp_gate"}
    assert {site.kind for site in sites if not tiny_model.has(site)} == absent, "GPT-2 has none of these"
    sites = [site for site in sites if tiny_model.has(site)]
    sites += [Site("attn_out", 0), Site("mlp_out", 0), Site("resid_post", 0)]
    _, recorded = tiny_model.run(TOKENS, record=sites)
    assert set(recorded) == set(sites)
    parts = [recorded[s] for s in (Site("embed"), Site("pos_embed"), Site("attn_out", 0), Site("mlp_out", 0))]
    assert_close(sum(parts[1:], parts[0]), recorded[Site("resid_post", 0)])
    for site in (Site("z", 1), Site("mlp_post", 1), Site("mlp_out", 1)):
        assert recorded[site].shape == (2, 5, tiny_model.width(site))
    b_O = tiny_model.output_bias(Site("z", 1))[0]
    assert_close(tiny_model.write(Site("z", 1), recorded[Site("z", 1)]) + b_O, recorded[Site("attn_out", 1)])


def test_logits_equal_those_of_the_hugging_face_model(tiny_model, tiny_folder):
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tiny_folder).double()
    with torch.no_grad():
        assert_close(tiny_model.run(TOKENS)[0], plain(TOKENS).logits)


@pytest.mark.parametrize("layer", [1, 2])
def test_starting_at_a_layer_equals_the_whole_run_and_skips_the_blocks_below(tiny_model, layer):
    logits, recorded = tiny_model.run(TOKENS, record=[Site("resid_post", 0), Site("resid_post", 1)])
    calls = []
    handle = tiny_model.library.hook_dict["blocks.0.mlp.hook_out"].register_forward_hook(lambda *a: calls.append(1))
    try:
        if layer == 1:
            again, _ = tiny_model.run(TOKENS, start=(1, recorded[Site("resid_post", 0)]))
            assert torch.equal(again, logits) and not calls
            changed, _ = tiny_model.run(TOKENS, start=(1, 2 * recorded[Site("resid_post", 0)]))
            assert float((changed - logits).abs().max()) > 0.01
        after, _ = tiny_model.run(TOKENS)
        assert torch.equal(after, logits) and calls
    finally:
        handle.remove()


def test_a_replaced_value_is_what_the_model_goes_on_with(tiny_model):
    sites = [Site("mlp_out", 0), Site("resid_post", 0)]
    logits, before = tiny_model.run(TOKENS, record=sites)
    changed, after = tiny_model.run(TOKENS, record=sites, replace={Site("mlp_out", 0): lambda x, r: 2 * x})
    assert float((changed - logits).abs().max()) > 0.01
    assert torch.equal(after[Site("mlp_out", 0)], before[Site("mlp_out", 0)]), (
        "recorded is the value before replacement"
    )
    assert_close(after[Site("resid_post", 0)], before[Site("resid_post", 0)] + before[Site("mlp_out", 0)])


def test_a_layer_that_is_not_there_is_refused(tiny_model):
    with pytest.raises(ModelError, match=r"tiny has no site mlp_out.7; it has 2 layers \(0-1\)"):
        tiny_model.run(TOKENS, record=[Site("mlp_out", 7)])


def test_a_hook_that_never_fires_is_an_error(tiny_model):
    with pytest.raises(ModelError, match="without reaching mlp_out.0"):
        tiny_model.run(TOKENS, record=[Site("mlp_out", 0)], start=(1, torch.zeros(2, 5, 16, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.3.attn.hook_z", "z.3"),
        ("blocks.0.hook_mlp_out", "mlp_out.0"),
        ("blocks.11.ln2.hook_normalized", "ln2_normalized.11"),
        ("blocks.2.hook_resid_post", "resid_post.2"),
    ],
)
def test_hook_names_of_metadata_are_sites(hook, site):
    assert str(site_of_hook(hook)) == site


@pytest.mark.parametrize("hook", ["blocks.x.hook_z", "ln_final.hook_normalized", "blocks.0.nonsense", ""])
def test_other_hook_names_are_none(hook):
    assert site_of_hook(hook) is None
