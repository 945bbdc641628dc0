"""Templates of strangers: none runs code, touches a file or takes more than a template may; each is told in a sentence.

Judge prompts come in by the commands that read them, chat templates with a model's folder. What a template is handed is
walked to its end.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
from conftest import MARKED
from echo import write_prompts
from test_formats import jsonl
from test_run import Cli, models, run_cli, url  # noqa: F401 - the fixtures
from test_train import train
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from rlaif.config import CompareStage, RankStage, Rater
from rlaif.constitution import Constitution, Principle
from rlaif.engines.chat import Chat
from rlaif.engines.transformers import TransformersEngine
from rlaif.errors import InputError
from rlaif.generate.revising import Reviser, critique_prompt, revision_prompt
from rlaif.judges import comparing, ranking, rating
from rlaif.pipeline.rehearsal import REHEARSED
from rlaif.records import Message
from rlaif.resources import bundled
from rlaif.rubric import Aspect, Rubric, Scale
from rlaif.templates import ChatTemplate, Conversation, Template, TemplateFailure, apart, bounds, environments
from rlaif.templates.apart import Apart
from rlaif.train import pairs, rollout, sft, tokens
from rlaif.train.examples import Demonstration, PreferencePair, PromptOnly

SECONDS = 20.0  # of the clock, on a machine that does other work; alone it is three
SENTENCE = re.compile(r"[^\n]+\n?")

LONG = "{% for a in range(99999) %}"
END = "{% endfor %}"

# What takes long without writing anything: ended by the clock of the process.
SLOW = {
    "nested ranges without output": LONG * 3 + END * 3,
    "macro that calls itself twice": "{% macro f(n) %}{{ f(n-1) ~ f(n-1) if n else '' }}{% endmacro %}{{ f(60) }}",
    "lorem ipsum without end": "{{ lipsum(n=10**9) }}",
    "lorem ipsum of long paragraphs": "{{ lipsum(n=9, min=10**8, max=10**8+1) }}",
    "slices without number": "{{ [1] | slice(10**9) | list }}",
    "powers of powers": "{{ (('9' * 4000) | int) ** 100000 }}",
    "power while compiling": "{{ 7 ** 30000000 if false else 1 }}{{ (3 ** 30000000) % 2 }}{{ (5 ** 40000000) % 2 }}",
    "sums of ranges": LONG + "{% set x = range(99999) | sum %}" + END,
    "sorted again and again": LONG + "{% set x = range(99999) | sort(reverse=true) | first %}" + END,
    "a namespace that counts": "{% set n = namespace(i=0) %}" + LONG * 2 + "{% set n.i = n.i + 1 %}" + END * 2,
    "a thousand ranges one after the other": (LONG + "{% set x = range(99999)|list %}" + END) * 9,
}

# What takes memory or writes too much: stopped at once.
LARGE = {
    "a text times 10^10": "{{ 'a' * 10**10 }}",
    "a list times 10^9": "{{ [1] * 10**9 }}",
    "a tuple times 10^9": "{{ (1, 2) * 10**9 }}",
    "center method": "{{ 'a'.center(10**10) }}",
    "center filter": "{{ 'a' | center(10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "zfill": "{{ 'a'.zfill(10**10) }}",
    "width of a percent format": "{{ '%10000000000d' % 1 }}",
    "width that is given to a format": "{{ '%*d' % (10**9, 1) }}",
    "width of a brace format": "{{ '{:10000000000}'.format(1) }}",
    "width in a format filter": "{{ '%9999999999s' | format('x') }}",
    "replace by long text": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace filter": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "join by long text": "{{ (('a' * 100000) | list) | join('b' * 100000) }}",
    "doubling by set": "{% set a = 'aa' %}" + "{% set a = a ~ a %}" * 60 + "{{ a }}",
    "doubling in a namespace": "{% set n = namespace(a='a') %}{% for i in range(99) %}{% set n.a = n.a ~ n.a %}"
    "{% endfor %}{{ n.a }}",
    "doubling by nested with": "{% with a='a'*9999, b='b' %}{% with a=a*9999 %}{% with a=a*9999 %}{{ a }}"
    + "{% endwith %}" * 3,
    "batches filled up": "{{ [1] | batch(10**9, 0) | list }}",
    "word wrap": "{{ 'a b c' | wordwrap(1, wrapstring='x' * 10**9) }}",
    "indent": "{{ 'a' | indent(10**10, first=true) }}",
    "tojson indent": "{{ {'a': [1]} | tojson(indent=10**9) }}",
    "tabs": "{{ ('\\t' * 100000).expandtabs(10**6) }}",
    "bytes of a number": "{{ (1).to_bytes(10**10, 'big') }}",
    "comparison while compiling": "{{ 1 if 'a' * 10**9 == 'b' else 2 }}",
    "a filter block": "{% filter upper %}{{ 'a' * 10**9 }}{% endfilter %}",
    "a call block": "{% macro f() %}{{ caller() * 10**9 }}{% endmacro %}{% call f() %}aaaa{% endcall %}",
    "a set block": "{% set x %}{{ 'a' * 10**9 }}{% endset %}{{ x }}",
    "a list of lists": "{{ [range(99999) | list] * 99999 * 9999 }}",
    "forty million characters": "{{ 'a' * 40000000 }}",
}

DEEP = {
    "100,000 nested conditions": "{% if 1 %}" * 100_000 + "{% endif %}" * 100_000,
    "30,000 nested conditions": "{% if 1 %}" * 30_000 + "{% endif %}" * 30_000,
    "150 nested conditions": "{% if 1 %}" * 150 + "{% endif %}" * 150,
    "30 nested loops": "{% for a in [1] %}" * 30 + END * 30,
    "5,000 brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "3,000 lists in lists": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "50,000 minus signs": "{{ " + "-" * 50_000 + "1 }}",
    "20,000 additions": "{{ 1" + "+1" * 20_000 + " }}",
    "20,000 filters": "{{ 'x'" + "|upper" * 20_000 + " }}",
    "10,000 attributes": "{{ 'x'" + ".a" * 10_000 + " }}",
    "a macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a block in itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "a recursive loop": "{% for i in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
}

ODD = {
    "a number of 5,000 digits": "{{ " + "9" * 5000 + " }}",
    "a hexadecimal number of 9,000 digits": "{{ 0x" + "f" * 9000 + " }}",
    "a power of too many digits": "{{ 10 ** 5000 }}",
    "division by zero": "{{ 1 // 0 }}",
    "a range of 10^9": "{{ range(10**9) }}",
    "an unknown filter": "{{ 'x' | permutations }}",
    "an unknown test": "{{ 'x' is permuted }}",
    "a file taken in": "{% include '/etc/passwd' %}",
    "files taken in": "{% include ['a', '/etc/passwd'] ignore missing %}",
    "a file imported": "{% import '/etc/passwd' as p %}{{ p }}",
    "names imported": "{% from '/etc/passwd' import root %}",
    "a file extended": "{% extends '/etc/passwd' %}",
    "a file named by a variable": "{% set f = '/etc/passwd' %}{% include f %}",
    "half a tag": "{{ 'x' ",
    "an unknown tag": "{% import_module os %}",
    "raw without end": "{% raw %}{{ x }}",
    "an unknown code point": "{{ '\\N{no such name}' }}",
    "a call of a text": "{{ 'x'() }}",
}

# Each would run code, read a file, or change what the next template is handed, were it not refused. `X` is a variable.
PICKLE = r"'cos\nsystem\n(S\'touch PWNED\'\ntR.'"
CODE = {
    "parse_raw of a pickle": "X.parse_raw(" + PICKLE + ", content_type='pickle', allow_pickle=True)",
    "parse_raw with proto": "X.parse_raw(" + PICKLE + ", proto='pickle', allow_pickle=True)",
    "parse_file of a pickle": "X.parse_file('evil.pickle', proto='pickle', allow_pickle=True)",
    "from_orm": "X.from_orm(X)",
    "model_construct": "X.model_construct(a=1)",
    "model_json_schema": "X.model_json_schema()",
    "construct by class": "X.__class__.parse_raw('1')",
    "class by filter": "X | attr('__class__')",
    "subclasses": "''.__class__.__base__.__subclasses__()",
    "globals of a method": "X.model_copy.__func__.__globals__",
    "globals of a builtin": "lipsum.__globals__['os'].system('touch PWNED')",
    "globals of a class": "cycler.__init__.__globals__.os.system('touch PWNED')",
    "the template itself": "self._TemplateReference__context.environment",
    "class in a format": "'{0.__class__.__init__.__globals__}'.format(X)",
    "class in format_map": "'{a.__class__}'.format_map({'a': X})",
    "class by map": "[X] | map(attribute='__class__') | first | attr('mro')",
    "private attributes": "X.__pydantic_validator__",
    "clear": "X.clear()",
    "update": "X.update({'id': 1})",
    "setdefault": "X.setdefault('new', 1)",
    "append": "X.append(1)",
}


@pytest.fixture(autouse=True)
def _in_seconds() -> Iterator[None]:
    started, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.monotonic() - started < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < max(1_500_000, peak + 500_000)  # KB


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that runs out soon, so that the many attempts on it are quick."""
    monkeypatch.setattr(apart, "MOST_SECONDS", 0.2)


