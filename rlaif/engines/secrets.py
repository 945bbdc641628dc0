"""Keys, masked in everything that a server wrote before it is stored, printed or exported.

A server can repeat the keys it was sent: in a completion, an error, a name or an address, as they are or as JSON, URLs,
HTML, base64 or hexadecimal write them, also over several lines. All of these become `***`.

A key is a *secret* unless it is a placeholder, for a server that needs none: a well-known one (`EMPTY`,
`token-abc123`), or one too short to be told from a word or a number (fewer than LEAST characters; fewer than ENOUGH
that are letters alone or digits alone, as `internal` and `12345678`). A placeholder may be an ordinary word: it is
masked in errors, where nothing is lost, and stays in completions, which are data. A run notes a short one.
"""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote, urlsplit

MASK = "***"
LEAST, ENOUGH = 6, 16  # characters of a secret: of letters and digits, and of any others
SPELT = 16  # letters and digits that are found whatever stands between them; fewer may be there by chance
HEAD, RUN = 8, 5  # characters of a written form by which it is found; letters and digits at least
PLACEHOLDERS = frozenset(
    "anything changeme dummy dummy-key empty fake-key lm-studio local-key no-key-required no_key_required none "
    "not-needed not-required not_needed null ollama password placeholder sk-dummy sk-fake sk-no-key-required "
    "sk-placeholder sk-test sk-xxxx test test-key token-abc123 unused-key whatever x your-api-key your_api_key".split()
)
PROXIES = ("http_proxy", "https_proxy", "all_proxy")

# What one character may be written as, and what may stand between two: white space, a character that nobody sees, the
# backslash of an escape. No part of it gives anything back, so that no text makes the search slow.
_HIDDEN = (
    "\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u2800\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff"
)
_CODE = (
    r"\\{1,8}(?:u00(?P<u>[2-7][0-9A-Fa-f])|x(?P<x>[2-7][0-9A-Fa-f])|U000000(?P<U>[2-7][0-9A-Fa-f])"
    r"|[ux]\{0{0,6}(?P<b>[2-7][0-9A-Fa-f])\}|(?P<octal>[01][0-7]{2}))|%(?:25){0,3}(?P<p>[2-7][0-9A-Fa-f])"
)
_WRITTEN = re.compile(
    rf"{_CODE}|(?P<entity>&(?:#[0-9]{{2,8}};?|#[xX][0-9A-Fa-f]{{2,8}};?|[A-Za-z]{{2,8}};))"
    rf"|[\s{_HIDDEN}]+|\\{{1,8}}(?:[nrt]|u200[bcd]|u2060|ufeff|u00ad)?"
)
# Whether it is worth a search, cheaply: every completion is looked at.
_ESCAPED = re.compile(rf"{_CODE}|(?P<entity>&#(?:[0-9]{{2,8}}|[xX][0-9A-Fa-f]{{2,8}});?)")
_ESCAPES = tuple("\\u00 \\x \\U \\u{ \\0 \\1 &# %2 %3 %4 %5 %6 %7".split())  # beginnings of what it finds
_SMALL = bytes(range(256)).lower()
_BETWEEN = bytes(code for code in range(256) if not chr(code).isascii() or not chr(code).isalnum())


def is_secret(key: str) -> bool:
    """Whether a key is one to hide everywhere; else it is a placeholder."""
    if key.lower() in PLACEHOLDERS or len(key) < LEAST:
        return False
    return len(key) >= ENOUGH or (
        any(map(str.isdigit, key)) and any(map(str.isalpha, key))
    )  # else `internal`, `12345678`


def may_be_a_word(key: str) -> bool:
    """Whether a key is too short to be told from a word, and none of the well-known placeholders."""
    return not is_secret(key) and key.lower() not in PLACEHOLDERS


