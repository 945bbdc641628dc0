"""The judging stages beside rating and comparing, each through a run: rank, score, verify, person, elo; presets."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from biased import Biased
from conftest import make_random_model
from echo import RUBRIC, Echo, write_prompts
from serving import serve
from test_engine_transformers import make_reward_model
from test_run import Cli, manifest, run_cli  # noqa: F401 - the fixture

from rlaif.engines.protocol import Reply, Request
from rlaif.records import Preference, Row

NUMBERED = re.compile(r"^\[(\d+)\] (.*)$", re.MULTILINE)
FENCED = re.compile(r"<completion \d+ \w{12}>\n(.*?)\n</completion", re.DOTALL)


class Sorter(Echo):
    """Ranks by the number of words, in each form it is asked in; with `likes_first` the first one always wins.

    Of `hesitates` it says nothing of use until it is asked again, of `mumbles` never. One that hesitates says nothing
    of number 7 in one of the two orders.
    """

    def __init__(self, name: str, *, likes_first: bool = False, hesitates: str = "\0", mumbles: str = "\0") -> None:
        super().__init__(name)
        self.likes_first, self.hesitates, self.mumbles = likes_first, hesitates, mumbles

    def _reply(self, request: Request, index: int) -> Reply:
        text = request.messages[-1].content
        compact = text.startswith("rate : ")
        shown = [said for _, said in NUMBERED.findall(text)] if compact else FENCED.findall(text)
        if not shown:
            return super()._reply(request, index)
        words = [99 if self.likes_first and k == 0 else len(one.split()) for k, one in enumerate(shown)]
        one_order = shown[0] < shown[-1] and "number 7." in text and self.hesitates in "number 3."
        if one_order or self.mumbles in text or (self.hesitates in text and request.sampling.temperature == 0):
            said = "They are all fine."
        elif compact:
            said = "\n".join(f"[{k}] so many words rating {min(5, count)}" for k, count in enumerate(words, start=1))
        elif "Answer with one JSON object" in text:
            said = json.dumps(
                {str(k): {"rationale": "so many", "rating": min(5, n)} for k, n in enumerate(words, start=1)}
            )
        elif "Answer with one block" in text:
            said = "\n\n".join(f"[{k}]\nRationale: so many\nRating: {min(5, n)}" for k, n in enumerate(words, start=1))
        else:
            levels = sorted(set(words), reverse=True)
            tied = [" = ".join(str(k) for k, n in enumerate(words, start=1) if n == level) for level in levels]
            said = f"By their length.\n\nRanking: {' > '.join(tied)}"
        return super()._reply(request, index).model_copy(update={"text": said})


RANKED = """\
name: ranked
models:
  one: {{engine: openai, model: one, base_url: "{url}"}}
  two: {{engine: openai, model: two, base_url: "{url}"}}
  judge: {{engine: openai, model: judge, base_url: "{url}"}}
stages:
  - prompts: {{path: prompts.jsonl, split: all}}
  - sample: {{models: [one, two], per_prompt: 3, sampling: {{max_tokens: 32}}}}
  - rank: {{model: judge, constitution: constitutions/overall.yaml{how}}}
  - pair: {{rule: {rule}}}
