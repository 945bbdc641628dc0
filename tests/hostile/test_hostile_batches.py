"""Files of results, and a provider of batches, that lie, flood or speak nonsense: counted, or a sentence."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from echo import Echo, write_project
from inside import Done, rlaif
from providing import Provider, providing
from serving import Answer, scripted

from rlaif.pipeline.batch import results

PROMPTS = 2


@pytest.fixture
def provider() -> Iterator[Provider]:
    with providing({name: Echo(name) for name in ("one", "two", "judge")}) as provider:
        yield provider


@pytest.fixture
def project(tmp_path: Path, provider: Provider) -> Path:
    write_project(tmp_path, provider.base_url, prompts=PROMPTS)
    assert rlaif(tmp_path, "batch", "echo.yaml").code == 0
    return tmp_path


def given(project: Path, data: bytes) -> Done:
    """What is said of such a file of results, which is one line for each thing."""
    (project / "results.jsonl").write_bytes(data)
    done = rlaif(project, "batch", "echo.yaml", "--results", "results.jsonl")
    assert "Traceback" not in done.err and done.code in (0, 2), done.err
    assert not any(ord(c) < 32 and c != "\n" or c in "\u202e\u200b" for c in done.out + done.err)
    return done


def line_of(project: Path, **changed: Any) -> dict[str, Any]:
    first = (project / "runs/echo/batch/one-001.jsonl").read_text().splitlines()[0]
    body = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}] * 2}
    line = {"id": "x", "custom_id": json.loads(first)["custom_id"], "error": None}
    return line | {"response": {"status_code": 200, "request_id": "r", "body": body}} | changed


ODD_LINES: dict[str, Any] = {
    "a list": [],
    "a number": 10**400,
    "an id that is none": {"custom_id": 5, "response": {"status_code": 200}},
    "a status in words": {"custom_id": "x", "response": {"status_code": "fine"}},
    "a response that is a list": {"custom_id": "x", "response": []},
    "nothing": {},
}


@pytest.mark.parametrize("odd", ODD_LINES)
def test_a_line_of_another_shape_is_counted(odd: str, project: Path) -> None:
    data = f"{json.dumps(ODD_LINES[odd])}\n{json.dumps(line_of(project))}\n".encode()
    done = given(project, data)
    assert done.code == 0 and "2 calls stored" in done.out and "1 lines that are no result" in done.out


ODD_RESULTS: dict[str, dict[str, Any]] = {
    "a body that is text": {"response": {"status_code": 200, "body": "\x1b[2J\u202e"}},
    "a body that is null": {"response": {"status_code": 200, "body": None}},
    "a body of other types": {"response": {"status_code": 200, "body": {"choices": {"0": 1}, "usage": -5}}},
    "choices of null": {"response": {"status_code": 200, "body": {"choices": [None, None]}}},
    "a status of nothing": {"response": {"status_code": -1, "body": {"error": {"message": "\x1b]0;x\x07"}}}},
    "a status of a page": {"response": {"status_code": 302, "body": {"location": "http://elsewhere"}}},
    "an error that is text": {"response": None, "error": "\x1b[31mno\u200b"},
    "an error with a code of 10^6 characters": {"response": None, "error": {"code": "\u202e" * 10**6}},
    "an error with a code that is a list": {"response": None, "error": {"code": ["x"]}},
    "an error page": {"response": {"status_code": 500, "body": "<html>" + "x" * 10**6}},
}


@pytest.mark.parametrize("odd", ODD_RESULTS)
def test_an_answer_of_another_shape_is_asked_again_or_failed(odd: str, project: Path) -> None:
    done = given(project, json.dumps(line_of(project, **ODD_RESULTS[odd])).encode() + b"\n")
    assert done.code == 0 and ("2 calls are asked again" in done.out or "2 calls failed for good" in done.out), done.out
    assert len(done.out) < 3_000


def test_what_is_nested_or_long_is_bounded(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "MOST_LINE", 100_000)
    nested = b'{"custom_id": "x", "response": ' + b"[" * 90_000 + b"]" * 90_000 + b"}\n"
    fine = json.dumps(line_of(project)).encode() + b"\n"
    began = time.monotonic()
    done = given(project, nested + b"\0" * 350_000 + b"\n" + fine)
    assert time.monotonic() - began < 20 and "2 calls stored" in done.out and "lines that are no result" in done.out


def test_a_bomb_of_gzip_is_bounded(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", 5_000_000)
    done = given(project, gzip.compress(b" " * 50_000_000))
    assert done.code == 2 and "it unpacks to more than 5 MB" in done.err


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_a_sentence(kind: str, project: Path) -> None:
    path = project / "odd.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    done = rlaif(project, "batch", "echo.yaml", "--results", "odd.jsonl")
    assert done.code == 2 and "it cannot be read" in done.err and done.err.count("\n") == 1


def test_a_folder_of_somebody_else_leads_nowhere(project: Path) -> None:
    """Neither by a name that leads away, nor by a link."""
    mine = project / "mine.jsonl"
    mine.write_text("mine")
    state = project / "runs/echo/batch/batches.json"
    told = json.loads(state.read_text())
    told["entries"][0] |= {"name": "../../../mine", "over": True}
    state.write_text(json.dumps(told))
    done = rlaif(project, "batch", "echo.yaml")
    assert done.code == 1 and "batches.json: it is damaged" in done.err and mine.read_text() == "mine"
    state.unlink()
    (project / "elsewhere").mkdir()
    (project / "runs/echo/batch/.wave").symlink_to(project / "elsewhere")
    assert rlaif(project, "batch", "echo.yaml").code == 0
    assert list((project / "elsewhere").iterdir()) == [] and mine.read_text() == "mine"


# ---------------------------------------------------------------- the provider

ODD_WORDS: dict[str, Any] = {
    "no id": {"object": "file"},
    "an empty id": {"id": "", "status": "completed"},
    "an id that leads elsewhere": {"id": "../../models?x=", "status": "completed"},
    "an id of other types": {"id": ["x"], "status": 5},
    "a list": [],
    "text": "<html>no</html>",
}


@pytest.mark.parametrize("odd", ODD_WORDS)
def test_a_provider_that_speaks_nonsense_is_a_sentence(odd: str, tmp_path: Path) -> None:
    with scripted(
        [Answer(ODD_WORDS[odd] if isinstance(ODD_WORDS[odd], dict) else json.dumps(ODD_WORDS[odd]))]
    ) as script:
        write_project(tmp_path, script.base_url, prompts=PROMPTS)
        (tmp_path / "echo.yaml").write_text((tmp_path / "echo.yaml").read_text())
        # A form of a file is no JSON, which the script reads as such: so its words come to the second request.
        script_state = tmp_path / "runs/echo/batch/batches.json"
        assert rlaif(tmp_path, "batch", "echo.yaml").code == 0
        state = json.loads(script_state.read_text())
        state["entries"][0]["file_id"] = "file-1"
        script_state.write_text(json.dumps(state))
        done = rlaif(tmp_path, "batch", "echo.yaml")
    assert done.code == 1 and "what it says of files and batches cannot be read" in done.err, done.err
    assert done.err.count("\n") == 1 and "elsewhere" not in done.err


def test_a_flood_in_place_of_a_batch_is_bounded(project: Path, provider: Provider) -> None:
    assert rlaif(project, "batch", "echo.yaml", "--submit").code == 0
    provider.batches["batch_1"]["metadata"] = {"x": "y" * 5_000_000}
    done = rlaif(project, "batch", "echo.yaml")
    assert done.code == 1 and "it is longer than 4 MB" in done.err and done.err.count("\n") == 1


def test_a_key_that_a_provider_repeats_is_masked(
    project: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-planted-0123456789abcdef"
    monkeypatch.setenv("PLANTED", key)
    text = (project / "echo.yaml").read_text().replace("engine: openai", "engine: openai, api_key_env: PLANTED")
    (project / "echo.yaml").write_text(text)
    assert rlaif(project, "batch", "echo.yaml", "--submit").code == 0
    assert {headers["authorization"] for _, _, headers in provider.seen} == {f"Bearer {key}"}

    def repeated(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        lines[0]["response"]["body"]["choices"][0]["message"]["content"] = f"You sent {key}."
        lines[1]["response"] = {"status_code": 422, "body": {"error": {"message": f"{key} may not"}}}
        return lines

    provider.end("batch_1", repeated)
    provider.batches["batch_2"] |= {"status": "failed", "errors": {"data": [{"message": f"{key} may not"}]}}
    done = rlaif(project, "batch", "echo.yaml")
    assert "planted-0123" not in done.out + done.err and "*** may not" in done.out
    kept = [
        p for p in (project / "runs").rglob("*") if p.is_file() and p.suffix != ".sqlite" and "planted" in p.read_text()
    ]
    assert not kept
