"""The settings of every stage, with defaults and validation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, ValidationError, create_model, field_validator, model_validator

from rlaif.config.document import Name, OneOrSeveral, Position, Settings, Text
from rlaif.config.models import JudgeSampling, MeasureSampling, OpenAIModel, RevisionSampling, SamplingSettings
from rlaif.config.trainers import TRAINERS, Training
from rlaif.errors import plainly

Share = Annotated[float, Field(ge=0, le=1)]


class Use(NamedTuple):
    """A model that a stage uses, the key that names it, and its role."""

    model: str
    key: Position
    role: Literal["writes", "scores", "either"] = "writes"  # `either`: a base to train a score head on


class Sense(NamedTuple):
    """A problem of a stage in its pipeline, the key that causes it, and the fix."""

    problem: str
    key: Position = ()
    fix: str | None = None


class Rest(NamedTuple):
    """An upstream stage, by its name in the pipeline."""

    name: str
    stage: StageSettings


Requested = Literal["critique", "revision", "comparison"]  # of a principle
Takes = Literal["rows", "prompts", "demonstrations", "preferences"]


class StageSettings(Settings):
    """One stage of a pipeline. `reads` names the kinds of stage that it can read."""

    kind: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()
    streams: ClassVar[bool] = False  # a row stage: each row is processed alone
    from_file: ClassVar[bool] = False  # its output comes from a file
    once: ClassVar[bool] = False  # at most one per pipeline
    needs_fresh: ClassVar[bool] = True  # without `from`, a stage's output is preferred to a file's
    unless_judged: ClassVar[bool] = False  # its completions are SFT data where no later stage judges them

    name: Name | None = None
    source: Name | None = Field(default=None, alias="from")

    def models_used(self) -> list[Use]:
        """The models the stage uses."""
        return []

    def named_files(self) -> list[tuple[str, Position]]:
        """The paths that the stage reads, each with its key."""
        return []

    def principles_asked(self) -> dict[Requested, str]:
        """The requests of a constitution that it makes, each with the template that shows it."""
        return {}

    @property
    def verdicts_asked(self) -> tuple[str, str] | None:
        """The two verdicts of which it asks for one and nothing else; None where it asks for none, or for more."""
        return None

    @classmethod
    def name_in(cls, settings: Any) -> Any:
        """The stage's name in settings that are not validated yet; None without one."""
        return settings.get("name") if isinstance(settings, dict) else None

    @property
    def takes(self) -> Takes:
        """The part of its source that it reads."""
        return "rows"

    @property
    def kinds_read(self) -> tuple[str, ...]:
        return self.reads

    @property
    def sources_named(self) -> tuple[str, ...]:
        return () if self.source is None else (self.source,)

    @property
    def source_key(self) -> Position:
        return ("from",)

    @property
    def candidates(self) -> int | None:
        """Candidates per prompt; None for a stage that does not sample."""
        return None

    @property
    def keeps_held_out(self) -> bool:
        """Whether its output includes held-out prompts."""
        return False

    @property
    def withholds_nothing(self) -> bool:
        """Whether training rows in its output may be on prompts that are held out elsewhere."""
        return False

    @property
    def uses_margins(self) -> bool:
        """Whether what it makes depends on the margins that preferences state."""
        return False

    @property
    def models_measured(self) -> tuple[str, ...]:
        """The models that it measures on prompts that nothing may have been trained on."""
        return ()

    @property
    def demonstrates(self) -> bool:
        """Whether it says which completions are SFT data."""
        return False

    @property
    def model_made(self) -> str | None:
        """The name of the model that it trains."""
        return None

    @property
    def model_scores(self) -> bool:
        """Whether the model that it trains has a reward head and does not generate."""
        return False

    def check(self, rests_on: Iterable[Rest], sampled: Rest | None, models: Mapping[str, Any]) -> Sense | None:
        """The stage's problem given its upstream stages, the nearest first, and `models` of the file; None without one.

        `sampled` is the stage that sampled the candidates of its rows.
        """
        return None

    def written_out(self, name: str, sources: Sequence[str]) -> dict[str, Any]:
        """The settings with every default and source, as saved in the run folder."""
        settings: dict[str, Any] = self.model_dump(mode="json", exclude={"source"}, exclude_none=True)
        return settings | {"name": name} | ({"from": sources[0]} if sources else {})


MOST_KEPT = 50  # columns; each is a column of every export


