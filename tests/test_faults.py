# ruff: noqa: F811 - fixtures are named where they are used
"""The engine room under faults: real servers on real sockets, real processes, real signals.

What was paid for is paid once, no row is lost to a fault that passes, and whatever stops a run leaves data that can be
used and a sentence that says how to go on.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from echo import Echo, write_project
from inside import rlaif
from serving import Answer, completion, scripted, serve
from test_run import Cli, asked, count, dataset_bytes, manifest, models, run_cli, url  # noqa: F401 - fixtures among them

from rlaif.engines import traffic
from rlaif.engines.scheduler import Scheduler
from rlaif.errors import EngineError
from rlaif.pipeline import folder
from rlaif.pipeline.datasets import PARQUET
from rlaif.pipeline.progress import Silent
from rlaif.pipeline.run import LEAST_ROOM
from rlaif.pipeline.signals import Interrupts
from rlaif.store import CallStore

ROOT = Path(__file__).parent.parent
SECRET = "sk-planted-9f8e7d6c5b4a"


PROCESSES: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    while PROCESSES:
        process = PROCESSES.pop()
        process.kill()
        process.communicate()


def start(where: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    """`rlaif` as a process of its own."""
    argv = [sys.executable, "-m", "rlaif.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    PROCESSES.append(subprocess.Popen(argv, cwd=where, env=environment, **streams))
    return PROCESSES[-1]


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=60)
    return process.returncode, out


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def slowly(model: Echo, seconds: float) -> None:
    """Each answer of the model takes so long."""
    sample = model.sample

    async def slow(requests: Any) -> Any:
        await asyncio.sleep(seconds)
        return await sample(requests)

    model.sample = slow  # type: ignore[method-assign]


def interrupt_twice(process: subprocess.Popen[str]) -> tuple[int, str, float]:
    """Press Ctrl-C, and once that is heard again: the exit code, what was printed, and how long the second took."""
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    said = ""
    while "press Ctrl-C again" not in said:
        assert (line := process.stdout.readline()), said
        said += line
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    said += process.stdout.read()
    return process.wait(), said, time.monotonic() - began


def only_unread(code: int, found: dict[str, Any]) -> bool:
    """Whether every row went through, though a judge whose replies nobody can read made nothing of them."""
    told = [reason.partition(" are unparsed")[1] or reason for reason in found["reasons"]]
    return code == 1 and not found["failures"] and told[0] == " are unparsed" and "no preference" in told[1]


# ---------------------------------------------------------------- stopping


def test_one_ctrl_c_leaves_data_that_can_be_used_and_says_how_to_go_on(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str
) -> None:
    write_project(tmp_path, url, prompts=200)
    for model in models.values():
        slowly(model, 0.05)
    narrow = [f"models.{name}.concurrency=8" for name in models]
    process = start(tmp_path, "run", "echo.yaml", *narrow)
    until(lambda: count(models)["judge"] > 40)
    process.send_signal(signal.SIGINT)
    code, out = ended(process)
    found = manifest(tmp_path / "runs/echo")
    assert "\ninterrupted: waiting for the calls in flight; press Ctrl-C again to end at once\n" in out
    assert code == 130 and found["state"] == "stopped" and "Traceback" not in out
    assert "stopped: interrupted" in out and "run the same command again to continue" in out
    sampled, rated, paired = (next(s for s in found["stages"] if s["kind"] == k) for k in ("sample", "rate", "pair"))
    assert rated["dropped"].get("not reached", 0) + sampled["dropped"].get("not reached", 0) > 0
    assert sampled["in"] == 200 == rated["in"] + sampled["dropped"].get("not reached", 0)
    assert 5 < rated["out"] < 200 and paired["in"] == rated["out"]
    assert len(dataset_bytes(tmp_path / "runs/echo")) == 6  # the finished rows are data sets already
    before = asked(models)
    code, _, _ = run_cli("run", "echo.yaml")
    after = asked(models)
    assert code == 0 and manifest(tmp_path / "runs/echo")["state"] == "done"
    assert {name: before[name] + after[name] for name in models} == {"one": 400, "two": 400, "judge": 400}


def test_the_first_ctrl_c_says_what_a_second_one_does() -> None:
    told, stopped = Silent(), Scheduler(CallStore(Path(":memory:")), {}, {})
    told.begin("sample", "rows")
    work: Any = SimpleNamespace(session=SimpleNamespace(scheduler=stopped), progress=told)

    async def interrupted() -> None:
        with Interrupts(work).watched(gentle=True, blocks=False):
            os.kill(os.getpid(), signal.SIGINT)
            while stopped.stopped is None:
                await asyncio.sleep(0)
            assert stopped.stopped.cause == "interrupted"
            detail = "interrupted: waiting for the calls in flight; press Ctrl-C again to end at once"
            assert told.stages[-1].detail == detail
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupted())


def test_two_ctrl_c_leave_at_once_and_lose_nothing_that_arrived(
    tmp_path: Path, models: dict[str, Echo], url: str
) -> None:
    write_project(tmp_path, url, prompts=50)
    slowly(models["judge"], 20.0)
    process = start(tmp_path, "run", "echo.yaml")
    until(lambda: count(models)["two"] >= 20)
    time.sleep(0.3)
    code, out, seconds = interrupt_twice(process)
    assert code == 130 and "interrupted" in out and "Traceback" not in out and seconds < 2
    store = CallStore(tmp_path / folder.STORE, read_only=True)
    kept = len(store)
    store.close()
    assert kept >= 20  # what the two models answered


def test_a_budget_is_never_exceeded_and_stops_cleanly(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str
) -> None:
    write_project(tmp_path, url, prompts=60)
    prices = [f"models.{name}.price={{prompt: 10, completion: 1000}}" for name in models]
    code, out, _ = run_cli("run", "echo.yaml", *prices, "budget=0.8")
    found = manifest(tmp_path / "runs/echo")
    spent = sum(calls["cost"] for calls in found["calls"].values())
    assert code == 1 and found["state"] == "stopped" and 0.2 < spent <= 0.8
    assert "the budget of 0.8 leaves no room for another call" in out and "raise `budget`" in out
    asked(models)
    code, out, _ = run_cli("run", "echo.yaml", *prices, "budget=0.8")  # what was spent is spent
    assert code == 1 and sum(asked(models).values()) * 0.001 < 0.8 - spent + 0.01
    code, out, _ = run_cli("run", "echo.yaml", *prices, "budget=100")
    assert code == 0 and manifest(tmp_path / "runs/echo")["state"] == "done"
    pair = manifest(tmp_path / "runs/echo")["stages"][-1]
    total = sum(calls["cost_of_data"] for calls in manifest(tmp_path / "runs/echo")["calls"].values())
    assert pair["cost_per_preference"] == pytest.approx(total / pair["preferences"], rel=1e-3)


def test_a_server_that_sends_no_bill_is_charged_at_most(tmp_path: Path, run_cli: Cli) -> None:
    """Else a budget would never end: what nobody counts would cost nothing."""
    unbilled = Answer(lambda body: odd(body, usage=None))
    ready = [Answer({"data": []})] * 3 + [Answer(completion("x"))] * 3
    with scripted([*ready, unbilled]) as script:
        write_project(tmp_path, script.base_url, prompts=30)
        prices = [f"models.{name}.price={{prompt: 0, completion: 1000}}" for name in ("one", "two", "judge")]
        for budget in (0.5, 1.0):  # two samples of 32 tokens: 0.064 a request; started again, what was spent is spent
            code, out, _ = run_cli("run", "echo.yaml", *prices, f"budget={budget}")
            sent = sum(r["body"]["max_tokens"] == 32 for r in script.requests if r["path"].endswith("completions"))
            assert code == 1 and f"the budget of {budget:g} leaves no room" in out
            assert 1 < sent <= budget / 0.064


def test_samples_that_nobody_asked_for_are_on_the_bill(tmp_path: Path, run_cli: Cli) -> None:
    generous = Answer(lambda body: completion(*(f"seed {body['seed']} {i}" for i in range(body.get("n", 1) + 3))))
    with scripted([Answer({"data": []})] * 3 + [Answer(completion("x"))] * 3 + [generous]) as script:
        write_project(tmp_path, script.base_url, prompts=4)
        code, _, _ = run_cli("run", "echo.yaml", "stages.rate.rate.reask=0")
    found = manifest(tmp_path / "runs/echo")
    assert only_unread(code, found) and found["calls"]["two"]["completion_tokens"] == 4 * 5 * 5


def test_a_budget_remembers_what_another_model_cost(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str
) -> None:
    write_project(tmp_path, url, prompts=20)
    prices = [f"models.{name}.price={{prompt: 0, completion: 1000}}" for name in models]
    run_cli("run", "echo.yaml", *prices, "budget=100")
    spent = sum(calls["cost"] for calls in manifest(tmp_path / "runs/echo")["calls"].values())
    code, out, _ = run_cli("plan", "echo.yaml", *prices, "budget=100", "models.judge.revision=another", "--json")
    assert code == 0 and json.loads(out)["budget_left"] == pytest.approx(100 - spent)


def test_a_budget_wants_prices(tmp_path: Path, run_cli: Cli, url: str) -> None:
    write_project(tmp_path, url)
    code, _, err = run_cli("plan", "echo.yaml", "budget=1")
    assert code == 2 and "there is a budget, but 'one' has no price" in err and "per million tokens" in err


# ---------------------------------------------------------------- servers


def test_a_server_that_dies_and_comes_back_costs_no_row(
    tmp_path: Path, models: dict[str, Echo], monkeypatch: Any
) -> None:
    """The same port, closed for two seconds in the middle of a run."""
    with serve(models) as url:
        port = url.rsplit(":", 1)[1].split("/")[0]
        write_project(tmp_path, url, prompts=100)
        for model in models.values():
            slowly(model, 0.03)
        process = start(tmp_path, "run", "echo.yaml", *(f"models.{name}.concurrency=16" for name in models))
        until(lambda: count(models)["one"] > 60)
    time.sleep(2.0)
    with serve(models, port=int(port)):
        code, out = ended(process)
    found = manifest(tmp_path / "runs/echo")
    assert (code, found["state"]) == (0, "done"), out
    assert all(stage["dropped"].get("failed", 0) == 0 for stage in found["stages"])
    assert sum(calls["retries"].get("connection", 0) for calls in found["calls"].values()) >= 10


def test_a_server_that_hangs_is_left_after_the_timeout(tmp_path: Path, run_cli: Cli, monkeypatch: Any) -> None:
    monkeypatch.setattr(traffic, "FIRST_WAIT", 0.01)
    fine = Answer(lambda body: completion(*(f"seed {body['seed'] + i}" for i in range(body.get("n", 1)))))
    looked_at, probed = [Answer({"data": []})] * 3, [Answer(completion(text)) for text in "abc"]
    with scripted([*looked_at, *probed, Answer(completion("late"), delay=30.0), *[fine] * 99]) as script:
        write_project(tmp_path, script.base_url, prompts=3)
        began = time.monotonic()
        settings = [f"models.{name}.timeout=1" for name in ("one", "two", "judge")]
        code, _, _ = run_cli("run", "echo.yaml", *settings, "stages.rate.rate.reask=0")
    found = manifest(tmp_path / "runs/echo")
    assert only_unread(code, found) and time.monotonic() - began < 20
    assert sum(calls["retries"].get("timeout", 0) for calls in found["calls"].values()) == 1


def test_every_server_is_looked_at_before_anything_is_paid_for(
    tmp_path: Path,
    run_cli: Cli,
    models: dict[str, Echo],
    url: str,
) -> None:
    write_project(tmp_path, url)
    code, _, err = run_cli("run", "echo.yaml", "models.judge.base_url=http://127.0.0.1:9/v1")
    assert code == 1 and "is the server running at http://127.0.0.1:9/v1?" in err
    assert sum(len(model.asked) for model in models.values()) == 0  # not even a probe


def test_a_server_that_no_stage_names_is_left_alone(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str
) -> None:
    write_project(tmp_path, url)
    spare = "models.spare={engine: openai, model: spare, base_url: http://127.0.0.1:9/v1}"
    assert run_cli("run", "echo.yaml", spare)[0] == 0


def test_a_server_that_lists_no_model_is_said_to(tmp_path: Path, run_cli: Cli) -> None:
    fine = Answer(lambda body: completion(*["said"] * body.get("n", 1)))
    with scripted([*[Answer({"data": []})] * 3, fine]) as script:
        write_project(tmp_path, script.base_url, prompts=1)
        code, out, _ = run_cli("run", "echo.yaml", "stages.rate.rate.reask=0")
    assert only_unread(code, manifest(tmp_path / "runs/echo")) and "the model of one; it lists none" in out


def test_a_model_that_its_server_does_not_list_is_a_note(tmp_path: Path, run_cli: Cli, monkeypatch: Any) -> None:
    monkeypatch.setenv("PLANTED_KEY", SECRET)
    listed = Answer({"data": [{"id": f"other of {SECRET}"}]})
    fine = Answer(lambda body: completion(*(f"seed {body['seed'] + i}" for i in range(body.get("n", 1)))))
    with scripted([*[listed] * 3, fine]) as script:
        write_project(tmp_path, script.base_url, prompts=3)
        keyed = [f"models.{name}.api_key_env=PLANTED_KEY" for name in ("one", "two", "judge")]
        code, out, _ = run_cli("run", "echo.yaml", *keyed, "stages.rate.rate.reask=0")
    found = manifest(tmp_path / "runs/echo")
    notes = found["notes"]
    assert (
        only_unread(code, found)
        and len(notes) == 3
        and "does not list 'one', the model of one; it lists other of ***" in out
    )
    assert SECRET not in str(notes) + out


def test_a_variable_that_is_not_set_is_a_note(tmp_path: Path, run_cli: Cli, url: str) -> None:
    write_project(tmp_path, url)
    _, out, _ = run_cli("plan", "echo.yaml", "models.one.api_key_env=NO_SUCH_KEY")
    assert "the environment variable NO_SUCH_KEY is not set" in out


ODD = {
    "a bill beyond every number": Answer(lambda body: odd(body, usage={"prompt_tokens": 10**19})),
    "a header that is no text": Answer("x", status=500, headers={"retry-after": "caf\u00e9"}),
    "a date that no calendar has": Answer("x", status=429, headers={"retry-after": "Mon, 01 Jan 0001 00:00:00 -0000"}),
    "too deep a list of models": Answer("[" * 200_000),
}  # fmt: skip


def odd(body: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return completion(*(f"seed {body.get('seed', 0) + i}" for i in range(body.get("n", 1))), **extra)


@pytest.mark.parametrize("name", ODD)
def test_nothing_a_server_says_is_a_traceback(name: str, tmp_path: Path, run_cli: Cli, monkeypatch: Any) -> None:
    monkeypatch.setattr(traffic, "FIRST_WAIT", 0.01)
    ready = [Answer({"data": []})] * 3 if "models" not in name else []
    with scripted([*ready, *[ODD[name]] * 6, Answer(odd)]) as script:
        write_project(tmp_path, script.base_url, prompts=3)
        code, _, err = run_cli("run", "echo.yaml", "stages.rate.rate.reask=0")
    assert only_unread(code, manifest(tmp_path / "runs/echo")) and "Traceback" not in err


def test_a_host_that_cannot_be_is_a_sentence(tmp_path: Path, run_cli: Cli, url: str) -> None:
    write_project(tmp_path, url)
    code, _, err = run_cli("run", "echo.yaml", "models.one.base_url=http://%zz/v1")
    assert code == 1 and "cannot reach http://%zz/v1: invalid international domain name" in err
    assert err.count("\n") == 1


def test_a_server_that_asks_for_no_patience_gets_some() -> None:
    """Retry-After: 0 from a server that goes on refusing would be a request a millisecond for a quarter of an hour."""
    waits = [traffic._wait([EngineError("x", cause="rate-limit", wait=0.0)], 6) for _ in range(100)]
    assert max(waits) > 1.0


def test_replicas_share_the_work_and_the_store(tmp_path: Path, run_cli: Cli, models: dict[str, Echo]) -> None:
    others = {name: Echo(name) for name in models}
    with serve(models) as one, serve(others) as two:
        write_project(tmp_path, one, prompts=80)
        both = [f"models.{name}.base_url=[{one}, {two}]" for name in models]
        assert run_cli("run", "echo.yaml", *both)[0] == 0
        shares = [sum(asked(each).values()) for each in (models, others)]
        assert sum(shares) == 80 * 6 and min(shares) > 80
        assert run_cli("run", "echo.yaml")[0] == 0  # one of them alone: its calls are the same
        assert sum(asked(models).values()) == 0


def test_a_replica_that_is_down_is_left_out(tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str) -> None:
    write_project(tmp_path, url, prompts=60)
    both = [f"models.{name}.base_url=[{url}, http://127.0.0.1:9/v1]" for name in models]
    code, out, err = run_cli("run", "echo.yaml", *both)
    assert code == 0, out + err
    assert manifest(tmp_path / "runs/echo")["state"] == "done"


def test_stated_limits_are_kept(tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str) -> None:
    write_project(tmp_path, url, prompts=10)
    began = time.monotonic()
    assert run_cli("run", "echo.yaml", "models.one.limits={requests_per_minute: 60}")[0] == 0
    assert time.monotonic() - began >= 3.0  # ten calls at one a second, six of them at once


def test_an_interrupted_run_does_not_wait_for_its_pace(tmp_path: Path, models: dict[str, Echo], url: str) -> None:
    write_project(tmp_path, url, prompts=30)
    process = start(tmp_path, "run", "echo.yaml", "models.one.limits={requests_per_minute: 30}")
    until(lambda: count(models)["one"] >= 6)  # three requests of two samples
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, out = ended(process)
    assert code == 130 and "stopped: interrupted" in out and time.monotonic() - began < 5


# ---------------------------------------------------------------- kills


@pytest.mark.parametrize("moment", range(6))
def test_a_kill_at_any_moment_loses_no_more_than_is_in_flight(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str, moment: int
) -> None:
    write_project(tmp_path, url, prompts=60)
    for model in models.values():
        slowly(model, 0.02)
    at = random.Random(f"kill {moment}").uniform(0.05, 0.95) * 60 * 6
    settings = [f"models.{name}.concurrency=16" for name in models]
    process = start(tmp_path, "run", "echo.yaml", *settings)
    until(lambda: sum(count(models).values()) >= at or process.poll() is not None)
    process.kill()
    ended(process)
    time.sleep(0.2)  # what was on its way arrives where nobody is
    code, out, err = run_cli("run", "echo.yaml", *settings)
    assert code == 0, out + err
    paid = Counter((model.name, *key) for model in models.values() for key in keys(model))
    twice = sum(times - 1 for times in paid.values())
    # Sixteen requests are in flight, and answers of as many may have arrived and not be on the disk; two samples each.
    assert len(paid) == 60 * 6 and twice <= (16 + 16) * 2
    rows = [json.loads(line) for line in (tmp_path / "runs/echo/stages/03-rate.jsonl").read_text().splitlines()]
    assert len({row["prompt"]["messages"][0]["content"] for row in rows}) == 60 == len(rows)


SLOW = """
import sys, time
import rlaif.formats.write.dataset as dataset
import rlaif.pipeline.stages.pair as pair
def slowly(made, seconds):
    def slow(*arguments):
        time.sleep(seconds)
        return made(*arguments)
    return slow
