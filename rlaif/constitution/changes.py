"""What an edit did to a constitution, principle by principle."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from rlaif.constitution.reading import REQUESTS, Constitution, Principle


class Change(NamedTuple):
    """One difference. `principle` is its id after the edit, and `what` one of the kinds below, or a request's name.

    added, removed, renamed (draws stay), weight, preamble, examples.
    """

    principle: str | None  # None where it is about the whole constitution
    what: str
    before: str = ""
    after: str = ""

    def as_dict(self) -> dict[str, str | None]:
        return self._asdict() | {"told": self.told}

    @property
    def told(self) -> str:
        if self.what in ("added", "removed"):
            return f"`{self.principle}` {self.what}"
        if self.what == "renamed":
            return f"`{self.before}` renamed `{self.principle}`"
        if self.what == "weight":
            return f"weight of `{self.principle}` from {self.before} to {self.after}"
        return f"{self.what} of `{self.principle}` reworded" if self.principle else f"{self.what} changed"


def changes(before: Constitution, after: Constitution, requests: Collection[str] = REQUESTS) -> list[Change]:
    """The differences that matter to these requests, in the order of the file after the edit.

    A principle is the same one where it is drawn the same: by its id, or by the id it had (`was`). One that has none of
    the requests counts as one that is not there.
    """
    found = [
        Change(None, what)
        for what, old, new in (
            ("the preamble", before.preamble, after.preamble),
            *((f"examples of {r}s", getattr(before.examples, r), getattr(after.examples, r)) for r in requests),
        )
        if old != new
    ]

    def asked(principle: Principle) -> bool:
        return any(getattr(principle, request) for request in requests)

    known = {principle.drawn_as: principle for principle in before.principles if asked(principle)}
    for principle in filter(asked, after.principles):
        old = known.pop(principle.drawn_as, None)
        found += [Change(principle.id, "added")] if old is None else _of_one(old, principle, requests)
    return found + [Change(principle.id, "removed") for principle in known.values()]


def _of_one(old: Principle, new: Principle, requests: Collection[str]) -> list[Change]:
    found = [Change(new.id, "renamed", old.id)] if old.id != new.id else []
    if old.weight != new.weight:
        found.append(Change(new.id, "weight", f"{old.weight:g}", f"{new.weight:g}"))
    for request in requests:
        words = getattr(old, request), getattr(new, request)
        if words[0] != words[1]:
            found.append(Change(new.id, request, *words))
    return found
