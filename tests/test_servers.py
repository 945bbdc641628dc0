"""Servers as they are: the cases of servers in shared/cases, and others of their kinds, against real sockets.

A refusal is answered the other way once and told; what cannot pass stops the run within ten requests.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from echo import write_prompts
from inside import Done, rlaif
from serving import Answer, Script, completion, scripted, serve, top_logprobs
from test_engine_openai import ask, bad, good, make, probe

from rlaif.config import OpenAIModel
from rlaif.engines import traffic
from rlaif.engines.open import extra_of
from rlaif.engines.openai import OpenAIEngine
from rlaif.engines.refusals import FILTERED, NO_CREDIT, TOO_LONG
from rlaif.errors import InputError
from rlaif.records import Message

Body = dict[str, Any]
Rule = Callable[[Body], Body | None]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "FIRST_WAIT", 0.001)


def strict(*rules: Rule, text: str = "fine", status: int = 400) -> Answer:
    """A server that refuses what breaks one of its rules, in the rule's words."""

    def answer(body: Body) -> Body | Answer:
        if "messages" not in body:
            return {"data": []}
        for rule in rules:
            if refusal := rule(body):
                return Answer(refusal, status=status)
        return completion(*[text] * (body.get("n") or 1))

    return Answer(answer)


def told_by(engine: OpenAIEngine) -> list[str]:
    told: list[str] = []
    engine.tell = told.append
    return told


def refused(script: Script, field: str) -> int:
    return sum(field in request["body"] for request in script.requests)


# ---------------------------------------------------------------- the other way, once

SYSTEM = (Message(role="system", content="Be brief."), Message(role="user", content="hi"))


def says(message: str, when: Callable[[Body], Any], **fields: Any) -> Rule:
    return lambda body: {"error": {"message": message, **fields}} if when(body) else None


WORDS = {  # the field, what is asked, and servers' words for their refusal
    "max_tokens of OpenAI": (
        "max_tokens",
        {},
        says(
            "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
            lambda b: "max_tokens" in b,
            param="max_tokens",
            code="unsupported_parameter",
        ),
    ),
    "n of llama.cpp": ("n", {"indices": (0, 1, 2)}, says("Only one completion choice is allowed", lambda b: "n" in b)),
    "n of llama.cpp's slots": (
        "n",
        {"indices": tuple(range(6))},
        says(
            "Field 'n': Value must be between 1 <= value <= 4, but got 6",
            lambda b: b.get("n", 1) > 4,
            code=400,
            type="invalid_request_error",
        ),
    ),
    "n of groq": ("n", {"indices": (0, 1)}, says("'n' : number must be at most 1", lambda b: b.get("n", 1) > 1)),
    "n of an unknown server": ("n", {"indices": (0, 1)}, says("n > 1 is not supported", lambda b: b.get("n", 1) > 1)),
    "temperature of OpenAI": (
        "temperature",
        {"temperature": 0.0},
        says(
            "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is "
            "supported.",
            lambda b: "temperature" in b,
            param="temperature",
            code="unsupported_value",
        ),
    ),
    "temperature of TGI": (
        "temperature",
        {"temperature": 0.0},
        says("`temperature` must be strictly positive", lambda b: b.get("temperature") == 0),
    ),
    "temperature of Anthropic": (
        "temperature",
        {"temperature": 0.5},
        says("`temperature` is deprecated for this model.", lambda b: "temperature" in b),
    ),
    "top_p of TGI": ("top_p", {"top_p": 1.0}, says("`top_p` must be > 0.0 and < 1.0", lambda b: b.get("top_p") == 1)),
    "seed of mistral": (
        "seed",
        {},
        lambda b: (
            {
                "detail": [
                    {
                        "type": "extra_forbidden",
                        "loc": ["body", "seed"],
                        "msg": "Extra inputs are not permitted",
                        "input": 0,
                    }
                ]
            }
            if "seed" in b
            else None
        ),
    ),
    "seed of Gemini": (
        "seed",
        {},
        says('Invalid JSON payload received. Unknown name "seed": Cannot find field.', lambda b: "seed" in b),
    ),
    "stop of OpenAI": (
        "stop",
        {"stop": ("!",)},
        says("Unsupported parameter: 'stop' is not supported with this model.", lambda b: "stop" in b, param="stop"),
    ),
    "response_format of DeepSeek": (
        "response_format",
        {"schema": True},
        says("This response_format type is unavailable now", lambda b: "response_format" in b),
    ),
    "top_logprobs of Fireworks": (
        "top_logprobs",
        {"alternatives": ("1",)},
        says("top_logprobs must be less than or equal to 5", lambda b: b.get("top_logprobs", 0) > 5),
    ),
    "top_logprobs of vLLM": (
        "top_logprobs",
        {"alternatives": ("1",)},
        says(
            "Requested sample logprobs of 20, which is greater than max allowed: 5 (parameter=logprobs, value=20)",
            lambda b: b.get("top_logprobs", 0) > 5,
            type="BadRequestError",
            param="logprobs",
            code=400,
        ),
    ),
    "system of Gemma": (
        "system",
        {"system": True},
        says("System role not supported", lambda b: b["messages"][0]["role"] == "system"),
    ),
    "system of Mistral": (
        "system",
        {"system": True},
        says(
            "Conversation roles must alternate user/assistant/user/assistant/...",
            lambda b: b["messages"][0]["role"] == "system",
        ),
    ),
    "developer of Google": (
        "system",
        {"system": True},
        says("Developer instruction is not enabled for models/gemma-3", lambda b: b["messages"][0]["role"] == "system"),
    ),
}