pair.preferences_of = slowly(pair.preferences_of, 0.02)
dataset._table = slowly(dataset._table, 0.5)
from rlaif.cli import main
sys.argv = ["rlaif", "run", "echo.yaml"]
main()
"""


def start_slow(where: Path) -> subprocess.Popen[str]:
    """A run whose pair stage takes seconds, as one of very many rows does."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    PROCESSES.append(subprocess.Popen([sys.executable, "-c", SLOW], cwd=where, env=environment, **streams))
    return PROCESSES[-1]


PAIRING = {  # what is there while the pair stage is at work
    "pairs": "stages/04-pair.partial.jsonl",
    "ratings": "dataset/ultrafeedback/data/.*.tmp",
    "preferences": "dataset/preference/data/.*.tmp",
    "demonstrations": "dataset/sft/data/.*.tmp",
}


@pytest.mark.parametrize("moment", PAIRING)
def test_a_kill_while_data_sets_are_written_leaves_them_as_if_it_had_not_been(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str, moment: str
) -> None:
    write_project(tmp_path, url, prompts=60)
    process, run = start_slow(tmp_path), tmp_path / "runs/echo"
    until(lambda: list(run.glob(PAIRING[moment])) or process.poll() is not None)
    assert process.poll() is None
    process.kill()
    ended(process)
    assert sum(asked(models).values()) == 60 * 6
    if moment in ("preferences", "demonstrations"):  # what was written before is whole
        assert list(run.glob("dataset/ultrafeedback/data/train-*.parquet"))
    assert run_cli("status", "runs/echo")[0] == 0 == run_cli("run", "echo.yaml")[0]
    assert sum(asked(models).values()) == 0  # not a call is paid for twice
    assert not list(run.rglob("*.tmp")) and not list(run.rglob("*.partial*"))
    (tmp_path / "undisturbed").mkdir()
    write_project(tmp_path / "undisturbed", url, prompts=60)
    assert rlaif(tmp_path / "undisturbed", "run", "echo.yaml").code == 0
    assert dataset_bytes(run) == dataset_bytes(tmp_path / "undisturbed/runs/echo")
    assert all(json.loads(line) for line in (run / "events.jsonl").read_text().splitlines())


