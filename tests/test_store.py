"""The call store: the key holds exactly what determines an answer, and what was put is there after a kill."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import StoreError
from rlaif.records import Message, Sampling, digest
from rlaif.store import ENOUGH, FORMAT, KEY_VERSION, Call, CallStore, call_keys

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
    index = value.pop("index")
    (key,) = call_keys(value.pop("identity"), value.pop("messages"), value.pop("sampling"), indices=[index], **value)
    return key


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


TEXTS = st.text(max_size=40)
MESSAGES = st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=TEXTS)
CALLS = st.fixed_dictionaries(
    {
        "identity": TEXTS,
        "messages": st.lists(MESSAGES, min_size=1, max_size=3).map(tuple),
        "sampling": st.builds(
            Sampling,
            temperature=st.floats(0, 2),
            top_p=st.floats(0.01, 1),
            max_tokens=st.integers(1, 9),
            stop=st.lists(TEXTS, max_size=2).map(tuple),
            logprobs=st.booleans(),
            alternatives=st.lists(TEXTS, max_size=2).map(tuple),
            seed=st.integers(0, 9),
        ),
        "index": st.integers(0, 9),
        "attempt": st.integers(0, 9),
        "json_schema": st.none() | st.dictionaries(TEXTS, st.integers(), max_size=3),
    }
)


def told_apart(call: dict[str, Any]) -> Any:
    """What determines a call's answer; a schema by the order of its keys too."""
    schema = None if call["json_schema"] is None else list(call["json_schema"].items())
    return [*(call[name] for name in ("identity", "messages", "sampling", "index", "attempt")), schema]


@given(CALLS, CALLS, st.sets(st.sampled_from(sorted(BASE))))
def test_two_calls_share_a_key_exactly_when_nothing_that_matters_differs(
    one: dict[str, Any], other: dict[str, Any], taken: set[str]
) -> None:
    mixed = one | {name: other[name] for name in taken}
    same = told_apart(one) == told_apart(mixed)
    assert (key(**one) == key(**mixed)) == same
    assert key(**one) == key(**one | {"messages": tuple(m.model_copy() for m in one["messages"])})


@given(CALLS)
def test_a_key_put_together_from_parts_is_the_digest_of_the_whole(call: dict[str, Any]) -> None:
    whole = {
        "v": KEY_VERSION,
        "model": call["identity"],
        "messages": [[m.role, m.content] for m in call["messages"]],
        "sampling": call["sampling"].model_dump(mode="json"),
        "schema": None if call["json_schema"] is None else json.dumps(call["json_schema"], ensure_ascii=False),
        "index": call["index"],
        "attempt": call["attempt"],
    }
    assert key(**call) == digest(whole)


def test_the_order_of_a_schemas_properties_is_part_of_the_key() -> None:
    """Engines write JSON in the order of the schema, so another order is another question."""
    one, two = {"rationale": {"type": "string"}}, {"rating": {"type": "integer"}}
    assert key(json_schema={"properties": one | two}) != key(json_schema={"properties": two | one})


def call(key: str, text: str, **request: Any) -> Call:
    return Call(key, "m", request, {"text": text})


def put(store: CallStore, *calls: Call) -> dict[str, dict[str, Any]]:
    async def putting() -> dict[str, dict[str, Any]]:
        return await store.put(calls)

    return asyncio.run(putting())


def test_the_first_answer_to_a_key_stays(tmp_path: Path) -> None:
    store = CallStore(tmp_path / "calls.sqlite")
    other = CallStore(tmp_path / "calls.sqlite")  # as a second process has it
    put(other, call("k", "first"))
    both = {"k": {"text": "first"}, "l": {"text": "other"}}
    assert put(store, call("k", "second"), call("l", "other")) == both  # what is stored, not what was brought
    assert store.get(["k", "l", "absent"]) == both
    store.close()
    other.close()


def test_a_call_can_be_explained(tmp_path: Path) -> None:
    store = CallStore(tmp_path / "calls.sqlite")
    asked = {"messages": [{"role": "user", "content": "é"}], "schema": {"b": 1, "a": 2}, "index": 3}
    put(store, call("k", "x", **asked))
    assert store.request("k") == asked and store.request("absent") is None
    assert list((store.request("k") or {})["schema"]) == ["b", "a"]
    store.close()
    with sqlite3.connect(tmp_path / "calls.sqlite") as db:  # as `sqlite3 calls.sqlite` shows it
        model, request = db.execute("SELECT model, request FROM calls").fetchone()
        assert model == "m" and "é" in zlib.decompress(request).decode()
    db.close()


