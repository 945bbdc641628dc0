"""Single completions with a judge's ratings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rlaif.formats.write.shape import MESSAGES, NUMBER, ORIGIN, TEXT, ColumnType, Fields, Shape, numbers, texts
from rlaif.formats.write.turns import completion_turn, kept, turns
from rlaif.records import NA, Rating, Row, Score, weighted_mean


def rated_rows(rows: Iterable[Row], weights: Mapping[str, float]) -> Iterator[Fields]:
    """Each rated completion with its ratings, and their mean weighted by aspect.

    A score under one of the aspects, such as an expected rating, counts as a rating.
    """
    for row in rows:
        scores = [score for score in row.scores if score.aspect in weights]
        judged: list[Rating | Score] = [*row.ratings, *scores]
        for index, candidate in enumerate(row.candidates):
            ratings = [_rating(given) for given in judged if given.candidate == index]
            if not ratings:
                continue
            made: Fields = {
                "prompt": turns(row.prompt.messages),
                "completion": [completion_turn(candidate)],
                "score": weighted_mean({r["aspect"]: NA if r["na"] else r["rating"] for r in ratings}, weights),
                "ratings": ratings,
                "prompt_id": row.prompt.id,
                "split": row.prompt.split,
                "source": row.prompt.source,
                "model": candidate.sampler,
                "call": candidate.completion.call,
                "finish_reason": candidate.completion.finish_reason,
            }
            yield kept(row.prompt, made)


def _rating(given: Rating | Score) -> Fields:
    return {
        "aspect": given.aspect,
        "rating": given.value,
        "rationale": given.raw if isinstance(given, Rating) else None,
        "na": isinstance(given, Rating) and given.na,
        "problem": given.problem,
        "judge": given.judge,
        "call": next(iter(given.paid_calls()), None),
    }


_RATING: ColumnType = texts("aspect", "rationale", "problem", "judge", "call") | {"rating": NUMBER, "na": "bool"}

RATED = Shape(
    name="rated",
    columns={"prompt": MESSAGES, "completion": MESSAGES}
    | numbers("score")
    | {"ratings": [_RATING]}
    | ORIGIN
    | {"model": TEXT, "call": TEXT, "finish_reason": TEXT},
    about="Single completions, each rated by a model under every aspect of a rubric.",
    columns_told="""\
`score` is the weighted mean of the ratings, on the rubric's own scale. A `rating` is null where the aspect does not
apply (`na`), or where the judge's words could not be read: then `problem` says why, and `rationale` keeps the words.
`model` and `call` say which model wrote the completion, in which call; `finish_reason` is `length` where it was cut at
max_tokens.""",
    from_rows=rated_rows,
)
