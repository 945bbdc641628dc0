"""The chat template that a training uses: the base's own or another, adapted to the trainer's settings.

What a setting changes becomes part of the template, which is saved with the model: its prompts have the same tokens in
training and in use.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from rlaif.config import Training
from rlaif.engines.chat import Chat
from rlaif.records import Message
from rlaif.resources import bundled
from rlaif.templates import ChatTemplate, Conversation, TemplateFailure

FOLDER = "prompts/chat"  # of the templates that ship
WORDS = "PROBE"
# Renderings with less in common than this are of another format, and no template is suggested.
ALIKE = 0.8

# A system message becomes the beginning of the first user's, as Gemma 3's template has it.
_MERGING = (
    "{%- if messages and messages[0]['role'] == 'system' and messages | length > 1 -%}"
    "{%- set messages = [{'role': messages[1]['role'],"
    " 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}] + messages[2:] -%}"
    "{%- endif -%}\n"
)


def adapt(settings: Training, tokenizer: Any) -> None:
    """Make the template arguments and the merging of system messages part of the tokenizer's template."""
    template = tokenizer.chat_template
    if not isinstance(template, str):
        return
    adapted = assignments(settings.template_arguments) + (_MERGING if settings.system == "merge" else "")
    if not template.startswith(adapted):  # as that of a model that was trained with the same settings does
        tokenizer.chat_template = adapted + template


def assignments(arguments: Mapping[str, bool | int | float | str]) -> str:
    """What sets the arguments of a template, before its text."""
    # Python's ASCII literals are those of Jinja, but for the case of true and false, which Jinja reads both ways.
    return "".join(f"{{%- set {name} = {ascii(value)} -%}}\n" for name, value in arguments.items())


def closing_token(chat: Chat) -> int | None:
    """The special token that the template writes after the assistant's words; None when it writes none.

    A template may end a turn with a token that the model does not name as an end token: Llama 3's `<|eot_id|>` on a
    base that was trained on plain text.
    """
    question, answer = Message(role="user", content="A"), Message(role="assistant", content=WORDS)
    try:
        text = chat.render([question, answer])
    except TemplateFailure:
        return None
    after = text.rpartition(WORDS)[2].lstrip()
    added = {token.content: number for number, token in chat.tokenizer.added_tokens_decoder.items() if token.special}
    found = [token for token in added if after.startswith(token)]
    return added[max(found, key=len)] if found else None


# ---------------------------------------------------------------- suggested


def nearest_shipped(chat: Chat) -> str | None:
    """The shipped template that writes a conversation most like the chat's own, by its path; None if none is like it.

    So a base whose template has no marks can be trained by one that has them, and keeps its format.
    """
    own = _shown(chat.tokenizer, chat.template.source)
    if own is None:
        return None
    likeness = {
        f"{FOLDER}/{path.name}": SequenceMatcher(None, own, shown, autojunk=False).ratio()
        for path in shipped()
        if (shown := _shown(chat.tokenizer, path.read_text(encoding="utf-8"))) is not None
    }
    best = max(likeness, key=lambda name: likeness[name], default=None)
    return best if best is not None and likeness[best] >= ALIKE else None


def shipped() -> Iterable[Path]:
    """The chat templates that ship with the package."""
    root = bundled("prompts")
    return sorted((root / FOLDER).glob("*.jinja")) if root is not None else ()


def _shown(tokenizer: Any, template: str) -> str | None:
    """What a template makes of a conversation after its first words; None where it refuses it.

    Before these some templates write a system message of their own, which is no part of their format.
    """
    other = copy.copy(tokenizer)
    other.chat_template = template
    turns = [("user", WORDS), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    messages = [{"role": role, "content": words} for role, words in turns]
    try:
        (text,) = ChatTemplate(other).render([Conversation(messages)])
    except TemplateFailure:
        return None
    if isinstance(text, TemplateFailure):
        return None
    return text.partition(WORDS)[2].strip()
