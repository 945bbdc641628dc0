"""The gold pairs that ship, how such a file is read and refused, and the probes that are made of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from rlaif.audits import probes
from rlaif.audits.goldset import (
    CATEGORIES,
    PAIRS,
    GoldPair,
    PairCheck,
    evaluate,
    of_world,
    read_gold,
    sentences,
    to_judge,
)
from rlaif.audits.probes import Probe
from rlaif.errors import InputError
from rlaif.records import Choice
from rlaif.resources import find
from rlaif.tiny import world
from rlaif.tiny.gold import CLEAR

SHIPPED = read_gold()
OF_TWO_TURNS = [pair for pair in SHIPPED if len(pair.prompt.messages) > 1]
WORLD = of_world(90, seed=0)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


# ---------------------------------------------------------------- the shipped set


def test_there_are_enough_pairs_of_each_category() -> None:
    counts = Counter(pair.category for pair in SHIPPED)
    assert set(counts) == set(CATEGORIES)
    assert min(counts.values()) >= 36 and len(SHIPPED) >= 216
    assert len(OF_TWO_TURNS) >= 6


def test_every_pair_has_an_id_of_its_own_and_a_reason() -> None:
    assert len({pair.id for pair in SHIPPED}) == len(SHIPPED)
    for pair in SHIPPED:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", pair.id), pair.id
        assert len(words(pair.why)) >= 4, pair.id


def test_the_length_says_little_about_which_one_is_better() -> None:
    for category in CATEGORIES:
        margins = [pair.length_margin for pair in SHIPPED if pair.category == category]
        longer = sum(margin > 0 for margin in margins) / len(margins)
        low, high = (0.0, 0.2) if category == "style-against-substance" else (0.4, 0.6)
        assert low <= longer <= high, (category, longer)


def fourgrams(text: str) -> set[tuple[str, ...]]:
    said = words(text)
    return {tuple(said[i : i + 4]) for i in range(len(said) - 3)}


def test_no_two_pairs_are_alike() -> None:
    prompts = [pair.prompt.text for pair in SHIPPED]
    assert len(set(prompts)) == len(prompts)
    completions = [(pair.id, text) for pair in SHIPPED for text in (pair.better, pair.worse)]
    assert len({text for _, text in completions}) == len(completions)
    for texts in (completions, list(zip([p.id for p in SHIPPED], prompts, strict=True))):
        found = [(name, grams) for name, text in texts if len(grams := fourgrams(text)) >= 12]
        assert len(found) >= 60
        for (one, a), (two, b) in combinations(found, 2):
            if one != two:
                assert len(a & b) / min(len(a), len(b)) < 0.25, (one, two)


def test_what_can_be_counted_is_checked() -> None:
    checked = [pair for pair in SHIPPED if pair.check is not None]
    assert len(checked) >= 80
    demanding = [pair for pair in checked if pair.check is not None and pair.check.demands]
    assert {pair.id for pair in SHIPPED if pair.category == "instruction-following"} <= {p.id for p in demanding}
    for pair in demanding:
        assert pair.check is not None
        assert pair.check.broken(pair.better) == [] and pair.check.broken(pair.worse) != [], pair.id
    sums = [expression for pair in checked if pair.check for expression in pair.check.arithmetic]
    assert len(sums) >= 60


def test_there_are_sure_and_unsure_completions() -> None:
    both = [pair for pair in SHIPPED if pair.hedged_right is not None]
    assert len(both) >= 24
    assert {pair.category for pair in both} == {"factual", "reasoning"}
    for pair in both:
        assert len({pair.better, pair.worse, pair.hedged_right, pair.assertive_wrong}) == 4, pair.id


def test_no_completion_to_a_harmful_request_holds_steps() -> None:
    """The worse ones comply in general words only: no list, no code, no figures that a recipe would need."""
    harmful = [pair.worse for pair in SHIPPED if pair.category == "safety"]
    assert len(harmful) >= 36
    for text in harmful:
        assert not re.search(r"`|^\s*(?:[-*]|\d+[.)])\s|\d\s*(?:g|ml|mg|kg|°|%)", text, re.MULTILINE), text


def test_the_readme_states_the_figures_as_they_are() -> None:
    text = (PAIRS.parent / "README.md").read_text(encoding="utf-8")
    for category in CATEGORIES:
        pairs = [pair for pair in SHIPPED if pair.category == category]
        longer = sum(pair.length_margin > 0 for pair in pairs)
        checked = sum(pair.check is not None for pair in pairs)
        assert f"| {category} | {len(pairs)} | {longer / len(pairs):.0%} | {checked} |" in text, category
    assert f"{len(SHIPPED)} pairs" in text


def test_the_set_is_found_by_its_name() -> None:
    assert find("gold/pairs.jsonl").samefile(PAIRS)


# ---------------------------------------------------------------- checks


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ({"words": [2, 3]}, "two words", "one"),
        ({"sentences": [2, 2]}, 'He said "no." Then he left.', "One only."),
        ({"lines": [2, 2]}, "a\n\nb", "a"),
        ({"characters": [1, 3]}, "abc", "abcd"),
        ({"contains": ["Fig"]}, "a fig", "a pear"),
        ({"lacks": ["e"]}, "kiwi", "pEar"),
        ({"starts": "Yes"}, "Yes, so it is", "So it is, yes"),
        ({"ends": "home."}, "we go home.", "home. Or not"),
        ({"matches": "a+"}, "aaa", "aab"),
        ({"counts": {"x": 2}}, "x and x", "x"),
        ({"case": "lower"}, "low 1", "Low"),
        ({"case": "upper"}, "HIGH 1", "High"),
        ({"sorted_lines": True}, "a\nb", "b\na"),
        ({"keys": ["a", "b"]}, '{"b": 1, "a": 2}', '{"a": 1}'),
        ({"keys": ["a"]}, '{"a": 1}', "[1]"),
    ],
)
def test_a_check_tells_good_from_bad(check: dict[str, Any], good: str, bad: str) -> None:
    made = PairCheck.model_validate(check)
    assert made.demands
    assert made.broken(good) == []
    assert len(made.broken(bad)) == 1


@pytest.mark.parametrize(
    ("expression", "value"),
    [("17 * 23", 391), ("-7 // 2", -4), ("2 ** 3 % 5", 3), ("(1 + 2) / 4 - 1", -0.25)],
)
def test_arithmetic_is_evaluated(expression: str, value: float) -> None:
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["__import__('os')", "1 +", "a", "1 / 0", "'a' * 3", "9.0 ** 9 ** 9", "abs(1)", "(-8) ** 0.5", "-" * 5000 + "1"],
)
def test_anything_else_is_not_evaluated(expression: str) -> None:
    with pytest.raises(ValueError, match="is not arithmetic"):
        evaluate(expression)


# ---------------------------------------------------------------- files of one's own

PAIR = {"id": "one", "category": "mine", "prompt": "Two and two?", "better": "Four.", "worse": "Five.", "why": "2 + 2"}


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_file_of_the_same_shape_is_read(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Two and two?"},
    ]
    one, two = read_gold(written(tmp_path, PAIR, PAIR | {"id": "two", "prompt": turns}))
    assert (one.better, one.prompt.text, one.length_margin) == ("Four.", "Two and two?", 0)
    assert [message.role for message in two.prompt.messages] == ["user", "assistant", "user"]


def test_a_preference_file_is_read(tmp_path: Path) -> None:
    row = {"prompt": "Two and two?", "chosen": "Four.", "rejected": "Five."}
    (pair,) = read_gold(written(tmp_path, row | {"source": "sums"}))
    assert (pair.better, pair.worse, pair.category) == ("Four.", "Five.", "sums")
    alike = written(tmp_path, row, row | {"rejected": "Four."})
    with pytest.raises(InputError, match="1 identical texts"):
        read_gold(alike)
    dropped: Counter[str] = Counter()
    assert len(read_gold(alike, dropped)) == 1 and dropped == {"identical texts": 1}


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ({"wrose": "Six."}, "wrose", "did you mean `worse`?"),
        ({"better": "Five."}, None, "have the same text"),
        ({"better": " "}, "better", "the completion is empty"),
        ({"better": None}, "better", "expected text"),
        ({"prompt": ""}, "prompt", "the prompt is empty"),
        ({"prompt": [{"role": "assistant", "content": "?"}]}, "prompt", "must end with a user turn"),
        ({"id": "one"}, "id", "used at line 1 too"),
        ({"hedged_right": "Four, I think."}, None, "go together"),
        ({"check": {"words": [2, 3]}}, None, "`better` breaks its `check`: 1 words and not 2 to 3"),
        ({"check": {"words": [1, 1]}}, None, "`worse` meets the whole `check`"),
        ({"check": {"wrods": [1, 1]}}, "check.wrods", "did you mean `words`?"),
        ({"check": {"arithmetic": {"2 + 2": 5}}}, "check.arithmetic", "2 + 2 is 4, not 5"),
        ({"check": {"matches": "("}}, "check.matches", "not a regular expression"),
    ],
)
def test_a_wrong_row_is_refused_by_file_line_and_key(
    change: dict[str, Any], key: str | None, message: str, tmp_path: Path
) -> None:
    path = written(tmp_path, PAIR, PAIR | {"id": "two"} | change)
    with pytest.raises(InputError) as caught:
        read_gold(path)
    assert (caught.value.file, caught.value.line, caught.value.key) == (str(path), 2, key)
    assert message in str(caught.value)
    assert caught.value.fix or key is None


def test_a_missing_key_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, {name: value for name, value in PAIR.items() if name != "category"})
    with pytest.raises(InputError, match=r"mine.jsonl:1: `category`: the key is missing. Fix: a pair has"):
        read_gold(path)
    with pytest.raises(InputError, match="there are no pairs"):
        read_gold(written(tmp_path))


def test_a_judge_is_shown_the_two_in_their_order() -> None:
    pair = SHIPPED[0]
    row = to_judge(pair.prompt, (pair.better, pair.worse))
    assert [candidate.completion.text for candidate in row.candidates] == [pair.better, pair.worse]
    assert len({candidate.completion.call for candidate in row.candidates}) == 2


# ---------------------------------------------------------------- pairs of the embedded world


def test_the_worlds_pairs_are_held_out_clear_and_of_all_families() -> None:
    assert len({pair.id for pair in WORLD}) == 90
    assert set(Counter(pair.category for pair in WORLD).values()) == {10}
    assert {pair.category for pair in WORLD} == set(world.FAMILIES)
    for pair in WORLD:
        assert pair.prompt.split == "held-out"
        better, worse = (world.gold(pair.prompt.text, text) for text in (pair.better, pair.worse))
        assert better.content == 1 and better.total - worse.total >= CLEAR


def test_more_of_the_worlds_pairs_begin_with_the_same_ones() -> None:
    assert of_world(30, seed=0) == WORLD[:30]
    assert of_world(30, seed=1) != WORLD[:30]
    with pytest.raises(ValueError, match="held-out prompts, but 1000000 pairs"):
        of_world(1_000_000, seed=0)


def test_the_worlds_sure_completions_are_wrong_and_its_unsure_ones_right() -> None:
    both = [pair for pair in WORLD if pair.hedged_right is not None and pair.assertive_wrong is not None]
    assert len(both) >= 80
    for pair in both:
        sure, unsure = (world.parse(pair.prompt.text, text or "") for text in (pair.assertive_wrong, pair.hedged_right))
        assert (sure.right, sure.assertive, unsure.right, unsure.hedged) == (False, 1, True, 1)


# ---------------------------------------------------------------- probes

GOLD = {pair.id: pair for pair in (*SHIPPED, *WORLD)}
MAKERS: tuple[Callable[[list[GoldPair]], list[Probe]], ...] = (
    probes.verbosity,
    probes.edits,
    probes.assertiveness,
    probes.injection,
)


def swept(made: list[Probe], least: int) -> Iterator[tuple[Probe, GoldPair]]:
    assert len(made) >= least
    for probe in made:
        yield probe, GOLD[probe.pair]


def test_probes_depend_on_the_pair_alone() -> None:
    for make in MAKERS:
        whole = make(SHIPPED)
        assert make(SHIPPED[::-1]) == whole[::-1]
        assert len({probe.id for probe in whole}) == len(whole)
        for probe in whole:
            assert probe.shown[0] != probe.shown[1]
            assert probe.prompt == GOLD[probe.pair].prompt


def test_padding_adds_no_word_but_its_openings() -> None:
    leads = {word for lead in probes.LEADS for word in words(lead)}
    for probe, pair in swept(probes.verbosity(SHIPPED), 80):
        original, padded = probe.shown
        assert original == pair.better and padded.endswith(original)
        added = padded.removesuffix(original)
        assert set(words(added)) <= set(words(original)) | leads
        assert {word for word in words(original) if not word.isdigit()} <= set(words(added))
        assert all(line.startswith("- ") for line in added.strip().splitlines())
        assert added.count("\n- ") >= 1 and len(sentences(original)) > 1
        assert len(padded) > 1.9 * len(original)


def test_padding_can_do_without_openings() -> None:
    made = probes.verbosity(WORLD, leads=())
    for probe, _ in swept(made, 20):
        original, padded = probe.shown
        assert set(words(padded)) == set(words(original))


def test_edits_keep_every_word() -> None:
    made = probes.edits(SHIPPED)
    assert {probe.variant for probe in made} == set(probes.EDITS)
    assert {probe.changed for probe in made} == {0, 1}
    for probe, pair in swept(made, 216):
        assert probe.clean == (pair.better, pair.worse)
        before, after = probe.clean[probe.changed], probe.shown[probe.changed]
        assert probe.shown[1 - probe.changed] == probe.clean[1 - probe.changed]
        assert before != after
        kept = after.removeprefix(probes.GREETING) if probe.variant == "greeting" else after
        kept = kept.removesuffix(probes.FAREWELL) if probe.variant == "farewell" else kept
        assert words(kept.replace("\u2019", "'")) == words(before)
        if pair.check is not None and pair.check.demands:
            assert bool(pair.check.broken(after)) == (probe.changed == 1), probe.id


def test_injections_keep_the_worse_completion_and_add_their_text() -> None:
    made = probes.injection(SHIPPED)
    for probe, pair in swept(made, 216):
        assert probe.shown == (pair.better, f"{pair.worse}\n\n{probes.INJECTIONS[probe.variant]}")
        assert probe.clean == (pair.better, pair.worse)
    by_kind = Counter(probe.variant for probe in made)
    assert set(by_kind) == set(probes.INJECTIONS) and min(by_kind.values()) >= len(made) / 12


def test_another_injection_takes_only_the_pairs_it_draws() -> None:
    before = probes.injection(SHIPPED)
    after = probes.injection(SHIPPED, {**probes.INJECTIONS, "threat": "Or else."})
    taken = [new for old, new in zip(before, after, strict=True) if new != old]
    assert {probe.variant for probe in taken} == {"threat"}
    assert 0 < len(taken) < len(before) / 3


def test_the_sure_one_is_the_changed_one() -> None:
    for probe, pair in swept(probes.assertiveness(SHIPPED), 24):
        assert probe.shown == (pair.hedged_right, pair.assertive_wrong)
        assert probes.preferred(probe, "B") == "changed"


def test_what_a_verdict_prefers() -> None:
    probe = probes.verbosity(SHIPPED)[0]
    verdicts: tuple[Choice | None, ...] = ("A", "B", "tie", None)
    assert [probes.preferred(probe, verdict) for verdict in verdicts] == ["other", "changed", "tie", "unparsed"]
    first = probe.model_copy(update={"changed": 0})
    assert [probes.preferred(first, verdict) for verdict in verdicts] == ["changed", "other", "tie", "unparsed"]


def test_which_way_a_verdict_moves() -> None:
    probe = probes.injection(SHIPPED)[0]
    assert probes.moved(probe, clean="A", shown="B") == "towards"
    assert probes.moved(probe, clean="A", shown="tie") == "towards"
    assert probes.moved(probe, clean="B", shown="tie") == "away"
    assert probes.moved(probe, clean="B", shown="B") == "unmoved"
    assert probes.moved(probe, clean=None, shown="B") == "unparsed"


def test_self_preference_is_the_difference_to_the_truth() -> None:
    samplers = [("me-large", "you"), ("you", "me-small"), ("me-large", "you"), ("you", "me-large")]
    others = [("you", "they"), ("me-large", "me-small"), ("me-large", "you")]  # none of ours, two of ours, unparsed
    families = {"judge": "me", "me-large": "me", "me-small": "me"}
    found = probes.self_preference(
        "judge", [*samplers, *others], ["A", "B", "tie", "A", "A", "A", None], ["A", "A", "B", "tie", "A", "A", "A"],
        families,
    )  # fmt: skip
    assert found is not None
    assert (found.by_judge, found.by_truth) == ((1 + 1 + 0.5 + 0) / 4, (1 + 0 + 0 + 0.5) / 4)
    assert found.difference.mean == 0.25 and found.difference.n == 4
    assert probes.self_preference("judge", others, ["A", "A", None], ["A", "A", "A"], families) is None
