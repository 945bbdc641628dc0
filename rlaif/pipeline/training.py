"""The train stage: which inputs make a model, whether it is there already, and the training itself.

A model's folder holds the digest of its inputs in `key`, written with the weights and renamed with them, so that a
folder is a whole model with its key or is not there.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rlaif
from rlaif.config import LocalModel, TrainStage
from rlaif.engines.identity import model_folder, weights_digest
from rlaif.engines.protocol import Engine
from rlaif.errors import EngineError, InputError, RlaifError
from rlaif.formats import Conversation, StatedPreference
from rlaif.judges.verifiers import Check, share_passed
from rlaif.judges.verifying import outcomes_of, own_checks
from rlaif.pipeline.folder import read_json, read_text, write_text
from rlaif.pipeline.manifest import TRAINING_PACKAGES, versions
from rlaif.records import Message, Preference, Prompt, Row, Split, digest, prompt_id
from rlaif.resources import find

IRRELEVANT = {"base", "name", "data", "reward", "checkpoint_steps"}  # names and habits: they change no weight

# A conversation; or a prompt and its completion; or a prompt, what was chosen and what was rejected; or a prompt alone.
Lesson = tuple[Message, ...] | tuple[tuple[Message, ...], str] | tuple[tuple[Message, ...], str, str]
Lessons = list[tuple[Split, Lesson]]


# The splits that a trainer has no use for: its model does not depend on them.
_UNUSED: dict[str, tuple[Split, ...]] = {
    "sft": ("held-out",),
    "rm": ("held-out",),
    "dpo": ("held-out",),
    "ppo": ("held-out", "validation"),
}


class Reward(NamedTuple):
    """What PPO is rewarded by: its identity, its score as a plain function, and the folder of a reward model."""

    folder: Path | None  # None where code verifies
    identity: str
    score: Callable[[Sequence[tuple[Message, ...]], Sequence[str]], list[float | None]]


def reward_of(spec: LocalModel, engine: Engine, loop: asyncio.AbstractEventLoop) -> Reward:
    """A reward model as a trainer's thread calls it: each score is asked of the engine on `loop`."""

    def score(prompts: Sequence[tuple[Message, ...]], completions: Sequence[str]) -> list[float | None]:
        items = list(zip(prompts, completions, strict=True))
        scores = asyncio.run_coroutine_threadsafe(engine.score(items), loop).result()
        return [None if isinstance(score, EngineError) else score for score in scores]

    return Reward(weights_folder(spec), engine.identity, score)


def reward_by_checks(checks: Sequence[Check], prompts: Iterable[Prompt]) -> Reward:
    """The share of checks that a completion passes, its prompt's own among them; None where one cannot be made.

    `prompts` are those trained on, for their references and checks.
    """
    known = {prompt.id: prompt for prompt in prompts if prompt.reference or prompt.checks}

    def score(prompts: Sequence[tuple[Message, ...]], completions: Sequence[str]) -> list[float | None]:
        found = []
        for messages, completion in zip(prompts, completions, strict=True):
            prompt = known.get(prompt_id(messages)) or Prompt(messages=messages)
            found.append(share_passed(outcomes_of((*checks, *own_checks(prompt)), prompt, completion)))
        return found

    facts = [[identifier, prompt.reference, prompt.checks] for identifier, prompt in sorted(known.items())]
    return Reward(None, digest([[check.model_dump(mode="json") for check in checks], facts]), score)


def conversations(items: Iterable[Conversation]) -> Lessons:
    """Each conversation, or its last turn apart where that alone is learnt."""
    return [
        (item.split, item.messages if item.turns == "all" else (item.messages[:-1], item.messages[-1].content))
        for item in items
    ]


def revisions(rows: Iterable[Row]) -> Lessons:
    """Each prompt with the last revision of each of its candidates."""
    found = [(row.prompt, row.last_revision(index)) for row in rows for index in range(len(row.candidates))]
    return [
        (prompt.split, (*prompt.messages, Message(role="assistant", content=end.text)))
        for prompt, end in found
        if end is not None
    ]


def preferences(items: Iterable[Preference | StatedPreference]) -> Lessons:
    return [
        (p.split, (p.prompt.messages, p.chosen, p.rejected))
        if isinstance(p, StatedPreference)
        else (p.prompt.split, (p.prompt.messages, p.chosen.completion.text, p.rejected.completion.text))
        for p in items
    ]