class FileStage(StageSettings):
    path: str | None = None
    hub: str | None = None
    hub_split: str = "train"  # the split's name on the hub; the train / validation / held-out split is by hash
    revision: str | None = None  # of the data set on the hub: a commit, branch or tag
    take: int | None = Field(default=None, gt=0)
    # Columns of the file that travel to every export, as the row's own `id` does.
    keep: Annotated[tuple[str, ...], OneOrSeveral, Field(max_length=MOST_KEPT)] = ()

    @model_validator(mode="after")
    def _keeps_once(self) -> FileStage:
        if repeated := next((name for name in self.keep if self.keep.count(name) > 1), None):
            raise ValueError(f"`keep` names {repeated!r} twice; remove one")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> FileStage:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either `path` (a file) or `hub` (a data set id on the hub)")
        if self.revision is not None and self.hub is None:
            raise ValueError("a `revision` is of a data set on the hub; remove it")
        return self

    def named_files(self) -> list[tuple[str, Position]]:
        return _given(self, "path")


class ColumnValues(Settings):
    """A column with the meaning of its values: ours to the file's, or the sign of a number (negative: the first)."""

    column: str
    values: Literal["sign", "-sign"] | dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _keys_are_words(cls, value: Any) -> Any:
        values = value.get("values") if isinstance(value, dict) else None
        if not isinstance(values, dict):
            return value
        if not values:
            raise ValueError("say what its values mean, such as `values: {a: 1, b: 0}`")
        words = {str(ours).lower() if isinstance(ours, bool) else str(ours): theirs for ours, theirs in values.items()}
        return value | {"values": words}

    def meanings(self) -> str | dict[str, tuple[Any, ...]]:
        if isinstance(self.values, str):
            return self.values
        return {ours: tuple(t) if isinstance(t, list) else (t,) for ours, t in self.values.items()}


def _column_or_values(value: Any) -> Any:
    fix = "name a column, or give `{column: verdict, values: {a: 1, b: 0}}`"
    if not isinstance(value, str | dict | ColumnValues | None):
        raise ValueError(fix)
    if not isinstance(value, dict):
        return value
    try:
        return ColumnValues.model_validate(value)
    except ValidationError as error:  # the one of another kind of value would stand beside it
        wrong = error.errors()[0]
        key = ".".join(map(str, wrong["loc"]))
        raise ValueError(f"{f'`{key}`: ' if key else ''}{plainly(wrong)}; {fix}") from None


Judged = Annotated[str | ColumnValues | None, BeforeValidator(_column_or_values)]
# What a label may say, of two completions and of one.
LABELS = ("a", "b", "tie", "good", "bad", "true", "false")


