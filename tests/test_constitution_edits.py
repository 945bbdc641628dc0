"""What an edit of a constitution costs: the forecast, the calls then made, and what an undo finds again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from echo import Echo, write_prompts
from inside import rlaif
from serving import serve

from rlaif.audits import by_principle
from rlaif.engines.protocol import Reply, Request
from rlaif.pipeline import run as running
from rlaif.records import Candidate, Comparison, Completion, Message, Prompt, Row, Verdict, digest

PIPELINE = """\
name: edited
constitution: c.yaml
models:
  m: {{engine: openai, model: m, base_url: "{url}", concurrency: 4}}
stages:
  - prompts: {{path: prompts.jsonl, split: all}}
  - sample: {{models: [m], per_prompt: 2}}
  - revise: {{model: m, revisions: 2}}
  - compare: {{from: sample, model: m, verdicts: hard, reask: 0}}
  - pair: {{rule: compared}}
"""
CONSTITUTION = """\
name: mine
principles:
  - safety: Do no harm.
  - {id: tone, rule: Be kind., critique: 'Is it kind?', revision: Make it kind., comparison: Prefer the kinder one.}
  - length: Be brief.
"""
PROMPTS = 40


class Judging(Echo):
    """Prefers the completion whose digest is lower, whatever the order; else answers as Echo does."""

    def _reply(self, request: Request, index: int) -> Reply:
        reply = super()._reply(request, index)
        text = request.messages[-1].content
        if "You compare two completions" not in text:
            return reply
        shown = [text.split(f"<completion {n} ")[1].split("\n")[1] for n in (1, 2)]
        return reply.model_copy(update={"text": "1" if digest(shown[0]) < digest(shown[1]) else "2"})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Judging]]:
    """A project with one finished run, and the engine that made its calls."""
    folder, engine = tmp_path_factory.mktemp("edits"), Judging("m")
    write_prompts(folder, PROMPTS)
    (folder / "c.yaml").write_text(CONSTITUTION)
    with serve({"m": engine}) as url:
        (folder / "p.yaml").write_text(PIPELINE.format(url=url))
        done = rlaif(folder, "run", "p.yaml")
        assert done.code == 0, done.out + done.err
        yield folder, engine


def edited(project: tuple[Path, Judging], text: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The plan with an edited constitution, and the calls that a run then sends, by stage."""
    folder, engine = project
    (folder / "c.yaml").write_text(text)
    planned = rlaif(folder, "plan", "p.yaml", "--json")
    assert planned.code == 0, planned.err
    before, arrived = calls(folder), len(engine.asked)
    done = rlaif(folder, "run", "p.yaml")
    assert done.code == 0, done.out + done.err
    sent = Counter(stage_of(request) for request in engine.asked[arrived:])
    (folder / "c.yaml").write_text(CONSTITUTION)
    undone = rlaif(folder, "run", "p.yaml")  # the undo asks nothing, and makes what was before
    assert "0 calls made" in undone.out and calls(folder) == before
    return json.loads(planned.out), {stage: sent[stage] for stage in FILES}


def stage_of(request: Request) -> str:
    text = request.messages[-1].content
    return "compare" if "You compare two" in text else "revise" if "You improve completions" in text else "sample"


def calls(folder: Path) -> dict[str, set[str]]:
    return {stage: {call for row in rows(folder, stage) for call in row.calls()} for stage in FILES}


FILES = {"sample": "02-sample", "revise": "03-revise", "compare": "04-compare"}


def rows(folder: Path, stage: str) -> list[Row]:
    text = (folder / f"runs/edited/stages/{FILES[stage]}.jsonl").read_text()
    return [Row.model_validate_json(line) for line in text.splitlines()]


FREE = {
    "a comment": CONSTITUTION.replace("  - safety", "  # first of all\n  - safety"),
    "another order": CONSTITUTION.replace("  - safety: Do no harm.\n", "") + "  - safety: Do no harm.\n",
    "another name": CONSTITUTION.replace("name: mine", "name: other"),
    "a principle renamed with `was`": CONSTITUTION.replace("id: tone", "id: manners, was: tone"),
    "a rule that no request is made of": CONSTITUTION.replace("Be kind.,", "Be friendly.,"),
    "weights that are all doubled": CONSTITUTION.replace(
        "safety: Do no harm.", "{id: safety, rule: Do no harm., weight: 2}"
    )
    .replace("id: tone", "weight: 2, id: tone")
    .replace("length: Be brief.", "{id: length, rule: Be brief., weight: 2}"),
}


@pytest.mark.parametrize("edit", FREE)
def test_an_edit_that_changes_no_prompt_and_no_draw_is_free(edit: str, project: tuple[Path, Judging]) -> None:
    assert FREE[edit] != CONSTITUTION
    planned, made = edited(project, FREE[edit])
    assert made == {"sample": 0, "revise": 0, "compare": 0}
    assert all(need["calls"] == need["paid"] for need in planned["calls"].values())
    assert sum(change["calls"] + change["at_most"] for change in planned["changed"]) == 0


