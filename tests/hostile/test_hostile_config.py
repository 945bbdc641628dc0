"""Pipelines, rubrics and other settings of a stranger: too much, too deep, out of range: one sentence, soon."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from echo import RUBRIC, write_project
from inside import rlaif

from rlaif.config import Pipeline, document, read_pipeline
from rlaif.constitution import read_constitution
from rlaif.errors import InputError
from rlaif.judges.verifiers import Check
from rlaif.pipeline.stages import prompts
from rlaif.principles import read_principles
from rlaif.rubric import read_rubric

pytestmark = pytest.mark.timeout(60)

WORDS_OF_LIBRARIES = re.compile(
    "Traceback|[Ii]nput should be|Value error|validation error|pydantic|Error: |object at 0x|<unicode string>"
)
PLAIN = """\
name: plain
models:
  one: {engine: openai, model: one, base_url: "http://127.0.0.1:9/v1"}
stages:
  - prompts: {path: prompts.jsonl}
  - sample: {models: [one], per_prompt: 2}
  - rate: {model: one, rubric: rubric.yaml}
  - pair: {}
"""


@pytest.fixture
def few_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on values, made low: to read as many as it allows takes seconds each time."""
    monkeypatch.setattr(document, "MOST_NODES", 5_000)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "hello"}\n')
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    return tmp_path


def refused(read: Callable[[str], object], name: str, seconds: float = 15) -> str:
    """What a reader says of a file that it refuses: one sentence that names it, in time."""
    started = time.process_time()
    with pytest.raises(InputError) as caught:
        read(name)
    assert time.process_time() - started < seconds
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1500 and not WORDS_OF_LIBRARIES.search(message), message
    assert caught.value.file == name
    return message


def written(text: str | bytes, name: str = "p.yaml") -> str:
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return name


# ---------------------------------------------------------------- the text

