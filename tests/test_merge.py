"""`rlaif merge` on small models: end points, hand-worked sums, norms, memory, and what does not fit together."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from conftest import SPECIAL, make_random_model
from inside import rlaif
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_train import train
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from rlaif.engines.adapters import Adapted
from rlaif.engines.identity import weights_digest
from rlaif.engines.transformers import TransformersEngine
from rlaif.errors import InputError
from rlaif.records import Message
from rlaif.train import merge as merging
from rlaif.train.merge import Weights, merge, merge_of, slerp

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return tuple(make_random_model(folder / f"m{seed}", seed=seed) for seed in range(3))  # type: ignore[return-value]


def merged(out: Path, method: str, models: list[Path], *weights: float, base: Path | None = None) -> Tensors:
    merge(merge_of(method, models, weights, base), out)
    return load_file(out / "model.safetensors")


def alike(ours: Tensors, theirs: Tensors) -> bool:
    """To the bit: a negative zero is no zero."""
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype
        and torch.equal(ours[name].view(torch.uint8), theirs[name].view(torch.uint8))
        for name in ours
    )


# ---------------------------------------------------------------- the arithmetic


@pytest.mark.parametrize("method", ["linear", "wise", "task", "slerp"])
def test_end_points_are_the_parents_to_the_bit(method: str, models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    first, second, _ = models
    for weight, expected in ((0.0, first), (1.0, second)):
        given = {"models": [second], "base": first} if method in ("wise", "task") else {"models": [first, second]}
        made = merged(tmp_path / f"{weight}", method, given["models"], weight, base=given.get("base"))  # type: ignore[arg-type]
        assert alike(made, load_file(expected / "model.safetensors"))


def test_the_configuration_names_the_type_of_the_tensors(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """transformers loads every tensor in the type that it names, the last model's here bfloat16."""
    last = shutil.copytree(models[1], tmp_path / "last")
    settings = json.loads((last / "config.json").read_text())
    (last / "config.json").write_text(json.dumps(settings | {"dtype": "bfloat16"}))
    made = merged(tmp_path / "out", "linear", [models[0], last], 0.0)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float32"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in made.items())


def test_a_zero_of_the_other_model_is_no_term(tmp_path: Path, models: tuple[Path, Path, Path]) -> None:
    """0 * inf is no number, and 0 + -0 is not -0."""
    first = shutil.copytree(models[0], tmp_path / "first")
    tensors = load_file(first / "model.safetensors")
    name = "model.norm.weight"
    other = dict(tensors) | {name: torch.full_like(tensors[name], math.inf)}
    save_file(other, first / "model.safetensors", {"format": "pt"})
    second = shutil.copytree(models[1], tmp_path / "second")
    zeros = dict(load_file(second / "model.safetensors")) | {name: torch.full_like(tensors[name], -0.0)}
    save_file(zeros, second / "model.safetensors", {"format": "pt"})
    assert alike(merged(tmp_path / "out", "linear", [first, second], 1.0), zeros)


@pytest.mark.parametrize(
    ("method", "count", "weights", "expected"),
    [
        ("linear", 3, (0.2, 0.3, 0.5), lambda a, b, c: 0.2 * a + 0.3 * b + 0.5 * c),
        ("linear", 3, (), lambda a, b, c: (a + b + c) / 3),
        ("linear", 2, (0.25,), lambda a, b, c: 0.75 * a + 0.25 * b),
        ("wise", 1, (0.3,), lambda a, b, c: 0.7 * c + 0.3 * a),
        ("task", 2, (0.5, 2.0), lambda a, b, c: c + 0.5 * (a - c) + 2 * (b - c)),
        ("task", 2, (), lambda a, b, c: c + (a - c) + (b - c)),
        ("task", 1, (-1.0,), lambda a, b, c: c - (a - c)),  # what was learnt is unlearnt
    ],
)
def test_sums_by_hand(
    method: str,
    count: int,
    weights: tuple[float, ...],
    expected: Callable[..., torch.Tensor],
    models: tuple[Path, Path, Path],
    tmp_path: Path,
) -> None:
    base = models[2] if method in ("wise", "task") else None
    made = merged(tmp_path / "out", method, list(models[:count]), *weights, base=base)
    read = [load_file(model / "model.safetensors") for model in models]
    assert len(made) == len(read[0]) > 10
    for name in made:
        torch.testing.assert_close(made[name], expected(*(tensors[name] for tensors in read)))


