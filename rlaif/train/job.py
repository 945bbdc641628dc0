"""A training is a self-contained folder, and a function that trains a model folder from it.

    NAME.partial/               beside the model's folder NAME, which appears only when it is complete
        key                     the digest of everything that determines the model
        job.json                method, settings, base model, chat template, reward; digests of base and data, versions
        data/train.parquet      training examples, one a row
        data/validation.parquet validation examples, where the method uses them
        references/             of DPO: the base model's log-probabilities, see `train.references`
        metrics.jsonl           the figures of every step, which go with the model
        runs/                   the same for TensorBoard, if asked for
        checkpoint-N/           after step N
        best-N/                 the weights of the best step by validation, where it is kept
        final/                  the trained model, before it is moved to NAME
        lock                    one process at a time trains here

The function is called in the process of a run, or by `python -m rlaif.train NAME.partial`. An interrupted training
resumes from its last checkpoint when its job is written or trained again. torch is imported only to train.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlaif.config import TRAINERS, DPOSettings, PPOSettings, RMSettings, SFTSettings, Training
from rlaif.engines.adapters import Adapted, Source, named
from rlaif.engines.identity import ANSWER_FILES, refuse_inside, weights_digest
from rlaif.engines.vetting import is_failure, is_memory
from rlaif.errors import InputError, RlaifError, WorkError, first_line, plainly
from rlaif.files import FULL, json_of, lock, text_of, why, write_json, write_text
from rlaif.judges.verifiers import Check
from rlaif.records import Message, Split, digest
from rlaif.train import ranks
from rlaif.train.card import CARD, Facts, base_of, card_of
from rlaif.train.examples import (
    Demonstration,
    Example,
    OnStep,
    PreferencePair,
    PromptOnly,
    RewardFunction,
)
from rlaif.train.kept_files import Place
from rlaif.train.log import METRICS, StepLog
from rlaif.train.plots import PICTURE, draw
from rlaif.train.reporting import TRACKED
from rlaif.version import __version__, install

FORMAT = 1
TRAINING = 3  # raised when a change here makes another model of the same inputs
PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft")  # a trained model depends on their versions
IRRELEVANT = {  # they do not change the weights
    *("base", "name", "data", "reward", "checkpoint_steps", "recompute", "processes", "launch"),
    *("report_to", "keep_value_model"),
}
LATER = {"ppo": ("accumulate", "sample_batch_size")}  # not in the keys of models that were trained before they were
_OF_PAIR = ("chosen", "rejected", "margin", "probability", "source")
BATCH = 1000  # examples in memory while Parquet is written or read
NO_KEY = ""  # of a job whose removal was interrupted
_BEGINNINGS = {"lock", ".key.tmp"}  # in a folder that was interrupted before its key was written
# All that a training writes into its job's folder, and into its model's; what a kill may have left is among them.
_OF_JOB = re.compile(
    r"lock|key|job\.json|data|references|final(\.whole)?|old|error\.txt|\.(key|job\.json|data)\.tmp|(tmp-)?checkpoint-\d+"
    r"|metrics\.jsonl|\.metrics\.jsonl\.tmp|(tmp-)?best-\d+|runs"
    r"|\.DS_Store|Thumbs\.db|\.nfs\w+"  # file browsers and network disks put them there
)
_OF_MODEL = (
    *ANSWER_FILES, "adapter_config.json", "key", "training.json", METRICS, PICTURE, "training_args.bin", CARD,
    ".DS_Store", "Thumbs.db", ".nfs*",
)  # fmt: skip
# Folders in a model's, and what lies in them: PPO's value model, and what TensorBoard reads.
_IN_MODEL = {"value": ANSWER_FILES, TRACKED: ("*tfevents*",)}


@dataclass(frozen=True, slots=True)
class RewardModel:
    """The reward model of a training: its folder, and how it runs, which changes its scores."""

    folder: Source
    dtype: str = "float32"
    device: str = "auto"
    batch_size: int = 256


@dataclass(frozen=True, slots=True)
class Job:
    """A training without its examples. `key` is its `training_key`, `out` the folder of the trained model.

    The reward of PPO is a model or, without one, checks in code. `references` is the folder in which trainings share
    the log-probabilities of their base models, `tokens` that of their token ids; neither changes a model, or need exist
    where the job is trained. `left_out` are the rows of the files of its data that are no examples, by reason, for the
    model's card.
    """

    settings: Training
    base: Source
    out: Path
    key: str
    template: str | None = None
    reward: RewardModel | None = None
    checks: tuple[Check, ...] | None = None
    references: Path | None = None
    tokens: Path | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return self.settings.method

    @property
    def place(self) -> Place:
        return Place(self.folder, self.tokens, self.references)

    @property
    def folder(self) -> Path:
        return job_folder(self.out)

    def examples(self, split: Split) -> Iterator[Any]:
        """The folder's examples of a split, in order; none without a file."""
        file = self.folder / "data" / f"{split}.parquet"
        return _read_examples(file, self.settings.takes, split) if file.exists() else iter(())


