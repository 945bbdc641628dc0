"""`rlaif train --check`: what would be trained on is shown as the trainer tokenizes it, without any weights."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from inside import rlaif
from rich.style import Style
from test_chat_templates import talk
from test_mixed_training import text
from test_reward_model import ranked
from test_run import Cli, run_cli  # noqa: F401 - the fixture
from test_train import settings_of, train
from test_train_tokens import chat

from rlaif.cli import checks
from rlaif.cli.settings import OPTIONS
from rlaif.config import TRAINERS, LoRASettings, RMSettings, Training
from rlaif.errors import InputError
from rlaif.pipeline.alone import Checked
from rlaif.pipeline.stages import train as train_stage
from rlaif.screen import Console
from rlaif.train import groups, pairs, sft
from rlaif.train.check import Check, Piece, check
from rlaif.train.examples import Demonstration, Example, PreferencePair, PromptOnly

END = "<|end|>"


@pytest.fixture(scope="module")
def weightless(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model without its weights."""
    folder = shutil.copytree(random_model, tmp_path_factory.mktemp("weightless") / "base")
    (folder / "model.safetensors").unlink()
    return folder


def pieces(made: Check, row: int = 0) -> dict[str, list[tuple[str, str]]]:
    """The pieces of a row's sides, each with its tokens joined."""
    return {name: [(p.state, "".join(p.tokens)) for p in side] for name, side in made.rows[row].sides.items()}


def ppo(**changed: Any) -> Training:
    checks = [{"length": {"max_words": 3}}]
    return TRAINERS["ppo"].model_validate({"base": "b", "name": "n", "checks": checks} | changed)


def test_a_conversation_is_shown_as_it_is_learnt(weightless: Path) -> None:
    turns = tuple(talk("s:s", "u:hi", "a:ok", "u:yo", "a:y"))
    made = check(settings_of("sft"), weightless, [Demonstration(turns, masked=(2,)), Demonstration(turns, "last")])
    asked = f"<|system|> s{END}<|user|> hi{END}<|assistant|>"
    between = f"<|user|> yo{END}<|assistant|>"
    assert pieces(made)["conversation"] == [
        ("context", asked), ("context", f" ok{END}"), ("context", between), ("learnt", f" y{END}")
    ]  # fmt: skip
    assert pieces(made, 1)["conversation"] == [("context", asked + f" ok{END}" + between), ("learnt", f" y{END}")]
    assert made.rows[0].sides["conversation"][-1] == Piece("learnt", [" ", "y", END])
    assert (made.kept, made.learnt, made.lengths) == (2, 6, [23, 23]) and made.tokens == 46


def test_a_preference_and_a_prompt_are_shown_and_counted(weightless: Path) -> None:
    hi = tuple(talk("u:hi"))
    made = check(settings_of("dpo"), weightless, [PreferencePair(hi, "ok", "y"), PreferencePair(hi, "a", "bb")])
    assert pieces(made) == {
        "prompt": [("context", f"<|user|> hi{END}<|assistant|>")],
        "chosen": [("learnt", f" ok{END}")],
        "rejected": [("learnt", f" y{END}")],
    }
    assert (made.longer_chosen, made.longer_rejected, made.learnt, made.tokens) == (1, 1, 14, 14 + 4 * 6)
    made = check(ppo(max_length=8, max_tokens=4), weightless, [PromptOnly(hi), PromptOnly(tuple(talk("u:hi there")))])
    assert made.fates == {"train": {"cut": 1, "too-long": 1}}
    assert pieces(made) == {"prompt": [("cut", "<|user|> "), ("context", f"hi{END}<|assistant|>")]}
    assert made.steps is None and made.room == 4


