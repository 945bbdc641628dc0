"""Principles to write by: the published mixtures to the figure, draws in their shares, and files with a flaw."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from answering import Answering, asking_by
from echo import Echo, write_project
from serving import serve
from test_records import ask
from test_run import Cli, asked, run_cli  # noqa: F401 - the fixture

from rlaif.config import SampleStage
from rlaif.engines.asking import Ask
from rlaif.errors import InputError
from rlaif.generate.sampling import sample
from rlaif.principles import DEFAULT, Mixture, read_principles
from rlaif.records import Completion, Message, Prompt, Row, Sampling, digest

SHIPPED = "prompts/principles/ultrafeedback.yaml"
ROOT = Path(__file__).parent.parent

HELP, TRUE, OPEN, SURE = "helpfulness", "truthfulness", "honesty", "verbalized_calibration"
CHAT = {HELP: 0.6, TRUE: 0.2, OPEN: 0.18, SURE: 0.02}
FIGURES: dict[str, dict[str, dict[str, float]]] = {
    # The data set's description.
    "published": {
        "evol_instruct": {HELP: 1.0},
        "flan": {HELP: 0.6, TRUE: 0.2, SURE: 0.2},
        "sharegpt": CHAT,
        "ultrachat": CHAT,
        "truthful_qa": {TRUE: 1.0},
        "false_qa": {TRUE: 1.0},
    },
    # Its code: FLAN four to one, the two sets of false premises by halves, and honesty verbalised once in ten times.
    "shipped": {
        "evol_instruct": {HELP: 1.0},
        "flan": {HELP: 4 / 5, SURE: 1 / 5},
        "sharegpt": {HELP: 3 / 5, TRUE: 1 / 5, OPEN: 1 / 5 * 0.9, SURE: 1 / 5 * 0.1},
        "ultrachat": {HELP: 3 / 5, TRUE: 1 / 5, OPEN: 1 / 5 * 0.9, SURE: 1 / 5 * 0.1},
        "truthful_qa": {TRUE: 1 / 2, OPEN: 1 / 2 * 0.9, SURE: 1 / 2 * 0.1},
        "false_qa": {TRUE: 1 / 2, OPEN: 1 / 2 * 0.9, SURE: 1 / 2 * 0.1},
    },
}


def read_mixture(path: str, name: str) -> Mixture:
    return read_principles(path).mixture(name)


def of_source(source: str | None, number: int = 0) -> Prompt:
    return Prompt(messages=(Message(role="user", content=f"Question {number}?"),), source=source)


@pytest.mark.parametrize("name", FIGURES)
def test_the_shipped_mixtures_are_the_published_figures(name: str) -> None:
    mixture = read_mixture(SHIPPED, name)
    found = {source: shares for source, shares in mixture.shares.items() if source != DEFAULT}
    assert found.keys() == FIGURES[name].keys()
    for source, shares in FIGURES[name].items():
        assert found[source] == pytest.approx(shares, abs=1e-12), source


def test_every_shipped_principle_has_its_system_prompts() -> None:
    files = sorted((ROOT / "prompts/principles").glob("*.yaml"))
    swept = 0
    for file in files:
        mixture = read_mixture(f"prompts/principles/{file.name}", "published")
        systems = [system for several in mixture.principles.values() for system in several]
        assert len(set(systems)) == len(systems)
        swept += len(systems)
    assert set(read_mixture(SHIPPED, "published").principles) == {HELP, TRUE, OPEN, SURE}
    assert swept >= 40 and all(len(s) >= 10 for s in read_mixture(SHIPPED, "shipped").principles.values())


def test_a_source_is_found_by_what_it_begins_with() -> None:
    mixture = read_mixture(SHIPPED, "published")
    assert mixture.of("flan_v2_cot") == mixture.of("flan") == mixture.shares["flan"]
    assert mixture.of("flannel") == mixture.of(None) == mixture.of("mine") == mixture.shares[DEFAULT]
    assert mixture.of("evol_instruct") == {HELP: 1.0}
    nested = Mixture(mixture.principles, mixture.shares | {"flan_v2": {SURE: 1.0}})
    assert nested.of("flan_v2_cot") == {SURE: 1.0} and nested.of("flan_1") == mixture.shares["flan"]


DRAWS = 20_000


@pytest.mark.parametrize(
    ("name", "source"), [("published", "flan"), ("published", "sharegpt"), ("shipped", "false_qa")]
)
def test_draws_have_their_shares(name: str, source: str) -> None:
    """Within four standard deviations of the binomial, over prompts, samplers and places; so are the system prompts."""
    mixture = read_mixture(SHIPPED, name)
    drawn = [mixture.draw(of_source(source, i // 4), f"model-{i % 2}", i // 2 % 2) for i in range(DRAWS)]
    principles, systems = Counter(d.principle for d in drawn), Counter(drawn)
    shares = FIGURES[name][source]
    assert set(principles) == set(shares)
    for principle, share in shares.items():
        bound = 4 * math.sqrt(DRAWS * share * (1 - share)) + 1e-9
        assert abs(principles[principle] - DRAWS * share) <= bound, principle
        each = 1 / len(mixture.principles[principle])
        for system in mixture.principles[principle]:
            count, n = systems[principle, system], principles[principle]  # type: ignore[index]
            assert abs(count - n * each) <= 4.5 * math.sqrt(n * each * (1 - each)), system


def test_a_draw_depends_on_prompt_sampler_and_place_alone() -> None:
    mixture = read_mixture(SHIPPED, "published")
    prompts = [of_source("sharegpt", i) for i in range(400)]
    first = [mixture.draw(p, "one", 0) for p in prompts]
    assert [mixture.draw(p, "one", 0) for p in reversed(prompts)] == first[::-1]
    same = sum(a == mixture.draw(p, "two", 0) for a, p in zip(first, prompts, strict=True))
    later = sum(a == mixture.draw(p, "one", 1) for a, p in zip(first, prompts, strict=True))
    # Two independent draws are alike with probability sum_p share_p^2 / 11 = 0.039: 16 of 400.
    assert 0 < same < 35 and 0 < later < 35


def test_a_new_principle_redraws_only_what_it_wins() -> None:
    old = Mixture({"a": ("A.",), "b": ("B.",)}, {DEFAULT: {"a": 0.5, "b": 0.5}})
    new = Mixture(old.principles | {"c": ("C.",)}, {DEFAULT: {"a": 0.4, "b": 0.4, "c": 0.2}})
    pairs = [
        (old.draw(p, "m", 0).principle, new.draw(p, "m", 0).principle) for p in map(of_source, [None] * 500, range(500))
    ]
    assert all(before == after or after == "c" for before, after in pairs)
    assert 60 < sum(after == "c" for _, after in pairs) < 140
    # And a new system prompt only the completions of its own principle that it wins.
    more = Mixture({"a": ("A.", "A too."), "b": ("B.",)}, old.shares)
    drawn = [(old.draw(p, "m", 0), more.draw(p, "m", 0)) for p in map(of_source, [None] * 500, range(500))]
    assert all(before == after or after.system == "A too." for before, after in drawn)


# ---------------------------------------------------------------- the sample stage


class Addressed(Answering):
    """Answers with the system message that it was asked under, and the number of the sample."""

    def answer(self, ask: Ask) -> list[Completion]:
        first = ask.messages[0]
        said = first.content if first.role == "system" else "nothing"
        return [
            Completion(text=f"{said} {i}", model=ask.model, call=digest([ask.model, said, i])) for i in range(ask.n)
        ]


def sampled(stage: SampleStage, prompt: Prompt, mixture: Mixture | None) -> tuple[Row, list[Ask]]:
    sampler = Addressed()
    asking = asking_by(sampler, "one", "two", seed=3)
    return asyncio.run(sample(Row(prompt=prompt), stage, asking, mixture)), sampler.asks


def stage(**settings: Any) -> SampleStage:
    return SampleStage.model_validate({"models": ["one", {"model": "two", "name": "other"}], **settings})


def test_each_completion_is_written_under_what_it_drew() -> None:
    mixture = read_mixture(SHIPPED, "published")
    by, prompt = stage(per_prompt=6, principles=SHIPPED, mixture="published"), of_source("flan_v2_cot", 7)
    row, asks = sampled(by, prompt, mixture)
    assert [c.sampler for c in row.candidates] == ["one"] * 6 + ["other"] * 6
    for place, found in enumerate(row.candidates):
        drawn = mixture.draw(prompt, found.sampler, place % 6)
        assert found.principle == drawn.principle and found.completion.text.startswith(drawn.system)
    assert len({c.completion.call for c in row.candidates}) == 12
    assert all(a.messages[1:] == prompt.messages and a.messages[0].role == "system" for a in asks)
    # Those that share a system message share a request.
    assert sum(a.n for a in asks) == 12 and len({(a.model, a.messages[0].content) for a in asks}) == len(asks)
    # One more of each changes none of those before.
    more, _ = sampled(by.model_copy(update={"per_prompt": 7}), prompt, mixture)
    assert [c for i, c in enumerate(more.candidates) if i % 7 < 6] == list(row.candidates)


def test_without_principles_a_sampler_is_asked_as_ever() -> None:
    by = SampleStage.model_validate({"models": ["one", {"model": "two", "system": "Be brief."}], "per_prompt": 3})
    row, asks = sampled(by, ask("q"), None)
    settings = Sampling(seed=3)
    user, system = Message(role="user", content="q"), Message(role="system", content="Be brief.")
    assert asks == [Ask("one", (user,), settings, 3), Ask("two", (system, user), settings, 3)]
    assert [c.principle for c in row.candidates] == [None] * 6


def test_a_run_records_the_principle_and_pays_nothing_twice(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    models = {name: Echo(name) for name in ("one", "two", "judge")}
    with serve(models) as url:
        path = write_project(tmp_path, url)
        path.write_text(
            path.read_text().replace("per_prompt: 2", f"per_prompt: 2, principles: {SHIPPED}, mixture: shipped")
        )
        planned = json.loads(run_cli("plan", "echo.yaml", "--json")[1])["calls"]
        assert {name: planned[name]["calls"] for name in ("one", "two")} == {"one": 40, "two": 40}
        code, out, err = run_cli("run", "echo.yaml")
        assert code == 0, out + err
        system = [r.messages[0] for name in ("one", "two") for r in models[name].asked if r.sampling.max_tokens > 16]
        assert len(system) == 80 and {m.role for m in system} == {"system"}
        asked(models)
        assert run_cli("run", "echo.yaml")[0] == 0 and sum(asked(models).values()) == 0
    rows = [
        Row.model_validate_json(line)
        for line in (tmp_path / "runs/echo/stages/02-sample.jsonl").read_text().splitlines()
    ]
    found = Counter(c.principle for row in rows for c in row.candidates)
    assert found.total() == 80 and found[HELP] > found[TRUE] > 0
    code, out, _ = run_cli("show", "runs/echo", "1")
    assert code == 0 and f"under the principle {rows[0].candidates[0].principle}" in out
    assert any(
        "principles of sample" in name
        for name in json.loads((tmp_path / "runs/echo/manifest.json").read_text())["digests"]
    )


# ---------------------------------------------------------------- files with a flaw

FILE = """\
name: mine
version: 1
principles:
  brief: [Be brief.]
  kind: [Be kind., Be gentle.]