class Columns(Settings):
    """The file's column for each of our names, or its path: `question.full_text`. Other columns are not read."""

    prompt: str | None = None
    messages: str | None = None
    completion: str | None = None
    system: str | None = None
    reference: str | None = None
    source: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    chosen_model: str | None = None
    rejected_model: str | None = None
    score_chosen: str | None = None
    score_rejected: str | None = None
    margin: str | None = None  # by how much chosen is the better one
    completion_a: str | None = None
    completion_b: str | None = None
    model_a: str | None = None
    model_b: str | None = None
    score_a: str | None = None
    score_b: str | None = None
    label: Judged = None  # of the two: a, b or tie; of one completion: good or bad
    probability: str | None = None  # that chosen, or the first of the two, is the better one
    score: str | None = None  # of the one completion of a row
    completions: str | None = None
    models: str | None = None
    scores: str | None = None
    ranks: str | None = None

    @model_validator(mode="after")
    def _names_one(self) -> Columns:
        if not self.model_dump(exclude_none=True):
            raise ValueError("name at least one column, such as {prompt: question}")
        said = self.label.values if isinstance(self.label, ColumnValues) else ()
        if isinstance(said, dict) and (unknown := next((ours for ours in said if ours not in LABELS), None)):
            known = ", ".join(LABELS)
            raise ValueError(f"a label says one of {known}, not {unknown!r}; write ours first: `{{a: 1, b: 0}}`")
        return self

    def named(self) -> dict[str, tuple[str, str | dict[str, tuple[Any, ...]] | None]]:
        """Our names, each with the file's path and the meaning of its values."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        return {
            name: (column, None) if isinstance(column, str) else (column.column, column.meanings())
            for name, column in given.items()
            if column is not None
        }


class DataStage(FileStage):
    """Existing data: demonstrations, preferences, or completions to judge, as later stages need it."""

    kind = "data"
    from_file = True
    unless_judged = True
    columns: Columns | None = None
    system: Text | None = None  # for conversations without a system message
    turns: Literal["all", "last"] | None = None  # the assistant turns that are trained on or judged
    held_out: Literal["drop", "keep"] = "drop"  # rows on held-out prompts; `keep` only if nothing is trained on them
    # Rows that are trained on: those that the hash of their prompts leaves, or all of them.
    split: Literal["hash", "all"] = "hash"
    # The rows to validate on: a file, or a split of the data set on the hub. By default the hash chooses a twentieth.
    validation: str | None = None

    plain_text: str | None = None  # the column of texts of no conversation, which `sft` learns whole

    @model_validator(mode="after")
    def _text_alone(self) -> DataStage:
        if self.plain_text is not None:
            for name in ("columns", "system", "turns"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`plain_text` is of no conversation, and `{name}` of one; remove one of them")
        return self

    @model_validator(mode="after")
    def _all_or_held_out(self) -> DataStage:
        if self.split == "all" and self.held_out == "keep":
            raise ValueError("`split: all` trains on every row, and `held_out: keep` forbids training; remove one")
        return self

    def named_files(self) -> list[tuple[str, Position]]:
        return super().named_files() + (_given(self, "validation") if self.hub is None else [])

    @property
    def demonstrates(self) -> bool:
        return True

    @property
    def withholds_nothing(self) -> bool:
        return self.split == "all"

    @property
    def keeps_held_out(self) -> bool:
        return self.held_out == "keep"


class PromptsStage(FileStage):
    """Prompts. `take` keeps the first n of the split or splits."""

    kind = "prompts"
    column: str | None = None
    # By hash. Trainers always train on the training split and validate on the validation split.
    split: Annotated[tuple[Literal["train", "validation", "all"], ...], OneOrSeveral, Field(min_length=1)] = ("train",)


class SamplerSettings(SamplingSettings):
    """One entry of a sample stage: a model with its sampling parameters."""

    model: Name
    name: Name | None = None  # its name in the data; needed when one model samples with several settings
    system: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_name_alone(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class SampleStage(StageSettings):
    """Row stage: candidates for each prompt. With `pick`, each prompt draws that many of the samplers by hash."""

    kind = "sample"
    streams = True
    unless_judged = True
    reads = ("prompts",)
    models: tuple[SamplerSettings, ...] = Field(min_length=1)
    per_prompt: int = Field(default=1, gt=0, le=10_000)  # completions from each sampler
    pick: int | None = Field(default=None, gt=0)
    principles: str | None = None  # a file of system prompts, of which each completion draws one
    mixture: Name | None = None  # of them, as the file names it
    sampling: SamplingSettings = SamplingSettings()

    @property
    def demonstrates(self) -> bool:
        return True

    @property
    def candidates(self) -> int:
        """Candidates per prompt."""
        return (self.pick or len(self.models)) * self.per_prompt

    @model_validator(mode="after")
    def _names_are_unique(self) -> SampleStage:
        names = [s.name or s.model for s in self.models]
        if repeated := next((n for n in names if names.count(n) > 1), None):
            raise ValueError(f"two samplers are called {repeated!r}; give each its own `name`")
        if self.pick is not None and self.pick > len(names):
            raise ValueError(f"`pick` asks for {self.pick} of {len(names)} samplers")
        return self

    @model_validator(mode="after")
    def _one_system_message(self) -> SampleStage:
        if self.principles is None and self.mixture is not None:
            raise ValueError("a `mixture` is of principles; name their file in `principles`, or remove it")
        if self.principles is not None and self.mixture is None:
            raise ValueError("`principles` are drawn by a mixture; name one of the file's in `mixture`")
        own = next((s.name or s.model for s in self.models if s.system is not None), None)
        if self.principles is not None and own is not None:
            raise ValueError(f"{own!r} has a `system` of its own, and `principles` draws one; remove one of the two")
        return self

    def models_used(self) -> list[Use]:
        return [Use(sampler.model, ("models", i)) for i, sampler in enumerate(self.models)]

    def named_files(self) -> list[tuple[str, Position]]:
        return _given(self, "principles")


# `answers` for one completion at a time, with their default templates.
ONE_BY_ONE = {"score": "prompts/rate-critique.jinja", "expected": "prompts/score.jinja"}
SIDE_BY_SIDE = {"lines": "prompts/rate-lines.jinja"}  # other `answers` whose default template is their own


class Require(Settings):
    """A gate: what a judge must reach on gold pairs before it judges.

    `gold` is a file of pairs; the default is the built-in pairs, or for embedded models the pairs of their world.
    """

    agreement: Share | None = None  # with gold, over both orders, a tie counting one half
    position_consistency: Share | None = None  # verdicts that do not change with the order
    unparsed: Share | None = None  # at most
    gold: str | None = None
    take: int | None = Field(default=None, gt=0)  # pairs, taken from the categories in rotation

    @model_validator(mode="after")
    def _asks_for_something(self) -> Require:
        if self.agreement is None and self.position_consistency is None and self.unparsed is None:
            raise ValueError("give what is required, such as `agreement: 0.8` or `position_consistency: 0.8`")
        return self


def _not_nothing(value: Any) -> Any:
    if value is None:
        raise ValueError("an empty gate passes everything; give what is required, or remove the key")
    return value


Gate = Annotated[Require | None, BeforeValidator(_not_nothing)]


class Rater(Settings):
    """How a judge rates: one call per prompt and aspect, with all candidates in one judge prompt, in a hashed order.

    `shown: one` makes a call for each candidate. `answers: score` reads an overall score after a free critique;
    `expected` reads the first-token probability of each number of the scale.
    """

    model: Name
    rubric: str
    template: str = "prompts/rate.jinja"
    shown: Literal["all", "one"] = "all"
    answers: Literal["json", "lines", "score", "expected"] = "json"
    reask: int = Field(default=1, ge=0, le=100)  # re-asks of an unreadable reply, with another seed
    sampling: JudgeSampling = JudgeSampling()

    @model_validator(mode="before")
    @classmethod
    def _asks_for_what_is_read(cls, value: Any) -> Any:
        answers = value.get("answers") if isinstance(value, dict) else None
        if isinstance(answers, str) and answers in ONE_BY_ONE:
            return {"shown": "one", "template": ONE_BY_ONE[answers]} | value
        if isinstance(answers, str) and answers in SIDE_BY_SIDE:
            return {"template": SIDE_BY_SIDE[answers]} | value
        return value

    @property
    def basis(self) -> Literal["ratings", "scores"]:
        """The kind of its judgements."""
        return "scores" if self.answers == "expected" else "ratings"

    @model_validator(mode="after")
    def _shows_what_is_read(self) -> Self:
        if self.answers in ONE_BY_ONE and self.shown == "all":
            raise ValueError(f"`answers: {self.answers}` reads one completion at a time; write `shown: one`")
        return self


class Keep(Settings):
    """Which judged completions of a prompt are SFT data: those `at_least` so good, and of these the `best`."""

    best: int | None = Field(default=None, gt=0)
    at_least: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _says_which(cls, value: Any) -> Any:
        if not isinstance(value, dict | Keep) or value == {}:
            raise ValueError("say which completions to keep, such as `keep: {best: 1, at_least: 4}`")
        return value


class RateStage(Rater, StageSettings):
    """Row stage: ratings, or expected scores. Reading another rate stage, it adds to that one's.

    `keep` makes SFT data of it, and takes no candidate from the stages that read it.
    """

    kind = "rate"
    streams = True
    reads = ("sample", "verify", "rate", "data")

    require: Gate = None
    keep: Keep | None = None

    @property
    def demonstrates(self) -> bool:
        return self.keep is not None

    def models_used(self) -> list[Use]:
        return _used(self, "model")

    def named_files(self) -> list[tuple[str, Position]]:
        return [*_given(self, "rubric", "template"), *_gold(self)]


class ReviseStage(StageSettings):
    """Row stage: each candidate critiqued and rewritten under drawn principles, `revisions` times; all are kept.

    A critique that ends with one of `found_nothing` saves its revision; with `after_nothing: end` also all later steps.
    """

    kind = "revise"
    streams = True
    reads = ("sample", "verify")
    model: Name
    constitution: str
    revisions: int = Field(default=1, gt=0, le=1_000)
    critique_template: str = "prompts/critique.jinja"
    revision_template: str = "prompts/revise.jinja"
    found_nothing: Annotated[tuple[Text, ...], OneOrSeveral] = ("Nothing to mend.",)
    after_nothing: Literal["next", "end"] = "next"  # go on with the next principle, or end the chain
    drop: Annotated[tuple[Literal["unchanged", "refusal"], ...], OneOrSeveral] = ()  # what is not SFT data either
    sampling: RevisionSampling = RevisionSampling()
    critique_sampling: SamplingSettings = SamplingSettings()  # what it leaves unset is as in `sampling`
    revision_sampling: SamplingSettings = SamplingSettings()

    @field_validator("found_nothing")
    @classmethod
    def _have_words(cls, phrases: tuple[str, ...]) -> tuple[str, ...]:
        if empty := next((phrase for phrase in phrases if not any(map(str.isalnum, phrase))), None):
            raise ValueError(f"{empty!r} has no word, and every critique would end with it: give a sentence")
        return phrases

    @property
    def demonstrates(self) -> bool:
        return True

    def models_used(self) -> list[Use]:
        return _used(self, "model")

    def named_files(self) -> list[tuple[str, Position]]:
        return _given(self, "constitution", "critique_template", "revision_template")

    def principles_asked(self) -> dict[Requested, str]:
        return {"critique": self.critique_template, "revision": self.revision_template}


class CompareStage(StageSettings):
    """Row stage: which of two candidates is better under a drawn principle, by a judge or a jury, in both orders.

    A `soft` verdict is the first-token probability of the two numbers, a `hard` one the number written. With `reasons`
    the judge first explains, then gives its verdict; `clamp` limits the probability. With `names` it may explain and
    conclude in one reply (`Therefore, Output (b) is better.`).
    """

    kind = "compare"
    streams = True
    reads = ("sample", "verify", "data")
    model: Name | None = None
    jury: Annotated[tuple[Name, ...], Field(min_length=2)] | None = None
    combine: Literal["mean", "majority"] = "mean"  # of a jury: mean likelihood, or majority verdict
    weights: dict[
        Name, Annotated[float, Field(gt=0, le=1_000_000)]
    ] = {}  # of the jury's members; `rlaif audit` fits them on gold pairs
    constitution: str
    template: str = "prompts/compare.jinja"
    ending: Text = "Which completion follows the principle better? Answer with its number alone, 1 or 2."
    pairs: Literal["one", "all"] = "one"  # of each prompt's candidates
    verdicts: Literal["soft", "hard"] = "soft"
    names: tuple[Text, Text] | None = None  # of the two, where the template does not call them 1 and 2
    reasons: bool = False
    votes: int = Field(default=1, gt=0, le=1000)  # verdicts per order, at a temperature above 0, averaged
    clamp: tuple[Share, Share] | None = None
    reask: int = Field(default=1, ge=0, le=100)  # re-asks of an unreadable verdict, with another seed
    require: Gate = None
    sampling: JudgeSampling = JudgeSampling()

    @model_validator(mode="after")
    def _clamp_is_for_reasons(self) -> CompareStage:
        if self.clamp is not None and not (self.reasons and self.verdicts == "soft"):
            raise ValueError("`clamp` is for soft verdicts after reasons; remove it, or set `reasons: true`")
        if self.clamp is not None and not self.clamp[0] < 0.5 < self.clamp[1]:
            raise ValueError("`clamp` needs a share below one half and one above, such as [0.4, 0.6]")
        return self

    @model_validator(mode="after")
    def _names_are_asked_for(self) -> CompareStage:
        if self.names is None:
            return self
        if self.verdicts == "soft":
            raise ValueError("`names` are for verdicts that are written; set `verdicts: hard`, or remove them")
        if self.names[0].lower() == self.names[1].lower():
            raise ValueError("the two `names` are the same; give two, such as [Output (a), Output (b)]")
        if "ending" not in self.model_fields_set:
            raise ValueError("`ending` asks for 1 or 2; give one that asks for one of the `names`")
        return self

    @model_validator(mode="after")
    def _votes_can_differ(self) -> CompareStage:
        if self.votes > 1 and not (self.reasons or self.verdicts == "hard"):
            raise ValueError("`votes` of soft verdicts are all the same; set `reasons: true` or `verdicts: hard`")
        if self.votes > 1 and not self.sampling.temperature:
            raise ValueError("`votes` are all the same at temperature 0; give `sampling: {temperature: 0.7}`")
        return self

    @model_validator(mode="after")
    def _one_judge_or_a_jury(self) -> CompareStage:
        if (self.model is None) == (self.jury is None):
            raise ValueError("give either `model` (one judge) or `jury` (several)")
        if self.jury is None and (self.weights or self.combine != "mean"):
            raise ValueError("`weights` and `combine` are a jury's; give `jury: [one model, another]`")
        if twice := next((name for name in self.judges if self.judges.count(name) > 1), None):
            raise ValueError(f"the jury names {twice!r} twice")
        if stranger := next((name for name in self.weights if name not in self.judges), None):
            raise ValueError(f"`weights` names {stranger!r}, which is not in the jury")
        return self

    @property
    def judges(self) -> tuple[str, ...]:
        """The models that compare: one, or the members of the jury."""
        return self.jury if self.jury is not None else (self.model,) if self.model is not None else ()

    def models_used(self) -> list[Use]:
        return [*_used(self, "model"), *(Use(name, ("jury", i)) for i, name in enumerate(self.jury or ()))]

    def named_files(self) -> list[tuple[str, Position]]:
        return [*_given(self, "constitution", "template"), *_gold(self)]

    def principles_asked(self) -> dict[Requested, str]:
        return {"comparison": self.template}

    @property
    def verdicts_asked(self) -> tuple[str, str] | None:
        return None if self.reasons else self.names or ("1", "2")


class RankStage(StageSettings):
    """Row stage: all candidates of a prompt ranked at once, under a drawn principle, shown in two orders.

    `answers` is the form of the reply: a `ranking`, or ratings on `scale`, as `lines` or `json`, which give the order.
    """

    kind = "rank"
    streams = True
    reads = ("sample", "verify", "data")
    model: Name
    constitution: str
    template: str = "prompts/rank.jinja"
    answers: Literal["ranking", "lines", "json"] = "ranking"
    scale: tuple[int, int] = (1, 5)
    orders: Literal["both", "one"] = "both"  # the drawn order and its reverse, or the drawn order only
    reask: int = Field(default=1, ge=0, le=100)  # re-asks of an unreadable ranking, with another seed
    sampling: JudgeSampling = JudgeSampling()

    @model_validator(mode="before")
    @classmethod
    def _asks_for_what_is_read(cls, value: Any) -> Any:
        rated = isinstance(value, dict) and value.get("answers") in ("lines", "json")
        return {"template": "prompts/rank-ratings.jinja"} | value if rated else value

    @model_validator(mode="after")
    def _scale_rises(self) -> RankStage:
        if self.scale[0] >= self.scale[1]:
            raise ValueError("`scale` needs a lower and a higher number, such as [1, 5]")
        return self

    def models_used(self) -> list[Use]:
        return _used(self, "model")

    def named_files(self) -> list[tuple[str, Position]]:
        return _given(self, "constitution", "template")

    def principles_asked(self) -> dict[Requested, str]:
        return {"comparison": self.template}


class ScoreStage(StageSettings):
    """Table stage: a float for each candidate, from a reward model, or implied by a policy against its reference.

    The implicit reward is beta * (log pi - log ref) of the completion, as DPO defines it. `keep` is as of a rate stage.
    """

    kind = "score"
    reads = ("sample", "verify", "data")
    reward: Name | None = None
    policy: Name | None = None
    reference: Name | None = None
    beta: float = Field(default=0.1, gt=0)
    keep: Keep | None = None

    @property
    def demonstrates(self) -> bool:
        return self.keep is not None

    @model_validator(mode="after")
    def _one_judge(self) -> ScoreStage:
        if (self.reward is None) == (self.policy is None) or (self.policy is None) != (self.reference is None):
            raise ValueError("give either `reward` (a reward model), or `policy` and `reference`")
        return self

    @property
    def judge(self) -> str:
        return self.reward if self.reward is not None else f"{self.policy} against {self.reference}"

    def models_used(self) -> list[Use]:
        return [*_used(self, "reward", role="scores"), *_used(self, "policy", "reference")]


class VerifyStage(StageSettings):
    """Row stage: checks in code of each candidate: the stage's `checks`, and the prompt's own.

    Each check gives a score of 1 or 0. With `keep: passing` only candidates that pass all remain.
    """

    kind = "verify"
    streams = True
    unless_judged = True
    reads = ("sample", "data")
    checks: tuple[dict[str, Any], ...] = ()
    keep: Literal["all", "passing"] = "all"

    @property
    def demonstrates(self) -> bool:
        return True


class PersonStage(StageSettings):
    """Row stage: people's judgements of the candidates, read from a file."""

    kind = "person"
    streams = True
    reads = ("sample", "verify", "data")
    labels: str

    def named_files(self) -> list[tuple[str, Position]]:
        return _given(self, "labels")


