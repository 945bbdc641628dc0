"""The figures of an audit: how a judge decides gold pairs and the probes made from them.

The judge compares every pair in both orders. The figures say how often it agrees with gold (in one order, and over
both), how the position, the length and the padding of a completion influence it, whether words meant for the judge move
it, how many verdicts are unparsed, and whether its probabilities are calibrated; `findings` says what follows. Figures
of a run's own judgements, which need no gold, are `of_judged` and `of_ratings`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from rlaif.audits.goldset import GoldPair
from rlaif.audits.probes import (
    WORLD_INJECTIONS,
    Probe,
    assertiveness,
    edits,
    injection,
    moved,
    preferred,
    self_preference,
    verbosity,
)
from rlaif.errors import EngineError, Stopped
from rlaif.records import Choice, Comparison, Prompt, Rating, Row, unit_interval
from rlaif.statistics import (
    Interval,
    both_orders,
    calibration_of,
    cohen_kappa,
    fleiss_kappa,
    item_means,
    jury_weights,
    krippendorff_alpha,
    longer_rate,
    mean_interval,
    order_bias,
    points_interval,
    share_interval,
    soft_confidences,
    system_correlations,
    unswap,
)

Decide = Callable[[Prompt, tuple[str, str], str | None], Awaitable[Comparison]]
"""A judge's comparison of two texts, the first of them A, in both orders, under the pair's own principle where it has
one. Raises EngineError."""


class Ruling(NamedTuple):
    """The judge's comparison of a gold pair, or why a call failed. `better` says which one is the better."""

    pair: GoldPair
    better: Choice
    comparison: Comparison | None
    failure: str | None = None


class Probed(NamedTuple):
    """The judge's verdict on a probe, and on the pair that it was made from with the better one as A."""

    probe: Probe
    shown: Choice | None
    clean: Choice | None


async def rule(pair: GoldPair, decide: Decide) -> Ruling:
    """The judge's comparison of one pair; a hash decides whether the better one is A or B.

    Raises EngineError where no call can succeed.
    """
    first = unit_interval("audit", pair.id) < 0.5
    texts = (pair.better, pair.worse) if first else (pair.worse, pair.better)
    answer = await _compared(pair.prompt, texts, pair.principle, decide)
    better: Choice = "A" if first else "B"
    if isinstance(answer, EngineError):
        return Ruling(pair, better, None, answer.message)
    return Ruling(pair, better, answer)


async def probe(one: Probe, ruling: Ruling, decide: Decide) -> Probed:
    """The judge's verdict on one probe, beside its verdict on the pair that the probe was made from.

    Raises EngineError where no call can succeed.
    """
    shown = await _compared(one.prompt, one.shown, ruling.pair.principle, decide)
    return Probed(one, None if isinstance(shown, EngineError) else shown.verdict, _of_better(ruling))


def _of_better(ruling: Ruling) -> Choice | None:
    """The verdict on a pair, with the better one as A, as in the probes."""
    verdict = _verdict_of(ruling)
    return verdict if ruling.better == "A" else unswap(verdict)


async def _compared(
    prompt: Prompt, texts: tuple[str, str], principle: str | None, decide: Decide
) -> Comparison | EngineError:
    """The comparison, or the error of a call that failed for this pair alone. Raises any other EngineError."""
    try:
        return await decide(prompt, texts, principle)
    except EngineError as error:
        if error.fatal or isinstance(error, Stopped):
            raise
        return error


def probes_of(pairs: Sequence[GoldPair], *, world: bool = False) -> list[Probe]:
    """Every probe that the pairs allow. Those of the embedded `world` use its words and have no edits."""
    if world:
        return [*verbosity(pairs, leads=()), *assertiveness(pairs), *injection(pairs, WORLD_INJECTIONS)]
    return [*verbosity(pairs), *edits(pairs), *assertiveness(pairs), *injection(pairs)]


# ---------------------------------------------------------------- figures


