"""A model behind any OpenAI-compatible server. The server is not trusted.

Every answer is checked against the request: the number of choices, that each holds text, that log-probabilities are
there, and JSON where a schema was sent. `capabilities` records what a server ignores. Knows nothing of concurrency,
retries or the call store: every verb is one request, and a wrong answer is returned as an EngineError.

Nothing is sent that nobody set, but `max_tokens`, which bounds the cost, and `seed`. A field that the server refuses is
sent the other way (left out, under its other name) once; where that is accepted it is a capability from then on, as
`refuses seed`.

Seeds: the sample with index i of attempt a carries seed `sampling.seed + a * ATTEMPT_STRIDE + i`. A request for several
samples carries the seed of its first, and servers that fan out n samples (vLLM) add the sample's position to it. So a
server that returns fewer than n samples, and then gets one request for each, answers from the same streams. An empty
sample is requested again with another seed: a server that honours seeds would only repeat itself. Samples whose indices
are not consecutive go in separate requests, since the positions in one request are.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from rlaif.config import OpenAIModel, RateLimits
from rlaif.engines import refusals
from rlaif.engines.protocol import REFUSES, Logprobs, Reply, Request
from rlaif.engines.thinking import parted
from rlaif.engines.wire import (
    MB,
    MOST,
    NO_KEY,
    NOTHING,
    REDIRECTS,
    Arrival,
    Broken,
    CutShort,
    Extra,
    Misled,
    Opens,
    TooLong,
    Unreached,
    Wire,
    Wires,
    proxy_of,
)
from rlaif.errors import EngineError, shortened
from rlaif.records import FinishReason, Message, Sampling, Usage, digest, logprob_problem, one_system, oneline, writable

Item = tuple[tuple[Message, ...], str]

# Primes, so that attempts and re-asks of near seeds do not collide.
ATTEMPT_STRIDE, EMPTY_STRIDE = 1_000_003, 15_485_863
TOP_LOGPROBS = 20  # the most that vLLM and the OpenAI API report
FEW_TOP_LOGPROBS = 5  # the most of many other servers
IMPOSSIBLE = -9999.0  # a log-probability
MOST_TOKENS = 2**31  # of one answer; a larger count is an error of the server
RETRIED_STATUS = frozenset({408, 409, 425, 429})
BYTES_PER_TOKEN = 2  # the estimate before the first answer: English has four, other scripts fewer
MOST_PER_BYTE = 4.0  # prompt tokens that an estimate counts for a byte: a server's count may be wrong
# Bytes of an answer that no honest server exceeds: in any case, for each token, and for each of its alternatives.
BASE, EACH_TOKEN, EACH_ALTERNATIVE = 2 * MB, 1_000, 500
LISTED, LISTED_NAMES = 16 * MB, 20  # bytes of a list of models, and those of its names that are shown at most
WITHOUT_LOGPROBS = "state `verdicts: hard`, or other `answers`, or use a server that reports them (vLLM does)"
SHOWN = 300  # characters of a server's words in a message
FIRST_WORDS = 100  # characters of a body that is no JSON
NOT_ACCEPTED = frozenset({400, 422, 501})  # statuses with which servers refuse a field
MOST_PREPARED = 256  # of settings as they are sent

# Servers use different words, in different cases, for the same three finish reasons. Any other word is kept as `stop`.
FINISH_REASONS: dict[str, FinishReason] = {
    **dict.fromkeys(
        ("stop", "eos", "eos_token", "stop_sequence", "end_turn", "end", "complete", "completed", "done", "finished"),
        "stop",
    ),
    **dict.fromkeys(
        ("length", "max_tokens", "max_length", "max_output_tokens", "max_new_tokens", "max_completion_tokens",
         "token_limit", "model_length", "model_context_window_exceeded", "context_length_exceeded", "context_window"),
        "length",
    ),
    **dict.fromkeys(
        ("content_filter", "content_filtered", "safety", "recitation", "blocklist", "prohibited_content", "spii",
         "refusal", "sensitive", "guardrail_intervened", "moderation", "blocked"),
        "content_filter",
    ),
}  # fmt: skip
# The server gave up: its text is no whole answer.
GAVE_UP = frozenset(
    "abort aborted error cancelled canceled failed timeout insufficient_system_resource network_error".split()
)
# What of a request can be sent otherwise, and how that is told.
OTHERWISE = {
    "max_tokens": "`max_completion_tokens` is sent instead",
    "n": "each sample is asked for by itself",
    "temperature": "it is left out, and the server's own holds",
    "top_p": "it is left out, and the server's own holds",
    "seed": "it is left out, and samples cannot be repeated",
    "stop": "it is left out, and completions are cut here",
    "response_format": "it is left out, and replies are checked here",
    "top_logprobs": f"{FEW_TOP_LOGPROBS} are asked for",
    "system": "the system message begins the user's",
}
# What a token that ends an answer is written as; it is no part of the text.
_END = re.compile(r"\s*(?:<[^<>\s]{1,40}>|\[/?[A-Z_]{2,12}\]|)\s*")
_HTML = re.compile(r"\s*<(?:!doctype|html|head|body|\?xml|!--|[a-z]+[ >])", re.IGNORECASE)
_STREAM = re.compile(r"\s*(?:data|event|id|retry)?:", re.IGNORECASE)


class _TopToken(msgspec.Struct):
    """The fields that are read from a server's answer; the others are ignored. Types are checked."""

    token: str
    logprob: float


