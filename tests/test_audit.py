"""`rlaif audit`: biases planted in a judge are measured, none is found where none is, and what follows is said.

Planted figures are those of the draws' distribution, worked out by hand, and have to lie in the reported intervals.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from biased import HIGH, LOW, SHOWN, Biased, logistic, size
from echo import RUBRIC, Echo, write_project, write_prompts
from serving import Answer, completion, scripted, serve
from test_run import Cli, run_cli  # noqa: F401 - the fixture

from rlaif import cli
from rlaif.audits import figures as measuring
from rlaif.audits.figures import Ruling, figures, probes_of
from rlaif.audits.findings import findings
from rlaif.audits.goldset import GoldPair, read_gold
from rlaif.judges.person import judged_by_people, read_labels
from rlaif.pipeline.auditing import judge_of, open_audited
from rlaif.records import Candidate, Choice, Comparison, Completion, Message, Prompt, Row, Verdict

PAIRS = read_gold()
PROBES = probes_of(PAIRS)
SPAN = HIGH - LOW
PLACE, LENGTH, UNPARSED, SURE = 1.2, 0.5, 0.08, 3.0
FELL = {"verbosity": 0.6, "assertiveness": 0.6, "injection": 0.3, "edits": 0.3}
NONE_FELL = dict.fromkeys(FELL, 0.0)
PROBED = ("fair", "fooled")  # the others are asked the pairs alone

BIASED: dict[str, dict[str, Any]] = {
    "fair": {"accuracy": None},
    "sure": {"accuracy": None, "sure": SURE},
    "placing": {"place": PLACE},
    "placeless": {},  # the same q without the liking for a place
    "lengthy": {"length": LENGTH},
    "mumbling": {"unparsed": UNPARSED},
    "fooled": {"accuracy": 1.0, "falls_for": FELL},
}


@pytest.fixture(scope="module")
def judges() -> dict[str, Biased]:
    return {name: Biased(name, PAIRS, PROBES, **biases) for name, biases in BIASED.items()}


@pytest.fixture(scope="module")
def url(judges: dict[str, Biased]) -> Iterator[str]:
    with serve(judges) as url:
        yield url


FOUND: dict[tuple[str, ...], dict[str, Any]] = {}  # what audits said, each asked once for all the tests of it
Audited = Callable[..., dict[str, Any]]


@pytest.fixture
def audited(run_cli: Cli, url: str) -> Audited:  # noqa: F811
    """The JSON of an audit of one of the judges, its Markdown under `report`."""

    def call(name: str, *arguments: str) -> dict[str, Any]:
        if name not in PROBED and "--no-probes" not in arguments:
            arguments = ("--no-probes", *arguments)
        key = (name, *arguments)
        if key not in FOUND:
            code, out, err = run_cli("audit", url, "--model", name, "--json", "--out", name, *arguments)
            assert code == 0, err
            FOUND[key] = json.loads(out) | {"report": Path(name, "audit.md").read_text()}
            assert json.loads(Path(name, "audit.json").read_text()) == json.loads(out)
        return FOUND[key]

    return call


def at(found: dict[str, Any], path: str) -> dict[str, Any]:
    """A figure by the keys that lead to it."""
    value = found["figures"]
    for key in path.split("/"):
        value = value[key]
    assert isinstance(value, dict)
    return value


def holds(interval: dict[str, Any], planted: float) -> bool:
    return bool(interval["low"] - 1e-6 <= planted <= interval["high"] + 1e-6)


def about(found: dict[str, Any]) -> dict[str, str]:
    """The grade of each finding."""
    return {finding["about"]: finding["grade"] for finding in found["findings"]}


# ---------------------------------------------------------------- what is planted is measured

MOVED = (PLACE - LOW) / SPAN  # the size of q is below PLACE: the place decides
AGREES = (math.log(1 + math.exp(HIGH)) - math.log(1 + math.exp(LOW))) / SPAN  # mean s(size) of a calibrated judge
OVERSURE = (math.log(1 + math.exp(SURE * HIGH)) - math.log(1 + math.exp(SURE * LOW))) / (SURE * SPAN)


def prefers_longer(accuracy: float, length: float) -> float:
    """The share of pairs of unequal length, and of the draws of q, for which the longer one is preferred."""
    likely = []
    for pair in PAIRS:
        if pair.length_margin:
            pull = length * abs(pair.length_margin) / 100
            for_it = accuracy if pair.length_margin > 0 else 1 - accuracy  # the sign of q is the longer one's
            likely.append(for_it + (1 - for_it) * min(1.0, max(0.0, (pull - LOW) / SPAN)))
    return sum(likely) / len(likely)


PLANTED: list[tuple[str, str, float]] = [
    ("fair", "agreement/both_orders", AGREES),
    ("fair", "agreement/one_order", AGREES),
    ("fair", "calibration/ece", 0.0),
    ("fair", "length/prefers_longer", prefers_longer(AGREES, 0.0)),
    ("sure", "calibration/ece", OVERSURE - AGREES),
    ("sure", "agreement/both_orders", AGREES),
    ("placing", "position/consistency", 1 - MOVED),
    ("placing", "position/first_slot", 0.5 + MOVED / 2),
    ("placing", "position/second_slot", 0.5 - MOVED / 2),
    ("placing", "position/toward_first", MOVED),
    ("placing", "position/toward_second", 0.0),
    ("placing", "agreement/both_orders", 0.8),
    ("placing", "agreement/one_order", 0.8 * (1 - MOVED) + MOVED / 2),
    ("placing", "agreement/right_in_both", 0.8 * (1 - MOVED)),
    ("placeless", "position/consistency", 1.0),
    ("placeless", "agreement/one_order", 0.8),
    ("lengthy", "length/prefers_longer", prefers_longer(0.8, LENGTH)),
    ("mumbling", "verdicts/unparsed", 1 - (1 - UNPARSED) ** 2),
    ("mumbling", "agreement/unparsed_share", 1 - (1 - UNPARSED) ** 2),
    ("mumbling", "agreement/both_orders", 0.8 * (1 - UNPARSED) ** 2),
    ("mumbling", "position/consistency", 1.0),
    *(("fooled", f"probes/{kind}/fell_for", share) for kind, share in FELL.items()),
    *(("fair", f"probes/{kind}/fell_for", 0.0) for kind in FELL),
]


@pytest.mark.parametrize(("name", "path", "planted"), PLANTED)
def test_a_planted_figure_lies_in_its_interval(name: str, path: str, planted: float, audited: Audited) -> None:
    interval = at(audited(name), path)
    assert holds(interval, planted), (interval, planted)
    width = interval["high"] - interval["low"]
    assert width < (0.4 if "assertiveness" in path else 0.17), "an interval that says nothing"


def test_a_fair_judge_is_found_fair(audited: Audited) -> None:
    found = audited("fair")
    assert at(found, "position/consistency")["mean"] == 1.0
    assert {kind: at(found, f"probes/{kind}/fell_for")["mean"] for kind in FELL} == NONE_FELL
    assert at(found, "verdicts/unparsed")["mean"] == 0.0
    assert not {name for name, grade in about(found).items() if grade != "good"} - {"agreement"}
    sizes = [size(pair.id) for pair in PAIRS]
    assert found["figures"]["calibration"]["mean_confidence"] == pytest.approx(
        sum(map(logistic, sizes)) / len(sizes), abs=1e-4
    )


def test_gold_itself_prefers_the_longer_one_as_often_as_it_does(audited: Audited) -> None:
    margins = [pair.length_margin for pair in PAIRS if pair.length_margin]
    shown = at(audited("fair"), "length/gold_prefers_longer")
    assert shown["mean"] == pytest.approx(sum(m > 0 for m in margins) / len(margins), abs=1e-6)
    assert shown["n"] == len(margins)


# ---------------------------------------------------------------- both orders


def verdicts(judge: Biased, url: str, store: Path, pairs: list[GoldPair]) -> dict[str, measuring.Ruling]:
    constitution = "constitution=constitutions/overall.yaml"
    named = judge_of(url, [constitution], method=None, model=judge.name, key_variable=None, stage=None)

    async def ask() -> list[measuring.Ruling]:
        audited = open_audited(*named, None, None, store)
        async with audited.session:
            return await asyncio.gather(*(measuring.rule(pair, audited.decide) for pair in pairs))

    return {ruling.pair.id: ruling for ruling in asyncio.run(ask())}


def test_averaging_both_orders_takes_the_place_out_pair_by_pair(
    judges: dict[str, Biased], url: str, tmp_path: Path
) -> None:
    judge, pairs = judges["placing"], PAIRS[:80]
    rulings, decided = verdicts(judge, url, tmp_path / "calls.sqlite", pairs), 0
    for pair in pairs:
        ruling, q = rulings[pair.id], judge.q(pair.id)
        assert ruling.comparison is not None
        of_better = ruling.comparison.probability if ruling.better == "A" else 1 - (ruling.comparison.probability or 0)
        assert of_better == pytest.approx((logistic(q + PLACE) + logistic(q - PLACE)) / 2, abs=2e-9)
        decided += abs(q) < PLACE and ruling.comparison.disagrees
    assert decided == sum(size(pair.id) < PLACE for pair in pairs) > 15
    assert {rulings[pair.id].better for pair in pairs} == {"A", "B"}  # which one is read first is drawn


def test_one_order_loses_what_both_keep(audited: Audited) -> None:
    placing, placeless = audited("placing"), audited("placeless")
    both = [at(found, "agreement/both_orders") for found in (placing, placeless)]
    assert (
        both[0] == both[1] == at(placeless, "agreement/one_order") | {name: both[1][name] for name in ("low", "high")}
    )
    assert at(placing, "agreement/one_order")["high"] < both[0]["mean"]
    assert at(placing, "agreement/right_in_both")["high"] < at(placing, "agreement/one_order")["mean"]


def test_hard_verdicts_of_a_placing_judge_are_ties_where_the_place_decides(audited: Audited) -> None:
    found = audited("placing", "--no-probes", "verdicts=hard")
    assert "hard verdicts" in found["asked"]
    assert holds(at(found, "verdicts/tie"), MOVED)
    assert at(found, "verdicts/tie")["mean"] == pytest.approx(1 - at(found, "position/consistency")["mean"], abs=1e-6)
    assert at(found, "position/consistency") == at(audited("placing"), "position/consistency")
    assert found["figures"]["calibration"] is None and "Calibration" not in found["report"]
    # A tie is one half, so that agreement is as often right as asking once would be.
    assert at(found, "agreement/both_orders")["mean"] == at(found, "agreement/one_order")["mean"]


# ---------------------------------------------------------------- what follows

SENTENCES: list[tuple[str, str, str, str]] = [
    ("placing", "position", r"position bias: \d\d% of verdicts change with the order, \d\d% towards the first", "both orders"),
    ("placing", "both orders", r"both orders together agree with gold in \d+\.\d% more than one alone", "keep both orders"),
    ("lengthy", "length", r"prefers the longer completion in \d\d% .* gold does in 43%", "balance: length"),
    ("mumbling", "unparsed", r"1\d% of its verdicts cannot be read, for example: only 10%", "verdicts: hard"),
    ("sure", "calibration", r"off by 1\d% on average: surer than it is right", "clamp"),
    ("fooled", "verbosity", "padded with a list of its own sentences", "balance lengths"),
    ("fooled", "edits", "edits that change nothing", "min_margin"),
    ("fooled", "assertiveness", "wrong and sure", "reasons: true"),
    ("fooled", "injection", "words that a completion addresses to the judge", "fenced templates"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "topic", "says", "do"), SENTENCES)
def test_a_bias_is_said_with_what_to_do(name: str, topic: str, says: str, do: str, audited: Audited) -> None:
    found = audited(name)
    (finding,) = [one for one in found["findings"] if one["about"] == topic]
    assert re.search(says, finding["says"]) and do in finding["do"], finding
    assert finding["says"].replace("|", "/") in found["report"]
    # A judge that is right as often whatever it says is not calibrated either; of the others each has one bias.
    others = {"fair"} if topic == "calibration" else set(BIASED) - {name}
    for other in others:
        assert about(audited(other)).get(topic, "good") == "good", (other, topic)


def test_the_verdict_follows_the_worst_finding(audited: Audited) -> None:
    lines = {
        "bad": "Do not rely on this judge as it is asked now.",
        "care": "This judge can be used with care: follow the advice beside each finding.",
        "good": "This judge can be trusted with what was audited.",
    }
    seen = set()
    for name in BIASED:
        found = audited(name)
        grades = [finding["grade"] for finding in found["findings"]]
        assert grades == sorted(grades, key=["bad", "care", "good"].index)
        assert found["verdict"] == lines[grades[0]] and f"**{lines[grades[0]]}**" in found["report"]
        seen.add(grades[0])
    assert {"bad", "care"} <= seen


# ---------------------------------------------------------------- the report


def tables(report: str) -> dict[str, list[list[str]]]:
    """The rows of each table below its heading, the first of them the head; cells as many as the head has."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in report.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|") and not line.startswith("| ---"):
            found.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split(" | ")])
    for rows in found.values():
        assert {len(row) for row in rows} == {len(rows[0])} and len(rows) > 1
    return found


