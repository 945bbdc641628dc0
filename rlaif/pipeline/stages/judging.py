"""The base of stages whose judge can be audited, with the gate before their first call."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from rlaif.config import CompareStage, RateStage, Step
from rlaif.engines.asking import Asking
from rlaif.pipeline.stages.stage import Opening, RowStage
from rlaif.resources import find

if TYPE_CHECKING:  # audits are imported where one is made: most runs make none
    from rlaif.audits.figures import Decide

Settings = TypeVar("Settings", bound=CompareStage | RateStage)


class RatedBy(NamedTuple):
    """What a rating stage's scores are made of, and the weights of its aspects."""

    basis: Literal["ratings", "scores"]
    weights: Mapping[str, float]


class JudgingStage(RowStage[Settings]):
    """A stage that rates or compares, whose judge can be audited."""

    def __init__(self, step: Step, settings: Settings, opening: Opening) -> None:
        super().__init__(step, settings, opening)
        self._gold = None if settings.require is None else settings.require.gold
        if self._gold is not None:
            _read_gold(self._gold)  # now: a judge may be trained for hours before it is asked them
        lexicons = [lexicon for model in self.models if (lexicon := opening.lexicon(model)) is not None]
        self._knows_only = next((lexicon.gold for lexicon in lexicons if lexicon.gold is not None), None)

    @property
    def gold(self) -> str | None:
        """The gold pairs of its gate, or those in a tiny model's vocabulary; None for the built-in ones."""
        return self._gold or self._knows_only

    @abstractmethod
    def decide(self, asking: Asking, gold: str | None) -> Decide:
        """The judge as a function that decides gold pairs; `gold` names the pairs."""

    @abstractmethod
    def how(self) -> str:
        """How an audit uses the judge: a sentence without its full stop."""

    @classmethod
    def scoring(cls, settings: Settings) -> RatedBy | None:
        """How its judgements score a candidate, read from files alone; None for a stage that compares."""
        return None

    @property
    def gated(self) -> bool:
        return self.settings.require is not None

    async def gate(self, asking: Asking) -> tuple[dict[str, Any], list[str]]:
        from rlaif.audits.asking import audit, gold_pairs, unmet

        require = self.settings.require
        assert require is not None, "asked of a stage with a gate"
        figures = await audit(gold_pairs(self.gold, require.take), self.decide(asking, self.gold))
        return figures, unmet(require, figures)


def _read_gold(path: str) -> None:
    """Raises InputError for a file that holds no gold pairs."""
    from rlaif.audits.goldset import WORLD, read_gold

    if path != WORLD:
        read_gold(find(path))
