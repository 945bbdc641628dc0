"""The screen: nothing that a stranger wrote acts on a terminal, hides in it, or breaks out of a card.

Every attempt puts control, bidi or invisible characters where a command shows them, and looks at every byte printed.
"""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from echo import RUBRIC, Echo, write_project
from inside import Done, rlaif
from markdown_it import MarkdownIt
from rich.console import Console as RichConsole
from rich.file_proxy import FileProxy
from serving import Answer, completion, scripted, serve

from rlaif import cli, screen, visible
from rlaif.audits.findings import markdown
from rlaif.errors import InputError
from rlaif.formats import SHAPES, CardFacts
from rlaif.formats.write.card import card_text
from rlaif.pipeline.progress import Lines, Screen
from rlaif.records import (
    Candidate,
    Comparison,
    Completion,
    Message,
    Preference,
    Prompt,
    Ranking,
    Rating,
    Revision,
    Row,
    Score,
    Verdict,
)  # fmt: skip
from rlaif.store import CallStore
from rlaif.train.__main__ import main as train_main

ROOT = Path(__file__).parent.parent.parent

# What a stranger writes, and how it is shown.
HOSTILE = {
    "CSI clears the screen": ("\x1b[2J\x1b[H", r"\x1b[2J\x1b[H"),
    "CSI colours a forged success": ("\x1b[32mdone\x1b[0m", r"\x1b[32mdone\x1b[0m"),
    "OSC 52 fills the clipboard": ("\x1b]52;c;cm0gLXJm\x07", r"\x1b]52;c;cm0gLXJm\x07"),
    "OSC 8 hides a link": ("\x1b]8;;http://evil\x1b\\ok\x1b]8;;\x1b\\", r"\x1b]8;;http://evil\x1b" + "\\"),
    "OSC 0 renames the window": ("\x1b]0;root\x07", r"\x1b]0;root\x07"),
    "DCS": ("\x1bPq#0\x1b\\", r"\x1bPq#0\x1b"),
    "C1 control sequence": ("\x9b31m", r"\x9b31m"),
    "C1 operating system command": ("\x9d52;c;eA==\x9c", r"\x9d52;c;eA==\x9c"),
    "C1 next line": ("a\x85b", r"a\x85b"),
    "bell": ("\x07", r"\x07"),
    "backspaces overwrite": ("bad\x08\x08\x08good", r"bad\x08\x08\x08good"),
    "carriage return overwrites": ("failed\rdone  ", r"failed\rdone"),
    "form feed and vertical tab": ("a\x0cb\x0bc", r"a\x0cb\x0bc"),
    "delete": ("a\x7fb", r"a\x7fb"),
    "shift out": ("a\x0eb", r"a\x0eb"),
    "separators": ("a\x1cb\x1fc", r"a\x1cb\x1fc"),
    "right-to-left override": ("\u202egnp.exe", r"\u202egnp.exe"),
    "isolates": ("\u2066a\u2069", r"\u2066a\u2069"),
    "left-to-right mark": ("a\u200eb", r"a\u200eb"),
    "Arabic letter mark": ("a\u061cb", r"a\u061cb"),
    "zero-width space": ("ad\u200bmin", r"ad\u200bmin"),
    "joiner in Latin": ("ad\u200dmin", r"ad\u200dmin"),
    "non-joiner in Latin": ("ad\u200cmin", r"ad\u200cmin"),
    "word joiner": ("a\u2060b", r"a\u2060b"),
    "byte order mark": ("a\ufeffb", r"a\ufeffb"),
    "soft hyphen": ("a\u00adb", r"a\xadb"),
    "line separators": ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
    "tags spell a message": ("x\U000e0048\U000e0049", r"x\U000e0048\U000e0049"),
    "tags behind a flag": ("\U0001f3f4\U000e0048\U000e0049\U000e007f", r"\U000e0048\U000e0049\U000e007f"),
    "selectors spell a message": ("x\ufe03\ufe04", r"x\ufe03\ufe04"),
    "late selectors spell a message": ("\U0001f600\U000e0158\U000e0155", r"\U000e0158\U000e0155"),
    "selectors in a row": ("\u2764\ufe0f\ufe0f\ufe0e", r"\ufe0f\ufe0e"),
    "joiners in a row": ("\u0645\u06cc\u200c\u200c\u200c\u0645", r"\u200c\u200c"),
    "invisible times": ("a\u2062b", r"a\u2062b"),
    "Hangul filler": ("\u3164", r"\u3164"),
    "grapheme joiner": ("a\u034fb", r"a\u034fb"),
    "private use": ("\ue000\U000f0000", r"\ue000\U000f0000"),
    "unassigned": ("\u0378", r"\u0378"),
    "no character": ("\uffff\U0001fffe", r"\uffff\U0001fffe"),
    "flood of marks": ("Z" + "\u0300" * 20, r"\u0300" * 12),
    "annotation": ("a\ufff9b\ufffbc", r"a\ufff9b\ufffbc"),
}  # fmt: skip
SURROGATE = ("\ud83d", r"\ud83d")  # no file holds it, and JSON does

