"""Columns into messages: the names that prompts and conversations go by in published files, and how turns are written.

A row of an unknown shape raises UnknownShape. A row of a known shape that cannot be used raises Unusable; its message
is the reason that the dropped row is counted under.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from rlaif.errors import nearest
from rlaif.formats.files import names
from rlaif.records import Message, Role, canonical

PROMPT_SHAPES = "`messages`, `conversations`, `prompt`, `instruction` (+ `input` or `instances`), `question`, `turns`"
CONVERSATION_SHAPES = (
    "`messages`, `conversations`, `prompt` + `completion`, `instruction` (+ `input`) + `output`, "
    "`instruction` + `instances`, `question` + `answer`"
)
PREFERENCE_SHAPES = (
    "`chosen` and `rejected`, as text or messages beside a prompt, as messages with the prompt in them, or as "
    "transcripts of `Human:` and `Assistant:`"
)


class Unusable(Exception):
    """A row of a known shape that is dropped. The message is the reason that it is counted under."""


class UnknownShape(Exception):
    """A row of an unknown shape. It stops the reading. `fix` says what to write."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


# In lower case.
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",  # OpenAI's later word
    "user": "user",
    "human": "user",  # ShareGPT
    "prompter": "user",  # Open Assistant
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",  # Gemini and Gemma
    "bot": "assistant",
    "ai": "assistant",
}
SYSTEM = "system"  # the column of a system message


def prompt_messages(row: dict[str, Any]) -> list[Message]:
    """The messages of a row's prompt, with the assistant turns that the file has after it.

    Raises UnknownShape where no known column holds one, and Unusable where it is empty or holds no text.
    """
    return _after_system(row, _prompt_messages(row))


def _prompt_messages(row: dict[str, Any]) -> list[Message]:
    for name in ("messages", "conversations"):
        if name in row:
            return messages_of(row[name], name)
    if "prompt" in row:
        text = row["prompt"]
        return transcript(text) if _is_transcript(text) else messages_of(text, "prompt")
    if "instruction" in row:
        return [Message(role="user", content=_instruction(row))]
    for name in ("question", "Question"):
        if name in row:
            return messages_of(row[name], name)
    if "turns" in row:  # MT-Bench: what the user says in turn, of which the first needs no answer before it
        turns = row["turns"]
        if not isinstance(turns, list) or not turns:
            raise Unusable("empty prompt")
        return messages_of(turns[0], "turns")
    raise unknown(row, PROMPT_SHAPES, "or name the column that holds the prompts with `column`")


def conversation_messages(row: dict[str, Any]) -> list[Message]:
    """The messages of a row's conversation. Raises UnknownShape and Unusable as `prompt_messages` does."""
    return _after_system(row, _conversation_messages(row))


def _conversation_messages(row: dict[str, Any]) -> list[Message]:
    for name in ("messages", "conversations"):
        if name in row:
            return messages_of(row[name], name)
    for prompt_column, completion_column in COMPLETED:
        if {prompt_column, completion_column} <= row.keys():
            completion = messages_of(row[completion_column], completion_column, role="assistant")
            return [*_prompt_messages({k: v for k, v in row.items() if k in (prompt_column, "input")}), *completion]
    raise unknown(row, CONVERSATION_SHAPES, "under one of these sets of names")


# A prompt and its one completion, by the names of their columns. The first that a row has counts.
COMPLETED = (
    ("prompt", "completion"),
    ("instruction", "output"),
    ("question", "answer"),
    ("prompt", "response"),  # HelpSteer
    ("instruction", "response"),  # Dolly
    ("question", "response"),  # OpenOrca
)


def _after_system(row: dict[str, Any], messages: list[Message]) -> list[Message]:
    """The messages with the text of a `system` column in front, where none stands."""
    text = row.get(SYSTEM)
    if text is None or (isinstance(text, str) and not text.strip()) or not messages or messages[0].role == "system":
        return messages
    return [Message(role="system", content=text_of(text, SYSTEM)), *messages]


_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("\n\nHuman:")


def transcript(text: str) -> list[Message]:
    """The turns of one of Anthropic's HH transcripts; a turn in two parts is one, an empty last one is left out."""
    parts = _TURN.split(text)[1:]
    roles: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
    messages: list[Message] = []
    for who, words in zip(parts[::2], parts[1::2], strict=True):
        if messages and messages[-1].role == roles[who]:
            joined = f"{messages[-1].content}\n\n{words.strip()}".strip()
            messages[-1] = Message(role=roles[who], content=joined)
        else:
            messages.append(Message(role=roles[who], content=words.strip()))
    return messages


