"""Promises of circuitgraph.tasks: aligned pairs, combinations kept out of the text, the same output every time."""

from __future__ import annotations

import re
from itertools import combinations

import pytest

from circuitgraph.errors import PromptError
from circuitgraph.tasks import FEMALE_NAMES, MALE_NAMES, TASKS, make_pairs, make_text

WORD = re.compile(r"\d\d|[^\W\d]+|[^\w\s]")
NAMES = set(MALE_NAMES + FEMALE_NAMES)
EACH_TASK = pytest.mark.parametrize("task", TASKS)
EACH_TEMPLATE = pytest.mark.parametrize(
    ("task", "template"), [(name, i) for name, task in TASKS.items() for i in range(task.n_templates)]
)
FIRST_DOCUMENT = "Henry told the teacher that he had a plan."
# What each task's clean prompts combine, read off their surface; the generators' own bookkeeping is not trusted.
COMBINATIONS = {
    "greater-than": re.compile(
        r"\b[Tt]he (\w+) (?:lasted from the year|began in|ran from) (\d\d)(\d\d)|In (\d\d)(\d\d) the (\w+)"
    ),
    "gendered-pronoun": re.compile(
        r"(\w+) (smiled|went home|was tired|opened the door|told the teacher|left the \w+ before)"
    ),
    "subject-verb-agreement": re.compile(
        r"[Tt]he (\w+?)s? (?:near|behind|next to|in front of|that we saw near|beside) the (\w+?)s?(?= is| are|$)"
    ),
    "capital-country": re.compile(
        r"(capital) of (\w+) is|(capital city) of (\w+)|(government) of (\w+)|(\w+) (has its capital)|"
        r"(president) of (\w+)|(people) in (\w+) know|(go) to (\w+), visit|(embassy) in (\w+)"
    ),
    "capital-of-city-country": re.compile(r"country (?:of|around) (\w+)|(\w+) lies in a country"),
    "closing-quote": re.compile(r'["(](?:the |a )?(\w+) (\w+)'),
}


def combinations_in(task: str, text: str) -> set[tuple[str, ...]]:
    """What the text combines; years, templates and numbers of nouns included only where the task holds them out."""
    if task == "ioi":
        return set(combinations(sorted(NAMES & set(re.findall(r"\w+", text))), 2))
    found = {tuple(filter(None, match)) for match in COMBINATIONS[task].findall(text)}
    if task == "greater-than":
        return {tuple(sorted(words, key=str.isdigit)) for words in found}  # The event first, then century and year.
    if task == "gendered-pronoun":
        return {tuple(re.sub(r"left the \w+ before", "left", word) for word in words) for words in found}
    return found


@pytest.fixture(scope="module")
def text() -> list[str]:
    return list(make_text(40_000, seed=3))


@EACH_TEMPLATE
def test_all_pairs_of_a_template_have_one_length_and_clean_and_corrupted_differ(task: str, template: int) -> None:
    pairs = make_pairs(task, 50, template=template)
    lengths = {len(WORD.findall(prompt)) for pair in pairs for prompt in (pair.clean, pair.corrupted)}
    assert len(lengths) == 1
    assert all(pair.clean != pair.corrupted for pair in pairs)


@EACH_TASK
def test_answers_are_single_words_and_never_also_wrong(task: str) -> None:
    for pair in make_pairs(task, 200):
        assert pair.answers and pair.wrong_answers
        assert not set(pair.answers) & set(pair.wrong_answers)
        for answer in pair.answers + pair.wrong_answers:
            assert re.fullmatch(r" [A-Za-z]+|\d\d|[\")]", answer)


def test_ioi_changes_the_giver_only_and_names_both_people_in_each_order() -> None:
    for template in range(TASKS["ioi"].n_templates):
        for pair in make_pairs("ioi", 20, template=template):
            clean, corrupted = pair.clean.replace(",", "").split(), pair.corrupted.replace(",", "").split()
            changed = [i for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b]
            receiver, giver = pair.answers[0].strip(), pair.wrong_answers[0].strip()
            assert len(changed) == 1 and (clean[changed[0]], corrupted[changed[0]]) == (giver, receiver)
            first_is_receiver = clean.index(receiver) < clean.index(giver)
            assert first_is_receiver == (template % 2 == 0)


