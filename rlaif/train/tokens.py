"""From conversations to token ids: what is read, what is learnt, what is cut, what is dropped.

Knows the chat template and nothing of trainers. What is learnt follows from where a text stands in the conversation,
never from which token ids it has. Two things always hold: the tokens before an assistant's words are exactly those the
model is given when it is asked, and the last token learnt is the end token, with nothing after it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from rlaif.engines.chat import defused, markers
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

    def check(self, total: int, max_length: int) -> None:
        """Raise when nothing is left to train on."""
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


class Chat:
    """A tokenizer with its chat template. `file` is where the template was read, for errors."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, file: str | None = None) -> None:
        template = tokenizer.chat_template
        if not isinstance(template, str):
            problem = "several chat templates" if template else "no chat template"
            raise InputError(f"the base model has {problem}", key="template", fix=f"give {MARKED}")
        if not tokenizer.eos_token:
            raise InputError("the base model's tokenizer has no end token", fix="set its `eos_token`")
        self.tokenizer, self.template, self.file = tokenizer, template, file
        self._markers = markers(tokenizer)
        self._names = {name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}

    def require_marks(self) -> None:
        """Raise when the template does not say which of its text is the assistant's."""
        if not re.search(r"\{%-?\s*generation\s*-?%\}", self.template):
            raise self._error("the chat template marks no assistant turn with `{% generation %}`", f"give {MARKED}")

    def conversation(self, messages: Sequence[Message]) -> list[Segment]:
        """A conversation's tokens, the assistant's turns learnt; it ends with the last of them."""
        text, spans = self._render(messages, marked=True)
        turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
        if len(spans) != len(turns):
            raise self._error(f"the chat template marks {len(spans)} of {len(turns)} assistant turns", f"use {MARKED}")
        stop = str(self.tokenizer.eos_token)
        for turn, (start, end) in zip(turns, spans, strict=True):
            self._check_prompt(messages[:turn], text[:start])
            if not text[start:end].endswith(stop):
                raise self._error(
                    f"a marked turn does not end with the end token {stop!r}, so the model never learns to stop",
                    "put the end token, and nothing after it, before `{% endgeneration %}`",
                )
        edges = [edge for span in spans for edge in span]
        return [Segment(ids, i % 2 == 1) for i, ids in enumerate(self._pieces(text, edges))]

    def completion(self, prompt: Sequence[Message], completion: str) -> tuple[list[int], list[int]]:
        """The tokens of a prompt, and those of its completion with the end token."""
        given, _ = self._render(prompt, ask=True)
        text, _ = self._render([*prompt, Message(role="assistant", content=completion)])
        self._check_prompt(prompt, text[: len(given)])
        stop = str(self.tokenizer.eos_token)
        end = text.rfind(stop, len(given))
        if text[len(given) : max(end, 0)].strip() != defused(completion, self._markers).strip():
            raise self._error(
                f"the chat template does not put the assistant's words, then the end token {stop!r}",
                f"first train it with `rlaif train sft` and `template=`, {MARKED}",
            )
        before, after = self._pieces(text, [len(given), end + len(stop)])
        return before, after

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a prompt, as a model is asked it; a prompt's tokens do not depend on what follows it."""
        return self.completion(messages, "x")[0]

    def cut(self, prompt: list[int], room: int) -> list[int] | None:
        """The prompt's end that fits into `room`; None when less than half would be left, which is another prompt."""
        if len(prompt) <= room:
            return prompt
        if 2 * room < len(prompt):
            return None
        # A text opens with one BOS, also when its beginning is gone: models that were trained with it degrade without.
        head = prompt[:1] if prompt[0] == self.tokenizer.bos_token_id else []
        return head + prompt[len(prompt) - room + len(head) :]

    def broken(self, completion: str) -> bool:
        """Whether the words themselves spell the end token: what comes after it was never meant to be said."""
        return str(self.tokenizer.eos_token) in completion

    def _render(
        self, messages: Sequence[Message], *, ask: bool = False, marked: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        try:
            texts, spans = _render_jinja_template(
                [[{"role": m.role, "content": defused(m.content, self._markers)} for m in messages]],
                chat_template=self.template,
                add_generation_prompt=ask,
                return_assistant_tokens_mask=marked,
                **self._names,
            )
        except (jinja2.TemplateError, TypeError) as error:
            roles = ", ".join(message.role for message in messages)
            raise self._error(
                f"the chat template refuses a conversation of {roles}: {error}", "use a template that takes these roles"
            ) from None
        return texts[0], spans[0] if marked else []

    def _check_prompt(self, prompt: Sequence[Message], before: str) -> None:
        given, _ = self._render(prompt, ask=True)
        if given != before:
            raise self._error(
                f"the chat template asks with {given[-40:]!r} but trains after {before[-40:]!r}",
                "make `add_generation_prompt` open the turn exactly as an assistant's turn opens",
            )

    def _pieces(self, text: str, edges: Iterable[int]) -> list[list[int]]:
        """The tokens between `edges`, such that what stands before each edge is tokenised as it is on its own.

        A tokenizer may merge letters across an edge. The model is asked with a text that ends there, so the merge is
        undone: the piece after it is tokenised apart.
        """
        edges = list(edges)
        heads = self._ids([text[:edge] for edge in edges])
        pieces: list[list[int]] = []
        done: list[int] = []
        last = 0
        for edge, head in zip(edges, heads, strict=True):
            merged = head[: len(done)] != done
            pieces.append(self._ids([text[last:edge]])[0] if merged else head[len(done) :])
            done, last = done + pieces[-1], edge
        return pieces

    def _ids(self, texts: list[str]) -> list[list[int]]:
        encoded: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return encoded

    def _error(self, message: str, fix: str) -> InputError:
        return InputError(message, file=self.file, fix=fix)
