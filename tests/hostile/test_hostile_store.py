"""A damaged or a strange call store: each damage is a sentence or asked again, and never silently other data."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from echo import Echo, write_project
from inside import Done, rlaif
from serving import serve

from rlaif import store as stores
from rlaif.pipeline import upkeep
from rlaif.pipeline.folder import STORE
from rlaif.store import CallStore

RAW = (
    "Traceback",
    "sqlite3.",
    "pydantic",
    "validation error",
    "no such table",
    "no such column",
    "msgspec",
    "Expected `",
)


class Project(NamedTuple):
    folder: Path
    models: dict[str, Echo]
    data: dict[str, bytes]  # of its data sets, as an undamaged store gives them


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder, models = tmp_path_factory.mktemp("made"), {name: Echo(name) for name in ("one", "two", "judge")}
    with serve(models) as url:
        write_project(folder, url, prompts=3)
        assert rlaif(folder, "run", "echo.yaml").code == 0
        yield Project(folder, models, data_of(folder))


@pytest.fixture
def project(made: Project, tmp_path: Path) -> Project:
    """A copy of a finished project, whose calls are counted anew."""
    shutil.copytree(made.folder, tmp_path / "p", symlinks=True)
    for model in made.models.values():
        model.asked.clear()
    return made._replace(folder=tmp_path / "p")


def data_of(folder: Path) -> dict[str, bytes]:
    return {path.parent.name + path.name: path.read_bytes() for path in (folder / "runs/echo/dataset").rglob("*.*")}


def calls(project: Project) -> int:
    return sum(len(request.indices) for model in project.models.values() for request in model.asked
               if request.sampling.max_tokens > 16)  # fmt: skip


def one_sentence(done: Done) -> bool:
    return done.err.count("\n") == 1 and done.err.startswith("error: ") and "Fix: " in done.err and not raw(done)


def raw(done: Done) -> list[str]:
    return [words for words in RAW if words in done.out + done.err]


# ---------------------------------------------------------------- damage of the file

Damage = Callable[[Path], None]


def overwritten(at: int | float, data: bytes) -> Damage:
    """Bytes put at an offset, or at a share of the file."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        start = at if isinstance(at, int) else int(len(content) * at)
        content[start : start + len(data)] = data
        path.write_bytes(content)

    return damage


def cut(share: float) -> Damage:
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def replaced(content: bytes) -> Damage:
    return lambda path: path.write_bytes(content) and None


def pages(seed: int) -> Damage:
    """Some bytes flipped in every page but the first."""

    def damage(path: Path) -> None:
        content, noise = bytearray(path.read_bytes()), random.Random(seed)
        for page in range(4096, len(content), 4096):
            for _ in range(20):
                content[page + noise.randrange(4096)] ^= 1 << noise.randrange(8)
        path.write_bytes(content)

    return damage


def instead(make: Callable[[Path], Any]) -> Damage:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def beside(suffix: str, content: bytes) -> Damage:
    return lambda path: path.with_name(path.name + suffix).write_bytes(content) and None


def sql(*statements: str, given: tuple[Any, ...] = ()) -> Damage:
    def damage(path: Path) -> None:
        db = sqlite3.connect(path, isolation_level=None)
        for statement in statements:
            db.execute(statement, given if "?" in statement else ())
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()

    return damage


def loose(*statements: str) -> Damage:
    """The table of calls without its constraints, then `statements`: columns hold what a stranger wants."""
    names = "id, key, model, run, created, prompt_tokens, completion_tokens, request, answer"
    copied = "ALTER TABLE calls RENAME TO old", f"CREATE TABLE calls ({names})", "INSERT INTO calls SELECT * FROM old"
    return sql(*copied, "DROP TABLE old", *statements)


def other_database(path: Path) -> None:
    path.unlink(missing_ok=True)
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE recipes (name, text)")
    db.commit()
    db.close()


