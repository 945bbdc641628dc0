"""The train stage: what it learns from, what rewards it, and its job in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.config import LocalModel, Training, TransformersModel
from rlaif.engines.identity import model_folder, weights_digest
from rlaif.engines.protocol import Engine
from rlaif.judges.verifiers import Check
from rlaif.pipeline.inputs import Inputs
from rlaif.records import Prompt
from rlaif.resources import find
from rlaif.train import examples, job, rewards
from rlaif.train.examples import Example, OnStep, RewardFunction, Survey
from rlaif.train.job import Job, RewardModel


class RewardSource(NamedTuple):
    """What PPO is rewarded by: its identity, its scores as a plain function, and a reward model or checks in code."""

    identity: str
    score: RewardFunction
    model: RewardModel | None = None
    checks: tuple[Check, ...] | None = None


def reward_of(spec: LocalModel, engine: Engine, loop: asyncio.AbstractEventLoop) -> RewardSource:
    """A reward model as a trainer's thread calls it: each score is asked of the engine on `loop`.

    Raises InputError or WorkError where its folder cannot be found.
    """
    model = RewardModel(weights_folder(spec))
    if isinstance(spec, TransformersModel):  # no other engine scores
        model = RewardModel(model.folder, spec.dtype, spec.device, spec.batch_size)
    return RewardSource(engine.identity, rewards.by_model(engine, rewards.on_loop(loop)), model=model)


def reward_by_checks(checks: Sequence[Check], prompts: Iterable[Prompt]) -> RewardSource:
    """The share of checks that a completion passes. `prompts` are those trained on, for their references and checks."""
    known = [prompt for prompt in examples.of_prompts(prompts) if prompt.reference or prompt.checks]
    identity = rewards.identity_of_checks(checks, known)
    return RewardSource(identity, rewards.by_checks(checks, known), checks=tuple(checks))


def examples_read(inputs: Inputs, name: str) -> Iterator[Example] | None:
    """What the stage `name` read from a file; None for a stage that made what it gives."""
    if name in inputs.conversations:
        return examples.of_conversations(inputs.conversations[name])
    if name in inputs.preferences:
        return examples.of_stated_preferences(inputs.preferences[name])
    return examples.of_prompts(inputs.prompts[name]) if name in inputs.prompts else None


def job_of(
    settings: Training, base: LocalModel, out: Path, survey: Survey, template: str | None, reward: RewardSource | None
) -> Job:
    """The training of `out`, with its key. Raises InputError or WorkError where the base model's files are missing."""
    folder = weights_folder(base)
    identity = None if reward is None else reward.identity
    key = job.training_key(settings, weights_digest(folder), survey.digest, template, identity)
    model, checks = (None, None) if reward is None else (reward.model, reward.checks)
    return Job(settings, folder, out, key, template, model, checks)


def train(training: Job, learnt: Iterable[Example], on_step: OnStep, reward: RewardSource | None) -> dict[str, Any]:
    """Write the job and train it in this process; the record of the training.

    Raises what `job.write_job` and `job.train` raise.
    """
    job.write_job(training, learnt)
    return job.train(training.folder, on_step, None if reward is None else reward.score)


def weights_folder(spec: LocalModel) -> Path:
    """The folder of a local model. Raises InputError or WorkError where it cannot be found or fetched."""
    return model_folder(spec.hub, spec.revision) if spec.hub else find(str(spec.path))
