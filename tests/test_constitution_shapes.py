"""The published shapes of constitutions: what is read of them, and that an export has the bytes of the original.

Also the file that an import writes, and the JSON schema that editors check it with.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import madison
import pytest
import yaml

from rlaif.config import ReviseStage
from rlaif.constitution import Constitution, read_constitution
from rlaif.constitution.lint import lint
from rlaif.constitution.schema import schema
from rlaif.constitution.shapes import (
    COMPARISON_SHOTS,
    COMPARISONS,
    CRITIQUES,
    FEW_SHOTS,
    PRECOG,
    SWARM,
    export_constitution,
    import_constitution,
)
from rlaif.constitution.writing import as_yaml, export_to, import_to
from rlaif.errors import InputError
from rlaif.pipeline.stages.revise import open_reviser
from rlaif.records import Message

FILES = {
    CRITIQUES: madison.critiques_file(),
    COMPARISONS: madison.comparisons_file(),
    FEW_SHOTS: madison.few_shots_file(),
    COMPARISON_SHOTS: madison.comparison_few_shots_file(),
    PRECOG: madison.precog_file(),
}


def imported(folder: Path, **files: str) -> Constitution:
    """Read from the YAML that the import wrote."""
    out = folder / "made.yaml"
    out.unlink(missing_ok=True)
    import_to(madison.written(folder, **files), out)
    return read_constitution(str(out))


def named(files: dict[str, str]) -> dict[str, str]:
    """Under other names: the kind of a file is told by its content."""
    return {f"f{number}": text for number, text in enumerate(files.values())}


def test_an_export_of_an_import_has_the_bytes_of_the_original(tmp_path: Path) -> None:
    found = imported(tmp_path, **dict(reversed(named(FILES).items())))
    assert export_constitution(found, "anthropic").files == FILES
    swarm = imported(tmp_path, swarm=madison.swarm_file())
    assert export_constitution(swarm, "llm-swarm").files == {SWARM: madison.swarm_file()}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("indent", [None, 1, 2, "\t"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_however_its_json_is_set(tmp_path: Path, name: str, indent: int | str | None, ascii_only: bool) -> None:
    files = {CRITIQUES: FILES[CRITIQUES], name: FILES[name]}
    files[name] = json.dumps(json.loads(FILES[name]), indent=indent, ensure_ascii=ascii_only)
    assert export_constitution(imported(tmp_path, **named(files)), "anthropic").files == files


def test_json_that_is_set_by_hand_keeps_its_values_and_that_is_said(tmp_path: Path) -> None:
    by_hand = FILES[CRITIQUES].replace('": {\n', '":   {\n', 1)
    read = import_constitution(madison.written(tmp_path, a=by_hand), "c")
    assert "set by hand" in read.notes[0]
    assert json.loads(export_constitution(read.constitution, "anthropic").files[CRITIQUES]) == json.loads(by_hand)


def test_what_reaches_a_model_has_no_cues_and_the_principles_stand_by_themselves(tmp_path: Path) -> None:
    found = imported(tmp_path, **named(FILES))
    critiques, comparisons = found.having("critique"), found.having("comparison")
    assert [p.id for p in critiques] == [f"harmful{n}" for n in range(16)]
    assert [p.id for p in comparisons] == ["comparison0", "comparison1", "comparison2"]
    assert not any(p.rule for p in found.principles) and not set(critiques) & set(comparisons)
    assert tuple(p.critique for p in critiques) == madison.CRITIQUES
    assert tuple(p.revision for p in critiques) == madison.REVISIONS
    assert tuple(p.comparison for p in comparisons) == madison.COMPARISONS
    chat = found.before("critique")
    assert chat == found.before("revision") and len(chat) == 18
    assert [m.role for m in chat] == ["user", "assistant"] * 9
    assert chat[3] == Message(role="assistant", content="It helps with a burglary.\nThat is a crime.")
    assert not any("Request" in m.content or "Human" in m.content for m in chat)
    assert found.before("comparison")[1].content == "(B)"
    swarm = imported(tmp_path, swarm=madison.swarm_file())
    assert swarm.principles[3].critique == "Is there { a brace }?"
    assert swarm.before("critique")[5] == Message(role="assistant", content="Call a locksmith.\n")


def test_the_import_has_only_the_findings_that_it_should(tmp_path: Path) -> None:
    """Two of the sixteen ask for the same thing, and the few-shots of comparisons answer with letters."""
    imported(tmp_path, **named(FILES))
    findings = lint(str(tmp_path / "made.yaml")).findings
    assert [one.kind for one in findings] == ["duplicate", "answer", "answer", "answer"]
    assert "'harmful1'" in findings[0].message


def test_stage_one_opens_on_an_import_without_comparisons(tmp_path: Path) -> None:
    imported(tmp_path, a=FILES[CRITIQUES])
    reviser = open_reviser(ReviseStage(model="m", constitution=str(tmp_path / "made.yaml")))
    assert reviser.constitution.draw("revise", "p", request="critique").id.startswith("harmful")


def test_the_written_file_is_readable_and_says_where_it_came_from(tmp_path: Path) -> None:
    imported(tmp_path, critiques=FILES[CRITIQUES], shots=FILES[FEW_SHOTS], precog=FILES[PRECOG])
    text = (tmp_path / "made.yaml").read_text()
    assert text.startswith(
        "# Imported by `rlaif constitution import` from critiques.json (critiques and revisions: 16)"
    )
    assert "    critique: >-\n      Identify specific ways" in text and "revision: *examples" in text
    assert text.count("That is a crime.") == 3  # each transcript once, for critiques and for revisions
    assert "\n\n{}\nOptions:" not in text and "          {}\n          Options:\n" in text  # lines are lines
    assert max(map(len, text.splitlines())) <= 120
    with pytest.raises(InputError, match=r"made\.yaml is there already"):
        import_to([str(tmp_path / "critiques.json")], tmp_path / "made.yaml")


def test_an_edited_import_exports_with_the_cues_of_the_others(tmp_path: Path) -> None:
    imported(tmp_path, a=FILES[CRITIQUES], b=FILES[COMPARISONS], c=FILES[FEW_SHOTS])
    path = tmp_path / "made.yaml"
    path.write_text(path.read_text().replace("id: harmful2", "id: children").replace(madison.COMPARISONS[1], "Be it."))
    files = export_constitution(read_constitution(str(path)), "anthropic").files
    table = json.loads(files[CRITIQUES])
    assert list(table)[2] == "children" and table["children"] == json.loads(FILES[CRITIQUES])["harmful2"]
    assert json.loads(files[COMPARISONS])[1] == "Be it.\n\nOptions:"
    path.write_text(path.read_text().replace("- id: harmful1\n", "- id: other\n"))
    with pytest.raises(InputError, match=r"made\.yaml:\d+: `origin\.odd\.harmful1`: no principle has this id"):
        read_constitution(str(path))


def test_what_no_import_made_exports_with_the_published_cues_and_says_what_is_left_out(tmp_path: Path) -> None:
    text = (
        "name: c\npreamble: Be careful.\nexamples:\n  revision:\n    - [{role: user, content: a}, "
        "{role: assistant, content: b}, {role: user, content: c}, {role: assistant, content: d}]\n"
        "principles:\n  - {id: tone, rule: Be kind., critique: Is it rude, weight: 2}\n"
    )
    (tmp_path / "c.yaml").write_text(text)
    written, left_out = export_to(str(tmp_path / "c.yaml"), "anthropic", tmp_path / "out")
    assert [path.name for path in written] == [CRITIQUES, COMPARISONS, FEW_SHOTS]
    (tone,) = json.loads(written[0].read_text()).values()
    assert tone["prompt"] == ["\n\nCritiqueRequest: Is it rude\n\nCritique:"]
    shots = json.loads(written[2].read_text())
    assert shots == ["\n\nHuman: a\n\nAssistant: b\n\nCritique Request: c\n\nCritique: d"]
    assert [what.split()[1] for what in left_out] == ["preamble", "weights", "examples"]
    (swarm,), left_out = export_to(str(tmp_path / "c.yaml"), "llm-swarm", tmp_path / "swarm.json")
    assert (
        swarm == tmp_path / "swarm.json" and json.loads(swarm.read_text())["constitutions"][0]["critic"] == "Is it rude"
    )
    assert left_out[0] == "the comparisons"
    for shape, out, message in (
        ("antropic", "x", "there is no format 'antropic'. Fix: did you mean `anthropic`"),
        ("anthropic", "x.json", "is one file, and there are 3. Fix: name a folder"),
        ("llm-swarm", "swarm.json", "is there already"),
    ):
        with pytest.raises(InputError, match=message):
            export_to(str(tmp_path / "c.yaml"), shape, tmp_path / out)
    with pytest.raises(InputError, match="nothing in it that this shape holds"):
        (tmp_path / "d.yaml").write_text("name: d\nprinciples:\n  - {id: a, comparison: Prefer it.}\n")
        export_to(str(tmp_path / "d.yaml"), "llm-swarm", tmp_path / "y.json")


ODD = [
    "a  b " * 20 + "c", "\ttab: #1 " * 9, "trailing \n\n lines\n  indented", "Don't: {x} [y] *z &w !v % | > @ `q`",
    "- a list\n- of two", "é 模型 😀 \u2028 \x85 \x07", "'quoted' \"twice\"", "yes", "1e3", "# no comment", "x" * 500,
]  # fmt: skip


def test_odd_text_arrives_as_it_was(tmp_path: Path) -> None:
    """Braces, marks of YAML, line ends and scripts, in requests and in examples."""
    pairs = [{"critic": text, "revision": f" {text}\n"} for text in ODD]
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": text}] for text in ODD]
    text = json.dumps({"constitutions": pairs, "system_chat": chats})
    found = imported(tmp_path, swarm=text)
    assert [message.content for message in found.before("critique")[::2]] == ODD
    assert [principle.critique for principle in found.principles] == [text.strip() for text in ODD]
    assert export_constitution(found, "llm-swarm").files == {SWARM: text}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"a\.json:1: not valid JSON"),
        ("[]", "none of the shapes"),
        ('{"a": {"prompt": ["x"]}}', "expected an object of prompt, edit_request, found prompt"),
        ('{"a": {"prompt": ["x", "y"], "edit_request": "z"}}', "expected a list of one text under `prompt`"),
        ('{"a": {"prompt": ["x"], "edit_request": 1}}', "expected text for the revision of 'a', found 1"),
        ('{"a": {"prompt": ["Critique:"], "edit_request": "z"}}', "the critique of 'a' is empty"),
        ('{"a b": {"prompt": ["x"], "edit_request": "z"}}', "the key 'a b' can be no id"),
        ('{"a": {"prompt": ["x"], "edit_request": "z"}, "a": {}}', "the key 'a' is there twice"),
        ('["\\n\\nHuman: a\\n\\nHuman: b"]', "transcript 1 does not alternate"),
        ('["\\n\\nHuman: a\\n\\nAssistant: b"]', "only examples here"),
        ('[{"prompt": "no turns"}]', "prompt 1 is no turn"),
        ('{"constitutions": [], "system_chat": []}', "only examples here"),
        ('{"constitutions": [{"critic": "x", "revision": "y"}], "system_chat": [[{"role": "user", "content": "z"}]]}',
         "chat 1 of `system_chat` is no turns"),
        ('{"constitutions": [{"critic": "\\ud800", "revision": "y"}], "system_chat": []}', "half a character"),
    ],
)  # fmt: skip
def test_a_file_of_another_shape_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        import_constitution(madison.written(tmp_path, a=text), "c")


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    paths = madison.written(tmp_path, a=FILES[CRITIQUES], b=FILES[CRITIQUES], c=madison.swarm_file())
    with pytest.raises(InputError, match=r"b\.json: it is of the same kind as .*a\.json"):
        import_constitution(paths[:2], "c")
    with pytest.raises(InputError, match="llm-swarm's shape is one file"):
        import_constitution(paths[1:], "c")


def test_the_commands_go_there_and_back(tmp_path: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rlaif.cli", "constitution", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    paths = madison.written(tmp_path, **{name.removesuffix(".json"): text for name, text in FILES.items()})
    done = run("import", *paths, "--out", tmp_path / "cai.yaml")
    assert done.returncode == 0 and f"now: rlaif constitution lint {tmp_path / 'cai.yaml'}" in done.stdout, done.stderr
    done = run("export", tmp_path / "cai.yaml", "--format", "anthropic", "--out", tmp_path / "back")
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "back").iterdir()} == FILES
    assert json.loads(run("schema").stdout) == schema()


# ---------------------------------------------------------------- the schema for editors


VALID = jsonschema.Draft202012Validator(schema())


@pytest.mark.parametrize("path", sorted(Path("constitutions").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_schema_takes_what_ships(path: Path) -> None:
    VALID.validate(yaml.safe_load(path.read_text()))


def test_the_schema_takes_an_import(tmp_path: Path) -> None:
    imported(tmp_path, **named(FILES))
    VALID.validate(yaml.safe_load((tmp_path / "made.yaml").read_text()))


@pytest.mark.parametrize(
    "principle",
    [
        "- tone: Be kind.", "- {id: a, rule: Be kind.}", "- {id: a, rule: Be kind., critique: Is it so, was: b}",
        "- {id: a, critique: Is it so, revision: Make it so.}", "- {id: a, comparison: The kinder one.}",
        "- {id: a}", "- rule: Be kind.", "- {id: a, critique: Is it so}", "- {id: a, revision: Do., comparison: x}",
        "- tone: yes", "- {tone: Be kind., other: Be short.}", "- {id: a, rule: Be kind., weight: 0}",
        "- {id: a b, rule: Be kind.}", "- {id: a, rule: Be kind., critic: Is it so}", "- a b: Be kind.", "- Be kind.",
    ],
)  # fmt: skip
def test_the_schema_and_the_reader_agree_on_what_a_principle_is(tmp_path: Path, principle: str) -> None:
    text = f"name: c\nprinciples:\n  {principle}\n"
    (tmp_path / "c.yaml").write_text(text)
    try:
        read_constitution(str(tmp_path / "c.yaml"))
        reads = True
    except InputError:
        reads = False
    assert VALID.is_valid(yaml.safe_load(text)) == reads


@pytest.mark.parametrize(
    ("line", "valid"),
    [
        ("requests: {critique: 'Is it so: {rule}'}", True), ("requests: {critique: Is it so}", False),
        ("version: 1", False), ("preamble: You are careful.", True), ("examples: {critique: [[]]}", True),
        ("examples: {critic: []}", False),
    ],
)  # fmt: skip
def test_the_schema_knows_the_other_keys(line: str, valid: bool) -> None:
    value: Any = yaml.safe_load(f"name: c\nprinciples: [{{tone: Be kind.}}]\n{line}\n")
    assert VALID.is_valid(value) == valid


def test_every_key_of_the_schema_is_described() -> None:
    made = schema()
    written = made["$defs"]["Principle"]["anyOf"][0]["properties"]
    assert all(value["description"] for value in (*made["properties"].values(), *written.values()))


def test_words_of_a_turn_that_look_like_a_cue_stay_in_it(tmp_path: Path) -> None:
    shot = "\n\nHuman: a\n\nAssistant: b\nRevision: c\n\nHuman: d\nHuman: e\n\nAssistant: f"
    files = {CRITIQUES: FILES[CRITIQUES], FEW_SHOTS: json.dumps([shot])}
    found = imported(tmp_path, **named(files))
    assert [message.content for message in found.before("critique")] == ["a", "b\nRevision: c", "d\nHuman: e", "f"]
    assert export_constitution(found, "anthropic").files == files


@pytest.mark.parametrize(
    "shot", [" " * 400_000 + "x", "\n" * 400_000 + "Human: x", "Human:\n" * 60_000, "Human: a\n\nAssistant: b" * 20_000]
)
def test_no_text_takes_long(tmp_path: Path, shot: str) -> None:
    """A second each would be a thousand times what any of them takes by a pass over the text."""
    began = time.monotonic()
    for value in ([shot], {"a": {"prompt": [shot], "edit_request": shot}}, [{"prompt": shot}]):
        with contextlib.suppress(InputError):
            import_constitution(madison.written(tmp_path, a=json.dumps(value)), "c")
    assert time.monotonic() - began < 8


PIECES = (
    "a", "bb", "  ", " ", "\n", "\n\n", "\t", "#", ":", "-",
    "'", '"', "{", "}", "é", "模", "😀", "\u2028", "\x85", "\x07",
    "\\", "%", "|", ">", "word word word", "\ufeff", "\xa0", "...", "---", "x" * 130,
)  # fmt: skip


def test_any_text_is_read_as_it_was_written(tmp_path: Path) -> None:
    rng = random.Random(0)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(1, 25))) for _ in range(600)]
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": "b"}] for text in texts]
    made = {"name": "c", "principles": [{"id": "a", "rule": "Be kind."}], "examples": {"revision": chats}}
    (tmp_path / "c.yaml").write_text(as_yaml(Constitution.model_validate(made), ["x"]), encoding="utf-8")
    read = read_constitution(str(tmp_path / "c.yaml"))
    assert [chat[0].content for chat in read.examples.revision] == texts
