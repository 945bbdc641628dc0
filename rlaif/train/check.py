"""What a training would be trained on, token by token, by the base's configuration and tokenizer alone.

The rows are tokenized as the trainer does it; no weights are loaded. All rows are counted and measured, and a few are
kept to be shown: the first as they are trained on, the first that is cut, and the first that is dropped by each reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from rlaif.config import PPOSettings, RMSettings, SFTSettings, TrainerSettings, Training
from rlaif.engines.adapters import Source, layers, named
from rlaif.engines.chat import Chat
from rlaif.files import json_of
from rlaif.train import chats, demonstrations, groups, pairs, tokenizing, tokens
from rlaif.train.contradictions import Contradictions
from rlaif.train.examples import Demonstration, Example, PreferencePair, PromptOnly
from rlaif.train.packing import pack
from rlaif.train.tokens import Segment

State = Literal["context", "learnt", "cut"]
KEPT, CUT = "trained on", "cut"
SHOWN = 3  # rows as they are trained on
OF_EACH = 1  # rows that are cut, or dropped by one reason
BINS = 12  # of the histogram


class Piece(NamedTuple):
    """Consecutive tokens of one state, each as text."""

    state: State
    tokens: list[str]


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it is trained on, or as it is dropped. `fate` is KEPT, CUT or the reason why it is dropped.

    `sides` are its sequences by name; those of a preference have the prompt in common.
    """

    number: int
    split: str
    fate: str
    length: int  # tokens before a cut; of the longer side
    sides: dict[str, list[Piece]] = field(default_factory=dict)


