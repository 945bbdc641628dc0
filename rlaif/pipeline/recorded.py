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
    "file": (str, type(None)),
}
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
        _typed(value, _REQUIRED)
        and all(isinstance(value.get(key, kinds[0]()), kinds) for key, kinds in _OPTIONAL.items())
        and all(isinstance(stage, dict) and _typed(stage, _OF_STAGE) for stage in value["stages"])
        and all(stage["file"] is None or _FILE.fullmatch(stage["file"]) for stage in value["stages"])
        and all(isinstance(digest, str) for digest in value["digests"].values())
        and all(isinstance(calls, dict) for calls in value["calls"].values())
        and all(isinstance(group, dict) for group in value["failures"].values())
    )


def _typed(value: Mapping[str, Any], types: Mapping[str, tuple[type, ...]]) -> bool:
    return all(key in value and isinstance(value[key], kinds) for key, kinds in types.items())
