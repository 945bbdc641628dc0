"""LoRA: what is trained and kept, the base that it belongs to, and the adapted model wherever a model is named."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytest.importorskip("peft")

import peft
import torch
from conftest import SPECIAL, make_random_model
from safetensors.torch import load_file, save_file
from test_architectures import ARCHITECTURES, base_of
from test_train import METHODS, Steps, assistant, settings_of, train, user
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from rlaif.engines import transformers as engine
from rlaif.engines.adapters import Adapted
from rlaif.engines.identity import has_reward_head, weights_digest
from rlaif.engines.transformers import TransformersEngine
from rlaif.errors import InputError
from rlaif.train import models
from rlaif.train.examples import Demonstration

LORA = {"r": 4, "alpha": 8}
ASKED = [((user("what is 3?"),), "it is 3"), ((user("what is 4?"),), "no idea")]


def lora(
    method: str, base: Any, out: Path, on_step: Callable[[dict[str, float]], None] = lambda _: None, **changed: Any
) -> Any:
    return train(method, base, out, on_step, **{"lora": LORA} | changed)


@pytest.fixture(scope="module")
def trained(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The adapter that a method trains over the random model, undisturbed; made once."""
    made: dict[str, Path] = {}

    def of(method: str) -> Path:
        if method not in made:
            made[method] = tmp_path_factory.mktemp(method) / "whole"
            lora(method, random_model, made[method])
        return made[method]

    return of


def logprobs(path: Path, adapter: Path | None = None) -> list[float]:
    model = TransformersEngine("m", str(path), adapter=None if adapter is None else str(adapter))

    async def read() -> list[float]:
        try:
            return [sum(one.tokens) for one in await model.logprobs(ASKED)]
        finally:
            await model.close()

    return asyncio.run(read())


def scores(path: Path) -> list[Any]:
    model = TransformersEngine("m", str(path))

    async def read() -> list[Any]:
        try:
            return await model.score(ASKED)
        finally:
            await model.close()

    return asyncio.run(read())


# ---------------------------------------------------------------- what is trained and kept


@METHODS
def test_an_adapter_is_kept_alone_and_trains_a_small_share(
    method: str, random_model: Path, trained: Callable[[str], Path]
) -> None:
    folder = trained(method)
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "training.json"} <= names
    assert not names & {"model.safetensors", "config.json"}
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {name.split(".")[-2] for name in tensors} == {"lora_A", "lora_B"} | ({"score"} if method == "rm" else set())
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
    record = json.loads((folder / "training.json").read_text())
    assert record["base"]["weights"] == weights_digest(random_model) != record["weights"] == weights_digest(folder)


