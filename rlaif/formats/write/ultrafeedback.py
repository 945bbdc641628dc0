"""Rated candidates under UltraFeedback's names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rlaif.formats.judged import OVERALL
from rlaif.formats.write.shape import INTEGER, MESSAGES, NUMBER, TEXT, ColumnType, Fields, Shape, texts
from rlaif.formats.write.turns import kept, turns
from rlaif.records import Rating, Row


def ultrafeedback_rows(rows: Iterable[Row], weights: Mapping[str, float]) -> Iterator[Fields]:
    """Every candidate with every rating, under UltraFeedback's names (arXiv 2310.01377).

    As there, `fine-grained_score` is the mean of the ratings (here weighted), `overall_score` a judge's own, with
    `critique` for its words, and "N/A" says that an aspect does not apply. Departs from it in two ways: annotations are
    a list with the aspect named in each, so that one schema holds any rubric; and a rating that is unparsed is null,
    with the reason beside it.
    """
    for row in rows:
        made: Fields = {
            "source": row.prompt.source,
            "instruction": row.prompt.text,
            "prompt": turns(row.prompt.messages),
            "models": [candidate.sampler for candidate in row.candidates],
            "correct_answers": list(row.prompt.reference),
            "completions": [
                {
                    "model": candidate.sampler,
                    "response": candidate.completion.text,
                    "call": candidate.completion.call,
                    "annotations": [
                        _annotation(rating)
                        for rating in row.ratings
                        if rating.candidate == index and rating.aspect != OVERALL
                    ],
                    "fine-grained_score": row.score(index, dict(weights)),
                    **_overall(row, index),
                }
                for index, candidate in enumerate(row.candidates)
            ],
            "prompt_id": row.prompt.id,
            "split": row.prompt.split,
        }
        yield kept(row.prompt, made)


def _critique(words: str) -> str:
    """A critique without the line that holds its score, which is a column of its own."""
    critique, _, last = words.rstrip().rpartition("\n")
    return critique.rstrip() if critique and "overall score" in last.lower() else words


def _annotation(rating: Rating) -> Fields:
    return {
        "aspect": rating.aspect,
        "Rating": "N/A" if rating.na else None if rating.value is None else str(rating.value),
        "types": list(rating.types),
        "Rationale": rating.raw,
        "problem": rating.problem,
        "judge": rating.judge,
        "call": rating.call,
        "position": rating.position,
    }


def _overall(row: Row, candidate: int) -> Fields:
    """What a judge thinks of the candidate as a whole: a rating with its critique, or the score that a file states."""
    score = next((s for s in row.scores if s.candidate == candidate and s.aspect == OVERALL), None)
    rating = next((r for r in row.ratings if r.candidate == candidate and r.aspect == OVERALL), None)
    stated = score or rating
    return {
        "critique": _critique(rating.raw) if rating else None,
        "overall_score": None if stated is None or stated.value is None else float(stated.value),
        "overall_judge": stated.judge if stated else None,
        "overall_problem": stated.problem if stated else None,
    }


_ANNOTATION: dict[str, ColumnType] = texts("aspect", "Rating", "Rationale", "problem", "judge", "call") | {
    "types": [TEXT],
    "position": INTEGER,
}
_COMPLETION: dict[str, ColumnType] = texts(
    "model", "response", "call", "critique", "overall_judge", "overall_problem"
) | {"annotations": [_ANNOTATION], "fine-grained_score": NUMBER, "overall_score": NUMBER}


ULTRAFEEDBACK = Shape(
    name="ultrafeedback",
    columns=texts("source", "instruction")
    | {"prompt": MESSAGES, "models": [TEXT], "correct_answers": [TEXT], "completions": [_COMPLETION]}
    | texts("prompt_id", "split"),
    about="Prompts with several completions each, rated by a model under every aspect of a rubric.",
    columns_told="""\
`fine-grained_score` is the weighted mean of the ratings, on the rubric's own scale, `overall_score` a judge's own score
of the whole where one was asked for. A `Rating` of `N/A` means that the aspect does not apply; where it is null the
judge's words could not be read as a rating, `problem` says why, and `Rationale` keeps the words.""",
    from_rows=ultrafeedback_rows,
)
