"""Runs the stages of a pipeline file in order.

Row stages in sequence stream: one coroutine per prompt goes through all of them, a bounded number at a time, so judging
starts while sampling goes on. A table stage (pair, train, measure) waits for all rows. Whatever a stage was given and
made is digested, and a trainer or a measure whose inputs are unchanged is not run again; the calls of row stages come
from the call store.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
import threading
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

import rlaif
from rlaif.config import (
    ROW_STAGES,
    CompareStage,
    EloStage,
    LocalModel,
    MeasureStage,
    ModelSpec,
    OpenAIModel,
    PairStage,
    PersonStage,
    Pipeline,
    PPOSettings,
    RankStage,
    RateStage,
    ReviseStage,
    SampleStage,
    SamplingSettings,
    ScoreStage,
    Step,
    TrainStage,
    TransformersModel,
    VerifyStage,
    VLLMModel,
)
from rlaif.engines.ledger import ROW, STAGE, Ledger
from rlaif.engines.protocol import Engine
from rlaif.engines.scheduler import Sampler, Scheduler
from rlaif.engines.wire import Wires
from rlaif.errors import EngineError, RlaifError, Stopped, WorkError
from rlaif.generate.pairing import Pairing, length_balance, noise, preferences_of
from rlaif.generate.revising import revise
from rlaif.generate.sampling import sample
from rlaif.judges.comparing import compare
from rlaif.judges.person import judged_by_people
from rlaif.judges.ranking import rank
from rlaif.judges.rating import rate
from rlaif.judges.scoring import score
from rlaif.judges.strengths import strengths
from rlaif.judges.verifying import VERIFIER, verified
from rlaif.measure import measure
from rlaif.pipeline import training
from rlaif.pipeline.auditing import gate, unmet
from rlaif.pipeline.datasets import (
    SHAPES,
    Piece,
    dataset_name,
    preference_pieces,
    remove_dataset,
    revision_pieces,
    write_datasets,
)
from rlaif.pipeline.engines import concurrency_of, open_engine, prices_of, trained_spec
from rlaif.pipeline.events import EVERY, EventLog, Meter
from rlaif.pipeline.folder import RunFolder, made_before, read_json, write_json, write_text
from rlaif.pipeline.inputs import Inputs, truth
from rlaif.pipeline.progress import Progress
from rlaif.pipeline.record import RowCounts, StageRecord
from rlaif.pipeline.spool import RowWriter, Stored, room
from rlaif.pipeline.training import RewardSource
from rlaif.records import Preference, Prompt, Row, digest
from rlaif.store import CallStore
from rlaif.train.examples import Example, Survey, of_preferences, of_revisions
from rlaif.train.job import PACKAGES, Job, finished, versions


class NewRows:
    """A row for each prompt, with nothing in it yet."""

    def __init__(self, prompts: Stored[Prompt]) -> None:
        self._prompts = prompts

    def __len__(self) -> int:
        return len(self._prompts)

    def __iter__(self) -> Iterator[Row]:
        return (Row(prompt=prompt) for prompt in self._prompts)


Rows = Stored[Row] | NewRows | list[Row]
Made = Stored[Preference] | list[Preference]

MEASURE_VERSION = 3  # of what the figures mean; raising it measures anew
LEAST_ROOM = 50 * 2**20  # bytes on a disk that a run begins on
BYTES_A_ROW = 20_000  # about what a row of a stage takes in the store and the run folder together
PULSE = 0.5  # seconds between two looks at how fast the servers are asked
BASES = {  # what a stage's judgements are, by its kind
    "rate": "ratings", "compare": "comparisons", "person": "comparisons", "rank": "rankings", "score": "scores",
    "verify": "scores",
}  # fmt: skip
UNJUDGED: dict[str, Any] = {"ratings": (), "comparisons": (), "rankings": (), "scores": ()}
NEAR_TIES = 0.5  # share of margins within the judge's noise above which a person is told
TOLERATED = 0.05  # share of rows that may fail before a run stops short of training on what is left


class Run:
    """One execution. Holds what the stages have made so far; `execute` runs them."""

    def __init__(
        self,
        pipeline: Pipeline,
        inputs: Inputs,
        folder: RunFolder,
        store: CallStore,
        progress: Progress,
        *,
        retry_failed: bool = False,
    ) -> None:
        self.pipeline, self.inputs, self.folder, self.store, self.progress = pipeline, inputs, folder, store, progress
        self.specs: dict[str, ModelSpec] = dict(pipeline.models)
        self.engines: dict[str, Engine] = {}
        self.settings: dict[str, SamplingSettings] = {}
        self.parents: dict[str, str] = {}
        self.wires = Wires()
        self.concurrency, prices = concurrency_of(pipeline.models), prices_of(pipeline.models)
        self.ledger = Ledger(prices, pipeline.budget)
        used = {name for step in pipeline.steps for name, _ in step.stage.named_models()}
        self.scheduler = Scheduler(
            store, self.engines, self.concurrency,
            ledger=self.ledger, retry_failed=retry_failed, used=used, on_note=self._noted,
        )  # fmt: skip
        self.rows: dict[str, Rows] = dict(inputs.rows)
        self.pairs: dict[str, Made] = {}
        self._counts: dict[str, RowCounts] = {}
        self.records: list[StageRecord] = []
        self.audits: dict[str, dict[str, Any]] = {}  # of judges that had to pass one, by stage
        self.failures: dict[str, dict[str, Any]] = {}
        self.digests: dict[str, str] = {}
        self.summary: dict[str, Any] | None = None
        self.stopped: str | None = None  # why the run ended before its last stage, in a sentence
        self.state = "running"
        self.events = EventLog(folder.path)
        self._interrupted = threading.Event()
        self._before = folder.manifest() or {}
        self._made = made_before(self._before)  # files and data sets in the folder that runs of this pipeline made
        self._started = time.time()
        for name, spec in pipeline.models.items():
            self._add_model(name, spec)
        # By identity. Also of models that an earlier form of the pipeline paid: what they cost is spent.
        self._prices: dict[str, dict[str, float]] = self._before.get("prices", {}) | {
            self.engines[name].identity: price.model_dump() for name, price in prices.items()
        }
        if pipeline.budget is not None:
            paid = [
                (self._prices[one], *tokens)
                for one, tokens in store.spent(pipeline.name).items()
                if one in self._prices
            ]
            spent = sum(read * price["prompt"] + written * price["completion"] for price, read, written in paid)
            self.ledger.before(spent / 1e6)

    def _add_model(self, name: str, spec: ModelSpec) -> None:
        self.specs[name] = spec
        self.engines[name] = open_engine(name, spec, self.wires)
        self.settings[name] = spec.sampling

    async def execute(self) -> str:
        """Run every stage; returns the state, `done` or `incomplete`. What was finished is kept whatever happens."""
        watching = asyncio.create_task(self._watch())
        try:
            self._check_disk()
            self.events.write("run", name=self.pipeline.name, rlaif=rlaif.__version__)
            self._remove_leftovers()
            self._write_manifest("running")  # names what is going to be made, before any of it is
            write_text(self.folder.path / "pipeline.yaml", yaml.safe_dump(self.pipeline.resolved(), sort_keys=False))
            self._note_inputs()
            for steps in _groups(self.pipeline.steps):
                kind = steps[0].stage.kind
                if self.scheduler.stopped and (
                    kind != "pair" or steps[0].source is None or not self._has_rows(steps[0])
                ):
                    break
                if kind in ("train", "measure") and (share := self._failed_share()) > TOLERATED:
                    self.stopped = f"{steps[0].name} was not begun: {share:.0%} of the rows failed"
                    break
                if not self.scheduler.stopped:
                    with self._interruptible("measure"), suppress(Stopped):
                        await self._gates(self.pipeline.steps[steps[0].number - 1 :])
                    if self.scheduler.stopped:
                        break
                await self._let_go(steps)
                with self._interruptible(kind), suppress(Stopped):
                    await (self._stream(steps) if kind in ROW_STAGES else self._table(steps[0]))
                self._write_manifest("running")
            state = "stopped" if self.scheduler.stopped else "incomplete" if self.failures else "done"
            self._write_manifest(state)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | asyncio.CancelledError)
            with suppress(RlaifError, OSError):  # what still arrives belongs into the manifest
                await self.scheduler.close()
            with suppress(OSError):  # what stopped the run is the thing to report, not that the disk is full here too
                self._write_manifest("interrupted" if interrupted else "failed")
            raise
        finally:
            watching.cancel()
            self.events.write("ended", state=self.state, calls=self._calls())
            await self.close()
        return state

    async def _watch(self) -> None:
        """Show how fast the servers are asked, and write it down now and then."""
        priced = any(isinstance(spec, OpenAIModel) and spec.price for spec in self.pipeline.models.values())
        meter, written = Meter(self.ledger, self.pipeline.budget, priced), time.monotonic()
        while True:
            await asyncio.sleep(PULSE)
            pulse = meter.read(list(self.scheduler.traffic.endpoints.values()))
            if pulse is None:
                continue
            self.progress.pulse(pulse.text())
            if time.monotonic() - written >= EVERY:
                written = time.monotonic()
                self.events.write("progress", **pulse._asdict(), failures=self.failures)

    def _has_rows(self, step: Step) -> bool:
        return step.source is not None and len(self.rows.get(step.source.name, ())) > 0

    @contextmanager
    def _interruptible(self, kind: str) -> Iterator[None]:
        """The first Ctrl-C in a row stage asks nothing more and ends with what is finished; the second leaves at once.

        Elsewhere the first one leaves: a trainer goes on from its checkpoint. A pair stage never gives the event loop
        its turn, so there the signal itself has to break in.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        gently = kind in (*ROW_STAGES, "measure")

        def interrupt() -> None:
            if gently and self.scheduler.stopped is None:
                self.scheduler.stop(Stopped("interrupted", cause="interrupted"))
                self.progress.note("interrupted: what is on its way is waited for; again to leave at once")
            else:
                task.cancel()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            if kind == "pair":
                signal.signal(number, signal.default_int_handler)
            else:
                loop.add_signal_handler(number, interrupt)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    async def _gates(self, upcoming: Sequence[Step]) -> None:
        """Audit the judges of stages that require it, as soon as they exist. Raises WorkError for one that fails."""
        for step in upcoming:
            stage = step.stage
            if not isinstance(stage, CompareStage | RateStage) or stage.require is None or step.name in self.audits:
                continue
            if not all(name in self.engines for name, _ in stage.named_models()):
                continue
            STAGE.set(f"{step.name} audit")
            self.progress.begin(f"audit of {step.name}", "pairs")
            found = await gate(
                stage, self.inputs.judge_of(step.name), self.specs, self.settings, self.scheduler, self.pipeline.seed
            )
            self.audits[step.name] = found
            short = unmet(stage.require, found)
            self.progress.end(f"audit of {step.name}", "; ".join(short) or "passed")
            if short:
                names = [name for name, _ in stage.named_models()]
                trained = next((name for name in names if name not in self.pipeline.models), None)
                see = f"{self.pipeline.document.path} --stage {step.name}"
                if trained is not None:
                    see = f"{self.folder.model(trained)} --method {stage.kind}"
                problem = f"the judge of {step.name!r} falls short: {'; '.join(short)}"
                raise WorkError(problem, fix=f"see why: rlaif audit {see}")

    async def _let_go(self, steps: Sequence[Step]) -> None:
        """Free the memory of models that these steps do not ask: vLLM fills a GPU, and training needs one.

        A model that is asked again is loaded again.
        """
        trains = steps[0].stage.kind == "train"
        asked = {name for step in steps for name, key in step.stage.named_models() if not trains or key[-1] == "reward"}
        for name, engine in self.engines.items():
            if name not in asked and isinstance(self.specs[name], LocalModel if trains else VLLMModel):
                await engine.close()

    async def close(self) -> None:
        await self.scheduler.close()
        for engine in self.engines.values():
            await engine.close()
        await self.wires.close()
        self.store.close()
        self.folder.close()

    def _noted(self, note: str) -> None:
        if note not in self.inputs.notes:
            self.inputs.notes.append(note)
            self.progress.warn(note)

    def _check_disk(self) -> None:
        """Before the first call: a disk that is as good as full is an error, one that may become so a note."""
        rows = sum(len(prompts) for prompts in self.inputs.prompts.values())
        need = rows * sum(step.stage.kind in ROW_STAGES for step in self.pipeline.steps) * BYTES_A_ROW
        free = min(room(self.folder.path), room(self.store.path.parent))
        told = f"{free / 2**20:,.0f} MB are free where {str(self.folder.path)!r} lies"
        if free < LEAST_ROOM:
            raise WorkError(f"{told}, too little to begin", fix="free some space, or give another folder with --out")
        if free < need:
            self._noted(f"{told}, and the run may write {need / 2**20:,.0f} MB")

    def _remove_leftovers(self) -> None:
        """Remove what an earlier form of this pipeline made and this one does not: it must not pass for its work.

        Only what the manifest says a run made: a person may keep files beside it.
        """
        expected = {f"stages/{self._file(step).name}" for step in self.pipeline.steps}
        expected |= {
            f"dataset/{dataset_name(step.name, shape)}"
            for step in self.pipeline.steps
            for shape in SHAPES.get(step.stage.kind, ())
        }
        for name in sorted(made_before(self._before) - expected):
            if name.startswith("dataset/"):
                remove_dataset(self.folder.path / name)
            else:
                for path in (self.folder.path / name, (self.folder.path / name).with_suffix(".partial.jsonl")):
                    path.unlink(missing_ok=True)
        self._made = expected

    def _note_inputs(self) -> None:
        for name, prompts in self.inputs.prompts.items():
            self.digests[f"prompts {name}"] = _digest_of_ids(prompts)
        for name, found in self.inputs.conversations.items():
            self.digests[f"data {name}"] = digest([[[m.role, m.content] for m in c.messages] for c in found])
        for name, stated in self.inputs.preferences.items():
            self.digests[f"data {name}"] = digest([p.id for p in stated])
        for name, rows in self.inputs.rows.items():
            self.digests[f"data {name}"] = _digest_of_rows(rows)
        for step in self.pipeline.steps:
            self.digests |= {f"{what} of {step.name}": value for what, value in self._made_with(step.name).items()}
        for name, spec in self.pipeline.models.items():
            if isinstance(spec, LocalModel):
                self.digests[f"model {name}"] = self.engines[name].identity

    def _made_with(self, name: str) -> dict[str, str]:
        """Digests of what the stage `name` judges or rewrites by."""
        if judge := self.inputs.judges.get(name):
            return {f"rubric {judge.rubric.name}": judge.rubric.digest, "rating template": judge.template.digest}
        if mixture := self.inputs.mixtures.get(name):
            return {"principles": digest(mixture._asdict())}
        if comparer := self.inputs.comparers.get(name):
            constitution, templates = comparer.constitution, {"comparison template": comparer.template.digest}
        elif reviser := self.inputs.revisers.get(name):
            constitution = reviser.constitution
            templates = {
                "critique template": reviser.critique.digest,
                "revision template": reviser.revision.digest,
            }
        else:
            return {}
        return {f"constitution {constitution.name}": constitution.digest} | templates

    def _all_made_with(self, step: Step) -> dict[str, str]:
        """Digests of what the rows that a step reads were made by: of the nearest stage, then of those before it."""
        assert step.source is not None
        made, before = self._made_with(step.source.name), step.source.source
        while before is not None:
            made |= {f"{what} of {before.name}": value for what, value in self._made_with(before.name).items()}
            before = before.source
        return made

    def _file(self, step: Step) -> Path:
        return self.folder.stage(step.number, step.name)

    def _failed_share(self) -> float:
        """The largest share of rows that failed in a row stage."""
        return max((counts.failed / counts.rows for counts in self._counts.values() if counts.rows), default=0.0)

    # ------------------------------------------------------------ table stages

    async def _table(self, step: Step) -> None:
        stage, began = step.stage, time.monotonic()
        STAGE.set(step.name)
        self.progress.begin(step.name, step.stage.kind)
        if isinstance(stage, PairStage):
            record = self._pair(step, stage)
        elif isinstance(stage, TrainStage):
            record = await self._train(step, stage)
        elif isinstance(stage, MeasureStage):
            record = await self._measure(step, stage)
        elif isinstance(stage, ScoreStage):
            record = await self._score(step, stage)
        elif isinstance(stage, EloStage):
            record = self._elo(step, stage)
        else:
            record = self.inputs.records[step.name]
        record.seconds = time.monotonic() - began
        self.records.append(record.checked())
        self.events.write("stage", **record.as_dict())
        self.progress.end(step.name, record.outcome())

    async def _score(self, step: Step, stage: ScoreStage) -> StageRecord:
        assert step.source is not None
        rows, writer = self.source_rows(step), RowWriter(Row, self._file(step))
        counts = self._counts[step.name] = RowCounts("score")
        self.progress.total(len(rows))
        async for row in score(rows, stage, self.engines):
            writer.append(row)
            counts.add(row, row.failure is not None)
            self.progress.advance(row.cause)
        self.rows[step.name] = writer.finish()
        return self._row_record(step, counts, counts.failed_before, len(rows))

    def _elo(self, step: Step, stage: EloStage) -> StageRecord:
        assert step.source is not None
        rows = self.rows[step.source.name]
        found = strengths(rows, stage.prior)
        write_json(self.folder.path / "report" / f"{step.name}.json", found.facts)
        return StageRecord(
            step.name,
            "elo",
            step.source.name,
            len(rows),
            found.rows,
            +Counter({"no comparison": len(rows) - found.rows}),
            file=f"report/{step.name}.json",
            facts=found.facts,
        )

    def _pair(self, step: Step, stage: PairStage) -> StageRecord:
        assert step.source is not None
        rows, source = self.rows[step.source.name], step.source
        counts, pairing = self._counts.get(source.name), self.pairing(step)
        weights = pairing.weights if pairing.basis == "ratings" else None
        keep = length_balance(rows, pairing) if stage.balance else None
        writer, margins, dropped = RowWriter(Preference, self._file(step)), array("d"), Counter[str]()

        def pieces() -> Iterator[Piece]:
            for row in rows:
                made = preferences_of(row, pairing, dropped, keep)
                for preference in made:
                    writer.append(preference)
                    margins.append(preference.margin)
                yield from preference_pieces(row, made, weights)
            self.pairs[step.name] = writer.finish()  # before the data sets take their places

        failed = {"failed": counts.failed} if counts and counts.failed else {}
        self.digests |= write_datasets(
            self.folder.path / "dataset", step.name, "pair", len(rows), pieces(),
            {"ultrafeedback": failed, "preference": dropped, "sft": dropped}, self._named(counts),
            self._all_made_with(step),
        )  # fmt: skip
        facts: dict[str, Any] = {
            "rule": pairing.rule,
            "preferences": len(margins),
            "mean_margin": round(fmean(margins), 4) if margins else None,
            "basis": pairing.basis,
            **({"weights": dict(pairing.weights)} if pairing.weights else {}),
        }
        if margins and (within := noise(rows, pairing)) is not None:
            near = sum(margin <= within for margin in margins) / len(margins)
            facts |= {"noise": round(within, 4), "near_ties": round(near, 4)}
            if near > NEAR_TIES:
                self._noted(
                    f"{step.name}: {near:.0%} of the margins are within the judge's noise ({within:.2g}), which cannot "
                    "tell such candidates apart: sample warmer or from more models, or set `min_margin`"
                )
        return StageRecord(
            step.name,
            "pair",
            source.name,
            len(rows),
            len(rows) - dropped.total(),
            dropped,
            file=f"stages/{self._file(step).name}",
            facts=facts,
        )

    def pairing(self, step: Step) -> Pairing:
        """How the stage pairs: as it says, or as fits what it reads."""
        assert step.source is not None and isinstance(step.stage, PairStage)
        source, judge = step.source.stage, self.inputs.judges.get(step.source.name)
        stated = self.inputs.stated.get(step.source.name)
        rule = step.stage.rule or (stated.rule if stated else None)
        if rule is None:
            one = isinstance(source, CompareStage) and source.pairs == "one"
            rule = "compared" if one or isinstance(source, PersonStage) else "zephyr"
        if stated is not None:
            return Pairing(rule, stated.basis, stated.weights, step.stage.min_margin)
        basis, weights = BASES[source.kind], judge.rubric.weights() if judge else {}
        judged_by = None
        if isinstance(source, RateStage) and source.answers == "expected":
            basis, judged_by = "scores", source.model
        if isinstance(source, ScoreStage):
            judged_by = source.judge
        if isinstance(source, VerifyStage):
            judged_by = VERIFIER
        if isinstance(source, PersonStage) and not (labels := self.inputs.labels[step.source.name]).pairs:
            rule, basis = step.stage.rule or "zephyr", "ratings"
            weights = dict.fromkeys(labels.aspects(), 1.0)
        return Pairing(rule, basis, weights, step.stage.min_margin, judged_by)

    def preferences_of(self, row: Row, step: Step, dropped: Counter[str]) -> list[Preference]:
        """A row's preferences before any balancing, which needs all rows."""
        return preferences_of(row, self.pairing(step), dropped)

    def _named(self, counts: RowCounts | None) -> dict[str, ModelSpec]:
        """Models of this pipeline that rows name; what a file names is nobody here, and so are code and people."""
        return {name: self.specs[name] for name in sorted(counts.models if counts else ()) if name in self.specs}

    async def _train(self, step: Step, stage: TrainStage) -> StageRecord:
        assert step.source is not None
        reads = " + ".join(source.name for source in step.sources)
        survey = self.survey(step)
        job, reward = self.job(step, stage, survey)
        record = finished(job.out, job.key)
        if record is None:
            try:
                learnt = (example for source in step.sources for example in self._examples(source.name))
                record = await asyncio.to_thread(training.train, job, learnt, self._on_step, reward)
            except asyncio.CancelledError:
                self._interrupted.set()  # the thread cannot be cancelled; it looks after each step
                raise
        else:
            self.progress.note("unchanged, not trained again")
        self.use_trained(stage)
        self.digests[f"model {stage.trainer.name}"] = self.engines[stage.trainer.name].identity
        dropped = Counter(record["dropped"]) + survey.left_out
        facts = {"steps": record["steps"], "trained_seconds": round(record["seconds"], 2), "cut": record["cut"]}
        metrics = {name: round(value, 6) for name, value in record["metrics"].items()}
        return StageRecord(
            step.name,
            "train",
            reads,
            survey.given,
            record["kept"],
            dropped,
            facts=facts | {"metrics": metrics},
        )

    def survey(self, step: Step, *, complete: bool = True) -> Survey:
        """What a train stage learns from, counted and digested. Raises WorkError for a source that gave nothing.

        With `complete` false that is no error: more may come.
        """
        assert isinstance(step.stage, TrainStage)
        survey = Survey(step.stage.trainer.unused)
        for source in step.sources:  # each: a model named for its revisions must not be trained on all but them
            if not survey.add(self._examples(source.name)) and complete:
                raise WorkError(
                    f"stage {source.name!r} gave nothing to train {step.name!r} on",
                    fix="`rlaif status` counts what was dropped and why",
                )
        return survey

    def _examples(self, name: str) -> Iterator[Example]:
        read = training.examples_read(self.inputs, name)
        if read is not None:
            return read
        return of_preferences(self.pairs[name]) if name in self.pairs else of_revisions(self.rows[name])

    def job(self, step: Step, stage: TrainStage, survey: Survey) -> tuple[Job, RewardSource | None]:
        """The training of a stage, with its key, and what rewards it."""
        base, template = self.specs[stage.trainer.base], self.inputs.chat_templates.get(step.name)
        assert isinstance(base, LocalModel)
        out, reward = self.folder.model(stage.trainer.name), self._reward(step, stage)
        return training.job_of(stage.trainer, base, out, survey, template, reward), reward

    def _reward(self, step: Step, stage: TrainStage) -> RewardSource | None:
        settings = stage.trainer
        if not isinstance(settings, PPOSettings):
            return None
        if settings.reward is None:
            prompts = (prompt for source in step.sources for prompt in self.inputs.prompts[source.name])
            return training.reward_by_checks(self.inputs.checks[step.name], prompts)
        spec = self.specs[settings.reward]
        assert isinstance(spec, LocalModel)
        return training.reward_of(spec, self.engines[settings.reward], asyncio.get_running_loop())

    def use_trained(self, stage: TrainStage) -> None:
        """From here on the trained model is a model like any other."""
        settings = stage.trainer
        parent = self.specs[settings.base]
        self._add_model(settings.name, trained_spec(self.folder.model(settings.name), parent, stage.method))
        self.parents[settings.name] = settings.base

    def _on_step(self, values: dict[str, float]) -> None:
        if self._interrupted.is_set():
            raise KeyboardInterrupt
        self.progress.metrics(values)

    async def _measure(self, step: Step, stage: MeasureStage) -> StageRecord:
        prompts, judge = list(self.inputs.prompts[step.name]), self.inputs.judges.get(step.name)
        key, path = self.measure_key(step, stage), self.folder.path / "report" / "summary.json"
        found = read_json(path)
        if found is not None and found.get("key") == key:
            self.progress.note("unchanged, not measured again")
            self.summary = found
        else:
            self.progress.total(len(prompts) * (len(stage.models) + (stage.best_of is not None)))
            figures, failures = await measure(
                stage, prompts, self.engines, self.settings, self.parents, self.scheduler, judge, truth(stage),
                self.pipeline.seed, self.progress.advance,
            )  # fmt: skip
            for prompt, error in failures:
                self._fail(prompt, error)
            seconds = {r.name: round(r.seconds, 2) for r in self.records if r.seconds is not None}
            self.summary = {"run": self.pipeline.name} | figures | {"calls": self._calls(), "seconds": seconds}
            if not failures:  # an incomplete measure is shown, and made again by the next run
                self.summary["key"] = key
            write_json(path, self.summary)
        return self.inputs.records[step.name]

    def measure_key(self, step: Step, stage: MeasureStage) -> str:
        """The digest of all that determines the measure's figures."""
        judge = self.inputs.judges.get(step.name)
        sampled = {*stage.models, *([stage.best_of.model] if stage.best_of else [])}
        asked = {name: stage.sampling.resolved(self.pipeline.seed, self.settings[name]) for name in sorted(sampled)}
        if stage.rate:
            rating = stage.rate.sampling.resolved(self.pipeline.seed, self.settings[stage.rate.model])
            asked |= {"judge": rating}
        models = {*sampled, *([stage.rate.model] if stage.rate else []), *([stage.reward] if stage.reward else [])}
        models |= {parent for name, parent in self.parents.items() if name in models}
        told = judge is not None and any(aspect.knowledge for aspect in judge.rubric.aspects)
        known = {"known": [list(p.reference) for p in self.inputs.prompts[step.name]]} if told else {}
        return digest(
            known
            | {
                "version": MEASURE_VERSION,
                "stage": stage.model_dump(mode="json", exclude={"name", "source"}),
                "prompts": [p.id for p in self.inputs.prompts[step.name]],
                "models": {name: self.engines[name].identity for name in sorted(models)},
                "asked": {name: sampling.model_dump(mode="json") for name, sampling in asked.items()},
                "rubric": judge.rubric.digest if judge else None,
                "template": judge.template.digest if judge else None,
                "versions": {"rlaif": rlaif.__version__, **versions(*PACKAGES, "scipy")},
            }
        )

    # ------------------------------------------------------------ row stages

    async def _stream(self, steps: Sequence[Step]) -> None:
        """Send every prompt through the row stages `steps`, a bounded number at a time."""
        began, title = time.monotonic(), " -> ".join(step.name for step in steps)
        rows = self.source_rows(steps[0])
        self.progress.begin(title, "rows", total=len(rows))
        writers = {step.name: RowWriter(Row, self._file(step)) for step in steps}
        for step in steps:
            judge = self.inputs.judges.get(step.name)
            self._counts[step.name] = RowCounts(step.stage.kind, tuple(judge.rubric.weights()) if judge else ())
        todo = enumerate(rows)  # shared by the workers: each takes the next row that nobody has taken

        async def worker() -> None:
            for index, row in todo:
                if self.scheduler.stopped:
                    return
                ROW.set(index)
                for step in steps:
                    failed_before = row.failure is not None
                    if not failed_before:
                        try:
                            row = await self.row(step, row, self.scheduler)
                        except Stopped:
                            return  # the row is asked for again by the next run, which finds what of it was paid for
                    self._counts[step.name].add(row, failed_before)
                    writers[step.name].append(row, index)
                self.progress.advance(row.cause)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._window(steps), len(rows))):
                    group.create_task(worker())
        except* (RlaifError, OSError) as errors:
            for writer in writers.values():
                writer.close()
            raise _first(errors) from None
        assert steps[0].source is not None
        source = self._counts.get(steps[0].source.name)
        entered, failed_before = len(rows), source.failed if source else 0
        for step in steps:
            counts, done = self._counts[step.name], writers[step.name].finish()
            self.rows[step.name] = done
            if step.stage.kind == "revise":
                dropped = counts.dropped + Counter({"failed": counts.failed})
                self.digests |= write_datasets(
                    self.folder.path / "dataset", step.name, "revise", len(done),
                    revision_pieces(done), {"sft": +dropped}, self._named(counts), self._made_with(step.name),
                )  # fmt: skip
            record = self._row_record(step, counts, failed_before, entered)
            record.seconds = time.monotonic() - began if step is steps[-1] else None
            self.records.append(record.checked())
            failed_before, entered = counts.failed, counts.rows
        ended = self.records[-len(steps) :]
        for record in ended:
            self.events.write("stage", **record.as_dict(), calls=self._calls(record.name))
        if why := self.scheduler.stopped:
            self.progress.note(f"stopped: {why.cause}")
        for name in {step.name for step in steps} & self.inputs.labels.keys():
            if missed := self.inputs.labels[name].unused():
                self._noted(f"{name}: {missed:,} of {self.inputs.labels[name].total:,} labels name no candidate here")
        self.progress.end(title, "; ".join(f"{r.name} {r.outcome()}" for r in ended))

    def source_rows(self, step: Step) -> Rows:
        """The rows a row stage starts from: those of an earlier row stage, or new ones for its prompts."""
        assert step.source is not None
        if step.source.name in self.rows:
            return self.rows[step.source.name]
        return NewRows(self.inputs.prompts[step.source.name])

    def _row_record(self, step: Step, counts: RowCounts, failed_before: int, entered: int) -> StageRecord:
        """A row counts as failed in the stage it failed in, and only there: `failed_before` of the rows that entered
        had failed already, some of which a stopped run did not come to."""
        missed = (entered - counts.rows) - (failed_before - counts.failed_before)
        dropped = counts.dropped + Counter({"failed": counts.failed - counts.failed_before, "not reached": missed})
        return StageRecord(
            step.name,
            step.stage.kind,
            step.source.name if step.source else None,
            entered - failed_before,
            counts.out,
            dropped,
            file=f"stages/{self._file(step).name}",
            facts=counts.facts(),
        )

    async def row(self, step: Step, row: Row, sampler: Sampler) -> Row:
        """One row through one stage. What befalls this row alone is written on it; what befalls all is raised."""
        stage, seed = step.stage, self.pipeline.seed
        STAGE.set(step.name)
        try:
            if isinstance(stage, SampleStage):
                mixture = self.inputs.mixtures.get(step.name)
                return await sample(row, stage, self.settings, sampler, seed, mixture)
            assert isinstance(stage, RateStage | ReviseStage | CompareStage | RankStage | VerifyStage | PersonStage)
            if step.source is not None and step.source.name in self.inputs.stated:
                row = row.model_copy(update=UNJUDGED)  # what the file states is not this judge's
            if isinstance(stage, CompareStage):
                return await compare(row, stage, self.inputs.comparers[step.name], self.settings, sampler, seed)
            if isinstance(stage, VerifyStage):
                return verified(row, self.inputs.checks[step.name], stage.keep)
            if isinstance(stage, PersonStage):
                return judged_by_people(row, self.inputs.labels[step.name])
            settings = self.settings[stage.model]
            if isinstance(stage, RankStage):
                return await rank(row, stage, self.inputs.comparers[step.name], settings, sampler, seed)
            if isinstance(stage, ReviseStage):
                return await revise(row, stage, self.inputs.revisers[step.name], settings, sampler, seed)
            judge = self.inputs.judges[step.name]
            return await rate(row, stage, judge.rubric, judge.template, settings, sampler, seed)
        except EngineError as error:
            if error.fatal or isinstance(error, Stopped):
                raise
            self._fail(row.prompt, error)
            return row.model_copy(update={"failure": str(error), "cause": error.cause})

    def _fail(self, prompt: Prompt, error: EngineError) -> None:
        group = self.failures.setdefault(error.cause, {"count": 0, "example": str(error), "row": prompt.id})
        group["count"] += 1

    def _window(self, steps: Sequence[Step]) -> int:
        """Rows in flight: enough to fill every server's slots, or an in-process batch several times."""
        names = {name for step in steps for name, _ in step.stage.named_models()}
        local = [spec for name in names if isinstance(spec := self.specs[name], TransformersModel | VLLMModel)]
        batch = max((4 * spec.batch_size for spec in local), default=0)
        urls = {u for name in names if isinstance(spec := self.specs[name], OpenAIModel) for u in spec.base_urls}
        return max(batch, sum(self.concurrency[url] for url in urls), 16)

    # ------------------------------------------------------------ the manifest

    def _calls(self, stage: str | None = None) -> dict[str, Any]:
        """What each model was asked. `cost` is of this run's calls, `cost_of_data` of all calls the data rests on."""
        calls: dict[str, Any] = {}
        for name, tally in self.ledger.by_model(stage).items():
            read, written = tally.prompt_tokens, tally.completion_tokens
            all_read, all_written = read + tally.cached_prompt_tokens, written + tally.cached_completion_tokens
            calls[name] = {
                "sent": tally.sent,
                "cached": tally.cached,
                "failed": tally.failed,
                "causes": dict(tally.causes),
                "retries": dict(tally.retries),
                "cut_at_max_tokens": tally.cut,
                "prompt_tokens": read,
                "completion_tokens": written,
                "cost": _rounded(self.ledger.cost(name, read, written)),
                "cost_of_data": _rounded(self.ledger.cost(name, all_read, all_written)),
            }
        return calls

    def _told(self, record: StageRecord) -> dict[str, Any]:
        """A stage's record with what its calls cost: the stage, a row of it, and a preference that was kept of all."""
        told = record.as_dict()
        if record.kind in ROW_STAGES:
            calls = self._calls(record.name)
            told["calls"] = {name: {"sent": call["sent"], "cached": call["cached"]} for name, call in calls.items()}
            costs = [call["cost_of_data"] for call in calls.values() if call["cost_of_data"] is not None]
            if costs:
                told["cost"] = round(sum(costs), 6)
                told["cost_per_row"] = round(sum(costs) / record.out, 6) if record.out else None
        elif kept := record.facts.get("preferences"):
            costs = [c["cost_of_data"] for c in self._calls().values() if c["cost_of_data"] is not None]
            if costs:
                told["cost_per_preference"] = round(sum(costs) / kept, 6)
        return told

    def _write_manifest(self, state: str) -> None:
        self.state = state
        probed = {n: c for n, e in self.engines.items() if (c := getattr(e, "capabilities", None))}
        self.folder.write_manifest(
            {
                "name": self.pipeline.name,
                "pipeline": self.pipeline.document.path,
                "state": state,
                "started": self._started,
                "seconds": round(time.time() - self._started, 2),
                "versions": {"rlaif": rlaif.__version__, **versions("datasets", "openai", *PACKAGES)},
                "made": sorted(self._made),
                "digests": dict(sorted(self.digests.items())),
                "stages": [self._told(record) for record in self.records],
                "calls": self._calls(),
                "prices": self._prices,
                "notes": self.inputs.notes,
                "capabilities": self._before.get("capabilities", {}) | probed,
                "failures": self.failures,
            }
            | ({"audits": self.audits} if self.audits else {})
        )


def _digest_of_rows(rows: Iterable[Row]) -> str:
    total = hashlib.sha256()
    for row in rows:
        total.update(digest(row.model_dump(mode="json", exclude_defaults=True)).encode())
    return total.hexdigest()[:32]


def _rounded(cost: float | None) -> float | None:
    return None if cost is None else round(cost, 6)


def _digest_of_ids(prompts: Iterable[Prompt]) -> str:
    total = hashlib.sha256()
    for prompt in prompts:
        total.update(prompt.id.encode())
    return total.hexdigest()[:32]


def _groups(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """The steps in order, row stages that read one another in sequence together."""
    group: list[Step] = []
    for step in steps:
        if group and not (step.stage.kind in ROW_STAGES and step.source is group[-1]):
            yield group
            group = []
        if group or step.stage.kind in ROW_STAGES:
            group.append(step)
        else:
            yield [step]
    if group:
        yield group


def _first(errors: BaseExceptionGroup[RlaifError | OSError]) -> RlaifError | OSError:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