DOUBLED = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [*{a}, *{a}], {b}{b}: 1}}\n"
    for a, b in zip("abcdefghijklmnopqrstuvw", "bcdefghijklmnopqrstuvwx", strict=True)
)
LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
FOUR = "larger than 4 MB"
MANY = r"too many values \(more than 5,000\)"
YAML: dict[str, tuple[str | bytes, str]] = {
    "10 MB of 3,000,000 values": ("x: [" + "1," * 3_000_000 + "1]\n", FOUR),
    "1,500,000 values in 3 MB": ("x: [" + "1," * 1_500_000 + "1]\n", rf"p\.yaml:1: {MANY}"),
    "300,000 lines of a list": ("x:\n" + "- 1\n" * 300_000, rf"p\.yaml:500\d: {MANY}"),
    "300,000 keys": ("".join(f"k{i}: 1\n" for i in range(300_000)), rf"p\.yaml:500\d: {MANY}"),
    "300,000 empty mappings": ("x:\n" + "- {}\n" * 300_000, MANY),
    "aliases that multiply": (LAUGHS, MANY),
    "merges that double": (DOUBLED, MANY),
    "a merge of itself": ("a: &a {<<: *a}\n", "the value contains itself"),
    "an alias of itself": ("a: &a [*a]\n", "the value contains itself"),
    "an alias of nothing": ("a: *b\n", "not valid YAML: found undefined alias"),
    "a key written 4,000 times": ("k: 1\n" * 4_000, r"p\.yaml:2: `k`: the key is written twice"),
    "a code point out of range": ('name: "\\U00110000"\n', r"p\.yaml:1: not valid YAML: an escape names no character"),
    "a code point far out of range": ('a: 1\nname: "\\UFFFFFFFF"\n', r"p\.yaml:2: not valid YAML: an escape names no"),
    "an integer of 10,000 digits": (f"seed: {'1' * 10_000}\n", r"p\.yaml:1: .*is not a usable int"),
    "an integer of 300 KB": (f"seed: {'1' * 300_000}\n", r"p\.yaml:1: .*is not a usable int"),
    "base 60 of 600 KB": (f"seed: 1{':1' * 300_000}\n", r"p\.yaml:1: .*is not a usable int"),
    "base 60": ("seed: 1:30\n", r"p\.yaml:1: .*'1:30' is not a usable int"),
    "base 8": ("seed: 010\n", r"p\.yaml:1: .*'010' is not a usable int"),
    "base 60 with a point": (f"seed: 1{':1' * 100_000}.5\n", r"p\.yaml:1: .*is not a usable float"),
    "base 2 of 1 MB": (f"seed: 0b{'1' * 1_000_000}\n", r"p\.yaml:1: .*is not a usable int"),
    "base 16 of 1 MB": (f"seed: 0x{'f' * 1_000_000}\n", r"p\.yaml:1: .*is not a usable int"),
    "binary": ("name: !!binary aGVsbG8=\n", r"p\.yaml:1: not valid YAML: 'binary' is no type of value here"),
    "binary that is none": ("name: !!binary x\n", "'binary' is no type of value here"),
    "a set": ("stages: !!set {a, b}\n", "'set' is no type of value here"),
    "an ordered mapping": ("stages: !!omap [a: 1]\n", "'omap' is no type of value here"),
    "pairs": ("stages: !!pairs [a: 1]\n", "'pairs' is no type of value here"),
    "a tag of Python": ("name: !!python/object/apply:os.system ['touch PWNED']\n", "could not determine a constructor"),
    "a tag of 1 MB": (f"name: !{'x' * 1_000_000} a\n", "not valid YAML"),
    "an int that is text": ("seed: !!int hello\n", "is not a usable int"),
    "a bool that is text": ("seed: !!bool hello\n", "is not a usable bool"),
    "a date out of range": ("name: 2026-99-99\n", "is not a usable timestamp"),
    "a date of year 0": ("name: 0000-01-01\n", "is not a usable timestamp"),
    "a time out of range": ("name: 2026-01-01 99:99:99\n", "is not a usable timestamp"),
    "100,000 brackets": ("x: " + "[" * 100_000, "nested too deeply"),
    "100,000 braces": ("x: " + "{a: " * 100_000, "nested too deeply"),
    "1,000 indents": ("".join(" " * i + "a:\n" for i in range(1_000)), "nested too deeply"),
    "100,000 dashes": ("- " * 100_000, "nested too deeply"),
    "a tab": ("name: x\n\tmodels: 1\n", r"p\.yaml:2: not valid YAML: found character '\\t'"),
    "NUL": (b"name: a\nb: \0\n", r"p\.yaml:2: not valid YAML: the character U\+0000 is not allowed"),
    "ESC": (b"name: a\x1b[2J\n", r"p\.yaml:1: not valid YAML: the character U\+001B is not allowed"),
    "UTF-16": ("name: a\n".encode("utf-16"), "not UTF-8 text"),
    "Latin-1": ("name: é\n".encode("latin-1"), "not UTF-8 text"),
    "half a surrogate pair": ("name: \ud800\n", "not UTF-8 text"),
    "half a surrogate pair as an escape": ('name: "\\ud800"\n', "expected letters, digits"),
    "a text of 500 KB": (f"name: {'x' * 500_000}\n", "expected letters, digits"),
    "a quoted text of 400 KB": (f"name: '{'x y ' * 100_000}'\n", "expected letters, digits"),
    "a comment of 500 KB": (f"# {'x' * 500_000}\n", "expected a mapping of keys to values"),
    "an unknown key of 1 MB": (f"{'k' * 1_000_000}: 1\n", "not valid YAML|unknown key"),
    "a quoted unknown key of 900 letters": (f"{'k' * 900}: 1\n", r"`k{97}\.\.\.`: unknown key"),
    "a key that is a list": ("? [a]\n: 1\n", r"p\.yaml:1: a key must be text"),
    "a key that is nothing": ("? \n: 1\n", "unknown key|a key must be"),
    "a key that is a number": ("5: 1\n", "unknown key"),
    "two documents": ("name: a\n---\nname: b\n", r"p\.yaml:2: not valid YAML: but found another document"),
    "nothing": ("", "expected a mapping of keys to values"),
    "a directive of another YAML": ("%YAML 3.0\n---\nname: a\n", "not valid YAML: found incompatible YAML document"),
}


@pytest.mark.usefixtures("few_values")
@pytest.mark.parametrize("what", YAML)
def test_a_text_that_no_file_should_hold(what: str) -> None:
    text, words = YAML[what]
    assert re.search(words, refused(read_pipeline, written(text)))
    assert not Path("PWNED").exists()


