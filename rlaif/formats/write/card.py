"""The card of a data set: its counts, models, digests and columns, and how to train on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import yaml

from rlaif.formats.write.shape import Shape
from rlaif.visible import code, prose, visible_line


class CardFacts(NamedTuple):
    """What a card says besides its columns. `dropped` counts prompts by reason, `models` maps a name to the model
    behind it, `digests` maps the constitution, rubric and templates to their digests. `left_out` counts completions,
    `seen` what was seen in completions, kept or not."""

    name: str
    prompts_in: int
    dropped: Mapping[str, int]
    models: Mapping[str, str]
    digests: Mapping[str, str]
    left_out: Mapping[str, int] = {}
    seen: Mapping[str, int] = {}


def card_text(shape: Shape, rows: int, prompts_out: int, facts: CardFacts) -> str:
    header = {
        "pretty_name": visible_line(facts.name),
        "tags": ["rlaif", "synthetic", shape.name],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    }
    dropped = f"- prompts dropped: {_counted(facts.dropped)}"
    if facts.left_out:
        dropped += f"\n- completions left out: {_counted(facts.left_out)}"
    if facts.seen:
        dropped += f"\n- seen in the revisions, kept or not:{_reasons(facts.seen)}"
    models = _bullets(f"{code(model)}: {code(identity)}" for model, identity in sorted(facts.models.items()))
    digests = _bullets(f"{prose(what)}: {code(value)}" for what, value in sorted(facts.digests.items()))
    return f"""\
---
{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---

# {prose(facts.name)}

{shape.about}
The completions are models' words, unchecked by people; the prompts keep the licence of their source.

## Counts

- rows: {rows}
- prompts in: {facts.prompts_in}
- prompts out: {prompts_out}
{dropped}

## Models

{models}

## Made with

{digests}

## Columns

`prompt_id` is a digest of the prompt's messages and decides its `split`, `source` the data set the prompt came from.
{shape.columns_told}

## Use

```python
from datasets import load_dataset

data = load_dataset("path/to/this/folder", split="train")
{shape.training}```
"""


def _counted(reasons: Mapping[str, int]) -> str:
    return f"{sum(reasons.values())}{_reasons(reasons)}"


def _reasons(reasons: Mapping[str, int]) -> str:
    return "".join(f"\n  - {prose(reason)}: {count}" for reason, count in sorted(reasons.items()))


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines) or "- none"
