"""One published row as one record: a prompt, its candidates, and the judgement that the file states of them.

Every shape is recognised by its columns. A row that fits two shapes raises UnknownShape, because a guess could be a
wrong label. A judgement that cannot be read becomes an unparsed one, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rlaif.formats.files import names
from rlaif.formats.messages import (
    COMPLETED,
    MOST_SCORE,
    UnknownShape,
    Unusable,
    check_turns,
    checks_of,
    conversation_messages,
    messages_of,
    number_of,
    prompt_messages,
    reference_of,
    side_messages,
    text_of,
    unknown,
)
from rlaif.records import (
    Candidate,
    Choice,
    Comparison,
    Completion,
    Message,
    Prompt,
    Ranking,
    Rating,
    Row,
    Score,
    Verdict,
    digest,
    preferred,
    writable,
)

JUDGE, PRINCIPLE = "data", "as stated"  # where a file does not name the judge and the principle
OVERALL = "overall"
MISREAD = "a 10 that may be a 1 read wrongly"

ROW_SHAPES = (
    "`chosen` and `rejected`; two completions (`completion_a` and `completion_b`, `response_0` and `response_1`, "
    "and the like); `completions` or `answers` (a list); `messages`, `prompt` + `completion`, or a prompt alone"
)

# Two completions by the names of their columns, and what numbers a label calls them by: none where that differs.
PAIRS: dict[tuple[str, str], tuple[int, int] | None] = {
    ("completion_a", "completion_b"): None,
    ("response_a", "response_b"): None,  # Chatbot Arena
    ("response_0", "response_1"): (0, 1),  # PKU-SafeRLHF
    ("output_1", "output_2"): (1, 2),  # LLMBar, AlpacaEval
    ("response1", "response2"): (1, 2),  # PandaLM
    ("conversation_a", "conversation_b"): None,  # Chatbot Arena, with the prompt in both
    ("answer_0", "answer_1"): (0, 1),  # WebGPT
    ("response_1", "response_2"): (1, 2),
    ("completion_1", "completion_2"): (1, 2),
    ("answer_a", "answer_b"): None,
    ("answer_1", "answer_2"): (1, 2),
    ("output_a", "output_b"): None,
}
MISSING = "one of its two completions is missing"
MOST_COMPARISONS = 10_000  # of one row, which chosen and rejected as lists would multiply


def records_of(row: dict[str, Any], origin: str, *, turns: str) -> list[Row]:
    """A published row as a record; a conversation with `turns="all"` as one for each turn that answers a user's.

    Raises UnknownShape and Unusable.
    """
    fitting = shapes_of(row)
    if len(fitting) > 1:  # two tables put together leave cells of the other's columns empty
        row = {name: value for name, value in row.items() if value not in ("", [])}
        fitting = shapes_of(row)
    if len(fitting) > 1:
        what = " and as ".join(fitting)
        fix = "name the columns that count with `columns`, such as {prompt: ..., chosen: ..., rejected: ...}"
        raise UnknownShape(f"the columns {names(row)} can be read as {what}", fix)
    if fitting:
        return [_JUDGED[fitting[0]][1](row, origin)]
    completed = any({*pair} <= row.keys() for pair in COMPLETED)
    if not completed and any(len({*pair} & row.keys()) == 1 for pair in (*PAIRS, *_STATED)):
        raise Unusable(MISSING)
    return _conversations(row, origin, turns)


# What says of two completions which is the better one. Beside another such column one may change nothing.
_OF_TWO = re.compile(
    r"label|winner\w*|preference|preferred|better|choice|prob(ability)?|annotator\d+|(better|safer)_response_id|(score|rating)_?[abAB012]"
    r"|margin|magnitude|strength"
)


def is_consulted(name: str, row: Mapping[str, Any]) -> bool:
    """Whether a column is one that the reader of a judged row looks at, though it may change nothing."""
    if not shapes_of(row):
        return False
    sides = {pattern.format(side) for pattern in _SIDE_SCORES for side in ("chosen", "rejected")}
    return name in sides or _OF_TWO.fullmatch(name) is not None


def shapes_of(row: Mapping[str, Any]) -> list[str]:
    """The shapes with a judgement that a row fits: one, none, or several that cannot be told apart."""
    return [what for what, (fits, _) in _JUDGED.items() if fits(row)]


def _lists_completions(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("completions"), list) or isinstance(row.get("answers"), list)


_STATED = (("chosen", "rejected"), ("chosen_response", "rejected_response"))


def _states_chosen(row: Mapping[str, Any]) -> bool:
    return any({*pair} <= row.keys() for pair in _STATED)


def _holds_two(row: Mapping[str, Any]) -> bool:
    return any({*pair} <= row.keys() for pair in PAIRS)


def is_pair(row: Mapping[str, Any]) -> bool:
    """Whether a row states chosen and rejected, or two completions that a label may tell apart."""
    return _states_chosen(row) or _holds_two(row)


class _Written(NamedTuple):
    """A candidate as a file gives it: which model wrote it, its text, and its call where rlaif wrote the file."""

    sampler: str
    text: str
    call: str | None = None


def _row(
    row: dict[str, Any], origin: str, messages: Sequence[Message], written: Sequence[_Written], **judged: Any
) -> Row:
    check_turns(messages, (one.text for one in written))
    prompt = Prompt(messages=tuple(messages), source=origin, reference=reference_of(row), checks=checks_of(row))
    candidates = tuple(
        Candidate(
            sampler=one.sampler,
            completion=Completion(
                text=one.text,
                model=one.sampler,
                call=one.call or digest([prompt.id, number, one.sampler, one.text]),
            ),
        )
        for number, one in enumerate(written)
    )
    return Row(prompt=prompt, candidates=candidates, **judged)


# ---------------------------------------------------------------- completions without a judgement


def _conversations(row: dict[str, Any], origin: str, turns: str) -> list[Row]:
    completed = [pair for pair in COMPLETED if {*pair} <= row.keys()]
    if any(pair[1] != "response" for pair in completed):
        completed = [pair for pair in completed if pair[1] != "response"]
    written = [name for name in ("messages", "conversations") if name in row]
    if len(written) + len(completed) > 1:
        stated = {tuple(conversation_messages({k: row[k] for k in (*pair, "input") if k in row})) for pair in completed}
        stated |= {tuple(messages_of(row[name], name)) for name in written}
        if len(stated) > 1:
            fix = "name the one that counts with `columns`, such as {messages: messages}"
            raise UnknownShape(f"the columns {names(row)} hold several conversations", fix)
    try:
        messages = conversation_messages(row) if written or completed else prompt_messages(row)
    except UnknownShape as problem:
        if written or completed or {"prompt", "instruction", "question"} & row.keys():
            raise
        raise unknown(row, ROW_SHAPES, "or name the columns with `columns`") from problem
    sampler = _name(row, "model", "generator", "chosen_model") or "completion-1"
    ends = [i for i, message in enumerate(messages) if message.role == "assistant"]
    ends = [i for i in ends if i and messages[i - 1].role == "user"] if turns == "all" else ends[-1:]
    if not messages or messages[-1].role != "assistant":
        ends = []  # the last turn is still to be answered
    if not ends:
        return [_row(row, origin, messages, ())]
    own = _name(row, "call")
    return [
        _row(
            row, origin, messages[:i], [_Written(sampler, messages[i].content, own if i == len(messages) - 1 else None)]
        )
        for i in ends
    ]


def _name(row: Mapping[str, Any], *columns: str) -> str | None:
    """The text of the first of the columns that holds any."""
    values = (row.get(column) for column in columns)
    return next((writable(value) for value in values if isinstance(value, str) and value.strip()), None)


# ---------------------------------------------------------------- chosen and rejected


def _stated(row: dict[str, Any], origin: str) -> Row:
    """Chosen and rejected, with their scores and the probability of chosen being the better one, where they stand."""
    sides = ("chosen", "rejected")
    if "chosen" not in row:  # Argilla's first form
        row = row | {side: row[f"{side}_response"] for side in sides}
    if all(_is_texts(row[side]) for side in sides):
        return _stated_lists(row, origin)
    both = [side_messages(row, side) for side in sides]
    for side in both:
        if not side or side[-1].role != "assistant":
            raise Unusable("no assistant turn at the end")
    if both[0][:-1] != both[1][:-1]:
        raise Unusable("chosen and rejected answer different prompts")
    models = [_name(row, f"{side}_model", f"{side}-model") or side for side in sides]
    calls = [_name(row, f"{side}_call") for side in sides]
    scores = _side_scores(row)
    probability, problem = _probability(row)
    if scores and None not in (better := scores[0].value, worse := scores[1].value):
        assert better is not None and worse is not None
        if better < worse:
            raise Unusable("its scores say the opposite")
        if better == worse and probability is None:
            probability = 0.5
    if probability is not None and probability < 0.5:
        raise Unusable("its probability says the opposite")
    choice: Choice | None = None if problem else "tie" if probability == 0.5 else "A"
    written = [_Written(model, side[-1].content, call) for model, side, call in zip(models, both, calls, strict=True)]
    comparison = _comparison(choice, probability, problem, JUDGE, _name(row, "principle") or PRINCIPLE)
    if among := _among_others(row, [one.text for one in written]):
        texts, values, places = among
        first, second = (number_of(values[place]) for place in places)
        if first is not None and second is not None and first < second:
            raise Unusable("its scores say the opposite")
        written = [_Written(f"completion-{i}", text) for i, text in enumerate(texts, 1)]
        scores = tuple(_score(i, value) for i, value in enumerate(values) if value is not None)
        comparison = _between(comparison, *places)
    return _row(row, origin, both[0][:-1], written, comparisons=(comparison,), scores=scores)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _stated_lists(row: dict[str, Any], origin: str) -> Row:
    """RewardBench 2's right and wrong completions: each right one is preferred to each wrong one."""
    chosen, rejected = row["chosen"], row["rejected"]
    if len(chosen) * len(rejected) > MOST_COMPARISONS:
        problem = f"`chosen` and `rejected` hold {len(chosen)} times {len(rejected)} pairs, over {MOST_COMPARISONS:,}"
        raise UnknownShape(problem, "give fewer completions of one prompt")
    texts, models = [*chosen, *rejected], row.get("models")
    if not (_is_texts(models) and isinstance(models, list) and len(models) == len(texts)):
        models = ["chosen"] * len(chosen) + ["rejected"] * len(rejected)
    stated = _comparison("A", None, None, JUDGE, _name(row, "principle") or PRINCIPLE)
    comparisons = tuple(_between(stated, a, b) for a in range(len(chosen)) for b in range(len(chosen), len(texts)))
    written = [_Written(writable(model), text) for model, text in zip(models, texts, strict=True)]
    asked = prompt_messages({name: value for name, value in row.items() if name not in ("chosen", "rejected")})
    return _row(row, origin, asked, written, comparisons=comparisons)


