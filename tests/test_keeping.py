"""SFT data without pairs: which completions are kept, what is told of the others, and what a pipeline makes at all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from echo import RUBRIC, Echo, write_prompts
from inside import Done, rlaif
from serving import serve
from test_engine_transformers import make_reward_model

from rlaif.config import Keep
from rlaif.engines.protocol import Reply, Request
from rlaif.generate.keeping import ALL, choose
from rlaif.records import Candidate, Completion, FinishReason, Kept, Message, Prompt, Row, split_of
from rlaif.train.examples import of_kept

PROMPTS = 20
HELD_OUT = 5  # of them, by their digests


class Writer(Echo):
    """Echo that is cut at number 3."""

    def _reply(self, request: Request, index: int) -> Reply:
        reply, cut = super()._reply(request, index), "number 3." in request.messages[-1].content
        return reply.model_copy(update={"finish_reason": "length" if cut else "stop"})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    judge = Echo("judge", unreadable="number 6.")
    with serve({"one": Writer("one"), "two": Writer("two"), "judge": judge}) as base_url:
        yield base_url


SAMPLE = "sample: {models: [one, {model: two, system: Be brief.}], per_prompt: 2, sampling: {max_tokens: 32}}"
RATE = "rate: {model: judge, rubric: rubric.yaml, reask: 0}"
BRIEF = "verify: {checks: [{length: {max_words: 5}}], keep: passing}"
COMPARE = "compare: {model: judge, constitution: constitutions/overall.yaml}"


def keep(stage: str, keep: str) -> str:
    return f"{stage[:-1]}, keep: {keep}}}"


def write(folder: Path, url: str, *stages: str, models: str = "") -> None:
    """The pipeline `kept` of these stages, on prompts of its own where no stage reads a file."""
    write_prompts(folder, PROMPTS)
    (folder / "rubric.yaml").write_text(RUBRIC)
    servers = "".join(f'  {m}: {{engine: openai, model: {m}, base_url: "{url}"}}\n' for m in ("one", "two", "judge"))
    first = [] if "path:" in stages[0] else ["prompts: {path: prompts.jsonl}"]
    lines = "".join(f"  - {stage}\n" for stage in (*first, *stages))
    (folder / "kept.yaml").write_text(f"name: kept\nmodels:\n{servers}{models}stages:\n{lines}")


def run(folder: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Run the pipeline; its stages by name, with what was printed."""
    done = rlaif(folder, "run", "kept.yaml", *arguments)
    assert done.code == code, done
    stages = {stage["name"]: stage for stage in json.loads((folder / "runs/kept/manifest.json").read_text())["stages"]}
    return stages | {"printed": done.out + done.err}


def data(folder: Path, name: str) -> list[dict[str, Any]]:
    import pyarrow.parquet

    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(folder / "runs/kept/dataset" / name / "data").to_pylist()
    return rows


def rows(folder: Path, file: str) -> list[Row]:
    return [Row.model_validate_json(line) for line in (folder / "runs/kept" / file).read_text().splitlines()]


def plan(folder: Path) -> Done:
    return rlaif(folder, "plan", "kept.yaml")


def makes(folder: Path) -> dict[str, list[str]]:
    planned = json.loads(rlaif(folder, "plan", "kept.yaml", "--json").out)
    return {stage["stage"]: stage["makes"] for stage in planned["stages"] if stage["makes"]}


# ---------------------------------------------------------------- the choice

Text = str | tuple[str, FinishReason]


def row_of(*texts: Text) -> Row:
    told: list[tuple[str, FinishReason]] = [(text, "stop") if isinstance(text, str) else text for text in texts]
    return Row(
        prompt=Prompt(messages=(Message(role="user", content="Say something."),)),
        candidates=tuple(
            Candidate(sampler="m", completion=Completion(text=text, model="m", call=f"call {text}", finish_reason=why))
            for text, why in told
        ),
    )


