"""A key is in no artefact, whatever a server does with it: its forms are planted everywhere, and every byte is read."""

from __future__ import annotations

import base64
import html
import json
import re
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from echo import write_project
from inside import rlaif
from serving import Answer, completion, scripted, speaking, spoken
from test_engine_openai import ask, run

from rlaif.config import OpenAIModel
from rlaif.engines import traffic
from rlaif.engines.openai import OpenAIEngine
from rlaif.engines.protocol import Reply
from rlaif.engines.secrets import Secrets
from rlaif.errors import EngineError

KEYS = {
    "of 24 characters": "sk-planted-9f8e7d6c5b4a3",
    "of 13 characters": "sk-13chars-ab",
    "of 7 characters": "k3y9x2z",
    "with signs": 'pa/55+w=d&<x>"1\\2',
    "of 164 characters": "sk-proj-" + "aB3" * 52,
    "of 2,500 characters": "ey" + "aB3-_x" * 416 + "zz",
}
KEY = KEYS["of 13 characters"]

FORMS: dict[str, Callable[[str], str]] = {
    "as it is": lambda key: key,
    "as a header": lambda key: f"Bearer {key}",
    "in JSON": lambda key: json.dumps(key)[1:-1],
    "in JSON in JSON": lambda key: json.dumps(json.dumps(key))[1:-1],
    "in JSON with slashes": lambda key: json.dumps(key)[1:-1].replace("/", "\\/"),
    "in JSON escapes": lambda key: "".join(f"\\u{ord(c):04x}" for c in key),
    "in large JSON escapes": lambda key: "".join(f"\\u{ord(c):04X}" for c in key),
    "in JSON escapes here and there": lambda key: "".join(
        f"\\u{ord(c):04x}" if n % 3 else c for n, c in enumerate(key)
    ),
    "in escapes of bytes": lambda key: "".join(f"\\x{ord(c):02x}" for c in key),
    "in a URL": lambda key: quote(key, safe=""),
    "in a URL throughout": lambda key: "".join(f"%{ord(c):02x}" for c in key),
    "in a URL in a URL": lambda key: quote("".join(f"%{ord(c):02X}" for c in key)),
    "in HTML": html.escape,
    "in HTML numbers": lambda key: "".join(f"&#{ord(c)};" for c in key),
    "in HTML hexadecimal": lambda key: "".join(f"&#x{ord(c):X};" for c in key),
    "in base64": lambda key: base64.b64encode(key.encode()).decode(),
    "in base64 of a header": lambda key: base64.b64encode(f"Bearer {key}".encode()).decode(),
    "in base64 of a user": lambda key: base64.b64encode(f":{key}".encode()).decode(),
    "in base64 for URLs": lambda key: base64.urlsafe_b64encode(f"xx{key}yy".encode()).decode(),
    "in hexadecimal": lambda key: key.encode().hex(),
    "over two lines": lambda key: f"{key[:4]}\n{key[4:]}",
    "over indented lines": lambda key: f"{key[:3]}\r\n    {key[3:5]}\n\t{key[5:]}",
    "a character a line": "\n".join,
    "with written line ends": lambda key: f"{key[:4]}\\n{key[4:]}",
    "with invisible characters": "\u200b".join,
}


UNREAD = "incomplete: pair: no preference was made"  # what a judge that only repeats keys comes to


def shown(text: str, key: str) -> bool:
    """Whether a text holds a key, in any of the forms or in several at once."""
    plain = text
    for _ in range(3):
        plain = re.sub(r"\\+u00(..)|\\+x(..)|%(..)", lambda m: _code(m[1] or m[2] or m[3], m[0]), html.unescape(plain))
        plain = re.sub(r"\\+([nrt])|\\+(?=\W)", "", plain)
    squeezed = re.sub(r"[\s\u200b\\]", "", plain)
    wanted = re.sub(r"[\\]", "", key)
    if wanted.lower() in squeezed.lower() or key.encode().hex() in squeezed.lower():
        return True
    for token in re.findall(r"[\w+/-]{8,}={0,2}", re.sub(r"\s", "", text), re.ASCII):
        for start in range(4):
            part = token[start:].replace("-", "+").replace("_", "/")
            with_padding = part[: len(part) // 4 * 4]
            if key.encode() in base64.b64decode(with_padding, validate=False):
                return True
    return False


def _code(code: str, whole: str) -> str:
    try:
        return chr(int(code, 16))
    except ValueError:
        return whole


def test_the_eye_of_these_tests_sees_every_form() -> None:
    for key in KEYS.values():
        for name, form in FORMS.items():
            assert shown(f"before {form(key)} after", key), (key, name)
        assert not shown("before *** after", key)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "FIRST_WAIT", 0.001)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def keyed(base_url: str, key: str) -> OpenAIEngine:
    spec = OpenAIModel(engine="openai", model="tiny", base_url=base_url, retries=0, timeout=5, api_key_env="MY_KEY")
    return OpenAIEngine("judge", spec, key)


