"""From conversations to token ids: what is read, what is learnt, what is cut, what is dropped.

The ids are those of `engines.chat`; here stands what training asks of a chat template besides. What is learnt follows
from where a text stands in the conversation, never from which token ids it has. Two things always hold: the tokens
before an assistant's words are exactly those the model is given when it is asked, and the last token learnt is the end
token, with nothing after it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from rlaif.engines.chat import Chat, defused
from rlaif.errors import InputError, WorkError
from rlaif.records import Message

_render_jinja_template: Any = render_jinja_template  # its annotations are not what it takes and returns

MARKED = "a template that marks the assistant's turns, such as prompts/chat/chatml.jinja"


class Counts:
    """How many rows were kept, how many of those had their prompt cut, and why the others were dropped."""

    def __init__(self) -> None:
        self.kept, self.cut = 0, 0
        self.dropped: Counter[str] = Counter()

    def add(self, other: Counts) -> None:
        """Count the rows of another split too."""
        self.kept, self.cut = self.kept + other.kept, self.cut + other.cut
        self.dropped += other.dropped

    def check(self, max_length: int) -> None:
        """Raise InputError where there were no rows, WorkError where none is left to train on."""
        total = self.kept + self.dropped.total()
        if not total:
            raise InputError("there is nothing to train on: no rows", fix="look at the stage the data comes from")
        if not self.kept:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.dropped.most_common())
            fix = f"raise `max_length` (now {max_length})" if self.dropped["too-long"] else "look at the completions"
            raise WorkError(f"none of the {total} rows can be trained on ({reasons})", fix=fix)


class Segment(NamedTuple):
    """Tokens that stand together, and whether they are learnt."""

    ids: list[int]
    learnt: bool


def trainable_chat(tokenizer: PreTrainedTokenizerBase, file: str | None = None) -> Chat:
    """The tokenizer with its one chat template. `file` is where the template was read, for errors.

    Raises InputError for a tokenizer without a chat template, with several, or without an end token.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str):
        problem = "several chat templates" if template else "no chat template"
        raise InputError(f"the base model has {problem}", key="template", fix=f"give {MARKED}")
    if not tokenizer.eos_token:
        raise InputError("the base model's tokenizer has no end token", fix="set its `eos_token`")
    return Chat(tokenizer, file, ends=frozenset({_end_id(tokenizer)}), limit=None)


def _end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    end = tokenizer.eos_token_id
    assert isinstance(end, int), "a tokenizer with an end token has its id"
    return end


def require_marks(chat: Chat) -> None:
    """Raise InputError when the template does not say which of its text is the assistant's."""
    if not re.search(r"\{%-?\s*generation\s*-?%\}", chat.tokenizer.chat_template):
        raise _error(chat, "the chat template marks no assistant turn with `{% generation %}`", f"give {MARKED}")


def conversation(chat: Chat, messages: Sequence[Message]) -> list[Segment]:
    """A conversation's tokens, the assistant's turns learnt; it ends with the last of them.

    Raises InputError for a template that refuses the messages, leaves a turn or its end token unmarked, or opens a turn
    otherwise than it asks for one.
    """
    text, spans = _marked(chat, messages)
    turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
    if len(spans) != len(turns):
        raise _error(chat, f"the chat template marks {len(spans)} of {len(turns)} assistant turns", f"use {MARKED}")
    stop = str(chat.tokenizer.eos_token)
    for turn, (start, end) in zip(turns, spans, strict=True):
        _check_prompt(chat, _prompt_text(chat, messages[:turn]), text[:start])
        if not text[start:end].endswith(stop):
            raise _error(
                chat,
                f"a marked turn does not end with the end token {stop!r}, so the model never learns to stop",
                "put the end token, and nothing after it, before `{% endgeneration %}`",
            )
    edges = [edge for span in spans for edge in span]
    return [Segment(ids, i % 2 == 1) for i, ids in enumerate(chat.pieces(text, edges))]


def completion(chat: Chat, prompt: Sequence[Message], words: str) -> tuple[list[int], list[int]]:
    """The tokens of a prompt, and those of its completion with the end token.

    Raises InputError for a template that refuses the messages, opens a turn otherwise than it asks for one, or does not
    write the words as they are, then the end token.
    """
    try:
        prompt_text, text = chat.written(prompt, words)
    except (jinja2.TemplateError, TypeError) as error:
        raise _refusal(chat, [*prompt, Message(role="assistant", content=words)], error) from None
    _check_prompt(chat, prompt_text, text[: len(prompt_text)])
    stop = str(chat.tokenizer.eos_token)
    end = text.rfind(stop, len(prompt_text))
    written = text[len(prompt_text) : max(end, 0)].strip()
    if chat.continues_plainly or written != defused(words, chat.markers).strip():
        raise _error(
            chat,
            f"the chat template does not put the assistant's words, then the end token {stop!r}",
            f"first train it with `rlaif train sft` and `template=`, {MARKED}",
        )
    before, after = chat.pieces(text, [len(prompt_text), end + len(stop)])
    return before, after


def prompt(chat: Chat, messages: Sequence[Message]) -> list[int]:
    """The tokens of a prompt, as a model is asked it; a prompt's tokens do not depend on what follows it.

    Raises InputError as `completion` does.
    """
    return completion(chat, messages, "x")[0]


def cut(chat: Chat, prompt: list[int], room: int) -> list[int] | None:
    """The prompt's end that fits into `room` tokens; None when less than half would be left, which is another prompt.

    What fits is returned as the very list that was given.
    """
    if len(prompt) <= room:
        return prompt
    if 2 * room < len(prompt):
        return None
    # A text opens with one BOS, also when its beginning is gone: models that were trained with it degrade without.
    head = prompt[:1] if prompt[0] == chat.tokenizer.bos_token_id else []
    return head + prompt[len(prompt) - room + len(head) :]


def broken(chat: Chat, words: str) -> bool:
    """Whether the words themselves spell the end token: what comes after it was never meant to be said."""
    return str(chat.tokenizer.eos_token) in words


def _prompt_text(chat: Chat, messages: Sequence[Message]) -> str:
    try:
        return chat.render(messages, generation_prompt=True)
    except (jinja2.TemplateError, TypeError) as error:
        raise _refusal(chat, messages, error) from None


def _marked(chat: Chat, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
    """A conversation as text, and where in it the template marks the assistant's words."""
    tokenizer = chat.tokenizer
    try:
        texts, spans = _render_jinja_template(
            [[{"role": m.role, "content": defused(m.content, chat.markers)} for m in messages]],
            chat_template=tokenizer.chat_template,
            return_assistant_tokens_mask=True,
            **{name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)},
        )
    except (jinja2.TemplateError, TypeError) as error:
        raise _refusal(chat, messages, error) from None
    return texts[0], spans[0]


def _check_prompt(chat: Chat, prompt_text: str, before: str) -> None:
    if prompt_text != before:
        raise _error(
            chat,
            f"the chat template asks with {prompt_text[-40:]!r} but trains after {before[-40:]!r}",
            "make `add_generation_prompt` open the turn exactly as an assistant's turn opens",
        )


def _refusal(chat: Chat, messages: Sequence[Message], error: Exception) -> InputError:
    roles = ", ".join(message.role for message in messages)
    return _error(
        chat, f"the chat template refuses a conversation of {roles}: {error}", "use a template that takes these roles"
    )


def _error(chat: Chat, message: str, fix: str) -> InputError:
    return InputError(message, file=chat.file, fix=fix)
