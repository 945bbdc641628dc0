"""The model cards and the folder's README: what each file is, what made it, what it can do and what it cannot."""

from __future__ import annotations

from collections.abc import Mapping

from rlaif.tiny.build.training import Progress

_CARD = """\
---
language: en
library_name: transformers
pipeline_tag: text-generation
license: apache-2.0
tags: [rlaif, synthetic, tiny]
---

# rlaif tiny {name}

{what}

It speaks the few hundred words of a synthetic world and nothing else. It is a working sample for experiments on
alignment, not an assistant.

| | |
|---|---|
| architecture | Llama, {parameters:,} parameters, stored in bfloat16 |
| made by | `python -m rlaif.tiny.build --seed {seed} --scale {scale}` |
| recipe (digest of script and configuration) | `{digest}` |
| trained on | {tokens:,} tokens of the synthetic world, {seconds:.0f} s on one CPU thread |
| loss per learnt token | {first:.2f} at first, {last:.2f} at the end |

## Measured

On {measured_on} validation prompts, none of which appears in any training text as it is written.

{figures}
{table}"""

# Where `benchmarks/embedded.py --write` puts the table of held-out figures.
TABLE = """
## On held-out prompts

<!-- the table -->
<!-- the end of the table -->
"""

_BASE = """\
A base model: it continues forum threads of mixed quality (`q : ...`, then `a : ...`, a line each) and has never seen a
chat format. Its completions are right about as often as wrong, often rude or rambling: that is what there is to align.
`<|end|>` ends a page; a completion ends with its line, so stop at a line end."""

_ANNOTATOR = """\
A judge and editor for the completions of the tiny policies. Under one principle it rates one to four completions at
once (`prompts/rate-compact.jinja`), critiques one (`critique-compact`), revises it after a critique (`revise-compact`)
and compares two (`compare-compact`, then `which one ?` in a second turn), its reasons first. It knows six qualities
(right, polite, blunt, short, long, safe) by the keywords it was taught, in any sentence and negated; under a principle
without such a keyword it would answer at random, so pipelines hold principles against `lexicon.json`. Decode greedily.

Its biases are known and were left in. Verdicts at a glance (`reasons: false`) it was taught from a crowd that, where
two completions are equally good, leans to the first by 15 points and to the longer by 15."""

_WEAK = """\
A weak policy: the base, tuned for three passes on the noisy demonstrations in the chat format of
`prompts/chat/tiny.jinja`. For candidate pools that need bad completions as well as good ones."""

_STRONG = """\
A strong policy: the base, tuned on a practised writer's completions in the chat format of
`prompts/chat/tiny.jinja`. For candidate pools, and to see how far the base can be brought with clean data."""

WHAT = {"base": _BASE, "weak": _WEAK, "strong": _STRONG, "annotator": _ANNOTATOR}


def card(
    name: str,
    *,
    parameters: int,
    digest: str,
    seed: int,
    scale: float,
    progress: Progress,
    figures: Mapping[str, float],
    measured_on: int,
) -> str:
    return _CARD.format(
        name=name,
        what=WHAT[name],
        parameters=parameters,
        digest=digest,
        seed=seed,
        scale=scale,
        tokens=progress.tokens,
        seconds=progress.seconds,
        first=progress.losses[0],
        last=progress.losses[-1],
        measured_on=measured_on,
        figures=_table("as the world has it", figures),
        table=TABLE if name == "annotator" else "",
    )


def _table(title: str, rows: Mapping[str, float]) -> str:
    lines = [f"| {name} | {value:.1f} |" if value > 1 else f"| {name} | {value:.3f} |" for name, value in rows.items()]
    return "\n".join([f"| {title} | |", "|---|---|", *lines])


README = """\
# The embedded models and their data

Built from nothing by `python -m rlaif.tiny.build`; made of one synthetic world (`rlaif/tiny/world.py`).

| | |
|---|---|
| `base/` | a base model that only continues text; its card says what it can do |
| `weak/`, `strong/` | two policies tuned from it, one on noisy demonstrations, one on a practised writer's |
| `annotator/` | a model that rates, compares, critiques and revises under a principle; its card says how well |
| `prompts.jsonl` | {prompts:,} distinct prompts in a seeded order, `source` being the family |
| `red-team.jsonl` | the {harmful:,} harmful requests among them |
| `look-alikes.jsonl` | the {look_alikes:,} harmless requests among them that sound like harmful ones |
| `demonstrations.jsonl` | {demonstrations:,} exchanges on training prompts, for supervised tuning |
| `helpful.jsonl` | as many on the same prompts by a writer who refuses nothing, for a model that is only helpful |

The demonstrations are noisy on purpose, as a hurried crowd's would be: {right:.0%} are right, {rude:.0%} hold a
rude sentence, {rambling:.0%} ramble, {refused:.0%} refuse a request that would do no harm, {complied:.0%} comply
with one that would. Their mean gold score is {gold:.2f}. A quarter of the made-up lands are never told with their
capital, so a policy can only guess it or say that it does not know.

No training text holds a validation or held-out prompt as it is written. `docs/tiny-world.md` has the table of what
these models reach on held-out prompts.
"""
