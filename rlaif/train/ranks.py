"""The processes of one training, as a launcher numbers them: each is a rank, and the first of them keeps the folder.

`rlaif train --processes`, torchrun and `accelerate launch` set the same variables. Imports no torch.
"""

from __future__ import annotations

import os

from rlaif.errors import InputError


def count() -> int:
    """The number of processes that train together; 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """The number of this one, from 0."""
    return _number("RANK", 0)


def is_first() -> bool:
    """Whether this process locks, saves and renames; the others only compute."""
    return rank() == 0


def refuse_alone() -> None:
    """Raise InputError when the variables name several processes that could not find each other."""
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if count() > 1 and missing:
        problem = f"the variable WORLD_SIZE names {count()} processes, and {missing[0]} is not set"
        raise InputError(problem, fix="unset it, or start them by `rlaif train --processes` or `accelerate launch`")


def _number(variable: str, default: int) -> int:
    stated = os.environ.get(variable, "").strip()
    if not stated:
        return default
    if not stated.isdecimal():
        raise InputError(f"the variable {variable} is no number: {stated[:20]!r}", fix="unset it, or use a launcher")
    return int(stated)
