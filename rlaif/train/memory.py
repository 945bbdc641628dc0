"""How much memory a training takes, told from its settings and its base's configuration before a weight is loaded.

The model is built without storage, on torch's `meta` device, and its parameters are counted. What a parameter costs
follows from `train.precision`; what a token of a batch costs follows from what the layers keep for the backward pass
(Korthikanti et al. 2022, arXiv 2205.05198, section 4, here for attention that keeps no matrix of scores, and gated
feed-forward layers). Weights, gradients and optimiser are exact. Activations are an estimate, within a quarter of what
was measured (docs/training/memory.md).
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from rlaif.config import LoRASettings, PPOSettings, RMSettings, TrainerSettings, Training
from rlaif.config.document import read_yaml
from rlaif.engines.adapters import Source
from rlaif.engines.transformers import load_config
from rlaif.engines.vetting import loading
from rlaif.errors import WorkError
from rlaif.resources import find
from rlaif.train import lora, models, precision

GB = 10**9
LIBRARIES = 800_000_000  # Python, torch and the trainers, or a GPU's context; measured
TILE = (4096, 8192)  # tokens by vocabulary of the logits that TRL's loss has at a time
BYTES_4BIT = 0.516  # a weight in NF4 with its twice-quantised constants: 4 bits, and 0.127 more (QLoRA, section 3)
BYTES = {torch.float32: 4, torch.bfloat16: 2}
_NAMES = {4: "float32", 2: "bfloat16"}
CLEARLY = 1.2  # times the free memory: no error of the estimate explains more


class Model(NamedTuple):
    """The sizes of a model that decide its memory."""

    parameters: int
    linear: int  # of them in linear layers but the head, which is what 4 bits are for
    adapted: int  # of an adapter of rank 1 over the layers that the settings name
    layers: int
    width: int  # of a hidden state
    queries: int  # width of all queries of a token, and of all keys
    keys: int
    inner: int  # width of a feed-forward layer
    vocabulary: int


class Line(NamedTuple):
    """One part of the memory, in bytes, and what it is."""

    name: str
    size: int
    meaning: str


class Plan(NamedTuple):
    """A training's memory: parameters in all and trained, the parts, the device's memory, and cheaper settings."""

    parameters: int
    trained: int
    lines: tuple[Line, ...]
    device: str
    room: int  # bytes that are free there, of which a training may take all
    cheaper: tuple[tuple[str, int], ...] = ()  # settings, and the bytes in all that they would take

    @property
    def total(self) -> int:
        return sum(line.size for line in self.lines)

    @property
    def fits(self) -> bool:
        return self.total <= self.room

    def as_json(self) -> dict[str, Any]:
        """In bytes."""
        return {
            "parameters": self.parameters, "trained": self.trained,
            "parts": [line._asdict() for line in self.lines], "total": self.total,
            "device": self.device, "room": self.room, "fits": self.fits, "cheaper": dict(self.cheaper),
        }  # fmt: skip


# ---------------------------------------------------------------- sizes


def sizes(base: Source, settings: Training) -> Model:
    """The sizes of the base model. Raises InputError for a configuration of no model that can be trained."""
    config = load_config(base)
    kind: Any = transformers.AutoModelForCausalLM
    with loading(config.name_or_path, "the model"), torch.device("meta"):
        model = kind.from_config(config)
    text = model.config.get_text_config()
    linear = lora.linear_layers(model)
    head = model.get_output_embeddings()
    whole = sum(weight.numel() for weight in model.parameters())
    if settings.scores and head is not None and head.weight is not model.get_input_embeddings().weight:
        whole -= head.weight.numel()  # in place of which a reward model has one row
    target = getattr(getattr(settings, "lora", None), "target", "all-linear")
    named = [
        m for name, m in linear.items() if target == "all-linear" or any(f".{name}".endswith(f".{t}") for t in target)
    ]
    heads = getattr(text, "num_attention_heads", 1)
    per_head = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Model(
        parameters=whole,
        linear=sum(module.weight.numel() for module in linear.values()),
        adapted=sum(sum(module.weight.shape) for module in named),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        queries=heads * per_head,
        keys=(getattr(text, "num_key_value_heads", None) or heads) * per_head,
        inner=_inner(linear, text),
        vocabulary=text.vocab_size,
    )


def _inner(linear: dict[str, Any], text: Any) -> int:
    """The width of the feed-forward layers, by whatever name: the widest of what their layers read or write.

    Of a mixture of experts it is that of all experts of a token.
    """
    experts = getattr(text, "num_experts_per_tok", None) or 1
    stated = (getattr(text, "intermediate_size", None) or 0) * experts
    return int(max([stated, *(max(module.weight.shape) for module in linear.values())]))


# ---------------------------------------------------------------- memory


def plan(base: Source, settings: Training) -> Plan:
    """The memory of a training, with what would take less where it does not fit."""
    model, (device, room) = sizes(base, settings), memory_of_device()
    trained, lines = parts(model, settings)
    made = Plan(max(model.parameters, trained), trained, lines, device, room)
    if made.fits:
        return made
    others: list[tuple[str, int]] = []
    for words, changed in _cheaper(settings):
        total = sum(line.size for line in parts(sizes(base, changed), changed)[1])
        if total < min([made.total, *(size for _, size in others)]):
            others.append((words, total))
    return made._replace(cheaper=tuple(others))


def shortage(made: Plan) -> str | None:
    """What to say before a training that needs clearly more memory than is free; None of any other."""
    if made.total <= CLEARLY * made.room:
        return None
    return (
        f"the training needs about {made.total / GB:.2f} GB, and {made.device} has {made.room / GB:.2f} GB free: "
        "`--plan` shows the settings that take less"
    )


def ran_out(folder: Path, settings: Mapping[str, Any]) -> WorkError:
    """The failure of a training in the job's `folder` that ran out of memory; `settings` are those of its trainer."""
    fix = "run the same command with `--plan`, which shows the settings that take less"
    if settings.get("recompute", True) is not True:
        fix += "; of these `recompute=true` goes on from the last checkpoint, others begin anew"
    return models.with_checkpoint(WorkError("the training ran out of memory", fix=fix), folder)