"""


def ranked(folder: Path, cli: Cli, judge: Sorter, how: str = "", rule: str = "k-wise", prompts: int = 12) -> list[Row]:
    write_prompts(folder, prompts)
    with serve({"one": Echo("one"), "two": Echo("two"), "judge": judge}) as url:
        (folder / "ranked.yaml").write_text(RANKED.format(url=url, how=how, rule=rule))
        planned = json.loads(cli("plan", "ranked.yaml", "--json")[1])["calls"]["judge"]["calls"]
        code, out, err = cli("run", "ranked.yaml")
        assert code == 0, out + err
        sent = [r for r in judge.asked if "random words" not in r.messages[-1].content]
        again = cli("run", "ranked.yaml")
        assert again[0] == 0 and "0 calls made" in again[1]
        retried = sum(request.sampling.temperature > 0 for request in sent)
        assert len(sent) - retried <= planned == prompts * (1 if "orders: one" in how else 2)
    return rows(folder / "runs/ranked/stages/03-rank.jsonl")


def rows(path: Path) -> list[Row]:
    return [Row.model_validate_json(line) for line in path.read_text().splitlines()]


def preferences(path: Path) -> list[Preference]:
    return [Preference.model_validate_json(line) for line in path.read_text().splitlines()]


def stage(folder: Path, name: str) -> dict[str, Any]:
    (found,) = [one for one in manifest(folder)["stages"] if one["name"] == name]
    return dict(found)


def length(row: Row, index: int, cap: int = 99) -> int:
    return min(cap, len(row.candidates[index].completion.text.split()))


def by_words(row: Row, cap: int = 99) -> tuple[tuple[int, ...], ...]:
    """The candidates by their number of words, those with as many together."""
    levels = sorted({length(row, i, cap) for i in range(len(row.candidates))}, reverse=True)
    everyone = range(len(row.candidates))
    return tuple(tuple(i for i in everyone if length(row, i, cap) == level) for level in levels)


# ---------------------------------------------------------------- ranking


def test_candidates_are_ranked_in_an_order_and_its_reverse(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    found = ranked(tmp_path, run_cli, Sorter("judge"))
    ties = 0
    for row in found:
        assert [ranking.order for ranking in row.rankings] == [by_words(row)] * 2
        forward, backward = (ranking.shown for ranking in row.rankings)
        assert sorted(forward) == list(range(6))
        texts = [[row.candidates[i].completion.text for i in shown] for shown in (forward, backward)]
        assert list(dict.fromkeys(texts[0])) == list(dict.fromkeys(texts[1][::-1]))
        assert all(ranking.principle == "overall" and ranking.calls for ranking in row.rankings)
        ties += any(len(tied) > 1 for tied in by_words(row))
    assert ties >= 6  # and none of them is a disagreement, though the judge named the tied ones in another order
    facts = stage(tmp_path / "runs/ranked", "rank")
    assert (facts["rankings"], facts["unparsed"], facts["orders_disagree"]) == (24, 0, 0)
    made = preferences(tmp_path / "runs/ranked/stages/04-pair.jsonl")
    assert all(len(p.chosen.completion.text.split()) > len(p.rejected.completion.text.split()) for p in made)
    assert len(made) == stage(tmp_path / "runs/ranked", "pair")["preferences"] > 12 * 6


def test_whoever_stands_first_gains_nothing_in_the_mean_of_both_orders(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    found = ranked(tmp_path, run_cli, Sorter("judge", likes_first=True))
    for row in found:
        assert all(ranking.order is not None and set(ranking.order[0]) == {ranking.shown[0]} | {
            i for i, c in enumerate(row.candidates)
            if c.completion.text == row.candidates[ranking.shown[0]].completion.text
        } for ranking in row.rankings)  # fmt: skip
    assert stage(tmp_path / "runs/ranked", "rank")["orders_disagree"] == 12


@pytest.mark.parametrize("answers", ["lines", "json"])
def test_the_default_template_of_a_ranking_by_ratings_asks_for_ratings(
    answers: str,
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    found = ranked(tmp_path, run_cli, Sorter("judge"), f", answers: {answers}")
    assert all(ranking.order == by_words(row, 5) for row in found for ranking in row.rankings)
    assert stage(tmp_path / "runs/ranked", "rank")["unparsed"] == 0


@pytest.mark.parametrize("orders", ["both", "one"])
def test_ratings_whose_order_counts(orders: str, tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    how = f", template: prompts/rank-compact.jinja, answers: lines, orders: {orders}"
    found = ranked(tmp_path, run_cli, Sorter("judge"), how)
    for row in found:
        assert [ranking.order for ranking in row.rankings] == [by_words(row, 5)] * (2 if orders == "both" else 1)


def test_an_unreadable_ranking_is_asked_again_and_then_counted(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    judge = Sorter("judge", hesitates="number 3.", mumbles="number 5.")
    found = ranked(tmp_path, run_cli, judge, ", reask: 2")
    by_prompt = {row.prompt.text: row for row in found}
    hesitant, mute = (by_prompt[f"Say something about number {k}."] for k in (3, 5))
    assert all(ranking.order == by_words(hesitant) for ranking in hesitant.rankings)
    assert all(
        ranking.order is None and ranking.raw == "They are all fine." and ranking.problem for ranking in mute.rankings
    )
    asked_of = [sum(f"number {k}." in r.messages[-1].content for r in judge.asked) for k in (3, 4, 5)]
    assert asked_of == [4, 2, 6]
    facts = stage(tmp_path / "runs/ranked", "rank")
    assert (facts["rankings"], facts["unparsed"], facts["orders_disagree"]) == (24, 3, 0)
    assert sum(ranking.order is None for ranking in by_prompt["Say something about number 7."].rankings) == 1
    assert stage(tmp_path / "runs/ranked", "pair")["dropped"] == {"unparsed": 2}


# ---------------------------------------------------------------- people, strengths

COMPARED = """\
name: people
models:
{models}
stages:
  - prompts: {{path: prompts.jsonl, split: all}}
  - sample: {{models: [{names}], sampling: {{max_tokens: 32}}}}
{stages}
"""


def people(
    folder: Path, cli: Cli, stages: str, names: str = "one, two", prompts: int = 10
) -> Callable[..., tuple[int, str, str]]:
    """A project whose candidates are sampled already; gives what runs it again."""
    write_prompts(folder, prompts)
    listed = names.split(", ")
    with serve({name: Echo(name) for name in listed}) as url:
        models = "\n".join(f'  {name}: {{engine: openai, model: {name}, base_url: "{url}"}}' for name in listed)
        (folder / "people.yaml").write_text(COMPARED.format(models=models, names=names, stages=""))
        code, out, err = cli("run", "people.yaml")
        assert code == 0, out + err
    (folder / "people.yaml").write_text(COMPARED.format(models=models, names=names, stages=stages))
    return lambda: cli("run", "people.yaml")  # from the store: nobody is there any more


def write_labels(folder: Path, labels: list[dict[str, Any]]) -> None:
    (folder / "labels.jsonl").write_text("".join(json.dumps(label) + "\n" for label in labels))


def sampled(folder: Path) -> list[Row]:
    return rows(folder / "runs/people/stages/02-sample.jsonl")


def pair_label(row: Row, verdict: str, person: str, *, a: int = 0, b: int = 1, by: str = "call") -> dict[str, Any]:
    first, second = (getattr(row.candidates[i].completion, by) for i in (a, b))
    return {"prompt_id": row.prompt.id, "a": first, "b": second, "verdict": verdict, "person": person}


def test_peoples_labels_stand_where_a_judges_verdicts_would(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    again = people(tmp_path, run_cli, "  - person: {labels: labels.jsonl}\n  - pair: {preset: zephyr}")
    found = sampled(tmp_path)
    labels = [
        pair_label(found[0], "a", "kim"),
        pair_label(found[1], "b", "kim", by="text"),
        pair_label(found[2], "a", "kim", a=1, b=0),  # named the other way round: the second is preferred
        *(pair_label(found[3], verdict, who) for verdict, who in (("a", "kim"), ("b", "lee"), ("a", "sam"))),
        *(pair_label(found[4], verdict, who) for verdict, who in (("a", "kim"), ("b", "lee"))),
        *(pair_label(found[5], verdict, who, a=a, b=1 - a) for verdict, who, a in (("a", "kim", 0), ("b", "lee", 1))),
        pair_label(found[6], "tie", "kim"),
        {**pair_label(found[7], "a", "kim"), "prompt_id": "another prompt"},
        {**pair_label(found[7], "a", "kim"), "b": "a text that nobody wrote"},
    ]
    write_labels(tmp_path, labels)
    code, out, err = again()
    assert code == 0, out + err
    judged = rows(tmp_path / "runs/people/stages/03-person.jsonl")
    said = [row.comparisons[0].verdict if row.comparisons else None for row in judged]
    assert said == ["A", "B", "B", "A", "tie", "A", "tie", None, None, None]
    assert [len(row.comparisons[0].jury) for row in judged[3:6]] == [3, 2, 2]
    assert judged[3].comparisons[0].judge == "kim + lee + sam" and judged[0].comparisons[0].judge == "kim"
    assert "person: 2 of 13 labels name no candidate here" in out
    facts = stage(tmp_path / "runs/people", "person")
    assert (facts["comparisons"], facts["ratings"]) == (7, 0)
    pairs = stage(tmp_path / "runs/people", "pair")
    assert pairs["preferences"] == 5 and pairs["dropped"] == {"no comparison": 3, "tie": 2}
    made = preferences(tmp_path / "runs/people/stages/04-pair.jsonl")
    chosen = [judged[k].candidates[i].completion.call for k, i in ((0, 0), (1, 1), (2, 1), (3, 0), (5, 0))]
    assert [p.chosen.completion.call for p in made] == chosen


def test_peoples_ratings_are_their_median(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    again = people(tmp_path, run_cli, "  - person: {labels: labels.jsonl}\n  - pair: {rule: best-worst}", prompts=3)
    found = sampled(tmp_path)

    def rating(row: Row, i: int, value: int, who: str) -> dict[str, Any]:
        call = row.candidates[i].completion.call
        return {"prompt_id": row.prompt.id, "candidate": call, "aspect": "helpful", "rating": value, "person": who}

    first = [rating(found[0], 0, value, who) for value, who in ((5, "kim"), (1, "lee"), (4, "sam"))]
    write_labels(
        tmp_path, [*first, rating(found[0], 1, 3, "kim"), rating(found[1], 0, 2, "kim"), rating(found[1], 1, 2, "lee")]
    )
    code, out, err = again()
    assert code == 0, out + err
    judged = rows(tmp_path / "runs/people/stages/03-person.jsonl")
    assert [(r.candidate, r.value) for r in judged[0].ratings] == [(0, 4), (1, 3)]
    assert judged[0].ratings[0].raw == "kim 5, lee 1, sam 4"
    (made,) = preferences(tmp_path / "runs/people/stages/04-pair.jsonl")
    assert (made.score_chosen, made.score_rejected) == (4.0, 3.0)
    assert stage(tmp_path / "runs/people", "pair")["dropped"] == {"tie": 1, "unparsed": 1}


ELO = "  - person: {labels: labels.jsonl}\n  - elo: {name: strengths}"


def test_strengths_of_samplers_come_in_order_with_intervals(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    """Wins of 3 to 1 are 400 log10(3) = 191 points, whoever else plays."""
    again = people(tmp_path, run_cli, ELO, names="one, two, three", prompts=40)
    labels = []
    for number, row in enumerate(sampled(tmp_path)):
        usual = number % 4 != 0
        labels += [pair_label(row, "a" if usual else "b", "kim", a=a, b=b) for a, b in ((0, 1), (1, 2))]
    write_labels(tmp_path, labels)
    code, out, err = again()
    assert code == 0, out + err
    found = json.loads((tmp_path / "runs/people/report/strengths.json").read_text())
    assert list(found["elo"]) == ["one", "two", "three"] and found["games"] == 80
    points = [found["elo"][name]["elo"] for name in ("one", "two", "three")]
    apart = 400 * math.log10(3)
    assert points == pytest.approx([1000 + apart, 1000, 1000 - apart], abs=1)
    for about in found["elo"].values():
        assert about["low"] <= about["elo"] <= about["high"]
    assert found["elo"]["one"]["low"] > 1000 > found["elo"]["three"]["high"]
    assert stage(tmp_path / "runs/people", "strengths")["elo"] == found["elo"]
    assert "one 1,191" in out


@pytest.mark.parametrize(
    ("verdicts", "problem"),
    [
        ([("a", 0, 1)], "'one' never lost to any other"),
        ([("tie", 0, 1), ("a", 1, 2)], "'one', 'two' never lost to any other"),
        (
            [("a", 0, 1), ("b", 0, 1), ("a", 2, 3), ("b", 2, 3)],
            r"never compared with each other: 'four', 'three' \| 'one', 'two'",
        ),
        ([], "no games"),
    ],
)
def test_strengths_that_cannot_be_told_are_an_error(
    verdicts: list[tuple[str, int, int]],
    problem: str,
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    again = people(tmp_path, run_cli, ELO, names="one, two, three, four", prompts=4)
    labels = [pair_label(row, verdict, "kim", a=a, b=b) for row in sampled(tmp_path) for verdict, a, b in verdicts]
    if not labels:
        labels = [{"prompt_id": "x", "a": "y", "b": "z", "verdict": "a"}]
    if len(verdicts) == 4:  # people who agree on nothing: a vote each, on prompts in turn
        labels = [label for k, label in enumerate(labels) if (k // 4 + k) % 2]
    write_labels(tmp_path, labels)
    code, out, err = again()
    assert code == 1 and re.search(problem, err), err
    assert "prior: 1" in err and err.startswith("error: ") and err.count("\n") == 1
    if verdicts:
        text = (tmp_path / "people.yaml").read_text()
        (tmp_path / "people.yaml").write_text(text.replace("{name: strengths}", "{name: strengths, prior: 1}"))
        assert again()[0] == 0


# ---------------------------------------------------------------- scores

SCORED = """\
name: scored
models:
  policy: {engine: transformers, path: policy, dtype: float32}
  reference: {engine: transformers, path: reference, dtype: float32}
  reward: {engine: transformers, path: reward, dtype: float32}
