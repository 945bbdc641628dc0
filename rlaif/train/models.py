"""Models on disk: loaded for training, checkpointed, saved with the record of their training.

Knows transformers and files, not TRL, losses or data. A job's folder (`train.job`) holds the checkpoints, and the
finished model in `final`, from where it is moved when complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import transformers
from peft import PeftModel
from torch.nn.modules.dropout import _DropoutNd
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlaif.config import TrainerSettings, Training
from rlaif.engines.adapters import RECORD, Source, named
from rlaif.engines.chat import Chat, end_tokens
from rlaif.engines.identity import has_reward_head, model_files, weights_digest
from rlaif.engines.transformers import load_config, load_net, load_tokenizer, not_finite, quietly, refuse_diverged
from rlaif.errors import InputError, WorkError
from rlaif.files import json_of, text_of, write_json
from rlaif.records import digest
from rlaif.train import lora, precision, tokens
from rlaif.train.tokens import Counts, beginning, chat_of

MARK = "complete"  # the file that says so of a checkpoint
MEGABYTE = 1_000_000
FINAL = "final"  # the trained model's folder inside its job's
VALUE = "value"  # of PPO's value model, inside the trained model's: no file of it is the policy's
NEW_PADDING = "<|padding|>"  # of a reward model whose base has no special token to pad with


class TrainResult(NamedTuple):
    """The record of a training, saved as `training.json` beside the model.

    `seconds` are of this call, `steps` and `metrics` of the whole training; `kept`, `cut` and `dropped` count examples;
    `notes` are warnings; `evaluation` is what a method tells of its model beside its metrics.
    """

    steps: int
    seconds: float
    metrics: dict[str, float]
    kept: int
    cut: int
    dropped: dict[str, int]
    notes: list[str]
    evaluation: dict[str, Any]


# ---------------------------------------------------------------- load


def load(
    base: Source, template: str | None = None, settings: Training | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model and its tokenizer, with `template` as its chat template, if given.

    Its weights are held in float32, or as `settings` say. Raises InputError for a folder without a complete model in
    safetensors.
    """
    model, tokenizer = _loaded(AutoModelForCausalLM, base, settings)
    if template is not None:
        tokenizer.chat_template = beginning(tokenizer, template)
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= model.config.get_text_config().vocab_size:
        tokenizer.pad_token = tokenizer.eos_token  # padding only: masks come from the rows' lengths
    return model, tokenizer


