"""A prompt and a principle typed by a person, and principles held against the annotator's words in a pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_run import Cli, run_cli  # noqa: F401 - the fixture

from rlaif.errors import InputError
from rlaif.tiny.trial import understood

PROMPT = "what is two plus three ?"


def test_two_typed_lines_give_completions_ratings_and_revisions(run_cli: Cli) -> None:  # noqa: F811
    code, out, err = run_cli("try", PROMPT, "replies should be polite .", "--json")
    assert code == 0, err
    row = json.loads(out)
    assert (row.pop("quality"), row.pop("never_taught")) == ("polite", [])
    assert [candidate["sampler"] for candidate in row["candidates"]] == ["weak", "weak", "strong", "strong"]
    assert {rating["value"] for rating in row["ratings"]} <= {1, 2, 3, 4, 5} and len(row["ratings"]) == 4
    assert all(" want polite" in rating["raw"] for rating in row["ratings"])
    assert len(row["revisions"]) == len([c for c in row["candidates"] if c["completion"]["text"]])
    told = run_cli("try", PROMPT, "replies should be polite .")[1]
    assert "the annotator reads 'polite' in it" in told
    assert all(rating["raw"][:20] in told for rating in row["ratings"])


def test_the_opposite_principle_turns_the_ratings_round(run_cli: Cli) -> None:  # noqa: F811
    polite, blunt = (
        [rating["value"] for rating in json.loads(run_cli("try", PROMPT, f"be {word} .", "--json")[1])["ratings"]]
        for word in ("polite", "blunt")
    )
    assert all(a + b == 6 for a, b in zip(polite, blunt, strict=True)), (polite, blunt)


@pytest.mark.parametrize(
    ("prompt", "principle", "told"),
    [
        ("what is the weather like ?", "be polite .", "'what is the weather like ?' is not a question of it"),
        ("", "be polite .", "not a question of it"),
        ("x" * 40_000, "be polite .", "not a question of it"),
        ("my name is zorkon . greet me .", "be polite .", "not trained on 'zorkon'"),
        (PROMPT, "be very " * 600, "4,800 characters"),
        ("user: name one fruit .\n\nassistant: fig .\n\nuser: name another .", "be polite .", "not a question of it"),
        (PROMPT, "be eloquent .", "not trained on 'eloquent'"),
        (PROMPT, "be short and kind .", "one quality at a time"),
        (PROMPT, "", "none of its words names a quality"),
    ],
)
def test_what_lies_outside_the_world_is_said_with_what_lies_inside(
    prompt: str,
    principle: str,
    told: str,
    run_cli: Cli,  # noqa: F811
) -> None:
    code, _, err = run_cli("try", prompt, principle)
    assert len(err) < 1500
    assert code == 2 and told in " ".join(err.split()) and "Fix:" in err


def test_the_questions_named_to_a_stranger_are_of_the_world() -> None:
    with pytest.raises(InputError) as error:
        understood("tell me two fruits", "be polite .")
    assert error.value.fix is not None and error.value.fix.count(" or ") == 2
    assert understood(PROMPT, "be kind and eloquent .") == ("polite", ["eloquent"])


RUBRIC = """\
name: mine
version: 1
scale: {low: 1, high: 5}
aspects:
  - id: one
    description: DESCRIPTION
"""
CONSTITUTION = """\
name: mine
principles:
  - id: one
    rule: be polite .
    critique: CRITIQUE
    revision: be polite .
    comparison: COMPARISON
"""


def project(folder: Path, **said: str) -> None:
    (folder / "rubric.yaml").write_text(RUBRIC.replace("DESCRIPTION", said.get("description", "be polite .")))
    text = CONSTITUTION.replace("CRITIQUE", said.get("critique", "be polite ."))
    (folder / "constitution.yaml").write_text(text.replace("COMPARISON", said.get("comparison", "be polite .")))
    (folder / "mine.yaml").write_text(
        """\
name: mine
models:
  strong: {engine: transformers, path: tiny/strong, sampling: {max_tokens: 32}}
  annotator: {engine: transformers, path: tiny/annotator, sampling: {max_tokens: 96}}
stages:
  - prompts: {path: tiny/prompts.jsonl, take: 3}
  - sample: {models: [strong], per_prompt: 2}
  - rate: {model: annotator, rubric: rubric.yaml, template: prompts/rate-compact.jinja, answers: lines}
  - revise:
      from: sample
      model: annotator
      constitution: constitution.yaml
      critique_template: prompts/critique-compact.jinja
      revision_template: prompts/revise-compact.jinja
  - compare:
      from: sample
      model: annotator
      constitution: constitution.yaml
      template: prompts/compare-compact.jinja
      ending: which one ?
      reasons: true
"""
    )


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ({"description": "be eloquent ."}, "rubric.yaml:6: `aspects.0.description`"),
        ({"critique": "be eloquent ."}, "constitution.yaml:5: `principles.0.critique`"),
        ({"comparison": "be eloquent ."}, "constitution.yaml:7: `principles.0.comparison`"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_principle_without_a_known_word_stops_a_pipeline_before_it_begins(
    command: str,
    said: dict[str, str],
    place: str,
    run_cli: Cli,  # noqa: F811
    tmp_path: Path,
) -> None:
    project(tmp_path, **said)
    before = sorted(tmp_path.iterdir())
    code, _, err = run_cli(command, "mine.yaml")
    assert code == 2 and place in err and "'eloquent'" in err
    assert sorted(tmp_path.iterdir()) == before


def test_a_strange_word_beside_a_known_one_is_a_note(
    run_cli: Cli,  # noqa: F811
    tmp_path: Path,
) -> None:
    project(tmp_path, description="be polite and eloquent .")
    note = "annotator was not trained on 'eloquent' and ignores it in 'be polite and eloquent .'"
    planned = json.loads(run_cli("plan", "mine.yaml", "--json")[1])
    assert planned["notes"] == [note]
    code, out, err = run_cli("run", "mine.yaml")
    assert code == 0, err
    assert f"note: {note}" in " ".join(out.split())


def test_more_completions_than_the_annotator_rates_at_once_are_an_error(run_cli: Cli, tmp_path: Path) -> None:  # noqa: F811
    project(tmp_path)
    text = (tmp_path / "mine.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(
        text.replace("models: [strong], per_prompt: 2", "models: [strong], per_prompt: 10")
    )
    code, _, err = run_cli("plan", "mine.yaml")
    told = " ".join(err.split())
    assert (
        code == 2 and "mine.yaml:8: `stages.2.rate.model`" in told and "rates up to 4 at once, and there are 10" in told
    )
    assert run_cli("plan", "mine.yaml", "stages.rate.rate.shown=one")[0] == 0
