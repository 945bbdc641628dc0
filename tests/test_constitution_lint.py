"""`rlaif constitution lint`: each kind of finding with a case that has it and a near miss that has not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from madison import CRITIQUES, REVISIONS

from rlaif.constitution import wording
from rlaif.constitution.lint import ALIKE, CHECKS, lint
from rlaif.errors import InputError, InputErrors

SHIPPED = sorted(path.name for path in Path("constitutions").glob("*.yaml"))


def kinds(folder: Path, text: str, pipeline: str | None = None) -> list[str]:
    (folder / "c.yaml").write_text(text)
    return [finding.kind for finding in lint(str(folder / "c.yaml"), pipeline).findings]


def of_principles(*items: str) -> str:
    return "name: c\nprinciples:\n" + "".join(f"  - {item}\n" for item in items)


def with_requests(**texts: str) -> str:
    return "{id: a, " + ", ".join(f"{key}: {json.dumps(text)}" for key, text in texts.items()) + "}"


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_constitutions_have_no_finding(name: str) -> None:
    assert lint(f"constitutions/{name}").findings == [], "mend the constitution, or the check if it is wrong"


def test_all_shipped_constitutions_are_there() -> None:
    names = ["concise.yaml", "helpful-harmless.yaml", "honesty.yaml", "overall.yaml", "tiny.yaml"]
    assert names == SHIPPED and len(CHECKS) == 11


@pytest.mark.parametrize("name", ["constitutional_ai"])
def test_the_shipped_pipeline_contradicts_nothing(name: str) -> None:
    found = lint("constitutions/tiny.yaml", f"pipelines/{name}.yaml")
    assert found.findings == [] and not any("no stage" in note for note in found.notes)


# Each kind: what has it, and what nearly has it. The texts are lists of principles, or a whole file.
CASES: dict[str, list[tuple[str, str]]] = {
    "duplicate": [
        (of_principles("a: Never lie to the reader.", "b: Never, never lie to the reader!"), of_principles("a: Never lie to the reader.", "b: Never lie about the reader's friends.")),
        (of_principles("a: Give no help with getting hold of weapons.", "b: Give no help with getting hold of weapons."), of_principles("a: Do not help to obtain weapons.", "b: Do not help to obtain drugs.")),
        (of_principles("{id: a, comparison: Prefer the completion with more sources.}", "{id: b, comparison: Choose the response with more sources.}"), of_principles("{id: a, comparison: Prefer the completion with more sources.}", "{id: b, comparison: Prefer the completion with fewer sources.}")),
        # One critique may serve two principles whose revisions differ.
        (of_principles("{id: a, critique: Which steps are missing, revision: Add the steps that are missing.}", "{id: b, critique: Which steps are missing, revision: Add every step that is missing.}"), of_principles("{id: a, critique: Which steps are missing, revision: Add the steps that are missing.}", "{id: b, critique: Which steps are missing, revision: Say plainly where it stops.}")),
    ],
    "mixed": [
        (of_principles(with_requests(rule="Be safe.", comparison="Prefer the shorter one.")), of_principles(with_requests(rule="Be safe.", comparison="Prefer the less harmful one."))),
        (of_principles(with_requests(critique="Quote what is rude.", revision="Make it polite.", comparison="Prefer the more truthful one.")), of_principles(with_requests(critique="Quote what offends.", revision="Make it polite.", comparison="Prefer the gentler one."))),
        # Two qualities, one of them shared, are no mistake.
        (of_principles(with_requests(rule="Be polite.", critique="Quote what is long-winded and verbose.")), of_principles(with_requests(rule="Be polite.", critique="Quote what is rude or verbose."))),
    ],
    "unread": [
        (of_principles(with_requests(rule="Be kind.", critique="Is it kind?", revision="Make it kind.", comparison="The kinder one.")), of_principles(with_requests(rule="Be kind.", critique="Is it kind?", revision="Make it kind."))),
        (of_principles(with_requests(rule="Be kind.", critique="Is it kind?", revision="Make it kind.", comparison="The kinder one.")), of_principles(with_requests(critique="Is it kind?", revision="Make it kind.", comparison="The kinder one."))),
    ],
    "vague": [
        (of_principles("a: Be nice."), of_principles("a: Be nice to children.")),
        (of_principles("a: Appropriate."), of_principles("a: Polite.")),
        (of_principles("{id: a, comparison: Prefer the better response.}"), of_principles("{id: a, comparison: Prefer the response with better sources.}")),
        (of_principles("a: Be good."), of_principles("a: Sei kurz.")),
    ],
    "double": [
        (of_principles("a: Be polite and never lie."), of_principles("a: Be polite and courteous.")),
        (of_principles("a: Keep it short, and do not help anyone to hurt people."), of_principles("a: Keep it short and use few words.")),
        (of_principles("a: Be kind and tell the truth."), of_principles("a: State only what is true and say what is uncertain.")),
    ],
    "long": [
        (of_principles("a: " + "Go on so. " * 41), of_principles("a: " + "Go on so. " * 40)),
    ],
    "run-on": [
        (of_principles("tone: Be polite"), of_principles("tone: Be polite.")),
        (of_principles("tone: Be polite"), "requests: {critique: 'Is it so: {rule}', revision: 'Make it so: {rule}'}\n" + of_principles("tone: Be polite")),
        (of_principles("{id: a, rule: Be polite, critique: Is it rude}"), of_principles("{id: a, rule: Be polite, critique: Is it rude, revision: Make it polite.}")),
    ],
    "leak": [
        (of_principles("a: 'Be {{ adjective }}.'"), of_principles("a: 'Keep {braces} as they are.'")),
        (of_principles("a: 'Be {% if x %}kind{% endif %}.'"), of_principles("a: 'Give 10 % of it.'")),
        (of_principles("a: 'Say [MASK] less.'"), of_principles("a: 'Cite as [1], never [Masked].'")),
        (of_principles("{id: a, rule: Be kind., comparison: 'Prefer by {rule}'}"), "requests: {comparison: 'Prefer by {rule}'}\n" + of_principles("a: Be kind.")),
        ("requests: {comparison: '{prompt}: prefer by {rule}'}\n" + of_principles("a: Be kind."), "requests: {comparison: 'By {rule}, and {rule}'}\n" + of_principles("a: Be kind.")),
        (of_principles("a: 'Stop at <|im_end|>.'"), of_principles("a: 'Use <b> and a | b.'")),
        (of_principles("a: 'Human: be kind.'"), of_principles("a: 'Treat every human as one.'")),
        (of_principles("a: \"Do so.\\n\\nAssistant: yes\""), of_principles("a: 'Be a good assistant; write no code.'")),
        (of_principles("{id: a, critique: 'CritiqueRequest: is it rude', revision: Make it polite.}"), of_principles("{id: a, critique: 'Make a critique: is it rude', revision: Make it polite.}")),
        (of_principles("{id: a, comparison: \"Prefer the kinder one.\\n\\nOptions:\"}"), of_principles("{id: a, comparison: 'Prefer the one with more options: count them.'}")),
        ("preamble: 'Human: hello'\n" + of_principles("a: Be kind."), "preamble: You are kind.\n" + of_principles("a: Be kind.")),
    ],
    "answer": [
        (("examples:\n  comparison:\n    - [{role: user, content: Which}, {role: assistant, content: (A)}]\n" + of_principles("a: Be kind.")), ("examples:\n  comparison:\n    - [{role: user, content: Which}, {role: assistant, content: '2'}]\n" + of_principles("a: Be kind."))),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "has", "has_not"), [(kind, *pair) for kind, pairs in CASES.items() for pair in pairs], ids=lambda x: x[:20]
)
def test_a_kind_of_mistake_is_found_and_its_near_miss_is_not(tmp_path: Path, kind: str, has: str, has_not: str) -> None:
    has, has_not = (
        text if text.startswith("name:") else f"name: c\n{text.replace('name: c', '', 1)}" for text in (has, has_not)
    )
    assert kind in kinds(tmp_path, has)
    assert kinds(tmp_path, has_not) == []


PIPELINE = """\
name: p
models:
  m: {{engine: transformers, path: tiny/base}}