def parts(model: Model, settings: Training) -> tuple[int, tuple[Line, ...]]:
    """The number of trained parameters, and the parts of the memory of a training."""
    if isinstance(settings, PPOSettings):
        return _of_ppo(model, settings)
    assert isinstance(settings, TrainerSettings)
    held, computed = BYTES[precision.held_in(settings)], BYTES[precision.computed_in(settings)]
    adapter = settings.lora
    extra = 0 if adapter is None else model.adapted * adapter.r + (model.width if settings.scores else 0)
    trained = model.parameters if adapter is None else extra
    state = held if adapter is None else 2 if adapter.quantized else 4  # TRL holds an adapter over 4 bits in bfloat16
    frozen = 0 if adapter is None else model.parameters * held
    if adapter is not None and adapter.quantized:
        frozen = round(model.linear * BYTES_4BIT) + (model.parameters - model.linear) * 2
    rows = math.ceil(settings.batch_size / settings.processes)  # of this process
    tokens = rows * settings.max_length * _sequences(settings)
    recompute = recomputed(settings, model.parameters)
    lines = [
        Line("weights", frozen + trained * state, _weights_said(model, settings, trained, state)),
        Line("gradients", trained * state, "of what is trained"),
        Line("optimiser", 2 * trained * state, "AdamW's two moments"),
    ]
    if adapter is None and computed < held:
        lines.append(Line("copies", trained * computed, "of the weights, in bfloat16, while a step is computed"))
    if (shares := _shares(settings)) > 1:  # of everything that lies in shards
        lines = [
            line
            if line.name == "copies"
            else Line(line.name, math.ceil(line.size / shares), f"a share of {shares}, {line.meaning}")
            for line in lines
        ]
        gathered = round(model.parameters - model.linear + model.linear / model.layers) * held
        lines.append(Line("gathered", gathered, "from all shares: embeddings, head, and one layer at a time"))
    said = f"{tokens:,} tokens at once" + (", recomputed layer by layer" if recompute else "")
    kept = activations(model, tokens, computed, recompute=recompute, adapter=adapter is not None)
    lines += [
        Line("activations", kept, said),
        Line("logits", _logits(model, settings, tokens, computed), _logits_said(settings)),
    ]
    if settings.method == "dpo":
        lines.append(Line("reference", 0, "computed before the first step, or the model without its adapter"))
    lines.append(Line("libraries", LIBRARIES, "about, before a model is loaded"))
    return trained, tuple(lines)


RECOMPUTED_FROM = 100_000_000  # parameters, under `recompute: auto`