@pytest.fixture(scope="session")
def tokenizer(random_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(random_model)


def rendered(kind: str, source: str, tokenizer: Any) -> str:
    """The template rendered as a judge prompt or as a chat template. Raises InputError."""
    if kind == "prompt":
        return Template(source, "t.jinja").render()
    tokenizer.chat_template = source
    return Chat(tokenizer, "t.jinja", ends=frozenset({1}), limit=None).render((Message(role="user", content="A"),))


def refused(kind: str, source: str, tokenizer: Any) -> str:
    with pytest.raises(InputError) as error:
        rendered(kind, source, tokenizer)
    told = str(error.value)
    assert SENTENCE.fullmatch(told) and told.startswith("t.jinja:") and " Fix: " in told and len(told) < 500, told
    assert "Traceback" not in told and "jinja2" not in told and "0x7" not in told
    return told


# ---------------------------------------------------------------- time, memory, depth


@pytest.mark.parametrize("name", SLOW)
def test_a_judge_prompt_ends_by_the_clock(name: str, hurried: None, tokenizer: Any) -> None:
    assert re.search(r"takes more than \d+ seconds.*Fix: ", refused("prompt", SLOW[name], tokenizer))


@pytest.mark.parametrize("name", list(SLOW)[1:2])
def test_a_chat_template_ends_by_the_clock(name: str, hurried: None, tokenizer: Any) -> None:
    assert re.search(r"takes more than \d+ seconds.*Fix: ", refused("chat", SLOW[name], tokenizer))


@pytest.mark.parametrize("power", ["10 ** (10 ** 10)", "(9 ** (9 ** 9)) % 2", "2 ** (messages | length * 10 ** 9)"])
def test_pow_in_a_chat_template_ends_within_seconds(power: str, hurried: None, tokenizer: Any) -> None:
    began = time.monotonic()
    assert re.search(r"takes more than|needs more than|digits", refused("chat", "{{ " + power + " }}", tokenizer))
    assert time.monotonic() - began < SECONDS


# Every third one as a chat template too: a process that renders those takes a second to start again.
@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "prompt") for name in LARGE), *((name, "chat") for name in list(LARGE)[1::3])]
)
def test_a_template_takes_no_more_memory_than_it_may(name: str, kind: str, tokenizer: Any) -> None:
    told = refused(kind, LARGE[name], tokenizer)
    assert re.search(r"(needs more than 512 MB of memory|writes more than [0-9,]+ characters).*Fix: ", told), told


