"""Puts gold pairs and probes to a judge, so many at a time, and says what a judge falls short of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from rlaif.audits.figures import Decide, figures, probe, rule
from rlaif.audits.goldset import WORLD, GoldPair, of_world, read_gold
from rlaif.audits.probes import Probe
from rlaif.config import Require
from rlaif.errors import InputError, Stopped
from rlaif.records import hashed_order
from rlaif.resources import find

WORLD_PAIRS = 240
IN_FLIGHT = 64  # pairs asked at a time: enough to fill a server's slots, and few enough to stop soon

Result = TypeVar("Result")


def gold_pairs(gold: str | None, take: int | None) -> list[GoldPair]:
    """The pairs of a file, those that ship, or those of the embedded world; `take` draws so many by hash, the
    categories by turns. Raises InputError."""
    if gold == WORLD:
        try:
            return of_world(take or WORLD_PAIRS, seed=0)
        except ValueError as error:
            raise InputError(str(error), key="take", fix="take fewer") from None
    pairs = read_gold(None if gold is None else find(gold))
    if take is None or take >= len(pairs):
        return pairs
    by_category: dict[str, list[GoldPair]] = {}
    for index in hashed_order([pair.id for pair in pairs], "gold"):
        by_category.setdefault(pairs[index].category, []).append(pairs[index])
    turns = [(turn, category, pair) for category, group in by_category.items() for turn, pair in enumerate(group)]
    return [pair for _, _, pair in sorted(turns, key=lambda one: one[:2])[:take]]


async def audit(
    pairs: Sequence[GoldPair],
    decide: Decide,
    probes: Sequence[Probe] = (),
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The figures of a judge on gold pairs, and on probes made of them. Raises EngineError."""
    rulings = await _each([rule(pair, decide) for pair in pairs], advance)
    ruled = {ruling.pair.id: ruling for ruling in rulings}
    probed = await _each([probe(one, ruled[one.pair], decide) for one in probes], advance)
    return figures(rulings, probed)


async def _each(work: Sequence[Coroutine[Any, Any, Result]], advance: Callable[[], None]) -> list[Result]:
    """The results in order, a bounded number in flight. The first error ends them all: what concerns one pair alone was
    caught before. Once a call is not sent, the others still say what they need: it may be collected."""
    slots, stopped = asyncio.Semaphore(IN_FLIGHT), list[Stopped]()
    results: dict[int, Result] = {}

    async def one(number: int, item: Coroutine[Any, Any, Result]) -> None:
        try:
            async with slots:
                results[number] = await item
        except Stopped as error:
            stopped.append(error)
        advance()

    tasks = [asyncio.create_task(one(number, item)) for number, item in enumerate(work)]
    try:
        await asyncio.gather(*tasks)
        if stopped:
            raise stopped[0]
        return [results[number] for number in range(len(work))]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for item in work:
            item.close()


def unmet(require: Require, figures: Mapping[str, Any]) -> list[str]:
    """What a judge falls short of, in sentences; empty where it may be trusted with the work.

    A figure itself is held against the bound, not an end of its interval: the bound is what the user asked for.
    """
    measured = {
        "agreement": figures["agreement"]["both_orders"],
        "position_consistency": figures["position"]["consistency"],
    }
    short = []
    for name, bound in (("agreement", require.agreement), ("position_consistency", require.position_consistency)):
        share = measured[name]
        if share is None and name == "position_consistency" and figures["verdicts"]["n"]:
            continue  # it reads one completion at a time, and knows no order
        if bound is not None and (share is None or share["mean"] < bound):
            has = "nothing to say of it" if share is None else f"{share['mean']:.2f} on {share['n']} pairs"
            if name == "agreement" and (example := figures["verdicts"].get("failed_example")):
                has += f", where calls failed ({example})"
            short.append(f"{name.replace('_', ' ')} {has}, {bound:g} required")
    unparsed = figures["agreement"]["unparsed_share"]  # calls that failed among them
    if require.unparsed is not None and unparsed["mean"] > require.unparsed:
        short.append(
            f"unparsed {unparsed['mean']:.2f} of {unparsed['n']} verdicts, at most {require.unparsed:g} allowed"
        )
    return short
