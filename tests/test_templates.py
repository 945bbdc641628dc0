"""Templates: strict about variables, sandboxed, and blind to template code inside the texts they are given."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from rlaif.constitution import Principle
from rlaif.errors import InputError
from rlaif.rubric import Aspect, Scale
from rlaif.templates import Template


def test_a_missing_variable_is_named() -> None:
    with pytest.raises(InputError, match=r"t\.jinja: the template uses `compeltion`, `promt`, which has no value"):
        Template("{{ promt }} {{ compeltion }}", "t.jinja").render(prompt="a", completion="b")


def test_a_variable_that_must_be_shown_is_missed() -> None:
    with pytest.raises(InputError, match="never uses `prompt`.*Fix: write {{ prompt }}"):
        Template("{{ completion }}", "t.jinja").check({"prompt", "completion"}, {"prompt", "completion"})


def test_a_broken_template_names_its_line() -> None:
    with pytest.raises(InputError, match=r"t\.jinja:3: the template does not parse"):
        Template("a\nb\n{% if %}", "t.jinja")


def test_a_template_nested_too_deeply_does_not_parse() -> None:
    with pytest.raises(InputError, match="nested too deeply"):
        Template("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "t.jinja")


def test_a_file_that_is_no_template_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: is a directory. Fix: name a file inside it"):
        Template.read(tmp_path)
    (tmp_path / "t.jinja").write_bytes(b"{{ prompt }} \xff")
    with pytest.raises(InputError, match=r"t\.jinja: not UTF-8 text \(byte 13\)"):
        Template.read(tmp_path / "t.jinja")
    with pytest.raises(InputError, match="no such file"):
        Template.read(tmp_path / "none.jinja")


@pytest.mark.parametrize(
    "source",
    [
        "{{ text.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ text.nothing }}",
        "{{ many.append(1) }}",
        "{{ 1 // 0 }}",
        "{{ [][1].x }}",
        "{{ range(10 ** 9) }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_cannot_leave_its_box(source: str) -> None:
    with pytest.raises(InputError, match="cannot be rendered"):
        Template(source + "{# #}", "t.jinja").render(
            **{n: v for n, v in {"text": "x", "many": [1]}.items() if n in source}
        )


def test_template_code_inside_a_text_stays_text() -> None:
    hostile = "{{ 7 * 7 }} {% include 'x' %} {# gone? #}"
    assert Template("<{{ text }}>", "t.jinja").render(text=hostile) == f"<{hostile}>"


def test_a_line_break_cannot_leave_its_line() -> None:
    assert Template("[1] {{ text | oneline }}", "t.jinja").render(text="a\n[2]\tb\r\n") == "[1] a [2] b"


PICKLE = r"'cos\nsystem\n(S\'touch PWNED\'\ntR.'"
SCALE = Scale(low=1, high=5)
ASPECT = Aspect(id="a", description="One quality.", scores={1: "bad"}, types={"1": "a lie"}, na=True)
PRINCIPLE = Principle(id="p", rule="r", critique="c", revision="v", comparison="m")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # with it an old loader would stop before it unpickles
@pytest.mark.parametrize("value", [SCALE, ASPECT, PRINCIPLE], ids=["scale", "aspect", "principle"])
@pytest.mark.parametrize(
    "code",
    [
        "x.parse_raw({pickle}, content_type='pickle', allow_pickle=True)",
        "x.parse_raw({pickle}, proto='pickle', allow_pickle=True)",
        "x.parse_file('/etc/hostname')",
        "x.model_validate_json('1')",
        "x.copy(update=1)",
        "x.schema_json()",
    ],
)
def test_a_template_reaches_no_method_of_what_it_is_handed(
    value: BaseModel, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot be rendered"):
        Template("{{ " + code.replace("{pickle}", PICKLE) + " }}", "t.jinja").render(x=value)
    assert list(tmp_path.iterdir()) == []


def test_a_template_is_handed_plain_data_all_the_way_down() -> None:
    seen = Template("{{ x.scores[1] }} {{ x.na }} {{ y[0].id }} {{ z }}", "t.jinja")
    assert seen.render(x=ASPECT, y=(PRINCIPLE,), z=None) == "bad True p None"
    with pytest.raises(InputError, match="cannot be given a Template"):
        Template("{{ x }}", "t.jinja").render(x=[seen])


def test_no_template_changes_what_the_next_one_is_handed() -> None:
    for change in ("x.scores.update({1: 'good'})", "x.types.clear()", "x.pop('id')", "x.setdefault('new', 1)"):
        with pytest.raises(InputError, match="cannot be rendered"):
            Template("{{ " + change + " }}", "t.jinja").render(x=ASPECT)
    assert (
        Template("{{ x.scores[1] }} {{ x.types | length }} {{ x | length }}", "t.jinja").render(x=ASPECT) == "bad 1 7"
    )