CHOICES: dict[str, tuple[tuple[Text, ...], dict[int, float] | None, Keep, list[int], dict[str, int], str | None]] = {
    "all": (("a", "b"), None, ALL, [0, 1], {}, None),
    "nobody": ((), None, ALL, [], {}, "no candidate left"),
    "empty": (("a", " \n"), None, ALL, [0], {"empty completion": 1}, None),
    "cut": (("a", ("b", "length")), None, ALL, [0], {"cut at max_tokens": 1}, None),
    "filtered": ((("b", "content_filter"),), None, ALL, [], {"content filter": 1}, "content filter"),
    "filtered away": (("a", ("", "content_filter")), None, ALL, [0], {"content filter": 1}, None),
    "cut and best": ((("a", "length"), "b"), {0: 5, 1: 2}, Keep(best=1), [1], {"cut at max_tokens": 1}, None),
    "same": (("a", "a", "b"), None, ALL, [0, 2], {"identical text": 1}, None),
    "unparsed": (("a", "b"), {1: 3}, Keep(best=2), [1], {"unparsed": 1}, None),
    "below": (("a", "b"), {0: 3.5, 1: 4}, Keep(at_least=4), [1], {"below 4": 1}, None),
    "all below": (("a", "b"), {0: 3, 1: 1}, Keep(best=1, at_least=4), [], {"below 4": 2}, "below 4"),
    "the furthest": (
        (("a", "length"), "b"), {1: 1}, Keep(at_least=4), [], {"cut at max_tokens": 1, "below 4": 1}, "below 4",
    ),
    "best": (("a", "b", "c"), {0: 1, 1: 5, 2: 3}, Keep(best=1), [1], {"not the best": 2}, None),
    "best two": (("a", "b", "c"), {0: 1, 1: 5, 2: 3}, Keep(best=2), [1, 2], {"not among the best 2": 1}, None),
    "one text, one of the best": (
        ("a", "a", "b"), {0: 5, 1: 5, 2: 3}, Keep(best=2), [0, 2], {"identical text": 1}, None,
    ),
    "below zero": (("a", "b"), {0: -3, 1: -1}, Keep(best=1, at_least=-2), [1], {"below -2": 1}, None),
}  # fmt: skip


@pytest.mark.parametrize(("texts", "scores", "keep", "kept", "left_out", "reason"), CHOICES.values(), ids=CHOICES)
def test_what_is_kept_and_why_the_others_are_not(
    texts: tuple[Text, ...],
    scores: dict[int, float] | None,
    keep: Keep,
    kept: list[int],
    left_out: dict[str, int],
    reason: str | None,
) -> None:
    choice = choose(row_of(*texts), scores=scores, keep=keep)
    assert ([*choice.kept], dict(choice.left_out), choice.reason) == (kept, left_out, reason)


def test_of_equal_scores_none_wins_by_its_place() -> None:
    texts = [f"text {number}" for number in range(8)]
    level = dict.fromkeys(range(8), 3.0)
    chosen = set()
    for shift in range(8):
        turned = texts[shift:] + texts[:shift]
        (index,) = choose(row_of(*turned), scores=level, keep=Keep(best=1)).kept
        chosen.add(turned[index])
    assert len(chosen) == 1 and chosen != {texts[0]}


@pytest.mark.parametrize(("roles", "turns"), [("u", "all"), ("su", "all"), ("uau", "last"), ("suau", "last")])
def test_only_the_completion_is_learnt(roles: str, turns: str) -> None:
    names = {"s": "system", "u": "user", "a": "assistant"}
    prompt = Prompt(messages=tuple(Message.model_validate({"role": names[r], "content": r}) for r in roles))
    (example,) = of_kept([Kept(prompt=prompt, candidate=row_of("Yes.").candidates[0])])
    assert example.turns == turns and [m.content for m in example.messages] == [*roles, "Yes."]


# ---------------------------------------------------------------- what pipelines end in


