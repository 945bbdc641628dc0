"""The protocol of stages: row stages and table stages, what they work with, and what they make for others.

A stage is one file in this folder. Its constructor opens and checks its files, before anything is paid for. Then it
processes one row (`RowStage`) or the whole table (`TableStage`). A plan does the same with a sampler that counts.
Nothing here depends on the kinds of stage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from rlaif.config import LocalModel, OpenAIModel, Pipeline, StageSettings, Step, TextCheck, unchecked
from rlaif.constitution import Asked, Constitution, Principle
from rlaif.engines.adapters import Source
from rlaif.engines.asking import Asking
from rlaif.engines.identity import has_reward_head
from rlaif.engines.open import api_key, notes_on_keys, source_of
from rlaif.errors import EngineError, Stopped
from rlaif.formats import Conversation, PlainText, StatedPreference
from rlaif.generate.pairing import Pairing
from rlaif.pipeline.datasets import DatasetOf, Piece, dataset_name, write_datasets
from rlaif.pipeline.folder import RunFolder
from rlaif.pipeline.manifest import Manifest, RowCounts, StageRecord
from rlaif.pipeline.progress import Progress
from rlaif.pipeline.session import Session
from rlaif.pipeline.spool import Stored
from rlaif.records import Kept, Preference, Prompt, Row, oneline
from rlaif.resources import find
from rlaif.tiny.lexicon import Lexicon, listed

Settings = TypeVar("Settings", bound=StageSettings)
Item = TypeVar("Item", covariant=True)


class Reiterable(Protocol[Item]):
    """Records that may not fit into memory: counted, and iterated as often as needed."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Item]: ...


class Lazy(Generic[Item]):
    """Records that are made again, one at a time, on each iteration."""

    def __init__(self, make: Callable[[], Iterable[Item]], count: int) -> None:
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        return iter(self._make())


@dataclass(frozen=True)
class ReadPrompts:
    """The prompts of a stage: all that were read, the unusable ones by reason, and those that are kept."""

    read: Reiterable[Prompt]
    unusable: Mapping[str, int]
    kept: Reiterable[Prompt]


@dataclass
class Made:
    """What one stage made. A later stage takes the part that it reads, whatever its origin."""

    prompts: ReadPrompts | None = None
    rows: Reiterable[Row] | None = None
    preferences: Reiterable[Preference | StatedPreference] | None = None
    conversations: Reiterable[Conversation] | None = None
    texts: Reiterable[PlainText] | None = None  # of no conversation
    kept: Callable[[], Iterator[Kept]] | None = None  # those of its completions that are SFT data
    model: str | None = None  # the name of a trained one, which is a model of the session from then on
    report: Mapping[str, Any] | None = None
    stated: bool = False  # its rows have judgements from a file, which a later judge must not see
    counts: RowCounts | None = None  # of its rows, if they passed through this run
    unknown: int = 0  # in a plan: rows with calls that are not cached


class Opening:
    """A pipeline whose stages are being opened in order; each sees those before it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.stages: dict[str, Stage[Any]] = {}
        self.made: dict[str, Made] = {}  # by the name of the stage
        self.read: dict[str, ReadPrompts] = {}  # by what names a file and how it is read
        self._lexicons: dict[str, Lexicon | None] = {}
        self._readers: dict[Step, list[Step]] = {}
        for step in pipeline.steps:
            for source in step.sources:
                self._readers.setdefault(source, []).append(step)
        self.notes: list[str] = []  # warnings, shown before anything is paid for

    def check_models(self) -> None:
        """Raise InputError for an invalid API key, and for a model in the wrong role."""
        specs = self.pipeline.models
        for spec in specs.values():
            if isinstance(spec, OpenAIModel):
                api_key(spec)
        self.notes += notes_on_keys(specs.values())
        folders = {name: source_of(spec) for name, spec in specs.items() if isinstance(spec, LocalModel) and spec.path}
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
        return self._readers.get(step, [])

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def lexicon(self, model: str) -> Lexicon | None:
        """The vocabulary of a tiny model; None for any other model."""
        if model not in self._lexicons:
            spec = self.pipeline.models.get(model)
            path = spec.path if isinstance(spec, LocalModel) else None
            self._lexicons[model] = None if path is None else Lexicon.read(find(path))
        return self._lexicons[model]

    def text_check(self, *models: str) -> TextCheck:
        """The check of a principle against the models' lexicons. Words that they ignore become a note."""
        lexicons = {name: lexicon for name in models if (lexicon := self.lexicon(name)) is not None}
        if not lexicons:
            return unchecked

        def check(text: str) -> tuple[str, str] | None:
            for name, lexicon in lexicons.items():
                if problem := lexicon.problem(text):
                    return problem
                if strangers := lexicon.unknown(text):
                    self.note(f"{name} was not trained on {listed(strangers)} and ignores it in {oneline(text)!r}")
            return None

        return check


