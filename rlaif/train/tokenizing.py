"""The token ids of a whole data set: made on all cores, and kept for the next training.

    FOLDER/CHAT/NAME.parquet   CHAT is the digest of tokenizer and template, NAME that of the messages in the file
        pieces    for each of the talks its token ids, in pieces as `tokens.pieces` has them

Ids are kept before anything is cut or dropped, so that no setting of a trainer decides them: another loss, another
`max_length`, a check and a resumed training read the same files (`train.kept_files`). It is a cache: a file that is
damaged, or cannot be written, costs only tokenizing again. Of several processes that train together the first one
tokenizes, or reads, and tells the others.

Many rows are tokenized by other processes: rendering is Python, and the tokenizer's own threads would leave it to one
core. Each is `python -m rlaif.train.tokenizing_worker`, which needs nothing of the caller's `__main__`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import accumulate, chain, islice
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, Generic, NamedTuple, Self, TypeVar

from rlaif.engines.chat import Chat
from rlaif.errors import InputError
from rlaif.files import read_whole
from rlaif.records import Message, digest
from rlaif.templates.apart import started
from rlaif.train import kept_files, ranks, tokens
from rlaif.train.tokens import Talk
from rlaif.version import __version__

FORMAT = 1  # raised when a change here, in `tokens` or in `engines.chat` makes other ids of the same messages
LARGEST = 2_000_000_000  # bytes of a shared folder: 26 times UltraFeedback's 61,000 pairs
LARGEST_FILE = 256_000_000
CHUNK = 512  # rows in a file, which another process gets at once
AT_ONCE = 128  # talks that are rendered and encoded together, each a few times in memory as text
# Characters from which other processes pay: 3,000 pairs of UltraFeedback's lengths, 6 s of a core. One that is started
# takes 1.2 s of its core before its first row, and half of the work here is done by the tokenizer's threads anyway.
PAYS_FROM = 12_000_000
WORKER = "rlaif.train.tokenizing_worker"

Row = TypeVar("Row")
Pieces = list[list[int]]  # of one talk


class Made(NamedTuple):
    """The pieces of a chunk's talks; where one was refused, of those before it, and the refusal."""

    pieces: list[Pieces]
    refusal: InputError | None = None


