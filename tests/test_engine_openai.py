"""The openai engine against real sockets: a server of ours that behaves, and scripted ones that do not."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import math
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import Answer, Script, completion, scripted, serve, top_logprobs

from rlaif.config import OpenAIModel
from rlaif.engines import openai as module
from rlaif.engines import traffic
from rlaif.engines.ledger import Ledger, Tally
from rlaif.engines.openai import OpenAIEngine
from rlaif.engines.protocol import Reply, Request
from rlaif.engines.traffic import Traffic
from rlaif.engines.transformers import TransformersEngine
from rlaif.errors import EngineError
from rlaif.records import Message, Sampling, Usage

KEY = "sk-very-secret-0123456789"
CLIENT = "lean"  # what sends the requests of the engines that `make` makes


@pytest.fixture(autouse=True, params=["lean", "sdk"])
def each_client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whatever holds of one client holds of the other: the transport is below all that is tested here."""
    monkeypatch.setattr("test_engine_openai.CLIENT", request.param)
    return str(request.param)


def ask(text: str = "hi", *, indices: tuple[int, ...] = (0,), **sampling: object) -> Request:
    settings = Sampling.model_validate({"max_tokens": 12, **sampling})
    return Request(messages=(Message(role="user", content=text),), sampling=settings, indices=indices)


def make(base_url: str | tuple[str, ...], **settings: Any) -> OpenAIEngine:
    spec = OpenAIModel.model_validate(
        {"engine": "openai", "client": CLIENT, "model": "tiny", "base_url": base_url, "retries": 2} | settings
    )
    return OpenAIEngine("judge", spec, KEY)


LEDGERS: dict[OpenAIEngine, Ledger] = {}


def ledger(engine: OpenAIEngine) -> Ledger:
    return LEDGERS.setdefault(engine, Ledger())


def tally(engine: OpenAIEngine) -> Tally:
    """What was counted of an engine: requests sent again, and what was paid for nothing."""
    return ledger(engine).tally(engine.name, "")  # these requests are of no stage


def run(engine: OpenAIEngine, *requests: Request) -> list[list[Reply | EngineError]]:
    """What comes of requests that go the way all requests go. Every reply must have been kept."""

    async def go() -> list[list[Reply | EngineError]]:
        on_the_way = Traffic(ledger(engine), {})
        kept: list[Reply] = []

        async def keep(replies: list[tuple[int, Reply]], wasted: list[Usage], unknown: list[Usage]) -> None:
            kept.extend(reply for _, reply in replies)
            for usage in wasted:
                tally(engine).pay(usage, discarded=True)

        try:
            arrived = list(await asyncio.gather(*(on_the_way.ask(engine, r, keep, lambda: True) for r in requests)))
        finally:
            await engine.close()
        assert len(kept) == sum(isinstance(one, Reply) for ones in arrived for one in ones)
        return arrived

    return asyncio.run(go())


def good(engine: OpenAIEngine, request: Request) -> list[Reply]:
    [arrived] = run(engine, request)
    for reply in arrived:
        if isinstance(reply, EngineError):
            raise reply
    return arrived  # type: ignore[return-value]


def bad(engine: OpenAIEngine, request: Request) -> EngineError:
    [[error]] = run(engine, request)
    assert isinstance(error, EngineError)
    return error


def probe(engine: OpenAIEngine) -> bool | None:
    async def go() -> None:
        try:
            for usage in await engine.probe(engine.urls[0]):
                tally(engine).pay(usage, discarded=True)
        finally:
            await engine.close()

    asyncio.run(go())
    return engine.capabilities["seed"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "FIRST_WAIT", 0.01)


# ---------------------------------------------------------------- a server that behaves


@pytest.fixture(scope="module")
def embedded(random_model: Path) -> Iterator[TransformersEngine]:
    engine = TransformersEngine("tiny", str(random_model), device="cpu")
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def base_url(embedded: TransformersEngine) -> Iterator[str]:
    with serve({"tiny": embedded}) as url:
        yield url


