"""The processes of one training, as a launcher numbers them: each is a rank, and the first of them keeps the folder.

`rlaif train --processes`, torchrun and `accelerate launch` set the same variables. Imports no torch, unless several
processes put something together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from rlaif.errors import InputError

WAITING = 1800  # seconds that one waits for another, as in the base trainer

Key = TypeVar("Key")


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


# ---------------------------------------------------------------- together: every process has to call these


def summed(values: Sequence[float]) -> list[float]:
    """Each of the values, summed over the processes."""
    if count() == 1:
        return list(values)
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(shared)
    return list(shared.tolist())


def in_any(mine: bool) -> bool:
    """Whether it is so in any of the processes; none goes on before all have asked."""
    return summed([float(mine)])[0] > 0


def united(values: Mapping[Key, Any]) -> dict[Key, Any]:
    """The values of all processes."""
    every: list[Any] = [values]
    if count() > 1:
        import torch

        every = [None] * count()
        torch.distributed.all_gather_object(every, values)
    return {key: value for each in every for key, value in each.items()}


def told(value: Any = None) -> Any:
    """The value of the first process, in all of them."""
    if count() == 1:
        return value
    import torch

    _met()
    shared = [value]
    torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]


def _met() -> None:
    """Let the processes meet, where the base trainer has not yet done so: it finds them met later."""
    import torch

    if not torch.distributed.is_initialized():
        from accelerate import PartialState

        PartialState(timeout=timedelta(seconds=WAITING))


def _number(variable: str, default: int) -> int:
    stated = os.environ.get(variable, "").strip()
    if not stated:
        return default
    if not stated.isdecimal():
        raise InputError(f"the variable {variable} is no number: {stated[:20]!r}", fix="unset it, or use a launcher")
    return int(stated)
