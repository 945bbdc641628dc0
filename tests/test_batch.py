"""`rlaif batch`: waves of calls in files, answered by a provider or by hand, in whatever state the results come."""

from __future__ import annotations

import gzip
import json
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from echo import Echo, write_project
from inside import Done, rlaif
from providing import Line, Provider, providing, run_batch
from serving import serve

from rlaif.pipeline.batch import wave

PROMPTS = 6
STAGES = ("stages/02-sample.jsonl", "stages/03-rate.jsonl", "stages/04-pair.jsonl")


def engines(unreadable: str = "") -> dict[str, Echo]:
    return {"one": Echo("one"), "two": Echo("two"), "judge": Echo("judge", unreadable)}


@pytest.fixture
def provider() -> Iterator[Provider]:
    with providing(engines()) as provider:
        yield provider


@pytest.fixture
def project(tmp_path: Path, provider: Provider) -> Path:
    write_project(tmp_path, provider.base_url, prompts=PROMPTS)
    return tmp_path


def folder(project: Path) -> Path:
    return project / "runs/echo/batch"


def told(project: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    """What a step says, as JSON."""
    done = rlaif(project, "batch", "echo.yaml", *arguments, "--json")
    assert done.code == code, done.out + done.err
    return json.loads(done.out)  # type: ignore[no-any-return]


def written(project: Path) -> dict[str, list[Line]]:
    """The lines that wait to be sent, by file."""
    files = sorted(path for path in folder(project).glob("*-[0-9][0-9][0-9].jsonl"))
    return {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in files}


def by_hand(project: Path, change: Callable[[list[Line]], list[Line]] = lambda lines: lines) -> list[str]:
    """Answer every file as vLLM's `run-batch` does; the options that give the results."""
    options = []
    for name in written(project):
        run_batch(folder(project) / name, project / f"out-{name}", engines(), change)
        options += ["--results", str(project / f"out-{name}")]
    return options


def plainly(tmp_path: Path, url: str, *overrides: str) -> Path:
    """The same pipeline run without batches."""
    other = tmp_path / "plainly"
    other.mkdir()
    write_project(other, url, prompts=PROMPTS)
    assert rlaif(other, "run", "echo.yaml", *overrides).code == 0
    return other / "runs/echo"


def keys_of(project: Path) -> set[str]:
    with sqlite3.connect(project / "runs/calls.sqlite") as db:
        return {key for (key,) in db.execute("SELECT key FROM calls")}


# ---------------------------------------------------------------- from the first wave to the last


def test_a_provider_s_batches_give_what_a_run_gives(project: Path, provider: Provider, tmp_path: Path) -> None:
    first = told(project, "--submit")
    assert [(one["file"], one["calls"], one["status"]) for one in first["under_way"]] == [
        ("one-001", 12, "in_progress"),
        ("two-001", 12, "in_progress"),
    ]
    for batch in provider.open():
        provider.end(batch)
    second = told(project, "--submit")
    assert second["results"]["stored"] == 24 and [one["file"] for one in second["under_way"]] == ["judge-001"]
    for batch in provider.open():
        provider.end(batch)
    third = told(project)
    assert third["state"] == "done" and not third["under_way"] and not third["written"]
    assert [path.name for path in folder(project).iterdir()] == ["batches.json"]  # nothing else is left

    asked = provider.chat.asked
    assert rlaif(project, "run", "echo.yaml").code == 0  # and asks nothing
    assert provider.chat.asked == asked
    manifest = json.loads((project / "runs/echo/manifest.json").read_text())
    assert manifest["state"] == "done" and sum(calls["sent"] for calls in manifest["calls"].values()) == 0
    plain = plainly(tmp_path, provider.base_url)
    for stage in STAGES:
        assert (project / "runs/echo" / stage).read_bytes() == (plain / stage).read_bytes()
    assert keys_of(project) == keys_of(plain.parent.parent)  # exactly the calls of a run
    assert len(provider.batches) == 3 and len({batch["input_file_id"] for batch in provider.batches.values()}) == 3


def test_files_answered_by_hand_give_what_a_run_gives(project: Path, provider: Provider, tmp_path: Path) -> None:
    said = rlaif(project, "batch", "echo.yaml")
    assert (
        said.code == 0 and "have them answered and give the results: `rlaif batch echo.yaml --results FILE`" in said.out
    )
    rng = random.Random(0)
    while written(project):
        done = told(project, *by_hand(project, lambda lines: rng.sample(lines, len(lines))))
    assert done["state"] == "done" and provider.chat.asked == 0
    plain = plainly(tmp_path, provider.base_url)
    for stage in STAGES:
        assert (project / "runs/echo" / stage).read_bytes() == (plain / stage).read_bytes()


def test_without_submit_nothing_loads_the_package_and_nothing_is_sent(project: Path, provider: Provider) -> None:
    code = (
        "import sys; from rlaif.cli import main\n"
        "sys.argv[1:] = ['batch', 'echo.yaml']\n"
        "try: main()\n"
        "finally: print('openai' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False", done.stdout + done.stderr
    assert provider.chat.asked == 0 and not provider.seen and len(written(project)) == 2


def test_a_line_is_what_a_run_sends(project: Path, provider: Provider) -> None:
    told(project)
    lines = written(project)["one-001.jsonl"]
    assert len(lines) == PROMPTS and all(line["body"]["n"] == 2 for line in lines)  # samples share a request
    assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
    assert lines[0]["body"].keys() == {"model", "messages", "max_tokens", "n", "seed"}  # nothing that nobody set
    told(project, *by_hand(project))
    assert {line["custom_id"] for line in lines} <= keys_of(project)


def test_the_same_wave_is_not_written_again_and_an_edit_replaces_it(project: Path) -> None:
    told(project)
    before = {path.name: path.stat().st_mtime_ns for path in folder(project).glob("*.jsonl")}
    told(project)
    assert {path.name: path.stat().st_mtime_ns for path in folder(project).glob("*.jsonl")} == before
    old = by_hand(project)
    (again,) = [one for one in told(project, "seed=7")["written"] if one["model"] == "one"]
    assert again["file"].endswith("one-002.jsonl") and "one-001.jsonl" not in written(project)
    # What was paid for under the old seed is kept all the same, and the old pipeline goes on with it.
    assert told(project, "seed=7", *old)["results"]["stored"] == 24
    assert {one["model"] for one in told(project)["written"]} == {"judge"}


# ---------------------------------------------------------------- results of any completeness


def expired(line: Line) -> Line:
    return line | {"response": None, "error": {"code": "batch_expired", "message": "not within the window"}}


def refused(line: Line, status: int, message: str) -> Line:
    """As OpenAI writes it."""
    body = {"error": {"message": message, "type": "invalid_request_error", "code": None}}
    return line | {"response": {"status_code": status, "request_id": "r", "body": body}}


def refused_by_vllm(line: Line, status: int, message: str) -> Line:
    error = {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}
    return line | {"response": {"status_code": status, "request_id": "r", "body": None}, "error": error}


def answering(line: Line, **changed: Any) -> Line:
    """The line with something else in its first choice's message or beside it."""
    line = json.loads(json.dumps(line))
    choice = line["response"]["body"]["choices"][0]
    choice["message"] |= changed.pop("message", {})
    choice |= changed
    return line


CASES: dict[str, tuple[Callable[[list[Line]], list[Line]], str, dict[str, int], int]] = {
    # what is done to the twelve lines of two files, what it counts as, by cause, and the requests of the next files
    "missing": (lambda lines: lines[2:], "missing", {}, 4),
    "twice": (lambda lines: lines + lines[:1], "duplicate", {}, 0),
    "an error, then an answer": (lambda lines: [expired(lines[0]), *lines], "duplicate", {}, 0),
    "of others": (lambda lines: [*lines, lines[0] | {"custom_id": f"{lines[0]['custom_id']}-"}], "unknown", {}, 0),
    "no JSON": (lambda lines: [*lines, {"no": "result"}], "unreadable", {}, 0),
    "expired": (lambda lines: [expired(lines[0]), *lines[1:]], "again", {"batch_expired": 4}, 2),
    "busy": (lambda lines: [refused(lines[0], 503, "overloaded"), *lines[1:]], "again", {"overloaded": 4}, 2),
    "busy at vLLM": (lambda lines: [refused_by_vllm(lines[0], 500, "died"), *lines[1:]], "again", {"server": 4}, 2),
    "no credit": (lambda lines: [refused(lines[0], 402, "pay"), *lines[1:]], "again", {"quota": 4}, 2),
    "empty": (lambda lines: [answering(lines[0], message={"content": ""}), *lines[1:]], "again", {"empty": 2}, 2),
    "no body": (
        lambda lines: [lines[0] | {"response": {"status_code": 200, "request_id": "r"}}, *lines[1:]],
        "again", {"bad-body": 4}, 2,
    ),
    "a seed refused": (
        lambda lines: [refused_by_vllm(line, 400, "`seed` is not supported") for line in lines[:2]] + lines[2:],
        "again", {"refused": 8}, 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_results_of_any_completeness_are_counted_and_the_rest_asked_again(
    case: str, project: Path, provider: Provider, tmp_path: Path
) -> None:
    change, what, causes, left = CASES[case]
    told(project)
    outcome = told(project, *by_hand(project, change))
    counted = outcome["results"][what]
    assert counted == (causes if causes else {"missing": 4}.get(what, 2)), outcome
    next_requests = [line for name, lines in written(project).items() if "judge" not in name for line in lines]
    assert len(next_requests) == left
    if case == "a seed refused":
        assert all("seed" not in line["body"] for line in next_requests)
        return  # which is another request: its answer cannot be that of a run with seeds
    if case == "empty":  # under another seed, alone
        assert all(line["body"]["seed"] > 1_000_000 and "n" not in line["body"] for line in next_requests)
        return
    while written(project):
        outcome = told(project, *by_hand(project))
    assert outcome["state"] == "done"
    plain = plainly(tmp_path, provider.base_url)
    assert (project / "runs/echo" / STAGES[-1]).read_bytes() == (plain / STAGES[-1]).read_bytes()


def test_what_a_run_would_not_try_again_fails_for_good(project: Path, provider: Provider) -> None:
    told(project)
    long = "This model's maximum context length is 5 tokens"
    outcome = told(project, *by_hand(project, lambda lines: [refused(lines[0], 400, long), *lines[1:]]))
    assert outcome["results"]["failed"] == {"too-long": 4} and "shorten the prompt" in outcome["results"]["example"]
    assert all("judge" in name for name in written(project))
    done = rlaif(project, "batch", "echo.yaml", *by_hand(project))
    assert done.code == 1 and "the run in runs/echo is incomplete" in done.out  # as of a run
    again = told(project, "--retry-failed")
    assert {one["model"]: one["calls"] for one in again["written"]} == {"one": 2, "two": 2}


def test_a_last_line_that_is_cut_and_lines_of_noise_are_counted(project: Path) -> None:
    told(project)
    options = by_hand(project)
    file = Path(options[1])
    file.write_bytes(b"\xff\xfe no text\n\n" + file.read_bytes()[:-30])
    done = rlaif(project, "batch", "echo.yaml", *options)
    assert done.code == 0, done.err
    assert "results: 1 requests without a result, 1 lines that are no result, 1 cut off at the end" in done.out
    assert len(written(project)["one-002.jsonl"]) == 1


def test_compressed_results_are_read_also_where_they_are_cut(project: Path) -> None:
    told(project)
    options = by_hand(project)
    for cut, option in ((None, options[1]), (-200, options[3])):
        packed = gzip.compress(Path(option).read_bytes(), mtime=0)[:cut]
        Path(f"{option}.gz").write_bytes(packed)
    outcome = told(project, "--results", f"{options[1]}.gz", "--results", f"{options[3]}.gz")["results"]
    assert outcome["cut"] == 1 and 12 < outcome["stored"] < 24


def test_a_server_that_ignores_n_is_asked_for_each_sample(project: Path) -> None:
    def first_only(lines: list[Line]) -> list[Line]:
        for line in lines:
            del line["response"]["body"]["choices"][1:]
        return lines

    told(project)
    outcome = told(project, *by_hand(project, first_only))
    assert outcome["results"]["again"] == {"fewer": 12} and outcome["results"]["stored"] == 12
    lines = written(project)["one-002.jsonl"]
    assert len(lines) == PROMPTS and all("n" not in line["body"] and line["body"]["seed"] == 1 for line in lines)


def test_a_reply_that_cannot_be_read_is_asked_again_in_a_later_wave(tmp_path: Path) -> None:
    with providing(engines()) as provider:
        write_project(tmp_path, provider.base_url, prompts=PROMPTS)
    told(tmp_path)
    told(tmp_path, *by_hand(tmp_path))
    before = len(written(tmp_path)["judge-001.jsonl"])
    garbled = lambda lines: [answering(lines[0], message={"content": "I would rather not."}), *lines[1:]]  # noqa: E731
    outcome = told(tmp_path, *by_hand(tmp_path, garbled))
    assert outcome["results"]["stored"] == before  # it is an answer, which was paid for
    (again,) = written(tmp_path)["judge-002.jsonl"]
    assert again["body"]["seed"] == 1_000_003  # the re-ask of a run
    assert told(tmp_path, *by_hand(tmp_path))["state"] == "done"


# ---------------------------------------------------------------- files of bounded size


@pytest.mark.parametrize(("bound", "value"), [("MOST_REQUESTS", 4), ("MOST_BYTES", 700)])
def test_files_are_split_at_the_bounds(bound: str, value: int, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wave, bound, value)
    told(project)
    files = written(project)
    assert len(files) >= 4 and sum(map(len, files.values())) == 2 * PROMPTS
    for name, lines in files.items():
        assert len(lines) <= 4 and (folder(project) / name).stat().st_size <= 1_000
        assert bound == "MOST_REQUESTS" or (folder(project) / name).stat().st_size <= value
    assert len({line["custom_id"] for lines in files.values() for line in lines}) == 2 * PROMPTS
    assert told(project, *by_hand(project))["results"]["stored"] == 24


def test_the_bounds_are_those_of_the_provider() -> None:
    assert (wave.MOST_REQUESTS, wave.MOST_BYTES) == (50_000, 200_000_000)


# ---------------------------------------------------------------- sent once, whatever happens


def test_a_batch_whose_answer_was_lost_is_found_and_not_sent_twice(project: Path, provider: Provider) -> None:
    provider.broken.add("POST /v1/batches")
    lost = rlaif(project, "batch", "echo.yaml", "--submit")
    assert lost.code == 1 and "the server answered 502: the answer was lost" in lost.err and len(provider.batches) == 1
    # Others were made since, so that it is on the second page of the list.
    for number in range(3):
        provider.batches[f"other_{number}"] = {"id": f"other_{number}", "status": "completed", "input_file_id": "x"}
    again = told(project, "--submit")
    assert {one["batch"] for one in again["under_way"]} == {"batch_1", "batch_5"}
    inputs = [batch["input_file_id"] for name, batch in provider.batches.items() if name.startswith("batch_")]
    assert len(inputs) == len(set(inputs)) == 2


def test_a_run_beside_batches_under_way_pays_for_nothing_twice(project: Path, provider: Provider) -> None:
    told(project, "--submit")
    refused_ = rlaif(project, "run", "echo.yaml")
    assert refused_.code == 1 and "24 calls are in batches under way (one-001, two-001)" in refused_.err
    assert provider.chat.asked == 0
    again = told(project, "--submit")  # nothing has ended: nothing is written, and nothing sent
    assert not again["written"] and len(again["under_way"]) == len(provider.batches) == 2
    provider.end("batch_1", lambda lines: lines[:3], "cancelled")  # what was done is kept, the rest asked again
    third = told(project)
    assert third["results"]["stored"] == 6 and third["results"]["missing"] == 3
    assert [(one["model"], one["requests"]) for one in third["written"]] == [("one", 3)]
    assert [one["file"] for one in third["under_way"]] == ["two-001"]


def test_a_batch_that_fails_as_a_whole_is_told(project: Path, provider: Provider) -> None:
    told(project, "--submit")
    problem = {"data": [{"message": "the file is \x1b[31mempty", "line": 3, "code": "x"}]}
    provider.batches["batch_1"] |= {"status": "failed", "errors": problem}
    done = rlaif(project, "batch", "echo.yaml")
    assert done.code == 1 and r"the batch of one-001 failed: the file is \x1b[31mempty (line 3)" in done.out + done.err
    assert len(written(project)["one-002.jsonl"]) == PROMPTS


def test_a_file_that_is_gone_is_written_again(project: Path) -> None:
    told(project)
    (folder(project) / "one-001.jsonl").unlink()
    assert [one["file"] for one in told(project, "--submit")["under_way"]] == ["two-001", "one-002"]


KEY = "sk-batch-0123456789abcdef"


def test_a_provider_that_repeats_the_key_gets_it_nowhere(
    project: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", KEY)
    keyed = [f"models.{name}.api_key_env=MINE" for name in engines()]
    printed = [json.dumps(told(project, *keyed, "--submit"))]
    provider.batches["batch_1"]["status"] = KEY
    provider.end("batch_2", lambda lines: [line | {"response": None, "error": {"code": KEY}} for line in lines])
    for arguments in (["--json"], []):
        done = rlaif(project, "batch", "echo.yaml", *keyed, *arguments)
        printed += [done.out, done.err]
    assert "***" in printed[1] and KEY not in "".join(printed)
    assert not [path for path in project.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_results_that_cannot_be_taken_in_do_not_stay_and_are_asked_again(project: Path, provider: Provider) -> None:
    told(project, "--submit")
    provider.end("batch_1")
    provider.files[provider.batches["batch_1"]["output_file_id"]] = b"no results"
    done = rlaif(project, "batch", "echo.yaml")
    assert done.code == 1 and "the batch of one-001 failed: its results: it holds no line" in " ".join(done.out.split())
    assert not list(folder(project).glob("*.results.jsonl"))
    assert len(written(project)["one-002.jsonl"]) == PROMPTS
    assert rlaif(project, "batch", "echo.yaml").code == 0, "it is told once, not at every start"


def test_what_a_run_notes_before_it_begins_is_told(project: Path) -> None:
    done = rlaif(project, "batch", "echo.yaml", "models.one.api_key_env=RLAIF_UNSET")
    assert "the environment variable RLAIF_UNSET is not set" in " ".join((done.out + done.err).split())


def test_results_that_are_lost_at_the_provider_are_an_error(project: Path, provider: Provider) -> None:
    told(project, "--submit")
    del provider.batches["batch_1"]
    gone = rlaif(project, "batch", "echo.yaml")
    assert gone.code == 1 and "the server answered 404: no such batch" in gone.err and "Traceback" not in gone.err
    state = folder(project) / "batches.json"
    assert f"to give it up, remove `one-001` from the entries of {state.relative_to(project)}" in gone.err
    told_ = json.loads(state.read_text())
    assert [entry["name"] for entry in told_["entries"]] == ["one-001", "two-001"]  # nothing was given up by itself
    state.write_text(json.dumps(told_ | {"entries": told_["entries"][1:]}))
    assert [one["file"][-13:] for one in told(project)["written"]] == ["one-002.jsonl"]


def test_a_killed_process_sends_nothing_twice(project: Path, provider: Provider) -> None:
    """Killed between the provider's answer and what comes after it, wherever that is."""
    code = (
        "import os, sys; from rlaif.cli import main; from rlaif.engines.batches import Provider\n"
        "verb = getattr(Provider, sys.argv[1])\n"
        "async def once(*given):\n"
        "    await verb(*given)\n"
        "    os.kill(os.getpid(), 9)\n"
        "setattr(Provider, sys.argv.pop(1), once); sys.argv[1:] = ['batch', 'echo.yaml', '--submit']; main()\n"
    )
    for verb in ("upload", "create", "create"):
        killed = subprocess.run([sys.executable, "-c", code, verb], cwd=project, capture_output=True, timeout=120)
        assert killed.returncode == -9
    told(project, "--submit")
    contents = [provider.files[batch["input_file_id"]] for batch in provider.batches.values()]
    assert len(contents) == len(set(contents)) == 2


def test_another_process_that_wrote_meanwhile_is_not_overwritten(
    project: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = wave.Wave.close

    def close(self: wave.Wave) -> None:
        closed(self)
        monkeypatch.setattr(wave.Wave, "close", closed)
        other = [sys.executable, "-m", "rlaif.cli", "batch", "echo.yaml", "--submit"]
        subprocess.run(other, cwd=project, check=True, capture_output=True, timeout=120)

    monkeypatch.setattr(wave.Wave, "close", close)
    done = rlaif(project, "batch", "echo.yaml", "--submit")
    assert done.code == 1 and "another process changed the batches of this run meanwhile" in done.err
    assert len(provider.batches) == 2 and len(told(project, "--submit")["under_way"]) == 2


# ---------------------------------------------------------------- money


def priced(project: Path, budget: float) -> None:
    text = (project / "echo.yaml").read_text().replace("price: {prompt: 1, completion: 2}", "price: PRICE")
    text = text.replace("model: one, ", "model: one, price: PRICE, ").replace(
        "model: two, ", "model: two, price: PRICE, "
    )
    text = text.replace("PRICE", "{prompt: 1000, completion: 2000, batch: 0.5}")
    (project / "echo.yaml").write_text(f"budget: {budget}\n{text}")


def test_a_batch_costs_its_share_and_stays_within_the_budget(project: Path, provider: Provider) -> None:
    priced(project, budget=0.8)
    cost = {one["model"]: one["max_cost"] for one in told(project)["written"]}
    assert 0.4 < cost["one"] == cost["two"] < 0.5  # half of 12 completions of 32 tokens at 2000 a million, and prompts
    stopped = rlaif(project, "batch", "echo.yaml", "--submit")
    assert stopped.code == 1 and "the budget of 0.8 leaves no room for two-001: 0.0000 is spent" in stopped.err
    assert len(provider.batches) == 1
    provider.end("batch_1")
    told(project, "--submit")  # completions are far shorter than they may be, so there is room now
    assert len(provider.batches) == 2
    state = json.loads((folder(project) / "batches.json").read_text())
    ((read, wrote),) = state["paid"].values()
    left = json.loads(rlaif(project, "plan", "echo.yaml", "--json").out)["budget_left"]
    assert left == pytest.approx(0.8 - (read * 1000 + wrote * 2000) / 1e6 / 2) and read and wrote


# ---------------------------------------------------------------- other stages, other servers


MEASURED = """\
  - prompts: {path: prompts.jsonl, split: all, name: held}
  - measure:
      models: [one, two]
      from: held
      split: held-out
      rate: {model: judge, rubric: rubric.yaml, shown: one}
"""


def test_a_gate_is_one_wave_before_its_judge_is_asked_for_rows(project: Path, tmp_path: Path) -> None:
    gold = [{"prompt": f"Question {i}?", "chosen": "one two three", "rejected": "one"} for i in range(80)]
    (project / "gold.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in gold))
    gate = "reask: 1, require: {agreement: 0.5, gold: gold.jsonl, take: 70}"  # more than are asked at a time
    (project / "echo.yaml").write_text((project / "echo.yaml").read_text().replace("reask: 1", gate))
    first = told(project)
    assert {one["model"] for one in first["written"]} == {"judge"}  # nothing is paid for before the judge has passed
    assert sum(one["calls"] for one in first["written"]) == 280  # 70 pairs in two orders under two aspects
    second = told(project, *by_hand(project))
    assert {one["model"] for one in second["written"]} == {"one", "two"}


def test_a_measure_asks_all_of_its_models_in_one_wave(project: Path) -> None:
    text = (project / "echo.yaml").read_text()
    (project / "echo.yaml").write_text(text[: text.index("  - prompts")] + MEASURED)
    (project / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(40)))
    first = told(project)
    assert {one["model"] for one in first["written"]} == {"one", "two"}
    second = told(project, *by_hand(project))
    assert {one["model"] for one in second["written"]} == {"judge"}
    assert told(project, *by_hand(project))["state"] == "done"


def test_a_batch_of_azure_goes_to_its_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with providing({"my-gpt": Echo("one")}, "/openai") as provider:
        endpoint = provider.base_url.removesuffix("/v1")
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", endpoint)
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure-key-0123456789")
        azure = "{deployment: my-gpt, api_version: 2024-10-21}"
        model = f"{{engine: openai, model: gpt, client: sdk, azure: {azure}}}"
        (tmp_path / "echo.yaml").write_text(
            f"name: echo\nmodels:\n  one: {model}\nstages:\n"
            "  - prompts: {path: prompts.jsonl, split: all}\n  - sample: {models: [one]}\n"
        )
        (tmp_path / "prompts.jsonl").write_text('{"prompt": "Say something."}\n')
        told(tmp_path, "--submit")
        (line,) = map(json.loads, provider.files["file-1"].splitlines())
        assert (line["url"], line["body"]["model"]) == ("/chat/completions", "my-gpt")
        provider.end("batch_1")
        assert told(tmp_path)["state"] == "done"
    paths = [path.partition("?") for _, path, _ in provider.seen]
    assert all(path.startswith("/openai/") and query == "api-version=2024-10-21" for path, _, query in paths)
    assert {headers["api-key"] for _, _, headers in provider.seen} == {"azure-key-0123456789"}


# ---------------------------------------------------------------- wrong inputs


def test_results_that_are_given_twice_miss_each_request_once(project: Path) -> None:
    told(project)
    half = by_hand(project, lambda lines: [line for number, line in enumerate(lines) if number % 2])
    assert told(project, *half)["results"]["missing"] == PROMPTS
    assert told(project, *half)["results"]["missing"] == PROMPTS  # which the next files hold again


def test_a_wave_before_any_completion_does_not_say_that_none_became_data(project: Path) -> None:
    pipeline = (project / "echo.yaml").read_text()
    (project / "echo.yaml").write_text(pipeline[: pipeline.index("  - rate:")])
    told(project)
    manifest = json.loads((project / "runs/echo/manifest.json").read_text())
    assert not manifest["notes"] and manifest["reasons"] == ["calls wait for a batch"]


def test_another_pipeline_of_the_name_takes_in_no_results(project: Path) -> None:
    told(project)
    results = by_hand(project)
    (project / "another.yaml").write_text((project / "echo.yaml").read_text() + "# another\n")
    done = rlaif(project, "batch", "another.yaml", *results)
    assert done.code == 2 and "is the run of another pipeline of this name, 'echo.yaml'" in done.err
    assert not keys_of(project) and len(written(project)) == 2
    assert told(project, *results)["results"]["stored"] == 4 * PROMPTS


def test_what_is_no_file_of_results_is_a_sentence(project: Path, tmp_path: Path) -> None:
    def said(*arguments: str) -> Done:
        done = rlaif(project, "batch", "echo.yaml", *arguments)
        assert done.code == 2 and done.err.count("\n") == 1 and "Traceback" not in done.err, done.err
        return done

    (tmp_path / "results.jsonl").write_text("{}\n")
    assert "no calls of this run wait for results" in said("--results", "results.jsonl").err
    told(project)
    assert "results.jsonl: it holds no line of results" in said("--results", "results.jsonl").err
    requests = str(folder(project) / "one-001.jsonl")
    assert "it holds no line of results. Fix: give what answered a file of requests" in said("--results", requests).err
    assert "no such file or directory" in said("--results", "nowhere.jsonl").err
    (tmp_path / "noise.gz").write_bytes(b"\x1f\x8b" + b"noise" * 100)
    assert "it cannot be read: it is no gzip" in said("--results", "noise.gz").err
    (folder(project) / "batches.json").write_text("{")
    done = rlaif(project, "batch", "echo.yaml")
    assert done.code == 1 and "batches.json: it is damaged" in done.err


def test_a_server_without_batches_is_a_sentence(tmp_path: Path) -> None:
    with serve(engines()) as url:
        write_project(tmp_path, url, prompts=2)
        done = rlaif(tmp_path, "batch", "echo.yaml", "--submit")
    assert done.code == 1 and "the server answered 404" in done.err and done.err.count("\n") == 1, done.err
    gone = rlaif(tmp_path, "batch", "echo.yaml", "--submit")
    assert gone.code == 1 and "cannot reach" in gone.err and gone.err.count("\n") == 1, gone.err
