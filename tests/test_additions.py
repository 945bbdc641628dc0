"""What it takes to add a stage, a trainer, a way to answer, an engine, a measure or a shape of data: the files of
CONTRIBUTING's table.

All are made in one copy of the package, counted, and used from its command line. A new file and the line that registers
it in a dictionary literal count as one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import make_random_model
from echo import PIPELINE, RUBRIC, Echo, write_project, write_prompts
from serving import serve

ROOT = Path(__file__).parent.parent
Edit = tuple[str, str]  # a text of a file, and what stands after it from then on


@dataclass
class Addition:
    """New files, edits of files that are there, and registrations: lines of a dictionary literal
    and what they name, an import or a function that imports it late."""

    new: dict[str, str]
    edits: dict[str, list[Edit]]
    registrations: dict[str, list[Edit]]
    pipeline: str
    at_most: int
    touched: set[str] = field(default_factory=set)

    def make(self, package: Path) -> None:
        for name, text in self.new.items():
            assert not (package / name).exists()
            (package / name).write_text(text, encoding="utf-8")
        for name, edits in [*self.edits.items(), *self.registrations.items()]:
            source = (package / name).read_text(encoding="utf-8")
            for after, text in edits:
                assert source.count(after) == 1, f"{name} holds {after!r} {source.count(after)} times"
                source = source.replace(after, after + text)
            (package / name).write_text(source, encoding="utf-8")
        # Where a new file is registered stands for that file; where an old one is, it is a file of its own.
        self.touched = {*self.new, *self.edits}
        assert len(self.registrations) <= max(len(self.new), 1)


def judged_by(stage: str) -> str:
    """Echo's pipeline with another judging stage, whose pairing is its own."""
    judged = PIPELINE.replace("rate: {{model: judge, rubric: rubric.yaml, reask: 1}}", stage)
    return judged.replace("{{rule: best-worst}}", "{{}}")


STAGES = "pipeline/stages/__init__.py"
SETTINGS = "config/stages.py"

FLAG = Addition(
    new={
        "pipeline/stages/flag.py": '''\
"""The `flag` stage: whether a judge objects to a completion."""

from rlaif.config.stages import FlagStage
from rlaif.engines.asking import Asking, together
from rlaif.generate.pairing import Pairing
from rlaif.pipeline.stages.stage import RowStage
from rlaif.records import Flag, Message, Row


class FlagEach(RowStage[FlagStage]):
    facts = ("flags",)

    async def row(self, row: Row, asking: Asking) -> Row:
        asker = asking.asker(self.settings.model, self.settings.sampling)
        shown = [(Message(role="user", content=f"Is it odd? {c.completion.text}"),) for c in row.candidates]
        replies = await together(*(asker.one(messages) for messages in shown))
        flags = tuple(
            Flag(candidate=i, odd=len(reply.text.split()), judge=reply.model, calls=(reply.call,))
            for i, reply in enumerate(replies)
        )
        return row.model_copy(update={"flags": flags})

    def count(self, row, facts):
        facts["flags"] += len(row.flags)

    def pairing(self) -> Pairing:
        return Pairing("best-worst", "flags", scores_of=lambda row: {f.candidate: -f.odd for f in row.flags})
'''
    },
    edits={
        SETTINGS: [
            ("        EloStage,\n", "        FlagStage,\n"),
            ('    reads = ("rate", "compare", "rank", "score", "verify", "person", "data"', ', "flag"'),
            (
                "    prior: float = Field(default=0.0, ge=0)\n",
                "\n\nclass FlagStage(StageSettings):\n"
                '    kind = "flag"\n    streams = True\n    reads = ("sample",)\n    model: Name\n'
                "    sampling: JudgeSampling = JudgeSampling()\n\n"
                "    def models_used(self) -> list[Use]:\n        return _used(self, \"model\")\n",
            ),
        ],
        "records.py": [
            ('Choice = Literal["A", "B", "tie"]\n', "\n\nclass Flag(Judgement):\n    candidate: int\n    odd: int\n"
             "    judge: str\n    calls: tuple[str, ...] = ()\n"),
            ("    scores: tuple[Score, ...] = ()\n", "    flags: tuple[Flag, ...] = ()\n"),
        ],
    },
    registrations={
        STAGES: [
            ("from rlaif.pipeline.stages.elo import Elo\n", "from rlaif.pipeline.stages.flag import FlagEach\n"),
            ('    "elo": Elo,\n', '    "flag": FlagEach,\n'),
        ]
    },
    pipeline=judged_by("flag: {{model: judge}}"),
    at_most=3,
)  # fmt: skip

