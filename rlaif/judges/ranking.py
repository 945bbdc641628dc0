"""Ranking: all candidates of a prompt in one judge prompt, put in order under a drawn principle.

K-wise, after InstructGPT (arXiv 2203.02155, section 3.4: 4 to 9 completions of a prompt ranked at once). The judge
reads the candidates in an order drawn by hash and in its reverse, so that position bias cancels. Both rankings are
kept, and `pair` takes the mean rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rlaif.config import RankStage
from rlaif.constitution import Principle
from rlaif.engines.asking import Asker, together
from rlaif.judges.comparing import Comparer
from rlaif.judges.fences import fence_mark
from rlaif.judges.rating import first_readable, indices_by_text, numbered
from rlaif.judges.replies import read_ranking, read_reply, unusable
from rlaif.records import Completion, Message, Ranking, Row, hashed_order, writable

OFFERED = {"principle", "prompt", "completions", "answers", "scale", "mark", "n"}
REQUIRED = {"principle", "prompt", "completions"}

Slots = tuple[tuple[int, ...], ...]  # for each number, from 1, the candidates that have its text


class RankingPrompt(NamedTuple):
    """One judge prompt, and the candidates at each of its numbers."""

    messages: tuple[Message, ...]
    slots: Slots


async def rank(row: Row, stage: RankStage, ranker: Comparer, asker: Asker) -> Row:
    """`row` with rankings of its candidates; none where no two differ. Raises EngineError."""
    slots = shown_at(row)
    if len(slots) < 2:
        return row
    principle = ranker.constitution.draw("compare", row.prompt.id, request="comparison")
    orders = [slots, slots[::-1]] if stage.orders == "both" else [slots]
    prompts = [ranking_prompt(row, order, principle, stage, ranker) for order in orders]
    asker = asker.under(principle.id)
    rankings = await together(*(_ask(shown, principle, stage, asker) for shown in prompts))
    return row.model_copy(update={"rankings": tuple(rankings)})


def shown_at(row: Row) -> Slots:
    """The candidates that are not empty, identical texts together, in an order drawn by hash."""
    by_text = indices_by_text(row.candidates)
    texts = list(by_text)
    return tuple(tuple(by_text[texts[position]]) for position in hashed_order(texts, "rank", row.prompt.id))


def ranking_prompt(row: Row, slots: Slots, principle: Principle, stage: RankStage, ranker: Comparer) -> RankingPrompt:
    """The judge prompt that shows the candidates in the order of `slots`."""
    shown = [row.candidates[same[0]].completion.text for same in slots]
    rendered = ranker.template.render_showing(
        {"the prompt": row.prompt.text, "the principle's comparison": principle.comparison, **numbered(shown)},
        principle=principle,
        prompt=row.prompt.text,
        completions=shown,
        answers=stage.answers,
        scale={"low": stage.scale[0], "high": stage.scale[1]},
        mark=fence_mark(row.prompt.text, *sorted(shown)),
        n=len(shown),
    )
    return RankingPrompt((*ranker.constitution.before("comparison"), Message(role="user", content=rendered)), slots)


async def _ask(shown: RankingPrompt, principle: Principle, stage: RankStage, asker: Asker) -> Ranking:
    """The first readable ranking of the first reply and the re-asks; the first one when none is readable."""

    async def once(asker: Asker, attempt: int) -> Ranking:
        reply = await asker.one(shown.messages, attempt=attempt)
        return _bound(reply, shown.slots, principle, stage)

    return await first_readable(once, asker, stage.reask + 1)


def _bound(reply: Completion, slots: Slots, principle: Principle, stage: RankStage) -> Ranking:
    """The reply's ranking, its numbers replaced by candidates."""
    order, problem = _read(reply, len(slots), stage)
    return Ranking(
        order=None if order is None else tuple(tuple(sorted(i for k in tied for i in slots[k - 1])) for tied in order),
        shown=tuple(i for same in slots for i in same),
        judge=stage.model,
        principle=principle.id,
        raw=writable(reply.text),
        problem=problem,
        calls=(reply.call,),
    )


def _read(reply: Completion, n: int, stage: RankStage) -> tuple[Sequence[Sequence[int]] | None, str | None]:
    """Groups of tied numbers, best first; or the problem."""
    if problem := unusable("ranking", reply):
        return None, problem
    if stage.answers == "ranking":
        return read_ranking(reply.text, n)
    readings = read_reply(reply.text, n, *stage.scale, stage.answers)
    if wrong := next((reading.problem for reading in readings if reading.problem), None):
        return None, wrong
    values = {number: reading.value for number, reading in enumerate(readings, start=1) if reading.value is not None}
    levels = sorted(set(values.values()), reverse=True)
    return [[number for number, value in values.items() if value == level] for level in levels], None
