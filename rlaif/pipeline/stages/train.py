"""The `train` stage: trains one model, which later stages use like any other.

Its examples become a job folder (`train.job`), which is trained in a thread of this process.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.config import Step, TrainStage, TransformersModel
from rlaif.engines.adapters import Source
from rlaif.engines.identity import weights_digest
from rlaif.engines.open import source_of, trained_spec
from rlaif.errors import RlaifError, WorkError
from rlaif.formats import StatedPreference
from rlaif.judges.verifiers import Check
from rlaif.pipeline.folder import REFERENCES, TOKENS, RunFolder
from rlaif.pipeline.manifest import StageRecord
from rlaif.pipeline.progress import Progress
from rlaif.pipeline.session import Session
from rlaif.pipeline.stages.stage import Made, Opening, Planning, TableStage, Work
from rlaif.pipeline.stages.verify import open_checks
from rlaif.resources import find, read_text
from rlaif.train import alarms, examples, job, processes, reporting, rewards
from rlaif.train.examples import Demonstration, Example, RewardFunction, Survey
from rlaif.train.job import Job, RewardModel

SAMPLED = 1000  # rows, at most, that a plan tokenizes of a training


class RewardSource(NamedTuple):
    """The reward of PPO: its identity, its function, and the reward model or the checks in code."""

    identity: str
    score: RewardFunction
    model: RewardModel | None = None
    checks: tuple[Check, ...] | None = None


class Train(TableStage[TrainStage]):
    trains = True
    needs_most = True

    def __init__(self, step: Step, settings: TrainStage, opening: Opening) -> None:
        super().__init__(step, settings, opening)
        self.trainer, self.trained = settings.trainer, settings.trainer.name
        self.checks: tuple[Check, ...] = ()  # if they are the reward
        if self.trainer.reward_checks is not None:
            self.checks = open_checks(step, self.trainer.reward_checks, (settings.method,), opening)
        template = self.trainer.chat_template
        self.template = read_text(find(template)) if template else None
        files = [record for source in step.sources if (record := opening.stages[source.name].record) is not None]
        self.rows_left_out = sum((record.dropped for record in files), Counter[str]())

    @classmethod
    def check_settings(cls, settings: TrainStage) -> None:
        reporting.usable(settings.trainer.report_to)
        if (launch := getattr(settings.trainer, "launch", None)) is not None:
            processes.check_launch(find(launch))

    # ------------------------------------------------------------ examples

    def examples(self, made: Mapping[str, Made]) -> Iterator[Example]:
        """The examples of its sources, one at a time."""
        for source in self.step.sources:
            yield from self._of(source, made)

    def _of(self, source: Step, made: Mapping[str, Made]) -> Iterator[Example]:
        """The examples of one source, with its name where they are mixed, for training where nothing is withheld."""
        for example in self._given(made[source.name]):
            if self.trainer.mixes and isinstance(example, Demonstration):
                example = replace(example, part=source.name)
            yield replace(example, split="train") if self.trainer.withholds_nothing else example

    def _given(self, made: Made) -> Iterator[Example]:
        """The examples in what one stage made."""
        if self.settings.takes == "prompts":
            assert made.prompts is not None
            yield from examples.of_prompts(made.prompts.kept)
        elif self.settings.takes == "preferences":
            for preference in made.preferences or ():
                if isinstance(preference, StatedPreference):
                    yield from examples.of_stated_preferences([preference])
                else:
                    yield from examples.of_preferences([preference])
        elif made.conversations is not None:
            yield from examples.of_conversations(made.conversations)
        elif made.texts is not None:
            yield from examples.of_texts(made.texts)
        else:
            assert made.kept is not None
            yield from examples.of_kept(made.kept())

    def survey(self, made: Mapping[str, Made], *, complete: bool = True) -> Survey:
        """The examples counted and digested. Raises WorkError when a source of `complete` examples gave none."""
        survey = Survey(self.trainer.unused)
        for source in self.step.sources:
            if not survey.add(self._of(source, made)) and complete:
                raise WorkError(
                    f"stage {source.name!r} gave nothing to train {self.name!r} on",
                    fix="`rlaif status` shows what was dropped and why",
                )
        return survey

    # ------------------------------------------------------------ the job

    def job(
        self,
        session: Session,
        survey: Survey,
        out: Path,
        reward: RewardSource | None,
        references: Path = REFERENCES,
        tokens: Path = TOKENS,
    ) -> Job:
        """The training of the model folder `out`. `references` and `tokens` are as a job's.

        Raises InputError or WorkError when the base's files are missing.
        """
        base = source_of(session.specs[self.trainer.base])
        identity = None if reward is None else reward.identity
        key = job.training_key(self.trainer, weights_digest(base), survey.digest, self.template, identity)
        model, checks = (None, None) if reward is None else (reward.model, reward.checks)
        left_out = self.rows_left_out + survey.left_out
        return Job(self.trainer, base, out, key, self.template, model, checks, references, tokens, left_out)

    def reward(self, session: Session, made: Mapping[str, Made]) -> RewardSource | None:
        """The reward of the trainer; None for one that needs none."""
        if self.trainer.reward_model is not None:
            return _by_model(session, self.trainer.reward_model)
        if self.trainer.reward_checks is None:
            return None
        prompts = [p for p in self.examples(made) if isinstance(p, examples.PromptOnly) and p.is_checked]
        identity = rewards.identity_of_checks(self.checks, prompts)
        return RewardSource(identity, rewards.by_checks(self.checks, prompts), checks=self.checks)

    async def train(
        self, training: Job, made: Mapping[str, Made], reward: RewardSource | None, progress: Progress
    ) -> dict[str, Any]:
        """The record of the training, which is skipped if it is done and unchanged.

        Cancelled, it ends after the current step; called again, it resumes.
        """
        if (record := job.finished(training.out, training.key)) is not None:
            job.clear(training.out, training.key)
            progress.note("unchanged, not trained again")
            return record
        interrupted, alarmed = threading.Event(), threading.Event()

        def on_step(values: dict[str, float]) -> None:
            if interrupted.is_set():
                raise KeyboardInterrupt
            progress.metrics(values)
            if alarms.COLLAPSE in values and not alarmed.is_set():
                alarmed.set()
                progress.announce(alarms.sentence(values[alarms.COLLAPSE], int(values["step"])))

        def work() -> dict[str, Any]:
            job.write_job(training, self.examples(made))
            if (note := self._shortage(training.base)) is not None:
                progress.announce(note)
            if (count := getattr(self.trainer, "processes", 1)) > 1:
                launch = getattr(self.trainer, "launch", None)
                config = None if launch is None else find(launch)
                return processes.train(training.folder, training.out, count, on_step, config)
            return job.train(training.folder, on_step, None if reward is None else reward.score)

        try:
            return await asyncio.to_thread(work)
        except asyncio.CancelledError:
            interrupted.set()  # the thread cannot be cancelled; it checks after each step
            raise

    # ------------------------------------------------------------ the stage

    def check_folder(self, folder: RunFolder) -> None:
        job.refuse_foreign(folder.model(self.trained))

    async def run(self, work: Work) -> StageRecord:
        survey = self.survey(work.made)
        reward = self.reward(work.session, work.made)
        training = self.job(work.session, survey, work.folder.model(self.trained), reward)
        record = await self.train(training, work.made, reward, work.progress)
        for note in record.get("notes", ()):  # a model of an earlier version has none
            work.note(f"{self.name}: {note}")
        self._add_to(work.session, training.out)
        work.made[self.name] = Made(model=self.trained, report=record)
        work.manifest.digests[f"model {self.trained}"] = work.session.engines[self.trained].identity
        return self._record(record, survey)

    def _record(self, record: Mapping[str, Any], survey: Survey) -> StageRecord:
        dropped = Counter(record["dropped"]) + survey.left_out
        facts = {"steps": record["steps"], "trained_seconds": round(record["seconds"], 2), "cut": record["cut"]}
        facts["metrics"] = {name: round(value, 6) for name, value in record["metrics"].items()}
        if told := record.get("evaluation"):  # a model of an earlier version has none
            facts["evaluation"] = told
        reads = " + ".join(source.name for source in self.step.sources)
        return StageRecord(self.name, self.settings.kind, reads, survey.given, record["kept"], dropped, facts=facts)

    def outcome(self, facts: Mapping[str, Any]) -> str:
        accuracy = facts["metrics"].get("validation_accuracy")
        return f", {accuracy:.0%} right on validation pairs" if accuracy is not None else ""

    def _add_to(self, session: Session, folder: Path) -> None:
        base = self.trainer.base
        spec = trained_spec(folder, session.specs[base], scores=self.trainer.scores)
        session.add(self.trained, spec, parent=base)

    async def plan(self, planning: Planning) -> dict[str, Any]:
        session = planning.session
        survey = self.survey(planning.made, complete=False)
        waits = any(planning.made[source.name].unknown for source in self.step.sources)
        if not waits and all(model in session.engines for model in self.models):
            reward = self.reward(session, planning.made)
            training = self.job(session, survey, planning.folder.model(self.trained), reward)
            if job.finished(training.out, training.key):
                self._add_to(session, training.out)
                return {"rows": survey.given, "state": "unchanged"}
        base = self.trainer.base
        # What is not trained yet may write conversations otherwise than the model that it is trained from.
        unknown = waits or base in planning.shapes
        checked = None if unknown else self._checked(source_of(session.specs[base]), planning.made, survey.given)
        session.settings[self.trained] = session.settings[base]
        planning.shapes[self.trained] = shape = planning.shapes.get(base) or source_of(session.specs[base])
        state = "to train, on rows that are not all known yet" if waits else "to train"
        return {"rows": survey.given, "state": state, "check": checked, "memory": self.memory(shape)}

    def _checked(self, base: Source, made: Mapping[str, Made], given: int) -> dict[str, Any]:
        """What `rlaif train --check` counts, of at most SAMPLED rows; or why it cannot."""
        from rlaif.train.check import check

        every = ceil(given / SAMPLED) or 1
        sample = list(islice(self.examples(made), 0, None, every))
        try:
            told = check(self.trainer, base, sample, self.template).as_dict()
        except RlaifError as error:
            return {"problem": str(error)}
        counts = {
            name: told[name] for name in ("rows", "kept", "tokens", "learnt_tokens", "lengths", "packed", "steps")
        }
        if every > 1:
            counts |= {"packed": None, "steps": None}
        return counts | {"sampled": len(sample) if every > 1 else None}

    def memory(self, base: Source) -> dict[str, Any]:
        """What the training takes of its device's memory. `base` is a model with the sizes of its base."""
        from rlaif.train import memory

        return memory.plan(base, self.trainer).as_json()

    def _shortage(self, base: Source) -> str | None:
        """What to say before a training that will clearly not fit; None also where that cannot be told."""
        from rlaif.train import memory

        try:
            return memory.shortage(memory.plan(base, self.trainer))
        except Exception:  # an estimate ends no training; a base that cannot be used is refused by the trainer
            return None


def _by_model(session: Session, name: str) -> RewardSource:
    """A reward model for a trainer's thread, which scores through the engine on this event loop."""
    spec, engine = session.specs[name], session.engines[name]
    model = RewardModel(source_of(spec))
    if isinstance(spec, TransformersModel):  # no other engine scores
        model = RewardModel(model.folder, spec.dtype, spec.device, spec.batch_size)
    loop = asyncio.get_running_loop()
    return RewardSource(engine.identity, rewards.by_model(engine, rewards.on_loop(loop)), model=model)