class _Token(msgspec.Struct):
    token: str
    logprob: float
    top_logprobs: list[_TopToken] | None = None


class _TokenList(msgspec.Struct):
    content: list[_Token] | None = None


class _ChoiceMessage(msgspec.Struct):
    content: str | list[Any] | None = None
    refusal: str | None = None
    # Where servers put the thinking that they cut off the content; of another type, it is none.
    reasoning_content: Any = None
    reasoning: Any = None


class _Choice(msgspec.Struct):
    message: _ChoiceMessage | None = None
    index: int = 0
    finish_reason: str | None = None
    stop_reason: int | str | None = None  # vLLM: the stop string that ended it; none for the end token
    logprobs: _TokenList | None = None
    error: Any = None


class _Tokens(msgspec.Struct):
    """0 where a server sends null or a wrong type: an answer without valid token counts is still used."""

    prompt_tokens: Any = 0
    completion_tokens: Any = 0

    def __post_init__(self) -> None:
        self.prompt_tokens, self.completion_tokens = _count(self.prompt_tokens), _count(self.completion_tokens)


class _Answer(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Tokens | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Answer)


class _Sent(NamedTuple):
    """What one HTTP request is to carry."""

    messages: Sequence[Message]
    sampling: Sampling
    samples: int
    seed: int
    json_schema: dict[str, Any] | None
    server: str


class _Words(NamedTuple):
    """What a choice says: its text, thinking that came apart from it, and a refusal."""

    text: str
    thinking: str
    refused: bool = False