def _between(comparison: Comparison, a: int, b: int) -> Comparison:
    """The comparison of the first two candidates as one of two others."""
    orders = tuple(order.model_copy(update={"a": (a, b)[order.a], "b": (a, b)[order.b]}) for order in comparison.orders)
    return comparison.model_copy(update={"a": a, "b": b, "orders": orders})


def _among_others(row: Mapping[str, Any], both: Sequence[str]) -> tuple[list[str], list[Any], tuple[int, int]] | None:
    """All the completions that chosen and rejected were picked from, with their scores, and the places of the two."""
    texts, values = row.get("all_generated_responses"), row.get("all_rm_scores")
    if not (isinstance(texts, list) and _is_texts(texts) and isinstance(values, list) and len(values) == len(texts)):
        return None
    bare = [text.strip() for text in texts]
    if both[0] == both[1] or not all(text.strip() in bare for text in both):
        return None
    return texts, values, (bare.index(both[0].strip()), bare.index(both[1].strip()))


_SIDE_SCORES = (
    *("score_{}", "{}_score", "{}-rating", "{}_rating", "{}_avg_rating"),
    *("rating_{}", "reward_{}", "{}_reward"),
)
MARGINS = ("margin", "magnitude", "strength")  # by how much chosen is the better one


def _side_scores(row: Mapping[str, Any]) -> tuple[Score, ...]:
    for pattern in _SIDE_SCORES:
        columns = [pattern.format(side) for side in ("chosen", "rejected")]
        if any(row.get(column) is not None for column in columns):
            return tuple(_score(i, row.get(column)) for i, column in enumerate(columns))
    margin = next((row[column] for column in MARGINS if row.get(column) is not None), None)
    return () if margin is None else (_score(0, margin), _score(1, 0))