def prompts(items: Iterable[Prompt]) -> Lessons:
    return [(prompt.split, prompt.messages) for prompt in items]


def training_key(
    stage: TrainStage, base: str, lessons: Sequence[tuple[Split, Lesson]], template: str | None, reward: str | None
) -> str:
    """The digest of all that determines the trained model.

    `base` is the digest of the weights it starts from, since how that model is run for sampling does not matter here;
    `reward` is the identity of the reward model, whose precision does.
    """
    unused = _UNUSED[stage.method]
    return digest(
        {
            "trainer": stage.method,
            "settings": stage.trainer.model_dump(mode="json", exclude=IRRELEVANT),
            "base": base,
            "reward": reward,
            "lessons": digest([[split, _plain(lesson)] for split, lesson in lessons if split not in unused]),
            "template": template,
            "versions": {"rlaif": rlaif.__version__, **versions(*TRAINING_PACKAGES)},
        }
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return [value.role, value.content]
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def finished(out: Path, key: str) -> dict[str, Any] | None:
    """What the training of `out` recorded, when it was made from the inputs of `key` and its files are as they were."""
    record = read_json(out / "training.json") if read_text(out / "key") == key else None
    if record is None:
        return None
    try:
        return record if record.get("weights") == weights_digest(out) else None
    except RlaifError:  # a file of the model is gone
        return None


def train(
    stage: TrainStage,
    base: LocalModel,
    lessons: Sequence[tuple[Split, Lesson]],
    template: str | None,
    out: Path,
    key: str,
    on_step: Callable[[dict[str, float]], None],
    reward: Reward | None = None,
) -> dict[str, Any]:
    """Train one model and return its record. An unfinished training of other inputs is thrown away; this one's goes on.

    Held-out lessons are left out and counted: a pipeline may sample on all prompts, but nothing trains on those.
    """
    partial = _partial(out)
    if partial.exists() and read_text(partial / "key") != key:
        shutil.rmtree(partial)
    write_text(partial / "key", key)
    if out.exists():  # moved aside first: half of an old model must never stand under its name
        aside = out.with_name(out.name + ".old")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(out, aside)
        shutil.rmtree(aside)
    split: dict[Split, list[Any]] = {"train": [], "validation": [], "held-out": []}
    for of, lesson in lessons:
        split[of].append(lesson)
    folder = weights_folder(base)
    if stage.sft:
        from rlaif.train.sft import Completed, train_sft

        rows = {of: [Completed(*row) if isinstance(row[1], str) else row for row in part] for of, part in split.items()}
        train_sft(stage.sft, folder, rows["train"], rows["validation"], out, on_step, template)
    elif stage.ppo:
        from rlaif.train.ppo import train_ppo

        assert reward is not None
        train_ppo(stage.ppo, folder, reward.folder, split["train"], reward.score, out, on_step)
    else:
        from rlaif.train.dpo import train_dpo
        from rlaif.train.pairs import PreferencePair
        from rlaif.train.rm import train_rm

        pairs = {of: [PreferencePair(*lesson) for lesson in part] for of, part in split.items()}
        if stage.rm:
            train_rm(stage.rm, folder, pairs["train"], pairs["validation"], out, on_step)
        else:
            assert stage.dpo is not None
            train_dpo(stage.dpo, folder, pairs["train"], pairs["validation"], out, on_step)
    record = finished(out, key)
    assert record is not None, f"{out} was trained but holds no record"
    return record


def weights_folder(spec: LocalModel) -> Path:
    return model_folder(spec.hub, spec.revision) if spec.hub else find(str(spec.path))


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def refuse_foreign(out: Path) -> None:
    """Raise when what lies where the training would keep its checkpoints is not a training's."""
    partial = _partial(out)
    if partial.exists() and not (partial / "key").is_file():
        raise InputError("the folder is not an unfinished training", file=str(partial), fix="name another with --out")


def left_out(method: str, lessons: Sequence[tuple[Split, Lesson]]) -> Counter[str]:
    """Lessons that are not learnt from, by the split they are in: PPO has no use for validation prompts either."""
    return Counter(split for split, _ in lessons if split in _UNUSED[method])
