"""Random damage to what strangers write, for every reader of it: it is read, or refused in a sentence, and soon.

A target is a reader, texts that it reads, and words that mean something to it. An input is such a text with damage:
bytes cut out, repeated, or replaced by such words. Only `RlaifError` may come out of a reader. For minutes, and
with what is found kept under `seeds/`, from the root of the repository:

    python tests/hostile/fuzzing.py TARGET --minutes 30
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from yaml import safe_load

from rlaif.config import OpenAIModel, read_pipeline
from rlaif.constitution import read_constitution
from rlaif.engines.openai import OpenAIEngine
from rlaif.engines.protocol import Reply, Request
from rlaif.engines.vetting import vet
from rlaif.errors import InputErrors, RlaifError
from rlaif.formats import each_row, read_conversations, read_preferences, read_prompts
from rlaif.judges.replies import read_choice, read_json, read_lines, read_ranking, read_score
from rlaif.records import Message, Sampling
from rlaif.rubric import read_rubric

ROOT = Path(__file__).parent.parent.parent
SEEDS = Path(__file__).parent / "seeds"
SLOW = 5.0  # seconds of processor time that no input of these sizes may take

NUMBERS = (
    b"0",
    b"-1",
    b"1e999",
    b"NaN",
    b"-Infinity",
    b"9" * 30,
    b"9" * 5000,
    b"0.1",
    b"\xd9\xa3",
    b"1_0",
    b"0x1F",
    b"1:2",
)
TEXTS = (
    b"null",
    b"true",
    b'""',
    b"[]",
    b"{}",
    b'"\\ud800"',
    b"\x00",
    b"\xff",
    b"\xe2\x80\xae",
    b"\x1b[31m",
    b"\xef\xbb\xbf",
)
MARKS = (
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b'"',
    b"'",
    b"\\",
    b"\n",
    b"\r",
    b"\t",
    b"#",
    b"&a",
    b"*a",
    b"!!",
    b"|",
    b">",
    b"- ",
    b"? ",
    b"%",
)


class Target(NamedTuple):
    """`reads` takes the bytes and a folder for files, and counts the readers that took them. All take `texts`."""

    reads: Callable[[bytes, Path], int]
    texts: Callable[[], list[bytes]]
    words: tuple[bytes, ...]


# ---------------------------------------------------------------- the readers


def took(read: Callable[[], object]) -> int:
    """1 where a reader takes its input, 0 where it refuses it in a sentence."""
    try:
        read()
    except RlaifError as refused:
        every = refused.errors if isinstance(refused, InputErrors) else [refused]
        assert all(str(one) and "\n" not in str(one) for one in every)
        return 0
    return 1


def yaml(data: bytes, folder: Path) -> int:
    """A pipeline, a rubric and a constitution, each from the same file."""
    (file := folder / "input.yaml").write_bytes(data)
    return sum(took(partial(read, str(file))) for read in (read_pipeline, read_rubric, read_constitution))


def rows(data: bytes, folder: Path) -> int:
    """Prompts, conversations, preferences and judged rows, from each type of text file."""
    count = 0
    for ending in (".jsonl", ".json", ".csv", ".tsv"):
        (file := folder / f"input{ending}").write_bytes(data)
        for read in (read_prompts, read_conversations, read_preferences):
            count += took(partial(read, file))
        count += took(lambda file=file: list(each_row(file, Counter())))
    return count


def replies(data: bytes, folder: Path) -> int:
    """Every reader of a judge's reply: none of them refuses anything, and none guesses outside its scale."""
    text = data.decode("utf-8", "surrogateescape")
    for cut in (False, True):
        for read in (read_lines, read_json):
            for reading in read(text, 3, 1, 5, cut=cut, na=True, types=("A", "B")):
                assert reading.value is None or 1 <= reading.value <= 5, reading
        score = read_score(text, 0, 10, cut=cut)
        assert score.value is None or 0 <= score.value <= 10, score
        groups, _ = read_ranking(text, 3, cut=cut)
        assert groups is None or sorted(n for group in groups for n in group) == [1, 2, 3], groups
        choice, _ = read_choice(text, cut=cut)
        assert choice in ("A", "B", "tie", None), choice
    return 1


def wire(data: bytes, folder: Path) -> int:
    """The body of a server's answer and of its error, over a real connection."""
    return sum(_Server.running().answer(status, data) for status in (200, 400, 500))


