"""The constitution: its file, and what can be said of it without a model."""

from rlaif.constitution.reading import (
    REQUESTS,
    RULE,
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
    "Chat",
    "Constitution",
    "Examples",
    "Principle",
    "Request",
    "Requests",
    "read_constitution",
]