# ---------------------------------------------------------------- what one answer can hold

PLACES: dict[str, Callable[[str], Answer]] = {
    "a completion": lambda form: Answer(completion(f"before {form} after")),
    "a refusal": lambda form: Answer({"choices": [{"message": {"refusal": f"no {form}"}, "finish_reason": "stop"}]}),
    "a reason": lambda form: Answer(completion("", finish_reason=f"no {form}")),
    "an error": lambda form: Answer({"error": {"message": f"wrong key {form}", "code": form}}, status=401),
    "an error in words": lambda form: Answer(f"<p>wrong key {form}</p>", status=500),
    "an error in broken JSON": lambda form: Answer('{"error": {"message": "wrong key ' + form, status=403),
    "an error in a field that nobody knows": lambda form: Answer({"problem": {"key": form}}, status=422),
}


def outcome(key: str, answer: Answer) -> Reply | EngineError:
    with scripted([answer]) as script:
        [[arrived]] = run(keyed(script.base_url, key), ask(logprobs=False))
    return arrived


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", FORMS)
def test_a_key_that_a_server_repeats_is_masked(form: str, place: str) -> None:
    arrived = outcome(KEY, PLACES[place](FORMS[form](KEY)))
    text = arrived.text if isinstance(arrived, Reply) else f"{arrived} {arrived!r} {arrived.args}"
    assert not shown(text, KEY) and "***" in text
    if place == "a completion":
        assert text.startswith("before ") and text.endswith(" after")


@pytest.mark.parametrize("form", ["in JSON escapes", "in large JSON escapes", "in JSON escapes here and there"])
def test_a_key_in_escapes_of_broken_json_is_masked(form: str) -> None:
    """These three are never left to the lab."""
    test_a_key_that_a_server_repeats_is_masked(form, "an error in broken JSON")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", [name for name in KEYS if name != "of 13 characters"])
def test_a_key_of_any_length_is_masked_in_every_form(key: str, form: str) -> None:
    written = FORMS[form](KEYS[key])
    with_it, without = f"before {written} after", "before and after, 50% & \\frac{1}{2}\n漢字"
    secrets = Secrets([KEYS[key]])
    for mask in (secrets.masked, secrets.masked_error):
        assert not shown(mask(with_it), KEYS[key]) and mask(without) == without


# Of a long key.
SPELT: dict[str, Callable[[str], str]] = {
    "in capital letters": str.upper,
    "in capital hexadecimal": lambda key: key.encode().hex().upper(),
    "in hexadecimal with colons": lambda key: key.encode().hex(":"),
    "in quoted-printable": lambda key: "".join(f"={ord(c):02X}" for c in key),
    "in octal escapes": lambda key: "".join(f"\\{ord(c):03o}" for c in key),
    "in escapes of eight digits": lambda key: "".join(f"\\U{ord(c):08x}" for c in key),
    "in escapes in braces": lambda key: "".join(f"\\u{{{ord(c):x}}}" for c in key),
    "with spaces": " ".join,
    "with hard spaces": "\xa0".join,
    "in groups of four": lambda key: " ".join(key[at : at + 4] for at in range(0, len(key), 4)),
    "with marks of direction": "\u200e".join,
    "with selectors": "\ufe0f".join,
    "with tags": "\U000e0020".join,
    "with controls": "\x01".join,
    "with half a surrogate pair": lambda key: f"{key[:9]}\ud800{key[9:]}",
    "as a list of letters": lambda key: json.dumps(list(key)),
    "with bars": "|".join,
    "in bold": "**".join,
    "over quoted lines": lambda key: "\n> ".join(key[at : at + 8] for at in range(0, len(key), 8)),
}


