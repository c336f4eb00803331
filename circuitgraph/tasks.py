"""Task generators: pairs of prompts with a known right answer, and training text that mixes the tasks.

Every task holds out some combinations of words (two names, a subject with an attractor, a country with a template,
...): the training text never shows them, and `make_pairs` gives them by default. Lengths and roles rely on a tokenizer
with one token for each word or two-digit year.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from circuitgraph.errors import PromptError, did_you_mean
from circuitgraph.prompts import PromptPair

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        name: What `make_pairs` takes.
        description: What it asks of a model.
        n_templates: How many forms its prompts have.
        metric: The metric that fits its answers.
    """

    name: str
    description: str
    n_templates: int
    metric: Literal["logit_difference", "probability_difference"] = "logit_difference"


def make_pairs(
    task: str, n: int, *, seed: int = 0, template: int | None = None, split: Split = "held_out"
) -> list[PromptPair]:
    """Pairs of prompts with known answers, drawn with replacement; the same arguments always give the same pairs.

    The two prompts of a pair, and all pairs of one template, have the same number of words.

    Args:
        task: A name of `TASKS`.
        n: How many pairs.
        seed: Seed of the draw.
        template: Number of the form of the prompts. None mixes them, so that lengths differ; the words that decide have
            the same role in all of them (`PromptPair.roles`).
        split: "held_out" pairs combine words that `make_text` never combines; "train" pairs may be in that text.

    Raises PromptError for an unknown task, template or split, and for a negative n.
    """
    chosen = _known_task(task)
    if template is not None and not 0 <= template < chosen.n_templates:
        nearest = 0 if template < 0 else chosen.n_templates - 1
        raise PromptError(
            f"task {task!r} has no template {template}: expected 0 to {chosen.n_templates - 1}. Did you mean {nearest}?"
        )
    if split not in get_args(Split):
        raise PromptError(
            f"split {split!r} is unknown: expected 'train' or 'held_out'.{did_you_mean(split, get_args(Split))}"
        )
    if n < 0:
        raise PromptError(f"cannot make {n} pairs of task {task!r}: expected 0 or more")
    rng = random.Random(f"{task}/{seed}/{split}")
    return [_pair(rng, task, template, split) for _ in range(n)]


def make_text(n: int, *, seed: int = 0) -> Iterator[str]:
    """Short documents of training text: a sentence of a task, of facts or of small talk, in a fifth behind another one.

    Args:
        n: How many documents.
        seed: Seed of the draw.
    """
    rng = random.Random(f"text/{seed}")
    kinds, weights = zip(*_TEXT_MIX.items(), strict=True)
    for _ in range(n):
        kind = rng.choices(kinds, weights)[0]
        sentence = _task_sentence(rng, kind) if kind in TASKS else _sentence(rng, _PLAIN[kind])
        yield f"{_sentence(rng, _NAMELESS)} {sentence}" if rng.random() < 0.2 else sentence


def _known_task(task: str) -> Task:
    if task not in TASKS:
        raise PromptError(f"task {task!r} is unknown: expected one of {', '.join(TASKS)}.{did_you_mean(task, TASKS)}")
    return TASKS[task]


def _pair(rng: random.Random, task: str, template: int | None, split: Split) -> PromptPair:
    index = rng.randrange(TASKS[task].n_templates) if template is None else template
    return _SAMPLERS[task](rng, index, split == "held_out")


def _task_sentence(rng: random.Random, task: str) -> str:
    pair = _pair(rng, task, None, "train")
    return pair.clean + rng.choice(pair.answers) + rng.choice(_TAILS.get(task, (".",)))


def _one_in(n: int, *words: object) -> bool:
    """Whether this combination of words is held out, as one in n is; the same on every machine."""
    return zlib.crc32("/".join(map(str, words)).encode()) % n == 0


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Words: each is one token of the demo model's tokenizer, and of GPT-2's where possible.

