"""The `revise` stage: each candidate critiqued and rewritten under drawn principles, a number of times.

The supervised half of Constitutional AI (arXiv 2212.08073, section 3.1). The principle of each step is drawn by hash,
without replacement until all were drawn. A step rewrites the last usable revision; a critique that finds nothing saves
the rewriting. Every critique and revision is kept; `inspecting` says which revisions are not usable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from rlaif.config import ReviseStage
from rlaif.constitution import Asked, Constitution, Principle
from rlaif.engines.asking import Asker, Asking, together
from rlaif.errors import EngineError
from rlaif.generate import inspecting
from rlaif.generate.keeping import UNENDED
from rlaif.judges.fences import fence_mark
from rlaif.judges.refusals import refuses
from rlaif.judges.replies import finds_nothing, unusable
from rlaif.records import Candidate, Completion, Kept, Message, Prompt, Revision, Row
from rlaif.templates import Template

OFFERED_CRITIQUE = {"principle", "prompt", "completion", "mark", "found_nothing"}
OFFERED_REVISION = {*OFFERED_CRITIQUE - {"found_nothing"}, "critique", "critique_mark"}
REQUIRED_CRITIQUE = {"principle", "prompt", "completion"}
REQUIRED_REVISION = {*REQUIRED_CRITIQUE, "critique"}
UNCHANGED, REFUSAL = "unchanged", "refusal"
# What a prompt's file says of its harm: in a column `harmful` that travels with the prompt, or as its source.
_COLUMN = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_SOURCE = {"red-team": True, "harmful": True, "unsafe": True, "look-alike": False, "harmless": False, "safe": False}
_REFUSALS = {True: "refusal of a harmful prompt", False: "refusal of a harmless prompt", None: REFUSAL}


CRITIQUE = "(the critique)"  # where one is to stand that nobody has written


class Reviser(NamedTuple):
    """The constitution that completions are revised under, and the prompt templates."""

    constitution: Constitution
    critique: Template
    revision: Template
    found_nothing: str = ""  # what a critique is asked to write where it finds nothing


class End(NamedTuple):
    """What a candidate's chain came to: a completion to learn, or why there is none."""

    kept: Candidate | None
    why: str | None = None
    unchanged: bool = False  # from the candidate's own completion
    refusal: bool = False


def ends(row: Row, stage: ReviseStage | None = None) -> list[End]:
    """The end of each candidate's chain. What is to be dropped is the stage's to say."""
    drop = () if stage is None else stage.drop
    return [_end(row, index, drop) for index in range(len(row.candidates))]


def _end(row: Row, index: int, drop: tuple[str, ...]) -> End:
    drafted = row.candidates[index]
    if (text := row.last_revision(index)) is None:
        problems = [step.problem for step in row.revisions if step.candidate == index and step.problem is not None]
        return End(None, problems[0] if problems else "empty completion")
    own = text == drafted.completion
    if own and (unended := UNENDED.get(text.finish_reason)) is not None:
        return End(None, unended)
    unchanged, refusal = inspecting.unchanged(text.text, drafted.completion.text), refuses(text.text)
    why = UNCHANGED if unchanged and UNCHANGED in drop else REFUSAL if refusal and REFUSAL in drop else None
    kept = drafted if own else Candidate(sampler=text.model, completion=text)
    return End(kept if why is None else None, why, unchanged, refusal)


def unrevised(row: Row, stage: ReviseStage | None = None) -> str | None:
    """Why a row gives no demonstration; None when the chain of at least one candidate does."""
    if row.failure is not None:
        return "failed"
    made = ends(row, stage)
    if any(end.kept is not None for end in made):
        return None
    return next((end.why for end in made if end.why), "empty completion")


def revised(row: Row, stage: ReviseStage | None = None) -> Iterator[Kept]:
    """What each candidate's chain gives to learn."""
    for end in ends(row, stage):
        if end.kept is not None:
            yield Kept(prompt=row.prompt, candidate=end.kept)


def told(row: Row) -> Counter[str]:
    """What is wrong with the revisions of a row, and how many that may be learnt are unchanged or refusals."""
    counts = Counter(step.problem for step in row.revisions if step.problem is not None)
    for end in ends(row):
        counts[UNCHANGED] += end.unchanged
        counts[_REFUSALS[_is_harmful(row.prompt)]] += end.refusal
    return +counts


