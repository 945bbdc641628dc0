"""The policies: a weak and a strong one, tuned from the base, and what all three write.

Their samples are what the annotator must be able to judge. A generator's noise is not a model's: a model cuts sentences
short, mixes categories and repeats itself.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from rlaif.tiny.build.chat import lesson, sample
from rlaif.tiny.build.training import Example, Progress, Stage, train
from rlaif.tiny.world import Question, read

TEMPERATURES = (0.7, 1.0, 1.3)


class Policy(NamedTuple):
    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    one_line: bool

    def complete(self, prompts: Sequence[str], *, temperature: float, seed: int) -> list[str]:
        """One completion to each of the world's prompts."""
        turns = [turns_of(prompt) for prompt in prompts]
        return sample(self.model, self.tokenizer, turns, temperature=temperature, seed=seed, one_line=self.one_line)


def turns_of(prompt: str) -> tuple[str, ...]:
    question = read(prompt)
    assert question is not None, prompt
    return question.turns


def tune(
    base: Policy,
    chat_template: str,
    demonstrate: Callable[[random.Random], tuple[Question, str]],
    *,
    name: str,
    pools: int,
    rates: tuple[float, float],
    seed: int,
    checkpoint: Path,
    report: Callable[[str], None],
) -> tuple[Policy, Progress]:
    """A copy of the base, tuned in the chat format on what `demonstrate` draws."""
    model, tokenizer = copy.deepcopy(base.model), copy.deepcopy(base.tokenizer)
    tokenizer.chat_template = chat_template

    def draw(rng: random.Random) -> Example:
        question, completion = demonstrate(rng)
        return lesson(tokenizer, question.turns, completion)

    stage = Stage(name, pools, rates, draw)
    progress = train(model, [stage], seed=seed, checkpoint=checkpoint, batch_tokens=1024, report=report)
    return Policy(model, tokenizer, one_line=False), progress


def sample_policies(policies: Sequence[Policy], prompts: Sequence[str], seed: int) -> dict[str, list[str]]:
    """For each prompt, one completion by each policy at each temperature."""
    by_prompt: dict[str, list[str]] = {prompt: [] for prompt in prompts}
    for number, policy in enumerate(policies):
        for temperature in TEMPERATURES:
            seeded = random.Random(f"{seed} {number} {temperature}").randrange(2**31)
            completions = policy.complete(prompts, temperature=temperature, seed=seeded)
            for prompt, completion in zip(prompts, completions, strict=True):
                by_prompt[prompt].append(completion)
    return by_prompt
