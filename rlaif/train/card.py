"""The card of a trained model: `README.md` beside it, with the head that the hub reads.

It holds no path of this machine: a base that is no model of the hub is named by its folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rlaif.config import Training
from rlaif.statistics.intervals import share_interval
from rlaif.version import __version__
from rlaif.visible import code, prose

CARD = "README.md"
METHODS = {
    "sft": "Supervised fine-tuning (SFT)",
    "rm": "Reward modelling (RM)",
    "dpo": "Direct preference optimisation (DPO)",
    "ppo": "Proximal policy optimisation (PPO)",
}
MOST_SOURCES = 20
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_CACHE = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/[^/]+$")
_NAMES = {"base", "name", "data", "reward", "template", "checks"}  # said elsewhere, or of this machine


class Facts(NamedTuple):
    """What a card says. `record` is the training's, `sources` are those of its examples, by how many are from each.

    `left_out` are rows of the files of its data that are no examples, by reason.
    """

    name: str
    settings: Training
    base: Path
    record: Mapping[str, Any]
    sources: Sequence[str]
    versions: Mapping[str, str]
    pictured: bool
    left_out: Mapping[str, int] = {}


def card_of(facts: Facts) -> str:
    """The card as Markdown."""
    method = facts.settings.method
    head: dict[str, Any] = {"base_model": base_of(facts.base)}
    if datasets := [source for source in facts.sources if _HUB_ID.fullmatch(source)]:
        head["datasets"] = datasets
    if "base" in facts.record:
        head |= {"base_model_relation": "adapter", "library_name": "peft"}
    else:
        head["library_name"] = "transformers"
    head |= {"license": "unknown", "tags": ["rlaif", method]}
    head["pipeline_tag"] = "text-classification" if facts.settings.scores else "text-generation"
    picture = "\n![The curves of its training](training.png)\n" if facts.pictured else ""
    return f"""\
---
{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---

# {prose(facts.name)}

{METHODS.get(method, prose(method))} of {code(base_of(facts.base))} by rlaif {__version__}.
Its licence is unknown here: that of its base model and those of its data decide it.
{picture}
## Trained on

{_bullets(_data(facts))}

## Figures

{_figures(facts.record)}

## Settings

{_table(("setting", "value"), _settings(facts.settings))}

Trained with {", ".join(f"{name} {code(version)}" for name, version in facts.versions.items())}.

## Use

{_use(facts)}"""


def base_of(folder: Path) -> str:
    """The id on the hub of the model in a folder of the hub's cache; else the folder's name."""
    cached = _HUB_CACHE.search(folder.absolute().as_posix())
    return f"{cached[1]}/{cached[2]}" if cached else folder.absolute().name


def _data(facts: Facts) -> Iterable[str]:
    record = facts.record
    yield f"{record.get('kept', 0):,} examples, validation's included, in {record.get('steps', 0):,} steps"
    if record.get("cut"):
        yield f"{record['cut']:,} of them with a prompt that was cut from the left"
    for reason, count in sorted(record.get("dropped", {}).items()):
        yield f"{count:,} more were dropped: {prose(reason)}"
    for reason, count in sorted(facts.left_out.items()):
        yield f"{count:,} rows of its files are no examples: {prose(reason)}"
    more = len(facts.sources) - MOST_SOURCES
    if facts.sources:
        named = ", ".join(map(code, facts.sources[:MOST_SOURCES]))
        yield f"from {named}" + (f" and {more:,} more" if more > 0 else "")
    yield from map(prose, record.get("notes", ()))


def _figures(record: Mapping[str, Any]) -> str:
    metrics, of_pairs = record.get("metrics", {}), ((record.get("evaluation") or {}).get("validation") or {})
    rows = [
        (name.replace("_", " "), f"{value:.4g}", _interval(name, metrics, of_pairs.get("accuracy")))
        for name, value in metrics.items()
    ]
    return _table(("figure", "value", "95 % interval"), rows) + "\n\nEvery step's are in `metrics.jsonl`."


def _interval(name: str, metrics: Mapping[str, float], accuracy: Mapping[str, float] | None) -> str:
    """Of the accuracy on validation pairs, as its evaluation has it, or Wilson's. A loss has none: its rows are not
    kept apart."""
    if name == "validation_accuracy" and accuracy is not None:
        return f"{accuracy['low']:.4g} to {accuracy['high']:.4g}"
    rows = round(metrics.get("validation_rows", 0))
    if name != "validation_accuracy" or not rows:
        return ""
    right = round(metrics[name] * rows)
    interval = share_interval([number < right for number in range(rows)])
    assert interval is not None, "there are rows"
    return f"{interval.low:.4g} to {interval.high:.4g} ({rows} rows)"


def _settings(settings: Training) -> list[tuple[str, str]]:
    values = settings.model_dump(mode="json", exclude=_NAMES)
    return [(code(name), code(str(value))) for name, value in values.items() if value is not None and value != []]


def _use(facts: Facts) -> str:
    is_adapter = "base" in facts.record
    library, auto = ("peft", "AutoPeftModelFor") if is_adapter else ("transformers", "AutoModelFor")
    if facts.settings.scores:
        one_score = ", num_labels=1" if is_adapter else ""
        example = f"""\
from transformers import AutoTokenizer
from {library} import {auto}SequenceClassification

model = {auto}SequenceClassification.from_pretrained("path/to/this/folder"{one_score})
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
turns = [{{"role": "user", "content": "What is 1 + 1?"}}, {{"role": "assistant", "content": "2"}}]
text = tokenizer.apply_chat_template(turns, tokenize=False)
text = text[: text.rindex(tokenizer.eos_token) + len(tokenizer.eos_token)]  # it is scored at its end token
score = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0]
"""
    else:
        example = f"""\
from transformers import AutoTokenizer
from {library} import {auto}CausalLM

model = {auto}CausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
turns = [{{"role": "user", "content": "What is 1 + 1?"}}]
asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
made = model.generate(**asked, max_new_tokens=64)
print(tokenizer.decode(made[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))
"""
    model = yaml.safe_dump({facts.name: {"engine": "transformers", "path": "path/to/this/folder"}}, sort_keys=False)
    indented = "".join(f"  {line}\n" for line in model.splitlines())
    return f"```python\n{example}```\n\nIn a pipeline of rlaif:\n\n```yaml\nmodels:\n{indented}```\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
