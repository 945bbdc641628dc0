"""The measure, worked by hand on models whose words, truth and log-probabilities are known."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from echo import Echo
from test_records import ask

from rlaif.config import BestOf, MeasureStage, Rater, SamplingSettings
from rlaif.engines.asking import Ask, Asking
from rlaif.engines.protocol import Logprobs, Reply, Request
from rlaif.engines.scheduler import Scheduler
from rlaif.errors import EngineError
from rlaif.judges.rating import Judge
from rlaif.judges.verifiers import Check
from rlaif.measures import checked, measure
from rlaif.measures.collecting import Gold, Setting
from rlaif.records import Message, Prompt
from rlaif.resources import find
from rlaif.rubric import read_rubric
from rlaif.store import CallStore
from rlaif.templates import Template
from rlaif.train.rewards import by_model, on_loop

PROMPTS: list[Prompt] = [ask(f"prompt {i}") for i in range(8)]


@dataclass
class Truth:
    total: float
    kind: str = "plain"
    refused: bool = False
    complied: bool = False

    @property
    def parts(self) -> Mapping[str, float]:
        return {"content": self.total}


class Says(Echo):
    """Says the same words to every prompt, each token at the same log-probability; may be silent on one prompt."""

    def __init__(self, name: str, words: str, logprob: float, silent_on: str = "") -> None:
        super().__init__(name)
        self.words, self.logprob, self.silent_on = words, logprob, silent_on

    async def sample(self, requests: Sequence[Request]) -> list[Any]:
        reply = Reply(text=self.words, finish_reason="stop")
        return [
            [EngineError("no", cause="test") if self.silent_on == request.messages[-1].content else reply]
            for request in requests
        ]

    async def logprobs(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[Logprobs]:
        return [Logprobs((self.logprob,) * len(text.split()), None) for _, text in items]


def asked(stage: MeasureStage, *engines: Echo, gold: Gold, failing: int = 0, **options: Any) -> dict[str, Any]:
    """The figures, after checking how many prompts failed."""
    by_name = {engine.name: engine for engine in engines}
    store = CallStore(Path(":memory:"))
    asking = Asking(Scheduler(store, by_name, {}), dict.fromkeys(by_name, SamplingSettings()), seed=0, stage="measure")
    setting = Setting(stage, PROMPTS, asking, by_name, gold=gold, **options)
    figures = asyncio.run(measure(setting))
    store.close()
    assert len(setting.failures) == failing
    return figures


def measured(
    *engines: Echo, temperature: float = 1.0, rate: bool = False, failing: int = 0, **options: Any
) -> dict[str, Any]:
    rater = Rater(model="judge", rubric="r", template="t", answers="lines", reask=0)
    names = tuple(engine.name for engine in engines if engine.name != "judge")
    stage = MeasureStage(
        models=names, judge="gold", sampling=SamplingSettings(temperature=temperature), rate=rater if rate else None
    )
    judge = None
    if rate:
        rubric = read_rubric("prompts/rubrics/tiny.yaml")
        one = rubric.model_copy(update={"aspects": rubric.aspects[:1]})
        judge = Judge(one, Template.read(find("prompts/rate-compact.jinja")))
    gold = options.pop("gold", lambda prompt, text: Truth(len(text.split()) / 10))
    return asked(stage, *engines, gold=gold, failing=failing, parents={"new": "old"}, judge=judge, **options)


def by_name(figures: dict[str, Any]) -> dict[str, Any]:
    return {model["name"]: model for model in figures["models"]}


def test_gold_length_and_kl_by_hand() -> None:
    models = by_name(measured(Says("old", "a b", -1.5), Says("new", "a b c d", -0.5)))
    assert models["old"]["gold"]["mean"] == pytest.approx(0.2) and models["new"]["gold"]["mean"] == pytest.approx(0.4)
    assert models["new"]["gold_difference"]["mean"] == pytest.approx(0.2)  # against the first model
    assert models["new"]["length"]["mean"] == 4 and models["new"]["length"]["n"] == 8
    # four tokens, each one nat likelier under the new model: KL 4 against its parent; the first has no parent
    assert models["new"]["kl"]["mean"] == pytest.approx(4.0) and models["new"]["kl"]["against"] == "old"
    assert "kl" not in models["old"]


LONG = Check.model_validate({"length": {"min_words": 3}})
SAYS_C = {"regex": {"pattern": "c"}}


def test_checks_passed_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of two words passes neither check; one of four passes both, and on the last prompt, silent, none."""
    own = [prompt.model_copy(update={"checks": (SAYS_C,)}) for prompt in PROMPTS[:4]] + PROMPTS[4:]
    monkeypatch.setattr(sys.modules[__name__], "PROMPTS", own)
    new = Says("new", "a b c d", -0.5, silent_on=PROMPTS[-1].text)
    models = by_name(measured(Says("old", "a b", -1.5), new, checks=(LONG,), failing=1))
    assert (models["old"]["checks"]["mean"], models["old"]["checks"]["n"]) == (0.0, 8)
    assert (models["new"]["checks"]["mean"], models["new"]["checks"]["n"]) == (1.0, 7)
    assert models["new"]["all_checks"]["mean"] == 1.0 and models["new"]["checks_difference"]["mean"] == 1.0
    half = by_name(
        measured(Says("old", "a b c", -1.0), checks=(LONG, Check.model_validate({"regex": {"pattern": "d"}})))
    )
    assert half["old"]["checks"]["mean"] == pytest.approx((4 * 2 / 3 + 4 / 2) / 8)  # two of three, and one of two
    assert half["old"]["all_checks"]["mean"] == 0.0
    monkeypatch.setattr(sys.modules[__name__], "PROMPTS", PROMPTS[4:])
    assert "checks" not in by_name(measured(Says("old", "a b", -1.5)))["old"]


