"""The `revise` stage: each candidate critiqued and rewritten under drawn principles, a number of times.

The supervised half of Constitutional AI (arXiv 2212.08073, section 3.1). The principle of each step is drawn by hash,
without replacement until all were drawn. Revision k rewrites revision k - 1. Every critique and revision is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rlaif.config import ReviseStage
from rlaif.constitution import Asked, Constitution, Principle
from rlaif.engines.asking import Asker, together
from rlaif.judges.fences import fence_mark
from rlaif.judges.replies import unusable
from rlaif.records import Candidate, Kept, Message, Prompt, Revision, Row
from rlaif.templates import Template

OFFERED_CRITIQUE = {"principle", "prompt", "completion", "mark"}
OFFERED_REVISION = {*OFFERED_CRITIQUE, "critique", "critique_mark"}
REQUIRED_CRITIQUE = {"principle", "prompt", "completion"}
REQUIRED_REVISION = {*REQUIRED_CRITIQUE, "critique"}


CRITIQUE = "(the critique)"  # where one is to stand that nobody has written


class Reviser(NamedTuple):
    """The constitution that completions are revised under, and the prompt templates."""

    constitution: Constitution
    critique: Template
    revision: Template


def unrevised(row: Row) -> str | None:
    """Why a row gives no demonstration; None when at least one candidate's chain is complete."""
    if row.failure is not None:
        return "failed"
    if any(row.last_revision(index) is not None for index in range(len(row.candidates))):
        return None
    problems = [revision.problem for revision in row.revisions if revision.problem is not None]
    return problems[0] if problems else "empty completion"


def revised(row: Row) -> Iterator[Kept]:
    """The last revision of each candidate that has one."""
    for index in range(len(row.candidates)):
        if (end := row.last_revision(index)) is not None:
            yield Kept(prompt=row.prompt, candidate=Candidate(sampler=end.model, completion=end))


async def revise(row: Row, stage: ReviseStage, reviser: Reviser, asker: Asker) -> Row:
    """`row` with a chain of revisions for each candidate that is not empty. Raises EngineError."""
    chains = await together(
        *(
            _chain(row, index, stage, reviser, asker)
            for index, candidate in enumerate(row.candidates)
            if candidate.completion.text.strip()
        )
    )
    return row.model_copy(update={"revisions": tuple(revision for chain in chains for revision in chain)})


async def _chain(row: Row, candidate: int, stage: ReviseStage, reviser: Reviser, asker: Asker) -> list[Revision]:
    draft = row.candidates[candidate].completion.text
    chain: list[Revision] = []
    for number in range(1, stage.revisions + 1):
        principle = reviser.constitution.draw(
            "revise", row.prompt.id, str(candidate), request="critique", position=number - 1
        )
        asker = asker.under(principle.id)
        critique = await asker.one(critique_prompt(row.prompt, draft, principle, reviser))
        completion = None
        problem = unusable("critique", critique)
        if problem is None:
            completion = await asker.one(revision_prompt(row.prompt, draft, critique.text, principle, reviser))
            problem = unusable("revision", completion)
        chain.append(
            Revision(
                candidate=candidate,
                number=number,
                principle=principle.id,
                critique=critique,
                completion=completion,
                problem=problem,
            )
        )
        if problem is not None or completion is None:
            break
        draft = completion.text
    return chain


def critique_prompt(prompt: Prompt, draft: str, principle: Principle, reviser: Reviser) -> tuple[Message, ...]:
    """The prompt for a critique of the draft."""
    rendered = reviser.critique.render_showing(
        {"the prompt": prompt.text, "the completion": draft, "the principle's critique": principle.critique},
        principle=principle,
        prompt=prompt.text,
        completion=draft,
        mark=fence_mark(prompt.text, draft),
    )
    return (*reviser.constitution.before("critique"), Message(role="user", content=rendered))


def revision_prompt(
    prompt: Prompt, draft: str, critique: str, principle: Principle, reviser: Reviser
) -> tuple[Message, ...]:
    """The prompt for a revision of the draft after its critique."""
    rendered = reviser.revision.render_showing(
        {
            "the prompt": prompt.text,
            "the completion": draft,
            "the critique": critique,
            "the principle's revision": principle.revision,
        },
        principle=principle,
        prompt=prompt.text,
        completion=draft,
        critique=critique,
        mark=fence_mark(prompt.text, draft, beside=critique),  # as in the critique's prompt, for a common prefix
        critique_mark=fence_mark(prompt.text, draft, critique),
    )
    return (*reviser.constitution.before("revision"), Message(role="user", content=rendered))


def asked(row: Row, principle: Principle, reviser: Reviser) -> Iterator[Asked]:
    """The prompts for a critique of the row's first candidate, and for its revision."""
    draft = row.candidates[0].completion.text
    yield Asked("critique", critique_prompt(row.prompt, draft, principle, reviser))
    yield Asked("revision", revision_prompt(row.prompt, draft, CRITIQUE, principle, reviser))