def _score(candidate: int, value: Any, judge: str = JUDGE, aspect: str | None = None) -> Score:
    number = number_of(value)
    problem = None if number is not None else f"no number: {_shown(value)}"
    return Score(candidate=candidate, value=number, judge=judge, aspect=aspect, problem=problem)


def _shown(value: Any) -> str:
    """A value of a file as a problem names it."""
    return repr(str(value)[:40])


def _probability(row: Mapping[str, Any]) -> tuple[float | None, str | None]:
    """That the first (or chosen) is the better one, where a column says so; or why it cannot be read."""
    column = next((name for name in ("probability", "prob") if row.get(name) is not None), None)
    if column is None and {"chosen", "rejected"} <= row.keys() and isinstance(row.get("label"), float):
        column = "label"
    if column is None:
        return None, None
    number = number_of(row[column])
    if number is None or not 0 <= number <= 1:
        return None, f"`{column}` is no probability: {_shown(row[column])}"
    return number, None


def _comparison(
    choice: Choice | None, probability: float | None, problem: str | None, judge: str, principle: str
) -> Comparison:
    """What a file states of its two candidates. It states one verdict, which is used for both orders."""
    forward = Verdict(a=0, b=1, verdict=choice, probability=probability, problem=problem)
    return Comparison(
        a=0,
        b=1,
        principle=principle,
        judge=judge,
        verdict=choice,
        probability=probability,
        orders=(forward, forward.swap()),
    )


