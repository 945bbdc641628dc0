"""Files that are no files, that never end, or that unpack to more than there is: a sentence each, in seconds."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from echo import write_project

from rlaif.audits.goldset import read_gold
from rlaif.config import read_pipeline
from rlaif.constitution import read_constitution
from rlaif.constitution.shapes import import_constitution
from rlaif.errors import InputError, RlaifError
from rlaif.files import json_of, text_of
from rlaif.formats import read_prompts
from rlaif.judges.person import read_labels
from rlaif.pipeline.folder import RunFolder, read_lines
from rlaif.principles import read_principles
from rlaif.resources import find, read_text
from rlaif.rubric import read_rubric
from rlaif.templates import Template

pytestmark = pytest.mark.timeout(60)
Door = Callable[[Path], object]

WORDS_OF_LIBRARIES = re.compile(
    "Traceback|Input should be|Value error|validation error|pydantic|ArrowInvalid|Error: |object at 0x"
)


def refused(door: Door, path: Path, seconds: float = 20) -> str:
    """What a door says of a file that it refuses: one sentence, in time."""
    started = time.perf_counter()
    with pytest.raises(RlaifError) as caught:
        door(path)
    assert time.perf_counter() - started < seconds
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000 and not WORDS_OF_LIBRARIES.search(message), message
    return message


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path: Path, columns: dict[str, object], **how: object) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **how)
    return path


# ---------------------------------------------------------------- what is no regular file


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has at most 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def looping(path: Path) -> None:
    path.symlink_to(path.name)


def linked_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 * 2**30)


def found(read: Callable[[str], object]) -> Door:
    return lambda path: read(str(path))


DOORS: dict[str, tuple[str, Door]] = {
    "pipeline": ("p.yaml", found(read_pipeline)),
    "rubric": ("r.yaml", found(read_rubric)),
    "constitution": ("c.yaml", found(read_constitution)),
    "published constitution": ("c.json", lambda path: import_constitution([str(path)], "c")),
    "principles": ("s.yaml", found(read_principles)),
    "template": ("t.jinja", lambda path: Template.read(find(str(path)))),
    "chat template": ("chat.jinja", lambda path: read_text(find(str(path)))),
    "prompts.jsonl": ("x.jsonl", read_prompts),
    "prompts.jsonl.gz": ("x.jsonl.gz", read_prompts),
    "prompts.json": ("x.json", read_prompts),
    "prompts.csv": ("x.csv", read_prompts),
    "prompts.tsv.gz": ("x.tsv.gz", read_prompts),
    "prompts.parquet": ("x.parquet", read_prompts),
    "gold": ("g.jsonl", read_gold),
    "labels": ("l.jsonl", read_labels),
}
IRREGULAR: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pipe": (fifo, "cannot be read: it is a pipe, and no regular file"),
    "a link to a pipe": (linked_pipe, "cannot be read: it is a pipe, and no regular file"),
    "a socket": (unix_socket, "cannot be read: it is a socket, and no regular file"),
    "a link to dev-zero": (endless, "cannot be read: it is a device, and no regular file"),
    "a link to nowhere": (dangling, "there is no file or folder|No such file"),
    "a link to itself": (looping, "there is no file or folder|Too many levels|cannot be used"),
    "a sparse file of 10 GB": (
        sparse,
        "larger than 4 MB|more than 16,000,000 characters|not a whole gzip file|not readable as Parquet|not valid JSON",
    ),
}


@pytest.mark.parametrize("what", IRREGULAR)
@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_file_is_refused_at_once(door: str, what: str, tmp_path: Path) -> None:
    (name, read), (make, words) = DOORS[door], IRREGULAR[what]
    make(tmp_path / name)
    message = refused(read, tmp_path / name)
    assert re.search(words, message) and name in message


@pytest.mark.parametrize("make", [fifo, endless, sparse, dangling], ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["manifest.json", "stages/01-rate.jsonl"])
def test_a_run_folder_of_a_stranger_is_read_through_the_same_door(
    name: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "stages").mkdir()
    make(tmp_path / name)
    if make is dangling:  # as if it were not there
        assert RunFolder(tmp_path).manifest() is None
        assert list(read_lines(tmp_path / name)) == []
    elif name == "manifest.json":
        assert "manifest cannot be read" in refused(lambda path: RunFolder(path).manifest(), tmp_path)
        assert json_of(tmp_path / name) is None and text_of(tmp_path / name) is None
    else:
        assert "cannot be read" in refused(lambda path: list(read_lines(path)), tmp_path / name)


def test_the_whole_command_ends_at_a_pipe(tmp_path: Path) -> None:
    """In a process of its own: a wait for a writer would be its end."""
    write_project(tmp_path, "http://127.0.0.1:9/v1")
    for name in ("prompts.jsonl", "echo.yaml"):
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        done = subprocess.run(
            [sys.executable, "-m", "rlaif.cli", "plan", "echo.yaml"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2 and "it is a pipe" in done.stderr and "Traceback" not in done.stderr


def test_a_folder_where_a_file_belongs_says_so(tmp_path: Path) -> None:
    for name in ("p.yaml", "t.jinja"):
        (tmp_path / name).mkdir()
    assert "is a directory. Fix: name a file inside it" in refused(DOORS["pipeline"][1], tmp_path / "p.yaml")
    assert "is a directory" in refused(DOORS["template"][1], tmp_path / "t.jinja")
    (tmp_path / "x.jsonl").mkdir()
    assert "holds no data set" in refused(read_prompts, tmp_path / "x.jsonl")


# ---------------------------------------------------------------- files that hold too much


def squeezed(path: Path, begins: bytes, part: bytes, times: int, ends: bytes = b"") -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(begins)
        for _ in range(times):
            file.write(part)
        file.write(ends)
    return path


MEGABYTE = b"a" * 1_000_000
LINE = "the line has more than 16,000,000 characters"
BOMBS: dict[str, tuple[str, bytes, bytes, bytes, str]] = {
    "one line": ("x.jsonl.gz", b'{"prompt": "', MEGABYTE, b'"}\n', LINE),
    "one value of a list": ("x.json.gz", b'[{"prompt": "', MEGABYTE, b'"}]', "the value has more than 16,000,000"),
    "one line of a table": ("x.csv.gz", b"prompt\n", MEGABYTE, b"\n", "the row has more than 16,000,000 characters"),
    "one row of many lines": ("x.csv.gz", b"prompt\n", b'"\n",' * 200_000, b"\n", "the row has more than 16,000,000"),
    "empty lines": ("x.jsonl.gz", b"", b"\n" * 1_000_000, b"", "more than 1,000,000 empty lines"),
    "empty lines of a table": ("x.csv.gz", b"prompt\n", b"\n" * 1_000_000, b"", "more than 1,000,000 empty lines"),
    "spaces": ("x.json.gz", b"[", b" " * 1_000_000, b"", "not valid JSON"),
    "brackets": ("x.json.gz", b'[{"a": ', b"[" * 1_000_000, b"", "not valid JSON|nested"),
    "zeros": ("x.jsonl.gz", b"", bytes(1_000_000), b"", LINE),
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_gzip_bomb_is_read_a_piece_at_a_time(what: str, tmp_path: Path) -> None:
    name, begins, part, ends, words = BOMBS[what]
    path = squeezed(tmp_path / name, begins, part, 40, ends)
    assert re.search(words, refused(read_prompts, path))


@pytest.mark.parametrize("columns", [40_000, 100_000])
def test_a_table_of_many_columns_is_read_in_linear_time(columns: int, tmp_path: Path) -> None:
    header = ",".join(f"c{i}" for i in range(columns - 1))
    path = tmp_path / "x.csv"
    path.write_text(f"prompt,{header}\nhello{',1' * (columns - 1)}\n")
    started = time.process_time()
    assert [prompt.text for prompt in read_prompts(path).items] == ["hello"]
    path.write_text(f"{header}\n{'1,' * (columns - 2)}1\n")
    assert "no known shape has the columns `c0`" in refused(read_prompts, path)
    path.write_text(f"{header},c0\n")
    assert "two columns are called 'c0'" in refused(read_prompts, path)
    assert time.process_time() - started < 10


TABLES: dict[str, tuple[str, bytes, str]] = {
    "a cell longer than the limit": (
        "x.csv",
        b"prompt\n" + b"a" * 16_000_001 + b"\n",
        r"x\.csv:2: the row has more than 16,000,000 characters",
    ),
    "a quote that never ends": ("x.csv", b'prompt\n"' + b"a\n" * 100_000, r"x\.csv:2: not readable"),
    "NUL in a name": ("x.csv", b"pro\0mpt\nhello\n", "no known shape"),
    "no name": ("x.csv", b",\nhello,x\n", "two columns are called ''"),
    "not UTF-8": ("x.csv", b"prompt\nhel\xfflo\n", "not UTF-8 text"),
    "UTF-16": ("x.csv", "prompt\nhello\n".encode("utf-16"), "not UTF-8 text"),
    "cells of another number": ("x.tsv", b"prompt\tb\nhello\n", r"x\.tsv:2: the row has 1 cells, the first row has 2"),
    "a line without end": ("x.tsv", b"prompt\n" + b"\t" * 17_000_000, "the row has more than 16,000,000 characters"),
    "a torn gzip": ("x.csv.gz", gzip.compress(b"prompt\nhello\n" * 1000)[:-20], "not a whole gzip file"),
    "a gzip of another file": ("x.jsonl.gz", b"{}\n", "not a whole gzip file"),
    "a gzip with a flipped bit": (
        "x.jsonl.gz",
        gzip.compress(os.urandom(5000))[:50] + b"\0" * 400,
        "not a whole gzip|UTF-8",
    ),
}


@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
def test_a_long_cell_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("prompt\n" + "a" * 200_000 + "\n")
    (prompt,) = read_prompts(tmp_path / name).items
    assert len(prompt.text) == 200_000


@pytest.mark.parametrize("what", TABLES)
def test_a_table_that_is_none(what: str, tmp_path: Path) -> None:
    name, data, words = TABLES[what]
    (tmp_path / name).write_bytes(data)
    assert re.search(words, refused(read_prompts, tmp_path / name))


# ---------------------------------------------------------------- a list in JSON, which is read in parts


def test_a_long_list_is_read_in_parts_as_it_is_read_whole(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} " + "long \u00e9\U0001f600 " * (i % 200), "n": -1.5e3} for i in range(3000)]
    for indent in (None, 1):
        (tmp_path / "x.json").write_text("\n\n " + json.dumps(rows, indent=indent) + "\n \n")
        read = read_prompts(tmp_path / "x.json").items
        assert [prompt.text for prompt in read] == [row["prompt"] for row in rows]


LISTS: dict[str, tuple[str, str]] = {
    "nothing but a bracket": ("[", r"x\.json:1: not valid JSON: Expecting value at column 2"),
    "a comma too many": ('[{"prompt": "a"},]', r"x\.json:1: not valid JSON: Expecting value at column 18"),
    "no comma": (
        '[{"prompt": "a"}\n {"prompt": "b"}]',
        r"x\.json:2: not valid JSON: Expecting ',' delimiter at column 2",
    ),
    "more after it": ('[{"prompt": "a"}]\nx', r"x\.json:2: not valid JSON: Extra data at column 1"),
    "a broken value": (
        '[{"prompt": "a"},\n {"prompt": b}]',
        r"x\.json:2: not valid JSON: Expecting value at column 13",
    ),
    "a number": ("[12]", "row 1: expected an object, found int"),
    "a number of 5,000 digits": (f'[{{"prompt": {"1" * 5000}}}]', r"x\.json:1: not valid JSON: .*4300 digits"),
    "an object": ('{"data": [], "version": 1}', "expected a list of objects, found an object with `data`, `version`"),
    "a text": ('"text"', "expected a list of objects, found str"),
    "two in a line": ('{"prompt": "a"} {"prompt": "b"}', r"x\.json:1: not valid JSON: Extra data.*is called \.jsonl"),
    "lines, and one that is none": (
        '{"prompt": "a"}\n{"prompt": "b"}\nx',
        r"x\.json:3: not valid JSON: Expecting value",
    ),
    "100,000 brackets": ("[" * 100_000, "not valid JSON|expected an object"),
    "100,000 objects in each other": ('[{"a":' + '{"a":' * 100_000, "not valid JSON: .*recursion"),
    "nothing": ("", "there are no rows"),
    "an empty list": (" [ ] ", "there are no rows"),
}


@pytest.mark.parametrize("what", LISTS)
def test_a_list_that_is_none_is_named_with_its_line(what: str, tmp_path: Path) -> None:
    text, words = LISTS[what]
    (tmp_path / "x.json").write_text(text)
    assert re.search(words, refused(read_prompts, tmp_path / "x.json"))


def test_an_error_far_into_a_long_list_has_its_line(tmp_path: Path) -> None:
    lines = ",\n".join(json.dumps({"prompt": f"{i} " + "x" * 900}) for i in range(3000))
    (tmp_path / "x.json").write_text(f"[{lines},\n   nope]")
    assert "x.json:3001: not valid JSON: Expecting value at column 4" in refused(read_prompts, tmp_path / "x.json")


# ---------------------------------------------------------------- folders that `datasets` saved


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    datasets.disable_progress_bars()
    datasets.Dataset.from_list([{"prompt": "one"}, {"prompt": "two"}]).save_to_disk(tmp_path / "data")
    return tmp_path / "data"


def state(**changed: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        read = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps(read | changed))

    return change


def file_named(name: object) -> Callable[[Path], None]:
    return state(_data_files=[{"filename": name}])


def arrow(write: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: write(next(folder.glob("*.arrow")))


def replaced(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


def stream(table: pyarrow.Table) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)

    return arrow(write)


SAVED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a data file outside": (file_named("../../secret.arrow"), "a data file is named that is not in the folder"),
    "an absolute data file": (file_named("/etc/passwd"), "a data file is named that is not in the folder"),
    "a data file with NUL": (file_named("a\0b"), "a data file is named that is not in the folder"),
    "a data file that is a number": (file_named(5), "a data file is named that is not in the folder"),
    "a data file that is missing": (file_named("other.arrow"), "other.arrow: cannot be read: No such file"),
    "a data file that is the folder": (file_named(".."), "a data file is named that is not in|Is a directory"),
    "a data file with a long name": (file_named("x" * 5000), "a data file is named that is not in the folder"),
    "a data file 20,000 times": (
        state(_data_files=[{"filename": "data-00000-of-00001.arrow"}] * 20_000),
        "a data file is named twice",
    ),
    "data files that are a text": (state(_data_files="data.arrow"), "its state names no data files"),
    "a state that is a list": (lambda folder: (folder / "state.json").write_text("[]") and None, "names no data files"),
    "a state that is no JSON": (lambda folder: (folder / "state.json").write_text("{") and None, "state is not JSON"),
    "a state of 5,000 digits": (
        lambda folder: (folder / "state.json").write_text("1" * 5000) and None,
        "folder cannot be loaded",
    ),
    "a deep state": (lambda folder: (folder / "state.json").write_text("[" * 10**5) and None, "names no data files"),
    "a data file that is a pipe": (arrow(replaced(fifo)), "it is a pipe"),
    "a data file that never ends": (arrow(replaced(endless)), "it is a device"),
    "a sparse data file": (arrow(replaced(sparse)), "not readable as Arrow|no row|no rows"),
    "a torn data file": (
        arrow(lambda path: path.write_bytes(path.read_bytes()[:200]) and None),
        "not readable as Arrow",
    ),
    "a pickle": (
        arrow(lambda path: path.write_bytes(b"cos\nsystem\n(S'touch PWNED'\ntR.") and None),
        "not readable as Arrow",
    ),
    "10^9 rows of nothing": (
        stream(pyarrow.table({"prompt": pyarrow.nulls(10**9)})),
        r"1,000,000,000 rows in \d+ bytes: more than 64 a byte",
    ),
    "one text a thousand times": (
        stream(
            pyarrow.table(
                {
                    "prompt": pyarrow.DictionaryArray.from_arrays(
                        pyarrow.array([0] * 1000, pyarrow.int8()), ["a" * 20_000_000]
                    )
                }
            )
        ),
        "`prompt` holds a text of 20,000,000 bytes, more than 16,000,000",
    ),
    "two columns of a name": (
        stream(pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, ["prompt", "prompt"])),
        "two columns are called",
    ),
}


def test_a_folder_of_thousands_of_splits_names_a_few(tmp_path: Path) -> None:
    for number in range(3000):
        (tmp_path / f"split{number}.parquet").touch()
    assert "holds 3,000 splits: split0, split1, " in refused(read_prompts, tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listed(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path))

    monkeypatch.setattr(Path, "iterdir", listed)
    message = refused(read_prompts, tmp_path)
    assert message == f"{tmp_path}: the folder cannot be read: permission denied. Fix: name the file to read"


@pytest.mark.parametrize("what", SAVED)
def test_a_saved_folder_of_a_stranger(what: str, folder: Path) -> None:
    change, words = SAVED[what]
    change(folder)
    assert re.search(words, refused(read_prompts, folder))
    assert not Path("PWNED").exists()


def test_a_saved_folder_reads_as_its_library_reads_it(folder: Path) -> None:
    features = datasets.Features({"messages": datasets.Json(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = [{"messages": [{"role": "user", "content": f"q{i}"}], "label": i % 2} for i in range(300)]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(folder / "typed", num_shards=3)
    assert [prompt.text for prompt in read_prompts(folder / "typed").items] == [f"q{i}" for i in range(300)]
    assert [prompt.text for prompt in read_prompts(folder).items] == ["one", "two"]


def test_what_a_saved_folder_describes_is_not_opened(folder: Path) -> None:
    """A picture's path may lead to any file or server; its library would open it for each row."""
    info = json.loads((folder / "dataset_info.json").read_text())
    info["features"]["prompt"] = {"_type": "Image", "path": "http://127.0.0.1:9/x.png"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    assert [prompt.text for prompt in read_prompts(folder).items] == ["one", "two"]


# ---------------------------------------------------------------- memory, each in a process of its own

READ = "from pathlib import Path; from rlaif.formats import read_prompts; read_prompts(Path({path!r}))"


def apart(code: str, cwd: Path) -> tuple[str, int]:
    """What some code raises in a process of its own, and the most memory in MB that it took."""
    script = (
        "try:\n"
        f"    {code}\n"
        "except BaseException as error:\n"
        "    print(type(error).__name__, error)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (3 * 2**30, 3 * 2**30))

    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=limit,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    *said, memory = done.stdout.splitlines()
    return "\n".join(said), int(memory) // 1000


def a_dictionary(path: Path) -> None:
    """One text of 20 MB, a thousand times."""
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000, pyarrow.int32()), ["a" * 20_000_000])
    parquet(path, {"prompt": text}, compression="zstd")