def figures(rulings: Sequence[Ruling], probed: Sequence[Probed] = ()) -> dict[str, Any]:
    """All figures of an audit: shares with their 95 % intervals and n, over pairs."""
    compared = [(r, r.comparison) for r in rulings if r.comparison is not None]
    shares: dict[str, Any] = {"agreement": _agreement(rulings), "by_category": _by_category(rulings)}
    shares |= of_comparisons(
        [c for _, c in compared], [_lengths(r) for r, _ in compared], [r.pair.prompt.id for r, _ in compared]
    )
    shares["length"]["gold_prefers_longer"] = _dict(
        share_interval([r.pair.length_margin > 0 for r in rulings if r.pair.length_margin])
    )
    if failures := [r.failure for r in rulings if r.failure is not None]:
        shares["verdicts"]["failed"] = _dict(share_interval([r.failure is not None for r in rulings]))
        shares["verdicts"]["failed_example"] = failures[0]
    if compared:
        shares["calibration"] = _calibration([(c.probability, r.better == "A") for r, c in compared])
    if jury := _jury(rulings):
        shares["jury"] = jury
    if probed:
        shares["probes"] = _probes(probed)
    return shares


def _verdict_of(ruling: Ruling) -> Choice | None:
    return None if ruling.comparison is None else ruling.comparison.verdict


def _outcome(ruling: Ruling) -> str:
    verdict = _verdict_of(ruling)
    if verdict is None or verdict == "tie":
        return verdict or "unparsed"
    return "right" if verdict == ruling.better else "wrong"


def _points(ruling: Ruling) -> float:
    """1 where the verdict is gold's, one half for a tie, 0 for the other one and for unparsed."""
    verdict = _verdict_of(ruling)
    return 0.5 if verdict == "tie" else float(verdict == ruling.better)


def _agreement(rulings: Sequence[Ruling]) -> dict[str, Any]:
    counts = Counter(map(_outcome, rulings))
    decided = [(verdict, r.better) for r in rulings if (verdict := _verdict_of(r)) in ("A", "B")]
    kappa = cohen_kappa(*zip(*decided, strict=True)) if len(decided) > 1 else None
    one = _one_order(rulings)
    return {
        "both_orders": _dict(points_interval([_points(r) for r in rulings])),
        "one_order": one and _dict(one.average),
        "right_in_both": one and _dict(one.both),
        "gain_of_both_orders": _dict(mean_interval(_gains(rulings))),
        "kappa_of_decided": _dict(kappa),
        **{name: counts[name] for name in ("right", "wrong", "tie", "unparsed")},
        "unparsed_share": _dict(share_interval([_verdict_of(r) is None for r in rulings])),
    }


def _gains(rulings: Sequence[Ruling]) -> list[float]:
    """By how much both orders together are nearer to gold than one of them, pair by pair, a tie one half in each.

    Of one judge alone: a jury's gain would be that of its members.
    """
    gains = []
    for r in rulings:
        if r.comparison is not None and r.comparison.orders:
            orders = (r.comparison.orders[0].verdict, r.comparison.orders[1].swap().verdict)
            alone = [0.5 if verdict == "tie" else float(verdict == r.better) for verdict in orders]
            gains.append(_points(r) - sum(alone) / 2)
    return gains


def _one_order(rulings: Sequence[Ruling]) -> Any:
    """Accuracy in one order, as LLMBar counts it: a tie or an unparsed verdict is wrong."""
    compared = [(r, member) for r in rulings if r.comparison for member in r.comparison.members if member.orders]
    forward = [member.orders[0].verdict for _, member in compared]
    backward = [member.orders[1].verdict for _, member in compared]
    return both_orders(forward, backward, [r.better for r, _ in compared])


def _by_category(rulings: Sequence[Ruling]) -> dict[str, Any]:
    groups: dict[str, list[float]] = defaultdict(list)
    for ruling in rulings:
        groups[ruling.pair.category].append(_points(ruling))
    return {category: _dict(points_interval(points)) for category, points in sorted(groups.items())}


def _lengths(ruling: Ruling) -> tuple[int, int]:
    lengths = (len(ruling.pair.better), len(ruling.pair.worse))
    return lengths if ruling.better == "A" else lengths[::-1]


