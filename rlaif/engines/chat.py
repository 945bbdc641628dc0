"""A model's tokenizer and chat template: the same messages become the same tokens in training and in every engine.

It takes a loaded tokenizer and knows nothing of weights, sampling or engines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from rlaif.engines.protocol import Request
from rlaif.engines.thinking import left_open, marks_among
from rlaif.errors import EngineError, InputError
from rlaif.records import Message, digest, one_system
from rlaif.templates import ChatTemplate, Conversation, TemplateFailure
from rlaif.templates.chat import Marked, Shown

MOST_DEFUSINGS = 16  # of one message; one is enough for what was not made to resist
OTHER_TEMPLATE = "put one into the folder as chat_template.jinja, such as prompts/chat/tiny.jinja"

Item = tuple[tuple[Message, ...], str]


@dataclass(slots=True)
class Completed:
    """A prompt with its completion as tokens. `ends` says whether the last one is an end token."""

    ids: list[int]
    start: int  # of the completion
    ends: bool

    @property
    def length(self) -> int:
        return len(self.ids) - self.start


class Chat:
    """Renders and tokenizes messages for one model: the same ids for the same text in sampling, scoring and training.

    `file` names the tokenizer or its template in errors. `limit` is the model's context length in tokens. `ends` are
    the tokens that end a completion.
    """

    def __init__(self, tokenizer: Any, file: Path | str | None, *, ends: frozenset[int], limit: int | None) -> None:
        """Raises InputError when the chat template is missing or cannot render a user turn."""
        self.tokenizer, self.ends, self.limit = tokenizer, ends, limit
        self.file = None if file is None else str(file)
        special = special_tokens(tokenizer)
        self.markers, self._rewritten = markers(special), rewritten(tokenizer, special)
        self._thinks_in = marks_among(special)
        added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._unshown = added.union(tokenizer.all_special_ids).difference(
            tokenizer.convert_tokens_to_ids(sorted(self._thinks_in))
        )
        self._learn_template()
        if turns := self._turn_tokens():
            self.markers, self._rewritten = markers(special | turns), rewritten(tokenizer, special | turns)

    def _learn_template(self) -> None:
        """Find out how the template renders an assistant turn: not at all, after a space, or directly."""
        if not self.tokenizer.chat_template:
            raise InputError(
                "the model has no chat template, so its prompts cannot be rendered", file=self.file, fix=OTHER_TEMPLATE
            )
        question, words = (Message(role="user", content="A"),), "PROBE"
        try:
            self.template = ChatTemplate(self.tokenizer)
            prompt = self.render(question, generation_prompt=True)
        except TemplateFailure as failed:
            problem, line = f"the chat template cannot be rendered: {failed.message}", failed.line
            raise InputError(problem, file=self.file, line=line, fix=OTHER_TEMPLATE) from None
        if not prompt.strip():
            raise InputError("the chat template writes nothing", file=self.file, fix=OTHER_TEMPLATE)
        (full,) = self.rendered([((*question, Message(role="assistant", content=words)), False)])
        if isinstance(full, TemplateFailure):
            full = ""
        self.continues_plainly = words not in full
        self._opened, self._closing = left_open(prompt)
        self._before_text = " " if self.continues_plainly or full[len(prompt) :].startswith(" ") else ""

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """The messages as text. Raises TemplateFailure when the template refuses them."""
        (text,) = self.rendered([(messages, generation_prompt)])
        if isinstance(text, TemplateFailure):
            raise text
        return text

    def rendered(self, conversations: Sequence[tuple[Sequence[Message], bool]]) -> list[str | TemplateFailure]:
        """Each conversation as text, with a generation prompt or without; or why the template refuses it."""
        return self._shown(conversations, self.template.render)

    def marked(
        self, conversations: Sequence[Sequence[Message]], render: Callable[..., Any]
    ) -> list[Marked | TemplateFailure]:
        """Each conversation as text with the spans that the template marks as the assistant's; or why it refuses it.

        `render` is transformers' `render_jinja_template`.
        """
        whole = [(messages, False) for messages in conversations]
        return self._shown(whole, lambda parts: self.template.marked(parts, render))

    def _shown(
        self,
        conversations: Sequence[tuple[Sequence[Message], bool]],
        show: Callable[[Sequence[Conversation]], list[Shown | TemplateFailure]],
    ) -> list[Shown | TemplateFailure]:
        """What `show` makes of each conversation whose messages can be defused, all of them at once."""
        parts: list[Conversation | TemplateFailure] = []
        for messages, opens in conversations:
            try:
                parts.append(self._conversation(messages, opens))
            except TemplateFailure as failed:
                parts.append(failed)
        shown = iter(show([part for part in parts if isinstance(part, Conversation)]))
        return [part if isinstance(part, TemplateFailure) else next(shown) for part in parts]

    def _conversation(self, messages: Sequence[Message], opens: bool) -> Conversation:
        turns = [{"role": m.role, "content": self.defused(m.content)} for m in one_system(messages)]
        return Conversation(turns, opens)

    def defused(self, content: str) -> str:
        """`content` such that none of it becomes a special token. Raises TemplateFailure where that cannot be."""
        content = defused(content, self.markers)
        if not self._rewritten:
            return content
        for _ in range(MOST_DEFUSINGS):
            read = self.tokenizer(content, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            places = zip(read["input_ids"], read["offset_mapping"], strict=True)
            middles = [(start + end) // 2 for token, (start, end) in places if token in self._rewritten]
            if not middles:
                return content
            edges = [0, *middles, len(content)]
            content = " ".join(content[start:end] for start, end in pairwise(edges))
        raise TemplateFailure("a message spells special tokens that cannot be taken apart")

    @property
    def defusing(self) -> list[Any]:
        """What decides how messages are defused, as JSON."""
        return [self.markers.pattern if self.markers is not None else None, sorted(self._rewritten)]

    def _turn_tokens(self) -> set[str]:
        """Tokens that are not called special, and open a turn: those down to the first after a user's words."""
        tokens = self.tokenizer.added_tokens_decoder.values()
        added = {token.content for token in tokens if not token.special and len(token.content) > 1}
        if not added:
            return set()
        prompt = self.render((Message(role="user", content=(words := "PROBE")),), generation_prompt=True)
        before, _, after = prompt.partition(words)
        first = min(((after.find(token), token) for token in added if token in after), default=(0, ""))
        return {token for token in added if token in before or token == first[1]}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered text. The tokenizer adds no special tokens: the template writes them.

        A text that comes several times, as the prompt of several completions, is tokenized once.
        """
        if not texts:
            return []
        distinct = list(dict.fromkeys(texts))
        ids: list[list[int]] = self.tokenizer(distinct, add_special_tokens=False, verbose=False)["input_ids"]
        if len(distinct) == len(texts):
            return ids
        known = dict(zip(distinct, ids, strict=True))
        return [list(known[text]) for text in texts]

    def text(self, tokens: Any) -> str:
        """The text without special tokens, except those by which thinking is told from the answer."""
        if self._thinks_in:
            tokens = [token for token in map(int, tokens) if token not in self._unshown]
        skipped = not self._thinks_in
        return str(self.tokenizer.decode(tokens, skip_special_tokens=skipped, clean_up_tokenization_spaces=False))

    def said(self, tokens: Any, request: Request) -> str:
        """What the model wrote after a prompt, with the mark by which the template had opened its thinking."""
        return ("" if self._without_thinking(request) else self._opened) + self.text(tokens)

    def _without_thinking(self, request: Request) -> bool:
        """Whether the first token is the answer's: that of a schema, or the one whose alternatives are asked for."""
        return request.json_schema is not None or bool(request.sampling.alternatives)

    def prompts(self, requests: Sequence[Request]) -> list[list[int] | EngineError]:
        """Each request's prompt as tokens, or its error. Thinking that the template opens is closed for some."""
        texts = self.rendered([(request.messages, True) for request in requests])
        if self._opened:
            closing = f"\n{self._closing}\n\n"
            texts = [
                text + closing if isinstance(text, str) and self._without_thinking(request) else text
                for text, request in zip(texts, requests, strict=True)
            ]
        encoded = iter(self.encode([text for text in texts if isinstance(text, str)]))
        prompts: list[list[int] | EngineError] = [
            next(encoded) if isinstance(text, str) else _refused(text) for text in texts
        ]
        for number, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            room = request.sampling.max_tokens
            if isinstance(prompt, list) and self.limit is not None and len(prompt) + room > self.limit:
                prompts[number] = EngineError(
                    f"the prompt has {len(prompt)} tokens, which leaves no room for max_tokens {room} in the model's "
                    f"{self.limit}",
                    cause="too-long",
                    fix="shorten the prompt or lower `max_tokens`",
                )
        return prompts

    def alternative(self, text: str) -> int | None:
        """The single token that is `text` after the generation prompt, with the template's own spacing if possible."""
        for before in (self._before_text, "" if self._before_text else " "):
            ids = self.encode([before + text])[0]
            if len(ids) == 1 and str(self.tokenizer.decode(ids)).strip() == text.strip():
                return ids[0]
        return None

    def completed(self, items: Sequence[Item]) -> list[Completed | EngineError]:
        """Each item's prompt and completion as one token sequence, as in training: nothing after the end token.

        Or the item's error.
        """
        texts = self.written(items)
        encoded = iter(self.encode([part for text in texts if isinstance(text, tuple) for part in text]))
        return [
            self._completed(*text, next(encoded), next(encoded)) if isinstance(text, tuple) else _refused(text)
            for text in texts
        ]

    def written(self, items: Sequence[Item]) -> list[tuple[str, str] | TemplateFailure]:
        """Each item's prompt as it is sampled from, and prompt with completion, as text; or why it is refused."""
        prompts = self.rendered([(messages, True) for messages, _ in items])
        if self.continues_plainly:
            end = self.tokenizer.decode([min(self.ends)])
            wholes = [self._continued(prompt, words, end) for prompt, (_, words) in zip(prompts, items, strict=True)]
        else:
            answered = [((*messages, Message(role="assistant", content=words)), False) for messages, words in items]
            wholes = self.rendered(answered)
        return list(map(_both, prompts, wholes))

    def _continued(self, prompt: str | TemplateFailure, words: str, end: str) -> str | TemplateFailure:
        """The prompt with the completion after a space, and the end token."""
        if isinstance(prompt, TemplateFailure):
            return prompt
        try:
            return f"{prompt} {self.defused(words)}{end}"
        except TemplateFailure as failed:
            return failed

    def pieces(self, texts: Sequence[tuple[str, Sequence[int]]]) -> list[list[list[int]]]:
        """For each text the tokens between its edges, where what is before an edge is tokenized as it would be alone.

        Edges are ascending positions in their text. A tokenizer may merge characters across an edge. A prompt ends at
        the edge, so the merge is undone: the piece after the edge is tokenized separately.
        """
        heads = iter(self.encode([text[:edge] for text, edges in texts for edge in edges]))
        return [self._apart(text, edges, list(islice(heads, len(edges)))) for text, edges in texts]

    def _apart(self, text: str, edges: Sequence[int], heads: Sequence[list[int]]) -> list[list[int]]:
        """The pieces of `text`, whose `heads` are the tokens up to each edge."""
        pieces: list[list[int]] = []
        done: list[int] = []
        last = 0
        for edge, head in zip(edges, heads, strict=True):
            merged = head[: len(done)] != done
            pieces.append(self.encode([text[last:edge]])[0] if merged else head[len(done) :])
            done, last = done + pieces[-1], edge
        return pieces

    def _completed(self, prompt_text: str, text: str, prompt: list[int], whole: list[int]) -> Completed | EngineError:
        """`text` as tokens; `prompt` and `whole` are the tokens of `prompt_text` and `text`, each tokenized alone."""
        start = len(prompt)
        if text.startswith(prompt_text):
            _, words = self._apart(text, (len(prompt_text), len(text)), (prompt, whole))
        elif whole[:start] == prompt:  # the texts differ, their tokens do not
            words = whole[start:]
        else:
            return EngineError(
                "the chat template writes a prompt differently once it has been answered, so the completion's "
                "tokens cannot be told apart",
                cause="template",
                fix="use a template whose prompt, with its generation prompt, is a prefix of the whole conversation",
            )
        end = next((i for i in range(len(words) - 1, -1, -1) if words[i] in self.ends), None)
        ids = prompt + (words if end is None else words[: end + 1])
        if self.limit is not None and len(ids) > self.limit:
            return EngineError(
                f"prompt and completion have {len(ids)} tokens, the model reads {self.limit}",
                cause="too-long",
                fix="shorten the prompt or the completion",
            )
        return Completed(ids, start, end is not None)