def test_the_first_loss_of_dpo_is_ln_2_and_its_reference_is_no_second_model(
    random_model: Path, trained: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter starts at nothing, over a plain base and over an adapted one."""
    loads: list[Any] = []
    load = models.load_net
    monkeypatch.setattr(models, "load_net", lambda *a, **k: (loads.append(a), load(*a, **k))[1])
    for base in (random_model, trained("sft")):
        loads.clear()
        steps: Steps = []
        lora("dpo", base, tmp_path / base.name, steps.append, batch_size=24, epochs=2)
        assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert steps[-1]["loss"] < steps[0]["loss"]
        assert len(loads) == 1


@pytest.mark.parametrize("method", ["dpo", *(pytest.param(name, marks=pytest.mark.lab) for name in ("sft", "rm"))])
def test_a_checkpoint_holds_the_adapter_and_a_resumed_training_is_the_undisturbed_one(
    method: str, random_model: Path, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    class Stop(Exception): ...

    def stop(figures: dict[str, float]) -> None:
        if figures["step"] == 3:
            raise Stop

    with pytest.raises(Stop):
        lora(method, random_model, tmp_path / "out", stop)
    kept = {path.name for path in (tmp_path / "out.partial/checkpoint-2").iterdir()}
    assert "adapter_model.safetensors" in kept and "model.safetensors" not in kept
    steps: Steps = []
    lora(method, random_model, tmp_path / "out", steps.append)
    assert [one["step"] for one in steps] == [3, 4, 5, 6]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (trained(method) / name).read_bytes()


# ---------------------------------------------------------------- it is a model


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
def test_an_adapted_model_computes_what_peft_computes(random_model: Path, trained: Callable[[str], Path]) -> None:
    folder = trained("sft")
    net = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(random_model), folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(random_model)
    expected = []
    for (message,), words in ASKED:
        start = len(tokenizer(f"<|user|> {message.content}<|end|><|assistant|>")["input_ids"])
        ids = tokenizer(f"<|user|> {message.content}<|end|><|assistant|> {words}<|end|>", return_tensors="pt")[
            "input_ids"
        ]
        with torch.no_grad():
            rows = net(ids).logits[0, start - 1 : -2].log_softmax(-1)
        expected.append(rows.gather(-1, ids[0, start:-1, None]).sum().item())
    assert logprobs(folder) == pytest.approx(expected, abs=1e-3)
    assert logprobs(random_model, folder) == logprobs(folder) != pytest.approx(logprobs(random_model), abs=0.1)


def test_a_merged_training_is_the_plain_model_of_its_adapter(
    random_model: Path, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    for method, kind in (("sft", AutoModelForCausalLM), ("rm", AutoModelForSequenceClassification)):
        lora(method, random_model, tmp_path / method, save="merged")
        assert not (tmp_path / method / "adapter_config.json").exists()
        kind.from_pretrained(tmp_path / method)  # with no word of peft
    assert logprobs(tmp_path / "sft") == pytest.approx(logprobs(trained("sft")), abs=1e-4)
    assert scores(tmp_path / "rm") == pytest.approx(scores(trained("rm")), abs=1e-4)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "sft").state_dict()
    plain = AutoModelForCausalLM.from_pretrained(random_model).state_dict()
    assert not any(torch.equal(merged[n], plain[n]) for n in plain if n.endswith("_proj.weight"))
    assert torch.equal(merged["lm_head.weight"], plain["lm_head.weight"])


def test_a_reward_model_is_an_adapter_with_a_head_and_scores_as_it_was_validated(
    random_model: Path, trained: Callable[[str], Path]
) -> None:
    folder = trained("rm")
    assert has_reward_head(folder) and not has_reward_head(random_model) and not has_reward_head(trained("sft"))
    given = scores(folder)
    assert all(isinstance(value, float) for value in given) and given[0] != given[1]


def test_a_reward_model_whose_base_cannot_pad_scores_as_it_was_trained(tmp_path: Path) -> None:
    """A padding token is added, and with it a row that the adapter does not hold."""
    special = [token for token in SPECIAL if "pad" not in token and "begin" not in token]
    base = make_random_model(tmp_path / "base", special=special)
    steps: Steps = []
    lora("rm", base, tmp_path / "rm", steps.append, batch_size=24)
    assert AutoTokenizer.from_pretrained(tmp_path / "rm").pad_token == models.NEW_PADDING
    model, _ = models.load_reward(tmp_path / "rm", 0)
    assert model.get_input_embeddings().num_embeddings == len(special) + 257
    assert all(isinstance(value, float) for value in scores(tmp_path / "rm"))


# ---------------------------------------------------------------- its base


def test_an_adapter_over_an_adapter_names_that_one_and_never_their_ancestor(
    random_model: Path, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    """alignment-handbook #188: a DPO adapter that names the pre-trained model loses all that SFT taught."""
    sft = trained("sft")
    lora("dpo", sft, tmp_path / "dpo", learning_rate=1e-12)
    assert json.loads((tmp_path / "dpo/adapter_config.json").read_text())["base_model_name_or_path"] == str(sft)
    assert logprobs(tmp_path / "dpo") == pytest.approx(logprobs(sft), abs=1e-4)
    assert logprobs(sft) != pytest.approx(logprobs(random_model), abs=0.1)


def test_an_adapter_over_other_weights_is_refused(
    random_model: Path, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    base = shutil.copytree(random_model, tmp_path / "base")
    assert weights_digest(Adapted(base, trained("sft"))) == weights_digest(trained("sft"))  # the same, elsewhere
    state = load_file(base / "model.safetensors")
    state["model.norm.weight"] += 1
    save_file(state, base / "model.safetensors", {"format": "pt"})
    uses: list[Callable[[Adapted], Any]] = [weights_digest, models.load]
    for use in uses:
        with pytest.raises(InputError, match="was trained over other weights than those of .*base"):
            use(Adapted(base, trained("sft")))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (
            "lora_alpha",
            64,
            r"adapter_config\.json: `lora_alpha`: .* trained with 8(\.0)?, and the file states 64\. Fix",
        ),
        (
            "r",
            2,
            r"adapter_config\.json: `r`: the adapter was trained with 4, and the file states 2\. Fix: put that back",
        ),
        ("use_rslora", True, r"`use_rslora`: the adapter was trained with False, and the file states True"),
        (
            "target_modules",
            ["q_proj"],
            r"`target_modules`: the adapter was trained with \[.*, and the file states \['q_proj'\]",
        ),
        (None, None, r"adapter_model\.safetensors: the adapter's weights are not those that were trained\. Fix: copy"),
    ],
)
def test_an_adapter_that_was_edited_after_its_training_is_refused(
    key: str | None, value: Any, told: str, trained: Callable[[str], Path], random_model: Path, tmp_path: Path
) -> None:
    edited = shutil.copytree(trained("sft"), tmp_path / "edited")
    settings = json.loads((edited / "adapter_config.json").read_text())
    free = settings | {"base_model_name_or_path": "elsewhere", "inference_mode": False}  # what no adapter depends on
    (edited / "adapter_config.json").write_text(json.dumps(free))
    weights_digest(edited)
    if key is not None:
        (edited / "adapter_config.json").write_text(json.dumps(settings | {key: value}))
    else:
        state = load_file(edited / "adapter_model.safetensors")
        save_file({name: 2 * tensor for name, tensor in state.items()}, edited / "adapter_model.safetensors")
    uses: list[Callable[[Any], Any]] = [weights_digest, models.load]
    for use in uses:
        for source in (edited, Adapted(random_model, edited)):
            with pytest.raises(InputError, match=told):
                use(source)
    record = json.loads((edited / "training.json").read_text())
    del record["adapter"]  # as an earlier version left it
    (edited / "training.json").write_text(json.dumps(record))
    if key in (None, "lora_alpha"):
        weights_digest(edited)


