"""Token ids of a data set: the same on one core and on several, and kept for the next training or check."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from test_run import Cli, run_cli  # noqa: F401 - the fixture
from test_train import PAIRS, settings_of
from test_train_tokens import chat, template
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlaif.engines.chat import Chat
from rlaif.errors import InputError
from rlaif.pipeline.folder import REFERENCES, TOKENS
from rlaif.records import Message
from rlaif.train import demonstrations, groups, pairs, rollout, tokenizing
from rlaif.train.check import check
from rlaif.train.examples import Demonstration, PreferencePair, PromptOnly
from rlaif.train.tokenizing import CHUNK
from rlaif.train.tokens import Counts, Talk


def talk(number: int, turns: Any = "last", role: Any = "user") -> Talk:
    return Talk((Message(role=role, content=f"what is {number}?"), Message(role="assistant", content="ok")), turns)


STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}" + template("tiny")
TEXT = Talk((Message(role="assistant", content="plain"),), "text")
ROWS = [TEXT, *(talk(number, turns) for number in range(300) for turns in ("last", "all"))]  # more than one chunk


@contextmanager
def encodings_counted() -> Iterator[list[str]]:
    """The texts that a tokenizer gets in lists, as those of rows come; the others are probes of the chat."""
    encoded: list[str] = []
    plain = PreTrainedTokenizerBase.__call__

    def counted(self: Any, text: Any = None, *arguments: Any, **named: Any) -> Any:
        encoded.extend(text if isinstance(text, list) and text != ["a"] else ())
        return plain(self, text, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedTokenizerBase, "__call__", counted)
        yield encoded


def read(model: Chat, rows: list[Talk], kept: Path | None = None, processes: int | None = None) -> Iterator[Any]:
    return tokenizing.read(model, enumerate(rows, 1), lambda row: [row], kept, processes)


def children() -> set[str]:
    """The processes that this one has started and not yet waited for."""
    return {pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------- processes


def test_two_processes_make_the_tokens_of_one_and_name_the_same_row(random_model: Path, tmp_path: Path) -> None:
    assert len(ROWS) > CHUNK
    strict = chat(random_model, STRICT)
    rows = [*ROWS, talk(7, role="system"), *ROWS[:3]]
    alone, before = [], children()
    with pytest.raises(InputError, match=rf"row {len(ROWS) + 1}, which begins 'what is 7") as refused:
        alone.extend(read(strict, rows, processes=1))
    assert [row for _, row, _ in alone] == rows[: len(alone)]
    shared = []
    with encodings_counted() as encoded, pytest.raises(InputError) as again:
        for row in read(strict, rows, tmp_path, 2):
            shared.append(row)
            assert len(shared) > 1 or children() > before
    assert shared == alone and str(again.value) == str(refused.value)
    assert not encoded and children() <= before
    assert len(files_of(tmp_path)) == 1  # of the chunk that was not refused


def test_a_process_that_cannot_be_started_leaves_its_rows_to_this_one(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = chat(random_model, "tiny")
    whole = list(read(tiny, ROWS[:9], processes=1))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert list(read(tiny, ROWS[:9], processes=2)) == whole


def test_what_breaks_off_the_rows_is_told_after_those_before_it(random_model: Path) -> None:
    given = [Demonstration(talk(1).messages), Demonstration(talk(1, role="system").messages), Demonstration(())]
    strict = chat(random_model, STRICT)
    with pytest.raises(InputError, match="row 2"):
        demonstrations.tokenize(strict, given, 100)
    with pytest.raises(InputError, match="conversation 2 does not end"):
        demonstrations.tokenize(strict, [given[0], given[2]], 100)


# ---------------------------------------------------------------- kept


def test_other_losses_lengths_and_checks_read_what_one_training_kept(random_model: Path, tmp_path: Path) -> None:
    tiny = chat(random_model, "tiny")
    fresh = {length: pairs.tokenize(tiny, PAIRS, length)[0] for length in (1024, 22)}
    assert fresh[1024] != fresh[22]
    assert pairs.tokenize(tiny, PAIRS, 1024, kept=tmp_path)[0] == fresh[1024]
    with encodings_counted() as encoded:
        padded = chat(random_model, "tiny")
        padded.tokenizer.pad_token = padded.tokenizer.eos_token
        padded.tokenizer(["longer", "a"], padding=True, truncation=True, max_length=4)
        encoded.clear()
        for length, columns in fresh.items():
            assert pairs.tokenize(padded, PAIRS, length, kept=tmp_path)[0] == columns
        grouped = groups.tokenize(padded, groups.of_pairs(enumerate(PAIRS, 1)), 1024, Counts(), kept=tmp_path)
        assert grouped[0].sequences[0] == fresh[1024]["prompt_ids"][0] + fresh[1024]["chosen_ids"][0]
        assert check(settings_of("dpo"), random_model, PAIRS, template("tiny"), tmp_path).kept == len(PAIRS)
        assert not encoded
    assert len(files_of(tmp_path)) == 1


def test_another_row_template_or_tokenizer_is_tokenized_anew(random_model: Path, tmp_path: Path) -> None:
    def encoded(model: Chat, rows: list[PreferencePair]) -> int:
        with encodings_counted() as texts:
            made = pairs.tokenize(model, rows, 1024, kept=tmp_path)
        assert made[0] == pairs.tokenize(model, rows, 1024)[0]
        return len(texts)

    first = encoded(chat(random_model, "tiny"), PAIRS)
    assert first > len(PAIRS) and encoded(chat(random_model, "tiny"), PAIRS) == 0
    other = PreferencePair(PAIRS[0].prompt, "another", PAIRS[0].rejected)
    assert encoded(chat(random_model, "tiny"), [other, *PAIRS[1:]]) == first
    assert encoded(chat(random_model, template("tiny").replace("'|> '", "'|>: '")), PAIRS) == first
    more = AutoTokenizer.from_pretrained(random_model)
    more.add_tokens(["what is"])
    more.save_pretrained(tmp_path / "more")
    assert encoded(chat(tmp_path / "more", "tiny"), PAIRS) == first
    assert encoded(chat(random_model, "tiny"), PAIRS) == 0


def test_prompts_of_ppo_are_kept_too(random_model: Path, tmp_path: Path) -> None:
    tiny, given = chat(random_model, "tiny"), [PromptOnly(pair.prompt) for pair in PAIRS]
    first, _ = rollout.tokenize(tiny, given, 100, tmp_path)
    with encodings_counted() as encoded:
        again, _ = rollout.tokenize(tiny, given, 100, tmp_path)
    assert again == first and not encoded


def test_a_damaged_file_is_made_anew(random_model: Path, tmp_path: Path) -> None:
    tiny = chat(random_model, "tiny")
    whole = list(read(tiny, ROWS[:9], tmp_path))
    (file,) = files_of(tmp_path)
    good = file.read_bytes()
    foreign = tokenizing.pack([[[1, 2]] for _ in range(9)])  # of other talks
    for bad in (good[: len(good) // 2], b"", b"no parquet", foreign):
        file.write_bytes(bad)
        assert list(read(tiny, ROWS[:9], tmp_path)) == whole
        assert file.read_bytes() == good
    for place in range(0, len(good), 19):
        flipped = bytearray(good)
        flipped[place] ^= 1
        file.write_bytes(flipped)
        assert list(read(tiny, ROWS[:9], tmp_path)) == whole, place
    file.write_bytes(good)
    with encodings_counted() as encoded:
        assert list(read(tiny, ROWS[:9], tmp_path)) == whole and not encoded


def test_a_folder_that_cannot_be_written_costs_only_time(random_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    tiny = chat(random_model, "tiny")
    assert list(read(tiny, ROWS[:9], tmp_path / "file")) == list(read(tiny, ROWS[:9]))


def test_above_its_size_a_folder_loses_what_was_not_read_for_longest(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = chat(random_model, "tiny")
    list(read(tiny, ROWS[:9], tmp_path))
    (old,) = files_of(tmp_path)
    monkeypatch.setattr(tokenizing, "LARGEST", old.stat().st_size)
    list(read(tiny, ROWS[1:3], tmp_path))
    (new,) = files_of(tmp_path)
    assert new != old


def test_clear_removes_what_trainings_keep_and_nothing_else(
    run_cli: Cli,  # noqa: F811
    random_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    list(read(chat(random_model, "tiny"), ROWS[:9], TOKENS))
    own = REFERENCES / ("ab" * 16) / "notes.txt"
    own.parent.mkdir(parents=True)
    own.write_text("not a training's")
    assert "MB that trainings keep in runs/.tokens; `rlaif cache clear` removes it" in run_cli("cache")[1]
    assert "all calls are kept" in run_cli("cache", "clear")[1]
    assert files_of(tmp_path / "runs") == [own.resolve()]