@pytest.mark.parametrize("form", SPELT)
def test_a_long_key_that_is_spelt_is_masked(form: str) -> None:
    for key in (KEYS["of 24 characters"], KEYS["of 164 characters"], "sk-ab/55+w_d-4F9=zQ12" + "x" * 9):
        secrets = Secrets([key])
        for mask in (secrets.masked, secrets.masked_error):
            assert re.fullmatch(r"before \W*after", mask(f"before {SPELT[form](key)} after")), key


@pytest.mark.parametrize("size", range(8, 24))
def test_a_key_that_is_cut_off_shows_no_half(size: int) -> None:
    key = KEYS["of 24 characters"]
    arrived = outcome(key, Answer(completion(f"it is {key[:size]}", finish_reason="length")))
    assert isinstance(arrived, Reply) and arrived.text == "it is ***"
    if size >= 12:
        arrived = outcome(key, Answer(" " * 300 + f"{key[:size]}", status=500))
        assert key[:12] not in str(arrived)
    arrived = outcome(key, Answer({"error": "x" * (330 - size) + key + " y" * 300}, status=400))
    assert key[:8] not in str(arrived)


def test_a_key_that_a_redirect_repeats_is_masked() -> None:
    for to in (f"ftp://{KEY}/", f"{KEY}:x", f"http://{KEY}.invalid/"):
        with speaking(spoken(b"", f"location: {to}", status="307 Moved")) as speaker:
            [[error]] = run(keyed(speaker.base_url, KEY), ask())
        assert not shown(str(error), KEY)


