"""Model families beyond GPT-2: what works on them is exact, what does not is refused with the reason."""

from __future__ import annotations

import pytest
import torch
from conftest import WORDS, random_dictionary, save_tiny_gpt2
from test_laws import assert_close, build_case

from circuitgraph.discover import discover_circuit
from circuitgraph.errors import ModelError
from circuitgraph.model import load_model
from circuitgraph.nodes import Site

SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def save_family(folder, family):
    """A random tiny checkpoint of the family, with the word tokenizer of the tiny GPT-2."""
    import transformers

    save_tiny_gpt2(folder)
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        (folder / name).unlink(missing_ok=True)
    extra = {"llama": {"num_key_value_heads": 1}, "gpt_neox": {"rotary_pct": 0.5}}
    extra["gemma2"] = {"num_key_value_heads": 1, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
    config = transformers.AutoConfig.for_model(family, **SIZES, **extra[family])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_node_attributions_are_exact_on_rotary_models(tmp_path, tiny_pairs, family):
    model = load_model(save_family(tmp_path / family, family), dtype=torch.float64)
    dictionaries = [random_dictionary(f"z.{layer}", f"z.{layer}", seed=layer) for layer in range(2)]
    dictionaries += [random_dictionary(f"mlp_in.{layer}", f"mlp_out.{layer}", seed=layer) for layer in range(2)]
    by_site = {dictionary.writes: dictionary for dictionary in dictionaries}
    case = build_case(model, by_site, tiny_pairs)
    for site in by_site:
        difference = case.clean.values[site] - case.base.values[site]
        assert_close(case.total(site), (case.gradients[site] * difference).sum(-1))
    with pytest.raises(ModelError, match="attention edges need learned positions and one key per query head"):
        discover_circuit(model, by_site, tiny_pairs)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_mlp_edges_alone_are_exact_on_rotary_models(tmp_path, tiny_pairs, family):
    """With baseline zero the inflow of every transcoder feature is its linear pre-activation."""
    model = load_model(save_family(tmp_path / family, family), dtype=torch.float64)
    by_site = {
        Site("mlp_out", layer): random_dictionary(f"mlp_in.{layer}", f"mlp_out.{layer}", seed=layer)
        for layer in range(2)
    }
    case = build_case(model, by_site, tiny_pairs[:1], baseline="zero")
    inflow = {}
    for edge in case.edges():
        if edge.kind == "mlp":
            inflow[edge.target] = inflow.get(edge.target, 0.0) + edge.local_weight
    shift = getattr(model.library.blocks[0].ln2, "bias", None)
    assert len(inflow) > 10
    expected = []
    for node in inflow:
        constant = 0 if shift is None else model.library.blocks[node.site.layer].ln2.bias
        x = case.clean.values[by_site[node.site].reads][0, node.pos] - constant
        expected.append(float(x @ by_site[node.site].weights.W_enc[:, node.feature]))
    # transformers computes RMSNorm in float32 whatever the model's dtype is
    dtype = torch.float32 if family == "llama" else torch.float64
    assert_close(torch.tensor(list(inflow.values()), dtype=dtype), torch.tensor(expected, dtype=dtype))


def test_a_model_with_post_norms_is_refused(tmp_path):
    with pytest.raises(ModelError, match="in layer 0 the residual stream is not its input plus the outputs"):
        load_model(save_family(tmp_path / "gemma2", "gemma2"))
