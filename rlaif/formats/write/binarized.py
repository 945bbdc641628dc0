"""Preferences in the shape of HuggingFaceH4/ultrafeedback_binarized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from rlaif.formats.write.held import UNHELD, by_prompt, held
from rlaif.formats.write.shape import MESSAGES, Fields, Shape, numbers, texts
from rlaif.formats.write.turns import completion_turn, turns
from rlaif.records import Preference


def binarized_rows(preferences: Iterable[Preference], dropped: Counter[str]) -> Iterator[Fields]:
    """The shape of HuggingFaceH4/ultrafeedback_binarized, where chosen and rejected hold the prompt too."""

    def made(preference: Preference, _: int) -> Fields | None:
        prompt = turns(preference.prompt.messages)
        row = {
            "prompt": next(turn["content"] for turn in prompt if turn["role"] == "user"),
            "prompt_id": preference.prompt.id,
            "chosen": [*prompt, completion_turn(preference.chosen)],
            "rejected": [*prompt, completion_turn(preference.rejected)],
            "messages": [*prompt, completion_turn(preference.chosen)],
            "score_chosen": preference.score_chosen,
            "score_rejected": preference.score_rejected,
        }
        return held(preference, row)

    return by_prompt(preferences, dropped, UNHELD, made)


BINARIZED = Shape(
    name="binarized",
    columns=texts("prompt", "prompt_id")
    | {"chosen": MESSAGES, "rejected": MESSAGES, "messages": MESSAGES}
    | numbers("score_chosen", "score_rejected"),
    about="Preferences in the shape of the binarised UltraFeedback: the conversations hold their prompt.",
    columns_told="""\
`messages` is the same as `chosen`, and `prompt` the first thing the user says.""",
    from_preferences=binarized_rows,
)
