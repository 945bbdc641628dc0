"""What is likely to be wrong with a constitution that can be read, told without a model: by line, each with its fix.

A finding is a mistake as far as anybody can see; a note is only said. False alarms cost more than what is missed, so
each check takes the narrow view. The checks of meaning know English.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

from rlaif.config import CompareStage, Document, ReviseStage, StageSettings, read_pipeline
from rlaif.constitution import wording
from rlaif.constitution.reading import REQUESTS, RULE, Constitution, Principle, Request, read_with_lines
from rlaif.errors import InputError, shortened
from rlaif.resources import find, read_text

Position = tuple[str | int, ...]
MOST_WORDS = 120  # of one text: beyond that a model keeps to a part of it
# Of two texts' content words. In the constitutions that ship, no two texts of principles share more than 17 %; of
# sixteen wordings about harm (`tests/madison.py`), the two that ask for the same share 75 %, all others at most 21 %;
# short rules that differ in one word, such as the goods that are not to be obtained, share 67 %.
ALIKE = 0.7


class Finding(NamedTuple):
    kind: str
    line: int | None
    key: str | None
    message: str
    fix: str | None
    text: str  # all of it in one line, as errors are told

    def as_dict(self) -> dict[str, str | int | None]:
        return {"kind": self.kind, "line": self.line, "key": self.key, "message": self.message, "fix": self.fix}


@dataclass(frozen=True)
class Linted:
    """What was found, in the order of lines, and what is only said."""

    file: str
    findings: list[Finding]
    notes: list[str]

    def as_dict(self) -> dict[str, object]:
        return {"file": self.file, "findings": [one.as_dict() for one in self.findings], "notes": self.notes}


@dataclass
class Used:
    """The requests that are made, the templates that show them, and the answers that a comparison asks for."""

    templates: dict[Request, dict[str, None]] = field(default_factory=dict)
    answers: tuple[str, str] | None = None
    pipeline: str | None = None
    notes: list[str] = field(default_factory=list)

    def add(self, stage: StageSettings) -> None:
        for request, template in stage.principles_asked().items():
            self.templates.setdefault(request, {})[template] = None
        self.answers = stage.verdicts_asked or self.answers


def lint(path: str, pipeline: str | None = None) -> Linted:
    """What is likely wrong with the constitution at `path`, with the templates of a pipeline or those that ship.

    Raises InputError where a file is wrong.
    """
    constitution, document = read_with_lines(path)
    used = _shipped(path) if pipeline is None else _used_by(pipeline, path)
    sources = {name: read_text(find(name)) for named in used.templates.values() for name in named}
    text = _Text(constitution, document, used, sources)
    findings = [_finding(kind, error) for check in CHECKS for kind, error in check(text)]
    findings.sort(key=lambda one: one.line or 0)
    return Linted(document.path, findings, [*used.notes, *_notes(text)])


def _finding(kind: str, error: InputError) -> Finding:
    return Finding(kind, error.line, error.key, error.message, error.fix, str(error))


def _shipped(path: str) -> Used:
    used = Used()
    used.add(ReviseStage(model="model", constitution=path))
    used.add(CompareStage(model="model", constitution=path))
    return used


def _used_by(pipeline: str, path: str) -> Used:
    """What the stages of a pipeline use that draw from this constitution; all of them where none names it."""
    drawing = [step.stage for step in read_pipeline(pipeline).steps if step.stage.principles_asked()]
    if not drawing:
        raise InputError("no stage draws a principle", file=pipeline, fix="name a pipeline with `revise` or `compare`")
    own = [stage for stage in drawing if _names(stage, path)]
    used = Used(pipeline=pipeline)
    if not own:
        used.notes.append(f"no stage of {pipeline} names this constitution; its templates are used all the same")
    for stage in own or drawing:
        used.add(stage)
    return used


def _names(stage: StageSettings, path: str) -> bool:
    return any(
        find(file).resolve() == find(path).resolve() for file, key in stage.named_files() if key == ("constitution",)
    )


class _Text(NamedTuple):
    """A constitution with its lines, and the templates of its requests."""

    constitution: Constitution
    document: Document
    used: Used
    sources: Mapping[str, str]

    def numbered(self) -> Iterator[tuple[int, Principle]]:
        return enumerate(self.constitution.principles)

    def wrote(self, index: int, request: Request) -> bool:
        """Whether the file gives a principle's request."""
        item = self.document.value["principles"][index]
        return isinstance(item, dict) and request in item

    def own(self, index: int, principle: Principle) -> dict[str, str]:
        """The texts of a principle that the file gives, by their keys."""
        requests = {request: getattr(principle, request) for request in REQUESTS if self.wrote(index, request)}
        return ({"rule": principle.rule} if principle.rule else {}) | requests

    def error(self, message: str, position: Position, fix: str) -> InputError:
        return self.document.error(message, position, fix)


