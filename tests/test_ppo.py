"""PPO on tiny random models: the optimum where it can be enumerated, sampling, padding, resuming, guards."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

pytest.importorskip("trl")

import torch
from conftest import make_random_model
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    OPTConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from rlaif.config import PPOSettings
from rlaif.engines.identity import weights_digest
from rlaif.errors import InputError, WorkError
from rlaif.records import Message
from rlaif.train import job, lora, models, ppo, ppo_math, rollout
from rlaif.train.examples import OnStep, PromptOnly
from rlaif.train.job import Job, RewardModel
from rlaif.train.kept_files import Place
from rlaif.train.ppo import train_ppo
from rlaif.train.rollout import Padded, PolicyPrompt, Rollout
from rlaif.train.tokens import Counts, trainable_chat

Steps = list[dict[str, float]]
Asked = tuple[Message, ...]
Train = Callable[..., Any]


def user(text: str) -> Asked:
    return (Message(role="user", content=text),)


PROMPTS = [user(f"what is {i}?") for i in range(10)]


def settings_of(**changed: Any) -> PPOSettings:
    values = {
        "base": "base",
        "name": "trained",
        "reward": "reward",
        "learning_rate": 1e-3,
        "iterations": 6,
        "batch_size": 8,
        "minibatch_size": 4,
        "epochs": 2,
        "max_tokens": 6,
        "max_length": 64,
        "checkpoint_steps": 2,
    }
    return PPOSettings(**(values | changed))


def digits(prompts: Sequence[Asked], texts: Sequence[str]) -> list[float | None]:
    """A reward that any completion has: how many digits it holds, less a little for its length."""
    return [sum(c.isdigit() for c in text) - 0.1 * len(text) for text in texts]


@pytest.fixture(scope="session")
def reward_model(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random reward head on a random model, with the tokenizer of `random_model`."""
    folder = tmp_path_factory.mktemp("reward") / "model"
    config = LlamaConfig.from_pretrained(random_model, num_labels=1)
    torch.manual_seed(1)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(random_model).save_pretrained(folder)
    return folder


def by_job(out: Path, on_step: OnStep, base: Path, value_init: Path, **changed: Any) -> Any:
    """The record of a training by its job, as a run makes it."""
    prompts, reward = changed.pop("prompts", PROMPTS), changed.pop("score", digits)
    training = Job(settings_of(**changed), base, out, "the inputs' digest", reward=RewardModel(value_init))
    job.write_job(training, map(PromptOnly, prompts))
    return SimpleNamespace(**job.train(training.folder, on_step, reward))


@pytest.fixture
def train(random_model: Path, reward_model: Path, tmp_path: Path) -> Train:
    def run(out: str, on_step: OnStep, **changed: Any) -> Any:
        bases = changed.pop("model", random_model), changed.pop("value_init", reward_model)
        return by_job(tmp_path / out, on_step, *bases, **changed)

    return run


class Whole(NamedTuple):
    """A training that nothing disturbed."""

    out: Path
    steps: Steps
    result: Any


@pytest.fixture(scope="module")
def whole(random_model: Path, reward_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    out, steps = tmp_path_factory.mktemp("ppo") / "whole", Steps()
    return Whole(out, steps, by_job(out, steps.append, random_model, reward_model))


# ---------------------------------------------------------------- the optimum, where it can be enumerated

WORDS = ["<pad>", "<end>", "<unk>", "a", "b", "c", "d"]
END = WORDS.index("<end>")
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% if m['role'] == 'assistant' %}<end>{% endif %}{% endfor %}"
WORTH = {"a": {"a": 1.0, "b": -1.0, "c": 0.5, "d": -0.5, "a c": 0.0}, "b": {"": -0.5, "a": -1.0, "b b": -1.0, "d": 1.5}}
TOY = {"max_length": 8, "batch_size": 256, "minibatch_size": 128, "epochs": 4, "checkpoint_steps": 1000, "beta": 0.5}
TOY |= {"learning_rate": 5e-3, "value_learning_rate": 1e-2, "value_clip": 1.0}


def worth(prompt: str, text: str) -> float:
    return WORTH[prompt].get(text, 0.0)


