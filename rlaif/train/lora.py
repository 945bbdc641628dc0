"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) in a training, and on disk.

A linear layer W of a frozen base becomes W + (alpha / r) B A with B of zeros at first, so that the model starts as its
base and the reference of DPO is the model without the adapter. The base may be a model with an adapter itself: that one
is added to its weights, and what is trained and saved lies over both. So the adapter's base is the model that was
named, never its ancestor (alignment-handbook #188).
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BitsAndBytesConfig, PreTrainedModel

from rlaif.config import LoRASettings
from rlaif.engines.adapters import RECORD, Source, layers, named, record_of
from rlaif.engines.identity import adapter_record, weights_digest
from rlaif.engines.vetting import ADAPTER
from rlaif.errors import InputError

CONV1D = "Conv1D"  # GPT-2's linear layers, whose weights are transposed


def config_of(settings: LoRASettings, model: PreTrainedModel, *, scores: bool) -> LoraConfig:
    """peft's settings of an adapter over `model`; a reward model's new head is trained whole.

    Raises InputError for layers that the model does not have.
    """
    # By name: of `all-linear` peft makes adapters of experts as well, which its own loader does not read.
    linear = sorted(linear_layers(model))
    target: Any = linear if settings.target == "all-linear" else list(settings.target)
    if settings.target != "all-linear":
        missing = [t for t in target if not any(f".{name}".endswith(f".{t}") for name in linear)]
        if missing:
            there = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            problem = f"the base model has no linear layer {missing[0]!r}"
            raise InputError(problem, key="lora.target", fix=f"name some of {there}")
    alpha: Any = settings.alpha  # peft states a whole number and takes any
    return LoraConfig(
        r=settings.r,
        lora_alpha=alpha,
        lora_dropout=settings.dropout,
        target_modules=target,
        modules_to_save=["score"] if scores else None,
        task_type="SEQ_CLS" if scores else "CAUSAL_LM",
        fan_in_fan_out=any(type(module).__name__ == CONV1D for module in model.modules()),
    )


def adapted(settings: LoRASettings | None, model: PreTrainedModel, seed: int, *, scores: bool) -> Any:
    """The model with a new adapter, drawn from `seed`, that alone is trained; the model itself without settings."""
    if settings is None:
        return model
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)  # peft's own
        return get_peft_model(model, config_of(settings, model, scores=scores))


def linear_layers(model: Any) -> dict[str, Any]:
    """The linear layers by name, without a head: of a mixture of experts those that all tokens pass."""
    heads = (model.get_output_embeddings(), getattr(model, "score", None))
    named = model.named_modules()
    return {name: module for name, module in named if _is_linear(module) and not any(module is head for head in heads)}


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == CONV1D


def quantization(settings: LoRASettings | None, base: Source) -> dict[str, Any]:
    """How `from_pretrained` loads a base in 4 bits: NF4, its constants quantised too (QLoRA, arXiv 2305.14314).

    Empty for one that is not quantised. Raises InputError without the package for it, and for an adapted base, whose
    adapter cannot be added to weights of 4 bits.
    """
    if settings is None or settings.quantized is None:
        return {}
    if layers(base)[1]:
        raise InputError("the base model has an adapter, which 4 bits cannot hold", file=str(named(base)),
                         key="lora.quantized", fix="train that one with `save: merged`, or merge it")  # fmt: skip
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("`quantized: 4bit` needs bitsandbytes, which is not installed", key="lora.quantized",
                         fix="pip install 'bitsandbytes>=0.45.1', or remove the setting")  # fmt: skip
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": config, "device_map": {"": torch.accelerator.current_device_index()}
            if torch.accelerator.is_available() else "cpu"}  # fmt: skip


def keep_gradients(model: Any) -> None:
    """Keep weights in 4 bits in the form that gradients pass.

    On a CPU with bfloat16 instructions bitsandbytes 0.50 packs them in the first forward pass without gradients, a
    validation or a reference, and for good; then no gradient reaches what lies before such a layer, without a word.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def write(
    model: PeftModel, base: Source, folder: Path, out: Path, whole: dict[str, torch.Tensor] | None = None
) -> dict[str, Any]:
    """Save the adapter of `model` in `folder`, from where it moves to `out`. Returns the records of it and its base.

    `whole` are the weights of a model of which this process holds a part.

    peft's own settings name the base by its folder, so that peft finds it too.
    """
    # Rows for a new padding token are no part of the adapter: whoever loads it makes room again.
    model.save_pretrained(str(folder), state_dict=whole, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a form that nobody filled in
    settings = json.loads((folder / ADAPTER).read_text())
    settings["base_model_name_or_path"] = str(named(base).absolute())
    if not settings.get("target_parameters"):
        settings["rank_pattern"], settings["alpha_pattern"] = {}, {}  # peft's, of experts that have no adapter
    settings["target_modules"] = sorted(settings["target_modules"])  # which peft writes in any order
    (folder / ADAPTER).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    record = {"base": record_of(base, weights_digest(base), out), "adapter": adapter_record(folder)}
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    return record