def job_folder(out: Path) -> Path:
    """The job's folder of the model folder `out`, beside it."""
    return out.with_name(out.name + ".partial")


# ---------------------------------------------------------------- the key


def training_key(settings: Training, base: str, examples: str, template: str | None, reward: str | None) -> str:
    """The digest of everything that determines the trained model.

    `base` is the digest of the base model's weights (how it is sampled does not matter), `examples` a `Survey`'s
    digest, `reward` the identity of the reward, a reward model's precision included.
    """
    kept_last = getattr(settings, "keep", "last") == "last"  # then it does not matter when there is a validation
    irrelevant = IRRELEVANT | ({"evaluate_every"} if kept_last else set())
    fields = type(settings).model_fields
    irrelevant |= {name for name in LATER.get(settings.method, ()) if getattr(settings, name) == fields[name].default}
    return digest(
        {
            "trainer": settings.method,
            "settings": settings.model_dump(mode="json", exclude=irrelevant),
            "base": base,
            "reward": reward,
            "lessons": examples,
            "template": template,
            "versions": _versions(),
            "training": TRAINING,
        }
    )


def _versions() -> dict[str, str]:
    return {"rlaif": __version__, **versions(*PACKAGES)}


@cache
def versions(*packages: str) -> Mapping[str, str]:
    """The versions of those `packages` that are installed."""
    installed = {}
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def finished(out: Path, key: str) -> dict[str, Any] | None:
    """The record of the training of `out` (`TrainResult` and the digest of its weights), if it is done and unchanged.

    None unless it was made from the inputs of `key` and its files are unchanged.
    """
    record = json_of(out / "training.json") if text_of(out / "key") == key else None
    if record is None:
        return None
    try:
        return record if record.get("weights") == weights_digest(out) else None
    except RlaifError:  # a file of the model is gone
        return None


# ---------------------------------------------------------------- written


def write_job(job: Job, examples: Iterable[Example]) -> None:
    """Write the folder of a job. An unfinished training of other inputs is removed; one of the same inputs is kept.

    An existing model is removed. Examples of splits that the method does not use are left out.

    Raises InputError when the folder exists and is not a job, WorkError while another process trains there.
    """
    folder = job.folder
    refuse_foreign(job.out)
    _refuse_replaced(job.out)
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder):
        if text_of(folder / "key") != job.key:
            _empty(folder)
            write_text(folder / "key", job.key)
        if job.out.exists():  # moved first: a half-removed model must not keep its name
            _remove(folder / "old")
            os.replace(job.out, folder / "old")
        _remove(folder / "old")
        written = json_of(folder / "job.json") or {}
        if written.get("data") != _data_digests(folder):
            _write_data(job, examples)
        write_json(folder / "job.json", sealed(_as_json(job)))


def refuse_foreign(out: Path) -> None:
    """Raise InputError when the model's folder, or its job's, exists and holds what no training made.

    So for one that lies in another model's folder.
    """
    refuse_inside(out)
    folder = job_folder(out)
    if os.path.lexists(folder):
        begun = (folder / "key").is_file() and not (folder / "training.json").exists()
        if folder.is_symlink() or not (begun or _holds_only(folder, _BEGINNINGS)):
            raise InputError("the folder is not an unfinished training", file=str(folder), fix="move it")
        for path in folder.iterdir():
            if path.is_symlink() or not _OF_JOB.fullmatch(path.name):
                problem = "the file lies in the folder of an unfinished training, and no training made it"
                raise InputError(problem, file=str(path), fix="move it")
    made = (out / "key").is_file() or (out / "training.json").is_file()
    if os.path.lexists(out) and not made and not _holds_only(out, set()):
        raise InputError("the folder is there, and no training made it", file=str(out), fix="move it")