def test_greedy_through_the_server_is_greedy_in_process(base_url: str, embedded: TransformersEngine) -> None:
    requests = [
        ask(text, temperature=0, logprobs=True, alternatives=("A", "B", "zz"), stop=("q",))
        for text in ("hi", "why?", "go on")
    ]
    for there, here in zip(run(make(base_url), *requests), asyncio.run(embedded.sample(requests)), strict=True):
        assert isinstance(there[0], Reply) and isinstance(here[0], Reply)
        assert (there[0].text, there[0].finish_reason) == (here[0].text, here[0].finish_reason)
        assert there[0].token_logprobs == pytest.approx(here[0].token_logprobs, abs=1e-4)
        assert there[0].alternatives == pytest.approx(here[0].alternatives, abs=1e-4)
        assert there[0].usage == here[0].usage


def test_several_samples_come_from_one_request(base_url: str) -> None:
    engine = make(base_url)
    replies = good(engine, ask(indices=(0, 1, 2, 3)))
    assert len({reply.text for reply in replies}) == 4
    assert engine.capabilities["n"] is True
    assert [reply.usage.prompt_tokens > 0 for reply in replies] == [True, False, False, False]
    assert good(make(base_url), ask(indices=(0, 1, 2, 3))) == replies
    assert good(make(base_url), ask(indices=(2, 3)))[0].text == replies[2].text


def test_greedy_samples_are_asked_for_one_by_one(base_url: str) -> None:
    replies = good(make(base_url), ask(indices=(0, 1), temperature=0))
    assert replies[0] == replies[1] and replies[1].usage.prompt_tokens > 0  # each read the prompt


def test_a_schema_reaches_the_server(base_url: str) -> None:
    schema = {"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]}
    engine = make(base_url)
    [reply] = good(engine, ask(max_tokens=60).model_copy(update={"json_schema": schema}))
    assert isinstance(json.loads(reply.text)["score"], int)
    assert engine.capabilities["json_schema"] is True


def test_the_seed_probe_tells_servers_apart(base_url: str) -> None:
    assert probe(make(base_url)) is True
    with scripted([Answer(completion(text)) for text in "abcdefg"]) as script:
        assert probe(make(script.base_url)) is False
        assert len(script.requests) == 3
    with scripted([Answer(completion("always the same"))]) as script:
        assert probe(make(script.base_url)) is None


def test_a_failed_probe_stops_the_run_only_where_nothing_can_succeed() -> None:
    with scripted([Answer({"error": {"message": "seed is not supported"}}, status=400)]) as script:
        assert probe(make(script.base_url)) is None
    with scripted([Answer(status=401)]) as script, pytest.raises(EngineError) as caught:
        probe(make(script.base_url))
    assert caught.value.fatal


# ---------------------------------------------------------------- what is sent


def test_everything_asked_for_is_sent() -> None:
    with scripted([Answer(completion("x", "y", logprobs=top_logprobs(A=0.5)))]) as script:
        request = ask("q", indices=(3, 4), temperature=0.5, top_p=0.9, stop=("s",), alternatives=("A",), seed=100)
        good(make(script.base_url), request.model_copy(update={"attempt": 2, "json_schema": {"type": "object"}}))
        [sent] = script.requests
    assert sent["path"] == "/v1/chat/completions"
    assert sent["headers"]["authorization"] == f"Bearer {KEY}"
    assert sent["body"] == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "q"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 12,
        "n": 2,
        "seed": 100 + 2 * module.ATTEMPT_STRIDE + 3,
        "stop": ["s"],
        "logprobs": True,
        "top_logprobs": 20,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "reply", "strict": True, "schema": {"type": "object"}},
        },
    }
    with scripted([Answer(completion("x"))]) as script:
        good(make(script.base_url), ask())
        assert not {"stop", "logprobs", "top_logprobs", "response_format"} & set(script.requests[0]["body"])


