"""The statistics of judges against published judgements, and the figures that data/SOURCES.md states for them."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.judges.replies import read_choice
from rlaif.records import Choice
from rlaif.statistics import (
    BothOrders,
    both_orders,
    cohen_kappa,
    fleiss_kappa,
    longer_rate,
    order_bias,
    system_correlations,
    unswap,
)

DATA = Path(os.environ.get("RLAIF_REALDATA", Path(__file__).parents[2] / "shared" / "data"))

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not DATA.is_dir(), reason="no published data here: set RLAIF_REALDATA to its folder"),
]


def table(name: str) -> list[dict[str, str]]:
    opened = gzip.open if name.endswith(".gz") else open
    with opened(DATA / name, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def value(interval: Any) -> float:
    assert interval is not None
    assert interval.low - 1e-12 <= interval.mean <= interval.high + 1e-12
    return float(interval.mean)


# ---------------------------------------------------------------- LLMBar

LLMBAR: dict[str, Choice | None] = {"1": "A", "2": "B", "": None}


@pytest.fixture(scope="module")
def llmbar() -> dict[str, Any]:
    runs: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in table("llmbar/judgements.csv.gz"):
        runs[f"{row['subset']}|{row['model']}|{row['prompt']}"].append(row)
    found = {}
    for name, rows in runs.items():
        forward = [LLMBAR[row["winner"]] for row in rows]
        backward = [unswap(LLMBAR[row["winner_swapped"]]) for row in rows]  # the file has mapped it back
        gold = [LLMBAR[row["label"]] for row in rows]
        found[name] = (forward, backward, gold)
    return found


@pytest.fixture(scope="module")
def both(llmbar: dict[str, Any]) -> dict[str, BothOrders | None]:
    return {name: both_orders(*run) for name, run in llmbar.items()}


def test_llmbar_all_five_statistics_of_all_runs(llmbar: dict[str, Any], both: dict[str, BothOrders | None]) -> None:
    """Exact but for the last bits of a percentage (1e-12 of a share)."""
    published = json.loads((DATA / "llmbar" / "statistics.json").read_text(encoding="utf-8"))
    assert llmbar.keys() == published.keys() and len(llmbar) == 399
    assert sum(len(gold) for _, _, gold in llmbar.values()) == 32_355
    compared = 0
    for name, found in both.items():
        assert found is not None
        keys = ("correct_False", "correct_True", "correct_average", "correct_both", "equal")
        for key, interval in zip(keys, found, strict=True):
            *count, percent = published[name][key].split(" = ")
            assert value(interval) == pytest.approx(float(percent.rstrip("%")) / 100, abs=1e-12), (name, key)
            assert not count or count[0] == f"{round(interval.mean * interval.n)} / {interval.n}", (name, key)
            compared += 1
    assert compared == 5 * 399


# original order, swapped, average, both, agreement, in %
VANILLA = {
    "Natural|GPT-4": (95.00, 96.00, 95.50, 93.00, 95.00),
    "Neighbor|GPT-4": (77.61, 79.85, 78.73, 75.37, 93.28),
    "GPTInst|GPT-4": (84.78, 88.04, 86.41, 83.70, 94.57),
    "GPTOut|GPT-4": (74.47, 80.85, 77.66, 74.47, 93.62),
    "Manual|GPT-4": (76.09, 84.78, 80.43, 71.74, 82.61),
    "Natural|ChatGPT": (80.00, 83.00, 81.50, 67.00, 71.00),
    "Neighbor|ChatGPT": (22.39, 16.42, 19.40, 5.22, 71.64),
    "GPTInst|ChatGPT": (27.17, 26.09, 26.63, 7.61, 61.96),
    "GPTOut|ChatGPT": (36.17, 46.81, 41.49, 21.28, 59.57),
    "Manual|ChatGPT": (39.13, 30.43, 34.78, 10.87, 52.17),
}


def test_llmbar_as_the_paper_prints_it(llmbar: dict[str, Any]) -> None:
    swept = 0
    for name, percents in VANILLA.items():
        subset, model = name.split("|")
        runs = [run for run in llmbar if run.split("|")[1:] == [model, "Vanilla"]]
        (run,) = [run for run in runs if run.split("|")[0].endswith(f"/{subset}") and run.startswith("LLMBar")]
        found = both_orders(*llmbar[run])
        assert found is not None
        assert [100 * share.mean for share in found] == pytest.approx(percents, abs=0.005)
        swept += 1
    assert swept == 10


def test_llmbar_unparsed_verdicts_are_left_out_of_the_bias(
    llmbar: dict[str, Any], both: dict[str, BothOrders | None]
) -> None:
    """Positional agreement as published counts a pair unparsed in both orders as agreeing: 106 of them, in 46 runs."""
    unparsed = [0, 0, 0]
    for name, (forward, backward, _) in llmbar.items():
        figures, bias = both[name], order_bias(forward, backward)
        assert figures is not None and bias.consistent is not None
        twice = sum(a is None and b is None for a, b in zip(forward, backward, strict=True))
        assert round(figures.agreement.mean * figures.agreement.n) == round(
            bias.consistent.mean * bias.consistent.n + twice
        )
        for place, count in enumerate((forward.count(None), backward.count(None), twice)):
            unparsed[place] += count
    assert unparsed == [150, 141, 106]


CAREFUL = Path(__file__).parent / "corpus" / "llmbar_careful.yaml"
NAMES = ("Output (a)", "Output (b)")


def test_llmbar_judges_replies_are_read_as_a_careful_person_reads_them(capsys: pytest.CaptureFixture[str]) -> None:
    """By the names that the judges were offered, as a compare stage with `names` reads them."""
    groups = yaml.safe_load(CAREFUL.read_text(encoding="utf-8"))
    careful = {key: verdict for group in groups for key, verdict in group["verdicts"].items()}
    assert len(careful) == sum(len(group["verdicts"]) for group in groups) == 180
    with gzip.open(DATA / "llmbar" / "replies.jsonl.gz", "rt", encoding="utf-8") as file:
        replies = [json.loads(line) for line in file]
    counts: Counter[str] = Counter()
    wrong = []
    for reply in replies:
        key = hashlib.sha256(reply["reply"].encode()).hexdigest()[:12]
        meant = careful.pop(key, reply["published"])
        choice, _ = read_choice(reply["reply"], (*NAMES, "tie"))
        read = {"A": "a", "B": "b", None: None}.get(choice, choice)
        counts["read" if read else "unparsed"] += 1
        counts["published"] += reply["published"] is not None
        counts["published and read"] += reply["published"] is not None and read is not None
        if read is not None and read != meant:
            wrong.append((key, meant, read))
    with capsys.disabled():
        print(f"\nLLMBar: {dict(counts)}, wrong {len(wrong)}")
    assert not wrong and not careful
    assert len(replies) == 7880 and counts["published"] == 7856
    assert counts["published and read"] >= 0.98 * counts["published"]


# ---------------------------------------------------------------- PandaLM


def read_json(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / "pandalm" / name, "rt", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = json.load(file)
    return sorted(rows, key=lambda row: int(row["idx"]))


@pytest.fixture(scope="module")
def people() -> list[list[str]]:
    rows = read_json("testset-v1.json.gz")
    return [[str(row[f"annotator{k}"]) for k in (1, 2, 3)] for row in rows]


def test_pandalm_people_agree(people: list[list[str]]) -> None:
    assert len(people) == 999
    columns = list(zip(*people, strict=True))
    for (i, j), kappa in {(0, 1): 0.8520, (0, 2): 0.8789, (1, 2): 0.8617}.items():
        assert value(cohen_kappa(columns[i], columns[j])) == pytest.approx(kappa, abs=5e-5)
    assert value(fleiss_kappa(people)) == pytest.approx(0.864175, abs=5e-7)
    assert Counter(majority(people)) == {"0": 105, "1": 422, "2": 472}


def majority(people: list[list[str]]) -> list[str]:
    (labels, counts) = zip(*(Counter(three).most_common(1)[0] for three in people), strict=True)
    assert min(counts) >= 2
    return list(labels)


# ---------------------------------------------------------------- XSTest


@pytest.mark.parametrize(
    ("model", "kappa"),
    [
        ("llama2orig", 0.9293),
        ("mistralinstruct", 0.9195),
        ("gpt4", 0.9701),
    ],
)
def test_xstest_people_agree(model: str, kappa: float) -> None:
    rows = table(f"xstest/completions_{model}.csv.gz")
    ratings = [[row["annotation_1"], row["annotation_2"]] for row in rows]
    assert len(ratings) == 450
    assert value(fleiss_kappa(ratings)) == pytest.approx(kappa, abs=5e-5)


# ---------------------------------------------------------------- AlpacaEval

FOUR = ("alpaca-7b", "claude-2.1", "gpt-3.5-turbo-0301", "gpt4_1106_preview")


def alpaca_label(preference: str) -> str:
    y = float(preference)
    return "tie" if y in (0.0, 1.5) else "model" if y > 1.5 else "baseline"


# models, items, kappa where a tie is the baseline's, the model's, its own
@pytest.mark.parametrize(
    ("models", "items", "kappas"),
    [(FOUR, 3220, (0.586, 0.893, 0.900)), (FOUR[:3], 2415, (0.577, 0.589, 0.590))],
)
def test_alpaca_eval_two_judges_agree_as_much_as_the_tie_rule_says(
    models: tuple[str, ...], items: int, kappas: tuple[float, ...]
) -> None:
    first, second = (
        {
            (row["model"], row["index"]): alpaca_label(row["preference"])
            for row in table(f"alpaca_eval/{name}.csv.gz")
            if row["model"] in models
        }
        for name in ("v2_annotations", "v2_cot_gpt4_turbo_fn_annotations")
    )
    both = [(label, second[key]) for key, label in first.items() if key in second]
    assert len(both) == items
    for rule, kappa in zip(("baseline", "model", "tie"), kappas, strict=True):
        one, two = ([rule if label == "tie" else label for label in rater] for rater in zip(*both, strict=True))
        assert value(cohen_kappa(one, two)) == pytest.approx(kappa, abs=5e-4)


def test_alpaca_eval_judge_prefers_the_longer() -> None:
    rows = table("alpaca_eval/v1_annotations.csv.gz")
    assert len(rows) == 26_565
    choices: dict[str, Choice] = {"model": "A", "baseline": "B", "tie": "tie"}
    verdicts = [choices[alpaca_label(row["preference"])] if row["preference"] else None for row in rows]
    lengths = ([int(row[name]) for row in rows] for name in ("len_model", "len_baseline"))
    found = longer_rate(verdicts, *lengths)
    assert found is not None and found.n == 26_316 and round(found.mean * found.n) == 22_026
    assert found.low < 0.83698 < found.high and found.high - found.low < 0.01


def test_alpaca_eval_lengths_and_win_rates_of_systems() -> None:
    rows = table("alpaca_eval/v2_leaderboard.csv")
    assert len(rows) == 143
    length = [float(row["avg_length"]) for row in rows]
    for column, spearman in (("win_rate", 0.6756), ("length_controlled_winrate", 0.4809)):
        found = system_correlations(length, [float(row[column]) for row in rows])
        assert value(found.spearman) == pytest.approx(spearman, abs=5e-5)


def test_alpaca_eval_longer_models_win_more() -> None:
    lengths, wins = defaultdict(list), defaultdict(list)
    for row in table("alpaca_eval/v1_annotations.csv.gz"):
        lengths[row["model"]].append(float(row["len_model"]))
        if row["preference"]:
            y = float(row["preference"])
            wins[row["model"]].append(0.5 if y in (0.0, 1.5) else y - 1)
    assert len(lengths) == 33
    found = system_correlations(*([sum(v) / len(v) for v in by_model.values()] for by_model in (lengths, wins)))
    assert value(found.pearson) == pytest.approx(0.728, abs=5e-4)
