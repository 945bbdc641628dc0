"""Everything a pipeline reads from files, read and checked before anything is made, sent or paid for."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.audits.goldset import WORLD, read_gold
from rlaif.config import (
    Check,
    CompareStage,
    DataStage,
    FileStage,
    LocalModel,
    MeasureStage,
    OpenAIModel,
    PairStage,
    PersonStage,
    Pipeline,
    PPOSettings,
    PromptsStage,
    RankStage,
    Rater,
    RateStage,
    Require,
    ReviseStage,
    SampleStage,
    SFTSettings,
    Step,
    TrainStage,
    TransformersModel,
    VerifyStage,
    unchecked,
)
from rlaif.config.document import Position, validated
from rlaif.constitution import read_constitution
from rlaif.engines.identity import has_reward_head
from rlaif.errors import EngineError, nearest
from rlaif.formats import (
    Conversation,
    ReadResult,
    Rows,
    StatedPreference,
    each_prompt,
    each_row,
    named,
    read_conversations,
    read_hub,
    read_preferences,
    rows_of,
)
from rlaif.generate import revising
from rlaif.generate.revising import Reviser
from rlaif.judges import comparing, ranking, rating
from rlaif.judges.comparing import Comparer
from rlaif.judges.person import Labels, read_labels
from rlaif.judges.rating import Judge
from rlaif.judges.verifiers import Check as VerifierCheck
from rlaif.judges.verifying import own_checks
from rlaif.measure import Truth
from rlaif.pipeline.engines import api_key, keyless
from rlaif.pipeline.record import StageRecord
from rlaif.pipeline.spool import Spool, Stored
from rlaif.principles import Mixture, read_principles
from rlaif.records import Candidate, Completion, Message, Prompt, Row, oneline, prompt_id, split_of
from rlaif.resources import find, read_text
from rlaif.rubric import read_rubric
from rlaif.templates import Template
from rlaif.tiny.lexicon import Lexicon, listed


class Inputs:
    """What the stages read, by the name of each stage, and what was dropped on the way.

    Raises InputError for the first thing that is wrong with any of them.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.prompts: dict[str, Stored[Prompt]] = {}
        self.conversations: dict[str, list[Conversation]] = {}
        self.preferences: dict[str, list[StatedPreference]] = {}
        self.mixtures: dict[str, Mixture] = {}
        self.rows: dict[str, Stored[Row]] = {}  # candidates that a file has, with what it states of them
        self.stated: dict[str, Stated] = {}
        self.judges: dict[str, Judge] = {}
        self.revisers: dict[str, Reviser] = {}
        self.comparers: dict[str, Comparer] = {}
        self.checks: dict[str, tuple[VerifierCheck, ...]] = {}  # by code, of each candidate
        self.labels: dict[str, Labels] = {}  # by people
        self.chat_templates: dict[str, str] = {}
        self.records: dict[str, StageRecord] = {}
        self.notes: list[str] = []  # what is no error and should be known before anything is paid for
        self._read: dict[str, tuple[Stored[Prompt], dict[str, int]]] = {}
        for spec in pipeline.models.values():
            if not isinstance(spec, OpenAIModel):
                continue
            api_key(spec)
        self.notes += keyless(pipeline.models.values())
        self._check_heads()
        for step in pipeline.steps:
            stage = step.stage
            if isinstance(stage, CompareStage | RateStage) and stage.require is not None:
                self._gold(stage.require)
            if isinstance(stage, DataStage):
                self._data(step, stage)
            elif isinstance(stage, PromptsStage):
                self._prompts(step, stage)
            elif isinstance(stage, SampleStage):
                self._mixture(step, stage)
            elif isinstance(stage, RateStage):
                self._check_count(step, stage)
                self._check_schema(step, stage)
                self.judges[step.name] = open_judge(stage, self._check(stage.model))
                self._check_rubric(step, stage)
            elif isinstance(stage, ReviseStage):
                self.revisers[step.name] = open_reviser(stage, self._check(stage.model))
            elif isinstance(stage, CompareStage):
                self.comparers[step.name] = open_comparer(stage, self._check(*stage.judges))
            elif isinstance(stage, RankStage):
                self.comparers[step.name] = open_ranker(stage, self._check(stage.model))
            elif isinstance(stage, VerifyStage):
                self.checks[step.name] = self._checks_of(step, stage.checks, ("verify",))
            elif isinstance(stage, PersonStage):
                self.labels[step.name] = read_labels(find(stage.labels))
            elif isinstance(stage, TrainStage):
                self._trained(step, stage)
            elif isinstance(stage, MeasureStage):
                self._measured(step, stage)

    def _trained(self, step: Step, stage: TrainStage) -> None:
        if isinstance(stage.trainer, PPOSettings) and stage.trainer.checks is not None:
            self.checks[step.name] = self._checks_of(step, stage.trainer.checks, ("train", stage.method))
        if isinstance(stage.trainer, SFTSettings) and stage.trainer.template:
            self.chat_templates[step.name] = read_text(find(stage.trainer.template))

    def _gold(self, require: Require) -> None:
        """The pairs of a gate, read now: a judge may be trained for hours before it is asked them."""
        if require.gold not in (None, WORLD):
            read_gold(find(require.gold))

    def _mixture(self, step: Step, stage: SampleStage) -> None:
        if stage.principles is None or stage.mixture is None:
            return
        found = read_principles(stage.principles)
        if stage.mixture not in found.mixtures:
            problem = f"{stage.principles!r} has no mixture {stage.mixture!r}"
            raise self.pipeline.error(step, problem, ("mixture",), nearest(stage.mixture, found.mixtures))
        self.mixtures[step.name] = found.mixture(stage.mixture)

    def judge_of(self, name: str) -> Judge | Comparer:
        """What the stage `name` rates or compares by."""
        return self.judges[name] if name in self.judges else self.comparers[name]

    def _check_heads(self) -> None:
        """A model from a folder is used as what it is: one with a reward head scores, any other writes."""
        folders = {
            name: find(spec.path)
            for name, spec in self.pipeline.models.items()
            if isinstance(spec, LocalModel) and spec.path is not None
        }
        for step in self.pipeline.steps:
            for name, key in step.stage.named_models():
                if name not in folders or key == ("rm", "base"):
                    continue
                scores = has_reward_head(folders[name])
                if scores != (key[-1] == "reward"):
                    problem = "has a reward head and writes nothing" if scores else "has no reward head"
                    raise self.pipeline.error(step, f"the model {name!r} {problem}", key, "name another model")

    def _lexicon(self, name: str) -> Lexicon | None:
        spec = self.pipeline.models.get(name)
        return Lexicon.read(find(spec.path)) if isinstance(spec, LocalModel) and spec.path is not None else None

    def _check_count(self, step: Step, stage: RateStage) -> None:
        """A model that was taught to rate a few completions at once numbers no more than those."""
        lexicon, asked = self._lexicon(stage.model), step.sampled.stage if step.sampled else None
        if lexicon is None or lexicon.completions is None or not isinstance(asked, SampleStage):
            return
        if stage.shown == "all" and asked.candidates > lexicon.completions:
            problem = f"{stage.model!r} rates up to {lexicon.completions} at once, and there are {asked.candidates}"
            raise self.pipeline.error(
                step, problem, ("model",), f"sample fewer, or `pick: {lexicon.completions}` of them"
            )

    def _check_rubric(self, step: Step, stage: RateStage) -> None:
        """What a rubric must be for how the stage asks, and beside what its rows were rated by before."""
        rubric = self.judges[step.name].rubric
        low, high = rubric.scale.low, rubric.scale.high
        if stage.answers == "expected" and not 0 <= low < high <= 9:
            problem = f"`answers: expected` weighs numbers of one digit, and the scale is {low} to {high}"
            raise self.pipeline.error(step, problem, ("rubric",), "give the rubric a scale within 0 to 9")
        for before in rated_before(step):
            judged = self.judges[before.name].rubric.weights()
            if aspect := next((aspect for aspect in rubric.weights() if aspect in judged), None):
                problem = f"the stage {before.name!r} has judged the aspect {aspect!r} of these rows already"
                alone = step.sampled.name if step.sampled else "sample"
                fix = f"give it another `id` in one of the rubrics, or take the candidates alone with `from: {alone}`"
                raise self.pipeline.error(step, problem, ("rubric",), fix)

    def _check_schema(self, step: Step, rater: Rater, *key: str) -> None:
        """What holds a model in this process to JSON must be installed; found missing before anything is sampled."""
        if rater.answers != "json" or importlib.util.find_spec("xgrammar") is not None:
            return
        if isinstance(self.pipeline.models.get(rater.model), TransformersModel):
            problem = f"xgrammar holds the model {rater.model!r} to JSON, and is not installed"
            fix = "pip install 'rlaif[schema]', or have it answer in lines (`answers: lines`)"
            raise self.pipeline.error(step, problem, (*key, "answers"), fix)

    def _check(self, *names: str) -> Check:
        """What a principle must be for models that know few words; what they pass over becomes a note."""
        lexicons = {name: lexicon for name in names if (lexicon := self._lexicon(name)) is not None}
        if not lexicons:
            return unchecked

        def check(text: str) -> tuple[str, str] | None:
            for name, lexicon in lexicons.items():
                if wrong := lexicon.problem(text):
                    return wrong
                if strangers := lexicon.unknown(text):
                    note = f"{name} was never taught {listed(strangers)}, which says nothing to it in {oneline(text)!r}"
                    if note not in self.notes:
                        self.notes.append(note)
            return None

        return check

    def _checks_of(self, step: Step, given: Sequence[dict[str, Any]], under: Position) -> tuple[VerifierCheck, ...]:
        """What a stage checks of every completion, read as its place in the pipeline file says."""
        document, place = self.pipeline.document, ("stages", step.number - 1, *under, "checks")
        checks = tuple(validated(VerifierCheck, one, document, (*place, number)) for number, one in enumerate(given))
        own = 0
        for prompt in self._prompts_of(step):
            try:
                own += len(own_checks(prompt))
            except EngineError as error:
                problem = f"{error.message}, of the prompt {prompt.id} ({oneline(prompt.text)[:60]!r})"
                raise self.pipeline.error(
                    step, problem, (*under[1:], "checks"), "mend them in the file of prompts"
                ) from None
        if not checks and not own:
            problem = "there is nothing to check: neither the stage nor a prompt has checks"
            raise self.pipeline.error(
                step, problem, (*under[1:], "checks"), "write `checks: [{length: {max_words: 100}}]`"
            )
        return checks

    def _prompts_of(self, step: Step) -> Iterable[Prompt]:
        """The prompts that the rows of a stage come from."""
        while step.source is not None:
            step = step.source
        return self.prompts.get(step.name, ())

    def _data(self, step: Step, stage: DataStage) -> None:
        """Read as what its readers take: rows for judges and pairs, preferences for a reward model or DPO, else
        conversations."""
        judging = [s for s in self.pipeline.steps if not isinstance(s.stage, TrainStage) and step in s.sources]
        reading = [s for s in self.pipeline.steps if isinstance(s.stage, TrainStage) and step in s.sources]
        if judging:
            if reading:
                problem = f"the stage {step.name!r} is judged by {judging[0].name} and learnt from as it is here"
                fix = "name a `pair` stage, or read the file in a `data` stage of its own"
                raise self.pipeline.error(reading[0], problem, (_method(reading[0]), "data"), fix)
            self._candidates(step, stage, judging)
            return
        readers = {_method(s): s for s in reading}
        if method := next((method for method in ("rm", "dpo") if method in readers), None):
            if "sft" in readers:
                problem = f"the stage {step.name!r} is read as demonstrations by sft and as preferences here"
                fix = "name a `pair` stage, or read the file in a `data` stage of its own"
                raise self.pipeline.error(readers[method], problem, (method, "data"), fix)
            if stage.turns == "all":
                problem = "of a preference only the last turn is learnt"
                raise self.pipeline.error(step, problem, ("turns",), "take `turns` out")
            self.preferences[step.name] = self._kept(step, stage, read_preferences(self._source(step, stage)))
        else:
            found = read_conversations(self._source(step, stage), turns=stage.turns or "all")
            self.conversations[step.name] = self._kept(step, stage, found)

    def _candidates(self, step: Step, stage: DataStage, readers: Sequence[Step]) -> None:
        """Rows that hold candidates, each with what the file states of them, kept on disk."""
        unusable: Counter[str] = Counter()
        kept, dropped, stated = Spool(Row), Counter[str](), Stated()
        read = 0
        for row in each_row(self._source(step, stage), unusable, turns=stage.turns or "last"):
            read += 1
            bare = [message for message in row.prompt.messages if message.role != "system"]
            if stage.held_out == "drop" and "held-out" in (row.prompt.split, split_of(prompt_id(bare))):
                dropped["held-out"] += 1
            elif not row.candidates:
                dropped["no completion"] += 1
            elif stage.take is not None and len(kept) >= stage.take:
                dropped["not taken"] += 1
            else:
                kept.append(row)
                stated.add(row)
        if not kept:
            reasons = ", ".join(f"{count} {reason}" for reason, count in (dropped + unusable).items())
            fix = None
            if dropped["no completion"] and stage.columns is None:
                fix = "where its columns have other names, say which hold them with `columns` of a `data` stage"
            raise self.pipeline.error(step, f"no row of the file has completions to judge ({reasons})", fix=fix)
        for reader in readers:
            if isinstance(reader.stage, PairStage) and (problem := stated.problem(reader.stage.rule)) is not None:
                fix = "judge its completions with `rate` or `compare` first"
                raise self.pipeline.error(reader, f"the stage {step.name!r} {problem}", ("rule",), fix)
        self.rows[step.name], self.stated[step.name] = kept, stated
        self._note(step, read, unusable, len(kept), dropped)
        self.records[step.name].facts.update(stated.facts())

    def _source(self, step: Step, stage: FileStage) -> Path | Rows:
        if stage.hub is not None:
            source: Path | Rows = read_hub(stage.hub, split=stage.hub_split, revision=stage.revision)
        else:
            assert stage.path is not None
            source = find(stage.path)
        if not isinstance(stage, DataStage) or (stage.columns is None and stage.system is None):
            return source
        table = source if isinstance(source, Rows) else rows_of(source)
        return named(table, stage.columns.named() if stage.columns else {}, stage.system)

    def _kept(self, step: Step, stage: DataStage, result: ReadResult[Any]) -> list[Any]:
        usable = [item for item in result.items if item.split != "held-out" or stage.held_out == "keep"]
        kept = usable[: stage.take]
        counts = {"held-out": len(result.items) - len(usable), "not taken": len(usable) - len(kept)}
        dropped = Counter({reason: count for reason, count in counts.items() if count})
        self._note(step, len(result.items), result.dropped, len(kept), dropped)
        return kept

    def _prompts(self, step: Step, stage: PromptsStage) -> None:
        dropped: Counter[str] = Counter()
        read = Spool(Prompt, each_prompt(self._source(step, stage), dropped, column=stage.column))
        self._read[step.name] = (read, dropped)
        self.prompts[step.name] = self._of_split(step, step, stage.split, stage.take)

    def _measured(self, step: Step, stage: MeasureStage) -> None:
        """The measure's own prompts: only here are held-out prompts kept."""
        assert step.source is not None
        if stage.rate:
            self._check_schema(step, stage.rate, "rate")
            self.judges[step.name] = open_judge(stage.rate, self._check(stage.rate.model))
        self.prompts[step.name] = self._of_split(step, step.source, (stage.split,), stage.take)
        if (gold := truth(stage)) is not None:
            for prompt in self.prompts[step.name]:
                gold(prompt.text, "")

    def _of_split(self, step: Step, source: Step, split: Sequence[str], take: int | None) -> Stored[Prompt]:
        items, unusable = self._read[source.name]
        if "all" in split and take is None:
            self._note(step, len(items), unusable, len(items), Counter())
            return items
        kept, dropped, named = Spool(Prompt), Counter[str](), " or ".join(split)
        for prompt in items:
            if "all" not in split and prompt.split not in split:
                dropped[f"not in the {named} split"] += 1
            elif take is not None and len(kept) >= take:
                dropped["not taken"] += 1
            else:
                kept.append(prompt)
        if not kept:
            raise self.pipeline.error(step, f"none of the {len(items)} prompts is in the {named} split")
        self._note(step, len(items), unusable, len(kept), dropped)
        return kept

    def _note(self, step: Step, read: int, unusable: Mapping[str, int], kept: int, dropped: Counter[str]) -> None:
        given = read + sum(unusable.values())
        reads = step.source.name if step.source else None
        record = StageRecord(step.name, step.stage.kind, reads, given, kept, dropped + Counter(unusable))
        self.records[step.name] = record.checked()


