"""`rlaif train`: one trainer on one file, without a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlaif.config import COMMAND_LINE, TRAINERS, Document, Pipeline, Step, checked, load_value
from rlaif.config.document import Position
from rlaif.config.pipeline import split_setting
from rlaif.engines.open import source_of
from rlaif.errors import InputError, nearest
from rlaif.pipeline.folder import REFERENCES, TOKENS, hold
from rlaif.pipeline.progress import Progress
from rlaif.pipeline.run import session_of
from rlaif.pipeline.stages import open_stages
from rlaif.pipeline.stages.stage import Opening
from rlaif.pipeline.stages.train import Train
from rlaif.resources import find
from rlaif.store import CallStore
from rlaif.train import job

if TYPE_CHECKING:
    from rlaif.train.check import Check


def one_trainer(
    method: str,
    base: str,
    data: str,
    name: str,
    settings: Sequence[str],
    reward: str | None,
    read: Mapping[str, str | None] | None = None,
    adapter: str | None = None,
) -> Pipeline:
    """A pipeline that trains one model on one file, from the command line.

    `settings` are the trainer's own, as key=value; `read` says how the file is read: `split`, `validation`, `turns`.
    Raises InputError whose keys are those of the command line.
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
    models = {"base": {"engine": "transformers", "path": base} | ({} if adapter is None else {"adapter": adapter})}
    takes_prompts = TRAINERS[method].takes == "prompts"
    reads = "prompts" if takes_prompts else "data"
    given: dict[Position, str] = {("models", "base", "path"): "--base", ("stages", 0, reads, "path"): "--data"}
    given[("models", "base", "adapter")] = "--adapter"
    given[("stages", 1, "train", method)] = method  # settings that do not go together
    given[("stages", 1, "train", method, "base")] = "--base"
    given[("stages", 1, "train", method, "reward")] = "--reward"
    reading = {key: value for key, value in (read or {}).items() if value is not None}
    if takes_prompts and "split" in reading:
        trainer["split"] = reading["split"]
        reading = {key: value for key, value in reading.items() if (key, value) != ("split", "hash")}
        given[("stages", 1, "train", method, "split")] = "--split"
    for key in reading:
        given[("stages", 0, reads, key)] = f"--{key}"
        if takes_prompts and key != "split":
            raise InputError(f"{method} trains on {reads}, without --{key}", fix=f"remove --{key}")
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
    stages: list[dict[str, Any]] = [{reads: {"path": data} | reading}, {"train": {method: trainer}}]
    document = Document(COMMAND_LINE, {"name": "train", "models": models, "stages": stages}, {})
    document.overridden = given
    return checked(document)


def check_alone(pipeline: Pipeline, out: Path | None = None) -> Checked:
    """What the one model of `pipeline` would be trained on, without its weights.

    It shares token ids with the training into `out`. Raises InputError as the training would.
    """
    from rlaif.train.check import check

    opening = open_stages(pipeline)
    data, stage = _stages_of(pipeline, opening)
    examples = list(stage.examples(opening.made))
    base = source_of(pipeline.models[stage.trainer.base])
    kept = None if out is None else (out if out.name else out.resolve()).with_name(TOKENS.name)
    made = check(stage.trainer, base, examples, stage.template, kept)
    withheld = Counter(str(example.split) for example in examples if example.split in stage.trainer.unused)
    read = opening.stages[data.name].read
    return Checked(made, read.given, dict(read.dropped + withheld), opening.notes)


def _stages_of(pipeline: Pipeline, opening: Opening) -> tuple[Step, Train]:
    """The step that reads the file, and the stage that trains on it."""
    data, step = pipeline.steps
    stage = opening.stages[step.name]
    assert isinstance(stage, Train)
    return data, stage


class Checked(NamedTuple):
    """A check, with the number of rows in the file, those that the trainer does not get by reason, and notes."""

    made: Check
    read: int
    withheld: dict[str, int]
    notes: list[str]


async def train_alone(pipeline: Pipeline, out: Path, progress: Progress) -> dict[str, Any]:
    """Train the one model of `pipeline` into `out` and return the record of its training.

    Called again, it resumes after an interruption, and does nothing if nothing changed. Trainings into folders side by
    side share their token ids in `.tokens` there, and the log-probabilities of their base models in `.references`.
    Raises InputError for a folder with any other content, which is left alone.
    """
    opening = open_stages(pipeline)
    for note in opening.notes:
        progress.warn(note)
    data, stage = _stages_of(pipeline, opening)
    out = out if out.name else out.resolve()
    if out.name.endswith(".partial"):
        problem = "names in .partial are those of unfinished trainings"
        raise InputError(problem, file=str(out), key="--out", fix="give another")
    if out.exists() and not (out / "training.json").is_file():
        raise _occupied(out, pipeline)
    lock = hold(out.with_name(f".{out.name}.lock"), out)
    try:
        async with session_of(pipeline, CallStore(Path(":memory:"))) as session:
            survey, reward = stage.survey(opening.made), stage.reward(session, opening.made)
            beside = (out.with_name(shared.name) for shared in (REFERENCES, TOKENS))
            training = stage.job(session, survey, out, reward, *beside)
            if out.exists() and job.finished(out, training.key) is None:
                raise _occupied(out, pipeline)
            progress.begin(stage.name, "train")
            record = await stage.train(training, opening.made, reward, progress)
            progress.end(stage.name, f"{record['kept']:,} rows")
            for note in record.get("notes", ()):
                progress.warn(note)
    finally:
        out.with_name(f".{out.name}.lock").unlink(missing_ok=True)
        lock.close()
    read = opening.stages[data.name].read  # without held-out rows already
    dropped = read.dropped + Counter(record["dropped"]) + survey.left_out
    return record | {"dropped": dict(dropped), "read": read.given}


def plan_alone(pipeline: Pipeline) -> dict[str, Any]:
    """The memory that the one training of `pipeline` takes, told without loading a weight."""
    _, stage = _stages_of(pipeline, open_stages(pipeline))
    return stage.memory(source_of(pipeline.models[stage.trainer.base]))


def _occupied(out: Path, pipeline: Pipeline) -> InputError:
    """That nothing is trained into `out`. Only a model of a training is to be removed, where nothing in it is read."""
    another = "name another with --out"
    place = out.resolve()
    for path, what in _read(pipeline):
        if path.is_relative_to(place):
            return InputError(f"it {'is' if path == place else 'holds'} {what}", file=str(out), fix=another)
    if (out / "training.json").is_file():
        return InputError("the folder exists already", file=str(out), fix=f"remove it, or {another}")
    return InputError("the folder exists already, and holds what no training made", file=str(out), fix=another)


def _read(pipeline: Pipeline) -> Iterator[tuple[Path, str]]:
    """What the training reads from this computer, and what it is called."""
    named: list[tuple[str | None, str]] = []
    stage = pipeline.steps[0].stage
    if getattr(stage, "hub", None) is None:
        named += (getattr(stage, "path", None), "the data"), (getattr(stage, "validation", None), "the validation data")
    for name, model in pipeline.models.items():
        named.append((getattr(model, "path", None), f"the {name} model"))
        named.append((getattr(model, "adapter", None), f"the adapter of the {name} model"))
    for path, what in named:
        if path is not None:
            yield find(path).resolve(), what
    yield Path.cwd(), "the current folder"