WORDS = Addition(
    new={
        "pipeline/stages/words.py": '''\
"""The `words` stage: how many words a completion has, as a score."""

from rlaif.config.stages import WordsStage
from rlaif.engines.asking import Asking
from rlaif.generate.pairing import Pairing
from rlaif.pipeline.stages.stage import RowStage
from rlaif.records import Row, Score


class Words(RowStage[WordsStage]):
    facts = ("scores",)

    async def row(self, row: Row, asking: Asking) -> Row:
        counts = [len(candidate.completion.text.split()) for candidate in row.candidates]
        scores = [Score(candidate=i, value=float(count), judge="words") for i, count in enumerate(counts)]
        return row.model_copy(update={"scores": tuple(scores)})

    def count(self, row, facts):
        facts["scores"] += len(row.scores)

    def pairing(self) -> Pairing:
        return Pairing("best-worst", "scores", judge="words")
'''
    },
    edits={
        SETTINGS: [
            ("        EloStage,\n", "        WordsStage,\n"),
            ('    reads = ("rate", "compare", "rank", "score", "verify", "person", "data"', ', "words"'),
            (
                "    prior: float = Field(default=0.0, ge=0)\n",
                '\n\nclass WordsStage(StageSettings):\n    kind = "words"\n'
                '    streams = True\n    reads = ("sample",)\n',
            ),
        ]
    },
    registrations={
        STAGES: [
            ("from rlaif.pipeline.stages.elo import Elo\n", "from rlaif.pipeline.stages.words import Words\n"),
            ('    "elo": Elo,\n', '    "words": Words,\n'),
        ]
    },
    pipeline=judged_by("words: {{}}"),
    at_most=2,
)

COUNTED = Addition(
    new={},
    edits={
        SETTINGS: [
            ("ONE_BY_ONE = {", '"counted": "prompts/rate-critique.jinja", '),
            ('    answers: Literal["json",', ' "counted",'),
        ]
    },
    registrations={
        "judges/rating.py": [
            (
                '    "json": Answers(_read_ratings("json"), _schema),\n',
                '    "counted": Answers(lambda text, n, aspect, rubric, cut:\n'
                "        [Reading(min(rubric.scale.high, int(text.split()[-1])), text)]),\n",
            ),
        ]
    },
    pipeline=PIPELINE.replace("reask: 1", "answers: counted"),
    at_most=2,
)

PARROT = Addition(
    new={
        "engines/parrot.py": '''\
"""An engine that says the last word of what it is asked, so many times as a hash says."""

from rlaif.engines.protocol import Reply
from rlaif.records import digest


class Parrot:
    in_process, batch_size = True, 8

    def __init__(self, name):
        self.name = name

    @property
    def identity(self):
        return "parrot"

    async def sample(self, requests):
        return [[self._said(request, index) for index in request.indices] for request in requests]

    def _said(self, request, index):
        word = request.messages[-1].content.split()[-1]
        times = 1 + int(digest([word, index])[0], 16) % 5
        return Reply(text=" ".join([word] * times), finish_reason="stop")

    async def close(self): ...
'''
    },
    edits={
        "config/models.py": [
            (
                'OPENAI = "https://api.openai.com"\n',
                '\n\nclass ParrotModel(Model):\n    engine: Literal["parrot"]\n'
                "    sampling: SamplingSettings = SamplingSettings()\n",
            ),
            ('    "openai": OpenAIModel,\n', '    "parrot": ParrotModel,\n'),
        ]
    },
    registrations={
        "engines/open.py": [
            (
                '    "openai": _openai,\n',
                '    "parrot": _parrot,\n',
            ),
            (
                "    return OpenAIEngine(name, spec, api_key(spec), wires, extra_of(name, spec))\n",
                "\n\ndef _parrot(name, spec, wires):\n"
                "    from rlaif.engines.parrot import Parrot\n\n    return Parrot(name)\n",
            ),
        ]
    },
    pipeline=PIPELINE.replace('{{engine: openai, model: one, base_url: "{url}"}}', "{{engine: parrot}}"),
    at_most=2,
)