@dataclass(slots=True)
class Check:
    """What would be trained on. Lengths are in tokens, before a cut."""

    method: str
    template: str  # the file that was given, or where it is from
    marked: bool
    ends: list[str]
    max_length: int  # the setting, or the model's context where that is shorter
    asked: int  # the setting
    reserved: int = 0  # tokens of it that PPO keeps for a completion
    nearest: str | None = None  # the shipped template most like one without marks
    rows: list[Row] = field(default_factory=list)
    fates: dict[str, Counter[str]] = field(default_factory=dict)  # by split
    lengths: list[int] = field(default_factory=list)  # of rows that fit, before a cut
    tokens: int = 0  # of the rows that are trained on
    learnt: int = 0
    longer_chosen: int = 0  # pairs
    longer_rejected: int = 0
    contradictions: Contradictions = field(default_factory=Contradictions)
    packed: int | None = None  # sequences that the training rows are packed into
    steps: int | None = None

    @property
    def room(self) -> int:
        """The most tokens of a row as it is measured."""
        return self.max_length - self.reserved

    @property
    def kept(self) -> int:
        return sum(fates[KEPT] + fates[CUT] for fates in self.fates.values())

    def histogram(self) -> list[tuple[int, int, int]]:
        """The lengths in bins of a round width: from, to, and the number of rows."""
        if not self.lengths:
            return []
        width = _round_up((max(self.lengths) - min(self.lengths) + 1) / BINS)
        counts = Counter(length // width for length in self.lengths)
        return [(i * width, (i + 1) * width - 1, counts[i]) for i in range(min(counts), max(counts) + 1)]

    def as_dict(self) -> dict[str, Any]:
        """All of it for a script."""
        lengths = self.lengths or [0]
        return {
            "method": self.method,
            "template": self.template,
            "marked": self.marked,
            "nearest": self.nearest,
            "end_tokens": self.ends,
            "max_length": self.max_length,
            "room": self.room,
            "rows": {split: dict(fates) for split, fates in self.fates.items()},
            "kept": self.kept,
            "packed": self.packed,
            "steps": self.steps,
            "tokens": self.tokens,
            "learnt_tokens": self.learnt,
            "lengths": {"median": median(lengths), "longest": max(lengths), "histogram": self.histogram()},
            "longer": {"chosen": self.longer_chosen, "rejected": self.longer_rejected},
            "contradicting": self.contradictions.count,
            "shown": [
                asdict(row) | {"sides": {name: [p._asdict() for p in side] for name, side in row.sides.items()}}
                for row in self.rows
            ],
        }


def _round_up(width: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    step = 1
    while True:
        for digit in (1, 2, 5):
            if digit * step >= width:
                return digit * step
        step *= 10


def check(
    settings: Training,
    base: Source,
    examples: Iterable[Example],
    template: str | None = None,
    kept: Path | None = None,
) -> Check:
    """What the examples would be trained on from the model `base`, with `template` as its chat template, if given.

    It shares token ids with trainings in the folder `kept`.

    Raises InputError as the trainer would, for a template that cannot be used and for a row that is refused.
    """
    from rlaif.engines.transformers import load_config, load_tokenizer

    config, tokenizer = load_config(base), load_tokenizer(base)
    if template is not None:
        tokenizer.chat_template = tokens.beginning(tokenizer, template)
    folders = (named(base), layers(base)[0])
    generating = next(filter(None, (json_of(folder / "generation_config.json") for folder in folders)), {})
    ends = generating.get("eos_token_id", config.get_text_config().eos_token_id)
    chat = tokens.chat_of(settings, tokenizer, ends, named(base))
    made = Check(
        settings.method,
        settings.template or "the base model's own",
        tokens.is_marked(chat),
        tokens.stops(chat),
        tokens.within_context(config, settings.max_length),
        settings.max_length,
        settings.max_tokens if isinstance(settings, PPOSettings) else 0,
        None if tokens.is_marked(chat) else chats.nearest_shipped(chat),
    )
    splits: dict[str, list[Example]] = {}
    for example in examples:
        if example.split not in settings.unused:
            splits.setdefault(example.split, []).append(example)
    shown: Counter[str] = Counter()
    lengths: dict[str, list[int]] = {}
    for split, of_split in splits.items():
        made.fates[split], lengths[split] = Counter(), []
        for row, sides in _rows(settings, chat, of_split, made, kept):
            made.fates[split][row.fate] += 1
            if row.fate in (KEPT, CUT):
                lengths[split] += _lengths(row, made.max_length)
            shown[row.fate] += 1
            if shown[row.fate] <= (SHOWN if row.fate == KEPT else OF_EACH):
                made.rows.append(replace(row, sides=sides()))
    if isinstance(settings, TrainerSettings):
        trained = lengths.get("train", [])
        rows = len(trained)
        if isinstance(settings, RMSettings) and settings.grouping == "prompt":
            pairs_given = [pair for pair in splits.get("train", ()) if isinstance(pair, PreferencePair)]
            rows = len(groups.read(settings, chat, pairs_given, made.max_length)[0])  # without those that are dropped
        if isinstance(settings, SFTSettings) and settings.packing:
            rows = made.packed = len(pack(trained, made.max_length))
        batches = ceil(rows / settings.batch_size)
        made.steps = settings.max_steps or ceil(ceil(batches / settings.accumulate) * settings.epochs)
    return made


Sides = Callable[[], dict[str, list[Piece]]]  # of a row; as text they cost more than all the rest, and few are shown


def _rows(
    settings: Training, chat: Chat, examples: Sequence[Any], made: Check, kept: Path | None
) -> Iterator[tuple[Row, Sides]]:
    """The rows without their sides, and what makes those."""
    skipped = tokens.Counts()
    numbered = list(tokens.numbered(examples, _messages, settings.system, skipped))
    rest = {number for number, _ in numbered}
    for number, example in enumerate(examples, 1):
        if number not in rest:
            yield Row(number, example.split, "system-message", 0), dict
    if isinstance(settings, PPOSettings):
        yield from _prompts(chat, numbered, made, kept)
    elif isinstance(settings, TrainerSettings) and settings.takes == "preferences":
        yield from _pairs(settings, chat, numbered, made, kept)
    elif isinstance(settings, TrainerSettings):
        yield from _demonstrations(settings, chat, numbered, made, kept)


def _lengths(row: Row, most: int) -> list[int]:
    """Those of the rows that it becomes: one, which is cut to the full length, or several of a plain text."""
    if row.length <= most or row.fate == CUT:
        return [min(row.length, most)]
    return [most] * (row.length // most) + [row.length % most] * (row.length % most > 0)


def _messages(example: Any) -> Sequence[Any]:
    return example.prompt if isinstance(example, PreferencePair) else example.messages


def _demonstrations(
    settings: TrainerSettings,
    chat: Chat,
    examples: Iterable[tuple[int, Demonstration]],
    made: Check,
    kept: Path | None,
) -> Iterator[tuple[Row, Sides]]:
    for number, example, segments in demonstrations.read(chat, examples, kept):
        if demonstrations.is_split(example, segments, made.max_length, settings.excess_length):
            ids = segments[0].ids
            made.tokens, made.learnt = made.tokens + len(ids), made.learnt + len(ids)
            fate = _counted(made, ids, ids, "", len(ids))
            yield Row(number, example.split, fate, len(ids)), partial(_text, chat, ids)
            continue
        prompt, reason = demonstrations.fate(chat, example, segments, made.max_length, settings.excess_length, number)
        opening = segments[0]
        length = sum(len(segment.ids) for segment in segments)
        learnt = sum(len(segment.ids) for segment in segments if segment.learnt)
        fate = _counted(made, opening.ids, prompt, reason, length)
        if prompt is not None:
            made.tokens += length - len(opening.ids) + len(prompt)
            made.learnt += learnt
        yield Row(number, example.split, fate, length), partial(_conversation, chat, segments, prompt)


def _pairs(
    settings: TrainerSettings,
    chat: Chat,
    examples: Iterable[tuple[int, PreferencePair]],
    made: Check,
    kept: Path | None,
) -> Iterator[tuple[Row, Sides]]:
    for number, pair, (whole, chosen), (_, rejected) in pairs.read(chat, examples, kept):
        excess = settings.excess_length
        prompt, reason = pairs.fate(chat, pair, whole, chosen, rejected, made.max_length, excess, number)
        length = len(whole) + max(len(chosen), len(rejected))
        fate = _counted(made, whole, prompt, reason, length)
        if prompt is not None:
            completions = len(chosen) + len(rejected)
            made.tokens += 2 * len(prompt) + completions
            made.learnt += completions
            made.contradictions.add(pair.prompt, pair.chosen, pair.rejected)
            made.longer_chosen += len(chosen) > len(rejected)
            made.longer_rejected += len(rejected) > len(chosen)
        yield Row(number, pair.split, fate, length), partial(_pair, chat, whole, prompt, chosen, rejected)


def _prompts(
    chat: Chat, examples: Iterable[tuple[int, PromptOnly]], made: Check, kept: Path | None
) -> Iterator[tuple[Row, Sides]]:
    asked = tokenizing.read(chat, examples, lambda example: [tokens.prompt(example.messages)], kept)
    for number, example, ((whole, _),) in asked:
        prompt = tokens.cut(chat, whole, made.room)
        fate = _counted(made, whole, prompt, "too-long", len(whole))
        made.tokens += len(prompt or ())
        yield Row(number, example.split, fate, len(whole)), partial(_prompt, chat, whole, prompt)


def _counted(made: Check, whole: list[int], prompt: list[int] | None, reason: str, length: int) -> str:
    """The fate of a row, whose length is counted."""
    made.lengths.append(length)
    return reason if prompt is None else KEPT if prompt is whole else CUT


def _text(chat: Chat, ids: list[int]) -> dict[str, list[Piece]]:
    return {"conversation": [_piece(chat, "learnt", ids)]}


def _conversation(chat: Chat, segments: Sequence[Segment], prompt: list[int] | None) -> dict[str, list[Piece]]:
    opening, *rest = segments
    pieces = _prompt_pieces(chat, opening.ids, prompt)
    pieces += [_piece(chat, _state(segment.learnt and prompt is not None), segment.ids) for segment in rest]
    return {"conversation": pieces}


def _pair(
    chat: Chat, whole: list[int], prompt: list[int] | None, chosen: list[int], rejected: list[int]
) -> dict[str, list[Piece]]:
    asked, state = _prompt_pieces(chat, whole, prompt), _state(prompt is not None)
    return {"prompt": asked, "chosen": [_piece(chat, state, chosen)], "rejected": [_piece(chat, state, rejected)]}


def _prompt(chat: Chat, whole: list[int], prompt: list[int] | None) -> dict[str, list[Piece]]:
    return {"prompt": _prompt_pieces(chat, whole, prompt)}


def _prompt_pieces(chat: Chat, whole: list[int], prompt: list[int] | None) -> list[Piece]:
    """The prompt, with what is cut from it."""
    if prompt is None or prompt is whole:
        return [_piece(chat, "context", whole)]
    kept_head = 1 if prompt[:1] == whole[:1] and whole[0] == chat.tokenizer.bos_token_id else 0
    lost = len(whole) - len(prompt) + kept_head
    head = [_piece(chat, "context", whole[:kept_head])] if kept_head else []
    return [*head, _piece(chat, "cut", whole[kept_head:lost]), _piece(chat, "context", whole[lost:])]


def _state(learnt: bool) -> State:
    return "learnt" if learnt else "context"


def _piece(chat: Chat, state: State, ids: Sequence[int]) -> Piece:
    decode = chat.tokenizer.decode
    return Piece(state, [str(decode([token], clean_up_tokenization_spaces=False)) for token in ids])
