"""Preferences as groups for a reward model: completions of one prompt, each once, and the pairs among them.

A group is one pair, or all the pairs of a prompt (InstructGPT: Ouyang et al. 2022, arXiv 2203.02155, section 3.5).
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rlaif.engines.chat import Chat
from rlaif.records import Message, prompt_id
from rlaif.train import tokenizing, tokens
from rlaif.train.examples import PreferencePair
from rlaif.train.tokens import Counts, Excess, Talk

Ids = list[int]


class Pair(NamedTuple):
    """Two completions of a group by their places, and what is known of how far they are apart."""

    better: int
    worse: int
    margin: float | None = None
    probability: float | None = None
    source: str | None = None


@dataclass(slots=True)
class Group:
    """Distinct completions of one prompt, and the pairs among them. `row` is the number of its first pair's."""

    prompt: tuple[Message, ...]
    row: int = 1
    completions: list[str] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)

    def add(self, pair: PreferencePair) -> None:
        """Add a pair of the same prompt."""
        for text in (pair.chosen, pair.rejected):
            if text not in self.completions:
                self.completions.append(text)
        places = self.completions.index(pair.chosen), self.completions.index(pair.rejected)
        self.pairs.append(Pair(*places, pair.margin, pair.probability, pair.source))

    def size_with(self, pair: PreferencePair) -> int:
        """The number of completions after the pair would be added."""
        return len({*self.completions, pair.chosen, pair.rejected})


Numbered = Iterable[tuple[int, PreferencePair]]  # pairs with the numbers of their rows


def of_pairs(pairs: Numbered) -> Iterator[Group]:
    """Each pair as a group of its own, in order."""
    for row, pair in pairs:
        group = Group(pair.prompt, row)
        group.add(pair)
        yield group


def of_prompts(pairs: Numbered, most: int) -> list[Group]:
    """The pairs of each prompt as one group, in the order of the prompts' first pairs.

    A group has at most `most` completions: a pair that would add one too many begins another group of its prompt, so no
    pair is lost.
    """
    groups: list[Group] = []
    newest: dict[str, Group] = {}  # by prompt
    for row, pair in pairs:
        prompt = prompt_id(pair.prompt)
        group = newest.get(prompt)
        if group is None or group.size_with(pair) > most:
            group = newest[prompt] = Group(pair.prompt, row)
            groups.append(group)
        group.add(pair)
    return groups


class Tokenized(NamedTuple):
    """A group as token ids: each sequence is the prompt, a completion and its end token."""

    prompt: str  # its id
    sequences: list[Ids]
    lengths: list[int]  # of the completions alone, in tokens
    pairs: list[Pair]


def tokenize(
    chat: Chat,
    groups: Iterable[Group],
    max_length: int,
    counts: Counts,
    excess: Excess = "truncate",
    kept: Path | None = None,
) -> list[Tokenized]:
    """The groups as token ids; their pairs are counted in `counts`.

    The prompt may be truncated from the left, alike for all completions of a group. A completion that leaves less than
    half of it is dropped with its pairs; `excess` is the trainer's setting `excess_length`, `kept` is as in
    `tokenizing.read`. Raises InputError for a template that refuses a group's messages, and for a group whose length is
    refused.
    """
    read = []
    for _, group, ids in tokenizing.read(chat, ((group.row, group) for group in groups), _talks, kept):
        made = _read(chat, group, [(prompt, completion) for prompt, completion in ids], max_length, counts, excess)
        if made is not None:
            read.append(made)
    return read


def _talks(group: Group) -> list[Talk]:
    return [Talk((*group.prompt, Message(role="assistant", content=text)), "last") for text in group.completions]


def _read(
    chat: Chat, group: Group, ids: Sequence[tuple[Ids, Ids]], max_length: int, counts: Counts, excess: Excess
) -> Tokenized | None:
    """The group without the pairs that cannot be used, which are counted; None where no pair is left."""
    whole, completions = ids[0][0], [completion for _, completion in ids]
    broken = [tokens.broken(chat, text) for text in group.completions]
    rooms = [max_length - len(completion) for completion in completions]
    long = [tokens.fitted(chat, whole, room, excess, group.row) is None for room in rooms]
    kept = []
    for pair in group.pairs:
        a, b = pair.better, pair.worse
        if broken[a] or broken[b]:
            counts.dropped["end-token-inside"] += 1
        elif completions[a] == completions[b]:
            counts.dropped["identical"] += 1
        elif long[a] or long[b]:
            counts.dropped["too-long"] += 1
        else:
            kept.append(pair)
    if not kept:
        return None
    used = sorted({place for pair in kept for place in (pair.better, pair.worse)})
    lengths = [len(completions[place]) for place in used]
    prompt = tokens.cut(chat, whole, max_length - max(lengths))
    assert prompt is not None, "no completion that is left is too long"
    counts.kept += len(kept)
    counts.cut += len(kept) if prompt is not whole else 0
    now = {place: number for number, place in enumerate(used)}
    return Tokenized(
        prompt_id(group.prompt),
        [prompt + completions[place] for place in used],
        lengths,
        [pair._replace(better=now[pair.better], worse=now[pair.worse]) for pair in kept],
    )


def total_order(pairs: Sequence[Pair]) -> list[int] | None:
    """The places from best to worst where the pairs leave one order only; None where they leave several, or none."""
    left = {place for pair in pairs for place in (pair.better, pair.worse)}
    order: list[int] = []
    while left:
        beaten = {pair.worse for pair in pairs if pair.better in left}
        best = left - beaten
        if len(best) != 1:
            return None
        order += best
        left -= best
    return order