@pytest.mark.parametrize("case", WORDS)
def test_a_refused_field_is_sent_the_other_way_once_and_told(case: str) -> None:
    field, wanted, rule = WORDS[case]
    settings = {name: value for name, value in wanted.items() if name not in ("schema", "system")}
    request = ask("q", **settings)
    if "schema" in wanted:
        request = request.model_copy(update={"json_schema": {"type": "object"}})
    if "system" in wanted:
        request = request.model_copy(update={"messages": SYSTEM})
    logprobs = top_logprobs(**{"1": 0.9}) if "alternatives" in wanted else None

    def answer(body: Body) -> Body | Answer:
        if refusal := rule(body):
            return Answer(refusal, status=400)
        return completion(*["1"] * body.get("n", 1), logprobs=logprobs)

    with scripted([Answer(answer)]) as script:
        engine = make(script.base_url, retries=0)
        told = told_by(engine)
        for _ in range(3):
            assert all(reply.text == "1" for reply in good(engine, request))
        refusals = [r for r in script.requests if rule(r["body"])]
    assert len(refusals) == 1
    assert engine.capabilities[f"refuses {field}"] is True
    [line] = told
    assert f"refuses `{field}`" in line and "it says: " in line


def test_a_server_that_accepts_three_fields_is_found_out_field_by_field() -> None:
    def only(body: Body) -> Body | None:
        odd = sorted(body.keys() - {"model", "messages", "max_completion_tokens"})
        return {"error": {"message": f"Unknown parameter: '{odd[0]}'."}} if odd else None

    with scripted([strict(only)]) as script:
        engine = make(script.base_url)
        told = told_by(engine)
        request = ask(indices=(0, 1), temperature=0.5, top_p=0.9, stop=("x",))
        good(engine, request.model_copy(update={"json_schema": {"type": "object"}}))
        count = len(script.requests)
        good(engine, request)
        assert len(script.requests) == count + 2  # one for each sample, none in vain
    assert count <= 10 and len(told) == 1


def test_a_refusal_that_stays_is_the_servers_word_and_is_not_tried_again() -> None:
    rule = says("temperature is not supported", lambda body: True)
    with scripted([strict(rule)]) as script:
        engine = make(script.base_url)
        for asked in (2, 3):
            error = bad(engine, ask(temperature=0.7))
            assert len(script.requests) == asked
    assert (error.cause, error.retryable) == ("http-400", False) and "temperature is not supported" in str(error)
    assert not any(name.startswith("refuses") for name in engine.capabilities)


@pytest.mark.parametrize(
    "words",
    ["temperature must be between 0 and 2", "temperature is out of range", "max_tokens is too large: 5000",
     "the prompt is not supported", "no tokens", "invalid JSON in line n", "Unsupported parameter: 'logit_bias'"],
)  # fmt: skip
def test_a_value_that_is_the_users_mistake_is_not_left_out(words: str) -> None:
    with scripted([strict(says(words, lambda body: True))]) as script:
        error = bad(make(script.base_url), ask(temperature=3.0))
        assert len(script.requests) == 1
    assert words in str(error)


def test_many_at_once_find_out_a_refusal_together() -> None:
    from test_engine_openai import run

    rule = WORDS["max_tokens of OpenAI"][2]
    with scripted([strict(rule)]) as script:
        engine = make(script.base_url)
        told = told_by(engine)
        run(engine, *(ask(str(number)) for number in range(60)))
        assert refused(script, "max_tokens") <= traffic.FIRST
        assert refused(script, "max_completion_tokens") == 60
    assert len(told) == 1