@pytest.mark.parametrize("kind", ["prompt", "chat"])
@pytest.mark.parametrize("name", DEEP)
def test_a_template_is_not_nested_without_end(name: str, kind: str, tokenizer: Any) -> None:
    assert re.search(r"nested too deeply|longer than", refused(kind, DEEP[name], tokenizer))


@pytest.mark.parametrize("kind", ["prompt", "chat"])
@pytest.mark.parametrize("name", ODD)
def test_an_odd_template_is_a_sentence(name: str, kind: str, tokenizer: Any) -> None:
    told = refused(kind, ODD[name], tokenizer)
    assert not re.search(r"loader|set_int_max_str_digits|MAX_RANGE|introspection", told), told


def test_one_that_is_costly_again_and_again_is_not_tried_for_ever(hurried: None) -> None:
    template = Apart("prompt", LONG * 2 + "{{ x }}" * 0 + END * 2)
    failed = template.render([{}] * 100)
    assert len(failed) == 100 and all(isinstance(f, TemplateFailure) and f.exceeded for f in failed)


def test_only_the_row_that_costs_too_much_fails(hurried: None) -> None:
    loop = "{% for a in range(n) %}{% for b in range(n) %}{% endfor %}{% endfor %}{{ n }}"
    told = Apart("prompt", loop).render([{"n": 1}, {"n": 99999}, {"n": 2}])
    assert [reply["text"] for reply in (told[0], told[2]) if not isinstance(reply, TemplateFailure)] == ["1", "2"]
    assert isinstance(told[1], TemplateFailure)


# ---------------------------------------------------------------- code

# The stage of each kind of template, and the variables that it must write.
TEMPLATES = {
    "rate": ("rate: {model: judge, rubric: rubric.yaml, template: t.jinja}", "aspect scale prompt completions"),
    "compare": (
        "compare: {model: judge, constitution: c.yaml, template: t.jinja}\n  - pair: {}",
        "principle prompt completions ending",
    ),
    "rank": (
        "rank: {model: judge, constitution: c.yaml, template: t.jinja}\n  - pair: {}",
        "principle prompt completions",
    ),
    "critique": (
        "revise: {model: judge, constitution: c.yaml, critique_template: t.jinja}",
        "principle prompt completion",
    ),
    "revise": (
        "revise: {model: judge, constitution: c.yaml, revision_template: t.jinja}",
        "principle prompt completion critique",
    ),
}
VARIABLES = [(kind, name) for kind, (_, names) in TEMPLATES.items() for name in names.split()]
RUBRIC = """\
name: r
version: 1
scale: {low: 1, high: 5}
aspects:
  - {id: words, description: More words are better., types: {"1": a lie}}
"""
CONSTITUTION = """\
name: c
principles:
  - {id: p, rule: r, critique: c, revision: v, comparison: m}
"""