Check = Iterator[tuple[str, InputError]]


def _duplicates(text: _Text) -> Check:
    """Two principles that ask for the same thing: it is drawn twice as often, and pays for two."""
    for (i, one), (j, other) in combinations(text.numbered(), 2):
        mine, theirs = text.own(i, one), text.own(j, other)
        alike = {key: wording.likeness(mine[key], theirs[key]) for key in mine if key in theirs}
        # A critique may serve two principles whose revisions differ.
        stages = [(key,) for key in ("rule", "comparison")] + [("critique", "revision")]
        for keys in stages:
            shares = [alike[key] for key in keys if key in alike]
            if len(shares) < len(keys) or min(shares) < ALIKE:
                continue
            how = "says the same as" if min(shares) == 1 else f"has {min(shares):.0%} of its words in common with"
            line = text.document.line(("principles", i, keys[0]))
            named = " and ".join(f"`{key}`" for key in keys)
            message = f"the {named} of {other.id!r} {how} that of {one.id!r} (line {line})"
            fix = "remove one, and give the other its `weight`; or say how they differ"
            yield "duplicate", text.error(message, ("principles", j, keys[0]), fix)
            break


def _mixed(text: _Text) -> Check:
    """A principle of which one text names another quality than the rest."""
    for index, principle in text.numbered():
        own = text.own(index, principle)
        for one, other in combinations(own, 2):
            a, b = wording.named(own[one]), wording.named(own[other])
            if a and b and not a & b and not wording.content(own[one]) & wording.content(own[other]):
                message = f"the `{one}` is about {_listed(a)}, and the `{other}` about {_listed(b)}"
                fix = "let all requests of a principle ask for one thing; put the other into a principle of its own"
                yield "mixed", text.error(message, ("principles", index, other), fix)
                break


def _contradicted(text: _Text) -> Check:
    """A template that says that what a principle asks for does not matter."""
    for request, templates in text.used.templates.items():
        for name in templates:
            source = _without(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}", text.sources[name])
            for quality, sentence in wording.denied(source).items():
                line = source.count("\n", 0, source.index(sentence)) + 1
                for index, principle in text.numbered():
                    if quality not in wording.named(getattr(principle, request)):
                        continue
                    key = request if text.wrote(index, request) else "rule"
                    message = f"it is about {quality}, which the template of its {request} says does not matter"
                    message += f" ({name}:{line}: {shortened(sentence.strip(), 100)!r})"
                    fix = f"write in the template `unless the principle is about {quality}`"
                    yield "contradiction", text.error(message, ("principles", index, key), fix)


def _without(tags: str, source: str) -> str:
    """A template without its tags or comments, line for line."""
    return re.sub(tags, lambda tag: "\n" * tag[0].count("\n"), source, flags=re.DOTALL)


def _unread_rules(text: _Text) -> Check:
    """A rule that no request is made of and no template shows: who edits it changes nothing."""
    sources = [_without(r"\{#.*?#\}", source) for source in text.sources.values()]
    if any(re.search(r"\bprinciple\W{1,4}rule\b", source) for source in sources):
        return
    for index, principle in text.numbered():
        if principle.rule and all(text.wrote(index, request) for request in REQUESTS):
            message = "no request is made of this rule, since all three are written out: editing it changes nothing"
            fix = "remove the requests that only repeat it, or remove the rule"
            yield "unread", text.error(message, ("principles", index, "rule"), fix)


def _vague(text: _Text) -> Check:
    for index, principle in text.numbered():
        for key, words in text.own(index, principle).items():
            if wording.vague(words):
                message = f"{_short(words)} does not say what is better"
                fix = "name what a completion does or does not do, such as `Answer in at most three sentences.`"
                yield "vague", text.error(message, ("principles", index, key), fix)
                break


def _double(text: _Text) -> Check:
    for index, principle in text.numbered():
        if halves := wording.two_commands(principle.rule):
            message = f"it gives two commands, {_short(halves[0])} and {_short(halves[1])}"
            fix = "make two principles, each with its own `weight`: a completion may keep one and break the other"
            yield "double", text.error(message, ("principles", index, "rule"), fix)


def _long(text: _Text) -> Check:
    for index, principle in text.numbered():
        for key, words in text.own(index, principle).items():
            if (count := len(words.split())) > MOST_WORDS:
                message = f"it has {count} words; a model keeps to a part of a text of more than {MOST_WORDS}"
                yield "long", text.error(message, ("principles", index, key), "shorten it, or make several principles")