def _refuse_replaced(out: Path) -> None:
    """Raise InputError for a model's folder that also holds what no training wrote: it would go with the model."""
    for path in out.rglob("*") if out.is_dir() and not out.is_symlink() else ():
        if not _is_of_model(path, out):
            problem = "the model is to be trained again, and the file lies in its folder and no training made it"
            raise InputError(problem, file=str(path), fix="move it")


def _is_of_model(path: Path, out: Path) -> bool:
    """Whether what is at `path` in the model's folder `out` is a training's, or an empty file: nothing to lose."""
    first, *below = path.relative_to(out).parts
    if path.is_dir() and not path.is_symlink():
        return first in _IN_MODEL and (not below or first == TRACKED)
    patterns = _IN_MODEL.get(first, ()) if below else _OF_MODEL
    return path.is_file() and (not path.stat().st_size or any(fnmatch(path.name, pattern) for pattern in patterns))


def _holds_only(folder: Path, names: set[str]) -> bool:
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= names


def clear(out: Path, key: str) -> None:
    """Remove the job's folder of a finished model, which a kill may have left."""
    folder = job_folder(out)
    if text_of(folder / "key") in (key, NO_KEY):
        with suppress(WorkError), _held(folder):
            _empty(folder)
            shutil.rmtree(folder)


def _empty(folder: Path) -> None:
    """Remove all but the lock, and the key, which is no job's from now on: the next one removes what a kill leaves."""
    write_text(folder / "key", NO_KEY)
    for path in folder.iterdir():
        if path.name not in ("lock", "key"):
            _remove(path)


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a job with its digest: an edited one would train another model under the job's key."""
    unsealed = {name: value for name, value in record.items() if name != "digest"}
    return unsealed | {"digest": digest(unsealed)}


def _as_json(job: Job) -> dict[str, Any]:
    reward = job.reward
    return {
        "format": FORMAT,
        "key": job.key,
        "method": job.method,
        "settings": job.settings.model_dump(mode="json"),
        "base": _folders(job.base),
        "template": job.template,
        "reward": None if reward is None else _reward_as_json(reward),
        "checks": None if job.checks is None else [check.model_dump(mode="json") for check in job.checks],
        "references": None if job.references is None else str(job.references.absolute()),
        "tokens": None if job.tokens is None else str(job.tokens.absolute()),
        "left_out": dict(job.left_out),
        "data": _data_digests(job.folder),
        "versions": _versions(),
    }


def _reward_as_json(reward: RewardModel) -> dict[str, Any]:
    return asdict(reward) | _folders(reward.folder)


def _folders(source: Source) -> dict[str, Any]:
    """A model as JSON: its folder, that of an adapter over it, if any, and the digest of both."""
    base, adapter = source if isinstance(source, Adapted) else (source, None)
    over = {} if adapter is None else {"adapter": str(adapter.absolute())}
    return {"folder": str(base.absolute()), **over, "weights": weights_digest(source)}


def _source(read: Mapping[str, Any]) -> Source:
    base = Path(read["folder"])
    return Adapted(base, Path(read["adapter"])) if "adapter" in read else base