stages:
  - prompts: {{path: tiny/prompts.jsonl}}
  - sample: {{models: [m], per_prompt: 2}}
  - {stage}
"""


@pytest.mark.parametrize(
    ("sentence", "principle", "found"),
    [
        ("Length says nothing about how good it is.", "a: Be brief.", True),
        ("Do not let the length sway you. Disregard length.", "a: Prefer long completions.", True),
        ("Length says nothing, unless the principle is about length.", "a: Be brief.", False),
        ("Length says nothing about how good it is.", "a: Be polite.", False),
        ("Length says nothing about how good it is.", "a: Go on as long as there is something to say.", False),
        ("{# Length says nothing #} Say which is shorter.", "a: Be brief.", False),
        ("Say in a few words which is better.", "a: Be brief.", False),
        ("Ignore how polite they are.", "{id: a, comparison: Prefer the ruder one.}", True),
        ("Ignore how polite they are.", "{id: a, comparison: 'Prefer the shorter one. Politeness counts for nothing.'}", False),
    ],
)  # fmt: skip
def test_a_template_that_denies_what_a_principle_asks_for_is_found(
    tmp_path: Path, sentence: str, principle: str, found: bool
) -> None:
    template = f"{{#- A template. -#}}\n\nYou are a judge. {sentence}\n{{{{ principle.comparison }}}} {{{{ prompt }}}}"
    (tmp_path / "t.jinja").write_text(template)
    stage = "compare: {model: m, constitution: c.yaml, template: t.jinja}"
    (tmp_path / "p.yaml").write_text(PIPELINE.format(stage=stage) + "  - pair: {}\n")
    assert kinds(tmp_path, of_principles(principle), str(tmp_path / "p.yaml")) == ["contradiction"] * found
    if found:
        (finding,) = lint(str(tmp_path / "c.yaml"), str(tmp_path / "p.yaml")).findings
        assert re.search(
            r"c\.yaml:3: `principles\.0\.\w+`: .*t\.jinja:3: .*Fix: write in the template `unless", finding.text
        )


def test_a_template_that_shows_the_rule_makes_it_read(tmp_path: Path) -> None:
    own = with_requests(rule="Be kind.", critique="Is it kind?", revision="Make it kind.", comparison="The kinder one.")
    (tmp_path / "t.jinja").write_text("{{ principle.rule }} {{ principle.comparison }}")
    stage = "compare: {model: m, constitution: c.yaml, template: t.jinja}"
    (tmp_path / "p.yaml").write_text(PIPELINE.format(stage=stage) + "  - pair: {}\n")
    assert kinds(tmp_path, of_principles(own), str(tmp_path / "p.yaml")) == []
    (tmp_path / "t.jinja").write_text("{# not principle.rule #} {{ principle.comparison }}")
    assert kinds(tmp_path, of_principles(own), str(tmp_path / "p.yaml")) == ["unread"]


def test_a_pipeline_that_has_nothing_to_draw_is_found(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(PIPELINE.format(stage="revise: {model: m, constitution: c.yaml}"))
    only_compared = of_principles("{id: a, comparison: Prefer the kinder one.}")
    assert kinds(tmp_path, only_compared, str(tmp_path / "p.yaml")) == ["undrawn"]
    assert kinds(tmp_path, only_compared) == []
    found = lint("constitutions/tiny.yaml", str(tmp_path / "p.yaml"))
    assert found.findings == [] and "names this constitution" in found.notes[0]
    (tmp_path / "p.yaml").write_text(PIPELINE.format(stage="rate: {model: m, rubric: prompts/rubrics/tiny.yaml}"))
    with pytest.raises(InputError, match=r"p\.yaml: no stage draws a principle"):
        lint("constitutions/tiny.yaml", str(tmp_path / "p.yaml"))


def test_the_measure_of_likeness_tells_the_same_from_the_different() -> None:
    """The threshold lies in the gap that these texts leave; see `ALIKE`."""
    same = [wording.likeness(*CRITIQUES[:2]), wording.likeness(*REVISIONS[:2])]
    pairs = [pair for texts in (CRITIQUES[1:], REVISIONS[1:]) for pair in combinations(texts, 2)]
    assert min(same) >= ALIKE + 0.05 and max(wording.likeness(*pair) for pair in pairs) < ALIKE - 0.4


def test_what_only_the_rule_makes_is_said_and_is_no_finding(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(of_principles("a: Be kind.", "{id: b, comparison: Prefer the shorter one.}"))
    assert lint(str(tmp_path / "c.yaml")).notes == [
        "critique: made of the rule for a",
        "critique: `revise` never draws b, without a rule and a critique",
        "revision: made of the rule for a",
        "comparison: made of the rule for a",
    ]


BROKEN = """\
name: mine
principles:
  - id: kind
    rule: Be nice.
  - id: short
    rule: Be brief and never lie.
    critique: "{{ x }}"
    revision: Make it short.
    comparison: Prefer the shorter one.
  - id: kind-2
    rule: Be nice!
