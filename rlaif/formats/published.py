"""Rows as published data sets write them, under the names that the readers know.

Each rewriting is recognised by columns that no other shape has. What it leaves alone is read, or not, as in any file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rlaif.formats.messages import COMPLETED, MOST_DEPTH, SYSTEM, UnknownShape, is_message, number_of, text_of

Fields = dict[str, Any]


class Published(NamedTuple):
    """A shape under names of its own: one of its columns, what it is, how it is recognised, the row under our names."""

    column: str
    what: str
    fits: Callable[[Fields], bool]
    rewrite: Callable[[Fields], Fields]


def without_nan(row: Fields) -> Fields:
    """The row with None for NaN, as spreadsheets and pandas write what is missing; in `checks` it is a mistake."""
    return {name: value if name == "checks" else _null_for_nan(value, MOST_DEPTH) for name, value in row.items()}


def _null_for_nan(value: Any, deepest: int) -> Any:
    if isinstance(value, float):
        return None if value != value else value
    if isinstance(value, dict) and deepest:
        return {key: _null_for_nan(part, deepest - 1) for key, part in value.items()}
    if isinstance(value, list) and deepest:
        return [_null_for_nan(part, deepest - 1) for part in value]
    return value


def present(row: Fields) -> Fields:
    """The columns that hold something: tables write None wherever another row has a value."""
    return {name: value for name, value in row.items() if value is not None}


def normal(row: Fields) -> Fields:
    """The row under the names that the readers know. Raises UnknownShape."""
    row = _decoded(present(row))
    for shape in PUBLISHED:
        if shape.column in row and shape.fits(row):
            row = shape.rewrite(row)
    return row


def known_as(row: Fields) -> list[str]:
    """The published shapes that a row has."""
    row, found = _decoded(present(row)), []
    for shape in PUBLISHED:
        if shape.column in row and shape.fits(row):
            found.append(shape.what)
            row = shape.rewrite(row)
    return found


# ---------------------------------------------------------------- lists that a table holds as text

LISTS = (
    "completions",
    "answers",
    "responses",
    "candidates",
    "ratings",
    "rewards",
    "scores",
    "ranks",
    "models",
    "all_generated_responses",
    "all_rm_scores",
    "labels",
)


def _decoded(row: Fields) -> Fields:
    """The row with the lists that CSV files hold as JSON."""
    texts = {name: row[name] for name in LISTS if isinstance(row.get(name), str) and row[name].lstrip()[:1] == "["}
    for name, text in texts.items():
        if (listed := list_in(text)) is None:
            raise UnknownShape(f"`{name}` holds a list that is not JSON", 'write it as JSON: ["first", "second"]')
        row = row | without_nan({name: listed})
    return row


def list_in(value: Any) -> list[Any] | None:
    """The list that a text holds as JSON, or the list itself; None for anything else."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


# ---------------------------------------------------------------- the rewritings


def _has(*names: str) -> Callable[[Fields], bool]:
    return lambda row: {*names} <= row.keys()


def _renamed(row: Fields, names: Mapping[str, str], **made: Any) -> Fields:
    """The row with columns under our names (theirs to ours) where they stand, and others made."""
    return {names.get(name, name): value for name, value in row.items()} | made


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_message, value))


def _arena_lists(row: Fields) -> bool:
    return _turns_of_lists(row) is not None


def _turns_of_lists(row: Fields) -> tuple[list[Fields], list[Fields]] | None:
    """Both conversations, where prompt and completions are lists with one text for each turn."""
    if not {"prompt", "response_a", "response_b"} <= row.keys():
        return None
    asked, *both = (list_in(row[name]) for name in ("prompt", "response_a", "response_b"))
    if not asked or any(side is None or len(side) != len(asked) for side in both):
        return None
    if not all(isinstance(text, str | None) for texts in (asked, *both) for text in texts or ()):
        return None
    first, second = ([_turn(role, text) for pair in zip(asked, side or (), strict=True)
                      for role, text in zip(("user", "assistant"), pair, strict=True)] for side in both)  # fmt: skip
    return first, second


def _turn(role: str, text: str | None) -> Fields:
    return {"role": role, "content": text or ""}


def _of_arena_lists(row: Fields) -> Fields:
    sides = _turns_of_lists(row)
    assert sides is not None
    rest = {name: value for name, value in row.items() if name not in ("prompt", "response_a", "response_b")}
    return rest | {"conversation_a": sides[0], "conversation_b": sides[1]}