def safetensors(data: bytes, folder: Path) -> int:
    """The header of a weights file."""
    (file := folder / "model.safetensors").write_bytes(data)
    (config := folder / "config.json").write_text('{"model_type": "llama"}')
    return took(lambda: vet([config, file]))


class _Server:
    """A server that answers every request with the same bytes, and a model behind it."""

    _only: _Server | None = None

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.status, self.body = 200, b""
        server = self.loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0))
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self.engine = OpenAIEngine("m", OpenAIModel(engine="openai", model="m", base_url=url, timeout=60.0), "none")
        sampling = Sampling(temperature=1.0, max_tokens=8, logprobs=True, alternatives=("A", "B"))
        self.request = Request(messages=(Message(role="user", content="?"),), sampling=sampling, indices=(0, 1))

    @classmethod
    def running(cls) -> _Server:
        cls._only = cls._only or cls()
        return cls._only

    def answer(self, status: int, body: bytes) -> int:
        """The samples and lists of models that are read from an answer."""
        self.status, self.body = status, body
        replies = self.loop.run_until_complete(self.engine.post(self.request, self.engine.urls[0]))
        assert len(replies) == 2 and all(isinstance(reply, Reply | RlaifError) for reply in replies)
        listed: list[list[str] | None] = []
        took(lambda: listed.append(self.loop.run_until_complete(self.engine.models(self.engine.urls[0]))))
        return sum(isinstance(reply, Reply) for reply in replies) + sum(names is not None for names in listed)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"(?i)content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                start = f"HTTP/1.1 {self.status} -\r\ncontent-length: {len(self.body)}\r\n\r\n"
                writer.write(start.encode() + self.body)
                await writer.drain()


# ---------------------------------------------------------------- what they read


def _files(*patterns: str) -> list[bytes]:
    return [path.read_bytes() for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def _replies() -> list[bytes]:
    entries = [entry for text in _files("tests/corpus/judge_replies/*.yaml") for entry in safe_load(text)]
    return [str(entry["text"]).encode() for entry in entries]


def _rows() -> list[bytes]:
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    told = [
        {"prompt": "a?", "source": "s", "reference": "b", "checks": [{"length": {"max_words": 3}}]},
        {
            "prompt": "a?",
            "chosen": turns,
            "rejected": [turns[0], {"role": "assistant", "content": "c"}],
            "score_chosen": 4.0,
        },
        {
            "instruction": "a?",
            "completions": [{"model": "m", "response": "b", "annotations": {"helpfulness": {"Rating": "4"}}}],
        },
        {"messages": turns, "label": True},
        {"question": "a?", "response_a": "b", "response_b": "c", "winner": "model_a", "overall_preference": -2},
        {"prompt": "a?", "responses": ["b", "c"], "ranks": [2, 1], "scores": [0.1, 0.9]},
        {"chosen": "\n\nHuman: a?\n\nAssistant: b", "rejected": "\n\nHuman: a?\n\nAssistant: c"},
        {"conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]},
    ]
    lines = [json.dumps(row).encode() + b"\n" for row in told]
    table = b'prompt,chosen,rejected\na?,"b, c",d\ne?,f,g\n'
    return [*lines, b"".join(lines), json.dumps(told).encode(), table, b"prompt\tchosen\trejected\na?\tb, c\td\n"]


def _bodies() -> list[bytes]:
    top = [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2.5}]
    token = {"token": "A", "logprob": -0.1, "bytes": [65], "top_logprobs": top}
    message = {"role": "assistant", "content": "A", "refusal": None}
    choices = [
        {"index": n, "message": message, "finish_reason": "stop", "logprobs": {"content": [token]}} for n in (0, 1)
    ]
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    answers = [
        {"id": "x", "choices": choices, "usage": usage},
        {"error": {"message": "too long", "code": "context_length_exceeded"}},
        {"detail": [{"loc": ["body"], "msg": "no"}]},
        {"object": "list", "data": [{"id": "m"}]},
    ]
    return [json.dumps(answer).encode() for answer in answers]


def _weights() -> list[bytes]:
    def file(header: bytes, held: int) -> bytes:
        return len(header).to_bytes(8, "little") + header + bytes(held)

    tensors = {"a": ("F32", [2, 2], 0, 16), "b": ("BF16", [3], 16, 22)}
    header = {name: {"dtype": d, "shape": s, "data_offsets": [i, j]} for name, (d, s, i, j) in tensors.items()}
    return [file(json.dumps(header | extra).encode(), 22) for extra in ({}, {"__metadata__": {"format": "pt"}})]


TARGETS = {
    "yaml": Target(
        yaml,
        lambda: _files("pipelines/*.yaml", "prompts/rubrics/*.yaml", "constitutions/*.yaml"),
        (
            b"stages:",
            b"models:",
            b"engine: openai",
            b"- rate:",
            b"- compare: ",
            b"&a [*a]",
            b"!!binary |",
            b"!!timestamp",
            b"<<: *a",
        ),
    ),
    "rows": Target(
        rows,
        _rows,
        (
            b'"chosen"',
            b'"rejected"',
            b'"messages"',
            b'"content"',
            b'"role"',
            b'"user"',
            b'"system"',
            b"\n\nHuman: ",
            b'"Rating"',
            b'"id"',
        ),
    ),
    "replies": Target(
        replies,
        _replies,
        (
            b"Rating:",
            b"[[",
            b"]]",
            b"Verdict:",
            b"tie",
            b"1st",
            b" > ",
            b"```json",
            b"N/A",
            b"Overall Score: ",
            b"|",
            b"/10",
            "４".encode(),
        ),
    ),
    "wire": Target(
        wire,
        _bodies,
        (b'"choices"', b'"content"', b'"logprob"', b'"index"', b'"usage"', b'"message"', b'"error"', b"-9999.0"),
    ),
    "safetensors": Target(
        safetensors,
        _weights,
        (
            b'"dtype"',
            b'"shape"',
            b'"data_offsets"',
            b'"F32"',
            b'"I64"',
            b"\xff" * 8,
            b"\x00" * 8,
            b'"__metadata__"',
            b"[0,16]",
        ),
    ),
}


# ---------------------------------------------------------------- damage


def damaged(rng: random.Random, texts: list[bytes], words: tuple[bytes, ...]) -> bytes:
    """One of the texts with one to six changes."""
    data = bytearray(rng.choice(texts))
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((0, 1, 2, 8, 40)))
        match rng.randrange(8):
            case 0:
                data[start:end] = b""
            case 1:
                data[start:end] = rng.choice(words)
            case 2:
                data[start:end] = rng.choice((*NUMBERS, *TEXTS))
            case 3:
                data[start:end] = rng.choice(MARKS)
            case 4:
                data[start:start] = data[start:end] * rng.choice((2, 30, 500))
            case 5:
                other = rng.choice(texts)
                cut = rng.randrange(len(other) + 1)
                data[start:] = other[cut : cut + 4000]
            case 6:
                data[start:end] = rng.randbytes(end - start)
            case _:
                value = _value(rng, data)
                data[value[0] : value[1]] = rng.choice((*NUMBERS, *TEXTS, *words))
    return bytes(data[:20_000])