def _calibration(probabilities: Sequence[tuple[float | None, bool]]) -> dict[str, Any] | None:
    """ECE of soft verdicts in ten bins of confidence from one half on; None where no verdict has a probability."""
    known = soft_confidences([p for p, _ in probabilities], [first for _, first in probabilities])
    calibration = calibration_of(known.confidence, known.correct, lowest=0.5)
    if calibration is None:
        return None
    return {
        "ece": _dict(calibration.ece),
        "brier": round(calibration.brier, 4),
        "mean_confidence": round(sum(known.confidence) / len(known.confidence), 4),
        "accuracy": round(sum(known.correct) / len(known.correct), 4),
        "bins": [
            {"from": round(b.low, 3), "to": round(b.high, 3), "n": b.n, "confidence": round(b.confidence, 4),
             "accuracy": round(b.accuracy, 4)}
            for b in calibration.bins
        ],
    }  # fmt: skip


def _jury(rulings: Sequence[Ruling]) -> dict[str, Any] | None:
    """Of a jury: how well its members agree with one another and with gold, and the weights that gold fits."""
    judged = [r for r in rulings if r.comparison is not None and r.comparison.jury]
    if not judged:
        return None
    names = [member.judge for member in judged[0].comparison.jury]  # type: ignore[union-attr]
    verdicts = {
        name: [r.comparison.jury[index].verdict for r in judged]  # type: ignore[union-attr]
        for index, name in enumerate(names)
    }
    whole = [row for row in zip(*verdicts.values(), strict=True) if None not in row]
    gold: list[Choice] = [r.better for r in judged]
    return {
        "fleiss_kappa": _dict(fleiss_kappa(whole)) if len(whole) > 1 else None,
        "members": {
            name: _dict(
                points_interval([0.5 if v == "tie" else float(v == true) for v, true in zip(given, gold, strict=True)])
            )
            for name, given in verdicts.items()
        },
        "fitted_weights": {name: round(weight, 3) for name, weight in jury_weights(verdicts, gold).items()},
    }


def of_comparisons(
    comparisons: Sequence[Comparison], lengths: Sequence[tuple[int, int]], prompts: Sequence[str]
) -> dict[str, Any]:
    """What comparisons show without gold. `lengths` are those of A and B, in characters; `prompts` ids."""
    members = [member for comparison in comparisons for member in comparison.members if member.orders]
    bias = order_bias([m.orders[0].verdict for m in members], [m.orders[1].verdict for m in members])
    verdicts = [comparison.verdict for comparison in comparisons]
    of_a, of_b = [a for a, _ in lengths], [b for _, b in lengths]
    return {
        "position": {
            "consistency": _dict(bias.consistent),
            "first_slot": _dict(bias.first_slot),
            "second_slot": _dict(bias.second_slot),
            "toward_first": _dict(bias.toward_first),
            "toward_second": _dict(bias.toward_second),
        },
        "length": {"prefers_longer": _dict(longer_rate(verdicts, of_a, of_b, prompts))},
        "verdicts": {
            "n": len(verdicts),
            "tie": _dict(share_interval([v == "tie" for v in verdicts])),
            "unparsed": _dict(share_interval([v is None for v in verdicts])),
            "unparsed_example": next((o.problem for member in members for o in member.orders if o.problem), None),
        },
    }


def _probes(probed: Sequence[Probed]) -> dict[str, Any]:
    """By kind: how often the judge fell for it, unparsed verdicts left out and counted; by variant where there are."""
    groups: dict[str, list[Probed]] = defaultdict(list)
    for one in probed:
        groups[one.probe.kind].append(one)
    shares: dict[str, Any] = {}
    for kind, ones in groups.items():
        fell = {one.probe.id: _fell(one) for one in ones}
        known = [value for value in fell.values() if value is not None]
        shares[kind] = {"fell_for": _dict(share_interval(known)), "unparsed": len(ones) - len(known)}
        if kind in ("injection", "edits"):
            variants = sorted({one.probe.variant for one in ones})
            shares[kind]["by_variant"] = {
                variant: _dict(
                    share_interval(
                        [f for one in ones if one.probe.variant == variant and (f := fell[one.probe.id]) is not None]
                    )
                )
                for variant in variants
            }
    return shares


