"""Wrong input: each a sentence that names file, line and key and says what would be right; no traceback, nothing half-written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from echo import RUBRIC, write_project
from test_run import Cli, run_cli  # noqa: F401 - the fixture

Edit = Callable[[Path], None]


def pipeline(old: str, new: str) -> Edit:
    def edit(folder: Path) -> None:
        text = (folder / "echo.yaml").read_text()
        assert old in text
        (folder / "echo.yaml").write_text(text.replace(old, new, 1))

    return edit


def file(name: str, text: str) -> Edit:
    return lambda folder: (folder / name).write_text(text) and None


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
    "unknown template variable": (file("mine.jinja", "{{ aspect.description }} {{ prompt }} {{ completions }} {{ promt }}"), r"mine\.jinja: the template uses `promt`, which nothing fills. Fix: use only"),
    "template leaves the prompt out": (file("mine.jinja", "{{ aspect.description }} {{ completions }}"), r"mine\.jinja: the template never uses `prompt`"),
    "broken template": (file("mine.jinja", "a\nb {% for %}"), r"mine\.jinja:2: the template does not parse"),
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
    assert not (tmp_path / "runs/echo/dataset").exists() and not list(tmp_path.rglob("*.tmp"))


def test_the_cases_are_many_enough() -> None:
    assert len(CASES) >= 30


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "no.yaml"], "no file or folder 'no.yaml'"),
        (["run", "echo.yaml", "seed"], "'seed' is not of the form key=value"),
        (["run", "echo.yaml", "stages.9.pair.rule=zephyr"], "`stages.9.pair.rule`: stages has no `9`"),
        (["run", "echo.yaml", "stages.pair.pair.rul=zephyr"], "unknown key. Fix: did you mean `rule`"),
        (["run", "echo.yaml", "seed=-1"], "whole number from 0, found -1"),
        (["run", "echo.yaml", "--outt", "x"], "No such option"),
        (["rum"], "No such command"),
        (["status", "runs/none"], "there is no run in 'runs/none'"),
        (["show", "."], "there is no run in '.'"),
        (["run", "echo.yaml", "--out", "echo.yaml"], "'echo.yaml' is a file"),
        (["run", "echo.yaml", "--out", "."], "'.' holds files, but no run"),
        (["run", "echo.yaml", "--out", "of-another"], "is the folder of another run, 'another'"),
    ],
)
def test_wrong_commands(arguments: list[str], expected: str, tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    write_project(tmp_path, "http://127.0.0.1:9/v1")
    (tmp_path / "of-another").mkdir()
    (tmp_path / "of-another/manifest.json").write_text('{"format": 1, "name": "another"}')
    code, out, err = run_cli(*arguments)
    assert code == 2 and expected in err, (code, out, err)
    assert "Traceback" not in err


def test_a_damaged_manifest_is_a_sentence(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    (tmp_path / "r").mkdir()
    (tmp_path / "r/manifest.json").write_text("{")
    code, _, err = run_cli("status", "r")
    assert code == 1 and "manifest.json: the manifest cannot be read" in err