def rated_before(step: Step) -> list[Step]:
    """The rate stages whose ratings are on the rows that a step reads, the nearest first."""
    found = []
    while step.source is not None:
        step = step.source
        if isinstance(step.stage, RateStage):
            found.append(step)
    return found


# What a template is rendered with before anything is paid for, so that one that cannot be rendered, or hides what
# must be seen, is found at once.
REHEARSED = Row(
    prompt=Prompt(messages=(Message(role="user", content="A prompt\nof two lines?"),), reference=("A true\nanswer.",)),
    candidates=tuple(
        Candidate(sampler="s", completion=Completion(text=f"Completion\nnumber {n}.", model="m", call=str(n)))
        for n in (1, 2)
    ),
)


def open_judge(rater: Rater, check: Check = unchecked) -> Judge:
    """The rater's rubric and template, checked against what a judge prompt offers and what the model understands."""
    judge = Judge(read_rubric(rater.rubric, check), _template(rater.template, rating.OFFERED, rating.REQUIRED))
    for aspect in judge.rubric.aspects:
        rating.questions(REHEARSED.prompt, REHEARSED.candidates, aspect, judge.rubric, judge.template, rater)
    return judge


def open_reviser(stage: ReviseStage, check: Check = unchecked) -> Reviser:
    reviser = Reviser(
        read_constitution(stage.constitution, ("critique", "revision"), check),
        _template(stage.critique_template, revising.OFFERED_CRITIQUE, revising.REQUIRED_CRITIQUE),
        _template(stage.revision_template, revising.OFFERED_REVISION, revising.REQUIRED_REVISION),
    )
    draft = REHEARSED.candidates[0].completion.text
    for principle in reviser.constitution.principles:
        revising.critique_question(REHEARSED.prompt, draft, principle, reviser)
        revising.revision_question(REHEARSED.prompt, draft, "A critique.", principle, reviser)
    return reviser


