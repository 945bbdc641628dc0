"""The rubric: the qualities a judge rates, what each score means, and how much each quality counts.

Knows the file and its checks. How an aspect is put to a judge is the template's business, how a reply is read the
judge's. `read_rubric` is the one door: what it returns has distinct aspects, and score meanings inside the scale.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from rlaif.config import Name, Settings, Text, TextCheck, read_named_set, unchecked
from rlaif.records import digest

MOST_SCORES = 1_000_000


class Scale(Settings):
    """The whole numbers a rating may be, both ends included."""

    low: int
    high: int

    @model_validator(mode="after")
    def _rises(self) -> Scale:
        if self.low >= self.high:
            raise ValueError("`low` must be below `high`")
        if self.high - self.low > MOST_SCORES:
            raise ValueError(f"`high` must be at most {MOST_SCORES:,} above `low`")
        return self


# YAML reads a code that is a number as one.
Code = Annotated[Name, BeforeValidator(lambda code: str(code) if type(code) is int else code)]


class Aspect(Settings):
    """One quality. `scores` says in words what a rating means; it may leave scores out."""

    id: Name
    description: Text
    weight: float = Field(default=1.0, gt=0, le=1_000_000)
    scores: dict[int, Text] = {}
    na: bool = False  # whether the judge may say that the aspect does not apply
    types: dict[Code, Text] = {}  # what else the judge looks for, and names by these codes
    knowledge: bool = False  # whether it is shown the prompt's true answers, where the prompt has any

    @property
    def digest(self) -> str:
        """Of what a judge reads. The weight is left out: changing it changes no judge's answer."""
        return digest(self.model_dump(mode="json", exclude={"weight"}))


class Rubric(Settings):
    """A named, versioned set of aspects on one scale."""

    name: Name
    version: int = Field(ge=1)
    scale: Scale
    aspects: tuple[Aspect, ...] = Field(min_length=1)

    @property
    def digest(self) -> str:
        return digest(self.model_dump(mode="json"))

    def weights(self) -> dict[str, float]:
        return {aspect.id: aspect.weight for aspect in self.aspects}


def read_rubric(path: str, check: TextCheck = unchecked) -> Rubric:
    """The rubric at `path`, in the current folder or among the bundled files. Raises InputError with line and key.

    `check` says what is wrong with a description, for the model that is to be asked under it.
    """
    rubric, document = read_named_set(Rubric, path, "aspects")
    low, high = rubric.scale.low, rubric.scale.high
    for index, aspect in enumerate(rubric.aspects):
        if wrong := check(aspect.description):
            raise document.error(wrong[0], ("aspects", index, "description"), wrong[1])
        for score in aspect.scores:
            if not low <= score <= high:
                position = ("aspects", index, "scores", str(score))
                raise document.error(f"the score {score} is not on the scale", position, f"use {low} to {high}")
    return rubric
