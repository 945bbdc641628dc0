"""How rows are printed for a person: the first ones in brief, or one row with everything made from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.padding import Padding

from rlaif.cli.tables import Column, table
from rlaif.cli.terminal import brief
from rlaif.screen import Console, Text, line
from rlaif.visible import visible

if TYPE_CHECKING:
    from rlaif.pipeline.browse import Shown
    from rlaif.records import (
        Candidate,
        Comparison,
        Completion,
        Preference,
        Ranking,
        Rating,
        Record,
        Revision,
        Row,
        Score,
    )

# The fields of a row with a print function of their own. `_other_records` prints every other tuple of records.
KNOWN = frozenset({"candidates", "ratings", "scores", "revisions", "comparisons", "rankings"})


def print_rows(console: Console, rows: Sequence[Shown], others: int) -> None:
    """The first rows in brief, and that there are `others`."""
    if not rows:
        console.print("no row", style="dim")
        return
    cells = [
        (str(number), row.prompt.id, str(len(row.candidates)), ", ".join(why), brief(row.prompt.text, 200))
        for number, _, row, why in rows
    ]
    headings = (Column("row"), Column("prompt id"), Column("candidates"), Column("no data", text=True))
    console.print(table((*headings, Column("prompt", text=True)), cells, console.width))
    if others:
        text = f"the first {len(rows)} of {len(rows) + others:,} rows; `rlaif show RUN ROW` shows any one"
        console.print(
            f"\n{text}, and --search TEXT, --dropped, --tied and --unparsed choose", style="dim", highlight=False
        )


def print_row(console: Console, row: Row, preferences: Sequence[tuple[str, Preference]]) -> None:
    source = ", ".join(filter(None, (row.prompt.split, row.prompt.source)))
    console.print(line((f"prompt {row.prompt.id}", "bold"), (f"  {source}", "dim")))
    console.print(Text(row.prompt.text))
    for index, candidate in enumerate(row.candidates):
        _print_candidate(console, index, candidate, [preference for _, preference in preferences])
        for rating in (one for one in row.ratings if one.candidate == index):
            _print_rating(console, rating)
        for score in (one for one in row.scores if one.candidate == index):
            _print_score(console, score)
        for revision in (one for one in row.revisions if one.candidate == index):
            _print_revision(console, revision)
        if any(one.candidate == index for one in row.revisions):
            _inset(console, line(_end_of_chain(row, index), style="dim"))
    for comparison in row.comparisons:
        _print_comparison(console, comparison)
    for ranking in row.rankings:
        _print_ranking(console, ranking)
    for text in _other_records(row):
        console.print(text)
    if row.failure or row.dropped:
        why = f"failed: {row.failure}" if row.failure else f"dropped: {row.dropped}"
        console.print(Text(f"\n{why}", style="yellow"))
    places = {candidate.completion.call: position for position, candidate in enumerate(row.candidates, start=1)}
    several = len({stage for stage, _ in preferences}) > 1
    for stage, preference in preferences:
        better, worse = (places.get(c.completion.call, "?") for c in (preference.chosen, preference.rejected))
        made = f"{stage}, {preference.rule}" if several else preference.rule
        made += f": [{better}] preferred to [{worse}], margin {preference.margin:.2f}"
        console.print()
        console.print(line(made, style="dim"))


def _print_candidate(console: Console, index: int, candidate: Candidate, preferences: Sequence[Preference]) -> None:
    completion = candidate.completion
    chosen = any(preference.chosen.completion.call == completion.call for preference in preferences)
    rejected = any(preference.rejected.completion.call == completion.call for preference in preferences)
    role = " and ".join(name for name, holds in (("chosen", chosen), ("rejected", rejected)) if holds)
    style = {"chosen": "green", "rejected": "red"}.get(role, "")
    under = f", under the principle {candidate.principle}" if candidate.principle else ""
    origin = f"  {completion.finish_reason}, call {completion.call[:12]}{under}"
    console.print()
    console.print(line((f"[{index + 1}] {candidate.sampler} ", "bold"), (role, style), (origin, "dim")))
    _print_thinking(console, completion)
    console.print(Text(completion.text, style=style))


def _print_thinking(console: Console, completion: Completion) -> None:
    if completion.thinking is not None:
        _inset(console, line("it thought:", style="dim"))
        console.print(Text(completion.thinking, style="dim"))


def _inset(console: Console, text: Text, columns: int = 4) -> None:
    """Print text that keeps its distance from the left on every line that it takes."""
    console.print(Padding(text, (0, 0, 0, columns), expand=False))


def _print_rating(console: Console, rating: Rating) -> None:
    value = f"unparsed, {rating.problem}" if rating.problem else "N/A" if rating.na else str(rating.value)
    value += f" ({', '.join(rating.types)})" if rating.types else ""
    words = f"   {rating.judge}, place {rating.position}: {brief(rating.raw, 160)}" if rating.raw else ""
    _inset(console, line(f"{rating.aspect} {value}", (words, "dim")))


def _print_score(console: Console, score: Score) -> None:
    value = f"none, {score.problem}" if score.value is None else f"{score.value:g}"
    _inset(console, line(f"{score.aspect or 'score'} {value}", (f"   {score.judge}", "dim")))


def _print_revision(console: Console, revision: Revision) -> None:
    heading = f"revision {revision.number} under {revision.principle}"
    _inset(console, line((heading, "bold"), (f"  {revision.critique.model}", "dim")))
    _print_thinking(console, revision.critique)
    _inset(console, Text(f"critique  {revision.critique.text}", style="dim"), 6)
    if revision.completion is not None:
        _print_thinking(console, revision.completion)
        _inset(console, Text(f"revised   {revision.completion.text}"), 6)
    if revision.problem is not None:
        _inset(console, line(f"not used: {revision.problem}", style="yellow"), 6)
    if revision.found_nothing:
        _inset(console, line("nothing to mend: no revision was asked for", style="dim"), 6)


def _end_of_chain(row: Row, index: int) -> str:
    """What a candidate's chain came to."""
    from rlaif.generate.revising import ends

    end, last = ends(row)[index], row.last_revision(index)
    numbers = (one.number for one in row.revisions if one.candidate == index and one.completion == last)
    if end.kept is None or last is None:
        return f"no revision is left: {end.why}"
    seen = [what for what, holds in (("unchanged", end.unchanged), ("a refusal", end.refusal)) if holds]
    number = next(numbers, None)
    came = "the completion itself is left" if number is None else f"revision {number} is left"
    return ", ".join((came, *seen))