# ---------------------------------------------------------------- two completions with a label

_WINNERS: dict[str, Choice] = {
    **dict.fromkeys(("a", "model_a", "model_1", "response_a", "completion_a"), "A"),
    **dict.fromkeys(("b", "model_b", "model_2", "response_b", "completion_b"), "B"),
    **dict.fromkeys(("tie", "tie (bothbad)", "both_bad", "bothbad", "draw"), "tie"),
}
_ONE_HOT: dict[str, Choice] = {"winner_model_a": "A", "winner_model_b": "B", "winner_tie": "tie"}


def _pair(row: dict[str, Any], origin: str) -> Row:
    pairs = [pair for pair in PAIRS if {*pair} <= row.keys()]
    if len(pairs) > 1:
        fix = "name the two that count with `columns: {completion_a: ..., completion_b: ...}`"
        raise UnknownShape(f"the columns {names(row)} hold more than two completions", fix)
    if not {"prompt", "messages", "conversations", "instruction", "question"} & row.keys() and "input" in row:
        row = row | {"prompt": row["input"]}  # LLMBar
    pair = pairs[0]
    both = [side_messages(row, name) for name in pair]
    for side in both:
        if not side or side[-1].role != "assistant":
            raise Unusable("no assistant turn at the end")
    if both[0][:-1] != both[1][:-1]:
        raise Unusable("the two answer different prompts")
    written = [_Written(model, side[-1].content) for model, side in zip(_models_of_two(row), both, strict=True)]
    scores, verdicts = _scores_of_two(row, pair), _verdicts(row, pair)
    values = [score.value for score in scores]
    if len(values) == 2 and None not in values:
        better = preferred(0.5 + (values[0] > values[1]) - (values[0] < values[1]))  # type: ignore[operator]
        if not verdicts:  # WebGPT states nothing else
            verdicts = [_comparison(better, None, None, JUDGE, _name(row, "principle") or PRINCIPLE)]
        elif {one.verdict for one in verdicts} == {"B" if better == "A" else "A"} and better != "tie":
            raise Unusable("its scores say the opposite")
    return _row(row, origin, both[0][:-1], written, comparisons=tuple(verdicts), scores=scores)


