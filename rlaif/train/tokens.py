"""From conversations to token ids: which tokens are trained on, truncated or dropped.

The ids are those of `engines.chat`; here is what training requires of a chat template besides. Which tokens are trained
on follows from their position in the conversation, never from their ids. Two things always hold: the tokens before an
assistant's words are exactly the prompt that the model gets in use, and the last trained token is the end token, with
nothing after it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from rlaif.config import Training
from rlaif.engines.chat import Chat, Item, end_tokens
from rlaif.errors import InputError, WorkError
from rlaif.records import Message
from rlaif.templates import TemplateFailure
from rlaif.templates.chat import Marked
from rlaif.train import chats

NOT_LEARNT = -100  # the label of a token that is context

Excess = Literal["truncate", "drop", "raise"]
Turns = Literal["all", "last", "text"]
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

    def check(self, max_length: int, asked: int, chat: Chat | None = None, config: Any = None) -> None:
        """Raise InputError when there were no rows, WorkError when none is left.

        The fix names the end tokens of `chat`, and the context of a model with this `config` that is full already.
        A note tells when rows were too long for the model's context, `max_length`, which is less than was asked for.
        """
        total = self.kept + self.dropped.total()
        if not total:
            raise InputError("there is nothing to train on: no rows", fix="check the stage that the data comes from")
        if not self.kept:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.dropped.most_common())
            fix = "check the completions"
            if self.dropped["end-token-inside"] and chat is not None:
                fix = f"take {_named(chat)} out of the texts: the template writes it"
            if self.dropped["too-long"]:
                full = max_length < asked or (config is not None and within_context(config, asked + 1) == asked)
                window = f"give shorter rows: the model's context has {max_length} tokens"
                fix = window if full else f"raise `max_length` (now {asked})"
            raise WorkError(f"none of the {total} rows can be trained on ({reasons})", fix=fix)
        if max_length < asked and (self.cut or self.dropped["too-long"]):
            self.notes.append(
                f"the model's context has {max_length} tokens, and `max_length` {asked}: rows were too long"
            )


class Talk(NamedTuple):
    """Messages as they are tokenized: with every assistant turn apart, the last one alone, or as the text of one."""

    messages: tuple[Message, ...]
    turns: Turns


class Segment(NamedTuple):
    """Consecutive tokens, and whether they are trained on."""

    ids: list[int]
    learnt: bool


def trainable_chat(
    tokenizer: PreTrainedTokenizerBase, file: str | None = None, ends: frozenset[int] | None = None
) -> Chat:
    """The tokenizer with its chat template. `file` names the template in errors.

    `ends` are the tokens that end a completion, by default the tokenizer's end token. Where the template ends a turn
    with another token, that is one, too.

    Raises InputError for a tokenizer without a chat template, with several, or without an end token.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str):
        problem = "several chat templates" if template else "no chat template"
        raise InputError(f"the base model has {problem}", key="template", fix=f"give `template`: {MARKED}")
    if not tokenizer.eos_token:
        raise InputError("the base model's tokenizer has no end token", fix="set its `eos_token`")
    chat = Chat(tokenizer, file, ends=ends or frozenset({_end_id(tokenizer)}), limit=None)
    if (closing := chats.closing_token(chat)) is not None:
        chat.ends |= {closing}
    return chat


def chat_of(
    settings: Training, tokenizer: PreTrainedTokenizerBase, named: int | Sequence[int] | None, folder: Path
) -> Chat:
    """The base's chat as the trainer's settings have it, which become part of the tokenizer's template.

    `named` are the end tokens in the model's settings. Raises InputError as `trainable_chat`.
    """
    chats.adapt(settings, tokenizer)
    ends = end_tokens(named, tokenizer, folder) if tokenizer.eos_token else None
    return trainable_chat(tokenizer, settings.template, ends)


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


def within_context(config: Any, max_length: int) -> int:
    """The most tokens of a row of a model with this configuration."""
    window: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return max_length if window is None else min(max_length, window)


def _end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    end = tokenizer.eos_token_id
    assert isinstance(end, int), "a tokenizer with an end token has its id"
    return end


def is_marked(chat: Chat) -> bool:
    """Whether the template marks the assistant's turns."""
    return bool(re.search(r"\{%-?\s*generation\s*-?%\}", chat.template.source))


def stops(chat: Chat) -> list[str]:
    """The end tokens as text, longer ones first."""
    return sorted(map(str, chat.tokenizer.convert_ids_to_tokens(sorted(chat.ends))), key=len, reverse=True)


def numbered(
    rows: Iterable[Row], messages_of: Callable[[Row], Sequence[Message]], system: str, counts: Counts
) -> Iterator[tuple[int, Row]]:
    """The rows with their numbers from 1. With `system` as `skip`, those with a system message are dropped."""
    for number, row in enumerate(rows, 1):
        if system == "skip" and any(message.role == "system" for message in messages_of(row)):
            counts.dropped["system-message"] += 1
        else:
            yield number, row