def test_the_probe_finds_a_refused_seed() -> None:
    with scripted([strict(says("Unknown name 'seed'", lambda body: "seed" in body))]) as script:
        engine = make(script.base_url)
        assert probe(engine) is False
        assert refused(script, "seed") == 1
        good(engine, ask())
        assert refused(script, "seed") == 1


def test_what_a_server_honours_is_sent_to_it() -> None:
    with scripted([Answer(lambda body: completion(*[f"seed {body['seed']}"] * body.get("n", 1)))]) as script:
        engine = make(script.base_url)
        assert probe(engine) is True
        for seed in (3, 7):
            assert good(engine, ask(indices=(0, 1), seed=seed))[0].text == f"seed {seed}"
        assert [request["body"].get("n") for request in script.requests[3:]] == [2, 2]


# ---------------------------------------------------------------- what the file says of a model's requests


def test_only_what_was_stated_is_sent() -> None:
    with scripted([Answer(completion("x"))]) as script:
        engine = make(script.base_url)
        good(engine, ask())
        good(engine, ask(temperature=1.0, top_p=1.0))
        first, second = (request["body"] for request in script.requests)
    assert first.keys() == {"model", "messages", "max_tokens", "seed"}
    assert second.keys() - first.keys() == {"temperature", "top_p"}


def test_what_a_model_states_goes_with_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_KEY", "azure-secret-0123456789")
    settings: Body = {
        "omit": ["seed", "n", "temperature"],
        "extra_body": {"top_k": 20, "chat_template_kwargs": {"enable_thinking": False}},
        "headers": {"api-key": "${AZURE_KEY}", "X-Title": "a title"},
        "query": {"api-version": "2024-10-21"},
        "max_tokens_name": "max_completion_tokens",
        "system": "fold",
        "thinking_tokens": 100,
    }
    with scripted([Answer(completion("key azure-secret-0123456789"))]) as script:
        spec = OpenAIModel.model_validate({"engine": "openai", "model": "m", "base_url": script.base_url, **settings})
        engine = OpenAIEngine("judge", spec, "none", None, extra_of("judge", spec))
        request = ask("q", indices=(0, 1), temperature=0.3).model_copy(
            update={"messages": (Message(role="system", content="One."), *SYSTEM)}
        )
        replies = good(engine, request)
        sent = script.requests
    assert [reply.text for reply in replies] == ["key ***"] * 2
    assert sent[0]["path"] == "/v1/chat/completions?api-version=2024-10-21"
    assert (sent[0]["headers"]["api-key"], sent[0]["headers"]["x-title"]) == ("azure-secret-0123456789", "a title")
    assert "authorization" not in sent[0]["headers"]
    assert [request["body"] for request in sent] == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "One.\n\nBe brief.\n\nhi"}],
            "max_completion_tokens": 112,
            "top_k": 20,
            "chat_template_kwargs": {"enable_thinking": False},
        }
    ] * 2