PAID = {
    "a comparison reworded": ("Prefer the kinder one.", "Prefer the friendlier one."),
    "a critique reworded": ("Is it kind?", "Is it friendly?"),
    "a revision reworded": ("Make it kind.", "Make it friendly."),
    "a rule reworded, of which all requests are made": ("Be brief.", "Be short."),
    "a principle added": ("  - length", "  - truth: Say what is so.\n  - length"),
    "a principle removed": ("  - length: Be brief.\n", ""),
    "a principle renamed": ("id: tone", "id: manners"),
    "another weight": ("id: tone", "weight: 4, id: tone"),
}


@pytest.mark.parametrize("edit", PAID)
def test_a_forecast_is_the_calls_that_are_made_or_bounds_them(edit: str, project: tuple[Path, Judging]) -> None:
    folder, _ = project
    old, new = PAID[edit]
    planned, made = edited(project, CONSTITUTION.replace(old, new))
    assert made["sample"] == 0 and made["revise"] + made["compare"] > 0
    due = {stage: [0, 0] for stage in made}
    for change in planned["changed"]:
        due[change["stage"]][0] += change["calls"]
        due[change["stage"]][1] += change["at_most"]
    # Comparisons depend on no words that are still to be written, nor do the critiques of first drafts.
    assert due["compare"] == [made["compare"], 0]
    exact, bound = due["revise"]
    assert exact <= made["revise"] <= exact + bound
    if edit == "a critique reworded":
        first = sum(
            step.principle == "tone" and step.number == 1 for row in rows(folder, "revise") for step in row.revisions
        )
        assert exact >= first > 5
    if edit == "a comparison reworded":
        asked = sum(c.principle == "tone" for row in rows(folder, "compare") for c in row.comparisons)
        assert planned["changed"] == [
            {"stage": "compare", "principle": "tone", "edit": "comparison of `tone` reworded", "calls": 2 * asked,
             "at_most": 0}
        ]  # fmt: skip


def test_the_share_that_is_drawn_again_is_the_share_that_an_added_principle_wins(project: tuple[Path, Judging]) -> None:
    """Of chains of two revisions, one principle of four has a place in half; three standard errors of 80 draws."""
    folder, _ = project
    (folder / "c.yaml").write_text(CONSTITUTION + "  - truth: Say what is so.\n")
    assert rlaif(folder, "run", "p.yaml").code == 0
    chains = [
        [step.principle for step in row.revisions if step.candidate == candidate]
        for row in rows(folder, "revise")
        for candidate in (0, 1)
    ]
    (folder / "c.yaml").write_text(CONSTITUTION)
    assert rlaif(folder, "run", "p.yaml").code == 0
    drawn = sum("truth" in chain for chain in chains) / len(chains)
    assert len(chains) == 2 * PROMPTS and abs(drawn - 0.5) < 3 * (0.25 / len(chains)) ** 0.5


def test_a_run_keeps_its_constitution_as_it_was_written(project: tuple[Path, Judging]) -> None:
    folder, _ = project
    for stage in ("revise", "compare"):
        assert (folder / f"runs/edited/inputs/{stage}.constitution.yaml").read_text() == CONSTITUTION
    assert (folder / "runs/edited/inputs/compare.template.jinja").is_file()


def test_the_report_of_principles_is_what_the_stage_files_hold(project: tuple[Path, Judging]) -> None:
    from rlaif.pipeline.browse import principles
    from rlaif.pipeline.folder import RunFolder

    folder, _ = project
    told = principles(RunFolder.existing(folder / "runs/edited"))
    lines = (folder / "runs/edited/stages/03-revise.jsonl").read_text().splitlines()
    steps = [(row, step) for row in map(json.loads, lines) for step in row["revisions"]]
    for principle in ("safety", "tone", "length"):
        own = [(row, step) for row, step in steps if step["principle"] == principle]
        found = told["revise"]["principles"][principle]
        assert found["drawn"] == len(own) > 5 and found["broken"] == 0
        changed = 0
        for row, step in own:
            earlier = [
                s for s in row["revisions"] if s["candidate"] == step["candidate"] and s["number"] < step["number"]
            ]
            draft = earlier[-1]["completion"] if earlier else row["candidates"][step["candidate"]]["completion"]
            changed += draft["text"] != step["completion"]["text"]
        assert found["changed"] == changed
    lines = (folder / "runs/edited/stages/04-compare.jsonl").read_text().splitlines()
    asked = [comparison for row in map(json.loads, lines) for comparison in row["comparisons"]]
    for principle, found in told["compare"]["principles"].items():
        own = [comparison for comparison in asked if comparison["principle"] == principle]
        assert found["asked"] == len(own)
        assert found["decided"] == sum(comparison["verdict"] in ("A", "B") for comparison in own) == len(own)


def test_a_preamble_is_the_cause_of_every_call_that_follows(project: tuple[Path, Judging]) -> None:
    planned, made = edited(project, CONSTITUTION.replace("principles:", "preamble: You are careful.\nprinciples:"))
    told = {(edit["stage"], edit["edit"]): edit["calls"] + edit["at_most"] for edit in planned["changed"]}
    assert told.keys() == {("revise", "the preamble changed"), ("compare", "the preamble changed")}
    assert told["compare", "the preamble changed"] == made["compare"] > 0
    assert told["revise", "the preamble changed"] >= made["revise"] > 0


