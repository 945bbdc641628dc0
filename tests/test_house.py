"""The repository keeps its promises: what importing costs, what a wheel holds, what the documents name.

Knows the repository's files and commands, and nothing of what the package computes.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rlaif
from rlaif.config.stages import STAGES as SETTINGS
from rlaif.pipeline.stages import STAGES
from rlaif.resources import CONTENT

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
SLOW_OR_OPTIONAL = {"torch", "transformers", "trl", "vllm", "openai", "datasets"}
OF_OUR_OWN = {"rlaif.config", "rlaif.measures", "rlaif.engines", "rlaif.formats"}  # which load pydantic and numpy


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """The finished command; a failure shows what it printed."""
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done


def repository_files() -> list[Path]:
    """What git has or would add."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def shipped(folder: str, pattern: str = "*") -> list[Path]:
    return sorted(path for path in repository_files() if path.is_relative_to(ROOT / folder) and path.match(pattern))


# ---------------------------------------------------------------- importing


def loaded(*arguments: str | Path, **environment: str) -> set[str]:
    """The packages and modules that a fresh interpreter loads to run `arguments`."""
    log = run(sys.executable, "-X", "importtime", *arguments, **environment).stderr
    return {line.rpartition("|")[2].strip() for line in log.splitlines() if "import time:" in line}


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["-c", "import rlaif"], id="import"),
        pytest.param(["-m", "rlaif.cli", "--help"], id="module"),
        pytest.param([Path(sys.executable).with_name("rlaif"), "--help"], id="command"),
        pytest.param([Path(sys.executable).with_name("rlaif"), "run", "--help"], id="run-help"),
    ],
)
def test_importing_and_help_load_no_slow_library(arguments: list[str | Path]) -> None:
    packages = loaded(*arguments)
    assert "rlaif" in packages
    assert packages & (SLOW_OR_OPTIONAL | OF_OUR_OWN) == set()


def test_a_slow_import_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "torch.py").touch()
    assert "torch" in loaded("-c", "import rlaif\ndef late():\n    import torch\nlate()", PYTHONPATH=str(tmp_path))


def test_the_public_list_is_what_can_be_imported() -> None:
    count = run(
        sys.executable,
        "-c",
        "import ast, rlaif, sys, types\n"
        "froms = [node for node in ast.parse(open(rlaif.__file__).read()).body if isinstance(node, ast.ImportFrom)]\n"
        "borrowed = [n for n in froms if n.module.partition('.')[0] in sys.stdlib_module_names]\n"
        "others = {'TYPE_CHECKING', *(alias.asname or alias.name for node in borrowed for alias in node.names)}\n"
        "found = {n for n, v in vars(rlaif).items() if not n.startswith('_') and not isinstance(v, types.ModuleType)}\n"
        "listed = [n for n in rlaif.__all__ if getattr(rlaif, n) is not None]\n"
        "assert found - others <= set(listed), f'not in __all__: {sorted(found - others - set(listed))}'\n"
        "assert listed == sorted(set(listed)), '__all__ is not sorted, or names something twice'\n"
        "print(len(listed))",
    )
    assert int(count.stdout) == len(rlaif.__all__) > 0