def from_table(prompts: Sequence[Asked], texts: Sequence[str]) -> list[float | None]:
    return [worth(prompt[0].content, text) for prompt, text in zip(prompts, texts, strict=True)]


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a reward model of seven words, the first three of them special: a prompt is one word."""
    folder = tmp_path_factory.mktemp("toy")
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", chat_template=TEMPLATE
    )
    # Not the Llama of the other tests: it has no absolute positions, so to it `a a` is as `a`, and the optimum over two
    # tokens is out of its reach. Its dropout would show if it were on.
    config = GPT2Config(
        vocab_size=len(WORDS),
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=8,
        pad_token_id=0,
        eos_token_id=END,
        bos_token_id=None,
        tie_word_embeddings=False,
        initializer_range=0.3,
        num_labels=1,
    )
    torch.manual_seed(0)
    for name, kind in (("base", GPT2LMHeadModel), ("reward", GPT2ForSequenceClassification)):
        kind(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def completions(max_tokens: int) -> Iterator[tuple[int, ...]]:
    """Every completion there is: it goes on until the end token or to `max_tokens`."""
    for length in range(1, max_tokens + 1):
        for ids in itertools.product(range(len(WORDS)), repeat=length):
            if END not in ids[:-1] and (ids[-1] == END or length == max_tokens):
                yield ids


def distribution(folder: Path, prompt: str, max_tokens: int) -> torch.Tensor:
    """The log-probability of each completion, by nothing but forward passes."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    sums = []
    with torch.no_grad():
        for ids in completions(max_tokens):
            logits = model(torch.tensor([[WORDS.index(prompt), *ids]])).logits[0, :-1]
            sums.append(logits.log_softmax(-1)[range(len(ids)), list(ids)].sum())
    return torch.stack(sums)


@pytest.mark.parametrize(("max_tokens", "penalty"), [pytest.param(1, 0.0, marks=pytest.mark.lab), (2, 0.7)])
def test_the_policy_becomes_the_optimum_of_the_regularised_problem(
    toy: Path, tmp_path: Path, max_tokens: int, penalty: float
) -> None:
    """Over completions the optimum is reference * exp(reward / beta) / Z, and what it earns there is beta log Z.

    Of two tokens the first earns through what it leads to, and only completions without an end token are penalised.
    """
    settings = settings_of(**TOY, max_tokens=max_tokens, missing_eos_penalty=penalty, iterations=90, gae_lambda=1.0)
    prompts = [PromptOnly(user("a")), PromptOnly(user("b"))]
    train_ppo(settings, toy / "base", toy / "reward", prompts, from_table, Place(tmp_path), lambda _: None)
    everything = list(completions(max_tokens))
    assert len(everything) == (7 if max_tokens == 1 else 1 + 6 * 7)
    texts = [" ".join(WORDS[i] for i in ids if i > 2) for ids in everything]
    for prompt in "ab":
        earned = torch.tensor(
            [worth(prompt, text) - penalty * (END not in ids) for text, ids in zip(texts, everything, strict=True)]
        )
        reference = distribution(toy / "base", prompt, max_tokens)
        found = distribution(tmp_path / models.FINAL, prompt, max_tokens)
        tilted = reference + earned / settings.beta
        assert (tilted.softmax(-1) - reference.exp()).abs().sum() / 2 > 0.15
        assert (tilted.softmax(-1) - found.exp()).abs().sum() / 2 < 0.03
        objective = (found.exp() * (earned - settings.beta * (found - reference))).sum().item()
        assert objective == pytest.approx(settings.beta * tilted.logsumexp(-1).item(), abs=0.01)


# ---------------------------------------------------------------- sampling


def tokens_of(prompts: Sequence[Asked], model: Path, room: int = 64) -> list[PolicyPrompt]:
    chat = trainable_chat(AutoTokenizer.from_pretrained(model))
    return rollout.tokenize(chat, map(PromptOnly, prompts), room)[0]


