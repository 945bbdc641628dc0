"""The `sample` stage: candidates for one prompt."""

from __future__ import annotations

from collections.abc import Mapping

from rlaif.config import Sampler as SamplerSettings
from rlaif.config import SampleStage, SamplingSettings
from rlaif.engines.scheduler import Ask, Sampler
from rlaif.records import Candidate, Message, Prompt, Row, hashed_order


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

    samplers = drawn(stage, row.prompt)
    asks = []
    for sampler in samplers:
        asked = sampler.resolved(seed, stage.sampling, models[sampler.model])
        system = (Message(role="system", content=sampler.system),) if sampler.system else ()
        messages = (*system, *row.prompt.messages)
        asks.append(Ask(sampler.model, messages, asked, stage.per_prompt))
    found = await scheduler.sample_all(asks)
    candidates = tuple(
        Candidate(sampler=sampler.name or sampler.model, completion=completion)
        for sampler, completions in zip(samplers, found, strict=True)
        for completion in completions
    )
    return row.model_copy(update={"candidates": candidates})