def _data_digests(folder: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(folder.glob("data/*.parquet")):
        with path.open("rb") as file:
            digests[path.stem] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _write_data(job: Job, examples: Iterable[Example]) -> None:
    """Write `data/`, whole or not at all, with one batch of each split in memory."""
    import pyarrow.parquet

    temporary = job.folder / ".data.tmp"
    _remove(temporary)
    temporary.mkdir()
    schema = _schema(job.settings.takes)
    splits: tuple[Split, ...] = ("train", "validation")
    with ExitStack() as opened:
        writers, batches = {}, {}
        for split in splits:
            if split not in job.settings.unused:
                file = opened.enter_context(open(temporary / f"{split}.parquet", "wb"))
                opened.callback(os.fsync, file.fileno())
                writers[split] = opened.enter_context(pyarrow.parquet.ParquetWriter(file, schema))
                batches[split] = list[dict[str, Any]]()
        for example in examples:
            if example.split not in writers:
                continue
            batch = batches[example.split]
            batch.append(_row(example))
            if len(batch) == BATCH:
                writers[example.split].write_table(pyarrow.Table.from_pylist(batch, schema=schema))
                batch.clear()
        for split, batch in batches.items():
            writers[split].write_table(pyarrow.Table.from_pylist(batch, schema=schema))
    _remove(job.folder / "data")
    os.replace(temporary, job.folder / "data")


def _schema(takes: str) -> Any:
    import pyarrow

    text, number = pyarrow.string(), pyarrow.float64()
    messages = pyarrow.list_(pyarrow.struct([("role", text), ("content", text)]))
    fields = {
        "demonstrations": [
            ("messages", messages),
            ("turns", text),
            ("masked", pyarrow.list_(pyarrow.int32())),
            ("part", text),
        ],
        "preferences": [
            *(("prompt", messages), ("chosen", text), ("rejected", text)),
            *(("margin", number), ("probability", number), ("source", text)),
        ],
        "prompts": [("messages", messages), ("reference", pyarrow.list_(text)), ("checks", text)],
    }
    return pyarrow.schema(fields[takes])


def _row(example: Example) -> dict[str, Any]:
    if isinstance(example, PreferencePair):
        known = {name: getattr(example, name) for name in _OF_PAIR}
        return {"prompt": _turns(example.prompt)} | known
    if isinstance(example, Demonstration):
        told = {"turns": example.turns, "masked": list(example.masked), "part": example.part}
        return {"messages": _turns(example.messages)} | told
    checks = json.dumps(example.checks)  # as text: their shapes differ
    return {"messages": _turns(example.messages), "reference": list(example.reference), "checks": checks}


def _turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


# ---------------------------------------------------------------- read


def read_job(folder: Path) -> Job:
    """The job in a folder. Raises InputError when there is none, or one of another version."""
    if not folder.is_dir():
        raise InputError("there is no such folder", file=str(folder), fix="give a job's folder, NAME.partial")
    if folder.is_symlink():
        raise InputError("the job's folder is a link", file=str(folder), fix="give the folder itself")
    folder = folder.absolute()  # `.` has no name
    key, read = text_of(folder / "key"), json_of(folder / "job.json")
    if key is None or read is None or not folder.name.endswith(".partial"):
        raise InputError("the folder holds no training", file=str(folder), fix="give a job's folder, NAME.partial")
    file = str(folder / "job.json")
    if read.get("format") != FORMAT:
        raise InputError("the job is of another format", file=file, fix="use the version of rlaif that wrote it")
    try:
        reward, checks = read["reward"], read["checks"]
        job = Job(
            settings=TRAINERS[read["method"]].model_validate(read["settings"]),
            base=_source(read["base"]),
            out=folder.with_name(folder.name.removesuffix(".partial")),
            key=key,
            template=read["template"],
            reward=None if reward is None else _reward_of(reward),
            checks=None if checks is None else tuple(Check.model_validate(check) for check in checks),
            references=Path(read["references"]) if read.get("references") else None,  # a job of an earlier version
            tokens=Path(read["tokens"]) if read.get("tokens") else None,
            left_out=dict(read.get("left_out", {})),
        )
        _check_unchanged(job, read, file)
    except (AttributeError, KeyError, TypeError, ValidationError) as error:
        problem = plainly(error.errors()[0]) if isinstance(error, ValidationError) else first_line(error)
        raise InputError(f"the job cannot be read: {problem}", file=file, fix="write it again") from None
    return job


def _reward_of(read: Mapping[str, Any]) -> RewardModel:
    return RewardModel(_source(read), read["dtype"], read["device"], read["batch_size"])


def _check_unchanged(job: Job, read: Mapping[str, Any], file: str) -> None:
    """Raise InputError when training here would not give the model of the job's key."""
    if read != sealed(read) or read["key"] != job.key:
        raise InputError("the job was edited", file=file, fix="change the settings where the job was written from")
    if read["versions"] != _versions():
        here, there = _versions(), read["versions"]
        differing = [f"{name} {there.get(name)}, here {here.get(name)}" for name in here | there
                     if there.get(name) != here.get(name)]  # fmt: skip
        raise InputError(
            f"the job was written under other versions ({'; '.join(differing)})", file=file, fix="install those"
        )
    if _data_digests(job.folder) != read.get("data"):
        raise InputError("the examples have changed since the job was written", file=file, fix="write the job again")
    if job.reward is not None and weights_digest(job.reward.folder) != read["reward"]["weights"]:
        raise InputError("the reward model has changed since the job was written", file=str(named(job.reward.folder)),
                         fix="write the job again")  # fmt: skip
    if weights_digest(job.base) != read["base"]["weights"]:
        raise InputError("the base model has changed since the job was written", file=str(named(job.base)),
                         fix="write the job again")  # fmt: skip


def _read_examples(file: Path, takes: str, split: Split) -> Iterator[Example]:
    import pyarrow.parquet

    for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=BATCH):
        for row in batch.to_pylist():
            yield _example(row, takes, split)