def with_log_of(prepare: Callable[[sqlite3.Connection], Any]) -> Damage:
    """The write-ahead log of another database, as its killed process left it, under the store's name."""

    def damage(path: Path) -> None:
        other = path.with_name("other.sqlite")
        db = sqlite3.connect(other, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA wal_autocheckpoint=0")
        prepare(db)
        shutil.copy(f"{other}-wal", f"{path}-wal")
        db.close()

    return damage


def as_a_store(db: sqlite3.Connection, identity: int = 7) -> None:
    db.execute(f"PRAGMA application_id={identity}")
    for statement in stores._TABLES.split(";")[:-1]:
        db.execute(statement)
    db.execute(f"PRAGMA user_version={stores.FORMAT}")
    for number in range(50):
        db.execute("INSERT INTO calls VALUES (?, ?, 'm', 'r', 1.0, 1, 1, x'00', x'00')", (number, f"k{number}"))


FILES: dict[str, Damage] = {
    "header zeroed": overwritten(0, bytes(100)),
    "magic of another program": overwritten(0, b"PK\x03\x04"),
    "page size 3": overwritten(16, b"\x00\x03"),
    "page size 65536": overwritten(16, b"\x00\x01"),
    "file format 9": overwritten(18, b"\x09\x09"),
    "reserved space 255": overwritten(20, b"\xff"),
    "schema format 77": overwritten(44, b"\x00\x00\x00\x4d"),
    "text encoding UTF-16": overwritten(56, b"\x00\x00\x00\x02"),
    "text encoding 9": overwritten(56, b"\x00\x00\x00\x09"),
    "first page zeroed": overwritten(0, bytes(4096)),
    "schema page of noise": overwritten(100, random.Random(1).randbytes(3000)),
    "middle of noise": overwritten(0.5, random.Random(2).randbytes(9000)),
    "end of zeros": overwritten(0.8, bytes(100_000)),
    "every page scratched, 1": pages(1),
    "every page scratched, 2": pages(2),
    "every page scratched, 3": pages(3),
    "cut to a tenth": cut(0.1),
    "cut to a half": cut(0.5),
    "cut by a little": cut(0.97),
    "cut within the header": lambda path: os.truncate(path, 60),
    "empty": cut(0),
    "a text": replaced(b"Dear diary, today I paid for nothing.\n" * 100),
    "a ZIP": replaced(b"PK\x03\x04" + bytes(5000)),
    "zeros": replaced(bytes(8192)),
    "noise": replaced(random.Random(3).randbytes(20_000)),
    "another database": other_database,
    "a folder": instead(Path.mkdir),
    "a pipe": instead(os.mkfifo),
    "a link to nothing": instead(lambda path: path.symlink_to("/nowhere/at/all")),
    "a link to itself": instead(lambda path: path.symlink_to(path.name)),
    "a link to /dev/zero": instead(lambda path: path.symlink_to("/dev/zero")),
    "a link to /dev/full": instead(lambda path: path.symlink_to("/dev/full")),
    "format 99": sql("PRAGMA user_version=99"),
    "format 0": sql("PRAGMA user_version=0"),
    "format -1": sql("PRAGMA user_version=-1"),
    "format 2 by name only": sql("PRAGMA user_version=2"),
    "the log of another store": with_log_of(as_a_store),
    "the log of a store without an id": with_log_of(lambda db: as_a_store(db, 0)),
    "the log of another database": with_log_of(lambda db: db.execute("CREATE TABLE recipes (name)")),
    "a log of noise": beside("-wal", random.Random(4).randbytes(50_000)),
    "an empty log": beside("-wal", b""),
    "a log's header alone": beside("-wal", struct.pack(">8I", 0x377F0682, 3007000, 4096, 0, 1, 1, 0, 0)),
    "a log with pages of 1 byte": beside("-wal", struct.pack(">8I", 0x377F0682, 3007000, 1, 0, 1, 1, 0, 0) * 99),
    "shared memory of noise": beside("-shm", random.Random(5).randbytes(32_768)),
    "a journal of noise": beside("-journal", random.Random(6).randbytes(9000)),
    "no table of calls": sql("DROP TABLE calls"),
    "no table of failures": sql("DROP TABLE failures"),
    "no table of what was wasted": sql("DROP TABLE wasted"),
    "no table of servers": sql("DROP TABLE servers"),
    "no table at all": sql("DROP TABLE calls", "DROP TABLE failures", "DROP TABLE wasted", "DROP TABLE servers"),
    "a column missing": sql("ALTER TABLE calls DROP COLUMN completion_tokens"),
    "a column renamed": sql("ALTER TABLE calls RENAME COLUMN answer TO answers"),
    "another table of calls": sql("DROP TABLE calls", "CREATE TABLE calls (x)"),
    "a trigger that deletes": sql(
        "CREATE TRIGGER t AFTER INSERT ON calls BEGIN DELETE FROM calls; DELETE FROM wasted; END"
    ),
    "a trigger that forges": sql(
        "CREATE TRIGGER t AFTER INSERT ON wasted BEGIN UPDATE wasted SET prompt_tokens = 0; END"
    ),
    "a view that never ends": sql(
        "ALTER TABLE failures RENAME TO f",
        "CREATE VIEW failures AS WITH RECURSIVE n(key) AS (SELECT 1 UNION ALL SELECT key + 1 FROM n) "
        "SELECT key, '' AS model, '' AS run, 0 AS created, '' AS cause, '' AS message FROM n",
    ),
    "a virtual table": sql("DROP TABLE servers", "CREATE VIRTUAL TABLE servers USING fts4(server, learnt, created)"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_store_is_a_sentence_or_asked_again(name: str, project: Project) -> None:
    path = project.folder / STORE
    FILES[name](path)
    began = time.monotonic()
    for command in (["cache", "verify"], ["plan", "echo.yaml"]):
        looked = rlaif(project.folder, *command)
        assert looked.code == 0 or one_sentence(looked), looked
        assert not raw(looked), looked
    done = rlaif(project.folder, "run", "echo.yaml")
    assert time.monotonic() - began < 10
    if done.code == 0:
        assert data_of(project.folder) == project.data
    else:
        assert done.code == 1 and one_sentence(done) and "calls.sqlite" in done.err, done


@pytest.mark.parametrize("name", [name for name in FILES if "trigger" in name or "view" in name or "virtual" in name])
def test_what_a_stranger_wrote_into_a_schema_is_refused(name: str, project: Project) -> None:
    FILES[name](project.folder / STORE)
    done = rlaif(project.folder, "run", "echo.yaml")
    assert done.code == 1 and one_sentence(done) and "which is not of this program" in done.err, done


# ---------------------------------------------------------------- damage of what it holds

TEXT = json.dumps({"text": "forged", "finish_reason": "stop", "usage": {"prompt_tokens": 1, "completion_tokens": 1}})


def answer(value: Any) -> Damage:
    """Every answer replaced by this value, packed as the store packs."""
    packed = zlib.compress(value if isinstance(value, bytes) else json.dumps(value).encode())
    return sql("UPDATE calls SET answer = ?", given=(packed,))


BAD_ANSWERS: dict[str, Damage] = {
    "a list": answer([]),
    "a list of pairs": answer([["text", "forged"]]),
    "a number": answer(7),
    "a text": answer("forged"),
    "null": answer(None),
    "no text": answer({"finish_reason": "stop"}),
    "a number for a text": answer({"text": 7}),
    "a list for a text": answer({"text": ["a"]}),
    "null for a text": answer({"text": None}),
    "a reason nobody knows": answer({"text": "a", "finish_reason": "bored"}),
    "a number for a reason": answer({"text": "a", "finish_reason": 1}),
    "a list for usage": answer({"text": "a", "usage": [1]}),
    "a text for tokens": answer({"text": "a", "usage": {"prompt_tokens": "many"}}),
    "tokens below zero": answer({"text": "a", "usage": {"prompt_tokens": -5}}),
    "half a token": answer({"text": "a", "usage": {"completion_tokens": 0.5}}),
    "texts for log-probabilities": answer({"text": "a", "token_logprobs": ["x"]}),
    "an object for log-probabilities": answer({"text": "a", "token_logprobs": {}}),
    "a list for alternatives": answer({"text": "a", "alternatives": [1]}),
    "texts for alternatives": answer({"text": "a", "alternatives": {"A": "x"}}),
    "no JSON": answer(b"{text: forged}"),
    "half a JSON": answer(b'{"text": "forg'),
    "two JSONs": answer(TEXT.encode() * 2),
    "deep JSON": answer(b"[" * 100_000),
    "deep JSON in a text's place": answer(b'{"text": ' + b"[" * 100_000),
    "no UTF-8": answer(b'{"text": "\xff\xfe"}'),
    "NaN": answer(b'{"text": "a", "token_logprobs": [NaN]}'),
    "not packed": sql("UPDATE calls SET answer = ?", given=(TEXT.encode(),)),
    "packed noise": sql("UPDATE calls SET answer = ?", given=(random.Random(7).randbytes(300),)),
    "packed and cut": sql("UPDATE calls SET answer = ?", given=(zlib.compress(TEXT.encode())[:-9],)),
    "a column of text": sql("UPDATE calls SET answer = 'forged'"),
    "a column of a number": sql("UPDATE calls SET answer = 5"),
    "a column of null": loose("UPDATE calls SET answer = NULL"),
    "an empty column": sql("UPDATE calls SET answer = x''"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_an_answer_that_is_none_is_found_and_asked_again(name: str, project: Project) -> None:
    BAD_ANSWERS[name](project.folder / STORE)
    verified = rlaif(project.folder, "cache", "verify")
    assert verified.code == 1 and one_sentence(verified) and "18 of 18 calls cannot be read" in verified.err, verified
    done = rlaif(project.folder, "run", "echo.yaml")
    assert done.code == 0 and not raw(done), done
    assert data_of(project.folder) == project.data and calls(project) == 18


def test_an_answer_that_is_a_bomb_is_found_and_asked_again(project: Project) -> None:
    bomb = zlib.compress(b" " * 2 * stores.LARGEST + TEXT.encode(), 1)
    sql("UPDATE calls SET answer = ? WHERE id = 5", given=(bomb,))(project.folder / STORE)
    verified = rlaif(project.folder, "cache", "verify")
    assert verified.code == 1 and one_sentence(verified) and "1 of 18 calls cannot be read" in verified.err, verified
    assert rlaif(project.folder, "run", "echo.yaml").code == 0
    assert data_of(project.folder) == project.data and calls(project) == 1


ROWS: dict[str, Damage] = {
    "numbers of 2^62": sql("UPDATE calls SET id = id + 4611686018427387904"),
    "the largest number": sql("UPDATE calls SET id = 9223372036854775807 WHERE id = (SELECT max(id) FROM calls)"),
    "numbers below zero": sql("UPDATE calls SET id = -id"),
    "tokens of 2^62": sql("UPDATE calls SET prompt_tokens = 4611686018427387904"),
    "tokens as words": sql("UPDATE calls SET prompt_tokens = 'many', completion_tokens = x'ff'"),
    "infinite tokens": sql("UPDATE calls SET prompt_tokens = 9e999"),
    "times beyond years": sql("UPDATE calls SET created = 1e300"),
    "times as words": sql("UPDATE calls SET created = 'yesterday'"),
    "times of noise": sql("UPDATE calls SET created = x'ff'"),
    "models of noise": sql("UPDATE calls SET model = CAST(x'ff1b5d' AS TEXT)"),
    "runs of noise": sql("UPDATE calls SET run = CAST(x'ff1b5d' AS TEXT)"),
    "runs as bytes": sql("UPDATE calls SET run = x'00'"),
    "keys of noise": sql("UPDATE calls SET key = CAST(x'ff' || CAST(id AS TEXT) AS TEXT)"),
    "no keys": loose("UPDATE calls SET key = NULL"),
    "no models": loose("UPDATE calls SET model = NULL, run = NULL, created = NULL, prompt_tokens = NULL"),
    "requests of noise": sql("UPDATE calls SET request = x'ff'"),
    "a server that learnt a list": sql("UPDATE servers SET learnt = '[]'"),
    "a server that learnt words": sql("UPDATE servers SET learnt = '{\"seed\": \"; rm -rf\"}'"),
    "a server that learnt noise": sql("UPDATE servers SET learnt = x'ff', created = 'never'"),
    "a server that learnt depth": sql("UPDATE servers SET learnt = ?, created = 9e9", given=("[" * 99_999,)),
    "failures of noise": sql("INSERT INTO failures VALUES (x'ff', '', '', 0, x'ff', x'ff')"),
    "waste below zero": sql("INSERT INTO wasted VALUES (9, 'm', 'echo', 0, -1000000, -1000000)"),
    "waste of noise": sql("INSERT INTO wasted VALUES (9, x'ff', x'ff', x'ff', x'ff', 'x')"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_any_content_is_a_sentence_or_asked_again(name: str, project: Project) -> None:
    ROWS[name](project.folder / STORE)
    for command in (["cache", "verify"], ["cache"], ["show", "runs/echo", "1", "--json"]):
        looked = rlaif(project.folder, *command)
        assert looked.code == 0 or one_sentence(looked), looked
        assert not raw(looked), looked
    done = rlaif(project.folder, "run", "echo.yaml", "budget=1000")
    assert not raw(done), done
    if done.code == 0:
        assert data_of(project.folder) == project.data
    else:
        assert one_sentence(done) or "budget" in done.out, done


def test_a_stored_failure_of_noise_is_its_rows_failure(project: Project) -> None:
    db = sqlite3.connect(project.folder / STORE, isolation_level=None)
    keys = [key for (key,) in db.execute("SELECT key FROM calls ORDER BY id")]
    db.execute("DELETE FROM calls")
    db.executemany("INSERT INTO failures VALUES (?, '', '', 0, x'ff', CAST(x'ff1b' AS TEXT))", [(key,) for key in keys])
    db.close()
    done = rlaif(project.folder, "run", "echo.yaml")
    assert done.code == 1 and not raw(done) and calls(project) == 0


# ---------------------------------------------------------------- the log of another store


def test_a_wal_of_another_store_is_noticed_by_name(project: Project) -> None:
    """Both stores are of this version, and the other one's process was killed after many commits."""
    path = project.folder / STORE
    before = path.read_bytes()
    other = project.folder / "elsewhere/runs/calls.sqlite"
    other.parent.mkdir(parents=True)
    shutil.copy(path, other)
    db = sqlite3.connect(other, isolation_level=None)
    assert db.execute("PRAGMA application_id").fetchone()[0] > 0
    db.execute("PRAGMA application_id=12345")
    shutil.copy(f"{other}-wal", f"{path}-wal")
    db.close()
    for command in (["run", "echo.yaml"], ["plan", "echo.yaml"], ["cache", "verify"], ["cache", "prune", "--run", "x"]):
        done = rlaif(project.folder, *command)
        assert done.code == 1 and one_sentence(done) and "'calls.sqlite-wal' beside it is another store's" in done.err
    assert path.read_bytes() == before
    path.with_name(f"{path.name}-wal").unlink()
    assert rlaif(project.folder, "run", "echo.yaml").code == 0 and calls(project) == 0


def test_each_store_has_an_id_of_its_own_and_its_log_says_so(project: Project) -> None:
    path = project.folder / STORE
    other = CallStore(project.folder / "other.sqlite")
    store = CallStore(path)
    assert 0 < store._id != other._id > 0
    other.close()
    for number in range(3):  # a commit without any other change of the first page
        store._commit([stores._Batch([(f"k{number}", "m", "r", 1.0, 1, 1, b"", b"")], [], [], {}, None)])  # type: ignore[arg-type]
        log = path.with_name(f"{path.name}-wal")
        assert stores._id_in_log(log) == store._id.to_bytes(4, "big")
    store.close()


def test_a_store_of_before_the_ids_is_used_as_it_is(project: Project) -> None:
    sql("PRAGMA application_id=0")(project.folder / STORE)
    assert rlaif(project.folder, "run", "echo.yaml").code == 0 and calls(project) == 0


# ---------------------------------------------------------------- the budget

PRICED = [f"models.{name}.price={{prompt: 1000, completion: 1000}}" for name in ("one", "two", "judge")]


def spent(project: Project, *overrides: str) -> float:
    """What a start with these overrides found to be spent, in the manifest's cost and the store's tokens together."""
    manifest = json.loads((project.folder / "runs/echo/manifest.json").read_text())
    return sum(read + written for read, written in manifest["paid"].values()) * 1000 / 1e6


def pruned(project: Project) -> None:
    assert rlaif(project.folder, "cache", "prune", "--older-than", "0").code == 0


def pruned_by_run(project: Project) -> None:
    assert rlaif(project.folder, "cache", "prune", "--run", "echo").code == 0


def without_folder(project: Project) -> None:
    shutil.rmtree(project.folder / "runs/echo")
    pruned(project)


def without_store(project: Project) -> None:
    (project.folder / STORE).unlink()


def damaged(project: Project) -> None:
    answer([])(project.folder / STORE)


BETWEEN = {
    "cache prune by age": pruned,
    "cache prune by run": pruned_by_run,
    "cache prune, and the run folder deleted": without_folder,
    "the store deleted": without_store,
    "every answer damaged": damaged,
}


@pytest.mark.parametrize("between", BETWEEN)
def test_spent_is_spent(between: str, project: Project) -> None:
    """A budget that the first start spends by three quarters leaves a second one, which repeats it, a quarter."""
    (project.folder / STORE).unlink()
    shutil.rmtree(project.folder / "runs/echo")
    first = rlaif(project.folder, "run", "echo.yaml", "budget=1000", *PRICED)
    assert first.code == 0, first
    paid, per_start = spent(project), calls(project)
    budget = f"budget={paid * 4 / 3:.4f}"
    BETWEEN[between](project)
    for _ in range(2):
        done = rlaif(project.folder, "run", "echo.yaml", budget, *PRICED)
        assert done.code == 1 and "the budget of" in done.out + done.err, done
    assert calls(project) < 2 * per_start
    assert spent(project) <= paid * 4 / 3 + 0.001


def test_a_folder_of_the_same_name_shares_the_budget(project: Project) -> None:
    (project.folder / STORE).unlink()
    assert rlaif(project.folder, "run", "echo.yaml", "budget=1000", *PRICED, "--out", "runs/a").code == 0
    manifest = json.loads((project.folder / "runs/a/manifest.json").read_text())
    paid = sum(read + written for read, written in manifest["paid"].values()) * 1000 / 1e6
    pruned(project)
    again = rlaif(project.folder, "run", "echo.yaml", f"budget={paid:.4f}", *PRICED, "--out", "runs/b")
    assert again.code == 1 and "the budget of" in again.out + again.err


@pytest.mark.parametrize(
    "paid", [[], {"m": 5}, {"m": [1]}, {"m": [-9, -9]}, {"m": ["a", "b"]}, {"m": [1e9, True]}, {"": [None, None]}]
)
def test_what_a_manifest_says_was_paid_is_checked(paid: Any, project: Project) -> None:
    file = project.folder / "runs/echo/manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"paid": paid, "prices": {"m": {"prompt": "x"}}}))
    done = rlaif(project.folder, "run", "echo.yaml", "budget=1000", *PRICED)
    assert not raw(done) and (done.code == 0 or one_sentence(done)), done


# ---------------------------------------------------------------- what the person is told


def test_verify_says_what_to_do(project: Project) -> None:
    answer({"text": 7})(project.folder / STORE)
    done = rlaif(project.folder, "cache", "verify")
    assert done.code == 1 and "or run the pipeline again: it repeats the calls that cannot be read" in done.err


def test_pruning_says_what_it_removed_and_keeps_what_was_spent(project: Project) -> None:
    store = CallStore(project.folder / STORE)
    before = store.spent("echo")
    store.close()
    done = rlaif(project.folder, "cache", "prune", "--older-than", "0")
    assert "18 calls removed, 0 left" in done.out
    store = CallStore(project.folder / STORE, read_only=True)
    assert store.spent("echo") == before and len(store) == 0
    store.close()
    assert upkeep.ACTIONS == ("show", "verify", "prune", "clear")  # the last removes no call: see test_tokenizing
