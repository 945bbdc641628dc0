"""The `measure` stage: models on prompts that nothing was trained on, with confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from rlaif.config import MeasureStage, Step
from rlaif.engines.asking import Asking
from rlaif.engines.protocol import Engine, Logprobs
from rlaif.errors import EngineError
from rlaif.files import json_of, write_json
from rlaif.judges.rating import Judge
from rlaif.measures import measure
from rlaif.measures.collecting import Gold, Setting, collect
from rlaif.pipeline.folder import RunFolder
from rlaif.pipeline.manifest import StageRecord
from rlaif.pipeline.session import Session
from rlaif.pipeline.stages.prompts import digest_of_ids, of_split
from rlaif.pipeline.stages.rate import check_schema, open_judge
from rlaif.pipeline.stages.stage import Made, Opening, Planning, Reiterable, TableStage, Work
from rlaif.pipeline.stages.verify import open_checks
from rlaif.records import Message, Prompt, digest
from rlaif.train import job
from rlaif.version import __version__

PLANNED_AT_ONCE = 32  # prompts
VERSION = 4  # of the figures; raising it measures again


class Measuring(TableStage[MeasureStage]):
    gentle = True
    needs_most = True
    reports = "summary.json"

    def __init__(self, step: Step, settings: MeasureStage, opening: Opening) -> None:
        super().__init__(step, settings, opening)
        self.judge: Judge | None = None
        if settings.rate:
            check_schema(step, settings.rate, opening, "rate")
            self.judge = open_judge(settings.rate, opening.text_check(settings.rate.model))
        self._error = partial(opening.pipeline.error, step)
        self.gold = _gold(settings)
        self._chosen: Reiterable[Prompt] | None = None
        checked = settings.checks is not None
        if opening.made[self.source.name].prompts is not None:  # else a stage makes them as the pipeline runs
            self._choose(opening.made)
            checked = checked or any(prompt.checks for prompt in self.prompts)
        self.checks = open_checks(step, settings.checks or (), (), opening) if checked else ()

    def _choose(self, made: Mapping[str, Made]) -> None:
        """The prompts of its split: only here are held-out prompts kept. Raises InputError where there is none."""
        prompts = made[self.source.name].prompts
        assert prompts is not None, "a measure reads prompts"
        split = (self.settings.split,)
        self._chosen, self.record = of_split(prompts, self.step, split, self.settings.take, self._error)
        if self.gold is not None:
            for prompt in self._chosen:
                self.gold(prompt.text, "")

    @property
    def prompts(self) -> Reiterable[Prompt]:
        assert self._chosen is not None, "chosen as it was opened, or as it runs"
        return self._chosen

    def check_folder(self, folder: RunFolder) -> None:
        folder.refuse_report("summary.json", "run")

    def input_digests(self) -> dict[str, str]:
        return {} if self._chosen is None else {f"prompts {self.name}": digest_of_ids(self._chosen)}

    def made_with(self) -> dict[str, str]:
        return {} if self.judge is None else self.judge.digests()

    def _setting(self, session: Session, asking: Asking) -> Setting:
        return Setting(
            self.settings,
            list(self.prompts),
            asking,
            session.engines,
            session.parents,
            self.judge,
            self.checks,
            self.gold,
        )

    async def run(self, work: Work) -> StageRecord:
        if self._chosen is None:
            self._choose(work.made)
            work.manifest.digests |= self.input_digests()
        setting = replace(
            self._setting(work.session, work.session.asking(self.name)), on_done=lambda: work.progress.advance()
        )
        key, path = self.key(work.session), _summary(work.folder)
        summary = json_of(path)
        if summary is not None and summary.get("key") == key:
            work.progress.note("unchanged, not measured again")
        else:
            passes = len(self.settings.models) + (self.settings.best_of is not None)
            work.progress.total(len(setting.prompts) * passes)
            figures = await measure(setting)
            for prompt, error in setting.failures:
                work.manifest.fail(prompt.id, error.cause, str(error))
            seconds = {r.name: round(r.seconds, 2) for r in work.manifest.records if r.seconds is not None}
            about = {"calls": work.manifest.calls(), "seconds": seconds}
            summary = {"run": work.pipeline.name} | figures | about
            if not setting.failures:  # an incomplete measure is shown, and repeated by the next run
                summary["key"] = key
            write_json(path, summary)
        work.made[self.name] = Made(report=summary)
        if judge := summary.get("judge"):
            self.read.facts |= {"ratings": judge["rated"] + judge["unparsed"], "unparsed": judge["unparsed"]}
        return self.read

    def key(self, session: Session) -> str:
        """The digest of everything that determines the figures."""
        stage, judge = self.settings, self.judge
        sampled = {*stage.models, *([stage.best_of.model] if stage.best_of else [])}
        sampling = {name: stage.sampling.resolved(session.seed, session.settings[name]) for name in sorted(sampled)}
        if stage.rate:
            sampling |= {"judge": stage.rate.sampling.resolved(session.seed, session.settings[stage.rate.model])}
        models = {*sampled, *([stage.rate.model] if stage.rate else []), *([stage.reward] if stage.reward else [])}
        models |= {parent for name, parent in session.parents.items() if name in models}
        shown = judge is not None and any(aspect.knowledge for aspect in judge.rubric.aspects)
        checked = bool(self.checks) or any(prompt.checks for prompt in self.prompts)
        known: dict[str, Any] = {"known": [list(p.reference) for p in self.prompts]} if shown or checked else {}
        if checked:
            known["checks"] = [list(prompt.checks) for prompt in self.prompts]
        return digest(
            known
            | {
                "version": VERSION,
                "stage": stage.model_dump(mode="json", exclude={"name", "source"}),
                "prompts": [p.id for p in self.prompts],
                "models": {name: session.engines[name].identity for name in sorted(models)},
                "asked": {name: settings.model_dump(mode="json") for name, settings in sampling.items()},
                "rubric": judge.rubric.digest if judge else None,
                "template": judge.template.digest if judge else None,
                "versions": {"rlaif": __version__, **job.versions(*job.PACKAGES, "scipy")},
            }
        )

    async def plan(self, planning: Planning) -> dict[str, Any]:
        session = planning.session
        if self._chosen is None:
            return {"rows": 0, "state": "to measure, on prompts that are not known yet"}
        if all(model in session.engines for model in self.models):
            summary = json_of(_summary(planning.folder))
            if summary is not None and summary.get("key") == self.key(session):
                return {"rows": len(self.prompts), "state": "unchanged"}
        setting = self._setting(session, planning.asking(self.name, each_once=True))
        engines: dict[str, Engine] = {self.settings.reward: LastIsBest()} if self.settings.reward else {}
        prompts = iter(self.prompts)
        while part := list(islice(prompts, PLANNED_AT_ONCE)):  # their assumed completions are long
            await collect(replace(setting, prompts=part, engines=engines, gold=None))
        return {"rows": len(self.prompts), "state": "to measure"}


class LastIsBest:
    """A reward model for plans, which load none. It picks the last of n, which is not the model's own completion."""

    name, in_process, identity = "plan", True, "plan"

    async def score(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[float | EngineError]:
        return [float(number) for number in range(len(items))]

    async def logprobs(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[Logprobs]:
        raise AssertionError("a plan takes no figures")

    async def close(self) -> None: ...


def _summary(folder: RunFolder) -> Any:
    return folder.path / "report" / "summary.json"


def _gold(settings: MeasureStage) -> Gold | None:
    """The gold score, only with `judge: gold`."""
    if settings.judge != "gold":
        return None
    from rlaif.tiny.gold import gold

    return gold