def test_keys_of_other_models_of_the_run_are_masked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One server may be sent several keys, and repeat any of them to anyone."""
    names = ("one", "two", "judge")
    for name in names:
        monkeypatch.setenv(f"KEY_OF_{name}", f"sk-of-{name}-12345")
    everything = " ".join(f"sk-of-{name}-12345" for name in names)
    with scripted([Answer({"data": []})] * 3 + [Answer(lambda body: _choices(body, everything))]) as script:
        write_project(tmp_path, script.base_url, prompts=2)
        given = [f"models.{name}.api_key_env=KEY_OF_{name}" for name in names]
        done = rlaif(tmp_path, "run", "echo.yaml", *given, "stages.rate.rate.reask=0")
    assert done.code == 1 and UNREAD in done.out
    for where, text in everything_in(tmp_path):
        assert not any(f"sk-of-{name}-12345" in text for name in names), where


@pytest.mark.parametrize(
    ("key", "noted"),
    [("a7Xk", "4 characters and may be a word"), ("internal", "8 characters"), ("EMPTY", None), ("sk-12345", None)],
)
def test_a_key_that_is_too_short_to_be_masked_is_noted(
    key: str, noted: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORT_KEY", key)
    write_project(tmp_path, "http://127.0.0.1:9", prompts=1)
    file = tmp_path / "echo.yaml"
    file.write_text(file.read_text().replace("base_url:", "api_key_env: SHORT_KEY, base_url:"))
    told = rlaif(tmp_path, "plan", "echo.yaml", "--json")
    assert told.code == 0, told.err
    notes = [note for note in json.loads(told.out)["notes"] if "SHORT_KEY" in note]
    assert len(notes) == (noted is not None) and all(f"the key in SHORT_KEY has {noted}" in note for note in notes)
    assert not any(key in note for note in notes)


def test_completions_that_held_a_key_are_counted_in_a_note_that_a_later_run_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_KEY", KEY)
    with scripted([Answer({"data": []})] * 3 + [Answer(lambda body: _choices(body, KEY))]) as script:
        write_project(tmp_path, script.base_url, prompts=3)
        file = tmp_path / "echo.yaml"
        file.write_text(file.read_text().replace("base_url:", "api_key_env: PLANTED_KEY, base_url:"))
        done = [rlaif(tmp_path, "run", "echo.yaml", "stages.rate.rate.reask=0")]
    done += [rlaif(tmp_path, "run", "echo.yaml", "stages.rate.rate.reask=0"), rlaif(tmp_path, "status", "runs/echo")]
    manifest = json.loads((tmp_path / "runs/echo/manifest.json").read_text())
    held = sum(call["cached"] for call in manifest["calls"].values())
    notes = [note for note in manifest["notes"] if "is masked as ***" in note]
    counts = [int(re.search(r"a key stood in (\d+) completions? of the model '\w+'", note)[1]) for note in notes]  # type: ignore[index]
    assert sum(counts) == held > 0
    assert [one.code for one in done] == [1, 1, 0] and UNREAD in done[0].out
    for one in done:
        assert all(note in " ".join((one.out + one.err).split()) for note in notes), one.err


def test_openai_s_organisation_and_project_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlaif.engines.wire.OPENAI_HOST", "127.0.0.1")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-planted-123")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-planted-123")
    arrived = outcome(KEY, Answer({"error": "limit of org-planted-123 in proj-planted-123"}, status=400))
    assert "limit of *** in ***" in str(arrived)
    arrived = outcome(KEY, Answer(completion("org-planted-123, proj-planted-123")))
    assert isinstance(arrived, Reply) and arrived.text == "***, ***"


def test_the_password_of_a_proxy_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:pr0xy-pa55word@127.0.0.1:9")
    told = base64.b64encode(b"user:pr0xy-pa55word").decode()
    arrived = outcome(KEY, Answer({"error": f"Basic {told} refused, pr0xy-pa55word"}, status=407))
    assert "pr0xy" not in str(arrived) and not shown(str(arrived), "pr0xy-pa55word")


# ---------------------------------------------------------------- placeholders are no secrets

WORDS = (
    "EMPTY",
    "none",
    "test",
    "dummy",
    "token-abc123",
    "sk-no-key-required",
    "not-needed",
    "lm-studio",
    "password",
    "ollama",
    "x",
    "1234567",
    "secret",
    "changeme",
    "no-key-required",
    "PASSWORD",
    "your-api-key",
)


@pytest.mark.parametrize("word", WORDS)
def test_a_placeholder_leaves_completions_as_they_are(word: str) -> None:
    said = f"The {word} is {word.upper()}; {word}s, and {base64.b64encode(word.encode()).decode()}."
    arrived = outcome(word, Answer(completion(said)))
    assert isinstance(arrived, Reply) and arrived.text == said


@pytest.mark.parametrize("word", [word for word in WORDS if word not in ("none", "x")])
def test_a_placeholder_is_masked_in_errors(word: str) -> None:
    arrived = outcome(word, Answer({"error": f"wrong key {word}"}, status=401))
    assert "wrong key ***" in str(arrived)


@pytest.mark.parametrize(
    "said",
    [
        "50% of it, and 25%.",
        "a & b &amp; c",
        "\\frac{1}{2} \\\\ \\u00e9",
        "sk-13",
        "sk-13chars-",
        "漢字\u200bかな",
        "sk-13chars-b",
        "line\nbreaks\r\nhere",
        "%20%41",
        "&#65;",
    ],
)
def test_what_is_no_key_stays_as_it_is(said: str) -> None:
    arrived = outcome(KEY, Answer(completion(f"It says {said}; that is all.")))
    assert isinstance(arrived, Reply) and arrived.text == f"It says {said}; that is all."


@pytest.mark.parametrize(
    "text",
    [
        "\\" * 300_000,
        "%25" * 100_000,
        "&#" * 150_000,
        "sk-13ch" * 40_000,
        "s\n" * 150_000,
        "\\n" * 150_000,
        ("s" + "\\" * 8) * 30_000,
        ("s" + " " * 8) * 30_000,
        "&" * 300_000,
    ],
)
def test_no_text_makes_the_search_slow(text: str) -> None:
    secrets = Secrets([KEY])
    began = time.process_time()
    assert secrets.masked(text) == text
    assert secrets.masked_error(text) == text
    assert time.process_time() - began < 8


# ---------------------------------------------------------------- every byte of a project


def _choices(body: dict[str, Any], *planted: str) -> dict[str, Any]:
    """As many completions as were asked, each with something planted; for a judge, ratings that mention it."""
    count, seed = body.get("n", 1), body.get("seed", 0)
    texts = []
    for number in range(count):
        told = planted[(seed + number) % len(planted)]
        text = f"words {seed} {number} and {told} then"
        if "response_format" in body:
            ratings = {str(k): {"rationale": text, "rating": 1 + k % 5} for k in range(1, 5)}
            text = json.dumps(ratings)
        texts.append(text)
    return completion(*texts)


def everything_in(folder: Path) -> Iterator[tuple[str, str]]:
    """Every file as text, with what the call store and the data sets hold, and all names."""
    import pyarrow.parquet as pq

    for path in folder.rglob("*"):
        yield f"the name {path.name}", path.name
        if not path.is_file():
            continue
        yield str(path), path.read_bytes().decode("utf-8", "replace")
        if path.suffix == ".parquet":
            yield f"{path}, read", json.dumps(pq.read_table(path).to_pylist(), default=str, ensure_ascii=False)
        if path.suffix == ".sqlite" or path.read_bytes()[:6] == b"SQLite":
            for (table,) in sqlite3.connect(path).execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
                for row in sqlite3.connect(path).execute(f"SELECT * FROM {table}"):
                    for cell in row:
                        text = zlib.decompress(cell).decode() if isinstance(cell, bytes) else str(cell)
                        yield f"{path}, table {table}", text


LOOKS = (
    ["status", "runs/echo"],
    ["status", "runs/echo", "--json"],
    ["show", "runs/echo", "1"],
    ["show", "runs/echo", "1", "--json"],
    ["export", "runs/echo", "--to", "out"],
    ["cache", "show"],
    ["cache", "verify"],
    ["look", "out/preference"],
    ["plan", "echo.yaml"],
    ["run", "echo.yaml"],
    ["run", "echo.yaml", "--json"],
    ["elo", "runs/echo"],
)


@pytest.mark.parametrize("key", ["of 24 characters", "of 13 characters", "with signs"])
def test_a_run_whose_completions_hold_the_key_in_every_form_keeps_it_nowhere(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = KEYS[key]
    monkeypatch.setenv("PLANTED_KEY", secret)
    forms = [form(secret) for form in FORMS.values()]
    names = Answer({"data": [{"id": f"model {form}"} for form in forms]})
    with scripted([names] * 3 + [Answer(lambda body: _choices(body, *forms))]) as script:
        write_project(tmp_path, script.base_url, prompts=6)
        file = tmp_path / "echo.yaml"
        file.write_text(
            re.sub(r"model: (\w+), base_url", r"model: \1, api_key_env: PLANTED_KEY, base_url", file.read_text())
        )
        done = [rlaif(tmp_path, "run", "echo.yaml", "stages.rate.rate.reask=0")]
        assert done[0].code == 1 and UNREAD in done[0].out
        assert any("Bearer" in request["headers"]["authorization"] for request in script.requests)
        done += [rlaif(tmp_path, *look) for look in LOOKS]
    for one in done:
        assert not shown(one.out + one.err, secret) and "Traceback" not in one.err
    read = list(everything_in(tmp_path))
    assert sum("***" in text for _, text in read) > 20  # it was there, and is masked
    for where, text in read:
        assert not shown(text, secret), where


@pytest.mark.parametrize("status", [307, 400, 401, 403, 404, 418, 422, 429, 500, 503])
def test_a_run_that_fails_with_the_key_in_every_error_keeps_it_nowhere(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_KEY", KEY)
    monkeypatch.setattr(traffic, "LIMITED", 0.0)
    bodies = [{"error": {"message": f"no {form(KEY)}", "code": form(KEY)}} for form in FORMS.values()]
    headers = {"retry-after": KEY, "location": f"ftp://{KEY}/{KEY}", "www-authenticate": f"Bearer {KEY}"}
    errors = [Answer(body, status=status, headers=headers) for body in bodies]
    with scripted([*[Answer({"data": []})] * 3, *[Answer(lambda body: _choices(body, "fine"))] * 3, *errors]) as script:
        write_project(tmp_path, script.base_url, prompts=3)
        keys = [f"models.{name}.api_key_env=PLANTED_KEY" for name in ("one", "two", "judge")]
        keys += [f"models.{name}.retries=1" for name in ("one", "two", "judge")]
        done = [rlaif(tmp_path, "run", "echo.yaml", *keys)]
        assert done[0].code == 1
        done += [rlaif(tmp_path, *look) for look in LOOKS[:4]]
    for one in done:
        assert not shown(one.out + one.err, KEY) and "Traceback" not in one.err
    for where, text in everything_in(tmp_path):
        assert not shown(text, KEY), where


# ---------------------------------------------------------------- keys in a pipeline file

LITERAL = {
    "api_key": ("api_key: {}", 2),
    "api_key_env": ("api_key_env: {}", 2),
    "key": ("key: {}", 2),
    "base_url's user": ("base_url: 'http://{}@127.0.0.1:9/v1'", 2),
    "base_url's password": ("base_url: 'http://user:{}@127.0.0.1:9/v1'", 2),
    "base_url's query": ("base_url: 'http://127.0.0.1:9/v1?key={}'", 2),
    "headers": ("headers: {{Authorization: Bearer {}}}", 2),
    "one of several addresses": ("base_url: ['http://127.0.0.1:9/v1', 'http://u:{}@127.0.0.1:8/v1']", 2),
}
REAL = (
    "sk-planted-9f8e7d6c5b4a3",
    "gsk_Zk3Wq9Pm2Xv7Lr5Tn8Yb4Hd6Fj1Ks0AQ",
    "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345",
    "AIzaSyA1b2C3d4E5f6G7h8I9j0KlMnOpQrStUvW",
    "d41d8cd98f00b204e9800998ecf8427e",
)


@pytest.mark.parametrize("key", REAL)
@pytest.mark.parametrize("place", LITERAL)
def test_a_key_in_a_pipeline_file_is_refused_and_not_repeated(place: str, key: str, tmp_path: Path) -> None:
    setting, code = LITERAL[place]
    file = write_project(tmp_path, "http://127.0.0.1:9/v1", prompts=1)
    text = re.sub(r', base_url: "[^"]*"', "", file.read_text(), count=1) if "base_url" in setting else file.read_text()
    file.write_text(text.replace("model: one", f"model: one, {setting.format(key)}"))
    for command in (["plan", "echo.yaml"], ["run", "echo.yaml"], ["plan", "echo.yaml", "--json"]):
        done = rlaif(tmp_path, *command)
        assert done.code == code and not shown(done.out + done.err, key)
        assert "echo.yaml:3" in done.err and done.err.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and shown(path.read_text(), key)] == [
        "echo.yaml"
    ]


@pytest.mark.parametrize("key", REAL)
@pytest.mark.parametrize("option", ["--key-env", "JUDGE", "a setting"])
def test_a_key_on_the_command_line_is_refused_and_not_repeated(option: str, key: str, tmp_path: Path) -> None:
    write_project(tmp_path, "http://127.0.0.1:9/v1", prompts=1)
    place = f"http://u:{key}@127.0.0.1:9/v1" if option == "JUDGE" else "http://127.0.0.1:9/v1"
    arguments = ["judge", "prompts.jsonl", "--by", place, "--model", "m"]
    arguments += ["--key-env", key] if option == "--key-env" else []
    if option == "a setting":
        arguments = ["run", "echo.yaml", f"models.one.api_key_env={key}"]
    done = rlaif(tmp_path, *arguments)
    assert done.code == 2 and not shown(done.out + done.err, key) and "Traceback" not in done.err
    assert {"--key-env": "--key-env", "JUDGE": "JUDGE", "a setting": "api_key_env"}[option] in done.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and shown(path.read_text(), key)]


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "my_key", "MyProviderKey2", "COMPANY_PROD_2024_KEY", "_", "k9", "key_v2_2024_03"]
)
def test_names_that_people_give_to_variables_are_taken(name: str, tmp_path: Path) -> None:
    file = write_project(tmp_path, "http://127.0.0.1:9/v1", prompts=1)
    file.write_text(file.read_text().replace("model: one", f"model: one, api_key_env: {name}"))
    assert rlaif(tmp_path, "plan", "echo.yaml").code == 0


@pytest.mark.parametrize("key", ["caf\u00e9-key-123", "two\nlines-123", "nul\x01key-123"])
def test_a_key_that_no_header_holds_is_a_sentence_without_it(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_KEY", key)
    write_project(tmp_path, "http://127.0.0.1:9/v1", prompts=1)
    done = rlaif(tmp_path, "run", "echo.yaml", "models.one.api_key_env=PLANTED_KEY")
    assert done.code == 2 and "PLANTED_KEY" in done.err and key not in done.err and "Traceback" not in done.err
