"""The policies whose completions the annotator must be able to judge: the base, and the base tuned on demonstrations.

A generator's noise is not a model's: a model cuts sentences short, mixes categories and repeats itself. So the last
lessons of the annotator are about samples of the two policies at several temperatures.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import NamedTuple

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from rlaif.build.chat import lesson, sample
from rlaif.build.training import POOL, Stage, train

TEMPERATURES = (0.7, 1.0, 1.3)


class Policy(NamedTuple):
    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    one_line: bool

    def complete(self, prompts: Sequence[str], *, temperature: float, seed: int) -> list[str]:
        return sample(self.model, self.tokenizer, prompts, temperature=temperature, seed=seed, one_line=self.one_line)


def tune(base: Policy, chat_template: str, demonstrations: Sequence[tuple[str, str]], seed: int) -> Policy:
    """A copy of the base, tuned for three epochs on demonstrations in the chat format."""
    model, tokenizer = copy.deepcopy(base.model), copy.deepcopy(base.tokenizer)
    tokenizer.chat_template = chat_template
    examples = [lesson(tokenizer, prompt, completion) for prompt, completion in demonstrations]
    pools = max(1, 3 * len(examples) // POOL)
    train(
        model,
        [Stage("tuning", pools, (1.2e-3, 1e-4), lambda rng: rng.choice(examples))],
        seed=seed,
        batch_tokens=1024,
        report=lambda _: None,
    )
    return Policy(model, tokenizer, one_line=False)


def sample_policies(policies: Sequence[Policy], prompts: Sequence[str], seed: int) -> dict[str, list[str]]:
    """For each prompt, one completion by each policy at each temperature."""
    found: dict[str, list[str]] = {prompt: [] for prompt in prompts}
    for number, policy in enumerate(policies):
        for temperature in TEMPERATURES:
            seeded = random.Random(f"{seed} {number} {temperature}").randrange(2**31)
            completions = policy.complete(prompts, temperature=temperature, seed=seeded)
            for prompt, completion in zip(prompts, completions, strict=True):
                found[prompt].append(completion)
    return found
