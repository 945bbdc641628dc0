"""A model behind any OpenAI-compatible server. The server is not trusted.

Every answer is checked against the request: the number of choices, that each holds text, that log-probabilities are
there, and JSON where a schema was sent. `capabilities` records what a server ignores. Knows nothing of concurrency,
retries or the call store: every verb is one request, and a wrong answer is returned as an EngineError.

Seeds: the sample with index i of attempt a carries seed `sampling.seed + a * ATTEMPT_STRIDE + i`. A request for several
samples carries the seed of its first, and servers that fan out n samples (vLLM) add the sample's position to it. So a
server that returns fewer than n samples, and then gets one request for each, answers from the same streams. An empty
sample is requested again with another seed: a server that honours seeds would only repeat itself. Samples whose indices
are not consecutive go in separate requests, since the positions in one request are.
"""

from __future__ import annotations

import email.utils
import json
import math
import time
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import msgspec

from rlaif.config import OpenAIModel, RateLimits
from rlaif.engines.protocol import Logprobs, Reply, Request
from rlaif.engines.wire import MB, MOST, REDIRECTS, Arrival, Broken, CutShort, Misled, TooLong, Unreached, Wires
from rlaif.errors import EngineError
from rlaif.records import FinishReason, Message, Sampling, Usage, digest, logprob_problem, oneline, writable

Item = tuple[tuple[Message, ...], str]

# Primes, so that attempts and re-asks of near seeds do not collide.
ATTEMPT_STRIDE, EMPTY_STRIDE = 1_000_003, 15_485_863
TOP_LOGPROBS = 20  # the most that vLLM and the OpenAI API report
IMPOSSIBLE = -9999.0  # a log-probability
MOST_TOKENS = 2**31  # of one answer; a larger count is an error of the server
RETRIED_STATUS = frozenset({408, 409, 425, 429})
BYTES_PER_TOKEN = 2  # the estimate before the first answer: English has four, other scripts fewer
MOST_PER_BYTE = 4.0  # prompt tokens that an estimate counts for a byte: a server's count may be wrong
# Bytes of an answer that no honest server exceeds: in any case, for each token, and for each of its alternatives.
BASE, EACH_TOKEN, EACH_ALTERNATIVE = 2 * MB, 1_000, 500
LISTED, LISTED_NAMES = 16 * MB, 20  # bytes of a list of models, and those of its names that are shown at most
SHOWN = 300  # characters of a server's words in a message
READ = 20_000  # characters of a server's error that are looked at

# Servers use different words for the same three finish reasons. Any other word (`abort`, `tool_calls`) is an error.
FINISH_REASONS: dict[str | None, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
}


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
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _ChoiceMessage
    index: int = 0
    finish_reason: str | None = None
    stop_reason: int | str | None = None  # vLLM: the stop string that ended it; none for the end token
    logprobs: _TokenList | None = None


class _Tokens(msgspec.Struct):
    """0 where a server sends null or a wrong type: an answer without valid token counts is still used."""

    prompt_tokens: Any = 0
    completion_tokens: Any = 0

    def __post_init__(self) -> None:
        self.prompt_tokens, self.completion_tokens = _count(self.prompt_tokens), _count(self.completion_tokens)


class _Answer(msgspec.Struct):
    choices: list[_Choice]
    usage: _Tokens | None = None


_decoder = msgspec.json.Decoder(_Answer)