def _scores_of_two(row: Mapping[str, Any], pair: tuple[str, str]) -> tuple[Score, ...]:
    """The scores of the two, whose columns end as those of the completions do."""
    ends = [name[-1] for name in pair]
    for pattern in ("score_{}", "rating_{}", "score{}"):
        columns = [pattern.format(end) for end in ends]
        if all(row.get(column) is not None for column in columns):
            return tuple(_score(i, row[column]) for i, column in enumerate(columns))
    return ()


def _models_of_two(row: Mapping[str, Any]) -> list[str]:
    named = [_name(row, f"model_{a}", f"generator_{i}") for i, a in ((1, "a"), (2, "b"))]
    key = _name(row, "cmp_key")
    if key is not None and key.count("_") == 1:  # PandaLM
        named = list(key.split("_"))
    return [name or f"completion-{i}" for i, name in enumerate(named, 1)]


LABELS = ("label", "winner")
OTHER_LABELS = ("preferred", "better", "choice")  # read where no other column is a label


def _verdicts(row: Mapping[str, Any], pair: tuple[str, str]) -> list[Comparison]:
    """Every judgement of the two that the row states, in the order of its columns."""
    numbers = PAIRS[pair]
    # A label may be the name of the better one's column.
    row = {name: _place(value, pair) for name, value in row.items()}
    labels = LABELS if {*LABELS, "preference", *_ONE_HOT} & row.keys() else OTHER_LABELS
    verdicts: list[Comparison] = []
    principle, judge = _name(row, "principle") or PRINCIPLE, _name(row, "judge") or JUDGE
    probability, problem = _probability(row)
    if probability is not None or problem is not None:
        verdicts.append(
            _comparison(None if probability is None else preferred(probability), probability, problem, judge, principle)
        )
    if {*_ONE_HOT} <= row.keys():
        chosen = [choice for column, choice in _ONE_HOT.items() if number_of(row[column]) == 1]
        one = chosen[0] if len(chosen) == 1 else None
        verdicts.append(_comparison(one, None, None if one else f"{len(chosen)} of the three won", judge, principle))
    for column in row:
        if column in labels:
            verdicts.append(_labelled(column, row[column], numbers, judge, principle))
        elif column == "preference":  # AlpacaEval: from 1, the first, to 2, the second; 0 where neither
            verdicts.append(_graded(row[column], principle))
        elif re.fullmatch(r"annotator\d+", column):
            verdicts.append(_labelled(column, row[column], numbers, column, principle))
        elif column in ("better_response_id", "safer_response_id"):
            verdicts.append(_labelled(column, row[column], numbers, JUDGE, column.removesuffix("_response_id")))
    by_file = [one for one in verdicts if one.judge == judge and one.principle == principle]
    if len(by_file) > 1:
        fix = "name the one that counts with `columns: {label: ...}` or `columns: {probability: ...}`"
        raise UnknownShape(f"the columns {names(row)} hold {len(by_file)} labels of the two completions", fix)
    return verdicts


def _place(value: Any, pair: tuple[str, str]) -> Any:
    return "ab"[pair.index(value)] if isinstance(value, str) and value in pair else value


def _graded(value: Any, principle: str) -> Comparison:
    number = number_of(value)
    if (named := _WINNERS.get(str(value).strip().lower())) is not None:
        return _comparison(named, None, None, JUDGE, principle)
    if number == 0:
        return _comparison("tie", None, None, JUDGE, principle)
    if number is None or not 1 <= number <= 2:
        return _comparison(None, None, f"no preference from 1 to 2: {_shown(value)}", JUDGE, principle)
    if number in (1, 1.5, 2):
        return _comparison({1.0: "A", 1.5: "tie", 2.0: "B"}[number], None, None, JUDGE, principle)  # type: ignore[arg-type]
    return _comparison(preferred(2 - number), 2 - number, None, JUDGE, principle)


