"""Demonstrations for supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rlaif.formats.write.shape import MESSAGES, ORIGIN, Fields, Shape, numbers, texts
from rlaif.formats.write.turns import completion_turn, kept, turns
from rlaif.records import Candidate, Preference, Prompt, Row


def sft_rows(items: Iterable[Preference | Row]) -> Iterator[Fields]:
    """Demonstrations: a preference gives its chosen completion, a row the last revision of each of its candidates.

    The same completion to a prompt is given once.
    """
    seen: set[str] = set()
    prompt = None  # the rows of a prompt follow one another
    for item in items:
        if item.prompt.id != prompt:
            prompt, seen = item.prompt.id, set()
        scored: list[tuple[Candidate, float | None]]
        if isinstance(item, Preference):
            scored = [(item.chosen, item.score_chosen)]
        else:
            ends = [item.last_revision(index) for index in range(len(item.candidates))]
            scored = [(Candidate(sampler=end.model, completion=end), None) for end in ends if end is not None]
        for candidate, score in scored:
            if candidate.completion.text not in seen:
                seen.add(candidate.completion.text)
                yield _sft_row(item.prompt, candidate, score)


def _sft_row(prompt: Prompt, candidate: Candidate, score: float | None) -> Fields:
    made: Fields = {
        "messages": [*turns(prompt.messages), completion_turn(candidate)],
        "prompt_id": prompt.id,
        "split": prompt.split,
        "source": prompt.source,
        "model": candidate.sampler,
        "call": candidate.completion.call,
        "score": score,
    }
    return kept(prompt, made)


SFT = Shape(
    name="sft",
    columns={"messages": MESSAGES} | ORIGIN | texts("model", "call") | numbers("score"),
    about="Demonstrations for supervised fine-tuning: conversations that end with the completion to learn.",
    columns_told="""\
`model` and `call` say which model wrote the completion, in which call; `score` is the judge's, where there is one.""",
    training="""
from trl import SFTTrainer

SFTTrainer(model="path/to/model", train_dataset=data).train()
""",
    from_preferences=lambda preferences, _: sft_rows(preferences),
    from_revised=sft_rows,
)