def test_ctrl_c_breaks_into_the_writing_of_data_sets(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str
) -> None:
    write_project(tmp_path, url, prompts=300)  # six seconds of pairing
    process, run = start_slow(tmp_path), tmp_path / "runs/echo"
    until(lambda: (run / PAIRING["pairs"]).exists() or process.poll() is not None)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, out = ended(process)
    assert code == 130 and "interrupted" in out and "Traceback" not in out and time.monotonic() - began < 4
    assert manifest(run)["state"] == "interrupted"
    asked(models)
    assert run_cli("run", "echo.yaml")[0] == 0
    assert sum(asked(models).values()) == 0 and len(dataset_bytes(run)) == 6


def keys(model: Echo) -> Iterator[tuple[Any, ...]]:
    for request in model.asked:
        if request.sampling.max_tokens > 16:  # no probe
            for index in request.indices:
                yield request.messages[-1].content, request.sampling.seed, index


def test_two_runs_on_one_store_at_once(tmp_path: Path, models: dict[str, Echo], url: str) -> None:
    write_project(tmp_path, url, prompts=60)
    runs = [start(tmp_path, "run", "echo.yaml", f"name=run-{n}", "--out", f"runs/run-{n}") for n in range(2)]
    for code, out in map(ended, runs):
        assert code == 0, out
    one, two = (dataset_bytes(tmp_path / f"runs/run-{n}") for n in range(2))
    data = "dataset/preference/data/train-00000-of-00001.parquet"
    assert one[data] == two[data]  # the first answer to a call is the answer of both


