"""A whole run over a real socket: what is paid is never paid twice, what is killed goes on, what fails is counted."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from echo import RUBRIC, Echo, write_project, write_prompts
from inside import rlaif
from serving import Answer, scripted, serve

from rlaif import cli
from rlaif.formats import each_row

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line in this process, in a folder of the test's own: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rlaif", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        printed = capsys.readouterr()
        return int(exit_.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def models() -> dict[str, Echo]:
    return {name: Echo(name) for name in ("one", "two", "judge")}


@pytest.fixture
def url(models: dict[str, Echo]) -> Iterator[str]:
    with serve(models) as url:
        yield url


def count(models: dict[str, Echo]) -> dict[str, int]:
    """Samples that were asked for, without the short probes of a server."""
    return {name: sum(r.sampling.max_tokens > 16 for r in model.asked) for name, model in models.items()}


def asked(models: dict[str, Echo]) -> dict[str, int]:
    """Samples that were asked for since the last count; forgets them."""
    counts = count(models)
    for model in models.values():
        model.asked.clear()
    return counts


def dataset_bytes(folder: Path) -> dict[str, str]:
    files = sorted((folder / "dataset").rglob("*.*"))
    assert len(files) == 6, files  # three data sets, each a Parquet file and a card
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def test_a_run_makes_data_that_loads_and_explains_itself(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str
) -> None:
    write_project(tmp_path, url)
    code, out, err = run_cli("run", "echo.yaml")
    # 20 x (2 x 2 samples + 2 aspects), and the three calls by which the server is probed
    assert (code, err) == (0, "") and "123 calls made, 0 cached" in out
    assert asked(models) == {"one": 40, "two": 40, "judge": 40}

    import datasets

    data = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "runs/echo/dataset/preference/data/*.parquet"), split="train"
    )
    found = manifest(tmp_path / "runs/echo")
    pair = found["stages"][-1]
    assert pair["in"] == 20 == pair["out"] + sum(pair["dropped"].values()) and pair["out"] == len(data) > 10
    for row in data:
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert min(5, len(chosen.split())) > min(5, len(rejected.split()))  # the judge likes words
        assert row["score_chosen"] == min(5, len(chosen.split()))
    assert found["state"] == "done" and found["calls"]["judge"]["cost"] > 0

    code, out, _ = run_cli("show", "runs/echo", data[0]["prompt_id"][:8])
    assert (
        code == 0
        and data[0]["chosen"][0]["content"] in out
        and "chosen" in out
        and "words" in out
        and "judge, place" in out
    )


def test_a_run_leaves_the_collector_as_it_found_it(tmp_path: Path, run_cli: Cli, url: str) -> None:
    """What is still frozen when a process ends makes libraries complain of leaks to the user."""
    write_project(tmp_path, url)
    before = gc.get_threshold(), gc.get_freeze_count()
    assert run_cli("run", "echo.yaml")[0] == 0
    assert (gc.get_threshold(), gc.get_freeze_count()) == before


def test_a_second_run_asks_nothing_and_gives_the_same_bytes(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str
) -> None:
    write_project(tmp_path, url)
    run_cli("run", "echo.yaml")
    first, digests = dataset_bytes(tmp_path / "runs/echo"), manifest(tmp_path / "runs/echo")["digests"]
    asked(models)
    code, out, _ = run_cli("run", "echo.yaml")
    assert code == 0 and "0 calls made, 120 cached" in out
    assert sum(len(model.asked) for model in models.values()) == 0  # not even a probe
    assert dataset_bytes(tmp_path / "runs/echo") == first and manifest(tmp_path / "runs/echo")["digests"] == digests
    # Another run of the same calls, in another folder of the project, re-uses them too.
    run_cli("run", "echo.yaml", "name=other", "--out", "runs/other")
    assert sum(asked(models).values()) == 0


def test_a_second_run_still_knows_what_the_data_cost(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str
) -> None:
    write_project(tmp_path, url)
    run_cli("run", "echo.yaml")
    first = manifest(tmp_path / "runs/echo")["calls"]["judge"]
    run_cli("run", "echo.yaml")
    second = manifest(tmp_path / "runs/echo")["calls"]["judge"]
    assert first["cost"] == first["cost_of_data"] > 0
    assert (second["cost"], second["cost_of_data"]) == (0, first["cost_of_data"])


def test_what_a_pipeline_no_longer_makes_is_no_longer_shown(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str
) -> None:
    path = write_project(tmp_path, url)
    run_cli("run", "echo.yaml")
    text = path.read_text()
    path.write_text(text[: text.index("  - rate:")])
    assert run_cli("run", "echo.yaml")[0] == 0
    assert sorted(p.name for p in (tmp_path / "runs/echo/stages").iterdir()) == ["02-sample.jsonl"]
    one = json.loads(run_cli("show", "runs/echo", "1", "--json")[1])
    assert one["candidates"] and not one["ratings"] and not one["preferences"]
    code, _, err = run_cli("export", "runs/echo", "--format", "preference", "--to", "x.jsonl")
    assert code == 2 and "no data set 'preference'" in err


def test_a_run_removes_nothing_that_is_not_its_own(tmp_path: Path, run_cli: Cli, url: str) -> None:
    path = write_project(tmp_path, url)
    run_cli("run", "echo.yaml")
    folder = tmp_path / "runs/echo"
    kept = [
        folder / "dataset/mine/notes.txt",
        folder / "dataset/preference/notes.txt",  # in a data set that goes
        folder / "stages/notes.jsonl",
        folder / "stages/07-mine.jsonl",
        folder / "models/d.old/model.bin",
        tmp_path / "elsewhere/a.txt",
    ]
    for file in kept:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    (folder / "dataset/linked").symlink_to(tmp_path / "elsewhere")
    manifest_file = folder / "manifest.json"
    record = json.loads(manifest_file.read_text())
    record["made"] += ["../../elsewhere", "dataset/../../../elsewhere", "stages/../../echo.yaml", "dataset/linked", 7]
    manifest_file.write_text(json.dumps(record))
    path.write_text(path.read_text().partition("  - rate:")[0])
    assert run_cli("run", "echo.yaml")[0] == 0
    assert [file for file in kept if not file.exists()] == [] and path.exists()
    assert sorted(p.name for p in (folder / "dataset").iterdir()) == ["linked", "mine", "preference", "sample-sft"]
    assert [p.name for p in (folder / "dataset/preference").iterdir()] == ["notes.txt"]
    assert sorted(p.name for p in (folder / "stages").iterdir()) == ["02-sample.jsonl", "07-mine.jsonl", "notes.jsonl"]
    assert json.loads(manifest_file.read_text())["made"] == ["dataset/sample-sft", "stages/02-sample.jsonl"]


def test_the_resolved_pipeline_runs_again_without_a_call(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str
) -> None:
    write_project(tmp_path, url)
    run_cli("run", "echo.yaml")
    asked(models)
    assert run_cli("run", "runs/echo/pipeline.yaml")[0] == 0
    assert sum(asked(models).values()) == 0


def test_a_changed_sentence_repeats_the_judge_calls_that_read_it_and_no_other(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str
) -> None:
    write_project(tmp_path, url)
    run_cli("run", "echo.yaml")
    asked(models)
    (tmp_path / "rubric.yaml").write_text(RUBRIC.replace("More words", "Many words"))
    run_cli("run", "echo.yaml")
    assert asked(models) == {"one": 0, "two": 0, "judge": 20}


def test_more_prompts_cost_only_the_new_ones(tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str) -> None:
    write_project(tmp_path, url)
    run_cli("run", "echo.yaml")
    asked(models)
    write_prompts(tmp_path, 22)
    run_cli("run", "echo.yaml")
    assert asked(models) == {"one": 4, "two": 4, "judge": 4}
    assert manifest(tmp_path / "runs/echo")["stages"][-1]["in"] == 22


def test_the_plan_counts_what_a_run_then_pays(tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str) -> None:
    write_project(tmp_path, url)

    def planned() -> dict[str, tuple[int, int]]:
        code, out, _ = run_cli("plan", "echo.yaml", "--json")
        assert code == 0
        return {model: (need["calls"], need["paid"]) for model, need in json.loads(out)["calls"].items()}

    assert planned() == {"one": (40, 0), "two": (40, 0), "judge": (40, 0)}
    assert sum(len(model.asked) for model in models.values()) == 0 and not (tmp_path / "runs").exists()
    run_cli("run", "echo.yaml")
    assert planned() == {"one": (40, 40), "two": (40, 40), "judge": (40, 40)}
    write_prompts(tmp_path, 25)
    assert planned() == {"one": (50, 40), "two": (50, 40), "judge": (50, 40)}


def test_an_unreadable_judge_gives_unparsed_rows_that_are_counted(tmp_path: Path, run_cli: Cli) -> None:
    models = {"one": Echo("one"), "two": Echo("two"), "judge": Echo("judge", unreadable="number 1.")}
    with serve(models) as url:
        write_project(tmp_path, url)
        code, out, _ = run_cli("run", "echo.yaml")
    rate, pair = manifest(tmp_path / "runs/echo")["stages"][-2:]
    assert code == 0 and rate["unparsed"] == 8 and pair["dropped"]["unparsed"] == 1 and "1 unparsed" in out
    assert (
        sum("number 1." in r.messages[-1].content for r in models["judge"].asked) == 4
    )  # two aspects, each asked twice


KILLABLE = "import sys; from rlaif import cli; sys.argv = ['rlaif', 'run', 'echo.yaml']; cli.main()"


@pytest.mark.parametrize("after", [5, 60, 150])
def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, models: dict[str, Echo], url: str, after: int
) -> None:
    disturbed, calm = tmp_path / "disturbed", tmp_path / "calm"
    for folder in (disturbed, calm):
        folder.mkdir()
        write_project(folder, url, prompts=60)
    process = subprocess.Popen([sys.executable, "-c", KILLABLE], cwd=disturbed, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while sum(count(models).values()) < after and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = asked(models)
    assert sum(before.values()) > 0
    assert "echo: killed" in rlaif(disturbed, "status", "runs/echo").out

    assert rlaif(disturbed, "run", "echo.yaml").code == 0
    again = asked(models)
    assert rlaif(calm, "run", "echo.yaml").code == 0
    assert sum(asked(models).values()) == 360
    assert dataset_bytes(disturbed / "runs/echo") == dataset_bytes(calm / "runs/echo")
    assert (
        sum(before.values()) + sum(again.values()) - 360 <= 2 * 2 * 32 + 32
    )  # repeated: never more than were in flight


def test_a_row_that_fails_is_kept_with_its_cause_and_tried_again(
    tmp_path: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {name: Echo(name) for name in ("one", "two", "judge")}
    refusing = models["two"]
    answer = refusing._reply
    broken = True

    def refuse(request: Any, index: int) -> Any:
        if broken and "number 7." in request.messages[-1].content:
            return answer(request, index).model_copy(update={"text": ""})  # a server that returns nothing, every time
        return answer(request, index)

    monkeypatch.setattr(refusing, "_reply", refuse)
    with serve(models) as url:
        write_project(tmp_path, url)
        code, out, _ = run_cli("run", "echo.yaml", "models.two.retries=1")
        found = manifest(tmp_path / "runs/echo")
        assert code == 1 and found["state"] == "incomplete" and "1 row failed" in out
        assert [group["count"] for group in found["failures"].values()] == [1]
        assert found["stages"][-1]["dropped"]["failed"] == 1 and found["stages"][-1]["in"] == 20
        code, out, _ = run_cli("status", "runs/echo")
        assert code == 0 and "incomplete" in out and "1 row failed" in out
        asked(models)
        broken = False
        code, out, _ = run_cli("run", "echo.yaml", "models.two.retries=1")  # what finally failed is not paid for again
        assert code == 1 and "1 row failed" in out and "--retry-failed" in out
        assert asked(models) == {"one": 0, "two": 0, "judge": 0}
        assert run_cli("run", "echo.yaml", "models.two.retries=1", "--retry-failed")[0] == 0
        assert asked(models) == {"one": 0, "two": 2, "judge": 2}
        assert run_cli("run", "echo.yaml", "models.two.retries=1")[0] == 0


def test_a_server_that_is_down_stops_the_run_with_a_sentence(tmp_path: Path, run_cli: Cli) -> None:
    write_project(tmp_path, "http://127.0.0.1:9/v1")
    code, out, err = run_cli("run", "echo.yaml", "models.one.retries=0", "models.two.retries=0")
    assert code == 1 and "127.0.0.1:9" in err and "Fix:" in err and "Traceback" not in out + err
    assert not (tmp_path / "runs/echo/dataset").exists()
    assert manifest(tmp_path / "runs/echo")["state"] == "failed"


def test_a_refused_key_is_named_by_its_variable_and_never_shown(
    tmp_path: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SERVERS_KEY", "sk-planted-secret-123")
    body = {"error": {"message": "Incorrect API key provided: sk-planted-secret-123", "type": "auth"}}
    with scripted([Answer(status=401, body=body)] * 50) as server:
        write_project(tmp_path, server.base_url)
        named = [f"models.{name}.api_key_env=MY_SERVERS_KEY" for name in ("one", "two", "judge")]
        code, out, err = run_cli("run", "echo.yaml", *named)
        assert all("sk-planted-secret-123" in request["headers"]["authorization"] for request in server.requests)
    assert code == 1 and "MY_SERVERS_KEY" in err
    run_cli("status", "runs/echo")
    everywhere = (
        out + err + "".join(p.read_text(errors="replace") for p in (tmp_path / "runs").rglob("*") if p.is_file())
    )
    assert "planted" not in everywhere and len(list((tmp_path / "runs").rglob("*"))) > 2


def test_export_writes_each_form(tmp_path: Path, run_cli: Cli, url: str) -> None:
    write_project(tmp_path, url)
    run_cli("run", "echo.yaml")
    for form in ("preference", "sft", "ultrafeedback"):
        code, out, _ = run_cli("export", "runs/echo", "--format", form, "--to", f"{form}.jsonl")
        assert code == 0 and out.split()[0] == str(len((tmp_path / f"{form}.jsonl").read_text().splitlines()))
    assert run_cli("export", "runs/echo", "--format", "sft", "--to", "folder")[0] == 0
    assert (tmp_path / "folder/README.md").exists()
    code, _, err = run_cli("export", "runs/echo", "--format", "sft", "--to", "folder")
    assert code == 2 and "exists" in err
    code, _, err = run_cli("export", "runs/echo", "--format", "csv", "--to", "x")
    assert code == 2 and "preference, sft, ultrafeedback, binarized, hh, rewardbench, soft, ranked" in err


def test_export_writes_other_peoples_forms(tmp_path: Path, run_cli: Cli, url: str) -> None:
    write_project(tmp_path, url)
    run_cli("run", "echo.yaml")
    (paired,) = [stage for stage in manifest(tmp_path / "runs/echo")["stages"] if stage["kind"] == "pair"]
    for form in ("binarized", "hh", "rewardbench", "ranked"):
        for to in (f"{form}.jsonl", form):
            code, out, err = run_cli("export", "runs/echo", "--format", form, "--to", to)
            assert code == 0, err
            rows = list(each_row(tmp_path / to, Counter()))
            assert int(out.split()[0]) == len(rows) == (20 if form == "ranked" else paired["preferences"])
        card = (tmp_path / form / "README.md").read_text()
        assert "prompts in: 20" in card and f"tags:\n- rlaif\n- synthetic\n- {form}" in card
        assert "rubric length" in card
    for row in each_row(tmp_path / "ranked", Counter()):
        scores = [score.value or 0.0 for score in row.scores]
        assert len(scores) == len(row.candidates) == 4
        best = row.rankings[0].order[0]  # type: ignore[index]
        assert {i for i, score in enumerate(scores) if score == max(scores)} == set(best)
    code, _, err = run_cli("export", "runs/echo", "--format", "soft", "--to", "soft.jsonl")
    assert code == 1 and "no row can be written in the shape 'soft'" in err
    assert f"{paired['preferences']} no probability" in err
    assert not (tmp_path / "soft.jsonl").exists()


def test_status_and_show_are_readable_by_a_script(tmp_path: Path, run_cli: Cli, url: str) -> None:
    write_project(tmp_path, url)
    run_cli("run", "echo.yaml")
    assert json.loads(run_cli("status", "runs/echo", "--json")[1])["state"] == "done"
    assert len(json.loads(run_cli("show", "runs/echo", "--json")[1])) == 20
    one = json.loads(run_cli("show", "runs/echo", "3", "--json")[1])
    assert len(one["candidates"]) == 4 and len(one["ratings"]) == 8
    assert len(one["requests"]) == 6  # four samples and two judge calls, each with what was asked
    judged = one["requests"][one["ratings"][0]["call"]]
    assert one["candidates"][0]["completion"]["text"] in judged["messages"][0]["content"]
    assert run_cli("show", "runs/echo", "999")[0] == 2


def test_one_process_at_a_time_runs_in_a_folder(tmp_path: Path, run_cli: Cli, url: str) -> None:
    from rlaif.pipeline.folder import RunFolder

    write_project(tmp_path, url)
    folder = RunFolder.create(tmp_path / "runs/echo", "echo")
    code, _, err = run_cli("run", "echo.yaml")
    assert code == 1 and "another process" in err
    folder.close()
    assert run_cli("run", "echo.yaml")[0] == 0


def test_other_peoples_words_are_never_taken_for_markup(tmp_path: Path, run_cli: Cli, url: str) -> None:
    write_project(tmp_path, url)
    odd = {"messages": [{"role": "[/]", "content": "x"}, {"role": "user", "content": "y"}]}
    with open(tmp_path / "prompts.jsonl", "a") as file:
        file.write(json.dumps(odd) + "\n" + json.dumps({"prompt": "say [bold]this[/bold] \x1b[31mred"}) + "\n")
    code, out, err = run_cli("run", "echo.yaml", "--out", "runs/[b]")
    assert code == 0 and "runs/[b]" in out and err == ""
    code, out, _ = run_cli("status", "runs/[b]")
    assert code == 0 and "a turn by '[/]'" in out
    _, out, _ = run_cli("show", "runs/[b]", "21")
    assert "[bold]this[/bold]" in out and "\x1b" not in out


def test_a_lost_manifest_is_made_again(tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str) -> None:
    write_project(tmp_path, url)
    run_cli("run", "echo.yaml")
    asked(models)
    (tmp_path / "runs/echo/manifest.json").unlink()
    assert run_cli("run", "echo.yaml")[0] == 0
    assert sum(asked(models).values()) == 0 and manifest(tmp_path / "runs/echo")["state"] == "done"


def test_no_run_takes_the_place_of_the_call_store(tmp_path: Path, run_cli: Cli, url: str) -> None:
    write_project(tmp_path, url)
    code, _, err = run_cli("run", "echo.yaml", "name=calls.sqlite")
    assert code == 2 and "call store" in err and not (tmp_path / "runs/calls.sqlite").is_dir()


def test_a_damaged_stage_file_is_a_sentence(tmp_path: Path, run_cli: Cli, url: str) -> None:
    write_project(tmp_path, url)
    run_cli("run", "echo.yaml")
    (tmp_path / "runs/echo/stages/03-rate.jsonl").write_text("{}\n")
    code, _, err = run_cli("show", "runs/echo", "1")
    assert code == 1 and "03-rate.jsonl: the file is damaged" in err


def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(
    tmp_path: Path, run_cli: Cli, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SERVERS_KEY", "sk-planted\x07secret")
    write_project(tmp_path, url)
    code, out, err = run_cli("run", "echo.yaml", "models.one.api_key_env=MY_SERVERS_KEY")
    assert code == 2 and "MY_SERVERS_KEY" in err and "planted" not in out + err
    assert not (tmp_path / "runs").exists()


def test_a_run_that_lost_many_rows_does_not_measure_what_is_left(
    tmp_path: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {name: Echo(name) for name in ("one", "two", "judge")}
    answer, broken = models["two"]._reply, True

    def refuse(request: Any, index: int) -> Any:
        reply = answer(request, index)
        return reply.model_copy(update={"text": ""}) if broken and "1" in request.messages[-1].content else reply

    monkeypatch.setattr(models["two"], "_reply", refuse)
    with serve(models) as url:
        path = write_project(tmp_path, url, prompts=40)
        path.write_text(path.read_text() + "  - measure: {models: [one], sampling: {max_tokens: 32}}\n")
        code, out, _ = run_cli("run", "echo.yaml", "models.two.retries=0")
        assert code == 1 and "measure: done" not in out and "measure was not started: 32% of the rows failed" in out
        assert manifest(tmp_path / "runs/echo")["state"] == "incomplete"
        assert not (tmp_path / "runs/echo/report").exists()
        broken = False
        assert run_cli("run", "echo.yaml", "models.two.retries=0", "--retry-failed")[0] == 0
        assert (tmp_path / "runs/echo/report/summary.json").exists()


CHECKED = """
name: checked
models: {none: {engine: openai, model: m, base_url: "http://127.0.0.1:9/v1"}}
stages:
  - data: {path: pairs.jsonl, held_out: keep}
  - verify: {checks: [{length: {max_words: 2}}]}