def test_a_prompt_is_given_as_it_is_asked(random_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(random_model)
    (prompt,) = tokens_of([user("hi")], random_model)
    assert prompt.ids == tokenizer("<|user|> hi<|end|><|assistant|>")["input_ids"]
    assert prompt.messages == user("hi")


def test_completions_are_drawn_from_the_policys_own_distribution_whatever_its_file_says(toy: Path) -> None:
    model, tokenizer = models.load(toy / "base")
    model.generation_config = GenerationConfig(top_k=1, temperature=0.1, repetition_penalty=9.0, min_new_tokens=5)
    n = 4000
    drawn = rollout.draw(model, tokenizer, tokens_of([user("a")], toy / "base") * n, max_tokens=2, seed=0, iteration=0)
    exact = distribution(toy / "base", "a", 2).exp()
    places = {ids: i for i, ids in enumerate(completions(2))}
    counts = torch.bincount(torch.tensor([places[tuple(r.ids)] for r in drawn]), minlength=len(places))
    chi_squared = ((counts - n * exact) ** 2 / (n * exact)).sum().item()
    assert chi_squared < 76  # 42 degrees of freedom: more in one of a thousand draws


def test_a_completion_is_its_tokens_up_to_and_with_the_end_token(toy: Path) -> None:
    model, tokenizer = models.load(toy / "base")
    prompts = tokens_of([user("a b"), user("a")], toy / "base") * 40
    drawn = rollout.draw(model, tokenizer, prompts, max_tokens=4, seed=0, iteration=0)
    assert {r.ended for r in drawn} == {True, False} and {len(r.ids) for r in drawn} == {1, 2, 3, 4}
    assert any(0 in r.ids for r in drawn)  # the padding token, as a token that was drawn
    for r, prompt in zip(drawn, prompts, strict=True):
        assert r.prompt is prompt
        assert r.ended == (END in r.ids) and END not in r.ids[:-1]
        assert r.ended or len(r.ids) == 4
        assert r.text == " ".join(WORDS[i] for i in r.ids if i > 2)


def test_a_policy_whose_end_token_also_pads_is_sampled_alike(toy: Path) -> None:
    model, tokenizer = models.load(toy / "base")
    prompts = tokens_of([user("a b"), user("a")], toy / "base") * 40

    def drawn() -> list[Rollout]:
        return rollout.draw(model, tokenizer, prompts, max_tokens=4, seed=0, iteration=0)

    apart = drawn()
    tokenizer.pad_token = tokenizer.eos_token
    assert drawn() == apart
    batch = rollout.batch(apart, tokenizer, torch.device("cpu"))
    assert batch.mask.sum(-1).tolist() == [len(r.ids) for r in apart]


def test_what_is_drawn_depends_on_seed_and_iteration_alone(toy: Path) -> None:
    model, tokenizer = models.load(toy / "base")
    prompts = tokens_of([user("a")], toy / "base") * 40

    def drawn(seed: int, iteration: int) -> list[list[int]]:
        sampled = rollout.draw(model, tokenizer, prompts, max_tokens=4, seed=seed, iteration=iteration)
        return [r.ids for r in sampled]

    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = drawn(0, 0)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert drawn(0, 0) == first
    assert first != drawn(1, 0) != drawn(0, 1) != first


def test_every_prompt_comes_once_a_pass_in_an_order_of_its_own() -> None:
    prompts = [PolicyPrompt(user(str(i)), [i]) for i in range(5)]

    def ids(iteration: int, size: int, seed: int = 0) -> list[int]:
        return [prompt.ids[0] for prompt in rollout.prompts_of(prompts, iteration, size, seed)]

    stream = [i for iteration in range(15) for i in ids(iteration, 3)]
    passes = [stream[start : start + 5] for start in range(0, 45, 5)]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in passes)
    assert len({tuple(one) for one in passes}) > 5
    assert stream == ids(0, 45)  # more than one pass in a batch
    assert stream[:15] != ids(0, 15, seed=1)


# ---------------------------------------------------------------- padding, log-probabilities, values


ROWS = [([5, 6, 7], [8, 9, 1]), ([5], [8]), ([5, 6, 7, 8, 9, 10], [11, 0, 12, 13, 1]), ([0, 0], [7, 7])]


def padded(rows: Sequence[tuple[list[int], list[int]]], pad_id: int = 0) -> Padded:
    return rollout.pad(rows, pad_id, torch.device("cpu"))


def test_prompts_and_completions_meet_at_one_column() -> None:
    batch = padded([([5, 6], [7]), ([8], [9, 0])], pad_id=9)
    assert batch.ids.tolist() == [[5, 6, 7, 9], [9, 8, 9, 0]]
    assert batch.attended.tolist() == [[True, True, True, False], [False, True, True, True]]
    assert batch.mask.tolist() == [[True, False], [True, True]]
    assert batch.completions.tolist() == [[7, 9], [9, 0]]
    assert batch.inputs["position_ids"][1].tolist() == [0, 0, 1, 2]
    assert batch.rows([1]).ids.tolist() == [[9, 8, 9, 0]]


