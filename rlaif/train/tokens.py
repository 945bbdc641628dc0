"""From conversations to token ids: which tokens are trained on, truncated or dropped.

The ids are those of `engines.chat`; here is what training requires of a chat template besides. Which tokens are trained
on follows from their position in the conversation, never from their ids. Two things always hold: the tokens before an
assistant's words are exactly the prompt that the model gets in use, and the last trained token is the end token, with
nothing after it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from rlaif.engines.chat import Chat, Item
from rlaif.errors import InputError, WorkError
from rlaif.records import Message
from rlaif.templates import TemplateFailure
from rlaif.templates.chat import Marked

ROWS_AT_ONCE = 64  # each a few times in memory as text; the other process gets them in a few messages

Row = TypeVar("Row")
Shown = TypeVar("Shown", str, Marked, tuple[str, str])

MARKED = "a template that marks the assistant's turns, such as prompts/chat/chatml.jinja"


class Counts:
    """The number of rows kept, of those with a truncated prompt, and of those dropped, by reason; and what to tell."""

    def __init__(self) -> None:
        self.kept, self.cut = 0, 0
        self.dropped: Counter[str] = Counter()
        self.notes: list[str] = []

    def add(self, other: Counts) -> None:
        """Add the counts of another split."""
        self.kept, self.cut = self.kept + other.kept, self.cut + other.cut
        self.dropped += other.dropped

    def check(self, max_length: int, asked: int) -> None:
        """Raise InputError when there were no rows, WorkError when none is left.

        A note tells when rows were too long for the model's context, `max_length`, which is less than was asked for.
        """
        total = self.kept + self.dropped.total()
        if not total:
            raise InputError("there is nothing to train on: no rows", fix="check the stage that the data comes from")
        if not self.kept:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.dropped.most_common())
            fix = "check the completions"
            if self.dropped["too-long"]:
                window = f"give shorter rows: the model's context has {max_length} tokens"
                fix = f"raise `max_length` (now {asked})" if max_length == asked else window
            raise WorkError(f"none of the {total} rows can be trained on ({reasons})", fix=fix)
        if max_length < asked and (self.cut or self.dropped["too-long"]):
            self.notes.append(
                f"the model's context has {max_length} tokens, and `max_length` {asked}: rows were too long"
            )


class Segment(NamedTuple):
    """Consecutive tokens, and whether they are trained on."""

    ids: list[int]
    learnt: bool


def trainable_chat(tokenizer: PreTrainedTokenizerBase, file: str | None = None) -> Chat:
    """The tokenizer with its chat template. `file` names the template in errors.

    Raises InputError for a tokenizer without a chat template, with several, or without an end token.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str):
        problem = "several chat templates" if template else "no chat template"
        raise InputError(f"the base model has {problem}", key="template", fix=f"give {MARKED}")
    if not tokenizer.eos_token:
        raise InputError("the base model's tokenizer has no end token", fix="set its `eos_token`")
    return Chat(tokenizer, file, ends=frozenset({_end_id(tokenizer)}), limit=None)


