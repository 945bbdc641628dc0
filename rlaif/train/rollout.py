"""Sampling from a policy in training: prompts and completions as token ids, and as one padded batch.

Knows nothing of rewards, losses or optimisers. Completions are sampled from the policy's own distribution (temperature
1, no truncation, no penalty), because the loss needs its log-probabilities. A completion is its tokens through the end
token, or `max_tokens` of them; every mask follows from these lengths, never from token ids.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlaif.engines.chat import Chat
from rlaif.records import Message, writable
from rlaif.train import models, tokenizing, tokens
from rlaif.train.examples import PromptOnly
from rlaif.train.tokens import Counts


@dataclass(frozen=True, slots=True)
class PolicyPrompt:
    """A prompt as messages, and as the policy's token ids."""

    messages: tuple[Message, ...]
    ids: list[int]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion sampled from the policy. `ids` include the end token if it `ended`."""

    prompt: PolicyPrompt
    ids: list[int]
    ended: bool
    text: str  # as an engine returns it: without special tokens and outer white space


@dataclass(frozen=True, slots=True)
class Padded:
    """B rollouts as tensors: prompts padded on the left to P tokens, completions on the right to T.

    All completions start at P, so their tokens, log-probabilities and values are (B, T) slices, and no logits of
    prompts are computed.
    """

    ids: Tensor  # (B, P + T)
    attended: Tensor  # (B, P + T) true on tokens
    mask: Tensor  # (B, T) true on the completions' tokens

    def rows(self, index: Sequence[int]) -> Padded:
        chosen = torch.tensor(index, device=self.ids.device)
        return Padded(self.ids[chosen], self.attended[chosen], self.mask[chosen])

    @property
    def completions(self) -> Tensor:
        """(B, T) the completions' token ids."""
        return self.ids[:, -self.mask.shape[1] :]

    @property
    def inputs(self) -> dict[str, Any]:
        """The arguments of a model's forward pass."""
        positions = (self.attended.cumsum(-1) - 1).clamp(min=0)
        return {
            "input_ids": self.ids,
            "attention_mask": self.attended.long(),
            "position_ids": positions,
            "use_cache": False,
        }

    def predicting(self, states: Tensor) -> Tensor:
        """From states at the last T + 1 or more positions, (B, >T, ...), the one before each token, (B, T, ...)."""
        return states[:, -self.mask.shape[1] - 1 : -1]


def tokenize(
    chat: Chat, prompts: Iterable[PromptOnly], room: int, kept: Path | None = None
) -> tuple[list[PolicyPrompt], Counts]:
    """Each prompt as token ids, at most `room`: truncated from the left, or dropped as too long.

    `kept` is as in `tokenizing.read`.

    Raises InputError for a template that refuses a prompt's messages.
    """
    counts = Counts()
    made = []
    numbered = enumerate((prompt.messages for prompt in prompts), 1)
    for _, messages, ((whole, _),) in tokenizing.read(chat, numbered, lambda each: [tokens.prompt(each)], kept):
        ids = tokens.cut(chat, whole, room)
        if ids is None:
            counts.dropped["too-long"] += 1
        else:
            counts.kept += 1
            counts.cut += ids is not whole
            made.append(PolicyPrompt(messages, ids))
    return made, counts


def prompts_of(prompts: Sequence[PolicyPrompt], iteration: int, batch_size: int, seed: int) -> list[PolicyPrompt]:
    """The prompts of an iteration, counted from 0. They depend on the arguments alone, so a training can resume.

    Every prompt comes once per pass, each pass in a new seeded order; a batch may end one pass and begin the next.
    """
    chosen: list[PolicyPrompt] = []
    drawn_before = iteration * batch_size
    while len(chosen) < batch_size:
        number, start = divmod(drawn_before + len(chosen), len(prompts))
        order = random.Random(f"prompts {seed} {number}").sample(range(len(prompts)), len(prompts))
        chosen += [prompts[i] for i in order[start : start + batch_size - len(chosen)]]
    return chosen


def draw(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[PolicyPrompt],
    *,
    max_tokens: int,
    seed: int,
    iteration: int,
) -> list[Rollout]:
    """One completion of each prompt, with random numbers that depend on `seed` and `iteration` alone.

    Replaces the model's `generation_config`; leaves torch's random state unchanged.
    """
    # `generate` takes unset options from the model's own configuration, so that is replaced.
    ends = models.end_ids(model, tokenizer)
    model.generation_config = _plain_sampling(ends, _pad_id(tokenizer), max_tokens)
    given = pad([(prompt.ids, []) for prompt in prompts], _pad_id(tokenizer), model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(random.Random(f"rollout {seed} {iteration}").getrandbits(63))
        generate: Any = model.generate
        written = generate(input_ids=given.ids, attention_mask=given.attended.long())[:, given.ids.shape[1] :]
    return [_rollout(tokenizer, ends, *row) for row in zip(prompts, written.tolist(), strict=True)]


def pad(rows: Sequence[tuple[list[int], list[int]]], pad_id: int, device: torch.device) -> Padded:
    """Rows of prompt ids and completion ids as one batch."""
    before, after = (max(len(row[side]) for row in rows) for side in (0, 1))
    ids, attended = [], []
    for prompt, completion in rows:
        left, right = before - len(prompt), after - len(completion)
        ids.append([pad_id] * left + prompt + completion + [pad_id] * right)
        attended.append([False] * left + [True] * (len(prompt) + len(completion)) + [False] * right)
    mask = torch.tensor(attended, device=device)
    return Padded(torch.tensor(ids, device=device), mask, mask[:, before:])


def batch(rollouts: Sequence[Rollout], tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Padded:
    return pad([(rollout.prompt.ids, rollout.ids) for rollout in rollouts], _pad_id(tokenizer), device)


def _plain_sampling(ends: list[int], pad_id: int, max_tokens: int) -> GenerationConfig:
    config: Any = GenerationConfig
    made: GenerationConfig = config(
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        max_new_tokens=max_tokens,
        eos_token_id=ends,
        pad_token_id=pad_id,
        # A diverged policy still samples, and its log-probabilities show the problem. Without this, a device-side
        # assertion would end the process.
        remove_invalid_values=True,
    )
    return made


def _rollout(
    tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], prompt: PolicyPrompt, written: list[int]
) -> Rollout:
    """The tokens through the first end token. `generate` pads rows that have ended to the length of the longest."""
    length = next((i for i, token in enumerate(written, 1) if token in ends), None)
    ids = written[:length]
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Rollout(prompt, ids, length is not None, writable(str(text)).strip())


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token. It may be the end token: nothing is recognised by it."""
    pad_id = tokenizer.pad_token_id
    assert isinstance(pad_id, int), "a loaded base model's tokenizer pads"
    return pad_id
