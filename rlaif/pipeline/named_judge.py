"""A judge from the command line, without a pipeline file: for `rlaif audit` and `rlaif judge`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.config import COMMAND_LINE, Document, Pipeline, checked, load_value
from rlaif.config.document import Position
from rlaif.config.pipeline import split_setting
from rlaif.errors import InputError
from rlaif.pipeline.stages.compare import OVERALL
from rlaif.resources import find
from rlaif.tiny.lexicon import Lexicon

METHODS = ("compare", "rate")
# The options of `rlaif audit` that apply, by what is audited.
OPTIONS = {
    "a run": ("--stage", "--labels"),
    "a pipeline": ("--stage", "--gold", "--take", "settings"),
    "a server": ("--model", "--key-env", "--method", "--gold", "--take", "settings"),
    "a model's folder": ("--method", "--gold", "--take", "settings"),
}


def check_options(audited: str, given: Mapping[str, object], doing: str = "an audit of ") -> None:
    """Raises InputError for an option in `given` that would be ignored."""
    for option, value in given.items():
        if value and option not in OPTIONS[audited]:
            fix = "remove it"
            if audited == "a model's folder" and option in OPTIONS["a server"]:
                fix += ", or begin a server's URL with http://"
            raise InputError(f"{doing}{audited} takes no {option}", key=option, fix=fix)


def judge_document(
    judge: str, method: str | None, settings: Sequence[str], *, model: str | None, key_variable: str | None
) -> Document:
    """A document with the judge of the command line: a server's URL or a model's folder.

    `settings` are the judging stage's own, as key=value. Raises InputError.
    """
    method = method or METHODS[0]
    if method not in METHODS:
        raise InputError(f"expected compare or rate, found {method!r}", key="--method")
    given: dict[Position, str] = {}
    spec: dict[str, Any]
    stage: dict[str, Any] = {"model": "judge"}
    if "://" in judge:
        if model is None:
            fix = "name one with --model; the server lists its models at /models"
            raise InputError(f"no model on {judge} is named", key="--model", fix=fix)
        spec = {"engine": "openai", "base_url": judge, "model": model}
        if key_variable is not None:
            spec["api_key_env"] = key_variable
        given[("models", "judge", "base_url")] = "JUDGE"
        given[("models", "judge", "api_key_env")] = "--key-env"
    else:
        spec = {"engine": "transformers", "path": judge}
        given[("models", "judge", "path")] = "JUDGE"
        if (lexicon := Lexicon.read(find(judge, key="JUDGE"))) is not None:  # a tiny model has its own settings
            spec["sampling"] = dict(lexicon.sampling)
            stage |= lexicon.judging.get(method, {})
    if method == "compare":
        stage.setdefault("constitution", OVERALL)
    else:
        # An expected rating is never N/A, which every aspect of the other rubric allows.
        expects = any(setting.replace(" ", "") == "answers=expected" for setting in settings)
        stage.setdefault("rubric", f"prompts/rubrics/{'instructgpt' if expects else 'ultrafeedback'}.yaml")
    for setting in settings:
        key, text = split_setting(setting, "reasons=true")
        stage[key], _ = load_value(text, COMMAND_LINE)
        given[("stages", 0, method, key)] = key
    document = Document(COMMAND_LINE, {"name": "audit", "models": {"judge": spec}, "stages": [{method: stage}]}, {})
    document.overridden = given
    return document


def judging(
    data: str, judge: str, method: str | None, settings: Sequence[str], *, model: str | None, key_variable: str | None,
    name: str, pair: str | None,
) -> Pipeline:  # fmt: skip
    """A pipeline that reads `data`, judges its completions and makes preferences by the rule `pair`.

    Held-out prompts are judged too: nothing is trained. Raises InputError whose keys are those of the command line.
    """
    document = judge_document(judge, method, settings, model=model, key_variable=key_variable)
    check_options(
        "a server" if "://" in judge else "a model's folder", {"--model": model, "--key-env": key_variable}, doing=""
    )
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