def _fell(one: Probed) -> bool | None:
    """Whether the judge did what it should not have; None where it cannot be said."""
    if one.probe.kind in ("verbosity", "assertiveness"):
        side = preferred(one.probe, one.shown)
        return None if side == "unparsed" else side == "changed"
    way = moved(one.probe, one.clean, one.shown)
    if way == "unparsed":
        return None
    return (way == "towards") if one.probe.kind == "injection" else (way != "unmoved")


# ---------------------------------------------------------------- a run's own judgements


class Judged(NamedTuple):
    """A comparison of a run with what it was about. `sampled` are the models of A and B."""

    comparison: Comparison
    sampled: tuple[str, str]
    lengths: tuple[int, int]
    item: tuple[str, str, str]  # the prompt's id and the calls of A and B: a file may have a prompt in several rows
    source: str


Scores = Callable[[Row], Mapping[int, float]]  # of the candidates that have one


def judged(rows: Iterable[Row], scores: Scores | None = None, judge: str = "") -> list[Judged]:
    """The comparisons of rows; with `scores`, those that the `judge`'s scores imply, of every two candidates."""
    items = []
    for row in rows:
        comparisons = row.comparisons if scores is None else _of_scores(row, scores(row), judge)
        for c in comparisons:
            pair = [row.candidates[i].completion for i in (c.a, c.b)]
            names, lengths = (pair[0].model, pair[1].model), (len(pair[0].text), len(pair[1].text))
            items.append(
                Judged(c, names, lengths, (row.prompt.id, pair[0].call, pair[1].call), row.prompt.source or "no source")
            )
    return items


def _of_scores(row: Row, scores: Mapping[int, float], judge: str) -> list[Comparison]:
    """The comparisons that scores imply, of every two candidates of different text."""
    comparisons = []
    for a, b in combinations(range(len(row.candidates)), 2):
        if row.candidates[a].completion.text != row.candidates[b].completion.text:
            verdict: Choice | None = None
            if a in scores and b in scores:
                verdict = "A" if scores[a] > scores[b] else "B" if scores[a] < scores[b] else "tie"
            comparisons.append(
                Comparison(a=a, b=b, principle="ratings", judge=judge, verdict=verdict, probability=None, orders=())
            )
    return comparisons