def a_large_one(path: Path) -> None:
    """One text of 200 MB, a thousand times."""
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000, pyarrow.int32()), ["a" * 200_000_000])
    parquet(path, {"prompt": text}, compression="zstd")


def prefixes(path: Path) -> None:
    """One text of 2 MB, 500 times, each the one before it and no more."""
    table = pyarrow.table({"prompt": ["a" * 2_000_000] * 500})
    pyarrow.parquet.write_table(
        table, path, compression="zstd", use_dictionary=False, column_encoding={"prompt": "DELTA_BYTE_ARRAY"}
    )


def a_smaller(path: Path) -> None:
    """One text of 10 MB, a thousand times."""
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000, pyarrow.int32()), ["a" * 10_000_000])
    parquet(path, {"prompt": text}, compression="zstd")


def a_long_list(path: Path) -> None:
    """One row with a list of a text 10^8 times."""
    count = 10**8
    values = pyarrow.DictionaryArray.from_arrays(pyarrow.array(bytearray(count), pyarrow.uint8()), ["a" * 100])
    parquet(path, {"prompt": pyarrow.ListArray.from_arrays(pyarrow.array([0, count], pyarrow.int32()), values)})


def many_rows(path: Path, count: int = 10**8) -> None:
    """A text 10^8 times."""
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array(bytearray(count), pyarrow.uint8()), ["hello"])
    parquet(path, {"prompt": text}, row_group_size=count)