def test_greater_than_splits_all_hundred_years_at_the_start_year() -> None:
    for pair in make_pairs("greater-than", 100):
        start = re.search(r"\d\d(\d\d)", pair.clean)
        assert start is not None
        assert sorted(pair.answers + pair.wrong_answers) == [f"{year:02}" for year in range(100)]
        assert min(pair.answers) > start[1] == max(pair.wrong_answers)
        assert re.search(r"\d\d01", pair.corrupted)


@EACH_TASK
def test_the_text_never_shows_a_held_out_combination(task: str, text: list[str]) -> None:
    held_out = set().union(*(combinations_in(task, pair.clean) for pair in make_pairs(task, 2_000)))
    known = set().union(*(combinations_in(task, document) for document in text))
    assert len(held_out) >= 15 and len(known) >= 60
    assert not held_out & known


@EACH_TASK
def test_the_train_split_and_the_held_out_split_share_no_combination(task: str) -> None:
    train, held_out = (
        set().union(*(combinations_in(task, pair.clean) for pair in make_pairs(task, 2_000, split=split)))
        for split in ("train", "held_out")
    )
    assert train and held_out and not train & held_out


def test_the_text_speaks_of_held_out_cities_but_not_of_their_capitals(text: list[str]) -> None:
    capitals = {}
    for pair in make_pairs("capital-of-city-country", 200):
        city = next(iter(combinations_in("capital-of-city-country", pair.clean)))[0]
        capitals.setdefault(city, set()).add(pair.answers[0])
    assert len(capitals) > 5
    for city, answers in capitals.items():
        about = [document for document in text if city in document and re.search(rf"\b{city}\b", document)]
        assert about
        assert not any(answer in document or "capital" in document for document in about for answer in answers)


@EACH_TASK
def test_every_word_of_a_held_out_prompt_and_its_answer_occurs_in_the_text(task: str, text: list[str]) -> None:
    known = {word for document in text for word in WORD.findall(document)}
    for pair in make_pairs(task, 500):
        for part in (pair.clean, pair.corrupted, *pair.answers):
            assert set(WORD.findall(part)) <= known


@EACH_TASK
def test_the_same_seed_gives_the_same_pairs_and_another_seed_others(task: str) -> None:
    assert make_pairs(task, 20, seed=5) == make_pairs(task, 20, seed=5)
    assert make_pairs(task, 20, seed=5) != make_pairs(task, 20, seed=6)
    assert make_pairs(task, 10, seed=5) == make_pairs(task, 20, seed=5)[:10]


def test_the_same_seed_gives_the_same_text_in_every_process() -> None:
    assert list(make_text(50, seed=1)) == list(make_text(50, seed=1)) != list(make_text(50, seed=2))
    assert next(make_text(1, seed=0)) == FIRST_DOCUMENT


def test_the_corrupted_prompt_of_a_pair_belongs_to_its_wrong_answer() -> None:
    for task in ("gendered-pronoun", "subject-verb-agreement", "capital-country", "closing-quote"):
        answer_of = {pair.clean: pair.answers for pair in make_pairs(task, 3_000)}
        pairs = [pair for pair in make_pairs(task, 300, seed=1) if pair.corrupted in answer_of]
        checked = [answer_of[pair.corrupted] == pair.wrong_answers for pair in pairs]
        assert len(checked) > 10 and all(checked)


def test_errors_name_the_nearest_choice() -> None:
    with pytest.raises(PromptError, match=r"task 'greater-then' is unknown: .*Did you mean 'greater-than'\?"):
        make_pairs("greater-then", 1)
    with pytest.raises(PromptError, match=r"task 'ioi' has no template 12: expected 0 to 11. Did you mean 11\?"):
        make_pairs("ioi", 1, template=12)
    with pytest.raises(PromptError, match=r"no template -1: .*Did you mean 0\?"):
        make_pairs("ioi", 1, template=-1)
    with pytest.raises(PromptError, match=r"split 'heldout' is unknown: .*Did you mean 'held_out'\?"):
        make_pairs("ioi", 1, split="heldout")  # type: ignore[arg-type]
    with pytest.raises(PromptError, match=r"cannot make -1 pairs"):
        make_pairs("ioi", -1)