def test_every_imported_distribution_is_a_declared_dependency() -> None:
    declared = {canonicalize_name(Requirement(line).name) for line in dependencies("train", "schema", "verify", "vllm")}
    distributions = packages_distributions()
    imported: dict[str, Path] = {}
    for path in shipped("rlaif", "*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0]: path for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported[node.module.partition(".")[0]] = path
    third_party = {name: path for name, path in imported.items() if name not in {*sys.stdlib_module_names, "rlaif"}}
    assert len(third_party) >= 8
    for name, path in third_party.items():
        owners = {canonicalize_name(owner) for owner in distributions.get(name, [name])}
        assert owners & declared, f"{path.relative_to(ROOT)} imports {name}, which pyproject.toml does not declare"


# ---------------------------------------------------------------- dependencies


def dependencies(*extras: str) -> list[str]:
    project = PYPROJECT["project"]
    return [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]


def test_every_dependency_has_a_floor_and_a_cap() -> None:
    lines = dependencies(*PYPROJECT["project"]["optional-dependencies"])
    assert len(lines) > 15
    for line in lines:
        assert {s.operator for s in Requirement(line).specifier} == {">=", "<"}, line


def test_the_lock_pins_every_direct_dependency_but_torch_inside_its_range() -> None:
    pins = dict(
        re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    )
    (torch,) = re.findall(r"^TORCH := torch==(\S+)$", MAKEFILE, re.MULTILINE)
    assert "torch" not in pins
    for line in dependencies("train", "schema", "verify", "dev"):
        requirement = Requirement(line)
        pin = (pins | {"torch": torch}).get(canonicalize_name(requirement.name))
        assert pin is not None and pin in requirement.specifier, f"{line}: the lock has {pin}; run make lock"
    assert PYPROJECT["tool"]["uv"]["constraint-dependencies"] == [f"torch=={torch}"]
    assert [entry["version"] for entry in PYPROJECT["tool"]["uv"]["dependency-metadata"]] == [torch]


LOCKS = ("requirements.lock", "requirements-vllm.lock")
PIN = re.compile(r"[a-z0-9][a-z0-9.-]*(?:\[[a-z0-9,-]+\])?==[\w.+!]+(?: ; [^\\]+)?")  # no path, address or branch


def unpinned(lock: str) -> list[str]:
    """The entries of a lock that are no exact version of a package on the index with the digests of its files."""
    entries = re.sub(r"^ *#.*\n", "", lock, flags=re.MULTILINE).replace("\\\n", "\\").splitlines()
    parts = [[part.strip() for part in entry.split("\\")] for entry in entries if entry.strip()]
    digest = re.compile(r"--hash=sha256:[0-9a-f]{64}")
    return [
        pin
        for pin, *digests in parts
        if not PIN.fullmatch(pin) or not digests or not all(map(digest.fullmatch, digests))
    ]


@pytest.mark.parametrize("name", LOCKS)
def test_everything_that_is_installed_is_locked_by_its_digest(name: str) -> None:
    lock = (ROOT / name).read_text(encoding="utf-8")
    assert lock.count("==") > 80 and unpinned(lock) == []


@pytest.mark.parametrize(
    "entry",
    [
        "a==1.0",
        "a==1.0 \\\n    --hash=md5:00",
        "a>=1.0 \\\n    --hash=sha256:" + "0" * 64,
        "a @ https://example.org/a.whl \\\n    --hash=sha256:" + "0" * 64,
        "git+https://example.org/a.git",
        "-r others.txt",
        "-e ./a",
    ],
)
def test_a_package_without_its_digest_would_be_seen(entry: str) -> None:
    assert len(unpinned(entry + "\n")) == 1


# ---------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)  # the wheel is built from the sdist
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_the_content_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not re.match(r"rlaif_kit-[\d.]+\.dist-info/", name)}
        (licence,) = [name for name in archive.namelist() if name.endswith("/LICENSE")]
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    package = {path.relative_to(ROOT).as_posix() for path in shipped("rlaif")}
    content = {path.relative_to(ROOT) for folder in CONTENT for path in shipped(folder)}
    assert "rlaif/py.typed" in package
    assert any(re.fullmatch(r"rlaif/tiny/.+\.safetensors", name) for name in package), "no weights under rlaif/tiny"
    assert {path.parts[0] for path in content} >= {"prompts", "pipelines"}
    assert held == package | {f"rlaif/bundled/{path.as_posix()}" for path in content}


def test_bundled_files_are_found_in_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    wanted = [path.relative_to(ROOT).as_posix() for folder in CONTENT for path in shipped(folder)]
    assert len(wanted) >= 4
    code = "import sys; from rlaif.resources import find; [print(find(path).resolve()) for path in sys.argv[1:]]"
    done = run(sys.executable, "-c", code, *wanted, cwd=elsewhere, PYTHONPATH=str(site))
    assert done.stdout.splitlines() == [str((site / "rlaif" / "bundled" / path).resolve()) for path in wanted]


# ---------------------------------------------------------------- how the package is built


def modules(under: str = "rlaif/") -> dict[str, str]:
    """The text of each module in a folder, by its path."""
    found = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in shipped("rlaif", "*.py")}
    return {name: text for name, text in found.items() if name.startswith(under)}


CONTEXT = re.compile(r"\bcontextvars\b|\bContextVar\b|\bcopy_context\b")


def test_no_module_uses_context_variables() -> None:
    """What a call is for travels in the `Ask`: it can be read, and taken to another process."""
    swept = modules()
    assert len(swept) >= 110
    assert [name for name, text in swept.items() if CONTEXT.search(text)] == []


@pytest.mark.parametrize("line", ["import contextvars", "from contextvars import ContextVar", "STAGE: ContextVar[str]"])
def test_a_context_variable_would_be_seen(line: str) -> None:
    assert CONTEXT.search(f"import asyncio\n{line}\n")


MOST_KIND_TESTS = 8
MOST_ROW_OR_TABLE_TESTS = 1  # whether a stage takes rows one by one or a table: how it is run, not what it is
KINDS = {*STAGES, *SETTINGS}
CLASSES = {*(of.__name__ for of in (*STAGES.values(), *SETTINGS.values())), "JudgingStage"}
OTHER_WORDS = {"action", "key"}  # what is compared under these names is a command or a key, called like a kind