def test_two_system_messages_are_joined() -> None:
    with scripted([Answer(completion("x"))]) as script:
        messages = (Message(role="system", content="One."), *SYSTEM)
        good(make(script.base_url), ask().model_copy(update={"messages": messages}))
        [sent] = script.requests
    assert sent["body"]["messages"] == [
        {"role": "system", "content": "One.\n\nBe brief."},
        {"role": "user", "content": "hi"},
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"headers": {"api-key": "sk-0123456789abcdef"}}, "may hold a secret"),
        ({"headers": {"X-Auth-Token": "abc"}}, "may hold a secret"),
        ({"headers": {"Host": "x"}}, "no header that may be set"),
        ({"headers": {"a b": "x"}}, "no header that may be set"),
        ({"headers": {"x": "a\r\nb"}}, "invalid characters"),
        ({"headers": ["x"]}, "expected names and values"),
        ({"query": {"api-version": None}}, "expected texts"),
        ({"extra_body": {"stream": True}}, "`stream` is set by this program"),
        ({"extra_body": {"x": "y" * 200_000}}, "at most 100,000 characters"),
        ({"omit": ["messages"]}, "Input should be"),
    ],
)
def test_a_mistake_in_them_is_a_sentence(settings: Body, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        OpenAIModel.model_validate({"engine": "openai", "model": "m", **settings})
    assert "sk-0123456789abcdef" not in str(caught.value).split("[type=")[0]


def test_a_variable_that_is_not_set_is_named() -> None:
    spec = OpenAIModel.model_validate({"engine": "openai", "model": "m", "headers": {"api-key": "${NOT_SET_HERE}"}})
    with pytest.raises(InputError, match="NOT_SET_HERE, of the model 'm', is not set"):
        extra_of("m", spec)


def test_what_changes_an_answer_is_part_of_the_identity() -> None:
    plain = make("http://a/v1")
    assert plain.identity == make("http://a/v1", omit=["seed", "n"], headers={"x": "y"}, system="fold").identity
    others = [{"extra_body": {"top_k": 1}}, {"extra_body": {"top_k": 2}}, {"omit": ["temperature"]}]
    assert len({plain.identity, *(make("http://a/v1", **other).identity for other in others)}) == 4


# ---------------------------------------------------------------- answers of other shapes


@pytest.mark.parametrize("said", ["end_turn", "STOP", "EOS", None, "Stop", "done", "COMPLETE"])
def test_finish_reasons_of_any_wording_are_understood(said: str | None) -> None:
    body = completion("fine")
    body["choices"][0]["finish_reason"] = said
    with scripted([Answer(body)]) as script:
        engine = make(script.base_url)
        told = told_by(engine)
        [reply] = good(engine, ask())
        assert (reply.text, reply.finish_reason) == ("fine", "stop")
        assert len(script.requests) == 1 and not told


@pytest.mark.parametrize(
    ("said", "read"), [("MAX_TOKENS", "length"), ("model_length", "length"), ("SAFETY", "content_filter")]
)
def test_the_other_two_reasons_have_many_wordings_too(said: str, read: str) -> None:
    with scripted([Answer(completion("fine", finish_reason=said))]) as script:
        assert good(make(script.base_url), ask())[0].finish_reason == read


def test_without_a_reason_a_text_of_all_its_tokens_is_cut() -> None:
    body = completion("fine") | {"usage": {"prompt_tokens": 3, "completion_tokens": 12}}
    body["choices"][0]["finish_reason"] = None
    with scripted([Answer(body)]) as script:
        assert good(make(script.base_url), ask(max_tokens=12))[0].finish_reason == "length"


def message(**fields: Any) -> Body:
    body = completion("x")
    body["choices"][0]["message"] = {"role": "assistant", **fields}
    return body


PARTS: dict[str, tuple[Body, str, str | None]] = {
    "parts": (
        message(content=[{"type": "text", "text": "The "}, {"type": "text", "text": "Rhine."}]),
        "The Rhine.",
        None,
    ),
    "parts of Responses": (message(content=[{"type": "output_text", "text": "fine"}]), "fine", None),
    "parts with thinking": (
        message(
            content=[
                {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                {"type": "text", "text": "fine"},
            ]
        ),
        "fine",
        "hm",
    ),
    "reasoning_content": (message(content="fine", reasoning_content="hm"), "fine", "hm"),
    "reasoning": (message(content="fine", reasoning="hm"), "fine", "hm"),
    "reasoning of another type": (message(content="fine", reasoning={"a": 1}), "fine", None),
    "reasoning that is null": (message(content="fine", reasoning=None, reasoning_content=None), "fine", None),
}


@pytest.mark.parametrize("shape", PARTS)
def test_contents_of_other_shapes_are_read(shape: str) -> None:
    body, text, thinking = PARTS[shape]
    with scripted([Answer(body)]) as script:
        [reply] = good(make(script.base_url), ask())
    assert (reply.text, reply.thinking) == (text, thinking)


def test_an_answer_only_in_the_reasoning_is_an_error_that_names_the_field() -> None:
    with scripted([Answer(message(content=None, reasoning_content="The Rhine."))]) as script:
        error = bad(make(script.base_url), ask())
        assert len(script.requests) == 1
    assert error.cause == "no-content" and "`reasoning_content`" in str(error) and "reasoning parser" in str(error)


AZURE = {
    "error": {
        "code": "content_filter",
        "param": "prompt",
        "type": None,
        "status": 400,
        "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
        "innererror": {"code": "ResponsibleAIPolicyViolation"},
    }
}
NULL = completion("x", finish_reason="content_filter")
NULL["choices"][0]["message"] = None
FILTERS = {
    "no choices": Answer(completion()),
    "null": Answer(NULL),
    "empty": Answer(completion("", finish_reason="content_filter")),
    "Azure": Answer(AZURE, status=400),
    "Azure in a 200": Answer(AZURE),
    "OpenRouter": Answer(
        {"error": {"code": 403, "message": "the model requires moderation: flagged for violence"}}, status=403
    ),
    "OpenAI": Answer(
        {"error": {"code": "content_policy_violation", "message": "Your request was rejected"}}, status=400
    ),
    "Alibaba": Answer(
        {"error": {"code": "data_inspection_failed", "message": "Input may be inappropriate"}}, status=400
    ),
}


@pytest.mark.parametrize("form", FILTERS)
def test_every_form_of_a_content_filter_is_one_filtered_completion(form: str) -> None:
    with scripted([FILTERS[form]]) as script:
        engine = make(script.base_url)
        replies = good(engine, ask(indices=(0,)))
        assert len(script.requests) == 1
    assert [(reply.text, reply.finish_reason) for reply in replies] == [("", "content_filter")]


# ---------------------------------------------------------------- errors, with the server's own words

PAGES = {
    "HTML": ("<!DOCTYPE html><html><title>Welcome to nginx</title></html>", "is a page, not JSON", "Welcome to nginx"),
    "SSE": ('data: {"id":"1","object":"chat.completion.chunk"}\n\ndata: [DONE]\n\n', "is a stream of events", "data: "),
    "text": ("Bad gateway, sorry", "is not JSON", "Bad gateway, sorry"),
}


@pytest.mark.parametrize("page", PAGES)
def test_what_is_no_json_shows_its_first_words_and_the_address(page: str) -> None:
    body, words, shown = PAGES[page]
    with scripted([Answer(body)]) as script:
        error = bad(make(script.base_url.removesuffix("/v1"), retries=0), ask())
    assert words in str(error) and shown in str(error)
    assert f"{script.base_url.removesuffix('/v1')}/chat/completions" in str(error)
    assert page == "SSE" or f"{script.base_url}" in str(error.fix)


def test_an_error_in_a_200_is_shown_in_the_servers_words() -> None:
    with scripted([Answer({"error": {"message": "upstream busy"}})]) as script:
        error = bad(make(script.base_url, retries=1), ask())
        assert len(script.requests) == 2
    assert "the server answered with an error: upstream busy" in str(error) and error.retryable
    with scripted([Answer({"error": {"message": "slow down", "code": 429}})]) as script:
        error = bad(make(script.base_url, retries=0, timeout=1), ask()) if traffic.LIMITED == 0 else None
    with scripted([Answer({"error": {"message": "no such model", "code": 404}})]) as script:
        assert bad(make(script.base_url), ask()).cause == "http-404"


@pytest.mark.parametrize(
    "body",
    [
        {"success": False, "message": "model is loading"},
        {"errors": [{"message": "model is loading"}]},
        {"choices": None, "detail": "model is loading"},
        {"message": {"role": "assistant", "content": "model is loading"}, "done": True},  # Ollama's own protocol
    ],
)
def test_an_answer_without_choices_is_shown_in_the_servers_words(body: Body) -> None:
    with scripted([Answer(body)]) as script:
        error = bad(make(script.base_url, retries=0), ask())
    assert "holds no `choices`: " in str(error) and "model is loading" in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        Answer({"error": {"message": "Insufficient credits", "code": 402}}, status=402),
        Answer("", status=402),
        Answer({"error": {"message": "Your credit balance is too low to access the API"}}, status=400),
        Answer({"error": {"message": "Insufficient Balance"}}, status=402),
        Answer({"error": {"message": "You exceeded your current quota, please check your plan"}}, status=429),
    ],
)
def test_an_account_without_credit_stops_the_run(answer: Answer) -> None:
    with scripted([Answer(completion("x")), answer]) as script:
        engine = make(script.base_url)
        good(engine, ask())
        error = bad(engine, ask("again"))
        assert len(script.requests) == 2
    assert error.cause == "quota" and error.fatal and "no credit left" in str(error)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens."),
        (400, "request (61 tokens) exceeds the available context size (10 tokens), try increasing it"),  # of llama.cpp
        (400, "the request exceeds the available context size. try increasing the context size"),
        (500, "the request exceeds the available context size"),
        (400, "prompt is too long: 210000 tokens > 200000 maximum"),
        (400, "The input token count (1048577) exceeds the maximum number of tokens allowed (1048576)."),
        (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096"),
        (400, "The decoder prompt (length 9000) is longer than the maximum model length of 8192."),
        (400, "Please reduce the length of the messages or completion"),
        (413, "Request too large for model"),
    ],
)
def test_a_context_that_is_too_long_is_known_in_todays_wordings(status: int, words: str) -> None:
    with scripted([Answer({"error": {"message": words}}, status=status)]) as script:
        error = bad(make(script.base_url), ask())
        assert len(script.requests) == 1
    assert error.cause == "too-long" and words.rstrip(".") in str(error) and "shorten the prompt" in str(error.fix)