LONGEST = Addition(
    new={
        "measures/longest.py": '''\
"""The longest completion, in words."""

from rlaif.measures.lines import Line


async def figures(model, baseline, setting):
    return {"longest": max(len(completion.text.split()) for completion in model.there)}


def lines(summary, baseline):
    return [Line("longest", lambda model, summary: str(model["longest"]))]
'''
    },
    edits={},
    registrations={
        "measures/__init__.py": [
            ("from rlaif.measures import ", "longest, "),
            (
                '    "length": Measure(length.figures, length.lines),\n',
                '    "longest": Measure(longest.figures, longest.lines),\n',
            ),
        ]
    },
    pipeline=PIPELINE.partition("  - sample")[0] + "  - measure: {{models: [one, two]}}\n",
    at_most=1,
)

COPYING = Addition(
    new={
        "train/copying.py": '''\
"""A trainer that learns nothing: the base model, saved as trained."""

import time

from rlaif.train import models
from rlaif.train.tokens import Counts


def train_copy(job, on_step, reward):
    model, tokenizer = models.load(job.base)
    counts = Counts()
    counts.kept = sum(1 for _ in job.examples("train"))
    on_step({"step": 1, "steps": 1, "loss": 0.0})
    made = models.result(counts, steps=1, metrics={"learnt": 0.0}, began=time.monotonic())
    models.save(model, tokenizer, job.folder, made)
'''
    },
    edits={
        "config/trainers.py": [
            ('    "sft": SFTSettings,\n', '    "copy": CopySettings,\n'),
            (
                '`ld_alpha` has no place: remove it")\n        return self\n',
                '\n\nclass CopySettings(TrainerSettings):\n    method = "copy"\n    takes = "demonstrations"\n'
                '    reads = ("data",)\n    learning_rate: LearningRate = 0.1\n',
            ),
        ]
    },
    registrations={
        "train/job.py": [
            (
                '    "sft": _sft,\n',
                '    "copy": _copy,\n',
            ),
            (
                "*given, job.place, on_step, job.template)\n",
                "\n\ndef _copy(job, on_step, reward):\n"
                "    from rlaif.train.copying import train_copy\n\n"
                "    train_copy(job, on_step, reward)\n",
            ),
        ]
    },
    pipeline="",
    at_most=2,
)

LINES = Addition(
    new={
        "formats/write/lines.py": """\
from rlaif.formats.write.shape import Shape, texts

LINES = Shape(
    name="lines",
    columns=texts("prompt", "better", "prompt_id"),
    about="The chosen completion as one line.",
    from_preferences=lambda preferences, dropped: (
        {
            "prompt": preference.prompt.text,
            "better": preference.chosen.completion.text,
            "prompt_id": preference.prompt.id,
        }
        for preference in preferences
    ),
)
"""
    },
    edits={},
    registrations={
        "formats/write/__init__.py": [
            (
                "from rlaif.formats.write.hh import HH\n",
                "from rlaif.formats.write.lines import LINES\n",
            ),
            ('    "ranked": RANKED,\n', '    "lines": LINES,\n'),
        ]
    },
    pipeline="",
    at_most=1,
)

ADDITIONS = {"flag": FLAG, "words": WORDS, "counted": COUNTED, "parrot": PARROT, "longest": LONGEST}

COMMANDS = """
import contextlib, io, json, os, sys
from rlaif.cli import main
for line in sys.stdin:
    folder, arguments = json.loads(line)
    os.chdir(folder)
    sys.argv, out, err, code = ["rlaif", *arguments], io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@dataclass
class Copy:
    """The command line of a copy of the package: one process, which runs one command after another."""

    process: subprocess.Popen[str]

    def run(self, folder: Path, *arguments: str) -> tuple[int, str, str]:
        """The exit code of a command, and what it prints to its two streams."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps([str(folder), arguments]), file=self.process.stdin, flush=True)
        code, out, err = json.loads(self.process.stdout.readline())
        return code, out, err

    def printed(self, folder: Path, *arguments: str) -> str:
        """What a command prints; it must succeed."""
        code, out, err = self.run(folder, *arguments)
        assert code == 0, out + err
        return out


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    """A copy of the package with what a wheel holds, without the weights of the embedded models, and all additions."""
    site = tmp_path_factory.mktemp("site")
    ignored = shutil.ignore_patterns("*.safetensors", "bundled", "__pycache__")
    package = shutil.copytree(ROOT / "rlaif", site / "rlaif", ignore=ignored)
    shutil.copytree(ROOT / "prompts", package / "bundled/prompts")
    for addition in (*ADDITIONS.values(), COPYING, LINES):
        addition.make(package)
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": str(site), "COLUMNS": "120"}
    with subprocess.Popen([sys.executable, "-c", COMMANDS], cwd=site, env=environment, **streams) as process:
        yield Copy(process)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve({name: Echo(name) for name in ("one", "two", "judge")}) as url:
        yield url


