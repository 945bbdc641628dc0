"""SFT data from completions: which ones of a prompt are kept, and why the others are not.

A completion that is empty or was not ended by its model is never kept: it would teach an end where there was none. Of
equal texts one is kept, and of equal scores those that a hash of prompt and call puts first, whoever sampled them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from rlaif.config import Keep
from rlaif.records import Row, unit_interval

UNENDED = {"length": "cut at max_tokens", "content_filter": "content filter"}
NONE = "no candidate left"  # checks before it removed them all
ALL = Keep.model_construct()


class Choice(NamedTuple):
    """The candidates of a row that are kept, in their order, and the number of the others by reason."""

    kept: tuple[int, ...]
    left_out: Mapping[str, int]
    reason: str | None  # why none is kept


def choose(
    row: Row, unfit: Mapping[int, str] | None = None, scores: Mapping[int, float] | None = None, keep: Keep = ALL
) -> Choice:
    """Choose among a row's candidates. `unfit` are not to be kept, with the reason.

    With `scores`, a candidate without one is unparsed; `keep` says how good those are that are kept.
    """
    best, least = keep.best, keep.at_least
    tests: tuple[Callable[[int], str | None], ...] = (
        lambda index: UNENDED.get(row.candidates[index].completion.finish_reason),  # such as what a filter took
        lambda index: None if row.candidates[index].completion.text.strip() else "empty completion",
        (unfit or {}).get,
        lambda index: None if scores is None or index in scores else "unparsed",
        lambda index: None if scores is None or least is None or scores[index] >= least else f"below {least:g}",
    )
    left, left_out, reason = list(range(len(row.candidates))), Counter[str](), NONE
    for test in tests:
        problems = {index: problem for index in left if (problem := test(index)) is not None}
        left_out.update(problems.values())
        left = [index for index in left if index not in problems]
        if problems:
            reason = min(problems.values())
        if not left:
            return Choice((), left_out, reason)
    kept: dict[str, int] = {}
    for index in sorted(left, key=lambda index: (-scores[index] if scores else 0.0, _draw(row, index))):
        text = row.candidates[index].completion.text
        if text in kept:
            left_out["identical text"] += 1
        elif best is not None and len(kept) == best:
            left_out["not the best" if best == 1 else f"not among the best {best}"] += 1
        else:
            kept[text] = index
    return Choice(tuple(sorted(kept.values())), left_out, None)


def _draw(row: Row, index: int) -> float:
    completion = row.candidates[index].completion
    return unit_interval("keep", row.prompt.id, completion.call, completion.text)