def kind_tests(text: str) -> tuple[list[str], list[str]]:
    """Where a module asks of which kind a stage is, and where it asks whether one takes rows or a table.

    The first are `isinstance` of a class of stages or of their settings, or of `x.stage`; comparisons with a kind's
    name, or of a stage's `.kind`; and `case` of any of these. A look-up of a name in the list of all kinds is none.
    """
    kinds, forms = [], []
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Call(func=ast.Name("isinstance"), args=[what, of]):
                named = names_in(of)
                is_kind = bool(named & CLASSES) or ast.unparse(what).endswith(".stage")
                if not is_kind and named & {"RowStage", "TableStage"}:
                    forms.append(f"{node.lineno}: {ast.unparse(node)}")
            case ast.MatchClass(cls=of):
                is_kind = bool(names_in(of) & CLASSES)
            case ast.MatchValue(value=word):
                is_kind = bool(words_in(word) & KINDS)
            case ast.Compare(
                left=left, ops=[ast.Eq() | ast.NotEq() | ast.In() | ast.NotIn() as how], comparators=[right]
            ):
                sides = {ast.unparse(left), ast.unparse(right)}
                words = words_in(right) | (words_in(left) if isinstance(how, ast.Eq | ast.NotEq) else set())
                of_stage = any(side.endswith(".kind") and "stage" in side for side in sides)
                is_kind = of_stage or (bool(words & KINDS) and not sides & OTHER_WORDS)
            case _:
                continue
        if is_kind:
            kinds.append(f"{node.lineno}: {ast.unparse(node)}")
    return kinds, forms


def names_in(node: ast.expr) -> set[str]:
    """The classes that an expression names, without the modules they are taken from."""
    found = (part for part in ast.walk(node) if isinstance(part, ast.Name | ast.Attribute))
    return {part.id if isinstance(part, ast.Name) else part.attr for part in found}


def words_in(node: ast.expr) -> set[object]:
    """What an expression is, or lists, word for word."""
    listed = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return {one.value for one in listed if isinstance(one, ast.Constant)}


def test_few_places_ask_of_which_kind_a_stage_is() -> None:
    """A new kind of stage is one file and a line: whatever else asks for kinds would have to be found and changed."""
    swept = {name: text for name, text in modules().items() if not name.startswith("rlaif/pipeline/stages/")}
    assert len(swept) >= 95 and len(KINDS) >= 14
    found = {name: kind_tests(text) for name, text in swept.items()}
    kinds, forms = ([f"{name}:{hit}" for name, hits in found.items() for hit in hits[i]] for i in (0, 1))
    assert len(kinds) <= MOST_KIND_TESTS, "\n".join(kinds)
    assert len(forms) <= MOST_ROW_OR_TABLE_TESTS, "\n".join(forms)


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(step.stage, whatever)",
        "isinstance(stage, SampleStage | config.PairStage)",
        "isinstance(\n    stage,\n    (Train, Measuring),\n)",
        "stage.settings.kind == other",
        "step.stage.kind not in reads",
        "kind in ('rate', 'compare')",
        "'elo' != name",
        "match stage:\n    case PairStage(): pass",
        "match kind:\n    case 'pair' | None: pass",
    ],
)
def test_a_test_of_a_kind_would_be_seen(code: str) -> None:
    assert len(kind_tests(code)[0]) == 1


@pytest.mark.parametrize(
    "code",
    [
        "'score' in cell.lower()",
        "model['unparsed'] < whole['prompts']",
        "isinstance(stage, RowStage)",
        "question.kind == 'harmful'",
        "kind in STAGES",
        "action == 'verify'",
        "f('rank') == x",
    ],
)
def test_what_is_no_test_of_a_kind_is_not_taken_for_one(code: str) -> None:
    assert kind_tests(code)[0] == []


