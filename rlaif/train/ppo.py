"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) of a language model against any reward.

The reward of a completion is score - beta * (log policy - log reference), as in Ziegler et al. 2019 (arXiv 1909.08593)
and Stiennon et al. 2020 (arXiv 2009.01325): the second term applies to each token, the score to the last one. An
iteration samples a batch of completions, scores them, and makes `epochs` passes of minibatch updates over them.

Where implementations differ (Huang et al. 2024, arXiv 2403.17031), here: policy and value model have separate weights
and optimisers, both without dropout; the value model starts from the reward model; advantages are whitened over the
batch, rewards are not; beta is fixed; the score of a completion that did not end is reduced by a penalty.

With `lora` both have an adapter over frozen weights, and the reference is the policy without its adapter.

A minibatch is one update. It is computed in `accumulate` pieces, whose tokens weigh alike, so that only a piece's
activations and logits are in memory.

Knows models and optimisers. The score is the caller's: a reward model, a judge or checks in code.
"""

from __future__ import annotations

import copy
import math
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlaif.config import PPOSettings
from rlaif.engines.adapters import Source
from rlaif.engines.transformers import quietly
from rlaif.errors import WorkError
from rlaif.train import lora, memory, models, ppo_math, precision, rollout
from rlaif.train.examples import OnStep, PromptOnly, RewardFunction
from rlaif.train.kept_files import Place
from rlaif.train.models import TrainResult
from rlaif.train.reporting import reporting
from rlaif.train.rollout import Padded, Rollout

KEPT_CHECKPOINTS = 2
SUMMARISED = 5  # first and last iterations that a training's record averages over, at most
MAX_GRAD_NORM = 1.0


def train_ppo(
    settings: PPOSettings,
    base: Source,
    value_init: Source | None,
    prompts: Iterable[PromptOnly],
    reward: RewardFunction,
    place: Place,
    on_step: OnStep,
    template: str | None = None,
) -> TrainResult:
    """Train `base` to earn `reward` on `prompts` in a job's folder. A step is an iteration.

    `value_init` is the reward model that the value model starts from; without one it starts from the base, with a head
    of zeros. `reward` scores completions given their prompts; one that cannot be scored is None and is left out of its
    iteration.

    Called again with the same arguments after an interruption, it resumes from its last checkpoint, and reports steps
    since then a second time.

    Raises InputError for incompatible models, WorkError for scores or losses that are not finite, or too few scores.
    """
    began = time.monotonic()
    with quietly():
        policy, tokenizer = models.load(base, template, settings)
        chat = models.trained_chat(settings, policy, tokenizer)
        value_model = _value_model(base, value_init, tokenizer)
        max_length = models.fitting(policy, settings.max_length)
        policy_prompts, counts = rollout.tokenize(chat, prompts, max_length - settings.max_tokens, place.tokens)
        counts.check(max_length, settings.max_length, chat, policy.config)
        policy = lora.adapted(settings.lora, policy, settings.seed, scores=False)
        value_model = lora.adapted(settings.lora, value_model, settings.seed, scores=True)
        learner = Learner(settings, policy, value_model, tokenizer)
        if checkpoint := models.newest_checkpoint(place.folder):
            learner.restore(checkpoint)
        with reporting(settings.report_to, place.folder, policy) as report:
            while len(learner.history) < settings.iterations:
                _iterate(learner, policy_prompts, reward, place.folder)
                try:
                    report(learner.history[-1])  # before its checkpoint: what resumes from that reports it no more
                    on_step(learner.history[-1])
                finally:
                    if len(learner.history) % settings.checkpoint_steps == 0:
                        _write_checkpoint(learner, place.folder)
        result = models.result(counts, steps=settings.iterations, metrics=summary(learner.history), began=began)
        models.save(learner.policy.model, tokenizer, place.folder, result)
        if settings.save == "merged":
            models.merge(place.folder)
        if settings.keep_value_model:
            value = learner.value.model
            whole = value if settings.lora is None else value.merge_and_unload()
            models.save_value_model(whole, value_init or base, place.folder)
        return result


def _iterate(learner: Learner, prompts: Sequence[rollout.PolicyPrompt], reward: RewardFunction, folder: Path) -> None:
    """Sample, score and learn once."""
    settings, iteration = learner.settings, len(learner.history)
    rollouts = learner.sample(rollout.prompts_of(prompts, iteration, settings.batch_size, settings.seed))
    scored, scores = _scored(rollouts, reward, iteration)
    try:
        learner.learn(scored, scores, unscored=len(rollouts) - len(scored))
    except WorkError as error:
        raise models.with_checkpoint(error, folder) from None


def _value_model(base: Source, value_init: Source | None, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return models.flat_value_model(base) if value_init is None else models.load_value_model(value_init, tokenizer)


def _scored(rollouts: Sequence[Rollout], reward: RewardFunction, iteration: int) -> tuple[list[Rollout], list[float]]:
    """The completions that could be scored, and their scores."""
    scores = reward([r.prompt.messages for r in rollouts], [r.text for r in rollouts])
    pairs = [(r, float(score)) for r, score in zip(rollouts, scores, strict=True) if score is not None]
    if odd := [score for _, score in pairs if not math.isfinite(score)]:
        raise WorkError(
            f"the reward of {len(odd)} of {len(rollouts)} completions is not a finite number at step {iteration + 1} "
            f"(the first is {odd[0]})",
            fix="check the reward model",
        )
    if len(pairs) < 2:
        raise WorkError(
            f"{len(pairs)} of {len(rollouts)} completions could be scored at step {iteration + 1}, which is too few to "
            "learn from",
            fix="check why the others could not, or raise `batch_size`",
        )
    return [r for r, _ in pairs], [score for _, score in pairs]


# ---------------------------------------------------------------- forward passes


def predicted_logits(model: PreTrainedModel, batch: Padded) -> Tensor:
    """The logits that predict each token of the completions, (B, T, V) in float32."""
    logits = model(**batch.inputs, logits_to_keep=batch.mask.shape[1] + 1).logits
    return batch.predicting(logits).float()


def predicted_values(model: PreTrainedModel, batch: Padded) -> Tensor:
    """The value before each token of the completions, (B, T) in float32."""
    adapted: Any = model
    plain: Any = adapted.get_base_model() if isinstance(adapted, PeftModel) else adapted
    hidden = plain.base_model(**batch.inputs).last_hidden_state  # (B, P + T, D)
    return batch.predicting(plain.score(hidden))[..., 0].float()


class Experience(NamedTuple):
    """A batch under the models before the first update; each (B, T)."""

    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    entropy: Tensor


# ---------------------------------------------------------------- learning


class Trained:
    """A trained model with its optimiser. `key` names the setting of its learning rate in errors."""

    def __init__(self, model: PreTrainedModel, learning_rate: float, key: str) -> None:
        self.model: Any = model
        self.learning_rate, self.key = learning_rate, key
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=learning_rate, eps=1e-5)

    def step(self, loss: float, share: float, step: int) -> tuple[float, float]:
        """One update by the gradients at `share` of the learning rate; the rate and the gradient's norm.

        `loss` and `step` are for errors. Raises WorkError for a loss or a gradient that is not finite.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        if not (math.isfinite(loss) and torch.isfinite(norm)):
            raise WorkError(
                f"the loss is {loss:g} and its gradient's norm {norm.item():g} at step {step}",
                fix=f"lower `{self.key}`",
            )
        rate = share * self.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return rate, norm.item()

    def state_dict(self) -> dict[str, Any]:
        named = self.model.named_parameters(remove_duplicate=False)  # tied weights by both names
        frozen = {name for name, weight in named if not weight.requires_grad}
        model = {name: tensor for name, tensor in self.model.state_dict().items() if name not in frozen}
        return {"model": model, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(self.model.state_dict() | state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


class Learner:
    """Policy, reference and value model, and the metrics of every iteration so far.

    Policy, value model and history are its whole state: random draws depend on the seed and the iteration alone, so a
    learner resumes exactly from a checkpoint.
    """

    def __init__(
        self,
        settings: PPOSettings,
        policy: PreTrainedModel,
        value_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.settings, self.tokenizer = settings, tokenizer
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for model in (policy, value_model):
            torch.nn.Module.to(model, self.device)
            model.eval()  # no dropout: with it the ratio would not be 1 before the first update
        if memory.recomputed(settings, policy.num_parameters()):
            for model in (policy, value_model):
                models.recompute(model)
        self._reference = copy.deepcopy(policy).requires_grad_(False) if settings.lora is None else None
        self.policy = Trained(policy, settings.learning_rate, "learning_rate")
        if settings.value_learning_rate is None:
            self.value = Trained(value_model, settings.learning_rate, "learning_rate")
        else:
            self.value = Trained(value_model, settings.value_learning_rate, "value_learning_rate")
        self.history: list[dict[str, float]] = []

    def sample(self, prompts: Sequence[rollout.PolicyPrompt]) -> list[Rollout]:
        """One completion of each prompt by the current policy."""
        settings = self.settings
        with self._precision():
            return rollout.draw(
                self.policy.model,
                self.tokenizer,
                prompts,
                max_tokens=settings.max_tokens,
                seed=settings.seed,
                iteration=len(self.history),
                at_once=settings.sample_batch_size,
            )

    def learn(self, rollouts: Sequence[Rollout], scores: Sequence[float], *, unscored: int = 0) -> None:
        """One iteration's updates from completions of the current policy. Appends its metrics to the history.

        Metrics cover the scored completions; `unscored` counts the others.
        """
        settings, iteration = self.settings, len(self.history)
        batch = rollout.batch(rollouts, self.tokenizer, self.device)
        before = self.experience(batch)
        score = torch.tensor(scores, device=self.device)  # (B,)
        unfinished = torch.tensor([not r.ended for r in rollouts], device=self.device)  # (B,)
        rewards = ppo_math.token_rewards(
            score - settings.missing_eos_penalty * unfinished,
            before.logprobs,
            before.ref_logprobs,
            batch.mask,
            settings.beta,
        )
        advantages, returns = ppo_math.gae(rewards, before.values, batch.mask, settings.gamma, settings.gae_lambda)
        advantages = ppo_math.whiten(advantages, batch.mask)

        updates: list[dict[str, float]] = []
        for epoch in range(settings.epochs):
            for number, rows in enumerate(self._minibatches(len(rollouts), iteration, epoch)):
                share = self._share((iteration * settings.epochs + epoch) * self._updates_an_epoch + number)
                updates.append(self._update(batch, before, advantages, returns, rows, share))

        kl = ppo_math.sequence_kl(before.logprobs, before.ref_logprobs, batch.mask).mean().item()
        means = {
            name: sum(update[name] for update in updates) / len(updates)
            for name in ("policy_loss", "value_loss", "clip_fraction", "approx_kl", "grad_norm", "value_grad_norm")
        }
        self.history.append(
            {
                "step": iteration + 1,
                "steps": settings.iterations,
                "score": score.mean().item(),
                "kl": kl,
                "objective": rewards.sum(-1).mean().item(),
                "ended": 1 - unfinished.float().mean().item(),
                "length": batch.mask.sum(-1).float().mean().item(),
                **means,
                "ratio_start": updates[0]["ratio"],
                "entropy": ppo_math.masked_mean(before.entropy, batch.mask).item(),
                "explained_variance": ppo_math.explained_variance(before.values, returns, batch.mask).item(),
                "learning_rate": updates[-1]["learning_rate"],
                "unscored": unscored,
                "tokens": (self.history[-1]["tokens"] if self.history else 0) + int(batch.attended.sum()),
            }
        )

    def _update(
        self, batch: Padded, old: Experience, advantages: Tensor, returns: Tensor, rows: Sequence[int], share: float
    ) -> dict[str, float]:
        """One optimiser step of policy and value model on a minibatch, the `rows`; returns its metrics."""
        step = len(self.history) + 1
        for trained in (self.policy, self.value):
            trained.optimizer.zero_grad()
        tokens = batch.mask[rows].sum()
        told: dict[str, float] = defaultdict(float)
        for piece in _divided(rows, min(self.settings.accumulate, len(rows))):
            weight = (batch.mask[piece].sum() / tokens).item()  # so that each token weighs as in one piece
            before = Experience(*(column[piece] for column in old))
            for name, figure in self._add(batch.rows(piece), before, advantages[piece], returns[piece], weight).items():
                told[name] += weight * figure.item()
        rate, norm = self.policy.step(told["policy_loss"], share, step)
        _, value_norm = self.value.step(told["value_loss"], share, step)
        return dict(told) | {"grad_norm": norm, "value_grad_norm": value_norm, "learning_rate": rate}

    def _add(
        self, part: Padded, old: Experience, advantages: Tensor, returns: Tensor, weight: float
    ) -> dict[str, Tensor]:
        """Add the gradients of a part of a minibatch, times its weight in that; returns its metrics."""
        settings = self.settings
        with models.recomputing(self.policy.model):
            with self._precision():
                logprobs = ppo_math.token_logprobs(predicted_logits(self.policy.model, part), part.completions)
            policy_loss = ppo_math.policy_loss(logprobs, old.logprobs, advantages, part.mask, settings.clip)
            (policy_loss.loss * weight).backward()  # before the value model's: the activations of one are in memory
        with models.recomputing(self.value.model):
            with self._precision():
                values = predicted_values(self.value.model, part)
            value_loss = ppo_math.value_loss(values, old.values, returns, part.mask, settings.value_clip)
            (value_loss * weight).backward()
        return {
            "policy_loss": policy_loss.loss.detach(),
            "value_loss": value_loss.detach(),
            "clip_fraction": policy_loss.clip_fraction,
            "approx_kl": policy_loss.approx_kl,
            "ratio": policy_loss.ratio,
        }

    @torch.no_grad()
    def experience(self, batch: Padded) -> Experience:
        """The batch under policy, reference and value model before the first update."""
        parts = []
        size = math.ceil(self.settings.minibatch_size / self.settings.accumulate)
        for start in range(0, len(batch.mask), size):
            part = batch.rows(range(start, min(start + size, len(batch.mask))))
            with self._precision():
                logits = predicted_logits(self.policy.model, part)
                with self._as_reference() as reference:
                    ref_logits = predicted_logits(reference, part)
                values = predicted_values(self.value.model, part)
            parts.append(
                Experience(
                    ppo_math.token_logprobs(logits, part.completions),
                    ppo_math.token_logprobs(ref_logits, part.completions),
                    values,
                    ppo_math.entropy(logits),
                )
            )
        return Experience(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    @contextmanager
    def _as_reference(self) -> Iterator[PreTrainedModel]:
        """The base model: a copy of it, or a policy with an adapter without it."""
        if self._reference is not None:
            yield self._reference
            return
        with self.policy.model.disable_adapter():
            yield self.policy.model

    def restore(self, checkpoint: Path) -> None:
        """Resume from `checkpoint`, with the same result as without an interruption."""
        state = torch.load(checkpoint / "state.pt", map_location=self.device, weights_only=True)
        self.policy.load_state_dict(state["policy"])
        self.value.load_state_dict(state["value"])
        self.history = state["history"]

    def _share(self, update: int) -> float:
        """The share of the learning rate at an update, counted from 0 over all iterations: 1, falling to 0 at the end.

        Counted as if every completion were scored, so that the schedule does not depend on how many were.
        """
        if self.settings.schedule == "constant":
            return 1.0
        return 1 - update / (self.settings.iterations * self.settings.epochs * self._updates_an_epoch)

    @property
    def _updates_an_epoch(self) -> int:
        return self.settings.batch_size // self.settings.minibatch_size

    def _minibatches(self, rows: int, iteration: int, epoch: int) -> list[list[int]]:
        """A seeded order of the rows, in as few minibatches as hold them, of sizes that differ by one at most."""
        order = random.Random(f"minibatches {self.settings.seed} {iteration} {epoch}").sample(range(rows), rows)
        return _divided(order, math.ceil(rows / self.settings.minibatch_size))

    def _precision(self) -> torch.autocast:
        # Weights and optimiser stay in float32 under bfloat16: its 8 bits of precision would lose a step at 1e-6.
        in_bfloat16 = precision.computed_in(self.settings) == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=in_bfloat16)


def _divided(rows: Sequence[int], count: int) -> list[list[int]]:
    """The rows in `count` parts, of sizes that differ by one at most."""
    return [list(rows[len(rows) * i // count : len(rows) * (i + 1) // count]) for i in range(count)]


# ---------------------------------------------------------------- checkpoints and the record


def _write_checkpoint(learner: Learner, folder: Path) -> None:
    """Write the state of `learner`. The mark `complete` comes last: a checkpoint without it is not read."""
    checkpoint = folder / f"checkpoint-{len(learner.history)}"
    shutil.rmtree(checkpoint, ignore_errors=True)
    checkpoint.mkdir(parents=True)
    state = {"policy": learner.policy.state_dict(), "value": learner.value.state_dict(), "history": learner.history}
    torch.save(state, checkpoint / "state.pt")
    models.mark_complete(checkpoint)
    older = sorted(folder.glob("checkpoint-*"), key=models.step_of)
    for path in older[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(path)


def summary(history: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means of the metrics over the first and last few iterations."""

    def mean(name: str, part: Sequence[dict[str, float]]) -> float:
        return sum(step[name] for step in part) / len(part)

    window = min(SUMMARISED, len(history) // 2) or 1  # so that the two ends do not overlap
    first, last = history[:window], history[-window:]
    metrics = {"first_score": mean("score", first)}
    return metrics | {f"last_{name}": mean(name, last) for name in ("score", "kl", "ended", "length")}