def _up_to_the_turn(row: Fields) -> Fields:
    """MT-Bench's judgements hold both turns, and `turn` says which was judged."""
    turn = row["turn"]
    sides = {name: row[name] for name in ("conversation_a", "conversation_b")}
    if type(turn) is not int or turn < 1 or not all(isinstance(side, list) for side in sides.values()):
        return row
    return row | {name: _first_turns(side, turn) for name, side in sides.items()}


def _first_turns(side: list[Any], count: int) -> list[Any]:
    ends = [i for i, message in enumerate(side) if isinstance(message, dict) and message.get("role") == "assistant"]
    return side[: ends[count - 1] + 1] if len(ends) >= count else side


MOST_STRENGTH = 3  # HelpSteer's scale: from -3, the first is much better, to 3, the second


def _by_strength(pair: tuple[str, str], column: str) -> Callable[[Fields], Fields]:
    def rewrite(row: Fields) -> Fields:
        made: Fields = {"completion_a": row[pair[0]], "completion_b": row[pair[1]]}
        strength = number_of(row.get(column))
        if column in row and (strength is None or abs(strength) > MOST_STRENGTH):
            made["label"] = f"the strength {row[column]}"
        elif strength is not None:
            made["label"] = "a" if strength < 0 else "b" if strength > 0 else "tie"
            made |= {"score_a": abs(min(strength, 0.0)), "score_b": abs(max(strength, 0.0))}
        return {name: value for name, value in row.items() if name not in (*pair, column)} | made

    return rewrite


def _of_shp(row: Fields) -> Fields:
    named = {"history": "prompt", "human_ref_A": "completion_a", "human_ref_B": "completion_b"}
    named |= {"score_A": "score_a", "score_B": "score_b"}
    label = {1: "a", 0: "b"}.get(number_of(row.get("labels")), row.get("labels"))  # type: ignore[call-overload]
    rest = {name: value for name, value in row.items() if name not in ("labels", "score_ratio")}
    return _renamed(rest, named, **({} if label is None else {"label": label}))


def _of_summaries(row: Fields) -> Fields:
    """The post with its title and subreddit, as the paper's models were asked (arXiv 2009.01325)."""
    info, both = row["info"], row["summaries"]
    post = [("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title"), ("POST: ", "post"), ("", "article")]
    asked = "\n\n".join(f"{mark}{text_of(info[name], name)}" for mark, name in post if info.get(name) is not None)
    made: Fields = {"prompt": f"{asked}\n\nTL;DR:" if asked else ""}
    for side, summary in zip("ab", both, strict=True):
        made |= {f"completion_{side}": summary["text"], f"model_{side}": summary.get("policy")}
    if "choice" in row:
        made["label"] = {0: "a", 1: "b"}.get(number_of(row["choice"]), str(row["choice"]))  # type: ignore[call-overload]
    return {name: value for name, value in row.items() if name not in ("info", "summaries", "choice")} | made


def _is_summaries(row: Fields) -> bool:
    both = row.get("summaries")
    two = isinstance(both, list) and len(both) == 2 and all(isinstance(one, dict) and "text" in one for one in both)
    return two and isinstance(row.get("info"), dict)


def _of_prometheus(row: Fields) -> Fields:
    """`instruction` and `output` are the judge's prompt and its reply, and no data to learn from."""
    named = {"orig_instruction": "prompt", "orig_response_A": "completion_a", "orig_response_B": "completion_b"}
    named |= {"orig_score_A": "score_a", "orig_score_B": "score_b", "orig_preference": "label"}
    named |= {"orig_response": "completion", "orig_score": "score", "orig_reference_answer": "reference"}
    wrapped = ("instruction", "input", "output", "messages")
    kept = [name for name in row if name in named or not (name in wrapped or name.startswith("orig_"))]
    return {named.get(name, name): row[name] for name in kept}


def _of_distilabel(row: Fields) -> Fields:
    """The scores beside the texts that they are of, in any order; `status` may say that it is a tie."""
    texts, ratings = row["generations"], row["rating"]
    made: Fields = {}
    for side in ("chosen", "rejected"):
        if isinstance(texts, list) and isinstance(ratings, list) and len(texts) == len(ratings) == 2:
            scores = [score for text, score in zip(texts, ratings, strict=True) if text == row[side]]
            made |= {f"score_{side}": scores[0]} if len(scores) == 1 else {}
    if len(made) < 2:
        made = {}
    if row.get("status") == "tie":
        made |= {"probability": 0.5}
    left_out = {"generations", "rating", "order", "status", "chosen_score", "rejected_score"}
    return {name: value for name, value in row.items() if name not in left_out} | made


