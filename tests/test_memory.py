"""The memory of a training, told before it: against hand-made sums, peft's own counts, and a measured training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import peft
import transformers
from conftest import make_random_model
from test_train import settings_of
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from rlaif.config import TRAINERS
from rlaif.records import Message
from rlaif.train import job, lora, memory
from rlaif.train.examples import Demonstration, PreferencePair

GB = 1e9
TINY = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of Mistral-7B, and no weight."""
    folder = tmp_path_factory.mktemp("mistral")
    MistralConfig(architectures=["MistralForCausalLM"]).save_pretrained(folder)
    return folder


def of(base: Path, method: str = "dpo", **changed: Any) -> tuple[memory.Plan, dict[str, float]]:
    plan = memory.plan(base, settings_of(method, **changed))
    return plan, {line.name: line.size / GB for line in plan.lines}


def test_the_7b_of_zephyr_by_hand(mistral: Path) -> None:
    """7.24 billion parameters: 16 bytes each with float32 and AdamW, 8 in bfloat16, and 2 under an adapter."""
    full, parts = of(mistral, dtype="bfloat16")
    assert full.parameters == full.trained == 7_241_732_096
    state = ("weights", "gradients", "optimiser")
    assert sum(parts[name] for name in state) == pytest.approx(7.241732096 * 16, rel=1e-9)  # 116 GB
    assert parts["copies"] == pytest.approx(14.48, abs=0.01) and parts["reference"] == 0
    _, parts = of(mistral, weights="bfloat16", dtype="bfloat16")
    assert sum(parts[name] for name in state) == pytest.approx(58, abs=0.1) and "copies" not in parts
    plan, parts = of(mistral, lora={"r": 16}, dtype="bfloat16")
    assert plan.trained == 41_943_040  # 32 layers of r (in + out) for q, k, v, o, gate, up and down, as published
    assert sum(parts[name] for name in state) == pytest.approx(14.48 + 0.042 * 16, abs=0.01)  # 15 GB
    plan, parts = of(mistral, lora={"r": 128, "quantized": "4bit"}, dtype="bfloat16", batch_size=1)
    assert plan.total / GB < 20 and parts["weights"] == pytest.approx(6.98 * 0.516 + 0.262 * 2 + 0.336 * 2, abs=0.02)


