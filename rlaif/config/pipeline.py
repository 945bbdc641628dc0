"""The pipeline file: read, overridden from the command line, its sources resolved, and checked as a whole.

Knows which stage may read which, not how a stage runs. Nothing runs before the whole file is valid.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.config.document import (
    COMMAND_LINE,
    NAME,
    Document,
    Position,
    dotted,
    load_value,
    read_yaml,
    validated,
)
from rlaif.config.models import ENGINES, LocalModel, ModelSpec, OpenAIModel
from rlaif.config.stages import (
    STAGES,
    Rest,
    StageSettings,
)
from rlaif.errors import InputError, nearest, shown
from rlaif.records import digest
from rlaif.resources import find, find_in, places_of, seen_from


class Step:
    """A stage of a pipeline: its number from 1, its name, and the earlier steps that it reads."""

    def __init__(self, number: int, name: str, stage: StageSettings, sources: Sequence[Step]) -> None:
        self.number, self.name, self.stage, self.sources = number, name, stage, tuple(sources)
        source = self.source
        # The step that sampled its rows' candidates; None without one.
        self.sampled: Step | None = source and (source if source.stage.candidates is not None else source.sampled)

    @property
    def source(self) -> Step | None:
        """The step that it reads, or the first of several."""
        return self.sources[0] if self.sources else None

    def ancestors(self) -> Iterator[Step]:
        """All upstream steps, each once, the nearest first along each of its sources."""
        seen: set[Step] = set()
        ahead = list(reversed(self.sources))
        while ahead:
            step = ahead.pop()
            if step not in seen:
                seen.add(step)
                yield step
                ahead.extend(reversed(step.sources))

    def line(self) -> Iterator[Step]:
        """The chain of its sources, the nearest first."""
        step = self.source
        while step is not None:
            yield step
            step = step.source

    def __repr__(self) -> str:
        return f"Step({self.number}, {self.name!r})"


class Pipeline:
    """A valid pipeline file: names resolved, files found."""

    def __init__(
        self,
        document: Document,
        name: str,
        seed: int,
        models: dict[str, ModelSpec],
        steps: list[Step],
        budget: float | None = None,
    ) -> None:
        self.document, self.name, self.seed, self.models, self.steps = document, name, seed, models, steps
        self.budget = budget  # maximum cost of the run's calls, in the currency of the prices

    def error(self, step: Step, message: str, key: Position = (), fix: str | None = None) -> InputError:
        position: Position = ("stages", step.number - 1, step.stage.kind, *key)
        return self.document.error(message, position, fix)

    @property
    def shipped(self) -> list[str]:
        """The files that it names and only the package has, as they are named."""
        return list(self.document.shipped)

    def origin(self, folder: Path) -> str:
        """Where it was read, as seen from its run folder: of one of the command line, its models and its data."""
        document = self.document
        if document.path == COMMAND_LINE:
            return f"asked {digest([document.value['models'], document.value['stages'][0]])}"
        return f"file {seen_from(folder, Path(document.path))}"

    def resolved(self, folder: Path) -> dict[str, Any]:
        """The pipeline with every default and source, as saved in `folder`; reading it gives the same pipeline.

        Paths are relative to `folder`, so that they name the same files wherever it is read. Settings that a stage
        leaves to its models stay unset.
        """

        def seen(path: str) -> str:
            fixed = path in self.document.shipped or Path(path).is_absolute() or path.startswith("~")
            return path if fixed else seen_from(folder, Path(path))

        def spec_of(spec: ModelSpec) -> dict[str, Any]:
            if isinstance(spec, LocalModel) and spec.path is not None:
                spec = spec.put(("path",), seen(spec.path))
            if isinstance(spec, LocalModel) and spec.adapter is not None:
                spec = spec.put(("adapter",), seen(spec.adapter))
            return spec.model_dump(mode="json", exclude_none=True)

        def stage_of(step: Step) -> dict[str, Any]:
            stage = step.stage
            for path, key in stage.named_files():
                stage = stage.put(key, seen(path))
            return {stage.kind: stage.written_out(step.name, [source.name for source in step.sources])}

        return {
            "name": self.name,
            "seed": self.seed,
            **({} if self.budget is None else {"budget": self.budget}),
            "models": {name: spec_of(spec) for name, spec in self.models.items()},
            "stages": [stage_of(step) for step in self.steps],
        }


def read_pipeline(path: str, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> Pipeline:
    """Read and check a pipeline file. Raises InputError for anything that is wrong with it.

    `overrides` are `key.key=value` as the command line gives them, `values` the same as plain Python values.
    """
    found = find_in((Path(),), path)
    document = read_yaml(found.path)
    if found.shipped:
        document.shipped[path] = None
    else:
        document.beside = places_of(found.path)
    for override in overrides:
        _apply(document, *_parsed(override))
    for written, value in (values or {}).items():
        _apply(document, written, value)
    return checked(document)


def checked(document: Document) -> Pipeline:
    """The pipeline in a document. Raises InputError."""
    known = {"name", "seed", "budget", "constitution", "models", "stages"}
    for key in document.value:
        if key not in known:
            raise document.error("unknown key", (str(key),), nearest(str(key), known))
    name = document.value.get("name")
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise document.error(
            f"expected letters, digits, '.', '_' or '-', 100 at most, found {shown(name)}",
            ("name",),
            "write `name: my-run`",
        )
    seed = document.value.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise document.error(f"expected a whole number from 0 to {2**32 - 1}, found {shown(seed)}", ("seed",))
    models = _read_models(document)
    budget = _read_budget(document, models)
    return Pipeline(document, name, seed, models, _read_steps(document, models), budget)


def judging_pipeline(document: Document) -> Pipeline:
    """A document's models and its one stage, for a command that uses a judge without a pipeline. Raises InputError."""
    models = _read_models(document)
    (kind, settings), position = next(iter(document.value["stages"][0].items())), ("stages", 0)
    stage = validated(STAGES[kind], settings, document, (*position, kind))
    _check_models(stage, _Earlier(), models, document, (*position, kind))
    stage = _with_files(stage, document, (*position, kind))
    return Pipeline(document, document.value["name"], 0, models, [Step(1, kind, stage, [])])