def test_a_rows_logprobs_do_not_depend_on_what_stands_beside_it(random_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(random_model)
    batch = padded(ROWS, pad_id=1)
    with torch.no_grad():
        together = ppo_math.token_logprobs(ppo.predicted_logits(model, batch), batch.completions)
        for found, (prompt, completion) in zip(together, ROWS, strict=True):
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            alone = logits.log_softmax(-1)[range(len(completion)), completion]
            torch.testing.assert_close(found[: len(completion)], alone, atol=1e-5, rtol=0)


def test_the_value_before_a_token_is_the_reward_models_score_of_what_stands_before_it(reward_model: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    model.config.pad_token_id = None  # its own forward would look for the last token that is not padding
    batch = padded(ROWS)
    with torch.no_grad():
        values = ppo.predicted_values(model, batch)
        for found, (prompt, completion) in zip(values, ROWS, strict=True):
            scores = [
                model(torch.tensor([prompt + completion[:t]])).logits[0, 0].item() for t in range(len(completion))
            ]
            assert found[: len(completion)].tolist() == pytest.approx(scores, abs=1e-5)
    assert values[batch.mask].std() > 0.1


def test_padding_gives_no_gradient_that_is_not_a_number(random_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(random_model)
    batch = padded(ROWS)
    logprobs = ppo_math.token_logprobs(ppo.predicted_logits(model, batch), batch.completions)
    logprobs[batch.mask].mean().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


# ---------------------------------------------------------------- training


def test_every_iteration_is_reported(whole: Whole) -> None:
    _, steps, result = whole
    assert [(step["step"], step["steps"]) for step in steps] == [(i, 6) for i in range(1, 7)]
    assert set(steps[0]) == {
        *("step", "steps", "score", "kl", "objective", "ended", "length", "policy_loss", "value_loss"),
        *("clip_fraction", "approx_kl", "entropy", "explained_variance", "learning_rate", "unscored", "ratio_start"),
        *("grad_norm", "value_grad_norm", "tokens"),
    }
    assert all(math.isfinite(value) for step in steps for value in step.values())
    assert [step["ratio_start"] for step in steps] == pytest.approx([1.0] * 6, abs=1e-5)
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-5) and abs(steps[-1]["kl"]) > 1e-3
    for step in steps:
        paid = step["score"] - 0.05 * step["kl"] - (1 - step["ended"])  # less the penalty of what did not end
        assert step["objective"] == pytest.approx(paid, abs=1e-5)
    # Of 4 updates an iteration and 24 in all, the rate of an iteration's last.
    assert [step["learning_rate"] for step in steps] == pytest.approx([1e-3 * (1 - (4 * i + 3) / 24) for i in range(6)])
    assert (result.steps, result.kept, result.cut, result.dropped) == (6, 10, 0, {})
    assert result.metrics == {
        "first_score": pytest.approx(sum(step["score"] for step in steps[:3]) / 3),
        **{
            f"last_{name}": pytest.approx(sum(step[name] for step in steps[3:]) / 3)
            for name in ("score", "kl", "ended", "length")
        },
    }


def test_a_constant_learning_rate_is_constant(train: Train) -> None:
    steps: Steps = []
    train("out", steps.append, schedule="constant", iterations=2)
    assert {step["learning_rate"] for step in steps} == {1e-3}


def test_the_score_is_the_callers_and_comes_with_the_prompt_it_was_asked_for(train: Train) -> None:
    steps: Steps = []
    asked: list[tuple[Asked, str]] = []

    def score(prompts: Sequence[Asked], texts: Sequence[str]) -> list[float | None]:
        asked.extend(zip(prompts, texts, strict=True))
        return [float(len(text)) for text in texts]

    train("out", steps.append, score=score, iterations=1)
    assert len(asked) == 8 and {prompt for prompt, _ in asked} < set(PROMPTS)
    assert steps[0]["score"] == pytest.approx(sum(len(text) for _, text in asked) / 8)
    assert all(text == text.strip() and "<|" not in text for _, text in asked)


def test_the_first_update_is_that_of_reinforce(random_model: Path, reward_model: Path) -> None:
    """At the first minibatch the policy's gradient is that of -mean(A log p), A being worked out by its definition."""
    policy, tokenizer = models.load(random_model)
    settings = settings_of(epochs=1, minibatch_size=8, beta=0.0, gae_lambda=1.0, learning_rate=1e-9)
    learner = ppo.Learner(settings, policy, models.load_value_model(reward_model, tokenizer), tokenizer)
    rollouts = learner.sample(tokens_of(PROMPTS[:8], random_model))
    scores = [float(i) for i in range(8)]
    batch = rollout.batch(rollouts, tokenizer, learner.device)
    before = learner.experience(batch)
    paid = torch.tensor([s - (not r.ended) for s, r in zip(scores, rollouts, strict=True)])
    advantages = (paid[:, None] - before.values)[batch.mask]  # gamma and lambda are 1, and there is no KL
    advantages = (advantages - advantages.mean()) / advantages.std(correction=0)
    logprobs = ppo_math.token_logprobs(ppo.predicted_logits(learner.policy.model, batch), batch.completions)
    loss = -(advantages * logprobs[batch.mask]).mean()
    expected = torch.autograd.grad(loss, list(learner.policy.model.parameters()))
    norm = torch.sqrt(sum((g**2).sum() for g in expected)).item()
    learner.learn(rollouts, scores)
    for parameter, gradient in zip(learner.policy.model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient / max(norm, 1.0), atol=1e-5, rtol=1e-3)
    assert norm > 0.1 and learner.history[0]["policy_loss"] == pytest.approx(0, abs=1e-5)


# Prompts and completions of lengths that differ, so that pieces of a minibatch have different numbers of tokens.
UNEVEN = [([3, 5, 6][: 1 + i % 3], [4, 3, 6, 5, 1][i % 4 :]) for i in range(8)]


def learnt(base: Path, reward: Path | None, **changed: Any) -> ppo.Learner:
    """A learner after an iteration on `UNEVEN`."""
    policy, tokenizer = models.load(base)
    value = models.flat_value_model(base) if reward is None else models.load_value_model(reward, tokenizer)
    learner = ppo.Learner(settings_of(**changed), policy, value, tokenizer)
    rollouts = [Rollout(PolicyPrompt(user(""), prompt), ids, ids[-1] == 1, "") for prompt, ids in UNEVEN]
    learner.learn(rollouts, [float(i % 5) for i in range(8)])
    return learner


@pytest.mark.parametrize(("minibatch", "accumulate"), [(8, 4), (8, 3), (4, 4)])
def test_a_minibatch_in_pieces_is_the_undivided_one(
    minibatch: int, accumulate: int, random_model: Path, reward_model: Path
) -> None:
    assert len({len(ids) for _, ids in UNEVEN}) > 3
    given: dict[str, Any] = {"minibatch_size": minibatch, "epochs": 1}
    whole, divided = (learnt(random_model, reward_model, accumulate=pieces, **given) for pieces in (1, accumulate))
    assert divided.history[0] == pytest.approx(whole.history[0], rel=1e-4, abs=1e-6)
    for one, other in ((whole.policy, divided.policy), (whole.value, divided.value)):
        for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_recomputed_activations_change_nothing_and_leave_dropout_off(tmp_path: Path) -> None:
    """The layers run once more in each update, in training mode, where OPT's have dropout by a function."""
    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "dropout": 0.1}
    sizes |= {"vocab_size": 261, "word_embed_proj_dim": 32, "max_position_embeddings": 64, "pad_token_id": 0}
    base = make_random_model(tmp_path, config=OPTConfig(**sizes, eos_token_id=1, bos_token_id=None))
    whole, again = (learnt(base, None, recompute=recompute) for recompute in (False, True))
    assert again.history == whole.history and whole.history[0]["ratio_start"] == pytest.approx(1, abs=1e-5)
    for one, other in ((whole.policy, again.policy), (whole.value, again.value)):
        assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
    passes: list[Any] = []
    model = again.policy.model
    model.model.decoder.layers[0].fc1.register_forward_pre_hook(lambda *_: passes.append(None))
    batch = padded(UNEVEN[:2])
    with models.recomputing(model):
        ppo.predicted_logits(model, batch).sum().backward()
    assert len(passes) == 2 and not any(module.training for module in model.modules())
    ppo.predicted_logits(model, batch).sum().backward()
    assert len(passes) == 3


def test_a_batch_is_sampled_in_parts(toy: Path) -> None:
    model, tokenizer = models.load(toy / "base")
    prompts = tokens_of([user("a b"), user("a")], toy / "base") * 4
    sizes: list[int] = []
    plain = model.generate

    def generate(**given: Any) -> Any:
        sizes.append(len(given["input_ids"]))
        return plain(**given)

    model.generate = generate
    drawn, first = (
        rollout.draw(model, tokenizer, part, max_tokens=4, seed=0, iteration=0, at_once=3)
        for part in (prompts, prompts[:3])
    )
    assert sizes == [3, 3, 2, 3] and drawn[:3] == first and [r.prompt for r in drawn] == prompts


def test_completions_without_a_score_take_no_part_and_are_counted(train: Train) -> None:
    steps: Steps = []
    calls = iter(range(100))

    def some(prompts: Sequence[Asked], texts: Sequence[str]) -> list[float | None]:
        missing = 3 * next(calls)  # 0, then 3, then 6 of 8
        return [None if i < missing else 1.0 + i for i in range(len(texts))]

    train("out", steps.append, score=some, iterations=3)
    assert [step["unscored"] for step in steps] == [0, 3, 6]
    assert [step["score"] for step in steps] == [4.5, 6.0, 7.5]


@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        ([None] * 7 + [1.0], "1 of 8 completions could be scored at step 1, which is too few"),
        ([1.0] * 7 + [float("nan")], r"of 1 of 8 completions is not a finite number at step 1 \(the first is nan\)"),
        ([None] * 6 + [float("-inf")] * 2, r"of 2 of 8 completions is not a finite number.*-inf"),
    ],
)
def test_scores_that_cannot_be_learnt_from_end_the_training(
    train: Train, scores: list[float | None], problem: str
) -> None:
    with pytest.raises(WorkError, match=problem):
        train("out", lambda _: None, score=lambda prompts, texts: scores)


