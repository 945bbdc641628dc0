"""Every method on a tiny random model of each architecture that people train: first losses, and what is saved.

The models have dropout where their architecture knows it, two end tokens, and no weight that was ever trained.
"""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
import transformers
from conftest import SPECIAL, make_random_model
from test_ppo import settings_of as ppo_settings
from test_train import PAIRS, Steps, train
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlaif.errors import InputError, WorkError
from rlaif.records import Message
from rlaif.train import models, rollout
from rlaif.train.examples import PromptOnly
from rlaif.train.pairs import tokenize as tokenize_pairs
from rlaif.train.ppo import train_ppo
from rlaif.train.rollout import PolicyPrompt
from rlaif.train.tokens import trainable_chat

SPECIALS = [*SPECIAL, "<|stop|>"]  # an end token beside the tokenizer's
STOP = SPECIALS.index("<|stop|>")
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": SIZES | {"attention_dropout": 0.1},
    "Mistral": SIZES | {"attention_dropout": 0.1, "sliding_window": 8},
    "Qwen2": SIZES | {"attention_dropout": 0.1},
    "Qwen3": SIZES | {"attention_dropout": 0.1},
    "Gemma2": SIZES | {"attention_dropout": 0.1, "sliding_window": 8},
    "Gemma3Text": SIZES | {"attention_dropout": 0.1, "sliding_window": 8},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "Phi3": SIZES | {"attention_dropout": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1},
    "OPT": {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "dropout": 0.1,
            "word_embed_proj_dim": 32, "max_position_embeddings": 256},
    "Granite": SIZES | {"attention_dropout": 0.1},
    "Mixtral": SIZES | {"attention_dropout": 0.1, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2, "hidden_dropout": 0.1, "attention_dropout": 0.1},
}  # fmt: skip
ALWAYS = ("OPT", "Mixtral")  # the others in `make lab`: of these, one drops out by a function and one has experts


def each(*names: str) -> pytest.MarkDecorator:
    marks = {name: () if name in ALWAYS else (pytest.mark.lab,) for name in names}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marked) for name, marked in marks.items()])


EACH = each(*ARCHITECTURES)
CLASSIFIERS = each(*(name for name in ARCHITECTURES if name != "Granite"))


def base_of(name: str, folder: Path) -> Path:
    config = getattr(transformers, f"{name}Config")(
        **ARCHITECTURES[name],
        vocab_size=len(SPECIALS) + 256,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.1,
    )
    make_random_model(folder, special=SPECIALS, config=config)
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token_id": [1, STOP]}))
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return {name: value for name, value in kept.items() if name not in ("use_cache", "transformers_version")}


def ends_of(folder: Path) -> Any:
    return json.loads((folder / "generation_config.json").read_text())["eos_token_id"]


@EACH
def test_sft_and_then_dpo_save_what_their_base_says_of_itself(name: str, tmp_path: Path) -> None:
    """Cases 2, 3 and 7: end tokens, dropout and router logits are saved as they were; the first loss of DPO is ln 2."""
    base = base_of(name, tmp_path / "base")
    train("sft", base, tmp_path / "sft", batch_size=12)
    steps: Steps = []
    train("dpo", tmp_path / "sft", tmp_path / "dpo", steps.append, batch_size=12)
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert steps[-1]["loss"] != pytest.approx(math.log(2), abs=1e-4)
    for folder in ("sft", "dpo"):
        assert config_of(tmp_path / folder) == config_of(base)
        assert ends_of(tmp_path / folder) == [1, STOP]
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "dpo")
    prompt = AutoTokenizer.from_pretrained(base)("<|user|> 1?<|assistant|>", return_tensors="pt")
    assert net.generate(**prompt, max_new_tokens=4, do_sample=False).shape[1] > prompt["input_ids"].shape[1]