def test_half_a_surrogate_pair_in_a_prompt_can_be_stored() -> None:
    store = CallStore(Path(":memory:"))
    put(store, call("k", "x", prompt="a\ud83d"))
    assert (store.request("k") or {})["prompt"] == "a?"
    store.close()


def everything_in(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_reading_only_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    missing = CallStore(tmp_path / "no" / "calls.sqlite", read_only=True)
    assert missing.get(["k"]) == {} and missing.request("k") is None and len(missing) == 0
    missing.close()
    assert not list(tmp_path.iterdir())
    store = CallStore(path)
    put(store, call("k", "x"))
    running = CallStore(path, read_only=True)  # while another process writes
    put(store, call("l", "y"))
    assert len(running) == 2
    running.close()
    store.close()
    before = everything_in(tmp_path)
    assert list(before) == ["calls.sqlite"]
    reading = CallStore(path, read_only=True)
    assert set(reading.get(["k", "l"])) == {"k", "l"}
    with pytest.raises(StoreError, match="readonly"):
        put(reading, call("n", "z"))
    assert everything_in(tmp_path) == before
    reading.close()
    assert everything_in(tmp_path) == before


def test_a_store_that_exists_is_opened_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    CallStore(path).close()
    before = everything_in(tmp_path)
    CallStore(path).close()
    assert everything_in(tmp_path) == before


def test_reading_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    store = CallStore(tmp_path / "calls.sqlite")
    put(store, call("k", "x"))
    with store._lock:  # as a commit that waits for the disk holds it
        assert store.get(["k"]) == {"k": {"text": "x"}}
    store.close()


@settings(max_examples=10, deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=30))
def test_any_text_comes_back_as_it_was(texts: list[str]) -> None:
    store = CallStore(Path(":memory:"))
    put(store, *(call(str(i), text) for i, text in enumerate(texts)))
    assert [store.get([str(i)])[str(i)]["text"] for i in range(len(texts))] == texts
    store.close()


def test_few_answers_wait_for_others_and_enough_of_them_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlaif.store.LATEST", 20.0)

    async def work() -> None:
        store = CallStore(tmp_path / "calls.sqlite")
        async with asyncio.timeout(5):
            await store.put([call("alone", "")])  # nothing was written lately, so nothing is gained by waiting
        few = [store.put([call(str(n), "")]) for n in range(ENOUGH - 1)]
        await asyncio.sleep(0.1)
        assert not any(one.done() for one in few)
        async with asyncio.timeout(5):
            await asyncio.gather(*few, store.put([call("the last", "")]))
        assert len(store) == 1 + ENOUGH
        store.close()

    asyncio.run(work())


def test_writes_that_arrive_together_share_a_commit(tmp_path: Path) -> None:
    store = CallStore(tmp_path / "calls.sqlite")
    commits: list[int] = []
    write = store._commit
    store._commit = lambda batch: (commits.append(len(batch)), write(batch))[1]  # type: ignore[method-assign,assignment]

    async def many() -> None:
        await asyncio.gather(*(store.put([call(str(i), str(i))]) for i in range(300)))

    asyncio.run(many())
    assert sum(commits) == 300 and len(commits) <= 3
    assert len(store) == 300
    store.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from rlaif.store import Call, CallStore
store = CallStore(Path(sys.argv[1]))
async def go():
    for i in range(10**6):
        await store.put([Call(f"{sys.argv[2]}-{i}", "m", {}, {"text": str(i)})])
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
    with pytest.raises(StoreError, match=f"format 99.*reads format {FORMAT}.*Fix: use the version"):
        CallStore(path)
    with pytest.raises(StoreError, match="format 99"):
        CallStore(path, read_only=True)


def test_a_file_that_is_no_store_is_refused_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    path.write_text("not a database, but long enough to be read as one" * 10)
    with pytest.raises(StoreError, match="cannot be used"):
        CallStore(path)
