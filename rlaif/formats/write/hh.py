"""Preferences as pairs of transcripts, as Anthropic's HH data has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from rlaif.formats.write.held import UNHELD, by_prompt, held
from rlaif.formats.write.shape import Fields, Shape, texts
from rlaif.formats.write.turns import transcript
from rlaif.records import Candidate, Message, Preference


def hh_rows(preferences: Iterable[Preference], dropped: Counter[str]) -> Iterator[Fields]:
    """Two transcripts, as Anthropic's HH data has them. `dropped` counts prompts that no transcript can hold."""
    return by_prompt(preferences, dropped, UNHELD, lambda preference, _: held(preference, {
        "chosen": transcript([*preference.prompt.messages, _turn(preference.chosen)]),
        "rejected": transcript([*preference.prompt.messages, _turn(preference.rejected)]),
        "prompt_id": preference.prompt.id,
    }))  # fmt: skip


def _turn(candidate: Candidate) -> Message:
    return Message(role="assistant", content=candidate.completion.text)


HH = Shape(
    name="hh",
    columns=texts("chosen", "rejected", "prompt_id"),
    about="Preferences as pairs of transcripts: of each, the last turn is what was judged.",
    from_preferences=hh_rows,
)