def a_page(path: Path) -> None:
    """One text of 600 MB, in a few KB."""
    parquet(path, {"prompt": ["a" * 600_000_000]}, compression="zstd", use_dictionary=False, write_statistics=False)


def many_columns(path: Path) -> None:
    """Ten texts of 1 MB, a thousand times, of which nothing says that each is there once."""
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000, pyarrow.int32()), ["a" * 1_000_000])
    parquet(path, {"prompt": text} | {f"c{i}": text for i in range(9)}, compression="zstd", store_schema=False)


def uneven(path: Path) -> None:
    """A hundred texts of 10 MB together in a row group whose rows are small on the average."""
    schema = pyarrow.schema({"prompt": pyarrow.string()})
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        writer.write_batch(pyarrow.record_batch([[""] * 1_000_000], schema=schema))
        for _ in range(20):
            writer.write_batch(pyarrow.record_batch([["a" * 10_000_000] * 5], schema=schema))


def an_uneven_list(path: Path) -> None:
    """A list of 100,000 times a text of 1 MB, behind empty ones."""
    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 100_000, pyarrow.int32()), ["a" * 1_000_000])
    offsets = pyarrow.array([0] * 1001 + [100_000], pyarrow.int32())
    parquet(path, {"turns": pyarrow.ListArray.from_arrays(offsets, texts)}, store_schema=False)


