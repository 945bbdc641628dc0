"""The `sample` stage: candidates for one prompt."""

from __future__ import annotations

from collections.abc import Mapping

from rlaif.config import Sampler as SamplerSettings
from rlaif.config import SampleStage, SamplingSettings
from rlaif.engines.scheduler import Sampler, together
from rlaif.records import Candidate, Message, Prompt, Row, Sampling, hashed_order


def drawn(stage: SampleStage, prompt: Prompt) -> list[SamplerSettings]:
    """The samplers this prompt draws: all of them, or `pick` by hash, so that a new one re-draws only what it wins."""
    if stage.pick is None:
        return list(stage.models)
    order = hashed_order([s.name or s.model for s in stage.models], "pick", prompt.id)
    return [stage.models[i] for i in sorted(order[: stage.pick])]


async def sample(
    row: Row, stage: SampleStage, models: Mapping[str, SamplingSettings], scheduler: Sampler, seed: int
) -> Row:
    """`row` with its candidates. `models` are the sampling settings of each model. Raises EngineError."""

    async def ask(sampler: SamplerSettings) -> list[Candidate]:
        settings = sampler.over(stage.sampling, models[sampler.model])
        system = (Message(role="system", content=sampler.system),) if sampler.system else ()
        completions = await scheduler.sample(
            sampler.model, (*system, *row.prompt.messages), Sampling(seed=seed, **settings), n=stage.per_prompt
        )
        return [Candidate(sampler=sampler.name or sampler.model, completion=c) for c in completions]

    groups = await together(*(ask(sampler) for sampler in drawn(stage, row.prompt)))
    return row.model_copy(update={"candidates": tuple(candidate for group in groups for candidate in group)})