def test_it_speaks_as_the_official_client_does(monkeypatch: pytest.MonkeyPatch, each_client: str) -> None:
    """Path, key and body are those of the `openai` package, asked the same."""
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")  # of the lean client goes to OpenAI, and to nobody else
    schema = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}
    with scripted([Answer(completion("x", "y", logprobs=top_logprobs(A=0.5)))]) as script:
        stated = {"temperature": 1.0, "top_p": 1.0, "stop": ("s",), "alternatives": ("A",), "seed": 7}
        request = ask("é \u2028 \U0001f600", indices=(0, 1), **stated)
        good(make(script.base_url), request.model_copy(update={"json_schema": schema}))

        async def officially() -> None:
            async with openai.AsyncOpenAI(
                base_url=script.base_url, api_key=KEY, max_retries=0, organization=""
            ) as client:
                await client.chat.completions.create(
                    model="tiny",
                    messages=[{"role": "user", "content": "é \u2028 \U0001f600"}],
                    temperature=1.0,
                    top_p=1.0,
                    max_tokens=12,
                    n=2,
                    seed=7,
                    stop=["s"],
                    logprobs=True,
                    top_logprobs=20,
                    response_format={
                        "type": "json_schema",
                        "json_schema": {"name": "reply", "strict": True, "schema": schema},
                    },
                )

        asyncio.run(officially())
        ours, theirs = script.requests
    assert (ours["path"], ours["body"]) == (theirs["path"], theirs["body"])
    assert list(ours["body"]["response_format"]["json_schema"]["schema"]["properties"]) == ["b", "a"]
    for header in ("authorization", "content-type"):
        assert ours["headers"][header] == theirs["headers"][header]
    assert ("openai-organization" in ours["headers"]) == (each_client == "sdk")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 422, 429, 500, 503])
def test_it_retries_what_the_official_client_retries(status: int) -> None:
    refused = Answer({"error": {"message": "no"}}, status=status, headers={"retry-after": "0.001"})
    fine = Answer(completion("fine"))

    async def officially(base_url: str) -> None:
        async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=1) as client:
            with contextlib.suppress(openai.APIStatusError):
                await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "q"}])

    with scripted([refused, fine]) as script:
        asyncio.run(officially(script.base_url))
        theirs = len(script.requests)
    with scripted([refused, fine]) as script:
        run(make(script.base_url, retries=1), ask())
        assert len(script.requests) == theirs


# ---------------------------------------------------------------- what arrives


def test_a_server_that_ignores_n_is_asked_one_by_one_with_the_same_seeds() -> None:
    with scripted([Answer(lambda body: completion(f"seed {body['seed']}"))]) as script:
        engine = make(script.base_url)
        replies = good(engine, ask(indices=(0, 1, 2), seed=5))
        assert [reply.text for reply in replies] == ["seed 5", "seed 6", "seed 7"]
        assert engine.capabilities["n"] is False
        assert [request["body"].get("n") for request in script.requests] == [3, None, None]
        good(engine, ask(indices=(0, 1), seed=5))
        assert [request["body"].get("n") for request in script.requests[3:]] == [None, None]
        assert not tally(engine).retries  # nothing failed


def test_more_choices_than_asked_for_are_cut_and_order_is_by_index() -> None:
    body = completion("first", "second", "third")
    body["choices"].reverse()
    with scripted([Answer(body)]) as script:
        assert [r.text for r in good(make(script.base_url), ask(indices=(0, 1)))] == ["first", "second"]


@pytest.mark.parametrize("logprobs", [None, {"content": None}, {"content": []}])
@pytest.mark.parametrize("asked", [{"logprobs": True}, {"alternatives": ("A",)}])
def test_missing_log_probabilities_are_an_error_that_is_not_retried(logprobs: Any, asked: dict[str, Any]) -> None:
    with scripted([Answer(completion("x", logprobs=logprobs))]) as script:
        engine = make(script.base_url)
        error = bad(engine, ask(**asked))
        assert len(script.requests) == 1
    assert (error.cause, error.retryable) == ("no-logprobs", False)
    assert "returned no log-probabilities" in str(error)
    assert engine.capabilities["logprobs"] is False


