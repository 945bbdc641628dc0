# ruff: noqa: F811 - a parameter of a test is the fixture of that name
"""What a run says: that nothing came of it, what it cost, where its files were found, and which rows it is about."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from echo import RUBRIC, Echo, write_project, write_prompts
from serving import Answer, completion, scripted, serve
from test_faults import interrupt_twice, slowly, start, until
from test_formats import jsonl
from test_run import Cli, asked, count, manifest, models, run_cli, url  # noqa: F401 - the fixtures

from rlaif.constitution import read_constitution
from rlaif.engines.ledger import Ledger
from rlaif.engines.traffic import Endpoint
from rlaif.formats import each_row
from rlaif.judges.verifying import VERIFIER
from rlaif.pipeline import browse, events
from rlaif.records import Score, Usage

ROOT = Path(__file__).parent.parent
NAMES = ("one", "two", "judge")
PRICED = [f"models.{name}.price={{prompt: 10, completion: 1000}}" for name in NAMES]


# ---------------------------------------------------------------- where files are found


@pytest.fixture
def project(tmp_path: Path, url: str) -> Path:
    """A project in the layout of `rlaif init`, which has its own version of a template that ships."""
    folder = tmp_path / "project"
    (folder / "pipelines").mkdir(parents=True)
    write_project(folder, url)
    shutil.move(folder / "echo.yaml", folder / "pipelines/echo.yaml")
    (folder / "prompts").mkdir()
    own = (ROOT / "prompts/rate.jinja").read_text().replace("You are a careful", "You are our careful")
    (folder / "prompts/rate.jinja").write_text(own)
    return folder


def test_a_projects_edited_template_counts_from_any_folder(
    tmp_path: Path,
    project: Path,
    run_cli: Cli,
    models: dict[str, Echo],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, err = run_cli("run", "../project/pipelines/echo.yaml")
    assert (code, err) == (0, "") and "from the package" not in out
    judged = [r.messages[0].content for r in models["judge"].asked if r.sampling.max_tokens > 16]
    assert len(judged) == 40 and all(text.startswith("You are our careful") for text in judged)
    asked(models)
    saved = "elsewhere/runs/echo/pipeline.yaml"
    for folder in ("elsewhere", "project", "."):  # its own copy finds the same files, whose calls one store has
        monkeypatch.chdir(tmp_path / folder)
        planned = run_cli("plan", os.path.relpath(tmp_path / saved), "--json", "--out", str(tmp_path / "new"))
        assert planned[0] == 0 and json.loads(planned[1])["from_package"] == []
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run_cli("run", "runs/echo/pipeline.yaml")[0] == 0 and sum(asked(models).values()) == 0


def test_what_comes_from_the_package_is_said_once(tmp_path: Path, run_cli: Cli, url: str) -> None:
    write_project(tmp_path, url)
    for command in (["plan", "echo.yaml"], ["run", "echo.yaml"]):
        code, out, _ = run_cli(*command)
        assert code == 0 and out.count("from the package: prompts/rate.jinja\n") == 1
    assert manifest(tmp_path / "runs/echo")["from_package"] == ["prompts/rate.jinja"]


@pytest.mark.parametrize(("there", "found"), [(("beside", "here"), "beside"), (("here",), "here")])
def test_a_file_beside_the_pipeline_comes_before_one_in_the_current_folder(
    tmp_path: Path,
    run_cli: Cli,
    url: str,
    there: tuple[str, ...],
    found: str,
) -> None:
    (tmp_path / "other").mkdir()
    path = write_project(tmp_path / "other", url)
    (tmp_path / "other/rubric.yaml").unlink()
    for place, folder in (("beside", tmp_path / "other"), ("here", tmp_path)):
        if place in there:
            (folder / "rubric.yaml").write_text(RUBRIC.replace("name: length", f"name: {place}"))
    assert run_cli("run", "other/echo.yaml", "--out", "runs/x")[0] == 0
    assert [d for d in manifest(tmp_path / "runs/x")["digests"] if d.startswith("rubric ")] == [
        f"rubric {found} of rate"
    ]
    # What is typed is looked for where it is typed.
    (tmp_path / "rubric.yaml").write_text(RUBRIC.replace("name: length", "name: typed"))
    assert run_cli("run", str(path), "stages.rate.rate.rubric=rubric.yaml", "--out", "runs/y")[0] == 0
    assert "rubric typed of rate" in manifest(tmp_path / "runs/y")["digests"]


# ---------------------------------------------------------------- whose folder it is


def test_a_second_pipeline_of_the_same_name_leaves_the_first_ones_folder_alone(
    tmp_path: Path,
    run_cli: Cli,
    url: str,
    models: dict[str, Echo],
) -> None:
    path = write_project(tmp_path, url)
    assert run_cli("run", "echo.yaml")[0] == 0
    before = {file: file.read_bytes() for file in (tmp_path / "runs/echo").rglob("*") if file.is_file()}
    asked(models)
    (tmp_path / "second.yaml").write_text(path.read_text().replace("per_prompt: 2", "per_prompt: 3"))
    code, _, err = run_cli("run", "second.yaml")
    assert code == 2 and "is the run of another pipeline of this name" in err and "echo.yaml" in err and "--out" in err
    assert {file: file.read_bytes() for file in before} == before and sum(asked(models).values()) == 0
    assert run_cli("run", "second.yaml", "--out", "runs/second")[0] == 0
    shutil.copy(path, tmp_path / "copy.yaml")
    assert run_cli("run", "copy.yaml")[0] == 0
    (tmp_path / "copy.yaml").unlink()  # moved, and edited
    assert run_cli("run", "second.yaml", "name=echo")[0] == 0


def test_a_second_judge_and_a_second_audit_leave_the_firsts_alone(
    tmp_path: Path,
    run_cli: Cli,
    url: str,
) -> None:
    row = {"prompt": "Name a fruit.", "completion_a": "A fig.", "completion_b": "It is a ripe fig.", "label": "a"}
    for name, extra in (("a", ""), ("b", " or two")):
        jsonl(tmp_path / f"{name}.jsonl", [row | {"prompt": f"Name a fruit{extra}, {i}."} for i in range(4)])
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    by = ["--by", url, "--model", "judge", "--method", "rate", "rubric=rubric.yaml"]
    assert run_cli("judge", "a.jsonl", *by)[0] == 0
    code, _, err = run_cli("judge", "b.jsonl", *by)
    assert code == 2 and "runs/judged' holds what another judge, or other data, gave" in err and "--out" in err
    assert (
        run_cli("judge", "a.jsonl", *by, "reask=0")[0] == 0
        and run_cli("judge", "b.jsonl", *by, "--out", "runs/b")[0] == 0
    )
    assert run_cli("audit", "runs/judged")[0] == 0
    before = (tmp_path / "audit/audit.json").read_bytes()
    code, _, err = run_cli("audit", "runs/b")
    assert code == 2 and "the folder holds another audit, of judge in the run judged" in err
    assert (tmp_path / "audit/audit.json").read_bytes() == before
    assert run_cli("audit", "runs/judged")[0] == 0 and run_cli("audit", "runs/b", "--out", "second")[0] == 0


# ---------------------------------------------------------------- nothing came of it


class Mumbling(Echo):
    """A judge whose replies nobody can read, and a sampler that is cut, until it is mended."""

    mended = False

    def _reply(self, request: Any, index: int) -> Any:
        reply = super()._reply(request, index)
        if self.mended or request.sampling.max_tokens <= 16:
            return reply
        if request.json_schema is not None:
            return reply.model_copy(update={"text": "I would rather not say."})
        return reply.model_copy(update={"finish_reason": "length"})


def test_unparsed_judgements_are_no_success_and_are_asked_for_again(tmp_path: Path, run_cli: Cli) -> None:
    judge = Mumbling("judge")
    engines = {"one": Echo("one"), "two": Echo("two"), "judge": judge}
    with serve(engines) as url:
        write_project(tmp_path, url, prompts=6)
        code, out, _ = run_cli("run", "echo.yaml")
        assert code == 1 and "rate: 48 of 48 judgements are unparsed, most often: " in out
        assert (
            "for example in row" in out and "--retry-failed" in out and "pair: no preference was made of 6 rows" in out
        )
        assert manifest(tmp_path / "runs/echo")["state"] == "incomplete"
        status = run_cli("status", "runs/echo")[1]
        assert "48 of 48 judgements are unparsed" in " ".join(status.split())
        assert len(json.loads(run_cli("show", "runs/echo", "--unparsed", "--json")[1])) == 6
        assert asked(engines)["judge"] == 6 * 2 * 2
        assert run_cli("run", "echo.yaml")[0] == 1 and asked(engines)["judge"] == 0  # what was paid for stays as it is
        assert run_cli("run", "echo.yaml", "--retry-failed")[0] == 1 and asked(engines)["judge"] == 6 * 2  # once more
        judge.mended = True
        assert run_cli("run", "echo.yaml")[0] == 1 and asked(engines)["judge"] == 0
        assert run_cli("run", "echo.yaml", "--retry-failed")[0] == 0 and asked(engines)["judge"] == 6 * 2
        code, out, _ = run_cli("run", "echo.yaml")  # and from then on they are what the store has
        assert code == 0 and asked(engines)["judge"] == 0 and "unparsed" not in out
        planned = json.loads(run_cli("plan", "echo.yaml", "--json")[1])
        assert planned["calls"]["judge"]["calls"] == planned["calls"]["judge"]["paid"]


@pytest.mark.parametrize("share", ["all", "some"])
def test_cut_completions_are_told_with_what_to_raise(tmp_path: Path, run_cli: Cli, share: str) -> None:
    cut = ("one", "two") if share == "all" else ("one",)
    with serve({name: (Mumbling if name in cut else Echo)(name) for name in NAMES}) as url:
        write_project(tmp_path, url, prompts=6)
        code, out, _ = run_cli("run", "echo.yaml")
    if share == "all":
        assert code == 1 and "sample: every completion was cut at `max_tokens`: raise it" in out
        assert "no preference was made of 6 rows (6 cut at max_tokens)" in out
    else:
        assert code == 0 and "note: sample: 12 of 24 completions were cut at `max_tokens`" in out
    assert f"{6 * 2 * len(cut)} completions cut" in out


def test_a_run_without_a_preference_is_not_done(tmp_path: Path, run_cli: Cli, url: str) -> None:
    write_project(tmp_path, url, prompts=6)
    code, out, _ = run_cli("run", "echo.yaml", "stages.pair.pair.min_margin=5")
    assert code == 1 and "incomplete: pair: no preference was made of 6 rows (" in out and "margin too small" in out


def test_lines_are_asked_for_where_lines_are_read(
    tmp_path: Path,
    run_cli: Cli,
    url: str,
    models: dict[str, Echo],
) -> None:
    write_project(tmp_path, url, prompts=2)
    run_cli("run", "echo.yaml", "stages.rate.rate.answers=lines")
    judged = [r for r in models["judge"].asked if r.sampling.max_tokens > 16]
    assert judged and all(r.json_schema is None and "JSON" not in r.messages[0].content for r in judged)


def test_a_prompts_and_a_samplers_system_messages_are_sent_as_one(
    tmp_path: Path,
    run_cli: Cli,
    url: str,
    models: dict[str, Echo],
) -> None:
    write_project(tmp_path, url)
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello."}]
    jsonl(tmp_path / "prompts.jsonl", [{"messages": turns}])
    system = "stages.sample.sample.models=[{model: one, system: Be brief.}, two]"
    assert run_cli("run", "echo.yaml", system)[0] in (0, 1)
    sent = [[(m.role, m.content) for m in r.messages] for r in models["one"].asked if r.sampling.max_tokens > 16]
    assert sent and all([role for role, _ in messages] == ["system", "user"] for messages in sent)
    assert all("Be brief." in messages[0][1] and "Be kind." in messages[0][1] for messages in sent)


# ---------------------------------------------------------------- after a finished run


def test_a_failed_start_hides_no_finished_run_and_says_why_it_failed(
    tmp_path: Path,
    run_cli: Cli,
    url: str,
) -> None:
    write_project(tmp_path, url, prompts=6)
    assert run_cli("run", "echo.yaml")[0] == 0
    finished = json.loads(run_cli("show", "runs/echo", "1", "--json")[1])
    down = ["models.judge.base_url=http://127.0.0.1:9/v1", "models.judge.retries=0"]
    assert run_cli("run", "echo.yaml", *down)[0] == 1
    code, out, _ = run_cli("status", "runs/echo")
    said = " ".join(out.split())
    assert code == 0 and "echo: failed" in said and "127.0.0.1:9" in said and "Fix:" in said
    assert "rate, of an earlier start" in said and "pair, of an earlier start" in said
    assert json.loads(run_cli("show", "runs/echo", "1", "--json")[1]) == finished and finished["ratings"]
    assert run_cli("export", "runs/echo", "--format", "preference", "--to", "x.jsonl")[0] == 0
    assert run_cli("run", "echo.yaml")[0] == 0
    assert "earlier" not in run_cli("status", "runs/echo")[1]


def test_the_cost_of_all_starts_is_told(tmp_path: Path, run_cli: Cli, url: str) -> None:
    write_project(tmp_path, url, prompts=6)
    assert "cost of all starts: " in run_cli("run", "echo.yaml", *PRICED)[1]
    first = sum(call["cost"] for call in manifest(tmp_path / "runs/echo")["calls"].values())
    write_prompts(tmp_path, 9)
    out = run_cli("run", "echo.yaml", *PRICED)[1]
    second = sum(call["cost"] for call in manifest(tmp_path / "runs/echo")["calls"].values())
    assert first > 0 < second
    for said in (out, run_cli("status", "runs/echo")[1]):
        assert f"cost of all starts: {first + second:.4f}" in said
    found = manifest(tmp_path / "runs/echo")
    found["state"], found["cost_of_all_starts"] = "running", 0.0  # killed before it wrote what it had paid
    (tmp_path / "runs/echo/manifest.json").write_text(json.dumps(found))
    assert f"cost of all starts: {first + second:.4f}" in run_cli("status", "runs/echo")[1]


# ---------------------------------------------------------------- which rows


PAIRS = [
    {"prompt": "Name a river.", "completion_a": "The Rhine.", "completion_b": "A cow.", "label": "a"},
    {"prompt": "Name a hill.", "completion_a": "The Rigi.", "completion_b": "The Zugspitze.", "label": "tie"},
    {"prompt": "Name a lake.", "completion_a": "The Titisee.", "completion_b": "A spoon.", "label": "nobody knows"},
]
STATED = """\
name: stated
models: {none: {engine: openai, model: m, base_url: "http://127.0.0.1:9/v1"}}
stages:
  - data: {path: pairs.jsonl, held_out: keep}
  - pair: {rule: compared}