def open_comparer(stage: CompareStage, check: Check = unchecked) -> Comparer:
    required = comparing.REQUIRED if stage.reasons else comparing.REQUIRED | {"ending"}
    constitution = read_constitution(stage.constitution, ("comparison",), check)
    comparer = Comparer(constitution, _template(stage.template, comparing.OFFERED, required))
    for principle in comparer.constitution.principles:
        comparing.question(REHEARSED, (0, 1), principle, stage, comparer.template)
    return comparer


def open_ranker(stage: RankStage, check: Check = unchecked) -> Comparer:
    constitution = read_constitution(stage.constitution, ("comparison",), check)
    ranker = Comparer(constitution, _template(stage.template, ranking.OFFERED, ranking.REQUIRED))
    for principle in constitution.principles:
        ranking.question(REHEARSED, ranking.shown_at(REHEARSED), principle, ranker.template)
    return ranker


def _template(path: str, offered: set[str], required: set[str]) -> Template:
    template = Template.read(find(path))
    template.check(offered, required)
    return template


def truth(stage: MeasureStage) -> Callable[[str, str], Truth] | None:
    """The truth of the embedded world, where the pipeline asks for it and nowhere else."""
    if stage.judge != "gold":
        return None
    from rlaif.tiny.gold import gold

    return gold