@dataclass
class Work:
    """What the stages of a run work with: session, folder, manifest, progress, and what was made so far."""

    pipeline: Pipeline
    session: Session
    folder: RunFolder
    manifest: Manifest
    progress: Progress
    made: dict[str, Made]
    stages: Mapping[str, Stage[Any]]

    def file(self, step: Step) -> Path:
        """The file of a stage's rows or preferences."""
        return self.folder.stage(step.number, step.name)

    def note(self, text: str) -> None:
        """A warning for the user, also kept in the manifest."""
        if text not in self.manifest.notes:
            self.manifest.notes.append(text)
            self.progress.warn(text)

    def dataset(
        self, stage: Stage[Any], prompts: int, counts: RowCounts | None, made_with: Mapping[str, str]
    ) -> DatasetOf:
        """The data sets of a stage, for their cards; `counts` are of the rows behind them."""
        # A name that is not a model of this pipeline is from a file, or code, or a person.
        named = sorted(counts.models & self.session.specs.keys()) if counts else ()
        models = {name: self.session.specs[name] for name in named}
        return DatasetOf(
            self.folder.path / "dataset", stage.name, stage.writes, prompts, models, made_with,
            self.manifest.made, lambda: self.manifest.write("running"),
        )  # fmt: skip


class Planning(Protocol):
    """What stages are planned with; see `pipeline.plan`. Nothing is sent or written."""

    session: Session
    folder: RunFolder
    made: dict[str, Made]
    shapes: dict[str, Source]  # of each model that is not trained yet, one with its sizes

    def asking(self, stage: str, *, each_once: bool = False) -> Asking: ...