mixtures:
  even:
    forum: {brief: 1.0}
    default: {brief: 0.5, kind: 0.5}
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("kind: 0.5}", "kind: 0.4}", 9, "default`: the shares add up to 0.9. Fix: make them add up to 1"),
        ("kind: 0.5}", "kinda: 0.5}", 9, "default.kinda`: there is no principle 'kinda'. Fix: did you mean `kind`?"),
        ("{brief: 1.0}", "{brief: 1.5, kind: -0.5}", 8, "`mixtures.even.forum.kind`: the share -0.5 is below 0"),
        ("{brief: 1.0}", "{}", 8, "the shares add up to 0"),
        ("    default: {brief: 0.5, kind: 0.5}\n", "", 7, "even`: the mixture has no `default`. Fix: add `default"),
        ("[Be brief.]", "[]", 4, "`principles.brief`: the principle has no system prompt"),
        ("[Be brief.]", "['']", 4, "expected some text"),
        ("version: 1\n", "", 1, "the key is missing"),
        ("mixtures:", "mixture:", 6, "unknown key. Fix: did you mean `mixtures`?"),
    ],
)  # fmt: skip
def test_a_flaw_is_named_with_its_line(tmp_path: Path, old: str, new: str, line: int, words: str) -> None:
    assert old in FILE
    (tmp_path / "mine.yaml").write_text(FILE.replace(old, new))
    with pytest.raises(InputError) as caught:
        read_mixture(str(tmp_path / "mine.yaml"), "even")
    assert words in str(caught.value) and caught.value.line == line, caught.value


def test_a_file_without_a_flaw_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(FILE)
    mixture = read_mixture(str(tmp_path / "mine.yaml"), "even")
    assert mixture.of("forum") == {"brief": 1.0} and mixture.principles["kind"] == ("Be kind.", "Be gentle.")