"""


def test_a_run_of_data_and_pairs_is_shown(tmp_path: Path, run_cli: Cli) -> None:
    jsonl(tmp_path / "pairs.jsonl", PAIRS)
    (tmp_path / "stated.yaml").write_text(STATED)
    assert run_cli("run", "stated.yaml")[0] == 0

    def listed(*filters: str) -> list[int]:
        return [row["row"] for row in json.loads(run_cli("show", "runs/stated", "--json", *filters)[1])]

    assert listed() == [1, 2, 3]
    assert listed("--dropped") == [2, 3] and listed("--tied") == [2] and listed("--unparsed") == [3]
    assert listed("--search", "rigi") == [2] and listed("--search", "SPOON", "--dropped") == [3]
    out = run_cli("show", "runs/stated", "--dropped")[1]
    assert [line.split()[3] for line in out.splitlines() if "Name a" in line] == ["tie", "unparsed"]
    assert listed("--search", "completion_a") == [] == listed("--search", "verdict")  # names of fields
    assert json.loads(run_cli("show", "runs/stated", "2", "--json")[1])["why"] == ["tie"]
    out = run_cli("show", "runs/stated", "1")[1]
    assert "chosen" in out and "compared: [1] preferred to [2]" in out
    code, _, err = run_cli("show", "runs/stated", "1", "--tied")
    assert code == 2 and "list rows" in err
    assert "no row" in run_cli("show", "runs/stated", "--search", "xylophone")[1]


def test_a_search_finds_quotes_and_line_ends(tmp_path: Path, run_cli: Cli) -> None:
    said = {"completion_a": 'He said "no".\nThen he left.'}
    jsonl(tmp_path / "pairs.jsonl", [PAIRS[0] | said, *PAIRS[1:]])
    (tmp_path / "stated.yaml").write_text(STATED)
    assert run_cli("run", "stated.yaml")[0] == 0
    for words in ('said "no"', 'No".\nthen'):
        assert [row["row"] for row in json.loads(run_cli("show", "runs/stated", "--json", "--search", words)[1])] == [1]


def test_show_says_when_it_stops(tmp_path: Path, run_cli: Cli, url: str) -> None:
    write_project(tmp_path, url, prompts=25)
    run_cli("run", "echo.yaml")
    assert "the first 20 of 25 rows" in run_cli("show", "runs/echo")[1]
    assert "the first 20 of" not in run_cli("show", "runs/echo", "--search", "number 1")[1]


def test_each_branch_shows_its_own_preference(tmp_path: Path, run_cli: Cli, url: str) -> None:
    path = write_project(tmp_path, url, prompts=12)
    path.write_text(
        path.read_text().partition("  - rate:")[0]
        + "  - rate: {name: first, model: judge, rubric: rubric.yaml, from: sample}\n"
        + "  - pair: {name: best, rule: best-worst, from: first}\n"
        + "  - rate: {name: second, model: judge, rubric: rubric.yaml, from: sample}\n"
        + "  - pair: {name: other, rule: zephyr, from: second}\n"
    )
    assert run_cli("run", "echo.yaml")[0] == 0

    def rules(stage: str) -> list[Counter[str]]:
        shown = [json.loads(run_cli("show", "runs/echo", str(n), "--stage", stage, "--json")[1]) for n in range(1, 13)]
        return [Counter(preference["rule"] for preference in row["preferences"]) for row in shown]

    first, second, both = rules("first"), rules("second"), rules("sample")
    assert {rule for row in first for rule in row} == {"best-worst"}
    assert {rule for row in second for rule in row} == {"zephyr"}
    assert both == [one | other for one, other in zip(first, second, strict=True)]
    assert "best, best-worst: [" in run_cli("show", "runs/echo", "1", "--stage", "sample")[1]


COMPARED = """\
name: compared
models: {{m: {{engine: openai, model: m, base_url: "{url}"}}}}
stages:
  - prompts: {{path: prompts.jsonl}}
  - sample: {{models: [m], per_prompt: 2}}
  - compare: {{name: first, model: m, constitution: constitutions/overall.yaml, verdicts: hard}}
  - pair: {{name: best, rule: compared}}
  - compare: {{name: second, from: sample, model: m, constitution: constitutions/helpful-harmless.yaml, verdicts: hard}}
  - pair: {{name: other, rule: compared, from: second}}