# ---------------------------------------------------------------- the disk and the clock


def test_a_full_disk_stops_with_a_sentence_and_loses_nothing(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str
) -> None:
    """SQLite's own limit on the file's size stands for a disk that is full."""
    write_project(tmp_path, url, prompts=200)
    script = (
        "import rlaif.store as store, sqlite3, sys\n"
        "connected = store._connected\n"
        "def small(place):\n"
        "    db = connected(place)\n"
        "    db.execute('PRAGMA max_page_count=60')\n"
        "    return db\n"
        "store._connected = small\n"
        "from rlaif.cli import main\n"
        "sys.argv = ['rlaif', 'run', 'echo.yaml']\n"
        "main()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "calls.sqlite" in done.stderr and "free some disk space" in done.stderr
    with sqlite3.connect(tmp_path / folder.STORE) as db:
        kept = db.execute("SELECT count(*) FROM calls").fetchone()[0]
    db.close()
    assert kept > 50
    asked(models)
    code, out, err = run_cli("run", "echo.yaml")
    assert code == 0, out + err
    assert sum(asked(models).values()) == 200 * 6 - kept


def test_a_disk_that_is_as_good_as_full_is_found_before_anything_is_paid_for(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str, monkeypatch: Any
) -> None:
    write_project(tmp_path, url)
    monkeypatch.setattr("rlaif.pipeline.run.room", lambda _: 10 * 2**20)
    code, _, err = run_cli("run", "echo.yaml")
    assert code == 1 and "10 MB are free" in err and "too little to start" in err and "Fix: free some space" in err
    assert sum(len(model.asked) for model in models.values()) == 0
    monkeypatch.setattr("rlaif.pipeline.run.room", lambda _: LEAST_ROOM)
    monkeypatch.setattr("rlaif.pipeline.run.BYTES_A_ROW", 2**22)
    assert run_cli("run", "echo.yaml")[0] == 0
    assert "the run may write" in manifest(tmp_path / "runs/echo")["notes"][0]


def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str, monkeypatch: Any
) -> None:
    write_project(tmp_path, url)
    real, jumps = time.time, random.Random(0)
    monkeypatch.setattr(time, "time", lambda: real() + jumps.uniform(-1e6, 1e6))
    assert run_cli("run", "echo.yaml")[0] == 0
    asked(models)
    assert run_cli("run", "echo.yaml")[0] == 0
    assert sum(asked(models).values()) == 0


