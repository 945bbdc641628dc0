"""The constitution: what its file must hold, and a draw that moves only what it must."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from rlaif.constitution import Constitution, Principle, read_constitution
from rlaif.errors import InputError

TEXT = """\
name: two
principles:
  - {id: safety, rule: Be safe., critique: is it safe, revision: Make it safe., comparison: the safer one, weight: 3}
  - {id: tone, rule: Be kind., critique: is it kind, revision: Make it kind., comparison: the kinder one}
"""


def constitution(**weights: float) -> Constitution:
    principles = tuple(
        Principle(id=name, rule="r", critique="c", revision="v", comparison="p", weight=weight)
        for name, weight in weights.items()
    )
    return Constitution(name="c", principles=principles)


PROMPTS = [f"prompt {number}" for number in range(4000)]


def test_a_principle_is_drawn_in_proportion_to_its_weight() -> None:
    """Four thousand draws: a share of 3/6 lies within three standard errors, 0.024, of one half."""
    drawn = Counter(constitution(a=3, b=2, c=1).draw("compare", prompt).id for prompt in PROMPTS)
    assert drawn["a"] / 4000 == pytest.approx(3 / 6, abs=0.024)
    assert drawn["b"] / 4000 == pytest.approx(2 / 6, abs=0.024)
    assert drawn["c"] / 4000 == pytest.approx(1 / 6, abs=0.018)


def test_a_new_principle_re_draws_only_what_it_wins() -> None:
    before, after = constitution(a=1, b=1, c=1), constitution(a=1, b=1, c=1, new=1)
    moved = Counter()
    for prompt in PROMPTS:
        old, new = before.draw("x", prompt).id, after.draw("x", prompt).id
        assert new in (old, "new")
        moved[new == "new"] += 1
    assert moved[True] / 4000 == pytest.approx(1 / 4, abs=0.021)


def test_its_place_in_the_file_and_its_words_do_not_matter_to_a_draw() -> None:
    one, other = constitution(a=1, b=2), constitution(b=2, a=1)
    reworded = one.model_copy(
        update={"principles": tuple(p.model_copy(update={"rule": "other"}) for p in one.principles)}
    )
    for prompt in PROMPTS[:200]:
        assert one.draw(prompt).id == other.draw(prompt).id == reworded.draw(prompt).id


def test_every_principle_has_its_turn_before_one_comes_again() -> None:
    found = constitution(a=5, b=1, c=1)
    for prompt in PROMPTS[:200]:
        drawn = [found.draw(prompt, position=place).id for place in range(6)]
        assert set(drawn[:3]) == {"a", "b", "c"} and drawn[3:] == drawn[:3]


@pytest.mark.parametrize("path", ["constitutions/tiny.yaml", "constitutions/helpful-harmless.yaml"])
def test_the_shipped_constitutions_read(path: str) -> None:
    found = read_constitution(path)
    assert len(found.principles) >= 4 and len({p.critique for p in found.principles}) == len(found.principles)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("id: tone", "id: safety", r"c\.yaml:4: `principles\.1\.id`: two principles are called 'safety'"),
        ("critique: is it kind", "critic: is it kind", r"c\.yaml:4: .*`?(critic|critique)"),
        ("critique: is it kind, ", "", r"c\.yaml:4: `principles\.1\.critique`: the key is missing"),
        ("revision: Make it kind.", "revision: ' '", r"c\.yaml:4: `principles\.1\.revision`"),
        ("weight: 3", "weight: 0", r"c\.yaml:3: `principles\.0\.weight`: .*greater than 0"),
        ("name: two", "name: two\nversion: 1", r"c\.yaml:2: `version`: unknown key\. Fix: remove it"),
        ("principles:", "principals:", r"c\.yaml:2: `principals`: unknown key. Fix: did you mean `principles`"),
        (
            "revision: Make it kind",
            "revison: Make it kind",
            r"c\.yaml:4: `principles\.1\.revison`: unknown key. Fix: did you mean `revision`",
        ),
    ],
)
def test_a_flaw_is_named_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TEXT
    path = tmp_path / "c.yaml"
    path.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        read_constitution(str(path))