def _run_on(text: _Text) -> Check:
    """A rule without its full stop, in a request that goes on behind it."""
    requests = text.constitution.requests
    for index, principle in text.numbered():
        if not principle.rule or not principle.rule[-1].isalnum():
            continue
        for request in REQUESTS:
            behind = getattr(requests, request).partition(RULE)[2]
            if not text.wrote(index, request) and re.match(r"\s+[A-Z]", behind):
                message = f"the rule has no full stop, and its {request} goes on behind it: {_short(behind)}"
                yield "run-on", text.error(message, ("principles", index, "rule"), "end the rule with a full stop")
                break


LEAKS = {
    r"\{\{[^{}\n]{0,200}\}\}|\{%[^{}\n]{0,200}%\}|\{#[^{}\n]{0,200}#\}": "a template's tag, which is sent as it stands",
    r"\[(?:MASK|INST|/INST|PLACEHOLDER|TODO|INSERT[^\]]*)\]": "a mark of another template",
    r"\{(?:rule|prompt|completion|response|question|answer|instruction)\}": "a place that nothing fills in",
    r"<\|[^|>\n]*\|>|</?s>": "a token that marks turns, which a server may take for the end of the message",
    r"(?m)^[ \t]*(?:Human|Assistant|User|System) ?:|\b(?:Human|Assistant):": "the mark of a speaker",
    r"\b(?:Critique|Revision) ?Request:|(?m:^[ \t]*(?:Critique|Revision|Options):)": "the cue of another data set",
}
_LEAKS = {re.compile(pattern): what for pattern, what in LEAKS.items()}


def _leaks(text: _Text) -> Check:
    constitution = text.constitution
    texts: list[tuple[Position, str, bool]] = []
    for index, principle in text.numbered():
        own = text.own(index, principle)
        texts += [(("principles", index, key), words, False) for key, words in own.items()]
    if constitution.preamble is not None:
        texts.append((("preamble",), constitution.preamble, False))
    for request in REQUESTS:
        if ("requests", request) in text.document.lines:
            texts.append((("requests", request), getattr(constitution.requests, request), True))
    for position, words, takes_rule in texts:
        for pattern, what in _LEAKS.items():
            if found := pattern.search(words.replace(RULE, "") if takes_rule else words):
                fix = "remove it"
                if found[0] == RULE:
                    fix = f"write the rule out here; {RULE} stands in `requests:` at the top of the file"
                yield "leak", text.error(f"it holds {found[0].strip()!r}: {what}", position, fix)
                break


def _examples(text: _Text) -> Check:
    """Examples of comparisons that end otherwise than the judge is asked to."""
    answers = text.used.answers
    if answers is None:
        return
    for index, chat in enumerate(text.constitution.examples.comparison):
        said = chat[-1].content.strip()
        if not any(re.fullmatch(rf"\W*{re.escape(answer)}\W*", said, re.IGNORECASE) for answer in answers):
            message = f"the example answers {_short(said)}, and a comparison asks for {' or '.join(answers)}"
            fix = "let it answer so; or in the pipeline give `names` and an `ending` to `compare`, or let it reason"
            yield "answer", text.error(message, ("examples", "comparison", index), fix)


def _nothing_to_draw(text: _Text) -> Check:
    """A stage of the pipeline that has no principle to draw; the run would say the same and not begin."""
    for request in text.used.templates if text.used.pipeline is not None else ():
        if request != "revision" and not text.constitution.having(request):
            message = f"no principle has a {request}, and {text.used.pipeline} makes one"
            fix = f"give one a `{request}`, or a `rule` that it can be made of"
            yield "undrawn", text.error(message, ("principles",), fix)


CHECKS = (
    _duplicates, _mixed, _contradicted, _unread_rules, _vague, _double, _long, _run_on, _leaks, _examples,
    _nothing_to_draw,
)  # fmt: skip


def _notes(text: _Text) -> list[str]:
    notes = []
    for request in text.used.templates:
        made = [p.id for i, p in text.numbered() if p.rule and not text.wrote(i, request)]
        without = [p.id for _, p in text.numbered() if not getattr(p, request)]
        if made:
            notes.append(f"{request}: made of the rule for {_some(made)}")
        if without and request != "revision":
            stage = "compare" if request == "comparison" else "revise"
            notes.append(f"{request}: `{stage}` never draws {_some(without)}, without a rule and a {request}")
    return notes


MOST_NAMED = 6


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - MOST_NAMED} more" if len(ids) > MOST_NAMED else ""
    return ", ".join(ids[:MOST_NAMED]) + more


def _listed(qualities: set[str]) -> str:
    return " and ".join(sorted(qualities))


def _short(text: str) -> str:
    return repr(shortened(" ".join(text.split()), 60))