def _shares(settings: TrainerSettings) -> int:
    """In how many shards weights, gradients and optimiser lie: by FSDP or ZeRO-3 in one a process."""
    if settings.launch is None:
        return 1
    launch = read_yaml(find(settings.launch)).value
    config = launch.get("deepspeed_config")  # or a file's name
    stage = config.get("zero_stage") if isinstance(config, dict) else None
    sharded = launch.get("distributed_type") == "FSDP" or stage == 3
    return settings.processes if sharded else 1


def recomputed(settings: Training, parameters: int) -> bool:
    """Whether the training of a model of so many parameters computes its activations again in the backward pass."""
    return parameters >= RECOMPUTED_FROM if settings.recompute == "auto" else settings.recompute


def _weights_said(model: Model, settings: TrainerSettings, trained: int, state: int) -> str:
    if settings.lora is None:
        return f"{trained:,} in {_NAMES[state]}"
    how = "4 bits" if settings.lora.quantized else str(precision.held_in(settings)).removeprefix("torch.")
    return f"{model.parameters:,} frozen in {how}, and {trained:,} of the adapter in {_NAMES[state]}"


def activations(model: Model, tokens: int, computed: int, *, recompute: bool, adapter: bool = False) -> int:
    """Bytes that the layers keep for the backward pass. `computed` are the bytes of a number that is computed in.

    Of each token a layer keeps the inputs of its matrix products and of what is not linear: two norms (the input in
    float32, and the output), queries, keys and values before and after their positions, the attention's output, and
    gate, up and product of the feed-forward layer. Recomputed, a layer keeps only its input, and one layer at a time
    the rest.
    """
    d, q, k, i = model.width, model.queries, model.keys, model.inner
    inside = computed * (2 * d + 2 * (q + k) + k + q + 4 * i) + 4 * 4 * d
    if adapter:  # each adapted layer keeps its input once more, for the adapter, and its output before that is added
        inside += computed * (5 * d + q + i) + computed * (2 * d + q + 2 * k + 2 * i)
    kept = computed * d if recompute else inside
    outside = 4 * 2 * d  # the embedding, the last norm
    return tokens * (model.layers * kept + (inside if recompute else 0) + outside)


def _logits(model: Model, settings: TrainerSettings, tokens: int, computed: int) -> int:
    if settings.scores:
        return tokens * 4
    tile = min(tokens, TILE[0]) * min(model.vocabulary, TILE[1]) * (computed + 8)
    head = 0 if settings.lora is not None else model.vocabulary * model.width * 4  # its gradient, summed in float32
    return tile + head + tokens * model.width * 4


def _logits_said(settings: TrainerSettings) -> str:
    return "one score a sequence" if settings.scores else "a tile at a time, never all of them"


def _of_ppo(model: Model, settings: PPOSettings) -> tuple[int, tuple[Line, ...]]:
    """Policy and value model, each trained in float32 or under an adapter in float32, and one piece of a minibatch.

    Completions are sampled while neither activations nor logits of an update are there, so the cache of their keys and
    values counts only as far as it is larger.
    """
    held, computed = BYTES[precision.held_in(settings)], BYTES[precision.computed_in(settings)]
    adapter = settings.lora
    trained = 2 * model.parameters if adapter is None else 2 * model.adapted * adapter.r + model.width
    frozen = 0 if adapter is None else model.parameters * (held + 4)  # the value model's are in float32
    rows = math.ceil(settings.minibatch_size / settings.accumulate)
    tokens = rows * settings.max_length
    logits = 4 * rows * settings.max_tokens * model.vocabulary * 4
    recompute = recomputed(settings, model.parameters)
    weights, reference = f"{trained:,} of policy and value model in float32", "a copy of the base in float32"
    if adapter is not None:
        weights = f"{2 * model.parameters:,} frozen, and {trained:,} of adapters in float32"
        reference = "the policy without its adapter"
    kept = activations(model, tokens, computed, recompute=recompute, adapter=adapter is not None)
    sampled = settings.sample_batch_size or settings.batch_size
    cache = sampled * settings.max_length * model.layers * 2 * model.keys * computed
    said = f"{tokens:,} tokens at once" + (", recomputed layer by layer" if recompute else "")
    copies = model.parameters * computed if adapter is None and computed < held else 0
    return trained, (
        Line("weights", frozen + trained * 4, weights),
        Line("gradients", trained * 4, "of what is trained"),
        Line("optimiser", 2 * trained * 4, "Adam's two moments"),
        Line("copies", copies, "of one model's weights, in bfloat16, while an update is computed"),
        Line("activations", kept, said + ", of one model at a time"),
        Line("logits", logits, "of policy and reference, with their gradient"),
        Line("sampling", max(0, cache - kept - logits), f"above those two: the cache of {sampled:,} completions"),
        Line("reference", model.parameters * 4 if adapter is None else 0, reference),
        Line("libraries", LIBRARIES, "about, before a model is loaded; the reward model comes on top"),
    )


