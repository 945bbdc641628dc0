"""Rewards as plain functions for a trainer: a reward model behind an engine, or checks in code.

Imports no torch; opening the engine does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from rlaif.engines.protocol import Engine
from rlaif.errors import EngineError
from rlaif.judges.verifiers import Check, share_passed
from rlaif.judges.verifying import outcomes_of, own_checks
from rlaif.records import Message, Prompt, digest, prompt_id
from rlaif.train.examples import PromptOnly, RewardFunction

Scores = list[float | EngineError]


def by_model(engine: Engine, wait: Callable[[Coroutine[Any, Any, Scores]], Scores]) -> RewardFunction:
    """The scores of the reward model that `engine` runs; None for a completion that it cannot score.

    `wait` runs a coroutine to its end: `on_loop` when an event loop runs in another thread, else a runner's `run`.
    The function raises EngineError when the engine cannot score at all.
    """

    def score(prompts: Sequence[tuple[Message, ...]], completions: Sequence[str]) -> list[float | None]:
        items = list(zip(prompts, completions, strict=True))
        return [None if isinstance(score, EngineError) else score for score in wait(engine.score(items))]

    return score


def on_loop(loop: asyncio.AbstractEventLoop) -> Callable[[Coroutine[Any, Any, Scores]], Scores]:
    """Runs coroutines on `loop` for a trainer in another thread."""
    return lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop).result()


def by_checks(checks: Sequence[Check], prompts: Iterable[PromptOnly]) -> RewardFunction:
    """The share of checks that a completion passes, in [0, 1], its prompt's own included; None if one does not apply.

    `prompts` are the training prompts, with their references and checks. The function raises EngineError for a prompt
    whose own checks cannot be read.
    """
    known = {prompt_id(prompt.messages): _prompt(prompt) for prompt in prompts if prompt.is_checked}

    def score(prompts: Sequence[tuple[Message, ...]], completions: Sequence[str]) -> list[float | None]:
        shares = []
        for messages, completion in zip(prompts, completions, strict=True):
            prompt = known.get(prompt_id(messages)) or Prompt(messages=messages)
            shares.append(share_passed(outcomes_of((*checks, *own_checks(prompt)), prompt, completion)))
        return shares

    return score


def identity_of_checks(checks: Sequence[Check], prompts: Iterable[PromptOnly]) -> str:
    """The digest of everything that determines the scores of `by_checks`."""
    facts = {prompt_id(p.messages): [p.reference, p.checks] for p in prompts if p.is_checked}
    dumped = [check.model_dump(mode="json") for check in checks]
    return digest([dumped, [[identifier, *fact] for identifier, fact in sorted(facts.items())]])


def _prompt(prompt: PromptOnly) -> Prompt:
    return Prompt(messages=prompt.messages, reference=prompt.reference, checks=prompt.checks)