def test_log_probabilities_without_alternatives_do_not_pass_for_them() -> None:
    bare = {"content": [{"token": "A", "logprob": -0.1, "top_logprobs": []}]}
    with scripted([Answer(completion("A", logprobs=bare))]) as script:
        assert bad(make(script.base_url), ask(alternatives=("A",))).cause == "no-logprobs"
        assert good(make(script.base_url), ask(logprobs=True))[0].token_logprobs == (-0.1,)


def test_named_alternatives_are_read_from_the_first_token() -> None:
    logprobs = top_logprobs(**{" A": 0.6, "A": 0.1, "B": 0.2, "the": 0.05})
    with scripted([Answer(completion("A", logprobs=logprobs))]) as script:
        [reply] = good(make(script.base_url), ask(alternatives=("A", "B", "C")))
    assert reply.alternatives == {"A": pytest.approx(math.log(0.6)), "B": pytest.approx(math.log(0.2)), "C": None}
    assert reply.token_logprobs is None


@pytest.mark.parametrize(
    ("sent", "read"),
    [("stop", "stop"), ("eos_token", "stop"), ("length", "length"), ("content_filter", "content_filter")],
)
def test_finish_reasons_are_mapped(sent: str, read: str) -> None:
    with scripted([Answer(completion("x", finish_reason=sent))]) as script:
        assert good(make(script.base_url), ask())[0].finish_reason == read


def test_a_refusal_is_a_filtered_completion() -> None:
    body = completion(None)
    body["choices"][0]["message"]["refusal"] = "I cannot."
    with scripted([Answer(body)]) as script:
        [reply] = good(make(script.base_url), ask())
    assert (reply.text, reply.finish_reason) == ("I cannot.", "content_filter")


def test_usage_is_shared_among_samples_and_its_sum_kept() -> None:
    body = completion("x", "y", "z")
    body["usage"] = {"prompt_tokens": 9, "completion_tokens": 11}
    with scripted([Answer(body)]) as script:
        replies = good(make(script.base_url), ask(indices=(0, 1, 2)))
    assert [(r.usage.prompt_tokens, r.usage.completion_tokens) for r in replies] == [(9, 5), (0, 3), (0, 3)]


def test_a_server_that_ignores_the_schema_is_found_out() -> None:
    with scripted([Answer(completion("Sure! Here you go"))]) as script:
        engine = make(script.base_url)
        good(engine, ask().model_copy(update={"json_schema": {"type": "object"}}))
    assert engine.capabilities["json_schema"] is False


def test_an_empty_sample_is_asked_again_under_another_seed_and_the_others_are_kept() -> None:
    with scripted([Answer(completion("x", " \n", "z")), Answer(completion("y"))]) as script:
        engine = make(script.base_url)
        replies = good(engine, ask(indices=(0, 1, 2)))
        bodies = [request["body"] for request in script.requests]
    assert [reply.text for reply in replies] == ["x", "y", "z"]
    assert (bodies[1].get("n"), bodies[1]["seed"]) == (None, 1 + module.EMPTY_STRIDE)
    assert tally(engine).retries == Counter(empty=1)