def _both(prompt: str | TemplateFailure, whole: str | TemplateFailure) -> tuple[str, str] | TemplateFailure:
    if isinstance(prompt, TemplateFailure):
        return prompt
    return whole if isinstance(whole, TemplateFailure) else (prompt, whole)


def _refused(failed: TemplateFailure) -> EngineError:
    """The error of messages that the template did not render."""
    return EngineError(f"the chat template refuses these messages: {failed.message}", cause="template")


def whole(rows: Sequence[Completed | EngineError]) -> list[Completed]:
    """The rows. Raises the first EngineError among them."""
    for row in rows:
        if isinstance(row, EngineError):
            raise row
    return [row for row in rows if isinstance(row, Completed)]


def defused(content: str, spelled: re.Pattern[str] | None) -> str:
    """`content` with a space inside every special token it spells, so that no message can open a turn.

    `spelled` are a tokenizer's `markers`. A space, because a tokenizer's normalizer may drop a zero-width character.
    """
    return spelled.sub(r"\1 ", content) if spelled is not None else content


def special_tokens(tokenizer: Any) -> set[str]:
    """The special tokens as text. One of a single character (for padding, say) opens no turn, and is left out."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return {token for token in added.union(tokenizer.all_special_tokens) if len(token) > 1}


def markers(tokens: Collection[str]) -> re.Pattern[str] | None:
    """Matches the first character of every one of `tokens` that a text spells, overlapping ones included."""
    return re.compile(rf"(?=(?:{'|'.join(map(re.escape, sorted(tokens)))}))(.)", re.DOTALL) if tokens else None


def rewritten(tokenizer: Any, tokens: Collection[str]) -> frozenset[int]:
    """Those of `tokens` that other texts may become too, since the tokenizer rewrites a text before it looks for them.

    Most tokenizers have none. The token for unknown characters is not among them: any odd character becomes it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.normalizer is None:
        return frozenset()
    return frozenset(
        number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.normalized and token.content in tokens and number != tokenizer.unk_token_id
    )


def end_tokens(named: int | Sequence[int] | None, tokenizer: Any, folder: Path) -> frozenset[int]:
    """The tokens that end a completion: `named` in the model's settings, and the tokenizer's own.

    Raises InputError when there is none.
    """
    ends = {named} if isinstance(named, int) else set(named or ())
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    if not ends:
        raise InputError(
            "the model names no end token", file=str(folder), fix="set `eos_token` in tokenizer_config.json"
        )
    return frozenset(ends)


def before_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """`text` up to the first stop string, and whether there was one."""
    positions = [position for stop in stops if stop and (position := text.find(stop)) >= 0]
    return (text[: min(positions)], True) if positions else (text, False)


def schema_text(request: Request) -> str:
    """A request's schema as text, empty without one. Keys keep their order, which the grammar enforces."""
    return "" if request.json_schema is None else json.dumps(request.json_schema)


def stream(request: Request, index: int) -> str:
    """The id of a call's random stream. Parameters that draw nothing (log-probs, max_tokens, stop) are left out."""
    return digest(
        {
            "messages": [[m.role, m.content] for m in request.messages],
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            "schema": schema_text(request),
            "seed": request.sampling.seed,
            "attempt": request.attempt,
            "index": index,
        }
    )
