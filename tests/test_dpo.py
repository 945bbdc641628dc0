"""DPO trainings on a tiny random model: every loss from its closed form on, and a reference that is computed once."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from test_tokenizing import encodings_counted
from test_train import PAIRS, Steps, Stopped, logprobs, settings_of, validation, weights
from transformers import AutoTokenizer, LlamaModel

from rlaif.errors import InputError, WorkError
from rlaif.pipeline.alone import check_alone, one_trainer, train_alone
from rlaif.pipeline.progress import Silent
from rlaif.train import job, kept_files, preference_losses, trl
from rlaif.train.examples import OnStep, PreferencePair
from rlaif.train.job import Job
from rlaif.train.pairs import tokenize
from rlaif.train.references import Completion, References
from rlaif.train.tokens import trainable_chat

LN2 = math.log(2)
STEP = ("step", "steps", "loss", "learning_rate", "grad_norm", "epoch", "tokens")  # of every training
UNEVEN = [
    replace(pair, chosen=pair.chosen + " and so on" * (i % 3), probability=0.6 + 0.015 * i)
    for i, pair in enumerate(PAIRS)
]


def train(
    base: Path,
    out: Path,
    on_step: OnStep = lambda _: None,
    examples: Iterable[PreferencePair] = UNEVEN[:8],
    shared: Path | None = None,
    **changed: Any,
) -> Any:
    """The record of a training of two steps, or as `changed` and `examples` say."""
    training = Job(settings_of("dpo", **changed), base, out, "the inputs' digest", references=shared)
    job.write_job(training, examples)
    return SimpleNamespace(**job.train(training.folder, on_step))


@contextmanager
def forwards_counted() -> Iterator[list[int]]:
    """The rows of each forward of a model that keeps nothing for gradients, as a reference's does."""
    rows: list[int] = []
    plain = LlamaModel.forward

    def counted(self: Any, input_ids: Any = None, *arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            rows.append(len(input_ids))
        return plain(self, input_ids, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaModel, "forward", counted)
        yield rows


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize(
    ("changed", "first"),
    [
        ({"label_smoothing": 0.1}, LN2),
        ({"loss": "ipo"}, 25.0),
        ({"loss": "robust", "label_smoothing": 0.1}, LN2),
        ({"loss": "sigmoid_norm"}, LN2),
        ({"soft_labels": True, "accumulate": 2, "batch_size": 2, "learning_rate": 1e-4}, LN2),
        ({"loss": "simpo"}, None),
        ({"sft_weight": 0.5}, None),
        ({"ld_alpha": 0.3}, LN2),
    ],
    ids=str,
)
def test_every_loss_begins_at_its_closed_form_and_falls(
    random_model: Path, tmp_path: Path, changed: dict[str, Any], first: float | None
) -> None:
    steps: Steps = []
    train(random_model, tmp_path / "out", steps.append, epochs=4, **changed)
    assert len(steps) == 8 and steps[-1]["loss"] < steps[0]["loss"]
    if first is not None:
        assert steps[0]["loss"] == pytest.approx(first, rel=1e-4)
        assert (steps[0]["rewards/chosen"], steps[0]["rewards/rejected"]) == pytest.approx((0, 0), abs=1e-4)
    assert steps[-1]["rewards/margins"] > steps[0]["rewards/margins"]
    assert set(steps[0]) - {*STEP, "padding"} == {
        name for name in preference_losses.REPORTED if changed.get("loss") != "simpo" or "logratios" not in name
    }


def test_the_first_loss_of_simpo_and_of_an_sft_term_by_plain_torch(random_model: Path, tmp_path: Path) -> None:
    chat = trainable_chat(AutoTokenizer.from_pretrained(random_model))
    columns, _ = tokenize(chat, UNEVEN[:8], 100)
    per_token = {
        side: [
            logprobs(random_model, prompt + ids)[-len(ids) :].mean()
            for prompt, ids in zip(columns["prompt_ids"], columns[f"{side}_ids"], strict=True)
        ]
        for side in ("chosen", "rejected")
    }
    chosen, rejected = (torch.stack(values) for values in per_token.values())
    simpo: Steps = []
    train(random_model, tmp_path / "simpo", simpo.append, batch_size=8, loss="simpo", beta=3, gamma_beta_ratio=0.2)
    expected = -torch.nn.functional.logsigmoid(3 * (chosen - rejected) - 0.6).mean().item()
    assert simpo[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert simpo[0]["rewards/chosen"] == pytest.approx(3 * chosen.mean().item(), rel=1e-4)
    with_sft: Steps = []
    train(random_model, tmp_path / "sft", with_sft.append, batch_size=8, sft_weight=0.5)
    assert with_sft[0]["loss"] == pytest.approx(LN2 - 0.5 * chosen.mean().item(), rel=1e-4)


@pytest.mark.parametrize("changed", [{"loss": "simpo"}, {"loss": "ipo"}, {"sft_weight": 0.5}], ids=str)
def test_a_first_loss_that_is_not_as_it_must_be_ends_the_training(
    random_model: Path, tmp_path: Path, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with dropout that was left on: what the loss must be is of another forward than what it is."""
    drawn = iter(range(1, 100))
    plain = trl.DPO._forward

    def noisy(self: Any, model: Any, inputs: Any) -> Any:
        outputs, pairs = plain(self, model, inputs)
        noise = 9 * next(drawn) * torch.linspace(1, 2, len(pairs.logps))
        return outputs, pairs._replace(logps=pairs.logps - noise, counted=pairs.counted - noise)

    monkeypatch.setattr(trl.DPO, "_forward", noisy)
    with pytest.raises(WorkError, match=r"the first loss of DPO is [\d.]+ and must be [\d.]+: the model gives a text"):
        train(random_model, tmp_path / "out", **changed)


def test_soft_labels_need_the_probability_of_every_pair(random_model: Path, tmp_path: Path) -> None:
    examples = [*UNEVEN[:3], replace(UNEVEN[3], probability=None)]
    with pytest.raises(InputError, match="1 of 4 pairs have no probability, and `soft_labels` needs it.*remove"):
        train(random_model, tmp_path / "out", examples=examples, soft_labels=True)


def test_accumulated_batches_are_one_batch_for_every_part_of_the_loss(random_model: Path, tmp_path: Path) -> None:
    changed: dict[str, Any] = {"soft_labels": True, "sft_weight": 0.5, "ld_alpha": 0.5}
    together: Steps = []
    train(random_model, tmp_path / "together", together.append, batch_size=8, **changed)
    parts: Steps = []
    train(random_model, tmp_path / "parts", parts.append, batch_size=3, accumulate=3, **changed)
    for name in together[0].keys() - {"padding", "rewards/accuracies"}:  # margins are 0 up to float error
        assert parts[0][name] == pytest.approx(together[0][name], rel=1e-4, abs=1e-4), name


# ---------------------------------------------------------------- the reference, once


def test_another_beta_and_another_loss_compute_no_reference_again(random_model: Path, tmp_path: Path) -> None:
    """Pairs that share a completion compute it once; what is known is neither computed nor written again."""
    examples = [*UNEVEN[:6], replace(UNEVEN[0], rejected="another"), *validation(UNEVEN[6:8])]
    with forwards_counted() as rows:
        train(random_model, tmp_path / "first", examples=examples, shared=tmp_path / "shared", epochs=0.1)
    validated = 2 * 2  # the completions of the two validation pairs, at the end
    total = sum(rows) - validated
    assert total == 2 * 9 - 1
    files = {path: path.stat().st_ino for path in (tmp_path / "shared").rglob("*.parquet")}
    assert files
    for number, changed in enumerate(({"beta": 0.5}, {"loss": "ipo"}, {"loss": "sigmoid_norm", "accumulate": 2})):
        with forwards_counted() as rows:
            train(random_model, tmp_path / str(number), examples=examples, shared=tmp_path / "shared", epochs=0.1,
                  **changed)  # fmt: skip
        assert sum(rows) == validated
    assert files == {path: path.stat().st_ino for path in (tmp_path / "shared").rglob("*.parquet")}
    with forwards_counted() as rows:
        train(random_model, tmp_path / "bf16", examples=examples, shared=tmp_path / "shared", dtype="bfloat16",
              epochs=0.1)  # fmt: skip
    assert sum(rows) == total + validated


def test_simpo_has_no_reference(random_model: Path, tmp_path: Path) -> None:
    with forwards_counted() as rows:
        train(random_model, tmp_path / "out", shared=tmp_path / "shared", loss="simpo", batch_size=4)
    assert rows == [8] and not (tmp_path / "shared").exists()  # the first batch once more, for the check of its loss


def test_the_kept_reference_is_the_live_one(random_model: Path, tmp_path: Path) -> None:
    """Padded in batches and read from a file, against each completion alone in plain transformers."""
    train(random_model, tmp_path / "out", shared=tmp_path / "shared", ld_alpha=0.5)
    columns, _ = tokenize(trainable_chat(AutoTokenizer.from_pretrained(random_model)), UNEVEN[:8], 100)
    (folder,) = (tmp_path / "shared").iterdir()
    kept = References(folder.name, tmp_path / "none", tmp_path / "shared")
    for prompt, chosen, rejected in zip(*list(columns.values())[:3], strict=True):
        live = logprobs(random_model, prompt + chosen)[-len(chosen) :]
        short = min(len(chosen), len(rejected))
        whole, begun = Completion(prompt, chosen), Completion(prompt, chosen).begins(short)
        found = kept.known([whole.key, begun.key])
        assert found[whole.key] == pytest.approx(live.sum().item(), abs=2e-4)
        assert found[begun.key] == pytest.approx(live[:short].sum().item(), abs=2e-4)


def test_a_training_with_a_kept_reference_is_the_training_that_computed_it(random_model: Path, tmp_path: Path) -> None:
    first: Steps = []
    train(random_model, tmp_path / "first", first.append, shared=tmp_path / "shared")
    second: Steps = []
    train(random_model, tmp_path / "second", second.append, shared=tmp_path / "shared")
    alone: Steps = []
    train(random_model, tmp_path / "alone", alone.append)
    assert first == second == alone
    assert weights(tmp_path / "first") == weights(tmp_path / "second") == weights(tmp_path / "alone")


def test_a_job_that_is_resumed_elsewhere_has_its_reference_with_it(random_model: Path, tmp_path: Path) -> None:
    """The shared folder is gone, as on another machine, and may be no folder at all."""

    def stop(step: dict[str, float]) -> None:
        if step["step"] == 2:
            raise Stopped

    with pytest.raises(Stopped):
        train(random_model, tmp_path / "out", stop, shared=tmp_path / "shared", epochs=2, checkpoint_steps=1)
    for path in sorted((tmp_path / "shared").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "shared").rmdir()
    (tmp_path / "shared").write_text("no folder")
    again: Steps = []
    with forwards_counted() as rows:
        job.train(tmp_path / "out.partial", again.append)
    assert rows == [] and [step["step"] for step in again] == [2, 3, 4]
    whole: Steps = []
    train(random_model, tmp_path / "whole", whole.append, epochs=2, checkpoint_steps=1)
    assert whole[1:] == again and weights(tmp_path / "whole") == weights(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole", "shared"}


def test_a_killed_computing_of_the_reference_goes_on(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trl.preference, "KEPT_EVERY", 0)
    with monkeypatch.context() as patched, pytest.raises(Stopped), forwards_counted() as before:
        computed = trl.DPO.compute_ref_log_probs

        def killed(self: Any, model: Any, inputs: Any) -> Any:
            if len(before) == 2:
                raise Stopped
            return computed(self, model, inputs)

        patched.setattr(trl.DPO, "compute_ref_log_probs", killed)
        train(random_model, tmp_path / "out", examples=UNEVEN, batch_size=2)
    with forwards_counted() as after:
        train(random_model, tmp_path / "out", examples=UNEVEN, batch_size=2, epochs=0.1)
    assert sum(before) == 16 and sum(before) + sum(after) == 2 * len(UNEVEN)


def test_rlaif_train_shares_tokens_and_the_reference_between_models_side_by_side(
    random_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": pair.prompt[0].content, "chosen": pair.chosen, "rejected": pair.rejected} for pair in PAIRS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counted, tokenized = {}, {}
    for name, beta in (("a", 0.1), ("b", 0.5)):
        pipeline = one_trainer("dpo", str(random_model), str(file), name, [f"beta={beta}", "epochs=0.1"], None)
        with forwards_counted() as forwarded, encodings_counted() as encoded:
            record = asyncio.run(train_alone(pipeline, tmp_path / "models" / name, Silent()))
        assert record["evaluation"] == {}  # no prompt of these is of the validation split, whose forwards would count
        counted[name], tokenized[name] = sum(forwarded), len(encoded)
    assert counted == {"a": 2 * record["kept"], "b": 0} and tokenized["a"] > tokenized["b"] == 0
    with encodings_counted() as encoded:
        assert check_alone(pipeline, tmp_path / "models" / "c").made.kept == record["kept"] and not encoded
        assert check_alone(pipeline).made.kept == record["kept"] and encoded  # without the folder it shares nothing
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"a", "b", ".references", ".tokens"}


# ---------------------------------------------------------------- the folder


KEYS = [Completion([1, 2], [3 + i]).key for i in range(4)]
MODEL = "ab" * 16


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_key_is_of_the_tokens_and_of_where_the_completion_begins() -> None:
    assert Completion([1, 2], [3]).key == Completion([1, 2], [3, 4]).begins(1).key
    different = {Completion(p, c).key for p, c in (([1, 2], [3]), ([1], [2, 3]), ([], [1, 2, 3]), ([1, 2], [259]))}
    assert len(different) == 4 and {len(key) for key in different} == {16}


def test_values_are_kept_where_they_lack_and_read_from_either_folder(tmp_path: Path) -> None:
    first = References(MODEL, tmp_path / "a", tmp_path / "shared")
    assert first.known(KEYS) == {}
    first.keep({KEYS[0]: -1.5, KEYS[1]: math.nan})
    first.keep({KEYS[0]: -1.5, KEYS[2]: -2.5})
    assert [len(files_of(tmp_path / name)) for name in ("a", "shared")] == [2, 2]
    second = References(MODEL, tmp_path / "b", tmp_path / "shared")
    assert second.known(KEYS) == {KEYS[0]: -1.5, KEYS[2]: -2.5}
    second.keep(second.known(KEYS))
    assert References(MODEL, tmp_path / "b").known(KEYS[:1]) == {KEYS[0]: -1.5}
    assert References("cd" * 16, tmp_path / "a", tmp_path / "shared").known(KEYS) == {}


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"", lambda data: b"x" * 200])
def test_a_damaged_file_costs_only_computing_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    References(MODEL, tmp_path).keep({KEYS[0]: -1.5})
    (file,) = files_of(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    again = References(MODEL, tmp_path)
    assert again.known(KEYS) == {}
    again.keep({KEYS[0]: -1.5})
    assert files_of(tmp_path) == [file] and References(MODEL, tmp_path).known(KEYS) == {KEYS[0]: -1.5}


def test_a_shared_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "shared").write_text("a file")
    kept = References(MODEL, tmp_path / "own", tmp_path / "shared")
    assert kept.known(KEYS) == {}
    kept.keep({KEYS[0]: -1.5})
    assert References(MODEL, tmp_path / "own").known(KEYS) == {KEYS[0]: -1.5}
    with pytest.raises(OSError, match="shared"):
        References(MODEL, tmp_path / "shared").keep({KEYS[0]: -1.5})


def test_a_shared_folder_is_bounded_and_forgets_what_was_not_read_for_longest(tmp_path: Path) -> None:
    for key, model in zip(KEYS, ("aa", "bb", "aa", "bb"), strict=True):
        References(model * 16, tmp_path).keep({key: -1.0})
    files = files_of(tmp_path)
    for age, file in enumerate(files):
        os.utime(file, (time.time() - 1000 + age, time.time() - 1000 + age))
    left = files[0].with_name(f".{files[0].name}.12345.tmp")
    left.write_bytes(b"half")
    os.utime(left, (time.time() - 2 * kept_files.FORGOTTEN,) * 2)
    (tmp_path / "ours.txt").write_text("not ours")
    oldest = References(files[0].parent.name, tmp_path)
    assert len(oldest.known(KEYS)) == 2  # of files[0] and files[1], which are used thereby
    kept_files.prune(tmp_path, most=sum(file.stat().st_size for file in files) - 1)
    assert set(files) - set(files_of(tmp_path)) == {files[2]}
    assert left not in files_of(tmp_path) and (tmp_path / "ours.txt") in files_of(tmp_path)
    kept_files.prune(tmp_path, most=0)
    assert files_of(tmp_path) == [tmp_path / "ours.txt"]