def check_counts(stage: dict[str, Any], candidates: int) -> None:
    assert stage["in"] == stage["out"] + sum(stage["dropped"].values())
    assert candidates == stage["demonstrations"] + sum(stage["left_out"].values())


def test_samples_become_sft_data(tmp_path: Path, url: str) -> None:
    write(tmp_path, url, SAMPLE)
    assert makes(tmp_path) == {"sample": ["dataset/sample-sft"]}
    stage = run(tmp_path)["sample"]
    check_counts(stage, 4 * (PROMPTS - HELD_OUT))
    assert stage["dropped"] == {"cut at max_tokens": 1}
    made = data(tmp_path, "sample-sft")
    assert len(made) == stage["demonstrations"] > 40
    written = {c.completion.call: c for row in rows(tmp_path, "stages/02-sample.jsonl") for c in row.candidates}
    for row in made:
        user, assistant = row["messages"]  # without the sampler's own system message
        assert user["role"] == "user" and assistant["content"] == written[row["call"]].completion.text
        assert row["model"] == written[row["call"]].sampler and row["score"] is None and row["split"] != "held-out"
    card = (tmp_path / "runs/kept/dataset/sample-sft/README.md").read_text()
    assert "- prompts dropped: 1\n  - cut at max_tokens: 1\n- completions left out: " in card
    status = " ".join(rlaif(tmp_path, "status", "runs/kept").out.split())
    assert "1 cut at max_tokens" in status and f"{len(made)} demonstrations 4 completions: cut at max_tokens" in status


def test_it_is_written_once_and_exported_by_its_shape(tmp_path: Path, url: str) -> None:
    write(tmp_path, url, SAMPLE)
    run(tmp_path)
    file = tmp_path / "runs/kept/dataset/sample-sft/data/train-00000-of-00001.parquet"
    first = file.read_bytes()
    assert "0 calls made" in run(tmp_path)["printed"] and file.read_bytes() == first
    done = rlaif(tmp_path, "export", "runs/kept", "--format", "sft", "--to", "sft.jsonl")
    assert done.code == 0 and len((tmp_path / "sft.jsonl").read_text().splitlines()) == len(
        data(tmp_path, "sample-sft")
    )
    assert "a conversation" in rlaif(tmp_path, "look", "sft.jsonl").out


