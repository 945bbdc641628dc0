"""What a stage is while a pipeline runs: the two kinds of it, what each is given, and what it makes for others.

A stage is one file beside this one. Its constructor opens and checks what it reads, before anything is paid for; then
it takes one row through (`RowStage`) or the whole table (`TableStage`), and a plan goes the same way with a sampler
that counts. Nothing here knows which kinds there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from rlaif.config import LocalModel, OpenAIModel, Pipeline, StageSettings, Step, TextCheck, unchecked
from rlaif.engines.asking import Asking
from rlaif.engines.identity import has_reward_head
from rlaif.engines.open import api_key, keyless
from rlaif.errors import EngineError, Stopped
from rlaif.formats import Conversation, StatedPreference
from rlaif.generate.pairing import Pairing
from rlaif.pipeline.datasets import DatasetOf
from rlaif.pipeline.folder import RunFolder
from rlaif.pipeline.manifest import Manifest, RowCounts, StageRecord
from rlaif.pipeline.progress import Progress
from rlaif.pipeline.session import Session
from rlaif.pipeline.spool import Stored
from rlaif.records import Preference, Prompt, Row, oneline
from rlaif.resources import find
from rlaif.tiny.lexicon import Lexicon, listed

Settings = TypeVar("Settings", bound=StageSettings)
Item = TypeVar("Item", covariant=True)


class Reiterable(Protocol[Item]):
    """Records of which there may be more than fit into memory: counted, and gone through as often as needed."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Item]: ...


class Lazy(Generic[Item]):
    """A table that is made anew, one record at a time, whenever it is gone through."""

    def __init__(self, make: Callable[[], Iterable[Item]], count: int) -> None:
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        return iter(self._make())


@dataclass(frozen=True)
class ReadPrompts:
    """The prompts of a stage: all that could be read, why others could not, and those that are to be answered."""

    read: Reiterable[Prompt]
    unusable: Mapping[str, int]
    kept: Reiterable[Prompt]


@dataclass
class Made:
    """What one stage made. A reader takes the part it is for, and knows nothing of where it came from."""

    prompts: ReadPrompts | None = None
    rows: Reiterable[Row] | None = None
    preferences: Reiterable[Preference | StatedPreference] | None = None
    conversations: Reiterable[Conversation] | None = None
    report: Mapping[str, Any] | None = None
    stated: bool = False  # its rows carry judgements of a file, which are no later judge's
    counts: RowCounts | None = None  # of its rows, where they passed through this run
    unknown: int = 0  # in a plan: rows that rest on calls that are not paid for yet