def _sequences(settings: TrainerSettings) -> int:
    """The most sequences that one row of a batch is."""
    if isinstance(settings, RMSettings) and settings.grouping == "prompt":
        return settings.group_size
    return 2 if settings.takes == "preferences" else 1


def _cheaper(settings: Training) -> Iterator[tuple[str, Training]]:
    """Settings that take less, as they are written on the command line; each holds those before `alone`."""
    if isinstance(settings, PPOSettings):
        yield from _cheaper_ppo(settings)
        return
    assert isinstance(settings, TrainerSettings)
    rows = settings.batch_size * settings.accumulate
    shared: dict[str, Any] = {}
    if settings.batch_size > settings.processes:  # each process needs a row
        shared = {"batch_size": settings.processes, "accumulate": math.ceil(rows / settings.processes)}
        yield _changed(settings, shared)
    if settings.recompute is not True:
        shared |= {"recompute": True}
        yield _changed(settings, shared)
    alone: list[dict[str, Any]] = [{"max_length": max(1, settings.max_length // 2)}]
    if settings.lora is None:
        alone += [{"weights": "bfloat16", "dtype": "bfloat16"}, {"lora": LoRASettings(), "dtype": "bfloat16"}]
    if importlib.util.find_spec("bitsandbytes") is not None:
        alone.append({"lora": LoRASettings(quantized="4bit"), "dtype": "bfloat16"})
    for change in alone:
        yield _changed(settings, shared | change)


def _cheaper_ppo(settings: PPOSettings) -> Iterator[tuple[str, Training]]:
    """As `_cheaper`. Completions are sampled as many at once as a minibatch has."""
    shared: dict[str, Any] = {"accumulate": settings.minibatch_size}
    yield _changed(settings, shared)
    shared |= {"sample_batch_size": min(settings.minibatch_size, settings.sample_batch_size or settings.batch_size)}
    yield _changed(settings, shared)
    shared |= {"recompute": True}
    yield _changed(settings, shared)
    if settings.lora is None:
        yield _changed(settings, shared | {"lora": LoRASettings(), "dtype": "bfloat16"})


def _changed(settings: Training, changed: Mapping[str, Any]) -> tuple[str, Training]:
    words = []
    for name, value in changed.items():
        if isinstance(value, LoRASettings):
            stated = {"r": value.r} | ({"quantized": value.quantized} if value.quantized else {})
            value = "{" + ", ".join(f"{key}: {one}" for key, one in stated.items()) + "}"
            words.append(f"'{name}={value}'")
        else:
            words.append(f"{name}={str(value).lower()}")
    return " ".join(words), settings.model_copy(update=dict(changed))


# ---------------------------------------------------------------- the device


GROUP = "/sys/fs/cgroup"  # what Linux says of the process group, of a container too


def memory_of_device() -> tuple[str, int]:
    """The name of the device that a training would take, and the bytes that are free there."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return torch.cuda.get_device_name(), free
    return "the CPU", _available()


def _available() -> int:
    """Bytes that this machine can give, by what the kernel says and what the process group may take."""
    try:
        known = [int(_stated("/proc/meminfo")["MemAvailable:"]) * 1024]
    except OSError:  # no Linux: all that is installed
        known = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        most, now = (int(Path(GROUP, name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        # The files that it has read count as used, and are dropped where memory is needed.
        known.append(most - now + int(_stated(f"{GROUP}/memory.stat")["inactive_file"]))
    except (OSError, ValueError):  # no control group, or one without a limit
        pass
    return max(0, min(known))


def _stated(file: str) -> dict[str, str]:
    """A file of the kernel's that has a name and a number in each line."""
    lines = Path(file).read_text(encoding="ascii").splitlines()
    return {name: number for name, number, *_ in map(str.split, lines)}