def test_a_servers_words_that_are_cut_end_in_dots() -> None:
    """A number cut in the middle is another number."""
    words = (
        "This model's maximum context length is 2048 tokens. However, you requested 8 output tokens and your prompt "
        "contains at least 2041 input tokens, for a total of at least 2049 tokens. Please reduce the length of the "
        "input prompt or the number of requested output tokens. (parameter=input_tokens, value=2041)"
    )  # of vLLM
    with scripted([Answer({"error": {"message": words, "param": "input_tokens"}}, status=400)]) as script:
        error = bad(make(script.base_url), ask())
    assert error.cause == "too-long" and words[:280] in error.message and "... Fix: " in str(error)


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 512 tokens. However, you requested 612 tokens",
        "max_tokens=600 cannot be greater than max_model_len=512. Please request fewer output tokens. "
        "(parameter=max_tokens, value=600)",  # of vLLM
    ],
)
def test_max_tokens_that_fill_the_context_are_every_requests_fault(words: str) -> None:
    with scripted([Answer({"error": {"message": words}}, status=400)]) as script:
        error = bad(make(script.base_url), ask(max_tokens=600))
    assert error.cause == "max-tokens" and "lower `max_tokens`" in str(error.fix)


PLAIN = (
    "invalid request", "model not found", "temperature is out of range", "the key is invalid", "internal error",
    "unknown field in line 3", "connection reset", "must be an integer", "unauthorized", "you have credits left",
)  # fmt: skip


