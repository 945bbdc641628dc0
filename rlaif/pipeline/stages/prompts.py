"""The `prompts` stage: the prompts of a file in one or several splits, kept on disk."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from rlaif.config import PromptsStage, Step
from rlaif.errors import InputError
from rlaif.formats import each_prompt
from rlaif.pipeline.manifest import StageRecord
from rlaif.pipeline.spool import Spool
from rlaif.pipeline.stages.files import record_of, source_of
from rlaif.pipeline.stages.stage import Made, Opening, Planning, ReadPrompts, Reiterable, TableStage, Work
from rlaif.records import Prompt


class PromptSource(TableStage[PromptsStage]):
    to_continue = "put a `sample` stage after it"

    def __init__(self, step: Step, settings: PromptsStage, opening: Opening) -> None:
        super().__init__(step, settings, opening)
        prompts = _read_once(settings, opening)

        def error(problem: str) -> InputError:
            return opening.pipeline.error(step, problem)

        kept, self.record = of_split(prompts, step, settings.split, settings.take, error)
        self.made = opening.made[self.name] = Made(prompts=replace(prompts, kept=kept))

    def input_digests(self) -> dict[str, str]:
        assert self.made.prompts is not None
        return {f"prompts {self.name}": digest_of_ids(self.made.prompts.kept)}

    async def run(self, work: Work) -> StageRecord:
        return self.read

    async def plan(self, planning: Planning) -> dict[str, Any]:
        return {"rows": self.read.out}


def _read_once(settings: PromptsStage, opening: Opening) -> ReadPrompts:
    """The prompts of the file, which several stages may name."""
    named = settings.model_dump_json(include={"path", "hub", "hub_split", "revision", "column", "keep"})
    if named not in opening.read:
        unusable = Counter[str]()
        read = Spool(Prompt, each_prompt(source_of(settings), unusable, column=settings.column, keep=settings.keep))
        opening.read[named] = ReadPrompts(read, unusable, read)
    return opening.read[named]


def of_split(
    prompts: ReadPrompts, step: Step, split: Sequence[str], take: int | None, error: Callable[[str], InputError]
) -> tuple[Reiterable[Prompt], StageRecord]:
    """The prompts in the splits, at most `take`, and the record of `step`.

    Raises `error(problem)` when there is none.
    """
    if "all" in split and take is None:
        count = len(prompts.read)
        return prompts.read, record_of(step, count, prompts.unusable, count, Counter())
    kept, dropped, wanted = Spool(Prompt), Counter[str](), " or ".join(split)
    for prompt in prompts.read:
        if "all" not in split and prompt.split not in split:
            dropped[f"not in the {wanted} split"] += 1
        elif take is not None and len(kept) >= take:
            dropped["not taken"] += 1
        else:
            kept.append(prompt)
    if not kept:
        raise error(f"none of the {len(prompts.read)} prompts is in the {wanted} split")
    return kept, record_of(step, len(prompts.read), prompts.unusable, len(kept), dropped)


def digest_of_ids(prompts: Iterable[Prompt]) -> str:
    total = hashlib.sha256()
    for prompt in prompts:
        total.update(prompt.id.encode())
    return total.hexdigest()[:32]