OLD_STORE = """
CREATE TABLE calls (key TEXT PRIMARY KEY, model TEXT NOT NULL, request TEXT NOT NULL, answer TEXT NOT NULL,
                    created REAL NOT NULL) WITHOUT ROWID;
PRAGMA user_version=2;
"""


def test_a_store_of_the_version_before_is_brought_over(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str
) -> None:
    write_project(tmp_path, url)
    assert run_cli("run", "echo.yaml")[0] == 0
    asked(models)
    store = CallStore(tmp_path / folder.STORE, read_only=True)
    with sqlite3.connect(tmp_path / folder.STORE) as db:
        found = db.execute("SELECT key, model, created FROM calls").fetchall()
    db.close()
    rows = [(k, m, json.dumps(store.request(k)), json.dumps(store.get([k])[k]), at) for k, m, at in found]
    store.close()
    (tmp_path / folder.STORE).unlink()
    with sqlite3.connect(tmp_path / folder.STORE) as db:
        db.executescript(OLD_STORE)
        db.executemany("INSERT INTO calls VALUES (?, ?, ?, ?, ?)", rows)
    db.close()
    code, _, err = run_cli("plan", "echo.yaml")
    assert code == 1 and "has format 2" in err and "`rlaif run` brings it to the new format" in err
    code, out, err = run_cli("run", "echo.yaml")
    assert code == 0, err
    assert "120 cached" in out and sum(asked(models).values()) == 0


