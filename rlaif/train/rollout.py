"""What sampling from a policy means in training: prompts and completions as token ids, and as one padded batch.

Knows how completions are drawn and where they stand in a tensor; knows nothing of rewards, losses or optimisers.
Completions come from the policy's own distribution (temperature 1, no truncation, no penalty), because that is the
distribution whose log-probabilities the loss is about. A completion is its tokens up to and with the end token, or
`max_tokens` of them; every mask follows from these lengths, never from which token stands somewhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlaif.engines.chat import Chat
from rlaif.records import Message, writable
from rlaif.train import tokens
from rlaif.train.examples import PromptOnly
from rlaif.train.tokens import Counts


@dataclass(frozen=True, slots=True)
class PolicyPrompt:
    """A prompt as a caller knows it and as the policy is given it."""

    messages: tuple[Message, ...]
    ids: list[int]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion sampled from the policy. `ids` include the end token when it came, which `ended` says."""

    prompt: PolicyPrompt
    ids: list[int]
    ended: bool
    text: str  # as a model in use would return it: without special tokens and outer white space


@dataclass(frozen=True, slots=True)
class Padded:
    """B rollouts as tensors: prompts padded on the left to P tokens, completions on the right to T, meeting at P.

    So a completion's tokens, their log-probabilities and their values are (B, T) without looking anything up, and a
    model need compute no logits of prompts.
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
        """What a model's forward pass takes."""
        positions = (self.attended.cumsum(-1) - 1).clamp(min=0)
        return {
            "input_ids": self.ids,
            "attention_mask": self.attended.long(),
            "position_ids": positions,
            "use_cache": False,
        }

    def predicting(self, states: Tensor) -> Tensor:
        """Of something at the last T + 1 or more places, (B, >T, ...), what stands before each token, (B, T, ...)."""
        return states[:, -self.mask.shape[1] - 1 : -1]


def tokenize(chat: Chat, prompts: Iterable[PromptOnly], room: int) -> tuple[list[PolicyPrompt], Counts]:
    """Each prompt as the policy is asked it, at most `room` tokens: cut from the left, or dropped as too long.

    Raises InputError for a template that refuses a prompt's messages.
    """
    counts = Counts()
    kept = []
    for prompt in prompts:
        whole = tokens.prompt(chat, prompt.messages)
        ids = tokens.cut(chat, whole, room)
        if ids is None:
            counts.dropped["too-long"] += 1
        else:
            counts.kept += 1
            counts.cut += ids is not whole
            kept.append(PolicyPrompt(prompt.messages, ids))
    return kept, counts


def prompts_of(prompts: Sequence[PolicyPrompt], iteration: int, batch_size: int, seed: int) -> list[PolicyPrompt]:
    """The prompts of an iteration, counted from 0, which alone says where in the seeded passes over them it stands.

    Every prompt comes once a pass, in another order each time; a batch may end one pass and begin the next.
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
    """One completion of each prompt, drawn with random numbers that depend on `seed` and `iteration` alone.

    Replaces the model's `generation_config`, and leaves torch's random state as it was.
    """
    # `generate` takes what its argument leaves open from the model's own configuration, so that becomes this one.
    model.generation_config = _plain_sampling(tokenizer, max_tokens)
    given = pad([(prompt.ids, []) for prompt in prompts], _pad_id(tokenizer), model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(random.Random(f"rollout {seed} {iteration}").getrandbits(63))
        generate: Any = model.generate
        written = generate(input_ids=given.ids, attention_mask=given.attended.long())[:, given.ids.shape[1] :]
    return [_rollout(tokenizer, *row) for row in zip(prompts, written.tolist(), strict=True)]


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


def _plain_sampling(tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> GenerationConfig:
    config: Any = GenerationConfig
    made: GenerationConfig = config(
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        max_new_tokens=max_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=_pad_id(tokenizer),
        # Of a policy that has come apart something is drawn still. Its log-probabilities are where that is noticed;
        # here it would be an assertion on the device, after which no other word could be said.
        remove_invalid_values=True,
    )
    return made


def _rollout(tokenizer: PreTrainedTokenizerBase, prompt: PolicyPrompt, written: list[int]) -> Rollout:
    """What was written up to the end token. `generate` fills a row that has ended up to the length of the longest."""
    ended = tokenizer.eos_token_id in written
    ids = written[: written.index(tokenizer.eos_token_id) + 1] if ended else written
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Rollout(prompt, ids, ended, writable(str(text)).strip())


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Fills rows up. It may be the end token, since nothing is ever recognised by it."""
    pad_id = tokenizer.pad_token_id
    assert isinstance(pad_id, int), "a loaded base model's tokenizer pads"
    return pad_id