def _read_budget(document: Document, models: dict[str, ModelSpec]) -> float | None:
    """The budget; with one, every model on a server needs a price."""
    budget = document.value.get("budget")
    if budget is None:
        return None
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget < float("inf"):
        raise document.error(f"expected an amount of money above 0, found {shown(budget)}", ("budget",))
    for name, spec in models.items():
        if isinstance(spec, OpenAIModel) and spec.price is None:
            problem = f"there is a budget, but {name!r} has no price"
            fix = "give it `price: {prompt: ..., completion: ...}`, per million tokens; 0 if it is free"
            raise document.error(problem, ("models", name, "price"), fix)
    return float(budget)


def split_setting(setting: str, example: str) -> tuple[str, str]:
    """The key and the value of `key=value` from the command line. Raises InputError with the example."""
    key, equals, value = setting.partition("=")
    if not equals or not key:
        raise InputError(f"{setting!r} is not of the form key=value", fix=f"for example {example}")
    return key, value


def _parsed(override: str) -> tuple[str, Any]:
    """The key and the value of one `key.key=value`. Raises InputError."""
    written, text = split_setting(override, "stages.2.prompts.take=50")
    try:
        value, _ = load_value(text, COMMAND_LINE)
    except InputError as error:
        raise InputError(error.message, file=COMMAND_LINE, key=written, fix=error.fix) from None
    return written, value


def _apply(document: Document, written: str, value: Any) -> None:
    """Put `value` where a key leads; items count from 0, a stage also goes by its name. Raises InputError."""
    parts = written.split(".")
    target: Any = document.value
    position: Position = ()
    for depth, part in enumerate(parts, start=1):
        last = depth == len(parts)
        key = _key(target, part, position, written, last)
        position = (*position, key)
        if last or (isinstance(target, dict) and target.get(key) is None):
            target[key] = value if last else {}
            document.overridden[position] = ".".join(parts[:depth])
        target = target[key]


