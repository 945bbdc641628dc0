"""The 25 instruction types of IFEval (arXiv 2311.07911), each with its arguments and what it means to follow it.

The rules are those of the paper's own checkers, with these differences. A keyword is text, never a pattern. A missing
argument is an error: the paper's checkers draw it at random, as they do an invalid letter. Sentences and words in
capital letters are counted by rules, without a trained tokenizer. Languages are recognised by `languages`; where it
cannot tell, the outcome is None. Everything here is linear in the length of a completion.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from rlaif.config import Settings, Text
from rlaif.errors import nearest, plainly
from rlaif.judges.verifiers.languages import LanguageCode, language_of

Relation = Literal["less than", "at least"]
Count = Field(ge=0)


class Followed(NamedTuple):
    """Whether an instruction was followed, None where it cannot be told; and why."""

    passed: bool | None
    why: str


class Instruction(Settings):
    """One instruction with its arguments, under IFEval's names."""

    def follows(self, text: str) -> Followed:
        """Whether a completion follows it. Each instruction overrides it."""
        raise NotImplementedError


def _counted(count: int, what: str, relation: Relation | Literal["exactly"], wanted: int) -> Followed:
    passed = {"less than": count < wanted, "at least": count >= wanted, "exactly": count == wanted}[relation]
    return Followed(passed, f"{count} {what}, asked for {relation} {wanted}")


def _holds(passed: bool, what: str) -> Followed:
    return Followed(passed, f"{what}: {'yes' if passed else 'no'}")


# --- Keywords ---------------------------------------------------------------------------------------------------------


class Existence(Instruction):
    keywords: tuple[Text, ...] = Field(min_length=1)

    def follows(self, text: str) -> Followed:
        """A keyword counts inside a longer word too."""
        missing = [word for word in self.keywords if word.lower() not in text.lower()]
        return Followed(not missing, f"keywords missing: {', '.join(missing) or 'none'}")


class Frequency(Instruction):
    keyword: Text
    frequency: int = Count
    relation: Relation

    def follows(self, text: str) -> Followed:
        count = text.lower().count(self.keyword.lower())
        return _counted(count, f"times {self.keyword!r}", self.relation, self.frequency)


class ForbiddenWords(Instruction):
    forbidden_words: tuple[Text, ...] = Field(min_length=1)

    def follows(self, text: str) -> Followed:
        """A forbidden word counts only as a whole word."""
        used = [w for w in self.forbidden_words if re.search(rf"\b{re.escape(w)}\b", text, re.IGNORECASE)]
        return Followed(not used, f"forbidden words: {', '.join(used) or 'none'}")


class LetterFrequency(Instruction):
    letter: str = Field(min_length=1, max_length=1)
    let_frequency: int = Count
    let_relation: Relation

    def follows(self, text: str) -> Followed:
        count = text.lower().count(self.letter.lower())
        return _counted(count, f"times {self.letter!r}", self.let_relation, self.let_frequency)


# --- Language and case ------------------------------------------------------------------------------------------------


def _in_language(text: str, wanted: str) -> Followed:
    language = language_of(text)
    if language is None:
        return Followed(None, "its language cannot be told")
    return Followed(language == wanted, f"language {language}, asked for {wanted}")


class ResponseLanguage(Instruction):
    language: LanguageCode

    def follows(self, text: str) -> Followed:
        return _in_language(text, self.language)


class EnglishCapital(Instruction):
    def follows(self, text: str) -> Followed:
        return _in_language(text, "en") if text.isupper() else Followed(False, "not all letters are capital")


class EnglishLowercase(Instruction):
    def follows(self, text: str) -> Followed:
        return _in_language(text, "en") if text.islower() else Followed(False, "not all letters are small")


class CapitalWordFrequency(Instruction):
    capital_frequency: int = Count
    capital_relation: Relation

    def follows(self, text: str) -> Followed:
        count = sum(word.isupper() for word in _WORD.findall(text))
        return _counted(count, "words in capital letters", self.capital_relation, self.capital_frequency)


_WORD = re.compile(r"[^\W_]+(?:[-./&][^\W_]+)*")  # with a hyphen, a stop or a slash inside it is still one


# --- Lengths ----------------------------------------------------------------------------------------------------------


class NumberWords(Instruction):
    num_words: int = Count
    relation: Relation

    def follows(self, text: str) -> Followed:
        return _counted(len(re.findall(r"\w+", text)), "words", self.relation, self.num_words)


class NumberSentences(Instruction):
    num_sentences: int = Count
    relation: Relation

    def follows(self, text: str) -> Followed:
        return _counted(count_sentences(text), "sentences", self.relation, self.num_sentences)


# Possessive: a run of a thousand marks is scanned once.
_MARK = re.compile(r"(?<![.!?\u2026])[.!?\u2026]++[\"'\u201d\u2019)\]*_]{0,4}(?=\s)|[\u3002\uff01\uff1f\u0964]+")
_NO_END = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|e\.g|i\.e|fig|approx|inc|ltd|co)|\b[a-z]|(?:^|\n)\W{0,4}\d{1,3})\.$",
    re.IGNORECASE,
)


