"""Runs the stages of a pipeline file in order.

Row stages in sequence stream: one coroutine per prompt goes through all of them, a bounded number at a time, so judging
starts while sampling goes on. A table stage (pair, train, measure) waits for all rows. Whatever a stage was given and
made is digested, and a trainer or a measure whose inputs are unchanged is not run again; the calls of row stages come
from the call store.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

import rlaif
from rlaif.config import (
    DataStage,
    FileStage,
    MeasureStage,
    ModelSpec,
    OpenAIModel,
    PairStage,
    Pipeline,
    PromptsStage,
    Rater,
    RateStage,
    SampleStage,
    SamplingSettings,
    Step,
    TrainStage,
    TransformersModel,
)
from rlaif.engines.protocol import Engine
from rlaif.engines.scheduler import Sampler, Scheduler
from rlaif.errors import EngineError, RlaifError
from rlaif.formats import Conversation, Rows, read_conversations, read_hub, read_prompts
from rlaif.generate.pairing import Pairs, pair
from rlaif.generate.sampling import sample
from rlaif.judges.rating import OFFERED, REQUIRED, rate
from rlaif.measure import Judge, Truth, measure
from rlaif.pipeline.datasets import write_datasets
from rlaif.pipeline.engines import open_engine, trained_spec
from rlaif.pipeline.folder import RowWriter, RunFolder, read_json, read_text, write_json, write_text
from rlaif.pipeline.progress import Progress
from rlaif.records import Preference, Prompt, Row, digest, split_of
from rlaif.resources import find
from rlaif.rubric import read_rubric
from rlaif.store import CallStore
from rlaif.templates import Template

TRAINING_PACKAGES = ("torch", "transformers", "trl", "accelerate")  # a trained model depends on them; part of its key


@dataclass
class StageRecord:
    """What the manifest says of one stage. Counts are in prompts (or conversations): in = out + dropped, checked."""

    name: str
    kind: str
    reads: str | None
    given: int
    out: int
    dropped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def checked(self) -> StageRecord:
        if self.given != self.out + self.dropped.total():
            raise AssertionError(f"stage {self.name}: {self.given} in, {self.out} out, {dict(self.dropped)} dropped")
        return self

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "from": self.reads,
            "in": self.given,
            "out": self.out,
            "dropped": dict(sorted(self.dropped.items())),
            "seconds": round(self.seconds, 2),
        } | self.facts


class Run:
    """One execution. Holds what the stages have made so far; `execute` runs them."""

    def __init__(self, pipeline: Pipeline, folder: RunFolder, store: CallStore, progress: Progress) -> None:
        self.pipeline, self.folder, self.store, self.progress = pipeline, folder, store, progress
        self.specs: dict[str, ModelSpec] = dict(pipeline.models)
        self.engines: dict[str, Engine] = {}
        self.settings: dict[str, SamplingSettings] = {}
        self.parents: dict[str, str] = {}
        self.concurrency = {n: s.concurrency for n, s in pipeline.models.items() if isinstance(s, OpenAIModel)}
        self.scheduler = Scheduler(store, self.engines, self.concurrency)
        self.sampler: Sampler = self.scheduler  # what the row stages ask; the plan puts a dry one here
        self.prompts: dict[str, list[Prompt]] = {}
        self.conversations: dict[str, list[Conversation]] = {}
        self.rows: dict[str, list[Row]] = {}
        self.pairs: dict[str, Pairs] = {}
        self.judges: dict[str, Judge] = {}
        self.records: list[StageRecord] = []
        self.failures: dict[str, dict[str, Any]] = {}
        self.digests: dict[str, str] = {}
        self.summary: dict[str, Any] | None = None
        self._interrupted = threading.Event()
        self.started = time.time()
        for name, spec in pipeline.models.items():
            self._add_model(name, spec)

    def _add_model(self, name: str, spec: ModelSpec) -> None:
        self.specs[name] = spec
        self.engines[name] = open_engine(name, spec)
        self.settings[name] = spec.sampling

    async def execute(self) -> str:
        """Run every stage; returns the state, `done` or `incomplete`. What was finished is kept whatever happens."""
        write_text(self.folder.path / "pipeline.yaml", yaml.safe_dump(self.pipeline.resolved(), sort_keys=False))
        state = "failed"
        self._write_manifest("running")
        try:
            steps = list(self.pipeline.steps)
            while steps:
                stream = _leading_row_steps(steps)
                await (self._stream(stream) if stream else self._table(steps[0]))
                del steps[: len(stream) or 1]
                self._write_manifest("running")
            state = "incomplete" if self.failures else "done"
        except (KeyboardInterrupt, asyncio.CancelledError):
            state = "interrupted"
            raise
        finally:
            self._write_manifest(state)
            await self.close()
        return state

    async def close(self) -> None:
        for engine in self.engines.values():
            await engine.close()
        self.store.close()
        self.folder.close()

    # ------------------------------------------------------------ table stages

    async def _table(self, step: Step) -> None:
        stage, began = step.stage, time.monotonic()
        self.progress.begin(step.name, step.stage.kind)
        if isinstance(stage, DataStage):
            record = self.read_data(step, stage)
        elif isinstance(stage, PromptsStage):
            record = self.read_prompts(step, stage)
        elif isinstance(stage, PairStage):
            record = self._pair(step, stage)
        elif isinstance(stage, TrainStage):
            record = await self._train(step, stage)
        else:
            assert isinstance(stage, MeasureStage)
            record = await self._measure(step, stage)
        record.seconds = time.monotonic() - began
        self.records.append(record.checked())
        self.progress.end(step.name, _outcome(record))

    def read_data(self, step: Step, stage: DataStage) -> StageRecord:
        result = read_conversations(_source(stage))
        kept, dropped = _take(result.items, stage.take, lambda c: c.split != "held-out", "held-out")
        self.conversations[step.name] = kept
        self.digests[f"data {step.name}"] = digest([[[m.role, m.content] for m in c.messages] for c in kept])
        dropped.update(result.dropped)
        return StageRecord(step.name, "data", None, len(kept) + dropped.total(), len(kept), dropped)

    def read_prompts(self, step: Step, stage: PromptsStage) -> StageRecord:
        result = read_prompts(_source(stage), column=stage.column)
        kept, dropped = _take(
            result.items, stage.take, lambda p: stage.split in (p.split, "all"), f"not in the {stage.split} split"
        )
        if not kept:
            raise self.pipeline.error(
                step, f"no prompt of {stage.path or stage.hub} is in the {stage.split} split", "path"
            )
        self.prompts[step.name] = kept
        self.digests[f"prompts {step.name}"] = digest([p.id for p in kept])
        dropped.update(result.dropped)
        return StageRecord(step.name, "prompts", None, len(kept) + dropped.total(), len(kept), dropped)

    def _pair(self, step: Step, stage: PairStage) -> StageRecord:
        assert step.source is not None
        rows, judge = self.rows[step.source.name], self.judges[step.source.name]
        pairs = pair(rows, stage.rule, judge.rubric.weights(), stage.min_margin)
        self.pairs[step.name] = pairs
        RowWriter(self.folder.stage(step.number, step.name)).finish(pairs.preferences)
        self.digests |= write_datasets(self.folder.path / "dataset", step.name, self.specs, rows, pairs, judge)
        margins = [p.margin for p in pairs.preferences]
        facts = {"rule": stage.rule, "mean_margin": round(sum(margins) / len(margins), 4) if margins else None}
        return StageRecord(
            step.name, "pair", step.source.name, len(rows), len(pairs.preferences), Counter(pairs.dropped), facts=facts
        )

    async def _train(self, step: Step, stage: TrainStage) -> StageRecord:
        assert step.source is not None
        out = self.folder.model(stage.trainer.name)
        given = self.training_data(step, stage)
        if not given:
            raise self.pipeline.error(step, f"stage {step.source.name!r} gave nothing to train on")
        key, record_path = self.training_key(stage, given), out / "rlaif.json"
        finished = read_json(record_path)
        if finished is None or finished["key"] != key:
            try:
                finished = await asyncio.to_thread(self._fit, stage, given, out, key)
            except asyncio.CancelledError:
                self._interrupted.set()  # the thread cannot be cancelled; it looks after each step
                raise
            write_json(record_path, finished)
        else:
            self.progress.note("unchanged, not trained again")
        self.use_trained(stage)
        dropped: Counter[str] = Counter(finished["dropped"])
        facts = {k: finished[k] for k in ("steps", "trained_seconds", "metrics", "cut", "validation")}
        return StageRecord(
            step.name, "train", step.source.name, len(given), len(given) - dropped.total(), dropped, facts=facts
        )

    def training_data(self, step: Step, stage: TrainStage) -> Sequence[Conversation | Preference]:
        assert step.source is not None
        return self.conversations[step.source.name] if stage.sft else self.pairs[step.source.name].preferences

    def training_key(self, stage: TrainStage, given: Sequence[Conversation | Preference]) -> str:
        """The digest of all that determines the trained model."""
        return digest(
            {
                "settings": stage.trainer.model_dump(mode="json"),
                "base": self.engines[stage.trainer.base].identity,
                "data": digest([item.model_dump(mode="json") for item in given]),
                "template": _chat_template(stage),
                "versions": _versions(*TRAINING_PACKAGES) | {"rlaif": rlaif.__version__},
            }
        )

    def use_trained(self, stage: TrainStage) -> None:
        """From here on the trained model is a model like any other."""
        settings = stage.trainer
        self._add_model(settings.name, trained_spec(self.folder.model(settings.name), self.specs[settings.base]))
        self.parents[settings.name] = settings.base
        self.digests[f"model {settings.name}"] = self.engines[settings.name].identity

    def _fit(
        self, stage: TrainStage, given: Sequence[Conversation | Preference], out: Path, key: str
    ) -> dict[str, Any]:
        """Train one model; runs in a worker thread. A partial folder of other inputs is thrown away."""
        partial = out.with_name(out.name + ".partial")
        if partial.exists() and read_text(partial / "key") != key:
            shutil.rmtree(partial)
        write_text(partial / "key", key)
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        base = self._base_path(stage.trainer.base)
        if stage.sft:
            from rlaif.train.sft import train_sft

            split = _by_split((c.prompt.id, c.messages) for c in given if isinstance(c, Conversation))
            result = train_sft(
                stage.sft, base, split["train"], split["validation"], out, self._on_step, _chat_template(stage)
            )
        else:
            from rlaif.train.dpo import PreferencePair, train_dpo

            assert stage.dpo is not None
            split = _by_split(
                (p.prompt.id, PreferencePair(p.prompt.messages, p.chosen.completion.text, p.rejected.completion.text))
                for p in given
                if isinstance(p, Preference)
            )
            result = train_dpo(stage.dpo, base, split["train"], split["validation"], out, self._on_step)
        held_out = {"held-out": len(split["held-out"])} if split["held-out"] else {}
        return {
            "key": key,
            "steps": result.steps,
            "trained_seconds": round(result.seconds, 2),
            "metrics": {name: round(value, 6) for name, value in result.metrics.items()},
            "kept": result.kept,
            "cut": result.cut,
            "dropped": dict(result.dropped) | held_out,
            "validation": len(split["validation"]),
        }

    def _on_step(self, values: dict[str, float]) -> None:
        if self._interrupted.is_set():
            raise KeyboardInterrupt
        self.progress.metrics(values)

    def _base_path(self, name: str) -> Path:
        spec = self.specs[name]
        assert isinstance(spec, TransformersModel)
        if spec.hub is not None:
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(spec.hub, revision=spec.revision))
        assert spec.path is not None
        return find(spec.path)

    async def _measure(self, step: Step, stage: MeasureStage) -> StageRecord:
        assert step.source is not None
        prompts, dropped = self.measured_prompts(step, stage)
        judge = self.open_judge(stage.rate) if stage.rate else None
        key, path = self.measure_key(stage, prompts, judge), self.folder.path / "report" / "summary.json"
        found = read_json(path)
        if found is not None and found.get("key") == key:
            self.progress.note("unchanged, not measured again")
            self.summary = found
        else:
            self.progress.total(len(prompts) * len(stage.models))
            figures = await measure(
                stage, prompts, self.engines, self.settings, self.parents, self.scheduler, judge, _gold(stage),
                self.pipeline.seed, self.progress.advance,
            )  # fmt: skip
            seconds = {record.name: round(record.seconds, 2) for record in self.records}
            self.summary = {"run": self.pipeline.name, "key": key} | figures
            self.summary |= {"calls": self._calls(), "seconds": seconds}
            write_json(path, self.summary)
        return StageRecord(
            step.name, "measure", step.source.name, len(prompts) + dropped.total(), len(prompts), dropped
        )

    def measured_prompts(self, step: Step, stage: MeasureStage) -> tuple[list[Prompt], Counter[str]]:
        """The prompts of the measure's split. Only here are held-out prompts kept."""
        assert step.source is not None and isinstance(step.source.stage, PromptsStage)
        source = step.source.stage
        everything = read_prompts(_source(source), column=source.column)
        prompts, dropped = _take(
            everything.items, stage.take, lambda p: p.split == stage.split, f"not in the {stage.split} split"
        )
        if not prompts:
            raise self.pipeline.error(step, f"no prompt of {source.path or source.hub} is in the {stage.split} split")
        return prompts, dropped + Counter(everything.dropped)

    def measure_key(self, stage: MeasureStage, prompts: Sequence[Prompt], judge: Judge | None) -> str:
        """The digest of all that determines the measure's figures."""
        return digest(
            {
                "stage": stage.model_dump(mode="json"),
                "prompts": [p.id for p in prompts],
                "models": {name: self.engines[name].identity for name in stage.models},
                "settings": {name: self.settings[name].model_dump(mode="json") for name in stage.models},
                "judge": self.engines[stage.rate.model].identity if stage.rate else None,
                "rubric": judge.rubric.digest if judge else None,
                "template": judge.template.digest if judge else None,
                "seed": self.pipeline.seed,
                "rlaif": rlaif.__version__,
            }
        )

    # ------------------------------------------------------------ row stages

    async def _stream(self, steps: Sequence[Step]) -> None:
        """Send every prompt through the row stages `steps`, a bounded number at a time."""
        source = steps[0].source
        assert source is not None
        began = time.monotonic()
        if source.name in self.prompts:
            rows = [Row(prompt=prompt) for prompt in self.prompts[source.name]]
        else:
            rows = list(self.rows[source.name])
        for step in steps:
            if isinstance(step.stage, RateStage):
                self.judges[step.name] = self.open_judge(step.stage)
        self.progress.begin(" -> ".join(step.name for step in steps), "rows", total=len(rows))
        writers = {step.name: RowWriter(self.folder.stage(step.number, step.name)) for step in steps}
        finished: dict[str, list[Row | None]] = {step.name: [None] * len(rows) for step in steps}
        window = asyncio.Semaphore(self._window(steps))

        async def one(index: int, row: Row) -> None:
            async with window:
                for step in steps:
                    if row.failure is None:
                        row = await self.row(step, row)
                    finished[step.name][index] = row
                    writers[step.name].append(row)
                self.progress.advance(failed=row.failure is not None)

        try:
            async with asyncio.TaskGroup() as group:
                for index, row in enumerate(rows):
                    group.create_task(one(index, row))
        except* RlaifError as errors:
            raise _first(errors) from None
        finally:
            for writer in writers.values():
                writer.close()
        seconds = time.monotonic() - began
        for step in steps:
            done = [row for row in finished[step.name] if row is not None]
            writers[step.name].finish(done)
            self.rows[step.name] = done
            failed = sum(row.failure is not None for row in done)
            facts = (
                {"candidates": sum(len(row.candidates) for row in done)}
                if step.stage.kind == "sample"
                else {
                    "ratings": sum(len(row.ratings) for row in done),
                    "unparsed": sum(rating.value is None for row in done for rating in row.ratings),
                }
            )
            record = StageRecord(
                step.name, step.stage.kind, step.source.name if step.source else None, len(rows), len(done) - failed,
                Counter({"failed": failed}) if failed else Counter(), seconds / len(steps), facts,
            )  # fmt: skip
            self.records.append(record.checked())
        ended = self.records[-len(steps) :]
        self.progress.end(" -> ".join(r.name for r in ended), "; ".join(f"{r.name} {_outcome(r)}" for r in ended))

    async def row(self, step: Step, row: Row) -> Row:
        """One row through one stage. What befalls this row alone is written on it; what befalls all is raised."""
        stage = step.stage
        try:
            if isinstance(stage, SampleStage):
                return await sample(row, stage, self.settings, self.sampler, self.pipeline.seed)
            assert isinstance(stage, RateStage)
            judge = self.judges[step.name]
            return await rate(
                row, stage, judge.rubric, judge.template, self.settings[stage.model], self.sampler, self.pipeline.seed
            )
        except EngineError as error:
            if error.fatal:
                raise
            group = self.failures.setdefault(error.cause, {"count": 0, "example": str(error), "row": row.prompt.id})
            group["count"] += 1
            return row.model_copy(update={"failure": str(error)})

    def _window(self, steps: Sequence[Step]) -> int:
        """Rows in flight: enough to fill every server's slots twice, or an in-process batch several times."""
        names = {s.model for step in steps if isinstance(step.stage, SampleStage) for s in step.stage.samplers()}
        names |= {step.stage.model for step in steps if isinstance(step.stage, RateStage)}
        batch = max((4 * spec.batch_size for n in names if (spec := self.specs[n]).engine == "transformers"), default=0)
        return max(batch, 2 * sum(self.concurrency.get(name, 0) for name in names), 16)

    def open_judge(self, rater: Rater) -> Judge:
        rubric, template = read_rubric(rater.rubric), Template.read(find(rater.template))
        template.check(OFFERED, REQUIRED)
        self.digests[f"rubric {rubric.name}"], self.digests[f"template {rater.template}"] = (
            rubric.digest,
            template.digest,
        )
        return Judge(rubric, template)

    # ------------------------------------------------------------ the manifest

    def _calls(self) -> dict[str, Any]:
        calls: dict[str, Any] = {}
        for name, tally in self.scheduler.tallies.items():
            price = getattr(self.specs[name], "price", None)
            calls[name] = {
                "sent": tally.sent,
                "cached": tally.cached,
                "failed": tally.failed,
                "causes": dict(tally.causes),
                "cut_at_max_tokens": tally.cut,
                "prompt_tokens": tally.prompt_tokens,
                "completion_tokens": tally.completion_tokens,
                "cost": None
                if price is None
                else round((tally.prompt_tokens * price.prompt + tally.completion_tokens * price.completion) / 1e6, 6),
            }
        return calls

    def _write_manifest(self, state: str) -> None:
        capabilities = {n: c for n, e in self.engines.items() if (c := getattr(e, "capabilities", None))}
        self.folder.write_manifest(
            {
                "name": self.pipeline.name,
                "pipeline": self.pipeline.document.path,
                "state": state,
                "started": self.started,
                "seconds": round(time.time() - self.started, 2),
                "versions": {"rlaif": rlaif.__version__} | _versions("datasets", "openai", *TRAINING_PACKAGES),
                "digests": dict(sorted(self.digests.items())),
                "stages": [record.as_dict() for record in self.records],
                "calls": self._calls(),
                "capabilities": capabilities,
                "failures": self.failures,
            }
        )