def test_prompts_are_cut_or_dropped_and_counted(train: Train) -> None:
    prompts = [*PROMPTS, user("a " * 20), user("a " * 200)]
    result = train("out", lambda _: None, prompts=prompts, max_length=46, iterations=1)
    assert (result.kept, result.cut, result.dropped) == (11, 1, {"too-long": 1})


def test_bfloat16_trains(train: Train, tmp_path: Path) -> None:
    steps: Steps = []
    train("out", steps.append, dtype="bfloat16", iterations=2)
    assert steps[1]["ratio_start"] == pytest.approx(1, abs=0.01)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float32


def test_a_loss_that_is_no_number_ends_the_training(train: Train, random_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(random_model, broken)
    model = AutoModelForCausalLM.from_pretrained(random_model)
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)
    model.save_pretrained(broken)
    with pytest.raises(WorkError, match="the loss is nan .*at step 1.*lower `learning_rate`"):
        train("out", lambda _: None, model=broken)


def test_a_policy_that_comes_apart_ends_the_training(random_model: Path, reward_model: Path, tmp_path: Path) -> None:
    prompts = [PromptOnly(prompt) for prompt in PROMPTS]

    def train_beyond(**beyond: float) -> None:
        """With rates past what a pipeline file may say."""
        settings = settings_of(iterations=4).model_copy(update=beyond)
        train_ppo(settings, random_model, reward_model, prompts, digits, Place(tmp_path), lambda _: None)

    with pytest.raises(WorkError, match="at step [12].*lower `learning_rate`"):
        train_beyond(learning_rate=1e30, value_learning_rate=1e-3)
    with pytest.raises(WorkError, match="at step [12].*lower `value_learning_rate`"):
        train_beyond(value_learning_rate=1e30)