def count_sentences(text: str) -> int:
    """How many sentences a text holds: parts that end with `.`, `!`, `?` or the like before white space, and the rest.

    Not an end: the stop of a common abbreviation, of an initial, or of a number that opens a line.
    """
    ends = [m for m in _MARK.finditer(text) if not _NO_END.search(text[max(0, m.start() - 12) : m.start() + 1])]
    parts = [text[a:b] for a, b in zip([0, *(m.end() for m in ends)], [*(m.end() for m in ends), None], strict=True)]
    return sum(any(letter.isalnum() for letter in part) for part in parts)


class NumberParagraphs(Instruction):
    num_paragraphs: int = Count

    def follows(self, text: str) -> Followed:
        """Paragraphs stand between `***`; the text may begin or end with one, and none may be empty."""
        parts = text.split("***")
        blank = [index for index, part in enumerate(parts) if not part.strip()]
        if any(0 < index < len(parts) - 1 for index in blank):
            return Followed(False, "an empty paragraph")
        return _counted(len(parts) - len(blank), "paragraphs", "exactly", self.num_paragraphs)


class NthParagraphFirstWord(Instruction):
    num_paragraphs: int = Count
    nth_paragraph: int = Field(ge=1)
    first_word: Text

    @model_validator(mode="after")
    def _is_there(self) -> NthParagraphFirstWord:
        if self.nth_paragraph > self.num_paragraphs:
            raise ValueError(f"there is no paragraph {self.nth_paragraph} of {self.num_paragraphs}")
        return self

    def follows(self, text: str) -> Followed:
        """Paragraphs stand between blank lines. Their number is that of the ones that are not empty; which one is
        the nth, empty ones count too, as in the paper's checker."""
        parts = text.split("\n\n")
        count = _counted(sum(bool(part.strip()) for part in parts), "paragraphs", "exactly", self.num_paragraphs)
        if not count.passed:
            return count
        words = parts[self.nth_paragraph - 1].split()
        first = re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"'))[0] if words else ""
        return _holds(
            first.lower() == self.first_word.lower(), f"paragraph {self.nth_paragraph} begins with {self.first_word!r}"
        )


# --- What must be in it, and how it is set ----------------------------------------------------------------------------


class NumberPlaceholders(Instruction):
    num_placeholders: int = Count

    def follows(self, text: str) -> Followed:
        """A placeholder is what stands in square brackets on one line."""
        count = 0
        for line in text.split("\n"):
            start = line.find("[")
            while start >= 0 and (end := line.find("]", start)) >= 0:
                count += 1
                start = line.find("[", end)
        return _counted(count, "placeholders", "at least", self.num_placeholders)


class Postscript(Instruction):
    postscript_marker: Text

    def follows(self, text: str) -> Followed:
        spelt = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
        pattern = spelt.get(self.postscript_marker, re.escape(self.postscript_marker.lower()))
        return _holds(re.search(pattern, text.lower()) is not None, f"a postscript {self.postscript_marker!r}")


class NumberBulletLists(Instruction):
    num_bullets: int = Count

    def follows(self, text: str) -> Followed:
        """A bullet is a line that opens with a hyphen, or with one asterisk and something after it."""
        lines = [line.lstrip() for line in text.split("\n")]
        count = sum(line.startswith("-") or (line.startswith("*") and line[1:2] not in ("", "*")) for line in lines)
        return _counted(count, "bullets", "exactly", self.num_bullets)


class NumberHighlightedSections(Instruction):
    num_highlights: int = Count

    def follows(self, text: str) -> Followed:
        """What stands on one line between two asterisks, or between two pairs of them."""
        count = 0
        for line in text.split("\n"):
            count += sum(bool(part.strip()) for part in line.split("*")[1:-1:2])
            count += sum(bool(part.strip()) for part in re.findall(r"\*\*([^*]+)\*\*", line))
        return _counted(count, "highlighted sections", "at least", self.num_highlights)


class MultipleSections(Instruction):
    section_spliter: Text
    num_sections: int = Count

    def follows(self, text: str) -> Followed:
        count = len(re.findall(rf"{re.escape(self.section_spliter)}\s?\d", text))
        return _counted(count, f"times {self.section_spliter!r} with a number", "at least", self.num_sections)


class JSONFormat(Instruction):
    def follows(self, text: str) -> Followed:
        """JSON and nothing else, bare or in one code fence."""
        fenced = re.fullmatch(r"```(?:json|JSON|Json)?(.*?)(?:```)?", text.strip(), re.DOTALL)
        try:
            json.loads(fenced[1] if fenced else text.strip().removesuffix("```"))
        except (ValueError, RecursionError):
            return Followed(False, "not readable as JSON")
        return Followed(True, "readable as JSON")


