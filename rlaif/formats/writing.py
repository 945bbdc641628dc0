"""Data sets that trainers load unedited, and the shapes that other tools publish, as Parquet or JSON Lines.

The `*_rows` functions turn records into plain rows and touch no file; `write_dataset` and `write_jsonl` put rows into
files that appear whole or not at all. Equal rows give equal bytes: nothing written holds a time, a path or a host.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import yaml

from rlaif.errors import WorkError
from rlaif.formats.judged import OVERALL, records_of
from rlaif.formats.messages import UnknownShape, Unusable
from rlaif.records import Candidate, Message, Preference, Prompt, Rating, Row, oneline

Shape = Literal["sft", "preference", "ultrafeedback", "hh", "ranked", "soft", "rewardbench", "binarized"]

# ---------------------------------------------------------------- records into rows


def sft_rows(items: Iterable[Preference | Row]) -> Iterator[dict[str, Any]]:
    """Demonstrations: a preference gives its chosen completion, a row the last revision of each of its candidates.

    The same completion to a prompt is given once.
    """
    seen: set[str] = set()
    prompt = None  # the rows of a prompt follow one another
    for item in items:
        if item.prompt.id != prompt:
            prompt, seen = item.prompt.id, set()
        scored: list[tuple[Candidate, float | None]]
        if isinstance(item, Preference):
            scored = [(item.chosen, item.score_chosen)]
        else:
            ends = [item.last_revision(index) for index in range(len(item.candidates))]
            scored = [(Candidate(sampler=end.model, completion=end), None) for end in ends if end is not None]
        for candidate, score in scored:
            if candidate.completion.text not in seen:
                seen.add(candidate.completion.text)
                yield _sft_row(item.prompt, candidate, score)


def _sft_row(prompt: Prompt, candidate: Candidate, score: float | None) -> dict[str, Any]:
    return {
        "messages": [*_turns(prompt.messages), _completion(candidate)],
        "prompt_id": prompt.id,
        "split": prompt.split,
        "source": prompt.source,
        "model": candidate.sampler,
        "call": candidate.completion.call,
        "score": score,
    }


def preference_rows(preferences: Iterable[Preference]) -> Iterator[dict[str, Any]]:
    """TRL's conversational form with the prompt apart, so that the loss covers the completions and nothing else."""
    for preference in preferences:
        yield {
            "prompt": _turns(preference.prompt.messages),
            "chosen": [_completion(preference.chosen)],
            "rejected": [_completion(preference.rejected)],
            "score_chosen": preference.score_chosen,
            "score_rejected": preference.score_rejected,
            "margin": preference.margin,
            "probability": preference.probability,
            "prompt_id": preference.prompt.id,
            "split": preference.prompt.split,
            "source": preference.prompt.source,
            "rule": preference.rule,
            "principle": preference.principle,
            "chosen_model": preference.chosen.sampler,
            "rejected_model": preference.rejected.sampler,
            "chosen_call": preference.chosen.completion.call,
            "rejected_call": preference.rejected.completion.call,
        }


