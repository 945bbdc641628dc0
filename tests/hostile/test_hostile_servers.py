"""Servers that lie, flood, stall or speak nonsense: a sentence within bounds of time and memory, and the next call."""

from __future__ import annotations

import gzip
import itertools
import json
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow
import pytest
from echo import write_project
from inside import rlaif
from serving import Answer, Spoken, completion, scripted, speaking, spoken
from test_engine_openai import KEY, ask, bad, each_client, good, make, run  # noqa: F401 - a fixture

from rlaif.engines import traffic, wire
from rlaif.errors import EngineError

MB = 1_000_000
FINE = json.dumps(completion("fine")).encode()
BLANK = b" " * 65_536


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "FIRST_WAIT", 0.001)


def sentence(error: EngineError) -> str:
    """The error as a person sees it, which is one line without a library's own marks."""
    said = str(error)
    assert said.startswith("model 'judge': ") and "\n" not in said and len(said) < 1_000
    for mark in ("Traceback", "0x", "pyreqwest", "msgspec", "set_int_max", "recursion", "Error(", "None"):
        assert mark not in said, said
    return said


# ---------------------------------------------------------------- too much

FULL = b"0" * 20 * MB


def chunked(pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield b"%x\r\n%s\r\n" % (len(piece), piece)


def bomb(megabytes: int, wbits: int = zlib.MAX_WBITS | 16) -> bytes:
    """So many megabytes of white space in a thousandth of the bytes; after a full flush all blocks are alike."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    first, second = (packer.compress(b" " * MB) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + second * (megabytes - 1)


def long_completion() -> Iterator[bytes]:
    yield b'{"choices": [{"finish_reason": "stop", "message": {"content": "'
    yield from itertools.repeat(b"x" * MB, 200)
    yield b'"}}]}'


def many_choices() -> Iterator[bytes]:
    yield b'{"choices": ['
    yield from itertools.repeat(b'{"message": {"content": "x"}, "finish_reason": "stop"},' * 100, 10_000)
    yield FINE[13:]


CHUNKED = "transfer-encoding: chunked"
FLOODS: dict[str, Spoken] = {
    "body of 500 MB": spoken(itertools.repeat(b" " * MB, 500), length=500 * MB),
    "body of 500 MB without a length": spoken(itertools.repeat(b" " * MB, 500), length=None),
    "a length of 10^18 and a body to match": spoken(itertools.repeat(BLANK), length=10**18),
    "chunked without end": spoken(chunked(itertools.repeat(BLANK)), CHUNKED, length=None),
    "chunks of ten bytes without end": spoken(itertools.repeat(b"a\r\n          \r\n" * 5_000), CHUNKED, length=None),
    "completion of 200 MB": spoken(long_completion(), length=None),
    "10^6 choices": spoken(many_choices(), length=None),
    "gzip bomb": spoken(bomb(1_000), "content-encoding: gzip"),
    "gzip bomb, chunked": spoken(chunked(iter([bomb(1_000)])), CHUNKED, "content-encoding: gzip", length=None),
    "deflate bomb": spoken(bomb(1_000, zlib.MAX_WBITS), "content-encoding: deflate"),
    "brotli bomb": spoken(pyarrow.Codec("brotli").compress(FULL).to_pybytes(), "content-encoding: br"),
    "zstd bomb": spoken(pyarrow.Codec("zstd").compress(FULL).to_pybytes(), "content-encoding: zstd"),
    "gzip without end": spoken(
        itertools.chain([bomb(1)], itertools.repeat(bomb(2)[len(bomb(1)) :])), "content-encoding: gzip", length=None
    ),
}


def of_the_package(each_client: str, name: str, others: str) -> None:  # noqa: F811
    """Leave a case out whose outcome is the HTTP of the `openai` package's own."""
    if each_client == "sdk" and any(other in name for other in others.split(", ")):
        pytest.skip("the package's HTTP is of another mind")


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_is_stopped_at_a_bound_that_is_named(flood: str, each_client: str) -> None:  # noqa: F811
    of_the_package(each_client, flood, "brotli, zstd, ten bytes")  # not asked for, so not read; read, one by one
    with speaking(FLOODS[flood]) as speaker:
        began = time.monotonic()
        error = bad(make(speaker.base_url, timeout=30), ask())
        assert time.monotonic() - began < 10
    assert error.cause == "too-long" and error.lost and not error.fatal
    assert "it is longer than 2.01 MB, more than was asked for can fill" in sentence(error)
    assert len(speaker.heads) == 1  # not asked, and paid for, again
    assert speaker.sent < 12 * MB  # what sockets hold, and no more


def test_the_bound_grows_with_what_is_asked_up_to_a_limit() -> None:
    with speaking(spoken(itertools.repeat(b" " * MB, 500), length=None)) as speaker:
        error = bad(make(speaker.base_url), ask(max_tokens=3_000, alternatives=("A",)))
        assert "it is longer than 35 MB" in sentence(error)
        error = bad(make(speaker.base_url), ask(max_tokens=1_000_000))
        assert "it is longer than 64 MB" in sentence(error)


@pytest.mark.parametrize("status", [400, 404, 418, 500, 503])
def test_an_error_page_without_end_is_not_read_to_its_end(status: int) -> None:
    with speaking(spoken(itertools.repeat(BLANK), status=f"{status} No", length=None)) as speaker:
        error = bad(make(speaker.base_url, retries=0), ask())
    assert f"the server answered {status}: an error page, and it is longer than 0.256 MB" in sentence(error)
    assert speaker.sent < 8 * MB


def test_four_gzip_bombs_of_1_gb_at_once_stay_under_1_gb(tmp_path: Path) -> None:
    """A process of its own, whose memory can be measured."""
    lists = spoken(b'{"data": [{"id": "one"}, {"id": "two"}, {"id": "judge"}]}')
    code = (
        "import sys; from rlaif.cli import main\n"
        "sys.argv[1:] = ['run', 'echo.yaml']\n"
        "try: main()\n"
        "finally: print(*[line for line in open('/proc/self/status') if line.startswith('VmHWM')])\n"
    )
    with speaking(lists, lists, lists, spoken(bomb(1_000), "content-encoding: gzip")) as speaker:
        write_project(tmp_path, speaker.base_url, prompts=4)
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "is longer than" in done.stdout + done.stderr
    assert int(done.stdout.split()[-2]) < 400_000  # kB


# ---------------------------------------------------------------- too little, too late

STALLS: dict[str, tuple[Spoken, str]] = {
    "nothing at all": (lambda: iter(()), "cannot reach"),
    "half a status line": (b"HTTP/1.1 2", "cannot reach"),
    "headers without an end": (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n", "cannot reach"),
    "fewer bytes than it said": (spoken(FINE[:40], length=len(FINE)), "broke off"),
    "no bytes of many": (spoken(b"", length=10**15), "broke off"),
    "half a chunk": (spoken(b"ff\r\n" + FINE[:40], CHUNKED, length=None), "broke off"),
    "a chunk of 2^64 bytes": (spoken(b"1" + b"0" * 16 + b"\r\n" + FINE, CHUNKED, length=None), "broke off"),
    "a chunk of no number": (spoken(b"zz\r\n" + FINE, CHUNKED, length=None), "broke off"),
    "half a gzip": (spoken(gzip.compress(FINE)[:60], "content-encoding: gzip"), "unexpected end of file"),
    "gzip that is none": (spoken(FINE, "content-encoding: gzip"), "broke off"),
    "brotli that is none": (spoken(FINE, "content-encoding: br"), "broke off"),
    "zstd that is none": (spoken(FINE, "content-encoding: zstd"), "broke off"),
    "deflate that is none": (spoken(FINE, "content-encoding: deflate"), "broke off"),
    "gzip whose checksum is wrong": (
        spoken(gzip.compress(FINE)[:-8] + b"\0" * 8, "content-encoding: gzip"),
        "broke off",
    ),
    "a zstd window of 2^41": (spoken(b"\x28\xb5\x2f\xfd\x00\xf8\x01\x00\x00", "content-encoding: zstd"), "broke off"),
}


@pytest.mark.parametrize("stall", STALLS)
def test_an_answer_that_does_not_come_whole_is_a_sentence(stall: str) -> None:
    answer, words = STALLS[stall]
    with speaking(answer) as speaker:
        error = bad(make(speaker.base_url, timeout=5, retries=1), ask())
    assert words in sentence(error) and error.retryable
    with speaking(answer, spoken(FINE)) as speaker:
        [reply] = good(make(speaker.base_url, timeout=5), ask())
    assert reply.text == "fine"


@pytest.mark.parametrize("flow", ["slow", "with 100 continues", "with early hints"])
def test_an_answer_that_comes_slowly_within_its_time_is_read(flow: str) -> None:
    first = {"with 100 continues": b"HTTP/1.1 100 Continue\r\n\r\n", "with early hints": b"HTTP/1.1 103 Hints\r\n\r\n"}
    pieces = [*[first[flow]] * 20, *spoken(FINE)()] if flow in first else [bytes([b]) for b in b"".join(spoken(FINE)())]
    with speaking(lambda: iter(pieces), pause=0.001) as speaker:
        assert good(make(speaker.base_url, timeout=20), ask())[0].text == "fine"


@pytest.mark.parametrize("drip", ["of a body", "of headers", "of a status line", "of chunks", "of 100 continues"])
def test_a_drip_without_end_ends_with_its_time(drip: str) -> None:
    starts = {
        "of a body": spoken(itertools.repeat(b" "), length=10**9),
        "of headers": lambda: itertools.chain([b"HTTP/1.1 200 OK\r\n"], itertools.repeat(b"x-more: y\r\n")),
        "of a status line": lambda: itertools.chain([b"HTTP/1.1 200 "], itertools.repeat(b"O")),
        "of chunks": spoken(itertools.repeat(b"1\r\n \r\n"), CHUNKED, length=None),
        "of 100 continues": lambda: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n"),
    }
    with speaking(starts[drip], pause=0.02) as speaker:
        began = time.monotonic()
        error = bad(make(speaker.base_url, timeout=0.3, retries=0), ask())
        assert time.monotonic() - began < 5
    assert error.cause in ("timeout", "connection") and sentence(error)


# ---------------------------------------------------------------- no HTTP, or an odd one

ODD_HTTP: dict[str, Spoken] = {
    "a TLS alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "a TLS greeting": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x07" * 512,
    "the greeting of SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "the greeting of SMTP": b"220 mail ESMTP\r\n",
    "noise": bytes(range(256)) * 40,
    "zeros": b"\0" * 100_000,
    "a body alone": FINE,
    "HTTP of another kind": b"HTTP/3.0 200 OK\r\n\r\n" + FINE,
    "a status of two digits": spoken(FINE, status="20 OK"),
    "a status of four digits": spoken(FINE, status="2000 OK"),
    "a status in words": spoken(FINE, status="okay"),
    "a status below zero": spoken(FINE, status="-200 OK"),
    "a status of 99": spoken(FINE, status="099 OK"),
    "10,000 headers": spoken(FINE, *(f"x-{i}: y" for i in range(10_000))),
    "a header of 10 MB": spoken(FINE, "x-long: " + "y" * 10 * MB),
    "a header without a colon": spoken(FINE, "no colon here"),
    "a header with NUL": spoken(FINE, "x-nul: a\0b"),
    "a folded header": spoken(FINE, "x-folded: a\r\n b"),
    "two lengths that differ": spoken(FINE, "content-length: 5"),
    "a length below zero": spoken(FINE, length=-5),
    "a length of 2^64": spoken(FINE, length=2**64),
    "a length in words": spoken(FINE, "content-length: all", length=None),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD_HTTP)
def test_what_is_no_http_is_a_sentence(odd: str, each_client: str) -> None:  # noqa: F811
    of_the_package(each_client, odd, "another kind, folded header")  # read as they are meant
    with speaking(ODD_HTTP[odd]) as speaker:
        error = bad(make(speaker.base_url, timeout=5, retries=0), ask())
    assert "the server's answer broke off (" in sentence(error) and not error.fatal


FORGIVEN: dict[str, Spoken] = {
    "HTTP/1.0 to the end": b"HTTP/1.0 200 OK\r\n\r\n" + FINE,
    "no reason": spoken(FINE, status="200"),
    "a reason of 10 KB": spoken(FINE, status="200 " + "O" * 10_000),
    "another type": spoken(FINE, "content-type: image/png"),
    "an encoding that is none": spoken(FINE, "content-encoding: identity"),
    "a charset that is none": spoken(FINE, "content-type: application/json; charset=klingon"),
    "gzip": spoken(gzip.compress(FINE), "content-encoding: gzip"),
    "a byte order mark": spoken(b"\xef\xbb\xbf" + FINE),
    "UTF-16": spoken(FINE.decode().encode("utf-16")),
    "more bytes than it said": spoken(FINE + b"{}" * 500, length=len(FINE)),
    "cookies": spoken(FINE, "set-cookie: a=b; Domain=.example.com"),
}


@pytest.mark.parametrize("odd", FORGIVEN)
def test_what_is_odd_and_clear_is_read(odd: str) -> None:
    with speaking(FORGIVEN[odd]) as speaker:
        assert good(make(speaker.base_url, timeout=5), ask())[0].text == "fine"


@pytest.mark.parametrize("status", [101, 201, 202, 203, 204, 205, 206, 226, 300, 304, 305, 306, 399, 402, 405, 406, 410,
                                    411, 413, 414, 415, 418, 426, 428, 431, 451, 499, 600, 700, 999])  # fmt: skip
def test_a_status_that_promises_nothing_is_refused(status: int) -> None:
    body = b"" if status in (101, 204, 304) else FINE
    with speaking(spoken(body, status=f"{status} Odd", length=None if status == 101 else -1)) as speaker:
        error = bad(make(speaker.base_url, timeout=5, retries=0), ask())
    assert f"the server answered {status}" in sentence(error) or "cannot reach" in sentence(error)


WAITS = ("-1", "nan", "inf", "1e400", "9" * 5_000, "0x10", "\u0663", "Fri, 31 Dec 9999 23:59:59 GMT",
         "Mon, 99 Foo 2024", "2024-01-01", "", " ", "1, 2", "\xff\xfe")  # fmt: skip


@pytest.mark.parametrize("header", WAITS, ids=lambda header: ascii(header)[1:20])
def test_a_wait_that_no_clock_knows_is_none(header: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "LONGEST_WAIT", 0.01)
    raw = header.encode("utf-8", "surrogateescape").decode("latin-1")
    with speaking(spoken(b"busy", f"retry-after: {raw}", status="503 Busy"), spoken(FINE)) as speaker:
        assert good(make(speaker.base_url, timeout=5), ask())[0].text == "fine"


# ---------------------------------------------------------------- JSON that lies


def choice(**fields: Any) -> bytes:
    return json.dumps(completion("fine") | {"choices": [{**completion("fine")["choices"][0], **fields}]}).encode()


def usage(**fields: Any) -> bytes:
    return json.dumps(completion("fine") | {"usage": fields}).encode()


DEEP = b"[" * 200_000
LIES: dict[str, bytes] = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "a text": b'"choices"',
    "a number": b"1",
    "200,000 lists in one another": DEEP,
    "200,000 objects in one another": b'{"a":' * 200_000,
    "deep in a field that is ignored": b'{"extra": ' + DEEP + b"]" * 200_000 + b"}",
    "NUL": b"\0" * 100,
    "UTF-8 that is none": b'{"choices": "\xff\xfe\xfa"}',
    "half an object": FINE[: len(FINE) // 2],
    "two objects": FINE + FINE,
    "words before it": b"Sure! " + FINE,
    "choices that are null": b'{"choices": null}',
    "choices that are an object": b'{"choices": {"0": {}}}',
    "choices that are numbers": b'{"choices": [1, 2]}',
    "choices without a message": b'{"choices": [{"finish_reason": "stop"}]}',
    "a message that is a text": choice(message="fine"),
    "a message that is null": choice(message=None),
    "content that is a number": choice(message={"content": 5}),
    "content that is an object": choice(message={"content": {"text": "fine"}}),
    "content that is true": choice(message={"content": True}),
    "a refusal that is a list": choice(message={"content": "", "refusal": ["no"]}),
    "a reason that is a number": choice(finish_reason=7),
    "an index in words": choice(index="first"),
    "an index of half": choice(index=0.5),
    "an index of 5,000 digits": choice(index=7).replace(b'"index": 7', b'"index": ' + b"7" * 5_000),
    "log-probabilities that are a list": choice(logprobs=[1]),
    "log-probabilities of texts": choice(logprobs={"content": [{"token": "a", "logprob": "-1"}]}),
    "log-probabilities without tokens": choice(logprobs={"content": [{"logprob": -1}]}),
    "a usage that is a list": json.dumps(completion("fine") | {"usage": [1]}).encode(),
}


REASONS = {"unknown": "tool_calls", "1 MB": "x" * MB, "many lines": "a\r\nb\x1b[2J\0", "the key": KEY}


@pytest.mark.parametrize("reason", REASONS)
def test_a_text_with_an_unknown_reason_is_kept_and_told_of_once(reason: str) -> None:
    told: list[str] = []
    with speaking(spoken(choice(finish_reason=REASONS[reason]))) as speaker:
        engine = make(speaker.base_url, timeout=5)
        engine.tell = told.append
        for _ in range(2):
            [reply] = good(engine, ask())
            assert (reply.text, reply.finish_reason) == ("fine", "stop")
    [line] = told
    assert "unknown here" in line and len(line) < 1_000 and "\n" not in line and KEY not in line


@pytest.mark.parametrize("lie", LIES)
def test_json_of_another_shape_is_a_sentence(lie: str) -> None:
    with speaking(spoken(LIES[lie])) as speaker:
        error = bad(make(speaker.base_url, timeout=5, retries=0), ask())
    assert error.cause == "bad-body" and error.retryable and "the server" in sentence(error)


HARMLESS: dict[str, bytes] = {
    "keys twice": b'{"choices": [], ' + FINE[1:],
    "an index below zero": choice(index=-(2**62)),
    "an index of 10^400": choice(index=10**400),
    "a huge index": choice(index=2**62),
    "NaN in a field that is ignored": FINE[:-1] + b', "extra": NaN}',
    "10^400 in a field that is ignored": FINE[:-1] + b', "extra": 1e400}',
    "a number of 4,000 digits in a field that is ignored": FINE[:-1] + b', "extra": ' + b"7" * 4_000 + b"}",
    "half a surrogate pair": FINE[:-1] + b', "extra": "\\ud83d"}',
    "100,000 fields": FINE[:-1] + b"".join(b', "x%d": 1' % i for i in range(100_000)) + b"}",
    "no usage": b'{"choices"' + FINE.split(b'"choices"')[1].rsplit(b', "usage"')[0] + b"}",
    "more choices than asked": json.dumps(completion(*["fine"] * 1_000)).encode(),
    **{f"usage of {value!r:.12}": usage(prompt_tokens=value, completion_tokens=value)
       for value in (-5, 2**31, 2**63, 10**30, 1.5, 1e308, True, "7", "many", None, [], {}, [7], "9" * 5_000)},
}  # fmt: skip


@pytest.mark.parametrize("lie", HARMLESS)
def test_what_is_wrong_beside_the_completion_leaves_it(lie: str) -> None:
    with speaking(spoken(HARMLESS[lie])) as speaker:
        engine = make(speaker.base_url, timeout=5)
        [reply] = good(engine, ask())
    assert reply.text == "fine"
    assert 0 <= reply.usage.prompt_tokens < 2**31 and 0 <= reply.usage.completion_tokens < 2**31
    assert lie != "usage of True" or reply.usage.prompt_tokens == 0


def test_a_prompt_that_is_said_to_be_huge_does_not_stop_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit of tokens in a minute, an estimate of 2^31 tokens would wait for years."""
    with scripted(
        [Answer(completion("fine") | {"usage": {"prompt_tokens": 2**31 - 1, "completion_tokens": 1}})]
    ) as script:
        engine = make(script.base_url, limits={"tokens_per_minute": 1_000_000})
        began = time.monotonic()
        assert len(run(engine, ask("one"), ask("two"))) == 2 and len(run(engine, ask("three"))) == 1
        assert time.monotonic() - began < 5 and engine.estimate(ask("x" * 1_000)) < 10_000


# ---------------------------------------------------------------- lists of models

LISTS: dict[str, bytes] = {
    "10^6 names": b'{"data": [' + b",".join(b'{"id": "m%d"}' % i for i in range(10**6)) + b"]}",
    "deep": DEEP,
    "no JSON": b"<html>",
    "nothing": b"",
    "a list": b'["one"]',
    "data that is null": b'{"data": null}',
    "data that is an object": b'{"data": {"one": {}}}',
    "names that are numbers": b'{"data": [{"id": 1}, {"id": null}, {"id": [2]}]}',
    "names that are missing": b'{"data": [{"name": "one"}]}',
    "a name of 1 MB": b'{"data": [{"id": "' + b"x" * MB + b'"}]}',
    "half a surrogate pair": b'{"data": [{"id": "\\ud83d"}]}',
}


@pytest.mark.parametrize("listed", LISTS)
def test_a_list_of_models_is_worth_a_note_at_most(listed: str, tmp_path: Path) -> None:
    lists, fine = spoken(LISTS[listed]), spoken(json.dumps(completion("fine words", "more of it")).encode())
    with speaking(*[lists] * 3, fine) as speaker:
        write_project(tmp_path, speaker.base_url, prompts=1)
        done = rlaif(tmp_path, "run", "echo.yaml", "stages.rate.rate.reask=0")
    assert done.code in (0, 1) and "Traceback" not in done.err + done.out
    assert max(map(len, (done.out + done.err).splitlines())) < 3_000


# ---------------------------------------------------------------- redirects

KEYED = {"authorization", "openai-organization", "openai-project"}


def redirect(to: str, status: int = 307) -> Spoken:
    return spoken(b"", f"location: {to}", status=f"{status} Moved")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "user:pass@127.0.0.1"])
@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_elsewhere_carries_no_key(host: str, status: int) -> None:
    with speaking(spoken(FINE)) as other:
        port = other.base_url.split(":")[2].split("/")[0]
        with speaking(redirect(f"http://{host}:{port}/v1/chat/completions", status)) as speaker:
            [arrived] = run(make(speaker.base_url, timeout=5), ask())
    assert len(other.heads) == 1 and KEYED.isdisjoint(
        line.split(":")[0] for line in other.heads[0].lower().splitlines()
    )
    assert "sk-very-secret" not in other.heads[0] and not isinstance(arrived[0], EngineError)


def test_openai_s_own_headers_go_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "OPENAI_HOST", "127.0.0.1")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-planted-123")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-planted-123")
    with (
        speaking(spoken(FINE)) as other,
        speaking(redirect(other.base_url.replace("127.0.0.1", "localhost") + "/x")) as speaker,
    ):
        good(make(speaker.base_url, timeout=5), ask())
    assert "org-planted-123" in speaker.heads[0] and "proj-planted-123" in speaker.heads[0]
    assert "planted" not in other.heads[0]


@pytest.mark.parametrize("to", ["/v1/other", "other", "?x=1", "//{host}/v1/other", "http://{host}/v1/other"])
def test_a_redirect_at_home_is_followed_with_the_key(to: str) -> None:
    answers: list[Spoken] = []
    with speaking(lambda: answers[min(len(speaker.heads), 2) - 1]() if callable(answers[0]) else iter(())) as speaker:  # type: ignore[operator]
        host = speaker.base_url.split("/")[2]
        answers[:] = [redirect(to.format(host=host)), spoken(FINE)]
        assert good(make(speaker.base_url, timeout=5), ask())[0].text == "fine"
    assert [("sk-very-secret" in head, head.split()[0]) for head in speaker.heads] == [(True, "POST")] * 2


NOWHERE = ("ftp://127.0.0.1/x", "javascript:alert(1)", "file:///etc/passwd", "data:text/plain,hi", "gopher://x/", "ws://x/",
           "mailto:a@b", "about:blank", "blob:http://x/y", "chrome://settings", "unix:///tmp/s")  # fmt: skip


@pytest.mark.parametrize("to", NOWHERE)
@pytest.mark.parametrize("status", [302, 307])
def test_a_redirect_to_what_is_no_web_address_is_a_sentence(to: str, status: int) -> None:
    with speaking(redirect(to, status)) as speaker:
        error = bad(make(speaker.base_url, timeout=5), ask())
    assert f"it redirects to {to.split(':')[0]}:, which is no http address" in sentence(error)
    assert error.cause == "redirect" and "`base_url`" in str(error) and len(speaker.heads) == 1


@pytest.mark.parametrize(
    "to", ["http://", "//", "http://[::bad", "http://a b/", "http://%zz/", "http://:80", "\xff\xfe", "http://x:99999/"]
)
def test_a_redirect_that_cannot_be_read_is_a_sentence(to: str, each_client: str) -> None:  # noqa: F811
    of_the_package(each_client, to, "\xff\xfe")  # read as an address
    with speaking(redirect(to)) as speaker:
        error = bad(make(speaker.base_url, timeout=5), ask())
    assert "the server answered 307" in sentence(error) and "base_url" in str(error)


@pytest.mark.parametrize("loop", ["to itself", "to ever new places", "between two"])
@pytest.mark.parametrize("status", [301, 307])
def test_redirects_without_end_are_a_sentence(loop: str, status: int) -> None:
    places = {"to itself": "", "to ever new places": "x/", "between two": "/v1/a"}
    with speaking(redirect(places[loop], status), redirect(places[loop] or "", status)) as speaker:
        error = bad(make(speaker.base_url, timeout=5), ask())
    assert "redirects more than 10 times" in sentence(error) and len(speaker.heads) == 11


def test_a_redirect_of_the_list_of_models_to_nowhere_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    with speaking(redirect("ftp://127.0.0.1/x")) as speaker:
        write_project(tmp_path, speaker.base_url, prompts=1)
        done = rlaif(tmp_path, "run", "echo.yaml")
    assert done.code == 1 and "it redirects to ftp:, which is no http address" in done.err and done.err.count("\n") == 1


def test_a_server_elsewhere_that_wants_the_key_is_named() -> None:
    with (
        speaking(spoken(b'{"error": "no key"}', status="401 No")) as other,
        speaking(redirect(other.base_url + "/x")) as speaker,
    ):
        error = bad(make(speaker.base_url, timeout=5), ask())
    origin = other.base_url.removesuffix("/v1")
    assert f"(at {origin}, where {speaker.base_url} redirects; it got no key)" in sentence(error)
    assert "so that it gets the key" in str(error)


# ---------------------------------------------------------------- addresses in a pipeline file

ADDRESSES = ("ftp://host/v1", "javascript:alert(1)", "file:///etc/passwd", "https://user:pa55word@host/v1", "http://host/v1?key=pa55word",
             "http://host/v1#pa55word", "http://pa55word@host/v1", "host/v1", "", "http://", "http://:80/v1", "http://host:99999/v1",
             "http://[::bad/v1", "http://host:0/v1", "http:///v1", "http://ho st/v1", "http://host/v1\\nx")  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_none_is_an_error_of_its_line(address: str, tmp_path: Path) -> None:
    file = write_project(tmp_path, "PLACE", prompts=1)
    file.write_text(file.read_text().replace('"PLACE"', json.dumps(address).replace("\\\\", "\\"), 1))
    done = rlaif(tmp_path, "plan", "echo.yaml")
    assert done.code == 2 and done.err.count("\n") == 1 and "Traceback" not in done.err
    assert "echo.yaml:3" in done.err and "base_url" in done.err and "pa55word" not in done.err + done.out
    assert quote("pa55word") not in str(list(tmp_path.rglob("*")))