class Stage(ABC, Generic[Settings]):
    """A stage of one pipeline. The constructor reads and checks its files and raises InputError."""

    holds: ClassVar[str | None] = None  # the content of its file under stages/: rows or preferences
    writes: tuple[str, ...] = ()  # the shapes of its data sets
    to_continue: ClassVar[str] = "put a `pair` stage after it"  # what makes data of its results, where it makes none
    gentle: ClassVar[bool] = False  # the first Ctrl-C stops sending and keeps what is finished
    blocks: ClassVar[bool] = False  # it blocks the event loop, so a signal has to interrupt it
    trains: ClassVar[bool] = False
    needs_most: ClassVar[bool] = False  # not started when many rows failed
    finishes: ClassVar[bool] = False  # runs on the finished rows even when the run is stopping
    reports: ClassVar[str | None] = None  # the file under report/ with the figures of models that a person is shown

    def __init__(self, step: Step, settings: Settings, opening: Opening) -> None:
        self.step, self.settings, self.name = step, settings, step.name
        self.record: StageRecord | None = None  # of the files that it read when opened
        self.removed: Counter[str] = Counter()  # candidates that it took out of the rows, by reason

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

    def pairing(self) -> Pairing | None:
        """How preferences are made of its rows where nobody says; None where it makes no judgements."""
        return None

    def unpairable(self, rule: str | None) -> str | None:
        """Why its rows cannot be paired by a rule, or by the one that fits them; None where they can."""
        return None

    @property
    def gated(self) -> bool:
        """Whether its judge must pass an audit first."""
        return False

    async def gate(self, asking: Asking) -> tuple[dict[str, Any], list[str]]:
        """The audit's figures on gold pairs, and a sentence for each unmet requirement."""
        raise NotImplementedError

    @property
    def data_sets(self) -> list[str]:
        """The folders of its data sets, in the run folder."""
        return [f"dataset/{dataset_name(self.name, shape)}" for shape in self.writes]

    @property
    def makes(self) -> list[str]:
        """What a run keeps of it for use: data sets, a model, a report; a stage that makes none serves later ones."""
        model = self.settings.model_made
        models = [] if model is None else [f"models/{model}"]
        return self.data_sets + models + ([] if self.reports is None else [f"report/{self.reports}"])

    def kept(self, row: Row) -> Iterable[Kept]:
        """The completions of a row without a failure that are SFT data."""
        return ()

    def data(self, row: Row, shape: str) -> Iterable[dict[str, Any]] | str:
        """The rows of one of its data sets that a row without a failure gives, or why it gives none."""
        raise NotImplementedError

    def left_out(self, row: Row) -> Mapping[str, int]:
        """The completions of a row without a failure that are not SFT data, by reason."""
        return {}

    def told(self, row: Row) -> Mapping[str, int]:
        """What it saw in the completions of a row without a failure, kept or not, for its record and its card."""
        return {}

    def made_of(self, rows: Reiterable[Row], counts: RowCounts | None = None, unknown: int = 0) -> Made:
        """What it made, given its rows."""

        def kept() -> Iterator[Kept]:
            return (kept for row in rows if row.failure is None for kept in self.kept(row))

        return Made(rows=rows, kept=kept if "sft" in self.writes else None, counts=counts, unknown=unknown)

    def made_with(self) -> dict[str, str]:
        """Digests of its constitution, rubric, templates and the like, by name."""
        return {}

    def applies(self) -> Constitution | None:
        """The constitution that it applies, if it does."""
        return None

    def asked(self, row: Row, principle: Principle) -> Iterator[Asked]:
        """The prompts that it makes of a row under a principle of its constitution."""
        return iter(())

    @classmethod
    def check_settings(cls, settings: Any) -> None:
        """Raise InputError for what the settings need of this computer and do not find. No data are read yet."""

    def check_folder(self, folder: RunFolder) -> None:
        """Raise InputError for what stands in the run folder where the stage would write and no run made."""

    def input_digests(self) -> dict[str, str]:
        """Digests of the data that it read from files."""
        return {}


def all_made_with(steps: Iterable[Step], stages: Mapping[str, Stage[Any]]) -> dict[str, str]:
    """`made_with` of the stages behind some rows, the nearest first."""
    nearest, *before = steps
    made = stages[nearest.name].made_with()
    for step in before:
        made |= {f"{what} of {step.name}": value for what, value in stages[step.name].made_with().items()}
    return made


def write_data(stage: Stage[Any], rows: Reiterable[Row], counts: RowCounts, work: Work) -> dict[str, Any]:
    """Write the data sets of a stage's rows; returns its facts of single completions, for its record."""
    dropped = {shape: Counter[str]() for shape in stage.writes}
    demonstrations, left_out, seen = 0, Counter(stage.removed), Counter[str]()

    def pieces() -> Iterator[Piece]:
        nonlocal demonstrations
        for row in rows:
            if row.failure is None and "sft" in stage.writes:
                left_out.update(stage.left_out(row))
                seen.update(stage.told(row))
            for shape in stage.writes:
                made = "failed" if row.failure is not None else stage.data(row, shape)
                if isinstance(made, str):
                    dropped[shape][made] += 1
                    continue
                made = list(made)
                demonstrations += len(made) if shape == "sft" else 0
                yield shape, made

    if stage.writes:
        made_with = all_made_with((stage.step, *stage.step.line()), work.stages)
        of = work.dataset(stage, len(rows), counts, made_with)
        work.manifest.digests |= write_datasets(of, pieces(), dropped, {"sft": left_out}, seen)
    told = dict(sorted(left_out.items()))
    if "sft" not in stage.writes:
        return {"left_out": told} if stage.removed else {}
    return {"demonstrations": demonstrations, "left_out": told} | ({"seen": dict(sorted(seen.items()))} if seen else {})


