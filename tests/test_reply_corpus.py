"""Replies as judges write them: none is ever read as something else, and the plain ones are read.

`corpus/judge_replies/` holds one file for each kind of reply. Every entry says what the judge meant. The mutations
below start from replies that are plain, and keep to changes after which the truth can still be told.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_records import ask, candidate

from rlaif.config import Rater
from rlaif.judges.rating import Judge, rating_prompts
from rlaif.judges.rating import _bound as bound
from rlaif.judges.replies import Reading, read_choice, read_ranking, read_reply, read_score
from rlaif.records import Completion
from rlaif.resources import find
from rlaif.rubric import read_rubric
from rlaif.templates import Template

JUDGE = Judge(read_rubric("prompts/rubrics/tiny.yaml"), Template.read(find("prompts/rate.jinja")))
FOLDER = Path(__file__).parent / "corpus" / "judge_replies"
ENTRIES = [
    (f"{path.stem} {i}: {entry['about']}", path.stem, entry)
    for path in sorted(FOLDER.glob("*.yaml"))
    for i, entry in enumerate(yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader), start=1)
]


def ratings(text: str, n: int, answers: str, *, scale: tuple[int, int] = (1, 5), **options: Any) -> list[Reading]:
    return read_reply(text, n, *scale, answers, **options)


def read(kind: str, entry: dict[str, Any]) -> list[Any]:
    """What the reader makes of an entry, item by item: None where it is unparsed."""
    text, cut = entry["text"], entry.get("cut", False)
    if kind == "score":
        return [read_score(text, *entry.get("scale", (1, 10)), cut=cut).value]
    if kind == "choice":
        return [read_choice(text, entry.get("offered", ("1", "2", "tie")), cut=cut)[0]]
    if kind == "ranking":
        found = read_ranking(text, entry["n"], cut=cut)[0]
        return [None if found is None else [list(group) for group in found]]
    options = {"cut": cut, "na": entry.get("na", False), "types": tuple(entry.get("types", ()))}
    readings = ratings(text, len(entry["truth"]), kind, scale=tuple(entry.get("scale", (1, 5))), **options)
    if "codes" in entry:
        assert [list(reading.types) for reading in readings] == entry["codes"]
    return ["na" if reading.na else reading.value for reading in readings]


@pytest.mark.parametrize(("kind", "entry"), [case[1:] for case in ENTRIES], ids=[case[0] for case in ENTRIES])
def test_a_reply_is_read_as_meant_or_not_at_all(kind: str, entry: dict[str, Any]) -> None:
    truth = entry["truth"] if kind in ("json", "lines") else [entry["truth"]]
    found = read(kind, entry)
    wrong = [value for value, meant in zip(found, truth, strict=True) if value is not None and value != meant]
    assert not wrong
    if entry.get("expect", "read") == "read":
        assert found == truth
    elif entry["expect"] == "unparsed":
        assert found == [None] * len(truth)
    else:
        assert entry["expect"] == "open"


def test_the_corpus_is_swept_and_says_what_it_expects() -> None:
    counts = Counter(kind for _, kind, _ in ENTRIES)
    assert sum(counts.values()) >= 1250 and min(counts.values()) >= 150 and len(counts) == 5
    keys = {"about", "truth", "text", "expect", "n", "scale", "offered", "cut", "na", "types", "codes"}
    assert all(set(entry) <= keys for _, _, entry in ENTRIES)
    assert len({(kind, entry["text"], str(entry)) for _, kind, entry in ENTRIES}) == len(ENTRIES)
    expected = Counter(entry.get("expect", "read") for _, _, entry in ENTRIES)
    assert min(expected.values()) >= 100 and len(expected) == 3


# ---------------------------------------------------------------- mutations of plain replies

FORMS = ("json", "compact", "keyed", "headed", "named", "table", "list")


def item(form: str, k: int, rating: int | str) -> str:
    """What one completion gets in a reply of a form: a block, a row or a JSON value."""
    return {
        "json": f'"{k}": {{"rationale": "it is number {k}, and fair", "rating": {rating}}}',
        "list": f'{{"completion": {k}, "rating": {rating}, "rationale": "fair"}}',
        "compact": f"[{k}] tone so plain want polite rating {rating}",
        "keyed": f"[{k}]\nIt has a beginning and an end.\n\nIt has no middle.\nRating: {rating}",
        "headed": f"#### Output for Text {k}\nRating: {rating}\nRationale: It has no middle.\n\nBut an end.\n",
        "named": f"**Completion {k}**: {rating}/5 - it has no middle.",
        "table": f"| {k} | {rating} | no middle |",
    }[form]


def whole(form: str, items: list[str]) -> str:
    if form == "json":
        return "{" + ", ".join(items) + "}"
    if form == "list":
        return "[" + ", ".join(items) + "]"
    head = "| Completion | Rating | Rationale |\n|---|---|---|\n" if form == "table" else ""
    return head + "\n".join(items)


def values(form: str, text: str, n: int, *, cut: bool = False) -> list[int | None]:
    answers = "json" if form in ("json", "list") else "lines"
    return [reading.value for reading in ratings(text, n, answers, cut=cut)]


def plain(rng: random.Random) -> tuple[str, list[int], list[str]]:
    """A form, the ratings of two to four completions, and the item of each."""
    form, n = rng.choice(FORMS), rng.randint(2, 4)
    given = [rng.randint(1, 5) for _ in range(n)]
    return form, given, [item(form, k, rating) for k, rating in enumerate(given, start=1)]


def agree(found: list[int | None], truth: list[int] | list[int | None]) -> bool:
    """Whether every number that was read is the true one."""
    return all(value is None or value == meant for value, meant in zip(found, truth, strict=True))


def test_no_mutation_of_a_plain_reply_gives_a_wrong_rating() -> None:
    rng = random.Random(0)
    tried: Counter[str] = Counter()
    kept: Counter[str] = Counter()  # how many ratings the mutation leaves readable
    for _ in range(400):
        form, given, items = plain(rng)
        n, text = len(given), whole(form, items)
        assert values(form, text, n) == given
        for name, mutated, truth, cut in mutations(rng, form, given, items):
            found = values(form, mutated, n, cut=cut)
            assert agree(found, truth), (name, form, truth, found, mutated)
            tried[name] += 1
            kept[name] += sum(value is not None for value in found)
    assert sum(tried.values()) >= 12000 and len(tried) == 15 and min(tried.values()) >= 100
    # What leaves the meaning whole is still read, and what destroys it for every completion is not.
    assert kept["shuffled"] and kept["said before"] and kept["quoted"] and kept["a rating without its digit"]
    for name in ("one left out", "numbered from nought", "renumbered", "one too many", "interleaved"):
        assert kept[name] == 0, name


def mutations(
    rng: random.Random, form: str, given: list[int], items: list[str]
) -> Iterator[tuple[str, str, list[int | None], bool]]:
    """Mutations of a reply by name, with what may be read of each completion: its rating, or nothing at all."""
    n, text = len(given), whole(form, items)
    truth: list[int | None] = list(given)
    nothing: list[int | None] = [None] * n
    k = rng.randrange(n)
    but_k: list[int | None] = [None if i == k else rating for i, rating in enumerate(given)]
    other = [rng.randint(1, 5) for _ in given]
    second = [item(form, i, rating) for i, rating in enumerate(other, start=1)]
    differ = [rating if rating == again else None for rating, again in zip(given, other, strict=True)]
    shuffled = rng.sample(items, n)
    for at in rng.sample(range(len(text)), 8):
        yield "cut", text[:at], truth, True
        yield "cut unnoticed", text[:at], truth, False
    yield "shuffled", whole(form, shuffled), truth, False
    yield "doubled block", whole(form, [*items, items[k]]), truth, False
    yield "doubled reply", f"{text}\n\n{text}", truth, False
    yield "two replies", f"{text}\n\n{whole(form, second)}", differ, False
    mixed = [part for pair in zip(items, second, strict=True) for part in pair]
    yield "interleaved", whole(form, mixed), nothing, False
    yield "one left out", whole(form, items[:k] + items[k + 1 :]), nothing, False
    yield "one too many", whole(form, [*items, item(form, n + 1, 3)]), nothing, False
    yield "numbered from nought", whole(form, [item(form, i, r) for i, r in enumerate(given)]), nothing, False
    gone = [item(form, i + (i == k + 1) * n, r) for i, r in enumerate(given, start=1)]
    yield "renumbered", whole(form, gone), nothing, False
    for wrong in (f"{given[k]}{rng.randint(0, 9)}", f"{rng.randint(6, 9)}", f"{given[k]}.{rng.randint(1, 9)}", ""):
        name = "a rating without its digit" if not wrong else "a rating with another digit"
        changed = [item(form, i, wrong if i == k + 1 else r) for i, r in enumerate(given, start=1)]
        yield name, whole(form, changed), but_k, False
    quote = f'"[{k + 1}] rating {other[k]}"'
    if form in ("compact", "keyed", "headed", "named"):
        yield "quoted", text.replace("It has no middle", f"It has {quote} in its middle"), truth, False
        yield "said before", f"One of them holds the words {quote} in its middle.\n\n{text}", truth, False
    else:
        escaped = quote.replace('"', '\\"')
        yield "quoted", text.replace("fair", f"it holds {escaped} in it").replace("no middle", quote), truth, False
        yield "said before", f"Here are my ratings:\n\n{text}", truth, False


def test_no_cut_of_any_plain_reply_at_any_place_gives_a_wrong_reading() -> None:
    """Every beginning of every well-formed reply of the corpus, flagged as cut: what is read is what was meant."""
    swept = 0
    for _, kind, entry in ENTRIES:
        if entry.get("expect", "read") != "read" or entry.get("cut") or "codes" in entry:
            continue
        truth = entry["truth"] if kind in ("json", "lines") else [entry["truth"]]
        for end in range(0, len(entry["text"]), 3):
            found = read(kind, {**entry, "text": entry["text"][:end], "cut": True})
            assert agree(found, truth), (entry["about"], entry["text"][:end], found)
            swept += 1
    assert swept >= 5000


VERDICTS = ("Verdict: {}", "Final verdict: [[{}]]", "[[{}]]", '{{"verdict": "{}"}}', "**Verdict:** {}", "{}")


def test_no_mutation_of_a_plain_verdict_gives_a_wrong_one() -> None:
    rng = random.Random(1)
    tried = 0
    for _ in range(150):
        form, number = rng.choice(VERDICTS), rng.choice("12")
        other, meant = "21"[int(number) - 1], "AB"[int(number) - 1]
        last = form.format(number)
        text = f"Completion 1 has a source. Completion 2 has two.\n\n{last}"
        assert read_choice(text)[0] == meant
        against = rng.choice(VERDICTS).format(other)
        for mutated in (
            f"{text}\n\n{against}",
            f"{against}\n\n{text}",
            f"{text}\nActually no.",
            f"{text}\nCompletion {other} is better.",
            text.replace(last, form.format(f"{number}{rng.randint(0, 9)}")),
            text.replace(last, form.format(f"{number} or {other}")),
            text.replace(last, form.format(f"not {number}")),
            text.replace(last, form.format("3")),
            text.replace(last, form.format("")),
            f"Completion 2 says:\n{last}",
        ):
            assert read_choice(mutated)[0] is None, mutated
            tried += 1
        quoted = f'Completion {other} holds "{form.format(other)}" in it, no more.'
        for mutated in (f"{quoted}\n\n{text}", text.replace("a source", f"{other} sources")):
            assert read_choice(mutated)[0] in (meant, None), mutated
            tried += 1
    assert tried >= 1800


def test_no_mutation_of_a_plain_ranking_or_score_gives_a_wrong_one() -> None:
    rng = random.Random(2)
    tried = 0
    for _ in range(150):
        n = rng.randint(2, 6)
        order = rng.sample(range(1, n + 1), n)
        chain = " > ".join(map(str, order))
        form = rng.choice(("{}", "Ranking: {}", "Both extremes are plain.\n\nFinal ranking: {}"))
        assert read_ranking(form.format(chain), n)[0] == tuple((k,) for k in order)
        k = rng.randrange(n)
        for wrong in (
            order[:k] + order[k + 1 :],
            [*order, order[k]],
            [*order[:k], n + 1, *order[k + 1 :]],
            [*order[:k], 0, *order[k + 1 :]],
            [*order[:k], order[k] * 10, *order[k + 1 :]],
        ):
            mutated = form.format(" > ".join(map(str, wrong)))
            assert read_ranking(mutated, n)[0] is None, mutated
            tried += 1
        mutated = f"{form.format(chain)}\n{form.format(' > '.join(map(str, reversed(order))))}"
        assert read_ranking(mutated, n)[0] is None, mutated
        score = rng.randint(1, 10)
        line = rng.choice(("Overall Score: {}", "Rating: [[{}]]", "Score: {}/10", "[[{}]]"))
        text = f"It names 3 of 4 causes.\n\n{line}"
        assert read_score(text.format(score), 1, 10).value == score
        for wrong_score in (
            f"{score}.5",
            f"0.{score}",
            f"{score}{score}",
            f"-{score}",
            f"{score}-{score + 1}",
            f"{score}%",
        ):
            assert read_score(text.format(wrong_score), 1, 10).value is None, text.format(wrong_score)
            tried += 1
        again = score % 10 + 1
        assert read_score(f"{text.format(score)}\n{line.format(again)}", 1, 10).value is None
        tried += 2
    assert tried >= 1900


# ---------------------------------------------------------------- properties


@given(
    st.text(alphabet=st.sampled_from("[]12340/.:>=|-*\"'\n{}, ratingRverdictchoeAB#`"), max_size=120),
    st.integers(1, 3),
    st.booleans(),
)
def test_any_text_is_read_without_an_error_and_inside_what_is_asked(text: str, n: int, cut: bool) -> None:
    for answers in ("json", "lines"):
        for na in (False, True):
            readings = ratings(text, n, answers, cut=cut, na=na, types=("1",))
            assert len(readings) == n
            assert all((r.value is None) == (r.problem is not None or r.na) for r in readings)
            assert all(r.value is None or 1 <= r.value <= 5 for r in readings)
            assert na or not any(r.na for r in readings)
    choice, problem = read_choice(text, cut=cut)
    assert (choice is None) == (problem is not None) and not (cut and choice)
    score = read_score(text, 1, 10, cut=cut)
    assert (score.value is None) == (score.problem is not None) and not (cut and score.value)
    ranking, problem = read_ranking(text, n, cut=cut)
    assert (ranking is None) == (problem is not None)
    assert ranking is None or sorted(k for group in ranking for k in group) == list(range(1, n + 1))


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.randoms(use_true_random=False), st.sampled_from(FORMS))
def test_ratings_follow_their_completions_however_these_are_ordered(
    given: list[int], rng: random.Random, form: str
) -> None:
    """A judge that rates by the text alone: permuting the candidates permutes their ratings, and nothing else."""
    answers = "json" if form in ("json", "list") else "lines"
    rater = Rater(model="judge", rubric="r", template="t", answers=answers)
    texts = [f"text {place} of rating {rating}." for place, rating in enumerate(given)]
    order = rng.sample(range(len(texts)), len(texts))
    for candidates in ([candidate(text) for text in texts], [candidate(texts[i]) for i in order]):
        (asked,) = rating_prompts(ask("q"), candidates, JUDGE.rubric.aspects[0], JUDGE, rater)
        shown = [candidates[slot[0]].completion.text for slot in asked.slots]
        items = [item(form, k, text[-2]) for k, text in enumerate(shown, start=1)]
        reply = Completion(text=whole(form, rng.sample(items, len(items))), model="judge", call="c")
        for rating in bound(reply, asked, JUDGE.rubric.aspects[0], JUDGE.rubric, rater):
            assert rating.value == int(candidates[rating.candidate].completion.text[-2])


@pytest.mark.parametrize(
    "filler", [" ", "\n", "\n\n ", "```\n", "a. ", "- ", "[1] ", '"', "(", "rating ", "| a ", "1 > ", "[[", "{"]
)
def test_a_reply_that_repeats_itself_to_the_end_is_read_in_no_time(filler: str) -> None:
    """Judges fall into loops; a pattern that looks at every beginning and every end of one would take minutes."""
    text = filler * (20_000 // len(filler)) + "x"
    started = time.monotonic()
    for asked in (f"[1] {text}", f"Verdict: {text}", f'{{"1": {text}'):
        ratings(asked, 2, "json"), ratings(asked, 2, "lines")
        read_choice(asked), read_score(asked, 1, 10), read_ranking(asked, 3)
    assert time.monotonic() - started < 20
