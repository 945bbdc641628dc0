"""What a manifest must hold to be read: the keys and types that its readers rely on; and what it says was paid.

It may be a stranger's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import inf
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
_OPTIONAL_OF_STAGE: dict[str, tuple[type, ...]] = {
    "preferences": (int,),
    "demonstrations": (int,),
    "left_out": (dict,),
    "seen": (dict,),
    "weights": (dict, type(None)),
    "rule": (str,),
    "basis": (str,),
    "judge": (str,),
    "min_margin": (int, float),
}
_COUNTED = ("dropped", "left_out", "seen")  # by reason
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
    "reasons": (list,),
    "origin": (str,),
    "cost_of_all_starts": (int, float, type(None)),
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
        and all(_is(count, (int,)) for what in _COUNTED for count in stage.get(what, {}).values())
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


def prices_of(manifest: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The prices that a manifest states, by the model's identity; what is none is left out."""
    return {identity: price for identity, price in manifest.get("prices", {}).items() if _is_price(price)}


def paid_of(manifest: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """The tokens that a manifest says were paid for; what is none is left out."""
    return {
        identity: (tokens[0], tokens[1])
        for identity, tokens in manifest.get("paid", {}).items()
        if isinstance(tokens, list) and len(tokens) == 2 and all(_is(count, (int,)) and count >= 0 for count in tokens)
    }


def cost_of(
    paid: Mapping[str, tuple[int, int]],
    prices: Mapping[str, Mapping[str, float]],
    in_batches: Mapping[str, tuple[int, int]],
) -> float:
    """The cost of tokens read and written, by the model's identity; of those with a price.

    Those of them that were paid `in_batches` cost a share of it.
    """
    cost = 0.0
    for identity, (read, written) in paid.items():
        if (price := prices.get(identity)) is not None:
            cost += read * price["prompt"] + written * price["completion"]
            read_so, written_so = in_batches.get(identity, (0, 0))
            full = min(read_so, read) * price["prompt"] + min(written_so, written) * price["completion"]
            cost -= full * (1 - price.get("batch", 1))
    return cost / 1e6


def _is_price(price: object) -> bool:
    return (
        isinstance(price, dict)
        and all(_is(price.get(key), (int, float)) and 0 <= price[key] < inf for key in ("prompt", "completion"))
        and _is(share := price.get("batch", 1), (int, float))
        and 0 <= share <= 1
    )