class OpenAIEngine:
    """One model behind one base URL, or behind several that serve the same."""

    in_process = False

    def __init__(
        self, name: str, spec: OpenAIModel, api_key: str, wires: Wires | None = None, extra: Extra = NOTHING
    ) -> None:
        self.name, self.spec = name, spec
        # n, logprobs, json_schema: from answers; seed: from `probe`; `refuses ...`: from refusals.
        self.capabilities: dict[str, bool | None] = {}
        self.tell: Callable[[str], None] = lambda _: None  # is told what is found out, in one line
        self._told: set[str] = set()
        self._key, self._extra = api_key, extra
        self._without, self._known = frozenset[str](spec.omit), 0  # fields not sent, by so many capabilities
        self._tried: set[str] = set()  # sent otherwise, without success
        self._trying = asyncio.Lock()
        self._prepared: dict[tuple[Sampling, bool, bool], dict[str, Any]] = {}
        self._wires, self._owned = wires or Wires(), wires is None
        self._wire_to: dict[str, Wire] = {}
        self._secrets = self._wires.secrets
        for secret in (api_key, *extra.secrets):  # also where no request is sent, and answers come from a file
            if secret != NO_KEY:
                self._secrets.add(secret)
        self._tokens_per_byte = 0.0  # the highest that the server has reported

    @cached_property
    def identity(self) -> str:
        """The model's name beside a digest, for people who read the call store.

        Replicas share the identity of the first.
        """
        spec = self.spec
        identity = spec.identity or f"server:{spec.model}:{digest([spec.base_urls[0], spec.model, spec.revision])}"
        # What the file says of requests beyond the sampling changes their answers, too.
        added: list[Any] = [spec.extra_body] if spec.extra_body else []
        added += [name for name in ("stop", "temperature", "top_p") if name in spec.omit]
        return f"{identity}:{digest(added, length=16)}" if added else identity

    @property
    def model(self) -> str:
        return self.spec.model

    @property
    def urls(self) -> tuple[str, ...]:
        return self.spec.base_urls

    @property
    def retries(self) -> int:
        return self.spec.retries

    @property
    def limits(self) -> RateLimits | None:
        return self.spec.limits

    @property
    def thinking_tokens(self) -> int:
        return self.spec.thinking_tokens

    async def logprobs(self, items: Sequence[Item]) -> list[Logprobs]:
        """Raises EngineError: no OpenAI-compatible server offers it."""
        raise EngineError(
            f"the server of {self.name!r} cannot score given text",
            cause="verb",
            fix="use `engine: transformers` for this model",
        )

    async def score(self, items: Sequence[Item]) -> list[float | EngineError]:
        """Raises EngineError: no OpenAI-compatible server offers it."""
        raise EngineError(
            f"the server of {self.name!r} has no reward head",
            cause="verb",
            fix="use `engine: transformers` for this model",
        )

    async def close(self) -> None:
        if self._owned:
            await self._wires.close()

    async def models(self, server: str) -> list[str] | None:
        """The models that a server lists; None where it lists none. Raises EngineError when it cannot be reached."""
        try:
            arrived = await self._wire(server).get("/models", min(self.spec.timeout, 30.0), LISTED)
        except (TimeoutError, TooLong):
            return None
        except (Misled, Unreached, Broken, CutShort) as error:
            raise self.went_wrong(server, error) from None
        if arrived.status in (401, 403):
            raise self.went_wrong(server, arrived)
        try:
            if arrived.status != 200:
                return None
            names = [str(model["id"]) for model in json.loads(arrived.body)["data"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        # All names but ours are only shown, and a list may be long.
        return [self.model] * (self.model in names) + [
            self.shown(name) for name in names[:LISTED_NAMES] if name != self.model
        ]

    async def probe(self, server: str) -> list[Usage]:
        """Find out whether the server honours seeds; `capabilities["seed"]` is None where its samples never differ.

        Returns what the requests cost. Raises EngineError where no request can succeed.
        """
        messages = (Message(role="user", content="Write a line of random words."),)
        texts: list[str | None] = []
        paid: list[Usage] = []
        try:
            for seed in (11, 11, 12):
                if "seed" in self._left_out():
                    break
                answer = await self._send(_Sent(messages, PROBE, 1, seed, None, server))
                choices = answer.choices or []
                paid += _shared(choices, answer.usage)[:1]
                texts.append(str(choices[0].message and choices[0].message.content))
        except EngineError as error:
            # Unreachable, or another kind of server, at the start of a run: stop. Later it may be transient.
            error.fatal |= error.cause == "connection" or (error.cause == "bad-body" and error.fix is not None)
            if error.fatal:
                raise
            self.capabilities["seed"] = None  # the probe failed; the run's requests may still succeed
        else:
            if len(texts) < 3 or "seed" in self._left_out():
                self.capabilities["seed"] = False
                return paid
            first, again, other = texts
            self.capabilities["seed"] = False if first != again else None if first == other else True
        return paid

    # ------------------------------------------------------------ one request

    def parts(self, request: Request) -> list[Request]:
        """Samples share a request when their seeds are consecutive, if the server can return several.

        Greedy samples go alone: vLLM refuses several of them.
        """
        together = (
            request.sampling.temperature > 0 and self.capabilities.get("n") is not False and "n" not in self._left_out()
        )
        groups: list[list[int]] = []
        for index in request.indices:
            if together and groups and index == groups[-1][-1] + 1:
                groups[-1].append(index)
            else:
                groups.append([index])
        if len(groups) == 1:
            return [request]
        return [request.model_copy(update={"indices": tuple(group)}) for group in groups]

    def estimate(self, request: Request) -> int:
        """Prompt tokens by the highest ratio that the server has reported; at first by a rule of thumb."""
        size = _size(request.messages)
        return math.ceil(size * (self._tokens_per_byte or 1 / BYTES_PER_TOKEN))

    async def post(self, request: Request, server: str) -> list[Reply | EngineError]:
        try:
            answer = await self._send(_sent(request, server))
        except EngineError as error:
            return [error] * len(request.indices)
        return self._replies(request, answer)

    def filed(self, request: Request) -> tuple[dict[str, Any], frozenset[str]]:
        """The body that `post` sends of a request, for a file of many, and what it leaves out."""
        without = self._left_out()
        body = self._body(_sent(request, self.urls[0]), without)
        return (body if self.spec.azure is None else body | {"model": self.spec.azure.deployment}), without

    def received(
        self, request: Request, without: frozenset[str], status: int, body: bytes
    ) -> list[Reply | EngineError]:
        """As `post`, of an answer that comes from a file. What it refuses of the request is left out from then on."""
        sent, arrived = _sent(request, self.urls[0]), Arrival(status, {}, body)
        try:
            if fields := self._refused_fields(arrived, self._body(sent, without), sent, without):
                words = refusals.said(body).words
                self._refuses(fields, words)
                raise self._error(f"the server refuses it: {self.shown(words)}", "refused", retryable=True)
            answer = self._accepted(self._answered(arrived, sent.server), sent)
        except EngineError as error:
            return [error] * len(request.indices)
        replies = self._replies(request, answer)
        if self.capabilities.get("n") is False and "n" not in without:
            told = f"the server of {self.name!r} answers `n` with fewer samples than were asked for"
            self._do_without(["n"], f"{told}: {OTHERWISE['n']}")
        return replies

    def went_wrong(self, server: str, what: Exception | Arrival) -> EngineError:
        """The error for a request beside the completions, as for a file, that failed or was refused."""
        if isinstance(what, Arrival):
            return self._forbidden(what, self._server_message(refusals.said(what.body)), server)
        return self._misled(server, what) if isinstance(what, Misled) else self._unreached(server, what)

    def _replies(self, request: Request, answer: _Answer) -> list[Reply | EngineError]:
        """The verified samples of an answer, or what is wrong with each."""
        indices, choices = request.indices, answer.choices or []
        choices.sort(key=lambda choice: choice.index)
        del choices[len(indices) :]  # not requested; their tokens were paid for and are counted
        usages = _shared(choices, answer.usage)
        if usages and usages[0].prompt_tokens:
            ratio = min(usages[0].prompt_tokens / _size(request.messages), MOST_PER_BYTE)
            self._tokens_per_byte = max(self._tokens_per_byte, ratio)
        if len(indices) > 1:
            self.capabilities["n"] = len(choices) >= len(indices)
        arrived: list[Reply | EngineError] = []
        for position, _ in enumerate(indices):
            if position >= len(choices):
                arrived.append(self._error("the server left a sample out", "fewer", retryable=True))
                continue
            arrived.append(self._reply(request, choices[position], usages[position]))
        return arrived

    def _reply(self, request: Request, choice: _Choice, usage: Usage) -> Reply | EngineError:
        """A verified sample, or what is wrong with it."""
        sampling = request.sampling
        reason = self._reason(choice, usage, sampling)
        if isinstance(reason, EngineError):
            return reason
        if choice.message is None:
            if reason != "content_filter":
                return self._error(
                    "the server sent a choice without a message", "bad-body", retryable=True, usage=usage
                )
            return Reply(text="", finish_reason=reason, usage=usage)
        text, thinking, refused = _words(choice.message)
        if refused:
            reason = "content_filter"
        if sampling.stop and "stop" in self._without:
            text = _stopped(text, sampling.stop)
        said = (text, thinking)
        text, thinking = self._secrets.masked(text), self._secrets.masked(thinking)
        thought, answer, clear = parted(text)
        has_text = bool(text) if self.spec.thinking == "keep" or not clear else bool(answer)
        if not has_text and reason != "content_filter":
            return self._empty(choice, reason, sampling, usage, bool(thinking or thought))
        tokens = choice.logprobs.content if choice.logprobs and choice.logprobs.content else None
        if sampling.logprobs or sampling.alternatives:
            reported = bool(tokens) and (not sampling.alternatives or bool(tokens[0].top_logprobs))  # type: ignore[index]
            self.capabilities["logprobs"] = reported
            if not reported:
                return self._error(
                    "the server returned no log-probabilities",
                    "no-logprobs",
                    fix=WITHOUT_LOGPROBS,
                    usage=usage,
                )
        if request.json_schema is not None and reason == "stop":
            self.capabilities["json_schema"] = _is_json(answer)
        token_logprobs = alternatives = None
        try:
            if sampling.logprobs and tokens and not thinking:
                token_logprobs = tuple(_logprob(t.logprob) for t in _of_text(tokens, choice))
            if sampling.alternatives and tokens:
                alternatives = self._alternatives(tokens, answer, bool(thinking) or thought is not None, sampling)
        except ValueError as error:
            fix = "use a server that reports natural logarithms (vLLM does), or ask for no log-probabilities"
            return self._error(f"the server returned {error}", "bad-logprobs", fix=fix, usage=usage)
        return Reply(
            text=text,
            finish_reason=reason,
            usage=usage,
            token_logprobs=token_logprobs,
            alternatives=alternatives,
            thinking=thinking or None,
            masked=(text, thinking) != said,
        )

    def _reason(self, choice: _Choice, usage: Usage, sampling: Sampling) -> FinishReason | EngineError:
        """Why a completion ended, in whatever words; an error where the server gave up."""
        said = choice.finish_reason
        reason = FINISH_REASONS.get(said or "") or FINISH_REASONS.get((said or "").strip().lower())
        if reason is not None:
            return reason
        if (said or "").strip().lower() in GAVE_UP or (choice.error and not choice.message):
            words = refusals.said_by({"error": choice.error}).words if choice.error else ""
            ended = f"the server ended a completion with {self.shown(str(said))!r}"
            ended += f": {self.shown(words)}" if words else ""
            return self._error(ended, "bad-body", retryable=True, usage=usage)
        if said:
            self._tell(
                f"finish {said}",
                f"the server of {self.name!r} ends completions with {self.shown(said)!r}, which is unknown here: "
                "they are kept as finished",
            )
        return "length" if usage.completion_tokens >= sampling.max_tokens + self.spec.thinking_tokens else "stop"

    def _empty(
        self, choice: _Choice, reason: FinishReason, sampling: Sampling, usage: Usage, thought: bool
    ) -> EngineError:
        """The error of a sample without an answer: cut in its thinking, all of it taken for thinking, or empty."""
        if reason == "length" and thought:
            tokens = sampling.max_tokens + self.spec.thinking_tokens
            fix = "state `thinking_tokens`, or more of them: they are allowed for thinking, beyond `max_tokens`"
            return self._error(f"the model still thinks after {tokens} tokens", "cut-thinking", fix=fix, usage=usage)
        if reason == "length":
            return self._error(
                f"the completion is still empty after max_tokens {sampling.max_tokens}",
                "empty",
                fix="raise `max_tokens`: a reasoning model spends them before it answers",
                usage=usage,
            )
        message = choice.message
        field = next((f for f in ("reasoning_content", "reasoning") if message and _text(getattr(message, f))), None)
        if field is not None:
            fix = "switch the server's reasoning parser off, or the model's thinking, as by `extra_body`"
            problem = f"the answer is empty, and all that the model wrote is in `{field}`"
            return self._error(problem, "no-content", fix=fix, usage=usage)
        problem = "the server returned an empty completion"
        if choice.finish_reason and choice.finish_reason.lower() not in FINISH_REASONS:
            problem += f" (it ended with {self.shown(choice.finish_reason)!r})"
        return self._error(problem, "empty", retryable=True, usage=usage)

    def _alternatives(
        self, tokens: Sequence[_Token], answer: str, thought: bool, sampling: Sampling
    ) -> dict[str, float | None]:
        """The named alternatives of the token that the answer begins with; none where that cannot be told."""
        start = _beginning(tokens, answer, thought=thought, stops=bool(sampling.stop))
        if start is None:
            self._tell(
                "unbound",
                f"the server of {self.name!r} reports log-probabilities that do not fit its completions, as of a "
                "model's thinking: what is read from them is unparsed",
            )
            return dict.fromkeys(sampling.alternatives)
        return _named(tokens[start], sampling.alternatives)

    def _tell(self, what: str, line: str) -> None:
        """Tell something once."""
        if what not in self._told and len(self._told) < MOST_PREPARED:
            self._told.add(what)
            self.tell(self._secrets.masked_error(writable(line)))

    # ------------------------------------------------------------ on the wire

    async def _send(self, sent: _Sent) -> _Answer:
        """Send one request and read its answer, which holds at least one choice. Raises EngineError.

        What the server refuses of it is sent the other way.
        """
        without = self._left_out()
        body = self._body(sent, without)
        arrived = await self._exchange(body, sent)
        if isinstance(arrived, Arrival) and (fields := self._refused_fields(arrived, body, sent, without)):
            arrived = await self._otherwise(arrived, fields, sent, without)
        return self._accepted(arrived, sent)

    def wire_by(self, opens: Opens) -> Wire:
        """A wire to the first server, opened otherwise than the requests for completions are."""
        return self._wires.to(self.urls[0], self._key, self._extra, opens)

    def _wire(self, server: str) -> Wire:
        wire = self._wire_to.get(server)
        if wire is None:
            wire = self._wire_to[server] = self._wires.to(server, self._key, self._extra, _opens(self.spec))
        return wire

    def _left_out(self) -> frozenset[str]:
        """What is not sent, or not so: what the file omits, and what the server refuses."""
        if len(self.capabilities) != self._known:
            self._known = len(self.capabilities)
            refused = {name for name in OTHERWISE if self.capabilities.get(f"{REFUSES}{name}")}
            self._without = frozenset[str](self.spec.omit) | refused
            self._prepared.clear()
        return self._without

    def _body(self, sent: _Sent, without: frozenset[str]) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.spec.model,
            "messages": _turns(sent.messages, self.spec.system == "fold" or "system" in without),
            **self._settings(sent.sampling, without),
        }
        if sent.samples > 1 and "n" not in without:
            body["n"] = sent.samples
        if "seed" not in without:
            body["seed"] = sent.seed
        if sent.json_schema is not None and "response_format" not in without:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "reply", "strict": True, "schema": sent.json_schema},
            }
        if self.spec.extra_body:
            body |= self.spec.extra_body
        return body

    def _settings(self, sampling: Sampling, without: frozenset[str]) -> dict[str, Any]:
        """The part of a request that the sampling settings decide. Callers must not change it: it is kept."""
        stated = sampling.model_fields_set
        name = (sampling, "temperature" in stated, "top_p" in stated)
        if without is self._without and (fields := self._prepared.get(name)) is not None:
            return fields
        fields = {key: getattr(sampling, key) for key in ("temperature", "top_p") if key in stated - without}
        if "max_tokens" not in self.spec.omit:
            key = "max_completion_tokens" if "max_tokens" in without else self.spec.max_tokens_name
            fields[key] = sampling.max_tokens + self.spec.thinking_tokens
        if sampling.stop and "stop" not in without:
            fields["stop"] = list(sampling.stop)
        if sampling.logprobs or sampling.alternatives:
            fields["logprobs"] = True
        if sampling.alternatives:
            fields["top_logprobs"] = FEW_TOP_LOGPROBS if "top_logprobs" in without else TOP_LOGPROBS
        if without is self._without:
            if len(self._prepared) >= MOST_PREPARED:
                self._prepared.clear()
            self._prepared[name] = fields
        return fields

    async def _exchange(self, body: dict[str, Any], sent: _Sent) -> _Answer | Arrival:
        """One HTTP request, and its answer; or what the server said in place of one. Raises EngineError."""
        server, sampling = sent.server, sent.sampling
        wire = self._wire(server)
        most = _most(sampling.max_tokens + self.spec.thinking_tokens, bool(sampling.alternatives), sent.samples)
        try:
            arrived = await wire.post("/chat/completions", encoded(body), self.spec.timeout, most)
        except TimeoutError:
            problem = f"no answer within {self.spec.timeout:g} s"
            raise self._error(problem, "timeout", retryable=True, fix="raise `timeout`", lost=True) from None
        except Unreached as error:
            raise self._unreached(server, error) from None
        except Broken as error:
            raise self._unreached(server, error, lost=True) from None
        except Misled as error:
            raise self._misled(server, error) from None
        except TooLong as error:
            problem = f"the server's answer is not read: {error}, more than was asked for can fill"
            fix = f"check what the server at {server} is; if its completions are so long, raise `max_tokens`"
            raise self._error(problem, "too-long", fix=fix, lost=True) from None
        except CutShort as error:
            problem = f"the server's answer broke off ({error})"
            raise self._error(problem, "bad-body", retryable=True, lost=True) from None
        return self._answered(arrived, server)

    def _answered(self, arrived: Arrival, server: str) -> _Answer | Arrival:
        """What arrived as an answer, or as it is where it is none. Raises EngineError for one that cannot be read."""
        if arrived.status != 200:
            return arrived
        answer = self._read(arrived.body, server)
        if answer.error and not answer.choices:
            return arrived._replace(status=_status(answer.error) or 200)
        if answer.choices is None:
            words = self.shown(refusals.said(arrived.body).words)
            problem = f"the server's answer holds no `choices`: {words}"
            raise self._error(problem, "bad-body", retryable=True, lost=True)
        return answer

    def _accepted(self, arrived: _Answer | Arrival, sent: _Sent) -> _Answer:
        """An answer with choices; those of a content filter are empty. Raises EngineError for a refusal."""
        if isinstance(arrived, Arrival):
            told = refusals.said(arrived.body)
            if arrived.status not in (200, 400, 403, 422, 451) or not refusals.FILTERED.search(told.all):
                raise self._refused(arrived, sent)
            words = f": {self.shown(told.words)}"
            usage: _Tokens | None = None
        elif arrived.choices:
            return arrived
        else:
            words, usage = ": it answers without a choice", arrived.usage
        self._tell(
            "filter", f"the content filter of {self.name!r} stops completions{words} (they are dropped, and counted)"
        )
        return _Answer([_Choice(index=i, finish_reason="content_filter") for i in range(sent.samples)], usage)

    # ------------------------------------------------------------ the other way

    def _refused_fields(
        self, arrived: Arrival, body: Mapping[str, Any], sent: _Sent, without: frozenset[str]
    ) -> list[str]:
        """What of a request the server refuses that can be sent otherwise."""
        if arrived.status not in NOT_ACCEPTED:
            return []
        could = [name for name in OTHERWISE if name in body and name not in without | self.spec.extra_body.keys()]
        if any(message.role == "system" for message in sent.messages) and not without & {"system"}:
            could += ["system"] if self.spec.system == "own" else []
        told = refusals.said(arrived.body)
        return refusals.refused_fields(told, body, [name for name in could if name not in self._tried])

    async def _otherwise(
        self, arrived: Arrival, fields: list[str], sent: _Sent, without: frozenset[str]
    ) -> _Answer | Arrival:
        """The answer to the request without what is refused of it, which is recorded where that is accepted."""
        async with self._trying:
            if self._left_out() != without:  # another request found it out meanwhile
                without = self._left_out()
                again = await self._exchange(body := self._body(sent, without), sent)
                if not isinstance(again, Arrival):
                    return again
                arrived, fields = again, self._refused_fields(again, body, sent, without)
            words, tried = refusals.said(arrived.body).words, list[str]()
            fields = [field for field in fields if field not in self._tried]  # meanwhile, in vain
            while fields:
                tried += fields
                changed = without | set(tried)
                again = await self._exchange(body := self._body(sent, changed), sent)
                if not isinstance(again, Arrival):
                    self._refuses(tried, words)
                    return again
                arrived, fields = again, self._refused_fields(again, body, sent, changed)
            if arrived.status in NOT_ACCEPTED:
                self._tried.update(tried)
            return arrived

    def _refuses(self, fields: Sequence[str], words: str) -> None:
        """Record what the server refuses, and tell it."""
        ways = ", ".join(f"`{field}` ({OTHERWISE[field]})" for field in fields)
        self._do_without(fields, f"the server of {self.name!r} refuses {ways}; it says: {self.shown(words)}")

    def _do_without(self, fields: Sequence[str], told: str) -> None:
        for field in fields:
            self.capabilities[f"{REFUSES}{field}"] = True
        if "n" in fields:
            self.capabilities["n"] = False
        self._tell(", ".join(fields), told)

    def _read(self, body: bytes, server: str) -> _Answer:
        try:
            return _decoder.decode(body)
        except (ValueError, RecursionError):
            pass  # and read outside of this block, so that no error carries the other
        return self._read_slowly(body, server)

    def _read_slowly(self, body: bytes, server: str) -> _Answer:
        """With the parser that accepts half a surrogate pair, which some servers send."""
        fix = None
        try:
            return msgspec.convert(json.loads(body), _Answer)
        except msgspec.ValidationError as error:
            problem = f"cannot be read ({error})"
        except json.JSONDecodeError as error:
            problem, fix = self._no_json(body, server) or (f"is not JSON ({error})", None)
        except UnicodeDecodeError:
            problem = "is not UTF-8"
        except RecursionError:
            problem = "is nested too deep"
        except (ValueError, OverflowError):
            problem = "holds a number that is too large"
        raise self._error(
            f"the server's answer {problem}", "bad-body", retryable=True, fix=fix, lost=fix is None
        ) from None

    def _no_json(self, body: bytes, server: str) -> tuple[str, str] | None:
        """What an answer is that is a page or a stream, and the fix; None for broken JSON."""
        text = body[: 8 * FIRST_WORDS].decode("utf-8", "replace")
        if not text.strip() or text.lstrip()[0] in "{[":
            return None
        words = f"({shortened(self.shown(text), FIRST_WORDS)!r}, at {server}/chat/completions)"
        if _HTML.match(text):
            return f"is a page, not JSON {words}", self._other_address(server)
        if _STREAM.match(text):
            return f"is a stream of events, not JSON {words}", "switch streaming off at the server: it is not asked for"
        return f"is not JSON {words}", self._other_address(server)

    def _other_address(self, server: str) -> str:
        if re.search(r"/v\d", urlsplit(server).path):
            return f"check that base_url {server} is the address of an OpenAI-compatible server"
        return f"check base_url: most servers answer under {server}/v1"

    def _unreached(self, server: str, error: Exception, *, lost: bool = False) -> EngineError:
        fix, words = f"is the server running at {server}?", str(error)
        if server.startswith("https:") and "InvalidContentType" in words:  # rustls, of an answer without TLS
            fix = f"does the server speak HTTPS? try http{server.removeprefix('https')}"
        elif re.search(r"certificate|self.signed|unknown ?issuer|tls|ssl", words, re.IGNORECASE):
            fix = (
                f"if you trust {server}, name the file of its certificate's authority in the environment variable "
                "SSL_CERT_FILE"
            )
        if words.startswith("the sign-in"):
            fix = "sign in (`az login`), or set AZURE_OPENAI_API_KEY or AZURE_OPENAI_AD_TOKEN"
        if variable := proxy_of(server):
            fix += f"; requests go through the proxy in {variable}: check it, or name the host in NO_PROXY"
        return self._error(f"cannot reach {server}: {error}", "connection", retryable=True, fix=fix, lost=lost)

    def _misled(self, server: str, error: Misled) -> EngineError:
        fix = f"state the server's own address in `base_url`, in place of {server}"
        return self._error(f"{server} cannot be used: {error}", "redirect", fatal=True, fix=fix)

    def _refused(self, arrived: Arrival, sent: _Sent) -> EngineError:
        """The error for an answer without choices: whether it can be retried, else what the user can do."""
        status, server = arrived.status, sent.server
        told = refusals.said(arrived.body)
        message = self._server_message(told)
        answered = f"the server answered {status}: {message}"
        if status == 402 or (status in (200, 400, 403, 429) and refusals.NO_CREDIT.search(told.all)):
            fix = "the account has no credit left: add credit, since waiting does not help"
            return self._error(answered, "quota", fatal=True, fix=fix)
        if status in (200, 400, 413, 422, 500) and refusals.TOO_LONG.search(told.all):
            return self._too_long(answered, told, sent)
        if status in (400, 422) and refusals.too_many_tokens(told.words):
            return self._error(answered, "max-tokens", fix="lower `max_tokens`")
        if status in NOT_ACCEPTED and sent.sampling.alternatives and refusals.LOGPROBS.search(told.words):
            return self._error(answered, "no-logprobs", fix=WITHOUT_LOGPROBS)
        if status in RETRIED_STATUS or status >= 500 or status == 200:
            cause = "rate-limit" if status == 429 else "overloaded" if status == 503 else "server"
            slower = "state `limits:`, or lower `concurrency`" if status == 429 else None
            wait = _retry_after(arrived.headers)
            answered = f"the server answered with an error: {message}" if status == 200 else answered
            return self._error(answered, cause, retryable=True, fix=slower, wait=wait)
        return self._forbidden(arrived, message, server)

    def _too_long(self, answered: str, told: refusals.Said, sent: _Sent) -> EngineError:
        context, tokens = refusals.context_of(told.words), sent.sampling.max_tokens + self.spec.thinking_tokens
        if context is not None and tokens >= context:
            fix = f"lower `max_tokens`: the {tokens} asked for fill the model's context of {context}"
            return self._error(answered, "max-tokens", fix=fix)
        return self._error(answered, "too-long", fix="shorten the prompt or lower `max_tokens`")

    def _forbidden(self, arrived: Arrival, message: str, server: str) -> EngineError:
        """The error for a status that another try does not change."""
        status, variable = arrived.status, self.spec.key_variable
        fix: str | None = None
        if arrived.elsewhere:
            message += f" (at {arrived.elsewhere}, where {server} redirects; it got no key)"
            fix = "state the server's own address in `base_url`, so that it gets the key"
        elif status in REDIRECTS:
            fix = f"check base_url {server}: the address that it redirects to cannot be read"
        elif status in (401, 403) and variable is None and not self._extra.secrets:
            fix = "name the environment variable that holds a key in `api_key_env`"
        elif status == 401:
            fix = f"set the environment variable {variable} to a valid key" if variable else "check `headers`"
        elif status == 403:
            fix = f"check that the key in {variable or '`headers`'} may use {self.spec.model!r}"
        elif status in (404, 405):
            fix = f"check the model name {self.spec.model!r} and base_url {server}"
            if not re.search(r"/v\d", urlsplit(server).path):
                fix += f" (most servers answer under {server}/v1)"
        fatal = status in (401, 403, 404, 405)
        return self._error(f"the server answered {status}: {message}", f"http-{status}", fatal=fatal, fix=fix)

    def _server_message(self, told: refusals.Said) -> str:
        """The server's words on one line, with its code where they leave it out."""
        code = told.code.split(" ")[0]
        coded = code and not code.isdigit() and code not in told.words
        return self.shown(f"{told.words or 'nothing'}{f' ({code})' if coded else ''}")

    def masked(self, body: bytes) -> bytes:
        """What a server says beside completions, without a secret: an id or a state may be one that it repeats."""
        return self._secrets.masked(body.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")

    def shown(self, words: str) -> str:
        """A server's words on one short line, without a key, nor half a key where they are cut."""
        return shortened(oneline(self._secrets.masked_error(writable(words[: refusals.READ]))).rstrip("."), SHOWN)

    def _error(
        self,
        message: str,
        cause: str,
        *,
        retryable: bool = False,
        fatal: bool = False,
        fix: str | None = None,
        wait: float | None = None,
        usage: Usage | None = None,
        lost: bool = False,
    ) -> EngineError:
        """The only place that makes errors of a server's words, because they may repeat the key."""
        message = writable(self._secrets.masked_error(f"model {self.name!r}: {message}"))
        return EngineError(
            message, cause=cause, retryable=retryable, fatal=fatal, fix=fix, wait=wait, usage=usage, lost=lost
        )


PROBE = Sampling(temperature=1.0, max_tokens=16)


def _opens(spec: OpenAIModel) -> Opens:
    """What opens the wires of a model: the lean client, or the `openai` package, which takes half a second to load."""
    if spec.client == "lean":
        return Wire
    from rlaif.engines.sdk import opens

    return opens(spec)


def _sent(request: Request, server: str) -> _Sent:
    seed = request.sampling.seed + request.attempt * ATTEMPT_STRIDE + request.salt * EMPTY_STRIDE + request.indices[0]
    return _Sent(request.messages, request.sampling, len(request.indices), seed, request.json_schema, server)


def _turns(messages: Sequence[Message], fold: bool) -> list[dict[str, str]]:
    """The messages as they are sent: leading system messages as one, which begins the user's where they `fold`."""
    turns = [{"role": m.role, "content": m.content} for m in one_system(messages)]
    if fold and len(turns) > 1 and turns[0]["role"] == "system":
        first = turns.pop(0)
        turns[0] = {"role": turns[0]["role"], "content": f"{first['content']}\n\n{turns[0]['content']}"}
    return turns


def _status(error: Any) -> int | None:
    """The status that an error in a body tells; None where it tells none."""
    codes = [error.get(name) for name in ("code", "status", "status_code")] if isinstance(error, dict) else []
    numbers = [int(code) for code in map(str, codes) if re.fullmatch(r"[45]\d\d", code)]
    return numbers[0] if numbers else None


def _text(value: Any) -> str:
    """The text of a content: as it is, or of its parts that hold text."""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else []
    texts = [part if isinstance(part, str) else _text_of(part) for part in parts]
    return "".join(texts)


def _text_of(part: Any) -> str:
    if not isinstance(part, dict) or part.get("type", "text") not in ("text", "output_text"):
        return ""
    text = part.get("text")
    return text if isinstance(text, str) else ""


def _words(message: _ChoiceMessage) -> _Words:
    """The text of a message, its thinking, and whether the text is a refusal."""
    content: Any = message.content
    thinking = _text(message.reasoning_content) or _text(message.reasoning)
    refusal = message.refusal or ""
    if isinstance(content, list):
        dicts = [part for part in content if isinstance(part, dict)]
        thoughts = [_text(part.get("thinking")) for part in dicts if part.get("type") in ("thinking", "reasoning")]
        thinking = thinking or "".join(thoughts)
        refusal = refusal or "".join(str(part.get("refusal") or "") for part in dicts if part.get("type") == "refusal")
        content = _text(content)
    text = (content or "").strip()
    if not text and refusal:
        return _Words(refusal.strip(), thinking.strip(), refused=True)
    return _Words(text, thinking.strip())


def _stopped(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stop strings, as a server would have cut it."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)].rstrip() if ends else text


def encoded(body: dict[str, Any]) -> bytes:
    """A body, or a line of a file of them, as JSON."""
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:  # half a surrogate pair: written as an escape, which every server reads
        return json.dumps(body).encode()


def _size(messages: Sequence[Message]) -> int:
    """Size in bytes, with a few for the markup of each message."""
    return sum(len(message.content.encode("utf-8", "replace")) + 16 for message in messages)


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < MOST_TOKENS else 0


def _most(tokens: int, alternatives: bool, count: int) -> int:
    """The most bytes of an answer with `count` samples: far more than a server needs for what it was asked."""
    each = EACH_TOKEN + (EACH_ALTERNATIVE * TOP_LOGPROBS if alternatives else 0)
    return min(BASE + count * tokens * each, MOST)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds to wait. The header holds seconds or a date."""
    try:
        header = headers.get("retry-after")
        if header is None:
            return None
        try:
            seconds = float(header)
        except ValueError:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
    except (ValueError, OverflowError):  # not text, not a date, or an invalid date
        return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _shared(choices: Sequence[_Choice], usage: _Tokens | None) -> list[Usage]:
    """Usage per choice. Servers report the sum: it is shared evenly, and the first carries the prompt and the rest."""
    usage = usage or _Tokens()
    if len(choices) == 1:
        return [Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)]
    each, rest = divmod(usage.completion_tokens, max(1, len(choices)))
    return [
        Usage(prompt_tokens=0 if n else usage.prompt_tokens, completion_tokens=each + (0 if n else rest))
        for n in range(len(choices))
    ]


def _of_text(tokens: Sequence[_Token], choice: _Choice) -> Sequence[_Token]:
    """`tokens` without the end token, which vLLM reports with the others and which is no part of the text."""
    ended = choice.finish_reason == "stop" and not isinstance(choice.stop_reason, str) and choice.message is not None
    return tokens[:-1] if ended and "".join(t.token for t in tokens[:-1]) == choice.message.content else tokens  # type: ignore[union-attr]


def _beginning(tokens: Sequence[_Token], answer: str, *, thought: bool, stops: bool) -> int | None:
    """The index of the token that the answer begins with: the last ones that spell it. None where none do.

    A server may report the tokens of a model's thinking that it cut off. Tokens may be reported without their texts.
    """
    texts = [token.token for token in tokens]
    if not any(texts):
        return None if thought else 0
    for written in (texts, [text.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n") for text in texts]):
        if (start := _spelt(written, answer)) is not None:
            return start
        if stops and not thought and "".join(written).lstrip().startswith(answer):  # the stop string is cut off
            return next(i for i, text in enumerate(written) if text.strip())
    return None


def _spelt(texts: Sequence[str], answer: str) -> int | None:
    last = len(texts)
    while last > 1 and _END.fullmatch(texts[last - 1]) and texts[last - 1].strip() != answer:
        last -= 1
    tail = ""
    for start in range(last - 1, -1, -1):
        tail = texts[start] + tail
        if len(words := tail.strip()) >= len(answer):
            return start if words == answer and texts[start].strip() else None
    return None


def _named(token: _Token, names: Sequence[str]) -> dict[str, float | None]:
    """Log-probability of each name as the first token, written with or without white space around it."""
    reported: dict[str, float] = {}
    for entry in (token, *(token.top_logprobs or ())):
        name = entry.token.strip()
        reported[name] = max(reported.get(name, IMPOSSIBLE), _logprob(entry.logprob))
    return {name: reported.get(name.strip()) for name in names}


def _logprob(value: float) -> float:
    """A log-probability as it is kept: 0 at most, and -9999, as OpenAI reports it, for an impossible token.

    Raises ValueError for one that no probability has.
    """
    if problem := logprob_problem(value):
        raise ValueError(problem)
    return min(max(value, IMPOSSIBLE), 0.0)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
