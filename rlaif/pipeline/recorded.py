"""What a manifest must hold to be read: the keys and types that its readers rely on. It may be a stranger's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_REQUIRED: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "state": (str,),
    "seconds": (int, float),
    "stages": (list,),
    "calls": (dict,),
    "digests": (dict,),
    "failures": (dict,),
}
_OF_STAGE: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "kind": (str,),
    "from": (str, type(None)),
    "in": (int,),
    "out": (int,),
    "dropped": (dict,),
    "seconds": (int, float, type(None)),
    "file": (str, type(None)),
}
_OPTIONAL_OF_STAGE: dict[str, tuple[type, ...]] = {"preferences": (int,), "weights": (dict, type(None))}
_OF_CALLS: dict[str, tuple[type, ...]] = {
    "sent": (int,),
    "cached": (int,),
    "failed": (int,),
    "cut_at_max_tokens": (int,),
    "prompt_tokens": (int,),
    "completion_tokens": (int,),
    "cost": (int, float, type(None)),
}
_OF_FAILURES: dict[str, tuple[type, ...]] = {"count": (int,), "row": (str,), "example": (str,)}
_OPTIONAL: dict[str, tuple[type, ...]] = {
    "prices": (dict,),
    "paid": (dict,),
    "capabilities": (dict,),
    "notes": (list,),
    "made": (list,),
}
_FILE = re.compile(r"(stages|report)/[A-Za-z0-9][\w.-]*", re.ASCII)


def is_manifest(value: Mapping[str, Any]) -> bool:
    """Whether its values are of the types that readers rely on, and its files lie in the run folder."""
    return (
        _typed(value, _REQUIRED, _OPTIONAL)
        and all(isinstance(stage, dict) and _is_stage(stage) for stage in value["stages"])
        and all(isinstance(text, str) for text in (*value["digests"].values(), *value.get("notes", ())))
        and all(isinstance(calls, dict) and _typed(calls, _OF_CALLS) for calls in value["calls"].values())
        and all(isinstance(group, dict) and _typed(group, _OF_FAILURES) for group in value["failures"].values())
    )


def _is_stage(stage: Mapping[str, Any]) -> bool:
    return (
        _typed(stage, _OF_STAGE, _OPTIONAL_OF_STAGE)
        and all(_is(count, (int,)) for count in stage["dropped"].values())
        and all(_is(weight, (int, float)) for weight in (stage.get("weights") or {}).values())
        and (stage["file"] is None or _FILE.fullmatch(stage["file"]) is not None)
    )


def _typed(
    value: Mapping[str, Any], required: Mapping[str, tuple[type, ...]], optional: Mapping[str, tuple[type, ...]] = {}
) -> bool:
    return all(key in value and _is(value[key], kinds) for key, kinds in required.items()) and all(
        key not in value or _is(value[key], kinds) for key, kinds in optional.items()
    )


def _is(value: object, kinds: tuple[type, ...]) -> bool:
    """Whether a value is of one of the types; a whole number has at most 64 bits, so that a float can hold it."""
    return isinstance(value, kinds) and not (isinstance(value, int) and value.bit_length() > 64)