def _chat_template(stage: TrainStage) -> str | None:
    return find(stage.sft.template).read_text(encoding="utf-8") if stage.sft and stage.sft.template else None


def _gold(stage: MeasureStage) -> Callable[[str, str], Truth] | None:
    """The truth of the embedded world, where the pipeline asks for it and nowhere else."""
    if stage.judge != "gold":
        return None
    from rlaif.judges.gold import gold

    return gold


def _leading_row_steps(steps: Sequence[Step]) -> list[Step]:
    """The row stages at the front of `steps` that read one another in sequence."""
    stream: list[Step] = []
    for step in steps:
        if step.stage.kind not in ("sample", "rate") or (stream and step.source is not stream[-1]):
            break
        stream.append(step)
    return stream


def _outcome(record: StageRecord) -> str:
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(record.dropped.items()))
    unparsed = f", {record.facts['unparsed']:,} ratings unparsed" if record.facts.get("unparsed") else ""
    return f"{record.out:,}" + (f" (dropped: {dropped})" if dropped else "") + unparsed


def _first(errors: BaseExceptionGroup[RlaifError]) -> RlaifError:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _source(stage: FileStage) -> Path | Rows:
    if stage.hub is not None:
        return read_hub(stage.hub, split=stage.hub_split)
    assert stage.path is not None
    return find(stage.path)


def _take(items: Sequence[Any], take: int | None, keep: Any, reason: str) -> tuple[list[Any], Counter[str]]:
    """The first `take` items that `keep` lets through; the rest counted by reason."""
    fitting = [item for item in items if keep(item)]
    kept = fitting[:take]
    counts = {reason: len(items) - len(fitting), "not taken": len(fitting) - len(kept)}
    return kept, Counter({k: v for k, v in counts.items() if v})


def _by_split(items: Iterable[tuple[str, Any]]) -> dict[str, list[Any]]:
    split: dict[str, list[Any]] = {"train": [], "validation": [], "held-out": []}
    for identifier, item in items:
        split[split_of(identifier)].append(item)
    return split


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
