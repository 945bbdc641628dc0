"""The constitution: principles, each with the requests that put it to a model, and the draw of one for a prompt.

Knows the file, its checks and the draw. How a request is rendered is a template's business, how a reply is read the
stages'. After Constitutional AI (arXiv 2212.08073), where every critique and every comparison draws one principle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from rlaif.config import Name, Settings, Text, TextCheck, read_named_set, unchecked
from rlaif.records import digest, unit_interval


class Principle(Settings):
    """One rule, and the three requests made of it. A call's prompt holds only the request it makes."""

    id: Name
    rule: Text
    critique: Text
    revision: Text
    comparison: Text
    weight: float = Field(default=1.0, gt=0, le=1_000_000)


class Constitution(Settings):
    """A named, versioned set of principles."""

    name: Name
    version: int = Field(ge=1)
    principles: tuple[Principle, ...] = Field(min_length=1)

    @property
    def digest(self) -> str:
        return digest(self.model_dump(mode="json"))

    def draw(self, *salt: str, position: int = 0) -> Principle:
        """The principle at `position`, from 0, of an order drawn for `salt`; a heavier principle is earlier more often.

        Weighted rendezvous hashing: a principle's key depends on its own id and weight alone, so adding one re-draws
        only what it wins, and each principle is first in proportion to its weight. Places beyond the last principle
        start over.
        """

        def key(principle: Principle) -> tuple[float, str]:
            uniform = 1.0 - unit_interval("principle", *salt, principle.id)  # in (0, 1]
            return -math.log(uniform) / principle.weight, principle.id

        return sorted(self.principles, key=key)[position % len(self.principles)]


def read_constitution(path: str, requests: Sequence[str] = (), check: TextCheck = unchecked) -> Constitution:
    """The constitution at `path`, in the current folder or among the bundled files. Raises InputError with its line.

    `check` says what is wrong with each of the named `requests`, for the model they are made of.
    """
    constitution, document = read_named_set(Constitution, path, "principles")
    for index, principle in enumerate(constitution.principles):
        for request in requests:
            if wrong := check(getattr(principle, request)):
                raise document.error(wrong[0], ("principles", index, request), wrong[1])
    return constitution
