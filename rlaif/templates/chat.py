"""Chat templates of models, which come with a model's folder and are anyone's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any, NamedTuple, TypeVar

from rlaif.templates.apart import NO_REPLY, Apart, Reply
from rlaif.templates.bounds import MOST_WORK, cost, size, within
from rlaif.templates.environments import chatting, parsed
from rlaif.templates.failures import TemplateFailure, failure

Marked = tuple[str, list[tuple[int, int]]]
Shown = TypeVar("Shown", str, Marked)


class Conversation(NamedTuple):
    """Messages as a chat template gets them, and whether it shall open the assistant's turn after them."""

    messages: list[dict[str, str]]
    generation_prompt: bool = False


class ChatTemplate:
    """The chat template of a loaded tokenizer. `source` is its text."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises TemplateFailure for one that is no text, does not parse or takes in another file."""
        self._tokenizer = tokenizer
        self.source = _text(tokenizer.chat_template)
        try:
            self._cost = cost(parsed(chatting, self.source))
        except Exception as error:
            raise failure(error) from None
        self._apart = Apart("chat", self.source)
        self._beside = sum(map(len, self._names().values()))

    def render(self, conversations: Sequence[Conversation]) -> list[str | TemplateFailure]:
        """Each conversation as text, as transformers renders it; or why it was not rendered."""
        return self._each(conversations, self._rendered, _text_of, marks=False)

    def marked(
        self, conversations: Sequence[Conversation], render: Callable[..., Any]
    ) -> list[Marked | TemplateFailure]:
        """Each conversation as text with the spans in it that the template marks; or why it was not rendered.

        `render` is transformers' own function; only engines and trainers import transformers.
        """
        return self._each(conversations, lambda each: self._marked(each, render), _marked_of, marks=True)

    def _each(
        self,
        conversations: Sequence[Conversation],
        here: Callable[[Conversation], Shown | TemplateFailure],
        there: Callable[[Reply | TemplateFailure], Shown | TemplateFailure],
        *,
        marks: bool,
    ) -> list[Shown | TemplateFailure]:
        """Each conversation rendered `here` where that is cheap, else by the other process, all of them at once."""
        costly = [not self._is_cheap(conversation, marks=marks) for conversation in conversations]
        items = [self._item(conversation, marks=marks) for conversation in compress(conversations, costly)]
        apart = iter(self._apart.render(items))
        return [
            there(next(apart)) if is_costly else here(conversation)
            for conversation, is_costly in zip(conversations, costly, strict=True)
        ]

    def _marked(self, conversation: Conversation, render: Callable[..., Any]) -> Marked | TemplateFailure:
        try:
            texts, spans = render(
                [conversation.messages], chat_template=self.source, return_assistant_tokens_mask=True, **self._names()
            )
        except Exception as error:  # any error that the template's own code raises
            return failure(error)
        return texts[0], spans[0]

    def _rendered(self, conversation: Conversation) -> str | TemplateFailure:
        try:
            text = str(
                self._tokenizer.apply_chat_template(
                    conversation.messages, add_generation_prompt=conversation.generation_prompt, tokenize=False
                )
            )
            return within(text, self._beside + size(conversation.messages))
        except Exception as error:  # any error that the template's own code raises
            return failure(error)

    def _is_cheap(self, conversation: Conversation, *, marks: bool) -> bool:
        if self._cost is None:
            return False
        messages = conversation.messages
        return self._cost.of({"messages": messages}, self._beside + size(messages), marks=marks) <= MOST_WORK

    def _item(self, conversation: Conversation, *, marks: bool) -> dict[str, Any]:
        messages, generation_prompt = conversation
        return {"messages": messages, "generation_prompt": generation_prompt, "marks": marks, "names": self._names()}

    def _names(self) -> dict[str, str]:
        """The special tokens by their names, which templates may write."""
        return {name: text for name, text in self._tokenizer.special_tokens_map.items() if isinstance(text, str)}


def _text(template: object) -> str:
    if isinstance(template, Mapping) and "default" in template:
        template = template["default"]
    if isinstance(template, str):
        return template
    if isinstance(template, Mapping):
        raise TemplateFailure(f"it is {len(template)} templates, none of which is named `default`")
    raise TemplateFailure(f"it is {_KINDS.get(type(template), 'an object')} and no text")


_KINDS = {bool: "true or false", int: "a number", float: "a number", list: "a list", tuple: "a list"}


def _text_of(reply: Reply | TemplateFailure) -> str | TemplateFailure:
    return reply if isinstance(reply, TemplateFailure) else str(reply["text"])


def _marked_of(reply: Reply | TemplateFailure) -> Marked | TemplateFailure:
    """The text with its marked spans, checked: a template may have taken over who wrote the reply."""
    if isinstance(reply, TemplateFailure):
        return reply
    text = str(reply["text"])
    try:
        spans = [(int(start), int(end)) for start, end in reply.get("spans") or ()]
    except (TypeError, ValueError):
        spans = [(-1, -1)]
    if all(0 <= start <= end <= len(text) for start, end in spans):
        return text, spans
    return TemplateFailure(NO_REPLY, exceeded=True)