def load_reward(
    base: Source, seed: int, template: str | None = None, settings: Training | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model with a score head, initialised from `seed` if it has none, and its tokenizer; held as in `load`.

    Its chat template is `template`, if given. Raises InputError as `load` does, and for a base that no head with one
    score can stand on.
    """
    transformers.set_seed(seed)
    model, tokenizer = _loaded(AutoModelForSequenceClassification, base, settings, num_labels=1)
    if template is not None:
        tokenizer.chat_template = beginning(tokenizer, template)
    _pad_apart(model, tokenizer)
    return model, tokenizer


def refuse_headless(base: Source) -> None:
    """Raise InputError for a classifier of several labels, and for an architecture without a classifier.

    A head of our own would make a model that nobody else could load.
    """
    config = load_config(base)
    architecture = (config.architectures or [""])[0]
    if architecture.endswith("ForSequenceClassification") and config.num_labels != 1:
        raise InputError(
            f"the base model is a classifier of {config.num_labels} labels, and a reward model has one score",
            file=str(named(base)),
            fix="start from the language model that it was trained from, or from a reward model",
        )
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise InputError(
            f"transformers has no classifier for the architecture {architecture or type(config).__name__}",
            file=str(named(base)),
            fix="start from a model of another one, such as Llama, Mistral, Qwen, Gemma, Phi, OPT or Mixtral",
        )


def _pad_apart(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer and the model the same padding token, which is no end token.

    transformers reads a score at the last token that is not the padding token, and every sequence that a reward model
    scores ends with an end token. Only a special token will do: any other would become one, and split the words that
    hold it. Without one, a new token is added.
    """
    ends = {*end_ids(model, tokenizer)}
    rows = model.get_input_embeddings().num_embeddings
    added = tokenizer.added_tokens_decoder.items()
    named = [number for number, token in added if token.special and "pad" in token.content]  # as Llama 3 has
    usual = (tokenizer.pad_token_id, *named, tokenizer.unk_token_id, tokenizer.bos_token_id)
    fill = next((token for token in usual if token is not None and token not in ends and token < rows), None)
    if fill is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(fill)
    else:
        tokenizer.add_special_tokens({"pad_token": NEW_PADDING})
        if tokenizer.pad_token_id >= rows:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def trained_chat(settings: Training, model: Any, tokenizer: PreTrainedTokenizerBase) -> Chat:
    """The chat of a loaded model as the trainer's settings have it.

    A token that ends the template's turns is an end token of the model from here on, and will be saved as one.
    Raises InputError as `tokens.trainable_chat`.
    """
    names_ends: Any = getattr(model, "generation_config", None) or model.config.get_text_config()
    chat = chat_of(settings, tokenizer, names_ends.eos_token_id, Path(model.name_or_path))
    if not chat.ends <= {*end_ids(model, tokenizer)}:
        names_ends.eos_token_id = sorted(chat.ends)
    return chat


def computed_by(base: Source, settings: TrainerSettings) -> str:
    """The digest of all that decides what the base computes of given tokens before it is trained, but for rounding."""
    device = getattr(torch.accelerator.current_accelerator(), "type", "cpu")
    held = [str(precision.held_in(settings)), str(precision.computed_in(settings))]
    held += [settings.lora.quantized or ""] if settings.lora is not None else []
    return digest([weights_digest(base), *held, device, torch.__version__, transformers.__version__])


def fitting(model: Any, max_length: int) -> int:
    """The most tokens of a row: `max_length`, or the model's context length where that is shorter."""
    return tokens.within_context(model.config, max_length)


def _loaded(
    kind: Any, base: Source, settings: Training | None, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model_files(base)  # refuses what cannot be loaded
    if kind is AutoModelForSequenceClassification:
        refuse_headless(base)
    tokenizer = load_tokenizer(base)
    held = torch.float32 if settings is None else precision.held_in(settings)
    how = lora.quantization(getattr(settings, "lora", None), base)
    model, loading = load_net(kind, base, load_config(base, **options), held, **how)
    if how:
        lora.keep_gradients(model)
    refuse_missing_weights(named(base), loading, new_head=bool(options))
    refuse_diverged(model, named(base))
    model.loaded_from = base
    return model, tokenizer


def load_value_model(folder: Source, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The reward model in `folder` in float32.

    Raises InputError when it is not a reward model, or when its tokens differ from those of `tokenizer`, the policy's.
    """
    model: PreTrainedModel
    model_files(folder)
    own = load_tokenizer(folder)
    model, loading = load_net(AutoModelForSequenceClassification, folder, load_config(folder), torch.float32)
    if loading["missing_keys"] or getattr(model, "num_labels", None) != 1 or not hasattr(model, "score"):
        raise InputError(
            "the model has no head with one score", file=str(named(folder)), fix="name a trained reward model"
        )
    theirs = {token: number for token, number in own.get_vocab().items() if token != NEW_PADDING}
    pairs = {
        "vocabulary": (theirs, tokenizer.get_vocab()),
        "end token": (own.eos_token, tokenizer.eos_token),
        "chat template": (own.chat_template, tokenizer.chat_template),
    }
    if differing := [name for name, (theirs, ours) in pairs.items() if theirs != ours]:
        raise InputError(
            f"the reward model's {' and '.join(differing)} differ from the base model's, so the value model could not "
            "read the policy's tokens",
            file=str(named(folder)),
            fix="train the reward model from the same base model",
        )
    refuse_diverged(model, named(folder))
    return model


def flat_value_model(folder: Source) -> PreTrainedModel:
    """The model in `folder` in float32 with a new score head of zeros.

    Raises InputError for weights that lack tensors of the model.
    """
    model: PreTrainedModel
    refuse_headless(folder)
    config = load_config(folder, num_labels=1)
    model, loading = load_net(AutoModelForSequenceClassification, folder, config, torch.float32)
    refuse_missing_weights(named(folder), loading, new_head=True)
    head: Any = model.score
    torch.nn.init.zeros_(head.weight)
    return model


def end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a completion: those that the model's settings name, and the tokenizer's."""
    named = (getattr(model, "generation_config", None) or model.config.get_text_config()).eos_token_id
    return sorted(end_tokens(named, tokenizer, Path(model.name_or_path)))


@contextmanager
def still(model: Any) -> Iterator[None]:
    """No dropout, of modules or of functions, in training: a log-ratio to a reference would be noise.

    A function takes its probability from an attribute of its module, or from the configuration, by names that hold
    `drop`: OPT's `dropout`, GPT-2's `attn_pdrop`, Llama's `attention_dropout`. All are 0 inside and restored after it.
    """
    owners = [*model.modules(), model.config]
    if model.config.get_text_config() is not model.config:
        owners.append(model.config.get_text_config())
    before = [
        (owner, name, value)
        for owner in owners
        for name, value in vars(owner).items()
        if isinstance(value, float) and ("drop" in name or (name == "p" and isinstance(owner, _DropoutNd)))
    ]
    try:
        for owner, name, _ in before:
            setattr(owner, name, 0.0)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def recompute(model: Any) -> None:
    """Have the layers of `model` compute their activations again in the backward pass, inside `recomputing`."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@contextmanager
def recomputing(model: Any) -> Iterator[None]:
    """Where activations are kept and computed again, if `recompute` said so: forward and backward passes of training.

    Layers do that in training mode alone, and some take that for dropout's too, so there is none inside.
    """
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    with still(model) if layers else nullcontext():
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False


def refuse_missing_weights(folder: Path, loading: Mapping[str, Any], *, new_head: bool = False) -> None:
    """Raise InputError when the file lacks tensors of the model: transformers would initialise them at random.

    `loading` is the loading info of `from_pretrained`; with `new_head` the score head may be missing.
    """
    missing = sorted(key for key in loading["missing_keys"] if not (new_head and key.startswith("score.")))
    if not missing:
        return
    problem = f"the weights lack {len(missing)} of the model's tensors, the first is {missing[0]!r}"
    strangers = sorted(loading["unexpected_keys"])
    if strangers:
        problem += f", and hold {len(strangers)} that it does not have, the first is {strangers[0]!r}"
    raise InputError(problem, file=str(folder), fix="save the whole model again, under its own tensor names")


# ---------------------------------------------------------------- checkpoints


def mark_complete(checkpoint: Path) -> None:
    """Mark `checkpoint` as completely written: one without the mark, or unlike it, is not read.

    The mark has the job's key and, of every file, its size and the digest of both its ends. The files are on the disk
    before it is.
    """
    for path in checkpoint.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    write_json(checkpoint / MARK, _mark(checkpoint))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a job's folder that is complete, undamaged and of this job."""
    marked = [mark.parent for mark in folder.glob(f"checkpoint-*/{MARK}")]
    whole = (each for each in sorted(marked, key=step_of, reverse=True) if json_of(each / MARK) == _mark(each))
    return next(whole, None)


def _mark(checkpoint: Path) -> dict[str, Any]:
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARK)
    seen = {path.relative_to(checkpoint).as_posix(): [path.stat().st_size, _ends_of(path)] for path in files}
    return {"job": text_of(checkpoint.parent / "key"), "files": seen}


def _ends_of(path: Path) -> str:
    """The digest of a file's first and last megabyte: what is cut, zeroed or another's differs there."""
    digest_of = hashlib.sha256()
    with path.open("rb") as file:
        digest_of.update(file.read(MEGABYTE))
        file.seek(max(0, path.stat().st_size - MEGABYTE))
        digest_of.update(file.read(MEGABYTE))
    return digest_of.hexdigest()


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written, from 1."""
    return int(checkpoint.name.rpartition("-")[2])


def with_checkpoint(error: WorkError, folder: Path) -> WorkError:
    """The error of a training that cannot go on, with the last checkpoint in the job's `folder`."""
    last = newest_checkpoint(folder)
    if last is None:
        return error
    return WorkError(f"{error.message}; the checkpoint after step {step_of(last)} is kept in {last}", fix=error.fix)


# ---------------------------------------------------------------- save


def save(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    made: TrainResult,
    whole: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the model, its tokenizer and `training.json` into `final` of the job's `folder`.

    Of a model with an adapter the adapter alone is written. `whole` are the weights of a model of which this process
    holds a part. Raises WorkError for weights that are not finite.
    """
    final = folder / FINAL
    if final.is_symlink():
        final.unlink()
    shutil.rmtree(final, ignore_errors=True)
    if not_finite(model) if whole is None else not all(tensor.isfinite().all() for tensor in whole.values()):
        raise WorkError("the trained weights are not finite", fix="lower `learning_rate`")
    of_adapter: dict[str, Any] = {}
    if isinstance(model, PeftModel):
        adapted, model = model, cast(Any, model.get_base_model())
        of_adapter = lora.write(adapted, model.loaded_from, final, folder.with_suffix(""), whole)
    if model.can_generate():
        ends = end_ids(model, tokenizer)
        # Of the base model's sampling defaults only its end tokens are kept: the pipeline sets how models are sampled.
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=ends[0] if len(ends) == 1 else ends,
            pad_token_id=tokenizer.pad_token_id,
        )
    if not of_adapter:
        model.config.use_cache = True  # the base trainer disables it, and without it sampling is quadratic
        model.save_pretrained(final, state_dict=whole)
    elif model.can_generate():
        model.generation_config.save_pretrained(final)
    tokenizer.save_pretrained(final)
    record = made._asdict() | of_adapter | {"weights": weights_digest(final)}
    (final / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def result(
    counts: Counts, *, steps: int, metrics: dict[str, float], began: float, evaluation: dict[str, Any] | None = None
) -> TrainResult:
    """The record of a training that began at `began`, by `time.monotonic()`."""
    contradicting = counts.contradictions.note
    notes = counts.notes if contradicting is None else [*counts.notes, contradicting]
    counted = counts.kept, counts.cut, dict(counts.dropped), notes
    return TrainResult(steps, time.monotonic() - began, metrics, *counted, evaluation or {})


def write_whole(source: Source, folder: Path) -> None:
    """Write an adapted model into `folder` as a plain one in float32, with its tokenizer."""
    kind: Any = AutoModelForSequenceClassification if has_reward_head(source) else AutoModelForCausalLM
    tokenizer = load_tokenizer(source)
    with quietly():
        model, loading = load_net(kind, source, load_config(source), torch.float32)
        refuse_missing_weights(named(source), loading)
        refuse_diverged(model, named(source))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def merge(folder: Path) -> None:
    """Put the whole model in float32 in the place of the adapter in `final` of the job's `folder`.

    Its base is loaded anew, since it may have been held in fewer bits.
    """
    final, whole = folder / FINAL, folder / f"{FINAL}.whole"
    shutil.rmtree(whole, ignore_errors=True)
    record = json.loads((final / RECORD).read_text(encoding="utf-8"))
    write_whole(final, whole)
    shutil.rmtree(final)
    os.replace(whole, final)
    del record["base"], record["adapter"]
    record["weights"] = weights_digest(final)
    (final / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def save_value_model(model: Any, tokens_of: Source, folder: Path) -> None:
    """Write PPO's value model with the tokenizer in `tokens_of` beside the policy in `final`, as a reward model is.

    Its score at a completion's last token is what it expects of that completion. Raises WorkError for weights that are
    not finite.
    """
    if not_finite(model):
        raise WorkError("the value model's weights are not finite", fix="lower `value_learning_rate`")
    tokenizer = load_tokenizer(tokens_of)
    _pad_apart(model, tokenizer)
    model.save_pretrained(folder / FINAL / VALUE)
    tokenizer.save_pretrained(folder / FINAL / VALUE)