# What begins a prompt that was written out for a model already, beside conversations that hold it as it is.
_WRITTEN_OUT = re.compile(r"\s*(<\||<s>|<bos>|<start_of_turn>|\[INST\])")


def _is_written_out(row: Fields) -> bool:
    prompt = row.get("prompt")
    return (
        isinstance(prompt, str)
        and _WRITTEN_OUT.match(prompt) is not None
        and all(isinstance(row.get(side), list) and len(row[side]) > 1 for side in ("chosen", "rejected"))
    )


def _of_exchanges(row: Fields) -> Fields:
    """Capybara's turns, in pairs of input and output."""
    turns = [
        {"role": role, "content": exchange[name]}
        for exchange in row["conversation"]
        for role, name in (("user", "input"), ("assistant", "output"))
    ]
    rest = {name: value for name, value in row.items() if name != "conversation"}
    return rest if "chosen" in row or "messages" in row else rest | {"messages": turns}


def _is_exchanges(row: Fields) -> bool:
    turns = row.get("conversation")
    return isinstance(turns, list) and all(isinstance(one, dict) and {"input", "output"} <= one.keys() for one in turns)


def _refuse_steps(row: Fields) -> Fields:
    fix = "if they are rivals, say so: `columns: {prompt: prompt, completions: completions, scores: labels}`"
    raise UnknownShape("the labels are of the steps of one solution, and steps are not rival completions", fix)


def _labels_steps(row: Fields) -> bool:
    return isinstance(row["labels"], list) and isinstance(row.get("completions"), list)


def _is_steps(row: Fields) -> bool:
    return isinstance(row["label"], dict) and "steps" in row["label"]  # PRM800K as it was published


def _first(*names: str) -> Callable[[Fields], bool]:
    """Whether the first of the columns stands, and the second, which is what it would be called here, does not."""
    return lambda row: names[0] in row and names[1] not in row


def _is_list(theirs: str, ours: str) -> Callable[[Fields], bool]:
    return lambda row: isinstance(row.get(theirs), list) and not {ours, "answers", "chosen"} & row.keys()


def _are_scores(name: str) -> Callable[[Fields], bool]:
    """Whether a list of numbers stands beside as many completions, and no `scores`."""

    def fits(row: Fields) -> bool:
        values, rivals = row.get(name), row.get("completions", row.get("answers"))
        beside = isinstance(values, list) and isinstance(rivals, list) and len(values) == len(rivals)
        return beside and "scores" not in row and all(one is None or number_of(one) is not None for one in values or ())

    return fits


def _rename(theirs: str, ours: str, *more: str) -> Callable[[Fields], Fields]:
    names = dict(zip((theirs, *more[::2]), (ours, *more[1::2]), strict=True))
    return lambda row: _renamed(row, names)


def _question(row: Fields) -> bool:
    return isinstance(row.get("question"), dict) and "full_text" in row["question"]


def _context(row: Fields) -> bool:
    """Dolly's context, and others', which is the `input` of an instruction."""
    return "instruction" in row and "input" not in row and isinstance(row.get("context"), str)


def _bare_input(row: Fields) -> bool:
    """An `input` beside chosen and rejected is what they answer."""
    asked = {"prompt", "messages", "conversations", "instruction", "question"} & row.keys()
    return {"input", "chosen", "rejected"} <= row.keys() and not asked