def _labelled(column: str, value: Any, numbers: tuple[int, int] | None, judge: str, principle: str) -> Comparison:
    """A label that names one of the two by its number or letter, or neither; a share between 0 and 1 is a probability.

    Raises UnknownShape for a number where nothing tells which of the two it means.
    """
    number = number_of(value)
    if number is None:
        choice = _WINNERS.get(str(value).strip().lower())
        problem = None if choice else f"no label: {_shown(value)}"
        return _comparison(choice, None, problem, judge, principle)
    if numbers is None and (isinstance(value, float) or not number.is_integer()) and 0 <= number <= 1:
        return _comparison(preferred(number), number, None, judge, principle)
    if numbers is None:
        fix = "write a or b, or say that it is the probability of the first with `columns: {probability: ...}`"
        raise UnknownShape(f"`{column}` is {value!r}, and nothing tells which of the two that is", fix)
    meant: dict[float, Choice] = {numbers[0]: "A", numbers[1]: "B"}
    if numbers[0] == 1:
        meant[0] = "tie"
    choice = meant.get(number)
    return _comparison(choice, None, None if choice else f"no label: {value!r}", judge, principle)


# ---------------------------------------------------------------- several completions


def _listed(row: dict[str, Any], origin: str) -> Row:
    column = "completions" if isinstance(row.get("completions"), list) else "answers"
    if column == "completions" and isinstance(row.get("answers"), list):
        fix = "name one of them with `columns: {completions: ...}`"
        raise UnknownShape("both `completions` and `answers` hold a list", fix)
    messages = prompt_messages({k: v for k, v in row.items() if k != column})
    while messages and messages[-1].role == "assistant":
        messages.pop()
    row = _without_missing(row, column)
    entries = row[column]
    written = [_entry(row, entry, i, column) for i, entry in enumerate(entries)]
    if not written:
        raise Unusable("no completion")
    if column == "completions" and any(isinstance(e, dict) and ("annotations" in e) for e in entries):
        ratings, scores = _annotated([entry if isinstance(entry, dict) else {} for entry in entries])
        return _row(row, origin, messages, written, ratings=tuple(ratings), scores=tuple(scores))
    ranks, given = _beside(row, entries, ("ranks", "rank")), _beside(row, entries, ("scores", *ENTRY_SCORES))
    judge = _name(row, "judge") or JUDGE
    rankings = () if ranks is None else (_ranking(ranks, judge, _name(row, "principle")),)
    aspects = [_name(entry, "aspect") if isinstance(entry, dict) else None for entry in entries]
    scored = tuple(_score(i, value, judge, aspects[i]) for i, value in enumerate(given or ()) if value is not None)
    return _row(row, origin, messages, written, rankings=rankings, scores=scored)


ENTRY_SCORES = ("score", "pm_score", "rating", "reward")  # within a completion; the first that one has counts
BESIDE = ("ranks", "scores", "models")  # lists with a value for each completion


def unread_margin(row: Mapping[str, Any]) -> str | None:
    """That a preference states a margin or scores which are no finite numbers, as a note; None if it does not."""
    if not {"chosen", "rejected"} <= row.keys() or all(score.problem is None for score in _side_scores(row)):
        return None
    return f"a margin, or one of two scores, is no finite number of at most {MOST_SCORE:g}, and is not used"


def missing_completions(row: Mapping[str, Any]) -> int:
    """How many completions of a list are null, and left out."""
    listed: list[Any] = next((row[name] for name in ("completions", "answers") if isinstance(row.get(name), list)), [])
    return sum(map(_is_missing, listed))


def _is_missing(entry: Any) -> bool:
    return entry is None or (isinstance(entry, dict) and any(name in entry for name in _WORDS) and not any(
        entry.get(name) is not None for name in _WORDS))  # fmt: skip


def _without_missing(row: dict[str, Any], column: str) -> dict[str, Any]:
    """The row without the completions that are null, and without what stands beside them in other lists."""
    gone = {i for i, entry in enumerate(row[column]) if _is_missing(entry)}
    if not gone:
        return row
    count = len(row[column])
    lists = [name for name in (column, *BESIDE) if isinstance(row.get(name), list) and len(row[name]) == count]
    return row | {name: [value for i, value in enumerate(row[name]) if i not in gone] for name in lists}


