"""Wrong input: each a sentence that names file, line and key and says what would be right; no traceback, nothing half-written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from echo import RUBRIC, write_project
from test_data_stage import project, stated
from test_run import Cli, run_cli  # noqa: F401 - the fixture

from rlaif.pipeline.folder import hold
from rlaif.resources import find

Edit = Callable[[Path], None]


def pipeline(old: str, new: str) -> Edit:
    def edit(folder: Path) -> None:
        text = (folder / "echo.yaml").read_text()
        assert old in text
        (folder / "echo.yaml").write_text(text.replace(old, new, 1))

    return edit


def file(name: str, text: str) -> Edit:
    return lambda folder: (folder / name).write_text(text) and None


def top(text: str) -> Edit:
    """The pipeline with `text` for its first line, the name."""
    return pipeline("name: echo\n", text)


def raw(name: str, data: bytes) -> Edit:
    return lambda folder: (folder / name).write_bytes(data) and None


def both(*edits: Edit) -> Edit:
    def edit(folder: Path) -> None:
        for one in edits:
            one(folder)

    return edit


SECOND = "  - rate: {model: judge, rubric: rubric.yaml}\n  - pair"
PRINCIPLES = "prompts/principles/ultrafeedback.yaml"
MEASURE = "  - measure: {models: [one], judge: gold}\n"
DEEP = "x: " + "[" * 1200 + "]" * 1200 + "\n"
LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
)
LONG = "x" * 300

TRAINED = "  - train: {dpo: {base: one, name: dpo}}\n"

CASES: dict[str, tuple[Edit, str]] = {
    "mistyped key": (pipeline("per_prompt", "per_promt"), r"echo\.yaml:8: `stages\.1\.sample\.per_promt`: unknown key. Fix: did you mean `per_prompt`"),
    "mistyped key in a model": (pipeline("price:", "prise:"), r"echo\.yaml:5: `models\.judge\.prise`: unknown key. Fix: did you mean `price`"),
    "mistyped key inside a group": (pipeline("max_tokens", "max_token"), r"echo\.yaml:8: `stages\.1\.sample\.sampling\.max_token`: unknown key. Fix: did you mean `max_tokens`"),
    "mistyped top-level key": (pipeline("stages:", "stage:"), r"echo\.yaml:6: `stage`: unknown key. Fix: did you mean `stages`"),
    "mistyped stage": (pipeline("- rate:", "- rater:"), r"echo\.yaml:9: .*unknown stage 'rater'. Fix: did you mean `rate`"),
    "mistyped engine": (pipeline("engine: openai", "engine: opennai"), r"echo\.yaml:3: `models\.one\.engine`: unknown engine 'opennai'. Fix: did you mean `openai`"),
    "key written twice": (pipeline("per_prompt: 2", "per_prompt: 2, per_prompt: 3"), r"echo\.yaml:8: .*written twice"),
    "wrong type": (pipeline("per_prompt: 2", "per_prompt: many"), r"echo\.yaml:8: `stages\.1\.sample\.per_prompt`: .*integer.*'many'"),
    "out of range": (pipeline("per_prompt: 2", "per_prompt: 0"), r"echo\.yaml:8: .*greater than 0, found 0"),
    "missing key": (pipeline("model: judge, rubric", "rubric"), r"echo\.yaml:9: `stages\.2\.rate\.model`: the key is missing"),
    "unknown model": (pipeline("[one, two]", "[one, too]"), r"echo\.yaml:8: .*unknown model 'too'. Fix: did you mean .*`two`"),
    "unknown judge": (pipeline("rate: {model: judge", "rate: {model: juge"), r"echo\.yaml:9: .*unknown model 'juge'. Fix: did you mean `judge`"),
    "two samplers of one name": (pipeline("[one, two]", "[one, one]"), r"echo\.yaml:8: .*two samplers are called 'one'"),
    "no stage to read from": (pipeline("  - rate: {model: judge, rubric: rubric.yaml, reask: 1}\n", ""), r"echo\.yaml:9: .*no earlier stage of kind rate"),
    "unknown rule": (pipeline("best-worst", "best-wurst"), r"echo\.yaml:10: `stages\.3\.pair\.rule`: .*'best-wurst'"),
    "not YAML": (pipeline("{rule: best-worst}", "{rule: best-worst"), r"echo\.yaml:1\d: not valid YAML"),
    "not a mapping": (file("echo.yaml", "- a\n- b\n"), r"echo\.yaml:1: expected a mapping"),
    "not text": (lambda folder: (folder / "echo.yaml").write_bytes(b"\xff\xfe\x00") and None, r"echo\.yaml: not UTF-8"),
    "key in a URL": (pipeline('model: one, base_url: "http://', 'model: one, base_url: "http://me:key@'), r"echo\.yaml:3: .*without user name or key"),
    "two URLs alike": (pipeline('model: one, base_url: "', 'model: one, base_url: [http://a/v1, http://a/v1/], identity: "'), r"echo\.yaml:3: `models\.one\.base_url`: .*a URL is given twice"),
    "no URL": (pipeline('model: one, base_url: "', 'model: one, base_url: [], identity: "'), r"echo\.yaml:3: `models\.one\.base_url`: .*a list of URLs"),
    "a key among the replicas": (pipeline('model: one, base_url: "', 'model: one, base_url: [http://a/v1, http://me:key@b/v1], identity: "'), r"echo\.yaml:3: .*without user name or key"),
    "mistyped limit": (pipeline("price:", "limits: {requests_per_minit: 5}, price:"), r"echo\.yaml:5: `models\.judge\.limits\.requests_per_minit`: unknown key. Fix: did you mean `requests_per_minute`"),
    "limit of nothing": (pipeline("price:", "limits: {tokens_per_minute: 0}, price:"), r"echo\.yaml:5: `models\.judge\.limits\.tokens_per_minute`: .*greater than 0"),
    "concurrency of nothing": (pipeline("price:", "concurrency: 0, price:"), r"echo\.yaml:5: `models\.judge\.concurrency`: .*greater than 0"),
    "negative price": (pipeline("prompt: 1", "prompt: -1"), r"echo\.yaml:5: `models\.judge\.price\.prompt`: .*greater than or equal to 0"),
    "budget of nothing": (top("name: echo\nbudget: 0\n"), r"echo\.yaml:2: `budget`: expected an amount of money above 0, found 0"),
    "budget in words": (top("name: echo\nbudget: five\n"), r"echo\.yaml:2: `budget`: .*found 'five'"),
    "budget without a price": (top("name: echo\nbudget: 5\n"), r"echo\.yaml:4: `models\.one\.price`: there is a budget, but 'one' has no price"),
    "missing prompts": (pipeline("prompts.jsonl", "promts.jsonl"), r"echo\.yaml:7: `stages\.0\.prompts\.path`: there is no file or folder 'promts\.jsonl'. Fix: did you mean 'prompts\.jsonl'"),
    "missing rubric": (pipeline("rubric.yaml", "rubrik.yaml"), r"echo\.yaml:9: .*no file or folder 'rubrik\.yaml'. Fix: did you mean 'rubric\.yaml'"),
    "missing template": (pipeline("reask: 1", "template: prompts/rat.jinja"), r"echo\.yaml:9: .*no file or folder 'prompts/rat\.jinja'. Fix: did you mean 'prompts/rate\.jinja'"),
    "empty prompts": (file("prompts.jsonl", ""), r"prompts\.jsonl: there are no rows"),
    "only empty prompts": (file("prompts.jsonl", '{"prompt": " "}\n'), r"prompts\.jsonl: no row could be used"),
    "broken line": (file("prompts.jsonl", '{"prompt": "a"}\n{"prompt": \n'), r"prompts\.jsonl:2: "),
    "unknown columns": (file("prompts.jsonl", '{"text": "a"}\n'), r"prompts\.jsonl:1: .*text.*Fix: "),
    "bad rubric key": (file("rubric.yaml", RUBRIC.replace("aspects", "aspect")), r"rubric\.yaml:\d: .*(missing|unknown)"),
    "bad rubric scale": (file("rubric.yaml", RUBRIC.replace("low: 1", "low: 7")), r"rubric\.yaml:3: .*below"),
    "aspect written twice": (file("rubric.yaml", RUBRIC.replace("id: detail", "id: words")), r"rubric\.yaml:6: .*two aspects"),
    "unknown template variable": (file("mine.jinja", "{{ aspect.description }} {{ prompt }} {{ completions }} {{ promt }}"), r"mine\.jinja: the template uses `promt`, which has no value. Fix: use only"),
    "template leaves the prompt out": (file("mine.jinja", "{{ aspect.description }} {{ completions }}"), r"mine\.jinja: the template never uses `prompt`"),
    "broken template": (file("mine.jinja", "a\nb {% for %}"), r"mine\.jinja:2: the template does not parse"),
    "name that looks like a date": (top("name: 2024-13-45\n"), r"echo\.yaml:1: not valid YAML: '2024-13-45' is not a usable timestamp. Fix: write the line as `name: '2024-13-45'`"),
    "name that is a date": (top("name: 2024-12-24\n"), r"echo\.yaml:1: `name`: expected letters.*Fix: write `name: my-run`"),
    "name that is no truth value": (top("name: !!bool perhaps\n"), r"echo\.yaml:1: not valid YAML: 'perhaps' is not a usable bool"),
    "name of nothing": (top("name:\n"), r"echo\.yaml:1: `name`: expected letters.*found nothing"),
    "seed of 5,000 digits": (top("name: echo\nseed: " + "1" * 5000 + "\n"), r"echo\.yaml:2: not valid YAML: '111.*\.\.\. is not a usable int"),
    "seed of 5,000 hexadecimal digits": (top("name: echo\nseed: 0x" + "1" * 5000 + "\n"), r"echo\.yaml:2: .*is not a usable int"),
    "seed that no generator takes": (top("name: echo\nseed: 4294967296\n"), r"echo\.yaml:2: `seed`: expected a whole number from 0 to 4294967295"),
    "engine that is a list": (pipeline("engine: openai", "engine: [openai]"), r"echo\.yaml:3: `models\.one\.engine`: unknown engine \['openai'\]"),
    "engine left out": (pipeline("engine: openai, ", ""), r"echo\.yaml:3: `models\.one\.engine`: the key is missing. Fix: use one of openai, transformers"),
    "model of nothing": (pipeline("stages:", "  three:\nstages:"), r"echo\.yaml:6: `models\.three`: expected keys and values, found nothing"),
    "model whose name is a number": (pipeline("  one:", "  1:"), r"echo\.yaml:3: `models\.1`: expected a name of .*found 1. Fix: put it in quotes"),
    "model whose name has a space": (pipeline("  one:", "  o ne:"), r"echo\.yaml:3: `models\.o ne`: expected a name of .*found 'o ne'"),
    "value that contains itself": (top("name: &a [*a]\n"), r"echo\.yaml:1: `name\.0`: the value contains itself. Fix: remove the alias"),
    "values nested too deeply": (top("name: echo\n" + DEEP), r"echo\.yaml: the values are nested too deeply"),
    "aliases that multiply": (top(LAUGHS), r"echo\.yaml:\d: too many values \(more than 100,000\). Fix: use fewer aliases"),
    "control character": (raw("echo.yaml", b"name: a\x01b\n"), r"echo\.yaml:1: not valid YAML: the character U\+0001 is not allowed"),
    "key that is a list": (top("? [a]\n: b\n"), r"echo\.yaml:1: a key must be text"),
    "key that is a number": (pipeline("per_prompt: 2", "1: 2"), r"echo\.yaml:8: `stages\.1\.sample\.1`: expected a key that is text, found 1"),
    "top-level key that is a number": (top("name: echo\n7: 8\n"), r"echo\.yaml:2: `7`: unknown key"),
    "stage without a kind": (file("echo.yaml", "name: echo\nmodels: {one: {engine: openai, model: one}}\nstages: [{}]\n"), r"echo\.yaml:3: `stages\.0`: expected one stage: its kind and its settings"),
    "stage whose kind is a number": (pipeline("- rate:", "- 3:"), r"echo\.yaml:9: `stages\.2\.3`: unknown stage '3'"),
    "stage of nothing": (pipeline("{rule: best-worst}", ""), r"echo\.yaml:10: `stages\.3\.pair`: expected keys and values, found nothing"),
    "setting of nothing": (pipeline("{max_tokens: 32}", ""), r"echo\.yaml:8: `stages\.1\.sample\.sampling`: expected keys and values, found nothing"),
    "samplers of nothing": (pipeline("[one, two]", ""), r"echo\.yaml:8: `stages\.1\.sample\.models`: expected a list, found nothing"),
    "stages of nothing": (file("echo.yaml", "name: echo\nmodels: {one: {engine: openai, model: one}}\nstages:\n"), r"echo\.yaml:3: `stages`: expected a list of stages"),
    "only comments": (file("echo.yaml", "# name: echo\n"), r"echo\.yaml:1: expected a mapping"),
    "mistyped key of a sampler": (pipeline("[one, two]", "[{model: one, temprature: 0.7}, two]"), r"echo\.yaml:8: `stages\.1\.sample\.models\.0\.temprature`: unknown key. Fix: did you mean `temperature`"),
    "wrong value of a sampler": (pipeline("[one, two]", "[{model: one, temperature: -1}, two]"), r"echo\.yaml:8: `stages\.1\.sample\.models\.0\.temperature`: expected a number greater than or equal to 0, found -1"),
    "sampler that is a number": (pipeline("[one, two]", "[3, two]"), r"echo\.yaml:8: `stages\.1\.sample\.models\.0`: expected keys and values, found 3"),
    "path that is too long": (pipeline("prompts.jsonl", LONG), r"echo\.yaml:7: `stages\.0\.prompts\.path`: the path 'x+\.\.\.' cannot be used: file name too long"),
    "path of nobody": (pipeline("prompts.jsonl", "~nosuchuser/x"), r"echo\.yaml:7: `stages\.0\.prompts\.path`: the path '~nosuchuser/x' cannot be used: "),
    "empty path": (pipeline("prompts.jsonl", '""'), r"echo\.yaml:7: `stages\.0\.prompts\.path`: there is no file or folder ''"),
    "rubric that is a folder": (pipeline("rubric.yaml", "prompts"), r"prompts: cannot be read: is a directory. Fix: name a file inside it"),
    "template that is a folder": (pipeline("reask: 1", "template: prompts"), r"prompts: cannot be read: is a directory. Fix: name a file inside it"),
    "template that is not text": (raw("mine.jinja", b"\xff"), r"mine\.jinja: not UTF-8 text \(byte 0\)"),
    "query in a URL": (pipeline('/v1", price', '/v1?api_key=sk-1", price'), r"echo\.yaml:5: `models\.judge\.base_url`: expected a URL such as [^?]*, `\?` or `#`: it is saved with the run$"),
    "fragment in a URL": (pipeline('/v1", price', '/v1#sk-1", price'), r"echo\.yaml:5: .*expected a URL such as"),
    "port that is none": (pipeline('base_url: "http://127.0.0.1:9/', 'base_url: "http://127.0.0.1:99999/'), r"echo\.yaml:3: `models\.one\.base_url`: Port out of range"),
    "key where its variable should be": (pipeline("price:", "api_key_env: sk-planted-1, price:"), r"echo\.yaml:5: `models\.judge\.api_key_env`: expected the name of an environment variable, never the key itself$"),
    "second measure": (pipeline("  - rate", MEASURE * 2 + "  - rate"), r"echo\.yaml:10: `stages\.3\.measure`: a run has one report, which the stage 'measure' writes. Fix: name all its models in one stage"),
    "pair of one candidate": (pipeline("[one, two], per_prompt: 2", "[one], per_prompt: 1"), r"echo\.yaml:10: `stages\.3\.pair`: a pair needs two candidates, and the stage 'sample' gives each prompt one. Fix: raise its `per_prompt`"),
    "pair of one picked candidate": (pipeline("per_prompt: 2", "pick: 1"), r"echo\.yaml:10: `stages\.3\.pair`: a pair needs two candidates"),
    "mistyped answers": (pipeline("reask: 1", "answers: expcted"), r"echo\.yaml:9: `stages\.2\.rate\.answers`: .*'expected'.*found 'expcted'"),
    "all at once where one is read": (pipeline("reask: 1", "answers: score, shown: all"), r"echo\.yaml:9: `stages\.2\.rate`: `answers: score` reads one completion at a time; write `shown: one`"),
    "expectation over a scale to ten": (both(pipeline("reask: 1", "answers: expected"), file("rubric.yaml", RUBRIC.replace("high: 5", "high: 10"))), r"echo\.yaml:9: `stages\.2\.rate\.rubric`: `answers: expected` needs numbers of one digit, and the scale is 1 to 10. Fix: give the rubric a scale within 0 to 9"),
    "expectation below nought": (both(pipeline("reask: 1", "answers: expected"), file("rubric.yaml", RUBRIC.replace("low: 1", "low: -1"))), r"echo\.yaml:9: `stages\.2\.rate\.rubric`: .*the scale is -1 to 5"),
    "expectation for a win rate": (pipeline("  - pair", "  - measure: {models: [one], rate: {model: judge, rubric: rubric.yaml, answers: expected}}\n  - pair"), r"echo\.yaml:10: `stages\.3\.measure`: the win rate is of ratings, and `answers: expected` gives scores"),
    "aspect judged twice": (pipeline("  - pair", SECOND), r"echo\.yaml:10: `stages\.3\.rate\.rubric`: the stage 'rate' has judged the aspect 'words' of these rows already. Fix: give it another `id` in one of the rubrics, or read the unrated candidates with `from: sample`"),
    "types in a template that hides them": (both(file("rubric.yaml", RUBRIC.replace("better.}", "better., types: {few: It has few words.}}", 1)), file("mine.jinja", "{{ aspect.description }} {{ prompt }} {{ completions | join }}")), r"mine\.jinja: the template does not show what the type few means. Fix: write it out"),
    "type whose code is a truth value": (file("rubric.yaml", RUBRIC.replace("better.}", "better., types: {no: It has few words.}}", 1)), r"rubric\.yaml:5: `aspects\.0\.types\.0`: expected text, found False"),
    "mixture of nothing": (pipeline("per_prompt: 2", "mixture: published"), r"echo\.yaml:8: `stages\.1\.sample`: a `mixture` is of principles; name their file in `principles`, or remove it"),
    "principles without a mixture": (pipeline("per_prompt: 2", f"principles: {PRINCIPLES}"), r"echo\.yaml:8: `stages\.1\.sample`: `principles` are drawn by a mixture; name one of the file's in `mixture`"),
    "unknown mixture": (pipeline("per_prompt: 2", f"per_prompt: 2, principles: {PRINCIPLES}, mixture: publisht"), r"echo\.yaml:8: `stages\.1\.sample\.mixture`: 'prompts/principles/ultrafeedback\.yaml' has no mixture 'publisht'. Fix: did you mean `published`"),
    "missing principles": (pipeline("per_prompt: 2", "principles: prompts/principles/ultrafedback.yaml, mixture: published"), r"echo\.yaml:8: `stages\.1\.sample\.principles`: there is no file or folder .*Fix: did you mean 'prompts/principles/ultrafeedback\.yaml'"),
    "principles beside a system message": (pipeline("[one, two]", f"[{{model: one, system: Be brief.}}, two], principles: {PRINCIPLES}, mixture: shipped"), r"echo\.yaml:8: `stages\.1\.sample`: 'one' has a `system` of its own, and `principles` draws one; remove one of the two"),
    "name with a line break": (top('name: "echo\\n"\n'), r"echo\.yaml:1: `name`: expected letters"),
    "name that no disk takes": (top(f"name: {LONG}\n"), r"echo\.yaml:1: `name`: expected letters, digits, '\.', '_' or '-', 100 at most"),
    "stage name that no disk takes": (pipeline("rule: best-worst", f"rule: best-worst, name: {LONG}"), r"echo\.yaml:10: `stages\.3\.pair\.name`: expected letters.*100 at most"),
    "key among odd URLs": (pipeline('"http://127.0.0.1:9/v1"}', '["http://me:sk-planted-1@h/v1", 5]}'), r"echo\.yaml:3: `models\.one\.base_url`: expected a URL, or a list of URLs$"),
    "key in a URL's mapping": (pipeline('"http://127.0.0.1:9/v1"}', '{url: "http://me:sk-planted-1@h/v1"}}'), r"echo\.yaml:3: `models\.one\.base_url`: expected a URL, or a list of URLs$"),
    "list of keys where a variable should be": (pipeline("price:", "api_key_env: [sk-planted-1], price:"), r"echo\.yaml:5: `models\.judge\.api_key_env`: expected the name of an environment variable, never the key itself$"),
    "timeout beyond every clock": (pipeline("price:", "timeout: 1.0e+300, price:"), r"echo\.yaml:5: `models\.judge\.timeout`: .*less than or equal to 86400"),
    "completion beyond every memory": (pipeline("max_tokens: 32", "max_tokens: 9223372036854775808"), r"echo\.yaml:8: `stages\.1\.sample\.sampling\.max_tokens`: .*less than or equal to 1000000"),
    "more samples than any memory": (pipeline("per_prompt: 2", "per_prompt: 1000000000"), r"echo\.yaml:8: `stages\.1\.sample\.per_prompt`: .*less than or equal to 10000"),
    "price without end": (pipeline("prompt: 1", "prompt: .inf"), r"echo\.yaml:5: `models\.judge\.price\.prompt`: .*finite number"),
    "budget that is no number": (top("name: echo\nbudget: .nan\n"), r"echo\.yaml:2: `budget`: .*found nan"),
    "training a model behind a server": (pipeline("  - pair: {rule: best-worst}\n", "  - pair: {rule: best-worst}\n" + TRAINED), r"echo\.yaml:11: .*base.*server"),
}  # fmt: skip


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("name", CASES)
def test_wrong_input(name: str, command: str, tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    edit, expected = CASES[name]
    write_project(tmp_path, "http://127.0.0.1:9/v1")
    edit(tmp_path)
    arguments = ["stages.rate.rate.template=mine.jinja"] if (tmp_path / "mine.jinja").exists() else []
    code, out, err = run_cli(command, "echo.yaml", *arguments)
    assert code == 2, (out, err)
    assert re.search(expected, err), err
    assert err.startswith("error: ") and "Traceback" not in err and err.count("\n") == 1
    assert "sk-planted" not in out + err
    assert not (tmp_path / "runs/echo/dataset").exists() and not list(tmp_path.rglob("*.tmp"))


def test_the_cases_are_many_enough() -> None:
    assert len(CASES) >= 70


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "no.yaml"], "no file or folder 'no.yaml'"),
        (["run", "echo.yaml", "seed"], "'seed' is not of the form key=value"),
        (["run", "echo.yaml", "stages.9.pair.rule=zephyr"], "`stages.9.pair.rule`: stages has no `9`"),
        (["run", "echo.yaml", "stages.pair.pair.rul=zephyr"], "unknown key. Fix: did you mean `rule`"),
        (["run", "echo.yaml", "stages.²=1"], "`stages.²`: stages has no `²`"),
        (["run", "echo.yaml", f"stages.{'9' * 5000}=1"], "stages has no"),
        (["run", "echo.yaml", "stages.pairs.pair.rule=zephyr"], "stages has no `pairs`. Fix: did you mean `pair`"),
        (
            ["run", "echo.yaml", "stages.pair.piar.rule=zephyr"],
            "there is no `piar` in stages.3. Fix: did you mean `pair`",
        ),
        (["run", "echo.yaml", "models.oen.sampling.top_p=1"], "there is no `oen` in models. Fix: did you mean `one`"),
        (
            ["run", "echo.yaml", "seed=-1"],
            "command line: `seed`: expected a whole number from 0 to 4294967295, found -1",
        ),
        (["run", "echo.yaml", f"seed={'1' * 5000}"], "command line: `seed`: not valid YAML: '111"),
        (["run", "echo.yaml", f"seed={'[' * 1200}"], "command line: `seed`: "),
        (["run", "echo.yaml", "seed=&a [*a]"], "command line: `seed`: the value contains itself"),
        (["run", "echo.yaml", "sede=1"], "command line: `sede`: unknown key. Fix: did you mean `seed`"),
        (
            ["run", "echo.yaml", "stages.sample.sample.smapling.top_p=1"],
            "command line: `stages.sample.sample.smapling`: unknown key. Fix: did you mean `sampling`",
        ),
        (
            ["run", "echo.yaml", "models.one={engine: openai, mdl: x}"],
            "command line: `models.one.mdl`: unknown key. Fix: did you mean `model`?",
        ),
        (
            ["run", "echo.yaml", "stages.rate.rate.rubric=rubrik.yaml"],
            "command line: `stages.rate.rate.rubric`: there is no file or folder 'rubrik.yaml'",
        ),
        (
            ["run", "echo.yaml", "stages.rate.rate=7"],
            "command line: `stages.rate.rate`: expected keys and values, found 7",
        ),
        (["run", "~nosuchuser/x"], "the path '~nosuchuser/x' cannot be used"),
        (["run", LONG], "cannot be used: file name too long"),
        (["init", "echo.yaml/new"], "'echo.yaml/new' cannot be written: "),
        (["init", LONG], "cannot be written: file name too long"),
        (["run", "echo.yaml", "--outt", "x"], "No such option"),
        (["rum"], "No such command"),
        (["status", "runs/none"], "there is no run in 'runs/none'"),
        (["show", "."], "there is no run in '.'"),
        (["run", "echo.yaml", "--out", "echo.yaml"], "'echo.yaml' is a file"),
        (["run", "echo.yaml", "--out", "."], "'.' holds files, but no run"),
        (["cache", "prune", "--older-than", "-5"], "--older-than -5 is not an age in days. Fix: give 0 or more"),
        (["cache", "prune", "--older-than", "nan"], "--older-than nan is not an age in days"),
        (["status", "echo.yaml"], "there is no run in 'echo.yaml'"),
        (["status", LONG], "there is no run in 'xxx"),
        (["run", "echo.yaml", "--out", "echo.yaml/x"], "'echo.yaml/x' cannot be written: not a directory"),
        (["run", "echo.yaml", "--out", LONG], "cannot be written: file name too long"),
        (["run", "echo.yaml", "--out", "of-another"], "is the folder of another run, 'another'"),
        (["run", "echo.yaml", "--out", "of-a-model/new"], "it lies in the folder of another model, "),
    ],
)
def test_wrong_commands(arguments: list[str], expected: str, tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    write_project(tmp_path, "http://127.0.0.1:9/v1")
    (tmp_path / "of-another").mkdir()
    (tmp_path / "of-a-model").mkdir()
    (tmp_path / "of-a-model/config.json").write_text('{"model_type": "llama"}')
    told = {"state": "done", "seconds": 1.0, "stages": [], "calls": {}, "digests": {}, "failures": {}}
    (tmp_path / "of-another/manifest.json").write_text(json.dumps({"format": 1, "name": "another"} | told))
    code, out, err = run_cli(*arguments)
    assert code == 2 and expected in err, (code, out, err)
    assert "Traceback" not in err and err.count("\n") == 1


def test_a_damaged_manifest_is_a_sentence(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    (tmp_path / "r").mkdir()
    (tmp_path / "r/manifest.json").write_text("{")
    code, _, err = run_cli("status", "r")
    assert code == 1 and "manifest.json: the manifest cannot be read" in err


CAI, RLHF = "constitutional_ai.yaml", "rlhf.yaml"
CIRCLE: dict[str, tuple[str, str, str, str]] = {
    "revise without a sample": (CAI, "  - sample:\n      name: drafts\n      models: [helpful]\n      sampling: {max_tokens: 48}\n", "", r"no earlier stage of kind sample or verify to read from. Fix: put a `sample` stage before it"),
    "mistyped constitution": (CAI, "constitution: constitutions/tiny.yaml\n      revisions", "constitution: constitutions/tinny.yaml\n      revisions", r"`stages\.4\.revise\.constitution`: there is no file or folder 'constitutions/tinny.yaml'. Fix: did you mean"),
    "compare one candidate": (CAI, "per_prompt: 2", "per_prompt: 1", r"`stages\.11\.pair`: a pair needs two candidates"),
    "rule that does not fit": (CAI, "rule: compared", "rule: compared, from: revise", r"`stages\.11\.pair\.from`: no earlier stage of kind compare or person or data is called 'revise'"),
    "margin beyond probability": (CAI, "min_margin: 0.1", "min_margin: 1.5", r":\d+: `stages\.11\.pair\.min_margin`: a margin of 1.5 is more than two probabilities can differ. Fix: give a number up to 1"),
    "clamp without reasons": (CAI, "reasons: true", "clamp: [0.4, 0.6]", r"`clamp` is for soft verdicts after reasons"),
    "clamp that does not hold one half": (CAI, "reasons: true", "reasons: true\n      clamp: [0.6, 0.8]", r"`clamp` needs a share below one half and one above"),
    "no way to ask for the verdict": (CAI, "compare-compact.jinja\n      ending: which one ?\n      reasons: true", "no-ending.jinja", r"no-ending\.jinja: the template never uses `ending`"),
    "empty ending": (CAI, "ending: which one ?", 'ending: " "', r"`stages\.10\.compare\.ending`: expected some text"),
    "mistyped source": (CAI, "mix: {revise: 0.4, demonstrations: 0.4, look-alike-answers: 0.2}", "data: [revised, demonstrations]", r"`stages\.7\.train\.sft\.data`: no earlier stage of kind data or .* or revise is called 'revised'. Fix: did you mean `revise`"),
    "source named twice": (CAI, "mix: {revise: 0.4, demonstrations: 0.4, look-alike-answers: 0.2}", "data: [revise, revise]", r"a stage is named twice"),
    "no source": (CAI, "mix: {revise: 0.4, demonstrations: 0.4, look-alike-answers: 0.2}", "data: []", r"`stages\.7\.train\.sft\.data`: expected more items, found \[\]"),
    "demonstrations as preferences": (CAI, "name: rl-cai\n", "name: rl-cai\n        data: demonstrations\n", r"`stages\.12\.train\.dpo\.data`: the stage 'demonstrations' is read as demonstrations by sft and as preferences here"),
    "measured twice": (CAI, "models: [helpful, sl-cai, rl-cai]", "models: [helpful, helpful, rl-cai]", r"the model 'helpful' is named twice"),
    "two trainers in one stage": (RLHF, "      rm:\n", "      dpo: {base: sft, name: d}\n      rm:\n", r"give exactly one trainer"),
    "reward model as a sampler": (RLHF, "models: [base, sft, ppo]", "models: [base, sft, rm]", r"`stages\.8\.measure\.models\.2`: 'rm' is a reward model and does not generate"),
    "rewarded by a policy": (RLHF, "reward: rm\n        data", "reward: sft\n        data", r"`stages\.7\.train\.ppo\.reward`: 'sft' was not trained by `rm`"),
    "rewarded by a model without a head": (RLHF, "reward: rm\n        data", "reward: annotator\n        data", r"`stages\.7\.train\.ppo\.reward`: the model 'annotator' has no reward head"),
    "no reward": (RLHF, "        reward: rm\n        data", "        data", r"rlhf\.yaml:\d+: `stages\.7\.train\.ppo`: give either `reward` \(a reward model\) or `checks`"),
    "best of n without a reward": (RLHF, "      reward: rm\n      best_of", "      best_of", r"`best_of` needs a reward model to choose by"),
    "minibatches that do not fit": (RLHF, "minibatch_size: 32", "minibatch_size: 33", r"`batch_size` \(128\) is not a multiple of `minibatch_size`"),
    "no room for a prompt": (RLHF, "        max_tokens: 48\n        max_length: 256", "        max_tokens: 256\n        max_length: 256", r"`max_tokens` \(256\) leaves no room for a prompt"),
    "learning rate without end": (RLHF, "learning_rate: 1.0e-4", "learning_rate: 1.0e+38", r"`stages\.7\.train\.ppo\.learning_rate`: expected a number less than or equal to 1"),
    "held-out prompts": (RLHF, "split: [train, validation]", "split: [train, held-out]", r"`stages\.2\.prompts\.split\.1`: expected 'train', 'validation' or 'all', found 'held-out'"),
    "no split": (RLHF, "split: [train, validation]", "split: []", r"`stages\.2\.prompts\.split`: expected more items"),
    "a file for a model": (RLHF, "path: tiny/base", "path: tiny/README.md", r"`models\.base\.path`: 'tiny/README.md' is a file. Fix: give a model's folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", CIRCLE)
def test_wrong_pipelines_of_the_circle(name: str, tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    shipped, old, new, expected = CIRCLE[name]
    text = find(f"pipelines/{shipped}").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / shipped).write_text(text.replace(old, new, 1))
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/no-ending.jinja").write_text("{{ principle.comparison }} {{ prompt }} {{ completions }}")
    code, out, err = run_cli("run", shipped)
    assert code == 2, (out, err)
    assert re.search(expected, err), err
    assert err.startswith("error: ") and "Traceback" not in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


TEMPLATES = {
    "hides the principle": ("{{ prompt }} {{ completion }}{% if false %}{{ principle.critique }}{% endif %}", "does not show the principle's critique"),
    "asks for what a principle does not have": ("{{ principle.nope }} {{ prompt }} {{ completion }}", "cannot be rendered: .*no attribute 'nope'"),
    "reads a file": ('{% include "/etc/passwd" %}{{ principle.critique }} {{ prompt }} {{ completion }}', "cannot be rendered"),
    "reaches into Python": ("{{ prompt.__class__ }}{{ principle.critique }} {{ prompt }} {{ completion }}", "cannot be rendered"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_wrong_template_is_found_before_anything_is_trained_or_paid_for(
    name: str,
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    text, expected = TEMPLATES[name]
    (tmp_path / "mine.jinja").write_text(text)
    code, out, err = run_cli(
        "run", "pipelines/constitutional_ai.yaml", "stages.revise.revise.critique_template=mine.jinja"
    )
    assert code == 2 and re.search(rf"mine\.jinja(:1)?: the template {expected}", err), (out, err)
    assert not (tmp_path / "runs").exists()


TRAIN = ["--base", "tiny/annotator", "--data", "pairs.jsonl", "--out", "out"]
TRAINING: dict[str, tuple[list[str], int, str]] = {
    "unknown trainer": (["dpi", *TRAIN], 2, r"there is no trainer 'dpi'. Fix: did you mean `dpo`"),
    "unknown setting": (["dpo", *TRAIN, "epoch=1"], 2, r"command line: `epoch`: unknown key. Fix: did you mean `epochs`"),
    "no setting": (["dpo", *TRAIN, "epochs"], 2, r"'epochs' is not of the form key=value"),
    "name as a setting": (["dpo", *TRAIN, "name=x"], 2, r"`name` is not a setting here. Fix: use --base, --data, --out and --reward"),
    "missing data": (["dpo", "--base", "tiny/annotator", "--data", "pears.jsonl", "--out", "out"], 2, r"command line: `--data`: there is no file or folder 'pears.jsonl'. Fix: did you mean 'pairs.jsonl'"),
    "base that is a file": (["dpo", "--base", "pairs.jsonl", "--data", "pairs.jsonl", "--out", "out"], 2, r"command line: `--base`: 'pairs.jsonl' is a file"),
    "demonstrations as preferences": (["dpo", "--base", "tiny/annotator", "--data", "tiny/demonstrations.jsonl", "--out", "out"], 2, r"demonstrations\.jsonl:1: no known shape has the columns `messages`. Fix: give `chosen` and `rejected`"),
    "ppo without a reward": (["ppo", "--base", "tiny/annotator", "--data", "tiny/prompts.jsonl", "--out", "out"], 2, r"ppo needs a reward\. Fix: give a reward model with --reward, or checks in code"),
    "reward that does not score": (["ppo", "--base", "tiny/annotator", "--data", "tiny/prompts.jsonl", "--out", "out", "--reward", "tiny/annotator"], 2, r"command line: `--reward`: the model 'reward' has no reward head"),
    "reward where none belongs": (["dpo", *TRAIN, "--reward", "tiny/base"], 2, r"dpo takes no reward model"),
    "folder that is there": (["dpo", *TRAIN[:-1], "."], 2, r"it holds the data. Fix: name another with --out"),
    "folder under a file": (["dpo", *TRAIN[:-1], "pairs.jsonl/x"], 2, r"'pairs.jsonl/x' cannot be written"),
    "checkpoints of nobody": (["dpo", *TRAIN[:-1], "mine"], 2, r"mine\.partial: the folder is not an unfinished training"),
    "base without a chat template": (["dpo", "--base", "tiny/base", "--data", "pairs.jsonl", "--out", "out"], 2, r"Fix: give `template`: a template that marks"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINING)
def test_wrong_trainings(name: str, tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    arguments, expected_code, expected = TRAINING[name]
    row = {"prompt": "what is two plus two ?", "chosen": "it is four .", "rejected": "it is five ."}
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps(row | {"prompt": f"{row['prompt']} {i}"}) + "\n" for i in range(9))
    )
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "mine.partial" / "precious.txt").write_text("mine")
    code, out, err = run_cli("train", *arguments)
    assert code == expected_code and re.search(expected, err), (out, err)
    assert "Traceback" not in err
    assert (tmp_path / "mine.partial" / "precious.txt").read_text() == "mine" and not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*.lock"))


def test_a_second_training_in_the_same_folder_waits_its_turn(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    row = {"prompt": "what is 0?", "chosen": "a", "rejected": "b"}  # which is for training, by its hash
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    with hold(tmp_path / ".out.lock", tmp_path / "out"):
        code, out, err = run_cli("train", "dpo", *TRAIN)
    assert code == 1 and "another process is running in 'out'. Fix: wait for it" in err, (out, err)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


JUDGED = "  - rate: {model: judge, rubric: rubric.yaml}\n"
DATA_STAGES: dict[str, tuple[str, str]] = {
    "mistyped key": ("  - data: {path: rows.jsonl, colums: {prompt: q}}\n", r"data\.yaml:6: `stages\.0\.data\.colums`: unknown key. Fix: did you mean `columns`"),
    "mistyped name of ours": ("  - data: {path: rows.jsonl, columns: {promt: prompt}}\n", r"data\.yaml:6: `stages\.0\.data\.columns\.promt`: unknown key. Fix: did you mean `prompt`"),
    "mistyped name of theirs": ("  - data: {path: rows.jsonl, columns: {prompt: prompt, completion_a: response_1, completion_b: response_b}}\n" + JUDGED, r"rows\.jsonl:1: there is no column 'response_1', only .*Fix: did you mean `response_"),
    "no column named": ("  - data: {path: rows.jsonl, columns: {}}\n", r"`stages\.0\.data\.columns`: .*name at least one column"),
    "turns of another kind": ("  - data: {path: rows.jsonl, turns: first}\n", r"`stages\.0\.data\.turns`: .*'first'"),
    "empty system": ('  - data: {path: rows.jsonl, system: " "}\n', r"`stages\.0\.data\.system`: expected some text"),
    "revision of a file": ("  - data: {path: rows.jsonl, revision: main}\n", r"`stages\.0\.data`.*a `revision` is of a data set on the hub"),
    "revision of prompts in a file": ("  - prompts: {path: rows.jsonl, revision: main}\n", r"a `revision` is of a data set on the hub"),
    "nothing to judge": ("  - data: {path: rows.jsonl, columns: {prompt: prompt}}\n" + JUDGED, r"`stages\.0\.data`: no row of the file has completions to judge"),
    "nothing to pair by": ("  - data: {path: rows.jsonl, columns: {prompt: prompt, completion_a: response_a, completion_b: response_b}}\n  - pair: {}\n", r"`stages\.1\.pair`: the stage 'data' has no ratings, rankings or scores.*Fix: judge its completions"),
    "rule that does not fit": ("  - data: {path: rows.jsonl}\n  - pair: {rule: zephyr}\n", r"`stages\.1\.pair\.rule`: the stage 'data' has no ratings, rankings or scores"),
    "judged and learnt": ("  - data: {path: rows.jsonl}\n  - pair: {}\n  - train: {dpo: {base: mine, name: dpo, data: data}}\n", r"`stages\.2\.train\.dpo\.data`: the stage 'data' is judged by pair and trained on unchanged here. Fix: name a `pair` stage"),
    "demonstrations taken for what is judged": ("  - data: {path: rows.jsonl}\n  - prompts: {path: rows.jsonl}\n  - sample: {models: [judge], per_prompt: 2}\n  - pair: {}\n", r"`stages\.3\.pair\.from`: no earlier stage of kind rate or compare"),
    "every turn of a preference": ("  - data: {path: rows.jsonl, turns: all}\n  - train: {dpo: {base: mine, name: dpo}}\n", r"`stages\.0\.data\.turns`: with preferences only the last turn is trained on"),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA_STAGES)
def test_a_wrong_data_stage_is_a_sentence(name: str, tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    stages, expected = DATA_STAGES[name]
    project(tmp_path, map(stated, range(9)), stages)
    code, out, err = run_cli("run", "data.yaml")
    assert code == 2 and re.search(expected, err), (out, err)
    assert "Traceback" not in err and not (tmp_path / "runs").exists()
