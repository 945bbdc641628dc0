"""One trainer on one file, without a run around it: `rlaif train`."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlaif.config import (
    COMMAND_LINE,
    TRAINERS,
    Document,
    Pipeline,
    PPOSettings,
    TrainStage,
    TransformersModel,
    checked,
    load_value,
)
from rlaif.config.document import Position
from rlaif.engines.wire import Wires
from rlaif.errors import InputError
from rlaif.pipeline import training
from rlaif.pipeline.engines import open_engine
from rlaif.pipeline.folder import hold
from rlaif.pipeline.inputs import Inputs
from rlaif.pipeline.progress import Silent
from rlaif.train import job
from rlaif.train.examples import Example, Survey


def one_trainer(method: str, base: str, data: str, name: str, settings: Sequence[str], reward: str | None) -> Pipeline:
    """A pipeline that trains one model on one file, as the command line gives them.

    `settings` are the trainer's own, as key=value. Raises InputError, its keys named as they were given.
    """
    trainer: dict[str, Any] = {"base": "base", "name": name}
    models = {"base": {"engine": "transformers", "path": base}}
    reads = TRAINERS[method].reads[0]
    given: dict[Position, str] = {("models", "base", "path"): "--base", ("stages", 0, reads, "path"): "--data"}
    given[("stages", 1, "train", method, "base")] = "--base"
    given[("stages", 1, "train", method, "reward")] = "--reward"
    if reward is not None:
        models["reward"] = {"engine": "transformers", "path": reward}
        given[("models", "reward", "path")] = "--reward"
        trainer["reward"] = "reward"
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise InputError(f"{setting!r} is not of the form key=value", fix="for example epochs=2")
        if key in ("base", "name", "data", "reward"):
            raise InputError(f"`{key}` is no setting here", fix="give --base, --data, --out and --reward")
        try:
            trainer[key], _ = load_value(text, COMMAND_LINE)
        except InputError as error:
            raise InputError(error.message, file=COMMAND_LINE, key=key, fix=error.fix) from None
        given[("stages", 1, "train", method, key)] = key
    stages: list[dict[str, Any]] = [{reads: {"path": data}}, {"train": {method: trainer}}]
    document = Document(COMMAND_LINE, {"name": "train", "models": models, "stages": stages}, {})
    document.overridden = given
    return checked(document)


async def train_alone(pipeline: Pipeline, out: Path, progress: Silent) -> dict[str, Any]:
    """Train the one model of `pipeline` into `out` and return the record of its training.

    Asked again after an interruption it goes on, and when nothing changed it does nothing. A folder that holds anything
    else is not touched.

    Raises InputError for data, a model or a folder of no use, WorkError for a training that fails.
    """
    inputs = Inputs(pipeline)
    data, step = pipeline.steps
    stage = step.stage
    assert isinstance(stage, TrainStage)
    base = pipeline.models["base"]
    assert isinstance(base, TransformersModel)
    out = out if out.name else out.resolve()
    if out.exists() and not (out / "training.json").is_file():
        raise _occupied(out)
    lock = hold(out.with_name(f".{out.name}.lock"), out)
    engines = {name: open_engine(name, spec, Wires()) for name, spec in pipeline.models.items() if name == "reward"}
    interrupted = threading.Event()
    try:
        survey = Survey(stage.trainer.unused)
        survey.add(_examples(inputs, data.name))
        reward = None
        if isinstance(stage.trainer, PPOSettings):
            if stage.trainer.reward is None:
                reward = training.reward_by_checks(inputs.checks[step.name], inputs.prompts[data.name])
            else:
                spec = pipeline.models["reward"]
                assert isinstance(spec, TransformersModel)
                reward = training.reward_of(spec, engines["reward"], asyncio.get_running_loop())
        template = inputs.chat_templates.get(step.name)
        made = training.job_of(stage.trainer, base, out, survey, template, reward)
        progress.begin(step.name, "train")
        record = job.finished(out, made.key)
        if record is not None:
            progress.note("unchanged, not trained again")
        elif out.exists():
            raise _occupied(out)
        else:

            def on_step(values: dict[str, float]) -> None:
                if interrupted.is_set():
                    raise KeyboardInterrupt
                progress.metrics(values)

            try:
                learnt = _examples(inputs, data.name)
                record = await asyncio.to_thread(training.train, made, learnt, on_step, reward)
            except asyncio.CancelledError:
                interrupted.set()  # the thread cannot be cancelled; it looks after each step
                raise
        progress.end(step.name, f"{record['kept']:,} rows")
    finally:
        for engine in engines.values():
            await engine.close()
        out.with_name(f".{out.name}.lock").unlink(missing_ok=True)
        lock.close()
    read = inputs.records[data.name]  # which leaves held-out rows out already
    dropped = read.dropped + Counter(record["dropped"]) + survey.left_out
    return record | {"dropped": dict(dropped), "read": read.given}


def _examples(inputs: Inputs, name: str) -> Iterator[Example]:
    learnt = training.examples_read(inputs, name)
    assert learnt is not None
    return learnt


def _occupied(out: Path) -> InputError:
    return InputError("the folder is there already", file=str(out), fix="remove it, or name another with --out")