class EloStage(StageSettings):
    """Table stage: the samplers' Bradley-Terry strengths by the comparisons of their candidates.

    `prior` adds that many ties between every two samplers, so that one that always wins has a finite strength.
    """

    kind = "elo"
    reads = ("compare", "person", "data")
    prior: float = Field(default=0.0, ge=0)


Rule = Literal["zephyr", "random-lower", "best-worst", "all", "k-wise", "compared"]
PRESETS: dict[str, dict[str, Any]] = {  # published recipes
    "zephyr": {"rule": "zephyr"},  # HuggingFaceH4/ultrafeedback_binarized: best against one of the others
    "argilla": {"rule": "random-lower"},  # argilla/ultrafeedback-binarized-preferences: ties left out
    "ultrarm": {"rule": "all"},  # UltraFeedback's own reward model (arXiv 2310.01377): every pair
    "instructgpt": {"rule": "k-wise"},  # arXiv 2203.02155: all pairs of whole rankings
    "self-rewarding": {"rule": "best-worst"},  # arXiv 2401.10020: highest against lowest
    "rlaif": {"rule": "compared", "orders": "averaged"},  # arXiv 2309.00267: the mean probability of both orders
}


class PairStage(StageSettings):
    """Table stage: preferences from judgements, a judge's or a file's.

    Ties, unparsed and identical texts, and comparisons whose orders name different winners, are dropped and counted.
    """

    kind = "pair"
    reads = ("rate", "compare", "rank", "score", "verify", "person", "data")
    preset: Literal["zephyr", "argilla", "ultrarm", "instructgpt", "self-rewarding", "rlaif"] | None = None
    rule: Rule | None = None  # comparisons of one pair: compared; anything else: zephyr
    # In units of the rubric's scale, or of probability (chosen minus rejected); the margin must be larger than 0.
    min_margin: float = Field(default=0.0, ge=0)
    # Of comparisons whose two orders name different winners: no preference, or the mean of their probabilities.
    orders: Literal["must_agree", "averaged"] = "must_agree"
    balance: Literal["length"] | None = None  # as many preferences for the longer completion as for the shorter one

    @model_validator(mode="before")
    @classmethod
    def _preset_is_filled_in(cls, value: Any) -> Any:
        preset = value.get("preset") if isinstance(value, dict) else None
        return {**PRESETS[preset], **value} if isinstance(preset, str) and preset in PRESETS else value

    @property
    def kinds_read(self) -> tuple[str, ...]:
        return ("compare", "person", "data") if self.rule == "compared" else self.reads

    def check(self, rests_on: Iterable[Rest], sampled: Rest | None, models: Mapping[str, Any]) -> Sense | None:
        if sampled is not None and sampled.stage.candidates == 1:
            problem = f"a pair needs two candidates, and the stage {sampled.name!r} gives each prompt one"
            return Sense(problem, (), "raise its `per_prompt`, or add a model there")
        nearest = next(iter(rests_on), None)
        if self.min_margin > 1 and nearest is not None and nearest.stage.kind == "compare":
            problem = f"a margin of {self.min_margin:g} is more than two probabilities can differ"
            return Sense(problem, ("min_margin",), "give a number up to 1")
        return None