# ---------------------------------------------------------------- secrets


def test_a_key_appears_nowhere(tmp_path: Path, run_cli: Cli, monkeypatch: Any) -> None:
    monkeypatch.setenv("PLANTED_KEY", SECRET)
    monkeypatch.setattr(traffic, "FIRST_WAIT", 0.01)
    said = f"Incorrect API key provided: {SECRET}"
    answers = [Answer({"error": {"message": said}}, status=400), Answer(f"proxy saw {SECRET}", status=502)]
    with scripted([Answer({"data": []})] * 3 + [Answer(completion("x"))] * 3 + answers * 99) as script:
        write_project(tmp_path, script.base_url, prompts=6)
        keyed = [f"models.{name}.api_key_env=PLANTED_KEY" for name in ("one", "two", "judge")]
        printed = "".join(map(str, run_cli("plan", "echo.yaml", *keyed)))
        printed += "".join(map(str, run_cli("run", "echo.yaml", *keyed, "models.one.retries=1")))
        printed += "".join(map(str, run_cli("status", "runs/echo")))
        assert any(SECRET in value for request in script.requests for value in request["headers"].values())
    written = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(written) > 4 and SECRET not in printed and "***" in printed
    for path in written:
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
    store = CallStore(tmp_path / folder.STORE, read_only=True)
    with sqlite3.connect(tmp_path / folder.STORE) as db:
        failures = db.execute("SELECT message FROM failures").fetchall()
        for (key,) in db.execute("SELECT key FROM calls").fetchall():
            assert SECRET not in f"{store.request(key)} {store.get([key])}"
    db.close()
    store.close()
    assert all(SECRET not in message for (message,) in failures)