_WORDS = ("text", "completion", "answer", "response", "content")


def _entry(row: Mapping[str, Any], entry: Any, index: int, column: str) -> _Written:
    """One of a row's completions: its text, or an object that holds it and says who wrote it."""
    models = row.get("models")
    listed = models[index] if isinstance(models, list) and len(models) == len(row[column]) else None
    sampler = writable(listed) if isinstance(listed, str) and listed else f"completion-{index + 1}"
    if isinstance(entry, str | int | float):
        return _Written(sampler, text_of(entry, column))
    if isinstance(entry, list):  # TRL's conversational form
        turns = messages_of(entry, column)
        if [turn.role for turn in turns] != ["assistant"]:
            raise Unusable("a completion of more than one turn")
        return _Written(sampler, turns[0].content)
    columns = [name for name in _WORDS if isinstance(entry, dict) and entry.get(name) is not None]
    if len(columns) != 1:
        what = names(entry) if isinstance(entry, dict) else type(entry).__name__
        fix = f"each is a text, or an object with one of {', '.join(f'`{name}`' for name in _WORDS)}"
        raise UnknownShape(f"`{column}` holds {what}", fix)
    if columns == ["content"] and "role" in entry:
        return _entry(row, [entry], index, column)
    return _Written(_name(entry, "model") or sampler, text_of(entry[columns[0]], columns[0]), _name(entry, "call"))


def _beside(row: Mapping[str, Any], entries: Sequence[Any], columns: tuple[str, ...]) -> list[Any] | None:
    """A value for each completion, from a list beside them or from within each; None where no row has one."""
    for column in columns[:2]:
        if isinstance(listed := row.get(column), list):
            if len(listed) != len(entries):
                problem = f"`{column}` holds {len(listed)} for {len(entries)} completions"
                raise UnknownShape(problem, "give one for each, null where there is none")
            return listed
    for column in columns[1:]:
        inside = [entry.get(column) if isinstance(entry, dict) else None for entry in entries]
        if any(value is not None for value in inside):
            return inside
    return None


def _ranking(ranks: Sequence[Any], judge: str, principle: str | None) -> Ranking:
    """1 is the best; equal ranks are tied."""
    shown = tuple(range(len(ranks)))
    numbers = [number_of(rank) for rank in ranks]
    if None in numbers:
        problem = f"no rank: {_shown(ranks[numbers.index(None)])}"
        return Ranking(order=None, shown=shown, judge=judge, principle=principle, problem=problem)
    tiers: dict[float, list[int]] = {}
    for index, number in enumerate(numbers):
        tiers.setdefault(number or 0.0, []).append(index)
    order = tuple(tuple(tiers[number]) for number in sorted(tiers))
    return Ranking(order=order, shown=shown, judge=judge, principle=principle)


# ---------------------------------------------------------------- UltraFeedback


def _annotated(entries: Sequence[dict[str, Any]]) -> tuple[list[Rating], list[Score]]:
    """Ratings by aspect, and the overall score: of the published set (annotations by aspect) or of ours (a list).

    Several judges may rate one aspect; the ratings carry the judge's name.
    """
    ratings: list[Rating] = []
    scores: list[Score] = []
    for index, entry in enumerate(entries):
        noted = entry.get("annotations") or {}
        if not isinstance(noted, dict | list):
            raise UnknownShape(f"`annotations` holds {type(noted).__name__}", "it is a list, or an object by aspect")
        published = isinstance(noted, dict)
        listed = noted.items() if isinstance(noted, dict) else ((None, each) for each in noted)
        own = [_rating(index, aspect, each, published) for aspect, each in listed if each or not published]
        ratings += own
        if published and entry.get("overall_score") is not None:
            scores.append(_overall(index, entry, own))
        elif entry.get("overall_score") is not None or entry.get("overall_problem") is not None:
            judge, problem = _name(entry, "overall_judge") or JUDGE, _name(entry, "overall_problem")
            score = _score(index, entry.get("overall_score"), judge, OVERALL)
            scores.append(score.model_copy(update={"value": None, "problem": problem}) if problem else score)
    return ratings, scores