@pytest.mark.parametrize("words", PLAIN)
def test_plain_words_are_of_no_special_kind(words: str) -> None:
    assert not any(kind.search(words) for kind in (FILTERED, NO_CREDIT, TOO_LONG))


# ---------------------------------------------------------------- the way there


@contextlib.contextmanager
def https(folder: Path) -> Iterator[str]:
    """A server whose certificate nobody knows."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", key,
         "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            body = json.dumps(completion("fine")).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, name="https")
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("client", ["lean", "sdk"])
def test_a_certificate_that_is_not_trusted_is_named_with_the_fix(
    client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with https(tmp_path) as url:
        error = bad(make(url, retries=0, client=client), ask())
        assert error.cause == "connection" and "certificate" in error.message and "SSL_CERT_FILE" in str(error.fix)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        assert good(make(url, client=client), ask())[0].text == "fine"


def test_a_server_without_https_is_told_as_that() -> None:
    with serve({}) as url:
        error = bad(make(url.replace("http:", "https:"), retries=0), ask())
    assert error.cause == "connection" and f"try {url}" in str(error.fix)


@pytest.mark.parametrize("client", ["lean", "sdk"])
def test_a_proxy_that_does_not_answer_is_named_without_its_password(
    client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret-word-99@127.0.0.1:9")
    error = bad(make("http://model.example/v1", retries=0, client=client), ask())
    assert "HTTP_PROXY" in str(error.fix) and "NO_PROXY" in str(error.fix)
    assert "secret-word-99" not in str(error)


# ---------------------------------------------------------------- whole runs

COMPARED = """\
name: compared
models:
  m: {engine: openai, model: m, base_url: "URL"}
stages:
  - prompts: {path: prompts.jsonl, split: all}
  - sample: {models: [m], per_prompt: 2, sampling: {max_tokens: 32}}
  - compare: {model: m, constitution: constitutions/helpful-harmless.yaml, verdicts: KIND}
  - pair: {rule: compared}
"""


def ran(folder: Path, url: str, pipeline: str, prompts: int = 300, **kinds: str) -> Done:
    write_prompts(folder, prompts)
    for name, value in {"URL": url, **kinds}.items():
        pipeline = pipeline.replace(name, value)
    (folder / "p.yaml").write_text(pipeline)
    return rlaif(folder, "run", "p.yaml")


def talking(body: Body, *, judge: str = "1", logprobs: Any = None) -> Body:
    """Two different completions of any prompt, and a judge's reply."""
    if "messages" not in body:
        return {"data": [{"id": "m"}]}
    if "<completion" in body["messages"][-1]["content"]:
        return completion(judge, logprobs=logprobs)
    return completion(*(f"text {number} {body.get('seed')}" for number in range(body.get("n") or 1)))


def refusing_logprobs(body: Body) -> Body | Answer:
    """As vLLM, started with `--max-logprobs 0`."""
    if asked := body.get("top_logprobs", 0):
        words = f"Requested sample logprobs of {asked}, which is greater than max allowed: 0 (parameter=logprobs)"
        return Answer({"error": {"message": words, "param": "logprobs", "code": 400}}, status=400)
    return talking(body)