def _example(row: Mapping[str, Any], takes: str, split: Split) -> Example:
    messages = tuple(Message(**turn) for turn in row["prompt" if takes == "preferences" else "messages"])
    if takes == "preferences":
        return PreferencePair(messages, split=split, **{name: row[name] for name in _OF_PAIR})
    if takes == "demonstrations":
        return Demonstration(messages, row["turns"], split, tuple(row["masked"]), row["part"])
    return PromptOnly(messages, split, tuple(row["reference"]), tuple(json.loads(row["checks"])))


# ---------------------------------------------------------------- trained


def train(folder: Path, on_step: OnStep, reward: RewardFunction | None = None) -> dict[str, Any]:
    """Train the job in `folder` and return the record of its training; the model's folder replaces the job's.

    `reward` is for PPO. An exception in `on_step` ends the training; called again, it resumes from its last checkpoint.
    The folder of a finished job is only removed.

    Raises InputError for a folder without a job, for an existing model folder and for input that a trainer refuses;
    WorkError when the training fails, or while another process trains there.
    """
    job = read_job(folder)
    if not ranks.is_first():
        return _followed(job, on_step)
    folder = job.folder
    with _held(folder):
        record = finished(job.out, job.key)
        if record is None:
            if os.path.lexists(job.out):
                raise InputError("the trained model's folder exists already", file=str(job.out), fix="remove it")
            with _told(folder):
                _trained(job, on_step, reward)
            _leave(job)
            shutil.copy(folder / "key", folder / "final")  # moved together with the weights
            os.replace(folder / "final", job.out)
            record = finished(job.out, job.key)
            assert record is not None, f"{job.out} was trained but holds no record"
        _empty(folder)
        shutil.rmtree(folder)
    return record


def _followed(job: Job, on_step: OnStep) -> dict[str, Any]:
    """Train beside the first process, which keeps the folder. Nothing is left to do for a finished model."""
    record = finished(job.out, job.key)
    if record is None:
        _trained(job, on_step, None)
    return record or {}


def _leave(job: Job) -> None:
    """Put beside the weights what is left of the training: its figures, their curves, the trackers' files, a card.

    A picture that cannot be drawn is a note in the record.
    """
    final = job.folder / "final"
    record = json_of(final / "training.json") or {}
    kept = record.get("metrics", {}).get("kept_step")
    pictured = False
    if (job.folder / METRICS).exists():
        shutil.copy(job.folder / METRICS, final)
        title = f"{job.out.name}: {job.method.upper()} of {base_of(named(job.base))}"
        try:
            pictured = draw(final / METRICS, final / PICTURE, title, kept)
        except Exception as error:  # the model is whole, whatever becomes of its picture
            missing = f"matplotlib is not installed ({install('train')})"
            why_not = missing if isinstance(error, ImportError) else f"{type(error).__name__}: {first_line(error)}"
            record["notes"] = [*record.get("notes", ()), f"there is no picture of the training: {why_not}"]
            write_json(final / "training.json", record)
    if (job.folder / TRACKED).is_dir():
        shutil.copytree(job.folder / TRACKED, final / TRACKED, dirs_exist_ok=True)
    counted = Counter(getattr(example, "source", None) for example in job.examples("train"))
    sources = [source for source, _ in counted.most_common() if source]
    write_text(
        final / CARD,
        card_of(
            Facts(job.out.name, job.settings, named(job.base), record, sources, _versions(), pictured, job.left_out)
        ),
    )


