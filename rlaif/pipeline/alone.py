"""`rlaif train`: one trainer on one file, without a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif.config import COMMAND_LINE, TRAINERS, Document, Pipeline, checked, load_value
from rlaif.config.document import Position
from rlaif.config.pipeline import split_setting
from rlaif.errors import InputError, nearest
from rlaif.pipeline.folder import hold
from rlaif.pipeline.progress import Progress
from rlaif.pipeline.run import session_of
from rlaif.pipeline.stages import open_stages
from rlaif.pipeline.stages.train import Train
from rlaif.store import CallStore
from rlaif.train import job


def one_trainer(method: str, base: str, data: str, name: str, settings: Sequence[str], reward: str | None) -> Pipeline:
    """A pipeline that trains one model on one file, from the command line.

    `settings` are the trainer's own, as key=value. Raises InputError whose keys are those of the command line.
    """
    if method not in TRAINERS:
        raise InputError(f"there is no trainer {method!r}", fix=nearest(method, TRAINERS))
    rewarded = "reward" in TRAINERS[method].model_fields
    if rewarded and reward is None and not any(setting.startswith("checks=") for setting in settings):
        fix = "give a reward model with --reward, or checks in code: checks=[{length: {max_words: 20}}]"
        raise InputError(f"{method} needs a reward", fix=fix)
    if not rewarded and reward is not None:
        raise InputError(f"{method} takes no reward model", fix="remove --reward")
    trainer: dict[str, Any] = {"base": "base", "name": name}
    models = {"base": {"engine": "transformers", "path": base}}
    reads = "prompts" if TRAINERS[method].takes == "prompts" else "data"
    given: dict[Position, str] = {("models", "base", "path"): "--base", ("stages", 0, reads, "path"): "--data"}
    given[("stages", 1, "train", method)] = method  # settings that do not go together
    given[("stages", 1, "train", method, "base")] = "--base"
    given[("stages", 1, "train", method, "reward")] = "--reward"
    if reward is not None:
        models["reward"] = {"engine": "transformers", "path": reward}
        given[("models", "reward", "path")] = "--reward"
        trainer["reward"] = "reward"
    for setting in settings:
        key, text = split_setting(setting, "epochs=2")
        if key in ("base", "name", "data", "reward"):
            raise InputError(f"`{key}` is not a setting here", fix="use --base, --data, --out and --reward")
        try:
            trainer[key], _ = load_value(text, COMMAND_LINE)
        except InputError as error:
            raise InputError(error.message, file=COMMAND_LINE, key=key, fix=error.fix) from None
        given[("stages", 1, "train", method, key)] = key
    stages: list[dict[str, Any]] = [{reads: {"path": data}}, {"train": {method: trainer}}]
    document = Document(COMMAND_LINE, {"name": "train", "models": models, "stages": stages}, {})
    document.overridden = given
    return checked(document)


async def train_alone(pipeline: Pipeline, out: Path, progress: Progress) -> dict[str, Any]:
    """Train the one model of `pipeline` into `out` and return the record of its training.

    Called again, it resumes after an interruption, and does nothing if nothing changed. Raises InputError for a folder
    with any other content, which is left alone.
    """
    opening = open_stages(pipeline)
    for note in opening.notes:
        progress.warn(note)
    data, step = pipeline.steps
    stage = opening.stages[step.name]
    assert isinstance(stage, Train)
    out = out if out.name else out.resolve()
    if out.name.endswith(".partial"):
        problem = "names in .partial are those of unfinished trainings"
        raise InputError(problem, file=str(out), key="--out", fix="give another")
    if out.exists() and not (out / "training.json").is_file():
        raise _occupied(out)
    lock = hold(out.with_name(f".{out.name}.lock"), out)
    try:
        async with session_of(pipeline, CallStore(Path(":memory:"))) as session:
            survey, reward = stage.survey(opening.made), stage.reward(session, opening.made)
            training = stage.job(session, survey, out, reward)
            if out.exists() and job.finished(out, training.key) is None:
                raise _occupied(out)
            progress.begin(step.name, "train")
            record = await stage.train(training, opening.made, reward, progress)
            progress.end(step.name, f"{record['kept']:,} rows")
            for note in record.get("notes", ()):
                progress.warn(note)
    finally:
        out.with_name(f".{out.name}.lock").unlink(missing_ok=True)
        lock.close()
    read = opening.stages[data.name].read  # without held-out rows already
    dropped = read.dropped + Counter(record["dropped"]) + survey.left_out
    return record | {"dropped": dict(dropped), "read": read.given}


def _occupied(out: Path) -> InputError:
    return InputError("the folder exists already", file=str(out), fix="remove it, or name another with --out")