def functions_of(text: str) -> Iterator[tuple[str, int, int]]:
    """Each function of a module: its name, its lines, and what it takes apart from `self` and `cls`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            taken = [one.arg for one in named if one is not None and one.arg not in ("self", "cls")]
            yield node.name, lines_of(node), len(taken)


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def classes_of(text: str) -> Iterator[tuple[str, int]]:
    return ((node.name, lines_of(node)) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef))


MOST_LINES, MOST_LINES_OF_A_CLASS, MOST_LINES_OF_A_FUNCTION, MOST_PARAMETERS = 350, 250, 60, 8
MOST_OPTIONS = 12  # of a command, which takes one for each


def test_the_parts_of_a_pipeline_are_small() -> None:
    files = {name: text for name, text in modules("rlaif/pipeline/").items() if name.count("/") == 2}
    lines = {name: text.count("\n") for name, text in files.items()}
    assert len(lines) >= 15 and {name: n for name, n in lines.items() if n > MOST_LINES} == {}
    found = [(name, *one) for name, text in modules("rlaif/pipeline/").items() for one in classes_of(text)]
    assert len(found) >= 50 and [one for one in found if one[2] > MOST_LINES_OF_A_CLASS] == []


def test_functions_are_short_and_take_few_things() -> None:
    swept = {name: text for name, text in modules().items() if not name.startswith("rlaif/tiny/build/")}
    found = [(name, *one) for name, text in swept.items() for one in functions_of(text)]
    assert len(found) >= 1200
    most = {name: MOST_OPTIONS if name.startswith("rlaif/cli/") else MOST_PARAMETERS for name in swept}
    assert [one for one in found if one[2] > MOST_LINES_OF_A_FUNCTION or one[3] > most[one[0]]] == []


def test_a_large_function_or_class_would_be_seen() -> None:
    body = "        pass\n" * 60
    text = f"class A:\n    async def f(self, a, /, b, *c, d, **e):\n{body}"
    assert list(classes_of(text)) == [("A", 62)] and list(functions_of(text)) == [("f", 61, 5)]
    assert list(functions_of("@property\ndef g(cls):\n    return 1\n")) == [("g", 2, 0)]


# ---------------------------------------------------------------- what the documents and files say


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):.*?## ", MAKEFILE, re.MULTILINE))


def commands(document: Path) -> list[str]:
    """The lines of a document's shell blocks, without prompts and comments."""
    blocks = re.findall(
        r"^```(?:console|bash|sh)\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    lines = [line.removeprefix("$ ").partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_the_readme_starts_with_commands_that_the_makefile_has() -> None:
    found = [command for command in commands(ROOT / "README.md") if command.startswith("make ")]
    assert found, "the README shows no make command"
    assert "make quickstart" in found
    assert ".venv/bin/rlaif run pipelines/quickstart.yaml" in MAKEFILE.replace("$(BIN)", ".venv/bin")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_make_command_in_a_document_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    named = {*re.findall(r"`make ([a-z]+)", text), *re.findall(r"^(?:\$ )?make ([a-z]+)", text, re.MULTILINE)}
    assert named
    assert named <= make_targets()


def test_ci_runs_what_a_developer_runs() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("make ")] == ["make check", "make test"]


def test_the_first_line_of_every_shipped_pipeline_runs_it() -> None:
    pipelines = [path for path in shipped("pipelines", "*.yaml") if path.parent.name != "accelerate"]
    assert len(pipelines) >= 2
    for path in pipelines:
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# rlaif run {path.relative_to(ROOT).as_posix()}\n"), path
        assert yaml.safe_load(text)["stages"], path


# Written so that this file does not match itself.
MACHINE = re.compile(
    r"(?<![\w.~-])/(?:work|root|home|opt|Users)/\w"  # a folder of somebody's machine
    r"|pyp[i]\.org|pythonhoste[d]\.org|debia[n]\.org|npmj[s]\.org"  # a registry's host
    r"|--(?:extra-)?inde[x]-url|--find-link[s]|\b(?:PIP|UV)_(?:EXTRA_)?(?:INDEX|FIND)"  # the way to one
)


def test_no_file_names_a_machine_or_a_package_host() -> None:
    swept = 0
    for path in repository_files():
        data = path.read_bytes()
        if b"\0" in data or path.parent.parent.name == "seeds":
            continue  # weights, and what fuzzers found
        swept += 1
        text = data.decode("utf-8")
        for hit in MACHINE.finditer(text):
            line = text.count("\n", 0, hit.start()) + 1
            pytest.fail(f"{path.relative_to(ROOT)}:{line} names {hit.group()!r}")
    assert swept >= 50


@pytest.mark.parametrize(
    "words", ["see /hom" + "e/me/data", "files.pythonhoste" + "d.org/x", "pip install --inde" + "x-url=x"]
)
def test_a_machine_or_a_package_host_would_be_seen(words: str) -> None:
    assert MACHINE.search(words)


def test_security_names_tests_that_are_there() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w./]+\.py)::(\w+)`", text)
    assert len(named) >= 30
    for file, test in named:
        source = (ROOT / "tests" / "hostile" / file).resolve().read_text(encoding="utf-8")
        assert re.search(rf"^def {test}\(", source, re.MULTILINE), f"{file} has no {test}"
