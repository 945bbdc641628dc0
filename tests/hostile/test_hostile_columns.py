"""Rows and columns that a stranger filled in: read as what they are, dropped and counted, or a sentence."""

from __future__ import annotations

import datetime
import decimal
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from echo import write_project
from inside import rlaif

from rlaif.audits.goldset import read_gold
from rlaif.errors import RlaifError
from rlaif.formats import each_row, read_conversations, read_preferences, read_prompts
from rlaif.formats.columnar import parquet
from rlaif.formats.footer import row_groups
from rlaif.judges.person import read_labels
from rlaif.pipeline.spool import Spool
from rlaif.records import Row

pytestmark = pytest.mark.timeout(60)

WORDS_OF_LIBRARIES = re.compile(
    "Traceback|[Ii]nput should be|Value error|validation error|pydantic|ArrowInvalid|Error: |object at 0x"
)


def said(read: Callable[[Path], object], path: Path, seconds: float = 10) -> str:
    """What a reader says of a file that it refuses: one sentence that names it, in time."""
    started = time.process_time()
    with pytest.raises(RlaifError) as caught:
        read(path)
    assert time.process_time() - started < seconds
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1500 and not WORDS_OF_LIBRARIES.search(message), message
    assert path.name in message
    return message


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def rows_and_drops(path: Path) -> tuple[list[Row], Counter[str]]:
    """The judged rows of a file, kept on disk as a run keeps them, and what was dropped."""
    dropped: Counter[str] = Counter()
    return list(Spool(Row, each_row(path, dropped))), dropped


def judged(path: Path) -> list[Row]:
    return rows_and_drops(path)[0]


# ---------------------------------------------------------------- Parquet

HELLO = pyarrow.array(["hello", "world"])


def column(values: Iterable[object], kind: Any) -> pyarrow.Table:
    return pyarrow.table({"prompt": HELLO, "about": pyarrow.array(values, kind)})


def of_bytes(data: bytes) -> pyarrow.Array:
    """A column that says that it is text and is not."""
    offsets = pyarrow.array([0, 1, len(data)], pyarrow.int32())
    return pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets.buffers()[1], pyarrow.py_buffer(data)])


def nested(levels: int) -> pyarrow.Table:
    value: object = "a"
    kind = pyarrow.string()
    for _ in range(levels):
        value, kind = [value], pyarrow.list_(kind)
    return column([value, value], kind)


PARQUET: dict[str, tuple[pyarrow.Table, str]] = {
    "a date of year 20000": (column([0, 6_585_000], pyarrow.date32()), "row 2: the column 'about' cannot be read: "),
    "a date before Christ": (column([0, -800_000], pyarrow.date32()), "row 2: the column 'about' cannot be read: "),
    "a time stamp of milliseconds far away": (
        column([0, 2**62], pyarrow.timestamp("ms")),
        "row 2: the column 'about' cannot be read: ",
    ),
    "a duration far away": (column([0, 2**62], pyarrow.duration("s")), "row 2: the column 'about' cannot be read: "),
    "invalid UTF-8": (
        pyarrow.table({"prompt": HELLO, "about": of_bytes(b"a\xff\xfe")}),
        "row 2: the column 'about' cannot be read: not UTF-8",
    ),
    "an invalid prompt": (
        pyarrow.table({"prompt": of_bytes(b"\xc0\xaf")}),
        "row 1: the column 'prompt' cannot be read: not UTF-8",
    ),
    "invalid UTF-8 in a list": (
        pyarrow.table(
            {
                "prompt": HELLO,
                "about": pyarrow.ListArray.from_arrays(pyarrow.array([0, 1, 2], pyarrow.int32()), of_bytes(b"a\xff")),
            }
        ),
        "row 2: the column 'about' cannot be read: not UTF-8",
    ),
    "a prompt of bytes": (pyarrow.table({"prompt": pyarrow.array([b"a"])}), "row 1: `prompt` holds bytes"),
    "a prompt of dates": (
        pyarrow.table({"prompt": pyarrow.array([datetime.date(2026, 1, 1)])}),
        "row 1: `prompt` holds date",
    ),
    "a prompt of decimals": (
        pyarrow.table({"prompt": pyarrow.array([decimal.Decimal("1.5")])}),
        "row 1: `prompt` holds Decimal",
    ),
    "a prompt of mappings": (
        pyarrow.table({"prompt": pyarrow.array([[("a", "b")]], pyarrow.map_(pyarrow.string(), pyarrow.string()))}),
        "row 1: `prompt` holds a message with",
    ),
    "messages of numbers": (
        pyarrow.table({"messages": pyarrow.array([[1, 2]])}),
        "row 1: `messages` holds a message with 1",
    ),
    "200 levels": (nested(200), "not readable as Parquet: .*nested"),
    "no rows": (pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), "there are no rows"),
    "no columns": (pyarrow.table({}), "there are no rows"),
    "nothing in them": (pyarrow.table({"prompt": pyarrow.nulls(3)}), r"no row could be used \(3 empty prompt\)"),
    "a column named twice": (
        pyarrow.Table.from_arrays([HELLO, HELLO], ["prompt", "prompt"]),
        "two columns are called 'prompt'",
    ),
    "a field named twice": (
        pyarrow.table({"prompt": HELLO, "about": pyarrow.StructArray.from_arrays([HELLO, HELLO], ["a", "a"])}),
        "row 1: the column 'about' cannot be read: .*duplicate field names",
    ),
    "a column without a name": (pyarrow.Table.from_arrays([HELLO], [""]), "no known shape has the columns ``"),
    "a column named in half a megabyte": (
        pyarrow.Table.from_arrays([HELLO], ["x" * 500_000]),
        r"no known shape has the columns `x{40}`",
    ),
}