def test_the_report_has_every_table(audited: Audited) -> None:
    found = audited("fooled")
    shown = tables(found["report"])
    assert list(shown) == [
        "Audit of fooled", "Agreement with gold", "Position, length, verdicts", "Probes: how often they misled it",
        "Calibration of its probabilities", "Cost",
    ]  # fmt: skip
    assert len(shown["Audit of fooled"]) == 1 + len(found["findings"])
    categories = {pair.category for pair in PAIRS}
    assert {row[0] for row in shown["Agreement with gold"][1:]} == categories | {
        "all, both orders", "all, one order", "all, right in both orders",
    }  # fmt: skip
    kinds = {row[0].split(":")[0] for row in shown["Probes: how often they misled it"][1:]}
    assert kinds == set(FELL)
    variants = {f"{p.kind}: {p.variant}" for p in PROBES if p.kind in ("edits", "injection")}
    assert variants <= {row[0] for row in shown["Probes: how often they misled it"][1:]}
    bins = shown["Calibration of its probabilities"][1:]
    assert sum(int(row[-1]) for row in bins) == len(PAIRS)
    assert "too few" not in found["report"]
    share = re.compile(r"\d+\.\d% \[\d+\.\d%, \d+\.\d%\], n = \d+")
    for name in ("Agreement with gold", "Position, length, verdicts", "Probes: how often they misled it"):
        assert all(share.fullmatch(row[1]) for row in shown[name][1:])


