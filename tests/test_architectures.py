"""Every method on a tiny random model of each architecture that people train: first losses, and what is saved.

The models have dropout where their architecture knows it, two end tokens, and no weight that was ever trained.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
import transformers
from conftest import SPECIAL, make_random_model
from test_ppo import settings_of as ppo_settings
from test_train import DEMONSTRATIONS, PAIRS, Steps, train
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlaif.errors import InputError, WorkError
from rlaif.records import Message
from rlaif.train import models, rollout
from rlaif.train.examples import PromptOnly
from rlaif.train.kept_files import Place
from rlaif.train.pairs import tokenize as tokenize_pairs
from rlaif.train.ppo import train_ppo
from rlaif.train.rollout import PolicyPrompt
from rlaif.train.sft import tokenize as tokenize_demonstrations
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
EACH = pytest.mark.parametrize("name", ARCHITECTURES)
CLASSIFIERS = pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - {"Granite"}))


def base_of(name: str, folder: Path, **changed: Any) -> Path:
    config = getattr(transformers, f"{name}Config")(
        **ARCHITECTURES[name] | changed,
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


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda name: base_of(name, tmp_path_factory.mktemp("bases") / name))


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """Each training collects garbage, which takes longer than its steps where all that was imported is gone through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def config_of(folder: Path) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return {name: value for name, value in kept.items() if name not in ("use_cache", "transformers_version")}


def ends_of(folder: Path) -> Any:
    return json.loads((folder / "generation_config.json").read_text())["eos_token_id"]


def sample_of(folder: Path) -> int:
    """How many tokens a saved model adds to a prompt."""
    net = AutoModelForCausalLM.from_pretrained(folder)
    prompt = AutoTokenizer.from_pretrained(folder)("<|user|> 1?<|assistant|>", return_tensors="pt")
    return int(net.generate(**prompt, max_new_tokens=4, do_sample=False).shape[1] - prompt["input_ids"].shape[1])


@EACH
def test_sfts_first_loss_is_that_of_plain_transformers_with_the_router_loss_beside_it(
    name: str, tmp_path: Path
) -> None:
    """Case 7: the loss is the mean over the learnt tokens; the term that balances experts is told beside it.

    SFT has the dropout of its base, which is none here.
    """
    still = {key: 0.0 for key in ARCHITECTURES[name] if "drop" in key}
    still |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} if name == "GPT2" else {}
    base = base_of(name, tmp_path / "base", **still)
    steps: Steps = []
    train("sft", base, tmp_path / "sft", steps.append, DEMONSTRATIONS, batch_size=24)
    net, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    columns, _ = tokenize_demonstrations(trainable_chat(tokenizer), DEMONSTRATIONS, 100)
    with torch.no_grad():
        alone = [net(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1) for ids in columns["input_ids"]]
        learnt = [
            -logps[place, label]
            for logps, labels in zip(alone, columns["labels"], strict=True)
            for place, label in enumerate(labels[1:])
            if label != -100
        ]
        assert steps[0]["loss"] == pytest.approx((sum(learnt) / len(learnt)).item(), abs=1e-4)
        if name == "Mixtral":
            padded = tokenizer.pad({"input_ids": columns["input_ids"]}, return_tensors="pt")
            assert steps[0]["aux_loss"] == pytest.approx(net(**padded, output_router_logits=True).aux_loss.item(), 1e-3)
        else:
            assert "aux_loss" not in steps[0]
    assert config_of(tmp_path / "sft") == config_of(base) and ends_of(tmp_path / "sft") == [1, STOP]
    assert sample_of(tmp_path / "sft") > 0


@EACH
def test_dpos_first_loss_is_ln_2_and_what_the_base_says_of_itself_is_saved(
    name: str, tmp_path: Path, bases: Callable[[str], Path]
) -> None:
    """Cases 2, 3 and 7: end tokens, dropout and router logits are saved as they were; the first loss of DPO is ln 2."""
    steps: Steps = []
    train("dpo", bases(name), tmp_path / "dpo", steps.append, PAIRS, batch_size=12)
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert steps[-1]["loss"] != pytest.approx(math.log(2), abs=1e-4)
    assert (steps[0].get("aux_loss", 0) > 0) == (name == "Mixtral")  # beside the loss, not in it
    assert config_of(tmp_path / "dpo") == config_of(bases(name)) and ends_of(tmp_path / "dpo") == [1, STOP]
    assert sample_of(tmp_path / "dpo") > 0


@CLASSIFIERS
def test_a_reward_models_first_loss_and_scores_are_those_of_plain_transformers(
    name: str, tmp_path: Path, bases: Callable[[str], Path]
) -> None:
    steps: Steps = []
    changed = {"batch_size": 24, "learning_rate": 1e-12, "center": 0, "normalize": False}
    train("rm", bases(name), tmp_path / "rm", steps.append, PAIRS, **changed)
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
def test_ppos_first_ratio_is_1_and_its_policy_is_saved_with_every_end_token(
    name: str, tmp_path: Path, bases: Callable[[str], Path]
) -> None:
    texts: list[str] = []

    def reward(prompts: Any, completions: Any) -> list[float | None]:
        texts.extend(completions)
        return [float(len(text)) for text in completions]

    steps: Steps = []
    settings = ppo_settings(batch_size=8, minibatch_size=4, iterations=2, max_tokens=6, max_length=40, epochs=1)
    prompts = [PromptOnly((Message(role="user", content=f"{i}?"),)) for i in range(8)]
    train_ppo(settings, bases(name), None, prompts, reward, Place(tmp_path), steps.append)
    assert steps[0]["ratio_start"] == pytest.approx(1, abs=1e-5) and len(texts) == 16
    assert config_of(tmp_path / "final") == config_of(bases(name)) and ends_of(tmp_path / "final") == [1, STOP]
    assert sample_of(tmp_path / "final") > 0
