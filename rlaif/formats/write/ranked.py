"""Every candidate with its rank and its score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rlaif.formats.write.shape import INTEGER, MESSAGES, NUMBER, ORIGIN, Fields, Shape, texts
from rlaif.formats.write.turns import kept, turns
from rlaif.records import Row


def ranked_rows(rows: Iterable[Row], weights: Mapping[str, float]) -> Iterator[Fields]:
    """Every candidate with its rank, 1 for the best and equal for a tie, and its score.

    The rank is that of the first ranking, else of the scores; the score is of the ratings where there are `weights` for
    them, else the first judge's.
    """
    for row in rows:
        scores = [_score(row, index, weights) for index in range(len(row.candidates))]
        ranks = _ranks(row, scores)
        made: Fields = {
            "prompt": turns(row.prompt.messages),
            "completions": [
                {
                    "text": candidate.completion.text,
                    "model": candidate.sampler,
                    "call": candidate.completion.call,
                    "rank": rank,
                    "score": score,
                }
                for candidate, rank, score in zip(row.candidates, ranks, scores, strict=True)
            ],
            "prompt_id": row.prompt.id,
            "split": row.prompt.split,
            "source": row.prompt.source,
        }
        yield kept(row.prompt, made)


def _score(row: Row, candidate: int, weights: Mapping[str, float]) -> float | None:
    if weights and row.ratings:
        return row.score(candidate, dict(weights))
    judges = {(score.judge, score.aspect): None for score in row.scores}
    first = next(iter(judges), None)
    return next((s.value for s in row.scores if s.candidate == candidate and (s.judge, s.aspect) == first), None)


def _ranks(row: Row, scores: Sequence[float | None]) -> list[int | None]:
    """The rank of each candidate; all None where there is no ranking and a score is missing."""
    order = next((ranking.order for ranking in row.rankings if ranking.order is not None), None)
    if order is not None:
        places = {index: 1 + sum(map(len, order[:tier])) for tier, tied in enumerate(order) for index in tied}
        return [places.get(index) for index in range(len(scores))]
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return [None] * len(scores)
    return [1 + sum(other > score for other in known) for score in known]


RANKED = Shape(
    name="ranked",
    columns={
        "prompt": MESSAGES,
        "completions": [texts("text", "model", "call") | {"rank": INTEGER, "score": NUMBER}],
    }
    | ORIGIN,
    about="Prompts with several completions each, ranked and scored by a model.",
    columns_told="""\
Of a completion `rank` is 1 for the best, equal for a tie and null where the judge's words could not be read; `score` is
the judge's, on its own scale; `model` and `call` say which model wrote it, in which call.""",
    from_rows=ranked_rows,
)