@pytest.mark.parametrize("server", [talking, refusing_logprobs])
def test_soft_verdicts_without_log_probabilities_stop_within_ten(
    server: Callable[[Body], Body | Answer], tmp_path: Path
) -> None:
    with scripted([Answer(server)]) as script:
        done = ran(tmp_path, script.base_url, COMPARED, KIND="soft")
        judged = sum("logprobs" in request["body"] for request in script.requests)
    assert done.code == 1 and "verdicts: hard" in done.out + done.err
    assert judged <= traffic.FIRST + (server is refusing_logprobs)  # with fewer of them, once
    with scripted([Answer(talking)]) as script:
        done = ran(tmp_path, script.base_url, COMPARED, prompts=8, KIND="hard")
    assert done.code == 1 and "no preference was made of 8 rows (8 orders contradict)" in done.out


@pytest.mark.parametrize("page", PAGES)
def test_another_kind_of_server_stops_the_run_within_ten(page: str, tmp_path: Path) -> None:
    with scripted([Answer(PAGES[page][0])]) as script:
        done = ran(tmp_path, script.base_url.removesuffix("/v1"), COMPARED, KIND="hard")
        assert len(script.requests) <= traffic.FIRST
    assert done.code == 1 and PAGES[page][1] in " ".join((done.out + done.err).split())


def test_a_refusal_of_every_request_stops_the_run_within_ten(tmp_path: Path) -> None:
    """And a run after the cause is mended sends them all: none of them failed for good."""

    def answer(body: Body) -> Body | Answer:
        if broken and "messages" in body:
            return Answer({"error": {"message": "the adapter is not loaded"}}, status=400)
        return talking(body)

    broken = True
    with scripted([Answer(answer)]) as script:
        done = ran(tmp_path, script.base_url, COMPARED, prompts=40, KIND="hard")
        assert done.code == 1 and "the adapter is not loaded" in done.out + done.err
        assert sum("messages" in request["body"] for request in script.requests) <= traffic.FIRST + 1  # and the probe
        broken = False
        done = rlaif(tmp_path, "run", "p.yaml")
    assert "160 calls made" in done.out and "no preference was made of 40 rows (40 orders contradict)" in done.out


def test_credit_that_ends_after_20_calls_stops_the_run(tmp_path: Path) -> None:
    calls = 0

    def answer(body: Body) -> Body | Answer:
        nonlocal calls
        calls += "messages" in body
        if calls > 20:
            return Answer({"error": {"message": "This request requires more credits", "code": 402}}, status=402)
        return talking(body)

    with scripted([Answer(answer)]) as script:
        done = ran(tmp_path, script.base_url, COMPARED, KIND="hard")
    assert done.code == 1 and "no credit left" in done.out + done.err
    assert calls <= 20 + 2 * traffic.START  # those in flight: a window of 16 replies may have doubled the limit


SAMPLED = """\
name: sampled
models:
  m: {engine: openai, model: m, base_url: "URL"}
stages:
  - prompts: {path: prompts.jsonl, split: all}
  - sample: {models: [m]}
"""


@pytest.mark.parametrize("form", FILTERS)
def test_a_prompt_that_a_content_filter_stops_is_a_counted_drop(form: str, tmp_path: Path) -> None:
    """Under one cause, whatever the form, and asked for once."""

    def answer(body: Body) -> Body | Answer:
        return FILTERS[form] if "number 2" in str(body.get("messages")) else talking(body)

    with scripted([Answer(answer)]) as script:
        done = ran(tmp_path, script.base_url, SAMPLED, prompts=4)
        asked = sum("number 2" in str(request["body"]) for request in script.requests)
    assert done.code == 0, done
    manifest = json.loads((tmp_path / "runs/sampled/manifest.json").read_text())
    sample = manifest["stages"][1]
    assert sample["dropped"] == {"content filter": 1} and sample["out"] == 3 and not manifest["failures"]
    assert asked == 1


DEFAULTS = """\
name: defaults
models:
  m: {engine: openai, model: m, base_url: "URL"}
stages:
  - prompts: {path: prompts.jsonl, split: all}
  - sample: {models: [{model: m, system: Be brief.}], per_prompt: 2}
  - rate: {model: m, rubric: rubric.yaml}
  - pair: {rule: best-worst}
"""
RUBRIC = """\
name: one
version: 1
scale: {low: 1, high: 5}
aspects:
  - {id: words, description: More words are better.}
"""