def _method(step: Step) -> str:
    assert isinstance(step.stage, TrainStage)
    return step.stage.method


class Stated:
    """What a file states of the candidates that were kept, counted."""

    def __init__(self) -> None:
        self.rows = 0
        self.weights: dict[str, float] = {}  # of the aspects of its ratings: all alike
        self._facts: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        self.rows += 1
        self.weights |= dict.fromkeys((rating.aspect for rating in row.ratings), 1.0)
        self._facts["candidates"] += len(row.candidates)
        self._facts["unparsed"] += sum(comparison.verdict is None for comparison in row.comparisons)
        for what in ("comparisons", "ratings", "rankings", "scores"):
            found = getattr(row, what)
            self._facts[what] += len(found)
            self._facts["unparsed"] += sum(getattr(one, "problem", None) is not None for one in found)

    @property
    def basis(self) -> str:
        """What its candidates are scored by, where it states several things: what says most."""
        return next((what for what in ("ratings", "scores", "rankings") if self._facts[what]), "comparisons")

    @property
    def rule(self) -> str:
        """How it is paired where nobody says."""
        return "compared" if self._facts["comparisons"] else "zephyr"

    def problem(self, rule: str | None) -> str | None:
        """Why it cannot be paired by this rule."""
        if (rule or self.rule) == "compared":
            return None if self._facts["comparisons"] else "states of no two completions which is better"
        known = self._facts["ratings"] + self._facts["rankings"] + self._facts["scores"]
        return None if known else "states no rating, ranking or score of its completions"

    def facts(self) -> dict[str, int]:
        return dict(+self._facts)