def test_weights_that_are_no_numbers_are_not_saved(random_model: Path, reward_model: Path, tmp_path: Path) -> None:
    policy, tokenizer = models.load(random_model)
    learner = ppo.Learner(settings_of(), policy, models.load_value_model(reward_model, tokenizer), tokenizer)
    with torch.no_grad():
        learner.policy.model.model.norm.weight[0] = float("inf")
    with pytest.raises(WorkError, match="the trained weights are not finite"):
        models.save(learner.policy.model, tokenizer, tmp_path, models.result(Counts(), steps=1, metrics={}, began=0.0))
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- repeated and resumed


def weights(model: Path) -> bytes:
    return (model / "model.safetensors").read_bytes()


def test_the_same_settings_give_the_same_weights(train: Train, whole: Whole, tmp_path: Path) -> None:
    for name, seed in (("same", 0), ("other", 1)):
        train(name, lambda _: None, seed=seed)
    assert weights(whole.out) == weights(tmp_path / "same") != weights(tmp_path / "other")


@pytest.mark.parametrize("last", [1, 3, 4])
def test_a_resumed_training_equals_an_undisturbed_one(train: Train, whole: Whole, tmp_path: Path, last: int) -> None:
    steps: Steps = []

    def stop(step: dict[str, float]) -> None:
        steps.append(step)
        if step["step"] == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("b", stop)
    assert not (tmp_path / "b").exists()
    half = tmp_path / "b.partial/checkpoint-5"  # one that was being written when the machine stopped
    half.mkdir(parents=True, exist_ok=True)
    (half / "state.pt").write_bytes(b"half")
    torch.manual_seed(last)
    again: Steps = []
    resumed = train("b", again.append)
    done = last - last % 2  # checkpoints are written after every second
    assert steps == whole.steps[:last]
    assert again == whole.steps[done:]
    assert weights(whole.out) == weights(tmp_path / "b")
    assert resumed.metrics == whole.result.metrics
    assert not (tmp_path / "b.partial").exists()