@pytest.mark.parametrize("name", ADDITIONS)
def test_an_addition_touches_as_many_files_as_the_table_says(name: str, copy: Copy, tmp_path: Path, url: str) -> None:
    addition = ADDITIONS[name]
    assert 0 < len(addition.touched) + (not addition.new) <= addition.at_most
    folder = tmp_path / "project"
    folder.mkdir()
    write_prompts(folder, 30)
    (folder / "rubric.yaml").write_text(RUBRIC)
    (folder / "echo.yaml").write_text(addition.pipeline.format(url=url))
    planned = json.loads(copy.printed(folder, "plan", "echo.yaml", "--json"))
    printed = copy.printed(folder, "run", "echo.yaml")
    manifest = json.loads((folder / "runs/echo/manifest.json").read_text())
    assert manifest["state"] == "done"
    if name == "longest":
        assert "longest" in printed
        return
    made = manifest["stages"][-1]
    assert made["preferences"] > 10 and (folder / "runs/echo/dataset/preference").is_dir()
    judged = manifest["stages"][-2]
    if name in ("flag", "words"):
        assert judged["kind"] == name and judged[judged_fact(name)] == 120
        shown = copy.printed(folder, "show", "runs/echo", "1")
        assert "flags" in shown or name == "words"
    counts = {stage["stage"]: stage["calls"] for stage in planned["stages"] if "calls" in stage}
    sent = {stage["name"]: stage["calls"] for stage in manifest["stages"] if "calls" in stage}
    for stage, calls in counts.items():
        for model, count in calls.items():
            # Equal texts are asked about once, and a server is probed with three calls.
            assert 0 < sent[stage][model]["sent"] <= count["calls"] + 3, (stage, model)
    if name == "parrot":
        rows = [json.loads(line) for line in (folder / "runs/echo/stages/02-sample.jsonl").read_text().splitlines()]
        assert all(
            set(row["candidates"][0]["completion"]["text"].split()) <= {f"{i}." for i in range(30)} for row in rows
        )


def judged_fact(name: str) -> str:
    return {"flag": "flags", "words": "scores"}[name]


def test_a_trainer_touches_two_files(copy: Copy, tmp_path: Path) -> None:
    assert 0 < len(COPYING.touched) <= COPYING.at_most
    folder = tmp_path / "project"
    make_random_model(folder / "base")
    rows = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(40)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("train", "copy", "--base", "base", "--data", "data.jsonl", "--out", "trained", "--json")
    record = json.loads(copy.printed(folder, *arguments))
    assert record["kept"] > 20 and record["metrics"] == {"learnt": 0.0}
    assert (folder / "trained/model.safetensors").read_bytes() == (folder / "base/model.safetensors").read_bytes()


def test_a_shape_is_one_file_and_its_registration(copy: Copy, tmp_path: Path, url: str) -> None:
    import pyarrow.parquet

    assert 0 < len(LINES.touched) <= LINES.at_most
    write_project(tmp_path, url)
    copy.printed(tmp_path, "run", "echo.yaml")
    for to in ("lines.jsonl", "lines"):
        copy.printed(tmp_path, "export", "runs/echo", "--format", "lines", "--to", to)
    table = pyarrow.parquet.read_table(tmp_path / "lines" / "data")
    assert table.column_names == ["prompt", "better", "prompt_id"]
    assert table.num_rows == len((tmp_path / "lines.jsonl").read_text(encoding="utf-8").splitlines()) > 0
    assert "The chosen completion as one line." in (tmp_path / "lines/README.md").read_text(encoding="utf-8")
    code, _, err = copy.run(tmp_path, "export", "runs/echo", "--format", "line", "--to", "x")
    assert code == 2 and ", ranked, lines" in err
