"""The constitution: what its file must hold, and a draw that moves only what it must."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from inside import rlaif

from rlaif.config import CompareStage, RankStage, ReviseStage, read_pipeline
from rlaif.constitution import REQUESTS, RULE, Constitution, Principle, changes, read_constitution
from rlaif.errors import InputError, InputErrors
from rlaif.pipeline.applied import shown
from rlaif.pipeline.stages.compare import open_comparer
from rlaif.pipeline.stages.rank import open_ranker
from rlaif.pipeline.stages.revise import open_reviser

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
    drawn = Counter(constitution(a=3, b=2, c=1).draw("compare", prompt, request="comparison").id for prompt in PROMPTS)
    assert drawn["a"] / 4000 == pytest.approx(3 / 6, abs=0.024)
    assert drawn["b"] / 4000 == pytest.approx(2 / 6, abs=0.024)
    assert drawn["c"] / 4000 == pytest.approx(1 / 6, abs=0.018)


def test_a_new_principle_re_draws_only_what_it_wins() -> None:
    before, after = constitution(a=1, b=1, c=1), constitution(a=1, b=1, c=1, new=1)
    moved = Counter()
    for prompt in PROMPTS:
        old, new = before.draw("x", prompt, request="critique").id, after.draw("x", prompt, request="critique").id
        assert new in (old, "new")
        moved[new == "new"] += 1
    assert moved[True] / 4000 == pytest.approx(1 / 4, abs=0.021)


def test_its_place_in_the_file_and_its_words_do_not_matter_to_a_draw() -> None:
    one, other = constitution(a=1, b=2), constitution(b=2, a=1)
    reworded = one.model_copy(
        update={"principles": tuple(p.model_copy(update={"rule": "other"}) for p in one.principles)}
    )
    for prompt in PROMPTS[:200]:
        assert (
            one.draw(prompt, request="critique").id
            == other.draw(prompt, request="critique").id
            == reworded.draw(prompt, request="critique").id
        )


def test_every_principle_has_its_turn_before_one_comes_again() -> None:
    found = constitution(a=5, b=1, c=1)
    for prompt in PROMPTS[:200]:
        drawn = [found.draw(prompt, request="critique", position=place).id for place in range(6)]
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
        (
            "rule: Be kind., critique: is it kind, ",
            "",
            r"c\.yaml:4: .*a `revision` needs a `critique`; add it, or a `rule`",
        ),
        (
            "rule: Be kind., critique: is it kind, revision: Make it kind., comparison: the kinder one",
            "weight: 2",
            r"c\.yaml:4: `principles\.1`: there is no `rule`, and no request of its own; add a `rule`",
        ),
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


# ---------------------------------------------------------------- written shortly


def read(folder: Path, text: str) -> Constitution:
    (folder / "c.yaml").write_text(text)
    return read_constitution(str(folder / "c.yaml"))


def test_a_principle_may_be_one_line_and_its_requests_are_made_of_it(tmp_path: Path) -> None:
    found = read(
        tmp_path, "name: c\nprinciples:\n  - tone: Be {kind}.\n  - {id: b, rule: Be safe., critique: Is it safe.}\n"
    )
    tone, safe = found.principles
    assert (tone.id, tone.rule, tone.weight) == ("tone", "Be {kind}.", 1)
    for request in REQUESTS:
        assert "Be {kind}." in getattr(tone, request) and RULE not in getattr(tone, request)
    assert safe.critique == "Is it safe." and "Be safe." in safe.revision and "Be safe." in safe.comparison


def test_the_file_says_how_a_request_is_made_of_a_rule(tmp_path: Path) -> None:
    text = "name: c\nrequests: {comparison: 'Which is better by: {rule}'}\nprinciples:\n  - tone: Be kind.\n"
    (principle,) = read(tmp_path, text).principles
    assert principle.comparison == "Which is better by: Be kind." and principle.critique.count("Be kind.") == 1
    with pytest.raises(InputError, match=r"c\.yaml:2: `requests\.comparison`: write \{rule\} where"):
        read(tmp_path, text.replace("{rule}", "the rule"))


def test_a_rename_with_the_old_id_under_was_draws_the_same(tmp_path: Path) -> None:
    before, renamed = constitution(a=1, b=2, c=1), constitution(a=1, bee=2, c=1)
    kept = renamed.model_copy(
        update={
            "principles": tuple(p.model_copy(update={"was": "b"} if p.id == "bee" else {}) for p in renamed.principles)
        }
    )
    old, new, moved = (
        [each.draw("x", prompt, request="critique").id for prompt in PROMPTS] for each in (before, kept, renamed)
    )
    assert ["b" if name == "bee" else name for name in new] == old
    assert sum(a != b for a, b in zip(["b" if name == "bee" else name for name in moved], old, strict=True)) > 500
    with pytest.raises(InputError, match=r"c\.yaml:4: `principles\.1\.was`: another principle is called 'a'"):
        read(tmp_path, "name: c\nprinciples:\n  - a: One.\n  - {id: b, rule: Two., was: a}\n")


EXAMPLE = """\
name: c
preamble: You are careful.
examples:
  critique:
    - [{role: user, content: A draft.}, {role: assistant, content: "It is rude: \\"go away\\"."}]