def pieces(chat: Chat, talks: Sequence[Talk], numbers: Sequence[int]) -> list[list[list[int]]]:
    """The token ids of each: of the last turn those of its prompt and its own, of a text all in one piece.

    Of all turns those between them and those of each, in turn. `numbers` are those of the rows. Raises InputError as
    `completions` and `conversations` do.
    """
    numbered = list(zip(numbers, talks, strict=True))
    last = [(number, talk.messages) for number, talk in numbered if talk.turns == "last"]
    whole = [(number, talk.messages) for number, talk in numbered if talk.turns == "all"]
    plain = iter(texts(chat, [talk.messages[0].content for talk in talks if talk.turns == "text"]))
    items = [(messages[:-1], messages[-1].content) for _, messages in last]
    completed = iter(completions(chat, items, [number for number, _ in last]))
    segments = iter(conversations(chat, [messages for _, messages in whole], [number for number, _ in whole]))
    made: list[list[list[int]]] = []
    for talk in talks:
        if talk.turns == "last":
            made.append(list(next(completed)))
        elif talk.turns == "text":
            made.append([next(plain)])
        else:
            made.append([segment.ids for segment in next(segments)])
    return made


def conversations(
    chat: Chat, talks: Sequence[Sequence[Message]], numbers: Iterable[int] | None = None
) -> list[list[Segment]]:
    """Each conversation's tokens through the last assistant turn; the assistant's turns are trained on.

    They are those that the template marks. Without marks they are what follows the prompt of each turn, where the whole
    conversation begins with each of these prompts. `numbers` are those of the rows, for errors, by default from 1.

    Raises InputError for a template that refuses the messages, leaves a turn or its end token unmarked, or opens a turn
    differently from its generation prompt.
    """
    asked = [[talk[:i] for i, message in enumerate(talk) if message.role == "assistant"] for talk in talks]
    prompts = iter(chat.rendered([(messages, True) for each in asked for messages in each]))
    if is_marked(chat):
        marked = chat.marked(talks, render_jinja_template)
    else:
        marked = [_bare(text) for text in chat.rendered([(talk, False) for talk in talks])]
    check = _checked_turns if is_marked(chat) else _found_turns
    texts = [
        check(chat, _accepted(chat, talk, shown, number), list(zip(each, prompts, strict=False)), talk, number)
        for number, talk, shown, each in zip(numbers or count(1), talks, marked, asked, strict=False)
    ]
    return [[Segment(ids, i % 2 == 1) for i, ids in enumerate(pieces)] for pieces in chat.pieces(texts)]


Asked = Sequence[tuple[Sequence[Message], str | TemplateFailure]]  # what is before each turn, and how it is asked


def _bare(text: str | TemplateFailure) -> Marked | TemplateFailure:
    return text if isinstance(text, TemplateFailure) else (text, [])


def _checked_turns(
    chat: Chat, marked: Marked, asked: Asked, talk: Sequence[Message], number: int
) -> tuple[str, list[int]]:
    """A conversation as text, and the edges of its marked turns."""
    text, spans = marked
    if len(spans) != len(asked):
        raise _error(chat, f"the chat template marks {len(spans)} of {len(asked)} assistant turns", f"use {MARKED}")
    ending = tuple(stops(chat))
    for (messages, prompt), (start, end) in zip(asked, spans, strict=True):
        _check_prompt(chat, _accepted(chat, messages, prompt, number), text[:start])
        if not text[start:end].endswith(ending):
            raise _error(
                chat,
                f"a marked turn does not end with the end token {_named(chat)}, so the model never learns to stop",
                "put the end token, and nothing after it, before `{% endgeneration %}`",
            )
    return text, [edge for span in spans for edge in span]


def _found_turns(
    chat: Chat, marked: Marked, asked: Asked, talk: Sequence[Message], number: int
) -> tuple[str, list[int]]:
    """A conversation as text, and the edges of its turns by the prompts that it begins with."""
    text, _ = marked
    edges: list[int] = []
    for messages, prompt in asked:
        asked_with = _accepted(chat, messages, prompt, number)
        end = None
        if text.startswith(asked_with) and not chat.continues_plainly:
            end = _end_of(chat, talk[len(messages)].content, text, len(asked_with))
        if end is None:
            raise _error(
                chat,
                "the chat template marks no assistant turn with `{% generation %}`, and does not write a conversation "
                "as its prompts and the words after them",
                f"give {_suggested(chat)}, or train the last turn alone with `turns: last`",
            )
        edges += [len(asked_with), end]
    return text, edges