def test_slerp_keeps_the_norm_and_goes_by_the_angle() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for share in (0.25, 0.5, 0.9):
        angle = share * math.pi / 2
        assert slerp(a, b, share).tolist() == pytest.approx([math.cos(angle), math.sin(angle)], abs=1e-6)
    drawn = torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    drawn /= drawn.norm(dim=1, keepdim=True)
    assert slerp(drawn[0], drawn[1], 0.3).norm().item() == pytest.approx(1, abs=1e-5)
    assert torch.lerp(drawn[0], drawn[1], 0.3).norm().item() < 0.9  # the straight line does not
    assert slerp(a, 2 * a, 0.5).tolist() == [1.5, 0]  # parallel
    assert slerp(a, 0 * a, 0.25).tolist() == [0.75, 0]


def test_halves_are_summed_in_single_precision(tmp_path: Path, models: tuple[Path, Path, Path]) -> None:
    parents = []
    for number in range(2):
        folder = shutil.copytree(models[number], tmp_path / f"half{number}")
        halved = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
        save_file(halved, folder / "model.safetensors", {"format": "pt"})
        parents.append((folder, halved))
    (first, a), (second, b) = parents
    for name, tensor in merged(tmp_path / "out", "linear", [first, second], 0.3).items():
        exact = 0.7 * a[name].double() + 0.3 * b[name].double()
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor, exact.float().bfloat16(), rtol=0.008, atol=1e-6)
    # Beside a wide parent the result is wide, and its end point that parent.
    assert alike(
        merged(tmp_path / "wide", "linear", [first, models[1]], 1.0), load_file(models[1] / "model.safetensors")
    )


# ---------------------------------------------------------------- the folder