def test_what_a_token_costs_by_hand(mistral: Path) -> None:
    """A layer keeps 2 d + 2 (q + k) + k + q + 4 i numbers in what it computes in, and 4 d in float32."""
    model = memory.sizes(mistral, settings_of("sft"))
    assert (model.width, model.queries, model.keys, model.inner, model.layers) == (4096, 4096, 1024, 14336, 32)
    layer = 2 * (2 * 4096 + 2 * (4096 + 1024) + 1024 + 4096 + 4 * 14336) + 4 * 4 * 4096
    assert memory.activations(model, 10, 2, recompute=False) == 10 * (32 * layer + 8 * 4096)
    assert memory.activations(model, 10, 2, recompute=True) == 10 * (32 * 2 * 4096 + layer + 8 * 4096)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`", "ignore:The following")  # peft's own
@pytest.mark.parametrize("name", ["Llama", "GPT2", "Mixtral"])
def test_parameters_are_those_of_the_model_that_is_loaded(name: str, tmp_path: Path) -> None:
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 300} if name == "GPT2" else TINY
    config = getattr(transformers, f"{name}Config")(**sizes)
    config.save_pretrained(tmp_path)
    net = AutoModelForCausalLM.from_config(config)
    plan, _ = of(tmp_path)
    assert plan.parameters == plan.trained == sum(weight.numel() for weight in net.parameters())
    settings = settings_of("sft", lora={"r": 3})
    adapter = lora.config_of(settings.lora, net, scores=False)  # type: ignore[attr-defined]
    trained, _ = peft.get_peft_model(net, adapter).get_nb_trainable_parameters()
    assert of(tmp_path, "sft", lora={"r": 3})[0].trained == trained


def test_what_does_not_fit_is_told_with_what_would(mistral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_of_device", lambda: ("a GPU", 80 * 10**9))
    plan, _ = of(mistral, dtype="bfloat16", batch_size=16, accumulate=2)
    assert not plan.fits and plan.device == "a GPU"
    sizes = [size for _, size in plan.cheaper]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] < plan.total
    words = [words for words, _ in plan.cheaper]
    assert words[0] == "batch_size=1 accumulate=32"
    assert "batch_size=1 accumulate=32 recompute=true weights=bfloat16 dtype=bfloat16" in words
    fitting = {words: size for words, size in plan.cheaper if size <= plan.room}
    assert min(fitting.values()) / GB == pytest.approx(17, abs=1) and any("lora={r: 16}" in words for words in fitting)
    monkeypatch.setattr(memory, "memory_of_device", lambda: ("a GPU", 200 * 10**9))
    assert of(mistral)[0].fits and of(mistral)[0].cheaper == ()


def test_groups_have_the_activations_of_their_completions(mistral: Path) -> None:
    """A pair is two sequences, and a prompt up to `group_size`; nothing else depends on it."""
    _, paired = of(mistral, "rm")
    for size in (2, 9):
        plan, grouped = of(mistral, "rm", grouping="prompt", group_size=size)
        assert grouped["activations"] == pytest.approx(paired["activations"] * size / 2)
        assert any(f"{4 * size * 1024:,} tokens at once" in line.meaning for line in plan.lines)
        assert {**grouped, "activations": 0, "logits": 0} == {**paired, "activations": 0, "logits": 0}


def test_a_process_has_its_share_of_the_rows_and_all_of_the_model(
    mistral: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "memory_of_device", lambda: ("a GPU", 10**9))
    shared, parts = of(mistral, batch_size=5, processes=2, accumulate=3)
    assert parts == of(mistral, batch_size=3)[1]
    assert shared.cheaper[0][0] == "batch_size=2 accumulate=8"  # a row for each process, and 15 a step at least


def test_shards_are_a_share_each_and_copies_are_whole(mistral: Path) -> None:
    """Weights, gradients and moments of FSDP and ZeRO-3; DDP has all of them in each process."""
    given: dict[str, Any] = {"dtype": "bfloat16", "batch_size": 8, "processes": 8}
    whole = of(mistral, **given)[1]
    assert of(mistral, **given, launch="pipelines/accelerate/ddp.yaml")[1] == whole
    layer = (7_241_732_096 - 2 * 32000 * 4096 - 65 * 4096) / 32
    for name in ("fsdp2", "deepspeed-zero3"):
        shared = of(mistral, **given, launch=f"pipelines/accelerate/{name}.yaml")[1]
        for part in ("weights", "gradients", "optimiser"):
            assert shared[part] == pytest.approx(whole[part] / 8)
        assert shared.pop("gathered") == pytest.approx(4 * (2 * 32000 * 4096 + 65 * 4096 + layer) / GB)
        assert {**shared, "weights": 0, "gradients": 0, "optimiser": 0} == {
            **whole, "weights": 0, "gradients": 0, "optimiser": 0
        }  # fmt: skip


@pytest.mark.parametrize("method", TRAINERS)
def test_every_trainer_has_a_plan(method: str, mistral: Path) -> None:
    given = {"base": "base", "name": "trained"} | ({"checks": []} if method == "ppo" else {})
    settings = TRAINERS[method].model_validate(given)
    plan = memory.plan(mistral, settings)
    assert plan.total == sum(line.size for line in plan.lines) > 16 * 7.1e9 and plan.room > 0
    assert json.loads(json.dumps(plan.as_json()))["total"] == plan.total


def test_adapters_of_ppo_need_no_reference_and_no_moments_of_what_is_frozen(mistral: Path) -> None:
    given = {"base": "base", "name": "trained", "checks": [], "dtype": "bfloat16"}
    whole, adapted = (
        memory.plan(mistral, TRAINERS["ppo"].model_validate(given | changed)) for changed in ({}, {"lora": {"r": 16}})
    )
    assert adapted.trained == 2 * 41_943_040 + 4096  # two adapters, and the value model's head
    state = [{line.name: line.size / GB for line in plan.lines} for plan in (whole, adapted)]
    assert state[0]["weights"] + state[0]["reference"] == pytest.approx(3 * 7.2417 * 4, abs=0.01)
    assert state[1]["weights"] == pytest.approx(7.2417 * 6 + 0.0839 * 4, abs=0.01) and state[1]["reference"] == 0
    assert state[1]["optimiser"] == pytest.approx(0.0839 * 8, abs=0.01)


def test_ppo_has_a_piece_of_a_minibatch_and_the_cache_of_what_is_sampled(
    mistral: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a token 2 x 32 layers x 1,024 keys and values; of a row 4 x 512 x 32,000 logits in float32."""
    monkeypatch.setattr(memory, "memory_of_device", lambda: ("a GPU", 10**9))
    given = {"base": "base", "name": "trained", "checks": [], "dtype": "bfloat16", "lora": {}, "max_length": 1024}
    given |= {"batch_size": 64, "minibatch_size": 32, "max_tokens": 512}

    def told(**changed: Any) -> tuple[memory.Plan, dict[str, int]]:
        plan = memory.plan(mistral, TRAINERS["ppo"].model_validate(given | changed))
        return plan, {line.name: line.size for line in plan.lines}

    model = memory.sizes(mistral, TRAINERS["ppo"].model_validate(given))
    for accumulate, rows in ((1, 32), (8, 4), (31, 2), (32, 1)):
        _, parts = told(accumulate=accumulate, recompute=True)
        assert parts["activations"] == memory.activations(model, rows * 1024, 2, recompute=True, adapter=True)
        assert parts["logits"] == rows * 4 * 512 * 32000 * 4
    cache = 64 * 1024 * 32 * 2 * 1024 * 2
    assert parts["sampling"] == cache - parts["activations"] - parts["logits"] > 0
    assert told(accumulate=32, recompute=True, sample_batch_size=1)[1]["sampling"] == 0
    assert told()[1]["activations"] < told(recompute=False)[1]["activations"]
    words = [words for words, _ in told(recompute=False)[0].cheaper]
    assert words[0] == "accumulate=32" and words[-1] == "accumulate=32 sample_batch_size=32 recompute=true"


def test_the_memory_of_this_machine_is_what_it_has_free() -> None:
    name, room = memory.memory_of_device()
    assert name and 0 < room < 1e14


def test_a_training_that_clearly_does_not_fit_is_told_before_its_first_step(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The need is 1.25 times what is free, then 1.15 times, which the estimate may be wrong by."""
    from typer.testing import CliRunner

    from rlaif.cli.app import app

    monkeypatch.chdir(tmp_path)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]
    Path("rows.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 4)
    total = of(random_model, "sft", batch_size=4)[0].total
    for times, told in ((1.25, True), (1.15, False)):
        monkeypatch.setattr(memory, "memory_of_device", lambda times=times: ("a GPU", int(total / times)))
        command = ["train", "sft", "--base", str(random_model), "--data", "rows.jsonl", "--out", f"out{times}"]
        done = CliRunner().invoke(app, [*command, "--split", "all", "batch_size=4"])
        words = (
            f"the training needs about {total / GB:.2f} GB, and a GPU has {total / times / GB:.2f} GB free: `--plan`"
        )
        assert done.exit_code == 0 and (words in " ".join(done.output.split())) == told, done.output


def test_what_a_container_has_read_of_files_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "GROUP", str(tmp_path))
    for name, text in (("max", "4000\n"), ("current", "3000\n"), ("stat", "anon 2100\ninactive_file 900\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory._available() == 1900
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._available() > 10**6


def test_rlaif_train_tells_it_and_trains_nothing(
    mistral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from rlaif.cli.app import app

    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{i}", "chosen": "a", "rejected": "b"}) + "\n" for i in range(4))
    )
    base = ["train", "dpo", "--base", str(mistral), "--data", "pairs.jsonl", "--out", "out", "--plan"]
    monkeypatch.setattr(memory, "memory_of_device", lambda: ("a GPU", 80 * 10**9))
    said = CliRunner().invoke(app, [*base, "dtype=bfloat16"]).output
    words = " ".join(said.split())
    assert "weights 28.97 7,241,732,096 in float32" in words and "does not fit a GPU, which has 80.00 GB free" in words
    assert "lora={r: 16}" in words and not Path("out").exists() and not Path("out.partial").exists()
    told = json.loads(CliRunner().invoke(app, [*base, "--json", "dtype=bfloat16"]).output)
    assert told["fits"] is False and told["parameters"] == 7_241_732_096


def test_rlaif_plan_tells_it_of_each_training_by_the_sizes_of_its_base(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second base is not trained yet: its sizes are those of the first."""
    from typer.testing import CliRunner

    from rlaif.cli.app import app

    monkeypatch.chdir(tmp_path)
    talk = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "2"}]
    Path("rows.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    trainings = [
        {"train": {"sft": {"base": "base", "name": "one"}}},
        {"train": {"sft": {"base": "one", "name": "two"}}},
    ]
    pipeline = {
        "name": "p",
        "models": {"base": {"engine": "transformers", "path": str(random_model)}},
        "stages": [{"data": {"path": "rows.jsonl"}}, *trainings],
    }
    Path("p.yaml").write_text(json.dumps(pipeline))
    told = json.loads(CliRunner().invoke(app, ["plan", "p.yaml", "--json"]).output)
    one, two = (stage["memory"] for stage in told["stages"] if "memory" in stage)
    assert one["total"] == two["total"] == of(random_model, "sft", batch_size=16)[0].total and one["fits"]
    assert "memory of one: 0.98 GB, fits " in CliRunner().invoke(app, ["plan", "p.yaml"]).output


# ---------------------------------------------------------------- measured

BIG = LlamaConfig(
    vocab_size=261, hidden_size=512, intermediate_size=1376, num_hidden_layers=6, num_attention_heads=8,
    pad_token_id=0, eos_token_id=1, initializer_range=0.02, max_position_embeddings=512,
)  # fmt: skip
SMALL = LlamaConfig(
    vocab_size=261, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    pad_token_id=0, eos_token_id=1, max_position_embeddings=512,
)  # fmt: skip
MEASURED = """
import resource, sys
from rlaif.train.__main__ import main
assert main([sys.argv[1]]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def measured(config: LlamaConfig, method: str, folder: Path, **changed: Any) -> tuple[int, int]:
    """The peak of a training's memory, in bytes, and what was told of it but for the libraries."""
    base = make_random_model(folder / "base", config=config)
    asked = (Message(role="user", content="q"),)
    words = [f"{i:02} " + "x" * 100 for i in range(17)]
    learnt: list[Any] = [Demonstration((*asked, Message(role="assistant", content=word))) for word in words[:16]]
    if method != "sft":
        learnt = [PreferencePair(asked, one, other) for one, other in zip(words, words[1:], strict=False)]
    settings = settings_of(method, batch_size=8, max_length=118, checkpoint_steps=100, **changed)
    training = job.Job(settings, base, folder / "out", "key")
    job.write_job(training, learnt)
    told = memory.plan(base, settings)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(training.folder)], capture_output=True, text=True, check=True
    )
    libraries = next(line.size for line in told.lines if line.name == "libraries")
    return int(done.stdout.split()[-1]) * 1024, told.total - libraries


@pytest.mark.lab
@pytest.mark.parametrize(
    ("method", "changed"), [("sft", {}), ("dpo", {}), ("rm", {}), ("dpo", {"lora": {}}), ("sft", {"recompute": True})]
)
def test_what_is_told_is_what_is_measured(method: str, changed: dict[str, Any], tmp_path: Path) -> None:
    """Within a quarter, above a training of next to nothing, which is the libraries'."""
    nothing, _ = measured(SMALL, "sft", tmp_path / "small")
    peak, told = measured(BIG, method, tmp_path / "big", **changed)
    assert nothing < memory.LIBRARIES
    assert told == pytest.approx(peak - nothing, rel=0.25), (told / 1e6, (peak - nothing) / 1e6)
