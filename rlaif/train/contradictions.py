"""Pairs that contradict another one: of two completions of a prompt, one row prefers the first and another the second.

People and judges disagree, so such pairs are trained on. They are counted and told, because no model gets all of them
right, and many of them are a sign of swapped columns. Imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from rlaif.records import Message, prompt_id


class Contradictions:
    """Counts the pairs that are trained on by what they prefer; keeps no text."""

    def __init__(self) -> None:
        self._counted: dict[bytes, tuple[int, int]] = {}  # of two completions: the pairs for the one, and for the other

    def add(self, prompt: Sequence[Message], chosen: str, rejected: str) -> None:
        """Count a pair."""
        one, other = sorted((chosen, rejected))
        both = "\0".join((prompt_id(prompt), str(len(one)), one, other))
        key = hashlib.blake2b(both.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for_one, for_other = self._counted.get(key, (0, 0))
        self._counted[key] = (for_one + 1, for_other) if chosen == one else (for_one, for_other + 1)

    def update(self, other: Contradictions) -> None:
        """Add the pairs that another one counted."""
        for key, (for_one, for_other) in other._counted.items():
            before = self._counted.get(key, (0, 0))
            self._counted[key] = before[0] + for_one, before[1] + for_other

    @property
    def count(self) -> int:
        """The number of pairs that contradict another one."""
        return sum(sum(each) for each in self._counted.values() if all(each))

    @property
    def note(self) -> str | None:
        """What to tell of them; None where there are none."""
        if not self.count:
            return None
        pairs = sum(map(sum, self._counted.values()))
        return f"{self.count:,} of {pairs:,} pairs contradict another one: the same prompt, chosen and rejected swapped"