"""


def test_each_of_two_compares_shows_its_own_preference(tmp_path: Path, run_cli: Cli) -> None:
    """The judge prefers the later text in both orders; the principle says which compare a preference is of."""

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        if "messages" not in body:
            return {"data": []}
        shown = re.findall(r"<completion (\d) \w+>\ntext (\d+)", body["messages"][-1]["content"])
        if shown:
            return completion(max(shown, key=lambda one: int(one[1]))[0])
        return completion(*(f"text {body['seed'] + number}" for number in range(body.get("n", 1))))

    with scripted([Answer(answer)]) as script:
        write_prompts(tmp_path, 4)
        (tmp_path / "compared.yaml").write_text(COMPARED.format(url=script.base_url))
        code, out, err = run_cli("run", "compared.yaml")
    assert code == 0, out + err
    for stage, constitution in (("first", "overall"), ("second", "helpful-harmless")):
        own = {one.id for one in read_constitution(f"constitutions/{constitution}.yaml").principles}
        row = json.loads(run_cli("show", "runs/compared", "1", "--stage", stage, "--json")[1])
        assert len(row["preferences"]) == 1 and row["preferences"][0]["principle"] in own
    both = json.loads(run_cli("show", "runs/compared", "1", "--stage", "sample", "--json")[1])
    assert len(both["preferences"]) == 2


# ---------------------------------------------------------------- exported as the file that is named


def test_an_export_is_the_file_that_its_name_says(tmp_path: Path, run_cli: Cli, url: str) -> None:
    write_project(tmp_path, url)
    run_cli("run", "echo.yaml")
    read = {}
    for form in ("preference", "hh"):  # one that the run wrote, and one that is made on export
        for name in ("x.jsonl", "x.jsonl.gz", "x.csv", "x.parquet"):
            to = tmp_path / form / name
            code, out, err = run_cli("export", "runs/echo", "--format", form, "--to", str(to))
            assert code == 0 and to.is_file(), err
            rows = [(row.prompt.text, *(c.completion.text for c in row.candidates)) for row in each_row(to, Counter())]
            assert len(rows) == int(out.split()[0]) > 10
            read.setdefault(form, rows)
            assert rows == read[form]
        names = ["x.csv", "x.jsonl", "x.jsonl.gz", "x.parquet"]
        assert sorted(file.name for file in (tmp_path / form).iterdir()) == names
    for name in ("x.xlsx", "x.json", "x.csv.gz", "x.TSV"):
        code, _, err = run_cli("export", "runs/echo", "--format", "preference", "--to", name)
        assert code == 2 and ".parquet" in err and not (tmp_path / name).exists()


# ---------------------------------------------------------------- while it runs


def test_a_slow_servers_rate_is_not_told_as_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    ledger = Ledger()
    meter, endpoint = events.Meter(ledger, None, False), Endpoint("here", 4)
    told = []
    for tick in range(1, 481):  # a call every 20 seconds, read twice a second
        now[0] = tick / 2
        if tick % 40 == 0:
            ledger.tally("m", "s").pay(Usage(completion_tokens=10))
        pulse = meter.read([endpoint])
        assert pulse is not None
        told.append(pulse.text().split("   ")[0])
    assert set(told[240:]) <= {f"{n / 10:.1f} calls/min" for n in range(25, 35)}, set(told[240:])
    for tick in range(481, 600):  # and a fast one's is of the last ten seconds
        now[0] = tick / 2
        for _ in range(50):
            ledger.tally("m", "s").pay(Usage(completion_tokens=10))
        pulse = meter.read([endpoint])
    assert pulse is not None and pulse.text().startswith("100 calls/s")


CHATTY = """
import os, pathlib, subprocess, sys, threading, time, warnings
from rlaif import cli