def ultrafeedback_rows(rows: Iterable[Row], weights: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """Every candidate with every rating, under UltraFeedback's names (arXiv 2310.01377).

    As there, `fine-grained_score` is the mean of the ratings (here weighted), `overall_score` a judge's own, with
    `critique` for its words, and "N/A" says that an aspect does not apply. Departs from it in two ways: annotations are
    a list with the aspect named in each, so that one schema holds any rubric; and a rating that is unparsed is null,
    with the reason beside it.
    """
    for row in rows:
        yield {
            "source": row.prompt.source,
            "instruction": row.prompt.text,
            "prompt": _turns(row.prompt.messages),
            "models": [candidate.sampler for candidate in row.candidates],
            "correct_answers": list(row.prompt.reference),
            "completions": [
                {
                    "model": candidate.sampler,
                    "response": candidate.completion.text,
                    "call": candidate.completion.call,
                    "annotations": [
                        _annotation(rating)
                        for rating in row.ratings
                        if rating.candidate == index and rating.aspect != OVERALL
                    ],
                    "fine-grained_score": row.score(index, dict(weights)),
                    **_overall(row, index),
                }
                for index, candidate in enumerate(row.candidates)
            ],
            "prompt_id": row.prompt.id,
            "split": row.prompt.split,
        }


def _critique(words: str) -> str:
    """A critique without the line that holds its score, which stands apart."""
    critique, _, last = words.rstrip().rpartition("\n")
    return critique.rstrip() if critique and "overall score" in last.lower() else words


def _annotation(rating: Rating) -> dict[str, Any]:
    return {
        "aspect": rating.aspect,
        "Rating": "N/A" if rating.na else None if rating.value is None else str(rating.value),
        "types": list(rating.types),
        "Rationale": rating.raw,
        "problem": rating.problem,
        "judge": rating.judge,
        "call": rating.call,
        "position": rating.position,
    }


def _overall(row: Row, candidate: int) -> dict[str, Any]:
    """What a judge thinks of the candidate as a whole: a rating with its critique, or the score that a file states."""
    score = next((s for s in row.scores if s.candidate == candidate and s.aspect == OVERALL), None)
    rating = next((r for r in row.ratings if r.candidate == candidate and r.aspect == OVERALL), None)
    stated = score or rating
    return {
        "critique": _critique(rating.raw) if rating else None,
        "overall_score": None if stated is None or stated.value is None else float(stated.value),
        "overall_judge": stated.judge if stated else None,
        "overall_problem": stated.problem if stated else None,
    }


UNHELD = "text that the shape cannot hold"  # such as a system message in a transcript, or a turn's mark inside a turn


def hh_rows(preferences: Iterable[Preference], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    """Two transcripts, as Anthropic's HH data has them. `dropped` counts prompts that no transcript can hold."""
    return _by_prompt(preferences, dropped, UNHELD, lambda preference, _: _held(preference, {
        "chosen": _transcript([*preference.prompt.messages, _said(preference.chosen)]),
        "rejected": _transcript([*preference.prompt.messages, _said(preference.rejected)]),
        "prompt_id": preference.prompt.id,
    }))  # fmt: skip


def rewardbench_rows(preferences: Iterable[Preference], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    """RewardBench's columns, all of them text (arXiv 2403.13787); a prompt of several turns is a transcript.

    `subset` is the source of the prompt. `dropped` counts prompts that no text can hold.
    """

    def made(preference: Preference, number: int) -> dict[str, Any] | None:
        messages = preference.prompt.messages
        alone = len(messages) == 1 and messages[0].role == "user"
        row = {
            "prompt": messages[0].content if alone else _transcript(messages) + "\n\nAssistant:",
            "chosen": preference.chosen.completion.text,
            "chosen_model": preference.chosen.sampler,
            "rejected": preference.rejected.completion.text,
            "rejected_model": preference.rejected.sampler,
            "subset": preference.prompt.source or "",
            "id": number,
            "prompt_id": preference.prompt.id,
        }
        return _held(preference, row)

    return _by_prompt(preferences, dropped, UNHELD, made)


def binarized_rows(preferences: Iterable[Preference], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    """The shape of HuggingFaceH4/ultrafeedback_binarized, where chosen and rejected hold the prompt too."""

    def made(preference: Preference, _: int) -> dict[str, Any] | None:
        asked = _turns(preference.prompt.messages)
        row = {
            "prompt": next(turn["content"] for turn in asked if turn["role"] == "user"),
            "prompt_id": preference.prompt.id,
            "chosen": [*asked, _completion(preference.chosen)],
            "rejected": [*asked, _completion(preference.rejected)],
            "messages": [*asked, _completion(preference.chosen)],
            "score_chosen": preference.score_chosen,
            "score_rejected": preference.score_rejected,
        }
        return _held(preference, row)

    return _by_prompt(preferences, dropped, UNHELD, made)


def soft_rows(preferences: Iterable[Preference], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    """Pairs with the probability that chosen is the better one, for losses that weigh by it."""

    def made(preference: Preference, _: int) -> dict[str, Any] | None:
        if preference.probability is None:
            return None
        return {
            "prompt": _turns(preference.prompt.messages),
            "chosen": [_completion(preference.chosen)],
            "rejected": [_completion(preference.rejected)],
            "probability": preference.probability,
            "prompt_id": preference.prompt.id,
        }

    return _by_prompt(preferences, dropped, "no probability", made)


def ranked_rows(rows: Iterable[Row], weights: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """Every candidate with its rank, 1 for the best and equal for a tie, and its score.

    The rank is that of the first ranking, else of the scores; the score is of the ratings where there are `weights` for
    them, else the first judge's.
    """
    for row in rows:
        scores = [_score(row, index, weights) for index in range(len(row.candidates))]
        ranks = _ranks(row, scores)
        yield {
            "prompt": _turns(row.prompt.messages),
            "completions": [
                {
                    "text": candidate.completion.text,
                    "model": candidate.sampler,
                    "call": candidate.completion.call,
                    "rank": rank,
                    "score": score,
                }
                for candidate, rank, score in zip(row.candidates, ranks, scores, strict=True)
            ],
            "prompt_id": row.prompt.id,
            "split": row.prompt.split,
            "source": row.prompt.source,
        }


def _score(row: Row, candidate: int, weights: Mapping[str, float]) -> float | None:
    if weights and row.ratings:
        return row.score(candidate, dict(weights))
    judges = {(score.judge, score.aspect): None for score in row.scores}
    first = next(iter(judges), None)
    return next((s.value for s in row.scores if s.candidate == candidate and (s.judge, s.aspect) == first), None)


def _ranks(row: Row, scores: Sequence[float | None]) -> list[int | None]:
    """Of the candidates in turn; all None where no ranking tells and a score is missing."""
    order = next((ranking.order for ranking in row.rankings if ranking.order is not None), None)
    if order is not None:
        places = {index: 1 + sum(map(len, order[:tier])) for tier, tied in enumerate(order) for index in tied}
        return [places.get(index) for index in range(len(scores))]
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return [None] * len(scores)
    return [1 + sum(other > score for other in known) for score in known]


def _by_prompt(
    preferences: Iterable[Preference],
    dropped: Counter[str],
    reason: str,
    make: Callable[[Preference, int], dict[str, Any] | None],
) -> Iterator[dict[str, Any]]:
    """The rows `make` gives of each preference and its number from 1; a prompt of which one is None is dropped."""
    number = 0
    for _, group in groupby(preferences, key=lambda preference: preference.prompt.id):
        rows = []
        for preference in group:
            number += 1
            rows.append(make(preference, number))
        whole = [row for row in rows if row is not None]
        if len(whole) == len(rows):
            yield from whole
        else:
            dropped[reason] += 1


def _held(preference: Preference, row: dict[str, Any]) -> dict[str, Any] | None:
    """The row, where it is read back as the preference it is of."""
    try:
        (read,) = records_of(row, "", turns="last")
    except (Unusable, UnknownShape):
        return None
    texts = [candidate.completion.text for candidate in read.candidates]
    wanted = [preference.chosen.completion.text, preference.rejected.completion.text]
    return row if texts == wanted and read.prompt.messages == preference.prompt.messages else None


_SPEAKERS = {"system": "System", "user": "Human", "assistant": "Assistant"}


def _transcript(messages: Iterable[Message]) -> str:
    return "".join(f"\n\n{_SPEAKERS[message.role]}: {message.content}" for message in messages)


def _said(candidate: Candidate) -> Message:
    return Message(role="assistant", content=candidate.completion.text)


def _turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _completion(candidate: Candidate) -> dict[str, str]:
    return {"role": "assistant", "content": candidate.completion.text}


# ---------------------------------------------------------------- rows into files

BATCH = 500  # rows in memory while a data set is written; what Parquet notes of each batch stays in memory, too
PARQUET = "data/train-00000-of-00001.parquet"  # inside its folder


class CardFacts(NamedTuple):
    """What a data set card says besides its columns. `dropped` counts prompts by reason, `models` maps a name to what
    it stands for, `digests` maps the constitution, rubric and templates to their digests."""

    name: str
    prompts_in: int
    dropped: Mapping[str, int]
    models: Mapping[str, str]
    digests: Mapping[str, str]


def write_dataset(shape: Shape, rows: Iterable[dict[str, Any]], folder: Path, card: CardFacts) -> int:
    """Write `rows` as a data set with its card; returns how many rows. Raises WorkError as `DatasetWriter.finish`."""
    with DatasetWriter(shape, folder) as writer:
        for _, of_prompt in groupby(rows, key=lambda row: row["prompt_id"]):
            writer.extend(of_prompt)
        return writer.finish(card)


class DatasetWriter:
    """A data set that `datasets.load_dataset(folder)` loads, written a row at a time.

    It takes its place when it is finished; what is not is gone when the block ends.
    """

    def __init__(self, shape: Shape, folder: Path) -> None:
        self.count, self.folder = 0, folder
        self._shape, self._prompts, self._batch = shape, 0, list[dict[str, Any]]()
        self._file = ExitStack()
        self._writer: Any = None  # Arrow's, from the first rows on

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def extend(self, rows: Iterable[dict[str, Any]]) -> None:
        """The rows that one prompt gives, which may be none; a prompt that stands twice in a file is two."""
        before = self.count
        for row in rows:
            self.count += 1
            self._batch.append(row)
            if len(self._batch) == BATCH:
                self._write()
        self._prompts += self.count > before

    def _write(self) -> None:
        import pyarrow.parquet

        if self._writer is None:
            data = self._parquet.parent
            data.mkdir(parents=True, exist_ok=True)
            for left in (*self.folder.glob(".*.tmp"), *data.glob(".*.tmp")):  # by a run that was killed
                left.unlink()
            self._file.callback(self._temporary.unlink, missing_ok=True)
            self._schema = _schema(self._shape)
            # Without statistics: they hold the least and the greatest text of every column and batch, for nobody.
            writer = pyarrow.parquet.ParquetWriter(self._temporary, self._schema, write_statistics=False)
            self._writer = self._file.enter_context(writer)
        self._writer.write_table(_table(self._batch, self._schema))
        self._batch.clear()

    def finish(self, card: CardFacts) -> int:
        """Put the data set in its place, with its card; returns how many rows it has.

        Raises WorkError when there are none, or when the card's counts do not add up: prompts in = prompts out +
        dropped.
        """
        _check_counts(self.count, self._prompts, card)
        if self._batch:
            self._write()
        self._writer.close()
        os.replace(self._temporary, self._parquet)
        with _whole(self.folder / "README.md") as file:
            file.write_text(_card(self._shape, self.count, self._prompts, card), encoding="utf-8")
        return self.count

    @property
    def _parquet(self) -> Path:
        return self.folder / PARQUET

    @property
    def _temporary(self) -> Path:
        return _beside(self._parquet)


def write_jsonl(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Write one JSON object a line; returns how many."""
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with _whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(_storable(row), ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def _table(rows: Sequence[Mapping[str, Any]], schema: Any) -> Any:
    """By way of JSON: to read Python objects Arrow loads pandas, which costs every run time and memory."""
    import pyarrow.json

    text = b"\n".join(_encoded(row) for row in rows)
    return pyarrow.json.read_json(
        io.BytesIO(text),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(text) + 1),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
    )


def _encoded(row: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(row)
    except UnicodeEncodeError:
        return msgspec.json.encode(_storable(row))


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name when the block ends well, and is gone when it does not."""
    temporary = _beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _storable(value: Any) -> Any:
    """The value with lone surrogates, which a model may write and no file can hold, replaced by U+FFFD."""
    if isinstance(value, str):
        if value.isascii():
            return value
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, Mapping):
        return {key: _storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_storable(item) for item in value]
    return value


def _check_counts(rows: int, prompts_out: int, card: CardFacts) -> None:
    dropped = sum(card.dropped.values())
    if not rows:
        raise WorkError(f"nothing to write: of {card.prompts_in} prompts were dropped {_reasons(card.dropped)}")
    if card.prompts_in != prompts_out + dropped:
        raise WorkError(f"the counts do not add up: {card.prompts_in} prompts in, {prompts_out} out, {dropped} dropped")


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} ({reason})" for reason, count in sorted(dropped.items())) or "none"


def _schema(shape: Shape) -> Any:
    """The shape fixes the schema: left to inference, a column that happens to hold only None would change its type.

    Said in Arrow's own words: to say it in those of `datasets` costs a second of every run.
    """
    import pyarrow

    text, number = pyarrow.string(), pyarrow.float64()

    def table(**columns: Any) -> list[tuple[str, Any]]:
        return list(columns.items())

    def texts(*names: str) -> list[tuple[str, Any]]:
        return [(name, text) for name in names]

    def listed(fields: list[tuple[str, Any]]) -> Any:
        return pyarrow.list_(pyarrow.struct(fields))

    messages = listed(texts("role", "content"))
    origin = texts("prompt_id", "split", "source")
    annotation = [
        *texts("aspect", "Rating", "Rationale", "problem", "judge", "call"),
        *table(types=pyarrow.list_(text), position=pyarrow.int64()),
    ]
    rated = [
        *texts("model", "response", "call", "critique", "overall_judge", "overall_problem"),
        *[("annotations", listed(annotation)), ("fine-grained_score", number), ("overall_score", number)],
    ]
    ranked = [*texts("text", "model", "call"), *table(rank=pyarrow.int64(), score=number)]
    columns = {
        "sft": [*table(messages=messages), *origin, *texts("model", "call"), *table(score=number)],
        "preference": [
            *table(prompt=messages, chosen=messages, rejected=messages),
            *table(score_chosen=number, score_rejected=number, margin=number, probability=number),
            *origin,
            *texts("rule", "principle", "chosen_model", "rejected_model", "chosen_call", "rejected_call"),
        ],
        "ultrafeedback": [
            *texts("source", "instruction"),
            *table(prompt=messages, models=pyarrow.list_(text), correct_answers=pyarrow.list_(text)),
            *table(completions=listed(rated)),
            *texts("prompt_id", "split"),
        ],
        "hh": texts("chosen", "rejected", "prompt_id"),
        "ranked": [*table(prompt=messages, completions=listed(ranked)), *origin],
        "soft": [*table(prompt=messages, chosen=messages, rejected=messages, probability=number), *texts("prompt_id")],
        "rewardbench": [
            *texts("prompt", "chosen", "chosen_model", "rejected", "rejected_model", "subset"),
            *table(id=pyarrow.int64()),
            *texts("prompt_id"),
        ],
        "binarized": [
            *texts("prompt", "prompt_id"),
            *table(chosen=messages, rejected=messages, messages=messages),
            *table(score_chosen=number, score_rejected=number),
        ],
    }
    return pyarrow.schema(columns[shape])


# ---------------------------------------------------------------- the card

_ABOUT: dict[Shape, str] = {
    "sft": "Demonstrations for supervised fine-tuning: conversations that end with the completion to learn.",
    "preference": "Preferences: for each prompt a chosen and a rejected completion, judged by a model.",
    "ultrafeedback": "Prompts with several completions each, rated by a model under every aspect of a rubric.",
    "hh": "Preferences as pairs of transcripts: of each, the last turn is what was judged.",
    "ranked": "Prompts with several completions each, ranked and scored by a model.",
    "soft": "Pairs of completions, each with the probability that chosen is the better one.",
    "rewardbench": "Preferences under RewardBench's names, to measure reward models and judges on.",
    "binarized": "Preferences in the shape of the binarised UltraFeedback: the conversations hold their prompt.",
}

_COLUMNS: dict[Shape, str] = {
    "sft": """\
`model` and `call` say which model wrote the completion, in which call; `score` is the judge's, where there is one.""",
    "preference": """\
`chosen_model` and `chosen_call` (the same for rejected) say which model wrote the completion, in which call; `rule` is
how the two were picked, `principle` what they were compared under; `margin` is `score_chosen` minus `score_rejected`,
`probability` that of chosen being the better one, where the judge gave one.""",
    "ultrafeedback": """\
`fine-grained_score` is the weighted mean of the ratings, on the rubric's own scale, `overall_score` a judge's own score
of the whole where one was asked for. A `Rating` of `N/A` means that the aspect does not apply; where it is null the
judge's words could not be read as a rating, `problem` says why, and `Rationale` keeps the words.""",
    "hh": "",
    "ranked": """\
Of a completion `rank` is 1 for the best, equal for a tie and null where the judge's words could not be read; `score` is
the judge's, on its own scale; `model` and `call` say which model wrote it, in which call.""",
    "soft": """\
`probability` is the judge's, of chosen being the better one, after both orders were averaged.""",
    "rewardbench": """\
`subset` is the data set its prompt is from. A prompt of several turns is a transcript of `Human:` and `Assistant:`.""",
    "binarized": """\
`messages` is the same as `chosen`, and `prompt` the first thing the user says.""",
}

_PREFERENCES = """
from trl import DPOTrainer  # or RewardTrainer

DPOTrainer(model="path/to/model", train_dataset=data).train()
"""
_TRAIN: dict[Shape, str] = {
    "sft": """
from trl import SFTTrainer

SFTTrainer(model="path/to/model", train_dataset=data).train()
""",
    "preference": _PREFERENCES,
    "soft": _PREFERENCES,
    "rewardbench": _PREFERENCES,
}


def _card(shape: Shape, rows: int, prompts_out: int, facts: CardFacts) -> str:
    name = oneline(facts.name)
    header = {
        "pretty_name": name,
        "tags": ["rlaif", "synthetic", shape],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    }
    reasons = "".join(f"\n  - {oneline(reason)}: {count}" for reason, count in sorted(facts.dropped.items()))
    models = _bullets(f"{_code(model)}: {_code(identity)}" for model, identity in sorted(facts.models.items()))
    digests = _bullets(f"{oneline(what)}: {_code(value)}" for what, value in sorted(facts.digests.items()))
    return f"""\
---
{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---

# {name}

{_ABOUT[shape]}
The completions are models' words, unchecked by people; the prompts keep the licence of their source.

## Counts

- rows: {rows}
- prompts in: {facts.prompts_in}
- prompts out: {prompts_out}
- prompts dropped: {sum(facts.dropped.values())}{reasons}

## Models

{models}

## Made with

{digests}

## Columns

`prompt_id` is a digest of the prompt's messages and decides its `split`, `source` the data set the prompt came from.
{_COLUMNS[shape]}

## Use

```python
from datasets import load_dataset

data = load_dataset("path/to/this/folder", split="train")
{_TRAIN.get(shape, "")}```
"""


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines) or "- none"


def _code(text: str) -> str:
    """The text as Markdown code, which a back-tick inside it cannot end."""
    return "`" + oneline(text).replace("`", "'") + "`"