def _value(rng: random.Random, data: bytearray) -> tuple[int, int]:
    """Where one number or quoted text stands."""
    values = [match.span() for match in re.finditer(rb'"[^"\n]{0,200}"|-?\d[\d.e+-]*', data)]
    return rng.choice(values) if values else (0, 0)


def inputs(name: str, seed: int) -> Iterator[bytes]:
    """What was found before, then damage without end."""
    target, rng = TARGETS[name], random.Random(f"{name} {seed}")
    kept = [path.read_bytes() for path in sorted((SEEDS / name).glob("*"))]
    yield from kept
    texts = [*target.texts(), *kept]
    while True:
        yield damaged(rng, texts, target.words)


def attempt(name: str, data: bytes, folder: Path) -> int:
    """How many readers took it. Raises what one raised, other than a refusal, and AssertionError if it took long."""
    began = time.process_time()
    count = TARGETS[name].reads(data, folder)
    seconds = time.process_time() - began
    assert seconds < SLOW, f"{seconds:.1f} s"
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    ends, count, causes = time.monotonic() + 60 * options.minutes, 0, set()
    with tempfile.TemporaryDirectory() as folder:
        for data in inputs(options.target, options.seed):
            if time.monotonic() > ends:
                break
            count += 1
            try:
                attempt(options.target, data, Path(folder))
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                cause = (type(error), last.filename, last.lineno)
                if cause in causes:
                    continue
                causes.add(cause)
                kept = SEEDS / options.target / hashlib.sha256(data).hexdigest()[:12]
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(data)
                print(
                    f"{kept}: {type(error).__name__}: {str(error)[:200]}\n  {last.filename}:{last.lineno}", flush=True
                )
    print(f"{options.target}, seed {options.seed}: {count:,} inputs in {options.minutes:g} minutes, {len(causes)} fell")
    sys.exit(bool(causes))


if __name__ == "__main__":
    main()