def test_the_counts_are_those_of_the_trainer(weightless: Path, random_model: Path) -> None:
    rows: list[Example] = [Demonstration(tuple(talk("u:" + "hi " * n, f"a:ok{n}"))) for n in range(1, 12)]
    rows += [Demonstration(tuple(talk("u:hi", f"a:a{END}b"))), Demonstration(tuple(talk("s:s", "u:hi", "a:ok")))]
    two: list[Example] = [PreferencePair(row.messages[:1], f"ok{i}", "y") for i, row in enumerate(rows[:11])]  # type: ignore[union-attr]
    for method, given, tokenize in (("sft", rows, sft.tokenize), ("rm", two, pairs.tokenize)):
        made = check(settings_of(method, max_length=20, system="skip"), weightless, given)
        any_tokenize: Any = tokenize
        _, counts = any_tokenize(chat(random_model, "tiny"), given, 20, "truncate", "skip")
        fates = dict(made.fates["train"])
        assert (made.kept, fates.pop("cut")) == (counts.kept, counts.cut) and counts.cut > 2
        assert fates.pop("trained on") == counts.kept - counts.cut and fates == counts.dropped
        assert sum(count for *_, count in made.histogram()) == len(made.lengths)
        assert made.steps == -(-counts.kept // 4)


@pytest.mark.parametrize("packing", [False, True])
def test_a_long_text_counts_as_the_rows_that_it_becomes(packing: bool, weightless: Path, random_model: Path) -> None:
    rows = [text("once upon a time, and again"), text("so")]
    settings = settings_of("sft", max_length=9, batch_size=2, packing=packing)
    made = check(settings, weightless, rows)
    columns, counts = sft.tokenize(chat(random_model, "tiny"), rows, 9)
    assert [len(ids) for ids in columns["input_ids"]] == [9, 9, 9, 1, 3]
    assert made.fates == {"train": {"trained on": 2}} and made.kept == counts.kept == 2
    assert (made.lengths, made.learnt, made.tokens) == ([28, 3], 31, 31)
    assert (made.packed, made.steps) == ((4, 2) if packing else (None, 3))


def test_max_steps_is_the_number_of_steps(weightless: Path) -> None:
    rows = [Demonstration(tuple(talk("u:hi", f"a:ok{i}"))) for i in range(9)]
    assert [check(settings_of("sft", **n), weightless, rows).steps for n in ({}, {"max_steps": 7})] == [3, 7]


@pytest.mark.parametrize(("group_size", "steps"), [(4, 2), (3, 5), (2, 9)])
def test_a_step_of_a_grouped_reward_model_is_of_prompts(
    group_size: int, steps: int, weightless: Path, random_model: Path
) -> None:
    """Of 3 prompts with the 6 pairs of 4 completions: in 1 group each, in 3 of up to 3, or in 6; two groups a step."""
    settings = settings_of("rm", grouping="prompt", group_size=group_size, batch_size=2)
    made = check(settings, weightless, ranked(3, 4))
    assert isinstance(settings, RMSettings)
    read, _ = groups.read(settings, chat(random_model, "tiny"), ranked(3, 4), 512)
    assert (made.kept, made.steps, -(-len(read) // 2)) == (18, steps, steps)


def test_the_steps_of_groups_are_those_of_the_trainer(random_model: Path, tmp_path: Path) -> None:
    """With pairs that are dropped: all of a prompt's, some, and those that begin another group of their prompt."""
    long, end = "a" * 60, f"a{END}b"
    stated = [("p", "a", "b"), ("p", "b", "c"), ("p", "a", "c"), ("p", "b", end), ("q", long, "b"), ("r", end, "b")]
    stated += [("s", "c", "d"), ("u", "a", "b"), ("u", long, "d"), ("u", "e", "f"), ("v", "a", "b")]
    given: list[Example] = [PreferencePair(tuple(talk(f"u:{prompt}")), *texts) for prompt, *texts in stated]
    given.append(PreferencePair(tuple(talk("s:s", "u:w")), "a", "b"))
    changed = {"max_length": 30, "system": "skip", "grouping": "prompt", "group_size": 3, "batch_size": 1}
    made = check(settings_of("rm", **changed), random_model, given)
    result = train("rm", random_model, tmp_path / "rm", examples=given, **changed)
    assert made.fates["train"].total() - made.kept == sum(result.dropped.values()) == 5
    assert made.steps == result.steps == 5


@pytest.mark.parametrize("method", TRAINERS)
def test_the_help_of_a_method_lists_its_settings_each_with_its_default_and_meaning(method: str, tmp_path: Path) -> None:
    fields = {name: field for name, field in TRAINERS[method].model_fields.items() if name not in OPTIONS}
    groups = LoRASettings.model_fields if "lora" in fields else {}
    assert len(fields) > 20
    for arguments in ([method, "--help"], ["--help", method], ["--base", "b", method, "epochs=2", "-h"]):
        done = rlaif(tmp_path, "train", *arguments)
        _, titled, listed = done.out.partition(f"settings of {method}, as KEY=VALUE\n")
        told = {line.split()[0]: " ".join(line.split()) for line in listed.splitlines()[1:] if line.strip()}
        assert done.code == 0 and titled and {*fields, *groups} <= told.keys() and not OPTIONS & told.keys()
        for name, field in [*fields.items(), *groups.items()]:
            assert field.description and field.description[:40] in told[name], name
    assert told["system"].startswith("system keep a system message: as the template has it")
    assert told["system"].endswith("(keep, merge, skip)") and told["seed"] == "seed 0 of every random draw"


def test_the_help_of_no_method_lists_no_settings(tmp_path: Path) -> None:
    for arguments in (["--help"], ["soft", "--help"]):
        done = rlaif(tmp_path, "train", *arguments)
        assert done.code == 0 and "With --help, its settings" in done.out and "settings of" not in done.out


SWAPPED = "5 of 9 pairs contradict another one: the same prompt, chosen and rejected swapped"


def test_pairs_that_contradict_each_other_are_counted_by_the_trainer_as_by_the_check(random_model: Path) -> None:
    """Of the pairs that are kept, and whatever group they are in."""
    stated = [("p", "a", "b"), ("p", "b", "a"), ("p", "a", "b"), ("p", "a", "c"), ("q", "a", "b"), ("r", "b", "a")]
    stated += [("s", "a", "b"), ("s", "b", "a"), ("t", "a", f"b{END}"), ("t", f"b{END}", "a"), ("u", "ab", "c")]
    given = [PreferencePair(tuple(talk(f"u:{prompt}")), *texts) for prompt, *texts in stated]
    given[10] = replace(given[10], split="validation")
    for method, changed in (("dpo", {}), ("rm", {}), ("rm", {"grouping": "prompt", "group_size": 2})):
        settings = settings_of(method, **changed)
        made = check(settings, random_model, given)
        of_trainer = chat(random_model, "tiny")
        read = groups.read(settings, of_trainer, given, 100) if isinstance(settings, RMSettings) else None
        _, counts = pairs.tokenize(of_trainer, given, 100) if read is None else read
        assert made.contradictions.count == counts.contradictions.count == 5
        assert made.contradictions.note == counts.contradictions.note == SWAPPED
    apart = [pairs.tokenize(of_trainer, each, 100)[1] for each in (given[:1], given[1:2])]
    assert [counts.contradictions.note for counts in apart] == [None, None]
    apart[0].add(apart[1])  # of two splits, as one file of each may have them
    assert apart[0].contradictions.count == 2


@pytest.mark.parametrize("method", ["dpo", "rm"])
def test_contradicting_pairs_are_told_by_the_check_the_training_and_the_card(
    method: str,
    random_model: Path,
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    rows = [{"prompt": f"what is {i}?", "chosen": f"it is {i}", "rejected": "no"} for i in range(5)]
    rows += [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:3]]
    rows += [row | {"chosen": row["rejected"]} for row in rows[:2]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [method, "--base", str(random_model), "--data", "pairs.jsonl", "--split", "all", "max_steps=1"]
    told = "6 of 8 pairs contradict another one"
    for screen in (run_cli("train", *asked, "--check")[1], run_cli("train", *asked, "--out", "out")[1]):
        assert told in screen and "2 identical texts" in screen
    assert json.loads(run_cli("train", *asked, "--check", "--json")[1])["contradicting"] == 6
    card = (tmp_path / "out/README.md").read_text()
    assert f"- {told}: the same prompt, chosen and rejected swapped\n" in card
    assert "- 2 rows of its files are no examples: identical texts\n" in card


def test_a_row_that_the_trainer_refuses_is_refused(weightless: Path) -> None:
    rows = [Demonstration(tuple(talk("u:hi", "a:ok"))), Demonstration(tuple(talk("u:hi there", "a:ok")))]
    with pytest.raises(InputError, match="row 2 has 6 tokens more than"):
        check(settings_of("sft", max_length=10, excess_length="raise"), weightless, rows)


def test_the_context_of_the_model_and_its_end_tokens_are_told(weightless: Path, tmp_path: Path) -> None:
    base = shutil.copytree(weightless, tmp_path / "base")
    settings = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [1, 3]}))
    made = check(settings_of("sft", max_length=5000), base, [Demonstration(tuple(talk("u:hi", "a:ok")))])
    assert (made.max_length, made.asked) == (512, 5000) and set(made.ends) == {END, "<|user|>"}


@pytest.mark.parametrize(
    ("lengths", "first"), [([5], (5, 5, 1)), ([0, 119], (0, 9, 1)), ([1000, 1011], (1000, 1000, 1))]
)
def test_the_bins_of_a_histogram_are_round_and_hold_every_length(
    lengths: list[int], first: tuple[int, int, int]
) -> None:
    made = Check("sft", "t", True, [], 10, 10, lengths=lengths)
    bins = made.histogram()
    assert bins[0] == first and sum(count for *_, count in bins) == len(lengths) and len(bins) <= 13
    assert all(after[0] == before[1] + 1 for before, after in zip(bins, bins[1:], strict=False))


def demonstrations(folder: Path) -> None:
    rows = [{"prompt": f"what is {i}?\n" + "please " * i, "completion": f"it is {i}"} for i in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_command_shows_rows_lengths_and_what_is_dropped(
    weightless: Path,
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    demonstrations(tmp_path)
    arguments = ["sft", "--base", str(weightless), "--data", "rows.jsonl", "--check", "--split", "all", "max_length=70"]
    code, out, err = run_cli("train", *arguments)
    assert code == 0, err
    lines = [line.rstrip() for line in out.splitlines()]
    assert "sft on rows.jsonl: 20 rows" in lines and "max_length        70" in lines
    assert "for training      15, 8 of them with a prompt cut from the left; dropped: 5 too-long" in lines
    assert any("█" in line and "room for 70" in line for line in lines)
    start = lines.index("row 1 for training: trained on, 24 tokens")
    tokens = ["<|user|>", " ", *"what", " ", *"is", " ", "0", "?", "⏎"]
    assert lines[start + 1].strip() == "·".join(tokens)
    end = next(line for line in lines[start:] if line.startswith("  + "))
    assert end.strip() == "+ " + "·".join([" ", *"it", " ", *"is", " ", "0", END])
    assert any(line.startswith("  - <|user|>") for line in lines)
    dropped = next(i for i, line in enumerate(lines) if line.endswith("dropped, too-long, 131 tokens"))
    assert not any(line.startswith("  + ") for line in lines[dropped:])
    assert not list(tmp_path.glob("*.partial"))


def test_the_command_as_json_and_without_a_folder(weightless: Path, tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    demonstrations(tmp_path)
    arguments = ["sft", "--base", str(weightless), "--data", "rows.jsonl"]
    code, out, err = run_cli("train", *arguments, "--check", "--json", "--split", "all")
    assert code == 0, err
    told = json.loads(out)
    assert (told["read"], told["withheld"], told["rows"], told["kept"]) == (20, {}, {"train": {"trained on": 20}}, 20)
    states = [piece["state"] for piece in told["shown"][0]["sides"]["conversation"]]
    assert states == ["context", "learnt"] and told["end_tokens"] == [END]
    code, _, err = run_cli("train", *arguments)
    assert code == 2 and "give --out FOLDER, or --check" in err


def test_a_learnt_token_has_the_colour_of_what_is_learnt(weightless: Path) -> None:
    made = check(settings_of("sft"), weightless, [Demonstration(tuple(talk("u:hi", "a:ok")))])
    console = Console(file=io.StringIO(), force_terminal=True, color_system="256", width=100, record=True)
    checks.print_check(console, Checked(made, 1, {}, []), "rows.jsonl")
    styles = {name: [Style.parse(style) for style in shades] for name, (_, shades) in checks.LOOKS.items()}
    printed = [(segment.text, segment.style) for segment in console._record_buffer]
    wanted = [("<|user|>", "context"), ("i", "context"), (END, "context"), ("k", "learnt"), (END, "learnt")]
    states = [
        (shown, next((state for state, shades in styles.items() if style in shades), None)) for shown, style in printed
    ]
    assert [pair for pair in states if pair[0] in dict(wanted)] == wanted


def test_a_template_without_marks_is_told_with_the_nearest_that_has_them(
    weightless: Path,
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    demonstrations(tmp_path)
    base = shutil.copytree(weightless, tmp_path / "base")
    marked = (base / "chat_template.jinja").read_text()
    bare = marked.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    (base / "chat_template.jinja").write_text(bare)
    arguments = ["train", "sft", "--base", "base", "--data", "rows.jsonl", "--check", "--split", "all"]
    _, out, _ = run_cli(*arguments)
    told = "no marks; turns by the prompts before them; prompts/chat/tiny.jinja marks a format like it"
    assert bare != marked and told in " ".join(out.split()), out
    assert json.loads(run_cli(*arguments, "--json")[1])["nearest"] == "prompts/chat/tiny.jinja"


def test_a_message_of_the_file_reaches_no_screen_as_codes(
    weightless: Path,
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    row = {"prompt": "\x1b[31mred\x07", "completion": "[bold]no[/bold]\x1b]0;t\x07"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    arguments = ["sft", "--base", str(weightless), "--data", "rows.jsonl", "--check", "--split", "all"]
    code, out, err = run_cli("train", *arguments)
    assert code == 0 and "\x1b" not in out and "\x07" not in out and "[·b·o·l·d·]" in out, err


def test_a_plan_counts_what_its_trainings_would_be_trained_on(
    weightless: Path,
    random_model: Path,
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `--check` counts it; of rows or of a base that are not there yet nothing is known."""
    demonstrations(tmp_path)
    trainings = [{"sft": {"base": "base", "name": "one", "max_length": 70}}, {"sft": {"base": "one", "name": "two"}}]
    stages = [{"data": {"path": "rows.jsonl", "split": "all"}}, *({"train": each} for each in trainings)]
    pipeline = {"models": {"base": {"engine": "transformers", "path": str(random_model)}}, "stages": stages}
    (tmp_path / "p.yaml").write_text(json.dumps({"name": "p"} | pipeline))
    arguments = ["sft", "--base", str(weightless), "--data", "rows.jsonl", "--check", "--split", "all", "max_length=70"]
    checked = json.loads(run_cli("train", *arguments, "--json")[1])

    def planned() -> tuple[str, dict[str, Any], Any]:
        said, told = run_cli("plan", "p.yaml")[1], json.loads(run_cli("plan", "p.yaml", "--json")[1])
        one, two = (stage["check"] for stage in told["stages"] if stage["kind"] == "train")
        return " ".join(said.split()), one, two

    said, one, two = planned()
    names = ("rows", "kept", "tokens", "learnt_tokens", "lengths", "steps", "packed")
    assert (
        two is None
        and one["sampled"] is None
        and {name: one[name] for name in names} == {name: checked[name] for name in names}
    )
    start = "rows of one: 15 for training, 8 of them cut, 5 dropped as too-long; "
    assert start + f"{one['tokens']:,} tokens, {one['learnt_tokens']:,} learnt; lengths 20 " in said, said
    assert "█" in said and f"; {one['steps']} step" in said and "rows of two: not known yet" in said

    monkeypatch.setattr(train_stage, "SAMPLED", 7)  # every third row
    said, one, _ = planned()
    assert one["sampled"] == 7 and one["steps"] is None and sum(one["rows"]["train"].values()) == 7
    assert "rows of one (of a sample of 7): " in said

    trainings[0]["sft"]["excess_length"] = "raise"
    (tmp_path / "p.yaml").write_text(json.dumps({"name": "p"} | pipeline))
    said, one, _ = planned()
    assert "tokens more than `max_length` allows" in one["problem"] and f"rows of one: {one['problem'][:40]}" in said
