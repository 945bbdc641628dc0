"""A plain training loop for the tiny models: AdamW, a piecewise linear learning rate, resumable to the same numbers.

Knows token ids, not what they say. Examples come in pools: pool k of a stage is drawn from a random stream of its own,
sorted by length into batches and consumed whole. A checkpoint is written between pools and holds all that the next pool
needs, so a build that was killed goes on to exactly the losses it would have had. It also holds marks of what was
trained on, and is passed over when they are no longer those of the stages at hand.

Batches are padded on the right without an attention mask: no token sees a later one, so padding cannot reach it. Logits
are computed only where something is learnt, and attention is spelled out: at these sizes both halve the time of a step.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlaif.tiny.build.tokenizer import END, PAD, encode


class Example(NamedTuple):
    """Token ids, of which those from `start` on are learnt."""

    ids: list[int]
    start: int


Draw = Callable[[random.Random], Example]


@dataclass(frozen=True)
class Stage:
    """One part of a curriculum: how many pools of which examples, the learning rate going from one value to another."""

    name: str
    pools: int
    rates: tuple[float, float]
    draw: Draw


POOL = 256  # examples; many batches of like length, few enough that a checkpoint is never far away
BATCH_TOKENS = 2048  # padded; larger batches run little faster on one thread, and learn less per token
WARM_UP = 60  # steps
CHECKPOINT_SECONDS = 30.0


def llama(hidden: int, heads: int, mlp: int, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama of four layers that every engine can run: tied embeddings, no option away from its default."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=hidden,
        num_hidden_layers=4,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=mlp,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=None,
        eos_token_id=encode(tokenizer, END)[0],
        pad_token_id=encode(tokenizer, PAD)[0],
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")
    return model


@dataclass
class Progress:
    """What a training has come to: the mean loss per learnt token of each pool, and the tokens and seconds spent."""

    stage: int = 0
    pool: int = 0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def train(
    model: LlamaForCausalLM,
    stages: Sequence[Stage],
    *,
    seed: int,
    checkpoint: Path | None = None,
    batch_tokens: int = BATCH_TOKENS,
    report: Callable[[str], None] = print,
) -> Progress:
    """Train in place through all stages, going on from the checkpoint if it is one of the same model and stages."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    marks = _marks(model, stages, seed) if checkpoint else []
    progress = _resume(model, optimizer, checkpoint, marks) if checkpoint else Progress()
    saved = time.monotonic()
    model.train()
    for at in range(progress.stage, len(stages)):
        stage = stages[at]
        for pool in range(progress.pool, stage.pools):
            began, total, learnt = time.monotonic(), 0.0, 0
            batches = _batches(stage, pool, seed, batch_tokens)
            for index, batch in enumerate(batches):
                done = (pool + index / len(batches)) / stage.pools
                rate = stage.rates[0] + done * (stage.rates[1] - stage.rates[0])
                rate *= min(1.0, (progress.steps + 1) / WARM_UP)
                loss, count = _step(model, optimizer, batch, rate)
                total, learnt = total + loss * count, learnt + count
                progress.steps += 1
                progress.tokens += sum(len(example.ids) for example in batch)
            progress.losses.append(total / learnt)
            progress.seconds += time.monotonic() - began
            progress.stage, progress.pool = at, pool + 1
            last = pool + 1 == stage.pools
            if checkpoint and (last or time.monotonic() - saved > CHECKPOINT_SECONDS):
                saved = time.monotonic()
                _save(model, optimizer, checkpoint, marks[: at + 1], progress)
            if last or pool % max(1, stage.pools // 10) == 0:
                report(
                    f"{stage.name}: pool {pool + 1}/{stage.pools}, loss {progress.losses[-1]:.3f}, "
                    f"{progress.tokens / 1e6:.2f}M tokens, {progress.seconds:.0f} s"
                )
        progress.pool = 0
    model.eval()
    return progress


def _batches(stage: Stage, pool: int, seed: int, batch_tokens: int) -> list[list[Example]]:
    rng = random.Random(f"{seed} {stage.name} {pool}")
    examples = sorted((stage.draw(rng) for _ in range(POOL)), key=lambda example: len(example.ids))
    batches: list[list[Example]] = [[]]
    for example in examples:
        if (len(batches[-1]) + 1) * len(example.ids) > batch_tokens:
            batches.append([])
        batches[-1].append(example)
    rng.shuffle(batches)
    return batches


def _step(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, batch: Sequence[Example], rate: float
) -> tuple[float, int]:
    width = max(len(example.ids) for example in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    learnt = torch.zeros(len(batch), width, dtype=torch.bool)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        learnt[row, max(1, example.start) : len(example.ids)] = True
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden[learnt[:, 1:]])
    loss = functional.cross_entropy(logits.float(), ids[:, 1:][learnt[:, 1:]])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return float(loss.detach()), int(learnt.sum())


def _marks(model: LlamaForCausalLM, stages: Sequence[Stage], seed: int) -> list[str]:
    """Digests of what each stage trains, on what and how fast; its first pool stands for all of its examples."""
    start = hashlib.sha256()
    for weights in model.state_dict().values():
        start.update(weights.numpy().tobytes())
    marks = []
    for stage in stages:
        rng = random.Random(f"{seed} {stage.name} 0")
        first = [stage.draw(rng) for _ in range(POOL)]
        decisive = [start.hexdigest(), model.config.to_diff_dict(), stage.name, stage.pools, stage.rates, seed, first]
        marks.append(hashlib.sha256(json.dumps(decisive, default=str).encode()).hexdigest())
    return marks


def _save(
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    path: Path,
    marks: Sequence[str],
    progress: Progress,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    state = {"marks": list(marks), "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "progress": vars(progress)}, unfinished)
    os.replace(unfinished, path)


def _resume(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, path: Path, marks: Sequence[str]) -> Progress:
    if not path.exists():
        return Progress()
    state = torch.load(path, weights_only=True)
    if state["marks"] != list(marks[: len(state["marks"])]):
        return Progress()
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])
