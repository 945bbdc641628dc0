"""Calls, tokens and cost of a run, by stage and model, and a budget that is never exceeded.

Before a request is sent, its maximum cost is reserved; afterwards its actual cost is booked. Spent, in flight and the
next request together never exceed the budget.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Protocol

from rlaif.errors import Stopped
from rlaif.records import Usage


class Price(Protocol):
    """Currency units per million tokens."""

    @property
    def prompt(self) -> float: ...
    @property
    def completion(self) -> float: ...


@dataclass
class Tally:
    """Counts of one model. Tokens of discarded completions are included."""

    sent: int = 0  # calls paid for in this run
    discarded: int = 0  # of those sent: probes and unusable replies, such as empty completions
    cached: int = 0  # calls answered from the store
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0  # of stored completions, each counted once
    cached_completion_tokens: int = 0
    cut: int = 0  # completions truncated at max_tokens
    causes: Counter[str] = field(default_factory=Counter)  # of `failed`
    retries: Counter[str] = field(default_factory=Counter)  # requests sent again, by cause

    def pay(self, usage: Usage, *, discarded: bool = False) -> None:
        self.sent += 1
        self.discarded += discarded
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens

    def add(self, other: Tally) -> None:
        for each in fields(self):
            value = getattr(other, each.name)
            if isinstance(value, Counter):
                getattr(self, each.name).update(value)
            else:
                setattr(self, each.name, getattr(self, each.name) + value)


class Ledger:
    """The tallies of a run. `prices` are per million tokens, of the models that have one."""

    def __init__(self, prices: Mapping[str, Price] | None = None, budget: float | None = None) -> None:
        self._prices, self._budget, self._before = dict(prices or {}), budget, 0.0
        self._tallies: dict[tuple[str, str], Tally] = {}  # by stage and model
        self._reserved = self._unknown = 0.0
        self._under_way = 0  # open reservations; `_reserved` is reset at 0, since float sums do not return to zero
        self._settled = asyncio.Event()

    def tally(self, model: str, stage: str) -> Tally:
        """The count of a model in a stage."""
        tally = self._tallies.get((stage, model))
        if tally is None:
            tally = self._tallies[stage, model] = Tally()
        return tally

    def by_model(self, stage: str | None = None) -> dict[str, Tally]:
        """The models' counts over all stages, or in one."""
        totals: dict[str, Tally] = {}
        for (of, model), tally in self._tallies.items():
            if stage in (None, of):
                totals.setdefault(model, Tally()).add(tally)
        return totals

    # ------------------------------------------------------------ money

    def cost(self, model: str, prompt_tokens: int, completion_tokens: int) -> float | None:
        """The cost of these tokens; None for a model without a price."""
        price = self._prices.get(model)
        if price is None:
            return None
        return (prompt_tokens * price.prompt + completion_tokens * price.completion) / 1e6

    def before(self, spent: float) -> None:
        """Add what earlier executions of the run cost: they share its budget."""
        self._before = spent

    @property
    def spent(self) -> float:
        """The run's cost so far, as far as prices are known, with the maximum cost of replies that were lost."""
        paid = (
            self.cost(model, tally.prompt_tokens, tally.completion_tokens) or 0.0
            for (_, model), tally in self._tallies.items()
        )
        return self._before + self._unknown + sum(paid)

    def _settle(self, amount: float, lost: bool) -> None:
        self._under_way -= 1
        self._reserved = self._reserved - amount if self._under_way else 0.0
        if lost:
            self._unknown += amount
        self._settled.set()

    async def reserve(self, model: str, prompt_tokens: int, completion_tokens: int) -> Reservation:
        """Reserve the maximum cost of a request, waiting while requests in flight hold too much.

        Raises Stopped when the rest of the budget is too small.
        """
        amount = self.cost(model, prompt_tokens, completion_tokens) or 0.0
        if self._budget is None or not amount:
            return Reservation()
        while self.spent + self._reserved + amount > self._budget:
            if not self._under_way:
                raise Stopped(
                    f"the budget of {self._budget:g} leaves no room for another call of {model!r}: "
                    f"{self.spent:.4f} is spent, and it may cost {amount:.4f}",
                    cause="budget",
                    fix="raise `budget`, then run the same command again: nothing is paid for twice",
                )
            self._settled.clear()
            await self._settled.wait()
        self._reserved += amount
        self._under_way += 1
        return Reservation(partial(self._settle, amount))


class Reservation:
    """Held while a request is in flight. `lost`: a reply may have been paid for and did not arrive."""

    def __init__(self, settle: Callable[[bool], None] | None = None) -> None:
        self._settle, self.lost = settle, False

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        if self._settle is not None:
            self._settle(self.lost)