principles:
  - tone: Be kind.
"""


def test_a_request_begins_with_the_preamble_and_its_examples(tmp_path: Path) -> None:
    found = read(tmp_path, EXAMPLE)
    said = [(message.role, message.content) for message in found.before("critique")]
    assert said == [
        ("system", "You are careful."), ("user", "A draft."), ("assistant", 'It is rude: "go away".'),
    ]  # fmt: skip
    assert [message.role for message in found.before("comparison")] == ["system"]
    with pytest.raises(InputError, match=r"c\.yaml:4: `examples\.critique`: chat 1: an example is turns of"):
        read(tmp_path, EXAMPLE.replace("role: assistant", "role: user"))


# ---------------------------------------------------------------- YAML's traps


TRAPS = """\
name: c
principles:
  - id: a
    rule: Be safe: never harm.
    critique: 'Don't lie.'
    revision: - Be nice.
    comparison: Prefer answer #1 over the others.
  - id: b
    rule: yes
    critic: Is it so?
    weight: 0
  - Be polite: it costs nothing.
"""
TOLD = [
    r"c\.yaml:4: not valid YAML: .* write the line as `rule: 'Be safe: never harm\.'`",
    r"c\.yaml:5: not valid YAML: .* write the line as `critique: \"Don't lie\.\"`",
    r"c\.yaml:6: not valid YAML: .* write the line as `revision: '- Be nice\.'`",
    r"c\.yaml:7: `principles\.0\.comparison`: a comment begins at ` #`: the text read is 'Prefer answer'\. "
    r"Fix: write the line as `comparison: 'Prefer answer #1 over the others\.'`",
    r"c\.yaml:9: `principles\.1\.rule`: expected text, found True\. Fix: write the line as `rule: 'yes'`",
    r"c\.yaml:10: `principles\.1\.critic`: unknown key\. Fix: did you mean `critique`\?",
    r"c\.yaml:11: `principles\.1\.weight`: expected a number greater than 0",
    r"c\.yaml:12: `principles\.2\.id`: expected letters, digits",
]


def test_all_that_is_wrong_with_a_file_is_told_at_once_with_the_lines_as_they_should_be(tmp_path: Path) -> None:
    with pytest.raises(InputErrors) as caught:
        read(tmp_path, TRAPS)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(TOLD)
    for line, told in zip(lines, TOLD, strict=True):
        assert re.search(told, line), (line, told)


def test_the_lines_as_they_should_be_are_read_as_they_were_meant(tmp_path: Path) -> None:
    text = TRAPS[: TRAPS.index("  - id: b")]
    with pytest.raises(InputErrors) as caught:
        read(tmp_path, text)
    for error in caught.value.errors:
        old, new = text.splitlines()[error.line - 1].strip(), error.fix.split("`")[1]  # type: ignore[operator, union-attr]
        text = text.replace(old, new)
    (principle,) = read(tmp_path, text).principles
    assert [principle.rule, principle.critique, principle.revision, principle.comparison] == [
        "Be safe: never harm.", "Don't lie.", "- Be nice.", "Prefer answer #1 over the others.",
    ]  # fmt: skip


def test_a_question_mark_inside_braces_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"c\.yaml:3: not valid YAML: .*Fix: inside \{\.\.\.\}, put each text in quotes"
    ):
        read(tmp_path, "name: c\nprinciples:\n  - {id: a, critique: Is it kind?, rule: Be kind.}\n")


def test_a_number_sign_after_one_word_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"c\.yaml:2: `preamble`: a comment begins at ` #`: the text read is 'Rule'"):
        read(tmp_path, "name: c\npreamble: Rule #1 is to help.\nprinciples:\n  - tone: Be kind.\n")


@pytest.mark.parametrize("weight", ["yes", "'2'"])
def test_a_weight_is_a_number(weight: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"c\.yaml:3: `principles\.0\.weight`: expected a number"):
        read(tmp_path, f"name: c\nprinciples:\n  - {{id: tone, rule: Be kind., weight: {weight}}}\n")


def test_a_comment_after_a_number_or_a_text_in_quotes_is_a_comment(tmp_path: Path) -> None:
    text = "name: c # mine\nprinciples:\n  - id: a # short\n    rule: 'Be safe.' # so\n    weight: 2 # heavier\n"
    (principle,) = read(tmp_path, text).principles
    assert (principle.rule, principle.weight) == ("Be safe.", 2)


def test_a_constitution_is_named_once_and_used_by_every_stage(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: c\nprinciples:\n  - tone: Be kind.\n")
    (tmp_path / "own.yaml").write_text("name: own\nprinciples:\n  - tone: Be blunt.\n")
    text = (
        "name: p\nconstitution: c.yaml\nmodels:\n  m: {engine: transformers, path: tiny/base}\nstages:\n"
        "  - prompts: {path: tiny/prompts.jsonl}\n  - sample: {models: [m]}\n  - revise: {model: m}\n"
        "  - sample: {models: [m], per_prompt: 2}\n  - compare: {model: m}\n"
        "  - compare: {name: other, model: m, constitution: own.yaml}\n  - pair: {}\n"
    )
    (tmp_path / "p.yaml").write_text(text)
    named = [
        Path(step.stage.constitution).name
        for step in read_pipeline(str(tmp_path / "p.yaml")).steps
        if isinstance(step.stage, ReviseStage | CompareStage)
    ]
    assert named == ["c.yaml", "c.yaml", "own.yaml"]
    (tmp_path / "p.yaml").write_text(text.replace("constitution: c.yaml\n", ""))
    with pytest.raises(InputError, match=r"p\.yaml:7: `stages\.2\.revise\.constitution`: the key is missing"):
        read_pipeline(str(tmp_path / "p.yaml"))


# ---------------------------------------------------------------- principles of one stage


ONE_STAGE = """\
name: c
principles:
  - {id: first, critique: Is it rude, revision: Make it polite.}
  - {id: second, comparison: Prefer the politer completion.}
  - {id: third, comparison: Prefer the completion that is easier to read.}
