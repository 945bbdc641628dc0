"""A judge on data that exists, without a pipeline file: `rlaif judge`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlaif.config import Pipeline, checked
from rlaif.config.document import Position
from rlaif.pipeline.auditing import check_options, judge_document


def judging(
    data: str, judge: str, method: str, settings: Sequence[str], *, model: str | None, key_variable: str | None,
    name: str, pair: str | None,
) -> Pipeline:  # fmt: skip
    """A pipeline that reads `data`, has its completions judged and makes preferences, by the rule `pair` names.

    Held-out prompts are judged too: nothing is trained here. Raises InputError, its keys named as they were given.
    """
    document = judge_document(judge, method, settings, model=model, key_variable=key_variable)
    check_options("a server" if "://" in judge else "a model's folder", {"--model": model, "--key-env": key_variable})
    judged = document.value["stages"][0]
    rule = {} if pair is None else {"rule": pair}
    document.value["stages"] = [{"data": {"path": data, "held_out": "keep"}}, judged, {"pair": rule}]
    document.value["name"] = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:100] or "judged"
    given: dict[Position, str] = {("stages", 2, "pair", "rule"): "--pair"}
    given |= {("stages", 0, "data"): "DATA", ("stages", 0, "data", "path"): "DATA"}
    for position, called in document.overridden.items():
        moved = ("stages", 1, *position[2:]) if position[:1] == ("stages",) else position
        given[moved] = called
    document.overridden = given
    return checked(document)
