"""Text that others wrote, made safe to show: what cannot be seen, or would act on the screen, is shown as an escape.

The escapes are Python's: `\\x1b`, `\\u202e`, `\\U000e0041`. A back-slash in the text itself stays as it is.
Escaped are controls, bidi controls, zero-width and ignored characters, tags, line separators, lone surrogates, private
use and what is no character. An invisible character stays only where people write it: a joiner inside an emoji or
beside a letter of Arabic or an Indic script, the selector of an emoji, one at a time. JSON escapes these, too.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from typing import Any

TAB = 4  # columns
MOST_MARKS = 8  # on one letter: no script writes so many, and a flood of them covers the lines above

# Ignored when text is drawn, though Python calls them printable.
_IGNORED = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0d\uffa0\U000e0100-\U000e01ef]"
)
# Of the category of invisible ones, and yet drawn: Arabic and Kaithi signs that stand under a number.
_DRAWN = re.compile("[\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd]")
# Where characters are younger than this Python's tables: pictures, and the planes of ideographs.
_YOUNG = re.compile("[\U0001f000-\U0001faff\U00020000-\U0002fffd\U00030000-\U0003fffd]")
# Scripts whose letters are joined, or kept apart, by an invisible character: Arabic, Indic, Mongolian and their kin.
_JOINED = re.compile(
    "[\u0600-\u0fff\u1000-\u109f\u1780-\u18af\u1900-\u1cff\ua800-\uabff\ufb50-\ufdff\ufe70-\ufefc\U00010a00-\U00011fff]"
)
# The flags of England, Scotland and Wales: the only pictures that are spelt in tags.
_IN_TAGS = ["".join(chr(0xE0000 + ord(letter)) for letter in name) for name in ("gbeng", "gbsct", "gbwls")]
_TAGGED = re.compile(rf"\U0001f3f4(?:{'|'.join(_IN_TAGS)})\U000e007f")


class _Classes(dict[int, str]):
    """The class of a character by its code point, one letter each, looked up once."""

    def __missing__(self, code: int) -> str:
        self[code] = found = _class_of(chr(code))
        return found


def _class_of(c: str) -> str:
    """`X` hidden, `J` ZERO WIDTH JOINER and `N` its opposite, `V` asks for a picture or for a letter, `m` and `M` marks
    (of a joined script), `K` the mark of a keycap, `k` what stands on one, `p` pictures and symbols, `w` letters and
    digits, `j` those of a joined script, `.` all others."""
    if named := _NAMED.get(c):
        return named
    category = unicodedata.category(c)
    drawn = c.isprintable() or category == "Zs" or c == "\n" or _DRAWN.match(c) or _YOUNG.match(c)
    if not drawn or _IGNORED.match(c):
        return "X"
    joined = _JOINED.match(c)
    if category[0] == "M":
        return "M" if joined else "m"
    if category in ("So", "Sm", "Sk", "Cn") and not c.isascii():
        return "p"
    return ("j" if joined else "w") if category[0] in "LN" else "."


_NAMED = {"\u200d": "J", "\u200c": "N", "\ufe0e": "V", "\ufe0f": "V", "\u20e3": "K"}
_NAMED |= dict.fromkeys("0123456789#*", "k") | dict.fromkeys("\u203c\u2049\u2139\u3030", "p")
_classes = _Classes()

# Over classes. Joiners and variation selectors are kept one at a time and where they are written: between the parts of
# a picture, behind or before a letter of a joined script, behind a picture or in a keycap.
_KEPT = r"(?:(?<=p)|(?<=pV))J(?=p)|(?<=[jM])[JN]|(?<=[wkm])[JN](?=[jM])|(?<=p)V|(?<=k)V(?=K)"
_ESCAPED = re.compile(rf"X+|(?!{_KEPT})[JNV]|(?<=[mMK]{{{MOST_MARKS}}})[mMK]+")


def visible(text: str) -> str:
    """The text with all that is hidden, or acts on the screen, as escapes. Lines stay lines, tabs become spaces."""
    text = text.replace("\r\n", "\n").expandtabs(TAB)
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    pictured = _TAGGED.sub(lambda flag: "\u2691" * len(flag[0]), text) if "\U000e007f" in text else text
    parts, at = [], 0
    for found in _ESCAPED.finditer(pictured.translate(_classes)):
        parts += [text[at : found.start()], _escaped(text[found.start() : found.end()])]
        at = found.end()
    return "".join([*parts, text[at:]])


def visible_line(text: str) -> str:
    """The visible text on one line, every run of white space being one space."""
    return " ".join(visible(text).split())


def _escaped(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


# ---------------------------------------------------------------- JSON


class _JsonEscapes(dict[int, str]):
    """What JSON writes for a character that cannot be seen; it holds such characters only inside strings."""

    def __missing__(self, code: int) -> str:
        self[code] = found = json.dumps(chr(code))[1:-1] if _classes[code] in "XJNV" else chr(code)
        return found


_json_escapes = _JsonEscapes()


def visible_json(value: Any, *, indent: int | None = 2, ascii_only: bool = False) -> str:
    """A value as JSON in which every hidden character is an escape. Raises ValueError for NaN and infinity."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    return text if text.isascii() and "\x7f" not in text else text.translate(_json_escapes)


def finite(value: Any) -> Any:
    """The value with null for every number that JSON cannot write."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------- Markdown


def prose(text: str) -> str:
    """One line of a Markdown paragraph or heading in which the text is only text: no markup, link or image."""
    line = re.sub(r"([\\`*<>\[\]{}~$&])", r"\\\1", visible_line(text))
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=\bwww)\.", r"\\\g<0>", line, flags=re.IGNORECASE)
    return re.sub(r"^(\d{0,9})([-+=#.)])", r"\1\\\2", line)  # what begins a list or a heading


def code(text: str) -> str:
    """The text as Markdown code, which no back-tick in it can end."""
    line = visible_line(text)
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"