def a_line(path: Path) -> None:
    squeezed(path, b'{"prompt": "', MEGABYTE, 1000, b'"}\n')


WORST: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a gzip bomb of one line": ("x.jsonl.gz", a_line, LINE),
    "one text of 20 MB in each row": ("x.parquet", a_dictionary, "`prompt` holds a text of 20,000,000 bytes"),
    "10^8 texts in one row": ("x.parquet", a_long_list, "`prompt` holds more than 2,000,000 values a row"),
    "10^8 rows of one text": ("x.parquet", many_rows, "100,000,000 rows in .* so they repeat a few"),
    "one text of 200 MB in each row": ("x.parquet", a_large_one, "`prompt` holds a text of 200,000,000 bytes"),
    "one text of 2 MB, each after the other": ("x.parquet", prefixes, ""),
    "one text of 10 MB in each row": ("x.parquet", a_smaller, "so they repeat a few"),
    "texts of 1 MB in ten columns of each row": ("x.parquet", many_columns, "so they repeat a few"),
    "texts of 10 MB behind a million small ones": ("x.parquet", uneven, ""),
    "lists of nothing before one of 100,000 texts of 1 MB": ("x.parquet", an_uneven_list, "no row could be used"),
    "one text of 600 MB": ("x.parquet", a_page, "`prompt` holds pages that unpack to 600,0.* bytes"),
}


