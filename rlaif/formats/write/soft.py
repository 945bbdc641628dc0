"""Pairs with the probability that a judge gave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from rlaif.formats.write.held import by_prompt
from rlaif.formats.write.shape import MESSAGES, NUMBER, PREFERENCE_TRAINING, TEXT, Fields, Shape
from rlaif.formats.write.turns import completion_turn, turns
from rlaif.records import Preference


def soft_rows(preferences: Iterable[Preference], dropped: Counter[str]) -> Iterator[Fields]:
    """Pairs with the probability that chosen is the better one, for losses that weigh by it."""

    def made(preference: Preference, _: int) -> Fields | None:
        if preference.probability is None:
            return None
        return {
            "prompt": turns(preference.prompt.messages),
            "chosen": [completion_turn(preference.chosen)],
            "rejected": [completion_turn(preference.rejected)],
            "probability": preference.probability,
            "prompt_id": preference.prompt.id,
        }

    return by_prompt(preferences, dropped, "no probability", made)


SOFT = Shape(
    name="soft",
    columns={
        "prompt": MESSAGES,
        "chosen": MESSAGES,
        "rejected": MESSAGES,
        "probability": NUMBER,
        "prompt_id": TEXT,
    },
    about="Pairs of completions, each with the probability that chosen is the better one.",
    columns_told="""\
`probability` is the judge's, of chosen being the better one, after both orders were averaged.""",
    training=PREFERENCE_TRAINING,
    from_preferences=soft_rows,
)