@CLASSIFIERS
def test_a_reward_models_first_loss_and_scores_are_those_of_plain_transformers(name: str, tmp_path: Path) -> None:
    base = base_of(name, tmp_path / "base")
    steps: Steps = []
    changed = {"batch_size": 24, "learning_rate": 1e-12, "center": 0, "normalize": False}
    train("rm", base, tmp_path / "rm", steps.append, PAIRS, **changed)
    net = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    columns, _ = tokenize_pairs(trainable_chat(tokenizer), PAIRS, 100)
    chosen, rejected = (
        [prompt + ids for prompt, ids in zip(columns["prompt_ids"], columns[side], strict=True)]
        for side in ("chosen_ids", "rejected_ids")
    )
    with torch.no_grad():
        alone = torch.tensor([net(torch.tensor([ids])).logits[0, 0].item() for ids in chosen + rejected])
        padded = tokenizer.pad({"input_ids": chosen + rejected}, return_tensors="pt")
        assert net(**padded).logits[:, 0].tolist() == pytest.approx(alone.tolist(), abs=1e-4)
    losses = -torch.nn.functional.logsigmoid(alone[:24] - alone[24:])
    assert steps[0]["loss"] == pytest.approx(losses.mean().item(), abs=1e-4)
    assert config_of(tmp_path / "rm")["pad_token_id"] == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_an_architecture_without_a_classifier_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """Case 10 of training."""
    base = base_of("Granite", tmp_path / "base")
    for load in (lambda: models.load_reward(base, 0), lambda: models.flat_value_model(base)):
        with pytest.raises(InputError, match="transformers has no classifier for the architecture GraniteForCausalLM"):
            load()


def test_a_classifier_of_one_label_is_a_base_and_one_of_two_is_not(random_model: Path, tmp_path: Path) -> None:
    """Case 10 of training."""
    for labels in (1, 2):
        folder = tmp_path / f"labels-{labels}"
        net = AutoModelForSequenceClassification.from_pretrained(random_model, num_labels=labels, dtype=torch.float32)
        net.save_pretrained(folder)
        AutoTokenizer.from_pretrained(random_model).save_pretrained(folder)
    train("rm", tmp_path / "labels-1", tmp_path / "rm", examples=PAIRS, batch_size=24)
    with pytest.raises(InputError, match="a classifier of 2 labels, and a reward model has one score"):
        train("rm", tmp_path / "labels-2", tmp_path / "not", examples=PAIRS)


def test_a_first_loss_of_dpo_that_is_not_ln_2_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 3 of training: OPT drops out by a function, which TRL leaves on."""
    monkeypatch.setitem(ARCHITECTURES, "OPT", ARCHITECTURES["OPT"] | {"dropout": 0.6})
    base = base_of("OPT", tmp_path / "base")
    monkeypatch.setattr(models, "still", lambda _: nullcontext())
    with pytest.raises(WorkError, match=r"the first loss of DPO is \d\.\d+ and must be ln 2"):
        train("dpo", base, tmp_path / "dpo", batch_size=12, beta=5)


def test_a_rollout_ends_at_the_first_of_any_end_token(tmp_path: Path) -> None:
    """Case 2 of training: of 256 completions that end by chance, some end at each."""
    model, tokenizer = models.load(base_of("Llama", tmp_path / "base"))
    asked = (Message(role="user", content="1?"),)
    prompts = [PolicyPrompt(asked, tokenizer("1?")["input_ids"])] * 256
    drawn = rollout.draw(model, tokenizer, prompts, max_tokens=20, seed=0, iteration=0)
    assert {one.ids[-1] for one in drawn if one.ended} == {1, STOP}
    for one in drawn:
        ends = [place for place, token in enumerate(one.ids) if token in (1, STOP)]
        assert ends == ([len(one.ids) - 1] if one.ended else [])


@CLASSIFIERS
def test_ppos_first_ratio_is_1_and_every_end_token_is_saved(name: str, tmp_path: Path) -> None:
    base = base_of(name, tmp_path / "base")
    texts: list[str] = []

    def reward(prompts: Any, completions: Any) -> list[float | None]:
        texts.extend(completions)
        return [float(len(text)) for text in completions]

    steps: Steps = []
    settings = ppo_settings(batch_size=8, minibatch_size=4, iterations=2, max_tokens=6, max_length=40, epochs=1)
    prompts = [PromptOnly((Message(role="user", content=f"{i}?"),)) for i in range(8)]
    train_ppo(settings, base, None, prompts, reward, tmp_path, steps.append)
    assert steps[0]["ratio_start"] == pytest.approx(1, abs=1e-5) and len(texts) == 16
    assert ends_of(tmp_path / "final") == [1, STOP]