_MEN = (
    "John James David Michael Robert Paul Mark Tom Peter Daniel Kevin Brian George Henry Jack Simon Adam Eric Frank "
    "Andrew"
)
_WOMEN = (
    "Mary Anna Sarah Laura Emma Alice Jane Susan Lisa Karen Linda Helen Kate Julia Rachel Ruth Maria Grace Amy Claire"
)
MALE_NAMES, FEMALE_NAMES = _words(_MEN), _words(_WOMEN)
_NAMES = MALE_NAMES + FEMALE_NAMES
_ROLES = tuple(
    tuple(pair.split("/"))
    for pair in _words(
        "actor/actress king/queen prince/princess waiter/waitress man/woman boy/girl father/mother son/daughter "
        "brother/sister uncle/aunt husband/wife policeman/policewoman businessman/businesswoman host/hostess "
        "hero/heroine duke/duchess gentleman/lady nephew/niece grandfather/grandmother monk/nun emperor/empress "
        "salesman/saleswoman wizard/witch lord/dame"
    )
)
_PLACES = _words("store park school beach office station garden market museum church hospital library")
_GIFTS = _words("drink book ring letter pen ball key map coat flower hat gift")
_NOUNS = _words(
    "key cabinet table chair car truck bike dog cat horse teacher doctor lawyer farmer poet singer window desk picture "
    "letter book tree house boat bird guard painter river flower door"
)
_ADJECTIVES = _words("tall new small big red green quiet bright heavy strange")
_EVENTS = _words(
    "war siege reign festival strike project famine treaty plague trial voyage journey campaign conflict revolt "
    "expedition alliance feud drought dispute study tour empire debate"
)
_CENTURIES = range(11, 19)
# country: capital, then other cities
_ATLAS_TEXT = (
    "France: Paris Lyon Marseille Bordeaux; Germany: Berlin Munich Hamburg Cologne; Italy: Rome Milan Venice Turin; "
    "Spain: Madrid Barcelona Seville Valencia; Japan: Tokyo Osaka Kyoto Nagoya; China: Beijing Shanghai Wuhan Nanjing; "
    "Russia: Moscow Kazan Omsk Samara; Egypt: Cairo Alexandria Luxor Aswan; Greece: Athens Patras Sparta Corinth; "
    "Poland: Warsaw Krakow Gdansk Lodz; Austria: Vienna Salzburg Graz Linz; Hungary: Budapest Szeged Pecs Eger; "
    "Portugal: Lisbon Porto Braga Faro; Ireland: Dublin Cork Galway Limerick; Norway: Oslo Bergen Trondheim Stavanger; "
    "Sweden: Stockholm Gothenburg Uppsala Lund; Denmark: Copenhagen Aarhus Odense Aalborg; Finland: Helsinki Turku "
    "Tampere Oulu; Belgium: Brussels Antwerp Ghent Bruges; Turkey: Ankara Istanbul Izmir Bursa; Iran: Tehran Isfahan "
    "Shiraz Tabriz; Iraq: Baghdad Mosul Basra Fallujah; Syria: Damascus Aleppo Homs Hama; Canada: Ottawa Toronto "
    "Montreal Vancouver; Ukraine: Kiev Odessa Kharkiv Lviv; India: Delhi Mumbai Kolkata Pune; Pakistan: Islamabad "
    "Karachi Lahore Multan; Vietnam: Hanoi Saigon Hue Haiphong; Australia: Canberra Sydney Melbourne Perth; Scotland: "
    "Edinburgh Glasgow Aberdeen Dundee; Cuba: Havana; Peru: Lima; Chile: Santiago; Kenya: Nairobi; Romania: Bucharest; "
    "Bulgaria: Sofia; Serbia: Belgrade; Croatia: Zagreb; Thailand: Bangkok; Nepal: Kathmandu"
)
_ATLAS = {country: _words(cities) for country, cities in (entry.split(": ") for entry in _ATLAS_TEXT.split("; "))}
_COUNTRIES = tuple(_ATLAS)
_CITIES = tuple((city, country) for country, cities in _ATLAS.items() for city in cities[1:])

# One sampler for each task: (rng, template, held_out) -> PromptPair. The last word has the role END without a name.


def _roles(template: str, **fields: str) -> dict[str, int]:
    """Role -> the number of the last word of the template that is its field; one word fills each field."""
    words = template.split()
    return {name: max(i for i, word in enumerate(words) if f"{{{field}" in word) for name, field in fields.items()}


_IOI = (
    "When {a} and {b} went to the {place}, {s} gave a {gift} to",
    "After {a} and {b} met at the {place}, {s} handed a {gift} to",
    "While {a} and {b} were at the {place}, {s} passed a {gift} to",
    "Then {a} and {b} walked to the {place}. There {s} offered a {gift} to",
    "The {place} was full when {a} and {b} arrived. Later {s} sent a {gift} to",
    "One day {a} and {b} found a {gift} at the {place}, and {s} gave it to",
)


