"""Preferences under RewardBench's names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from rlaif.formats.write.held import UNHELD, by_prompt, held
from rlaif.formats.write.shape import INTEGER, PREFERENCE_TRAINING, Fields, Shape, texts
from rlaif.formats.write.turns import transcript
from rlaif.records import Preference


def rewardbench_rows(preferences: Iterable[Preference], dropped: Counter[str]) -> Iterator[Fields]:
    """RewardBench's columns, all of them text (arXiv 2403.13787); a prompt of several turns is a transcript.

    `subset` is the source of the prompt. `dropped` counts prompts that no text can hold.
    """

    def made(preference: Preference, number: int) -> Fields | None:
        messages = preference.prompt.messages
        alone = len(messages) == 1 and messages[0].role == "user"
        row = {
            "prompt": messages[0].content if alone else transcript(messages) + "\n\nAssistant:",
            "chosen": preference.chosen.completion.text,
            "chosen_model": preference.chosen.sampler,
            "rejected": preference.rejected.completion.text,
            "rejected_model": preference.rejected.sampler,
            "subset": preference.prompt.source or "",
            "id": number,
            "prompt_id": preference.prompt.id,
        }
        return held(preference, row)

    return by_prompt(preferences, dropped, UNHELD, made)


REWARDBENCH = Shape(
    name="rewardbench",
    columns=texts("prompt", "chosen", "chosen_model", "rejected", "rejected_model", "subset")
    | {"id": INTEGER}
    | texts("prompt_id"),
    about="Preferences under RewardBench's names, to measure reward models and judges on.",
    columns_told="""\
`subset` is the data set its prompt is from. A prompt of several turns is a transcript of `Human:` and `Assistant:`.""",
    training=PREFERENCE_TRAINING,
    from_preferences=rewardbench_rows,
)