stages:
  - prompts: {path: prompts.jsonl, split: all}
  - sample: {models: [policy], per_prompt: 3, sampling: {max_tokens: 12}}
  - score: {name: implied, policy: policy, reference: reference, beta: 0.3}
  - pair: {name: by-implied, rule: best-worst, from: implied}
  - score: {name: rewarded, from: sample, reward: reward}
  - pair: {name: by-reward, rule: best-worst, from: rewarded}
"""


def test_scores_are_a_heads_and_what_a_policy_implies(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    import torch
    import transformers

    make_random_model(tmp_path / "policy", seed=0)
    make_random_model(tmp_path / "reference", seed=1)
    make_reward_model(tmp_path / "reward", tmp_path / "policy")
    write_prompts(tmp_path, 4)
    (tmp_path / "scored.yaml").write_text(SCORED)
    planned = json.loads(run_cli("plan", "scored.yaml", "--json")[1])
    assert [one["state"] for one in planned["stages"] if one["kind"] == "score"] == ["to score"] * 2
    code, out, err = run_cli("run", "scored.yaml")
    assert code == 1 and "every completion was cut" in out, out + err  # as a model of random weights writes
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "policy")
    causal = {
        name: transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        for name in ("policy", "reference")
    }
    head = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()

    def spelled(row: Row, i: int) -> tuple[Any, int]:
        """The tokens of the whole chat, and where the completion begins; its end token is the last."""
        asked = [{"role": m.role, "content": m.content} for m in row.prompt.messages]
        said = [*asked, {"role": "assistant", "content": row.candidates[i].completion.text}]
        start = len(tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"])
        return tokenizer.apply_chat_template(said, return_tensors="pt")["input_ids"], start

    def total(model: Any, ids: Any, start: int) -> float:
        with torch.inference_mode():
            logs = model(ids).logits[0, start - 1 : -1].double().log_softmax(-1)
        return float(logs.gather(1, ids[0, start:, None]).sum())

    checked = 0
    for row in rows(tmp_path / "runs/scored/stages/03-implied.jsonl"):
        for score in row.scores:
            ids, start = spelled(row, score.candidate)
            by_hand = 0.3 * (total(causal["policy"], ids, start) - total(causal["reference"], ids, start))
            assert score.value == pytest.approx(by_hand, abs=2e-3)
            assert score.judge == "policy against reference"
            checked += 1
    for row in rows(tmp_path / "runs/scored/stages/05-rewarded.jsonl"):
        for score in row.scores:
            ids, _ = spelled(row, score.candidate)
            with torch.inference_mode():
                assert score.value == pytest.approx(
                    float(head(ids, attention_mask=torch.ones_like(ids)).logits), abs=2e-3
                )
            assert score.judge == "reward"
            checked += 1
    assert checked == 2 * 4 * 3
    for place, name in ((4, "by-implied"), (6, "by-reward")):
        source = rows(tmp_path / f"runs/scored/stages/{place - 1:02d}-{'implied' if place == 4 else 'rewarded'}.jsonl")
        known = {row.prompt.id: [score.value for score in row.scores] for row in source}
        for preference in preferences(tmp_path / f"runs/scored/stages/{place:02d}-{name}.jsonl"):
            assert preference.score_chosen == pytest.approx(max(known[preference.prompt.id]))
    assert stage(tmp_path / "runs/scored", "implied")["scores"] == 12
    code, out, err = run_cli("show", "runs/scored", "1", "--stage", "rewarded")
    assert code == 0 and len(re.findall(r"score -?\d", out)) == 3, err  # each once


# ---------------------------------------------------------------- verifiers


def verifying(folder: Path, run_cli: Cli, stages: str, nothing: bool = False) -> None:  # noqa: F811
    """Run the stages; `nothing` of what they check passes."""
    prompts: list[dict[str, Any]] = [{"prompt": f"Say something about number {k}."} for k in range(8)]
    prompts[0]["checks"] = [{"length": {"max_words": 3}}]
    prompts[1]["checks"] = [{"regex": {"pattern": "river|stone"}}]
    prompts[2]["reference"] = "river"
    prompts[3] |= {
        "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
        "kwargs": [{}, {"keywords": ["stone"], "n": None}],
    }
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    with serve({name: Echo(name) for name in ("one", "two")}) as url:
        models = "\n".join(f'  {name}: {{engine: openai, model: {name}, base_url: "{url}"}}' for name in ("one", "two"))
        text = COMPARED.format(models=models, names="one, two", stages=stages)
        (folder / "people.yaml").write_text(text.replace("[one, two],", "[one, two], per_prompt: 2,"))
        code, out, err = run_cli("run", "people.yaml")
        tied = "passing" in stages and "pair" in stages  # what passes every check scores alike
    assert code == int(tied or nothing), out + err


CHECKS = "checks: [{length: {min_words: 4}}, {length: {max_words: 7}}]"


@pytest.mark.parametrize("keep", ["all", "passing"])
def test_what_code_can_check_scores_and_filters(keep: str, tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    paired = "\n  - pair: {rule: best-worst}" if keep == "all" else ""  # all that pass are alike
    verifying(tmp_path, run_cli, f"  - verify: {{{CHECKS}, keep: {keep}}}{paired}")
    before, after = sampled(tmp_path), rows(tmp_path / "runs/people/stages/03-verify.jsonl")
    passed = failed = 0
    for asked, row in zip(before, after, strict=True):
        own = row.prompt.text.endswith("number 0."), row.prompt.text.endswith("number 1.")
        expected = []
        for candidate in asked.candidates:
            words = candidate.completion.text.split()
            values = [float(len(words) >= 4), float(len(words) <= 7)]
            values += (
                [float(len(words) <= 3)] if own[0] else [float(bool({"river", "stone"} & set(words)))] if own[1] else []
            )
            if row.prompt.text.endswith("number 3."):
                values += [1.0, float("stone" in words)]
            if keep == "all" or set(values) == {1.0}:
                expected.append((candidate.completion.call, values))
        assert [candidate.completion.call for candidate in row.candidates] == [call for call, _ in expected]
        for i, (_, values) in enumerate(expected):
            assert [score.value for score in row.scores if score.candidate == i] == values
            passed += values.count(1.0)
            failed += values.count(0.0)
        aspects = {score.aspect for score in row.scores}
        more = {"number 0.": {"3 length"}, "number 1.": {"3 regex"}, "number 3.": {"3 ifeval", "4 ifeval"}}
        assert not aspects or aspects == {"1 length", "2 length"} | more.get(row.prompt.text[-9:], set())
    facts = stage(tmp_path / "runs/people", "verify")
    assert (facts["passed"], facts["failed_checks"], facts["not_checkable"]) == (passed, failed, 0)
    assert passed > 10 and (failed > 5 if keep == "all" else failed == 0)
    assert facts["candidates"] == sum(len(row.candidates) for row in after)
    if keep == "all":
        assert stage(tmp_path / "runs/people", "pair")["preferences"] > 0
    else:
        assert facts["left_out"]["failed a check"] == sum(len(row.candidates) for row in before) - facts["candidates"]


def test_what_cannot_be_checked_is_no_number(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    verifying(tmp_path, run_cli, "  - verify: {checks: [{exact: {}}], keep: passing}", nothing=True)
    after = rows(tmp_path / "runs/people/stages/03-verify.jsonl")
    assert all(not row.candidates for row in after if not row.prompt.reference)
    assert {row.prompt.reference for row in after if row.prompt.text.endswith("number 2.")} == {("river",)}
    verifying(tmp_path, run_cli, "  - verify: {checks: [{exact: {}}]}", nothing=True)
    after = rows(tmp_path / "runs/people/stages/03-verify.jsonl")
    without = [score for row in after if not row.prompt.reference for score in row.scores if score.aspect == "1 exact"]
    assert len(without) == 7 * 4 and all(score.value is None and score.problem for score in without)
    assert stage(tmp_path / "runs/people", "verify")["not_checkable"] == 7 * 4


# ---------------------------------------------------------------- presets

PRESETS = {
    "zephyr": "zephyr", "argilla": "random-lower", "ultrarm": "all", "instructgpt": "k-wise",
    "self-rewarding": "best-worst", "rlaif": "compared",
}  # fmt: skip
JUDGED = "  - {judge}\n  - pair: {{{how}}}"


def paired(preset: str, how: str, folder: Path, run_cli: Cli) -> tuple[int, str]:  # noqa: F811
    write_prompts(folder, 6)
    (folder / "rubric.yaml").write_text(RUBRIC)
    judge = "rate: {model: judge, rubric: rubric.yaml}"
    if preset == "rlaif":
        judge = "compare: {model: judge, constitution: constitutions/overall.yaml}"
    engines = {
        "one": Echo("one"),
        "two": Echo("two"),
        "judge": Biased("judge", place=1.0) if preset == "rlaif" else Echo("judge"),
    }
    with serve(engines) as url:
        models = "\n".join(f'  {name}: {{engine: openai, model: {name}, base_url: "{url}"}}' for name in engines)
        text = COMPARED.format(models=models, names="one, two", stages=JUDGED.format(judge=judge, how=how))
        (folder / "people.yaml").write_text(text.replace("[one, two],", "[one, two], per_prompt: 2,"))
        code, out, err = run_cli("run", "people.yaml")
    return code, err


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_its_rule_by_another_name(preset: str, tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    none = preset == "rlaif"  # its judge takes whichever it reads first: every comparison is a tie
    assert paired(preset, f"preset: {preset}", tmp_path, run_cli) == (int(none), "")
    facts = stage(tmp_path / "runs/people", "pair")
    assert facts["rule"] == PRESETS[preset]
    made = (tmp_path / "runs/people/stages/04-pair.jsonl").read_text()
    assert bool(made) is not none
    text = (tmp_path / "people.yaml").read_text().replace(f"preset: {preset}", f"rule: {PRESETS[preset]}")
    (tmp_path / "people.yaml").write_text(text)
    assert run_cli("run", "people.yaml")[0] == int(none)  # from the store: nobody is there any more
    assert (tmp_path / "runs/people/stages/04-pair.jsonl").read_text() == made


def test_what_stands_beside_a_preset_wins(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    assert paired("zephyr", "preset: zephyr, rule: all", tmp_path, run_cli)[0] == 0
    assert stage(tmp_path / "runs/people", "pair")["rule"] == "all"


@pytest.mark.parametrize("written", ["zefyr", "[zephyr]", "{a: b}", "3", '""'])
def test_a_preset_that_is_none_is_refused(written: str, tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    code, err = paired("zephyr", f"preset: {written}", tmp_path, run_cli)
    assert code == 2 and "`stages.3.pair.preset`" in err and "'self-rewarding'" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        (
            [{"lenght": {"max_words": 3}}],
            r"2\.verify\.checks`: the prompt's own checks: `lenght`: .*of the prompt \w+ \('Say",
        ),
        ([{"length": {}}], r"the prompt's own checks: .*give at least one bound"),
        ("short", r"prompts\.jsonl:1: .*`checks` is no list of checks"),
        (["short"], r"prompts\.jsonl:1: .*`checks` is no list of checks"),
    ],
)
def test_a_prompts_checks_are_read_before_anything_is_sampled(
    checks: Any,
    expected: str,
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    rows_ = [{"prompt": f"Say something about number {k}.", "checks": checks} for k in range(3)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_))
    models = '  one: {engine: openai, model: one, base_url: "http://127.0.0.1:9/v1"}'
    (tmp_path / "people.yaml").write_text(COMPARED.format(models=models, names="one", stages="  - verify: {}"))
    code, out, err = run_cli("run", "people.yaml")
    assert code == 2 and re.search(expected, err) and err.count("\n") == 1, err
    assert not (tmp_path / "runs").exists()
