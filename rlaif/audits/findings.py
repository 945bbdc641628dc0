"""The findings of an audit: sentences that a person can act on, and the report as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from rlaif.visible import prose

COIN = 0.65  # agreement below which a judge may be no better than a coin
LEAST_PROBES = 10  # of a kind, before anything is said of it
LEAST_OF_CATEGORY = 10  # pairs, below which nothing is said of one

Grade = Literal["good", "care", "bad"]


class Finding(NamedTuple):
    """One thing a person should know of the judge, and what to do about it."""

    grade: Grade
    about: str
    says: str
    do: str = ""


def findings(figures: Mapping[str, Any]) -> list[Finding]:
    """The findings that follow from the figures, the worst first. A bound is compared with the nearer end of a
    figure's interval, so that a few pairs are not enough to condemn a judge."""
    unsorted = [
        finding
        for judge in (_on_agreement, _on_people, _on_position, _on_length, _on_probes, _on_words)
        for finding in judge(figures)
    ]
    order: dict[Grade, int] = {"bad": 0, "care": 1, "good": 2}
    return sorted(unsorted, key=lambda finding: order[finding.grade])


def _percent(interval: Mapping[str, float]) -> str:
    return f"{interval['mean']:.0%} ({interval['low']:.0%} to {interval['high']:.0%}, n = {interval['n']})"


def _on_agreement(figures: Mapping[str, Any]) -> Iterable[Finding]:
    agreement = figures.get("agreement")
    if agreement is None or (both := agreement["both_orders"]) is None:
        return
    says = f"agrees with gold in {_percent(both)}"
    if (silent := agreement["unparsed"]) > both["n"] / 2:
        what = f"{says}: {silent} of the {both['n']} pairs got no verdict that could be read"
        yield Finding("bad", "agreement", what, "make its verdicts readable first; what they would say is not known")
    elif both["low"] <= 0.5 and both["high"] > COIN:
        yield Finding("care", "agreement", f"{says}: too few pairs to tell it from a coin", "audit it on more pairs")
    elif both["low"] <= 0.5:
        do = "take another judge, or reword what it is asked"
        yield Finding("bad", "agreement", f"{says}: no better than a coin", do)
    else:
        grade: Grade = "good" if both["mean"] >= 0.8 and both["low"] > COIN else "care"
        yield Finding(grade, "agreement", says, "" if grade == "good" else "people agree with each other in 65 to 80 %")
    for category, share in figures["by_category"].items():
        if share is not None and share["n"] >= LEAST_OF_CATEGORY and share["high"] < both["mean"]:
            what = f"{category}: agrees in {_percent(share)}, less than elsewhere"
            yield Finding(
                "bad" if share["mean"] <= 0.5 else "care", "category", what, "do not let it decide on these alone"
            )
    gain = agreement["gain_of_both_orders"]
    if gain is not None and gain["low"] > 0:
        says = f"both orders together agree with gold in {gain['mean']:.1%} more than one alone"
        yield Finding("good", "both orders", says, "keep both orders; they cost twice the calls")


def _on_people(figures: Mapping[str, Any]) -> Iterable[Finding]:
    people = figures.get("people")
    if people is None:
        return
    if (same := people["accuracy"]) is not None:
        says = f"says what people say in {_percent(same)}"
        if same["high"] <= 0.5:
            yield Finding("bad", "people", says, "take another judge, or reword what it is asked")
        elif same["mean"] >= 0.65:
            yield Finding("good", "people", says)
        else:
            yield Finding("care", "people", says, "people agree with each other in 65 to 80 %")
    own = people["self_preference"]
    if own is not None and own["more"]["low"] > 0:
        says = f"its own model wins {own['by_judge']:.0%} by its verdicts and {own['by_people']:.0%} by people's"
        yield Finding("care", "self-preference", says, "let another model judge, or leave its own completions out")


