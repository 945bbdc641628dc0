"""Principles to write by: system prompts for the models whose completions compete, and the mixture they are drawn by.

Knows the file, its checks and the draw. After UltraFeedback (arXiv 2310.01377, section 2), where a principle is drawn
for each completion by the source of its prompt, and then one of the system prompts that say the principle.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from pydantic import Field

from rlaif.config import Document, Name, Settings, Text, read_checked
from rlaif.errors import nearest
from rlaif.records import Prompt, hashed_order, unit_interval

DEFAULT = "default"  # the share of every source that has none of its own
TOLERANCE = 1e-6  # of shares that add up to one


class Drawn(NamedTuple):
    """A principle's id, and the system prompt that says it."""

    principle: str
    system: str


Shares = dict[Name, float]  # of each principle


class Mixture(NamedTuple):
    """What a sample stage draws from."""

    principles: dict[str, tuple[str, ...]]
    shares: dict[str, dict[str, float]]  # by source

    def of(self, source: str | None) -> dict[str, float]:
        """The shares of a source: its own, or those of the longest name that is its prefix, such as `flan` of
        `flan_v2_cot`; else the default ones."""
        names = [name for name in self.shares if source == name or (source or "").startswith(f"{name}_")]
        return self.shares[max(names, key=len, default=DEFAULT)]

    def draw(self, prompt: Prompt, sampler: str, index: int) -> Drawn:
        """What the completion `index` of a sampler is written by, from hashes of the three alone.

        Weighted rendezvous hashing: each principle is drawn in proportion to its share, and an added prompt, sampler or
        principle re-draws only what it wins.
        """
        salt = (prompt.id, sampler, str(index))

        def key(item: tuple[str, float]) -> tuple[float, str]:
            principle, share = item
            uniform = 1.0 - unit_interval("written by", *salt, principle)  # in (0, 1]
            return -math.log(uniform) / share, principle

        principle = min(((p, s) for p, s in self.of(prompt.source).items() if s > 0), key=key)[0]
        systems = self.principles[principle]
        return Drawn(principle, systems[hashed_order(systems, "system prompt", *salt)[0]])


class Principles(Settings):
    """A named, versioned set of principles, each with its system prompts, and mixtures: shares for each source."""

    name: Name
    version: int = Field(ge=1)
    principles: dict[Name, tuple[Text, ...]] = Field(min_length=1)
    mixtures: dict[Name, dict[Name, Shares]] = Field(min_length=1)

    def mixture(self, name: str) -> Mixture:
        return Mixture(self.principles, self.mixtures[name])


def read_principles(path: str) -> Principles:
    """The principles at `path`, in the current folder or among the bundled files. Raises InputError with its line."""
    principles, document = read_checked(Principles, path)
    for principle, systems in principles.principles.items():
        if not systems:
            fix = "write some under it, or take it out"
            raise document.error("the principle has no system prompt", ("principles", principle), fix)
    for name, shares in principles.mixtures.items():
        _check_shares(principles, name, shares, document)
    return principles


def _check_shares(principles: Principles, mixture: str, by_source: dict[str, Shares], document: Document) -> None:
    if DEFAULT not in by_source:
        fix = f"add `{DEFAULT}: {{...}}`, for prompts of every other source"
        raise document.error(f"the mixture has no `{DEFAULT}`", ("mixtures", mixture), fix)
    for source, shares in by_source.items():
        position = ("mixtures", mixture, source)
        for principle, share in shares.items():
            if principle not in principles.principles:
                problem = f"there is no principle {principle!r}"
                raise document.error(problem, (*position, principle), nearest(principle, principles.principles))
            if share < 0:
                raise document.error(
                    f"the share {share:g} is below 0", (*position, principle), "give a share from 0 to 1"
                )
        if abs(math.fsum(shares.values()) - 1.0) > TOLERANCE:
            problem = f"the shares add up to {math.fsum(shares.values()):g}"
            raise document.error(problem, position, "make them add up to 1")
