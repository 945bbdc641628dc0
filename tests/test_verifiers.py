"""Verifiers in code: what passes each check, what just fails it, what states no value, and what cannot hang."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rlaif.config import read_named_set
from rlaif.config.document import Settings
from rlaif.errors import InputError
from rlaif.judges.verifiers import KINDS, Check, Outcome, all_pass, checks_of_ifeval, languages, share_passed, verify
from rlaif.judges.verifiers.ifeval import INSTRUCTIONS, count_sentences, follows, instruction, loosened
from rlaif.judges.verifiers.languages import LANGUAGES, language_of
from rlaif.judges.verifiers.stated import alternatives, final_choice, final_number, final_text


def check(written: str) -> Check:
    """A check as a pipeline file writes it."""
    return Check.model_validate(yaml.safe_load(written))


def outcome(written: str, completion: str, reference: str | None = None) -> Outcome:
    """The one outcome, after seeing that the short road gives the same."""
    (found,) = verify([check(written)], "a prompt", completion, reference)
    assert check(written).passes(completion, prompt="a prompt", reference=reference) == (found.passed is True)
    assert found.why
    return found


# ---------------------------------------------------------------- what a completion states


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2 and 40 make 42\n#### 42", 42),
        ("#### 1,234,567", 1234567),
        ("#### 42 dollars", 42),
        ("#### Step 1: add 2\n2 + 2 = 4\n#### 4", 4),  # a heading is no statement
        ("#### 1. Add\n2 + 2 = 4\n#### 4", 4),
        ("so \\boxed{42} it is, for all 7", 42),
        ("$\\boxed{\\frac{3}{4}}$", Fraction(3, 4)),
        ("\\boxed{3 + \\boxed{7}}", 7),
        ("\\boxed{1{,}000}", 1000),
        ("\\boxed{x = 5}", 5),
        ("The answer is $42.50.", Fraction(85, 2)),
        ("**Answer:** 42", 42),
        ("### Answer\n\nAnswer:\n\n42", 42),
        ("The answer to the question is **42**.", 42),
        ("The answer is 42 because 6 * 7 = 42", 42),
        ("The answer is 6 * 7 = 42", 42),
        ("The answer is 42 (6 times 7).", 42),
        ("The answer is 42. The answer is 42.0!", 42),
        ("The answer is not 41. The answer is 42.", 42),
        ("The answer is \u22125", -5),
        ("The answer is 2/3", Fraction(2, 3)),
        ("The answer should be .5, or so it seems from all 3 of them", Fraction(1, 2)),
        ("The answer is 1e-3 kg", Fraction(1, 1000)),
        ("I had 3, gave away 1 and am left with 2.", 2),
        ("It is 50%.", 50),
    ],
)
def test_a_number_is_read_where_it_is_stated(text: str, number: int | Fraction) -> None:
    assert final_number(text) == (number, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("forty-two", "states no number"),
        ("The answer is 41. Wait, the answer is 42.", "states values that differ: '41', '42'"),
        ("The answer is 41.\n#### 42", "states values that differ"),
        ("\\boxed{41} or \\boxed{42}", "states values that differ"),
        ("I think 41 or 42", "states values that differ"),
        ("The answer is 41 or 42", "cannot be read as one number"),
        ("The answer is 3 to 5", "cannot be read as one number"),
        ("The answer is 3-5", "cannot be read as one number"),
        ("The answer is 40 + 2", "cannot be read as one number"),
        ("The answer is 10^6", "cannot be read as one number"),
        ("Answer: 3:30", "cannot be read as one number"),
        ("Answer: 1,2", "cannot be read as one number"),
        ("The answer is 1/0", "cannot be read as one number"),
        ("The answer is not 42", "states no final value"),
        ("The answer isn't 42", "states no final value"),
        ("The answer cannot be 42", "states no final value"),
        ("42 of them, so \\boxed{many}", "states no final value"),
        ("It costs 1,2", "its last number cannot be read"),
        ("1e999999999", "its last number cannot be read"),
        ("9" * 500, "its last number cannot be read"),
    ],
)
def test_a_number_that_is_not_stated_is_not_guessed(text: str, problem: str) -> None:
    value, found = final_number(text)
    assert value is None
    assert found is not None and problem in found


@pytest.mark.parametrize(
    "text",
    [
        *("B", "b", "B.", "(B)", "**B**", "I pick (B)", "B) Paris", "Let me think.\n\n**B**", "(B) since (B) it is"),
        *(
            "The answer is B",
            "The answer is (B) Paris.",
            "Answer: B",
            "answer: option b",
            "\\boxed{\\text{B}}",
            "#### B",
        ),
        *("The answer is B because A is wrong", "The answer is not A. The answer is B.", "Answer: **B: Paris**"),
    ],
)
def test_a_choice_is_read_where_it_is_stated(text: str) -> None:
    assert final_choice(text, "ABCD") == ("B", None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("A cat sat on it", "states no final value"),
        ("The answer is A dog", "states no final value"),
        ("The answer is E", "states no final value"),
        ("The answer is not (B)", "states no final value"),
        ("It is not (B)", "says what is not"),
        ("(A) is wrong, (B) is right", "states values that differ"),
        ("The answer is A. The answer is B.", "states values that differ: 'A', 'B'"),
        ("The answer is A or B", "cannot be read as one choice"),
        ("Answer: A/B", "cannot be read as one choice"),
        ("Answer: A, B", "cannot be read as one choice"),
        ("The answer is A or B. So answer: B", "cannot be read as one choice"),
    ],
)
def test_a_choice_that_is_not_stated_is_not_guessed(text: str, problem: str) -> None:
    value, found = final_choice(text, "ABCD")
    assert value is None
    assert found is not None and problem in found


def test_a_text_is_what_is_stated_or_else_the_whole() -> None:
    assert final_text(" Paris ", str.strip) == ("Paris", None)
    assert final_text("It lies there.\nThe answer is **Paris**.", str.strip) == ("Paris", None)
    assert final_text("Answer: Paris. Answer: Rome.", str.strip)[0] is None
    assert final_text("The answer is not Paris.", str.strip)[0] is None


def test_alternatives() -> None:
    assert alternatives('["42", 7]', None) == ["42", "7"]
    assert alternatives("42 | 7 |", "|") == ["42", "7"]
    assert alternatives("42 | 7", None) == ["42 | 7"]
    assert alternatives("[42", None) == ["[42"]
    assert alternatives("[]", None) == ["[]"]


# ---------------------------------------------------------------- one kind after the other


@pytest.mark.parametrize(
    ("written", "passing", "failing", "reference"),
    [
        ("exact: {}", "Paris", "paris", "Paris"),
        ("exact: {ignore: [case]}", "paris", "par is", "Paris"),
        ("exact: {ignore: [space]}", " New \n York", "NewYork", "New York"),
        ("exact: {ignore: [punctuation]}", "'Paris'!", "'paris'!", "Paris"),
        ("exact: {separator: '|'}", "NYC", "New York|NYC", "New York | NYC"),
        ("exact: {}", "NYC", "nyc", '["New York", "NYC"]'),
        ("numeric: {}", "so 42", "so 43", "6 times 7\n#### 42"),
        ("numeric: {}", "0.1", "0.1000000001", "0.1"),
        ("numeric: {tolerance: 0.01}", "1009", "1011", "1000"),  # relative above 1
        ("numeric: {tolerance: 0.01}", "0.009", "0.011", "0"),  # absolute below
        ("choice: {among: [A, B, C, D]}", "(B)", "(C)", "B"),
        ("choice: {among: ['yes', 'no']}", "The answer is Yes.", "The answer is no.", "yes"),
        ("regex: {pattern: 'a+'}", "baab", "bb", None),
        ("regex: {pattern: 'a+', must: match}", "aa", "aab", None),
        ("regex: {pattern: 'a+', must: not}", "bb", "bab", None),
        ("length: {max_words: 2}", "one two", "one two three", None),
        ("length: {min_words: 2}", "one two", "one", None),
        ("length: {min_characters: 3, max_characters: 3}", " abc ", "abcd", None),
        ("length: {max_lines: 2}", "a\n\nb", "a\nb\nc", None),
        ("language: {is: de}", "Das ist ein Haus und es ist alt.", "This is a house and it is old.", None),
        ("ifeval: {id: 'punctuation:no_comma'}", "a b", "a, b", None),
        ("ifeval: {id: 'startend:quotation', loose: true}", 'Sure:\n"a"', 'Sure: "a"', None),
    ],
)
def test_a_check_tells_apart(written: str, passing: str, failing: str, reference: str | None) -> None:
    assert outcome(written, passing, reference).passed is True
    assert outcome(written, failing, reference).passed is False
    assert outcome(written, " \n", reference).passed is False


@pytest.mark.parametrize(
    ("written", "completion", "reference", "why"),
    [
        ("exact: {}", "Paris", None, "no reference"),
        ("exact: {}", "Paris", " ", "no reference"),
        ("numeric: {}", "42", "many", "the reference states no number"),
        ("choice: {among: [A, B]}", "A", "C", "the reference states no final value"),
        ("language: {is: de}", "42", None, "cannot be told"),
        ("ifeval: {id: 'change_case:english_capital'}", "YES", None, "cannot be told"),
    ],
)
def test_what_cannot_be_judged_is_no_failure(written: str, completion: str, reference: str | None, why: str) -> None:
    found = outcome(written, completion, reference)
    assert found.passed is None
    assert why in found.why


def test_two_values_do_not_pass_and_say_so() -> None:
    found = outcome("numeric: {}", "The answer is 41. No, the answer is 42.", "42")
    assert found == Outcome(passed=False, why="the completion states values that differ: '41', '42'")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlaif.judges.verifiers.checks.PATTERN_SECONDS", 0.1)


def test_a_pattern_that_backtracks_for_ever_is_stopped(impatient: None) -> None:
    for must in ("match", "search", "not"):
        start = time.monotonic()
        found = outcome(f"regex: {{pattern: '(a+)+$', must: {must}}}", "a" * 30_000 + "!")
        assert found == Outcome(passed=None, why="the pattern took more than 0.1 s")
        assert time.monotonic() - start < 2 * (0.1 + 2)  # `outcome` asks twice


ARGUMENTS: dict[str, dict[str, Any]] = {
    "change_case:capital_word_frequency": {"capital_frequency": 2, "capital_relation": "at least"},
    "combination:repeat_prompt": {"prompt_to_repeat": "Say it. "},
    "detectable_content:number_placeholders": {"num_placeholders": 2},
    "detectable_content:postscript": {"postscript_marker": "P.P.S"},
    "detectable_format:multiple_sections": {"section_spliter": "Day", "num_sections": 2},
    "detectable_format:number_bullet_lists": {"num_bullets": 2},
    "detectable_format:number_highlighted_sections": {"num_highlights": 2},
    "keywords:existence": {"keywords": ["cat", "c++"]},
    "keywords:forbidden_words": {"forbidden_words": ["cat", "dog"]},
    "keywords:frequency": {"keyword": "cat", "frequency": 2, "relation": "less than"},
    "keywords:letter_frequency": {"letter": "#", "let_frequency": 2, "let_relation": "at least"},
    "language:response_language": {"language": "hi"},
    "length_constraints:nth_paragraph_first_word": {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
    "length_constraints:number_paragraphs": {"num_paragraphs": 2},
    "length_constraints:number_sentences": {"num_sentences": 2, "relation": "less than"},
    "length_constraints:number_words": {"num_words": 3, "relation": "at least"},
    "startend:end_checker": {"end_phrase": "Is it so?"},
}

# Instruction, a text that follows it, and one that just does not.
FOLLOWED = [
    ("change_case:capital_word_frequency", "A WELL-KNOWN cat", "a WELL-KNOWN cat"),
    ("change_case:english_capital", "THIS IS THE CAT AND IT IS MINE", "THIS IS THE CAT AND IT IS mINE"),
    ("change_case:english_capital", "THIS IS THE CAT AND IT IS MINE", "DAS IST DIE KATZE UND SIE IST MIR LIEB"),
    ("change_case:english_lowercase", "this is the cat and it is mine", "This is the cat and it is mine"),
    ("combination:repeat_prompt", "say it. It.", "Say it! It."),
    ("combination:two_responses", "a ****** b", "a ****** a"),
    ("combination:two_responses", "******a ****** b", "c ****** a ****** b"),
    ("combination:two_responses", "a ****** b", "a ************ b"),
    ("detectable_content:number_placeholders", "[a] and [b]", "[a] and [b"),
    ("detectable_content:postscript", "Bye. P. P.S. More", "Bye. P.S. More"),
    ("detectable_format:constrained_response", "Well, My answer is no.", "Well, my answer is no."),
    ("detectable_format:json_format", '```json\n{"a": 1}\n```', '```json\n{"a": 1,}\n```'),
    ("detectable_format:json_format", "1", "[" * 100_000),
    ("detectable_format:multiple_sections", "Day 1 a Day2 b", "Day 1 a Day b"),
    ("detectable_format:number_bullet_lists", "* a\n - b\n** c", "* a\n - b\n* c"),
    ("detectable_format:number_highlighted_sections", "*a* and *b*", "*a* and * *"),
    ("detectable_format:number_highlighted_sections", "**a** and *b*", "**a** and *b\n*"),
    ("detectable_format:title", "a <<b>>", "a <<>>"),
    ("detectable_format:title", "a <<b>>", "a <<b\n>>"),
    ("keywords:existence", "Concatenate in C++", "Concatenate in C"),
    ("keywords:forbidden_words", "concatenate", "a Cat"),
    ("keywords:frequency", "a cat", "a cat, Concatenated"),
    ("keywords:letter_frequency", "# #", "#"),
    ("language:response_language", "यह एक घर है और वह भी", "हे एक घर आहे आणि ते माझे नाही"),
    ("length_constraints:nth_paragraph_first_word", "a\n\n'then, b", "a\n\nthence b"),
    ("length_constraints:nth_paragraph_first_word", "a\n\nthen b", "a\nthen b"),
    ("length_constraints:number_paragraphs", "a *** b ***", "a *** b *** c"),
    ("length_constraints:number_paragraphs", "a *** b", "a *** *** b"),
    ("length_constraints:number_sentences", "Mr. A. Bee came e.g. by 3.5 boats", "Mr. A. Bee came. By boat"),
    ("length_constraints:number_words", "a b-c", "a b_c"),
    ("punctuation:no_comma", "a; b", "a, b"),
    ("startend:end_checker", 'so? "Is it so?"', "Is it so? Yes"),
    ("startend:quotation", ' "a" ', '"a".'),
]


@pytest.mark.parametrize(("identifier", "passing", "failing"), FOLLOWED)
def test_an_instruction_tells_apart(identifier: str, passing: str, failing: str) -> None:
    wanted = instruction(identifier, ARGUMENTS.get(identifier, {}))
    assert wanted.follows(passing).passed is True
    assert wanted.follows(failing).passed is False


def test_every_instruction_was_tried() -> None:
    assert {identifier for identifier, _, _ in FOLLOWED} == set(INSTRUCTIONS)
    assert len(INSTRUCTIONS) == 25


def test_a_word_is_no_pattern() -> None:
    assert instruction("keywords:forbidden_words", {"forbidden_words": ["c.t"]}).follows("cat").passed is True
    sections = instruction("detectable_format:multiple_sections", {"section_spliter": "Da.", "num_sections": 1})
    assert sections.follows("Day 1").passed is False


def test_the_other_side_of_each_relation() -> None:
    for identifier, name in [
        ("keywords:frequency", "relation"),
        ("keywords:letter_frequency", "let_relation"),
        ("change_case:capital_word_frequency", "capital_relation"),
        ("length_constraints:number_words", "relation"),
        ("length_constraints:number_sentences", "relation"),
    ]:
        given = ARGUMENTS[identifier]
        other = given | {name: "less than" if given[name] == "at least" else "at least"}
        (_, passing, failing) = next(case for case in FOLLOWED if case[0] == identifier)
        assert instruction(identifier, other).follows(passing).passed is False
        assert instruction(identifier, other).follows(failing).passed is True


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("One.", 1),
        ("One. Two", 2),
        ("One! Two? Three\u2026", 3),
        ('He said "no." Then he left.', 2),
        ("Dr. J. Doe lives at St. James St., i.e. there.", 1),
        ("1. First\n2. Second", 1),
        ("- - -", 0),
        ("\u4e00\u3002\u4e8c\u3002", 2),
    ],
)
def test_sentences(text: str, number: int) -> None:
    assert count_sentences(text) == number


def test_loosely_is_one_of_eight_variants() -> None:
    assert loosened("a\n*b*\nc") == ("a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b")
    quoted = instruction("startend:quotation", {})
    for text in ('Sure:\n"a"', '"a"\nBye', 'Sure:\n"a"\nBye', '*"a"*', 'Sure:\n*"a"*\nBye'):
        assert follows(quoted, text, loose=False).passed is False
        assert follows(quoted, text, loose=True).passed is True
    assert follows(quoted, 'a\nb\n"c"', loose=True).passed is False


def test_an_empty_variant_never_follows() -> None:
    no_comma = instruction("punctuation:no_comma", {})
    assert follows(no_comma, "a, b", loose=True).passed is False  # without its only line nothing is left
    assert follows(no_comma, "a, b\nc", loose=True).passed is True


@pytest.mark.parametrize(
    "unit",
    [
        *("!", "(A)", "[", "<<", "\n", "*", "** ", "{", "1,", "1 or ", "p.", "e.g."),
        *("answer:", "answer is not ", "\\boxed{", "#### 1\n", "to the question ", "a\n\n"),
    ],
)
def test_no_text_takes_more_than_linear_time(unit: str) -> None:
    """Where one of these was quadratic, 20,000 characters took 3 to 9 seconds."""
    text = unit * (20_000 // len(unit))
    tried = 0
    for identifier in INSTRUCTIONS:
        start = time.process_time()
        follows(instruction(identifier, ARGUMENTS.get(identifier, {})), text, loose=True)
        assert time.process_time() - start < 1.5, identifier
        tried += 1
    for read in (final_number, lambda t: final_text(t, str.strip), lambda t: final_choice(t, "AB")):
        start = time.process_time()
        read(text)
        assert time.process_time() - start < 1.5
        tried += 1
    assert tried == 28


# ---------------------------------------------------------------- languages

SENTENCES = {
    "ar": "ذهبت إلى السوق مع أخي، ثم رجعنا إلى البيت بعد الغروب.",
    "bg": "Вчера отидохме на пазара с брат ми и се върнахме късно.",
    "bn": "গতকাল আমরা বাজারে গিয়েছিলাম।",
    "da": "I går gik vi på markedet med min bror, og jeg var ikke træt.",
    "de": "Gestern gingen wir mit meinem Bruder auf den Markt und kamen spät zurück.",
    "el": "Χθες πήγαμε στην αγορά με τον αδελφό μου.",
    "en": "Yesterday we went to the market with my brother and came home late.",
    "es": "Ayer fuimos al mercado con mi hermano y volvimos muy tarde a la casa de los abuelos.",
    "fa": "دیروز با برادرم به بازار رفتیم و شب به خانه برگشتیم.",
    "fi": "Eilen kävimme torilla veljeni kanssa, mutta hän ei ostanut mitään.",
    "fr": "Hier nous sommes allés au marché avec mon frère et la pluie est venue.",
    "gu": "ગઈકાલે અમે બજારમાં ગયા હતા.",
    "he": "אתמול הלכנו לשוק עם אחי.",
    "hi": "कल हम अपने भाई के साथ बाज़ार गए और देर से घर लौटे।",
    "id": "Kemarin kami pergi ke pasar dengan kakak saya dan pulang pada malam hari.",
    "it": "Ieri siamo andati al mercato con mio fratello e non abbiamo comprato nulla della lista.",
    "ja": "昨日、兄と一緒に市場へ行きました。",
    "kn": "ನಿನ್ನೆ ನಾವು ಮಾರುಕಟ್ಟೆಗೆ ಹೋದೆವು.",
    "ko": "어제 우리는 형과 함께 시장에 갔습니다.",
    "ml": "ഇന്നലെ ഞങ്ങൾ ചന്തയിൽ പോയി.",
    "mr": "काल आम्ही भावासोबत बाजारात गेलो आणि उशिरा घरी आलो.",
    "ne": "हिजो हामी दाइ संग बजार गयौं र धेरै ढिलो फर्कियौं।",
    "nl": "Gisteren gingen we met mijn broer naar de markt en het was niet druk.",
    "pa": "ਕੱਲ੍ਹ ਅਸੀਂ ਬਾਜ਼ਾਰ ਗਏ ਸੀ।",
    "pl": "Wczoraj poszliśmy z bratem na targ, ale nie było tam nic dla nas.",
    "pt": "Ontem fomos ao mercado com o meu irmão e não comprámos nada para a casa.",
    "ru": "Вчера мы пошли на рынок с братом, но ничего не купили для дома.",
    "sv": "I går gick vi till marknaden med min bror och det var inte dyrt.",
    "sw": "Jana tulikwenda sokoni na kaka yangu kwa sababu ya chakula.",
    "ta": "நேற்று நாங்கள் சந்தைக்குச் சென்றோம்.",
    "te": "నిన్న మేము మార్కెట్‌కు వెళ్ళాము.",
    "th": "เมื่อวานเราไปตลาดกับพี่ชาย",
    "tr": "Dün kardeşimle bir pazara gittik ve çok geç döndük, ama güzel bir gün oldu.",
    "uk": "Учора ми пішли на ринок з братом, але нічого не купили.",
    "ur": "کل ہم اپنے بھائی کے ساتھ بازار گئے اور دیر سے گھر آئے۔",
    "vi": "Hôm qua chúng tôi đã đi chợ với anh trai và về nhà rất muộn.",
    "zh": "昨天我们和哥哥一起去了市场。",
}


def test_a_sentence_is_told_in_small_letters_and_in_capitals() -> None:
    for code, text in SENTENCES.items():
        assert language_of(text) == language_of(text.upper()) == code
        assert text.upper() == text or language_of(f"iPad: {text.upper()}") == code


def test_the_model_is_loaded_once_a_text_is_told() -> None:
    code = (
        "import sys; from rlaif.judges.verifiers import Check, verify\n"
        "checks = [Check.model_validate({'language': {'is': 'de'}})]\n"
        "print('py3langid' in sys.modules, 'numpy' in sys.modules)\n"
        "print(verify(checks, '', 'Das ist ein Haus und es ist alt.', None)[0].passed, 'py3langid' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True", "True"]


def test_languages_are_those_of_the_model_and_of_the_page() -> None:
    page = (Path(__file__).parents[1] / "docs" / "judges.md").read_text(encoding="utf-8")
    [listed] = re.findall(r"^`ace`, .+?(?=\n\n)", page, re.MULTILINE | re.DOTALL)
    assert tuple(re.findall(r"`(\w+)`", listed)) == LANGUAGES
    labels = set(languages._identifier().labels)
    assert labels == {*LANGUAGES, *languages._VARIETIES, languages.NO_LANGUAGE}
    assert set(languages._VARIETIES.values()) <= set(LANGUAGES)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Ich gehe.", "de"),
        ("你好", "zh"),  # the model tells Cantonese
        ("我哋琴日同哥哥去咗街市。", "zh"),
        ("ازيك عامل ايه النهاردة", "ar"),  # of Egypt
        (
            "- Holiday markets, November 28th\n- National Parks, December 1st\n- New Year in the United States",
            "en",
        ),  # Pidgin, it says
        ("Yesterday we WENT to the market. " + "SO IT WAS! " * 9, "en"),
        ("Hier ist sie; sie zählt alles zusammen:\n\n```\nfor i in range(10):\n    total += i\n```", "de"),
        ("\u0301" * 50 + " Das ist ein Haus und es ist alt.", "de"),
        ("\ud800 Das ist ein Haus und es ist alt.", "de"),
    ],
)
def test_a_text_is_told(text: str, code: str) -> None:
    assert language_of(text) == code


def test_a_long_text_is_told_by_pieces_from_its_beginning_to_its_end() -> None:
    started = time.process_time()
    english, german = (f"{SENTENCES[code]} " * 10_000 for code in ("en", "de"))
    assert language_of(english) == "en" and language_of(german) == "de"
    assert language_of(english[:100_000] + german) == "de" and language_of(german + english[:100_000]) == "de"
    assert language_of("\u0316\u0301" * 500_000) is None  # putting these in order takes time by the square
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42 + 1",
        "Anna Berta Carl",
        "Salon des Arts",
        "vi kan det som har",
        "zorp blik " * 20 + "och inte",
        "| a | e | o |\n| i | z | y |",
        "Yes.",
        "def f(x):\n    return x + 1\n",
        "#F5F5DC, #E6E6FA, #D3D3D7, #C9C9C3, #B7B7BD",  # of no language, the model says
        "😻🐱🤩🙌",
        "Namaste, aap kaise hain? Main theek hoon.",
        "a" * 5_000,
    ],
)
def test_a_language_that_cannot_be_told_is_not_guessed(text: str) -> None:
    assert language_of(text) is None


def test_a_language_is_that_of_most_letters() -> None:
    assert language_of("SRE는 사이트 신뢰성 엔지니어(Site Reliability Engineer)의 약자입니다.") == "ko"
    assert language_of("The word дом is Russian and means a house") == "en"
    assert language_of(SENTENCES["en"].upper()) == "en"


# ---------------------------------------------------------------- JSON schemas

SCHEMA = (
    "{type: object, properties: {name: {type: string, pattern: '^a'}}, required: [name], additionalProperties: false}"
)
has_jsonschema = pytest.mark.skipif(importlib.util.find_spec("jsonschema") is None, reason="needs jsonschema")


@has_jsonschema
@pytest.mark.parametrize(
    ("completion", "passed", "why"),
    [
        ('{"name": "anna"}', True, "as the schema asks"),
        ('```json\n{"name": "anna"}\n```', True, "as the schema asks"),
        ('Sure: {"name": "anna"}', False, "not readable as JSON"),
        ('{"name": "otto"}', False, "does not match '^a' (at name)"),
        ('{"name": 1}', False, "1 is not of type 'string' (at name)"),
        ("{}", False, "'name' is a required property (at its top)"),
        ('{"name": "anna", "age": 1}', False, "Additional properties"),
        ('{"name": "anna", "name": "otto"}', False, "a key stands twice"),
        ('{"name": NaN}', False, "NaN is no number of JSON"),
        ("[" * 100_000, False, "not readable as JSON"),
    ],
)
def test_a_schema(completion: str, passed: bool, why: str) -> None:
    found = outcome(f"json_schema: {{schema: {SCHEMA}}}", completion)
    assert found.passed is passed
    assert why in found.why


@has_jsonschema
def test_a_schema_inside_itself() -> None:
    tree = "json_schema: {schema: {type: array, items: {$ref: '#'}}}"
    assert outcome(tree, "[[], [[]]]").passed is True
    assert outcome(tree, "[[], [1]]").passed is False


@has_jsonschema
def test_a_pattern_in_a_schema_is_stopped(impatient: None) -> None:
    found = outcome("json_schema: {schema: {type: string, pattern: '(a+)+$'}}", '"' + "a" * 30_000 + '!"')
    assert found.passed is None


@has_jsonschema
@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("{type: strin}", "not a JSON schema: 'strin' is not valid"),
        ("{$ref: 'http://localhost/x'}", "is nowhere in the schema"),
        ("{$ref: '#/$defs/x'}", "is nowhere in the schema"),
        ("{patternProperties: {'^a': {type: string}}}", "use `propertyNames`"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        check(f"json_schema: {{schema: {schema}}}")
    assert words in str(caught.value)


def test_without_jsonschema_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)  # what Python itself puts there for "cannot be imported"
    with pytest.raises(ValidationError, match=r"pip install 'rlaif-kit\[verify\]'"):
        check("json_schema: {schema: {type: object}}")


# ---------------------------------------------------------------- as it is written


class _Checked(Settings):
    id: str
    checks: tuple[Check, ...]


class _File(Settings):
    rows: tuple[_Checked, ...]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("{exact: {}, numeric: {}}", "give exactly one kind of check"),
        ("{}", "give exactly one kind of check"),
        ("{exakt: {}}", "did you mean `exact`?"),
        ("{exact: {ignored: [case]}}", "did you mean `ignore`?"),
        ("{numeric: {tolerance: -1}}", "greater than or equal to 0"),
        ("{numeric: {tolerance: .nan}}", "finite number"),
        ("{choice: {among: [A]}}", "expected more items"),
        ("{choice: {among: [A, a]}}", "the same but for capital letters"),
        ("{regex: {pattern: '(a'}}", "not a regular expression: missing )"),
        ("{regex: {pattern: a, must: find}}", "'match', 'search' or 'not'"),
        ("{length: {}}", "give at least one bound"),
        ("{length: {min_words: 3, max_words: 2}}", "`min_words` is above `max_words`"),
        ("{language: {is: xx}}", "the language 'xx' cannot be told: use one of the 131 languages"),
        ("{language: {is: no}}", "write 'no', in quotes, for Norwegian"),
        ("{ifeval: {id: 'keywords:exist'}}", "'keywords:exist': did you mean `keywords:existence`"),
        ("{ifeval: {id: 'keywords:existence'}}", "keywords:existence needs the argument `keywords`"),
    ],
)
def test_a_flaw_is_named_with_its_line(tmp_path: Path, written: str, words: str) -> None:
    path = tmp_path / "rows.yaml"
    path.write_text(f"rows:\n  - id: first\n    checks:\n      - {written}\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_named_set(_File, str(path), "rows")
    assert words in str(caught.value)
    assert caught.value.line == 4


@pytest.mark.parametrize(
    "written",
    [
        "exact: {ignore: [case, space], separator: '|'}",
        "numeric: {tolerance: 0.5}",
        "choice: {among: [A, B]}",
        "regex: {pattern: a, must: not}",
        "length: {max_words: 3}",
        "language: {is: de}",
        "ifeval: {id: 'keywords:existence', kwargs: {keywords: [a]}, loose: true}",
        pytest.param("json_schema: {schema: {type: object}}", marks=has_jsonschema),
    ],
)
def test_a_resolved_check_reads_back(written: str) -> None:
    once = check(written)
    dumped = once.model_dump(mode="json", exclude_none=True)
    assert list(dumped) == [once.kind] == list(yaml.safe_load(written))
    assert yaml.safe_load(written)[once.kind].items() <= dumped[once.kind].items()
    assert Check.model_validate(dumped) == once


def test_every_kind_is_a_field() -> None:
    assert set(KINDS) == set(Check.model_fields)


# ---------------------------------------------------------------- several together


@pytest.mark.parametrize(
    ("passed", "every", "share"),
    [
        ([True, True], 1.0, 1.0),
        ([True, False], 0.0, 0.5),
        ([True, None], None, None),
        ([False, None], 0.0, None),  # whatever the other one would say
        ([], None, None),
    ],
)
def test_several_checks(passed: list[bool | None], every: float | None, share: float | None) -> None:
    outcomes = [Outcome(passed=one, why="so") for one in passed]
    assert all_pass(outcomes) == every
    assert share_passed(outcomes) == share


def test_verify_keeps_the_order() -> None:
    checks = [check("exact: {}"), check("length: {max_words: 1}"), check("language: {is: en}")]
    assert [o.passed for o in verify(checks, "p", "Rome", "Paris")] == [False, True, None]


def test_checks_of_ifeval() -> None:
    checks = checks_of_ifeval(
        ["punctuation:no_comma", "length_constraints:number_words"],
        [{"num_words": None}, {"num_words": 3, "relation": "at least", "keywords": None}],
        loose=True,
    )
    assert [one.passed for one in verify(checks, "p", "a b c", None)] == [True, True]
    assert [one.passed for one in verify(checks, "p", "a, b", None)] == [False, False]
    assert all(one.ifeval is not None and one.ifeval.loose for one in checks)


@pytest.mark.parametrize(
    ("ids", "kwargs", "key", "words"),
    [
        (["punctuation:no_commas"], [{}], "instruction_id_list.0", "did you mean `punctuation:no_comma`"),
        (["punctuation:no_comma"], [{"n": 1}], "kwargs.0", "`n` is no argument of punctuation:no_comma"),
        (["startend:end_checker"], [{"end_phrases": "x"}], "kwargs.0", "did you mean `end_phrase`?"),
        (["startend:end_checker"], [{"end_phrase": None}], "kwargs.0", "startend:end_checker needs the argument"),
        (["keywords:existence"], [{"keywords": []}], "kwargs.0", "keywords:existence: `keywords`:"),
        (["language:response_language"], [{"language": "xx"}], "kwargs.0", "'xx' cannot be told"),
        (
            ["length_constraints:nth_paragraph_first_word"],
            [{"num_paragraphs": 1, "nth_paragraph": 2, "first_word": "a"}],
            "kwargs.0",
            "there is no paragraph 2 of 1",
        ),
        (["startend:quotation"], [], "kwargs", "1 instructions and arguments for 0"),
    ],
)
def test_wrong_columns_are_named(ids: list[str], kwargs: list[dict[str, Any]], key: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        checks_of_ifeval(ids, kwargs)
    assert words in str(caught.value)
    assert caught.value.key == key