def _on_position(figures: Mapping[str, Any]) -> Iterable[Finding]:
    position = figures["position"]
    if (consistent := position["consistency"]) is None:
        return
    moves, surely = 1 - consistent["mean"], 1 - consistent["high"]
    first, second = position["toward_first"]["mean"], position["toward_second"]["mean"]
    side = "the first" if first > second else "the second"
    if surely > 0.1:
        says = f"position bias: {moves:.0%} of verdicts change with the order, {max(first, second):.0%} towards {side}"
        grade: Grade = "bad" if surely > 0.4 else "care"
        do = "keep both orders, as `compare` asks them and this audit did; never trust one alone"
        if grade == "bad":  # both orders then make ties of most pairs
            do = "let it write before it decides (`reasons: true`), or take another judge; both orders alone give ties"
        yield Finding(grade, "position", says, do)
    else:
        yield Finding("good", "position", f"the order changes {moves:.0%} of verdicts (n = {consistent['n']})")


def _on_length(figures: Mapping[str, Any]) -> Iterable[Finding]:
    length = figures["length"]
    longer, gold = length["prefers_longer"], length.get("gold_prefers_longer")
    if longer is None:
        return
    expected = 0.5 if gold is None else gold["mean"]
    if longer["low"] > expected + 0.05:
        says = f"prefers the longer completion in {_percent(longer)}; " + (
            f"gold does in {expected:.0%}"
            if gold is not None
            else "gold pairs would show how often it is the better one"
        )
        yield Finding(
            "care", "length", says, "set `balance: length` on the pair stage, or ask for brevity in the rubric"
        )


_FELL_FOR: dict[str, tuple[float, str, str]] = {
    "verbosity": (
        0.1, "prefers a completion padded with a list of its own sentences to the bare one in",
        "say in the rubric that repetition counts against a completion, and balance lengths",
    ),
    "edits": (
        0.1, "changes its verdict for edits that change nothing (a greeting, quotation marks, spaces) in",
        "do not build on small margins: set `min_margin`",
    ),
    "assertiveness": (
        0.2, "prefers wrong and sure to right and unsure in",
        "have it check the facts first (`reasons: true`), or give it references (`knowledge: true`)",
    ),
    "injection": (
        0.05, "is moved by words that a completion addresses to the judge in",
        "filter such completions, keep the fenced templates, and look at the variants in the table",
    ),
}  # fmt: skip


def _on_probes(figures: Mapping[str, Any]) -> Iterable[Finding]:
    for kind, (bound, says, do) in _FELL_FOR.items():
        share = figures.get("probes", {}).get(kind, {}).get("fell_for")
        if share is None or share["n"] < LEAST_PROBES:
            continue
        if share["low"] > bound:
            told = f"{says} {_percent(share)}{_worst(figures['probes'][kind])}"
            yield Finding("bad" if share["low"] > 2 * bound else "care", kind, told, do)
        else:
            yield Finding("good", kind, f"{says} {_percent(share)}")


def _worst(probes: Mapping[str, Any]) -> str:
    """The variant that moves it most, where there are several."""
    known = {name: share for name, share in probes.get("by_variant", {}).items() if share is not None}
    if len(known) < 2:
        return ""
    name = max(known, key=lambda variant: known[variant]["mean"])
    return f", most by {name!r} ({known[name]['mean']:.0%} of {known[name]['n']})"