@dataclass(slots=True)
class Chunk(Generic[Row]):
    """Rows that are tokenized together: their numbers, their talks in `body` as JSON, and the number of each row's."""

    rows: list[tuple[int, Row]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    shapes: list[int] = field(default_factory=list)  # the number of each talk's pieces
    body: bytes = b""
    error: Exception | None = None  # what the source of the rows raised after them

    @property
    def numbers(self) -> list[int]:
        """For each talk its row's."""
        return [number for (number, _), count in zip(self.rows, self.counts, strict=True) for _ in range(count)]

    @property
    def name(self) -> str:
        """32 hex digits: the digest of the talks."""
        return hashlib.blake2b(self.body, digest_size=16).hexdigest()


def read(
    chat: Chat,
    rows: Iterable[tuple[int, Row]],
    talks_of: Callable[[Row], Sequence[Talk]],
    kept: Path | None = None,
    processes: int | None = None,
) -> Iterator[tuple[int, Row, list[Pieces]]]:
    """Each row with its number and the pieces of each of its talks, in order.

    What the folder `kept` holds is read from there, and the rest is kept in it. By default one process for each core
    tokenizes rows that are so many that it pays.

    Raises InputError as `tokens.pieces`, after the rows before.
    """
    for chunk, made in _together(chat, _chunks(rows, talks_of), kept, processes):
        pieces = iter(made.pieces)
        for (number, row), count in zip(chunk.rows, chunk.counts, strict=True):
            own = list(islice(pieces, count))
            if len(own) < count:
                break
            yield number, row, own
        if (error := made.refusal or chunk.error) is not None:
            raise error


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make(chat: Chat, body: bytes, numbers: Sequence[int]) -> Made:
    """The pieces of the talks in `body`, made here; `numbers` are those of their rows."""
    made: list[Pieces] = []
    talks = [
        Talk(tuple(Message(role=role, content=content) for role, content in turns), kind)
        for kind, turns in json.loads(body)
    ]
    for start in range(0, len(talks), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        try:
            made += tokens.pieces(chat, talks[part], numbers[part])
        except InputError as error:
            return Made(made, error)
    return Made(made)


def _chunks(rows: Iterable[tuple[int, Row]], talks_of: Callable[[Row], Sequence[Talk]]) -> Iterator[Chunk[Row]]:
    stream = iter(rows)
    error: Exception | None = None
    while error is None:
        chunk: Chunk[Row] = Chunk()
        talks: list[Talk] = []
        try:
            for number, row in islice(stream, CHUNK):
                own = talks_of(row)
                chunk.rows.append((number, row))
                chunk.counts.append(len(own))
                talks += own
        except Exception as raised:  # told after the rows before it
            error = chunk.error = raised
        if not chunk.rows and error is None:
            return
        chunk.shapes = [_shape(talk) for talk in talks]
        plain = [[talk.turns, [[m.role, m.content] for m in talk.messages]] for talk in talks]
        chunk.body = json.dumps(plain).encode("ascii")
        yield chunk


def _shape(talk: Talk) -> int:
    if talk.turns == "all":
        return 2 * sum(message.role == "assistant" for message in talk.messages)
    return 2 if talk.turns == "last" else 1


def _together(
    chat: Chat, chunks: Iterator[Chunk[Row]], kept: Path | None, processes: int | None
) -> Iterator[tuple[Chunk[Row], Made]]:
    """The chunks with what the first process makes of them, in every process."""
    if ranks.count() == 1:
        yield from _made(chat, chunks, kept, processes)
    elif ranks.is_first():
        for chunk, made in _made(chat, chunks, kept, processes):
            ranks.told((pack(made.pieces), made.refusal))
            yield chunk, made
    else:
        for chunk in chunks:
            packed, refusal = ranks.told()
            yield chunk, Made(unpack(packed), refusal)


def _made(
    chat: Chat, chunks: Iterator[Chunk[Row]], kept: Path | None, processes: int | None
) -> Iterator[tuple[Chunk[Row], Made]]:
    """The chunks with what is kept of them, or made of them here or by other processes."""
    first: list[Chunk[Row]] = []
    while sum(len(chunk.body) for chunk in first) < PAYS_FROM and (chunk := next(chunks, None)) is not None:
        first.append(chunk)
    chat_digest = identity(chat)
    store = None if kept is None or chat_digest is None else Store(kept, chat_digest)
    if chat_digest is None:
        processes = 1
    elif processes is None:
        processes = cores() if sum(len(chunk.body) for chunk in first) >= PAYS_FROM else 1
    every = chain(first, chunks)
    if processes == 1:
        for chunk in every:
            made = None if store is None else store.read(chunk)
            if made is None:
                made = make(chat, chunk.body, chunk.numbers)
                if store is not None and made.refusal is None:
                    store.write(chunk, pack(made.pieces))
            yield chunk, made
    else:
        with Processes(chat, processes) as others:
            yield from others.each(every, store)
    if store is not None:
        store.prune()


# ---------------------------------------------------------------- kept


def identity(chat: Chat) -> str | None:
    """The digest of all that decides the ids of given messages; None for a tokenizer that is not of `tokenizers`.

    The token that pads is not among it: a trainer may choose another.
    """
    tokenizer = chat.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    chat.encode(["a"])  # without padding and truncation from here on, which are part of its state
    names = {name: str(text) for name, text in tokenizer.special_tokens_map.items() if name in chat.template.source}
    return digest(
        [
            *(FORMAT, __version__, *map(version, ("tokenizers", "transformers", "jinja2"))),
            *(type(tokenizer).__name__, backend.to_str(), bool(getattr(tokenizer, "split_special_tokens", False))),
            *(chat.template.source, names, sorted(chat.ends), tokenizer.bos_token_id, tokenizer.eos_token_id),
            chat.defusing,
        ]
    )


class Store:
    """The files of one chat in a folder that trainings share."""

    def __init__(self, folder: Path, chat: str) -> None:
        self._shared, self._folder, self._wrote = folder, folder / chat, False

    def read(self, chunk: Chunk[Any]) -> Made | None:
        """What is kept of a chunk; None for what is missing or damaged."""
        path = self._folder / f"{chunk.name}.parquet"
        try:
            pieces = unpack(read_whole(path, LARGEST_FILE))
        except (OSError, ValueError):  # pyarrow's own errors are among them
            return None
        if [len(each) for each in pieces] != chunk.shapes:
            return None
        kept_files.used(path)
        return Made(pieces)

    def write(self, chunk: Chunk[Any], packed: bytes) -> None:
        """Keep the content of a chunk's file, where the folder can be written."""
        self._wrote = True
        with suppress(OSError):
            kept_files.write(self._folder, chunk.name, packed)

    def prune(self) -> None:
        """Keep the folder within its size."""
        if self._wrote:
            with suppress(OSError):
                kept_files.prune(self._shared, LARGEST)


def pack(pieces: Sequence[Pieces]) -> bytes:
    """The content of a file."""
    import pyarrow
    import pyarrow.parquet

    ids = pyarrow.array(list(chain.from_iterable(chain.from_iterable(pieces))), pyarrow.uint32())
    lengths = [len(piece) for each in pieces for piece in each]
    inner = pyarrow.ListArray.from_arrays(_offsets(lengths), ids)
    table = pyarrow.table({"pieces": pyarrow.ListArray.from_arrays(_offsets([len(each) for each in pieces]), inner)})
    whole = io.BytesIO()
    # Ids do not repeat as values do: a dictionary of them would be as large as they are.
    pyarrow.parquet.write_table(table, whole, compression="zstd", use_dictionary=False, write_page_checksum=True)
    return whole.getvalue()


def _offsets(lengths: Sequence[int]) -> Any:
    import pyarrow

    return pyarrow.array(list(accumulate(lengths, initial=0)), pyarrow.int32())


def unpack(packed: bytes) -> list[Pieces]:
    """The pieces in the content of a file. Raises ValueError or OSError for what is no such file, or is damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(packed), use_threads=False, page_checksum_verification=True)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from None
    if table.schema != pyarrow.schema({"pieces": pyarrow.list_(pyarrow.list_(pyarrow.uint32()))}):
        raise ValueError("another schema")
    made: list[Pieces] = []
    for talks in table["pieces"].chunks:
        pieces, ids = talks.flatten(), talks.flatten().flatten()
        if talks.null_count or pieces.null_count or ids.null_count:
            raise ValueError("null")
        flat = ids.to_numpy(zero_copy_only=False).tolist()
        ends = list(accumulate(pieces.value_lengths().to_pylist(), initial=0))
        each = [flat[start:end] for start, end in zip(ends, ends[1:], strict=False)]
        ends = list(accumulate(talks.value_lengths().to_pylist(), initial=0))
        made += [each[start:end] for start, end in zip(ends, ends[1:], strict=False)]
    return made


# ---------------------------------------------------------------- other processes


class Processes:
    """Processes that tokenize for one chat, each started when there is something for it. Use it in a `with`."""

    def __init__(self, chat: Chat, count: int) -> None:
        self._chat = chat
        head = pickle.dumps((chat.tokenizer, chat.file, chat.ends))
        self._all = [_Process(head) for _ in range(count)]
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        for process in reversed(self._all):
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(count, "tokenizing")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._all:
            process.end()
        self._threads.shutdown()
        for process in self._all:  # one that a thread has just started
            process.end()

    def each(self, chunks: Iterable[Chunk[Row]], store: Store | None) -> Iterator[tuple[Chunk[Row], Made]]:
        """The chunks in order with what `store` keeps of them, or what is made of them."""
        stream = iter(chunks)
        ahead = deque((chunk, self._threads.submit(self._one, chunk, store)) for chunk in islice(stream, self._window))
        while ahead:
            chunk, future = ahead.popleft()
            # One that was killed, as for its memory, or cannot be started, leaves its chunk to this process.
            made = future.result() or make(self._chat, chunk.body, chunk.numbers)
            ahead.extend((more, self._threads.submit(self._one, more, store)) for more in islice(stream, 1))
            yield chunk, made

    @property
    def _window(self) -> int:
        return 2 * len(self._all)

    def _one(self, chunk: Chunk[Any], store: Store | None) -> Made | None:
        """What is kept of a chunk, or what another process makes of it; None when that one fails."""
        if store is not None and (found := store.read(chunk)) is not None:
            return found
        process = self._idle.get()
        try:
            packed, refusal = process.ask((chunk.body, chunk.numbers))
        except (OSError, EOFError):
            process.end()
            return None
        finally:
            self._idle.put(process)
        if store is not None and refusal is None:
            store.write(chunk, packed)
        return Made(unpack(packed), refusal)


class _Process:
    """One of them."""

    def __init__(self, head: bytes) -> None:
        self._head = head
        self._running: subprocess.Popen[bytes] | None = None

    def ask(self, request: Any) -> Any:
        """Its reply. Raises OSError or EOFError when it cannot be started, or ends."""
        if self._running is None:
            # One core each: those of the tokenizer's threads would be taken from the other processes.
            self._running = started(WORKER, variables={"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"})
            self._send(self._head)
        self._send(pickle.dumps(request))
        assert self._running.stdout is not None
        if (reply := received(self._running.stdout)) is None:
            raise EOFError
        return pickle.loads(reply)  # noqa: S301 - of our own process

    def _send(self, data: bytes) -> None:
        assert self._running is not None and self._running.stdin is not None
        sent(self._running.stdin, data)

    def end(self) -> None:
        """End it, whatever it does."""
        running, self._running = self._running, None
        if running is not None:
            running.kill()
            running.wait()
            for pipe in (running.stdin, running.stdout):
                if pipe is not None:
                    with suppress(OSError):  # what it did not read
                        pipe.close()


def sent(pipe: IO[bytes], data: bytes) -> None:
    """Write a message: its length in eight bytes, then its bytes."""
    pipe.write(len(data).to_bytes(8, "little"))
    pipe.write(data)
    pipe.flush()


def received(pipe: IO[bytes]) -> bytes | None:
    """The next message; None at the end of the pipe."""
    head = pipe.read(8)
    size = int.from_bytes(head, "little")
    data = pipe.read(size) if len(head) == 8 else b""
    return data if len(head) == 8 and len(data) == size else None