class _TrainStage(StageSettings):
    """Table stage: one trained model, which later stages can use. Exactly one of the trainers' keys is set."""

    kind = "train"
    needs_fresh = False

    @model_validator(mode="after")
    def _one_trainer(self) -> _TrainStage:
        if sum(getattr(self, method) is not None for method in TRAINERS) != 1:
            raise ValueError(f"give exactly one trainer: {', '.join(f'`{method}`' for method in TRAINERS)}")
        if self.source is not None:
            raise ValueError("`from` is not a key here; name the data with `data` inside the trainer")
        return self

    @property
    def trainer(self) -> Training:
        """The settings of the one trainer."""
        chosen: Training = getattr(self, self.method)
        return chosen

    @property
    def method(self) -> str:
        """The trainer's key."""
        return next(method for method in TRAINERS if getattr(self, method) is not None)

    @classmethod
    def name_in(cls, settings: Any) -> Any:
        groups = [settings, *(settings.values() if isinstance(settings, dict) else ())]
        names = [group["name"] for group in groups if isinstance(group, dict) and group.get("name") is not None]
        return names[0] if names else None

    @property
    def takes(self) -> Takes:
        return self.trainer.takes

    @property
    def kinds_read(self) -> tuple[str, ...]:
        return self.trainer.reads

    @property
    def sources_named(self) -> tuple[str, ...]:
        return self.trainer.data or ()

    @property
    def source_key(self) -> Position:
        return (self.method, "data")

    @property
    def uses_margins(self) -> bool:
        return self.trainer.uses_margins

    @property
    def withholds_nothing(self) -> bool:
        return self.trainer.withholds_nothing

    @property
    def model_made(self) -> str:
        return self.trainer.name

    @property
    def model_scores(self) -> bool:
        return self.trainer.scores

    def check(self, rests_on: Iterable[Rest], sampled: Rest | None, models: Mapping[str, Any]) -> Sense | None:
        if isinstance(models.get(self.trainer.base), OpenAIModel):
            fix = "give a base whose engine is `transformers` or `vllm`"
            return Sense("a model on a server cannot be trained here", (self.method, "base"), fix)
        if kept := next((source.name for source in rests_on if source.stage.keeps_held_out), None):
            problem = f"{kept!r} keeps held-out prompts, and a model must not be trained on those"
            return Sense(problem, (self.method,), f"remove `held_out: keep` from {kept!r}")
        return None

    def written_out(self, name: str, sources: Sequence[str]) -> dict[str, Any]:
        settings = super().written_out(name, ())
        settings[self.method]["data"] = list(sources)
        return settings

    def models_used(self) -> list[Use]:
        base = Use(self.trainer.base, (self.method, "base"), "either" if self.trainer.scores else "writes")
        return [base, *_used(self.trainer, "reward", under=(self.method,), role="scores")]

    def named_files(self) -> list[tuple[str, Position]]:
        return _given(self.trainer, "template", "launch", under=(self.method,))