def test_two_checkpoints_are_kept(train: Train, tmp_path: Path) -> None:
    seen = []

    def look(step: dict[str, float]) -> None:
        seen.append({path.parent.name for path in (tmp_path / "out.partial").glob("*/complete")})

    train("out", look, iterations=4, checkpoint_steps=1)
    assert seen == [set(), {"checkpoint-1"}, {"checkpoint-1", "checkpoint-2"}, {"checkpoint-2", "checkpoint-3"}]


# ---------------------------------------------------------------- saved


def test_the_trained_policy_loads_and_says_what_its_training_was(whole: Whole, random_model: Path) -> None:
    out, _, result = whole
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(random_model).chat_template
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (1, 0)
    assert model.generation_config.max_new_tokens is None and model.generation_config.do_sample is not True
    assert model.dtype == torch.float32 and model.config.use_cache
    assert weights(out) != weights(random_model)
    assert {path.name for path in out.iterdir()} == {
        *("chat_template.jinja", "config.json", "generation_config.json", "key", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "training.json"),
        *("README.md", "metrics.jsonl", "training.png", "value"),
    }
    record = json.loads((out / "training.json").read_text(encoding="utf-8"))
    assert record == vars(result) and record["weights"] == weights_digest(out)
    assert {*models.TrainResult._fields, "weights"} == set(record)
    assert (out / "key").read_text() == "the inputs' digest"


