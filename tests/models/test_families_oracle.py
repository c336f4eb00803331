"""Every family against two references: logits, activations and gradients of Model.run equal those of the plain Hugging Face
model and of HookedTransformer, on checkpoints whose settings all matter."""

from __future__ import annotations

import functools
import json
import shutil

import pytest
import torch
from support.close import assert_close
from support.families import FAMILIES, N_LAYERS, TOKENS, WORDS, hf_blocks, hf_model, hooked_transformer

from circuitgraph.errors import GraphError, ModelError
from circuitgraph.models import layout as model_layout
from circuitgraph.models.layout import site_of_hook
from circuitgraph.models.load import load_model
from circuitgraph.nodes import Site

SERIAL = [family for family in FAMILIES if family != "gpt_neox"]


def each(families=FAMILIES):
    """The test once per family."""
    return pytest.mark.parametrize("family", families)


@pytest.fixture(scope="module")
def plain(folder):
    """family -> the plain Hugging Face model, float64."""
    return functools.cache(lambda family: hf_model(folder(family)))


@pytest.fixture(scope="module")
def oracle(folder):
    """family -> (logits, activations by Site, gradients of the metric by Site) of HookedTransformer, float64."""
    return functools.cache(lambda family: run_oracle(hooked_transformer(folder(family))))


def metric(logits):
    """A logit difference at the last position, one number per example."""
    return logits[:, -1, 3] - logits[:, -1, 4]