def test_diff_tells_what_a_run_would_ask_also_after_its_file_is_gone(project: tuple[Path, Judging]) -> None:
    folder, engine = project
    (folder / "new.yaml").write_text(CONSTITUTION.replace("Prefer the kinder one.", "Prefer the gentler one."))
    (folder / "c.yaml").unlink()
    arrived = len(engine.asked)
    done = rlaif(folder, "constitution", "diff", "new.yaml", "--run", "runs/edited")
    told = json.loads(rlaif(folder, "constitution", "diff", "new.yaml", "--run", "runs/edited", "--json").out)
    (folder / "c.yaml").write_text(CONSTITUTION)
    assert done.code == 0, done.err
    asked = sum(c.principle == "tone" for row in rows(folder, "compare") for c in row.comparisons)
    assert "[-kinder-] {+gentler+}" in done.out and f"comparison of `tone` reworded: {2 * asked} calls" in done.out
    assert [change["told"] for change in told["changes"]] == ["comparison of `tone` reworded"]
    assert [due["calls"] for due in told["due"]] == [2 * asked] and len(engine.asked) == arrived
    both = rlaif(folder, "constitution", "diff", "c.yaml", "new.yaml")
    assert both.code == 0 and "calls due" not in both.out and "{+gentler+}" in both.out
    alone = rlaif(folder, "constitution", "diff", "c.yaml")
    assert alone.code == 2 and "give a second file, or --run RUN" in alone.err


def test_show_has_every_prompt_as_it_arrives(project: tuple[Path, Judging]) -> None:
    """What is shown with a row's own words in the places is what the server got."""
    folder, engine = project
    shown = json.loads(rlaif(folder, "constitution", "show", "c.yaml", "--for", "p.yaml", "--json").out)
    assert [(one["principle"], one["request"]) for one in shown if one["stage"] == "revise"] == [
        (principle, request) for principle in ("safety", "tone", "length") for request in ("critique", "revision")
    ]
    ends = {one["messages"][-1]["content"].split("# ")[-1] for one in shown if one["request"] != "revision"}
    arrived = [request.messages[-1].content for request in engine.asked if stage_of(request) != "sample"]
    assert len(ends) == 6 and all(any(text.endswith(end) for text in arrived) for end in ends)
    wrong = rlaif(folder, "constitution", "show", "c.yaml", "--principle", "lenght")
    assert wrong.code == 2 and "did you mean `length`?" in wrong.err
    text = rlaif(folder, "constitution", "report", "runs/edited").out
    assert "orders contradict" in " ".join(text.split()) and "safety" in text


def test_what_became_of_comparisons_is_counted_by_principle_and_an_editor_is_told() -> None:
    def order(a: int, b: int, verdict: str | None) -> dict[str, Any]:
        return {"a": a, "b": b, "verdict": verdict, "problem": None if verdict else "unreadable"}

    def compared(principle: str, forward: str | None, backward: str | None) -> Row:
        orders = [Verdict.model_validate(order(*at)) for at in ((0, 1, forward), (1, 0, backward))]
        texts = ("a longer one", "short")
        return Row(
            prompt=Prompt(messages=(Message(role="user", content="hi"),)),
            candidates=tuple(
                Candidate(sampler="s", completion=Completion(text=text, model="m", call=text)) for text in texts
            ),
            comparisons=(Comparison.merge(*orders, principle=principle, judge="j"),),
        )

    swings = [compared("safety", "A", "A")] * 19 + [compared("safety", "A", "B")]
    mixed = [compared("tone", "B", "A"), compared("tone", "A", "tie"), compared("tone", None, "A")]
    found = by_principle.of_comparisons([*swings, *mixed])
    keys = ("asked", "decided", "orders_contradict", "tied", "unparsed")
    assert [found["safety"][key] for key in keys] == [20, 1, 19, 0, 0]
    assert [found["tone"][key] for key in keys] == [3, 1, 0, 1, 1]
    assert (found["safety"]["longer"]["mean"], found["tone"]["longer"]["mean"]) == (1.0, 0.0)
    (said,) = by_principle.on_comparisons(found)
    assert said.startswith("`safety` decided 1 of 20 comparisons: reword it")


def test_a_constitution_that_is_edited_while_a_run_begins_is_refused(
    project: tuple[Path, Judging], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its copy would tell of requests that no model got."""
    folder, engine = project
    arrived, keeps = len(engine.asked), running.keep_inputs

    def edits(*given: Any) -> None:
        (folder / "c.yaml").write_text(CONSTITUTION.replace("Be brief.", "Be long."))
        keeps(*given)

    monkeypatch.setattr(running, "keep_inputs", edits)
    done = rlaif(folder, "run", "p.yaml")
    (folder / "c.yaml").write_text(CONSTITUTION)
    assert (
        done.code == 2 and "the constitution of 'revise' was changed while the run began. Fix: run it again" in done.err
    )
    assert len(engine.asked) == arrived