def test_conversations_keep_their_system_message_and_all_turns(tmp_path: Path, url: str) -> None:
    write(tmp_path, url, "prompts: {path: turns.jsonl, split: all}", SAMPLE)
    turns = [("system", "Be kind."), ("user", "Hi."), ("assistant", "Hello."), ("user", "Who wrote Faust?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (tmp_path / "turns.jsonl").write_text(json.dumps({"messages": messages, "id": "f1"}))
    run(tmp_path)
    for row in data(tmp_path, "sample-sft"):
        assert row["messages"][:-1] == messages and row["messages"][-1]["role"] == "assistant" and row["id"] == "f1"


def test_what_checks_pass_becomes_sft_data(tmp_path: Path, url: str) -> None:
    write(tmp_path, url, SAMPLE, BRIEF)
    assert makes(tmp_path) == {"verify": ["dataset/verify-sft"]}
    stage = run(tmp_path)["verify"]
    check_counts(stage, 4 * (PROMPTS - HELD_OUT))
    assert stage["left_out"]["failed a check"] > 10
    made = data(tmp_path, "verify-sft")
    assert made and all(len(row["messages"][-1]["content"].split()) <= 5 for row in made)
    write(tmp_path, url, SAMPLE, BRIEF.replace("passing", "all"))  # who is in the row is another matter
    again = run(tmp_path)["verify"]
    assert data(tmp_path, "verify-sft") == made and again["left_out"] == stage["left_out"]


def test_the_best_by_a_judge_becomes_sft_data(tmp_path: Path, url: str) -> None:
    write(tmp_path, url, SAMPLE, keep(RATE, "{best: 1, at_least: 4}"))
    assert makes(tmp_path) == {"rate": ["dataset/rate-sft", "dataset/rate-rated"]}
    stage = run(tmp_path)["rate"]
    check_counts(stage, 4 * (PROMPTS - HELD_OUT))
    assert {"below 4", "not the best", "unparsed", "cut at max_tokens"} <= stage["left_out"].keys()
    assert stage["dropped"]["unparsed"] == 1
    kept = {row["prompt_id"]: row for row in data(tmp_path, "rate-sft")}
    assert len(kept) == len(data(tmp_path, "rate-sft")) == stage["out"] == stage["demonstrations"]
    for row in rows(tmp_path, "stages/03-rate.jsonl"):
        scores = {c.completion.call: row.score(i, {"words": 1, "detail": 1}) for i, c in enumerate(row.candidates)}
        if (of_prompt := kept.get(row.prompt.id)) is not None:
            assert of_prompt["score"] == scores[of_prompt["call"]] == max(filter(None, scores.values())) >= 4
    assert split_of(next(iter(kept))) != "held-out"


def test_a_judge_chooses_among_those_that_pass(tmp_path: Path, url: str) -> None:
    write(tmp_path, url, SAMPLE, BRIEF, keep(RATE, "{best: 1}"))
    stages = run(tmp_path)
    assert stages["verify"]["left_out"]["failed a check"] > 10
    made = data(tmp_path, "rate-sft")
    assert made and all(len(row["messages"][-1]["content"].split()) <= 5 for row in made)
    lost = stages["rate"]["dropped"]
    assert lost["no candidate left"] >= 1 and len(made) == stages["rate"]["out"] == 15 - sum(lost.values())
    write(tmp_path, url, SAMPLE, BRIEF, RATE, "pair: {}")
    assert run(tmp_path)["pair"]["preferences"] >= 3
    write(tmp_path, url, SAMPLE, BRIEF, "rank: {model: judge, constitution: constitutions/overall.yaml}", "pair: {}")
    assert plan(tmp_path).code == 0


def test_the_best_by_a_reward_model_becomes_sft_data(tmp_path: Path, url: str, random_model: Path) -> None:
    make_reward_model(tmp_path / "rm", random_model)
    score = "score: {reward: rm, keep: {best: 1}}"
    write(tmp_path, url, SAMPLE, score, models="  rm: {engine: transformers, path: rm}\n")
    assert makes(tmp_path) == {"score": ["dataset/score-sft"]}
    check_counts(run(tmp_path)["score"], 4 * (PROMPTS - HELD_OUT))
    kept = {row["prompt_id"]: row for row in data(tmp_path, "score-sft")}
    assert len(kept) == PROMPTS - HELD_OUT - 1
    for row in rows(tmp_path, "stages/03-score.jsonl"):
        if row.prompt.id in kept:
            assert kept[row.prompt.id]["score"] == max(s.value for s in row.scores if s.value is not None)
    (dropped,) = json.loads(rlaif(tmp_path, "show", "runs/kept", "--dropped", "--json").out)
    assert (dropped["stage"], dropped["why"]) == ("score", ["cut at max_tokens"])


def test_what_a_judge_reads_is_no_sft_data_of_its_own(tmp_path: Path, url: str) -> None:
    write(tmp_path, url, SAMPLE, BRIEF, RATE, "pair: {}")
    assert makes(tmp_path) == {"pair": [f"dataset/{shape}" for shape in ("ultrafeedback", "preference", "sft")]}
    stages = run(tmp_path)
    assert all("demonstrations" not in stage for stage in (stages["sample"], stages["verify"], stages["rate"]))


def test_nothing_but_cut_completions_is_told(tmp_path: Path, url: str) -> None:
    write(tmp_path, url, "prompts: {path: long.jsonl, split: all}", SAMPLE)
    (tmp_path / "long.jsonl").write_text('{"prompt": "Say something about number 3."}')
    done = rlaif(tmp_path, "run", "kept.yaml")
    assert done.code == 1 and "sample: every completion was cut at `max_tokens`: raise it" in done.out + done.err
    assert not (tmp_path / "runs/kept/dataset/sample-sft").exists()


def test_what_was_not_checked_has_not_passed(tmp_path: Path, url: str) -> None:
    write(tmp_path, url, "prompts: {path: mixed.jsonl, split: all}", SAMPLE, "verify: {}")
    prompts = [{"prompt": "Say something."}, {"prompt": "Say more.", "checks": [{"length": {"max_words": 99}}]}]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    assert run(tmp_path)["verify"]["dropped"] == {"nothing to check": 1}
    assert {row["messages"][0]["content"] for row in data(tmp_path, "verify-sft")} == {"Say more."}


def test_a_run_of_which_nothing_is_kept_is_not_done(tmp_path: Path, url: str) -> None:
    write(tmp_path, url, SAMPLE, "verify: {checks: [{length: {min_words: 500}}]}")
    done = rlaif(tmp_path, "run", "kept.yaml")
    dropped = f"{PROMPTS - HELD_OUT - 1} failed a check, 1 cut at max_tokens"
    reason = f"verify: no SFT data was made of {PROMPTS - HELD_OUT} rows ({dropped})"
    assert done.code == 1 and reason in " ".join((done.out + done.err).split())
    assert json.loads((tmp_path / "runs/kept/manifest.json").read_text())["reasons"] == [reason]


# ---------------------------------------------------------------- trained on in the same pipeline

BASE = "  base: {{engine: transformers, path: {}}}\n"
SFT = "train: {sft: {base: base, name: mine, batch_size: 8, max_length: 256}}"


def test_a_trainer_learns_what_was_kept(tmp_path: Path, url: str, random_model: Path) -> None:
    prompts = "prompts: {path: prompts.jsonl, split: all}"
    write(tmp_path, url, prompts, SAMPLE, keep(RATE, "{best: 1}"), SFT, models=BASE.format(random_model))
    stages = run(tmp_path)
    kept, trained = data(tmp_path, "rate-sft"), stages["mine"]
    assert trained["from"] == "rate" and trained["in"] == len(kept)
    held_out = sum(row["split"] == "held-out" for row in kept)
    assert trained["dropped"]["held-out"] == held_out >= 3 and trained["out"] == len(kept) - held_out
    assert (tmp_path / "runs/kept/models/mine/model.safetensors").is_file()
    assert "unchanged, not trained again" in run(tmp_path)["printed"]


DEMONSTRATIONS = "data: {path: demonstrations.jsonl, name: demos}"
SOURCES = {  # the stages before a trainer without `data`, and the one that it reads
    "samples": ([SAMPLE], "sample"),
    "checked": ([SAMPLE, BRIEF], "verify"),
    "best": ([SAMPLE, keep(RATE, "{best: 1}")], "rate"),
    "nearest": ([DEMONSTRATIONS, SAMPLE], "sample"),
    "judged, for pairs": ([DEMONSTRATIONS, SAMPLE, RATE, "pair: {}"], "demos"),
    "checked and judged, for pairs": ([DEMONSTRATIONS, SAMPLE, BRIEF, COMPARE, "pair: {}"], "demos"),
}


@pytest.mark.parametrize(("before", "source"), SOURCES.values(), ids=SOURCES)
def test_a_trainer_reads_the_nearest_stage_that_makes_sft_data(
    tmp_path: Path, url: str, random_model: Path, before: list[str], source: str
) -> None:
    (tmp_path / "demonstrations.jsonl").write_text('{"prompt": "Hello there.", "completion": "Hello."}')
    prompts = "prompts: {path: prompts.jsonl}"
    write(tmp_path, url, prompts, *before, SFT, models=BASE.format(random_model))
    done = rlaif(tmp_path, "plan", "kept.yaml", "--json")
    assert done.code == 0, done.err
    assert next(stage["from"] for stage in json.loads(done.out)["stages"] if stage["kind"] == "train") == source


def test_judged_samples_are_trained_on_where_they_are_named(tmp_path: Path, url: str, random_model: Path) -> None:
    named = SFT.replace("name: mine", "name: mine, data: sample")
    write(tmp_path, url, SAMPLE, RATE, "pair: {}", named, models=BASE.format(random_model))
    assert makes(tmp_path)["sample"] == ["dataset/sample-sft"]


# ---------------------------------------------------------------- ratings of single completions


def test_ratings_are_a_data_set(tmp_path: Path, url: str) -> None:
    write(tmp_path, url, SAMPLE, RATE)
    assert makes(tmp_path) == {"rate": ["dataset/rate-rated"]}
    run(tmp_path)
    made = data(tmp_path, "rate-rated")
    assert len(made) == 4 * (PROMPTS - HELD_OUT)
    for row in made:
        (user,), (assistant,) = row["prompt"], row["completion"]
        words = min(5, len(assistant["content"].split()))
        problems = {rating["problem"] for rating in row["ratings"]}
        assert [rating["aspect"] for rating in row["ratings"]] == ["words", "detail"]
        if problems == {None}:
            assert row["score"] == words and {rating["rating"] for rating in row["ratings"]} == {words}
            assert {rating["rationale"] for rating in row["ratings"]} == {"by length"} and row["model"] in (
                "one",
                "two",
            )
        else:
            assert row["score"] is None and "number 6." in user["content"]
    assert sum(row["score"] is None for row in made) == 4 and {row["finish_reason"] for row in made} == {
        "stop",
        "length",
    }
    done = rlaif(tmp_path, "export", "runs/kept", "--format", "rated", "--to", "rated.jsonl")
    assert done.code == 0, done.err
    told = rlaif(tmp_path, "look", "rated.jsonl").out
    assert "one completion with a judgement" in told and "56 scores" in told  # without those that have none


def test_a_file_of_single_completions_is_rated(tmp_path: Path, url: str) -> None:
    write(tmp_path, url, "data: {path: single.jsonl, held_out: keep}", RATE)
    lines = [{"prompt": f"Count to {n}.", "completion": " ".join(map(str, range(n)))} for n in (2, 3, 9)]
    (tmp_path / "single.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(tmp_path)
    assert [row["score"] for row in data(tmp_path, "rate-rated")] == [2, 3, 5]
    write(tmp_path, url, "data: {path: single.jsonl, held_out: keep}", RATE, "pair: {}")
    assert rlaif(tmp_path, "run", "kept.yaml").code == 1  # as `rlaif judge` makes it: no pair, and yet the ratings
    done = rlaif(tmp_path, "export", "runs/kept", "--format", "rated", "--to", "single-rated.jsonl")
    assert done.code == 0, done.err
    exported = [json.loads(line) for line in (tmp_path / "single-rated.jsonl").read_text().splitlines()]
    assert [row["score"] for row in exported] == [2, 3, 5] and exported[0]["ratings"][0]["rationale"] == "by length"


# ---------------------------------------------------------------- said before anything is paid for

NOTHING = "the pipeline ends here, and makes no data, no model and no report. Fix: "
PAIRED = "put a `pair` stage after it"
UNSAID = r"no stage before it says which completions are SFT data\. Fix: "
KEEP = r"give 'rate' a `keep`, such as `keep: \{best: 1\}`"
TIED = "the stage 'verify' keeps only completions that pass every check, so all of them tie"
NAMED = SFT.replace("name: mine", "name: mine, data: rate")
WRONG = {
    "prompts alone": (
        ["prompts: {path: prompts.jsonl}"],
        rf"kept\.yaml:7: `stages\.0\.prompts`: {NOTHING}put a `sample` stage after it",
    ),
    "data alone": (
        ["data: {path: hello.jsonl}"],
        rf"`stages\.0\.data`: {NOTHING}put a stage after it that trains on it, as `train`, or judges it, as `rate`",
    ),
    "comparisons": ([SAMPLE, COMPARE], rf"`stages\.2\.compare`: {NOTHING}{PAIRED}"),
    "rankings": ([SAMPLE, COMPARE.replace("compare", "rank")], rf"`stages\.2\.rank`: {NOTHING}{PAIRED}"),
    "pairs of survivors": (
        [SAMPLE, BRIEF, "pair: {}"],
        rf"`stages\.3\.pair`: {TIED}\. Fix: judge its completions with `rate` or `compare` in between",
    ),
    "no rating so high": (
        [SAMPLE, keep(RATE, "{at_least: 6}")],
        r"`stages\.2\.rate\.keep\.at_least`: no completion is rated 6: the rubric's scale is 1 to 5",
    ),
    "keeps nothing": (
        [SAMPLE, keep(RATE, "{best: 0}")],
        r"`stages\.2\.rate\.keep\.best`: expected a number greater than 0",
    ),
    "keeps what": (
        [SAMPLE, keep(RATE, "best")],
        r"`stages\.2\.rate\.keep`: say which completions to keep, such as `keep: \{best: 1, at_least: 4\}`",
    ),
    "keeps in no way": ([SAMPLE, keep(RATE, "{}")], r"`stages\.2\.rate\.keep`: say which completions to keep"),
    "no number": (
        [SAMPLE, keep(RATE, "{at_least: .nan}")],
        r"`stages\.2\.rate\.keep\.at_least`: expected a finite number",
    ),
    "trained on what": ([SAMPLE, RATE, SFT], rf"`stages\.3\.train\.sft\.data`: {UNSAID}{KEEP}"),
    "trained on this": (
        [SAMPLE, RATE, NAMED],
        rf"`stages\.3\.train\.sft\.data`: the stage 'rate' does not say .* are SFT data\. Fix: {KEEP}",
    ),
    "trained on judged samples": ([SAMPLE, COMPARE, SFT], rf"{UNSAID}name one, such as `data: sample`"),
    "trained on nothing": (
        ["prompts: {path: prompts.jsonl}", SFT],
        r"no earlier stage of kind data or sample or .* Fix: put a `sample` stage before it",
    ),
}


@pytest.mark.parametrize(("stages", "said"), WRONG.values(), ids=WRONG)
def test_a_pipeline_that_makes_nothing_of_use_is_an_error(
    tmp_path: Path, url: str, random_model: Path, stages: list[str], said: str
) -> None:
    pair = {"prompt": "Hi.", "completion": "Hello."}
    (tmp_path / "hello.jsonl").write_text(json.dumps(pair))
    write(tmp_path, url, *stages, models=BASE.format(random_model) if any("train" in s for s in stages) else "")
    for command in ("plan", "run"):
        done = rlaif(tmp_path, command, "kept.yaml")
        assert done.code == 2 and re.search(said, done.err), done.err
    assert not (tmp_path / "runs").exists()


def test_strengths_are_a_report(tmp_path: Path, url: str) -> None:
    write(tmp_path, url, SAMPLE, COMPARE, "elo: {}")
    assert makes(tmp_path) == {"elo": ["report/elo.json"]}


def test_the_saved_pipeline_keeps_the_same(tmp_path: Path, url: str) -> None:
    write(tmp_path, url, SAMPLE, keep(RATE, "{best: 1}"))
    run(tmp_path)
    saved = yaml.safe_load((tmp_path / "runs/kept/pipeline.yaml").read_text())
    assert saved["stages"][-1]["rate"]["keep"] == {"best": 1}
    assert rlaif(tmp_path, "plan", "runs/kept/pipeline.yaml").code == 0