# HookedTransformer's module at each Site kind. mlp_in is the module ln2: it has no hook after the gain.
ORACLE = {
    "resid_pre": "hook_resid_pre",
    "ln1_scale": "ln1.hook_scale",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "ln2_scale": "ln2.hook_scale",
    "ln2_normalized": "ln2.hook_normalized",
    "mlp_in": "ln2",
    "mlp_post": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
PER_HEAD = ("q", "k", "v", "z")
# Their gradient is not asked for: on the bridge they are computed beside the path of the gradient.
NORMS = ("ln1_scale", "ln2_scale", "ln2_normalized")


def run_oracle(reference):
    """Logits, activations and gradients at every Site, heads concatenated; "resid_mid.L" too where the block has it."""
    values, handles = {}, []

    def record(key):
        def on_forward(module, args, value):
            if key == "embed":
                value = value.detach().requires_grad_()
            values[key] = value
            return value

        return on_forward

    points = {"embed": reference.hook_embed}
    for layer, block in enumerate(reference.blocks):
        points |= {f"{kind}.{layer}": block.get_submodule(name) for kind, name in ORACLE.items()}
        if hasattr(block, "hook_resid_mid"):
            points[f"resid_mid.{layer}"] = block.hook_resid_mid
    try:
        handles += [point.register_forward_hook(record(key)) for key, point in points.items()]
        logits = reference(TOKENS)
    finally:
        for handle in handles:
            handle.remove()
    assert set(values) == set(points)
    gradients = torch.autograd.grad(metric(logits).sum(), list(values.values()))

    def flat(key, value):
        return value.flatten(2) if key.split(".")[0] in PER_HEAD else value

    return (
        logits.detach(),
        {key: flat(key, value.detach()) for key, value in values.items()},
        {key: flat(key, gradient) for key, gradient in zip(values, gradients, strict=True)},
    )


def layer_sites(*left_out):
    return [Site(kind, layer) for layer in range(N_LAYERS) for kind in ORACLE if kind not in left_out]


# the checkpoints --------------------------------------------------------------------------------------------------------

_PLAIN = {"rope_type": "default", "rope_theta": 100.0}
_THETA = {"rope_type": "default", "rope_theta": 1000.0}
_LOCAL = {"rope_type": "default", "rope_theta": 20.0}
CHANGES = [
    ("gpt2", {"layer_norm_epsilon": 1e-5}),
    ("gpt_neox", {"layer_norm_eps": 1e-5}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("gpt_neox", {"rope_parameters": {**_PLAIN, "partial_rotary_factor": 1.0}}),
    ("llama", {"rms_norm_eps": 1e-6}),
    ("llama", {"rope_parameters": _THETA}),
    ("llama3", {"rope_parameters": _PLAIN}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {"rms_norm_eps": 1e-6}),
    ("qwen3", {"rms_norm_eps": 1e-6}),
    ("gemma2", {"attn_logit_softcapping": None}),
    ("gemma2", {"final_logit_softcapping": None}),
    ("gemma2", {"sliding_window": 16}),
    ("gemma2", {"query_pre_attn_scalar": 8}),
    ("gemma3", {"sliding_window": 16}),
    ("gemma3", {"query_pre_attn_scalar": 8}),
    ("gemma3", {"rope_parameters": {"sliding_attention": _LOCAL, "full_attention": _LOCAL}}),
    ("gemma3", {"rope_parameters": {"sliding_attention": _THETA, "full_attention": _THETA}}),
]


@pytest.mark.parametrize(("family", "change"), CHANGES, ids=[f"{f}-{'-'.join(c)}" for f, c in CHANGES])
def test_every_setting_of_a_checkpoint_bends_its_logits(folder, plain, tmp_path, family, change):
    """Otherwise an adapter that ignores the setting would pass; 0.01 is a hundred times the tolerance."""
    other = shutil.copytree(folder(family), tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    assert set(change) <= set(config)
    (other / "config.json").write_text(json.dumps(config | change))
    difference = hf_model(other)(TOKENS).logits - plain(family)(TOKENS).logits
    assert float(difference.abs().max()) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_of_a_checkpoint_is_trivial(plain, family):
    names = [name for name, _ in plain(family).named_parameters()]
    for name, weight in plain(family).named_parameters():
        assert float(weight.std()) > 0.1, f"{name} is constant"
    assert any("bias" in name for name in names) == (family in ("gpt2", "gpt_neox", "gpt_neox_serial", "qwen2"))
    assert any("q_norm" in name for name in names) == (family in ("qwen3", "gemma3"))
    assert any("post_feedforward" in name for name in names) == (family in ("gemma2", "gemma3"))


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_neither_uniform_nor_saturated(plain, family):
    """Entropy relative to that of equal attention to what is visible, over the queries that see more than one token."""
    for pattern in plain(family)(TOKENS, output_attentions=True).attentions:
        seen = (pattern > 0).sum(-1)
        relative = (-torch.xlogy(pattern, pattern).sum(-1)[seen > 1]) / seen[seen > 1].log()
        assert 0.4 < float(relative.mean()) < 0.95
        assert float(((relative > 0.2) & (relative < 0.95)).double().mean()) > 0.5


def test_the_soft_caps_bend_values_and_do_not_flatten_them(plain):
    logits = plain("gemma2")(TOKENS).logits.abs()
    assert float((logits > 0.5 * 2.5).double().mean()) > 0.3
    assert float((logits > 0.99 * 2.5).double().mean()) < 0.3


# against Hugging Face ---------------------------------------------------------------------------------------------------


def plain_stream(reference):
    """Logits of a plain Hugging Face model, and its residual stream after each block with the metric's gradient there."""
    stream = []

    def on_block(module, args, output):
        stream.append(output if torch.is_tensor(output) else output[0])

    handles = [block.register_forward_hook(on_block) for block in hf_blocks(reference)]
    embedding = reference.get_input_embeddings()
    handles.append(embedding.register_forward_hook(lambda module, args, value: value.detach().requires_grad_()))
    try:
        logits = reference(TOKENS).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits, stream, torch.autograd.grad(metric(logits).sum(), stream)


@each()
def test_logits_and_stream_and_gradients_equal_those_of_hugging_face(loaded, plain, family):
    logits, stream, gradients = plain_stream(plain(family))
    sites = [Site("resid_post", layer) for layer in range(N_LAYERS)]
    ours, recorded = loaded(family).run(TOKENS, record=sites, differentiable=True)
    found = torch.autograd.grad(metric(ours).sum(), [recorded[site] for site in sites])
    dtype = FAMILIES[family].precision
    assert_close(ours, logits, dtype=dtype, n_terms=100)
    for site, gradient, value, expected in zip(sites, found, stream, gradients, strict=True):
        assert_close(recorded[site], value, dtype=dtype, n_terms=100)
        assert_close(gradient, expected, dtype=dtype, n_terms=100)


@each()
def test_float32_is_computed_as_hugging_face_computes_it(folder, family):
    ours = load_model(folder(family), dtype=torch.float32).run(TOKENS)[0]
    with torch.no_grad():
        assert_close(ours, hf_model(folder(family), dtype=torch.float32)(TOKENS).logits, n_terms=10)


@each()
def test_no_parameter_requires_a_gradient_after_loading(loaded, family):
    bridge = loaded(family).library
    bridge.requires_grad_(True)
    again = load_model(bridge)
    parameters = list(again.library.original_model.parameters()) + list(again.library.parameters())
    assert len(parameters) > 20 and not any(parameter.requires_grad for parameter in parameters)


# against HookedTransformer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_oracle_is_the_model_that_hugging_face_runs(oracle, plain, family):
    assert_close(oracle(family)[0], plain(family)(TOKENS).logits, dtype=FAMILIES[family].precision, n_terms=100)


@each()
def test_activations_equal_those_of_the_oracle(loaded, oracle, family):
    _, values, _ = oracle(family)
    sites = [Site("embed"), *layer_sites()]
    _, recorded = loaded(family).run(TOKENS, record=sites)
    for site in sites:
        assert_close(recorded[site], values[str(site)], dtype=FAMILIES[family].precision, n_terms=100)


@each()
def test_gradients_equal_those_of_the_oracle(loaded, oracle, family):
    _, _, gradients = oracle(family)
    sites = [Site("embed"), *layer_sites(*NORMS)]
    logits, recorded = loaded(family).run(TOKENS, record=sites, differentiable=True)
    found = torch.autograd.grad(metric(logits).sum(), [recorded[site] for site in sites])
    for site, gradient in zip(sites, found, strict=True):
        assert_close(gradient, gradients[str(site)], dtype=FAMILIES[family].precision, n_terms=100)


@each()
def test_the_stream_is_its_input_plus_what_attention_and_mlp_add(loaded, family):
    kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    sites = [Site(kind, layer) for layer in range(N_LAYERS) for kind in kinds]
    _, recorded = loaded(family).run(TOKENS, record=sites)
    for layer in range(N_LAYERS):
        *parts, total = (recorded[Site(kind, layer)] for kind in kinds)
        assert min(float(part.abs().max()) for part in parts) > 0.1
        assert_close(sum(parts), total, n_terms=4)


# traps of TransformerBridge ---------------------------------------------------------------------------------------------


def test_a_site_that_the_family_lacks_is_refused(loaded):
    """The bridge itself ignores a hook name that it does not know."""
    for family in ("gpt_neox", "llama"):
        with pytest.raises(ModelError, match=f"{family} has no site pos_embed"):
            loaded(family).run(TOKENS, record=[Site("pos_embed")])
        with pytest.raises(ModelError, match=f"{family} has no site pos_embed"):
            loaded(family).run(TOKENS, replace={Site("pos_embed"): lambda value, recorded: value})
    with pytest.raises(GraphError, match="site 'resid_mid.0' is unknown"):
        Site("resid_mid", 0)


def test_a_misspelt_hook_name_is_refused(loaded, monkeypatch):
    monkeypatch.setitem(model_layout._BRIDGE_HOOKS, "z", "blocks.{}.attn.o.hook_inn")
    with pytest.raises(ModelError, match="has no site z.0"):
        loaded("llama").run(TOKENS, record=[Site("z", 0)])


def test_a_hook_that_is_listed_and_never_fires_is_refused(loaded, monkeypatch):
    """On NeoX the bridge lists the rotated queries and never computes them there."""
    monkeypatch.setitem(model_layout._BRIDGE_HOOKS, "q", "blocks.{}.attn.hook_rot_q")
    assert "blocks.0.attn.hook_rot_q" in loaded("gpt_neox").library.hook_dict
    with pytest.raises(ModelError, match="without reaching q.0"):
        loaded("gpt_neox").run(TOKENS, record=[Site("q", 0)])


@each()
@pytest.mark.parametrize("kind", ["q", "k", "v", "z"])
def test_the_gradient_at_a_head_input_is_a_finite_difference(loaded, family, kind):
    """The bridge's own hook API hands out copies of q, k, v and z that no gradient reaches."""
    model, site = loaded(family), Site(kind, 1)
    logits, recorded = model.run(TOKENS, record=[site], differentiable=True)
    (gradient,) = torch.autograd.grad(metric(logits).sum(), recorded[site])
    length = float(gradient.norm())
    assert length > 0.01
    step = 1e-2 * gradient / length

    def moved(sign):
        return float(metric(model.run(TOKENS, replace={site: lambda value, _: value + sign * step})[0]).sum())

    measured = (moved(1) - moved(-1)) / 2e-2
    assert_close(measured, length, dtype=FAMILIES[family].precision, allowance=1e-3 * length)  # of the finite step


@each()
def test_recorded_widths_follow_the_number_of_key_heads(loaded, plain, family):
    config = plain(family).config
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", heads)
    d_head = getattr(config, "head_dim", None) or config.hidden_size // heads
    assert (key_heads < heads) == FAMILIES[family].rms
    sites = [Site(kind, 0) for kind in ("q", "k", "v", "z", "pattern")]
    _, recorded = loaded(family).run(TOKENS, record=sites)
    widths = [tuple(recorded[site].shape) for site in sites]
    length = (len(TOKENS), TOKENS.shape[1])
    assert widths[:2] == [(*length, heads * d_head), (*length, key_heads * d_head)]
    assert widths[2:4] == [(*length, key_heads * d_head), (*length, heads * d_head)]
    assert widths[4] == (len(TOKENS), heads, TOKENS.shape[1], TOKENS.shape[1])


def test_no_site_is_the_bridge_s_resid_mid():
    """There a change reaches the MLP and not the stream beside it; attn_out stands in for it."""
    assert not any("resid_mid" in hook or hook.endswith("ln2.hook_in") for hook in model_layout._BRIDGE_HOOKS.values())
    assert site_of_hook("blocks.0.hook_resid_mid") is None
    assert site_of_hook("blocks.0.ln2.hook_in") is None


@each(SERIAL)
def test_the_gradient_at_attn_out_is_that_of_the_whole_stream_after_attention(loaded, oracle, family):
    sites = [Site("attn_out", layer) for layer in range(N_LAYERS)]
    logits, recorded = loaded(family).run(TOKENS, record=sites, differentiable=True)
    found = torch.autograd.grad(metric(logits).sum(), [recorded[site] for site in sites])
    for layer, gradient in enumerate(found):
        assert_close(gradient, oracle(family)[2][f"resid_mid.{layer}"], dtype=FAMILIES[family].precision, n_terms=100)


def frozen_gradients(reference, module):
    """The metric's gradient at the input of block 1 of HookedTransformer, without its path through the module's output."""
    values = {}
    module.register_forward_hook(lambda module, args, value: value.detach())
    reference.hook_embed.register_forward_hook(lambda module, args, value: value.detach().requires_grad_())
    reference.blocks[1].hook_resid_pre.register_forward_hook(lambda module, args, value: values.update(at=value))
    (gradient,) = torch.autograd.grad(metric(reference(TOKENS)).sum(), values["at"])
    return gradient


def assert_frozen_gradients(model, reference, family, kind):
    frozen, at = Site(kind, 1), Site("resid_pre", 1)
    logits, recorded = model.run(
        TOKENS, record=[at], replace={frozen: lambda value, _: value.detach().clone()}, differentiable=True
    )
    (found,) = torch.autograd.grad(metric(logits).sum(), recorded[at])
    expected = frozen_gradients(reference, reference.blocks[1].get_submodule(ORACLE[kind]))
    assert_close(found, expected, dtype=FAMILIES[family].precision, n_terms=100)


@each()
def test_the_gradient_past_a_frozen_pattern_is_that_of_the_oracle(loaded, folder, family):
    assert_frozen_gradients(loaded(family), hooked_transformer(folder(family)), family, "pattern")


@each()
@pytest.mark.parametrize("kind", ["ln1_scale", "ln2_scale"])
def test_a_gradient_past_a_replaced_norm_scale_is_refused(loaded, family, kind):
    """The bridge computes a norm's scale beside the forward pass, under no_grad: replaced there, the gradient is lost."""
    frozen = {Site(kind, 1): lambda value, _: value.detach().clone()}
    with pytest.raises(ModelError, match=f"gradients do not pass a replaced {kind}.1"):
        loaded(family).run(TOKENS, replace=frozen, differentiable=True)
    plain, doubled = loaded(family).run(TOKENS)[0], {Site(kind, 1): lambda value, _: 2 * value}
    without_gradients = loaded(family).run(TOKENS, replace=doubled)[0]
    assert float((without_gradients - plain).abs().max()) > 1e-3, "without gradients it is replaced"


# the beginning of a prompt ----------------------------------------------------------------------------------------------

# Trained without one; the bridge says so too and yet hands out a tokenizer that adds it.
WITHOUT_BOS = {"gpt_neox", "gpt_neox_serial", "qwen2", "qwen3"}


@each()
@pytest.mark.parametrize("adds", [True, False])
def test_a_prompt_begins_as_the_family_was_trained_whatever_its_tokenizer_does(folder, tmp_path, family, adds):
    assert WORDS[1] == "<bos>"
    copy = shutil.copytree(folder(family), tmp_path / "copy")
    if not adds:
        tokenizer = json.loads((copy / "tokenizer.json").read_text())
        tokenizer["post_processor"] = None
        (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    model = load_model(copy)
    assert model.tokens("a b") == ([3, 4] if family in WITHOUT_BOS else [1, 3, 4])
    assert model.continuation("a b") == [3, 4]


# HookedTransformer as an already loaded model ---------------------------------------------------------------------------


@each()
def test_a_loaded_hooked_transformer_shows_what_the_bridge_shows(loaded, folder, family):
    """Also the weights and formulas on which edges rest: none differs, and queries and keys rotate alike."""
    bridge, reference = loaded(family), hooked_transformer(folder(family))
    reference.tokenizer = bridge.library.tokenizer
    hooked = load_model(reference)
    assert not bridge.differences and not hooked.differences
    kinds = ("q", "k", "v", "pattern", "z", "ln1_post_scale", "attn_out", "ln2_scale", "ln2_normalized", "mlp_pre")
    kinds += ("mlp_gate", "mlp_post", "mlp_out", "resid_post", "ln1_scale")
    sites = [Site("embed"), *(s for kind in kinds for layer in range(N_LAYERS) if bridge.has(s := Site(kind, layer)))]
    shown, expected = (model.run(TOKENS, record=sites)[1] for model in (hooked, bridge))
    for site in sites:
        assert_close(shown[site], expected[site], dtype=FAMILIES[family].precision, n_terms=100)
    for layer in range(N_LAYERS):
        states = []
        for model in (hooked, bridge):
            values = model.run(TOKENS, record=model.attention_sites(layer))[1]
            states.append(model.attention_state(layer, values))
        for part in ("q", "k", "v"):
            assert_close(
                getattr(states[0], part), getattr(states[1], part), dtype=FAMILIES[family].precision, n_terms=100
            )