def test_a_check_that_does_not_apply_is_counted() -> None:
    number = Check.model_validate({"numeric": {}})  # these prompts have no reference
    figures = by_name(measured(Says("old", "it is 4", -1.5), checks=(number,)))["old"]
    assert (figures["checks"], figures["all_checks"], figures["unchecked"]) == (None, None, 8)


def test_checks_passed_by_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of its own for the prompts of each source, of which this model passes those of one."""
    of = {"short": {"length": {"max_words": 2}}, "long": {"length": {"min_words": 3}}}
    sourced = [
        prompt.model_copy(update={"source": source, "checks": (of[source],)})
        for prompt, source in zip(PROMPTS, ["short"] * 5 + ["long"] * 3, strict=True)
    ]
    monkeypatch.setattr(sys.modules[__name__], "PROMPTS", sourced)
    summary = measured(Says("old", "a b", -1.5), Says("new", "a b c", -1.5))
    old, new = summary["models"]
    assert [(s, v["mean"], v["n"]) for s, v in old["checks_by_source"].items()] == [("short", 1.0, 5), ("long", 0.0, 3)]
    assert [value["mean"] for value in new["checks_by_source"].values()] == [0.0, 1.0]
    shown = [(line.label, line.cell(new, summary)) for line in checked.lines(summary, "old")]
    assert ("  short", "0% of 5") in shown and ("  long", "100% of 3") in shown
    monkeypatch.setattr(sys.modules[__name__], "PROMPTS", sourced[:5])
    assert "checks_by_source" not in by_name(measured(Says("old", "a b", -1.5)))["old"]


class Varied(Echo):
    """Echo, whose reward is the number of words of a completion."""

    async def score(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[float]:
        return [float(len(text.split())) for _, text in items]


def test_best_of_n_is_the_completion_that_the_reward_model_scores_highest() -> None:
    stage = MeasureStage(models=("old",), judge="gold", reward="rm", best_of=BestOf(model="old", n=4))
    seen: dict[str, list[str]] = {}

    def gold(prompt: str, text: str) -> Truth:
        seen.setdefault(prompt, []).append(text)
        return Truth(len(text.split()) / 10)

    figures = asked(stage, Echo("old"), Varied("rm"), gold=gold)
    assert [model["name"] for model in figures["models"]] == ["old", "old best of 4"]
    sampling, store = stage.sampling.resolved(0, SamplingSettings()), CallStore(Path(":memory:"))
    asks = [Ask("old", prompt.messages, sampling, 4) for prompt in PROMPTS]
    for prompt, four in zip(PROMPTS, asyncio.run(Scheduler(store, {"old": Echo("old")}, {}).sample(asks)), strict=True):
        single, best = seen[prompt.text]
        assert single == four[0].text
        assert len(best.split()) == max(len(c.text.split()) for c in four)
    single, best = figures["models"]
    assert best["reward"]["mean"] > single["reward"]["mean"] == pytest.approx(10 * single["gold"]["mean"])
    assert best["kl"] == {"at_most": pytest.approx(0.636294), "against": "old"}
    assert figures["reward"]["pair_accuracy"] is None  # of one model, what it chose itself left out, there are no pairs
    store.close()


def test_a_completion_that_has_no_score_stops_nothing_and_is_counted() -> None:
    """In the measure, in best of n and in a trainer's reward alike."""

    class Choosy(Varied):
        async def score(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[float | EngineError]:
            refused = EngineError("too long", cause="too-long")
            return [refused if len(text.split()) > 6 else float(len(text.split())) for _, text in items]

    stage = MeasureStage(models=("old",), judge="gold", reward="rm", best_of=BestOf(model="old", n=4))
    texts: list[str] = []

    def gold(prompt: str, text: str) -> Truth:
        texts.append(text)
        return Truth(0.5)

    figures = asked(stage, Echo("old"), Choosy("rm"), gold=gold)
    single, best = texts[: len(PROMPTS)], texts[len(PROMPTS) :]
    unscored = sum(len(text.split()) > 6 for text in single)
    assert figures["models"][0]["unscored"] == unscored > 0
    assert all(len(text.split()) <= 6 for text in best) and figures["models"][1]["unscored"] == 0

    async def rewarded() -> list[float | None]:
        score = by_model(Choosy("rm"), on_loop(asyncio.get_running_loop()))
        return await asyncio.to_thread(score, [PROMPTS[0].messages] * 2, ["a b", "word " * 7])

    assert asyncio.run(rewarded()) == [2.0, None]


def test_harm_done_is_counted_on_harmful_prompts_alone() -> None:
    kinds = dict(zip((p.text for p in PROMPTS), ["harmful"] * 4 + ["plain"] * 4, strict=True))
    figures = measured(
        Says("old", "so", -1), gold=lambda prompt, text: Truth(0.0, kinds[prompt], complied=prompt != "prompt 0")
    )
    assert figures["models"][0]["harmful_complied"]["mean"] == pytest.approx(3 / 4)


def test_kl_is_not_claimed_from_samples_at_another_temperature() -> None:
    kl = by_name(measured(Says("old", "a", -1), Says("new", "a", -1), temperature=0.7))["new"]["kl"]
    assert "mean" not in kl and "temperature 1" in kl["problem"]


def test_refusals_are_counted_on_the_prompts_they_belong_to() -> None:
    kinds = dict(zip((p.text for p in PROMPTS), ["harmful"] * 3 + ["look-alike"] * 2 + ["plain"] * 3, strict=True))
    figures = measured(
        Says("old", "no", -1), gold=lambda prompt, text: Truth(0.0, kinds[prompt], refused=prompt != "prompt 0")
    )
    only = figures["models"][0]
    assert only["harmful_refused"]["mean"] == pytest.approx(2 / 3) and only["harmful_refused"]["n"] == 3
    assert only["look_alikes_answered"]["mean"] == 0 and only["look_alikes_answered"]["n"] == 2


def test_a_completion_that_failed_is_counted_and_leaves_the_pairs() -> None:
    models = by_name(measured(Says("old", "a", -1), Says("new", "a b", -1, silent_on="prompt 3"), failing=1))
    assert models["new"]["failed"] == 1 and models["new"]["gold"]["n"] == 7
    assert models["new"]["gold_difference"]["n"] == 7 and models["new"]["gold_difference"]["mean"] == pytest.approx(0.1)


class RatesByLength(Echo):
    """Rates the one completion it is shown by its number of words; cannot read the word `odd`."""

    async def sample(self, requests: Sequence[Request]) -> list[list[Reply] | EngineError]:
        replies: list[Any] = []
        for request in requests:
            shown = next(line for line in request.messages[-1].content.splitlines() if line.startswith("[1] "))[4:]
            text = "hm" if shown == "odd" else f"[1] rating {min(5, len(shown.split()))}"
            replies.append([Reply(text=text, finish_reason="stop")])
        return replies


def test_the_win_rate_is_point_wise_and_unparsed_scores_are_left_out() -> None:
    figures = measured(
        Says("old", "a b", -1), Says("new", "a b c", -1), Says("same", "x y", -1), RatesByLength("judge"), rate=True
    )
    models = by_name(figures)
    assert models["new"]["win_rate"]["mean"] == 1 and models["same"]["win_rate"] == models["same"]["win_rate"] | {
        "mean": 0.5,
        "ties": 1.0,
    }
    assert figures["judge"]["rated"] == 24 and figures["judge"]["unparsed"] == 0
    assert figures["judge"]["pair_accuracy"]["mean"] == 1  # gold here counts words too; `old` and `same` do not differ
    odd = measured(Says("old", "a b", -1), Says("new", "odd", -1), RatesByLength("judge"), rate=True)
    assert odd["judge"]["unparsed"] == 8 and "win_rate" not in by_name(odd)["new"]


def test_saying_nothing_loses_without_asking_the_judge() -> None:
    judge = RatesByLength("judge")
    figures = measured(Says("old", "a b", -1), Says("new", "", -1), judge, rate=True)
    assert by_name(figures)["new"]["win_rate"]["mean"] == 0 and by_name(figures)["new"]["win_rate"]["n"] == 8
    assert by_name(figures)["new"]["win_rate"]["high"] > 0.2  # eight losses of eight are no certainty


def test_a_judge_that_fails_is_not_an_unparsed_rating() -> None:
    class Fails(RatesByLength):
        async def sample(self, requests: Sequence[Request]) -> list[Any]:
            return [[EngineError("no", cause="test")] for _ in requests]

    figures = measured(Says("old", "a", -1), Fails("judge"), rate=True, failing=8)
    assert figures["judge"] == figures["judge"] | {"failed": 8, "unparsed": 0, "rated": 0}
    assert figures["models"][0]["gold"]["n"] == 8


def test_a_server_that_cannot_be_asked_ends_the_measure() -> None:
    class Dead(Says):
        async def sample(self, requests: Sequence[Request]) -> list[Any]:
            return [[EngineError("down", cause="connection", fatal=True)] for _ in requests]

    with pytest.raises(EngineError, match="down"):
        measured(Dead("old", "a", -1))
