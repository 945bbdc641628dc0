"""A small deterministic engine and a pipeline on it: the tests' stand-in for a large model, behind a real socket.

It is a real engine, not a mock: it answers any prompt, in words that depend on nothing but the request, and rates by
the length of what it is shown, in each form it is asked in, so that every expected figure can be worked out by hand.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Sequence
from pathlib import Path

from rlaif.engines.protocol import Logprobs, Reply, Request
from rlaif.errors import EngineError
from rlaif.records import Message, Usage, digest

WORDS = "river stone cloud maple ember willow harbor meadow lantern copper".split()


class Echo:
    """Answers with one to nine words; asked for JSON, rates each completion by its number of words, at most five.

    Asked for a critique it ends in the number of words as the overall score; asked for probabilities it gives that
    number 0.6, the next lower one 0.2 and no other number any.
    """

    in_process = True
    batch_size = 64

    def __init__(self, name: str, unreadable: str = "") -> None:
        self.name, self.unreadable = name, unreadable
        self.asked: list[Request] = []  # every request that arrived, for the test to count
        self._lock = threading.Lock()

    @property
    def identity(self) -> str:
        return f"echo {self.name}"

    async def probe(self) -> None: ...

    async def sample(self, requests: Sequence[Request]) -> list[list[Reply] | EngineError]:
        with self._lock:
            self.asked.extend(requests)
        return [[self._reply(request, index) for index in request.indices] for request in requests]

    def _reply(self, request: Request, index: int) -> Reply:
        text = request.messages[-1].content
        shown = re.findall(r"<completion(?: \d+)? \w{12}>\n(.*?)\n</completion", text, re.DOTALL)
        alternatives: dict[str, float | None] | None = None
        if request.sampling.alternatives and shown:
            words = min(5, len(shown[0].split()))
            said = str(words)
            alternatives = {str(words): math.log(0.6), str(words - 1): math.log(0.2)}
        elif shown and "Overall score:" in text:
            said = f"It begins with {shown[0].split()[0]!r}.\n\nOverall score: {len(shown[0].split())}"
        elif request.json_schema is not None:
            types = {"types": []} if '"types"' in json.dumps(request.json_schema) else {}
            ratings = {
                str(k): {"rationale": "by length", **types, "rating": min(5, len(t.split()))}
                for k, t in enumerate(shown, start=1)
            }
            said = "I would rather not." if self.unreadable and self.unreadable in text else json.dumps(ratings)
        else:
            seed = digest([self.name, text, request.sampling.seed, index])
            said = " ".join(WORDS[int(c, 16) % len(WORDS)] for c in seed[: 1 + int(seed[-1], 16) % 9])
        return Reply(
            text=said,
            finish_reason="stop",
            usage=Usage(prompt_tokens=len(text.split()), completion_tokens=len(said.split())),
            token_logprobs=(math.log(0.6), 0.0) if alternatives else None,
            alternatives=alternatives,
        )

    async def logprobs(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[Logprobs]:
        raise EngineError("cannot score given text")

    async def score(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[float]:
        raise EngineError("has no reward head")

    async def close(self) -> None: ...


PIPELINE = """\
name: echo
models:
  one: {{engine: openai, model: one, base_url: "{url}"}}
  two: {{engine: openai, model: two, base_url: "{url}"}}
  judge: {{engine: openai, model: judge, base_url: "{url}", price: {{prompt: 1, completion: 2}}}}
stages:
  - prompts: {{path: prompts.jsonl, split: all}}
  - sample: {{models: [one, two], per_prompt: 2, sampling: {{max_tokens: 32}}}}
  - rate: {{model: judge, rubric: rubric.yaml, reask: 1}}
  - pair: {{rule: best-worst}}
"""

RUBRIC = """\
name: length
version: 1
scale: {low: 1, high: 5}
aspects:
  - {id: words, description: More words are better.}
  - {id: detail, description: More detail is better.}
"""


def write_project(folder: Path, url: str, prompts: int = 20) -> Path:
    """A pipeline, a rubric and prompts to run on Echo; returns the pipeline file."""
    write_prompts(folder, prompts)
    (folder / "rubric.yaml").write_text(RUBRIC)
    (folder / "echo.yaml").write_text(PIPELINE.format(url=url))
    return folder / "echo.yaml"


def write_prompts(folder: Path, count: int) -> None:
    lines = [json.dumps({"prompt": f"Say something about number {i}."}) + "\n" for i in range(count)]
    (folder / "prompts.jsonl").write_text("".join(lines))