def test_a_byte_order_mark_is_read_over() -> None:
    assert read_pipeline(written(b"\xef\xbb\xbf" + PLAIN.encode())).name == "plain"


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_line_ends_of_other_systems_are_line_ends(line_end: str) -> None:
    assert read_pipeline(written(PLAIN.replace("\n", line_end))).name == "plain"
    assert "p.yaml:6:" in refused(read_pipeline, written(PLAIN.replace("sample", "simple").replace("\n", line_end)))


def test_1_500_000_values_are_refused_in_seconds_and_little_memory(project: Path) -> None:
    written(f"x: [{'1,' * 1_500_000}1]\n")
    script = (
        "from rlaif.config import read_pipeline\n"
        "try: read_pipeline('p.yaml')\n"
        "except Exception as error: print(error)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=project, capture_output=True, text=True, timeout=60)
    said, memory = done.stdout.splitlines()
    assert said.startswith("p.yaml:1: too many values (more than 100,000)") and int(memory) < 400_000


# ---------------------------------------------------------------- values out of range, under each key


def changed(old: str, new: str) -> str:
    assert old in PLAIN
    return PLAIN.replace(old, new, 1)


MILLION_MILLION = 10**12
VALUES: dict[str, tuple[str, str]] = {
    "per_prompt": (changed("per_prompt: 2", f"per_prompt: {MILLION_MILLION}"), "less than or equal to 10000"),
    "per_prompt below": (changed("per_prompt: 2", "per_prompt: -1"), "expected a number greater than 0, found -1"),
    "per_prompt true": (changed("per_prompt: 2", "per_prompt: [2]"), r"expected an integer, found \[2\]"),
    "per_prompt of a half": (changed("per_prompt: 2", "per_prompt: 2.5"), r"expected an integer, found 2\.5"),
    "pick": (changed("per_prompt: 2", f"pick: {MILLION_MILLION}"), "`pick` asks for 1000000000000 of 1 samplers"),
    "take": (changed("prompts.jsonl", "prompts.jsonl, take: 0"), "greater than 0, found 0"),
    "take of text": (changed("prompts.jsonl", "prompts.jsonl, take: many"), "expected an integer, found 'many'"),
    "reask": (changed("rubric.yaml", f"rubric.yaml, reask: {MILLION_MILLION}"), "less than or equal to 100"),
    "max_tokens": (changed("per_prompt: 2", f"sampling: {{max_tokens: {MILLION_MILLION}}}"), "equal to 1000000"),
    "temperature": (changed("per_prompt: 2", "sampling: {temperature: .inf}"), "expected a finite number, found inf"),
    "temperature of nothing": (changed("per_prompt: 2", "sampling: {temperature: .nan}"), "expected a finite number"),
    "top_p": (changed("per_prompt: 2", "sampling: {top_p: 2}"), "less than or equal to 1, found 2"),
    "stop": (changed("per_prompt: 2", "sampling: {stop: [5]}"), "expected text, found 5"),
    "models": (changed("models: [one]", "models: one"), "expected a list, found 'one'"),
    "no models": (changed("models: [one]", "models: []"), "expected more items"),
    "min_margin": (changed("pair: {}", "pair: {min_margin: .inf}"), "expected a finite number, found inf"),
    "rule": (changed("pair: {}", "pair: {rule: [all]}"), "expected 'zephyr', "),
    "preset": (changed("pair: {}", "pair: {preset: {a: 1}}"), "expected 'zephyr', "),
    "columns": (
        changed("prompts: {path: prompts.jsonl}", "data: {path: prompts.jsonl, columns: [a]}"),
        "expected keys",
    ),
    "votes": (
        changed(
            "rate: {model: one, rubric: rubric.yaml}",
            f"compare: {{model: one, constitution: c.yaml, votes: {MILLION_MILLION}}}",
        ),
        "less than or equal to 1000",
    ),
    "revisions": (
        changed(
            "rate: {model: one, rubric: rubric.yaml}",
            f"revise: {{model: one, constitution: c.yaml, revisions: {MILLION_MILLION}}}",
        ),
        "less than or equal to 1000",
    ),
    "clamp of one": (
        changed(
            "rate: {model: one, rubric: rubric.yaml}",
            "compare: {model: one, constitution: c.yaml, reasons: true, clamp: [0.4]}",
        ),
        "`.*clamp`: expected more items",
    ),
    "weights": (
        changed(
            "rate: {model: one, rubric: rubric.yaml}",
            "compare: {jury: [one, two], constitution: c.yaml, weights: {one: 1.0e+300}}",
        ),
        "less than or equal to 1000000",
    ),
    "best_of": (
        changed("pair: {}", f"measure: {{models: [one], best_of: {{model: one, n: {MILLION_MILLION}}}}}"),
        "less than or equal to 10000",
    ),
    "price": (changed("model: one, base", "model: one, price: {prompt: .inf, completion: 1}, base"), "finite number"),
    "price below": (changed("model: one, base", "model: one, price: {prompt: -1, completion: 1}, base"), "equal to 0"),
    "timeout": (changed("model: one, base", "model: one, timeout: 1.0e+300, base"), "less than or equal to 86400"),
    "budget": (changed("name: plain", "name: plain\nbudget: .inf"), "expected an amount of money above 0, found inf"),
    "budget of nothing": (changed("name: plain", "name: plain\nbudget: .nan"), "expected an amount of money above 0"),
    "seed": (changed("name: plain", f"name: plain\nseed: {2**32}"), "expected a whole number from 0 to 4294967295"),
    "seed below": (changed("name: plain", "name: plain\nseed: -1"), "expected a whole number from 0"),
    "a date for a path": (changed("prompts.jsonl", "2026-01-01"), "expected text, found datetime.date"),
    "a number for a path": (changed("prompts.jsonl", "12"), "expected text, found 12"),
    "NUL in a path": (changed("prompts.jsonl", '"a\\0b"'), "there is no file|cannot be used"),
    "a path of 100 KB": (
        changed("prompts.jsonl", "x" * 100_000),
        "the path 'x+\\.\\.\\.' cannot be used: file name too long",
    ),
    "a stage that is a list": (changed("pair: {}", "pair: []"), r"expected keys and values, found \[\]"),
    "a stage of two kinds": (changed("pair: {}", "pair: {}\n    rate: {}"), "expected one stage"),
    "a stage whose kind is a list": (changed("- pair: {}", "- [pair]"), "expected one stage"),
    "a name that is a mapping": (changed("pair: {}", "pair: {name: {a: 1}}"), "expected text"),
    "models that are a list": (changed("one: {engine", "- {engine"), "expected at least one model"),
    "an engine that is a list": (changed("engine: openai", "engine: [openai]"), "unknown engine"),
    "URLs without end": (changed('"http://127.0.0.1:9/v1"', "[[]]"), "expected a URL"),
}


@pytest.mark.parametrize("what", VALUES)
def test_a_value_out_of_range_is_a_sentence_with_its_line(what: str) -> None:
    text, words = VALUES[what]
    message = refused(read_pipeline, written(text))
    assert re.search(words, message), message
    assert re.match(r"p\.yaml:\d+: ", message), message


# ---------------------------------------------------------------- many stages, models and references


def timed(text: str, seconds: float) -> Pipeline:
    started = time.process_time()
    pipeline = read_pipeline(written(text))
    assert time.process_time() - started < seconds
    return pipeline


def test_5_000_pair_stages_are_checked_in_seconds() -> None:
    assert len(timed(PLAIN + "  - pair: {}\n" * 4_999, 8).steps) == 5_003


def test_the_command_plans_1_000_pair_stages(project: Path) -> None:
    written(PLAIN + "  - pair: {}\n" * 999)
    started = time.process_time()
    done = rlaif(project, "plan", "p.yaml", "--json")
    assert done.code == 0 and len(json.loads(done.out)["stages"]) == 1_003
    assert time.process_time() - started < 10


def test_a_file_that_500_stages_name_is_read_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    each = prompts.each_prompt
    monkeypatch.setattr(prompts, "each_prompt", lambda path, *more, **by: read.append(path) or each(path, *more, **by))
    (project / "prompts.jsonl").write_text("".join(f'{{"prompt": "number {i}"}}\n' for i in range(50)))
    stages = "".join(
        f"  - prompts: {{path: prompts.jsonl, name: p{i}, split: {split}}}\n"
        for i, split in enumerate(["all", "train", "validation", "[train, validation]"] * 125)
    )
    written(PLAIN + stages + "  - prompts: {path: prompts.jsonl, column: prompt, name: other}\n")
    done = rlaif(project, "plan", "p.yaml", "--json")
    rows = {stage["stage"]: stage["rows"] for stage in json.loads(done.out)["stages"]}
    assert rows["p0"] == rows["p4"] == 50 > rows["p1"] == rows["p5"] and rows["p1"] + rows["p2"] == rows["p3"]
    assert len(read) == 2


def test_a_line_of_2_000_stages_is_checked_in_seconds() -> None:
    """Each reads the one before it: the way back from each is as long as the file."""
    rates = "".join(f"  - rate: {{model: one, rubric: rubric.yaml, name: r{i}}}\n" for i in range(2_000))
    pipeline = timed(PLAIN.replace("  - pair: {}\n", rates), 8)
    last = pipeline.steps[-1]
    assert sum(1 for _ in last.ancestors()) == 2_002
    assert last.sampled is pipeline.steps[1]


def test_many_trainings_on_many_sources_are_checked_in_seconds() -> None:
    pairs = "".join(f"  - pair: {{name: p{i}}}\n" for i in range(500))
    names = ", ".join(f"p{i}" for i in range(500))
    trains = "".join(f"  - train: {{dpo: {{base: mine, name: m{i}, data: [{names}]}}}}\n" for i in range(60))
    text = changed("  one: {engine", "  mine: {engine: transformers, path: tiny/base}\n  one: {engine") + pairs + trains
    pipeline = timed(text, 12)
    assert sum(1 for _ in pipeline.steps[-1].ancestors()) == 503


def test_the_number_of_stages_has_a_bound() -> None:
    message = refused(read_pipeline, written(PLAIN + "  - pair: {}\n" * 10_000))
    assert "expected at most 10,000 stages, found 10,004" in message


def test_thousands_of_models_are_read_in_seconds() -> None:
    models = "".join(f'  m{i}: {{engine: openai, model: x, base_url: "http://127.0.0.1:9/v1"}}\n' for i in range(3_000))
    assert len(timed(changed("stages:", models + "stages:"), 10).models) == 3_001
    message = refused(read_pipeline, written(changed("stages:", models + "stages:").replace("[one]", "[zzzzzz]")))
    assert "unknown model 'zzzzzz'. Fix: use one of m0, m1" in message and len(message) < 600


# ---------------------------------------------------------------- rubrics, constitutions, principles

ASPECT = "  - {{id: a{0}, description: good}}\n"
PRINCIPLE = "  - {{id: p{0}, rule: r, critique: c, revision: v, comparison: m}}\n"
SETS: dict[str, tuple[Callable[[str], object], str, str]] = {
    "100,000 aspects": (
        read_rubric,
        "name: r\nversion: 1\nscale: {low: 1, high: 5}\naspects:\n" + "".join(ASPECT.format(i) for i in range(100_000)),
        MANY,
    ),
    "40,000 principles": (
        read_constitution,
        "name: r\nversion: 1\nprinciples:\n" + "".join(PRINCIPLE.format(i) for i in range(40_000)),
        MANY,
    ),
    "a scale of 10^12": (
        read_rubric,
        RUBRIC.replace("high: 5", f"high: {10**12}"),
        "`high` must be at most 1,000,000 above `low`",
    ),
    "a weight without end": (read_rubric, RUBRIC.replace("{id: words", "{weight: .inf, id: words"), "finite number"),
    "a weight of 10^300": (
        read_rubric,
        RUBRIC.replace("{id: words", "{weight: 1.0e+300, id: words"),
        "equal to 1000000",
    ),
    "scores that are a list": (
        read_rubric,
        RUBRIC.replace("{id: words", "{scores: [a], id: words"),
        "expected keys and values",
    ),
    "a score that is text": (read_rubric, RUBRIC.replace("{id: words", "{scores: {good: a}, id: words"), "an integer"),
    "a version of text": (
        read_rubric,
        RUBRIC.replace("version: 1", "version: one"),
        "expected an integer, found 'one'",
    ),
    "an aspect that is text": (
        read_rubric,
        "name: r\nversion: 1\nscale: {low: 1, high: 5}\naspects: [a]\n",
        "keys and values",
    ),
    "principles that are a list": (
        read_principles,
        "name: r\nversion: 1\nprinciples: [a]\nmixtures: {}\n",
        "keys and values",
    ),
    "a share without end": (
        read_principles,
        "name: r\nversion: 1\nprinciples: {a: [b]}\nmixtures: {m: {default: {a: .inf}}}\n",
        "finite",
    ),
    "a share of text": (
        read_principles,
        "name: r\nversion: 1\nprinciples: {a: [b]}\nmixtures: {m: {default: {a: b}}}\n",
        "expected a number",
    ),
}


@pytest.mark.usefixtures("few_values")
@pytest.mark.parametrize("what", SETS)
def test_a_set_of_a_stranger(what: str) -> None:
    read, text, words = SETS[what]
    message = refused(read, written(text, "set.yaml"))
    assert re.search(words, message), message
    assert re.match(r"set\.yaml:\d+: ", message), message


# ---------------------------------------------------------------- checks in code


def doubling(levels: int) -> dict[str, object]:
    """A schema of a few lines that asks for 2^levels steps."""
    parts = {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(levels)}
    return {"$defs": parts | {f"a{levels}": {"type": "number"}}, "$ref": "#/$defs/a0"}


CHECKS: dict[str, tuple[object, str, str]] = {
    "a schema that doubles": ({"json_schema": {"schema": doubling(25)}}, '"a"', "could not be held"),
    "a schema that doubles under a dialect": (
        {"json_schema": {"schema": {"$schema": "http://json-schema.org/draft-07/schema#"} | doubling(25)}},
        '"a"',
        "not be held",
    ),
    "a schema that doubles under a dialect inside": (
        {
            "json_schema": {
                "schema": {
                    "allOf": [{"$schema": "https://json-schema.org/draft/2020-12/schema", "$ref": "#/$defs/a0"}],
                    "$defs": doubling(25)["$defs"],
                }
            }
        },
        '"a"',
        "could not be held",
    ),
    "a schema of itself": ({"json_schema": {"schema": {"$ref": "#"}}}, "1", "could not be held"),
    "items that must differ": (
        {"json_schema": {"schema": {"uniqueItems": True}}},
        "[" + "{}," * 20_000 + "{}]",
        "could not be held",
    ),
    "a multiple of a number beyond floats": (
        {"json_schema": {"schema": {"multipleOf": 0.5}}},
        "1" * 400,
        "could not be held",
    ),
    "a pattern that backtracks": (
        {"json_schema": {"schema": {"pattern": "^(a+)+$"}}},
        f'"{"a" * 40}b"',
        "could not be held|does not match",
    ),
    "a pattern of its own that backtracks": (
        {"regex": {"pattern": "^(a|aa)+$"}},
        "a" * 60 + "b",
        "took more|not there",
    ),
    "objects that must differ": (
        {"json_schema": {"schema": {"uniqueItems": True}}},
        "[" + ",".join(f'{{"a":{n}}}' for n in [*range(9_000), 8_999]) + "]",
        "two of its items are the same",
    ),
    "a long list held against ten thousand keywords": (
        {"json_schema": {"schema": {"allOf": [{"uniqueItems": True}] * 9_900}}},
        str(list(range(9_999))),
        "could not be held",
    ),
    "deep JSON": ({"json_schema": {"schema": {"type": "array"}}}, "[" * 100_000, "not readable as JSON"),
}


@pytest.mark.parametrize("what", CHECKS)
def test_a_check_ends(what: str) -> None:
    given, completion, words = CHECKS[what]
    started = time.process_time()
    outcome = Check.model_validate(given).check(completion, prompt="q", reference=None)
    assert time.process_time() - started < 10
    assert outcome.passed is not True and re.search(words, outcome.why), outcome


WRONG_CHECKS: dict[str, tuple[object, str]] = {
    "a schema without end": (
        {"json_schema": {"schema": {"enum": list(range(3))} | {f"k{i}": {} for i in range(11_000)}}},
        "more than 10,000 keywords",
    ),
    "a pattern that is none": ({"json_schema": {"schema": {"pattern": "("}}}, "not a regular expression"),
    "a pattern of 20,000 letters": ({"regex": {"pattern": "a" * 20_000}}, "more than 10,000 characters"),
    "patternProperties": (
        {"json_schema": {"schema": {"patternProperties": {"(a+)+$": {}}}}},
        "cannot be bounded in time",
    ),
    "a $ref to a file": ({"json_schema": {"schema": {"$ref": "file:///etc/passwd"}}}, "is nowhere in the schema"),
    "a $ref to a server": ({"json_schema": {"schema": {"$ref": "http://127.0.0.1:9/"}}}, "is nowhere in the schema"),
    "a schema that is text": ({"json_schema": {"schema": "x"}}, "expected keys and values"),
    "a type that is none": ({"json_schema": {"schema": {"type": "x"}}}, "not a JSON schema"),
    "words without end": ({"length": {"max_words": 0}}, "greater than or equal to 1"),
    "a tolerance without end": ({"numeric": {"tolerance": ".inf"}}, "finite number|expected a number"),
    "labels that are one": ({"choice": {"among": ["a"]}}, "expected more items"),
    "an instruction with text for a number": (
        {"ifeval": {"id": "length_constraints:number_words", "kwargs": {"num_words": "many", "relation": "at least"}}},
        "`num_words`: expected an integer",
    ),
}


@pytest.mark.parametrize("what", WRONG_CHECKS)
def test_a_check_that_is_none_is_a_sentence(what: str, project: Path) -> None:
    check, words = WRONG_CHECKS[what]
    write_project(project, "http://127.0.0.1:9/v1")
    text = (project / "echo.yaml").read_text()
    (project / "echo.yaml").write_text(
        text.replace("  - rate:", f"  - verify: {{checks: [{json.dumps(check)}]}}\n  - rate:")
    )
    done = rlaif(project, "plan", "echo.yaml")
    assert done.code == 2 and re.search(words, done.err), done.err
    assert re.search(r"echo\.yaml:\d+: ", done.err) and not WORDS_OF_LIBRARIES.search(done.err)


@pytest.mark.parametrize(
    "pattern",
    [
        "x{1000000000}",
        "[a-z]{200000}",
        "(?:ab){1000000,}",
        "(?:(?:(?:a{200}){200}){200}){200}",
        "(?:a{1000}(?#()){1000}",
        "(?:a{1000}[(]){1000}",
        "(?x)(?:a{1000}#(\n){1000}",
        "(?V1)(?:a{1000}[a[b]c(]){1000}",
    ],
)
def test_a_pattern_whose_counts_fill_the_memory_is_refused(pattern: str) -> None:
    """The library writes counts out while it compiles a pattern, which nothing ends."""
    for check in ({"regex": {"pattern": pattern}}, {"json_schema": {"schema": {"pattern": pattern}}}):
        with pytest.raises(ValueError, match="the counts of the pattern ask for more than 100,000 characters"):
            Check.model_validate(check)


@pytest.mark.parametrize(
    "pattern", [r"\d{4}-\d{2}-\d{2}", r"(?i)(?:[A-F0-9]{8}-){3}x{5,}", "x{0,1000000000}", r"\(a{90000}"]
)
def test_a_pattern_with_counts_is_a_pattern(pattern: str) -> None:
    assert Check.model_validate({"regex": {"pattern": pattern}}).regex


@pytest.mark.parametrize(
    ("items", "differ"),
    [
        ("[1, true]", True),
        ("[1, 1.0]", False),
        ("[true, [1], [true], [[1]]]", True),
        ('[{"a": 1, "b": [2]}, {"b": [2.0], "a": 1}]', False),
        ('[{}, [], "", null, false, 0]', True),
        ('[[1], "1", {"1": 1}]', True),
        ("[null, null]", False),
    ],
)
def test_items_differ_as_json_does(items: str, differ: bool) -> None:
    unique = Check.model_validate({"json_schema": {"schema": {"uniqueItems": True}}})
    assert unique.check(items, prompt="q", reference=None).passed is differ
