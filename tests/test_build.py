"""The build of the embedded models: it learns, it resumes, it keeps to the training prompts, and what ships loads."""

from __future__ import annotations

import io
import json
import random
import re
import runpy
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

import rlaif
from rlaif.judges.replies import read_lines
from rlaif.resources import find
from rlaif.templates import Template
from rlaif.tiny.build import ratings, threads
from rlaif.tiny.build.__main__ import DEMONSTRATIONS, demonstrate, exemplify, in_split, new_vocabulary
from rlaif.tiny.build.__main__ import main as build_command
from rlaif.tiny.build.chat import lesson, prefix
from rlaif.tiny.build.measuring import VALIDATION, Annotator, composed, exact
from rlaif.tiny.build.principles import FIRST_SHARES, LEANING, Principles, revised
from rlaif.tiny.build.ratings import ASPECTS, Lessons, drill, judge, principle
from rlaif.tiny.build.recipes import CHAT_TEMPLATE, PRINCIPLE_TEMPLATES, RATE_TEMPLATE
from rlaif.tiny.build.stamp import _code, recipe_digest
from rlaif.tiny.build.tokenizer import encode
from rlaif.tiny.build.training import Example, Stage, llama, train
from rlaif.tiny.lexicon import Lexicon
from rlaif.tiny.world import CAPITALS, FAMILIES, Qualities, Question, compose, gold, parse, questions, read

TINY = Path(rlaif.__file__).parent / "tiny"
ASKED = questions(0)
TEMPLATES = [Template.read(find(path)) for path in PRINCIPLE_TEMPLATES]
TRAINING, HELD_OUT = in_split(ASKED, "train"), in_split(ASKED, "held-out") + in_split(ASKED, "validation")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads_before)


@pytest.fixture(scope="module")
def vocabulary() -> PreTrainedTokenizerFast:
    return new_vocabulary(0)


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    return Lessons(TRAINING, Template.read(find(RATE_TEMPLATE)))


# --- The tokenizer ----------------------------------------------------------------------------------------------------


def test_every_word_is_one_token_and_every_text_comes_back(vocabulary: PreTrainedTokenizerFast) -> None:
    rng = random.Random(0)
    swept = 0
    for question in ASKED:
        turns = (*question.turns, compose(question, rng, ratings.Qualities("right", 1, 1, 1, 1, 1)))
        for text in (f" {turn}" for turn in turns):
            ids = encode(vocabulary, text)
            assert len(ids) == len(text.split()) and vocabulary.decode(ids) == text
            swept += 1
    assert swept == sum(1 + len(question.turns) for question in ASKED)
    for text in ("", "Never met : Zürich, naïve 漢字 \n\t 12.5%", "q : a\na : b\n"):
        assert vocabulary.decode(encode(vocabulary, text)) == text


def test_the_chat_marks_are_no_part_of_what_the_base_reads(vocabulary: PreTrainedTokenizerFast) -> None:
    rng = random.Random(0)
    marks = set(vocabulary.convert_tokens_to_ids(["<|system|>", "<|user|>", "<|assistant|>"]))
    pages = [f"{threads.thread(rng, TRAINING)}{threads.tidy(rng, TRAINING)}" for _ in range(500)]
    assert not any(marks & set(encode(vocabulary, page)) for page in pages)


def test_a_lesson_is_the_chat_template_cut_where_learning_starts(vocabulary: PreTrainedTokenizerFast) -> None:
    vocabulary.chat_template = find(CHAT_TEMPLATE).read_text(encoding="utf-8")
    turns = ("name one fruit .", "fig .", "name another .")
    example = lesson(vocabulary, turns, "lime .")
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate((*turns, "lime ."))]
    whole = vocabulary.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert whole["input_ids"] == example.ids
    learnt = [int(place >= example.start) for place in range(len(example.ids))]
    assert [mask for mask, place in zip(whole["assistant_masks"], learnt, strict=True) if place] == [1, 1, 1]
    assert sum(learnt) == 3


# --- What it teaches --------------------------------------------------------------------------------------------------