def beginning(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The template, after the tokenizer's BOS where the tokenizer begins its texts with it and the template does not.

    The base model saw every text begin with it: without it a model loses most of what it knows (Gemma, Mistral, Llama).
    A template that names `bos_token`, if only in a comment, decides for itself.
    """
    begin = tokenizer.bos_token
    if begin is None or "bos_token" in template or begin in template:
        return template
    adds: list[int] = tokenizer("a")["input_ids"]
    return "{{- bos_token -}}\n" + template if adds[:1] == [tokenizer.bos_token_id] else template


def _end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    end = tokenizer.eos_token_id
    assert isinstance(end, int), "a tokenizer with an end token has its id"
    return end


def require_marks(chat: Chat) -> None:
    """Raise InputError when the template does not mark the assistant's turns."""
    if not re.search(r"\{%-?\s*generation\s*-?%\}", chat.template.source):
        raise _error(chat, "the chat template marks no assistant turn with `{% generation %}`", f"give {MARKED}")


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows, as many at a time as are rendered and tokenized together."""
    stream = iter(rows)
    while batch := list(islice(stream, ROWS_AT_ONCE)):
        yield batch


def conversations(chat: Chat, talks: Sequence[Sequence[Message]]) -> list[list[Segment]]:
    """Each conversation's tokens through the last assistant turn; the assistant's turns are trained on.

    Raises InputError for a template that refuses the messages, leaves a turn or its end token unmarked, or opens a turn
    differently from its generation prompt.
    """
    asked = [[talk[:i] for i, message in enumerate(talk) if message.role == "assistant"] for talk in talks]
    prompts = iter(chat.rendered([(messages, True) for each in asked for messages in each]))
    marked = chat.marked(talks, render_jinja_template)
    texts = [
        _checked_turns(chat, _accepted(chat, talk, shown), list(zip(each, prompts, strict=False)))
        for talk, shown, each in zip(talks, marked, asked, strict=True)
    ]
    return [[Segment(ids, i % 2 == 1) for i, ids in enumerate(pieces)] for pieces in chat.pieces(texts)]


def _checked_turns(
    chat: Chat, marked: Marked, asked: Sequence[tuple[Sequence[Message], str | TemplateFailure]]
) -> tuple[str, list[int]]:
    """A conversation as text, and the edges of its assistant turns. `asked` has what is before each, as it is asked."""
    text, spans = marked
    if len(spans) != len(asked):
        raise _error(chat, f"the chat template marks {len(spans)} of {len(asked)} assistant turns", f"use {MARKED}")
    stop = str(chat.tokenizer.eos_token)
    for (messages, prompt), (start, end) in zip(asked, spans, strict=True):
        _check_prompt(chat, _accepted(chat, messages, prompt), text[:start])
        if not text[start:end].endswith(stop):
            raise _error(
                chat,
                f"a marked turn does not end with the end token {stop!r}, so the model never learns to stop",
                "put the end token, and nothing after it, before `{% endgeneration %}`",
            )
    return text, [edge for span in spans for edge in span]


def completions(chat: Chat, items: Sequence[Item]) -> list[tuple[list[int], list[int]]]:
    """For each item the tokens of its prompt, and those of its completion with the end token.

    Raises InputError for a template that refuses the messages, opens a turn differently from its generation prompt, or
    does not write the words unchanged and then the end token.
    """
    texts = [
        _checked_words(chat, words, *_accepted(chat, [*prompt, Message(role="assistant", content=words)], written))
        for (prompt, words), written in zip(items, chat.written(items), strict=True)
    ]
    return [(before, after) for before, after in chat.pieces(texts)]


def _checked_words(chat: Chat, words: str, prompt_text: str, text: str) -> tuple[str, list[int]]:
    """A prompt and its completion as text, and the edges of the completion."""
    _check_prompt(chat, prompt_text, text[: len(prompt_text)])
    stop = str(chat.tokenizer.eos_token)
    end = text.rfind(stop, len(prompt_text))
    written = text[len(prompt_text) : max(end, 0)].strip()
    if chat.continues_plainly or written != chat.defused(words).strip():
        raise _error(
            chat,
            f"the chat template does not write the assistant's words unchanged, then the end token {stop!r}",
            f"first train it with `rlaif train sft` and `template=`, {MARKED}",
        )
    return text, [len(prompt_text), end + len(stop)]


def prompts(chat: Chat, conversations: Sequence[tuple[Message, ...]]) -> list[list[int]]:
    """The tokens of each prompt, which do not depend on what follows it.

    Raises InputError as `completions` does.
    """
    return [prompt for prompt, _ in completions(chat, [(messages, "x") for messages in conversations])]


def cut(chat: Chat, prompt: list[int], room: int) -> list[int] | None:
    """The end of the prompt that fits into `room` tokens; None when less than half would be left.

    A prompt that fits is returned as the same list.
    """
    if len(prompt) <= room:
        return prompt
    if 2 * room < len(prompt):
        return None
    # A truncated text keeps its BOS: models trained with one degrade without.
    head = prompt[:1] if prompt[0] == chat.tokenizer.bos_token_id else []
    return head + prompt[len(prompt) - room + len(head) :]


def broken(chat: Chat, words: str) -> bool:
    """Whether the words spell the end token themselves."""
    return str(chat.tokenizer.eos_token) in words


def _accepted(chat: Chat, messages: Sequence[Message], shown: Shown | TemplateFailure) -> Shown:
    """What the template made of the messages. Raises InputError when it refused them."""
    if not isinstance(shown, TemplateFailure):
        return shown
    roles = ", ".join(message.role for message in messages)
    raise _error(
        chat, f"the chat template refuses a conversation of {roles}: {shown}", "use a template that takes these roles"
    )


def _check_prompt(chat: Chat, prompt_text: str, before: str) -> None:
    if prompt_text != before:
        raise _error(
            chat,
            f"the chat template asks with {prompt_text[-40:]!r} but trains after {before[-40:]!r}",
            "make `add_generation_prompt` open the turn exactly as an assistant's turn opens",
        )


def _error(chat: Chat, message: str, fix: str) -> InputError:
    return InputError(message, file=chat.file, fix=fix)