def _key(target: Any, part: str, above: Position, written: str, last: bool) -> str | int:
    """The index or key of `part` in `target`. A new key is allowed only where a setting can be."""
    if isinstance(target, list):
        return _item(target, part, above, written)
    if not isinstance(target, dict):
        raise InputError(f"{dotted(above)} holds no keys", file=COMMAND_LINE, key=written)
    is_stage = above[:1] == ("stages",) and len(above) == 2
    if part in target or (not is_stage and (last or len(above) >= 2)):
        return part
    known = [str(key) for key in target]
    raise InputError(
        f"there is no `{part}` in {dotted(above) or 'the pipeline'}",
        file=COMMAND_LINE,
        key=written,
        fix=nearest(part, known) if known else None,
    )


def _item(target: list[Any], part: str, above: Position, written: str) -> int:
    """The index of `part`: a number, or a stage's name."""
    if re.fullmatch("[0-9]{1,9}", part) and int(part) < len(target):
        return int(part)
    names = _step_names(target) if above == ("stages",) else []
    if names.count(part) == 1:
        return names.index(part)
    problem = f"{dotted(above)} has no `{part}`" if part not in names else f"two stages are called {part!r}"
    numbers = f"use a number from 0 to {len(target) - 1}" if target else None
    raise InputError(problem, file=COMMAND_LINE, key=written, fix=nearest(part, names) if names else numbers)


def _read_models(document: Document) -> dict[str, ModelSpec]:
    section = document.value.get("models")
    if not isinstance(section, dict) or not section:
        raise document.error(
            "expected at least one model", ("models",), "add `models:` with a name and an engine for each"
        )
    models: dict[str, ModelSpec] = {}
    for name, value in section.items():
        position = ("models", str(name))
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise document.error(
                f"expected a name of letters, digits, '.', '_' or '-', 100 at most, found {shown(name)}",
                position,
                "put it in quotes" if isinstance(name, int) else None,
            )
        if not isinstance(value, dict):
            raise document.error(f"expected keys and values, found {shown(value)}", position, "give it an `engine`")
        engine = value.get("engine")
        if not isinstance(engine, str) or engine not in ENGINES:
            raise document.error(
                "the key is missing" if engine is None else f"unknown engine {shown(engine)}",
                (*position, "engine"),
                nearest(str(engine), ENGINES),
            )
        spec = validated(ENGINES[engine], value, document, position)
        for key in ("path", "adapter") if isinstance(spec, LocalModel) else ():
            if (folder := getattr(spec, key)) is not None:
                spec = spec.put((key,), document.path_from_here(folder, (*position, key)))
                if not find(str(getattr(spec, key))).is_dir():
                    raise document.error(f"{folder!r} is a file", (*position, key), "give a model's folder")
        models[name] = spec
    return models


MOST_STAGES = 10_000  # each is checked against those before it; the largest pipeline that ships has 12


def _constitution(document: Document) -> dict[str, str]:
    """The constitution of every stage that names none of its own, as a setting; none where the file names none."""
    path = document.value.get("constitution")
    if path is None:
        return {}
    if not isinstance(path, str):
        raise document.error(f"expected a path, found {shown(path)}", ("constitution",), "name a file")
    return {"constitution": path}


def _read_steps(document: Document, models: dict[str, ModelSpec]) -> list[Step]:
    section = document.value.get("stages")
    if not isinstance(section, list) or not section:
        raise document.error("expected a list of stages", ("stages",), f"a stage is one of {', '.join(STAGES)}")
    if len(section) > MOST_STAGES:
        problem = f"expected at most {MOST_STAGES:,} stages, found {len(section):,}"
        raise document.error(problem, ("stages", MOST_STAGES), "make several pipelines of it")
    names, earlier, shared = _step_names(section), _Earlier(), _constitution(document)
    for index, item in enumerate(section):
        position: Position = ("stages", index)
        if not isinstance(item, dict) or len(item) != 1:
            raise document.error("expected one stage: its kind and its settings", position, "write `- sample: {...}`")
        kind = str(next(iter(item)))
        if kind not in STAGES:
            raise document.error(f"unknown stage {kind!r}", (*position, kind), nearest(kind, STAGES))
        position = (*position, kind)
        settings = item[kind]
        if "constitution" in STAGES[kind].model_fields and isinstance(settings, dict):
            settings = shared | settings
        stage = validated(STAGES[kind], settings, document, position)
        if names[index] in earlier.by_name:
            raise document.error(f"two stages are called {names[index]!r}", position, "give each its own `name`")
        _check_models(stage, earlier, models, document, position)
        sources = _sources(stage, earlier, document, position)
        step = Step(index + 1, names[index], _with_files(stage, document, position), sources)
        _check_sense(step, earlier, models, document, position)
        earlier.add(step)
    return list(earlier.by_name.values())