def chatter():
    while not pathlib.Path("runs/echo/stages/02-sample.partial.jsonl").exists():
        time.sleep(0.001)
    os.write(1, b"vllm: to the descriptor\\n")
    print("vllm: to the stream \\x1b[31m")
    warnings.warn("torch: a warning")
    subprocess.run([sys.executable, "-c", "print('vllm: from a process')"])

sys.argv = ["rlaif", "run", "echo.yaml"]
threading.Thread(target=chatter).start()
cli.main()
"""


def test_what_libraries_print_goes_to_a_file_of_the_run(
    tmp_path: Path,
    models: dict[str, Echo],
    url: str,
) -> None:
    write_project(tmp_path, url)
    slowly(models["one"], 1.0)
    done = subprocess.run([sys.executable, "-c", CHATTY], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "vllm" not in done.stdout + done.stderr and "torch" not in done.stdout + done.stderr
    assert (
        "sample -> rate: done" in done.stdout and "what libraries printed is in runs/echo/libraries.log" in done.stdout
    )
    log = (tmp_path / "runs/echo/libraries.log").read_text()
    for said in ("to the descriptor", "to the stream \\x1b[31m", "torch: a warning", "from a process"):
        assert said in log, log


def test_a_silent_run_has_no_log(tmp_path: Path, run_cli: Cli, url: str) -> None:
    write_project(tmp_path, url, prompts=2)
    run_cli("run", "echo.yaml")
    assert not (tmp_path / "runs/echo/libraries.log").exists()


def test_two_ctrl_c_leave_within_a_second(tmp_path: Path, models: dict[str, Echo], url: str) -> None:
    write_project(tmp_path, url)
    slowly(models["judge"], 30.0)
    process = start(tmp_path, "run", "echo.yaml")
    until(lambda: count(models)["two"] >= 20, 60.0)
    time.sleep(1.0)
    code, out, seconds = interrupt_twice(process)
    assert code == 130 and seconds < 1.0, seconds
    assert "finished work is kept" in out and manifest(tmp_path / "runs/echo")["state"] == "interrupted"


def test_what_a_check_cannot_decide_is_no_unparsed_reply(tmp_path: Path) -> None:
    rows = each_row(jsonl(tmp_path / "rows.jsonl", [{"prompt": "Hi?", "completion": "Hello."}]), Counter())
    (row,) = rows
    undecided = Score(candidate=0, value=None, judge=VERIFIER, problem="no reference to compare with")
    unread = undecided.model_copy(update={"judge": "judge"})
    for score, listed in ((undecided, False), (unread, True)):
        shown = browse.Shown(1, "verify", row.model_copy(update={"scores": (score,)}))
        assert browse.Wanted(unparsed=True).has(shown) is listed


def test_a_folder_for_init_that_is_a_file_is_said_to_be_one(tmp_path: Path, run_cli: Cli) -> None:
    (tmp_path / "project").touch()
    code, _, err = run_cli("init", str(tmp_path / "project"))
    assert code == 2 and "project' is a file. Fix: name a new folder" in err


def test_a_plan_names_the_models_whose_price_it_does_not_know(project: Path, run_cli: Cli) -> None:
    code, out, _ = run_cli("plan", str(project / "pipelines/echo.yaml"))
    sentence = "to pay, without re-asks and without the calls of one, two (no `price`)"
    assert code == 0 and sentence in " ".join(out.split())
    _, out, _ = run_cli(
        "plan",
        str(project / "pipelines/echo.yaml"),
        *(f"models.{name}.price={{prompt: 1, completion: 2}}" for name in ("one", "two")),
    )
    assert "without re-asks" in out and "no `price`" not in out


def test_without_a_command_there_is_help_and_no_empty_error(tmp_path: Path, run_cli: Cli) -> None:
    code, out, err = run_cli()
    assert code == 2 and "Start with:" in out + err and "error:" not in out + err