"""


def test_show_prints_a_score_once(tmp_path: Path, run_cli: Cli) -> None:
    pair = {"prompt": "Name a fruit.", "completion_a": "A fig.", "completion_b": "It is a fig.", "label": "a"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    (tmp_path / "checked.yaml").write_text(CHECKED)
    assert run_cli("run", "checked.yaml")[0] == 0
    printed = run_cli("show", "runs/checked", "1")[1].splitlines()
    assert [line.split() for line in printed if "length" in line] == [
        ["1", "length", "1", "verifier"],
        ["1", "length", "0", "verifier"],
    ]


def test_help_says_what_happens_without_an_option(run_cli: Cli) -> None:
    defaults = {"run": "runs/NAME", "plan": "runs/NAME", "show": "the last with rows", "audit": "the shipped pairs"}
    for command, default in defaults.items():
        words = re.sub(r"[^\w/\[:]+", " ", run_cli(command, "--help")[1])
        assert f"[default: {default}" in words, words


def test_a_data_set_folder_that_no_run_made_is_refused_and_left_alone(
    tmp_path: Path, run_cli: Cli, url: str, models: dict[str, Echo]
) -> None:
    path = write_project(tmp_path, url)
    whole = path.read_text()
    path.write_text(whole.partition("  - rate:")[0])
    assert run_cli("run", "echo.yaml")[0] == 0
    path.write_text(whole)
    mine = tmp_path / "runs/echo/dataset/preference"
    mine.mkdir(parents=True)
    (mine / "README.md").write_text("mine")
    (mine / "data").mkdir()
    (mine / "data/train-00000-of-00001.parquet").write_text("mine too")
    code, _, err = run_cli("run", "echo.yaml")
    assert code == 2 and "dataset/preference: the folder is there, and no run made it" in err
    assert (mine / "README.md").read_text() == "mine"
    assert (mine / "data/train-00000-of-00001.parquet").read_text() == "mine too"
    mine.rename(tmp_path / "kept")
    assert asked(models)["judge"] == 0  # before anything is paid for
    mine.mkdir()
    (mine / "notes.txt").write_text("beside the data set")
    assert run_cli("run", "echo.yaml")[0] == 0 and asked(models)["judge"] > 0
    assert "- rlaif\n" in (mine / "README.md").read_text() and (mine / "notes.txt").exists()