class _Earlier:
    """The steps before one, by what is asked of them: a pipeline may have thousands."""

    def __init__(self) -> None:
        self.by_name: dict[str, Step] = {}  # in their order
        self.by_kind: dict[str, list[Step]] = {}
        self.trained: dict[str, bool] = {}  # the models that they make, and whether each scores
        self.withheld_nothing: set[str] = set()  # the models that rest on data of which nothing was withheld
        self.sampled = False  # whether any samples
        self.demonstrating: dict[str, Step] = {}  # those whose completions are SFT data, in their order

    def add(self, step: Step) -> None:
        self.by_name[step.name] = step
        self.by_kind.setdefault(step.stage.kind, []).append(step)
        self.sampled = self.sampled or bool(step.stage.candidates)
        if step.stage.model_made is not None:
            self.trained[step.stage.model_made] = step.stage.model_scores
            bases = {use.model for use in step.stage.models_used()}
            rests_on = (step, *step.ancestors())
            if bases & self.withheld_nothing or any(each.stage.withholds_nothing for each in rests_on):
                self.withheld_nothing.add(step.stage.model_made)
        if step.stage.takes == "rows":
            for source in step.sources:
                if source.stage.unless_judged:
                    self.demonstrating.pop(source.name, None)
        if step.stage.demonstrates:
            self.demonstrating[step.name] = step

    def of_kinds(self, kinds: Iterable[str]) -> list[Step]:
        """The steps of any of these kinds, in their order."""
        return sorted((step for kind in kinds for step in self.by_kind.get(kind, ())), key=lambda step: step.number)

    def nearest(self, kinds: Iterable[str]) -> Step | None:
        """The last step of any of these kinds."""
        last = (self.by_kind[kind][-1] for kind in kinds if kind in self.by_kind)
        return max(last, key=lambda step: step.number, default=None)


def _step_names(section: list[Any]) -> list[str]:
    """Each stage's name in files, logs and overrides: its `name`, or its kind and number."""
    names: list[str] = []
    kinds: Counter[str] = Counter()
    for item in section:
        kind, settings = next(iter(item.items()), ("", None)) if isinstance(item, dict) else ("", None)
        kinds[str(kind)] += 1
        given = STAGES[kind].name_in(settings) if isinstance(kind, str) and kind in STAGES else None
        number = kinds[str(kind)]
        names.append(str(given) if given is not None else f"{kind}-{number}" if number > 1 else str(kind))
    return names


def _check_sense(
    step: Step, earlier: _Earlier, models: dict[str, ModelSpec], document: Document, position: Position
) -> None:
    """Raise InputError for a stage that does not fit its pipeline."""
    stage = step.stage
    if stage.once and (before := earlier.nearest([stage.kind])) is not None:
        raise document.error(
            f"a run has one report, which the stage {before.name!r} writes",
            position,
            "name all its models in one stage",
        )
    rests_on = (Rest(ancestor.name, ancestor.stage) for ancestor in step.ancestors())
    sampled = Rest(step.sampled.name, step.sampled.stage) if step.sampled else None
    if sense := stage.check(rests_on, sampled, models):
        raise document.error(sense.problem, (*position, *sense.key), sense.fix)
    if learnt := next((name for name in stage.models_measured if name in earlier.withheld_nothing), None):
        problem = f"{learnt!r} was trained on every row of a file (`split: all`), whatever is held out here"
        fix = (
            "remove `split: all` from its `data` stage, or measure it in a pipeline of its own on prompts it never saw"
        )
        raise document.error(problem, (*position, "models"), fix)
    if stage.model_made is not None and (stage.model_made in models or stage.model_made in earlier.trained):
        key = (*stage.source_key[:-1], "name")
        raise document.error(f"there is already a model called {stage.model_made!r}", (*position, *key))


