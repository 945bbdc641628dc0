"""The truth of the embedded world as a judge: for measuring only, and only where a pipeline says `judge: gold`."""

from __future__ import annotations

from rlaif import world
from rlaif.errors import InputError


def is_question(prompt: str) -> bool:
    """Whether a prompt is one of the embedded world's. Says nothing of any completion."""
    return world.read(prompt) is not None


def gold(prompt: str, completion: str) -> world.Gold:
    """The gold score of a completion, from its words alone. Raises InputError for a prompt of another world."""
    try:
        return world.gold(prompt, completion)
    except ValueError as error:
        raise InputError(
            f"`judge: gold` knows only the embedded world, and {error}",
            fix="take `judge: gold` out and measure with `rate:`, or use the prompts of tiny/prompts.jsonl",
        ) from None