def test_a_merged_model_loads_and_keeps_the_record_of_its_parents(
    models: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    merged(tmp_path / "out", "linear", list(models[:2]), 0.5)
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    halves = [AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32) for model in models[:2]]
    wanted = sum(half.state_dict()["model.embed_tokens.weight"] for half in halves) / 2
    torch.testing.assert_close(net.state_dict()["lm_head.weight"], wanted)  # tied
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    record = json.loads((tmp_path / "out/merge.json").read_text())
    assert record["method"] == "linear"
    assert [(parent["coefficient"], parent["weights"]) for parent in record["parents"]] == [
        (0.5, weights_digest(model)) for model in models[:2]
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_shards_are_read_and_written(
    models: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One parent in shards, the other whole; the result in shards of its own, which transformers loads."""
    sharded = shutil.copytree(models[0], tmp_path / "sharded")
    os.remove(sharded / "model.safetensors")
    AutoModelForCausalLM.from_pretrained(models[0], dtype=torch.float32).save_pretrained(
        sharded, max_shard_size="100KB"
    )
    assert len([*sharded.glob("model-*.safetensors")]) > 1
    monkeypatch.setattr(merging, "SHARD", 50_000)
    merge(merge_of("linear", [sharded, models[1]], [0.5], None), tmp_path / "out")
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    files = sorted({*index["weight_map"].values()})
    assert len(files) > 1 and files == sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    sizes = {name: tensor.nbytes for file in files for name, tensor in load_file(tmp_path / "out" / file).items()}
    assert sizes.keys() == index["weight_map"].keys() and index["metadata"]["total_size"] == sum(sizes.values())
    monkeypatch.undo()
    whole = merged(tmp_path / "whole", "linear", list(models[:2]), 0.5)
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    assert all(torch.equal(net[name], tensor) for name, tensor in whole.items())


def test_at_most_one_tensor_of_each_model_is_in_memory(
    models: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by the tensors that are read and not yet freed, and by their bytes.

    Nothing is collected here: a tensor that only a collection would free takes its memory until then.
    """
    alive: dict[int, int] = {}
    peaks: list[tuple[int, int]] = []
    read = Weights.read

    def counted(self: Weights, name: str) -> torch.Tensor:
        tensor = read(self, name)
        alive[id(tensor)] = tensor.nbytes
        weakref.finalize(tensor, alive.pop, id(tensor))
        peaks.append((len(alive), sum(alive.values())))
        return tensor

    monkeypatch.setattr(Weights, "read", counted)
    for method, given in (("linear", list(models)), ("slerp", list(models[:2]))):
        peaks.clear()
        tensors = merged(tmp_path / method, method, given)
        largest = max(tensor.nbytes for tensor in tensors.values())
        assert len(peaks) == len(given) * len(tensors)
        assert max(count for count, _ in peaks) <= len(given)
        assert max(size for _, size in peaks) <= len(given) * largest < sum(t.nbytes for t in tensors.values())


def test_a_failure_leaves_nothing(
    models: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, left = Weights.read, [5]

    def failing(self: Weights, name: str) -> torch.Tensor:
        left[0] -= 1
        if not left[0]:
            raise OSError(28, "No space left on device")
        return read(self, name)

    monkeypatch.setattr(Weights, "read", failing)
    with pytest.raises(OSError, match="No space"):
        merged(tmp_path / "out", "linear", list(models[:2]))
    assert [*tmp_path.iterdir()] == []


# ---------------------------------------------------------------- tied weights and what does not fit


def test_a_stored_copy_of_tied_embeddings_is_left_out(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    storing = shutil.copytree(models[0], tmp_path / "storing")
    tensors = load_file(storing / "model.safetensors")
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, storing / "model.safetensors", {"format": "pt"})
    assert "lm_head.weight" not in merged(tmp_path / "out", "linear", [storing, models[1]])
    both = merged(tmp_path / "both", "linear", [storing, storing])
    assert torch.equal(both["lm_head.weight"], both["model.embed_tokens.weight"])


def changed(models: tuple[Path, Path, Path], folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    made = shutil.copytree(models[1], folder)
    save_file(change(load_file(made / "model.safetensors")), made / "model.safetensors", {"format": "pt"})
    return made


def with_config(models: tuple[Path, Path, Path], folder: Path, **settings: Any) -> Path:
    made = shutil.copytree(models[1], folder)
    config = json.loads((made / "config.json").read_text()) | settings
    (made / "config.json").write_text(json.dumps(config))
    return made


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: {n: x for n, x in t.items() if n != NORM}, f"lack the tensor '{NORM}', which .*m0 has"),
        (lambda t: t | {"extra": torch.ones(2)}, "m0: its weights lack the tensor 'extra'"),
        (lambda t: t | {NORM: torch.ones(3)}, rf"the tensor '{NORM}' has the shape \[3\], and \[64\] in .*m0"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[Tensors], Tensors], told: str, models: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=told):
        merged(tmp_path / "out", "linear", [models[0], changed(models, tmp_path / "other", change)])
    assert not (tmp_path / "out").exists()


def test_another_architecture_or_vocabulary_is_refused(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    other = with_config(models, tmp_path / "config", rms_norm_eps=0.1)
    with pytest.raises(InputError, match="differs from that of .*m0: `rms_norm_eps` is 0.1, not 1e-06"):
        merged(tmp_path / "out", "linear", [models[0], other])
    tokens = make_random_model(tmp_path / "tokens", special=[*SPECIAL[:-1], "<|helper|>"])
    with pytest.raises(InputError, match=r"vocabulary differs from that of .* in 2 tokens, such as '<\|assistant\|>'"):
        merged(tmp_path / "out", "linear", [models[0], tokens])
    bare = shutil.copytree(models[1], tmp_path / "bare")
    os.remove(bare / "tokenizer.json")
    with pytest.raises(InputError, match="cannot be compared"):
        merged(tmp_path / "out", "linear", [models[0], bare])


def test_what_may_differ_is_told(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """A base model has no chat template and another end token: the last model's are kept."""
    tuned = with_config(models, tmp_path / "tuned", eos_token_id=[1, 2], attention_dropout_of_mine=0.1)
    (tuned / "chat_template.jinja").write_text("{{ messages }}")
    made = merge(merge_of("wise", [tuned], [0.5], models[0]), tmp_path / "out")
    assert made.notes == [
        "only one of m0 and tuned states attention_dropout_of_mine in its configuration",
        "the chat templates of m0 and tuned differ: kept is that of the last model",
    ]
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] == [1, 2]


def test_integers_are_kept_where_all_agree(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    def with_buffer(folder: Path, value: int) -> Path:
        return changed(models, folder, lambda tensors: tensors | {"places": torch.tensor([value, 2])})

    parents = [with_buffer(tmp_path / f"i{value}{n}", value) for n, value in enumerate((1, 1, 3))]
    assert merged(tmp_path / "out", "linear", parents[:2])["places"].tolist() == [1, 2]
    with pytest.raises(InputError, match="'places' holds integers that differ"):
        merged(tmp_path / "not", "linear", [parents[0], parents[2]])


@pytest.mark.parametrize(
    ("method", "count", "weights", "based", "told"),
    [
        ("soup", 2, (), False, "there is no method 'soup'.*linear, wise, task, slerp"),
        ("linear", 0, (), False, "`linear` merges two models or more, and 0 are given"),
        ("linear", 1, (), False, "one model is given, and it has no adapter .*give two models or more, or one with an"),
        ("slerp", 3, (), False, "`slerp` merges two models, and 3 are given"),
        ("wise", 2, (), True, "`wise` merges one model, and 2 are given"),
        ("task", 1, (), False, "`task` needs the model that the others started from"),
        ("linear", 2, (), True, "`linear` has no base"),
        ("linear", 3, (0.5,), False, "1 weights are given for 3 models.*give --weight 3 times"),
        ("linear", 2, (0.5, 0.7), False, "the weights sum to 1.2"),
        ("slerp", 2, (1.5,), False, "give 0 to 1"),
        ("linear", 2, (math.nan,), False, "the weight nan is no number"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    method: str, count: int, weights: tuple[float, ...], based: bool, told: str
) -> None:
    with pytest.raises(InputError, match=told):
        merge_of(method, [Path("m")] * count, weights, Path("b") if based else None)


@pytest.mark.parametrize(("value", "weights"), [(math.nan, (0.5,)), (3e38, (0.5,)), (math.inf, (1.0,))])
def test_a_result_that_is_not_finite_is_refused(
    value: float, weights: tuple[float, ...], models: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    diverged = changed(models, tmp_path / "diverged", lambda t: t | {NORM: torch.full_like(t[NORM], value)})
    asked = merge_of("task", [diverged], [-4.0 if value == 3e38 else weights[0]], models[0])
    with pytest.raises(InputError, match=f"the tensor '{NORM}' of the merged model holds NaN or infinity"):
        merge(asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_left_alone(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(InputError, match="the folder exists already"):
        merged(tmp_path / "out", "linear", list(models[:2]))
    (tmp_path / "out/mine").unlink()
    merged(tmp_path / "out", "linear", list(models[:2]))  # an empty one holds nothing to lose
    with pytest.raises(InputError, match="it lies in the folder of another model, .*/out. Fix: name a folder outside"):
        merged(tmp_path / "out/of/it", "linear", list(models[:2]))
    assert not (tmp_path / "out/of").exists()


def test_untied_weights_keep_both_embeddings(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + 256, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False, eos_token_id=1, pad_token_id=0,
        bos_token_id=None,
    )  # fmt: skip
    parents = [make_random_model(tmp_path / f"u{seed}", seed=seed, config=config) for seed in range(2)]
    made = merged(tmp_path / "out", "linear", parents)
    assert not torch.equal(made["lm_head.weight"], made["model.embed_tokens.weight"])
    lacking = shutil.copytree(parents[1], tmp_path / "lacking")
    tensors = load_file(lacking / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, lacking / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="lack the tensor 'lm_head.weight'"):
        merged(tmp_path / "not", "linear", [parents[0], lacking])


def test_the_command_merges_tells_and_refuses(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    named = [str(model) for model in models[:2]]
    done = rlaif(tmp_path, "merge", *named, "--weight", "0.25", "--out", "out")
    assert done.code == 0 and "linear: 0.75 of" in done.out and "the model is in out" in " ".join(done.out.split())
    again = rlaif(tmp_path, "merge", *named, "--out", "out")
    assert again.code == 2 and "the folder exists already" in again.err
    asked = ("--method", "task", "--base", named[0], "--weight", "2", "--out", "task", "--json")
    record = json.loads(rlaif(tmp_path, "merge", named[1], *asked).out)
    assert [parent["coefficient"] for parent in record["parents"]] == [-1, 2] and record["notes"] == []
    missing = rlaif(tmp_path, "merge", "nowhere", named[0], "--out", "third")
    assert missing.code == 2 and "nowhere" in missing.err


# ---------------------------------------------------------------- adapters


def test_an_adapter_makes_the_plain_model_that_a_merged_training_leaves(
    models: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """To the bit, with its template, and by every name of the two."""
    for save in ("adapter", "merged"):
        train("sft", models[0], tmp_path / save, lora={"r": 4}, save=save, max_steps=2)
    own = rlaif(tmp_path, "merge", "adapter", "--out", "own")
    assert own.code == 0, own.err
    assert own.out.startswith("linear: 1 of ") and own.out.split("\n")[0].endswith("/adapter"), own.out
    (tmp_path / "adapter").rename(tmp_path / "moved")
    (tmp_path / "moved/training.json").unlink()  # as a stranger's
    both = rlaif(tmp_path, "merge", str(models[0]), "--adapter", "moved", "--out", "both", "--json")
    parent = json.loads(both.out)["parents"][0]
    assert parent.keys() == {"folder", "adapter", "weights", "coefficient"}
    assert parent["weights"] == weights_digest(Adapted(models[0], tmp_path / "moved"))
    wanted = load_file(tmp_path / "merged/model.safetensors")
    for out in (tmp_path / "own", tmp_path / "both"):
        assert alike(load_file(out / "model.safetensors"), wanted)
        names = {path.name for path in out.iterdir()}
        assert names == {*ANSWERS, "merge.json"} and not (out / "adapter_config.json").exists()
        for name in ("chat_template.jinja", "generation_config.json", "tokenizer.json"):
            assert (out / name).read_bytes() == (tmp_path / "moved" / name).read_bytes()
        AutoModelForCausalLM.from_pretrained(out)
    assert not alike(wanted, load_file(models[0] / "model.safetensors"))


ANSWERS = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
ANSWERS += ("generation_config.json",)


def low_rank_adapter(folder: Path, base: Path, scale: float = 1.0, **changed: Any) -> Path:
    """Over one tensor, whose numbers are drawn; the settings are peft's, or `changed`."""
    draw = torch.Generator().manual_seed(1)
    outputs, inputs = load_file(base / "model.safetensors")[DOWN].shape
    a, b = torch.randn(2, inputs, generator=draw), scale * torch.randn(outputs, 2, generator=draw)
    folder.mkdir()
    layer = DOWN.removesuffix(".weight")
    tensors = {"lora_A.weight": a, "lora_B.weight": b}
    tensors |= {"lora_magnitude_vector": torch.ones(outputs)} if changed.get("use_dora") else {}
    named = {f"base_model.model.{layer}.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 8, "target_modules": [layer]}
    settings |= {"base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(settings | changed))
    return folder


DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # in peft's own loading
@pytest.mark.parametrize(
    "changed",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"alpha_pattern": {"down_proj": 3}}],
    ids=["plain", "rank-stabilised", "DoRA", "another alpha"],
)
def test_whatever_an_adapter_is_it_is_merged_as_peft_merges_it(
    changed: dict[str, Any], models: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Where it is more than low-rank matrices, the model is loaded."""
    adapter = low_rank_adapter(tmp_path / "adapter", models[0], **changed)
    ours = merged(tmp_path / "out", "linear", [adapter])
    plain = AutoModelForCausalLM.from_pretrained(models[0], dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, adapter).merge_and_unload().state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert not torch.equal(ours[DOWN], load_file(models[0] / "model.safetensors")[DOWN])


def test_an_adapter_over_an_adapter_and_beside_other_models(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    first = low_rank_adapter(tmp_path / "first", models[0])
    second = low_rank_adapter(tmp_path / "second", models[0], base_model_name_or_path=str(first))
    once, twice = (merged(tmp_path / name, "linear", [each]) for name, each in (("once", first), ("twice", second)))
    stored = load_file(models[0] / "model.safetensors")
    torch.testing.assert_close(twice[DOWN] - stored[DOWN], 2 * (once[DOWN] - stored[DOWN]))
    mean = merged(tmp_path / "mean", "linear", [first, models[1]])
    torch.testing.assert_close(mean[DOWN], (once[DOWN] + load_file(models[1] / "model.safetensors")[DOWN]) / 2)
    more = low_rank_adapter(tmp_path / "more", models[0], use_dora=True)
    fewer = low_rank_adapter(tmp_path / "fewer", models[0], target_modules=["down_proj"])
    with pytest.raises(InputError, match="/fewer: the adapter does not fit its base model"):
        merged(tmp_path / "not", "linear", [fewer])
    with pytest.raises(InputError, match="/more: the adapter is more than .* with no other model. Fix: make one model"):
        merged(tmp_path / "not", "linear", [more, models[1]])


def test_of_a_base_in_half_precision_only_what_the_adapter_changes_is_in_float32(
    models: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base = changed(models, tmp_path / "base", lambda t: {name: tensor.bfloat16() for name, tensor in t.items()})
    out = merged(tmp_path / "out", "linear", [low_rank_adapter(tmp_path / "adapter", base, scale=1e-4)])
    assert [name for name, tensor in out.items() if tensor.dtype != torch.bfloat16] == [DOWN]
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float32"
    moved = out[DOWN] - load_file(base / "model.safetensors")[DOWN].float()
    assert 0 < moved.abs().max() < 0.01 and not torch.equal(out[DOWN], out[DOWN].bfloat16().float())  # exact


def test_a_reward_models_adapter_is_merged_with_its_head(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    train("rm", models[0], tmp_path / "rm", lora={"r": 4}, max_steps=2)
    merge(merge_of("linear", [tmp_path / "rm"], (), None), tmp_path / "out")
    asked = [((Message(role="user", content="what is 1?"),), f"it is {i}") for i in range(3)]
    read = [asyncio.run(TransformersEngine("m", str(tmp_path / name)).score(asked)) for name in ("rm", "out")]
    assert read[0] == pytest.approx(read[1], abs=1e-4) and len({*read[0]}) == 3


def test_what_is_no_merge_of_an_adapter_is_refused(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    adapter = str(low_rank_adapter(tmp_path / "adapter", models[0]))
    for asked, told in (
        (
            [str(models[0])],
            "one model is given, and it has no adapter to merge into it. Fix: give two models or more, or",
        ),
        ([str(models[0]), str(models[1]), "--adapter", adapter], "`--adapter`: the adapter is of one model, and 2 are"),
        (
            [str(models[0]), "--adapter", str(models[1])],
            "m1: the folder holds no adapter: it has no adapter_config.json",
        ),
        ([str(models[0]), "--adapter", "nowhere"], "`--adapter`: there is no file or folder 'nowhere'"),
    ):
        done = rlaif(tmp_path, "merge", *asked, "--out", "out")
        assert done.code == 2 and told in done.err and not (tmp_path / "out").exists(), done.err
