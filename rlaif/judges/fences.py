"""The mark on the tags around a stranger's text, so that the text cannot imitate the tag that ends it."""

from __future__ import annotations

from rlaif.records import digest

LENGTH = 12  # hexadecimal digits of a mark


def fence_mark(*texts: str, beside: str = "") -> str:
    """A mark that occurs in none of the texts. It is a digest of `texts`, so the same ones get the same mark.

    Whoever writes a text can search for one that contains its own digest (2^31 tries of a long text are enough), so the
    digest is derived again while it occurs. `beside` is a text that is shown too and does not enter the digest.
    """
    read = [_as_read(text) for text in (*texts, beside)]
    mark, again = digest(texts, length=LENGTH), 0
    while any(mark.encode() in text for text in read):
        again += 1
        mark = digest([*texts, again], length=LENGTH)
    return mark


def _as_read(text: str) -> bytes:
    """The text as a model may read it: capitals and invisible characters in between make no other mark."""
    return text.encode("ascii", "ignore").lower()