if TYPE_CHECKING:
    TrainStage = _TrainStage
else:  # a type checker cannot know the keys of TRAINERS
    _KEYS = {method: (settings | None, None) for method, settings in TRAINERS.items()}
    TrainStage = create_model("TrainStage", __base__=_TrainStage, __module__=__name__, **_KEYS)


class BestOf(Settings):
    """The completion of n with the highest reward, measured like a model."""

    model: Name
    n: int = Field(default=4, gt=1, le=10_000)

    @property
    def name(self) -> str:
        return f"{self.model} best of {self.n}"


class MeasureStage(StageSettings):
    """Table stage: the named models on prompts that nothing was trained on."""

    kind = "measure"
    once = True
    reads = ("prompts",)
    models: tuple[Name, ...] = Field(min_length=1)
    baseline: Name | None = None  # the win rate and the paired differences are against this model
    split: Literal["validation", "held-out"] = "held-out"
    take: int | None = Field(default=None, gt=0)
    judge: Literal["gold"] | None = None  # the truth of the embedded world: for measuring only
    reward: Name | None = None  # a reward model, whose scores are reported too
    best_of: BestOf | None = None
    rate: Rater | None = None  # the judge, whose pointwise ratings give the win rate
    checks: tuple[dict[str, Any], ...] | None = None  # in code, of every prompt; a prompt's own are always reported
    sampling: MeasureSampling = MeasureSampling()

    @model_validator(mode="after")
    def _baseline_is_measured(self) -> MeasureStage:
        if self.baseline is not None and self.baseline not in self.models:
            raise ValueError(f"the baseline {self.baseline!r} is not among the measured models")
        if twice := next((name for name in self.models if self.models.count(name) > 1), None):
            raise ValueError(f"the model {twice!r} is named twice")
        if self.rate is not None and self.rate.answers == "expected":
            raise ValueError("the win rate is of ratings, and `answers: expected` gives scores; use another `answers`")
        if self.best_of is not None and self.reward is None:
            raise ValueError("`best_of` needs a reward model to choose by; name it in `reward`")
        return self

    @property
    def takes(self) -> Takes:
        return "prompts"

    @property
    def models_measured(self) -> tuple[str, ...]:
        return self.models

    def models_used(self) -> list[Use]:
        return [
            *(Use(model, ("models", i)) for i, model in enumerate(self.models)),
            *_used(self.rate, "model", under=("rate",)),
            *_used(self.best_of, "model", under=("best_of",)),
            *_used(self, "reward", role="scores"),
        ]

    def named_files(self) -> list[tuple[str, Position]]:
        return _given(self.rate, "rubric", "template", under=("rate",))


def _given(settings: Settings | None, *keys: str, under: Position = ()) -> list[tuple[str, Position]]:
    """The values of those `keys` that are set, with their full keys."""
    values = [(getattr(settings, key, None), key) for key in keys]
    return [(value, (*under, key)) for value, key in values if value is not None]


def _used(
    settings: Settings | None, *keys: str, under: Position = (), role: Literal["writes", "scores", "either"] = "writes"
) -> list[Use]:
    """The models named under those `keys` that are set."""
    return [Use(value, key, role) for value, key in _given(settings, *keys, under=under)]


def _gold(stage: RateStage | CompareStage) -> list[tuple[str, Position]]:
    """The file of gold pairs that a stage's gate names."""
    given = stage.require is not None and stage.require.gold not in (None, "world")
    return _given(stage.require, "gold", under=("require",)) if given else []


STAGES: dict[str, type[StageSettings]] = {
    stage.kind: stage
    for stage in (
        DataStage,
        PromptsStage,
        SampleStage,
        RateStage,
        ReviseStage,
        CompareStage,
        RankStage,
        ScoreStage,
        VerifyStage,
        PersonStage,
        EloStage,
        PairStage,
        TrainStage,
        MeasureStage,
    )
}