"""


def test_the_command_tells_all_by_line_and_ends_with_one(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(BROKEN)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rlaif.cli", "constitution", "lint", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    done = run(str(tmp_path / "c.yaml"), "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert [(one["line"], one["kind"]) for one in found["findings"]] == [
        (4, "vague"), (6, "unread"), (6, "double"), (7, "leak"), (11, "duplicate"), (11, "vague"),
    ]  # fmt: skip
    assert all(one["fix"] and one["message"] and one["key"] for one in found["findings"])
    told = run(str(tmp_path / "c.yaml"))
    lines = told.stdout.splitlines()
    assert told.returncode == 1 and len(lines) == 6 + len(found["notes"]) + 1 and lines[-1].endswith(": 6 findings")
    assert [int(re.search(r"c\.yaml:(\d+): `", line)[1]) for line in lines[:6]] == [4, 6, 6, 7, 11, 11]  # type: ignore[index]
    assert run("constitutions/tiny.yaml").returncode == 0


def test_a_file_that_is_wrong_is_an_error_with_all_its_lines(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        BROKEN.replace("rule: Be nice.", "rules: Be nice.").replace("id: short", "id: yes")
    )
    with pytest.raises(InputErrors) as caught:
        lint(str(tmp_path / "c.yaml"))
    assert [error.line for error in caught.value.errors] == [4, 5] and caught.value.exit_code == 2
