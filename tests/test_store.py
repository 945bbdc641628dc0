"""The call store: the key holds exactly what determines an answer, and what was put is there after a kill."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import StoreError
from rlaif.records import Message, Sampling
from rlaif.store import CallStore, call_key

BASE: dict[str, Any] = {
    "identity": "weights:abc",
    "messages": (Message(role="system", content="s"), Message(role="user", content="u")),
    "sampling": Sampling(temperature=0.7, stop=("\n",)),
    "index": 0,
    "attempt": 0,
    "json_schema": None,
}

CHANGES: dict[str, Any] = {
    "identity": "weights:abd",
    "messages": (Message(role="user", content="su"),),
    "index": 1,
    "attempt": 1,
    "json_schema": {"type": "object"},
}

SAMPLING_CHANGES: dict[str, Any] = {
    "temperature": 0.8,
    "top_p": 0.9,
    "max_tokens": 7,
    "stop": (),
    "logprobs": True,
    "alternatives": ("A", "B"),
    "seed": 1,
}


def key(**changes: Any) -> str:
    value = BASE | changes
    return call_key(value.pop("identity"), value.pop("messages"), value.pop("sampling"), **value)


def test_every_field_of_a_call_changes_its_key() -> None:
    assert set(SAMPLING_CHANGES) == set(Sampling.model_fields), "a new sampling field belongs in this sweep"
    keys = [key()] + [key(**{name: value}) for name, value in CHANGES.items()]
    keys += [key(sampling=BASE["sampling"].model_copy(update={n: v})) for n, v in SAMPLING_CHANGES.items()]
    assert len(keys) == 13 and len(set(keys)) == len(keys)


def test_a_key_is_the_same_tomorrow() -> None:
    # Written down on purpose: a change here makes every stored call of every user unreachable.
    assert key() == "cca45248699a66a72d113413e4cc187e"


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text()), min_size=1, max_size=4))
def test_moving_words_between_messages_changes_the_key(turns: list[tuple[Any, str]]) -> None:
    messages = tuple(Message(role=role, content=text) for role, text in turns)
    merged = (Message(role="user", content="".join(text for _, text in turns)),)
    if messages != merged:
        assert key(messages=messages) != key(messages=merged)


def put(store: CallStore, *calls: tuple[str, str, dict[str, Any]]) -> None:
    asyncio.run(store.put(list(calls)))


def test_the_first_answer_to_a_key_stays(tmp_path: Path) -> None:
    store = CallStore(tmp_path / "calls.sqlite")
    put(store, ("k", "m", {"text": "first"}))
    put(store, ("k", "m", {"text": "second"}), ("l", "m", {"text": "other"}))
    assert store.get(["k", "l", "absent"]) == {"k": {"text": "first"}, "l": {"text": "other"}}
    store.close()


@settings(max_examples=10, deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=30))
def test_any_text_comes_back_as_it_was(texts: list[str]) -> None:
    store = CallStore(Path(":memory:"))
    put(store, *((str(i), "m", {"text": text}) for i, text in enumerate(texts)))
    assert [store.get([str(i)])[str(i)]["text"] for i in range(len(texts))] == texts
    store.close()


def test_writes_that_arrive_together_share_a_commit(tmp_path: Path) -> None:
    store = CallStore(tmp_path / "calls.sqlite")
    commits: list[int] = []
    write = store._write
    store._write = lambda batch: (commits.append(len(batch)), write(batch))[1]  # type: ignore[method-assign,assignment]

    async def many() -> None:
        await asyncio.gather(*(store.put([(str(i), "m", {"text": str(i)})]) for i in range(300)))

    asyncio.run(many())
    assert sum(commits) == 300 and len(commits) <= 3
    assert len(store) == 300
    store.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from rlaif.store import CallStore
store = CallStore(Path(sys.argv[1]))
async def go():
    for i in range(10**6):
        await store.put([(f"{sys.argv[2]}-{i}", "m", {"text": str(i)})])
        print(i, flush=True)
asyncio.run(go())
"""


def test_what_was_put_survives_a_kill_and_two_writers(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], stdout=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    confirmed: dict[str, int] = {}
    for name, writer in zip("ab", writers, strict=True):
        assert writer.stdout is not None
        for line in writer.stdout:
            confirmed[name] = int(line)
            if confirmed[name] >= 20:
                break
        os.kill(writer.pid, signal.SIGKILL)
        writer.stdout.close()
        writer.wait()
    store = CallStore(path)
    for name, last in confirmed.items():
        assert len(store.get([f"{name}-{i}" for i in range(last + 1)])) == last + 1
    store.close()


def test_a_store_of_another_format_is_refused_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StoreError, match="format 99.*reads format 1.*Fix: use the version"):
        CallStore(path)


def test_a_file_that_is_no_store_is_refused_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    path.write_text("not a database, but long enough to be read as one" * 10)
    with pytest.raises(StoreError, match="cannot be used"):
        CallStore(path)