def write_evil_project(folder: Path, kind: str, code: str, address: str = "http://127.0.0.1:9/v1") -> None:
    stage, variables = TEMPLATES[kind]
    shown = " ".join("{{ " + name + " }}" for name in variables.split())
    (folder / "t.jinja").write_text("{{ " + code + " }} " + shown)
    (folder / "rubric.yaml").write_text(RUBRIC)
    (folder / "c.yaml").write_text(CONSTITUTION)
    (folder / "evil.pickle").write_bytes(b"cos\nsystem\n(S'touch PWNED'\ntR.")
    write_prompts(folder, 2)
    (folder / "p.yaml").write_text(
        f'name: evil\nmodels:\n  judge: {{engine: openai, model: judge, base_url: "{address}"}}\nstages:\n'
        "  - prompts: {path: prompts.jsonl, split: all}\n  - sample: {models: [judge], per_prompt: 2}\n"
        f"  - {stage}\n"
    )


def held(folder: Path, call: Callable[[], tuple[int, str, str]], *made: str) -> str:
    """The call is refused since the template fails, in a sentence, and makes no file but those in `made`."""
    before = sorted(path.name for path in folder.iterdir())
    code, out, told = call()
    assert code == 2 and "Traceback" not in told + out, told
    assert re.search(r"t\.jinja(:1)?: the template cannot be rendered: .* Fix: ", told) and told.count("\n") == 1, told
    after = sorted(path.name for path in folder.iterdir() if path.name not in made)
    assert after == before
    return told


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # with it an old loader would stop before it unpickles
@pytest.mark.parametrize("variable", VARIABLES, ids="-".join)
def test_plan_runs_no_code_of_a_template_by_any_variable(
    variable: tuple[str, str],
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    kind, name = variable
    write_evil_project(tmp_path, kind, CODE["parse_raw of a pickle"].replace("X", name))
    held(tmp_path, lambda: run_cli("plan", "p.yaml"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["rate", "revise"])
@pytest.mark.parametrize("name", CODE)
def test_plan_runs_no_code_of_any_kind(name: str, kind: str, tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    write_evil_project(tmp_path, kind, CODE[name].replace("X", TEMPLATES[kind][1].split()[0]))
    held(tmp_path, lambda: run_cli("plan", "p.yaml"))


@pytest.mark.parametrize("kind", TEMPLATES)
def test_globals_are_refused_with_file_and_fix(kind: str, tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    write_evil_project(tmp_path, kind, "lipsum.__globals__")
    told = held(tmp_path, lambda: run_cli("plan", "p.yaml"))
    assert "an attribute or a method that templates may not reach. Fix: write out the variables" in told, told


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", TEMPLATES)
def test_run_runs_no_code_of_a_template(kind: str, tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    write_evil_project(tmp_path, kind, CODE["parse_raw with proto"].replace("X", TEMPLATES[kind][1].split()[0]))
    held(tmp_path, lambda: run_cli("run", "p.yaml"), "runs", ".rlaif")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("method", ["rate", "compare"])
@pytest.mark.parametrize("command", ["audit", "judge"])
def test_audit_and_judge_run_no_code_of_a_template(
    command: str,
    method: str,
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    write_evil_project(tmp_path, method, CODE["parse_raw of a pickle"].replace("X", TEMPLATES[method][1].split()[0]))
    jsonl(tmp_path / "pairs.jsonl", [{"prompt": "q", "chosen": "a b c", "rejected": "a"}])
    by = "http://127.0.0.1:9/v1"
    named = ["--model", "judge", "--method", method, "template=t.jinja"]
    named.append("rubric=rubric.yaml" if method == "rate" else "constitution=c.yaml")
    arguments = ["audit", by, *named] if command == "audit" else ["judge", "pairs.jsonl", "--by", by, *named]
    held(tmp_path, lambda: run_cli(*arguments), "runs", "audit", ".rlaif")


@pytest.mark.parametrize("kind", TEMPLATES)
def test_plan_ends_a_template_that_never_ends(kind: str, tmp_path: Path, run_cli: Cli, hurried: None) -> None:  # noqa: F811
    write_evil_project(tmp_path, kind, "1 }}" + LONG * 2 + END * 2 + "{{ 1")
    assert "takes more than" in held(tmp_path, lambda: run_cli("plan", "p.yaml"))


# ---------------------------------------------------------------- what a template is handed

PLAIN = {str, int, float, bool, type(None), list, dict}
PRINCIPLE = Principle(id="p", rule="r", critique="c", revision="v", comparison="m")
ASPECT = Aspect(id="a", description="One.", scores={1: "bad"}, types={"1": "a lie"}, na=True, knowledge=True)


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What Jinja is handed by name."""
    seen: list[tuple[str, Any]] = []
    render = jinja2.Template.render

    def noted(self: jinja2.Template, *given: Any, **more: Any) -> str:
        seen.extend(dict(*given, **more).items())
        return render(self, *given, **more)

    monkeypatch.setattr(jinja2.Template, "render", noted)
    return seen


def prompts_of(kind: str) -> set[str]:
    """Make the prompt of one kind by the shipped template; the names that it offers."""
    row, root = REHEARSED, bundled("prompts")
    assert root is not None
    files = {name: Template.read(root / f"prompts/{name}.jinja") for name in TEMPLATES}
    constitution = Constitution(name="c", principles=(PRINCIPLE,))
    reviser = Reviser(constitution, files["critique"], files["revise"])
    draft = row.candidates[0].completion.text
    if kind == "rate":
        rubric = Rubric(name="r", version="1", scale=Scale(low=1, high=5), aspects=(ASPECT,))
        rater = Rater.model_validate({"model": "m", "rubric": "r.yaml"})
        assert rating.rating_prompts(row.prompt, row.candidates, ASPECT, rating.Judge(rubric, files[kind]), rater)
        return rating.OFFERED
    if kind == "compare":
        stage = CompareStage.model_validate({"model": "m", "constitution": "c.yaml"})
        assert comparing.comparison_prompt(row, (0, 1), PRINCIPLE, stage, comparing.Comparer(constitution, files[kind]))
        return comparing.OFFERED
    if kind == "rank":
        stage = RankStage.model_validate({"model": "m", "constitution": "c.yaml"})
        assert ranking.ranking_prompt(
            row, ranking.shown_at(row), PRINCIPLE, stage, comparing.Comparer(constitution, files[kind])
        )
        return ranking.OFFERED
    if kind == "critique":
        assert critique_prompt(row.prompt, draft, PRINCIPLE, reviser)
        return {"principle", "prompt", "completion", "mark", "found_nothing"}
    assert revision_prompt(row.prompt, draft, "a critique", PRINCIPLE, reviser)
    return {"principle", "prompt", "completion", "critique", "mark", "critique_mark"}


def walk(value: Any, path: str) -> int:
    """The number of values reached from this one by the attributes and items that a template may use."""
    assert type(value) in PLAIN, f"{path} is a {type(value)}"
    count = 1
    for name in dir(value):
        if not environments.prompting.is_safe_attribute(value, name, None):
            continue
        reached = getattr(value, name)
        if type(reached) in PLAIN:  # numbers have parts: `real`, `numerator`
            assert type(reached) in (int, float)
            continue
        assert type(reached) is type("".join) and reached.__self__ in (value, type(value), None), f"{path}.{name}"
        assert not hasattr(list, name) or not isinstance(value, list) or name in ("copy", "count", "index"), name
        assert not isinstance(value, dict) or name in ("copy", "fromkeys", "get", "items", "keys", "values"), name
    if isinstance(value, dict):
        return count + sum(walk(key, f"{path} key") + walk(item, f"{path}.{key}") for key, item in value.items())
    return count + sum(walk(item, f"{path}[]") for item in value) if isinstance(value, list) else count


@pytest.mark.parametrize("kind", TEMPLATES)
def test_every_variable_is_plain_data_to_its_last_attribute(kind: str, handed: list[tuple[str, Any]]) -> None:
    offered = prompts_of(kind)
    assert {name for name, _ in handed} == offered
    assert sum(walk(value, name) for name, value in handed) > len(offered)


def test_a_chat_template_is_handed_plain_data(tokenizer: Any, handed: list[tuple[str, Any]]) -> None:
    tokenizer.chat_template = MARKED
    Chat(tokenizer, "t", ends=frozenset({1}), limit=None).render((Message(role="user", content="A"),))
    assert {"messages", "eos_token"} <= {name for name, _ in handed}
    for name, value in handed:
        walk(value, name)


# ---------------------------------------------------------------- chat templates of model folders

FOLDERS: dict[str, tuple[Any, str]] = {
    "a number": (5, "it is a number and no text"),
    "a fraction": (1.5, "it is a number and no text"),
    "true": (True, "it is true or false and no text"),
    "an object": ({"a": 1}, "none of which is named `default`"),
    "a number as default": ({"default": 5}, "it is a number and no text"),
    "named ones without default": ([{"name": "tool", "template": "x"}], "none of which is named `default`"),
    "a named one that is a list": ([{"name": "default", "template": [1]}], "it is a list and no text"),
    "nothing": ("", "no chat template"),
    "only a comment": ("{# nothing #}", "writes nothing"),
    "only spaces": ("  \n {{ ' ' }}", "writes nothing"),
    "nothing of an undefined name": ("{{ nobody }}", "writes nothing"),
    "globals": ("{{ lipsum.__globals__ }}", "writes nothing"),
    "system by globals": ("{{ lipsum.__globals__['os'].system('touch PWNED') }}", "may not reach"),
    "system by a namespace": (
        "{% set n = namespace() %}{{ n.__init__.__globals__['os'].system('touch PWNED') }}",
        "no attribute",
    ),
    "system by strftime": ("{{ strftime_now.__globals__['os'].system('touch PWNED') }}", "may not reach"),
    "system by an exception": ("{{ raise_exception.__globals__['os'].system('touch PWNED') }}", "may not reach"),
    "system by the dictionary": ("{{ dict.__call__.__globals__ ~ dict.fromkeys.__func__ }}", ""),
    "a file": ("{% include 'config.json' %}", "takes in another file"),
    "a loop of 10^10": (LONG * 2 + END * 2, "takes more than"),
    "a list of 10^9": ("{{ [1] * 10**9 }}", "needs more than 512 MB"),
    "nested conditions": ("{% if 1 %}" * 9_000 + "{% endif %}" * 9_000, "nested too deeply"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deeply"),
    "an exception of its own": ("{{ raise_exception('no\n user ' ~ 'x' * 9999) }}", r"no user x{150,200}\.\.\."),
    "a tag that is unknown": ("{% trans %}", "unknown tag"),
    "a type error": ("{{ messages + 1 }}", "TypeError"),
    "a key error": ("{{ {}['a']['b'] }}", "no attribute 'a'"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_an_odd_chat_template_is_refused_with_its_folder(
    name: str, tmp_path: Path, random_model: Path, hurried: None
) -> None:
    template, problem = FOLDERS[name]
    folder = shutil.copytree(random_model, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    before = sorted(os.listdir()), sorted(os.listdir(folder))
    engine = TransformersEngine("odd", str(folder), device="cpu")
    try:
        with pytest.raises(InputError, match=f"(?s){problem}.*Fix: put one into the folder") as error:
            asyncio.run(engine.probe())
    finally:
        asyncio.run(engine.close())
    assert str(error.value).startswith(str(folder)) and SENTENCE.fullmatch(str(error.value))
    assert (sorted(os.listdir()), sorted(os.listdir(folder))) == before


@pytest.mark.parametrize("name", ["a list times 10^9", "a file taken in"])
def test_a_training_refuses_a_template_that_costs_too_much(name: str, tokenizer: Any, hurried: None) -> None:
    tokenizer.chat_template = (LARGE | ODD)[name] + MARKED
    with pytest.raises(InputError, match=r"^sft\.jinja.*chat template cannot be rendered"):
        tokens.trainable_chat(tokenizer, "sft.jinja")


def test_a_template_that_turns_costly_on_a_training_row_is_a_sentence(tokenizer: Any, hurried: None) -> None:
    tokenizer.chat_template = MARKED + "{% if 'slow' in messages[0]['content'] %}" + LONG * 2 + END * 2 + "{% endif %}"
    chat = tokens.trainable_chat(tokenizer, "sft.jinja")
    talk = [Message(role="user", content="slow"), Message(role="assistant", content="ok")]
    with pytest.raises(InputError, match=r"^sft\.jinja.*takes more than"):
        tokens.conversations(chat, [talk])


@pytest.mark.parametrize("method", ["sft", "dpo", "rm"])
def test_a_training_renders_no_costly_template_in_its_own_process(
    method: str, random_model: Path, tmp_path: Path, handed: list[tuple[str, Any]]
) -> None:
    """TRL gets token ids, and renders nothing itself."""
    folder = shutil.copytree(random_model, tmp_path / "model")
    costly = "{% set unknown = 1 %}" + MARKED
    (folder / "chat_template.jinja").write_text(costly)
    record = train(method, folder, tmp_path / "out", template=costly if method == "sft" else None, epochs=0.2)
    assert record.kept and not handed


@pytest.mark.parametrize("method", ["conversations", "last turns", "pairs", "prompts"])
def test_a_training_hands_over_many_conversations_in_one_message(
    method: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.chat_template = "{% set unknown = 1 %}" + MARKED
    chat = tokens.trainable_chat(tokenizer)
    asked, ask = [], apart._Process.ask
    monkeypatch.setattr(apart._Process, "ask", lambda process, *what: asked.append(what[1]) or ask(process, *what))
    asks = [(Message(role="user", content=f"number {n}"),) for n in range(150)]
    talks = [(*prompt, Message(role="assistant", content="ok")) for prompt in asks]
    _, counts = {
        "conversations": lambda: sft.tokenize(chat, map(Demonstration, talks), 500),
        "last turns": lambda: sft.tokenize(chat, (Demonstration(talk, turns="last") for talk in talks), 500),
        "pairs": lambda: pairs.tokenize(chat, (PreferencePair(prompt, "yes", "no") for prompt in asks), 500),
        "prompts": lambda: rollout.tokenize(chat, map(PromptOnly, asks), 500),
    }[method]()
    assert counts.kept == 150 and sum(map(len, asked)) == 150 * (4 if method == "pairs" else 2)
    assert len(asked) <= 8


# ---------------------------------------------------------------- what people legitimately have

# The constructs of published chat templates (Llama 3, Qwen, Mistral, Gemma): all rendered in the other process.
PUBLISHED = {
    "set and slice": "{% set all = messages %}{% for m in all %}{% set content = '<|s|>' + m['role'] + "
    "'\n\n'+ m['content'] | trim + '<|e|>' %}{% if loop.index0 == 0 %}{% set content = '<b>' + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|s|>assistant\n\n' }}{% endif %}",
    "namespace and break": "{%- set ns = namespace(last=0) %}{%- for m in messages %}{% if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{% endif %}{% endfor %}{%- for m in messages[ns.last:] %}{{ m.content }}\n"
    "{% if loop.index > 5 %}{% break %}{% endif %}{%- endfor %}",
    "macro": "{% macro turn(m) -%}[{{ m.role | upper }}] {{ m.content }}{%- endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "tojson and dict": "{% set d = dict(a=messages) %}{{ d | tojson(indent=2) }}{{ '<é>' | tojson }}",
    "marks with set": "{% for m in messages %}{% set c = m.content ~ eos_token %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ c }}{% endgeneration %}{% else %}{{ c }}{% endif %}{% endfor %}",
    "raised": "{% set r = messages[0].role %}{% if r == 'user' %}{{ raise_exception('no ' ~ r) }}{% endif %}",
}
TALK = [("user", "Hé “there” \U0001f600 \ud800"), ("assistant", " yes\n{{ 7 * 7 }}"), ("user", "x" * 3000)]


@pytest.mark.parametrize("opens", [False, True], ids=["closed", "opened"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_other_process_renders_as_transformers_does(name: str, opens: bool, tokenizer: Any) -> None:
    tokenizer.chat_template = PUBLISHED[name]
    messages = [{"role": role, "content": content} for role, content in TALK]
    template = ChatTemplate(tokenizer)
    (told,) = template.render([Conversation(messages, opens)])
    try:
        right = tokenizer.apply_chat_template(messages, add_generation_prompt=opens, tokenize=False)
    except jinja2.TemplateError as error:
        assert isinstance(told, TemplateFailure) and told.message == str(error)
        return
    assert told == right
    wanted: Any = render_jinja_template
    if "generation %" in PUBLISHED[name]:
        texts, spans = wanted(
            [messages], chat_template=template.source, return_assistant_tokens_mask=True, **tokenizer.special_tokens_map
        )
        told = template.marked([Conversation(messages)], lambda *_: pytest.fail("rendered here"))
        assert told == [(texts[0], spans[0])]


def test_a_judge_prompt_is_the_same_in_either_process() -> None:
    source = "{{ x.scores[1] }} {% for a, b in x.scores | dictsort %}{{ a + 1 }}{{ b }}{% endfor %} {{ y }} {{ x.na }}"
    here, there = Template(source, "t"), Template(source + "{% set a = 1 %}", "t")
    values = {"x": ASPECT.model_copy(update={"scores": {10: "ten", 2: "two", 1: "one"}}), "y": ["é\ud800", None, 0.1]}
    assert here.render(**values) == there.render(**values)
    assert here._cost is not None and there._cost is None


def test_all_shipped_templates_are_simple() -> None:
    root = bundled("prompts")
    assert root is not None
    files = sorted((root / "prompts").rglob("*.jinja"))
    assert len(files) >= 14
    for file in files:
        kind = environments.chatting if file.parent.name == "chat" else environments.prompting
        assert bounds.cost(environments.parsed(kind, file.read_text(encoding="utf-8"))) is not None, file.name


@pytest.mark.parametrize(
    ("source", "values"),
    [
        ("{% for m in x %}{{ x }}{% endfor %}", {"x": ["word"] * 3000}),
        ("{% for m in x %}{{ x }}{% endfor %}", {"x": "c" * 5000}),
        ("{{ x }}" * 999, {"x": "c" * 20_000}),
        ("{{ x | join('0123456789abcdef') }}" * 60, {"x": "c" * 20_000}),
        ("{{ " + "+".join("x" * 1 for _ in range(39)) + " }}" * 1, {"x": "c" * 500_000}),
        ("{% for a in x.y %}{{ x.z }}{% endfor %}", {"x": {"y": list("abc" * 900), "z": "c" * 9000}}),
    ],
    ids=["quadratic list", "letters of a text", "many times", "joined letters", "long sum", "a list in a mapping"],
)
def test_a_simple_template_with_much_to_do_is_rendered_apart(
    source: str, values: dict[str, Any], handed: list[tuple[str, Any]]
) -> None:
    template = Template(source, "t.jinja")
    assert template._cost is not None
    assert template._cost.of(values, bounds.size(values)) > bounds.MOST_WORK
    try:
        assert len(template.render(**values)) > 1_000_000
    except InputError as error:
        assert "writes more than" in str(error)
    assert not handed, "it was rendered here"


# What looks as if it only wrote out what it is given.
DISGUISED = {
    "a format as a test": "{{ '%999999999d' is odd }}{{ x }}",
    "a format of what is given": "{{ x ~ '%999999999d' is even }}",
    "a format as a test with a number": "{{ '%999999999d' is divisibleby 3 }}{{ x }}",
    "quotes within quotes": "{{ " + "[" * 17 + "x" + "]~''" * 17 + " }}",
    "lists of the letters of lists": "{{ x" + "|list|string" * 17 + " }}",
    "an empty list, written and listed": "{{ []" + "|string|list" * 17 + " }}{{ x }}",
    "constants that are joined while compiling": "{{ '" + "a" * 60_000 + "' | join('" + "b" * 60_000 + "') }}{{ x }}",
    "the same in a loop": "{% for a in x %}{{ '" + "a" * 60_000 + "' | join('" + "b" * 60_000 + "') }}{% endfor %}",
}


COSTLIEST = "an empty list, written and listed"  # ten seconds, and of the kind of the one before it


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.lab] * (n == COSTLIEST)) for n in DISGUISED])
def test_what_only_looks_simple_is_not_computed_here(name: str, handed: list[tuple[str, Any]]) -> None:
    given = {"x": "\\'\"" * 900}
    for kind in (environments.prompting, environments.chatting):
        cost = bounds.cost(environments.parsed(kind, DISGUISED[name]))
        assert cost is None or cost.of(given, bounds.size(given)) > bounds.MOST_WORK
    with pytest.raises(InputError, match="(needs|writes|takes) more than"):
        Template(DISGUISED[name], "t.jinja").render(**given)
    assert not handed, "it was rendered here"


@pytest.mark.parametrize("source", ["{{ 'a' * 1_100_000 }}{{ x }}", "{{ x }}" * 600], ids=["apart", "here"])
def test_what_is_far_longer_than_what_was_given_is_not_kept(source: str, tokenizer: Any) -> None:
    """Hundreds of renderings are in memory at a time."""
    with pytest.raises(InputError, match=r"writes more than [0-9,]+ characters when it is given"):
        Template(source, "t.jinja").render(x="x" * 2_000)
    tokenizer.chat_template = source.replace("x }}", "messages[0].content }}")
    (told,) = ChatTemplate(tokenizer).render([Conversation([{"role": "user", "content": "x" * 2_000}])])
    assert isinstance(told, TemplateFailure) and "writes more than" in told.message


def test_a_long_template_is_not_parsed() -> None:
    """A parser takes ten seconds for a million characters of braces."""
    with pytest.raises(InputError, match="longer than 200,000 characters"):
        Template("{{x}}" * 50_000, "t.jinja")


# ---------------------------------------------------------------- the process


def processes() -> list[int]:
    return [p._running.pid for p in apart._PROCESSES.values() if p._running is not None]


def test_the_process_has_no_keys_and_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    apart.close()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    with open(tmp_path / "secret", "w") as secret:
        os.set_inheritable(secret.fileno(), True)
        assert Template("{% set a = 1 %}{{ a }}", "t").render() == "1"
        (pid,) = processes()
        assert b"planted" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert not any("secret" in os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd"))
        assert re.search(r"Max file size\s+0\s+0", Path(f"/proc/{pid}/limits").read_text())
        assert os.readlink(f"/proc/{pid}/cwd") == "/"


def test_a_process_that_was_killed_is_started_again() -> None:
    template = Template("{% set a = 1 %}{{ a }}", "t")
    assert template.render() == "1"
    running = apart._PROCESSES["prompt"]._running
    assert running is not None
    os.kill(running.pid, signal.SIGKILL)
    assert template.render() == "1"
    assert running.pid not in processes()


def test_a_process_that_reads_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    apart.close()
    template = Template("{% set a = 1 %}{{ a }}{{ b }}", "t")
    (pid,) = processes()
    monkeypatch.setattr(apart, "MOST_WAIT", 1.0)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(InputError, match="takes more than"):
        template.render(b="b" * 1_000_000)  # more than a pipe holds
    monkeypatch.undo()
    assert template.render(b="b" * 1_000_000) == "1" + "b" * 1_000_000 and processes() != [pid]


def test_a_process_that_writes_nonsense_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a template could do that had taken the process over."""
    for nonsense in (b"\xff\xff\xff\xff", b"\x00\x00\x00\x02[]", b"\x00\x00\x00\x03{{{", b"\x00\x00"):
        command = f"import sys; sys.stdin.buffer.read(4); sys.stdout.buffer.write({nonsense!r})"

        def started(kind: str, command: str = command) -> Any:
            return subprocess.Popen([sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

        apart.close()
        monkeypatch.setattr(apart, "_started", started)
        with pytest.raises(TemplateFailure, match="wrote what is no reply|ended the process that renders it"):
            Apart("prompt", "{{ x }}").open()
        assert apart._PROCESSES["prompt"]._running is None


def test_the_process_leaves_with_the_one_that_started_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from rlaif.templates import Template, apart; Template('{% set a = 1 %}', 't');"
        "print(apart._PROCESSES['prompt']._running.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and Path(f"/proc/{child}/cmdline").exists():
        if not Path(f"/proc/{child}/cmdline").read_bytes():  # a zombie that nobody waits for
            break
        time.sleep(0.05)
    else:
        assert time.monotonic() < deadline, "it stays"


def test_a_module_beside_the_pipeline_is_not_taken_for_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart.close()
    for name in ("jinja2.py", "json.py", "marshal.py", "sitecustomize.py"):
        (tmp_path / name).write_text("open('PWNED', 'w')\n")
    monkeypatch.chdir(tmp_path)
    assert Template("{% set a = 1 %}{{ a }}", "t").render() == "1"
    assert not (tmp_path / "PWNED").exists()