class Secrets:
    """The keys of a run. All of its models share them: one server may be sent several keys."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._keys: set[str] = set()
        self._secret: list[str] = []
        self._marks: tuple[str, ...] = ()  # beginnings of the forms of secrets: a text without any holds none
        self._bare: tuple[bytes, ...] = ()  # the same of their letters and digits
        self._forms: list[re.Pattern[str]] = []  # of secrets
        self._spelt: list[str] = []  # the letters and digits of long forms
        self._parts: list[re.Pattern[str]] = []  # of halves of secrets and of placeholders
        for key in (*keys, *_of_proxies()):
            self.add(key)

    def add(self, key: str) -> None:
        """Hide a key from now on. Adding one again does nothing."""
        if not key or key in self._keys:
            return
        self._keys.add(key)
        if not is_secret(key):
            self._parts += _patterns([key])
            return
        self._secret.append(key)
        self._forms += _patterns(_forms(key))
        self._parts += _patterns(_halves(key))
        marks = (key[:HEAD], *map(_mark, _forms(key)))
        self._marks = tuple(dict.fromkeys((*self._marks, *marks)))
        bare = [_bare(form) for form in (key[:HEAD], *_forms(key))]
        self._bare = tuple(dict.fromkeys((*self._bare, *(form[:HEAD] for form in bare if len(form) >= RUN))))
        self._spelt += dict.fromkeys(form.decode() for form in bare if len(form) >= SPELT)

    def masked(self, text: str) -> str:
        """A completion without secrets, nor the beginning of one where it was cut."""
        if not self._marks or not self._suspicious(text):
            return text
        text = _masked(text, self._forms, self._spelt)
        for key in self._secret:
            if key[:HEAD] in text[-len(key) :]:
                ends = (n for n in range(len(key) - 1, HEAD - 1, -1) if text.endswith(key[:n]))
                text = next((text[:-n] + MASK for n in ends), text)
        return text

    def _suspicious(self, text: str) -> bool:
        """Whether a text may hold a secret. Every completion is looked at, so it is cheap where the text is plain."""
        if any(mark in text for mark in self._marks):
            return True
        plain = text
        if "\\" in plain:
            plain = plain.replace("\\n", "").replace("\\r", "").replace("\\t", "")
        if ("\\" in plain or "%" in plain or "&" in plain) and any(escape in plain for escape in _ESCAPES):
            plain = _ESCAPED.sub(_unescaped, plain)
        plain = plain.replace("\\", "")
        if "\n" in plain or "\r" in plain:
            plain = "".join(map(str.strip, plain.splitlines()))
        bare = _bare(plain)
        return any(mark in bare for mark in self._bare) or any(mark in plain for mark in self._marks)

    def masked_error(self, text: str) -> str:
        """An error without any key, nor half of a secret: a message may be cut in the middle of one."""
        return _masked(text, [*self._forms, *self._parts], self._spelt) if self._keys else text


def _of_proxies() -> Iterator[str]:
    """The passwords of the proxies that the environment names."""
    for name in PROXIES:
        for variable in (name, name.upper()):
            try:
                password = urlsplit(os.environ.get(variable, "")).password
            except ValueError:  # no URL
                continue
            if password:
                yield unquote(password)


def _forms(key: str) -> list[str]:
    """A key as it is, in hexadecimal, and in base64 wherever it begins in what is encoded."""
    raw = key.encode()
    forms = [key, raw.hex()]
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + raw).decode()
        own = encoded[-(-before * 4 // 3) : (before + len(raw)) * 4 // 3]  # the characters that the key alone decides
        forms += dict.fromkeys((own, own.replace("+", "-").replace("/", "_")))
    return forms


def _mark(form: str) -> str:
    """A part of a form that every text with it holds: letters and digits, which everything writes alike."""
    run = max(re.findall(r"[A-Za-z0-9]+", form), key=len, default="")
    return (run if len(run) >= RUN else form.replace("\\", ""))[:HEAD]


def _bare(text: str) -> bytes:
    """The letters and digits of a text, in small letters."""
    return text.encode("ascii", "ignore").translate(_SMALL, _BETWEEN)


def _halves(key: str) -> list[str]:
    half = max(HEAD, -(-len(key) // 2))
    return [key[:half], key[-half:]] if half < len(key) else []


def _patterns(forms: Iterable[str]) -> list[re.Pattern[str]]:
    return [re.compile(re.escape(_plain(form)[0]), re.IGNORECASE) for form in dict.fromkeys(forms)]


def _masked(text: str, patterns: Iterable[re.Pattern[str]], spelt: Iterable[str]) -> str:
    """The text with everything masked that one of the patterns finds in it once it is written plainly."""
    plain, starts, ends = _plain(text)
    found = [match.span() for pattern in patterns for match in pattern.finditer(plain)]
    found = sorted([*found, *_spelt_in(plain, spelt)])
    pieces: list[str] = []
    end = 0
    for first, last in found:
        if not pieces or starts[first] > end:
            pieces += [text[end : starts[first]], MASK]
        end = max(end, ends[last - 1])
    return "".join((*pieces, text[end:]))


def _spelt_in(plain: str, spelt: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Where the letters and digits of a form stand one after the other: with commas, quotes or bars between them."""
    places = [at for at, character in enumerate(plain) if character.isascii() and character.isalnum()]
    letters = "".join(plain[at] for at in places).lower()
    for form in spelt:
        at = letters.find(form)
        while at >= 0:
            yield places[at], places[at + len(form) - 1] + 1
            at = letters.find(form, at + len(form))


def _plain(text: str) -> tuple[str, list[int], list[int]]:
    """The text without what may stand between two characters, each of them as it is; and where each began and ended."""
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    last = 0
    for match in _WRITTEN.finditer(text):
        start, end = match.span()
        character = _unescaped(match)
        pieces += [text[last:start], character]
        starts += [*range(last, start), *[start] * len(character)]
        ends += [*range(last + 1, start + 1), *[end] * len(character)]
        last = end
    pieces.append(text[last:])
    return "".join(pieces), [*starts, *range(last, len(text))], [*ends, *range(last + 1, len(text) + 1)]


def _unescaped(match: re.Match[str]) -> str:
    """The character that is written there; none where that is white space or a backslash."""
    code = match["u"] or match["x"] or match["U"] or match["b"] or match["p"]
    if octal := match["octal"]:
        return chr(int(octal, 8)).strip()
    character = chr(int(code, 16)) if code else html.unescape(match["entity"] or "")
    return "" if character == "\\" else character.strip()