class Opening:
    """A pipeline whose stages are being opened, in order; each sees what those before it hold."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.stages: dict[str, Stage[Any]] = {}
        self.made: dict[str, Made] = {}  # by the name of the stage
        self.notes: list[str] = []  # what is no error and should be known before anything is paid for

    def check_models(self) -> None:
        """Raise InputError for a key that no server takes, and for a model that is not what it is used for."""
        specs = self.pipeline.models
        for spec in specs.values():
            if isinstance(spec, OpenAIModel):
                api_key(spec)
        self.notes += keyless(specs.values())
        folders = {name: find(spec.path) for name, spec in specs.items() if isinstance(spec, LocalModel) and spec.path}
        for step in self.pipeline.steps:
            for model, key, role in step.stage.models_used():
                if model not in folders or role == "either":
                    continue
                scores = has_reward_head(folders[model])
                if scores != (role == "scores"):
                    problem = "has a reward head and writes nothing" if scores else "has no reward head"
                    raise self.pipeline.error(step, f"the model {model!r} {problem}", key, "name another model")

    def readers(self, step: Step) -> list[Step]:
        """The later steps that read this one."""
        return [later for later in self.pipeline.steps if step in later.sources]

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def lexicon(self, model: str) -> Lexicon | None:
        """The words that a small model was taught; None for a model that is taken at its word."""
        spec = self.pipeline.models.get(model)
        return Lexicon.read(find(spec.path)) if isinstance(spec, LocalModel) and spec.path is not None else None

    def text_check(self, *models: str) -> TextCheck:
        """What a principle must be for models that know few words. Words that they pass over become a note."""
        lexicons = {name: lexicon for name in models if (lexicon := self.lexicon(name)) is not None}
        if not lexicons:
            return unchecked

        def check(text: str) -> tuple[str, str] | None:
            for name, lexicon in lexicons.items():
                if problem := lexicon.problem(text):
                    return problem
                if strangers := lexicon.unknown(text):
                    self.note(
                        f"{name} was never taught {listed(strangers)}, which says nothing to it in {oneline(text)!r}"
                    )
            return None

        return check


@dataclass
class Work:
    """What stages of a run work with: the models, the run's folder and record, what was made, who is told."""

    pipeline: Pipeline
    session: Session
    folder: RunFolder
    manifest: Manifest
    progress: Progress
    made: dict[str, Made]
    stages: Mapping[str, Stage[Any]]

    def file(self, step: Step) -> Path:
        """Where a stage's rows or preferences are kept."""
        return self.folder.stage(step.number, step.name)

    def note(self, text: str) -> None:
        """Something that is no error and that a person should know."""
        if text not in self.manifest.notes:
            self.manifest.notes.append(text)
            self.progress.warn(text)

    def dataset(
        self, stage: Stage[Any], prompts: int, counts: RowCounts | None, made_with: Mapping[str, str]
    ) -> DatasetOf:
        """What the cards of a stage's data sets say; `counts` are of the rows behind them."""
        # A name that is no model of this pipeline stands in a file, or is code, or a person.
        named = sorted(counts.models & self.session.specs.keys()) if counts else ()
        models = {name: self.session.specs[name] for name in named}
        return DatasetOf(self.folder.path / "dataset", stage.name, stage.writes, prompts, models, made_with)


class Planning(Protocol):
    """What stages are planned with; see `pipeline.plan`. Nothing is sent, and nothing of a run is written into."""

    session: Session
    folder: RunFolder
    made: dict[str, Made]

    def asking(self, stage: str, *, each_once: bool = False) -> Asking: ...


class Stage(ABC, Generic[Settings]):
    """A stage of one pipeline, its files opened and checked. Raises InputError for the first thing that is wrong."""

    holds: ClassVar[str | None] = None  # what its file under stages/ holds: rows or preferences
    writes: ClassVar[tuple[str, ...]] = ()  # the shapes of its data sets
    gentle: ClassVar[bool] = False  # the first Ctrl-C stops asking and ends with what is finished
    blocks: ClassVar[bool] = False  # it never gives the event loop its turn, so a signal has to break in
    trains: ClassVar[bool] = False
    needs_most: ClassVar[bool] = False  # not begun where many rows failed
    finishes: ClassVar[bool] = False  # runs on what there is also when the run is stopping

    def __init__(self, step: Step, settings: Settings, opening: Opening) -> None:
        self.step, self.settings, self.name = step, settings, step.name
        self.record: StageRecord | None = None  # of what it read from files as it was opened

    @property
    def source(self) -> Step:
        assert self.step.source is not None, f"{self.name} reads no other stage"
        return self.step.source

    @property
    def read(self) -> StageRecord:
        assert self.record is not None, f"{self.name} reads no file"
        return self.record

    @property
    def models(self) -> list[str]:
        return [use.model for use in self.settings.models_used()]

    def made_with(self) -> dict[str, str]:
        """Digests of what it judges, rewrites or draws by, each with what it is."""
        return {}

    def input_digests(self) -> dict[str, str]:
        """Digests of what it read from files."""
        return {}


def all_made_with(step: Step, stages: Mapping[str, Stage[Any]]) -> dict[str, str]:
    """Digests of what the rows that a step reads were made by: of the nearest stage, then of those before it."""
    assert step.source is not None
    made, before = stages[step.source.name].made_with(), step.source.source
    while before is not None:
        made |= {f"{what} of {before.name}": value for what, value in stages[before.name].made_with().items()}
        before = before.source
    return made