def _is_harmful(prompt: Prompt) -> bool | None:
    column = prompt.kept.get("harmful")
    known, said = (_SOURCE, prompt.source) if column is None else (_COLUMN, column)
    return known.get((said or "").strip().casefold())


async def revise(row: Row, stage: ReviseStage, reviser: Reviser, asking: Asking) -> Row:
    """`row` with a chain of revisions for each candidate that is not empty. Raises EngineError."""
    critic = asking.asker(stage.model, stage.critique_sampling, stage.sampling)
    writer = asking.asker(stage.model, stage.revision_sampling, stage.sampling)
    chains = await together(
        *(
            _chain(row, index, stage, reviser, critic, writer)
            for index, candidate in enumerate(row.candidates)
            if candidate.completion.text.strip()
        )
    )
    return row.model_copy(update={"revisions": tuple(revision for chain in chains for revision in chain)})


async def _chain(
    row: Row, candidate: int, stage: ReviseStage, reviser: Reviser, critic: Asker, writer: Asker
) -> list[Revision]:
    first = draft = row.candidates[candidate].completion.text
    chain: list[Revision] = []
    for number in range(1, stage.revisions + 1):
        principle = reviser.constitution.draw(
            "revise", row.prompt.id, str(candidate), request="critique", position=number - 1
        )
        critique = await _said(critic.under(principle.id), critique_prompt(row.prompt, draft, principle, reviser))
        problem = useless = unusable("critique", critique)
        nothing = problem is None and finds_nothing(critique.text, stage.found_nothing)
        completion: Completion | None = None
        if problem is None and not nothing:
            asked_for = revision_prompt(row.prompt, draft, critique.text, principle, reviser)
            completion = await _said(writer.under(principle.id), asked_for)
            problem = useless = unusable("revision", completion)
            if problem is None and not completion.assumed:
                found = inspecting.fault(completion, first, row.prompt, _marks(row.prompt, draft, critique.text))
                problem = found and f"revision: {found}"
        chain.append(
            Revision(
                candidate=candidate,
                number=number,
                principle=principle.id,
                critique=critique,
                completion=completion,
                problem=problem,
                found_nothing=nothing,
            )
        )
        # What is cut, taken by a filter or empty is so again at the next step; a preface may not be.
        if useless is not None or (nothing and stage.after_nothing == "end"):
            break
        if problem is None and completion is not None:
            draft = completion.text
    return chain


async def _said(asker: Asker, messages: tuple[Message, ...]) -> Completion:
    """The reply; without a word where that is what the server says after all retries. Raises EngineError."""
    try:
        return await asker.one(messages)
    except EngineError as error:
        if error.fatal or error.cause != "empty":
            raise
        return Completion(text="", model=asker.model, call="")


def _marks(prompt: Prompt, draft: str, critique: str) -> tuple[str, str]:
    """The marks in a revision's prompt: that of its draft, as in the critique's prompt, and that of its critique."""
    return fence_mark(prompt.text, draft, beside=critique), fence_mark(prompt.text, draft, critique)


def critique_prompt(prompt: Prompt, draft: str, principle: Principle, reviser: Reviser) -> tuple[Message, ...]:
    """The prompt for a critique of the draft."""
    rendered = reviser.critique.render_showing(
        {"the prompt": prompt.text, "the completion": draft, "the principle's critique": principle.critique},
        principle=principle,
        prompt=prompt.text,
        completion=draft,
        mark=fence_mark(prompt.text, draft),
        found_nothing=reviser.found_nothing,
    )
    return (*reviser.constitution.before("critique"), Message(role="user", content=rendered))


def revision_prompt(
    prompt: Prompt, draft: str, critique: str, principle: Principle, reviser: Reviser
) -> tuple[Message, ...]:
    """The prompt for a revision of the draft after its critique."""
    mark, critique_mark = _marks(prompt, draft, critique)
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
        mark=mark,
        critique_mark=critique_mark,
    )
    return (*reviser.constitution.before("revision"), Message(role="user", content=rendered))


def asked(row: Row, principle: Principle, reviser: Reviser) -> Iterator[Asked]:
    """The prompts for a critique of the row's first candidate, and for its revision."""
    draft = row.candidates[0].completion.text
    yield Asked("critique", critique_prompt(row.prompt, draft, principle, reviser))
    yield Asked("revision", revision_prompt(row.prompt, draft, CRITIQUE, principle, reviser))