def side_messages(row: dict[str, Any], name: str) -> list[Message]:
    """One completion with its prompt: a value that is a whole conversation holds the prompt already.

    Raises UnknownShape where no known column holds the prompt, and Unusable where prompt and completion do not fit.
    """
    value = row[name]
    if isinstance(value, str) and _TURN.match(value):
        return _after_system(row, transcript(value))
    side = messages_of(value, name, role="assistant")
    if not side:
        raise Unusable("no assistant turn at the end")
    if side[0].role != "assistant":
        return _after_system(row, _with_prompt(row, side))
    if "prompt" in row:  # `messages` beside it are the conversation that was chosen
        row = {key: value for key, value in row.items() if key not in ("messages", "conversations")}
    try:
        prompt = prompt_messages(row)
    except UnknownShape:
        raise unknown(row, f"`prompt` beside `{name}`", "or name its column: `columns: {prompt: ...}`") from None
    while prompt and prompt[-1].role == "assistant" and not prompt[-1].content:
        prompt.pop()  # a transcript that ends where the assistant begins
    if prompt and prompt[-1].role == "assistant":
        raise Unusable("the prompt ends with an assistant turn")
    return [*prompt, *side]


def _with_prompt(row: dict[str, Any], side: list[Message]) -> list[Message]:
    """A side that holds its own prompt, which a `prompt` beside it may repeat, or open with a system message."""
    stated = messages_of(row["prompt"], "prompt") if row.get("prompt") is not None else []
    opening, rest = _opening(stated)
    ours, body = _opening(side)
    if body[: len(rest)] != rest or (opening and ours and opening != ours):
        raise Unusable("the prompt is not how the two begin")
    return [*(ours or opening), *body]