# ---------------------------------------------------------------- the cache


def test_the_cache_is_shown_verified_and_pruned(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str
) -> None:
    write_project(tmp_path, url)
    run_cli("run", "echo.yaml")
    run_cli("run", "echo.yaml", "name=other", "seed=1", "--out", "runs/other")
    code, out, _ = run_cli("cache")
    assert code == 0 and "echo" in out and "other" in out and "240 calls in" in out
    code, out, _ = run_cli("cache", "verify")
    assert code == 0 and "240 calls, all of them can be read" in out
    code, out, _ = run_cli("cache", "prune", "--run", "other")
    assert code == 0 and "120 calls removed, 120 left" in out
    asked(models)
    run_cli("run", "echo.yaml")
    assert sum(asked(models).values()) == 0
    code, out, _ = run_cli("cache", "prune", "--older-than", "1")
    assert code == 0 and "0 calls removed" in out
    with sqlite3.connect(tmp_path / folder.STORE) as db:
        db.execute("UPDATE calls SET answer = x'00' WHERE id = 1")
    db.close()
    code, _, err = run_cli("cache", "verify")
    assert code == 1 and "1 of 120 calls cannot be read" in err
    assert run_cli("run", "echo.yaml")[0] == 0 and sum(asked(models).values()) == 1  # it is asked for again
    assert run_cli("cache", "verify")[0] == 0
    for wrong, said in ((["prun"], "did you mean `prune`?"), (["prune"], "--older-than or --run")):
        code, _, err = run_cli("cache", *wrong)
        assert code == 2 and said in err