def answer_but(*silent: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A server that never finds a word for some sample indices, and reports five tokens for each sample."""

    def body(asked: dict[str, Any]) -> dict[str, Any]:
        seeds = [asked["seed"] % module.EMPTY_STRIDE + i for i in range(asked.get("n", 1))]
        return completion(*("" if seed in silent else f"seed {seed}" for seed in seeds))

    return body


def test_one_sample_that_stays_empty_leaves_the_others() -> None:
    with scripted([Answer(answer_but(2))]) as script:
        engine = make(script.base_url)
        [arrived] = run(engine, ask(indices=(0, 1, 2, 3)))
        assert [request["body"].get("n") for request in script.requests] == [4, None, None]
    assert [isinstance(one, Reply) and one.text for one in arrived] == ["seed 0", "seed 1", False, "seed 3"]
    assert isinstance(arrived[2], EngineError) and arrived[2].cause == "empty"
    assert (tally(engine).discarded, tally(engine).completion_tokens) == (3, 15)
    assert tally(engine).prompt_tokens == 14  # the first request's was carried by the sample that came


def test_one_by_one_a_refused_sample_leaves_the_others() -> None:
    refused = Answer({"error": {"message": "no"}}, status=400)
    with scripted([Answer(completion("x")), refused, Answer(completion("z"))]) as script:
        [arrived] = run(make(script.base_url), ask(indices=(0, 1, 2)))  # the server ignores n
    assert isinstance(arrived[0], Reply) and {type(one) for one in arrived[1:]} == {Reply, EngineError}


def test_a_refused_request_is_refused_in_each_of_its_places() -> None:
    with scripted([Answer({"error": {"message": "no"}}, status=400)]) as script:
        [arrived] = run(make(script.base_url), ask(indices=(0, 1, 2)))
    assert [isinstance(one, EngineError) and one.cause for one in arrived] == ["http-400"] * 3


def test_samples_that_do_not_follow_one_another_keep_their_own_seeds() -> None:
    with scripted([Answer(answer_but())]) as script:
        replies = good(make(script.base_url), ask(indices=(1, 3, 4)))
        assert sorted(request["body"].get("n", 1) for request in script.requests) == [1, 2]
    assert [reply.text for reply in replies] == ["seed 1", "seed 3", "seed 4"]


def test_what_no_file_can_hold_is_replaced_on_arrival() -> None:
    with scripted([Answer(completion("a\ud83d b\0c", "\U0001f600"))]) as script:  # JSON escapes carry all of them
        replies = good(make(script.base_url), ask(indices=(0, 1)))
    assert [reply.text for reply in replies] == ["a\ufffd b\ufffdc", "\U0001f600"]


def test_a_probe_is_accounted_for() -> None:
    with scripted([Answer(completion("x"))]) as script:
        engine = make(script.base_url)
        probe(engine)
    assert (tally(engine).discarded, tally(engine).prompt_tokens, tally(engine).completion_tokens) == (3, 21, 15)


def test_replicas_share_an_identity_and_a_place_names_no_key() -> None:
    one, both = make("http://a/v1"), make(("http://a/v1", "http://b/v1"))
    assert one.identity == both.identity != make(("http://b/v1", "http://a/v1")).identity
    assert both.urls == ("http://a/v1", "http://b/v1")
    assert KEY not in "".join(both.urls) + one.identity


def test_a_server_with_nothing_to_say_is_given_up() -> None:
    with scripted([Answer(completion(None))]) as script:
        error = bad(make(script.base_url), ask())
        assert len(script.requests) == 3
    assert error.cause == "empty"


def test_a_completion_empty_at_its_limit_asks_for_more_tokens() -> None:
    with scripted([Answer(completion("", finish_reason="length"))]) as script:
        error = bad(make(script.base_url), ask())
        assert len(script.requests) == 1
    assert "raise `max_tokens`" in str(error) and not error.retryable


# ---------------------------------------------------------------- faults that pass


FINE = Answer(completion("fine"))
PASSING = {
    "408": (Answer(status=408), "server"),
    "409": (Answer(status=409), "server"),
    "429": (Answer({"error": {"message": "slow down"}}, status=429), "rate-limit"),
    "500": (Answer("oops", status=500), "server"),
    "503": (Answer({"detail": "loading"}, status=503), "overloaded"),
    "not json": (Answer("<html>busy</html>"), "bad-body"),
    "truncated json": (Answer('{"choices": [{"message": {"content": "x'), "bad-body"),
    "no list of choices": (Answer({"id": "x"}), "bad-body"),
    "wrong type": (Answer({"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}), "bad-body"),
    "aborted": (Answer(completion("x", finish_reason="abort")), "bad-body"),
    "empty": (Answer(completion("")), "empty"),
    "dropped": (Answer(drop=True), "connection"),
    "cut": (Answer(completion("x"), cut=20), "bad-body"),
    "late": (Answer(completion("x"), delay=1.0), "timeout"),
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_is_retried_and_counted(fault: str) -> None:
    answer, cause = PASSING[fault]
    with scripted([answer, FINE]) as script:
        engine = make(script.base_url, timeout=0.5)
        assert [reply.text for reply in good(engine, ask())] == ["fine"]
        assert len(script.requests) == 2
    assert tally(engine).retries == Counter({cause: 1})


@pytest.mark.parametrize("fault", [name for name in PASSING if name not in ("late", "429")])
def test_a_fault_that_stays_is_given_up_after_the_retries(fault: str) -> None:
    answer, cause = PASSING[fault]
    with scripted([answer]) as script:
        error = bad(make(script.base_url, timeout=5), ask())
        assert len(script.requests) == 3  # one and two retries
    assert (error.cause, error.retryable) == (cause, True)


def test_a_server_that_says_when_to_come_back_is_asked_for_longer_than_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Answer({"error": {"message": "slow down"}}, status=429, headers={"retry-after": "0.01"})
    with scripted([busy] * 20 + [FINE]) as script:
        engine = make(script.base_url)
        assert good(engine, ask())[0].text == "fine"
        assert tally(engine).retries == Counter({"rate-limit": 20})
    monkeypatch.setattr(traffic, "LIMITED", 0.0)
    with scripted([busy]) as script:
        assert bad(make(script.base_url), ask()).cause == "rate-limit"


def test_an_account_without_credit_is_not_waited_for() -> None:
    spent = Answer({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}, status=429)
    with scripted([spent]) as script:
        error = bad(make(script.base_url), ask())
        assert len(script.requests) == 1
    assert error.cause == "quota" and error.fatal and "no credit left" in str(error)  # nothing else can succeed


def test_retry_after_is_honoured_and_capped(monkeypatch: pytest.MonkeyPatch, each_client: str) -> None:
    opening = 0.0 if each_client == "lean" else 2.0  # seconds that the package may take on a busy machine

    def waited(value: str) -> float:
        with scripted([Answer(status=429, headers={"retry-after": value}), FINE]) as script:
            began = time.monotonic()
            good(make(script.base_url), ask())
            return time.monotonic() - began

    assert waited("0.4") >= 0.4
    assert waited("soon") < 0.4 + opening
    monkeypatch.setattr(traffic, "LONGEST_WAIT", 0.1)
    assert waited("3600") < 2
    assert waited(email.utils.formatdate(time.time() + 3600, usegmt=True)) < 2


def test_backoff_grows_with_full_jitter_up_to_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "FIRST_WAIT", 1.0)
    for tries, longest in ((1, 1), (3, 4), (20, 60)):
        waits = [traffic._wait([EngineError("x", cause="server")], tries) for _ in range(500)]
        assert 0 <= min(waits) < 0.1 * longest and 0.9 * longest < max(waits) <= longest


def test_a_dripping_answer_is_bounded_as_a_whole() -> None:
    with scripted([Answer(FINE.body, drip=0.05)]) as script:
        began = time.monotonic()
        error = bad(make(script.base_url, timeout=0.5, retries=0), ask())
        assert (
            time.monotonic() - began < 4
        )  # all its bytes would take five seconds and more, none of them half a second
    assert error.cause == "timeout" and "0.5 s" in str(error)


# ---------------------------------------------------------------- faults that stay


@pytest.mark.parametrize(
    ("status", "message", "cause", "fatal", "fix"),
    [
        (400, "temperature is out of range", "http-400", False, None),
        (400, "This model's maximum context length is 512 tokens", "too-long", False, "shorten the prompt"),
        (401, f"Incorrect API key provided: {KEY}", "http-401", True, "set the environment variable MY_KEY"),
        (403, f"key {KEY} may not", "http-403", True, "MY_KEY may use 'tiny'"),
        (404, "the model does not exist", "http-404", True, "check the model name 'tiny'"),
        (422, f"bad field, header was Bearer {KEY}", "http-422", False, None),
    ],
)
def test_a_refusal_is_not_retried_and_says_what_to_do(
    status: int, message: str, cause: str, fatal: bool, fix: str | None
) -> None:
    for body in (
        {"error": {"message": message}},
        {"message": message},
        {"error": message},
        {"detail": message},
        message,
    ):
        with scripted([Answer(body, status=status)]) as script:
            engine = make(script.base_url, api_key_env="MY_KEY")
            error = bad(engine, ask())
            assert len(script.requests) == 1 and not tally(engine).retries
        assert (error.cause, error.fatal, error.retryable) == (cause, fatal, False)
        assert message.replace(KEY, "***") in str(error)
        assert (fix or "") in (error.fix or "") and (error.fix is None) == (fix is None)


def test_a_server_that_wants_a_key_and_was_given_none_is_told_apart() -> None:
    with scripted([Answer(status=401)]) as script:
        assert "`api_key_env`" in str(bad(make(script.base_url), ask()))


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    engine = make(f"http://127.0.0.1:{port}/v1")
    error = bad(engine, ask())
    # Once the server was there, a request that finds it gone is that row's alone, until many do.
    assert error.cause == "connection" and not error.fatal and error.retryable
    assert f"is the server running at http://127.0.0.1:{port}/v1?" in str(error)
    assert tally(engine).retries == Counter(connection=2)
    with pytest.raises(EngineError) as caught:
        probe(engine)
    assert caught.value.fatal


def test_one_request_that_fails_leaves_the_others(base_url: str) -> None:
    [long], [fine] = run(make(base_url), ask("x" * 600), ask("hi"))
    assert isinstance(long, EngineError) and isinstance(fine, Reply)


def test_an_unknown_model_names_the_model(base_url: str) -> None:
    error = bad(make(base_url, model="tinny"), ask())
    assert error.fatal and "'tinny'" in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        lambda key: Answer({"error": {"message": f"key {key}"}}, status=400),
        lambda key: Answer(f"proxy saw {key}", status=502),
        lambda key: Answer(completion("", finish_reason=key)),
        lambda key: Answer(f"<html>{key}</html>"),
        lambda key: Answer({"error": {"message": f"upstream saw {key}"}}),
        lambda key: Answer(drop=True),
    ],
)
def test_the_key_never_shows(answer: Callable[[str], Answer], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"), scripted([answer(KEY)]) as script:
        engine = make(script.base_url)
        error = bad(engine, ask())
        seen = _everything_said(error, script)
    assert KEY not in seen + repr(engine) + caplog.text
    # A traceback shows no request.
    assert error.__cause__ is None and (error.__context__ is None or error.__suppress_context__)


def _everything_said(error: EngineError, script: Script) -> str:
    assert any(KEY in value for request in script.requests for value in request["headers"].values())
    return f"{error} {error!r} {error.message} {error.fix} {error.args}"


# ---------------------------------------------------------------- the rest


def test_identity_is_the_endpoint_unless_declared() -> None:
    here, there = make("http://a/v1"), make("http://b/v1")
    assert here.identity == make("http://a/v1", timeout=5).identity
    assert len({here.identity, there.identity, make("http://a/v1", revision="2").identity}) == 3
    assert make("http://c/v1", identity="moved").identity == "moved"


def test_a_server_cannot_score_given_text() -> None:
    engine = make("http://127.0.0.1:9/v1")
    with pytest.raises(EngineError, match="cannot score given text"):
        asyncio.run(engine.logprobs([((Message(role="user", content="q"),), "a")]))
    with pytest.raises(EngineError, match="no reward head"):
        asyncio.run(engine.score([((Message(role="user", content="q"),), "a")]))