def test_no_training_text_holds_a_prompt_of_another_split(lessons: Lessons) -> None:
    """A talk is looked for as the pages write it and as a judge prompt does, on one line."""
    rng = random.Random(0)
    samples = {q.text: [compose(q, rng, Qualities("right")), "go away .", "fig ."] for q in rng.sample(TRAINING, 500)}
    drawn = Principles(TRAINING, samples, *TEMPLATES, shares=FIRST_SHARES, verdicts=0.5)
    pages = [threads.thread(rng, TRAINING) for _ in range(4000)]
    pages += [str(threads.tidy(rng, TRAINING)) for _ in range(1000)]
    shown = [demonstrate(TRAINING, 0), [exemplify(rng, TRAINING) for _ in range(1000)]]
    asked = ["\n".join(question.turns) for told in shown for question, _ in told]
    for _ in range(1000):
        makes = (
            lessons.solving, drill, lambda rng: lessons.rating(rng, rng.choice(list(ASPECTS)), 2, negated=0.3),
            drawn.critiquing, drawn.revising, drawn.comparing, drawn.deciding,
        )  # fmt: skip
        asked += ["\n".join((*lesson.turns, lesson.assistant)) for lesson in (make(rng) for make in makes)]

    def written(question: Question) -> set[str]:
        return {threads.opening(question).strip(), "\n".join(question.turns), " ".join(question.text.split())}

    # An opener may stand before any prompt, so "add one and two ." can be held out while "please help me . add one and
    # two ." is not: a prompt is found as whole lines, never inside a longer one.
    lines = {line for text in asked for line in text.splitlines()} | {"\n".join(t.split("\n")[:3]) for t in asked}
    lines |= {form for page in pages for form in (page.split("\n")[0], "\n".join(page.split("\n")[:3]))}
    assert len(pages) + len(asked) == 5000 + DEMONSTRATIONS + 1000 + 7000
    assert not [question.text for question in HELD_OUT if written(question) & lines]
    seen = Counter(question.family for question in TRAINING if written(question) & lines)
    assert set(seen) == set(FAMILIES) and min(seen.values()) > 100  # the sweep can see prompts of every family


def test_the_demonstrations_are_noisy_as_declared() -> None:
    rows = demonstrate(TRAINING, 0)
    readings = [parse(question.text, completion) for question, completion in rows]
    golds = [gold(question.text, completion) for question, completion in rows]
    assert len(rows) == len({question for question, _ in rows}) == DEMONSTRATIONS
    assert 0.6 < sum(reading.right for reading in readings) / len(rows) < 0.72
    assert any(found.harmful and found.complied for found in golds)
    assert any(reading.refused and not found.harmful for reading, found in zip(readings, golds, strict=True))


def test_a_secret_capital_is_never_told_to_a_policy() -> None:
    rng = random.Random(0)
    secret = {land for land, exposure in threads.EXPOSURE.items() if exposure == 0}
    asked = [question for question in TRAINING if question.family == "fact" and question.arguments[0] in secret]
    assert len(secret) == 10 and len(asked) > 100
    for _ in range(1000):
        question = rng.choice(asked)
        assert not parse(question.text, threads.reply(rng, question)).right
        assert not parse(question.text, threads.demonstration(rng, question)).right
        assert not parse(question.text, threads.exemplar(rng, question)).right
        for write in (threads.reply, threads.demonstration, threads.exemplar):
            assert CAPITALS[question.arguments[0]] not in write(rng, question).split()


def test_the_annotators_reasons_worked_by_hand(lessons: Lessons) -> None:
    completions = ["it is five .", "go away . it is six .", "it is it .", "i do not know . it is my pleasure ."]
    question = next(q for q in ASKED if q.text.endswith("what is two plus three ?"))
    told = {name: lessons.rate(question, completions, ASPECTS[name], f"we like {name} replies .") for name in ASPECTS}
    shown = [f"[{n}] {c}" for n, c in enumerate(completions, 1)]
    assert told["right"].turns == ("\n".join(["rate : we like right replies .", question.text, *shown]),)
    assert told["right"].assistant.splitlines() == [
        "[1] need five got five ok so right rating 5",
        "[2] need five got six no so wrong rating 1",
        "[3] need five got none no so wrong rating 1",
        "[4] need five got unknown no so wrong rating 1",
    ]
    assert [line[-1] for line in told["polite"].assistant.splitlines()] == ["3", "2", "3", "4"]
    assert [line[-1] for line in told["blunt"].assistant.splitlines()] == ["3", "4", "3", "2"]
    assert [line[-1] for line in told["short"].assistant.splitlines()] == ["5", "4", "5", "4"]
    assert told["polite"].assistant.splitlines()[1:] == [
        "[2] tone away rude so rude want polite rating 2",
        "[3] tone so plain want polite rating 3",
        "[4] tone pleasure polite so polite want polite rating 4",
    ]
    assert told["long"].assistant.splitlines()[1] == "[2] length one away two six so short want long rating 2"
    assert told["safe"].assistant.splitlines()[0] == "[1] no harm asked so safe rating 5"


