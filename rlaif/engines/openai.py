"""A model behind any OpenAI-compatible server, and a server is not trusted.

What was asked for is checked on every arrival: the number of choices, that each says something, that log-probabilities
came back, JSON where it was asked for. What a server is found to ignore is kept in `capabilities`. Knows nothing of
concurrency or of the call store: the scheduler decides how many requests are under way.

Seeds: the sample with index i of attempt a carries seed `sampling.seed + a * ATTEMPT_STRIDE + i`. A request for several
samples carries the seed of its first, and servers that fan out n samples (vLLM) add the sample's place to it, so that a
server which returns fewer than n and is then asked one by one answers from the same streams. A sample that came back
empty is asked again under another seed: a server that honours seeds would only repeat itself. Samples whose indices do
not follow one another go in separate requests, since the places of one request do.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import openai
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from rlaif.config import OpenAIModel
from rlaif.engines.protocol import Account, Arrived, Logprobs, Reply, Request
from rlaif.errors import EngineError
from rlaif.records import FinishReason, Message, Sampling, Usage, digest

Item = tuple[tuple[Message, ...], str]

ATTEMPT_STRIDE, EMPTY_STRIDE = 1_000_003, 15_485_863  # primes, so that attempts and re-asks of near seeds do not meet
TOP_LOGPROBS = 20  # the most that vLLM and the OpenAI API report
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds; Retry-After is honoured up to the longest
CONNECT_TIMEOUT = 10.0
NO_KEY = "none"  # what `api_key` gives for a server that wants none
RETRIED_STATUS = frozenset({408, 409, 429})

# Servers differ in the words for the same three ends. Any other word (`abort`, `tool_calls`) is not a completion.
FINISH_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
}


class _Body(BaseModel):
    """What is read of a server's answer; the rest is ignored. Types are checked, unlike in the client library."""

    model_config = ConfigDict(extra="ignore")


class _TopToken(_Body):
    token: Arrived
    logprob: float


class _Token(_TopToken):
    top_logprobs: list[_TopToken] | None = None


class _TokenList(_Body):
    content: list[_Token] | None = None


class _ChoiceMessage(_Body):
    content: Arrived | None = None
    refusal: Arrived | None = None


class _Choice(_Body):
    message: _ChoiceMessage
    index: int = 0
    finish_reason: str | None = None
    stop_reason: int | str | None = None  # vLLM: the stop string that was met; none for the end token
    logprobs: _TokenList | None = None