# In the order in which they are tried. Several may fit a row, the later ones what the earlier made of it.
CHOSEN_AND_REJECTED = (
    ("response_j", "response_k"), ("win", "lose"), ("winner", "loser"), ("better", "worse"), ("positive", "negative"),
    ("preferred", "dispreferred"),
)  # fmt: skip
PUBLISHED: tuple[Published, ...] = (
    Published("labels", "steps with labels", _labels_steps, _refuse_steps),
    Published("label", "steps with labels", _is_steps, _refuse_steps),
    Published("orig_instruction", "Prometheus's columns", _has("orig_instruction"), _of_prometheus),
    Published(
        "preference_strength",
        "two completions with a strength of preference",
        _has("response_1", "response_2", "preference_strength"),
        _by_strength(("response_1", "response_2"), "preference_strength"),
    ),
    Published(
        "overall_preference",
        "two completions with a strength of preference",
        _has("response1", "response2", "overall_preference"),
        _by_strength(("response1", "response2"), "overall_preference"),
    ),
    Published("history", "two comments with their votes", _has("history", "human_ref_A", "human_ref_B"), _of_shp),
    Published("summaries", "two summaries and a choice", _is_summaries, _of_summaries),
    Published("response_a", "lists of turns as text", _arena_lists, _of_arena_lists),
    Published(
        "turn", "two conversations, one turn judged", _has("conversation_a", "conversation_b", "turn"), _up_to_the_turn
    ),
    Published(
        "question",
        "a question with its source",
        _question,
        lambda row: row | {"question": row["question"]["full_text"]},
    ),
    Published(
        "generations", "generations with ratings", _has("chosen", "rejected", "generations", "rating"), _of_distilabel
    ),
    Published(
        "responses",
        "completions called `responses`",
        _is_list("responses", "completions"),
        _rename("responses", "completions"),
    ),
    Published(
        "candidates",
        "completions called `candidates`",
        _is_list("candidates", "completions"),
        _rename("candidates", "completions"),
    ),
    Published("ratings", "scores called `ratings`", _are_scores("ratings"), _rename("ratings", "scores")),
    Published("rewards", "scores called `rewards`", _are_scores("rewards"), _rename("rewards", "scores")),
    *(
        Published(
            better,
            f"the better one called `{better}`",
            _has(better, worse),
            _rename(better, "chosen", worse, "rejected"),
        )
        for better, worse in CHOSEN_AND_REJECTED
    ),
    Published("kto_tag", "a label called `kto_tag`", _first("kto_tag", "label"), _rename("kto_tag", "label")),
    Published(
        "accepted", "the better one called `accepted`", _first("accepted", "chosen"), _rename("accepted", "chosen")
    ),
    Published(
        "chosen",
        "a prompt written out for a model",
        _is_written_out,
        lambda row: {name: value for name, value in row.items() if name != "prompt"},
    ),
    Published("conversation", "turns in pairs", _is_exchanges, _of_exchanges),
    Published(
        "trajectory",
        "messages called `trajectory`",
        lambda row: _is_messages(row.get("trajectory")) and "prompt" not in row,
        _rename("trajectory", "conversations"),
    ),
    Published(
        "context",
        "messages called `context`",
        lambda row: _is_messages(row.get("context")) and "prompt" not in row,
        _rename("context", "messages"),
    ),
    Published(
        "conversation",
        "messages called `conversation`",
        lambda row: _is_messages(row.get("conversation")) and not {"messages", "prompt"} & row.keys(),
        _rename("conversation", "messages"),
    ),
    Published("context", "a context called `context`", _context, _rename("context", "input")),
    Published(
        "system_prompt",
        "a system message called `system_prompt`",
        _first("system_prompt", SYSTEM),
        _rename("system_prompt", SYSTEM),
    ),
    Published("input", "a prompt called `input`", _bare_input, _rename("input", "prompt")),
)


# ---------------------------------------------------------------- one completion of a prompt in each row

LABEL = "label"  # the aspect of a score that says good (1) or bad (0)
# HelpSteer's aspects, from 0 to 4.
ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
SCORES = ("score", "rating", "reward")
_GOOD: dict[Any, bool] = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
_GOOD |= {"good": True, "bad": False, "desirable": True, "undesirable": False, "-1": False, "-1.0": False}
_GOOD |= {"chosen": True, "rejected": False, "accepted": True, "thumbs_up": True, "thumbs_down": False}


def good(value: Any) -> bool | None:
    """Whether a label calls a completion good; None where it is another kind of label."""
    return _GOOD.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None


# By our names or their own, the columns of which such a row has one.
JUDGED_ALONE = frozenset({LABEL, "kto_tag", "orig_score", *ATTRIBUTES, *SCORES})


def judged_alone(row: Fields) -> Fields:
    """What a row says of its one completion, as an entry of `completions`; empty where it says nothing."""
    if {"chosen", "rejected", "completions", "answers"} & row.keys():
        return {}
    completed = completed_of(row) is not None
    label = good(row["label"]) if "label" in row else None
    if label is not None and (completed or _ends_with_completion(row)):
        return {"score": float(label), "aspect": LABEL}
    if not completed:
        return {}
    rated = [name for name in ATTRIBUTES if number_of(row.get(name)) is not None]
    if len(rated) > 1:
        return {"annotations": [{"aspect": name, "Rating": row[name]} for name in rated]}
    scores = [name for name in SCORES if number_of(row.get(name)) is not None]
    return {"score": row[scores[0]]} if len(scores) == 1 else {}


def completed_of(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The names of a prompt and its one completion."""
    return next((pair for pair in COMPLETED if {*pair} <= row.keys()), None)


def _ends_with_completion(row: Fields) -> bool:
    turns = next((row[name] for name in ("messages", "conversations") if _is_messages(row.get(name))), None)
    return turns is not None and turns[-1].get("role", turns[-1].get("from")) in ("assistant", "gpt", "model")
