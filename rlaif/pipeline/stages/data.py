"""The `data` stage: existing data, read in the form that later stages need.

Rows for judges and `pair`, preferences for a reward model or DPO, else conversations.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rlaif.config import DataStage, Step
from rlaif.formats import (
    Column,
    PlainText,
    ReadResult,
    Table,
    each_row,
    named,
    read_conversations,
    read_preferences,
    read_texts,
    rows_of,
)
from rlaif.formats.published import LABEL
from rlaif.generate.pairing import Pairing
from rlaif.pipeline.manifest import StageRecord
from rlaif.pipeline.spool import RowWriter, Spool
from rlaif.pipeline.stages.files import record_of, source_of
from rlaif.pipeline.stages.stage import Made, Opening, Planning, TableStage, Work, unparsed
from rlaif.records import Row, Split, digest, prompt_id, split_of


class Data(TableStage[DataStage]):
    holds = "rows"  # where it gives rows and no stage passes them through, whose file would have them
    to_continue = "put a stage after it that trains on it, as `train`, or judges it, as `rate`"
    stated: StatedJudgements | None = None  # the judgements in its file, if it gives rows
    _kept_here = False

    def __init__(self, step: Step, settings: DataStage, opening: Opening) -> None:
        super().__init__(step, settings, opening)
        readers = opening.readers(step)
        judging = [reader for reader in readers if reader.stage.takes == "rows"]
        learning = {reader.stage.takes: reader for reader in readers if reader.stage.takes != "rows"}
        apart = "name a `pair` stage, or read the file in a `data` stage of its own"
        if settings.plain_text is not None:
            if other := next((reader for reader in readers if reader.stage.takes != "demonstrations"), None):
                problem = f"the stage {self.name!r} holds plain text, which {other.name!r} cannot use"
                raise opening.pipeline.error(step, problem, ("plain_text",), "only `sft` trains on it")
            texts = self._kept(partial(read_texts, column=settings.plain_text), opening)
            self._digest = digest([text.id for text in texts])
            opening.made[self.name] = Made(texts=texts)
        elif judging:
            if settings.split == "all" or settings.validation is not None:
                key = "split" if settings.split == "all" else "validation"
                problem = f"the stage {self.name!r} is judged by {judging[0].name}, and `{key}` is for rows to train on"
                raise opening.pipeline.error(step, problem, (key,), f"remove `{key}`")
            for reader in learning.values():
                problem = f"the stage {self.name!r} is judged by {judging[0].name} and trained on unchanged here"
                raise opening.pipeline.error(reader, problem, reader.stage.source_key, apart)
            opening.made[self.name] = self._rows(judging, opening)
            self._kept_here = not any(reader.stage.streams for reader in judging)
        elif preferring := learning.get("preferences"):
            if "demonstrations" in learning:
                problem = f"the stage {self.name!r} is read as demonstrations by sft and as preferences here"
                raise opening.pipeline.error(preferring, problem, preferring.stage.source_key, apart)
            if settings.turns == "all":
                problem = "with preferences only the last turn is trained on"
                raise opening.pipeline.error(step, problem, ("turns",), "remove `turns`")
            preferences = self._kept(read_preferences, opening)
            self._digest = digest([preference.id for preference in preferences])
            margins = [each.margin for each in preferences if each.margin is not None]
            # That all are alike, as of KTO's labels, says nothing of how far a pair is apart.
            if len(set(margins)) > 1 and not any(reader.stage.uses_margins for reader in readers):
                opening.note(
                    f"{self.name}: the margins of {len(margins):,} preferences are not used by {preferring.name}"
                )
            opening.made[self.name] = Made(preferences=preferences)
        else:
            conversations = self._kept(partial(read_conversations, turns=settings.turns or "all"), opening)
            self._digest = digest([[[m.role, m.content] for m in c.messages] for c in conversations])
            opening.made[self.name] = Made(conversations=conversations)

    def _source(self, validation: bool = False) -> Path | Table:
        """The rows of the file, or of that to validate on, under the names that the readers know."""
        settings = self.settings
        if validation:
            other = {"path": settings.validation} if settings.hub is None else {"hub_split": settings.validation}
            source = source_of(settings.model_copy(update=other))
        else:
            source = source_of(settings)
        if settings.columns is None and settings.system is None:
            return source
        table = source if isinstance(source, Table) else rows_of(source)
        columns = settings.columns.named() if settings.columns else {}
        return named(table, {ours: Column(*theirs) for ours, theirs in columns.items()}, settings.system, settings.keep)

    def _tell(self, told: Mapping[str, int], opening: Opening) -> None:
        """What a person should know of the rows that were read, as notes with their counts."""
        for what, count in told.items():
            opening.note(f"{self.name}: {what} ({count:,} {'time' if count == 1 else 'times'})")

    def _kept(self, read: Callable[[Path | Table], ReadResult[Any]], opening: Opening) -> list[Any]:
        """The rows to train and to validate on, of both files where there are two."""
        result = read(self._source())
        items, dropped, unusable = result.items, Counter[str](), Counter(result.dropped)
        self._tell(result.told, opening)
        validating: list[Any] = []
        if self.settings.validation is not None:
            other = read(self._source(validation=True))
            unusable.update(other.dropped)
            self._tell(other.told, opening)
            validating = other.items
            asked = {_asked(item) for item in validating}
            apart = [item for item in items if _asked(item) not in asked]
            dropped["prompt in the validation file"] = len(items) - len(apart)
            items = apart
        read_rows = len(result.items) + len(validating)
        usable, held_out = self._assigned(items, "train")
        kept = usable[: self.settings.take]
        validating, also_held_out = self._assigned(validating, "validation")
        dropped.update({"held-out": held_out + also_held_out, "not taken": len(usable) - len(kept)})
        self._check_left(kept, held_out, dropped["prompt in the validation file"], opening)
        kept += validating
        self.record = record_of(self.step, read_rows, unusable, len(kept), +dropped)
        return kept

    def _assigned(self, items: Sequence[Any], role: Split) -> tuple[list[Any], int]:
        """The rows that are not held out, and how many are.

        They have the `role` of their file where another file has the other role, or where all rows are used.
        """
        settings = self.settings
        if settings.split == "hash":
            usable = [item for item in items if item.split != "held-out" or settings.keeps_held_out]
        else:
            usable = list(items)
        if settings.split == "all" or settings.validation is not None:
            usable = [item.model_copy(update={"assigned": role}) for item in usable]
        return usable, len(items) - len(usable)

    def _check_left(self, kept: Sequence[Any], held_out: int, validating: int, opening: Opening) -> None:
        """Raise InputError when a trainer reads the rows and none of them is for training.

        Of the rows that are not `kept`, so many are held out, and of so many the validation file has the prompts.
        """
        trained = self.settings.split == "all" or self.settings.validation is not None
        if (kept and trained) or any(item.split == "train" for item in kept):
            return
        if not any(reader.stage.model_made for reader in opening.readers(self.step)):
            return
        error = partial(opening.pipeline.error, self.step)
        if validating and not held_out:
            problem = f"the prompts of all {validating:,} rows are in the validation file too, and are not trained on"
            raise error(problem, ("validation",), "give another file")
        counts = {"held out": held_out, "for validation": len(kept)}
        where = " and ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        total = sum(counts.values()) + validating
        problem = f"none of the {total:,} rows is for training: {where}, by the hash of their prompts"
        if validating:
            problem += f", and {validating:,} with prompts of the validation file"
        fix = "give more rows, or `split: all` to train on every row (`--split all` of `rlaif train`)"
        raise error(problem, ("path",) if self.settings.hub is None else ("hub",), fix)

    def _rows(self, readers: Sequence[Step], opening: Opening) -> Made:
        """Rows with candidates and the file's judgements of them, kept on disk."""
        settings, unusable, told = self.settings, Counter[str](), Counter[str]()
        kept, dropped, stated = Spool(Row), Counter[str](), StatedJudgements()
        read = 0
        turns = settings.turns or "last"
        for row in each_row(self._source(), unusable, turns=turns, told=told, keep=settings.keep):
            read += 1
            bare = [message for message in row.prompt.messages if message.role != "system"]
            if not settings.keeps_held_out and "held-out" in (row.prompt.split, split_of(prompt_id(bare))):
                dropped["held-out"] += 1
            elif not row.candidates:
                dropped["no completion"] += 1
            elif settings.take is not None and len(kept) >= settings.take:
                dropped["not taken"] += 1
            else:
                kept.append(row)
                stated.add(row)
        self._tell(told, opening)
        if not kept:
            reasons = ", ".join(f"{count} {reason}" for reason, count in (dropped + unusable).items())
            fix = None
            if dropped["no completion"] and settings.columns is None:
                fix = "if its columns have other names, map them with `columns` of a `data` stage"
            problem = f"no row of the file has completions to judge ({reasons})"
            raise opening.pipeline.error(self.step, problem, fix=fix)
        self.stated = stated
        self._digest = _digest_of_rows(kept)
        self.record = record_of(self.step, read, unusable, len(kept), dropped)
        self.read.facts.update(stated.facts())
        return Made(rows=kept, stated=True)

    def pairing(self) -> Pairing | None:
        stated = self.stated
        return None if stated is None else Pairing(stated.rule, stated.basis, stated.weights)

    def unpairable(self, rule: str | None) -> str | None:
        """Why its rows cannot be paired by `rule`, or by the default rule; None if they can."""
        return None if self.stated is None else self.stated.problem(rule)

    def input_digests(self) -> dict[str, str]:
        return {f"data {self.name}": self._digest}

    def outcome(self, facts: Mapping[str, Any]) -> str:
        return unparsed(facts, "ratings")

    async def run(self, work: Work) -> StageRecord:
        made = work.made[self.name]
        if self._kept_here and made.rows is not None:
            writer = RowWriter(Row, work.file(self.step))
            with closing(writer):
                for row in made.rows:
                    writer.append(row)
                work.made[self.name] = replace(made, rows=writer.finish())
            self.read.file = f"stages/{work.file(self.step).name}"
        return self.read

    async def plan(self, planning: Planning) -> dict[str, Any]:
        return {"rows": self.read.out}


