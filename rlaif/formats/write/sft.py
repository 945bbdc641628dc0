"""Demonstrations for supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rlaif.formats.write.shape import MESSAGES, ORIGIN, Fields, Shape, numbers, texts
from rlaif.formats.write.turns import completion_turn, kept, turns
from rlaif.records import Kept, Preference


def sft_rows(items: Iterable[Preference | Kept]) -> Iterator[Fields]:
    """Demonstrations; a preference gives its chosen completion. The same completion to a prompt is given once."""
    seen: set[str] = set()
    prompt = None  # the rows of a prompt follow one another
    for item in items:
        if item.prompt.id != prompt:
            prompt, seen = item.prompt.id, set()
        one = item.learnt if isinstance(item, Preference) else item
        if one.candidate.completion.text not in seen:
            seen.add(one.candidate.completion.text)
            yield _sft_row(one)


def _sft_row(of: Kept) -> Fields:
    made: Fields = {
        "messages": [*turns(of.prompt.messages), completion_turn(of.candidate)],
        "prompt_id": of.prompt.id,
        "split": of.prompt.split,
        "source": of.prompt.source,
        "model": of.candidate.sampler,
        "call": of.candidate.completion.call,
        "score": of.score,
    }
    return kept(of.prompt, made)


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
)