def test_a_run_of_defaults_on_a_server_of_three_fields_ends_done(tmp_path: Path) -> None:
    seen: list[str] = []

    def answer(body: Body) -> Body | Answer:
        if "messages" not in body:
            return {"data": [{"id": "m"}]}
        odd = sorted(body.keys() - {"model", "messages", "max_completion_tokens"})
        if odd or body["messages"][0]["role"] == "system":
            seen.append(odd[0] if odd else "system")
            words = f"Unsupported parameter: '{odd[0]}'." if odd else "system messages are not supported"
            return Answer({"error": {"message": words}}, status=400)
        if "<completion" in body["messages"][-1]["content"]:
            return completion(json.dumps({str(k): {"rationale": "x", "rating": 6 - k - 1} for k in (1, 2)}))
        return completion(f"text {len(body['messages'][0]['content'])} {len(seen)} {id(body)}")

    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    with scripted([Answer(answer)]) as script:
        done = ran(tmp_path, script.base_url, DEFAULTS, prompts=40)
        assert done.code == 0, done.out + done.err
        manifest = json.loads((tmp_path / "runs/defaults/manifest.json").read_text())
        count = len(seen)
        again = rlaif(tmp_path, "run", "p.yaml", "name=more", "seed=1")  # another run knows
        assert again.code == 0 and len(seen) == count
    assert manifest["stages"][-1]["dropped"] == {} and manifest["failures"] in ([], {})
    assert manifest["capabilities"]["m"]["refuses max_tokens"] is True
    for field in ("max_tokens", "temperature", "response_format", "system"):
        assert seen.count(field) <= traffic.FIRST
        assert any(f"`{field}`" in note for note in manifest["notes"]), manifest["notes"]


def test_the_shipped_pipeline_of_ultrafeedback_on_a_server_of_three_fields_ends_done(tmp_path: Path) -> None:
    """Seven models of a server that accepts `model`, `messages` and `max_completion_tokens`: one text a request."""
    refused: Counter[tuple[str, str]] = Counter()
    texts = itertools.count()

    def answer(body: Body) -> Body | Answer:
        if "messages" not in body:
            return {"data": []}
        if odd := sorted(body.keys() - {"model", "messages", "max_completion_tokens"}):
            refused[body["model"], odd[0]] += 1
            return Answer({"error": {"message": f"Unrecognized request argument supplied: {odd[0]}"}}, status=400)
        asked = body["messages"][-1]["content"]
        if body["model"] != "judge":
            return completion(f"Text {next(texts)} of {body['model']}.")
        if "Overall score:" in asked:
            return completion(f"It could be longer.\n\nOverall score: {5 + len(asked) % 3}")
        shown = re.findall(r"<completion (\d) \S+>\s*Text (\d+) ", asked)
        return completion(json.dumps({n: {"rationale": "Fair.", "rating": 1 + int(text) % 5} for n, text in shown}))

    names = (*(f"model-{letter}" for letter in "abcdef"), "judge")
    with scripted([Answer(answer)]) as script:
        moved = [f"models.{name}.base_url={script.base_url}" for name in names]
        done = rlaif(tmp_path, "run", "pipelines/ultrafeedback.yaml", *moved)
        assert done.code == 0, done.out + done.err
        sent = len(script.requests)
    manifest = json.loads((tmp_path / "runs/ultrafeedback/manifest.json").read_text())
    assert manifest["failures"] in ([], {})
    assert [stage["in"] for stage in manifest["stages"]] == [24] * 5
    pairs = manifest["stages"][-1]
    assert pairs["out"] > 12 and pairs["out"] + pairs["dropped"].get("tie", 0) == 24
    made = sum(calls["sent"] for calls in manifest["calls"].values())
    assert 24 * (4 + 4 + 4) <= made <= 24 * (4 + 4 + 4) + 3  # samples, critiques, aspects; and the probe of a seed
    assert sent - made <= sum(refused.values()) + 2 * len(names)  # and the lists of models
    assert max(refused.values()) <= traffic.FIRST
    for name in names:
        assert {field for model, field in refused if model == name} >= {"max_tokens", "temperature"}
        assert manifest["capabilities"][name]["refuses max_tokens"] is True
    for form, rows in {"ultrafeedback": 24, "preference": pairs["out"]}.items():
        assert rlaif(tmp_path, "export", "runs/ultrafeedback", "--format", form, "--to", f"{form}.jsonl").code == 0
        assert len((tmp_path / f"{form}.jsonl").read_text().splitlines()) == rows
