"""Preferences in the form that TRL's trainers take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rlaif.formats.write.shape import MESSAGES, ORIGIN, PREFERENCE_TRAINING, Fields, Shape, numbers, texts
from rlaif.formats.write.turns import completion_turn, kept, turns
from rlaif.records import Preference


def preference_rows(preferences: Iterable[Preference]) -> Iterator[Fields]:
    """TRL's conversational form with the prompt apart, so that the loss covers the completions and nothing else."""
    for preference in preferences:
        made: Fields = {
            "prompt": turns(preference.prompt.messages),
            "chosen": [completion_turn(preference.chosen)],
            "rejected": [completion_turn(preference.rejected)],
            "score_chosen": preference.score_chosen,
            "score_rejected": preference.score_rejected,
            "margin": preference.margin,
            "probability": preference.probability,
            "prompt_id": preference.prompt.id,
            "split": preference.prompt.split,
            "source": preference.prompt.source,
            "rule": preference.rule,
            "principle": preference.principle,
            "chosen_model": preference.chosen.sampler,
            "rejected_model": preference.rejected.sampler,
            "chosen_call": preference.chosen.completion.call,
            "rejected_call": preference.rejected.completion.call,
        }
        yield kept(preference.prompt, made)


PREFERENCE = Shape(
    name="preference",
    columns={"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES}
    | numbers("score_chosen", "score_rejected", "margin", "probability")
    | ORIGIN
    | texts("rule", "principle", "chosen_model", "rejected_model", "chosen_call", "rejected_call"),
    about="Preferences: for each prompt a chosen and a rejected completion, judged by a model.",
    columns_told="""\
`chosen_model` and `chosen_call` (the same for rejected) say which model wrote the completion, in which call; `rule` is
how the two were picked, `principle` what they were compared under; `margin` is `score_chosen` minus `score_rejected`,
`probability` that of chosen being the better one, where the judge gave one.""",
    training=PREFERENCE_TRAINING,
    from_preferences=lambda preferences, _: preference_rows(preferences),
)