# Every kind at once, for the doors that take a whole text. Colours among them: on a terminal they must not be ours.
EVIL = "\x1b[31m\x1b]52;c;eAo\x07\x9b32m\x7f\u202e\u2066\u200b\u200fx\u200d\u2060\ufeff\u00ad\U000e0041\u2028\u0085"
SHOWN = r"\x1b[31m\x1b]52;c;eAo\x07\x9b32m\x7f\u202e\u2066\u200b\u200fx\u200d\u2060\ufeff\xad\U000e0041\u2028\x85"
NAME = EVIL.replace("/", "")  # as a file's name

# By code points, not by the tool's own tables.
RAW = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-"
    "\u206f\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff9-\ufffb\uffff\ud800-\udfff\ue000-\uf8ff\U000e0000-\U000e0fff"
    "\U000f0000-\U0010ffff]|(?<=[a-z])[\u200c\u200d]"
)
OURS = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[hl]|[0-9]*[AKG]|2K)|\r")  # what rich writes to a terminal


def held(printed: str, *shown: str) -> None:
    """Nothing hidden was printed, and the escapes were, wherever the lines were folded."""
    assert not RAW.search(printed), repr(RAW.search(printed))
    whole = re.sub(r"\s+", "", printed)
    for escapes in shown:
        assert re.sub(r"\s+", "", escapes) in whole, printed


def refused(done: Done, *shown: str, code: int = 2) -> None:
    """One sentence on the error stream, no traceback, and what was wrong in it is visible."""
    assert done.code == code, done
    assert done.err.startswith("error: ") and done.err.count("\n") == 1 and "Traceback" not in done.err, done.err
    held(done.err + done.out, *shown)


# ---------------------------------------------------------------- one text, as people see it


@pytest.mark.parametrize("attempt", [*HOSTILE, "lone surrogate"])
def test_a_hidden_character_is_shown_as_an_escape(attempt: str) -> None:
    text, shown = (HOSTILE | {"lone surrogate": SURROGATE})[attempt]
    seen = visible.visible(text)
    held(seen, shown)
    assert visible.visible(seen) == seen
    file = io.StringIO()
    console = screen.Console(file=file, width=300, force_terminal=True, color_system=None)
    console.print(screen.Text(text), RichConsole().render_str(text), text)  # ours, a foreign one, and bare
    held(file.getvalue().replace("\x1b[0m", ""), seen)


@pytest.mark.parametrize("attempt", [*HOSTILE, "lone surrogate"])
def test_json_escapes_it_and_keeps_its_value(attempt: str) -> None:
    text, _ = (HOSTILE | {"lone surrogate": SURROGATE})[attempt]
    written = visible.visible_json({"text": f"é 中 {text}", text: 1})
    held(written)
    assert json.loads(written) == {"text": f"é 中 {text}", text: 1} and "é 中" in written
    assert visible.visible_json({"a": text}, ascii_only=True).isascii()


LEGITIMATE = {
    "family": "👨\u200d👩\u200d👧\u200d👦", "flag of a rainbow": "🏳\ufe0f\u200d🌈", "heart": "❤\ufe0f", "keycap": "1\ufe0f\u20e3",
    "heart on fire": "❤\ufe0f\u200d🔥", "astronaut": "👩🏽\u200d🚀", "Scotland": "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "shaking head": "🙂\u200d↔\ufe0f", "younger than Python": "\U0001fae8\U0001fadf", "Persian": "می\u200cخواهم", "Persian plural": "PDF\u200cها",
    "Hindi": "क्\u200dष और र्\u200dय", "Malayalam": "അവന്\u200d വന്നു", "Vietnamese": "Tie\u0302\u0301ng Vie\u0323\u0302t",
    "Hebrew with points": "בְּרֵאשִׁית", "Thai": "ที่นี่", "Chinese": "中文，。\u3000全角", "French": "«\u00a0Où\u202f?\u00a0»",
    "Arabic end of verse": "\u06dd", "mathematics": "∀x∈ℝ: ⌈x⌉ ≠ ½", "code": "def f(x):\n    return x\\n", "Korean": "한국어",
}  # fmt: skip


@pytest.mark.parametrize("script", LEGITIMATE)
def test_what_people_write_stays_as_it_is(script: str) -> None:
    text = LEGITIMATE[script]
    assert visible.visible(text) == text and visible.visible(f"a {text} b") == f"a {text} b"
    assert json.loads(visible.visible_json(text)) == text


def test_tabs_and_line_ends_of_other_systems_are_plain_white_space() -> None:
    assert visible.visible("a\tb\r\n\tc") == "a   b\n    c"


def test_a_long_text_takes_no_time() -> None:
    for text in ("中" * 400_000, "Z" + "\u0300" * 400_000, "\x1b" * 400_000, "x" * 4_000_000):
        assert len(visible.visible(text)) >= len(text)


# ---------------------------------------------------------------- a run that somebody else made


def a_row(text: str) -> Row:
    """A row in which every text is the stranger's."""
    first, second = (
        Candidate(sampler=text, completion=Completion(text=f"{k}{text}", model=text, call=f"{k}{text}"), principle=text)
        for k in "12"
    )
    words = Completion(text=text, model=text, call=text)
    order = Verdict(a=0, b=1, verdict=None, raw=text, reasons=text, problem=text)
    said = Verdict(a=1, b=0, verdict="A", raw=text, reasons=text)
    return Row(
        prompt=Prompt(messages=(Message(role="user", content=f"Say {text}"),), source=text),
        candidates=(first, second),
        ratings=(
            Rating(aspect=text, candidate=0, value=3, raw=text, judge=text, call=text, position=1, types=(text,)),
            Rating(aspect=text, candidate=1, value=None, raw=text, judge=text, call=text, position=1, problem=text),
        ),
        scores=(Score(candidate=0, value=None, judge=text, aspect=text, problem=text),),
        revisions=(
            Revision(candidate=0, number=1, principle=text, critique=words, completion=words),
            Revision(candidate=1, number=1, principle=text, critique=words, completion=None, problem=text),
        ),
        comparisons=(
            Comparison(a=0, b=1, principle=text, judge=text, verdict=None, probability=None, orders=(order, said)),
        ),
        rankings=(Ranking(order=None, shown=(0, 1), judge=text, principle=text, problem=text),),
        failure=text,
    )


