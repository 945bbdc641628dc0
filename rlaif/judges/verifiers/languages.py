"""Which language a text is written in, by `py3langid`, whose model is in its package: the same text, the same language.

What it cannot tell: words of a few letters, names alone, tables and code, a language in another script than its own.
Close relatives (Bosnian, Croatian and Serbian; Indonesian and Malay) need a sentence or two. A mixed text has the
language of its larger part, or none.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

LANGUAGES = tuple(
    "ace af am an ar as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr fuv fy ga gcf "
    "gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko ku ky la lb lg lij "
    "ln lo lt lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pl ps pt qu ro ru rw sa se si sk sl sn so sq sr "
    "st sv sw ta te tg th tk tl tr tt ug uk ur uz vec vi vo wa xh yo zh zu".split()
)
# What the model tells apart and a reader takes for one language. Nigerian Pidgin is what it calls English tables.
_VARIETIES = {
    "ary": "ar", "arz": "ar", "ltg": "lv", "pcm": "en", "sdh": "ku", "uzs": "uz", "wuu": "zh", "yue": "zh"
}  # fmt: skip
NO_LANGUAGE = "zxx"  # the model's name for numbers, markup and identifiers
LEAST = 0.4  # probability of the likeliest language, below which it is not told
LONGEST, PIECES = 2_000, 8  # characters of a text that are looked at, in pieces from its beginning to its end


def _known(code: object) -> object:
    if code is False:
        raise ValueError("a bare `no` is read as false: write 'no', in quotes, for Norwegian")
    if isinstance(code, str) and code not in LANGUAGES:
        known = f"one of the {len(LANGUAGES)} languages that docs/judges.md lists, by its code, such as `de`"
        raise ValueError(f"the language {code!r} cannot be told: use {known}")
    return code


LanguageCode = Annotated[str, BeforeValidator(_known)]


def language_of(text: str) -> str | None:
    """The language of `text`, one of LANGUAGES: codes of ISO 639, of two letters where it has one; None if not told."""
    probabilities: Counter[str] = Counter()
    for name, probability in _identifier().rank(_sample(text)):
        probabilities[_VARIETIES.get(name, name)] += probability
    [(language, probability)] = probabilities.most_common(1)
    return language if probability >= LEAST and language != NO_LANGUAGE else None


def _sample(text: str) -> str:
    """`text` as the model is asked: evenly spread pieces of a long one, and capitals made small where they prevail.

    The pieces bound the time, and keep the probability of a text that repeats itself. Of words in capitals the model
    knows few, and one in small letters among them is enough for it to leave them so.
    """
    if len(text) > LONGEST:
        length = LONGEST // PIECES
        starts = ((len(text) - length) * piece // (PIECES - 1) for piece in range(PIECES))
        text = "\n".join(text[start : start + length] for start in starts)
    return text.lower() if sum(map(str.isupper, text)) > sum(map(str.islower, text)) else text


@cache
def _identifier() -> LanguageIdentifier:
    """The model: a second or two to load, 100 MB while the process lives. It keeps no state between texts."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
