"""The vLLM engine against the transformers engine and a real vLLM server, on the shipped models.

Run by `make test-vllm`, which makes an environment of its own. vLLM's engine core runs in this process here, which
starts in seconds; the pipeline and the server have it in processes of its own, as users do.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_engine_openai import probe, run

from rlaif.config import OpenAIModel
from rlaif.engines.asking import Asker
from rlaif.engines.openai import OpenAIEngine
from rlaif.engines.protocol import Engine, Reply, Request
from rlaif.engines.scheduler import Scheduler
from rlaif.engines.transformers import TransformersEngine
from rlaif.engines.vllm import VLLMEngine
from rlaif.errors import EngineError, InputError
from rlaif.records import Message, Sampling
from rlaif.resources import find
from rlaif.store import CallStore

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed: make test-vllm"),
    pytest.mark.timeout(600),
    # What vLLM and torch find deprecated in one another while they are imported is not ours to fix.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::rlaif"),
]

SMALL = {"max_num_seqs": 64, "enforce_eager": True}  # compiling a model of a megabyte takes longer than running it
NEAR = 1e-3  # between two programs that add in different orders

QUESTIONS = ("what is two plus three ?", "say hello to the cat", "name a red fruit", "how do i boil an egg ?")
COMPARING = "compare : we like right replies .\nwhat is two plus three ?\n[1] five .\n[2] nine .\n"
NAMES = ("1", "2", "[", "no such word")  # a verdict, and how a rating begins
SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"enum": ["A", "B"]}, "score": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["verdict", "score"],
    "additionalProperties": False,
}


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def ask(text: str = QUESTIONS[0], *, indices: tuple[int, ...] = (0,), attempt: int = 0, **sampling: Any) -> Request:
    settings = Sampling.model_validate({"max_tokens": 24, **sampling})
    return Request(messages=user(text), sampling=settings, indices=indices, attempt=attempt)


def shaped(schema: dict[str, Any] = SCHEMA, **asked: Any) -> Request:
    return ask(**asked).model_copy(update={"json_schema": schema})


def sample(engine: Engine, *requests: Request) -> list[list[Reply]]:
    """Replies of requests none of which may fail."""
    results = asyncio.run(engine.sample(requests))
    for reply in (reply for arrived in results for reply in arrived):
        if isinstance(reply, EngineError):
            raise reply
    return results  # type: ignore[return-value]


def texts(engine: Engine, *requests: Request) -> list[list[str]]:
    return [[reply.text for reply in replies] for replies in sample(engine, *requests)]


def alike(one: Sequence[Reply], other: Sequence[Reply]) -> None:
    """The same greedy completions, to the token."""
    for here, there in zip(one, other, strict=True):
        assert (here.text, here.finish_reason) == (there.text, there.finish_reason)
        assert here.usage == there.usage
        assert here.token_logprobs == pytest.approx(there.token_logprobs, abs=NEAR)
        assert here.alternatives == pytest.approx(there.alternatives, abs=NEAR)


def in_vllm(name: str, folder: str | Path | None = None, **options: Any) -> VLLMEngine:
    return VLLMEngine(name, str(folder or find(f"tiny/{name}")), dtype="float32", options=SMALL | options)


def in_transformers(name: str) -> TransformersEngine:
    return TransformersEngine(name, str(find(f"tiny/{name}")), device="cpu")


@contextlib.contextmanager
def closing(engine: Engine) -> Iterator[Any]:
    try:
        yield engine
    finally:
        asyncio.run(engine.close())


@pytest.fixture(scope="module", autouse=True)
def _in_this_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        yield


@pytest.fixture(scope="module")
def base() -> Iterator[VLLMEngine]:
    with closing(in_vllm("base")) as engine:
        yield engine


@pytest.fixture(scope="module")
def annotator() -> Iterator[VLLMEngine]:
    with closing(in_vllm("annotator")) as engine:
        yield engine


@pytest.fixture(scope="module", params=["base", "annotator"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[VLLMEngine, TransformersEngine]]:
    with closing(in_transformers(request.param)) as reference:
        yield request.getfixturevalue(request.param), reference


# ---------------------------------------------------------------- agreement with the transformers engine


def test_greedy_completions_are_those_of_the_transformers_engine(
    pair: tuple[VLLMEngine, TransformersEngine],
) -> None:
    engine, reference = pair
    asked = [ask(text, temperature=0, max_tokens=n, logprobs=True) for text in QUESTIONS for n in (5, 40)]
    alike([replies[0] for replies in sample(engine, *asked)], [replies[0] for replies in sample(reference, *asked)])


def test_given_text_has_the_log_probabilities_of_the_transformers_engine(
    pair: tuple[VLLMEngine, TransformersEngine],
) -> None:
    engine, reference = pair
    items = [(user(text), said) for text in QUESTIONS for said in ("five", "hello , dear cat .\nmeow", "")]
    for here, there in zip(asyncio.run(engine.logprobs(items)), asyncio.run(reference.logprobs(items)), strict=True):
        assert here.tokens == pytest.approx(there.tokens, abs=NEAR)
        assert here.end == pytest.approx(there.end, abs=NEAR)


def test_log_probabilities_are_taken_before_temperature_and_top_p(annotator: VLLMEngine) -> None:
    narrow = [ask(text, indices=(0, 1, 2), temperature=0.4, top_p=0.5, logprobs=True) for text in QUESTIONS]
    replies = [reply for replies in sample(annotator, *narrow) for reply in replies]
    items = [(narrow[n // 3].messages, reply.text) for n, reply in enumerate(replies)]
    with closing(in_transformers("annotator")) as reference:
        scored = asyncio.run(reference.logprobs(items))
    # A text may be read as other tokens than it was written in.
    same = [(s, r) for s, r in zip(scored, replies, strict=True) if len(s.tokens) == len(r.token_logprobs or ())]
    assert len(same) >= 6
    for given, reply in same:
        assert reply.token_logprobs == pytest.approx(given.tokens, abs=NEAR)


def test_named_alternatives_are_those_of_the_transformers_engine(annotator: VLLMEngine) -> None:
    asked = [
        ask(COMPARING, temperature=0, alternatives=NAMES),
        ask(COMPARING, temperature=0, alternatives=NAMES, logprobs=True),
        ask(COMPARING, temperature=1.5, top_p=0.5, alternatives=NAMES[::-1]),
        ask(QUESTIONS[1], temperature=0, alternatives=NAMES[:1], max_tokens=3),
        ask(QUESTIONS[1], temperature=0, logprobs=True),  # shares the batch and names none
    ]
    found = sample(annotator, *asked)
    with closing(in_transformers("annotator")) as reference:
        expected = sample(reference, *asked)
    for (here,), (there,) in zip(found, expected, strict=True):
        assert here.alternatives == pytest.approx(there.alternatives, abs=NEAR)
    alike([found[n][0] for n in (0, 1, 3, 4)], [expected[n][0] for n in (0, 1, 3, 4)])
    named = found[0][0].alternatives
    assert named is not None and named["1"] is not None and named["no such word"] is None


def test_a_schema_is_followed_and_leaves_log_probabilities_raw(annotator: VLLMEngine) -> None:
    asked = shaped(text=COMPARING, temperature=0, max_tokens=60, logprobs=True, alternatives=("1", "{"))
    others = shaped(text=COMPARING, indices=tuple(range(10)), max_tokens=60)
    free = ask(COMPARING, temperature=0, logprobs=True)
    [[reply], replies, plain] = sample(annotator, asked, others, free)
    with closing(in_transformers("annotator")) as reference:
        expected = sample(reference, asked, free)
    alike([reply, *plain], [replies[0] for replies in expected])
    for one in (reply, *replies):
        value = json.loads(one.text)
        assert list(value) == ["verdict", "score"] and value["verdict"] in "AB" and 1 <= value["score"] <= 9
        assert one.finish_reason == "stop"
    assert all(one.token_logprobs is None and one.alternatives is None for one in replies)


# ---------------------------------------------------------------- sampling


def test_a_text_depends_neither_on_what_is_asked_with_it_nor_on_when(base: VLLMEngine) -> None:
    requests = [ask(text, indices=(0, 1, 2), temperature=0.7 + n / 10) for n, text in enumerate(QUESTIONS)]
    together = texts(base, *requests)
    assert texts(base, *requests[::-1]) == together[::-1]
    for request, expected in zip(requests, together, strict=True):
        alone = [request.model_copy(update={"indices": (index,)}) for index in (2, 0, 1)]
        assert [text for [text] in texts(base, *alone)] == [expected[2], expected[0], expected[1]]
    assert len({text for row in together for text in row}) >= 10


def test_index_attempt_and_seed_change_the_text_and_what_only_observes_does_not(base: VLLMEngine) -> None:
    hot = {"temperature": 1.5, "max_tokens": 20}
    [same], [again], [attempt], [seed], [index], [observed], [longer] = texts(
        base,
        ask(**hot),
        ask(**hot),
        ask(**hot, attempt=1),
        ask(**hot, seed=1),
        ask(**hot, indices=(1,)),
        ask(**hot, logprobs=True, alternatives=("a",)),
        ask(**hot | {"max_tokens": 21}),
    )
    assert same == again == observed
    assert longer.startswith(same)
    assert len({same, attempt, seed, index}) == 4


def test_stop_strings_end_each_sample_on_its_own(base: VLLMEngine) -> None:
    stops = ("\n", "the")
    asked = {"indices": tuple(range(20)), "temperature": 1.0, "max_tokens": 40}
    [free], [stopped] = sample(base, ask(**asked)), sample(base, ask(**asked, stop=stops, logprobs=True))
    cut = 0
    for one, other in zip(free, stopped, strict=True):
        places = [place for stop in stops if (place := one.text.find(stop)) >= 0]
        if places:
            cut += 1
            assert other.text == one.text[: min(places)].strip() and other.finish_reason == "stop"
            assert len(other.token_logprobs or ()) <= other.usage.completion_tokens < one.usage.completion_tokens
        else:
            assert other.text == one.text
    assert cut >= 5


def test_a_special_token_can_be_a_stop(annotator: VLLMEngine) -> None:
    asked = {"indices": tuple(range(60)), "max_tokens": 60, "temperature": 2.0}
    special = ("<|user|>", "<|assistant|>", "<|system|>", "<|pad|>")
    [free], [stopped] = sample(annotator, ask(**asked)), sample(annotator, ask(**asked, stop=special))
    shorter = [(f, s) for f, s in zip(free, stopped, strict=True) if f != s]
    assert shorter
    assert all(s.finish_reason == "stop" and f.text.startswith(s.text) for f, s in shorter)


def test_samples_end_at_max_tokens_or_at_the_end_token(annotator: VLLMEngine) -> None:
    [[short], [long]] = sample(annotator, ask(COMPARING, max_tokens=2, logprobs=True, temperature=0),
                               ask(COMPARING, max_tokens=200, logprobs=True, temperature=0))  # fmt: skip
    assert (short.finish_reason, short.usage.completion_tokens, len(short.token_logprobs or ())) == ("length", 2, 2)
    assert long.finish_reason == "stop"  # the end token is used and counted, and is no part of the log-probabilities
    assert len(long.token_logprobs or ()) == long.usage.completion_tokens - 1


def test_only_the_first_sample_of_a_request_carries_the_prompt(base: VLLMEngine) -> None:
    [replies] = sample(base, ask(indices=(4, 2, 7)))
    assert [reply.usage.prompt_tokens > 0 for reply in replies] == [True, False, False]


# ---------------------------------------------------------------- what fails alone


def test_what_vllm_cannot_be_asked_fails_alone(base: VLLMEngine) -> None:
    requests = {
        "too-long": ask("red " * 1100, indices=(0, 1)),
        "schema": shaped({"$ref": "#/nowhere"}),
        "sampling": ask(temperature=2.5),
        "fine": ask(),
    }
    arrived = dict(zip(requests, asyncio.run(base.sample(list(requests.values()))), strict=True))
    assert isinstance(arrived.pop("fine")[0], Reply)
    for cause, errors in arrived.items():
        for error in errors:
            assert isinstance(error, EngineError) and error.cause == cause, (cause, error)
            assert not error.retryable and not error.fatal
    [long, again] = arrived["too-long"]
    assert long is again and "max_tokens 24 in the model's 1024" in str(long) and "shorten" in str(long)


def test_a_window_can_be_filled_to_the_last_token(base: VLLMEngine) -> None:
    [[reply]] = sample(base, ask("red", max_tokens=1))
    room = 1024 - reply.usage.prompt_tokens
    [[full], [over]] = asyncio.run(base.sample([ask("red", max_tokens=room), ask("red", max_tokens=room + 1)]))
    assert isinstance(full, Reply) and isinstance(over, EngineError)
    assert base._worker.model is not None
    items = ((user("red"), "red " * n) for n in range(900, 1024))
    item = next(item for item in items if len(base._worker.model.chat.completed([item])[0].ids) == 1024)
    [scored] = asyncio.run(base.logprobs([item]))
    with closing(in_transformers("base")) as reference:
        [expected] = asyncio.run(reference.logprobs([item]))
    assert scored.tokens == pytest.approx(expected.tokens, abs=NEAR)


def test_given_text_that_is_too_long_is_refused(base: VLLMEngine) -> None:
    with pytest.raises(EngineError, match="the model reads 1024") as caught:
        asyncio.run(base.logprobs([(user("hi"), "red " * 1100)]))
    assert caught.value.cause == "too-long"


def test_a_reward_head_is_left_to_the_transformers_engine(base: VLLMEngine, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="engine: transformers") as caught:
        asyncio.run(base.score([(user("hi"), "five")]))
    assert caught.value.cause == "verb" and caught.value.fatal
    folder = shutil.copytree(find("tiny/base"), tmp_path / "reward")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForSequenceClassification"]}))
    with closing(in_vllm("reward", folder)) as reward, pytest.raises(EngineError, match="engine: transformers"):
        asyncio.run(reward.sample([ask()]))


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize(
    ("option", "fix"),
    [
        ("max_modle_len", "`max_model_len`"),
        ("zz", "vllm.LLM"),
        ("dtype", "beside `engine`"),
        ("generation_config", "`sampling`"),
    ],
)
def test_an_option_that_cannot_be_set_is_named(option: str, fix: str) -> None:
    with closing(in_vllm("base", **{option: "1"})) as engine, pytest.raises(InputError) as caught:
        asyncio.run(engine.probe())
    assert caught.value.key == f"options.{option}" and fix in str(caught.value.fix)


def test_a_model_that_cannot_be_loaded_says_why() -> None:
    with closing(in_vllm("base", max_model_len=-7)) as engine, pytest.raises(EngineError, match="max_model") as caught:
        asyncio.run(engine.probe())
    assert caught.value.cause == "load" and caught.value.fatal and caught.value.fix


def test_no_call_is_shared_with_another_engine_precision_or_option() -> None:
    def identity(dtype: str = "auto", **options: Any) -> str:
        return VLLMEngine("a", str(find("tiny/base")), dtype=dtype, options=options).identity

    plain, reference = identity(), in_transformers("base").identity
    assert plain.startswith(reference) and plain != reference
    assert identity(max_model_len=512, gpu_memory_utilization=0.3) == plain
    assert len({plain, identity("float32"), identity(quantization="fp8"), identity(kv_cache_dtype="fp8")}) == 4


# ---------------------------------------------------------------- through the scheduler


def test_what_was_paid_for_is_not_asked_again(base: VLLMEngine, tmp_path: Path) -> None:
    async def run() -> tuple[list[str], int, int]:
        async with contextlib.AsyncExitStack() as stack:
            store = CallStore(tmp_path / "calls.sqlite")
            stack.callback(store.close)
            scheduler = Scheduler(store, {"base": base}, {})
            stack.push_async_callback(scheduler.close)
            asker = Asker(scheduler, "base", Sampling(max_tokens=20, logprobs=True))
            found = await asker.several(user(QUESTIONS[0]), 3)
            tally = scheduler.ledger.by_model()["base"]
            return [completion.text for completion in found], tally.sent, tally.cached

    first, again = asyncio.run(run()), asyncio.run(run())
    assert (first[1:], again[1:]) == ((3, 0), (0, 3))
    assert first[0] == again[0] and len(set(first[0])) == 3


# ---------------------------------------------------------------- a real server


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """The annotator behind vLLM's own server."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(find("tiny/annotator"))]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-num-seqs", "64", "--block-size", "32", "--enforce-eager", "--generation-config", "vllm"]
    command += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    environment = {**os.environ, **quiet, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with subprocess.Popen(command, env=environment) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def wait_for(url: str, server: subprocess.Popen[bytes], seconds: float = 400) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert server.poll() is None, f"the server ended with {server.returncode}"
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    raise TimeoutError(f"no answer from {url} within {seconds:g} s")


def served(base_url: str) -> OpenAIEngine:
    return OpenAIEngine("tiny", OpenAIModel(engine="openai", model="tiny", base_url=base_url), "none")


def ask_server(base_url: str, *requests: Request) -> list[list[Reply]]:
    """As a run asks, after the probe that comes before every first request."""
    assert probe(served(base_url)) is True
    results = run(served(base_url), *requests)
    for reply in (reply for arrived in results for reply in arrived):
        if isinstance(reply, EngineError):
            raise reply
    return results  # type: ignore[return-value]


def test_a_server_gives_what_the_engine_gives(base_url: str, annotator: VLLMEngine) -> None:
    asked = [ask(text, temperature=0, max_tokens=40, logprobs=True) for text in (*QUESTIONS, COMPARING)]
    for (there,), (here,) in zip(ask_server(base_url, *asked), sample(annotator, *asked), strict=True):
        assert (there.text, there.finish_reason, there.usage) == (here.text, here.finish_reason, here.usage)
        assert there.token_logprobs == pytest.approx(here.token_logprobs, abs=NEAR)


def test_a_server_reports_the_alternatives_it_ranks_highest(base_url: str, annotator: VLLMEngine) -> None:
    request = ask(COMPARING, temperature=0, max_tokens=4, alternatives=NAMES)
    [[there]], [[here]] = ask_server(base_url, request), sample(annotator, request)
    assert there.alternatives is not None and here.alternatives is not None
    assert there.alternatives["no such word"] is None
    likely = {name: value for name, value in here.alternatives.items() if value is not None and value > -5}
    assert likely and {name: there.alternatives[name] for name in likely} == pytest.approx(likely, abs=NEAR)


def test_a_server_honours_seed_n_schema_and_stop(base_url: str, annotator: VLLMEngine) -> None:
    many, formed = ask(indices=(0, 1, 2, 3), temperature=1.5), shaped(text=COMPARING, temperature=0, max_tokens=60)
    stopped = ask(COMPARING, temperature=0, stop=("e",))
    first, again = ask_server(base_url, many, formed, stopped), ask_server(base_url, many)
    assert [reply.text for reply in first[0]] == [reply.text for reply in again[0]]
    assert len({reply.text for reply in first[0]}) == 4
    assert [replies[0].text for replies in first[1:]] == [text for [text] in texts(annotator, formed, stopped)]
    assert json.loads(first[1][0].text)["verdict"] in ("A", "B") and first[2][0].finish_reason == "stop"


# ---------------------------------------------------------------- a run


PIPELINE = """\
name: judged
models:
  base: {engine: transformers, path: tiny/base, sampling: {stop: ["\\n"], max_tokens: 24}}
  annotator:
    engine: %s
    path: tiny/annotator
    dtype: float32
    %s
stages:
  - prompts: {path: tiny/prompts.jsonl, take: 6}
  - sample: {models: [base], per_prompt: 2}
  - rate:
      model: annotator
      rubric: prompts/rubrics/tiny.yaml
      template: prompts/rate-compact.jinja
      answers: lines
      sampling: {temperature: 0, max_tokens: 160}
  - pair: {rule: best-worst}
"""


def test_a_run_judges_with_vllm_as_with_transformers(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    tables = []
    for engine, options in (("vllm", f"options: {json.dumps(SMALL)}"), ("transformers", "device: cpu")):
        (folder := tmp_path / engine).mkdir()
        (folder / "judged.yaml").write_text(PIPELINE % (engine, options))
        command = [sys.executable, "-c", "from rlaif.cli import main; main()", "run", "judged.yaml"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "INFO" not in done.stderr and "Traceback" not in done.stderr, done.stderr
        lines = (folder / "runs/judged/stages/03-rate.jsonl").read_text().splitlines()
        tables.append([[rating["value"] for rating in json.loads(line)["ratings"]] for line in lines])
    assert tables[0] == tables[1] and len(tables[0]) == 6


# ---------------------------------------------------------------- last


# In one process, closing an engine takes from the others what vLLM shares between them: what closes one comes last.


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    shutil.copytree(find("tiny/base"), folder := tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with closing(in_vllm("bare", folder)) as engine, pytest.raises(InputError, match="no chat template"):
        asyncio.run(engine.probe())


def test_a_closed_engine_loads_again() -> None:
    with closing(in_vllm("base")) as engine:
        before = texts(engine, ask(temperature=0))
        asyncio.run(engine.close())
        assert texts(engine, ask(temperature=0)) == before