class _Tokens(_Body):
    """Unknown where a server sends null: an answer is not thrown away for want of its bill."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @field_validator("prompt_tokens", "completion_tokens", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        return value if isinstance(value, int) and value >= 0 else 0


class _Answer(_Body):
    choices: list[_Choice]
    usage: _Tokens | None = None


class _Failure(Exception):
    """One HTTP call that failed: the error to report if no retry is left, and how long the server asked to wait."""

    def __init__(self, error: EngineError, wait: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.wait = error, wait


class OpenAIEngine:
    """One model behind one base URL."""

    in_process = False

    def __init__(self, name: str, spec: OpenAIModel, api_key: str) -> None:
        self.name, self.spec = name, spec
        self.capabilities: dict[str, bool | None] = {}  # n, logprobs, json_schema: as met; seed: by `probe`
        self.account = Account()
        self._key = api_key
        self._client: openai.AsyncOpenAI | None = None

    @property
    def identity(self) -> str:
        """The model's name stands beside the digest for whoever reads the call store."""
        spec = self.spec
        return spec.identity or f"server:{spec.model}:{digest([spec.base_url, spec.model, spec.revision])}"

    @property
    def server(self) -> str:
        return f"{self.spec.base_url} {self.spec.key_variable}"

    async def sample(self, requests: Sequence[Request]) -> list[list[Reply | EngineError]]:
        return list(await asyncio.gather(*(self._sample(request) for request in requests)))

    async def logprobs(self, items: Sequence[Item]) -> list[Logprobs]:
        raise EngineError(
            f"the server of {self.name!r} cannot score given text",
            cause="verb",
            fix="use `engine: transformers` for this model",
        )

    async def score(self, items: Sequence[Item]) -> list[float | EngineError]:
        raise EngineError(
            f"the server of {self.name!r} has no reward head",
            cause="verb",
            fix="use `engine: transformers` for this model",
        )

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def probe(self) -> None:
        """Learn whether the server honours seeds: `capabilities["seed"]` is None where its samples are alike anyway."""
        asked = (Message(role="user", content="Write a line of random words."),)
        sampling = Sampling(temperature=1.0, max_tokens=16)
        texts: list[str | None] = []
        try:
            for seed in (11, 11, 12):
                answer = await self._post(asked, sampling, count=1, seed=seed)
                self.account.discard(_shared(answer.usage or _Tokens(), answer.choices)[0])
                texts.append(answer.choices[0].message.content)
        except EngineError as error:
            error.fatal |= error.cause == "connection"  # nobody is there; once somebody was, the next request may do
            if error.fatal:
                raise
            self.capabilities["seed"] = None  # whatever befell the probe need not befall the work
        else:
            first, again, other = texts
            self.capabilities["seed"] = False if first != again else None if first == other else True

    # ------------------------------------------------------------ one request, sample by sample

    async def _sample(self, request: Request) -> list[Reply | EngineError]:
        """Every sample of a request, or its own error: together if the server can, and what is missing again."""
        found: dict[int, Reply | EngineError] = {}
        empties: Counter[int] = Counter()  # by sample
        while missing := [index for index in request.indices if index not in found]:
            groups = self._groups(request.sampling, missing, empties)
            outcomes = await asyncio.gather(*(self._ask(request, group, empties[group[0]]) for group in groups))
            empty = []
            for outcome in outcomes:
                found |= {index: reply for index, reply in outcome.items() if reply is not None}
                empty += [index for index, reply in outcome.items() if reply is None]
            empties.update(empty)
            for index in empty:
                if empties[index] > self.spec.retries:
                    found[index] = self._error(
                        f"the server returned an empty completion {empties[index]} times", "empty", retryable=True
                    )
                else:
                    self.account.retries["empty"] += 1
            if again := [empties[index] for index in empty if index not in found]:
                await asyncio.sleep(_wait(max(again)))
        return [found[index] for index in request.indices]

    def _groups(self, sampling: Sampling, indices: Sequence[int], empties: Mapping[int, int]) -> list[list[int]]:
        """Which samples share a request: those whose seeds follow one another, if the server can give several."""
        together = self._asks_together(sampling)
        groups: list[list[int]] = []
        for index in indices:
            last = groups[-1][-1] if groups else None
            if together and last is not None and index == last + 1 and empties[index] == empties[last]:
                groups[-1].append(index)
            else:
                groups.append([index])
        return groups

    def _asks_together(self, sampling: Sampling) -> bool:
        """n in one request, unless the server ignores n. Greedy samples go alone: vLLM refuses several of them."""
        return sampling.temperature > 0 and self.capabilities.get("n") is not False

    async def _ask(
        self, request: Request, indices: Sequence[int], empties: int
    ) -> dict[int, Reply | EngineError | None]:
        """What one call brings for each sample, None for an empty one; a sample the server left out is absent."""
        seed = request.sampling.seed + request.attempt * ATTEMPT_STRIDE + empties * EMPTY_STRIDE + indices[0]
        try:
            answer = await self._post(
                request.messages, request.sampling, count=len(indices), seed=seed, json_schema=request.json_schema
            )
        except EngineError as error:
            return dict.fromkeys(indices, error)
        choices = sorted(answer.choices, key=lambda choice: choice.index)[: len(indices)]
        if len(indices) > 1:
            self.capabilities["n"] = len(choices) == len(indices)
        usages = _shared(answer.usage or _Tokens(), choices)
        outcome: dict[int, Reply | EngineError | None] = {}
        for index, choice, usage in zip(indices, choices, usages, strict=False):
            try:
                outcome[index] = self._reply(request, choice, usage)
            except EngineError as error:
                outcome[index] = error
            if not isinstance(outcome[index], Reply):
                self.account.discard(usage)
        return outcome

    def _reply(self, request: Request, choice: _Choice, usage: Usage) -> Reply | None:
        """A verified sample, or None for an empty one that may be asked again."""
        sampling = request.sampling
        reason = FINISH_REASONS[str(choice.finish_reason)]
        text = (choice.message.content or "").strip()
        if not text and choice.message.refusal:
            text, reason = choice.message.refusal.strip(), "content_filter"
        if not text and reason == "length":
            raise self._error(
                f"the completion is still empty after max_tokens {sampling.max_tokens}",
                "empty",
                fix="raise `max_tokens`: a reasoning model spends them before it answers",
            )
        if not text and reason != "content_filter":
            return None
        tokens = choice.logprobs.content if choice.logprobs and choice.logprobs.content else None
        if sampling.logprobs or sampling.alternatives:
            reported = bool(tokens) and (not sampling.alternatives or bool(tokens[0].top_logprobs))  # type: ignore[index]
            self.capabilities["logprobs"] = reported
            if not reported:
                raise self._error(
                    "the server returned no log-probabilities",
                    "no-logprobs",
                    fix="use a server that reports them (vLLM does), or ask for none",
                )
        if request.json_schema is not None and reason == "stop":
            self.capabilities["json_schema"] = _is_json(text)
        return Reply(
            text=text,
            finish_reason=reason,
            usage=usage,
            token_logprobs=tuple(t.logprob for t in _of_text(tokens, choice)) if sampling.logprobs and tokens else None,
            alternatives=_named(tokens[0], sampling.alternatives) if sampling.alternatives and tokens else None,
        )

    # ------------------------------------------------------------ one call, with retries

    async def _post(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        *,
        count: int,
        seed: int,
        json_schema: dict[str, Any] | None = None,
    ) -> _Answer:
        tries = 0
        while True:
            try:
                return await self._send(messages, sampling, count, seed, json_schema)
            except _Failure as failure:
                tries += 1
                if not failure.error.retryable or tries > self.spec.retries:
                    raise failure.error from None
                self.account.retries[failure.error.cause] += 1
                await asyncio.sleep(failure.wait if failure.wait is not None else _wait(tries))

    async def _send(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        count: int,
        seed: int,
        json_schema: dict[str, Any] | None,
    ) -> _Answer:
        asked: dict[str, Any] = {
            "model": self.spec.model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "n": count,
            "seed": seed,
        }
        if sampling.stop:
            asked["stop"] = list(sampling.stop)
        if sampling.logprobs or sampling.alternatives:
            asked["logprobs"] = True
        if sampling.alternatives:
            asked["top_logprobs"] = TOP_LOGPROBS
        if json_schema is not None:
            asked["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "reply", "strict": True, "schema": json_schema},
            }
        try:
            # The client's own timeout restarts with every byte; this one bounds the whole request.
            async with asyncio.timeout(self.spec.timeout):
                raw = await self._connected().chat.completions.with_raw_response.create(**asked)
        except (TimeoutError, openai.APITimeoutError):
            raise _Failure(
                self._error(
                    f"no answer within {self.spec.timeout:g} s", "timeout", retryable=True, fix="raise `timeout`"
                )
            ) from None
        except openai.APIStatusError as error:
            raise self._refused(error) from None
        except openai.APIConnectionError as error:
            raise _Failure(
                self._error(
                    f"cannot reach {self.spec.base_url}: {_root(error)}",
                    "connection",
                    retryable=True,
                    fix=f"is the server running at {self.spec.base_url}?",
                )
            ) from None
        return self._read(raw.text)

    def _connected(self) -> openai.AsyncOpenAI:
        if self._client is None:
            self._client = openai.AsyncOpenAI(
                base_url=self.spec.base_url,
                api_key=self._key,
                max_retries=0,
                timeout=openai.Timeout(self.spec.timeout, connect=min(CONNECT_TIMEOUT, self.spec.timeout)),
            )
        return self._client

    def _read(self, text: str) -> _Answer:
        """The answer in a body that arrived with status 200, checked as far as every request needs."""
        try:
            # Not by pydantic's own parser: it refuses the half of a surrogate pair that some servers send.
            answer = _Answer.model_validate(json.loads(text))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in problem["loc"])
            detail = f"{where}: {problem['msg']}" if where else problem["msg"]
            raise _Failure(
                self._error(f"the server's answer cannot be read ({detail})", "bad-body", retryable=True)
            ) from None
        except (ValueError, RecursionError) as error:
            raise _Failure(
                self._error(f"the server's answer is not JSON ({error})", "bad-body", retryable=True)
            ) from None
        if not answer.choices:
            raise _Failure(self._error("the server's answer holds no choices", "bad-body", retryable=True))
        for choice in answer.choices:
            if choice.finish_reason not in FINISH_REASONS:
                for usage in _shared(answer.usage or _Tokens(), answer.choices):
                    self.account.discard(usage)
                raise _Failure(
                    self._error(
                        f"the server ended a completion with {choice.finish_reason!r}", "bad-body", retryable=True
                    )
                )
        return answer

    def _refused(self, error: openai.APIStatusError) -> _Failure:
        """A status that is not 200, in words: which are worth a retry, and what the user can do about the others."""
        status, said = error.status_code, self._said(error)
        if status in RETRIED_STATUS or status >= 500:
            cause = "rate-limit" if status == 429 else "server"
            fix = "lower `concurrency`" if status == 429 else None
            wait = _retry_after(error.response.headers.get("retry-after"))
            return _Failure(self._error(f"the server answered {status}: {said}", cause, retryable=True, fix=fix), wait)
        cause, fix, variable = f"http-{status}", None, self.spec.key_variable
        if status in (401, 403) and variable is None:
            fix = "name the environment variable that holds a key in `api_key_env`"
        elif status == 401:
            fix = f"set the environment variable {variable} to a valid key"
        elif status == 403:
            fix = f"check that the key in {variable} may use {self.spec.model!r}"
        elif status == 404:
            fix = f"check the model name {self.spec.model!r} and base_url {self.spec.base_url}"
        elif "context length" in said or "context_length" in said:
            cause, fix = "too-long", "shorten the prompt or lower `max_tokens`"
        return _Failure(
            self._error(f"the server answered {status}: {said}", cause, fatal=status in (401, 403, 404), fix=fix)
        )

    def _said(self, error: openai.APIStatusError) -> str:
        """The server's own words on one line, from whichever field it put them in."""
        body: Any = error.body
        if isinstance(body, dict):
            inner = body.get("error", body)
            body = (inner.get("message") or inner.get("detail")) if isinstance(inner, dict) else inner
        text = self._redacted(str(body or error.response.text or "nothing"))  # before it is cut: half a key is a key
        return " ".join(text.split())[:300].rstrip(".")

    def _redacted(self, text: str) -> str:
        return text if self._key in ("", NO_KEY) else text.replace(self._key, "***")

    def _error(
        self, message: str, cause: str, *, retryable: bool = False, fatal: bool = False, fix: str | None = None
    ) -> EngineError:
        """Whatever a server said leaves through here, because it may repeat the key it was sent."""
        message = self._redacted(f"model {self.name!r}: {message}")
        return EngineError(message, cause=cause, retryable=retryable, fatal=fatal, fix=fix)


def _wait(tries: int) -> float:
    """Exponential backoff with full jitter, so that requests which failed together do not return together."""
    return random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tries - 1)))


def _retry_after(header: str | None) -> float | None:
    """Seconds, or a date: both forms of the header are in use."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT) if math.isfinite(seconds) else None


def _root(error: BaseException) -> str:
    """The reason below the client library's layers, which say only `Connection error.`"""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _shared(usage: _Tokens, choices: Sequence[_Choice]) -> list[Usage]:
    """Usage per sample. Servers report the sum: it is shared evenly, and the first carries the prompt and the rest."""
    each, rest = divmod(usage.completion_tokens, len(choices))
    return [
        Usage(prompt_tokens=0 if n else usage.prompt_tokens, completion_tokens=each + (0 if n else rest))
        for n in range(len(choices))
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
        reported[name] = max(reported.get(name, -math.inf), entry.logprob)
    return {name: reported.get(name.strip()) for name in names}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
