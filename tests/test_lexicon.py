"""The lexicon: which principles a model of few words can be asked under, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif.errors import InputError
from rlaif.resources import find
from rlaif.tiny.build.ratings import ASPECTS, lexicon
from rlaif.tiny.lexicon import Lexicon, words

KNOWN = lexicon()


def test_every_keyword_names_its_quality_and_every_negated_opposite_too() -> None:
    swept = 0
    for name, aspect in ASPECTS.items():
        for said in [*aspect.keywords, *(f"never {word}" for word in aspect.opposites)]:
            assert KNOWN.named(f"a reply should be {said} .") == {name: said}
            assert KNOWN.problem(f"a reply should be {said} .") is None
            swept += 1
    assert swept > 100


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Replies should be courteous, never curt.", {"polite": "courteous"}),
        ("we do not like rude replies", {"polite": "not rude"}),
        ("a reply should not be rude , it should be polite", {"polite": "not rude"}),
        ("not polite", {"blunt": "not polite"}),
        ("polite and kind", {"polite": "polite"}),
        ("short and kind", {"short": "short", "polite": "kind"}),
        ("not wrong", {"right": "not wrong"}),
        ("wrong", {}),
        ("", {}),
    ],
)
def test_what_a_principle_asks_for(text: str, named: dict[str, str]) -> None:
    assert KNOWN.named(text) == named


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("be eloquent and witty .", "not trained on 'eloquent', 'witty'"),
        ("Be Polite .", "lower case only, not 'Polite'"),
        ("don't be rude .", "does not read \"don't\" as a negation of 'rude'"),
        ("dont be rude", "does not read 'dont'"),
        ("don t be rude", "does not read 'don'"),
        ("Never be rude .", "lower case only, not 'Never'"),
        ("polite Rude", "lower case only, not 'Rude'"),
        ("polite is not what we want .", "'not' comes after 'polite'"),
        ("do not , ever , be rude .", "'not' negates no quality in its part"),
        ("rude (never)", "'never' negates no quality in its part"),
        ("rude replies are bad", "does not read 'bad'"),
        ("not only polite", "does not read 'only'"),
        ("it isn\u2019t rude .", "as a negation of 'rude'"),
        ("a reply that nobody could call rude .", "'nobody' as a negation of 'rude'"),
        ("rather long than short .", "'rather' as a negation of 'long'"),
        ("never not polite .", "two negations come before 'polite'"),
        ("be polite and unsafe .", "'unsafe' names no quality on its own"),
        ("be polite , not right .", "'right' names no quality after 'not'"),
        ("we like the best reply .", "none of its words names a quality"),
        ("replies should be wrong .", "'wrong' names no quality on its own"),
        ("be short and kind .", "short ('short') and polite ('kind')"),
        ("avoid anything that is in the end rude .", "'avoid' is too far from 'rude'"),
        ("never in any way rude .", "'never' is too far from 'rude'"),
        ("avoid sounding rude .", "'sounding', between 'avoid' and 'rude', is a word the model was not trained on"),
        ("our house style : polite , nothing else , please eloquently .", None),
        ("caf\u00e9 na\u00efve \u6f22\u5b57", "not trained on 'caf\u00e9', 'na\u00efve', '\u6f22\u5b57'"),
        (" ".join(f"word{n}" for n in range(20)), "and 12 more"),
    ],
)
def test_what_it_cannot_be_asked_under_is_said_in_its_words(text: str, told: str | None) -> None:
    wrong = KNOWN.problem(text)
    if told is None:
        assert wrong is None
    else:
        assert wrong is not None and told in wrong[0] and wrong[1]


def test_a_word_beside_a_keyword_is_named_once_and_only_when_it_is_new() -> None:
    assert KNOWN.unknown("a reply should be eloquent , polite and eloquent .") == ["eloquent"]
    assert KNOWN.unknown("we like polite replies .") == []
    assert words("it's well-known , isn't it ?") == ["it's", "well-known", "isn't", "it"]


def test_a_lexicon_is_read_from_the_models_folder_and_a_broken_one_is_an_error(tmp_path: Path) -> None:
    assert Lexicon.read(tmp_path) is None
    (tmp_path / "lexicon.json").write_text(KNOWN.model_dump_json())
    assert Lexicon.read(tmp_path) == KNOWN
    for broken in ("{", json.dumps({"words": []}), "\xff"):
        (tmp_path / "lexicon.json").write_text(broken, encoding="latin-1")
        with pytest.raises(InputError, match="not a lexicon"):
            Lexicon.read(tmp_path)


def test_the_annotator_ships_with_the_lexicon_that_its_build_writes() -> None:
    """The short forms in which it is asked as a judge among it, and the gold pairs that are in its words."""
    shipped = Lexicon.read(find("tiny/annotator"))
    assert shipped == KNOWN and (shipped.gold, set(shipped.judging)) == ("world", {"compare", "rate"})