def _check_models(
    stage: StageSettings, earlier: _Earlier, models: dict[str, ModelSpec], document: Document, position: Position
) -> None:
    """Raise InputError for a model that is not in `models:` or trained earlier, or is used in the wrong role.

    A reward model scores and does not generate; any other model generates and does not score.
    """
    trained = earlier.trained
    for model, key, role in stage.models_used():
        if model not in models and model not in trained:
            raise document.error(f"unknown model {model!r}", (*position, *key), nearest(model, {*models, *trained}))
        scores = trained.get(model)
        if role == "scores" and (scores is False or isinstance(models.get(model), OpenAIModel)):
            what = "runs on a server, which gives no scores" if model in models else "was not trained by `rm`"
            raise document.error(f"{model!r} {what}", (*position, *key), "name a reward model with local weights")
        if role == "writes" and scores:
            fix = "name its base model, or another"
            raise document.error(f"{model!r} is a reward model and does not generate", (*position, *key), fix)


def _sources(stage: StageSettings, earlier: _Earlier, document: Document, position: Position) -> list[Step]:
    """The earlier steps that this stage reads: those it names, else the nearest of the right kind."""
    reads, wanted, key = stage.kinds_read, stage.sources_named, (*position, *stage.source_key)
    if not reads:
        if wanted:
            raise document.error(f"a {stage.kind} stage reads no other stage", key, "remove `from`")
        return []
    kinds = " or ".join(reads)
    if not wanted:
        nearest_step = earlier.nearest(reads)
        if stage.takes == "demonstrations":
            nearest_step = next(reversed(earlier.demonstrating.values()), None)
        if stage.needs_fresh:  # a pipeline that samples judges its samples, not a file of demonstrations
            made = earlier.nearest(kind for kind in reads if not STAGES[kind].from_file)
            nearest_step = made if made is not None or earlier.sampled else nearest_step
        judged = earlier.nearest(reads) if stage.takes == "demonstrations" else None
        if nearest_step is None and judged is not None:
            problem = "no stage before it says which completions are SFT data"
            fix = f"name one, such as `data: {judged.name}`" if judged.stage.demonstrates else _keeping(judged)
            raise document.error(problem, key, fix)
        if nearest_step is None:
            first = next((kind for kind in reads if not STAGES[kind].from_file), reads[0])
            raise document.error(
                f"no earlier stage of kind {kinds} to read from", key, f"put a `{first}` stage before it"
            )
        return [nearest_step]
    chosen = []
    for name in wanted:
        step = earlier.by_name.get(name)
        if step is None or step.stage.kind not in reads:
            fitting = [s.name for s in earlier.of_kinds(reads)]
            problem = f"no earlier stage of kind {kinds} is called {name!r}"
            raise document.error(problem, key, nearest(name, fitting) if fitting else None)
        if stage.takes == "demonstrations" and not step.stage.demonstrates:
            problem = f"the stage {name!r} does not say which of its completions are SFT data"
            raise document.error(problem, key, _keeping(step))
        chosen.append(step)
    if len({step.name for step in chosen}) < len(chosen):
        raise document.error("a stage is named twice", key, "name each once")
    return chosen


def _keeping(judging: Step) -> str:
    return f"give {judging.name!r} a `keep`, such as `keep: {{best: 1}}`"


def _with_files(stage: StageSettings, document: Document, position: Position) -> StageSettings:
    """The stage with its paths as they are found from the current folder. Raises InputError for one that is not."""
    for path, key in stage.named_files():
        if (found := document.path_from_here(path, (*position, *key))) != path:
            stage = stage.put(key, found)
    return stage