@pytest.mark.lab
@pytest.mark.timeout(180)
@pytest.mark.parametrize("what", WORST)
def test_the_worst_stay_under_a_gigabyte(what: str, tmp_path: Path) -> None:
    name, make, words = WORST[what]
    make(tmp_path / name)
    said, memory = apart(READ.format(path=name), tmp_path)
    assert said.startswith("InputError" if words else "") and re.search(words, said), said
    assert memory < 1000


TWICE = {
    "a line": ("x.jsonl", '{"prompt": "a"}\n{"prompt": "b", "prompt": "c"}\n', 2, "prompt"),
    "a line, once in escapes": ("x.jsonl", '{"prompt": "b", "pr\\u006fmpt": "c"}\n', 1, "prompt"),
    "a line, within": ("x.jsonl", '\n{"prompt": [{"role": "user", "content": "b", "role": "user"}]}\n', 2, "role"),
    "a list": ("x.json", '[{"prompt": "a"},\n {"prompt": "b",\n "prompt": "c"}]', 2, "prompt"),
    "a long list": ("x.json", "[" + f'{{"prompt": "{"a" * 999}"}},\n' * 1_100 + '{"a": 1, "a": 2}]', 1_101, "a"),
    "an object a line": ("x.json", '{"prompt": "a"}\n{"prompt": "b", "prompt": "b"}', 2, "prompt"),
    "an odd key": ("x.jsonl", r'{"\u001b[31m\u202e": 1, "\u001b[31m\u202e": 2}', 1, r"\x1b[31m\u202e"),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_key_that_is_written_twice_is_an_error_with_its_line(name: str, tmp_path: Path) -> None:
    file, text, line, key = TWICE[name]
    (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_prompts(tmp_path / file)
    said = f"{tmp_path / file}:{line}: the key `{key}` is written twice. Fix: keep one of them"
    assert str(error.value) == said


@pytest.mark.parametrize("count", [10**7], ids=["10^7 rows of one text"])
def test_millions_of_rows_of_one_text_are_refused_unread(count: int, tmp_path: Path) -> None:
    many_rows(tmp_path / "x.parquet", count)
    began = time.process_time()
    with pytest.raises(InputError, match=rf"x\.parquet: {count:,} rows in .* so they repeat a few\. Fix: keep each"):
        read_prompts(tmp_path / "x.parquet")
    assert time.process_time() - began < 2


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv"])
def test_ten_gigabytes_of_nothing_take_little_memory(name: str, tmp_path: Path) -> None:
    sparse(tmp_path / name)
    said, memory = apart(READ.format(path=name), tmp_path)
    assert said.startswith("InputError") and memory < 500
