"""Prompt files of three formats become the same pairs; what is malformed is refused with its line."""

from __future__ import annotations

import json

import pytest

from circuitgraph.discovery import discover
from circuitgraph.errors import MetricError, PromptError
from circuitgraph.models.tokens import pairs_of_length, tokenize_pairs
from circuitgraph.prompts import PromptPair, pairs_to_text, read_pairs

PAIR = PromptPair("The uncle", "The uncles", (" has",), (" have",))

SPELLINGS = {
    "ours": json.dumps(
        {"clean": "The uncle", "corrupted": "The uncles", "answers": [" has"], "wrong_answers": [" have"]}
    ),
    "ours, singular": json.dumps(
        {"clean": "The uncle", "corrupted": "The uncles", "answer": " has", "wrong_answer": " have"}
    ),
    "feature-circuits": json.dumps(
        {
            "clean_prefix": "The uncle",
            "patch_prefix": "The uncles",
            "clean_answer": " has",
            "patch_answer": " have",
            "case": "singular",
        }
    ),
    "auto-circuit": json.dumps(
        {
            "word_idxs": {},
            "prompts": [
                {"clean": "The uncle", "corrupt": "The uncles", "answers": [" has"], "wrong_answers": [" have"]}
            ],
        }
    ),
}


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS)
def test_every_format_reads_as_the_same_pair(tmp_path, text):
    path = tmp_path / "pairs.jsonl"
    path.write_text(text + "\n")
    assert read_pairs(path) == [PAIR]


def test_pairs_written_by_us_read_back(tmp_path):
    pairs = [PAIR, PromptPair('"quoted"\nline', "é\u2028", ("a", "b"), ())]
    path = tmp_path / "pairs.jsonl"
    path.write_text(pairs_to_text(pairs), encoding="utf-8")
    assert read_pairs(path) == pairs


BROKEN = {
    "empty file": ("  \n", "is empty; expected one JSON object per line"),
    "malformed line": (SPELLINGS["ours"] + "\n{nope\n", "line 2 is not JSON"),
    "not an object": ("[1]\n", "line 1: expected a JSON object, found list"),
    "wrong keys": ('{"prompt": "x"}\n', r"line 1: found the keys \['prompt'\]; expected clean"),
    "number for a prompt": (
        '{"clean": 3, "corrupted": "x", "answers": ["y"]}\n',
        "line 1: clean is 3; expected a non-empty string",
    ),
    "empty list of prompts": ('{"prompts": []}\n', "'prompts' holds no pairs"),
    "bad prompt of auto-circuit": ('{"prompts": [{"clean": "x", "corupt": "y"}]}', "prompt 1: found the keys"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    with pytest.raises(PromptError, match=message):
        read_pairs(path)


def test_one_prompt_alone_has_no_corrupted_prompt(tmp_path, tiny_model, tiny_dictionaries):
    """Enough for a graph that compares with nothing."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"clean": "a b c d e"}\n{"clean": "b a c", "answers": ["d"]}\n')
    one, other = read_pairs(file)
    assert one == PromptPair("a b c d e") == PromptPair("a b c d e", "", (), ()) and one.corrupted is None
    assert other == PromptPair("b a c", answers="d") and other.answers == ("d",)
    assert "corrupted" not in pairs_to_text([one]) and one != PromptPair("a b c d e", "a b c d e")
    settings = {"baseline": "zero", "targets": "logits", "edge_threshold": 0.0}
    graph = discover([one], tiny_model, tiny_dictionaries, **settings)
    assert graph.number_of_edges() > 100
    with pytest.raises(MetricError, match="needs at least one answer for every pair; pair 1 has none"):
        discover([one], tiny_model, tiny_dictionaries, baseline="zero")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(PromptError, match="does not exist"):
        read_pairs(tmp_path / "none.jsonl")


def test_a_file_of_feature_circuits_reads_line_by_line(tmp_path):
    nouns = [("baker", "bakers", " has", " have", "singular"), ("cooks", "cook", " do", " does", "plural")]
    names = ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer", "case")
    lines = [dict(zip(names, (f"The {a}", f"The {b}", *rest), strict=True)) for a, b, *rest in nouns]
    (tmp_path / "simple.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_pairs(tmp_path / "simple.json") == [
        PromptPair("The baker", "The bakers", (" has",), (" have",)),
        PromptPair("The cooks", "The cook", (" do",), (" does",)),
    ]


# with a tokenizer ----------------------------------------------------------------------------------------------------

BAD_PAIRS = {
    "lengths": (
        ("a b c", "a b"),
        (" g",),
        (" h",),
        r"pair 1: clean has 4 tokens, corrupted has 3.*First difference: position 3, 'c' against 'nothing'",
    ),
    "several tokens": (("a b", "a c"), (" g h",), (" f",), r"pair 1: answer ' g h' is 2 tokens \(g\|h\); expected one"),
    "no token": (("a b", "a c"), ("",), (" f",), "is 0 tokens"),
    "unknown word of a prompt": (
        ("a zebra", "a c"),
        (" f",),
        (" g",),
        "'a zebra' has a word that tiny does not know, token 2",
    ),
    "unknown word": (("a b", "a c"), (" zebra",), (" f",), "answer ' zebra' is not in the model's vocabulary"),
    "right and wrong": (("a b", "a c"), (" f",), (" f",), "'f' is a right and a wrong answer at once"),
    "fused": (("a b", "a c"), ("d",), (" f",), "answer 'd' fuses with the end of the prompt"),
    "too long": ((" a" * 20, " b" * 20), (" f",), (" g",), "21 tokens, but tiny reads at most 16"),
}


@pytest.mark.parametrize(("prompts", "answers", "wrong", "message"), BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_a_pair_that_cannot_be_compared_is_refused_with_its_number(tiny_model, prompts, answers, wrong, message):
    with pytest.raises(PromptError, match=message):
        tokenize_pairs(tiny_model, [PromptPair(*prompts, answers, wrong)])


def test_pairs_of_different_lengths_are_refused_and_can_be_selected(tiny_model):
    pairs = [PromptPair("a b", "a c", (" d",)), PromptPair("a b c", "a c c", (" d",))]
    with pytest.raises(PromptError, match="pair 1 has 3 tokens, pair 2 has 4"):
        tokenize_pairs(tiny_model, pairs)
    assert pairs_of_length(tiny_model, pairs, 4) == pairs[1:]
    with pytest.raises(PromptError, match="no pair has 9 tokens; the lengths are 3, 4"):
        pairs_of_length(tiny_model, pairs, 9)


def test_no_pairs_are_refused(tiny_model):
    with pytest.raises(PromptError, match="no prompt pairs"):
        tokenize_pairs(tiny_model, [])


def test_tokens_begin_with_bos_once(tiny_model):
    tokens = tokenize_pairs(tiny_model, [PromptPair("a b", "a c", (" d", " e"), (" f",))])
    assert tokens.clean.tolist() == [[1, 3, 4]] and tokens.corrupted.tolist() == [[1, 3, 5]]
    assert tokens.answers == ((6, 7),) and tokens.wrong_answers == ((8,),)


@pytest.mark.parametrize("key", ["corrupted", "corrupt"])
def test_null_in_a_file_stands_for_no_corrupted_prompt(tmp_path, key):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"clean": "a b", key: None, "answers": [" c"]}) + "\n")
    assert read_pairs(path) == [PromptPair("a b", None, " c")]