def _trained(job: Job, on_step: OnStep, reward: RewardFunction | None) -> None:
    """Train. What nobody foresaw is a WorkError, unless the caller's own function raised it."""
    raised: list[BaseException] = []

    def step(figures: dict[str, float]) -> None:
        if log is not None:
            log.add(figures)
        try:
            on_step(figures)
        except BaseException as error:
            raised.append(error)
            raise

    try:
        with StepLog(job.folder / METRICS) if ranks.is_first() else nullcontext() as log:
            _METHODS[job.method](job, step, reward)
    except (RlaifError, OSError):
        raise
    except BaseException as error:
        if error in raised or not is_failure(error):
            raise
        raise unforeseen(error, job.folder) from error


def unforeseen(error: BaseException, folder: Path) -> WorkError:
    """The failure of a training as a sentence; its traceback is kept in the job's folder.

    Of one that ran out of memory it says what to change instead, and which checkpoint is kept.
    """
    if is_memory(error):
        from rlaif.train.memory import ran_out

        settings = (json_of(folder / "job.json") or {}).get("settings", {})
        return ran_out(folder, settings)
    file = folder / "error.txt"
    file.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="replace")
    problem = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    return WorkError(f"the training failed: {problem} (traceback in {file})")


def _sft(job: Job, on_step: OnStep, reward: RewardFunction | None) -> None:
    from rlaif.train.sft import train_sft

    assert isinstance(job.settings, SFTSettings)
    examples = job.examples("train"), job.examples("validation")
    train_sft(job.settings, job.base, *examples, job.place, on_step, job.template)


def _rm(job: Job, on_step: OnStep, reward: RewardFunction | None) -> None:
    from rlaif.train.rm import train_rm

    assert isinstance(job.settings, RMSettings)
    examples = job.examples("train"), job.examples("validation")
    train_rm(job.settings, job.base, *examples, job.place, on_step, job.template)


def _dpo(job: Job, on_step: OnStep, reward: RewardFunction | None) -> None:
    from rlaif.train.dpo import train_dpo

    assert isinstance(job.settings, DPOSettings)
    examples = job.examples("train"), job.examples("validation")
    train_dpo(job.settings, job.base, *examples, job.place, on_step, job.template)


def _ppo(job: Job, on_step: OnStep, reward: RewardFunction | None) -> None:
    from rlaif.train.ppo import train_ppo

    assert isinstance(job.settings, PPOSettings) and reward is not None
    value_init = None if job.reward is None else job.reward.folder
    given = job.examples("train"), reward
    train_ppo(job.settings, job.base, value_init, *given, job.place, on_step, job.template)


_METHODS: dict[str, Callable[[Job, OnStep, RewardFunction | None], None]] = {
    "sft": _sft,
    "rm": _rm,
    "dpo": _dpo,
    "ppo": _ppo,
}


# ---------------------------------------------------------------- files


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """A full disk is an error in our words, where the libraries that save weights have each their own.

    Raises WorkError.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        words = str(error)
        full = isinstance(error, OSError) and error.errno in FULL
        if full or any(sign in words for sign in _FULL_DISK):
            fix = "free some space, then run the same command again: it resumes from the last checkpoint"
            raise WorkError("the disk is full; what is finished is kept", file=str(folder), fix=fix) from None
        raise


# As safetensors and torch say it, which name no error number.
_FULL_DISK = ("No space left on device", "File too large", "Disk quota exceeded", "file write failed", "unexpected pos")


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Lock the folder. Raises WorkError while another process holds it."""
    try:
        file = lock(folder / "lock")
    except OSError as error:
        raise InputError(f"the lock cannot be used: {why(error)}", file=str(folder / "lock"), fix="move it") from None
    if file is None:
        raise WorkError("another process trains in this folder", file=str(folder), fix="wait for it")
    with file:
        yield


def _remove(path: Path) -> None:
    """Remove a file, link or folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