class StatedJudgements:
    """Counts of a file's judgements of the kept candidates."""

    def __init__(self) -> None:
        self.rows = 0
        self.weights: dict[str, float] = {}  # of its ratings' aspects, all equal
        self._labels_only = False  # good or bad, of each candidate
        self._facts: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        self.rows += 1
        self.weights |= dict.fromkeys((rating.aspect for rating in row.ratings), 1.0)
        if self.rows == 1 and row.scores and not row.comparisons:
            self._labels_only = True
        self._labels_only &= all(score.aspect == LABEL for score in row.scores) and not row.comparisons
        self._facts["candidates"] += len(row.candidates)
        self._facts["unparsed"] += sum(comparison.verdict is None for comparison in row.comparisons)
        for what in ("comparisons", "ratings", "rankings", "scores"):
            judgements = getattr(row, what)
            self._facts[what] += len(judgements)
            self._facts["unparsed"] += sum(getattr(each, "problem", None) is not None for each in judgements)

    @property
    def basis(self) -> str:
        """The kind of judgement that its candidates are scored by: the most informative one."""
        return next((what for what in ("ratings", "scores", "rankings") if self._facts[what]), "comparisons")

    @property
    def rule(self) -> str:
        """The default pairing rule. Of good and bad ones, every two of them tell as much."""
        if self._labels_only:
            return "all"
        return "compared" if self._facts["comparisons"] else "zephyr"

    def problem(self, rule: str | None) -> str | None:
        """Why it cannot be paired by this rule; None if it can."""
        if (rule or self.rule) == "compared":
            return None if self._facts["comparisons"] else "has no comparisons of two completions"
        known = self._facts["ratings"] + self._facts["rankings"] + self._facts["scores"]
        return None if known else "has no ratings, rankings or scores of its completions"

    def facts(self) -> dict[str, int]:
        return dict(+self._facts)


def _asked(item: Any) -> str:
    """The id of the prompt of a row, or of its text."""
    return item.id if isinstance(item, PlainText) else item.prompt.id


def _digest_of_rows(rows: Iterable[Row]) -> str:
    total = hashlib.sha256()
    for row in rows:
        total.update(digest(row.model_dump(mode="json", exclude_defaults=True)).encode())
    return total.hexdigest()[:32]
