"""The `train` stage: one trained model, which is a model like any other from then on."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.config import LocalModel, Step, TrainStage
from rlaif.config.stages import Takes
from rlaif.engines.identity import weights_digest
from rlaif.engines.open import trained_spec
from rlaif.errors import WorkError
from rlaif.judges.verifiers import Check
from rlaif.pipeline import training
from rlaif.pipeline.manifest import StageRecord
from rlaif.pipeline.progress import Progress
from rlaif.pipeline.session import Session
from rlaif.pipeline.stages.stage import Made, Opening, Planning, TableStage, Work
from rlaif.pipeline.stages.verify import checks_of
from rlaif.resources import find, read_text


class Train(TableStage[TrainStage]):
    trains = True
    needs_most = True

    def __init__(self, step: Step, settings: TrainStage, opening: Opening) -> None:
        super().__init__(step, settings, opening)
        self.checks: tuple[Check, ...] = ()  # by code, where they are the reward
        self.template: str | None = None  # a chat template of its own
        if settings.ppo and settings.ppo.checks is not None:
            self.checks = checks_of(step, settings.ppo.checks, ("ppo",), opening)
        if settings.sft and settings.sft.template:
            self.template = read_text(find(settings.sft.template))

    @property
    def trained(self) -> str:
        return self.settings.trainer.name

    async def run(self, work: Work) -> StageRecord:
        out = work.folder.model(self.trained)
        lessons = self.lessons(work.made)
        record = await self.train(work.session, work.made, lessons, out, work.progress)
        self._add_to(work.session, out)
        work.made[self.name] = Made(report=record)
        work.manifest.digests[f"model {self.trained}"] = work.session.engines[self.trained].identity
        return self._record(record, lessons)

    async def train(
        self, session: Session, made: Mapping[str, Made], lessons: training.Lessons, out: Path, progress: Progress
    ) -> dict[str, Any]:
        """The record of the training in `out`: of one that is there already, or else of this one.

        Cancelled, it ends after the step in hand; the same call goes on from there.
        """
        reward = self.reward(session, made)
        key = self.key(session, lessons, reward)
        if (record := training.finished(out, key)) is not None:
            progress.note("unchanged, not trained again")
            return record
        base, interrupted = self._base(session), threading.Event()

        def on_step(values: dict[str, float]) -> None:
            if interrupted.is_set():
                raise KeyboardInterrupt
            progress.metrics(values)

        try:
            return await asyncio.to_thread(
                training.train, self.settings, base, lessons, self.template, out, key, on_step, reward
            )
        except asyncio.CancelledError:
            interrupted.set()  # the thread cannot be cancelled; it looks after each step
            raise

    def _record(self, record: Mapping[str, Any], lessons: training.Lessons) -> StageRecord:
        dropped = Counter(record["dropped"]) + training.left_out(self.settings.method, lessons)
        facts = {"steps": record["steps"], "trained_seconds": round(record["seconds"], 2), "cut": record["cut"]}
        facts["metrics"] = {name: round(value, 6) for name, value in record["metrics"].items()}
        reads = " + ".join(source.name for source in self.step.sources)
        kind = self.settings.kind
        return StageRecord(self.name, kind, reads, len(lessons), record["kept"], dropped, facts=facts)

    def outcome(self, facts: Mapping[str, Any]) -> str:
        accuracy = facts["metrics"].get("validation_accuracy")
        return f", {accuracy:.0%} right on validation pairs" if accuracy is not None else ""

    def lessons(self, made: Mapping[str, Made]) -> training.Lessons:
        """What it learns from; a model named for its revisions must not be trained on all but them."""
        lessons: training.Lessons = []
        for source in self.step.sources:
            given = lessons_of(made[source.name], self.settings.takes)
            if not given:
                raise WorkError(
                    f"stage {source.name!r} gave nothing to train {self.name!r} on",
                    fix="`rlaif status` counts what was dropped and why",
                )
            lessons += given
        return lessons

    def _base(self, session: Session) -> LocalModel:
        base = session.specs[self.settings.trainer.base]
        assert isinstance(base, LocalModel), "checked as the pipeline was read"
        return base

    def key(self, session: Session, lessons: training.Lessons, reward: training.Reward | None) -> str:
        """The digest of all that determines the trained model."""
        base = weights_digest(training.weights_folder(self._base(session)))
        return training.training_key(self.settings, base, lessons, self.template, reward.identity if reward else None)

    def reward(self, session: Session, made: Mapping[str, Made]) -> training.Reward | None:
        """What rewards a completion, as a trainer's thread calls it; None for a trainer that needs none."""
        ppo = self.settings.ppo
        if ppo is None:
            return None
        if ppo.reward is None:
            sources = [made[source.name].prompts for source in self.step.sources]
            return training.reward_by_checks(self.checks, (p for source in sources if source for p in source.kept))
        spec = session.specs[ppo.reward]
        assert isinstance(spec, LocalModel), "checked as the pipeline was read"
        return training.reward_of(spec, session.engines[ppo.reward], asyncio.get_running_loop())

    def _add_to(self, session: Session, folder: Any) -> None:
        base = self.settings.trainer.base
        spec = trained_spec(folder, session.specs[base], self.settings.method)
        session.add(self.trained, spec, parent=base)

    async def plan(self, planning: Planning) -> dict[str, Any]:
        session, settings = planning.session, self.settings.trainer
        lessons = [
            one for source in self.step.sources
            for one in lessons_of(planning.made[source.name], self.settings.takes)
        ]  # fmt: skip
        waits = any(planning.made[source.name].unknown for source in self.step.sources)
        known = not waits and all(use.model in session.engines for use in self.settings.models_used())
        folder = planning.folder.model(self.trained)
        if known and training.finished(folder, self.key(session, lessons, self.reward(session, planning.made))):
            self._add_to(session, folder)
            return {"rows": len(lessons), "state": "unchanged"}
        session.settings[self.trained] = session.settings[settings.base]
        state = "to train, on rows that are not all known yet" if waits else "to train"
        return {"rows": len(lessons), "state": state}


def lessons_of(made: Made, takes: Takes) -> training.Lessons:
    """What a trainer takes of what a stage made."""
    if takes == "prompts":
        assert made.prompts is not None
        return training.prompts(made.prompts.kept)
    if takes == "preferences":
        assert made.preferences is not None
        return training.preferences(made.preferences)
    if made.conversations is not None:
        return training.conversations(made.conversations)
    assert made.rows is not None
    return training.revisions(made.rows)