def a_run(folder: Path, text: str) -> Path:
    """`runs/theirs`: a run folder whose manifest and rows hold the text wherever they hold one."""
    run, row = folder / "runs/theirs", a_row(text)
    (run / "stages").mkdir(parents=True)
    stage = {"kind": "rate", "from": text, "in": 1, "out": 1, "dropped": {text: 1}, "seconds": 1.0}
    rated = stage | {"name": "rate", "file": "stages/01-rate.jsonl", "kind": "rate"}
    paired = stage | {"name": text, "file": "stages/02-pair.jsonl", "kind": "pair", "from": "rate"}
    call = dict.fromkeys(("sent", "cached", "failed", "cut_at_max_tokens", "prompt_tokens", "completion_tokens"), 1)
    manifest = {
        "format": 1, "name": text, "state": "done", "seconds": 1.0, "stages": [rated, paired],
        "calls": {text: call | {"cost": None}}, "failures": {text: {"count": 1, "row": text, "example": text}},
        "digests": {f"dataset {text}": text, f"rubric {text}": text}, "notes": [text],
    }  # fmt: skip
    (run / "manifest.json").write_text(json.dumps(manifest))
    preference = Preference(
        prompt=row.prompt, chosen=row.candidates[0], rejected=row.candidates[1], rule=text,
        score_chosen=2.0, score_rejected=1.0,
    )  # fmt: skip
    for name, record in (("01-rate", row), ("02-pair", preference)):
        (run / f"stages/{name}.jsonl").write_text(record.model_dump_json() + "\n")
    return run


def shown_by(command: str, folder: Path, text: str, *shown: str) -> None:
    done = rlaif(folder, *command.replace("RUN", "runs/theirs").split())
    assert (done.code, done.err) == (0, ""), command
    if "--json" in command:
        held(done.out)
        assert json.dumps(text)[1:-1] in json.dumps(json.loads(done.out))  # its value is whole
    else:
        held(done.out, *shown)


@pytest.mark.parametrize("attempt", HOSTILE)
def test_a_row_of_somebody_else_cannot_act_on_the_screen(attempt: str, tmp_path: Path) -> None:
    text, shown = HOSTILE[attempt]
    a_run(tmp_path, text)
    shown_by("show RUN 1", tmp_path, text, shown)
    shown_by("show RUN 1 --json", tmp_path, text)


@pytest.mark.parametrize("command", ["status RUN", "status RUN --json", "show RUN", "show RUN --json"])
@pytest.mark.parametrize("attempt", ["OSC 52 fills the clipboard", "C1 control sequence", "right-to-left override"])
def test_a_run_of_somebody_else_cannot_act_on_the_screen(attempt: str, command: str, tmp_path: Path) -> None:
    text, shown = HOSTILE[attempt]
    a_run(tmp_path, text)
    shown_by(command, tmp_path, text, shown)


def test_a_number_that_is_none_is_null_in_json(tmp_path: Path) -> None:
    manifest = a_run(tmp_path, "theirs") / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"seconds": 1.0', '"seconds": NaN'))
    written = rlaif(tmp_path, "status", "runs/theirs", "--json").out
    assert json.loads(written)["seconds"] is None and "NaN" not in written


# ---------------------------------------------------------------- names on the command line and in files


def put(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text, encoding="utf-8")

    return write


def pipeline(old: str, new: str) -> Callable[[Path], None]:
    """The test's project with a line changed."""

    def write(folder: Path) -> None:
        path = write_project(folder, "http://127.0.0.1:9/v1")
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1), encoding="utf-8")

    return write


def project(folder: Path) -> None:
    write_project(folder, "http://127.0.0.1:9/v1")