def test_base_and_adapter_may_move_together_and_a_lost_base_is_said(
    random_model: Path, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(random_model, tmp_path / "run/base")
    lora("sft", tmp_path / "run/base", tmp_path / "run/sft")
    before = weights_digest(tmp_path / "run/sft")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert weights_digest(tmp_path / "moved/sft") == before
    (tmp_path / "moved/base").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="holds an adapter, and its base model .* no folder here.*--adapter"):
        weights_digest(tmp_path / "moved/sft")
    assert weights_digest(Adapted(tmp_path / "elsewhere", tmp_path / "moved/sft")) == before


def test_a_full_training_of_an_adapted_base_starts_from_both(trained: Callable[[str], Path], tmp_path: Path) -> None:
    """Case 15 of training."""
    train("dpo", trained("sft"), tmp_path / "dpo", learning_rate=1e-12)
    assert (tmp_path / "dpo/model.safetensors").exists()
    assert logprobs(tmp_path / "dpo") == pytest.approx(logprobs(trained("sft")), abs=1e-4)


def test_a_reward_model_starts_from_the_adapter_of_a_language_model(
    trained: Callable[[str], Path], tmp_path: Path
) -> None:
    """Its language model is merged first, and gets a head: whole, and as an adapter over that adapter."""
    whole = train("rm", trained("sft"), tmp_path / "whole", batch_size=12)
    adapted = lora("rm", trained("sft"), tmp_path / "adapted", batch_size=12)
    assert whole.metrics["first_loss"] == pytest.approx(adapted.metrics["first_loss"], abs=1e-4)
    assert (tmp_path / "whole/model.safetensors").exists() and (tmp_path / "adapted/adapter_config.json").exists()