"""


def test_a_principle_without_a_rule_is_drawn_only_for_the_requests_that_it_has(tmp_path: Path) -> None:
    found = read(tmp_path, ONE_STAGE)
    revised = {found.draw(prompt, request="critique", position=place).id for prompt in PROMPTS[:50] for place in (0, 1)}
    compared = Counter(found.draw(prompt, request="comparison").id for prompt in PROMPTS)
    assert revised == {"first"} and set(compared) == {"second", "third"}
    assert compared["second"] / 4000 == pytest.approx(1 / 2, abs=0.024)


def test_a_stage_without_a_principle_to_draw_is_an_error_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(ONE_STAGE.partition("  - {id: second")[0])
    stage = CompareStage(model="m", constitution=str(tmp_path / "c.yaml"))
    with pytest.raises(InputError, match=r"c\.yaml:2: `principles`: no principle has a comparison\. Fix: give one"):
        open_comparer(stage)
    open_reviser(ReviseStage(model="m", constitution=str(tmp_path / "c.yaml")))


@pytest.mark.parametrize("stage", ["compare", "rank", "critique", "revise"])
def test_a_template_that_shows_the_rule_of_a_principle_without_one_is_an_error(tmp_path: Path, stage: str) -> None:
    (tmp_path / "c.yaml").write_text(ONE_STAGE)
    (tmp_path / "shows.jinja").write_text(Path(f"prompts/{stage}.jinja").read_text() + "\n{{ principle.rule }}")
    named: dict[str, Any] = {"model": "m", "constitution": str(tmp_path / "c.yaml")}
    key = {"critique": "critique_template", "revise": "revision_template"}.get(stage, "template")

    def opened(settings: dict[str, Any]) -> object:
        if stage in ("critique", "revise"):
            return open_reviser(ReviseStage.model_validate(settings))
        if stage == "rank":
            return open_ranker(RankStage.model_validate(settings))
        return open_comparer(CompareStage.model_validate(settings))

    opened(named)
    with pytest.raises(InputError, match=r"shows\.jinja: .*shows `principle\.rule`, and the principle '\w+' has none"):
        opened(named | {key: str(tmp_path / "shows.jinja")})


def test_only_the_requests_that_a_principle_has_are_shown_and_counted(tmp_path: Path) -> None:
    after = read(tmp_path, ONE_STAGE)
    told = [(each.stage, each.principle, each.asked.request) for each in shown(str(tmp_path / "c.yaml"))]
    assert told == [
        ("revise", "first", "critique"), ("revise", "first", "revision"),
        ("compare", "second", "comparison"), ("compare", "third", "comparison"),
    ]  # fmt: skip
    before = Constitution(name="c", principles=(Principle(id="first", rule="r", comparison="kinder"),))
    assert [change.told for change in changes(before, after, ("comparison",))] == [
        "`second` added", "`third` added", "`first` removed",
    ]  # fmt: skip
    assert [change.told for change in changes(after, before, ("comparison",))] == [
        "`first` added", "`second` removed", "`third` removed",
    ]  # fmt: skip


def test_of_principles_that_are_all_wrong_the_wrong_is_told_and_each_on_a_line(tmp_path: Path) -> None:
    text = "name: c\nprinciples:\n  - {id: a, rul: Be kind.}\n  - {id: b, rule: Be safe., weight: 0}\n"
    (tmp_path / "c.yaml").write_text(text)
    done = rlaif(tmp_path, "constitution", "lint", "c.yaml")
    told = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 2 and len(told) == 2
    assert "c.yaml:3: `principles.0.rul`: unknown key" in told[0] and "c.yaml:4: `principles.1.weight`" in told[1]