def _print_comparison(console: Console, comparison: Comparison, *, juror: bool = False) -> None:
    places = {"A": comparison.a + 1, "B": comparison.b + 1}
    verdict = comparison.verdict or "unparsed"
    outcome = f"[{places[verdict]}] preferred" if verdict in places else verdict
    if comparison.probability is not None:
        outcome += f", [{places['A']}] is better with probability {comparison.probability:.2f}"
    if comparison.disagrees:
        outcome += ", the two orders disagree"
    if not juror:
        console.print()
    under = (f"compared under {comparison.principle}: ", "bold")
    heading = ("  a member of the jury: ", "dim") if juror else under
    console.print(line(heading, outcome, (f"  {comparison.judge}", "dim")))
    for member in comparison.jury:
        _print_comparison(console, member, juror=True)
    for order in comparison.orders:
        if not order.raw and order.problem is None:  # of a file's own judgement nobody said a word
            continue
        words = f"said '{brief(order.raw, 40)}'" if order.problem is None else order.problem
        chance = "" if order.probability is None else f", first with probability {order.probability:.2f}"
        _inset(console, line(f"[{order.a + 1}] before [{order.b + 1}]: {words}{chance}", style="dim"))
        for reason in visible(order.reasons or "").split("\n"):
            _inset(console, Text(brief(reason, 160), style="dim"), 6)


def _print_ranking(console: Console, ranking: Ranking) -> None:
    order = ranking.problem
    if ranking.order is not None:
        order = " > ".join(" = ".join(f"[{index + 1}]" for index in tied) for tied in ranking.order)
    shown = " ".join(f"[{index + 1}]" for index in ranking.shown)
    heading = (f"ranked under {ranking.principle or ''}: ", "bold")
    console.print()
    console.print(line(heading, f"{order}", (f"  {ranking.judge}, read in the order {shown}", "dim")))


def _other_records(row: Row) -> Iterator[Text]:
    """Records without a print function of their own: the field's name, then one line for each record."""
    for name in type(row).model_fields:
        records = getattr(row, name)
        if name in KNOWN or not isinstance(records, tuple) or not records:
            continue
        yield Text(f"\n{name.replace('_', ' ')}", style="bold")
        for record in records:
            yield Text(f"    {brief(_compact(record), 240)}")


def _compact(record: Record | object) -> str:
    """A record in one line: each field whose value is not the default."""
    if not hasattr(record, "model_dump"):
        return str(record)
    return ", ".join(f"{field} {value}" for field, value in record.model_dump(exclude_defaults=True).items())
