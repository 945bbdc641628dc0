"""What a run has in batches: the folder `batch/` of its run folder.

    batches.json            every file of requests whose calls are not all answered, and the provider's ids
    MODEL-001.jsonl         the requests, a line each, in the shape of OpenAI's batches
    MODEL-001.calls.jsonl   what was asked by each line, and the keys of its calls: results are read by it
    MODEL-001.results.jsonl the results, as they were downloaded

The provider's ids are on disk before anything else is done with them, so that no crash sends a file twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from rlaif.engines.protocol import Request
from rlaif.errors import InputError, WorkError
from rlaif.files import opened, read_whole, why, write_json

FOLDER, STATE = "batch", "batches.json"
FORMAT = 1
MOST_STATE = 256_000_000  # bytes
MOST_LINE = 256_000_000  # of the calls of one request: a prompt


# A file's name, in a folder that somebody else may have made.
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,120}\Z")]


class Sent(msgspec.Struct):
    """One line of `calls.jsonl`: a request, the keys of its calls, and what its body left out."""

    keys: list[str]
    request: dict[str, Any]
    without: list[str]

    @property
    def custom_id(self) -> str:
        """The key of the first of its calls."""
        return self.keys[0]

    def asked(self) -> Request:
        return Request.model_validate(self.request)  # with what was unset then unset


class Entry(msgspec.Struct):
    """A file of requests. It is `over` when its results were read, or its requests written into a new file."""

    name: Name
    model: str  # its name in the pipeline
    identity: str
    requests: int
    calls: int
    digest: str  # of its lines, in whatever order
    most_tokens: tuple[int, int]  # of its prompts and completions
    file_id: str | None = None
    batch_id: str | None = None
    over: bool = False

    @property
    def under_way(self) -> bool:
        """Whether a provider answers it, for money."""
        return self.batch_id is not None and not self.over

    @property
    def written(self) -> bool:
        """Whether it waits to be sent."""
        return self.batch_id is None and not self.over


class State(msgspec.Struct):
    """What `batches.json` holds. `salts` counts, by key, answers of no use that another seed may mend; `paid` are the
    tokens that batches were paid for, by the model's identity."""

    format: int = FORMAT
    entries: list[Entry] = []
    last: dict[str, int] = {}  # the number of a model's last file
    salts: dict[str, int] = {}
    paid: dict[str, tuple[int, int]] = {}


class Batched:
    """The folder on disk. `state` is read once; `save` makes a change durable."""

    def __init__(self, run: Path) -> None:
        self.path = run / FOLDER
        self.state = _read(self.path / STATE)

    def save(self) -> None:
        write_json(self.path / STATE, msgspec.to_builtins(self.state))

    def requests(self, entry: Entry) -> Path:
        return self.path / f"{entry.name}.jsonl"

    def calls(self, entry: Entry) -> Path:
        return self.path / f"{entry.name}.calls.jsonl"

    def results(self, entry: Entry) -> Path:
        return self.path / f"{entry.name}.results.jsonl"

    def under_way(self) -> list[Entry]:
        return [entry for entry in self.state.entries if entry.under_way]

    def written(self) -> list[Entry]:
        return [entry for entry in self.state.entries if entry.written]

    def sent(self, entry: Entry) -> Iterator[Sent]:
        """What the lines of a file ask, in their order. Raises WorkError."""
        path, decoder = self.calls(entry), msgspec.json.Decoder(Sent)
        try:
            with opened(path) as file:
                for line in iter(lambda: file.readline(MOST_LINE), b""):
                    yield decoder.decode(line)
        except (OSError, ValueError) as error:
            problem = f"it cannot be read: {why(error)}" if isinstance(error, OSError) else "it is damaged"
            raise WorkError(problem, file=str(path), fix="restore it: results are read by it") from None

    def remove(self, entry: Entry) -> None:
        """Remove the files of an entry, all of whose calls are answered."""
        for path in (self.requests(entry), self.calls(entry), self.results(entry)):
            path.unlink(missing_ok=True)
        self.state.entries.remove(entry)


def paid(run: Path) -> dict[str, tuple[int, int]]:
    """The tokens that a run paid for in batches, by the identity of the model."""
    return _read(run / FOLDER / STATE).paid


def refuse_under_way(run: Path, pipeline: str) -> None:
    """Raise WorkError for a run some of whose calls a provider answers now: they would be paid for twice."""
    if under_way := Batched(run).under_way():
        names, calls = ", ".join(entry.name for entry in under_way[:3]), sum(entry.calls for entry in under_way)
        fix = f"fetch their results: `rlaif batch {pipeline}`; to give one up, cancel it at its provider first"
        raise WorkError(f"{calls:,} calls are in batches under way ({names}), and would be paid for twice", fix=fix)


def _read(path: Path) -> State:
    try:
        state = msgspec.json.decode(read_whole(path, MOST_STATE), type=State)
        if state.format != FORMAT:
            raise InputError("it is of another version", file=str(path), fix="use the version of rlaif that wrote it")
        return state
    except (FileNotFoundError, NotADirectoryError):
        return State()
    except (OSError, ValueError) as error:
        problem = f"it cannot be read: {why(error)}" if isinstance(error, OSError) else "it is damaged"
        fix = "restore it; without it, batches under way are paid for again"
        raise WorkError(problem, file=str(path), fix=fix) from None