@pytest.mark.parametrize("what", PARQUET)
def test_a_column_that_python_cannot_hold(what: str, tmp_path: Path) -> None:
    table, words = PARQUET[what]
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    message = said(read_prompts, tmp_path / "x.parquet")
    assert re.search(words, message), message


READABLE: dict[str, pyarrow.Table] = {
    "30 levels": nested(30),
    "decimals": column([decimal.Decimal("1." + "1" * 30)] * 2, pyarrow.decimal256(60, 30)),
    "durations": column([datetime.timedelta(days=1)] * 2, pyarrow.duration("us")),
    "maps": column([[("a", 1)], [("a", 1), ("a", 2)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    "floats that are no numbers": column([float("nan"), float("inf")], pyarrow.float64()),
    "half floats": column([1.5, 2.5], pyarrow.float16()),
    "times": column([datetime.time(1, 2, 3)] * 2, pyarrow.time64("us")),
    "bytes": column([b"\xff", b"\x00"], pyarrow.binary()),
    "fixed bytes": column([b"ab", b"cd"], pyarrow.binary(2)),
    "a dictionary": column(["a", "a"], pyarrow.string()).set_column(0, "prompt", HELLO.dictionary_encode()),
    "a UUID": column([b"0" * 16] * 2, pyarrow.uuid()),
    "JSON": column(['{"a": 1}', "not JSON"], pyarrow.json_()),
    "large text": pyarrow.table({"prompt": HELLO.cast(pyarrow.large_string())}),
    "text views": pyarrow.table({"prompt": HELLO.cast(pyarrow.string_view())}),
    "large lists": column([["a"], []], pyarrow.large_list(pyarrow.string())),
    "lists of one length": column([[1, 2], [3, 4]], pyarrow.list_(pyarrow.int8(), 2)),
    "nothing": column([None, None], pyarrow.null()),
}


@pytest.mark.parametrize("what", READABLE)
def test_a_column_of_any_type_that_is_not_used_is_read_over(what: str, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(READABLE[what], tmp_path / "x.parquet")
    assert [prompt.text for prompt in read_prompts(tmp_path / "x.parquet").items] == ["hello", "world"]


def large(about: object, rows: int = 2) -> pyarrow.Table:
    """Prompts beside a column that is large."""
    return pyarrow.table({"prompt": [f"prompt {i}" for i in range(rows)], "about": about})


BESIDE: dict[str, tuple[Callable[[], pyarrow.Table], dict[str, Any]]] = {
    "a picture of 17 MB": (lambda: large([b"\xff" * 17_000_000, b""]), {}),
    "a picture with its path": (lambda: large([{"bytes": b"\xff" * 17_000_000, "path": "x.png"}] * 2), {}),
    "pictures in a list": (lambda: large([[b"\xff" * 17_000_000], []]), {}),
    "a text of 17 MB": (lambda: large(["a" * 17_000_000, ""]), {}),
    "a text of 17 MB without a dictionary": (lambda: large(["a" * 17_000_000, ""]), {"use_dictionary": False}),
    "a text of 17 MB in a list": (lambda: large([["a" * 17_000_000], []]), {}),
    "an embedding of 200,000 numbers": (lambda: large([[0.5] * 200_000] * 2), {}),
    "one text of 4 KB in each of 70,000 rows": (
        lambda: large(["You are helpful. " * 240] * 70_000, 70_000),
        {"use_dictionary": False, "compression": "zstd"},
    ),
}


@pytest.mark.parametrize("what", BESIDE)
def test_a_large_column_that_is_not_used_is_no_reason_to_refuse_the_others(what: str, tmp_path: Path) -> None:
    make, how = BESIDE[what]
    table = make()
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet", **how)
    rows = [row["prompt"] for _, row in parquet([tmp_path / "x.parquet"])]
    assert rows == [f"prompt {i}" for i in range(table.num_rows)]


@pytest.mark.parametrize("name", ["prompt", "messages", "instruction", "question"])
@pytest.mark.parametrize("how", [{}, {"use_dictionary": False}], ids=["a dictionary", "none"])
def test_a_text_that_is_too_large_and_used_is_named(how: dict[str, Any], name: str, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({name: ["a" * 17_000_000]}), tmp_path / "x.parquet", **how)
    message = said(read_prompts, tmp_path / "x.parquet")
    assert f"row 1: `{name}` holds a text of 17,000,0" in message and "more than 16,000,000" in message


@pytest.mark.parametrize("dictionary", [False, pytest.param(True, marks=pytest.mark.lab)])
def test_many_votes_over_few_prompts_are_read(dictionary: bool, tmp_path: Path) -> None:
    count = 1_100_000
    prompts = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([i * 700 // count for i in range(count)], pyarrow.int32()), [f"prompt {i}" for i in range(700)]
    )
    table = pyarrow.table({"prompt": prompts if dictionary else prompts.cast(pyarrow.string())})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").stat().st_size < count / 8
    assert sum(1 for _ in parquet([tmp_path / "x.parquet"])) == count


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
def test_the_largest_value_of_a_dictionary_is_found(compression: str, tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": ["a" * 50_000] + ["b" * i for i in range(1000)]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet", compression=compression)
    with (tmp_path / "x.parquet").open("rb") as file:
        (group,) = row_groups(file.fileno())
    assert group.chunks[0].repeated == 50_000


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("checksum", [False, True], ids=["plain", "with checksums"])
def test_pages_of_any_version_are_read(checksum: bool, version: str, tmp_path: Path) -> None:
    texts = [f"{i} {'x' * (i % 300)}" for i in range(20_000)]
    how: dict[str, Any] = {"write_page_checksum": checksum, "data_page_version": version, "data_page_size": 10_000}
    table = pyarrow.table({"prompt": texts, "turns": [[text, "b"] for text in texts]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet", dictionary_pagesize_limit=50_000, **how)
    assert [row for _, row in parquet([tmp_path / "x.parquet"])] == table.to_pylist()


def test_values_that_follow_each_other_are_read_many_at_a_time(tmp_path: Path) -> None:
    """Each can be the one before it, but not more than its page."""
    texts = [f"{i} {'x' * 2000}" for i in range(10_000)]
    how: dict[str, Any] = {"use_dictionary": False, "column_encoding": {"prompt": "DELTA_BYTE_ARRAY"}}
    pyarrow.parquet.write_table(pyarrow.table({"prompt": texts}), tmp_path / "x.parquet", **how)
    with (tmp_path / "x.parquet").open("rb") as file:
        (group,) = row_groups(file.fileno())
    assert group.chunks[0].unpacked > 5 * group.chunks[0].repeated > 10_000
    assert [row["prompt"] for _, row in parquet([tmp_path / "x.parquet"])] == texts


def damaged(path: Path, damage: Callable[[bytes], bytes]) -> Path:
    table = pyarrow.table({"prompt": [f"prompt {i}" for i in range(300)], "n": list(range(300))})
    pyarrow.parquet.write_table(table, path, compression="zstd")
    path.write_bytes(damage(path.read_bytes()))
    return path


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "only its marks": lambda data: b"PAR1PAR1",
    "cut in its footer": lambda data: data[:-20],
    "cut in the middle": lambda data: data[: len(data) // 2],
    "its begin cut": lambda data: data[100:],
    "a footer longer than it": lambda data: data[:-8] + (2**31 - 1).to_bytes(4, "little") + b"PAR1",
    "a footer of nothing": lambda data: data[:-8] + bytes(4) + b"PAR1",
    "a footer of zeros": lambda data: data[:-200] + bytes(192) + data[-8:],
    "a footer of noise": lambda data: data[:-200] + os.urandom(192) + data[-8:],
    "zeros in its pages": lambda data: data[:200] + bytes(500) + data[700:],
    "encrypted": lambda data: data[:-4] + b"PARE",
    "a pickle": lambda data: b"cos\nsystem\n(S'touch PWNED'\ntR.",
    "JSON": lambda data: b'{"prompt": "hello"}\n',
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_parquet_file_is_named(what: str, tmp_path: Path) -> None:
    message = said(read_prompts, damaged(tmp_path / "x.parquet", DAMAGE[what]))
    assert "x.parquet: not readable as Parquet: " in message
    assert not Path("PWNED").exists()


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_is_read_or_named(seed: int, tmp_path: Path) -> None:
    """One of each few bits: in its pages, its page headers and its footer."""
    whole = damaged(tmp_path / "x.parquet", lambda data: data).read_bytes()
    for at in range(seed * 7, len(whole), len(whole) // 10):
        (tmp_path / "x.parquet").write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            read_prompts(tmp_path / "x.parquet")
        except RlaifError as error:
            assert not WORDS_OF_LIBRARIES.search(str(error)) and "\n" not in str(error)


@pytest.mark.parametrize("step", range(4))
def test_a_footer_with_any_byte_changed_is_read_or_named(step: int, tmp_path: Path) -> None:
    """The library ends the process over some of these where it is asked for what the footer says of a column."""
    table = pyarrow.table({"prompt": ["a", "b"], "messages": [[{"role": "user", "content": "x"}]] * 2})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    whole = (tmp_path / "x.parquet").read_bytes()
    begins = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for at in range(begins + step, len(whole), 16):
        (tmp_path / "x.parquet").write_bytes(whole[:at] + bytes([(whole[at] + 1) % 256]) + whole[at + 1 :])
        try:
            read_prompts(tmp_path / "x.parquet")
        except RlaifError as error:
            assert not WORDS_OF_LIBRARIES.search(str(error)) and "\n" not in str(error)


def test_the_footer_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"prompt {i}", "n": i, "messages": [{"role": "user", "content": "x"}] * (i % 3)} for i in range(500)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=200)
    theirs = pyarrow.parquet.ParquetFile(tmp_path / "x.parquet").metadata
    with (tmp_path / "x.parquet").open("rb") as file:
        ours = list(row_groups(file.fileno()))
    assert [group.rows for group in ours] == [200, 200, 100]
    for number, group in enumerate(ours):
        chunks = map(theirs.row_group(number).column, range(theirs.num_columns))
        for chunk, theirs_of_it in zip(group.chunks, chunks, strict=True):
            assert chunk.name == theirs_of_it.path_in_schema and chunk.values == theirs_of_it.num_values
            assert 0 < theirs_of_it.total_uncompressed_size - chunk.unpacked < 300  # the headers of its pages
            assert chunk.packed == theirs_of_it.total_compressed_size
            assert (chunk.repeated > 1) == (theirs_of_it.physical_type == "BYTE_ARRAY")


# ---------------------------------------------------------------- lines of JSON

LINES: dict[str, tuple[str | bytes, str]] = {
    "a number of 5,000 digits": (f'{{"prompt": {"1" * 5000}}}', r"x\.jsonl:2: not valid JSON: .*4300 digits"),
    "a list": ("[1]", r"x\.jsonl:2: expected an object, found list"),
    "half an object": ('{"prompt": "a"', r"x\.jsonl:2: not valid JSON: Expecting ',' delimiter at column 1\d"),
    "two objects": ('{"prompt": "a"} {"prompt": "b"}', r"x\.jsonl:2: not valid JSON: Extra data at column 17"),
    "100,000 brackets": ('{"prompt": ' + "[" * 100_000, r"x\.jsonl:2: not valid JSON: .*recursion"),
    "NUL": (b'{"prompt": "a\0b"}', r"x\.jsonl:2: not valid JSON: Invalid control character"),
    "invalid UTF-8": (b'{"prompt": "\xff"}', "not UTF-8 text"),
    "surrogates as bytes": (b'{"prompt": "\xed\xa0\x80"}', "not UTF-8 text"),
    "a prompt without end": ('{"prompt": 1e400}', r"x\.jsonl:2: `prompt` holds float"),
    "a prompt that is an object": ('{"prompt": {"text": "a"}}', r"x\.jsonl:2: `prompt` holds keys and values"),
    "a message that is a text": ('{"messages": ["a"]}', r"x\.jsonl:2: `messages` holds a message with 'a'"),
    "a message without a role": (
        '{"messages": [{"content": "a"}]}',
        r"x\.jsonl:2: `messages` holds a message with `content`",
    ),
    "a system that is a list": ('{"prompt": "a", "system": [1]}', r"x\.jsonl:2: `system` holds a list"),
    "an instruction that is a list": ('{"instruction": ["a"]}', r"x\.jsonl:2: `instruction` holds a list"),
    "instances that are numbers": (
        '{"instruction": "a", "instances": [1]}',
        r"x\.jsonl:2: `instances` holds something",
    ),
    "checks of text": ('{"prompt": "a", "checks": "x"}', r"x\.jsonl:2: `checks` is no list of checks"),
    "checks of numbers": ('{"prompt": "a", "checks": [1]}', r"x\.jsonl:2: `checks` is no list of checks"),
    "checks of NaN": (
        '{"prompt": "a", "checks": [{"length": {"max_words": NaN}}]}',
        r"x\.jsonl:2: `checks` is no list of checks",
    ),
    "checks of half a pair": (
        '{"prompt": "a", "checks": [{"regex": {"pattern": "\\ud800"}}]}',
        r"x\.jsonl:2: `checks` is no list of checks",
    ),
    "kwargs of NaN": (
        '{"prompt": "a", "instruction_id_list": ["x"], "kwargs": [{"a": Infinity}]}',
        r"x\.jsonl:2: `kwargs` does not fit",
    ),
    "kwargs of text": (
        '{"prompt": "a", "instruction_id_list": ["x"], "kwargs": "[[["}',
        r"x\.jsonl:2: `kwargs` does not fit",
    ),
    "a thread without a root": (
        '{"text": "a", "role": "prompter", "message_id": "1", "parent_id": "1"}\n'
        '{"text": "a", "role": "prompter", "message_id": "2", "parent_id": "1"}',
        r"x\.jsonl:3: its thread does not lead",
    ),
}


@pytest.mark.parametrize("what", LINES)
def test_a_line_that_is_no_row_is_named(what: str, tmp_path: Path) -> None:
    line, words = LINES[what]
    data = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "x.jsonl").write_bytes(b'{"prompt": "fine"}\n' + data + b"\n")
    message = said(read_prompts, tmp_path / "x.jsonl")
    assert re.search(words, message), message


def test_a_thread_of_thousands_of_turns_is_refused_in_time(tmp_path: Path) -> None:
    chain = [
        {
            "text": f"turn {i}",
            "role": "prompter" if i % 2 == 0 else "assistant",
            "message_id": str(i),
            "parent_id": None if i == 0 else str(min(i - 1, 3000)),
        }
        for i in range(6000)
    ]
    assert "its thread has more than 1,000 turns" in said(read_prompts, jsonl(tmp_path / "x.jsonl", *chain))


DROPPED: dict[str, tuple[str, str]] = {
    "half a surrogate pair": ('{"prompt": "a \\ud800"}', "not valid Unicode"),
    "half a pair in a reference": ('{"prompt": "a", "reference": "\\udfff"}', "not valid Unicode"),
    "half a pair in a list of references": ('{"prompt": "a", "reference": ["b", "\\udfff"]}', "not valid Unicode"),
    "half a pair in an answer": ('{"question": "a", "answer": "\\ud83d"}', "not valid Unicode"),
    "a turn by nobody": ('{"messages": [{"role": null, "content": "a"}]}', "a turn by 'None'"),
    "a turn by a list": ('{"messages": [{"role": ["user"], "content": "a"}]}', "a turn by"),
    "a turn without end": ('{"messages": [{"role": "user", "content": 1e400}]}', "a turn that is not text"),
    "a turn of parts that are none": ('{"messages": [{"role": "user", "content": [[]]}]}', "a turn that is not text"),
    "a prompt of NaN": ('{"prompt": NaN}', "empty prompt"),
    "a turn of nothing": ('{"messages": [{"role": "user", "content": null}]}', "a turn that is not text"),
    "no turns": ('{"turns": "text"}', "empty prompt"),
    "an empty list": ('{"messages": []}', "empty prompt"),
    "white space": ('{"prompt": "\\u2003\\n\\t"}', "empty prompt"),
}


@pytest.mark.parametrize("what", DROPPED)
def test_a_row_that_cannot_be_used_is_dropped_and_counted(what: str, tmp_path: Path) -> None:
    line, reason = DROPPED[what]
    read = read_prompts(jsonl(tmp_path / "x.jsonl", {"prompt": "fine"}, line))
    assert [prompt.text for prompt in read.items] == ["fine"]
    assert sum(read.dropped.values()) == 1 and reason in next(iter(read.dropped))


ODD_ROWS: dict[str, str] = {
    "half a pair in its source": '{"prompt": "a", "source": "\\ud800"}',
    "NUL in its text": '{"prompt": "a\\u0000b", "source": "c\\u0000"}',
    "an id that is true": '{"prompt": "a", "id": true}',
    "an id of NaN": '{"prompt": "a", "id": NaN}',
    "a key of half a pair": '{"prompt": "a", "\\ud800": 1}',
    "a number beyond floats": '{"prompt": "a", "n": 1e400, "m": -1e400}',
    "an integer of 4,000 digits": f'{{"prompt": "a", "n": {"1" * 4000}}}',
    "a source that is a list": '{"prompt": "a", "source": ["b"]}',
    "a reference of NaN": '{"prompt": "a", "reference": NaN}',
    "a reference of objects": '{"prompt": "a", "reference": [{"b": [1]}]}',
    "10 MB": json.dumps({"prompt": "a" + "x" * 10_000_000}),
    "controls": '{"prompt": "a\\u001b]52;c;x\\u0007\\u009b\\u202e"}',
    "900 brackets beside it": '{"prompt": "a", "about": ' + "[" * 700 + "]" * 700 + "}",
}


@pytest.mark.parametrize("what", ODD_ROWS)
def test_an_odd_row_is_read_and_kept_as_a_run_keeps_it(what: str, tmp_path: Path) -> None:
    read = read_prompts(jsonl(tmp_path / "x.jsonl", ODD_ROWS[what]))
    (prompt,) = read.items
    assert prompt.text.startswith("a")
    assert [one.id for one in Spool(type(prompt), [prompt])] == [prompt.id]
    prompt.model_dump_json().encode()


# ---------------------------------------------------------------- judged rows, with values of every wrong type

WRONG: dict[str, object] = {
    "null": None,
    "true": True,
    "a number": 3,
    "a number beyond floats": 10**400,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "text": "text",
    "an empty text": "",
    "half a pair": "\ud800",
    "NUL": "\0",
    "a list": ["a"],
    "an empty list": [],
    "a list of lists": [[1], [2]],
    "an object": {"a": 1},
    "an empty object": {},
    "a list of nulls": [None, None],
}


def rated(**how: object) -> dict[str, object]:
    noted = {"helpfulness": {"Rating": "4", "Rationale": "fine", "Type": ["1"], "Rationale For Rating": "so"}}
    return {"model": "m", "response": "hello", "annotations": noted, "critique": "fine", "overall_score": 7.0} | how


ULTRAFEEDBACK = {
    "instruction": "say hello",
    "models": ["m", "n"],
    "completions": [rated(), rated(response="bye", model="n")],
}
OURS = {
    "prompt": "say hello",
    "completions": [
        {
            "model": "m",
            "text": "hello",
            "call": "c",
            "annotations": [
                {"aspect": "a", "Rating": 4, "types": ["1"], "judge": "j", "call": "d", "position": 1, "problem": None}
            ],
            "overall_score": 4,
            "overall_judge": "j",
            "overall_problem": None,
        }
    ],
}
LISTED = {"prompt": "say hello", "completions": ["a", "b"], "models": ["m", "n"], "scores": [1, 2], "judge": "j"}
RANKED = {
    "prompt": "say hello",
    "answers": [{"text": "a", "rank": 1, "model": "m"}, {"text": "b", "rank": 2}],
    "principle": "p",
}
STATED = {
    "prompt": "q",
    "chosen": "a",
    "rejected": "b",
    "score_chosen": 2,
    "score_rejected": 1,
    "probability": 0.9,
    "chosen_model": "m",
    "chosen_call": "c",
    "principle": "p",
}
PKU = {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1}
ARENA = {
    "prompt": "q",
    "response_a": "a",
    "response_b": "b",
    "model_a": "m",
    "model_b": "n",
    "winner_model_a": 1,
    "winner_model_b": 0,
    "winner_tie": 0,
}
ALPACA = {"instruction": "q", "output_1": "a", "output_2": "b", "generator_1": "m", "preference": 1.2}
PANDA = {
    "instruction": "q",
    "input": "",
    "response1": "a",
    "response2": "b",
    "annotator1": 1,
    "annotator2": 2,
    "cmp_key": "m_n",
}
CHAT = {
    "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    "model": "m",
    "call": "c",
}
HELPSTEER = {"prompt": "q", "response": "a", "helpfulness": 3, "correctness": 4}


def places(row: object, at: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
    """Every place in a row, at any depth."""
    items = row.items() if isinstance(row, dict) else enumerate(row) if isinstance(row, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from places(value, (*at, key))


def put(row: Any, at: tuple[Any, ...], value: object) -> Any:
    if not at:
        return value
    copy = dict(row) if isinstance(row, dict) else list(row)
    copy[at[0]] = put(row[at[0]], at[1:], value)
    return copy


SHAPES: dict[str, dict[str, Any]] = {
    "UltraFeedback": ULTRAFEEDBACK,
    "ours": OURS,
    "a list": LISTED,
    "a ranking": RANKED,
    "chosen and rejected": STATED,
    "PKU": PKU,
    "the Arena": ARENA,
    "AlpacaEval": ALPACA,
    "PandaLM": PANDA,
    "a conversation": CHAT,
    "HelpSteer": HELPSTEER,
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_judged_row_with_a_value_of_another_type_at_every_place(shape: str, what: str, tmp_path: Path) -> None:
    """Read and kept, dropped and counted, or one sentence; and a good row behind it is read all the same."""
    row = SHAPES[shape]
    for at in places(row):
        path = jsonl(
            tmp_path / "x.jsonl", put(row, at, WRONG[what]), {"prompt": "fine", "chosen": "a", "rejected": "b"}
        )
        try:
            rows, dropped = rows_and_drops(path)
        except RlaifError as error:
            message = str(error)
            assert re.search(r"x\.jsonl:1: ", message), (at, message)
            assert "\n" not in message and len(message) < 1500 and not WORDS_OF_LIBRARIES.search(message), (at, message)
        else:
            assert len(rows) + sum(dropped.values()) == 2, at
            for one in rows:
                one.model_dump_json().encode()
                one.score(0, {"helpfulness": 1.0, "a": 1.0})
        for read in (read_prompts, read_conversations, read_preferences):
            try:
                read(path)
            except RlaifError as error:
                assert not WORDS_OF_LIBRARIES.search(str(error)), (at, str(error))


def test_an_integer_beyond_floats_is_no_score_and_no_rating(tmp_path: Path) -> None:
    huge = put(OURS, ("completions", 0, "annotations", 0, "Rating"), 10**400)
    (row,) = judged(jsonl(tmp_path / "x.jsonl", put(huge, ("completions", 0, "overall_score"), 10**400)))
    assert row.ratings[0].value is None and "no rating" in (row.ratings[0].problem or "")
    assert row.scores[0].value is None and "no number" in (row.scores[0].problem or "")


def test_scores_whose_difference_is_no_number_are_no_scores(tmp_path: Path) -> None:
    row = {"prompt": "q", "completions": ["a", "b", "c"], "scores": [1e308, -1e308, 1e100]}
    (read,) = judged(jsonl(tmp_path / "x.jsonl", row))
    assert [score.value for score in read.scores] == [None, None, 1e100]
    assert "no number: '1e+308'" in (read.scores[0].problem or "")


# ---------------------------------------------------------------- gold pairs and people's labels

PAIR = {"id": "one", "category": "c", "prompt": "What is 2 + 2?", "better": "Four.", "worse": "Five."}
LABEL = {"prompt_id": "p", "a": "x", "b": "y", "verdict": "a", "person": "kim"}
RATING = {"prompt_id": "p", "candidate": "x", "aspect": "a", "rating": 4}
CHECK = {
    "words": [1, 9],
    "contains": ["u"],
    "counts": {"u": 1},
    "arithmetic": {"2 + 2": 4},
    "keys": ["a"],
    "matches": "F.*",
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("kind", ["gold", "pairs", "ratings"])
def test_a_line_of_a_persons_file_with_a_value_of_another_type_at_every_place(
    kind: str, what: str, tmp_path: Path
) -> None:
    row, read = {
        "gold": (PAIR | {"check": CHECK}, read_gold),
        "pairs": (LABEL, read_labels),
        "ratings": (RATING, read_labels),
    }[kind]
    for at in places(row):
        path = jsonl(tmp_path / "x.jsonl", put(row, at, WRONG[what]))
        try:
            read(path)
        except RlaifError as error:
            message = str(error)
            assert "x.jsonl:1: " in message and "\n" not in message, (at, message)
            assert not WORDS_OF_LIBRARIES.search(message), (at, message)


CLAIMS: dict[str, tuple[dict[str, object], str]] = {
    "a pattern that backtracks": ({"matches": "(F|Fo|o|oo|u|r|ur)+x"}, "breaks its `check`"),
    "a pattern that takes for ever": ({"matches": "(a|aa)+$"}, "took more than 1 s to match|does not match"),
    "a pattern that is none": ({"matches": "(?P<"}, "not a regular expression"),
    "a pattern of 20,000 letters": ({"matches": "a" * 20_000}, "more than 10,000 characters"),
    "powers of powers": ({"arithmetic": {"9**9**9**9": 1}}, "is not arithmetic"),
    "a root of what is below zero": ({"arithmetic": {"(-8)**0.5": 1}}, "is not arithmetic"),
    "a call": ({"arithmetic": {"__import__('os').system('touch PWNED')": 1}}, "is not arithmetic"),
    "100,000 signs": ({"arithmetic": {"-" * 100_000 + "1": 1}}, "is not arithmetic of at most 1000 characters"),
    "900 brackets": ({"arithmetic": {"(" * 450 + "1" + ")" * 450: 1}}, "is not arithmetic|is 1, not"),
    "NUL in it": ({"arithmetic": {"1\0": 1}}, "null bytes|is not arithmetic"),
    "5,000 digits": ({"arithmetic": {"1" * 990: 1}}, "is not arithmetic|not 1"),
}


@pytest.mark.parametrize("what", CLAIMS)
def test_the_claim_of_a_gold_pair_ends(what: str, tmp_path: Path) -> None:
    check, words = CLAIMS[what]
    better = "a" * 60 + "b" if "for ever" in what else "Four."
    message = said(read_gold, jsonl(tmp_path / "x.jsonl", PAIR | {"better": better, "check": check}))
    assert re.search(words, message), message
    assert "x.jsonl:1: " in message and not Path("PWNED").exists()


# ---------------------------------------------------------------- the whole command


@pytest.mark.parametrize(
    "line", ['{"prompt": {"a": 5}}', '{"prompt": "a", "checks": [NaN]}', '{"prompt": ' + "1" * 5000 + "}"], ids=range(3)
)
def test_the_command_names_the_line(line: str, tmp_path: Path) -> None:
    write_project(tmp_path, "http://127.0.0.1:9/v1")
    jsonl(tmp_path / "prompts.jsonl", {"prompt": "fine"}, line)
    for command in ("plan", "run"):
        done = rlaif(tmp_path, command, "echo.yaml")
        assert done.code == 2 and "prompts.jsonl:2: " in done.err and not WORDS_OF_LIBRARIES.search(done.err)


JUDGED = """\
name: judged
models:
  one: {engine: openai, model: one, base_url: "http://127.0.0.1:9/v1"}
stages:
  - data: {path: x.jsonl, held_out: keep}
  - pair: {}
"""


@pytest.mark.parametrize("odd", ["\ud800", "\0", "\x1b]52;c;x\x07", "\u202e", "\x9b2J"], ids=ascii)
def test_odd_names_beside_judged_rows_are_run_and_exported(odd: str, tmp_path: Path) -> None:
    """A data file's models, principles and sources go into each row that a run keeps, and out again."""
    named = {"source": odd, "chosen_model": f"m{odd}", "rejected_model": f"n{odd}", "principle": f"p{odd}"}
    rows = [STATED | named | {"prompt": f"q{i}", odd: 1} for i in range(8)]
    jsonl(tmp_path / "x.jsonl", *rows)
    (tmp_path / "judged.yaml").write_text(JUDGED)
    export = ("export", "runs/judged", "--to")
    for arguments in (
        ("plan", "judged.yaml"),
        ("run", "judged.yaml"),
        ("status", "runs/judged"),
        (*export, "out", "--format", "preference"),
        (*export, "out.jsonl", "--format", "preference"),
    ):
        done = rlaif(tmp_path, *arguments)
        assert done.code == 0 and "Traceback" not in done.err, (arguments, done.err)


def deep(levels: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "number"}
    for _ in range(levels):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize("levels", [50, 200, 400])
def test_a_deep_schema_in_a_row_is_read_or_refused(levels: int, tmp_path: Path) -> None:
    write_project(tmp_path, "http://127.0.0.1:9/v1")
    checks = [{"json_schema": {"schema": deep(levels)}}]
    jsonl(tmp_path / "prompts.jsonl", *({"prompt": f"q{i}", "checks": checks} for i in range(30)))
    text = (tmp_path / "echo.yaml").read_text()
    (tmp_path / "echo.yaml").write_text(text.replace("  - rate:", "  - verify: {}\n  - rate:"))
    done = rlaif(tmp_path, "plan", "echo.yaml")
    assert done.code in (0, 1, 2) and "Traceback" not in done.err
    assert done.code == 0 or "nested too deeply" in done.err, done.err