def _opening(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """The system messages at the start, and what follows."""
    first = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    return messages[:first], messages[first:]


def column_messages(row: dict[str, Any], column: str) -> list[Message]:
    """The messages in the named column. Raises UnknownShape where the row has no such column."""
    if column not in row:
        raise UnknownShape(f"there is no column {column!r}, only {names(row)}", nearest(column, map(str, row)))
    return messages_of(row[column], column)


def _instruction(row: dict[str, Any]) -> str:
    """Alpaca's two fields as one text."""
    parts = [text_of(row[name], name) for name in ("instruction", "input") if row.get(name) is not None]
    return "\n\n".join(part for part in parts if part.strip())


def messages_of(value: Any, name: str, role: Role = "user") -> list[Message]:
    """Text as one message of `role`, or messages written either as role and content or as from and value.

    A table may hold the messages as JSON. Raises UnknownShape for a value of another type, and Unusable for a turn by
    an unknown role.
    """
    if value is None:
        return []
    if isinstance(value, str) and (written := messages_in(value, name)) is not None:
        value = written
    if is_message(value):
        value = [value]
    if not isinstance(value, list):
        text = text_of(value, name)
        # Older fine-tuning files spell the end token out; as text it would be taught letter by letter.
        return [Message(role=role, content=text.removesuffix("<|endoftext|>") if role == "assistant" else text)]
    return [_message(item, name) for item in value]


# How messages begin that were written as text: as JSON, or as Python or numpy show them.
_AS_TEXT = re.compile(r"""\s*\[?\s*\{\s*(["'])(?:role|content|from|value)\1\s*:""")


def messages_in(text: str, name: str) -> list[dict[str, Any]] | None:
    """The messages that a text holds as JSON; None of any other text. Raises UnknownShape for Python's spelling."""
    if text.lstrip()[:1] not in ("[", "{") or (begins := _AS_TEXT.match(text)) is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if begins[1] == "'" and text.rstrip()[-1:] in ("]", "}"):
            fix = "write them with `json.dumps`, or save the file as .jsonl or .parquet"
            raise UnknownShape(f"`{name}` holds messages as Python shows them, not as JSON", fix) from None
        return None
    messages = value if isinstance(value, list) else [value]
    return messages if all(map(is_message, messages)) else None


def is_message(item: Any) -> bool:
    return isinstance(item, dict) and ({"role", "content"} <= item.keys() or {"from", "value"} <= item.keys())


def _message(item: Any, name: str) -> Message:
    fields = ("role", "content") if isinstance(item, dict) and "role" in item else ("from", "value")
    if not isinstance(item, dict) or not set(fields) <= item.keys():
        held = names(item) if isinstance(item, dict) else repr(item)[:40]
        raise UnknownShape(
            f"`{name}` holds a message with {held}", "a message has `role` and `content`, or `from` and `value`"
        )
    if item.get("tool_calls") or item.get("function_call"):
        raise Unusable("a turn with tool calls")
    role, content = item[fields[0]], item[fields[1]]
    known = _ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise Unusable(f"a turn by {str(role)[:40]!r}")
    return Message(role=known, content=_content(content))


_TEXT_PARTS = (None, "text", "input_text", "output_text")


def _content(content: Any) -> str:
    """The text of a turn, which may be in parts. Raises Unusable where a part is an image or the like."""
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in _TEXT_PARTS:
                raise Unusable(f"a turn with a part of the type {str(kind)[:40]!r}")
        content = [part.get("text") if isinstance(part, dict) else part for part in content]
        if not content or not all(isinstance(text, str) for text in content):
            raise Unusable("a turn that is not text")
        return "".join(content)
    if not _is_textual(content):
        raise Unusable("a turn that is not text")
    return str(content)


def text_of(value: Any, name: str) -> str:
    """The value as text: a spreadsheet turns "12" and "True" into other types. Raises UnknownShape for other values."""
    if not _is_textual(value):
        raise UnknownShape(f"`{name}` holds {_KINDS.get(type(value), type(value).__name__)}", _TEXT_FIX)
    return str(value)


def _is_textual(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


_TEXT_FIX = "it must be text, or a list of messages; name a part of it by its path, such as `columns: {prompt: a.b}`"
_KINDS: dict[type, str] = {dict: "keys and values", list: "a list"}
_SPELT = re.compile(r"\s*-?\d+(\.\d+)?([eE][-+]?\d+)?\s*")


MOST_SCORE = 1e100  # of a score, up or down: differences and weighted sums of such are finite


def number_of(value: Any) -> float | None:
    """A number of at most MOST_SCORE up or down, or text that spells one as JSON does; None for anything else."""
    if isinstance(value, str) and len(value) <= 400 and _SPELT.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of many digits
        return None
    return number if abs(number) <= MOST_SCORE else None  # NaN is not


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def check_turns(prompt: Sequence[Message], completions: Iterable[str] = ()) -> None:
    """Raise Unusable for a prompt that asks nothing, and for text that no tokenizer takes."""
    if not prompt:
        raise Unusable("empty prompt")
    if prompt[-1].role != "user":
        raise Unusable("no user turn to answer")
    if not prompt[-1].content.strip():
        raise Unusable("empty prompt")
    if any(_LONE_SURROGATE.search(text) for text in (*(message.content for message in prompt), *completions)):
        raise Unusable("not valid Unicode")  # half a surrogate pair, which JSON can spell and no tokenizer takes


def unknown(row: dict[str, Any], known: str, otherwise: str) -> UnknownShape:
    return UnknownShape(f"no known shape has the columns {names(row)}", f"give {known}, {otherwise}")


# ---------------------------------------------------------------- what is true of a prompt

REFERENCES = ("reference", "ground_truth", "correct_answers", "Correct Answers")


def reference_of(row: dict[str, Any]) -> tuple[str, ...]:
    """The true answers a row states: a text, a number or a list of them; TruthfulQA's in one text, between semicolons.

    MT-Bench has one for each of a prompt's `turns`, of which the first is asked.
    """
    name = next((name for name in REFERENCES if row.get(name) is not None), None)
    if name is None:
        return ()
    value = row[name]
    listed = value if isinstance(value, list) else str(value).split(";") if name == "Correct Answers" else [value]
    if "turns" in row and not {"prompt", "messages"} & row.keys():
        listed = listed[:1]
    texts = [str(item).strip() for item in listed if item is not None]
    if any(not text.isascii() and _LONE_SURROGATE.search(text) for text in texts):
        raise Unusable("not valid Unicode")
    return tuple(text for text in texts if text and text != "None")  # UltraFeedback writes "None" where it has none


def checks_of(row: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """What code can verify of a completion, as `judges.verifiers` reads it: `checks` of a row, IFEval's instructions.

    A key whose value is None is left out: tables write None wherever another row has a value. Raises UnknownShape
    where `checks` or `kwargs` cannot be read.
    """
    own = row.get("checks")
    if own is None:
        return _ifeval(row)
    try:
        own = json.loads(own) if isinstance(own, str) else own
        canonical(own).encode()  # a table may hold dates, and JSON half a surrogate pair or NaN
    except (ValueError, TypeError, RecursionError):
        own = ""
    if not isinstance(own, list | None) or not all(isinstance(check, dict) for check in own or ()):
        raise UnknownShape("`checks` is no list of checks", 'write [{"length": {"max_words": 100}}]')
    if _is_deeper(own, MOST_DEPTH):
        raise UnknownShape("`checks` is nested too deeply", f"use at most {MOST_DEPTH} lists and objects in each other")
    return (
        *({kind: about for kind, about in check.items() if about is not None} for check in own or ()),
        *_ifeval(row),
    )


MOST_DEPTH = 100  # of what a record keeps as it stands; pydantic writes no more than 255


def _is_deeper(value: Any, most: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return most < 0 or any(_is_deeper(part, most - 1) for part in parts)


def _ifeval(row: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """IFEval's instructions, each with those of its arguments that are given."""
    if "instruction_id_list" not in row:
        return ()
    ids: Any = row["instruction_id_list"]
    arguments: Any = row.get("kwargs")
    try:
        ids, arguments = (json.loads(part) if isinstance(part, str) else part for part in (ids, arguments))
        canonical([ids, arguments]).encode()
    except (ValueError, TypeError, RecursionError):
        ids = None
    whole = isinstance(ids, list) and isinstance(arguments, list) and len(ids) == len(arguments)
    if not whole or not all(isinstance(each, dict) for each in arguments) or _is_deeper(arguments, MOST_DEPTH):
        raise UnknownShape("`kwargs` does not fit `instruction_id_list`", "give one object of arguments for each id")
    return tuple(
        {"ifeval": {"id": str(name), "kwargs": {key: value for key, value in each.items() if value is not None}}}
        for name, each in zip(ids, arguments, strict=True)
    )
