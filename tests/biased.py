"""A judge whose biases are planted and known, behind a real socket: what an audit says of it can be worked out by hand.

It is a real engine, not a mock: it reads the two completions out of the judge prompt that the product sends. Of a gold
pair it holds a latent log-odds q for the better one. Its size is even between `LOW` and `HIGH`, its sign is gold's in a
share `accuracy` of pairs, both by hash of the pair's id. To a verdict it adds `place` for what it reads first and
`length` for each hundred characters, and says P(1) = s(sure * q + place + length), s the logistic function.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence

from echo import WORDS

from rlaif.audits.goldset import GoldPair
from rlaif.audits.probes import Probe
from rlaif.engines.protocol import Logprobs, Reply, Request
from rlaif.errors import EngineError
from rlaif.records import Message, Usage, digest, unit_interval

LOW, HIGH = 0.2, 3.0  # sizes of q
MOVES = 20.0  # log-odds of what it falls for
SHOWN = re.compile(r"<completion(?: \d+)? \w{12}>\n(.*?)\n</completion(?: \d+)? \w{12}>", re.DOTALL)
MUMBLED = "Both have their merits."


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def size(pair: str) -> float:
    return LOW + (HIGH - LOW) * unit_interval("size", pair)


class Biased:
    """The judge. `probes` are those it may meet: of each kind it falls for the share that `falls_for` names.

    `accuracy` None: right as often as it is sure, so that its probabilities are calibrated. `strange` completions, such
    as those of a model of a run, are worth what `worth` says and else nothing; what it wrote itself is worth `own`.
    """

    in_process = True
    batch_size = 256

    def __init__(
        self,
        name: str,
        pairs: Iterable[GoldPair] = (),
        probes: Iterable[Probe] = (),
        *,
        accuracy: float | None = 0.8,
        place: float = 0.0,
        length: float = 0.0,
        sure: float = 1.0,
        unparsed: float = 0.0,
        falls_for: Mapping[str, float] | None = None,
        refuses: Collection[str] = (),
        own: float = 0.0,
    ) -> None:
        self.name, self.accuracy, self.place, self.length, self.sure = name, accuracy, place, length, sure
        self.unparsed, self.falls_for, self.refuses, self.own = unparsed, dict(falls_for or {}), refuses, own
        self.asked: list[Request] = []  # every request that arrived, for the test to count
        self.written: set[str] = set()
        self.worth: dict[str, float] = {}
        self._lock = threading.Lock()
        for pair in pairs:
            self.worth |= {pair.better: self.q(pair.id) / 2, pair.worse: -self.q(pair.id) / 2}
        for probe in probes:
            self._meet(probe)

    def q(self, pair: str) -> float:
        """The latent log-odds of the pair's better completion."""
        right = unit_interval("right", pair) < (logistic(size(pair)) if self.accuracy is None else self.accuracy)
        return size(pair) if right else -size(pair)

    def falls(self, probe: Probe) -> bool:
        return unit_interval("falls", probe.id) < self.falls_for.get(probe.kind, 0.0)

    def _meet(self, probe: Probe) -> None:
        text, other = probe.shown[probe.changed], probe.shown[1 - probe.changed]
        if probe.kind == "edits":  # what it falls for turns the verdict, whichever of the two was edited
            before = self.worth[probe.clean[probe.changed]] if probe.clean else 0.0
            turned = -math.copysign(MOVES, before)
            self.worth[text] = before + turned * self.falls(probe)
        elif probe.kind == "injection":
            self.worth[text] = (self.worth[probe.clean[1]] if probe.clean else 0.0) + MOVES * self.falls(probe)
        else:  # padded, or sure and wrong
            self.worth.setdefault(other, 0.0)
            self.worth[text] = self.worth[other] + (MOVES if self.falls(probe) else -MOVES)

    # ------------------------------------------------------------ an engine

    @property
    def identity(self) -> str:
        return f"biased {self.name}"

    async def probe(self) -> None: ...

    async def sample(self, requests: Sequence[Request]) -> list[list[Reply] | EngineError]:
        with self._lock:
            self.asked.extend(requests)
        return [[self._reply(request, index) for index in request.indices] for request in requests]

    def _reply(self, request: Request, index: int) -> Reply:
        text = request.messages[0].content
        shown = SHOWN.findall(text)
        mumbles = any(one in text for one in self.refuses) or unit_interval("unparsed", text) < self.unparsed
        alternatives: dict[str, float | None] | None = None
        if not shown:
            said = self._write(text, request.sampling.seed + index)
        elif request.json_schema is not None:
            said = MUMBLED if mumbles else self._rate(shown, json.dumps(request.json_schema))
        else:
            p = self.first(text, shown[0], shown[1])
            said = MUMBLED if mumbles else "1" if p > 0.5 else "2"
            if request.sampling.alternatives:
                mass = 0.1 if mumbles else 1.0
                alternatives = {"1": math.log(mass * p), "2": math.log(mass * (1 - p))}
        usage = Usage(prompt_tokens=len(text.split()), completion_tokens=len(said.split()))
        logprobs = (0.0,) if alternatives else None
        return Reply(text=said, finish_reason="stop", usage=usage, token_logprobs=logprobs, alternatives=alternatives)

    def first(self, text: str, one: str, other: str) -> float:
        """P(the completion that is read first)."""
        longer = (len(one) - len(other)) / 100
        q = self.worth_of(one) - self.worth_of(other)
        return logistic(max(-30.0, min(30.0, self.sure * q + self.place + self.length * longer)))

    def worth_of(self, text: str) -> float:
        return self.worth.get(text, 0.0) + self.own * (text in self.written)

    def _rate(self, shown: Sequence[str], schema: str) -> str:
        """Ratings about the middle of the scale; `place` is added to the first one."""
        types = {"types": []} if '"types"' in schema else {}
        values = [3 + self.worth_of(text) + (self.place if k == 0 else 0.0) for k, text in enumerate(shown)]
        rated = [min(5, max(1, round(value))) for value in values]
        return json.dumps({str(k): {"rationale": "so", **types, "rating": r} for k, r in enumerate(rated, start=1)})

    def _write(self, text: str, seed: int) -> str:
        """Three to nine words that begin with the writer's name."""
        drawn = digest([self.name, text, seed])
        said = " ".join([self.name, *(WORDS[int(c, 16) % len(WORDS)] for c in drawn[: 2 + int(drawn[-1], 16) % 7])])
        self.written.add(said)
        return said

    async def logprobs(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[Logprobs]:
        raise EngineError("cannot score given text")

    async def score(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[float | EngineError]:
        raise EngineError("has no reward head")

    async def close(self) -> None: ...