def _ioi(rng: random.Random, template: int, held_out: bool) -> PromptPair:
    """Held out: two names in one text. Even templates are ABBA (the giver was named second), odd ones BABA."""
    while True:
        receiver, giver = rng.sample(_NAMES, 2)
        if _one_in(6, "ioi", *sorted((receiver, giver))) == held_out:
            break
    a, b = (receiver, giver) if template % 2 == 0 else (giver, receiver)
    words = {"a": a, "b": b, "place": rng.choice(_PLACES), "gift": rng.choice(_GIFTS)}
    text, order = _IOI[template // 2], ("IO", "S1") if template % 2 == 0 else ("S1", "IO")
    roles = _roles(text, **dict(zip(order, "ab", strict=True)), S2="s")
    return PromptPair(
        text.format(s=giver, **words), text.format(s=receiver, **words), (f" {receiver}",), (f" {giver}",), roles
    )


_GREATER_THAN = (
    "The {event} lasted from the year {c}{yy:02} to the year {c}",
    "The {event} began in {c}{yy:02} and ended in {c}",
    "In {c}{yy:02} the {event} started, and it went on until {c}",
    "People say that the {event} ran from {c}{yy:02} to {c}",
)


def _greater_than(rng: random.Random, template: int, held_out: bool) -> PromptPair:
    """Held out: (event, century, start year); that of the corrupted text, which starts in year 01, may be known."""
    earliest = 2 if held_out else 0  # or the text would never show year 01
    while True:
        event, c, yy = rng.choice(_EVENTS), rng.choice(_CENTURIES), rng.randint(earliest, 98)
        if _one_in(8, "greater-than", event, c, yy) == held_out:
            break
    text, years = _GREATER_THAN[template], [f"{year:02}" for year in range(100)]
    clean, corrupted = (text.format(event=event, c=c, yy=start) for start in (yy, 1))
    return PromptPair(clean, corrupted, tuple(years[yy + 1 :]), tuple(years[: yy + 1]), _roles(text, year="yy"))


_PRONOUN = (
    "{x} smiled because",
    "{x} went home when",
    "{x} was tired, so",
    "{x} opened the door and then",
    "{x} told the teacher that",
    "{x} left the {place} before",
)


def _gendered_pronoun(rng: random.Random, template: int, held_out: bool) -> PromptPair:
    """Held out: (name or noun, template). Templates 0 to 5 speak of a name, 6 to 11 of a gendered noun."""
    form = template % len(_PRONOUN)
    if template < len(_PRONOUN):
        known = [i for i in range(len(MALE_NAMES)) if (i % len(_PRONOUN) == form) == held_out]
        man, woman = MALE_NAMES[rng.choice(known)], FEMALE_NAMES[rng.choice(known)]
    else:
        known = [i for i in range(len(_ROLES)) if (i % len(_PRONOUN) == form) == held_out]
        man, woman = (f"The {word}" for word in _ROLES[rng.choice(known)])
    place = rng.choice(_PLACES)
    his, hers = (_PRONOUN[form].format(x=x, place=place) for x in (man, woman))
    pair = PromptPair(his, hers, (" he",), (" she",), {"person": man.count(" ")})  # every text begins with the person
    return pair if rng.random() < 0.5 else pair.swapped()


_AGREEMENT = (
    "The {s} near the {a}",
    "The {s} behind the {a}",
    "The {s} next to the {a}",
    "The {s} in front of the {a}",
    "The {s} that we saw near the {a}",
    "Every morning the {s} beside the {a}",
)


def _subject_verb_agreement(rng: random.Random, template: int, held_out: bool) -> PromptPair:
    """Held out: (subject, attractor), in any number; the attractor's number is independent of the subject's."""
    while True:
        subject, attractor = rng.sample(_NOUNS, 2)
        if _one_in(6, "agreement", subject, attractor) == held_out:
            break
    attractor += rng.choice(("", "s"))
    text = _AGREEMENT[template]
    singular, plural = (text.format(s=word, a=attractor) for word in (subject, f"{subject}s"))
    pair = PromptPair(singular, plural, (" is",), (" are",), _roles(text, subject="s"))
    return pair if rng.random() < 0.5 else pair.swapped()


_CAPITAL = (
    "The capital of {x} is",
    "The capital city of {x} is called",
    "The government of {x} sits in",
    "{x} has its capital in",
    "The president of {x} lives in",
    "Most people in {x} know the capital,",
    "If you go to {x}, visit the capital,",
    "The largest embassy in {x} is in",
)


def _capital_country(rng: random.Random, template: int, held_out: bool) -> PromptPair:
    """Held out: (country, template), one template for each country."""
    known = [x for i, x in enumerate(_COUNTRIES) if (i % len(_CAPITAL) == template) == held_out]
    country, other = rng.sample(known, 2)
    text = _CAPITAL[template]
    answer, wrong = (f" {_ATLAS[x][0]}" for x in (country, other))
    return PromptPair(text.format(x=country), text.format(x=other), (answer,), (wrong,), _roles(text, country="x"))


_CAPITAL_OF_CITY = (
    "{x} is a city. The capital of the country of {x} is",
    "{x} lies in a country whose capital is",
    "The capital of the country around {x} is",
)


def _capital_of_city_country(rng: random.Random, template: int, held_out: bool) -> PromptPair:
    """Held out: cities; the text says in which country they lie, never anything of that country's capital."""
    known = [pair for i, pair in enumerate(_CITIES) if (i % 5 == 0) == held_out]
    city, country = rng.choice(known)
    other, abroad = rng.choice([pair for pair in known if pair[1] != country])
    text = _CAPITAL_OF_CITY[template]
    answer, wrong = (f" {_ATLAS[x][0]}" for x in (country, abroad))
    return PromptPair(text.format(x=city), text.format(x=other), (answer,), (wrong,), _roles(text, city="x"))


_QUOTE = (
    "The sign read {m}{adj} {noun}",
    "{name} wrote {m}the {adj} {noun}",
    "On the wall stood {m}a {adj} {noun} here",
)
_MARKS = ('"', "(")


def _closing_quote(rng: random.Random, template: int, held_out: bool) -> PromptPair:
    """Held out: (adjective, noun). The corrupted text opens with the other mark."""
    while True:
        adjective, noun = rng.choice(_ADJECTIVES), rng.choice(_NOUNS)
        if _one_in(6, "quote", adjective, noun) == held_out:
            break
    name = rng.choice(_NAMES)
    quoted, bracketed = (_QUOTE[template].format(m=mark, adj=adjective, noun=noun, name=name) for mark in _MARKS)
    at = quoted.index('"')
    pair = PromptPair(quoted, bracketed, ('"',), (")",), {"mark": (at, at + 1)})
    return pair if rng.random() < 0.5 else pair.swapped()


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task("ioi", "indirect object identification: who of two people receives", 2 * len(_IOI)),
            Task("greater-than", "an end year later than the start year", len(_GREATER_THAN), "probability_difference"),
            Task("gendered-pronoun", "he or she, after a name or a gendered noun", 2 * len(_PRONOUN)),
            Task("subject-verb-agreement", "is or are, with another noun between subject and verb", len(_AGREEMENT)),
            Task("capital-country", "the capital of a country", len(_CAPITAL)),
            Task("capital-of-city-country", "two hops: the capital of the country of a city", len(_CAPITAL_OF_CITY)),
            Task("closing-quote", "the mark that closes what a quote or bracket opened", len(_QUOTE)),
        )
    }
)
_SAMPLERS: dict[str, Callable[[random.Random, int, bool], PromptPair]] = {
    "ioi": _ioi,
    "greater-than": _greater_than,
    "gendered-pronoun": _gendered_pronoun,
    "subject-verb-agreement": _subject_verb_agreement,
    "capital-country": _capital_country,
    "capital-of-city-country": _capital_of_city_country,
    "closing-quote": _closing_quote,
}