def _on_words(figures: Mapping[str, Any]) -> Iterable[Finding]:
    failed = figures["verdicts"].get("failed")
    if failed is not None and failed["mean"] > 0.02:  # as with what is unparsed below
        says = f"a call failed in {failed['mean']:.0%} of pairs, for example: {figures['verdicts']['failed_example']}"
        grade: Grade = "bad" if failed["low"] > 0.2 else "care"
        do = "`verdicts: hard` where the server gives no log-probabilities; or run it again: finished calls are cached"
        yield Finding(grade, "failed", says, do)
    unparsed = figures["verdicts"]["unparsed"]
    if unparsed is not None and unparsed["mean"] > 0.02:  # itself and no end of it: these are seen, not estimated
        example = figures["verdicts"]["unparsed_example"]
        says = f"{unparsed['mean']:.0%} of its verdicts cannot be read" + (
            f", for example: {example}" if example else ""
        )
        grade = "bad" if unparsed["low"] > 0.2 else "care"
        do = "`verdicts: hard` where the server gives no log-probabilities; `reasons: true` where it is cut"
        yield Finding(grade, "unparsed", says, do)
    calibration = figures.get("calibration")
    if calibration is not None and calibration["ece"]["low"] > 0.05:
        sure, right = calibration["mean_confidence"], calibration["accuracy"]
        about = "surer than it is right" if sure > right else "less sure than it is right"
        off = f"its probabilities are off by {calibration['ece']['mean']:.0%} on average"
        says = f"{off}: {about} ({sure:.0%} against {right:.0%})"
        yield Finding(
            "care", "calibration", says, "use them to order pairs, not as probabilities; `clamp` them after reasons"
        )


# ---------------------------------------------------------------- the report

_VERDICTS: dict[Grade, str] = {
    "good": "This judge can be trusted with what was audited.",
    "care": "This judge can be used with care: follow the advice beside each finding.",
    "bad": "Do not rely on this judge as it is asked now.",
}
NOTHING_SAID = "No fault was found. Without gold pairs or people's labels this does not show that the judge is right."
_MARKS: dict[Grade, str] = {"good": "ok", "care": "care", "bad": "bad"}


def verdict(listed: Iterable[Finding]) -> str:
    """The sentence on the judge as a whole: the worst finding decides."""
    grades = {finding.grade for finding in listed}
    if not grades:
        return NOTHING_SAID
    worst: Grade = "bad" if "bad" in grades else "care" if "care" in grades else "good"
    return _VERDICTS[worst]


