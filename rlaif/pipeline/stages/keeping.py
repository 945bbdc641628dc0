"""The base of stages whose candidates may be SFT data: which ones are kept, and what is written of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from rlaif.config import StageSettings, Step
from rlaif.formats import sft_rows
from rlaif.generate.keeping import Choice
from rlaif.pipeline.stages.stage import Opening, Stage
from rlaif.records import Kept, Row

Settings = TypeVar("Settings", bound=StageSettings)


class Keeping(Stage[Settings]):
    """A stage that may make SFT data of its candidates, as its settings and the stages that read it say."""

    def __init__(self, step: Step, settings: Settings, opening: Opening) -> None:
        super().__init__(step, settings, opening)
        takes = {reader.stage.takes for reader in opening.readers(step)}
        self.is_judged = "rows" in takes  # by a later stage
        chosen_later = settings.unless_judged and self.is_judged and "demonstrations" not in takes
        self.writes = ("sft",) if settings.demonstrates and not chosen_later else ()

    @abstractmethod
    def choose(self, row: Row) -> Choice:
        """The candidates of a row without a failure that are SFT data."""

    def score_of(self, row: Row) -> Mapping[int, float]:
        """The score of each candidate, for the data set; none where the stage gives none."""
        return {}

    def kept(self, row: Row) -> Iterator[Kept]:
        return self._kept(row, self.choose(row))

    def _kept(self, row: Row, choice: Choice) -> Iterator[Kept]:
        scores = self.score_of(row)
        for index in choice.kept:
            yield Kept(prompt=row.prompt, candidate=row.candidates[index], score=scores.get(index))

    def data(self, row: Row, shape: str) -> Iterable[dict[str, Any]] | str:
        choice = self.choose(row)
        return choice.reason or sft_rows(self._kept(row, choice))

    def left_out(self, row: Row) -> Mapping[str, int]:
        return self.choose(row).left_out

    def unkept(self, row: Row) -> str | None:
        """Why a row gives no SFT data, where the stage makes any and the row has not failed; else None."""
        return self.choose(row).reason if "sft" in self.writes and row.failure is None else None