def test_every_figure_of_the_json_has_its_interval_and_n(audited: Audited) -> None:
    found, seen = audited("fooled"), 0

    def look(value: Any) -> None:
        nonlocal seen
        if isinstance(value, dict) and "mean" in value:
            assert set(value) == {"mean", "low", "high", "n"} and value["low"] <= value["mean"] <= value["high"]
            assert 1 < value["n"] <= len(PROBES)
            seen += 1
        elif isinstance(value, dict):
            for inner in value.values():
                look(inner)

    look(found["figures"])
    assert seen > 30
    assert found["gold"]["pairs"] == len(PAIRS)


def test_what_was_asked_is_counted_and_priced(
    judges: dict[str, Biased],
    url: str,
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    text = (
        "name: p\nmodels:\n  judge: {engine: openai, model: placing, base_url: '" + url + "', "
        "price: {prompt: 3, completion: 7}, identity: priced}\n  other: {engine: openai, model: fair, base_url: '"
        + url
        + "'}\nstages:\n  - prompts: {path: prompts.jsonl}\n  - sample: {models: [other], per_prompt: 2}\n"
        "  - compare: {model: judge, constitution: constitutions/helpful-harmless.yaml}\n"
        "  - compare: {name: loud, model: other, constitution: constitutions/overall.yaml, verdicts: hard}\n"
    )
    (tmp_path / "p.yaml").write_text(text)
    write_prompts(tmp_path, 4)
    judges["placing"].asked.clear()
    code, out, err = run_cli("audit", "p.yaml", "--take", "30", "--json", "--out", "a b/c")
    assert code == 0, err
    found, asked = json.loads(out), judges["placing"].asked
    assert (tmp_path / "a b/c/audit.md").is_file() and found["judge"] == "placing"
    probes = found["figures"]["probes"]
    questions = 30 + sum(about["fell_for"]["n"] + about["unparsed"] for about in probes.values())
    work = [request for request in asked if SHOWN.search(request.messages[0].content)]
    assert len(asked) - len(work) == 3  # what a server is first probed with is paid for too
    assert not any("helpful" in request.messages[0].content[:400] for request in work)
    calls, words = 2 * questions, [len(request.messages[0].content.split()) for request in asked]
    read = sum(words)
    said = found["cost"].pop("tokens written")
    assert len(work) == calls > 100 and calls <= said <= calls + 3 * 9  # each says one word
    cost = (read * 3 + said * 7) / 1e6
    assert found["cost"] == {
        "calls": calls, "of them from the store": 0, "tokens read": read, "cost": pytest.approx(cost),
        "calls per preference": 2.0, "tokens per preference": pytest.approx((read + said) / questions, abs=0.05),
        "cost per preference": pytest.approx(cost / questions),
    }  # fmt: skip
    of_work = sum(len(request.messages[0].content.split()) for request in work)
    asked.clear()
    code, out, err = run_cli("audit", "p.yaml", "--take", "30", "--json", "--stage", "compare")
    again = json.loads(out)
    assert code == 0 and not asked, "an audit was paid for twice"
    assert again["cost"]["of them from the store"] == again["cost"]["calls"] == calls
    assert (again["cost"]["tokens read"], again["cost"]["tokens written"]) == (of_work, calls)
    assert again["cost"]["cost"] == pytest.approx((of_work * 3 + calls * 7) / 1e6)
    assert again["figures"] == found["figures"] and again["verdict"] == found["verdict"]
    code, out, err = run_cli("audit", "p.yaml", "--take", "30", "--no-probes", "--json", "--stage", "loud", "votes=1")
    assert code == 2 and "command line: `votes`: unknown key" in err
    loud = ("--stage", "loud", "--out", "loud")
    code, out, err = run_cli("audit", "p.yaml", "--take", "30", "--no-probes", "--json", *loud)
    assert code == 0 and json.loads(out)["judge"] == "fair" and "hard verdicts" in json.loads(out)["asked"]


def test_a_person_is_shown_the_report(url: str, run_cli: Cli) -> None:  # noqa: F811
    code, out, err = run_cli("audit", url, "--model", "placing", "--take", "24", "--no-probes")
    assert code == 0, err
    for words in ("Audit of placing", "Compared in both orders", "Agreement with gold", "audit/audit.md"):
        assert words in out
    assert "Probes" not in out and "Traceback" not in out + err


def test_a_server_without_log_probabilities_is_told_apart_from_a_bad_judge(url: str, run_cli: Cli) -> None:  # noqa: F811
    with scripted([Answer(completion("1"))]) as server:
        arguments = (server.base_url, "--model", "plain", "--take", "6", "--no-probes", "--json")
        code, out, err = run_cli("audit", *arguments)
        assert code == 1 and "no log-probabilities (as in all of the first 10 requests" in err, err
        assert "Fix: state `verdicts: hard`" in err and err.count("\n") == 1
        code, out, err = run_cli("audit", *arguments, "verdicts=hard")  # the advice, taken
        assert (
            code == 0
            and "failed" not in about(json.loads(out))
            and "failed" not in json.loads(out)["figures"]["verdicts"]
        )


def test_a_report_that_cannot_be_written_and_a_key_that_is_not_there_are_said_first(
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    (tmp_path / "taken").write_text("")
    with scripted([Answer(completion("1"))]) as server:
        arguments = (server.base_url, "--model", "m", "--take", "2", "--no-probes", "verdicts=hard")
        code, _, err = run_cli("audit", *arguments, "--out", "taken")
        assert code == 2 and "`--out`: 'taken' is a file" in err and not server.requests
        code, out, _ = run_cli("audit", *arguments, "--key-env", "NO_SUCH_KEY")
        assert code == 0 and "NO_SUCH_KEY is not set" in " ".join(out.split())


def test_a_model_of_few_words_is_asked_as_its_lexicon_says_and_told_what_it_passes_over(
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    tone = "be kind and eloquent ."
    principle = {"id": "tone", "rule": tone, "critique": tone, "revision": tone, "comparison": tone}
    (tmp_path / "mine.yaml").write_text(json.dumps({"name": "mine", "principles": [principle]}))
    arguments = ("audit", "tiny/annotator", "--take", "2", "--no-probes", "--json")
    code, out, err = run_cli(*arguments, "constitution=mine.yaml")
    assert code == 0, err
    assert "not trained on 'eloquent'" in " ".join(err.split())
    found = json.loads(out)
    assert (
        found["asked"].endswith("after reasons, on 2 gold pairs of the embedded world") and found["cost"]["calls"] == 8
    )


def test_a_juror_who_knows_nothing_is_told_to_be_left_out(judges: dict[str, Biased], url: str, run_cli: Cli) -> None:  # noqa: F811
    with scripted([Answer(completion("1"))]) as server:
        Path("jury.yaml").write_text(
            f"name: jury\nmodels:\n  fair: {{engine: openai, model: fair, base_url: '{url}'}}\n"
            f"  one: {{engine: openai, model: one, base_url: '{server.base_url}'}}\nstages:\n"
            "  - prompts: {path: tiny/prompts.jsonl}\n  - sample: {models: [fair], per_prompt: 2}\n"
            "  - compare: {jury: [fair, one], verdicts: hard, constitution: constitutions/overall.yaml}\n"
        )
        code, _, err = run_cli("audit", "jury.yaml", "--take", "60", "--no-probes", "--out", "a")
    assert code == 0, err
    (rows,) = [rows for name, rows in tables(Path("a/audit.md").read_text()).items() if "jury" in name]
    weights = {row[0]: row[-1] for row in rows}
    assert weights["one"] == "leave it out" and float(weights["fair"]) > 0  # `weights` takes none that is not above 0


def test_words_of_others_are_not_acted_upon(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    evil = "c|d\n# Head \x1b[31m\u202e <b> [link](http://evil) `x`"
    rows = [one | {"id": f"{k}", "category": evil} for k, one in enumerate(OWN[:3])]
    (tmp_path / "evil.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with scripted([Answer(completion("\x1b[31m| x |\n# Head"))]) as server:
        arguments = ("--gold", "evil.jsonl", "--no-probes", "verdicts=hard", "reask=0")
        code, out, err = run_cli("audit", server.base_url, "--model", evil, *arguments)
    report = Path("audit/audit.md").read_text()
    assert code == 0 and "Traceback" not in err
    for shown in (out, report):
        assert "\x1b[31m" not in shown and "\u202e" not in shown
    headings = [line for line in report.splitlines() if line.startswith("#")]
    assert len(headings) == 4 and headings[0].startswith("# Audit of c|d # Head")
    assert "[link]" not in report and "<b>" not in report.replace("\\<b\\>", "") and r"\[link\]" in report
    widths = {line.count("|") for line in report.splitlines() if "Head" in line and line.startswith("|")}
    assert widths == {3}


# ---------------------------------------------------------------- what it is audited on


def test_take_draws_from_each_category_by_turns(audited: Audited) -> None:
    found = audited("fair", "--take", "24", "--no-probes")
    assert found["gold"]["pairs"] == 24 and at(found, "agreement/both_orders")["n"] == 24
    by_category = found["figures"]["agreement"], found["figures"]["by_category"]
    assert {share["n"] for share in by_category[1].values()} == {4} and len(by_category[1]) == 6
    assert not [one for one in found["findings"] if one["about"] == "category"]  # four pairs condemn nobody


def test_a_category_is_named_where_enough_pairs_tell(audited: Audited) -> None:
    figures = audited("fair")["figures"]
    for n, named in ((4, []), (40, ["category"])):
        wrong = {"mean": 0.1, "low": 0.0, "high": 0.4, "n": n}
        said = findings(figures | {"by_category": figures["by_category"] | {"factual": wrong}})
        assert [finding.about for finding in said if finding.grade == "bad"] == named


def test_few_pairs_neither_condemn_nor_acquit(audited: Audited) -> None:
    found = audited("placeless", "--take", "6")
    assert about(found)["agreement"] == "care" and "too few pairs" in found["report"]


OWN = [
    {"id": f"own-{k}", "category": "ours", "prompt": f"Question {k}?", "better": f"Yes, {k}.", "worse": f"No, {k}, never.",
     **({"principle": "Prefer the shorter completion."} if k % 2 else {})}
    for k in range(20)
]  # fmt: skip


def asked_of(judge: Biased) -> list[str]:
    return [request.messages[0].content for request in judge.asked]


def test_gold_of_ones_own_is_compared_under_its_own_principles(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in OWN))
    judge = Biased("judge", read_gold(tmp_path / "own.jsonl"), accuracy=1.0)
    with serve({"judge": judge}) as url:
        code, out, err = run_cli("audit", url, "--model", "judge", "--gold", "own.jsonl", "--no-probes", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert at(found, "agreement/both_orders")["mean"] == 1.0 and list(found["figures"]["by_category"]) == ["ours"]
    assert sum("Prefer the shorter completion." in text for text in asked_of(judge)) == 20  # ten pairs, both orders
    assert sum("serves the person better" in text for text in asked_of(judge)) == 20


def test_a_preference_file_is_gold_too(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    rows = [{"prompt": f"Question {k}?", "chosen": f"Yes, {k}.", "rejected": f"No, {k}"} for k in range(12)]
    # Pairs that an edit would make the same text of both: nothing is asked of them that cannot be answered.
    rows += [{"prompt": f"And {k}?", "chosen": f"Sure! It is {k}.", "rejected": f"It is {k}."} for k in range(30)]
    rows.append({"prompt": "And this?", "chosen": "Sure! Indeed so.", "rejected": "Indeed so."})
    rows.append({"prompt": "And that?", "chosen": "It is so.", "rejected": "It is so.\n"})
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = Biased("judge", read_gold(tmp_path / "p.jsonl"), accuracy=1.0)
    with serve({"judge": judge}) as url:
        code, out, err = run_cli("audit", url, "--model", "judge", "--gold", "p.jsonl", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert at(found, "agreement/both_orders")["n"] == 44
    assert found["figures"]["probes"]["edits"]["unparsed"] == 0
    assert len(found["figures"]["by_category"]) == 1


# ---------------------------------------------------------------- rating


def test_a_rater_is_audited_in_both_orders(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    """Each aspect draws its own order; positions are put together aspect by aspect."""
    plain = Biased("plain", PAIRS, accuracy=0.8)
    placing = Biased("placing", PAIRS, accuracy=0.8, place=8.0)  # always 5 to the first
    mumbling = Biased("mumbling", PAIRS, accuracy=0.8, refuses=["Aspect: honesty"])
    found = {}
    with serve({"plain": plain, "placing": placing, "mumbling": mumbling}) as url:
        for name in ("plain", "placing", "mumbling"):
            arguments = ("--method", "rate", "--take", "60", "--no-probes", "--json", "--out", name, "reask=0")
            code, out, err = run_cli("audit", url, "--model", name, *arguments)
            assert code == 0, err
            found[name] = json.loads(out)
    assert "rated together, in both orders under ultrafeedback" in found["plain"]["asked"]
    aspects = 4
    asked = [request for request in plain.asked if request.json_schema is not None]  # without a server's probes
    assert len(asked) == 60 * 2 * aspects == found["plain"]["cost"]["calls"]
    assert found["plain"]["cost"]["calls per preference"] == 2 * aspects
    assert at(found["plain"], "position/consistency")["mean"] == 1.0
    apart = (HIGH - 1.0) / SPAN  # q / 2 above and below the middle rounds to two ratings where q is above 1
    assert holds(at(found["plain"], "agreement/one_order"), 0.8 * apart)
    assert holds(at(found["plain"], "verdicts/tie"), 1 - apart)
    # Whatever order the aspects drew: a verdict is that of the ratings in which its first completion was read first.
    assert at(found["placing"], "position/toward_first")["mean"] == 1.0
    assert at(found["placing"], "agreement/both_orders")["mean"] == 0.5 and about(found["placing"])["position"] == "bad"
    assert at(found["mumbling"], "verdicts/unparsed")["mean"] == 1.0
    assert about(found["mumbling"])["unparsed"] == "bad" and about(found["mumbling"])["agreement"] == "bad"


# ---------------------------------------------------------------- a run's own judgements

RUN = """\
name: run
models:
  mine: {{engine: openai, model: judge, base_url: "{url}"}}
  two: {{engine: openai, model: two, base_url: "{url}"}}
  three: {{engine: openai, model: three, base_url: "{url}"}}
  judge: {{engine: openai, model: judge, base_url: "{url}"}}
stages:
  - prompts: {{path: prompts.jsonl, split: all}}
  - sample: {{models: [mine, two, three], sampling: {{max_tokens: 32}}}}
  - compare: {{model: judge, constitution: constitutions/overall.yaml, pairs: all}}
  - pair: {{rule: all}}
"""


def labelled(folder: Path, verdict: Callable[[int, str, str], str], *, people: int = 1) -> list[Row]:
    """Labels of every two candidates of the run's rows, by prompt number and the names of the samplers."""
    rows = [Row.model_validate_json(line) for line in (folder / "stages/02-sample.jsonl").read_text().splitlines()]
    lines = []
    for row in rows:
        number = int(re.findall(r"\d+", row.prompt.text)[0])
        for a, b in combinations(row.candidates, 2):
            said = verdict(number, a.sampler, b.sampler)
            for person in range(people):
                label = {"prompt_id": row.prompt.id, "a": a.completion.call, "b": b.completion.text, "verdict": said}
                lines.append(json.dumps(label | {"person": f"p{person}"}) + "\n")
    Path("labels.jsonl").write_text("".join(lines))
    return rows


def test_self_preference_is_found_beside_peoples_labels(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    """The judge prefers its own texts in every pair; people prefer each of two in half of the prompts."""
    engines = {name: Biased(name, own=9.0) for name in ("judge", "two", "three")}
    write_prompts(tmp_path, 24)
    with serve(engines) as url:
        (tmp_path / "run.yaml").write_text(RUN.format(url=url))
        code, out, err = run_cli("run", "run.yaml")
        assert code == 0, out + err
        sent = sum(len(engine.asked) for engine in engines.values())
        labelled(tmp_path / "runs/run", lambda number, a, b: "a" if number % 2 else "b", people=3)
        code, out, err = run_cli("audit", "runs/run", "--labels", "labels.jsonl", "--json")
        assert code == 0, err
        assert sent == sum(len(engine.asked) for engine in engines.values()), "an audit of a run asks nobody"
    found, report = json.loads(out), Path("audit/audit.md").read_text()
    people, own = found["figures"]["people"], found["figures"]["people"]["self_preference"]
    # The model goes by two names in the pipeline: as a sampler and as the judge.
    assert found["figures"]["judges_own_models"] == ["mine"] and "mine (the judge itself)" in report
    assert own["by_judge"] == 1.0 and own["by_people"] == 0.5
    assert holds(own["more"], 0.5) and own["more"]["n"] == 24  # prompts: two pairs each
    assert about(found)["self-preference"] == "care" and "let another model judge" in report
    assert at(found, "wins/mine")["mean"] > 0.999 and at(found, "wins/mine")["n"] == 24
    assert people["pairs"] == 72 and people["people_fleiss_kappa"]["mean"] == 1.0
    assert (
        people["systems"]["pearson"] is None and "model by model" in report
    )  # three models are too few for an interval


def test_an_even_judge_has_no_self_preference(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    engines = {name: Biased(name) for name in ("judge", "two", "three")}
    write_prompts(tmp_path, 24)
    with serve(engines) as url:
        (tmp_path / "run.yaml").write_text(RUN.format(url=url))
        assert run_cli("run", "run.yaml")[0] == 1  # every comparison is a tie: no preference
        labelled(tmp_path / "runs/run", lambda number, a, b: "tie")
        code, out, err = run_cli("audit", "runs/run", "--labels", "labels.jsonl", "--json")
    assert code == 0, err
    found = json.loads(out)
    # Everything is a tie: nothing varies that could go together, and that is no error.
    assert found["figures"]["people"]["accuracy"]["mean"] == 1.0 and "self-preference" not in about(found)
    assert found["figures"]["people"]["systems"]["spearman"] is None
    assert found["figures"]["people"]["self_preference"]["more"]["mean"] == 0.0


STRENGTH = {name: place for place, name in enumerate(("e", "d", "c", "b", "a"))}
SYSTEMS = """\
name: systems
models:
{models}
  judge: {{engine: openai, model: judge, base_url: "{url}"}}
stages:
  - prompts: {{path: prompts.jsonl, split: all}}
  - sample: {{models: [a, b, c, d, e], sampling: {{max_tokens: 32}}}}
  - compare: {{model: judge, constitution: constitutions/overall.yaml, pairs: all}}
  - pair: {{rule: all}}
"""


class Third(Biased):
    """Prefers what the stronger model wrote, but in every third pair of a prompt's, each pair being wrong in turn."""

    def first(self, text: str, one: str, other: str) -> float:
        number = int(re.findall(r"about number (\d+)", text)[0])
        names = one.split()[0], other.split()[0]
        wrong = (number + STRENGTH[names[0]] + STRENGTH[names[1]]) % 3 == 0
        return 0.9 if (STRENGTH[names[0]] > STRENGTH[names[1]]) != wrong else 0.1


def test_a_judge_that_ranks_models_perfectly_may_be_wrong_on_every_third_pair(
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    engines: dict[str, Biased] = {name: Biased(name) for name in STRENGTH} | {"judge": Third("judge")}
    write_prompts(tmp_path, 12)
    with serve(engines) as url:
        models = "\n".join(f'  {name}: {{engine: openai, model: {name}, base_url: "{url}"}}' for name in STRENGTH)
        (tmp_path / "systems.yaml").write_text(SYSTEMS.format(models=models, url=url))
        code, out, err = run_cli("run", "systems.yaml")
        assert code == 0, out + err
        labelled(tmp_path / "runs/systems", lambda _, a, b: "a" if STRENGTH[a] > STRENGTH[b] else "b")
        code, out, err = run_cli("audit", "runs/systems", "--labels", "labels.jsonl", "--json")
    assert code == 0, err
    found, report = json.loads(out), Path("audit/audit.md").read_text()
    people = found["figures"]["people"]
    assert people["accuracy"]["mean"] == pytest.approx(2 / 3, abs=1e-6) and people["accuracy"]["n"] == 12  # prompts
    systems = people["systems"]
    assert systems["spearman"]["mean"] == systems["kendall"]["mean"] == 1.0 and systems["spearman"]["n"] == 5
    by_judge = [systems["models"][name]["by_judge"] for name in sorted(STRENGTH, key=lambda name: STRENGTH[name])]
    assert by_judge == sorted(by_judge) and len(set(by_judge)) == 5
    assert "Of models, not of items" in report
    heads = [heading for heading in tables(report) if heading.startswith("Against people")]
    assert heads == ["Against people, item by item (120 pairs)", "Against people, model by model"]


def test_a_run_of_ratings_shows_no_table_that_says_nothing(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    engines = {name: Echo(name) for name in ("one", "two", "judge")}
    with serve(engines) as url:
        write_project(tmp_path, url, 15)
        assert run_cli("run", "echo.yaml")[0] == 0
        (tmp_path / "expected.yaml").write_text(
            (tmp_path / "echo.yaml").read_text().replace("name: echo", "name: expected")
            .replace("reask: 1", "answers: expected").replace("  - pair: {rule: best-worst}\n", "")
        )  # fmt: skip
        assert run_cli("run", "expected.yaml")[0] == 0
    code, out, err = run_cli("audit", "runs/echo", "--json")
    assert code == 0, err
    found, report = json.loads(out), Path("audit/audit.md").read_text()
    rows = dict(row[:2] for row in tables(report)["Position, length, verdicts"][1:])
    assert set(rows) == {"prefers longer", "tie", "unparsed"} and "too few" not in report
    ratings = found["figures"]["ratings"]["words"]
    assert ratings["n"] == 15 * 4 and ratings["mean"]["n"] == 15  # prompts: four ratings each
    assert 1 <= ratings["mean"]["low"] <= ratings["mean"]["high"] <= 5
    assert set(ratings["mean_at_place"]) == {"1", "2", "3", "4"}
    assert at(found, "wins/one")["n"] == 15 and found["figures"]["judges_own_models"] == []
    assert about(found) == {"length": "care"}  # more words are better to it
    # Expected scores are no ratings: the preferences are of the scores, and are all there.
    code, out, err = run_cli("audit", "runs/expected", "--json", "--out", "expected")
    assert code == 0, err
    assert at(json.loads(out), "verdicts/unparsed")["mean"] == 0.0
    assert at(json.loads(out), "length/prefers_longer")["mean"] > 0.7


# ---------------------------------------------------------------- the gate

GATED = """\
name: gated
models:
  one: {{engine: openai, model: one, base_url: "{url}"}}
  two: {{engine: openai, model: two, base_url: "{url}"}}
  judge: {{engine: openai, model: {judge}, base_url: "{url}"}}
stages:
  - prompts: {{path: prompts.jsonl, split: all}}
  - sample: {{models: [one, two], sampling: {{max_tokens: 32}}}}
  - {stage}
  - pair: {{rule: zephyr}}
"""
COMPARE = "compare: {{model: judge, constitution: constitutions/overall.yaml, require: {require}}}"
RATE = "rate: {{model: judge, rubric: rubric.yaml, require: {require}}}"


@pytest.fixture(scope="module")
def gated() -> Iterator[tuple[str, dict[str, Biased]]]:
    """Two samplers and three judges: right, placing, and one that mumbles where asked for its verdict."""
    engines = {
        "one": Biased("one"),
        "two": Biased("two"),
        "right": Biased("right", PAIRS, accuracy=1.0),
        "coin": Biased("coin", PAIRS, accuracy=0.5, place=PLACE),
        "mumbling": Biased("mumbling", PAIRS, accuracy=1.0, unparsed=0.3),
    }
    with serve(engines) as url:
        yield url, engines


def asked(engines: dict[str, Biased]) -> dict[str, int]:
    """Requests since the last look, without a server's probes, of the models that had any."""
    counts = {
        name: sum("random words" not in request.messages[0].content for request in engine.asked)
        for name, engine in engines.items()
    }
    for engine in engines.values():
        engine.asked.clear()
    return {name: count for name, count in counts.items() if count}


def gated_project(folder: Path, url: str, judge: str, stage: str, require: str) -> None:
    write_prompts(folder, 8)
    (folder / "rubric.yaml").write_text(RUBRIC)
    (folder / "gated.yaml").write_text(GATED.format(url=url, judge=judge, stage=stage.format(require=require)))


def written(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "runs/gated/manifest.json").read_text()))


@pytest.mark.parametrize(("stage", "per_pair"), [(COMPARE, 2), (RATE, 4)])
def test_a_judge_that_passes_its_gate_is_asked_on(
    stage: str,
    per_pair: int,
    gated: tuple[str, dict[str, Biased]],
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    url, engines = gated
    asked(engines)
    require = "{agreement: 0.8, position_consistency: 0.9, unparsed: 0.01, take: 30}"
    gated_project(tmp_path, url, "right", stage, require)
    kind = stage.split(":")[0]
    planned = json.loads(run_cli("plan", "gated.yaml", "--json")[1])
    assert planned["calls"]["judge"]["calls"] == 30 * per_pair + 8 * 2 and not asked(engines)
    assert planned["stages"][2]["calls"]["judge"] == {"calls": 30 * per_pair + 16, "paid": 0}
    code, out, err = run_cli("run", "gated.yaml")
    tied = "incomplete: pair: no preference was made of 8 rows (8 tie)"  # by a judge that knows only the gold pairs
    assert code == 0 or tied in out, out + err
    assert f"audit of {kind}" in out and "passed" in out
    found = asked(engines)
    assert found["one"] == found["two"] == 8 and found["right"] == 30 * per_pair + 16
    figures = written(tmp_path)["audits"][kind]
    assert figures["agreement"]["both_orders"]["n"] == 30 and figures["agreement"]["both_orders"]["mean"] > 0.8
    assert figures["position"]["consistency"]["mean"] == 1.0
    assert "probes" not in figures
    code, out, err = run_cli("run", "gated.yaml")
    assert (code == 0 or tied in out) and "0 calls made" in out and not asked(engines)
    again = json.loads(run_cli("plan", "gated.yaml", "--json")[1])["calls"]["judge"]
    assert again["calls"] == again["paid"] == 30 * per_pair + 16


@pytest.mark.parametrize(
    ("judge", "require", "short"),
    [
        ("coin", "{agreement: 0.8, take: 60}", r"agreement 0\.\d\d on 60 pairs, 0\.8 required"),
        ("coin", "{position_consistency: 0.9, take: 60}", r"position consistency 0\.\d\d on 60 pairs, 0\.9 required"),
        ("mumbling", "{unparsed: 0.1, take: 60}", r"unparsed 0\.\d\d of 60 verdicts, at most 0\.1 allowed"),
    ],
)
def test_a_judge_that_falls_short_stops_the_run_before_anything_is_sampled(
    judge: str,
    require: str,
    short: str,
    gated: tuple[str, dict[str, Biased]],
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    url, engines = gated
    asked(engines)
    gated_project(tmp_path, url, judge, COMPARE, require)
    code, out, err = run_cli("run", "gated.yaml")
    assert code == 1 and re.search(short, err), out + err
    assert "Fix: see why: rlaif audit gated.yaml --stage compare" in err and err.count("error: ") == 1
    assert asked(engines) == {judge: 120}
    told = written(tmp_path)
    assert told["state"] == "failed" and told["audits"]["compare"]["agreement"]["both_orders"]["n"] == 60
    assert not (tmp_path / "runs/gated/dataset").exists()
    # What it says to do works, and what the gate has paid for is not paid for again.
    code, out, err = run_cli("audit", "gated.yaml", "--stage", "compare", "--take", "60", "--no-probes", "--json")
    assert code == 0 and not asked(engines), err
    assert json.loads(out)["figures"]["agreement"] == told["audits"]["compare"]["agreement"]
    # A user who lowers the bound goes on with what is paid for.
    gated_project(tmp_path, url, judge, COMPARE, "{unparsed: 0.9, take: 60}")
    code, out, err = run_cli("run", "gated.yaml")
    assert code == 0 or "no preference was made of 8 rows" in out or "judgements are unparsed" in out, out + err
    assert asked(engines)[judge] == 16


def test_an_audit_of_a_gated_stage_asks_the_gold_of_its_gate(
    gated: tuple[str, dict[str, Biased]],
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    gated_project(tmp_path, gated[0], "right", COMPARE, "{agreement: 0.8, gold: own.jsonl}")
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in OWN))
    code, out, err = run_cli("audit", "gated.yaml", "--no-probes", "--json")
    assert code == 0 and json.loads(out)["gold"]["pairs"] == len(OWN), err


def test_a_jury_is_gated_as_one_judge(
    gated: tuple[str, dict[str, Biased]],
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    url, engines = gated
    asked(engines)
    stage = "compare: {{jury: [judge, second], constitution: constitutions/overall.yaml, require: {require}}}"
    gated_project(tmp_path, url, "right", stage, "{agreement: 0.8, take: 30}")
    text = (tmp_path / "gated.yaml").read_text()
    second = f'  second: {{engine: openai, model: mumbling, base_url: "{url}"}}\nstages:'
    (tmp_path / "gated.yaml").write_text(text.replace("stages:", second))
    code, out, err = run_cli("run", "gated.yaml")
    assert code == 1 and "agreement" in err  # half of the weight unparsed leaves no verdict
    assert asked(engines) == {"right": 60, "mumbling": 60}
    jury = written(tmp_path)["audits"]["compare"]["jury"]
    assert jury["members"]["judge"]["mean"] == 1.0 and jury["members"]["second"]["mean"] < 0.8
    assert jury["fitted_weights"]["judge"] > jury["fitted_weights"]["second"] > 0
    code, out, err = run_cli("audit", "gated.yaml", "--take", "30", "--no-probes")
    assert code == 0 and not asked(engines) and "The jury" in out and "by a jury (mean)" in out


def test_a_judge_trained_in_the_pipeline_is_audited_once_it_exists(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    """And a judge that is there before is audited first of all, wherever its stage stands."""
    rows = [
        {"messages": [{"role": "user", "content": f"say {k} ."}, {"role": "assistant", "content": "fine ."}]}
        for k in range(8)
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_prompts(tmp_path, 4)
    (tmp_path / "gated.yaml").write_text(
        "name: gated\nmodels:\n  base: {engine: transformers, path: tiny/annotator}\nstages:\n"
        "  - data: {path: d.jsonl}\n  - train: {sft: {base: base, name: trained, epochs: 1, batch_size: 4}}\n"
        "  - prompts: {path: prompts.jsonl, split: all}\n"
        "  - sample: {models: [base], per_prompt: 2, sampling: {max_tokens: 8}}\n"
        "  - compare: {model: trained, constitution: constitutions/tiny.yaml, "
        "template: prompts/compare-compact.jinja, ending: 'which one ?', sampling: {max_tokens: 32}, "
        "require: {unparsed: 0.0, agreement: 1.0, gold: world, take: 6}}\n"
    )
    planned = run_cli("plan", "gated.yaml", "--json")
    assert planned[0] == 0, planned
    code, out, err = run_cli("run", "gated.yaml")
    assert code == 1 and "the judge of 'compare' falls short: agreement" in err, out + err
    assert "rlaif audit runs/gated/models/trained --method compare" in err
    told = written(tmp_path)
    assert told["audits"]["compare"]["agreement"]["both_orders"]["n"] == 6
    assert [stage["name"] for stage in told["stages"]] == ["data", "trained"]  # nothing was sampled


WRONG_GATES: dict[str, tuple[str, str]] = {
    "empty": ("{}", r"gated\.yaml:9: `stages\.2\.compare\.require`: give what is required, such as `agreement: 0\.8`"),
    "nothing": ("", r"gated\.yaml:9: `stages\.2\.compare\.require`: an empty gate passes everything; give what"),
    "only how many": ("{take: 9}", r"`stages\.2\.compare\.require`: give what is required"),
    "unknown key": ("{agrement: 0.8}", r"gated\.yaml:9: `stages\.2\.compare\.require\.agrement`: unknown key. Fix: did you mean `agreement`"),
    "over one": ("{agreement: 80}", r"gated\.yaml:9: `stages\.2\.compare\.require\.agreement`: .*less than or equal to 1, found 80"),
    "none to take": ("{agreement: 0.8, take: 0}", r"gated\.yaml:9: `stages\.2\.compare\.require\.take`: .*greater than 0"),
    "missing gold": ("{agreement: 0.8, gold: gold.jsnl}", r"gated\.yaml:9: `stages\.2\.compare\.require\.gold`: there is no file or folder 'gold\.jsnl'. Fix: did you mean 'gold\.jsonl'"),
    "malformed gold": ("{agreement: 0.8, gold: gold.jsonl}", r"gold\.jsonl:2: .*`better`"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_GATES)
def test_a_wrong_gate_is_refused_before_anything_is_asked(
    name: str,
    gated: tuple[str, dict[str, Biased]],
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    url, engines = gated
    asked(engines)
    require, expected = WRONG_GATES[name]
    gated_project(tmp_path, url, "right", COMPARE, require)
    broken = dict(OWN[1])
    del broken["better"]
    (tmp_path / "gold.jsonl").write_text(json.dumps(OWN[0]) + "\n" + json.dumps(broken) + "\n")
    for command in ("plan", "run"):
        code, out, err = run_cli(command, "gated.yaml")
        assert code == 2 and re.search(expected, err), err
        assert err.startswith("error: ") and err.count("\n") == 1
    assert not asked(engines) and not (tmp_path / "runs/gated").exists()


# ---------------------------------------------------------------- wrong input

WRONG: dict[str, tuple[list[str], int, str]] = {
    "no model's name": (["URL"], 2, r"`--model`: no model on http://\S+/v1 is named. Fix: name one with --model; the server lists its models at /models"),
    "unknown model": (["URL", "--model", "fare"], 1, r"fare"),
    "server down": (["http://127.0.0.1:9/v1", "--model", "fair"], 1, r"127\.0\.0\.1:9"),
    "no such folder": (["nowhere"], 2, r"`JUDGE`: there is no file or folder 'nowhere'"),
    "folder that is no model": (["empty"], 2, r"empty"),
    "a run's folder of nothing": (["runs"], 2, r"runs"),
    "no such pipeline": (["nowhere.yaml"], 2, r"no file or folder 'nowhere\.yaml'"),
    "pipeline that judges nothing": (["plain.yaml"], 2, r"plain\.yaml: the pipeline has no stage that compares or rates. Fix: add one"),
    "unknown stage": (["echo.yaml", "--stage", "rat"], 2, r"echo\.yaml: `--stage`: no judging stage is called 'rat'. Fix: did you mean `rate`"),
    "stage that judges nothing": (["echo.yaml", "--stage", "sample"], 2, r"no judging stage is called 'sample'. Fix: use one of rate"),
    "judge that is yet to be trained": (["trained.yaml"], 2, r"the judge 'taught' is trained in this pipeline and does not exist before it runs. Fix: audit its folder after the run"),
    "malformed gold": (["URL", "--model", "fair", "--gold", "gold.jsonl"], 2, r"gold\.jsonl:2: .*`better`"),
    "gold that is no JSON": (["URL", "--model", "fair", "--gold", "broken.jsonl"], 2, r"broken\.jsonl:1: "),
    "gold of two same texts": (["URL", "--model", "fair", "--gold", "same.jsonl"], 2, r"same\.jsonl:1: .*same text"),
    "no gold": (["URL", "--model", "fair", "--gold", "none.jsonl"], 2, r"none\.jsonl: there are no (pairs|rows)"),
    "missing gold": (["URL", "--model", "fair", "--gold", "gold.jsnl"], 2, r"no file or folder 'gold\.jsnl'. Fix: did you mean 'gold\.jsonl'"),
    "unknown setting": (["URL", "--model", "fair", "reason=true"], 2, r"command line: `reason`: unknown key. Fix: did you mean `reasons`"),
    "setting of the wrong type": (["URL", "--model", "fair", "verdicts=loud"], 2, r"command line: `verdicts`: .*'soft'.*found 'loud'"),
    "setting without a value": (["URL", "--model", "fair", "reasons"], 2, r"'reasons' is not of the form key=value"),
    "setting that contradicts": (["URL", "--model", "fair", "votes=3"], 2, r"`votes` of soft verdicts are all the same"),
    "unknown method": (["URL", "--model", "fair", "--method", "guess"], 2, r"`--method`: expected compare or rate, found 'guess'"),
    "take of nothing": (["URL", "--model", "fair", "--take", "0"], 2, r"--take"),
    "unknown option": (["URL", "--modle", "fair"], 2, r"--modle"),
    "key whose variable is not its name": (["URL", "--model", "fair", "--key-env", "sk-secret-1"], 2, r"`--key-env`: expected the name of an environment variable"),
    "labels of a server": (["URL", "--model", "fair", "--labels", "labels.jsonl"], 2, r"`--labels`: an audit of a server takes no --labels. Fix: remove it"),
    "gold of a run": (["runs/echo", "--gold", "gold.jsonl"], 2, r"an audit of a run takes no --gold"),
    "address without its beginning": (["127.0.0.1:9/v1", "--model", "m"], 2, r"begin a server's URL with http://"),
    "model of a pipeline": (["echo.yaml", "--model", "fair"], 2, r"an audit of a pipeline takes no --model"),
    "run that judged nothing": (["runs/plain"], 2, r"the pipeline has no stage that compares or rates"),
    "unknown stage of a run": (["runs/echo", "--stage", "rat"], 2, r"no judging stage is called 'rat'. Fix: did you mean `rate`"),
    "malformed labels": (["runs/echo", "--labels", "broken-labels.jsonl"], 2, r"broken-labels\.jsonl:2: `verdict`: .*Fix: a label has `prompt_id`, `a`, `b`, `verdict`"),
    "labels of nothing here": (["runs/echo", "--labels", "labels.jsonl"], 2, r"labels\.jsonl: none of the 1 labels is of a pair that the stage 'rate' judged"),
    "missing labels": (["runs/echo", "--labels", "nowhere.jsonl"], 2, r"no file or folder 'nowhere\.jsonl'"),
}  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs that ended, one of ratings and one that judged nothing, and files that are wrong."""
    folder = tmp_path_factory.mktemp("ended")
    with pytest.MonkeyPatch.context() as patch, serve({name: Echo(name) for name in ("one", "two", "judge")}) as url:
        patch.chdir(folder)
        write_project(folder, url, 3)
        text = (folder / "echo.yaml").read_text()
        (folder / "plain.yaml").write_text(text[: text.index("  - rate")].replace("name: echo", "name: plain"))
        for name in ("echo", "plain"):
            patch.setattr("sys.argv", ["rlaif", "run", f"{name}.yaml"])
            with pytest.raises(SystemExit) as exit_:
                cli.main()
            assert not exit_.value.code
    (folder / "trained.yaml").write_text(
        "name: t\nmodels: {base: {engine: transformers, path: tiny/annotator}}\nstages:\n"
        "  - data: {path: d.jsonl}\n  - train: {sft: {base: base, name: taught}}\n"
        "  - prompts: {path: prompts.jsonl}\n  - sample: {models: [base], per_prompt: 2}\n"
        "  - rate: {model: taught, rubric: rubric.yaml}\n"
    )
    good, label = OWN[0], {"prompt_id": "x", "a": "y", "b": "z", "verdict": "a"}
    files: dict[str, list[Any]] = {
        "gold.jsonl": [good, {k: v for k, v in good.items() if k != "better"} | {"id": "two"}],
        "same.jsonl": [good | {"worse": good["better"]}],
        "none.jsonl": [],
        "labels.jsonl": [label],
        "broken-labels.jsonl": [label, label | {"verdict": "c"}],
        "d.jsonl": [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
    }
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "broken.jsonl").write_text("{\n")
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(
    name: str,
    url: str,
    ended: Path,
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ended)
    arguments, expected, words = WRONG[name]
    before = sorted(path.name for path in ended.iterdir())
    code, out, err = run_cli(
        "audit", *(url if word == "URL" else word for word in arguments), "--out", str(tmp_path / "a")
    )
    assert code == expected, (out, err)
    assert re.search(words, err), err
    assert err.startswith("error: ") and "Traceback" not in err and err.count("\n") == 1 and len(err) < 500
    assert "sk-secret" not in err
    assert not (tmp_path / "a").exists() and sorted(path.name for path in ended.iterdir()) == before


def test_what_is_wrong_before_anything_is_made_leaves_no_trace(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    (tmp_path / "none.jsonl").write_text("")
    assert run_cli("audit", "http://127.0.0.1:9/v1", "--model", "m", "--gold", "none.jsonl")[0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["none.jsonl"]


def test_few_pairs_condemn_nobody_and_praise_nobody() -> None:
    """The same share of right verdicts on few pairs and on many."""

    def ruled(right: int, of: int) -> list[str]:
        pairs = read_gold()[:of]
        rulings = []
        for place, pair in enumerate(pairs):
            said: Choice = "A" if place < right else "B"
            comparison = Comparison(a=0, b=1, principle="p", judge="j", verdict=said, probability=None, orders=())
            rulings.append(Ruling(pair, "A", comparison))
        return [finding.grade for finding in findings(figures(rulings)) if finding.about == "agreement"]

    assert ruled(18, 30) == ["care"] and ruled(5, 5) == ["care"]
    assert ruled(100, 200) == ["bad"] and ruled(190, 200) == ["good"]


def test_an_always_tying_judge_gains_nothing_by_both_orders() -> None:
    tied = [
        Ruling(pair, "A", Comparison.merge(
            Verdict(a=0, b=1, verdict="tie"), Verdict(a=1, b=0, verdict="tie"), principle="p", judge="j"
        ))
        for pair in read_gold()[:60]
    ]  # fmt: skip
    assert "both orders" not in {finding.about for finding in findings(figures(tied))}


def test_a_key_that_is_refused_ends_an_audit_at_once(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    """Nothing another pair asks can escape it."""
    answers = [Answer(completion("1"))] * 40 + [Answer({"error": {"message": "no such key"}}, status=401)]
    with scripted(answers) as script:
        code, _, said = run_cli("audit", script.base_url, "verdicts=hard", "--model", "judge")
    assert code == 1 and "401" in said
    assert 40 < len(script.requests) < 40 + 2 * 64 + 10  # what was under way, of 1,828 calls


def test_a_prompt_in_several_rows_is_held_against_the_right_labels() -> None:
    """The judge says what people say, in two rows of each prompt that prefer different places."""
    rows, people = [], []
    for number in range(10):
        for verdict in ("A", "B"):
            prompt = Prompt(messages=(Message(role="user", content=f"q{number}"),))
            texts = [f"{verdict} {place} {number}" for place in (0, 1)]
            row = shown_row(prompt, texts)
            said = Comparison(a=0, b=1, principle="p", judge="j", verdict=verdict, probability=None, orders=())  # type: ignore[arg-type]
            rows.append(row.model_copy(update={"comparisons": (said,)}))
            people.append(rows[-1])
    found = measuring.with_people(measuring.judged(rows), measuring.judged(people))
    assert found["pairs"] == 20 and found["accuracy"]["mean"] == 1.0


def shown_row(prompt: Prompt, texts: list[str]) -> Row:
    completions = [Completion(text=text, model=f"m{place}", call=text) for place, text in enumerate(texts)]
    return Row(prompt=prompt, candidates=tuple(Candidate(sampler=c.model, completion=c) for c in completions))


def test_a_label_for_two_rows_of_a_prompt_is_used_once(tmp_path: Path) -> None:
    prompt = Prompt(messages=(Message(role="user", content="q"),))
    label = {"prompt_id": prompt.id, "a": "x", "b": "y", "verdict": "a"}
    (tmp_path / "labels.jsonl").write_text(json.dumps(label) + "\n" + json.dumps(label | {"a": "z"}) + "\n")
    labels = read_labels(tmp_path / "labels.jsonl")
    for _ in range(2):
        assert judged_by_people(shown_row(prompt, ["x", "y"]), labels).comparisons[0].verdict == "A"
    assert labels.unused() == 1