def test_nothing_is_printed_and_the_libraries_settings_are_as_before(
    train: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    train("out", lambda _: None, iterations=1)
    assert capfd.readouterr() == ("", "")
    assert before == (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled())


# ---------------------------------------------------------------- guards


def test_no_prompts_are_an_error(train: Train) -> None:
    with pytest.raises(InputError, match="nothing to train on"):
        train("out", lambda _: None, prompts=[])
    with pytest.raises(WorkError, match="none of the 1 rows can be trained on.*raise `max_length`"):
        train("other", lambda _: None, prompts=[user("a " * 200)])


def test_a_reward_model_that_reads_other_tokens_is_an_error(
    train: Train, toy: Path, reward_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="vocabulary and end token and chat template differ.*from the same base model"):
        train("out", lambda _: None, value_init=toy / "reward")
    other = tmp_path / "other"
    shutil.copytree(reward_model, other)
    (other / "chat_template.jinja").write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    with pytest.raises(InputError, match="the reward model's chat template differ"):
        train("out", lambda _: None, value_init=other)


def test_a_value_model_without_a_head_is_an_error(train: Train, random_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no head with one score.*trained reward model"):
        train("out", lambda _: None, value_init=random_model)
    several, promised = tmp_path / "several", tmp_path / "promised"
    config = LlamaConfig.from_pretrained(random_model, num_labels=3)
    LlamaForSequenceClassification(config).save_pretrained(several)
    model = AutoModelForCausalLM.from_pretrained(random_model)
    model.config.num_labels = 1  # the configuration of a reward model, without the weights of its head
    model.save_pretrained(promised)
    for folder in (several, promised):
        AutoTokenizer.from_pretrained(random_model).save_pretrained(folder)
        with pytest.raises(InputError, match="no head with one score"):
            train("out", lambda _: None, value_init=folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: config.json is missing"):
        train("out", lambda _: None, value_init=tmp_path / "empty")
    damaged = shutil.copytree(random_model, tmp_path / "damaged")
    (damaged / "config.json").write_text("{")
    with pytest.raises(InputError, match="it is no JSON, or not all of it"):
        train("out", lambda _: None, value_init=damaged)


# ---------------------------------------------------------------- adapters

LORA = {"lora": {"r": 4, "alpha": 8}}


@pytest.fixture(scope="module")
def adapted(random_model: Path, reward_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    out, steps = tmp_path_factory.mktemp("adapted") / "whole", Steps()
    return Whole(out, steps, by_job(out, steps.append, random_model, reward_model, **LORA))


def logprobs(model: Any, batch: Padded) -> torch.Tensor:
    with torch.no_grad():
        return ppo_math.token_logprobs(ppo.predicted_logits(model, batch), batch.completions)[batch.mask]


def test_the_reference_of_an_adapted_policy_is_the_policy_without_its_adapter(
    random_model: Path, reward_model: Path
) -> None:
    settings = settings_of(**LORA)
    base, tokenizer = models.load(random_model, None, settings)
    policy = lora.adapted(settings.lora, base, 0, scores=False)
    value = lora.adapted(settings.lora, models.load_value_model(reward_model, tokenizer), 0, scores=True)
    learner = ppo.Learner(settings, policy, value, tokenizer)
    rollouts = learner.sample(tokens_of(PROMPTS[:8], random_model))
    learner.learn(rollouts, [float(i) for i in range(8)])
    assert learner.history[0]["ratio_start"] == pytest.approx(1, abs=1e-5)
    assert learner.history[0]["kl"] == pytest.approx(0, abs=1e-5)
    batch = rollout.batch(rollouts, tokenizer, learner.device)
    after = learner.experience(batch)
    plain = logprobs(models.load(random_model)[0], batch)
    torch.testing.assert_close(after.ref_logprobs[batch.mask], plain, atol=1e-5, rtol=0)
    assert (after.logprobs[batch.mask] - plain).abs().max() > 1e-3
    moved = [name for model in (policy, value) for name, weight in model.named_parameters() if weight.grad is not None]
    trained = {name.split(".")[-3] for name in moved}
    assert trained == {"lora_A", "lora_B", "modules_to_save"}  # the last is the value model's head


def test_a_policys_adapter_is_kept_and_its_value_model_is_whole(
    adapted: Whole, random_model: Path, reward_model: Path, tmp_path: Path, train: Train
) -> None:
    out, steps, result = adapted
    assert [step["ratio_start"] for step in steps] == pytest.approx([1.0] * 6, abs=1e-5)
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-5) and abs(steps[-1]["kl"]) > 1e-3
    names = {path.name for path in out.iterdir()}
    assert "adapter_model.safetensors" in names and not names & {"model.safetensors", "config.json"}
    assert result.base["weights"] == weights_digest(random_model) != result.weights == weights_digest(out)
    train("merged", lambda _: None, save="merged", **LORA)
    assert (tmp_path / "merged/model.safetensors").exists()
    assert not (tmp_path / "merged/adapter_config.json").exists()
    policy, tokenizer = models.load(out)
    batch = padded(ROWS)
    merged, base = (logprobs(models.load(path)[0], batch) for path in (tmp_path / "merged", random_model))
    torch.testing.assert_close(logprobs(policy, batch), merged, atol=1e-4, rtol=0)
    assert (merged - base).abs().max() > 1e-3
    heads = [models.load_value_model(path, tokenizer).state_dict() for path in (out / "value", reward_model)]
    assert heads[0].keys() == heads[1].keys()
    moved = {name.split(".")[-2] for name in heads[0] if not torch.equal(heads[0][name], heads[1][name])}
    assert moved == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "score"}
    assert weights(tmp_path / "merged/value") == weights(out / "value")


def test_a_checkpoint_of_adapters_resumes_to_the_undisturbed_training(
    adapted: Whole, train: Train, tmp_path: Path
) -> None:
    def stop(step: dict[str, float]) -> None:
        if step["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("out", stop, **LORA)
    state = torch.load(tmp_path / "out.partial/checkpoint-2/state.pt", weights_only=True)
    kept = [name for model in ("policy", "value") for name in state[model]["model"]]
    assert kept and all("lora_" in name or "modules_to_save" in name for name in kept)
    again: Steps = []
    train("out", again.append, **LORA)
    assert again == adapted.steps[2:]
    for name in ("adapter_model.safetensors", "value/model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (adapted.out / name).read_bytes()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"save": "merged"}, "`save: merged` is of an adapter"),
        ({"lora": {"dropout": 0.05}}, "ppo trains without dropout"),
        ({"lora": {"quantized": "4bit"}}, "`lora.quantized` is of sft, rm and dpo"),
        ({"accumulate": 5}, r"`minibatch_size` \(4\) is less than `accumulate` \(5\): each piece needs a completion"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        settings_of(**changed)