def _suggested(chat: Chat) -> str:
    nearest = chats.nearest_shipped(chat)
    return MARKED if nearest is None else f"`template: {nearest}`, which marks the turns of a format like this one"


def _end_of(chat: Chat, words: str, text: str, start: int) -> int | None:
    """Where a turn ends that begins at `start`: after `words`, unchanged but for white space, and an end token.

    None when the text does not go on like that.
    """
    words = chat.defused(words).strip()
    at = start + len(text[start:]) - len(text[start:].lstrip())
    if not text.startswith(words, at):
        return None
    after = text[at + len(words) :]
    at = len(text) - len(after.lstrip())
    return next((at + len(stop) for stop in stops(chat) if text.startswith(stop, at)), None)


def completions(
    chat: Chat, items: Sequence[Item], numbers: Iterable[int] | None = None
) -> list[tuple[list[int], list[int]]]:
    """For each item the tokens of its prompt, and those of its completion with the end token.

    `numbers` are those of the rows, for errors, by default from 1.

    Raises InputError for a template that refuses the messages, opens a turn differently from its generation prompt, or
    does not write the words unchanged and then the end token.
    """
    texts = []
    for number, (prompt, words), written in zip(numbers or count(1), items, chat.written(items), strict=False):
        whole = [*prompt, Message(role="assistant", content=words)]
        texts.append(_checked_words(chat, words, *_accepted(chat, whole, written, number)))
    return [(before, after) for before, after in chat.pieces(texts)]


def _checked_words(chat: Chat, words: str, prompt_text: str, text: str) -> tuple[str, list[int]]:
    """A prompt and its completion as text, and the edges of the completion."""
    _check_prompt(chat, prompt_text, text[: len(prompt_text)])
    end = None if chat.continues_plainly else _end_of(chat, words, text, len(prompt_text))
    if end is None:
        raise _error(
            chat,
            f"the chat template does not write the assistant's words unchanged, then the end token {_named(chat)}",
            f"give `template`: {MARKED}",
        )
    return text, [len(prompt_text), end]


def texts(chat: Chat, plain: Sequence[str]) -> list[list[int]]:
    """The tokens of each plain text, after the BOS that the tokenizer begins its texts with, if any; an end token last.

    Special tokens that a text spells are text, as in messages.
    """
    tokenizer = chat.tokenizer
    bos = tokenizer.bos_token_id
    begin = [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []
    return [[*begin, *ids, _end_id(tokenizer)] for ids in chat.encode([chat.defused(text) for text in plain])]


def prompt(messages: tuple[Message, ...]) -> Talk:
    """What a prompt is tokenized as: its tokens are the first piece, and do not depend on what follows it."""
    return Talk((*messages, Message(role="assistant", content="x")), "last")


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


def fitted(chat: Chat, prompt: list[int], room: int, excess: Excess, number: int) -> list[int] | None:
    """The prompt of row `number` as it fits into `room` tokens, by `excess_length`; None for a row that is dropped.

    Raises InputError where excess is refused.
    """
    if len(prompt) <= room or excess == "truncate":
        return cut(chat, prompt, room)
    if excess == "raise":
        problem = f"row {number} has {len(prompt) - room:,} tokens more than `max_length` allows"
        raise InputError(problem, fix="raise `max_length`, or set `excess_length` to `truncate` or `drop`")
    return None


def broken(chat: Chat, words: str) -> bool:
    """Whether the words spell an end token themselves."""
    return any(stop in words for stop in stops(chat))


def _named(chat: Chat) -> str:
    """The end tokens, for a person."""
    return " or ".join(map(repr, reversed(stops(chat))))


def _accepted(chat: Chat, messages: Sequence[Message], shown: Shown | TemplateFailure, number: int) -> Shown:
    """What the template made of the messages of row `number`. Raises InputError when it refused them."""
    if not isinstance(shown, TemplateFailure):
        return shown
    roles = ", ".join(message.role for message in messages)
    where = f"row {number}, which begins {messages[0].content[:40]!r}" if messages else f"row {number}"
    fix = "use a template that takes these roles"
    if any(message.role == "system" for message in messages):
        fix += ", or set `system: merge` (the message goes before the user's) or `system: skip` (leave such rows out)"
    raise _error(chat, f"the chat template refuses a conversation of {roles} ({where}): {shown}", fix)


def _check_prompt(chat: Chat, prompt_text: str, before: str) -> None:
    if prompt_text != before:
        raise _error(
            chat,
            f"the chat template asks with {prompt_text[-40:]!r} but trains after {before[-40:]!r}",
            "make `add_generation_prompt` open the turn exactly as an assistant's turn opens",
        )


def _error(chat: Chat, message: str, fix: str) -> InputError:
    return InputError(message, file=chat.file, fix=fix)
