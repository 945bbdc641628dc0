"""What lies beside a trained model: the picture of its training, its card, PPO's value model; and how long it takes."""

# ruff: noqa: F811 - fixtures of another file

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import matplotlib
import torch
import yaml
from huggingface_hub import ModelCard
from test_train_running import PAIRS, Train, reward_model, train, user  # noqa: F401 - fixtures
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlaif.engines.identity import weights_digest
from rlaif.engines.transformers import TransformersEngine
from rlaif.errors import InputError
from rlaif.pipeline.progress import Lines, Silent
from rlaif.screen import Console
from rlaif.train import card, job, models, plots
from rlaif.train.__main__ import main
from rlaif.train.examples import PreferencePair
from rlaif.train.pace import Pace, about

Written = dict[str, Any]


# ---------------------------------------------------------------- pictures


def lines(**curves: list[float | None]) -> list[Written]:
    total = len(next(iter(curves.values())))
    names = {name.replace("__", "/"): values for name, values in curves.items()}
    return [
        {"step": i + 1, "steps": total, "time": 100.0 + i, "tokens": 50 * (i + 1)}
        | {name: values[i] for name, values in names.items() if values[i] is not None}
        for i in range(total)
    ]


def write(file: Path, steps: list[Written]) -> Path:
    file.write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf-8")
    return file


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The figures that are drawn, as the library has them."""
    figures: list[Any] = []
    make = plots._figure

    def keep(*arguments: Any) -> Any:
        figures.append(make(*arguments))
        return figures[-1]

    monkeypatch.setattr(plots, "_figure", keep)
    yield figures


def curves_of(place: Any) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in place.get_lines() if line.get_label()[0] != "_"}


def test_a_picture_has_a_plot_for_what_was_reported_and_its_curves_are_the_figures(
    tmp_path: Path, drawn: list[Any]
) -> None:
    loss, validation = [3.0, 2.0, 1.0, 0.5], [None, 2.5, None, 1.5]
    chosen, rejected = [-5.0, -6.0, -7.0, -8.0], [-5.0, -7.0, -9.0, -11.0]
    steps = lines(
        loss=loss, validation_loss=validation, logps__chosen=chosen, logps__rejected=rejected, entropy=[None] * 4
    )
    steps[1]["step_time"] = None
    assert plots.draw(write(tmp_path / "m.jsonl", steps), tmp_path / "p.png", r"a $\x$ model of 模", kept=2)
    places = {place.get_title(loc="left"): place for place in drawn[0].axes}
    assert list(places) == ["Loss", "Log-probability of a completion", "Tokens a second"]
    assert curves_of(places["Loss"]) == {"training": loss, "validation": [2.5, 1.5], "weights kept": [0, 1]}
    assert curves_of(places["Log-probability of a completion"]) == {"chosen": chosen, "rejected": rejected}
    assert list(places["Tokens a second"].get_lines()[0].get_ydata()) == [50.0]  # of the one step without validation
    assert [text.get_text() for text in drawn[0].texts] == [r"a $\x$ model of ?"]
    assert (tmp_path / "p.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_lengths_are_drawn_and_the_accuracy_by_source_where_the_sources_are_few(
    tmp_path: Path, drawn: list[Any]
) -> None:
    shares, lengths = [None, 0.5, 1.0], [20.0, 21.0, 22.0]
    common: dict[str, list[float | None]] = {"loss": [3.0, 2.0, 1.0], "lengths__chosen": [*lengths]}
    common |= {"lengths__rejected": [10.0, 9.0, 8.0], "validation_longer_preferred": shares}
    title = "Accuracy on validation pairs, by source"
    names = ["_b$x$", "a very long name of a source", "模", *"defghi"]
    for count in (1, 2, 8, 9):
        by_source: Any = {f"validation_accuracy__{name}": shares for name in names[:count]}
        plots.draw(write(tmp_path / "m.jsonl", lines(**common, **by_source)), tmp_path / "p.png", "t")
        places = {place.get_title(loc="left"): place for place in drawn[-1].axes}
        assert (title in places) == (count in (2, 8))
        assert curves_of(places["Length of a completion, tokens"])["chosen"] == lengths
        assert list(places["Longer one preferred, on validation pairs"].get_lines()[-1].get_ydata()) == [0.5, 1.0]
        if title in places:
            told = [text.get_text() for text in places[title].get_legend().get_texts()]
            assert len(told) == count and {r"b\$x\$", "a very long ... a source"} <= set(told)
            assert len({line.get_linewidth() for line in places[title].get_lines()[1:]}) == count


def test_a_long_training_is_smoothed_and_small_numbers_name_their_power(tmp_path: Path, drawn: list[Any]) -> None:
    noisy = [float(i % 2) for i in range(250)]
    rates = [5e-7 * (1 - i / 250) for i in range(250)]
    norms = [10.0 ** (i % 5 - 2) for i in range(250)]
    steps = lines(loss=noisy, learning_rate=rates, grad_norm=norms)
    plots.draw(write(tmp_path / "m.jsonl", steps), tmp_path / "p.png", "t")
    loss, rate, norm, _ = drawn[0].axes
    thin, thick = loss.get_lines()
    assert list(thin.get_ydata()) == noisy and set(list(thick.get_ydata())[10:-10]) == {5 / 11, 6 / 11}
    assert rate.get_title(loc="left") == r"Learning rate $\times\,10^{-7}$"
    assert len(rate.get_lines()) == 1 and list(rate.get_lines()[0].get_ydata()) == rates  # nothing to smooth
    assert norm.get_yscale() == "log" and loss.get_yscale() == "linear"
    assert "11 steps" in drawn[0].texts[1].get_text()


def test_a_plot_of_means_alone_does_not_promise_the_least_and_the_largest(tmp_path: Path, drawn: list[Any]) -> None:
    means, more = {"mean_reward": [1.0, 2.0, 3.0]}, {"min_reward": [0.0, 1.0, 2.0], "max_reward": [2.0, 3.0, 4.0]}
    for figures in (means, means | more):
        plots.draw(write(tmp_path / "m.jsonl", lines(**figures)), tmp_path / "p.png", "t")
    alone, banded = (figure.axes[0] for figure in drawn)
    assert alone.get_title(loc="left") == "Mean score" and not alone.collections
    assert banded.get_title(loc="left") == "Scores: mean, least and largest" and len(banded.collections) == 1


def test_too_few_steps_make_no_picture(tmp_path: Path) -> None:
    assert not plots.draw(write(tmp_path / "m.jsonl", lines(loss=[1.0, 2.0])), tmp_path / "p.png", "t")
    assert not plots.draw(tmp_path / "none", tmp_path / "p.png", "t") and not (tmp_path / "p.png").exists()


def test_a_mean_over_steps_has_fewer_at_the_ends() -> None:
    assert plots.smoothed([1, 2, 3, 4], 3) == [1.5, 2, 3, 3.5]
    assert plots.smoothed([1, 2, 3, 4], 1) == [1, 2, 3, 4]


def test_a_picture_touches_no_setting_of_the_process(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    plots.draw(write(tmp_path / "m.jsonl", lines(loss=[3.0, 2.0, 1.0])), tmp_path / "p.png", "t")
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys, pathlib; from rlaif.train import plots; folder = pathlib.Path(sys.argv[1])\n"
        "plots.draw(folder / 'm.jsonl', folder / 'p.png', 't'); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("failure", "told"), [(ImportError, "matplotlib is not installed"), (ValueError, "ValueError")]
)
def test_a_training_without_its_picture_is_a_training_with_a_note(
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: type[Exception],
    told: str,
) -> None:
    def fails(*_: Any) -> Any:
        raise failure("no")

    monkeypatch.setattr(plots, "_figure", fails)
    record = train("sft", "out")
    assert len(record.notes) == 1 and told in record.notes[0] and not (tmp_path / "out/training.png").exists()
    assert told in (tmp_path / "out/README.md").read_text()


# ---------------------------------------------------------------- the card


def test_the_card_is_one_of_the_hubs_and_tells_data_settings_and_figures(
    train: Train,
    tmp_path: Path,
    random_model: Path,
) -> None:
    sources = ["org/pairs"] * 14 + ["`own`.jsonl"] * 6 + ["a|b\nc"] * 4
    pairs = [PreferencePair(p.prompt, p.chosen, p.rejected, source=s) for p, s in zip(PAIRS, sources, strict=True)]
    held = [PreferencePair(p.prompt, p.chosen, p.rejected, "validation") for p in PAIRS[:4]]
    dropped = PreferencePair((user("x"),), "the same", "the same")
    train("dpo", "out", examples=[*pairs, *held, dropped], keep="best")
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    head = ModelCard(text).data.to_dict()
    assert head == {
        "base_model": "model",
        "datasets": ["org/pairs"],
        "library_name": "transformers",
        "license": "unknown",
        "tags": ["rlaif", "dpo"],
        "pipeline_tag": "text-generation",
    }
    assert str(tmp_path) not in text and str(random_model.parent) not in text
    for said in (
        "# out\n",
        "Direct preference optimisation (DPO) of `model` by rlaif",
        "![The curves of its training](training.png)",
        "- 28 examples, validation's included, in 6 steps",
        "- 1 more were dropped: identical",
        "- from `org/pairs`, `` `own`.jsonl ``, `a|b c`",
        "| `beta` | `0.1` |",
        "| `keep` | `best` |",
        "| validation accuracy | 1 | 0.5101 to 1 |",  # of its evaluation on pairs
        "| kept step | ",
        "  out:\n    engine: transformers\n",
    ):
        assert said in text, said


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
@pytest.mark.parametrize("changed", [{}, {"lora": {"r": 4}}], ids=["whole", "adapter"])
@pytest.mark.parametrize("method", ["sft", "rm"])
def test_the_cards_python_runs(train: Train, tmp_path: Path, method: str, changed: Written) -> None:
    train(method, "out", max_steps=1, **changed)
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0].replace("path/to/this/folder", str(tmp_path / "out"))
    names: dict[str, Any] = {}
    exec(code, names)
    model = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])["models"]["out"]
    assert model == {"engine": "transformers", "path": "path/to/this/folder"}
    if method == "rm":
        engine = TransformersEngine("rm", str(tmp_path / "out"), device="cpu")
        (score,) = asyncio.run(engine.score([((user("What is 1 + 1?"),), "2")]))
        asyncio.run(engine.close())
        assert names["score"].item() == pytest.approx(score, abs=1e-4)


def test_a_base_of_the_hub_is_named_by_its_id() -> None:
    cached = Path("/cache/hub/models--org--a-model.v1/snapshots/0123abc")
    assert card.base_of(cached) == "org/a-model.v1"
    assert card.base_of(Path("/x/models/mine")) == "mine"


# ---------------------------------------------------------------- PPO's value model


@pytest.mark.parametrize("kept", [True, False])
def test_ppos_value_model_lies_in_the_models_folder_and_is_no_part_of_the_policy(
    train: Train,
    random_model: Path,
    tmp_path: Path,
    kept: bool,
) -> None:
    record = train("ppo", "out", keep_value_model=kept, iterations=2)
    out, value = tmp_path / "out", tmp_path / "out/value"
    assert value.is_dir() == kept and record.weights == weights_digest(out)
    if not kept:
        return
    tokenizer = AutoTokenizer.from_pretrained(value)
    model = AutoModelForSequenceClassification.from_pretrained(value)
    texts = ["<|user|> hi<|end|><|assistant|> 12<|end|>", "<|user|> what is it?<|end|><|assistant|> 3<|end|>"]
    with torch.no_grad():
        together = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits[:, 0]
        alone = [model(**tokenizer(text, return_tensors="pt")).logits[0, 0].item() for text in texts]
    assert together.tolist() == pytest.approx(alone, abs=1e-4) and alone[0] != alone[1]
    models.load_value_model(value, AutoTokenizer.from_pretrained(random_model))  # another PPO may start from it
    again = train("ppo", "out", keep_value_model=kept, seed=1, iterations=1)  # the folder is ours, and is replaced
    assert again.weights != record.weights
    (value / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="thesis.txt: the model is to be trained again.*move it"):
        train("ppo", "out", keep_value_model=kept, seed=2)


def test_a_folder_of_a_tracker_goes_with_the_model_and_a_persons_folder_is_left_alone(
    train: Train,
    tmp_path: Path,
) -> None:
    def write_events(step: dict[str, float]) -> None:
        runs = tmp_path / "out.partial/runs/now_here"
        runs.mkdir(parents=True, exist_ok=True)
        (runs / "events.out.tfevents.1").write_text("x")

    train("sft", "out", write_events, max_steps=1)
    assert (tmp_path / "out/runs/now_here/events.out.tfevents.1").read_text() == "x"
    train("sft", "out", seed=1, max_steps=1)
    (tmp_path / "out/mine").mkdir()
    with pytest.raises(InputError, match="mine: the model is to be trained again"):
        train("sft", "out", seed=2)


# ---------------------------------------------------------------- the time that is left


def test_the_time_left_is_by_the_median_of_recent_steps() -> None:
    pace = Pace()
    at = [0.0, 2.0, 4.0, 14.0, 16.0]  # a validation took 10 seconds
    assert [pace.left(step, 100, now) for step, now in enumerate(at, 1)] == [None, None, None, 2 * 96, 2 * 95]
    assert [about(seconds) for seconds in (40, 720, 12600)] == [
        "about 40 s left",
        "about 12 min left",
        "about 3.5 h left",
    ]


def test_the_lines_of_a_training_say_what_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = io.StringIO()
    progress = Lines(Console(file=told, width=200))
    monkeypatch.setattr("rlaif.pipeline.progress.LINE_EVERY", 0.0)
    times = iter([float(i) for i in range(1, 2000)])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    progress.begin("sft", "train")
    for step in range(1, 7):
        progress.metrics({"step": step, "steps": 500, "loss": 1.0, "rewards/chosen": 0.25})
    assert "left" not in told.getvalue().splitlines()[2]
    assert "chosen 0.250" in told.getvalue() and "min left" in told.getvalue().splitlines()[-1]
    assert isinstance(progress, Silent)


def test_the_command_of_a_job_says_what_is_left(
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(step: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("dpo", "out", interrupt)
    capsys.readouterr()
    assert main([str(tmp_path / "out.partial")]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [": " in line and " s left" in line for line in told[:6]] == [False, False, False, True, True, True]
    assert "rewards/chosen " in told[0] and "validation_loss " in told[1] and "logits" not in told[0]
    assert job.finished(tmp_path / "out", (tmp_path / "out/key").read_text())