class RowStage(Stage[Settings]):
    """A stage that takes each row through alone."""

    holds = "rows"
    gentle = True
    facts: ClassVar[tuple[str, ...]] = ()  # what is counted of its rows
    judges: ClassVar[bool] = True  # what a file states of its candidates is taken off a row before it

    def __init__(self, step: Step, settings: Settings, opening: Opening) -> None:
        super().__init__(step, settings, opening)
        made = opening.made.get(step.source.name) if step.source else None  # none where an audit opens it alone
        self._strips = self.judges and made is not None and made.stated

    @property
    def chains(self) -> bool:
        """Whether an answer is shown in a later prompt, of this stage or another: a plan must assume one then."""
        return False

    @abstractmethod
    async def row(self, row: Row, asking: Asking) -> Row:
        """One row through the stage. Raises EngineError."""

    def count(self, row: Row, facts: Counter[str]) -> str | None:
        """Count what the stage made of a row. Returns why a row that did not fail is of no use, or None."""
        return None

    def outcome(self, facts: Mapping[str, Any]) -> str:
        """What a person is told of its facts, after the number of rows."""
        return unparsed(facts, "ratings")

    def pairing(self) -> Pairing | None:
        """How preferences are made of its rows where nobody says; None where it makes no judgements."""
        return None

    @property
    def gated(self) -> bool:
        """Whether its judge must pass an audit before it is asked for anything else."""
        return False

    async def gate(self, asking: Asking) -> tuple[dict[str, Any], list[str]]:
        """What its judge reaches on gold pairs, and what it falls short of in sentences."""
        raise NotImplementedError

    async def finish(self, rows: Stored[Row], counts: RowCounts, work: Work) -> None:
        """What is left to do when all rows went through."""

    async def through(self, row: Row, asking: Asking) -> Row:
        """One row through the stage; what concerns this row alone is written on it.

        Raises EngineError for what concerns all rows.
        """
        if self._strips:
            row = row.unjudged()
        try:
            return await self.row(row, asking)
        except EngineError as error:
            if error.fatal or isinstance(error, Stopped):
                raise
            return row.model_copy(update={"failure": str(error), "cause": error.cause})


class TableStage(Stage[Settings]):
    """A stage that needs all that it reads at once."""

    @abstractmethod
    async def run(self, work: Work) -> StageRecord:
        """Do the work; what it makes stands in `work.made` after it."""

    @abstractmethod
    async def plan(self, planning: Planning) -> dict[str, Any]:
        """What a plan says: `rows`, and where it fits `state`, `at_most`."""

    def outcome(self, facts: Mapping[str, Any]) -> str:
        return ""


def unparsed(facts: Mapping[str, Any], what: str) -> str:
    told = f", {facts['unparsed']:,} {what} unparsed" if facts.get("unparsed") else ""
    return told + (f", {count:,} orders disagree" if (count := facts.get("orders_disagree")) else "")


def starting_rows(made: Made) -> Reiterable[Row]:
    """The rows that a row stage starts from: those of an earlier stage, or a new one for each prompt."""
    if made.rows is not None:
        return made.rows
    assert made.prompts is not None
    prompts = made.prompts.kept
    return Lazy(lambda: (Row(prompt=prompt) for prompt in prompts), len(prompts))


def first(errors: Sequence[BaseException]) -> BaseException:
    """The first error of an exception group, whatever groups it stands in."""
    error = errors[0]
    return first(error.exceptions) if isinstance(error, BaseExceptionGroup) else error


def row_record(stage: Stage[Any], counts: RowCounts, failed_before: int, entered: int, work: Work) -> StageRecord:
    """The record of a stage that makes rows.

    A row counts as failed in the stage it failed in, and only there: `failed_before` of the rows that entered had
    failed already, some of which a stopped run did not come to.
    """
    missed = (entered - counts.rows) - (failed_before - counts.failed_before)
    dropped = counts.dropped + Counter({"failed": counts.failed - counts.failed_before, "not reached": missed})
    return StageRecord(
        stage.name,
        stage.settings.kind,
        stage.source.name,
        entered - failed_before,
        counts.out,
        dropped,
        file=f"stages/{work.file(stage.step).name}",
        facts=dict(counts.facts),
    ).checked()
