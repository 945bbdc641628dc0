"""What of a run's replies was read, and what became of the rest? One line of a table for each stage.

    python benchmarks/real/readable.py RUN

A completion counts as read if its candidate can be judged: ended, and not empty. A verdict is one order of a
comparison, after its re-asks. A reply that rates several candidates counts once, and as read if every rating in it is.
A chain of revisions counts once; its critique and its revision must be usable. The share has Wilson's 95 % interval.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import rlaif
from rlaif.records import Row
from rlaif.statistics import share_interval

MOST_CAUSES = 6  # of a stage; the others are counted together


def completions(row: Row) -> Iterator[str | None]:
    for candidate in row.candidates:
        if candidate.completion.finish_reason != "stop":
            yield {"length": "cut at max_tokens", "content_filter": "filtered"}[candidate.completion.finish_reason]
        else:
            yield None if candidate.completion.text.strip() else "empty"


def verdicts(row: Row) -> Iterator[str | None]:
    for comparison in row.comparisons:
        yield from (order.problem for order in comparison.orders)


def ratings(row: Row) -> Iterator[str | None]:
    replies: dict[str, list[str | None]] = {}
    for rating in row.ratings:
        replies.setdefault(rating.call, []).append(rating.problem)
    for problems in replies.values():
        yield next(filter(None, problems), None)


def rankings(row: Row) -> Iterator[str | None]:
    yield from (ranking.problem for ranking in row.rankings)


def scores(row: Row) -> Iterator[str | None]:
    yield from (score.problem for score in row.scores)


def revisions(row: Row) -> Iterator[str | None]:
    yield from (revision.problem for revision in row.revisions)


READ = {
    "sample": completions,
    "compare": verdicts,
    "rate": ratings,
    "rank": rankings,
    "score": scores,
    "revise": revisions,
}  # by the kind of stage: of each reply, why it was not read, or None


def kind_of(problem: str) -> str:
    """A cause without what differs from reply to reply."""
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'|\"[^\"]*\"", "...", problem))


def line(run: Any, stage: dict[str, Any]) -> str:
    rows = list(run.rows_of(stage["name"]))
    read = READ[stage["kind"]]
    if stage["kind"] == "rate" and any(row.scores for row in rows):  # `answers: expected`
        read = scores
    problems = [problem for row in rows for problem in read(row)]
    share = share_interval([problem is None for problem in problems])
    causes = Counter(kind_of(problem) for problem in problems if problem is not None)
    causes["the row failed"] = sum(row.failure is not None for row in rows)
    told = [f"{count} {cause}" for cause, count in causes.most_common(MOST_CAUSES) if count]
    if others := sum(count for _, count in causes.most_common()[MOST_CAUSES:]):
        told.append(f"{others} of other causes")
    figure = f"{share.mean:.0%} [{share.low:.0%}, {share.high:.0%}]".replace("%", "") if share else "-"
    return f"| `{stage['name']}` | {len(problems)} | {figure} | {'; '.join(told) or 'none'} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = rlaif.load(parser.parse_args(arguments).run)
    print("| stage | replies | read, % | the others |\n|---|---|---|---|")
    for stage in run.manifest["stages"]:
        if stage["kind"] in READ:
            print(line(run, stage))
    for model, calls in run.manifest["calls"].items():
        print(f"\n{model}: {calls['sent'] + calls['cached']:,} calls, {calls['failed']} failed")


if __name__ == "__main__":
    main()