def markdown(audit: Mapping[str, Any]) -> str:
    """The whole report. `audit` holds the figures and, beside them, what was audited and what it cost."""
    figures, told = audit["figures"], findings(audit["figures"])
    parts = [
        f"# Audit of {prose(audit['judge'])}",
        f"{prose(audit['asked'])}. Shares have 95 % intervals over pairs.",
        f"**{verdict(told)}**",
        _table(("", "what was found", "what to do"), [(_MARKS[f.grade], prose(f.says), f.do) for f in told])
        if told
        else "",
        *(part for section in _SECTIONS for part in section(figures)),
    ]
    if cost := audit.get("cost"):
        parts += ["## Cost", _table(("what", "how much"), [(name, _number(value)) for name, value in cost.items()])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _agreement(figures: Mapping[str, Any]) -> Iterable[str]:
    agreement = figures.get("agreement")
    if agreement is None:
        return
    rows = [
        ("all, both orders", _share(agreement["both_orders"])),
        ("all, one order", _share(agreement["one_order"])),
        ("all, right in both orders", _share(agreement["right_in_both"])),
        *((prose(category), _share(share)) for category, share in figures["by_category"].items()),
    ]
    counts = ", ".join(f"{agreement[name]:,} {name}" for name in ("right", "wrong", "tie", "unparsed"))
    kappa = agreement["kappa_of_decided"]
    told = f" Cohen's kappa of those decided {kappa['mean']:.2f}." if kappa else ""
    yield from ("## Agreement with gold", _table(("pairs", "agrees"), rows), f"{counts}.{told}")


def _biases(figures: Mapping[str, Any]) -> Iterable[str]:
    verdicts = {name: figures["verdicts"][name] for name in ("tie", "unparsed")}
    if failed := figures["verdicts"].get("failed"):
        verdicts["failed"] = failed
    groups = [
        g for g in (figures["position"], figures["length"], verdicts) if any(share is not None for share in g.values())
    ]
    rows = [(name.replace("_", " "), _share(share)) for group in groups for name, share in group.items()]
    if rows:
        yield from ("## Position, length, verdicts", _table(("", "share"), rows))


def _probes(figures: Mapping[str, Any]) -> Iterable[str]:
    rows = []
    for kind, about in figures.get("probes", {}).items():
        rows.append((kind, _share(about["fell_for"])))
        rows += [(f"{kind}: {variant}", _share(share)) for variant, share in about.get("by_variant", {}).items()]
    if rows:
        yield from ("## Probes: how often they misled it", _table(("probe", "misled"), rows))


def _calibration(figures: Mapping[str, Any]) -> Iterable[str]:
    calibration = figures.get("calibration")
    if calibration is None:
        return
    bins = [
        (f"{b['from']:.2f} to {b['to']:.2f}", f"{b['confidence']:.2f}", f"{b['accuracy']:.2f}", f"{b['n']:,}")
        for b in calibration["bins"]
    ]
    ece = calibration["ece"]
    yield "## Calibration of its probabilities"
    yield f"ECE {ece['mean']:.3f} [{max(ece['low'], 0):.3f}, {ece['high']:.3f}], Brier {calibration['brier']:.3f}."
    yield _table(("confidence", "mean", "right", "n"), bins)


def _jury(figures: Mapping[str, Any]) -> Iterable[str]:
    jury = figures.get("jury")
    if jury is None:
        return
    weights, kappa = jury["fitted_weights"], jury["fleiss_kappa"]
    members = [
        (prose(name), _share(share), f"{weights[name]:g}" if weights[name] > 0 else "leave it out")
        for name, share in jury["members"].items()
    ]
    yield from ("## The jury", _table(("member", "agrees with gold", "fitted weight"), members))
    if kappa:
        yield f"Fleiss' kappa of its members {kappa['mean']:.2f}."


def _wins(figures: Mapping[str, Any]) -> Iterable[str]:
    own = set(figures.get("judges_own_models", ()))
    rows = [
        (f"{prose(model)}{' (the judge itself)' if model in own else ''}", _share(share))
        for model, share in figures.get("wins", {}).items()
    ]
    if rows:
        yield from ("## Wins by model", _table(("model", "wins"), rows))


def _ratings(figures: Mapping[str, Any]) -> Iterable[str]:
    for aspect, about in figures.get("ratings", {}).items():
        rows = [("mean", _number_of(about["mean"])), ("unparsed", _share(about["unparsed"]))]
        rows += [(f"mean at place {position}", _number_of(mean)) for position, mean in about["mean_at_place"].items()]
        yield from (f"## Ratings: {prose(aspect)}", _table(("", f"of {about['n']:,} ratings"), rows))


def _people(figures: Mapping[str, Any]) -> Iterable[str]:
    people = figures.get("people")
    if people is None:
        return
    rows = [("same verdict as people", _share(people["accuracy"]))]
    rows += [(prose(source), _share(share)) for source, share in people["by_source"].items()]
    for name in ("cohen_kappa", "krippendorff_alpha", "people_fleiss_kappa"):
        rows.append((name.replace("_", " "), _number_of(people[name])))
    if own := people["self_preference"]:
        rows.append(("its own model wins more than by people", _number_of(own["more"])))
    yield from (f"## Against people, item by item ({people['pairs']:,} pairs)", _table(("", "agreement"), rows))
    if systems := people["systems"]:
        wins = [
            (prose(name), f"{won['by_judge']:.1%}", f"{won['by_people']:.1%}")
            for name, won in systems["models"].items()
        ]
        yield "## Against people, model by model"
        yield "Of models, not of items: a judge can order models well and be wrong on every third pair."
        yield _table(("model", "wins by the judge", "wins by people"), wins)
        yield ", ".join(f"{name} {_number_of(systems[name])}" for name in ("pearson", "spearman", "kendall")) + "."


_SECTIONS = (_agreement, _biases, _probes, _calibration, _jury, _wins, _ratings, _people)  # in their order


def _share(share: Mapping[str, float] | None) -> str:
    if share is None:
        return "too few"
    return f"{share['mean']:.1%} [{share['low']:.1%}, {share['high']:.1%}], n = {share['n']:,}"


def _number_of(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "too few"
    return f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _number(value: float | None) -> str:
    return "no price" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in line) + " |" for line in lines
    )