class RowStage(Stage[Settings]):
    """A stage that processes each row alone."""

    holds = "rows"
    gentle = True
    facts: ClassVar[tuple[str, ...]] = ()  # the names of its counts
    reads_words: ClassVar[bool] = False  # code reads the candidates' words, and may drop candidates
    judges: ClassVar[bool] = True  # judgements from a file are removed from its rows first

    def __init__(self, step: Step, settings: Settings, opening: Opening) -> None:
        super().__init__(step, settings, opening)
        made = opening.made.get(step.source.name) if step.source else None  # none when an audit opens it alone
        self._strips = self.judges and made is not None and made.stated

    @property
    def chains(self) -> bool:
        """Whether its completions are shown in later prompts: a plan must assume missing ones then."""
        return False

    @abstractmethod
    async def row(self, row: Row, asking: Asking) -> Row:
        """The row after the stage. Raises EngineError."""

    def count(self, row: Row, facts: Counter[str]) -> str | None:
        """Count the stage's results in a row. Returns the drop reason of a row that did not fail, or None."""
        return None

    def outcome(self, facts: Mapping[str, Any]) -> str:
        """The summary of its facts, after the number of rows."""
        return unparsed(facts, "ratings")

    async def finish(self, rows: Stored[Row], counts: RowCounts, work: Work) -> dict[str, Any]:
        """Called after all rows; returns further facts for its record."""
        return write_data(self, rows, counts, work)

    async def through(self, row: Row, asking: Asking) -> Row:
        """The row after the stage; an error of this row alone is recorded in it.

        Raises EngineError when it is fatal for all rows.
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
    """A stage that needs all its input at once."""

    @abstractmethod
    async def run(self, work: Work) -> StageRecord:
        """Run the stage; its results go into `work.made`."""

    @abstractmethod
    async def plan(self, planning: Planning) -> dict[str, Any]:
        """The stage's entry in a plan: `rows`, and where they apply `state` and `at_most`."""

    def outcome(self, facts: Mapping[str, Any]) -> str:
        return ""


def groups(stages: Iterable[Stage[Any]]) -> Iterator[TableStage[Any] | list[RowStage[Any]]]:
    """The stages in order, with row stages that read each other in sequence grouped."""
    group: list[RowStage[Any]] = []
    for stage in stages:
        if group and stage.step.source is not group[-1].step:
            yield group
            group = []
        if isinstance(stage, RowStage):
            group.append(stage)
            continue
        if group:
            yield group
            group = []
        assert isinstance(stage, TableStage), "a stage goes through rows or makes a table"
        yield stage
    if group:
        yield group


def unparsed(facts: Mapping[str, Any], what: str) -> str:
    text = f", {facts['unparsed']:,} {what} unparsed" if facts.get("unparsed") else ""
    return text + (f", {count:,} orders disagree" if (count := facts.get("orders_disagree")) else "")


def starting_rows(made: Made) -> Reiterable[Row]:
    """The rows that a stage starts from: those of an earlier stage, or a new one for each prompt."""
    if made.rows is not None:
        return made.rows
    assert made.prompts is not None
    prompts = made.prompts.kept
    return Lazy(lambda: (Row(prompt=prompt) for prompt in prompts), len(prompts))


def first(errors: Sequence[BaseException]) -> BaseException:
    """The first error of an exception group, nested groups included."""
    error = errors[0]
    return first(error.exceptions) if isinstance(error, BaseExceptionGroup) else error


def row_record(stage: Stage[Any], counts: RowCounts, failed_before: int, entered: int, work: Work) -> StageRecord:
    """The record of a stage that makes rows.

    A row counts as failed only in the stage where it failed: `failed_before` of the `entered` rows had failed already,
    some of which a stopped run did not reach.
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
