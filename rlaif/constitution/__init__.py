"""The constitution: its file, and what can be said of it without a model."""

from rlaif.constitution.changes import Change, changes
from rlaif.constitution.reading import (
    REQUESTS,
    RULE,
    Asked,
    Chat,
    Constitution,
    Examples,
    Principle,
    Request,
    Requests,
    read_constitution,
)

__all__ = [
    "REQUESTS",
    "RULE",
    "Asked",
    "Change",
    "Chat",
    "Constitution",
    "Examples",
    "Principle",
    "Request",
    "Requests",
    "changes",
    "read_constitution",
]
