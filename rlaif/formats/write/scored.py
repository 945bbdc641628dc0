"""A reward model's scores of stated preferences, under the names of RewardBench's results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rlaif.formats.write.shape import INTEGER, Fields, Shape, numbers, texts
from rlaif.formats.write.turns import kept, transcript
from rlaif.records import Row


def scored_rows(rows: Iterable[Row], weights: Mapping[str, float]) -> Iterator[Fields]:
    """Each two candidates of which one was stated to be the better, with the scores that the last judge gave them.

    `results` is 1 where the chosen one scores higher and 0 otherwise, a tie included, as RewardBench counts
    (arXiv 2403.13787, section 4.1). A pair without both scores is left out.
    """
    number = 0
    for row in rows:
        messages = row.prompt.messages
        alone = len(messages) == 1 and messages[0].role == "user"
        scores = _scores(row)
        for comparison in row.comparisons:
            if comparison.verdict not in ("A", "B"):
                continue
            places = (comparison.a, comparison.b) if comparison.verdict == "A" else (comparison.b, comparison.a)
            if not scores.keys() >= {*places}:
                continue
            number += 1
            chosen, rejected = (row.candidates[place] for place in places)
            made: Fields = {
                "prompt": messages[0].content if alone else transcript(messages) + "\n\nAssistant:",
                "chosen": chosen.completion.text,
                "chosen_model": chosen.sampler,
                "rejected": rejected.completion.text,
                "rejected_model": rejected.sampler,
                "subset": row.prompt.source or "",
                "id": number,
                "scores_chosen": scores[places[0]],
                "scores_rejected": scores[places[1]],
                "results": float(scores[places[0]] > scores[places[1]]),
                "prompt_id": row.prompt.id,
            }
            yield kept(row.prompt, made)


def _scores(row: Row) -> dict[int, float]:
    """The scores of the judge that came last: a file's own come before those of a stage."""
    judge = row.scores[-1].judge if row.scores else None
    return {one.candidate: one.value for one in row.scores if one.judge == judge and one.value is not None}


SCORED = Shape(
    name="rewardbench-scores",
    columns=texts("prompt", "chosen", "chosen_model", "rejected", "rejected_model", "subset")
    | {"id": INTEGER}
    | numbers("scores_chosen", "scores_rejected", "results")
    | texts("prompt_id"),
    about="A reward model's scores of preferences that a file states, under the names of RewardBench's results.",
    columns_told="""\
`results` is 1 where the chosen completion scores higher, else 0: its mean over a `subset` is RewardBench's figure.""",
    from_rows=scored_rows,
)