def test_what_is_not_the_runs_own_stays_in_its_folder(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str
) -> None:
    write_project(tmp_path, url)
    run_cli("run", "echo.yaml")
    data = tmp_path / "runs/echo/dataset"
    (data / "notes.txt").write_text("mine")
    (data / "link").symlink_to(tmp_path)
    assert run_cli("run", "echo.yaml")[0] == 0
    assert (data / "notes.txt").read_text() == "mine" and (data / "link").is_symlink()


DAMAGE: dict[str, tuple[str, bytes, list[str]]] = {
    "a data set": (f"dataset/sft/{PARQUET}", b"xx", ["export", "--format", "sft", "--to", "out"]),
    "rows": ("stages/03-rate.jsonl", b"\xff\xfe\n", ["show", "1"]),
    "the manifest": ("manifest.json", b"[" * 100_000, ["status"]),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_run_is_a_sentence(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str, what: str
) -> None:
    write_project(tmp_path, url)
    run_cli("run", "echo.yaml")
    name, data, (command, *options) = DAMAGE[what]
    (tmp_path / "runs/echo" / name).write_bytes(data)
    code, _, err = run_cli(command, "runs/echo", *options)
    assert code == 1 and "run the pipeline again" in err and err.count("\n") == 1


def test_a_damaged_store_is_asked_around(tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str) -> None:
    write_project(tmp_path, url)
    run_cli("run", "echo.yaml")
    with sqlite3.connect(tmp_path / folder.STORE) as db:
        db.execute("UPDATE calls SET request = x'00'")
        db.execute("UPDATE servers SET learnt = '{'")
        db.execute("DELETE FROM calls WHERE id < 5")
    db.close()
    code, out, _ = run_cli("show", "runs/echo", "1", "--json")
    assert code == 0 and json.loads(out)["requests"]
    asked(models)
    assert run_cli("run", "echo.yaml")[0] == 0 and sum(asked(models).values()) == 4
    store = tmp_path / folder.STORE
    store.write_bytes(store.read_bytes()[: store.stat().st_size // 2])
    code, _, err = run_cli("run", "echo.yaml")
    assert code == 1 and "malformed. Fix: restore it from a copy" in err


def test_an_event_that_a_kill_cut_is_taken_away(
    tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str
) -> None:
    write_project(tmp_path, url)
    run_cli("run", "echo.yaml")
    log = tmp_path / "runs/echo/events.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    run_cli("run", "echo.yaml")
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert events.count("run") == 2 and events.count("ended") == 1


def test_events_are_for_machines(tmp_path: Path, run_cli: Cli, models: dict[str, Echo], url: str) -> None:
    write_project(tmp_path, url)
    run_cli("run", "echo.yaml")
    events = [json.loads(line) for line in (tmp_path / "runs/echo/events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["run", "stage", "stage", "stage", "stage", "ended"]
    assert events[-1]["state"] == "done" and events[2]["calls"]["one"]["sent"] == 43  # with the probe
    assert events[3]["calls"]["judge"]["sent"] == 40 and all(event["time"] > 0 for event in events)