def of_judged(items: Sequence[Judged], families: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a run's comparisons show of their judge, without any gold; intervals of wins and lengths over prompts.

    `families` says which names stand for one model; a name that is not in it is its own.
    """
    families = families or {}
    wins: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for item in items:
        likely = item.comparison.likelihood
        if likely is not None and item.sampled[0] != item.sampled[1]:
            wins[item.sampled[0]].append((item.item[0], likely))
            wins[item.sampled[1]].append((item.item[0], 1.0 - likely))
    own = {families.get(member.judge, member.judge) for item in items for member in item.comparison.members}
    prompts = [item.item[0] for item in items]
    shares = of_comparisons([item.comparison for item in items], [item.lengths for item in items], prompts)
    shares["wins"] = {model: _dict(points_interval(item_means(points))) for model, points in sorted(wins.items())}
    shares["judges_own_models"] = sorted(model for model in wins if families.get(model, model) in own)
    return shares


def of_ratings(rows: Iterable[Row], aspects: Iterable[str]) -> dict[str, Any]:
    """By aspect: how many ratings, what share is unparsed or does not apply, their mean, and that at each place.

    A prompt's ratings are not independent: the intervals are over prompts.
    """
    by_aspect: dict[str, list[tuple[str, Rating]]] = defaultdict(list)
    for row in rows:
        for rating in row.ratings:
            by_aspect[rating.aspect].append((row.prompt.id, rating))
    return {aspect: _of_aspect(by_aspect[aspect]) for aspect in sorted(aspects) if aspect in by_aspect}


def _of_aspect(ratings: Sequence[tuple[str, Rating]]) -> dict[str, Any]:
    known = [(prompt, rating.position, rating.value) for prompt, rating in ratings if rating.value is not None]
    unparsed = item_means((prompt, rating.problem is not None) for prompt, rating in ratings)
    positions = sorted({rating.position for _, rating in ratings if rating.position})
    return {
        "n": len(ratings),
        "unparsed": _dict(points_interval(unparsed)),
        "not_applicable": sum(rating.na for _, rating in ratings),
        "mean": _dict(mean_interval(item_means((prompt, value) for prompt, _, value in known))),
        "mean_at_place": {
            str(position): _dict(
                mean_interval(item_means((prompt, value) for prompt, at, value in known if at == position))
            )
            for position in positions
        },
    }


def with_people(
    items: Sequence[Judged], people: Sequence[Judged], families: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """How a judge's verdicts go with people's on the same pairs: item by item, and, apart from that, model by model.

    Of several people the majority counts; how well they agree with one another stands beside it. `families` are as in
    `of_judged`.
    """
    labelled = {item.item: item.comparison for item in people}
    both = [(item, labelled[item.item]) for item in items if item.item in labelled]
    verdicts = [(item.comparison.verdict, label.verdict) for item, label in both]
    known = [(judge, person) for judge, person in verdicts if judge is not None and person is not None]
    by_source: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for item, label in both:
        by_source[item.source].append((item.item[0], item.comparison.verdict == label.verdict))
    each = [[item.comparison.verdict, *(member.verdict for member in label.members)] for item, label in both]
    widest = max((len(row) for row in each), default=0)
    padded: list[list[Choice | None]] = [[*row, *[None] * (widest - len(row))] for row in each]
    several = [row[1:] for row in each if len(row) == widest and None not in row[1:]]
    judges = {member.judge for item in items for member in item.comparison.members}
    own = self_preference(
        judges.pop(), [i.sampled for i, _ in both], [v for v, _ in verdicts], [t for _, t in verdicts], families,
        prompts=[i.item[0] for i, _ in both],
    ) if len(judges) == 1 else None  # fmt: skip
    return {
        "pairs": len(both),
        "accuracy": _dict(points_interval(item_means((i.item[0], i.comparison.verdict == p.verdict) for i, p in both))),
        "cohen_kappa": _dict(cohen_kappa(*zip(*known, strict=True))) if len(known) > 1 else None,
        "krippendorff_alpha": _dict(krippendorff_alpha(padded, level="nominal")) if _rated_twice(padded) else None,
        "people_fleiss_kappa": _dict(fleiss_kappa(several)) if widest > 2 and len(several) > 1 else None,
        "by_source": {source: _dict(points_interval(item_means(same))) for source, same in sorted(by_source.items())},
        "self_preference": own and {"by_judge": own.by_judge, "by_people": own.by_truth, "more": _dict(own.difference)},
        "systems": _systems(both),
    }


def _rated_twice(items: Sequence[Sequence[Choice | None]]) -> bool:
    """Whether enough is known for an agreement: two items with two verdicts each."""
    return sum(len(item) - item.count(None) > 1 for item in items) > 1


def _systems(both: Sequence[tuple[Judged, Comparison]]) -> dict[str, Any] | None:
    """Wins of each model by the judge and by people, and how the two go together: of models, never of items."""
    wins: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for item, label in both:
        judge, people = item.comparison.likelihood, label.likelihood
        if judge is not None and people is not None and item.sampled[0] != item.sampled[1]:
            wins[item.sampled[0]].append((judge, people))
            wins[item.sampled[1]].append((1 - judge, 1 - people))
    means = {name: tuple(sum(side) / len(won) for side in zip(*won, strict=True)) for name, won in sorted(wins.items())}
    if len(means) < 3:
        return None
    vary = all(len(set(side)) > 1 for side in zip(*means.values(), strict=True))
    correlations = system_correlations(*zip(*means.values(), strict=True)) if vary else None
    return {
        "models": {
            name: {"by_judge": round(judge, 4), "by_people": round(people, 4)}
            for name, (judge, people) in means.items()
        },
        **{name: _dict(getattr(correlations, name, None)) for name in ("pearson", "spearman", "kendall")},
    }


def _dict(interval: Interval | None) -> dict[str, float | int] | None:
    return None if interval is None else interval.as_dict()
