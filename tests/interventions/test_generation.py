"""Writing under interventions, and where attention looks under them."""

from __future__ import annotations

import pytest
import torch
from support.close import assert_close

from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.errors import CircuitGraphError, PromptError
from circuitgraph.interventions.attention import compare_attention
from circuitgraph.interventions.generation import generate
from circuitgraph.interventions.run import run_with_interventions
from circuitgraph.nodes import Site

PROMPTS = ["a b c d e", "c a h b d"]


def test_without_interventions_it_writes_the_likeliest_tokens(tiny_model, tiny_dictionaries):
    written = generate(PROMPTS, tiny_model, tiny_dictionaries, [], max_new_tokens=4)
    tokens = torch.tensor([tiny_model.tokens(prompt) for prompt in PROMPTS])
    for step in range(4):
        logits = tiny_model.run(tokens)[0][:, -1]
        assert torch.equal(written.logits[:, step], logits)
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(written.tokens, tokens)
    assert repr(written) == "\n".join(["4 tokens after each of 2 prompts", *map(repr, written.texts)])
    lines = repr(written).splitlines()
    assert lines[0] == "4 tokens after each of 2 prompts" and lines[1:] == [repr(text) for text in written.texts]
    assert written.texts[1] == "".join(tiny_model.token_strings(tokens[1, 6:].tolist())) != ""


def test_open_interventions_go_on_over_what_is_written_and_fixed_ones_stay(tiny_model, tiny_dictionaries):
    def after(text):
        return generate(PROMPTS, tiny_model, tiny_dictionaries, [text], max_new_tokens=3)

    steer = "resid_post.1{}+=30*mlp_out.1/f3"  # what one position of the last layer holds reaches that position's logits only
    plain = after("z.0/f0*=1")
    everywhere, opened, fixed = (after(steer.format(span)) for span in ("", "@5:", "@5:6"))
    assert torch.equal(everywhere.tokens, opened.tokens)
    assert_close(everywhere.logits, opened.logits)
    assert_close(fixed.logits[:, 0], opened.logits[:, 0])
    assert float((opened.logits[:, 0] - plain.logits[:, 0]).abs().max()) > 0.1
    unsteered = tiny_model.run(fixed.tokens[:, :-1])[0]
    assert_close(fixed.logits[:, 1:], unsteered[:, 6:])
    assert float((opened.logits[:, 1:] - tiny_model.run(opened.tokens[:, :-1])[0][:, 6:]).abs().max()) > 0.1


def test_a_patch_reaches_no_further_than_the_prompt(tiny_model, tiny_dictionaries):
    other = {"other": ["h g f a d"]}
    one, two = (
        generate(PROMPTS, tiny_model, tiny_dictionaries, [text], max_new_tokens=3, references=other)
        for text in ("mlp_out.1=other", "mlp_out.1@0:6=other")
    )
    assert torch.equal(one.logits, two.logits)
    plain = generate(PROMPTS, tiny_model, tiny_dictionaries, [], max_new_tokens=3)
    assert float((one.logits - plain.logits)[:, 0].abs().max()) > 1e-3


def test_each_new_token_is_one_forward_pass_and_each_reference_one_in_all(tiny_model, tiny_dictionaries, monkeypatch):
    passes = []
    original = type(tiny_model).run
    monkeypatch.setattr(
        type(tiny_model), "run", lambda self, tokens, **k: passes.append(tokens.shape) or original(self, tokens, **k)
    )
    given = ["mlp_out.1/f3=other", "z.0/h1@2=third", "resid_post.1@4:+=2*mlp_out.1/f3"]
    runs = {"other": "h g f a d", "third": ["b b b b b"], "unused": ["a a a a a"]}
    generate(PROMPTS, tiny_model, tiny_dictionaries, given, max_new_tokens=4, references=runs)
    assert passes == [(1, 6), (1, 6), (2, 6), (2, 7), (2, 8), (2, 9)]
    passes.clear()
    with pytest.raises(CircuitGraphError, match="has no feature 999"):
        generate(PROMPTS, tiny_model, tiny_dictionaries, "mlp_out.1/f999=0", max_new_tokens=2)
    assert not passes


def test_sampling_depends_on_the_seed_alone(tiny_model, tiny_dictionaries):
    def sample(seed):
        return generate(PROMPTS, tiny_model, tiny_dictionaries, [], max_new_tokens=8, temperature=2, seed=seed).tokens

    assert torch.equal(sample(1), sample(1)) and not torch.equal(sample(1), sample(2))


def test_what_cannot_be_written_is_refused(tiny_model, tiny_dictionaries, tiny_pairs):
    def run(prompts=PROMPTS, given=(), **settings):
        generate(prompts, tiny_model, tiny_dictionaries, given, **settings)

    with pytest.raises(PromptError, match="6 tokens and 12 new ones, but tiny reads at most 16"):
        run(max_new_tokens=12)
    with pytest.raises(PromptError, match="pairs cannot be continued"):
        run(tiny_pairs)
    with pytest.raises(CircuitGraphError, match="max_new_tokens is 0"):
        run(max_new_tokens=0)
    with pytest.raises(CircuitGraphError, match="position 9 is beyond the prompt"):
        run(given=["z.0/f1@9=0"], max_new_tokens=2)


def test_attention_is_compared_by_position_so_that_repeated_tokens_stay_distinct(tiny_model, tiny_dictionaries):
    prompts = ["a b a b a", "b b a a a"]
    given = ["embed@1*=3"]
    found = compare_attention(prompts, tiny_model, tiny_dictionaries, given, layers=[1], queries=[5, 3])
    rows = found.rows()
    assert len(rows) == 2 * (6 + 4) and found.clean.shape == (1, 2, 2, 6)
    keys = [(row["key"], row["key_token"]) for row in rows if row["head"] == 0 and row["query"] == 5]
    assert [key for key, _ in keys] == [0, 1, 2, 3, 4, 5] and [token.strip() for _, token in keys][1::2] == ["a"] * 3
    site = Site("pattern", 1)
    for run, patterns in (
        (run_with_interventions(prompts, tiny_model, Dictionaries(), [], cache=[site]), found.clean),
        (run_with_interventions(prompts, tiny_model, Dictionaries(), given, cache=[site]), found.intervened),
    ):
        assert_close(patterns[0], run.activations[site][:, :, [5, 3]].mean(0))
    assert_close(found.clean.sum(-1), torch.ones(1, 2, 2, dtype=torch.float64))
    assert float(found.change.abs().max()) > 1e-3
    first, strongest, *_ = repr(found).splitlines()
    assert first == "attention of 1 layers, 2 heads, queries [5, 3]; it changes most at"
    most = max(rows, key=lambda row: abs(row["intervened"] - row["clean"]))
    assert strongest.startswith(f"layer 1 head {most['head']}, ") and f"-> {most['intervened']:.3f}" in strongest
    assert compare_attention(prompts, tiny_model, Dictionaries(), []).change.abs().max() == 0
    with pytest.raises(CircuitGraphError, match="there is no query position 6; expected 0-5"):
        compare_attention(prompts, tiny_model, Dictionaries(), [], queries=[6])
