"""A sampler whose answers a test writes, and the models that are asked by it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from rlaif.config import SamplingSettings
from rlaif.engines.asking import Ask, Asker, Asking, Sampler
from rlaif.records import Completion


class Answering(ABC):
    """Answers each ask by itself, and keeps them all for the test to look at."""

    def __init__(self) -> None:
        self.asks: list[Ask] = []

    async def sample(self, asks: Sequence[Ask]) -> list[list[Completion]]:
        answers = []
        for ask in asks:
            if ask.retries:
                answers.append([])
                continue
            self.asks.append(ask)
            answers.append(self.answer(ask))
        return answers

    @abstractmethod
    def answer(self, ask: Ask) -> list[Completion]:
        """What the model says, one completion or as many as it is asked for."""


def asking_by(sampler: Sampler, *models: str, seed: int = 0) -> Asking:
    """Models without settings of their own, asked through `sampler`."""
    return Asking(sampler, dict.fromkeys(models, SamplingSettings()), seed)


def asker_of(sampler: Sampler, model: str, settings: SamplingSettings) -> Asker:
    """One such model, asked with a stage's settings."""
    return asking_by(sampler, model).asker(model, settings)
