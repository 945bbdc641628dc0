"""The wave: the requests that a run would send to servers now, each once, in files of bounded size for each model.

A run collects them: a request is what the engine would send, under the keys that the run looks for. A file is in the
shape of OpenAI's batches, which vLLM's `run-batch` reads, too: a line for each request, of several samples where the
server can return them together, named by the key of its first call.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from rlaif.engines.batches import path_of
from rlaif.engines.openai import OpenAIEngine, encoded
from rlaif.engines.protocol import Request, Served
from rlaif.errors import WorkError
from rlaif.files import new_file
from rlaif.pipeline.batched import Batched, Entry, Sent

MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000  # of a file, as OpenAI bounds them
MAKING = ".wave"  # the folder of files that are not whole yet


class _Making:
    """A file that is being written, and the calls beside it."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = (folder / f"{name}.jsonl", folder / f"{name}.calls.jsonl")
        self._files = [open(new_file(path), "wb") for path in self.paths]  # noqa: SIM115 - closed by `close`
        self.requests = self.calls = self.size = self._sum = 0
        self._read = self._written = 0

    def has_room(self, line: bytes) -> bool:
        return not self.requests or (self.requests < MOST_REQUESTS and self.size + len(line) <= MOST_BYTES)

    def append(self, line: bytes, sent: Sent, tokens: tuple[int, int]) -> None:
        for file, data in zip(self._files, (line, msgspec.json.encode(sent) + b"\n"), strict=True):
            file.write(data)
        self.requests, self.calls, self.size = self.requests + 1, self.calls + len(sent.keys), self.size + len(line)
        self._sum += int.from_bytes(hashlib.sha256(line).digest()[:16], "big")
        self._read, self._written = self._read + tokens[0], self._written + tokens[1]

    def close(self) -> None:
        for file in self._files:
            with file:
                file.flush()
                os.fsync(file.fileno())

    def entry(self, name: str, model: str, identity: str) -> Entry:
        digest = f"{self._sum % 2**128:032x}"
        return Entry(name, model, identity, self.requests, self.calls, digest, (self._read, self._written))


class Wave:
    """Collects requests, for `Scheduler.collect`; `finish` puts their files into the folder."""

    def __init__(self, batched: Batched) -> None:
        self._state = batched.state
        self._folder = batched.path / MAKING
        with suppress(OSError):  # a link that somebody put there; a folder is none
            self._folder.unlink()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._under_way = {key for entry in batched.under_way() for sent in batched.sent(entry) for key in sent.keys}
        self._seen: set[str] = set()
        self._making: defaultdict[tuple[str, str], list[_Making]] = defaultdict(list)  # by model and identity
        self.under_way = 0  # calls that wait for a batch that was sent

    def __call__(self, engine: Served, request: Request, keys: Sequence[str]) -> None:
        assert isinstance(engine, OpenAIEngine), "no other engine is a server's"
        key_of = dict(zip(request.indices, keys, strict=True))
        new = {index: key for index, key in key_of.items() if key not in self._seen}
        self._seen.update(new.values())
        self.under_way += sum(key in self._under_way for key in new.values())
        for part in self._parts(engine, request, {i: key for i, key in new.items() if key not in self._under_way}):
            body, without = engine.filed(part)
            asked = part.model_dump(mode="json", exclude_unset=True)  # what is unset was not sent
            sent = Sent([key_of[index] for index in part.indices], asked, sorted(without))
            line = {"custom_id": sent.custom_id, "method": "POST", "url": path_of(engine), "body": body}
            most = len(part.indices) * (part.sampling.max_tokens + engine.thinking_tokens)
            self._append(engine, encoded(line) + b"\n", sent, (engine.estimate(part), most))

    def _parts(self, engine: OpenAIEngine, request: Request, keys: dict[int, str]) -> Iterator[Request]:
        """The request for these of its calls, as the server can take it; one whose answer was of no use has a new seed,
        and goes alone."""
        salted = {index: salt for index, key in keys.items() if (salt := self._state.salts.get(key))}
        if plain := tuple(index for index in keys if index not in salted):
            yield from engine.parts(request.model_copy(update={"indices": plain}))
        for index, salt in salted.items():
            yield request.model_copy(update={"indices": (index,), "salt": salt})

    def _append(self, engine: OpenAIEngine, line: bytes, sent: Sent, tokens: tuple[int, int]) -> None:
        making = self._making[engine.name, engine.identity]
        if not making or not making[-1].has_room(line):
            making.append(_Making(self._folder, f"{engine.name}-{len(making) + 1}"))
        making[-1].append(line, sent, tokens)

    def close(self) -> None:
        for making in self._making.values():
            for one in making:
                one.close()

    def finish(self, batched: Batched) -> None:
        """Put the closed files in their place, in a folder that is locked: nobody else may have worked there meanwhile.

        Where the same ones wait to be sent already, these stay; others are replaced, and their calls kept, since
        results may come of them yet.
        """
        if batched.state != self._state:
            problem = "another process changed the batches of this run meanwhile"
            raise WorkError(problem, file=str(batched.path), fix="run the same command again")
        state, written = batched.state, batched.written()
        stay: list[Entry] = []
        for (model, identity), making in self._making.items():
            before = [entry for entry in written if (entry.model, entry.identity) == (model, identity)]
            alike = sorted(e.digest for e in before) == sorted(one.entry("", model, identity).digest for one in making)
            if alike and all(batched.requests(entry).is_file() for entry in before):
                stay += before
                continue
            for one in making:
                number = state.last[model] = state.last.get(model, 0) + 1
                entry = one.entry(f"{model}-{number:03d}", model, identity)
                os.replace(one.paths[1], batched.calls(entry))
                os.replace(one.paths[0], batched.requests(entry))
                state.entries.append(entry)
        for entry in written:
            entry.over |= entry not in stay
        batched.save()
        for entry in state.entries:
            if entry.over:
                batched.requests(entry).unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)