def both(*steps: Callable[[Path], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for step in steps:
            step(folder)

    return write


def nothing(folder: Path) -> None: ...


def theirs(folder: Path) -> None:
    a_run(folder, EVIL)


QUOTED = json.dumps(EVIL)  # as YAML and JSON hold it
INPUTS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "a command": (nothing, [EVIL]),
    "an option": (nothing, ["status", f"--{EVIL}"]),
    "an option's value": (nothing, ["try", "a", "b", "--seed", EVIL]),
    "a surplus argument": (nothing, ["status", "a", EVIL]),
    "a run folder that is not there": (nothing, ["status", f"runs/{NAME}"]),
    "the runs beside it": (lambda folder: a_run(folder, "x").rename(folder / "runs" / NAME) and None, ["show", "runs/x"]),
    "a row": (theirs, ["show", "runs/theirs", EVIL]),
    "a stage": (theirs, ["show", "runs/theirs", "--stage", EVIL]),
    "an export's shape": (theirs, ["export", "runs/theirs", "--format", "nil", "--to", "there"]),
    "an export's shape that is asked for": (theirs, ["export", "runs/theirs", "--format", EVIL, "--to", "there"]),
    "an export's target": (theirs, ["export", "runs/theirs", "--format", f"hh-{EVIL}", "--to", "runs"]),
    "a cache action": (nothing, ["cache", EVIL]),
    "a pipeline's path": (nothing, ["plan", f"{NAME}.yaml"]),
    "a pipeline's name": (put(f"{NAME}.yaml", "name: x\nstagse: []\n"), ["plan", f"{NAME}.yaml"]),
    "an unknown key": (pipeline("per_prompt: 2", f"{QUOTED}: 2"), ["plan", "echo.yaml"]),
    "a wrong value": (pipeline("per_prompt: 2", f"per_prompt: {QUOTED}"), ["plan", "echo.yaml"]),
    "an unknown stage": (pipeline("- rate:", f"- {QUOTED}:"), ["plan", "echo.yaml"]),
    "an unknown engine": (pipeline("engine: openai", f"engine: {QUOTED}"), ["plan", "echo.yaml"]),
    "an unknown model": (pipeline("[one, two]", f"[one, {QUOTED}]"), ["plan", "echo.yaml"]),
    "a pipeline called so": (pipeline("name: echo", f"name: {QUOTED}"), ["plan", "echo.yaml"]),
    "a duplicate key": (pipeline("name: echo", f"{QUOTED}: 1\n{QUOTED}: 2"), ["plan", "echo.yaml"]),
    "broken YAML": (pipeline("name: echo", f"name: {{{QUOTED}: ["), ["plan", "echo.yaml"]),
    "an unprintable character in YAML": (pipeline("name: echo", "name: \x1b[31m"), ["plan", "echo.yaml"]),
    "an alias in YAML": (pipeline("name: echo", "name: *\u202ex\u200b"), ["plan", "echo.yaml"]),
    "a tag in YAML": (pipeline("name: echo", "name: !\u202ex\u200b 1"), ["plan", "echo.yaml"]),
    "an override's key": (project, ["plan", "echo.yaml", f"{EVIL}=1"]),
    "an override's value": (project, ["plan", "echo.yaml", f"seed={EVIL}"]),
    "an override without a value": (project, ["plan", "echo.yaml", EVIL]),
    "a rubric's path": (pipeline("rubric.yaml", QUOTED), ["plan", "echo.yaml"]),
    "a prompts file's path": (pipeline("prompts.jsonl", QUOTED), ["plan", "echo.yaml"]),
    "a template's path": (pipeline("reask: 1", f"template: {QUOTED}"), ["plan", "echo.yaml"]),
    "a rubric's key": (both(project, put("rubric.yaml", f"{RUBRIC}{QUOTED}: 1\n")), ["plan", "echo.yaml"]),
    "a prompt's column": (both(project, put("prompts.jsonl", f'{{{QUOTED}: "x"}}\n')), ["plan", "echo.yaml"]),
    "columns that a judge reads": (put("data.jsonl", f'{{{QUOTED}: "x"}}\n'), ["judge", "data.jsonl", "--by", "http://127.0.0.1:9/v1", "--model", "m"]),
    "a data set's path": (nothing, ["judge", EVIL, "--by", "http://127.0.0.1:9/v1", "--model", "m"]),
    "a judge's folder": (put("data.jsonl", '{"prompt": "x", "chosen": "a", "rejected": "b"}\n'), ["judge", "data.jsonl", "--by", EVIL]),
    "a judge's setting": (put("data.jsonl", '{"prompt": "x", "chosen": "a", "rejected": "b"}\n'), ["judge", "data.jsonl", "--by", "http://127.0.0.1:9/v1", "--model", "m", f"{EVIL}=1"]),
    "a judge's method": (nothing, ["audit", "http://127.0.0.1:9/v1", "--method", EVIL]),
    "an audited judge": (nothing, ["audit", EVIL]),
    "gold pairs' path": (nothing, ["audit", "http://127.0.0.1:9/v1", "--model", "m", "--gold", EVIL]),
    "gold pairs' columns": (put("gold.jsonl", f'{{{QUOTED}: 1}}\n'), ["audit", "http://127.0.0.1:9/v1", "--model", "m", "--gold", "gold.jsonl"]),
    "a trainer": (nothing, ["train", EVIL, "--base", "x", "--data", "y", "--out", "z"]),
    "a trainer's base": (put("data.jsonl", '{"prompt": "x", "completion": "a"}\n'), ["train", "sft", "--base", NAME, "--data", "data.jsonl", "--out", "z"]),
    "a trainer's data": (nothing, ["train", "sft", "--base", "tiny/base", "--data", EVIL, "--out", "z"]),
    "a trainer's setting": (put("data.jsonl", '{"prompt": "x", "completion": "a"}\n'), ["train", "sft", "--base", "tiny/base", "--data", "data.jsonl", "--out", "z", f"{EVIL}=1"]),
    "a question": (nothing, ["try", EVIL, "Prefer the polite completion."]),
    "a principle": (nothing, ["try", "what is the capital of velmar ?", EVIL]),
    "a project's folder": (lambda folder: (folder / NAME).mkdir() or (folder / NAME / "x").touch(), ["init", NAME]),
}  # fmt: skip


UNTOLD = {
    "an option's value",
    "a principle",
    "broken YAML",
    "an unprintable character in YAML",
    "an override's value",
}  # not repeated


@pytest.mark.parametrize("door", INPUTS)
def test_an_error_shows_what_was_wrong_and_obeys_none_of_it(door: str, tmp_path: Path) -> None:
    prepare, arguments = INPUTS[door]
    prepare(tmp_path)
    done = rlaif(tmp_path, *arguments)
    told = [] if door in UNTOLD else [r"\u202e"]
    refused(done, *told, code=1 if door == "an export's shape that is asked for" else 2)


# ---------------------------------------------------------------- servers, stores, cards


NO_RETRY = [f"models.{name}.retries=0" for name in ("one", "two", "judge")]


def test_the_list_of_a_servers_models_is_shown_escaped(tmp_path: Path) -> None:
    listed = {"object": "list", "data": [{"id": EVIL, "object": "model"}]}
    with scripted([Answer(listed)]) as server:
        write_project(tmp_path, server.base_url)
        done = rlaif(tmp_path, "run", "echo.yaml", *NO_RETRY)
    assert done.code in (1, 2)
    held(done.out + done.err, SHOWN.removesuffix(r"\u2028\x85"))  # line separators at its end are white space


@pytest.mark.parametrize("status", [400, 401, 404, 422, 500, 503])
def test_a_servers_error_is_shown_escaped(status: int, tmp_path: Path) -> None:
    def answer(_: dict[str, Any]) -> dict[str, Any]:
        return {"error": {"message": EVIL, "code": EVIL, "type": EVIL}}

    with scripted([Answer(answer, status=status)]) as server:
        write_project(tmp_path, server.base_url, prompts=1)
        done = rlaif(tmp_path, "run", "echo.yaml", *NO_RETRY)
        assert done.code == 1, done
        held(done.out + done.err)
        shown = rlaif(tmp_path, "status", "runs/echo"), rlaif(tmp_path, "status", "runs/echo", "--json")
    for one in shown:
        held(one.out + one.err)


def test_what_a_model_says_and_its_judge_too_is_shown_escaped(tmp_path: Path) -> None:
    with scripted([Answer(lambda body: completion(*[EVIL + str(k) for k in range(body.get("n") or 1)]))]) as server:
        write_project(tmp_path, server.base_url)
        done = rlaif(tmp_path, "run", "echo.yaml")
        held(done.out + done.err)
        for command in (
            "status runs/echo",
            "show runs/echo --stage sample",
            "show runs/echo 1",
            "cache",
            "cache verify",
        ):
            one = rlaif(tmp_path, *command.split())
            held(one.out + one.err, *([SHOWN] if command == "show runs/echo 1" else []))
        one = rlaif(tmp_path, "show", "runs/echo", "1", "--json")
        held(one.out)
        assert json.loads(one.out)["candidates"][0]["completion"]["text"].startswith(EVIL[:-1])


def test_a_data_files_names_are_shown_escaped_by_every_command_that_follows(tmp_path: Path) -> None:
    rows = [
        {"source": EVIL, "instruction": f"{k} {EVIL}", "models": [f"{EVIL}a", f"{EVIL}b"],
         "completions": [{"model": f"{EVIL}{m}", "response": f"x {said}{EVIL}", "annotations": {}} for m, said in ("a ", "by")]}
        for k in range(2)
    ]  # fmt: skip
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    with serve({EVIL: Echo(EVIL)}) as url:
        judge = ("judge", "theirs.jsonl", "--by", url, "--model", EVIL, "--method", "rate", "rubric=rubric.yaml")
        done = rlaif(tmp_path, *judge)
        assert done.code == 1 and "no preference was made of 2 rows (2 tie)" in done.out, done
        held(done.out + done.err)
    for command in (
        "status R",
        "status R --json",
        "show R",
        "show R 1",
        "show R 1 --json",
        "cache",
        "cache --json",
        "audit R",
    ):
        done = rlaif(tmp_path, *command.replace("R", "runs/judged").split())
        assert done.code == 0, done
        held(done.out + done.err, *([SHOWN] if command in ("show R", "show R 1", "cache") else []))
    suffixes = (".md", ".json", ".yaml", ".jsonl")
    written = [
        path
        for path in tmp_path.rglob("*")
        if path.suffix in suffixes and path.parent.name not in ("stages", tmp_path.name)
    ]
    assert len(written) >= 6
    for path in written:
        held(path.read_text(encoding="utf-8"))


STRENGTHS = """\
name: strengths
models: {none: {engine: openai, model: m, base_url: "http://127.0.0.1:9/v1"}}
stages:
  - data: {path: rows.jsonl, held_out: keep}
  - elo: {}
"""


def test_a_data_files_models_are_shown_escaped_beside_their_strengths(tmp_path: Path) -> None:
    two = {"completion_a": "x", "completion_b": "y", "model_a": f"{EVIL}a", "model_b": f"{EVIL}b"}
    rows = [two | {"prompt": f"q{k}", "label": "ab"[k % 2]} for k in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "strengths.yaml").write_text(STRENGTHS)
    done = rlaif(tmp_path, "run", "strengths.yaml")
    assert done.code == 0, done
    held(done.out + done.err, f"{SHOWN}a", f"{SHOWN}b")
    held((tmp_path / "runs/strengths/report/elo.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "attempt", ["CSI clears the screen", "C1 control sequence", "right-to-left override", "separators"]
)
def test_the_names_in_a_store_are_shown_escaped(attempt: str, tmp_path: Path) -> None:
    import sqlite3

    text, shown = HOSTILE[attempt]
    (tmp_path / "runs").mkdir()
    CallStore(tmp_path / "runs/calls.sqlite", run="x").close()
    with sqlite3.connect(tmp_path / "runs/calls.sqlite") as db:
        row = (text, f"server:{text}:0123", text, 1.0, 1, 1, b"", b"")
        db.execute("INSERT INTO calls VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    db.close()
    done = rlaif(tmp_path, "cache")
    assert done.code == 0
    held(done.out, shown)
    held(rlaif(tmp_path, "cache", "--json").out)
    verified = rlaif(tmp_path, "cache", "verify")
    assert verified.code == 1
    held(verified.out + verified.err)


MARKUP = {
    "a heading": "x\n# Head", "front matter": "x\n---\ntags: [evil]\n---\n", "front matter's end": "---", "a script": "<script>alert(1)</script>",
    "an image": "![x](http://evil/x.png)", "an image in HTML": "<img src=http://evil/x.png onerror=alert(1)>", "a link": "[x](http://evil)",
    "a link by reference": "[x][1]\n\n[1]: http://evil", "an autolink": "<http://evil>", "a bare link": "http://evil www.evil.example HTTPS://evil",
    "code": "``` `x` ``", "a code block": "```python\nimport os\n```", "a cell": "a | b | c", "a table": "| a |\n|---|\n| b |",
    "emphasis": "**b** _i_ ~~s~~ __b__", "an entity": "&lt;img src=x&gt; &#60;b&#62;", "a comment": "<!-- x", "a list": "- x\n- y", "a number": "1. x",
    "a quotation": "> x", "mathematics": "$\\href{http://evil}{x}$", "a back-slash": "\\<b\\>\\", "a setext heading": "x\n===", "control": EVIL,
    "bidi": "\u202egnp.exe",
}  # fmt: skip


def acts(source: str) -> list[str]:
    """What Markdown makes of it besides text and code: HTML, images, links, emphasis, and headings of level 1."""
    reader = MarkdownIt("commonmark", {"linkify": False}).enable(["table", "strikethrough"])
    tokens = [inner for token in reader.parse(source) for inner in (token, *(token.children or ()))]
    kinds = {
        "html_block",
        "html_inline",
        "image",
        "link_open",
        "em_open",
        "strong_open",
        "s_open",
        "blockquote_open",
        "hr",
    }
    return [token.type for token in tokens if token.type in kinds]


@pytest.mark.parametrize("attempt", MARKUP)
def test_a_card_cannot_be_broken_out_of(attempt: str) -> None:
    text = MARKUP[attempt]
    facts = CardFacts(text, 3, {text: 2, "tie": 0}, {text: text, "m": "n"}, {text: text, f"rubric {text}": text})
    card = card_text(SHAPES["preference"], 1, 1, facts)
    held(card)
    empty, header, body = re.split(r"^---\n", card, maxsplit=2, flags=re.MULTILINE)
    plain = card_text(
        SHAPES["preference"], 1, 1, CardFacts("name", 3, {"y": 2, "tie": 0}, {"a": "b", "m": "n"}, {"c": "d", "e": "f"})
    )
    front = yaml.safe_load(header)
    assert empty == "" and list(front) == ["pretty_name", "tags", "configs"] and front["tags"][0] == "rlaif"
    assert acts(body) == [] and "://" not in re.sub(r"`[^`]*`|`` .* ``", "", body.replace("\\:", ""))
    assert [line for line in body.splitlines() if line.startswith("#")][1:] == [
        line for line in plain.splitlines() if line.startswith("#")
    ][1:]
    assert len(body.splitlines()) == len(plain.split("---\n", 2)[2].splitlines())


@pytest.mark.parametrize("attempt", MARKUP)
def test_an_audits_report_cannot_be_broken_out_of(attempt: str) -> None:
    text = MARKUP[attempt]
    share = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 50}
    nothing = {"tie": None, "unparsed": share, "unparsed_example": text, "failed": share, "failed_example": text}
    figures = {
        "verdicts": nothing, "position": {"consistency": None}, "length": {"prefers_longer": None}, "by_category": {text: share},
        "wins": {text: share}, "judges_own_models": [text], "ratings": {},
        "jury": {"members": {text: share}, "fitted_weights": {text: 1.0}, "fleiss_kappa": None},
    }  # fmt: skip
    report = markdown({"judge": text, "asked": "how", "figures": figures})
    held(report)
    assert set(acts(report)) <= {"strong_open"} and acts(report).count("strong_open") == 1
    assert report.count("\n#") == 3
    rows = [line for line in report.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} <= {3, 4}
    file = io.StringIO()
    screen.Console(file=file, width=80, force_terminal=True).print(screen.markdown(report))
    assert "\x1b]" not in file.getvalue()
    held(OURS.sub("", file.getvalue()))


def test_an_exports_card_and_its_folder_are_safe(tmp_path: Path) -> None:
    a_run(tmp_path, EVIL)
    done = rlaif(tmp_path, "export", "runs/theirs", "--format", f"hh-{EVIL}", "--to", NAME)
    held(done.out + done.err)
    found = re.search(r"it has (.*)\n", rlaif(tmp_path, "export", "runs/theirs", "--format", "?", "--to", "x").err)
    assert found and r"\u202e" in found[1]


# ---------------------------------------------------------------- what others print, and real terminals


def noises(text: str) -> dict[str, Callable[[], object]]:
    logger = logging.getLogger("hostile")
    logger.propagate = False
    return {
        "print": lambda: print(text), "stderr": lambda: sys.stderr.write(f"{text}\n"), "lines": lambda: sys.stdout.writelines([f"{text}\n"]),
        "a warning": lambda: sys.stderr.write(warnings.formatwarning(text, UserWarning, text, 1, line=text)),
        "a log": lambda: (logger.addHandler(handler := logging.StreamHandler()), logger.warning(text), logger.removeHandler(handler)),
    }  # fmt: skip


@pytest.mark.parametrize("way", noises(""))
def test_what_a_library_prints_is_escaped(way: str) -> None:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), screen.guarded():
        noises(EVIL)[way]()
    held(out.getvalue() + err.getvalue(), SHOWN)


def test_what_a_library_prints_while_a_command_runs_is_escaped(tmp_path: Path) -> None:
    def noisy(_: object) -> None:
        print(EVIL, file=sys.stderr)
        print(EVIL)
        raise OSError

    (tmp_path / "theirs.yaml").write_text("name: theirs")
    with patch("yaml.SafeLoader.get_single_node", noisy):
        done = rlaif(tmp_path, "plan", "theirs.yaml")
    assert done.code == 1
    held(done.out, SHOWN)
    held(done.err, SHOWN)


@pytest.mark.parametrize("way", noises(""))
def test_what_a_library_prints_beside_the_live_table_is_escaped(way: str) -> None:
    file = io.StringIO()
    console = screen.Console(file=file, width=200, force_terminal=True)
    with screen.guarded(), Screen(console, "run") as shown:
        shown.begin("one", "rate", 3)
        noises(EVIL)[way]()
    assert "\x1b[31m" not in file.getvalue() and "\x1b]" not in file.getvalue()
    held(OURS.sub("", file.getvalue()), SHOWN)


def test_a_progress_bar_of_a_library_keeps_its_line() -> None:
    err = io.StringIO()
    with redirect_stderr(err), screen.guarded():
        sys.stderr.write(f"\r 50%|#  | {EVIL}")
        sys.stderr.write("\x1b[A")
    assert err.getvalue() == f"\r 50%|#  | {SHOWN}\x1b[A"


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_progress_shows_names_and_notes_escaped(terminal: bool) -> None:
    file = io.StringIO()
    console = screen.Console(file=file, width=300, force_terminal=terminal)
    with Screen(console, EVIL) if terminal else Lines(console) as progress:
        progress.begin(EVIL, "rate", 3)
        progress.advance(EVIL)
        progress.note(EVIL)
        progress.pulse(EVIL)
        progress.warn(f"{EVIL}\nerror: forged")
        progress.announce(EVIL)
        progress.end(EVIL, EVIL)
    held(OURS.sub("", file.getvalue()), SHOWN, rf"{SHOWN}\nerror: forged")


def test_a_training_process_shows_what_failed_escaped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train_main([str(tmp_path / f"{NAME}.partial")]) == 2
    assert train_main([f"--{EVIL}", "x"]) == 2
    printed = capfd.readouterr()
    held(printed.out + printed.err, SHOWN)


@pytest.mark.parametrize("attempt", HOSTILE)
def test_an_error_in_python_is_shown_escaped(attempt: str) -> None:
    text, shown = HOSTILE[attempt]
    held(str(InputError(text, file=text, key=text, fix=text)), shown)


def command(*arguments: str, **streams: Any) -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "rlaif.cli", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"} | streams.pop("env", {})
    return subprocess.run(argv, env=env, timeout=60, **streams)


def test_our_own_styles_pass_richs_own_proxy_of_a_guarded_stream() -> None:
    out = io.StringIO()
    with redirect_stdout(out), screen.guarded():
        console = screen.Console(force_terminal=True, color_system="standard")
        with redirect_stdout(FileProxy(console, sys.stdout)):  # as while a live table is shown
            console.print(screen.Text("ours", style="red"))
    assert out.getvalue() == "\x1b[31mours\x1b[0m\n"


def test_no_link_reaches_the_terminal_whoever_made_it() -> None:
    file = io.StringIO()
    console = screen.Console(file=file, force_terminal=True, color_system="standard")
    console.print(RichConsole().render_str("[link=http://evil]x[/link]"), screen.markdown("[y](http://evil)"))
    assert "\x1b]" not in file.getvalue() and "http://evil" in file.getvalue()


def test_what_rich_would_drop_is_shown() -> None:
    text = screen.Text.assemble("a\x07", ("b\x08", "red")).append("c\x0b")
    assert text.plain == r"a\x07b\x08c\x0b"


@pytest.mark.parametrize("live", [False, True], ids=["console", "live"])
def test_our_own_styles_pass_the_guard(live: bool) -> None:
    out = io.StringIO()
    with redirect_stdout(out), screen.guarded():
        console = screen.Console(force_terminal=True, color_system="standard", width=200)
        with Screen(console, "run") if live else redirect_stderr(io.StringIO()):
            console.print(screen.Text(f"ours {EVIL}", style="red"))
    assert "\x1b[31mours " in out.getvalue() and r"\x1b[0m" not in out.getvalue()
    held(OURS.sub("", out.getvalue()), SHOWN)


@pytest.mark.parametrize(("width", "arguments"), [(60, ("show", "runs/theirs", "1")), (100, ("status", "runs/theirs"))])
def test_on_a_real_terminal_only_our_own_styles_arrive(width: int, arguments: tuple[str, ...], tmp_path: Path) -> None:
    a_run(tmp_path, EVIL)
    ours, theirs = pty.openpty()
    env = {"COLUMNS": str(width), "TERM": "xterm-256color"}
    done = command(*arguments, cwd=tmp_path, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    printed = _all_of(ours)
    os.close(ours)
    assert done.returncode == 0 and "\x1b[" in printed  # it was one
    whole = OURS.sub("", printed)
    held(whole, r"\u202e", r"\u2028")
    assert max(map(len, whole.split("\n"))) <= width


def _all_of(terminal: int) -> str:
    parts = []
    try:
        while part := os.read(terminal, 65536):
            parts.append(part)
    except OSError:  # its other end is closed
        pass
    return b"".join(parts).decode()


# ---------------------------------------------------------------- output that cannot be written


FULL = {"show": ("show", "runs/theirs", "1"), "show --json": ("show", "runs/theirs", "1", "--json")}  # fmt: skip


@pytest.mark.parametrize("door", FULL)
def test_a_full_disk_under_the_output_is_the_cause_that_is_told(door: str, tmp_path: Path) -> None:
    a_run(tmp_path, "theirs")
    with open("/dev/full", "wb") as full:
        done = command(*FULL[door], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and done.stderr.startswith(b"error: No space left on device"), done
    assert done.stderr.count(b"\n") == 1


def test_a_closed_output_is_the_cause_that_is_told(tmp_path: Path) -> None:
    a_run(tmp_path, "theirs")
    call = f"{sys.executable} -m rlaif.cli show runs/theirs 1 >&-"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", call], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the standard output is closed. Fix: send it to a file or to /dev/null\n"


def test_without_an_error_stream_the_exit_code_tells(tmp_path: Path) -> None:
    call = f"{sys.executable} -m rlaif.cli show runs/none 2>&-"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", call], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.parametrize(
    ("form", "encoding"), [("text", "ascii"), ("json", "ascii"), ("json", "latin-1"), ("json", "utf-16")]
)
def test_an_output_that_holds_fewer_characters_gets_escapes(form: str, encoding: str, tmp_path: Path) -> None:
    a_run(tmp_path, "é 中 🙂 \x9b\u202e")
    arguments = ["rlaif", "show", "runs/theirs", "1", *(["--json"] if form == "json" else [])]
    written = io.BytesIO()
    out = io.TextIOWrapper(written, encoding=encoding)
    with (
        chdir(tmp_path),
        patch.object(sys, "argv", arguments),
        redirect_stdout(out),
        pytest.raises(SystemExit) as exit_,
    ):
        cli.main()
    out.flush()
    printed = written.getvalue().decode(encoding)
    assert exit_.value.code == 0
    held(printed)
    if form == "json":
        assert json.loads(printed)["failure"] == "é 中 🙂 \x9b\u202e"
    else:
        assert r"\u4e2d" in printed and r"\u202e" in printed


def test_a_run_goes_on_when_its_progress_cannot_be_written(tmp_path: Path) -> None:
    models = {name: Echo(name) for name in ("one", "two", "judge")}
    with serve(models) as url, open("/dev/full", "wb") as full:
        write_project(tmp_path, url, prompts=2)
        done = command("run", "echo.yaml", cwd=tmp_path, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and done.stderr.startswith(b"error: No space left on device"), done
    assert json.loads((tmp_path / "runs/echo/manifest.json").read_text())["state"] == "done"


# ---------------------------------------------------------------- the one door


DOORS = {
    "rlaif/screen.py",
    "rlaif/cli/terminal.py",
    "rlaif/cli/ending.py",  # one sentence in ASCII, where there is no memory to load the screen
    "rlaif/templates/apart.py",  # to the process that it started
    "rlaif/train/__main__.py",
    "rlaif/tiny/build/__main__.py",
}


def printing(source: str) -> list[str]:
    """What in a module prints around the door: calls of print, echo and write, rich's own consoles and texts."""
    found: list[str] = []
    if not re.search(r"print\(|echo|\.write|rich", source):  # to parse takes time
        return found
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if re.fullmatch(
                r"print|(typer|click)\.(echo|secho)|sys\.(__)?std(out|err)(__)?\.write|os\.write|rich\.print", name
            ):
                found.append(name)
        elif isinstance(node, ast.ImportFrom) and node.module in ("rich.console", "rich.text", "rich.markdown", "rich"):
            found += [
                alias.name for alias in node.names if alias.name in ("Console", "Text", "Markdown", "print", "text")
            ]
    return found


def test_nothing_prints_around_the_one_door() -> None:
    modules = {
        str(path.relative_to(ROOT)): printing(path.read_text(encoding="utf-8"))
        for path in (ROOT / "rlaif").rglob("*.py")
    }
    assert len(modules) > 100
    assert {name: found for name, found in modules.items() if found and name not in DOORS} == {}


def test_a_module_that_prints_would_be_seen() -> None:
    assert printing("from rich.console import Console, Group\nimport sys\nprint(1)\nsys.stdout.write('')") == [
        "Console", "print", "sys.stdout.write",
    ]  # fmt: skip