class OpenAIEngine:
    """One model behind one base URL, or behind several that serve the same."""

    in_process = False

    def __init__(self, name: str, spec: OpenAIModel, api_key: str, wires: Wires | None = None) -> None:
        self.name, self.spec = name, spec
        self.capabilities: dict[str, bool | None] = {}  # n, logprobs, json_schema: from answers; seed: from `probe`
        self._key = api_key
        self._wires, self._owned = wires or Wires(), wires is None
        self._secrets = self._wires.secrets
        self._tokens_per_byte = 0.0  # the highest that the server has reported

    @cached_property
    def identity(self) -> str:
        """The model's name beside a digest, for people who read the call store.

        Replicas share the identity of the first.
        """
        spec = self.spec
        return spec.identity or f"server:{spec.model}:{digest([spec.base_urls[0], spec.model, spec.revision])}"

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
            arrived = await self._wires.to(server, self._key).get("/models", min(self.spec.timeout, 30.0), LISTED)
        except (TimeoutError, TooLong):
            return None
        except Misled as error:
            raise self._misled(server, error) from None
        except (Unreached, Broken, CutShort) as error:
            raise self._unreached(server, error) from None
        if arrived.status in (401, 403):
            raise self._refused(arrived, server)
        try:
            if arrived.status != 200:
                return None
            names = [str(model["id"]) for model in json.loads(arrived.body)["data"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        # All names but ours are only shown, and a list may be long.
        return [self.model] * (self.model in names) + [
            self._shown(name) for name in names[:LISTED_NAMES] if name != self.model
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
                answer = await self._send(messages, Sampling(temperature=1.0, max_tokens=16), 1, seed, None, server)
                paid.append(_shared(answer)[0])
                texts.append(answer.choices[0].message.content)
        except EngineError as error:
            # Unreachable at the start of a run: stop. Later in a run it may be transient.
            error.fatal |= error.cause == "connection"
            if error.fatal:
                raise
            self.capabilities["seed"] = None  # the probe failed; the run's requests may still succeed
        else:
            first, again, other = texts
            self.capabilities["seed"] = False if first != again else None if first == other else True
        return paid

    # ------------------------------------------------------------ one request

    def parts(self, request: Request) -> list[Request]:
        """Samples share a request when their seeds are consecutive, if the server can return several.

        Greedy samples go alone: vLLM refuses several of them.
        """
        together = request.sampling.temperature > 0 and self.capabilities.get("n") is not False
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
        indices = request.indices
        seed = request.sampling.seed + request.attempt * ATTEMPT_STRIDE + request.salt * EMPTY_STRIDE + indices[0]
        try:
            answer = await self._send(
                request.messages, request.sampling, len(indices), seed, request.json_schema, server
            )
        except EngineError as error:
            return [error] * len(indices)
        answer.choices.sort(key=lambda choice: choice.index)
        del answer.choices[len(indices) :]  # not requested; their tokens were paid for and are counted
        usages = _shared(answer)
        if usages and usages[0].prompt_tokens:
            ratio = min(usages[0].prompt_tokens / _size(request.messages), MOST_PER_BYTE)
            self._tokens_per_byte = max(self._tokens_per_byte, ratio)
        if len(indices) > 1:
            self.capabilities["n"] = len(answer.choices) >= len(indices)
        arrived: list[Reply | EngineError] = []
        for position, _ in enumerate(indices):
            if position >= len(answer.choices):
                arrived.append(self._error("the server left a sample out", "fewer", retryable=True))
                continue
            arrived.append(self._reply(request, answer.choices[position], usages[position]))
        return arrived

    def _reply(self, request: Request, choice: _Choice, usage: Usage) -> Reply | EngineError:
        """A verified sample, or what is wrong with it."""
        sampling = request.sampling
        reason = FINISH_REASONS.get(choice.finish_reason)
        if reason is None:
            ended = f"the server ended a completion with {self._shown(str(choice.finish_reason))!r}"
            return self._error(ended, "bad-body", retryable=True, usage=usage)
        text = (choice.message.content or "").strip()
        if not text and choice.message.refusal:
            text, reason = choice.message.refusal.strip(), "content_filter"
        text = self._secrets.masked(text)
        if not text and reason == "length":
            return self._error(
                f"the completion is still empty after max_tokens {sampling.max_tokens}",
                "empty",
                fix="raise `max_tokens`: a reasoning model spends them before it answers",
                usage=usage,
            )
        if not text and reason != "content_filter":
            return self._error("the server returned an empty completion", "empty", retryable=True, usage=usage)
        tokens = choice.logprobs.content if choice.logprobs and choice.logprobs.content else None
        if sampling.logprobs or sampling.alternatives:
            reported = bool(tokens) and (not sampling.alternatives or bool(tokens[0].top_logprobs))  # type: ignore[index]
            self.capabilities["logprobs"] = reported
            if not reported:
                return self._error(
                    "the server returned no log-probabilities",
                    "no-logprobs",
                    fix="use a server that reports them (vLLM does), or ask for none",
                    usage=usage,
                )
        if request.json_schema is not None and reason == "stop":
            self.capabilities["json_schema"] = _is_json(text)
        token_logprobs = alternatives = None
        try:
            if sampling.logprobs and tokens:
                token_logprobs = tuple(_logprob(t.logprob) for t in _of_text(tokens, choice))
            if sampling.alternatives and tokens:
                alternatives = _named(tokens[0], sampling.alternatives)
        except ValueError as error:
            fix = "use a server that reports natural logarithms (vLLM does), or ask for no log-probabilities"
            return self._error(f"the server returned {error}", "bad-logprobs", fix=fix, usage=usage)
        return Reply(
            text=text,
            finish_reason=reason,
            usage=usage,
            token_logprobs=token_logprobs,
            alternatives=alternatives,
        )

    # ------------------------------------------------------------ on the wire

    async def _send(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        count: int,
        seed: int,
        json_schema: dict[str, Any] | None,
        server: str,
    ) -> _Answer:
        """Send one HTTP request and read its answer, which holds at least one choice. Raises EngineError."""
        body: dict[str, Any] = {
            "model": self.spec.model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            **_settings(sampling),
            "n": count,
            "seed": seed,
        }
        if json_schema is not None:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "reply", "strict": True, "schema": json_schema},
            }
        wire = self._wires.to(server, self._key)
        try:
            arrived = await wire.post("/chat/completions", _encoded(body), self.spec.timeout, _most(sampling, count))
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
        if arrived.status != 200:
            raise self._refused(arrived, server)
        return self._read(arrived.body)

    def _read(self, body: bytes) -> _Answer:
        try:
            answer = _decoder.decode(body)
        except (ValueError, RecursionError):
            answer = self._read_slowly(body)
        if not answer.choices:
            raise self._error("the server's answer holds no choices", "bad-body", retryable=True, lost=True)
        return answer

    def _read_slowly(self, body: bytes) -> _Answer:
        """With the parser that accepts half a surrogate pair, which some servers send."""
        try:
            return msgspec.convert(json.loads(body), _Answer)
        except msgspec.ValidationError as error:
            problem = f"cannot be read ({error})"
        except json.JSONDecodeError as error:
            problem = f"is not JSON ({error})"
        except UnicodeDecodeError:
            problem = "is not UTF-8"
        except RecursionError:
            problem = "is nested too deep"
        except (ValueError, OverflowError):
            problem = "holds a number that is too large"
        raise self._error(f"the server's answer {problem}", "bad-body", retryable=True, lost=True)

    def _unreached(self, server: str, error: Exception, *, lost: bool = False) -> EngineError:
        fix = f"is the server running at {server}?"
        return self._error(f"cannot reach {server}: {error}", "connection", retryable=True, fix=fix, lost=lost)

    def _misled(self, server: str, error: Misled) -> EngineError:
        fix = f"state the server's own address in `base_url`, in place of {server}"
        return self._error(f"{server} cannot be used: {error}", "redirect", fatal=True, fix=fix)

    def _refused(self, arrived: Arrival, server: str) -> EngineError:
        """The error for a status that is not 200: whether it can be retried, else what the user can do."""
        status, message = arrived.status, self._server_message(arrived.body)
        fix: str | None
        if status in RETRIED_STATUS or status >= 500:
            cause = "rate-limit" if status == 429 else "overloaded" if status == 503 else "server"
            if cause == "rate-limit" and "insufficient_quota" in message:
                fix = "the account has no credit left: add credit, since waiting does not help"
                return self._error(f"the server answered 429: {message}", "quota", fatal=True, fix=fix)
            fix = "state `limits:`, or lower `concurrency`" if status == 429 else None
            wait = _retry_after(arrived.headers)
            return self._error(f"the server answered {status}: {message}", cause, retryable=True, fix=fix, wait=wait)
        cause, fix, variable = f"http-{status}", None, self.spec.key_variable
        if arrived.elsewhere:
            message += f" (at {arrived.elsewhere}, where {server} redirects; it got no key)"
            fix = "state the server's own address in `base_url`, so that it gets the key"
        elif status in REDIRECTS:
            fix = f"check base_url {server}: the address that it redirects to cannot be read"
        elif status in (401, 403) and variable is None:
            fix = "name the environment variable that holds a key in `api_key_env`"
        elif status == 401:
            fix = f"set the environment variable {variable} to a valid key"
        elif status == 403:
            fix = f"check that the key in {variable} may use {self.spec.model!r}"
        elif status == 404:
            fix = f"check the model name {self.spec.model!r} and base_url {server}"
        elif "context length" in message or "context_length" in message:
            cause, fix = "too-long", "shorten the prompt or lower `max_tokens`"
        return self._error(f"the server answered {status}: {message}", cause, fatal=status in (401, 403, 404), fix=fix)

    def _server_message(self, raw: bytes) -> str:
        """The server's error message on one line, from any of the fields that servers use."""
        text = raw.decode("utf-8", "replace")
        try:
            body: Any = json.loads(text)
        except (ValueError, RecursionError):
            body = None
        if isinstance(body, dict):
            inner = body.get("error", body)
            code = inner.get("code") if isinstance(inner, dict) else None
            body = (inner.get("message") or inner.get("detail")) if isinstance(inner, dict) else inner
            if isinstance(code, str) and body and code not in str(body):
                body = f"{body} ({code})"
        return self._shown(str(body or text or "nothing"))

    def _shown(self, words: str) -> str:
        """A server's words on one short line, without a key, nor half a key where they are cut."""
        return oneline(self._secrets.masked_error(writable(words[:READ])))[:SHOWN].rstrip(".")

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


@lru_cache(maxsize=256)
def _settings(sampling: Sampling) -> dict[str, Any]:
    """The part of a request that the sampling settings decide. Callers must not change it: it is cached."""
    fields: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.logprobs or sampling.alternatives:
        fields["logprobs"] = True
    if sampling.alternatives:
        fields["top_logprobs"] = TOP_LOGPROBS
    return fields


def _encoded(body: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:  # half a surrogate pair: written as an escape, which every server reads
        return json.dumps(body).encode()


def _size(messages: Sequence[Message]) -> int:
    """Size in bytes, with a few for the markup of each message."""
    return sum(len(message.content.encode("utf-8", "replace")) + 16 for message in messages)


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < MOST_TOKENS else 0


def _most(sampling: Sampling, count: int) -> int:
    """The most bytes of an answer with `count` samples: far more than a server needs for what it was asked."""
    each = EACH_TOKEN + (EACH_ALTERNATIVE * TOP_LOGPROBS if sampling.alternatives else 0)
    return min(BASE + count * sampling.max_tokens * each, MOST)


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


def _shared(answer: _Answer) -> list[Usage]:
    """Usage per choice. Servers report the sum: it is shared evenly, and the first carries the prompt and the rest."""
    usage = answer.usage or _Tokens()
    if len(answer.choices) == 1:
        return [Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)]
    each, rest = divmod(usage.completion_tokens, len(answer.choices))
    return [
        Usage(prompt_tokens=0 if n else usage.prompt_tokens, completion_tokens=each + (0 if n else rest))
        for n in range(len(answer.choices))
    ]


def _of_text(tokens: Sequence[_Token], choice: _Choice) -> Sequence[_Token]:
    """`tokens` without the end token, which vLLM reports with the others and which is no part of the text."""
    ended = choice.finish_reason == "stop" and not isinstance(choice.stop_reason, str)
    return tokens[:-1] if ended and "".join(t.token for t in tokens[:-1]) == choice.message.content else tokens


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