# The rest of the language.

_TAILS = {
    "gendered-pronoun": (" was happy.", " was late.", " knew the answer.", " had a plan."),
    "subject-verb-agreement": (" old.", " here.", " very small.", " in the garden.", " not new."),
    "closing-quote": (" today.", " in red.", "."),
}
_SMALL_TALK = (
    "The {adj} {noun} stood near the {place}.",
    "{name} likes the {adj} {noun}.",
    "In the morning {name} walked to the {place}.",
    "Now the {noun} is {adj}.",
    "Now the {noun}s are {adj}.",
    "It was a {adj} day at the {place}.",
    "{name} saw a {adj} {noun} and a {gift} at the {place}.",
    "Everyone at the {place} talked about the {event}.",
    "The {role} found a {gift} behind the {noun}.",
)
# Only these come before another sentence, so that a text about two people never names a third.
_NAMELESS = tuple(text for text in _SMALL_TALK if "{name}" not in text)
_CITY_FACTS = (
    "{city} is a city in {country}.",
    "The people of {city} live in {country}.",
    "{city} lies in {country}.",
    "The road from {city} ends somewhere in {country}.",
)
_PLAIN = {"small talk": _SMALL_TALK, "city facts": _CITY_FACTS}
_TEXT_MIX = {
    "ioi": 22, "greater-than": 13, "gendered-pronoun": 12, "subject-verb-agreement": 13, "capital-country": 10,
    "capital-of-city-country": 7, "closing-quote": 4, "city facts": 7, "small talk": 12,
}  # fmt: skip


def _sentence(rng: random.Random, templates: tuple[str, ...]) -> str:
    city, country = rng.choice(_CITIES)
    return rng.choice(templates).format(
        name=rng.choice(_NAMES), adj=rng.choice(_ADJECTIVES), noun=rng.choice(_NOUNS), place=rng.choice(_PLACES),
        gift=rng.choice(_GIFTS), event=rng.choice(_EVENTS), role=rng.choice(rng.choice(_ROLES)), city=city,
        country=country,
    )  # fmt: skip