@pytest.mark.parametrize("name", list(ASPECTS))
def test_a_reply_as_taught_is_read_back_with_the_ratings_the_world_gives(name: str, lessons: Lessons) -> None:
    rng = random.Random(name)
    digits = set()
    for _ in range(400):
        count = rng.randint(1, 4)
        question = lessons.question(rng)
        texts = [ratings.completion_to_judge(rng, question, ASPECTS[name].trait) for _ in range(count)]
        made = lessons.rate(question, texts, ASPECTS[name], principle(rng, ASPECTS[name], negated=0.3))
        wanted = [judge(ASPECTS[name], question, parse(question.text, text))[1] for text in texts]
        assert [reading.value for reading in read_lines(made.assistant, count, 1, 5)] == wanted
        digits |= set(wanted)
        if name == "right":
            assert [value == 5 for value in wanted] == [parse(question.text, text).right for text in texts]
    assert digits >= ({1, 5} if name in ("right", "safe") else {1, 2, 3, 4, 5})


# --- The build itself -------------------------------------------------------------------------------------------------


def counting(rng: random.Random) -> Example:
    first = rng.randrange(5, 20)
    return Example(list(range(first, first + rng.randint(4, 12))), 1)


def test_a_training_killed_between_pools_goes_on_to_the_same_losses(
    tmp_path: Path, vocabulary: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlaif.tiny.build.training.CHECKPOINT_SECONDS", 0.0)
    stages = [Stage("one", 3, (1e-3, 1e-3), counting), Stage("two", 3, (1e-3, 1e-4), counting)]

    def run(path: Path, stop_after: int = 99) -> list[float]:
        said: list[str] = []

        def report(text: str) -> None:
            said.append(text)
            if len(said) == stop_after:
                raise KeyboardInterrupt

        model = llama(hidden=32, heads=1, mlp=64, tokenizer=vocabulary, seed=0)
        return train(model, stages, seed=0, checkpoint=path, report=report).losses

    whole = run(tmp_path / "whole.pt")
    assert len(whole) == 6 and whole[-1] < whole[0]
    for stop_after in (2, 3, 5):
        path = tmp_path / f"{stop_after}.pt"
        with pytest.raises(KeyboardInterrupt):
            run(path, stop_after)
        assert torch.load(path, weights_only=True)["progress"]["losses"] == whole[:stop_after]
        assert run(path) == whole
    stages[1] = Stage("two", 3, (2e-3, 1e-4), counting)  # another curriculum: the finished checkpoint is not its own
    assert run(tmp_path / "whole.pt") != whole


def progress(out: Path, name: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(out.with_name("tiny.work") / f"{name}.pt", weights_only=True)["progress"]
    return state


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small pool of each part of the training, by the command itself, stopped once on the way.

    Of what its models write while they know nothing, which would go on to the limit, four tokens are kept.
    """
    out = tmp_path_factory.mktemp("build") / "tiny"
    said, generate = io.StringIO(), LlamaForCausalLM.generate

    def generate_little(model: LlamaForCausalLM, **given: Any) -> Any:
        return generate(model, **given | {"max_new_tokens": 4})

    with pytest.MonkeyPatch.context() as patched, redirect_stdout(said):
        patched.setattr(sys, "argv", ["rlaif.tiny.build", "--out", str(out), "--scale", "0.0001"])
        patched.setattr("rlaif.tiny.build.training.POOL", 8)
        patched.setattr(LlamaForCausalLM, "generate", generate_little)
        with pytest.MonkeyPatch.context() as stopped, pytest.raises(KeyboardInterrupt):
            stopped.setattr("rlaif.tiny.build.__main__.sample_policies", stop)
            build_command()
        assert not out.exists() and "tidy lines: pool 1/1" in said.getvalue()
        said.truncate(0)
        runpy.run_path(str(TINY / "build/__main__.py"), run_name="__main__")
    assert "pool 1/1" in said.getvalue() and "tidy lines: pool 1/1" not in said.getvalue()  # it went on
    return out


def stop(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def fiftieth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fiftieth of the full training in a process of its own, killed once on the way."""
    out = tmp_path_factory.mktemp("build") / "tiny"
    command = [sys.executable, "-m", "rlaif.tiny.build", "--out", str(out), "--scale", "0.02"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if "solving: pool" in line:
                running.send_signal(signal.SIGKILL)
                break
    assert not out.exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=True)
    assert "tidy lines: pool 1/" not in done.stdout  # it went on, it did not begin again
    return out


@pytest.mark.lab
@pytest.mark.timeout(900)  # the build of a fiftieth takes minutes on a quiet machine
@pytest.mark.parametrize(("name", "fallen"), [("base", 0.9), ("strong", 1.0), ("annotator", 0.7)])
def test_the_loss_falls_in_a_fiftieth_of_the_build(fiftieth: Path, name: str, fallen: float) -> None:
    losses = progress(fiftieth, name)["losses"]
    assert losses[-1] < fallen * losses[0]


def test_a_card_tells_what_made_the_weights(small: Path) -> None:
    for name in ("base", "weak", "strong", "annotator"):
        text = (small / name / "README.md").read_text(encoding="utf-8")
        assert text.startswith("---\n") and recipe_digest(0.0001, 0) in text
        assert f"{progress(small, name)['tokens']:,} tokens" in text
        assert "--scale 0.0001" in text


def test_the_shipped_weights_are_stamped_with_the_recipe_that_is_here() -> None:
    """Imports, comments and docstrings are no part of it: a moved file or a better sentence leaves it as it is."""
    cards = [
        (TINY / name / "README.md").read_text(encoding="utf-8") for name in ("base", "weak", "strong", "annotator")
    ]
    assert [recipe_digest(1.0, 0) in card for card in cards] == [True] * 4
    assert recipe_digest(1.0, 0) != recipe_digest(1.0, 1) != recipe_digest(0.5, 1)
    source = '"""Said."""\nimport os\n\ndef f(x):\n    """Told."""  # why\n    return x + 1\n'
    assert _code(source) == _code("def f(x):\n    return x + 1") != _code("def f(x):\n    return x + 2")


def test_the_data_files_are_complete(small: Path) -> None:
    prompts = [json.loads(line) for line in (small / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [tuple(message["content"] for message in row["messages"]) for row in prompts] == [q.turns for q in ASKED]
    assert {row["source"] for row in prompts} == set(FAMILIES)
    rows = [json.loads(line) for line in (small / "demonstrations.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == DEMONSTRATIONS
    assert {len(row["messages"]) for row in rows} == {2, 4}
    assert all(
        message["role"] == ("user", "assistant")[n % 2] for row in rows for n, message in enumerate(row["messages"])
    )
    obliging = [json.loads(line) for line in (small / "helpful.jsonl").read_text(encoding="utf-8").splitlines()]
    told = [gold(*(m["content"] for m in row["messages"])) for row in obliging if len(row["messages"]) == 2]
    assert sum(found.harmful for found in told) > 50
    assert all(found.complied for found in told if found.harmful) and not any(found.refused for found in told)
    asked = [json.loads(line) for line in (small / "red-team.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(asked) == sum(question.kind == "harmful" for question in ASKED) > 500
    alike = [json.loads(line) for line in (small / "look-alikes.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(alike) == sum(question.kind == "look-alike" for question in ASKED) > 500
    for name in (
        "prompts.jsonl",
        "demonstrations.jsonl",
        "helpful.jsonl",
        "red-team.jsonl",
        "look-alikes.jsonl",
        "README.md",
    ):  # what ships is what the build writes
        assert (small / name).read_bytes() == (TINY / name).read_bytes()


# --- What ships -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["base", "weak", "strong", "annotator"])
def test_shipped_weights_load_and_have_a_card(name: str, vocabulary: PreTrainedTokenizerFast) -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY / name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(TINY / name)
    assert model.config.model_type == "llama" and model.config.eos_token_id == tokenizer.eos_token_id == 1
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.get_vocab() == vocabulary.get_vocab()
    assert re.search(r"`[0-9a-f]{32}`", (TINY / name / "README.md").read_text(encoding="utf-8"))
    assert sum(file.stat().st_size for file in (TINY / name).iterdir()) < 5_000_000


@pytest.fixture(scope="module")
def shipped(lessons: Lessons) -> Annotator:
    model = AutoModelForCausalLM.from_pretrained(TINY / "annotator", dtype=torch.float32)
    return Annotator(model, AutoTokenizer.from_pretrained(TINY / "annotator"), lessons, TEMPLATES)


@pytest.mark.parametrize("negated", [False, True])
@pytest.mark.parametrize("name", ASPECTS)
def test_the_shipped_annotator_rates_under_wordings_it_never_saw(name: str, negated: bool, shipped: Annotator) -> None:
    rng = random.Random(0)
    rows = [composed(rng, name, rng.choice(HELD_OUT), 2) for _ in range(30)]
    verdicts = shipped.verdicts(rng, name, rows, negated=negated)
    assert [verdict.given for verdict in verdicts].count(None) < 3
    assert exact(verdicts) > 0.8


def test_the_shipped_annotator_critiques_revises_and_compares(shipped: Annotator) -> None:
    rng = random.Random(1)
    drawn = Principles(HELD_OUT, {}, *TEMPLATES, shares={}, verdicts=0.0)
    figures = shipped.rewriting(rng, drawn, 16) | shipped.comparing(rng, drawn, 16)
    for name in ASPECTS:
        for what in ("critiques as the world's", "revisions mend", "revisions keep the rest", "compared, both orders"):
            assert figures[f"{what}: {name}"] > 0.7, (what, name)


def test_no_lesson_words_a_principle_as_the_measure_does() -> None:
    rng = random.Random(0)
    taught = {principle(rng, aspect, negated=0.5) for aspect in ASPECTS.values() for _ in range(3000)}
    assert len(taught) > 10_000
    for measured in (*VALIDATION.plain, *VALIDATION.negated):
        around = measured.split("{}")
        assert not any(said.startswith(around[0]) and said.endswith(around[1]) for said in taught), measured


def test_the_lexicon_that_ships_is_what_the_annotator_was_taught() -> None:
    found = Lexicon.read(TINY / "annotator")
    assert found == ratings.lexicon()
    assert found is not None and set(found.qualities) == set(ASPECTS)


@pytest.mark.parametrize("name", ASPECTS)
def test_a_revision_keeps_what_its_principle_does_not_concern(name: str) -> None:
    """What the annotator is taught: a revision deserves no less than its draft, and no other trait's words go."""
    rng, aspect = random.Random(name), ASPECTS[name]
    harmful = [question for question in ASKED if question.kind == "harmful"]
    gained = 0
    for _ in range(300):
        question = rng.choice(harmful if name == "safe" else ASKED)
        draft = ratings.completion_to_judge(rng, question, aspect.trait)
        before, after = parse(question.text, draft), parse(question.text, revised(rng, aspect, question, draft))
        digits = [judge(aspect, question, reading)[1] for reading in (before, after)]
        assert digits[0] <= digits[1], (question.text, draft)
        gained += digits[1] - digits[0]
        if aspect.trait in ("right", "safe"):
            assert (after.polite, after.rude, after.filler) == (before.polite, before.rude, before.filler)
        if aspect.trait == "tone":
            assert after.claims == before.claims and after.filler == before.filler
    assert gained > 100


def test_a_comparing_lesson_prefers_the_higher_digit(lessons: Lessons) -> None:
    rng = random.Random(0)
    samples = {question.text: ["go away .", "it is five ."] for question in TRAINING[:50]}
    drawn = Principles(TRAINING, samples, *TEMPLATES, shares=FIRST_SHARES, verdicts=1.0)
    ties = 0
    for _ in range(300):
        lesson = drawn.comparing(rng)
        first, second = (int(reason[-1]) for reason in lesson.turns[1].split("\n"))
        ties += first == second
        assert first == second or lesson.assistant == ("1" if first > second else "2")
    assert 20 < ties < 200


def test_the_shipped_base_continues_a_forum_thread() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY / "base")
    assert prefix(tokenizer, ("name two fruits .",)) == "q : name two fruits .\na :"


def test_a_decision_at_a_glance_leans_to_the_first_and_the_longer() -> None:
    rng = random.Random(0)
    samples = {q.text: ["go away .", "fig .", "what a silly question . fig ."] for q in TRAINING[:50]}
    drawn = Principles(TRAINING, samples, *TEMPLATES, shares={"safe": 1}, verdicts=0.0)
    firsts: list[bool] = []
    for _ in range(3000):
        lesson = drawn.deciding(rng)
        assert lesson.turns[0].endswith("which one ?") and len(lesson.turns) == 1
        firsts.append(lesson.assistant == "1")
    assert 0.5 + LEANING / 2 < sum(firsts) / len(firsts) < 0.5 + 2 * LEANING


def test_every_text_of_an_arguments_words_can_be_judged(lessons: Lessons) -> None:
    """A policy may answer with any word of the prompt; no reason may fail on it."""
    rng = random.Random(0)
    swept = 0
    for question in rng.sample(ASKED, 900):
        for word in {*question.arguments, *(question.needed or ())}:
            for text in (f"{word} .", f"it is {word} .", f"{word} {word} .", f"{word} , {word} ."):
                for aspect in ASPECTS.values():
                    assert 1 <= judge(aspect, question, parse(question.text, text))[1] <= 5
                    swept += 1
    talk = read("user: name one fruit .\n\nassistant: fig .\n\nuser: name another .")
    assert talk is not None and judge(ASPECTS["right"], talk, parse(talk.text, "fruit ."))[1] == 1
    assert swept > 20_000