def test_a_merged_folder_is_made_once_under_its_digest(
    trained: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM loads it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = engine.merged_folder(trained("sft"))
    assert folder.name == weights_digest(trained("sft")) and [*folder.parent.iterdir()] == [folder]
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert engine.merged_folder(trained("sft")) == folder and (folder / "model.safetensors").stat().st_mtime_ns == made
    assert logprobs(folder) == pytest.approx(logprobs(trained("sft")), abs=1e-4)


def test_rlaif_train_and_a_pipeline_take_an_adapted_base(
    random_model: Path, trained: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 15 of training: an adapter's folder as `--base`, and as `adapter` over a `path`."""
    from typer.testing import CliRunner

    from rlaif.cli.app import app

    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"what is {i}?", "chosen": f"it is {i}", "rejected": f"no, {i}"} for i in range(8)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--data", "pairs.jsonl", "batch_size=4", "learning_rate=1e-12", "lora={r: 2}"]
    made = {
        "bare": ["--base", str(trained("sft"))],
        "both": ["--base", str(random_model), "--adapter", str(trained("sft"))],
    }
    for name, base in made.items():
        done = CliRunner().invoke(app, ["train", "dpo", *base, "--out", name, *given])
        assert done.exit_code == 0, done.output
        assert logprobs(tmp_path / name) == pytest.approx(logprobs(trained("sft")), abs=1e-4)
    done = CliRunner().invoke(
        app, ["train", "dpo", "--base", str(random_model), "--adapter", str(random_model), "--out", "x", *given]
    )
    assert isinstance(done.exception, InputError) and "the folder holds no adapter" in str(done.exception)


# ---------------------------------------------------------------- 4 bits


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # bitsandbytes'
@pytest.mark.parametrize("method", ["sft", "rm", "dpo"])
def test_an_adapter_over_4_bits_trains_alike_however_often_it_is_validated(method: str, tmp_path: Path) -> None:
    """On the CPU. A forward pass without gradients must leave the weights in a form that gradients pass."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 261}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1}
    base = make_random_model(tmp_path / "base", config=LlamaConfig(**sizes, initializer_range=0.1))
    kept = []
    for name, every in (("often", 1), ("once", 100)):
        steps: Steps = []
        changed = {"evaluate_every": every, "learning_rate": 1e-3, "lora": {"r": 4, "quantized": "4bit"}}
        train(method, base, tmp_path / name, steps.append, **changed)
        kept.append(load_file(tmp_path / name / "adapter_model.safetensors"))
        assert steps[-1]["loss"] < steps[0]["loss"]
        assert method != "dpo" or steps[0]["loss"] == pytest.approx(math.log(2), abs=0.01)
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(tensor, kept[1][name]) for name, tensor in kept[0].items())
    assert all(tensor.any() for name, tensor in kept[0].items() if "lora_B" in name)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("method", "changed", "problem"),
    [
        ("sft", {"save": "merged"}, "`save: merged` is of an adapter"),
        ("dpo", {"lora": {"dropout": 0.05}}, "dpo trains without dropout"),
        ("rm", {"lora": {"dropout": 0.05}}, "rm trains without dropout"),
        ("sft", {"lora": {"r": 0}}, "lora.r"),
        ("sft", {"lora": {"target": []}}, "at least one layer"),
        ("sft", {"lora": {"target": ["a(b+)+c"]}}, "lora.target"),
        ("sft", {"lora": {"quantized": "8bit"}}, "lora.quantized"),
        ("sft", {"lora": {"quantized": "4bit"}, "dtype": "float32"}, "`lora.quantized` computes in bfloat16"),
    ],
)
def test_settings_that_make_no_adapter_are_refused(method: str, changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        settings_of(method, **changed)


def test_layers_that_are_not_there_and_4_bits_without_their_package_are_refused(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="no linear layer 'c_attn'.*down_proj, gate_proj, k_proj"):
        lora("sft", random_model, tmp_path / "a", lora={"target": ["c_attn"]})
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match="needs bitsandbytes, which is not installed. Fix: pip install"):
        lora("sft", random_model, tmp_path / "b", lora={"quantized": "4bit"})


def changed_config(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "expected an adapter of the type LORA, found 'PREFIX_TUNING'"),
        ({"r": 0}, "`r`: expected a whole number from 1"),
        ({"r": 10**9}, "`r`: expected a whole number from 1"),
        ({"lora_alpha": "8"}, "`lora_alpha`: expected a number"),
        ({"target_modules": "(a+)+b"}, "plain names of modules"),
        ({"target_modules": []}, "`target_modules`: expected the names"),
        ({"rank_pattern": {"(a+)+b": 3}}, "`rank_pattern`: expected at most"),
        ({"layer_replication": [[0, 4]]}, "`layer_replication`: adapters that use it"),
        ({"init_lora_weights": "pissa"}, "changes the base model"),
        ({"bias": "some"}, "`bias`: expected none, all or lora_only"),
        ({"target_modules": ["q_proj"]}, "does not fit its base model"),
    ],
)
def test_a_strangers_adapter_is_refused_in_a_sentence(
    values: dict[str, Any], problem: str, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(trained("sft"), tmp_path / "adapter")
    (folder / "training.json").unlink()
    changed_config(folder, **values)
    with pytest.raises(InputError, match=problem):
        models.load(folder)


def test_adapters_that_lie_over_each_other_in_a_circle_are_refused(
    trained: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(trained("sft"), tmp_path / "adapter")
    (folder / "training.json").write_text(json.dumps({"base": {"folder": str(folder)}}))
    with pytest.raises(InputError, match="more than 64 adapters"):
        weights_digest(folder)


def test_a_strangers_adapter_needs_its_base_by_name(
    random_model: Path, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    """As peft saved it: no record, and a base on the hub, which is not fetched."""
    folder = shutil.copytree(trained("sft"), tmp_path / "adapter")
    (folder / "training.json").unlink()
    changed_config(folder, base_model_name_or_path="owner/repo")
    with pytest.raises(InputError, match="its base model 'owner/repo' is no folder here"):
        weights_digest(folder)
    assert logprobs(random_model, folder) == logprobs(trained("sft"))


def test_only_the_layers_that_are_named_get_an_adapter(random_model: Path, tmp_path: Path) -> None:
    example = Demonstration((user("hi"), assistant("ok")))
    lora("sft", random_model, tmp_path / "a", examples=[example], lora=LORA | {"target": ["q_proj", "v_proj"]})
    names = {
        name.split(".")[-4] + "." + name.split(".")[-3] for name in load_file(tmp_path / "a/adapter_model.safetensors")
    }
    assert names == {"self_attn.q_proj", "self_attn.v_proj"}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning", "ignore:The following")  # peft's own
@pytest.mark.lab
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_adapter_of_every_architecture_is_read_as_peft_reads_it(name: str, tmp_path: Path) -> None:
    base = base_of(name, tmp_path / "base")
    lora("sft", base, tmp_path / "sft", batch_size=12)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "sft").eval()
    ours, _ = models.load(tmp_path / "sft")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        given, expected, before = (
            net(ids).logits for net in (ours.eval(), theirs, AutoModelForCausalLM.from_pretrained(base).eval())
        )
    assert torch.allclose(given, expected, atol=1e-4) and not torch.allclose(given, before, atol=1e-3)
    steps: Steps = []
    lora("dpo", tmp_path / "sft", tmp_path / "dpo", steps.append, batch_size=24)
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