def _rating(candidate: int, aspect: str | None, noted: Any, published: bool) -> Rating:
    """A rating as an annotation gives it, which names its aspect where that is None."""
    if not isinstance(noted, dict):
        raise UnknownShape(f"an annotation is {type(noted).__name__}", "it is an object with `Rating`")
    aspect = aspect if aspect is not None or noted.get("aspect") is None else str(noted["aspect"])
    if "Rating" not in noted or aspect is None:
        raise UnknownShape(f"an annotation holds {names(noted)}", "it has `Rating`, and `Rationale` in words")
    problem, spelt = _name(noted, "problem"), noted["Rating"]
    value, na = None, False
    if problem is None:
        value, na, problem = _read_rating(spelt, published)
    words = [_name(noted, column) for column in ("Rationale", "Rationale For Rating")]
    types = noted.get("types", noted.get("Type"))
    listed = types if isinstance(types, list) else [types]
    position = noted.get("position")
    return Rating(
        aspect=writable(aspect),
        candidate=candidate,
        value=value,
        na=na,
        types=tuple(writable(str(each)) for each in listed if each not in (None, "", "None", "N/A")),
        raw="\n".join(word for word in words if word),
        problem=problem,
        judge=_name(noted, "judge") or JUDGE,
        call=_name(noted, "call") or "",
        position=position if type(position) is int and 0 <= position < 2**31 else candidate + 1,
    )


def _read_rating(spelt: Any, published: bool) -> tuple[int | None, bool, str | None]:
    """A rating as the file spells it: a whole number (1 to 5 in the published set), N/A, or the problem."""
    if isinstance(spelt, str) and spelt.strip().upper() == "N/A":
        return None, True, None
    number = int(spelt) if isinstance(spelt, str) and re.fullmatch(r"\s*-?\d{1,6}\s*", spelt) else spelt
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or abs(number) >= 10**6:  # as of text
        return None, False, f"no rating: {_shown(spelt)}"
    if published and not 1 <= number <= 5:
        return None, False, f"{number} is not between 1 and 5"
    return number, False, None


_OVERALL_WORDS = re.compile(r"overall score\W{0,4}(\d+(?:\.\d+)?)(?:\s*/\s*(\d+))?(?![\d/])", re.IGNORECASE)


def _overall(candidate: int, entry: Mapping[str, Any], ratings: Sequence[Rating]) -> Score:
    """The published overall score, from 1 to 10.

    Its authors multiplied scores of at most 1 by 10, which turned 2,628 judgements of 1 into 10, and undid that where
    the mean rating was at most 2. Here a 10 is read as 10 where the critique says so or the mean is above 4, as 1 where
    the critique says so or the mean is at most 2, and is unparsed otherwise.
    """
    number = number_of(entry["overall_score"])
    problem = None
    if number is None or not 1 <= number <= 10:
        problem = f"no score from 1 to 10: {_shown(entry['overall_score'])}"
    elif number == 10:
        matches = _OVERALL_WORDS.findall(_name(entry, "critique") or "")
        stated = {float(value) for value, out_of in matches if out_of in ("", "10") and 1 <= float(value) <= 10}
        rated = [rating.value for rating in ratings if rating.value is not None]
        mean = sum(rated) / len(rated) if rated else number_of(entry.get("fine-grained_score"))
        if len(stated) == 1:
            number = stated.pop()
        elif mean is None or 2 < mean <= 4:
            problem = MISREAD
        elif mean <= 2:
            number = 1.0
    value = None if problem else number
    return Score(candidate=candidate, value=value, judge=JUDGE, aspect=OVERALL, problem=problem)


# Every shape with a judgement: its name in an error, the test that recognises it, the function that reads it.
_JUDGED: dict[str, tuple[Callable[[Mapping[str, Any]], bool], Callable[[dict[str, Any], str], Row]]] = {
    "a list of completions": (_lists_completions, _listed),
    "chosen and rejected": (_states_chosen, _stated),
    "two completions with a label": (_holds_two, _pair),
}