class Title(Instruction):
    def follows(self, text: str) -> Followed:
        """Some words between `<<` and `>>` on one line."""
        titled = (line[line.find("<<") : line.rfind(">>") + 2] for line in text.split("\n") if "<<" in line)
        return _holds(any(title.strip("<> \t\r") for title in titled if title.endswith(">>")), "a title")


class ConstrainedResponse(Instruction):
    def follows(self, text: str) -> Followed:
        offered = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
        return _holds(any(words in text for words in offered), "one of the three sentences offered")


class TwoResponses(Instruction):
    def follows(self, text: str) -> Followed:
        """Two that differ, with `******` between them."""
        parts = [part.strip() for part in text.split("******")]
        if not all(parts[1:-1]):
            return Followed(False, "an empty part")
        held = [part for part in parts if part]
        return Followed(len(held) == 2 and held[0] != held[1], f"{len(held)} parts, {len(set(held))} of them different")


class RepeatPrompt(Instruction):
    prompt_to_repeat: Text

    def follows(self, text: str) -> Followed:
        return _holds(text.strip().lower().startswith(self.prompt_to_repeat.lower()), "it begins with the request")


class EndChecker(Instruction):
    end_phrase: Text

    def follows(self, text: str) -> Followed:
        ends = text.strip().strip('"').lower().endswith(self.end_phrase.lower())
        return _holds(ends, f"it ends with {self.end_phrase!r}")


class Quotation(Instruction):
    def follows(self, text: str) -> Followed:
        text = text.strip()
        return _holds(len(text) > 1 and text[0] == text[-1] == '"', "it stands in double quotes")


class NoComma(Instruction):
    def follows(self, text: str) -> Followed:
        return _counted(text.count(","), "commas", "exactly", 0)


INSTRUCTIONS: dict[str, type[Instruction]] = {
    "change_case:capital_word_frequency": CapitalWordFrequency,
    "change_case:english_capital": EnglishCapital,
    "change_case:english_lowercase": EnglishLowercase,
    "combination:repeat_prompt": RepeatPrompt,
    "combination:two_responses": TwoResponses,
    "detectable_content:number_placeholders": NumberPlaceholders,
    "detectable_content:postscript": Postscript,
    "detectable_format:constrained_response": ConstrainedResponse,
    "detectable_format:json_format": JSONFormat,
    "detectable_format:multiple_sections": MultipleSections,
    "detectable_format:number_bullet_lists": NumberBulletLists,
    "detectable_format:number_highlighted_sections": NumberHighlightedSections,
    "detectable_format:title": Title,
    "keywords:existence": Existence,
    "keywords:forbidden_words": ForbiddenWords,
    "keywords:frequency": Frequency,
    "keywords:letter_frequency": LetterFrequency,
    "language:response_language": ResponseLanguage,
    "length_constraints:nth_paragraph_first_word": NthParagraphFirstWord,
    "length_constraints:number_paragraphs": NumberParagraphs,
    "length_constraints:number_sentences": NumberSentences,
    "length_constraints:number_words": NumberWords,
    "punctuation:no_comma": NoComma,
    "startend:end_checker": EndChecker,
    "startend:quotation": Quotation,
}


def instruction(identifier: str, arguments: dict[str, Any]) -> Instruction:
    """The instruction of that id. Raises ValueError, naming the id, for an unknown one and for wrong arguments."""
    kind = INSTRUCTIONS.get(identifier)
    if kind is None:
        raise ValueError(f"unknown instruction {identifier!r}: {nearest(identifier, INSTRUCTIONS)}")
    try:
        return kind.model_validate(arguments)
    except ValidationError as error:
        errors = error.errors()
        first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = f": {nearest(name, kind.model_fields)}" if kind.model_fields else ", which takes none"
            raise ValueError(f"`{name}` is no argument of {identifier}{known}") from None
        if first["type"] == "missing":
            raise ValueError(f"{identifier} needs the argument `{name}`") from None
        raise ValueError(f"{identifier}: {f'`{name}`: ' if name else ''}{plainly(first)}") from None


# --- Loosely ----------------------------------------------------------------------------------------------------------


def loosened(text: str) -> tuple[str, ...]:
    """The eight variants of a text of which one has to follow: its first line, its last line, both or neither taken
    away, each with and without its asterisks (arXiv 2311.07911, section 2.2)."""
    lines = text.split("\n")
    cut = (text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])))
    return (*cut, *(variant.replace("*", "") for variant in cut))


def follows(wanted: Instruction, text: str, *, loose: bool) -> Followed:
    """Whether `text` follows an instruction, or loosely: any variant of it that is not empty does."""
    strict = wanted.follows(text)
    if loose and not strict.passed:
        for variant in loosened(text)[1:]:
            if variant.strip() and wanted.follows(variant).passed:
                return Followed(True, "followed without its first or last line or its asterisks")
    return strict
