"""The `sample` stage: candidates for one prompt."""

from __future__ import annotations

from rlaif.config import SamplerSettings, SampleStage
from rlaif.engines.asking import Ask, Asking
from rlaif.principles import Mixture
from rlaif.records import Candidate, Message, Prompt, Row, hashed_order


def drawn(stage: SampleStage, prompt: Prompt) -> list[SamplerSettings]:
    """The prompt's samplers: all, or `pick` of them by hash, so that a new one changes only the prompts it wins."""
    if stage.pick is None:
        return list(stage.models)
    order = hashed_order([s.name or s.model for s in stage.models], "pick", prompt.id)
    return [stage.models[i] for i in sorted(order[: stage.pick])]


async def sample(row: Row, stage: SampleStage, asking: Asking, mixture: Mixture | None = None) -> Row:
    """`row` with its candidates. Raises EngineError."""
    asks, groups = [], []
    for sampler in drawn(stage, row.prompt):
        name = sampler.name or sampler.model
        sampling = sampler.resolved(asking.seed, stage.sampling, asking.settings[sampler.model])
        for (principle, system), indices in _written_by(row.prompt, sampler, stage.per_prompt, mixture).items():
            messages = (*((Message(role="system", content=system),) if system else ()), *row.prompt.messages)
            asks.append(Ask(sampler.model, messages, sampling, len(indices), stage=asking.stage, row=asking.row))
            groups.append((name, principle, indices))
    sampled = await asking.sampler.sample(asks)
    candidates: dict[tuple[str, int], Candidate] = {
        (name, index): Candidate(sampler=name, completion=completion, principle=principle)
        for (name, principle, indices), completions in zip(groups, sampled, strict=True)
        for index, completion in zip(indices, completions, strict=True)
    }
    names = list(dict.fromkeys(name for name, _, _ in groups))
    ordered = sorted(candidates, key=lambda of: (names.index(of[0]), of[1]))
    return row.model_copy(update={"candidates": tuple(candidates[of] for of in ordered)})


def _written_by(
    prompt: Prompt, sampler: SamplerSettings, count: int, mixture: Mixture | None
) -> dict[tuple[str | None, str | None], list[int]]:
    """The indices of a sampler's completions, by principle and system message."""
    if mixture is None:
        return {(None, sampler.system): list(range(count))}
    groups: dict[tuple[str | None, str | None], list[int]] = {}
    for index in range(count):
        groups.setdefault(mixture.draw(prompt, sampler.name or sampler.model, index), []).append(index)
    return groups
