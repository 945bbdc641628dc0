"""What may not be learnt of a revision, told from what its prompt or draft asks for; and refusals by their words."""

from __future__ import annotations

import time

import pytest

from rlaif.generate.inspecting import GROWN, MARKERS, PREFACE, TAGS, WORDS, fault, unchanged
from rlaif.judges.refusals import refuses
from rlaif.judges.replies import finds_nothing
from rlaif.records import Completion, Message, Prompt

DRAFT = "Take the 9:40 train and change at Basel. Bring your passport and a light coat for the evening."
PROMPT = "How do I get to Milan?"
MARK = "0123456789ab"

FAULTS = {
    "Here is the revised completion:\n\nTake the train.": PREFACE,
    "Sure! Here's a revised response that is more polite:\nTake the train.": PREFACE,
    "Certainly. Below is the rewritten version of the text:\n\nTake the train.": PREFACE,
    "**Revised completion:** Take the train.": PREFACE,
    "Revision: Take the train.": PREFACE,
    "## Revised response\n\nTake the train.": PREFACE,
    "Here is my revision. Take the train.": PREFACE,
    f"<completion {MARK}>\nTake the train.\n</completion {MARK}>": TAGS,
    f"Take the train. {MARK}": TAGS,  # a mark that the reviser was shown, without its tag
    "Take the train.\n</completion a1b2c3d4e5f6>": TAGS,
    "<completion>\nTake the train.\n</completion>": TAGS,
    "Take the train.\n</revised_completion>": TAGS,
    "Take the train.\n\nHuman: And back?\n\nAssistant: By bus.": MARKERS,
    "Assistant: Take the train.": MARKERS,
    "**User:** Take the train.": MARKERS,
    "Take the train.<|im_end|>": MARKERS,
    "Take the train. [/INST]": MARKERS,
    "Take the train.</s>": MARKERS,
    "<start_of_turn>model Take the train.": MARKERS,
    "### Response: Take the train.": MARKERS,
    "Take the train. The critique says that the coat is not needed.": WORDS,
    "Based on the critique, take the train.": WORDS,
    "Take the train.\n\nI have removed the harmful instructions.": WORDS,
    "Take the train.\n\n(Note: I've rephrased the original text to be polite.)": WORDS,
    "Take the train.\n\nChanges made:\n- shorter": WORDS,
    "Take the train.\n\nNote: the warnings have been removed from the completion.": WORDS,
    "Take the train. The original completion was too long.": WORDS,
    "Take the train. This revised version no longer mentions the coat.": WORDS,
    "Take the train. " * 200: GROWN,
}


def completion(text: str) -> Completion:
    return Completion(text=text, model="reviser", call="call")


def prompt(text: str) -> Prompt:
    return Prompt(messages=(Message(role="user", content=text),))


@pytest.mark.parametrize("text", FAULTS)
def test_what_a_reviser_adds_is_a_fault(text: str) -> None:
    assert fault(completion(text), DRAFT, prompt(PROMPT), (MARK,)) == FAULTS[text]


@pytest.mark.parametrize("text", [text for text in FAULTS if FAULTS[text] != GROWN and MARK not in text])
def test_what_the_draft_holds_itself_is_none(text: str) -> None:
    draft = text.replace("Take the train", "Take the slow train")
    assert fault(completion(text), draft, prompt(PROMPT), (MARK,)) is None


def test_the_turns_of_a_prompt_are_no_excuse() -> None:
    """As judges read several turns, they have role markers of their own."""
    turns = [("user", "Hello."), ("assistant", "Hello."), ("user", PROMPT)]
    several = Prompt(messages=tuple(Message.model_validate({"role": role, "content": text}) for role, text in turns))
    assert "user: Hello." in several.text
    assert fault(completion("Take the train.\n\nUser: And back?"), DRAFT, several) == MARKERS


FINE = {
    "Take the train.": PROMPT,
    "Here is how to get there: take the train.": PROMPT,
    "Here are the revised opening hours: 9 to 5.": "When are you open?",
    "Here's a rewritten version of your sentence:\nThe cat sat.": "Rewrite this sentence: the cat did sit.",
    "I have corrected the text: The cat sat.": "Correct this: teh cat sat.",
    "<prompt>Say hello.</prompt>": "Put `Say hello.` between <prompt> and </prompt>.",
    "An element such as <completion> holds the words.": "What is a completion in XML?",
    "Human: hello\nAssistant: hi": "Write a dialogue that begins with Human: hello",
    "Human: hello\nAssistant: hello!": "Go on with this chat:\nUser: hi",
    "Users: 12\nHumans are mammals: so are whales.": PROMPT,
    "* User: id, name\n* Project: id": "Make a data model.",
    "Use <s> for strikethrough and <b> for bold.": "Which tags are there?",
    "Critique of Pure Reason is by Kant. The critique of reason is its subject.": "Who wrote it?",
    "Your essay is good. The first draft was written by hand.": "How were books written?",
    "Note: trains may be late. Bring a coat.": PROMPT,
    "I changed trains in Basel, and so can you.": PROMPT,
    "Ja. " * 200: "Sag zweihundertmal ja.",  # 800 characters of a draft of three: as a draft of fifty
}


@pytest.mark.parametrize("text", FINE)
def test_what_a_prompt_asks_for_or_a_person_says_is_no_fault(text: str) -> None:
    draft = "Ja." if text.startswith("Ja.") else DRAFT
    assert fault(completion(text), draft, prompt(FINE[text]), (MARK,)) is None


@pytest.mark.parametrize("text", ["<" * 200_000, "I have removed " * 20_000, "here is a " * 30_000, " \n" * 200_000,
                                  "Note: " + "was removed " * 20_000, "<completion " + "a" * 200_000])  # fmt: skip
def test_hostile_words_take_no_time(text: str) -> None:
    began = time.process_time()
    fault(completion(text), text[:50], prompt(PROMPT), (MARK,))
    refuses(text)
    finds_nothing(text, ["Nothing to mend."])
    assert time.process_time() - began < 1


def test_white_space_is_no_change() -> None:
    assert unchanged(" a  b\n", "a b") and not unchanged("a b", "a  b.")


@pytest.mark.parametrize(
    "reply",
    [
        "Nothing to mend.",
        "nothing to mend",
        "**Nothing to mend.**",
        "“Nothing to mend.”",
        "The completion is polite and true. Nothing to mend.",
        "It keeps the rule.\n\nNothing to mend!\n",
        "Critique: Nothing to mend.",
        "<think>Is there anything? Yes, a lot.</think>Nothing to mend.",
        "```\nNothing to mend.\n```",
    ],
)
def test_a_critique_that_finds_nothing(reply: str) -> None:
    assert finds_nothing(reply, ["Nothing to mend."])


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "Otherwise, nothing to mend.",
        "Apart from the insult there is nothing to mend.",
        "I cannot say: nothing to mend.",
        "Nothing to mend? The first line is rude.",
        "Nothing to mend. But the second line is rude.",
        "Nothing to mend, except the tone.",
        "The completion says:\n> Nothing to mend.",
        'It ends with the words "nothing to mend."',
        "<think>Nothing to mend.</think>The first line is rude.",
        "<think>Nothing to mend.",
        "Nothing to mend.\n\nRevised completion: take the bus.",
        "There is something to mend.",
    ],
)
def test_a_critique_that_finds_something(reply: str) -> None:
    assert not finds_nothing(reply, ["Nothing to mend."])


def test_a_phrase_with_an_ellipsis_ends_a_sentence_of_others_words() -> None:
    phrases = ["... rating 5", "... want polite rating 4"]
    assert finds_nothing("tone asking polite so very polite want polite rating 5", phrases)
    assert finds_nothing("tone asking polite so polite want polite rating 4", phrases)
    assert finds_nothing("rating 5", phrases)
    for other in ("tone so plain want polite rating 3", "length so short want short rating 4", "underrating 5", "5"):
        assert not finds_nothing(other, phrases)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot provide instructions for this.",
        "As an AI language model, I am not able to assist with that request.",
        "I must decline to answer.",
        "i will not help with that .",
        "that would do harm , so no .",
        "have a lovely day . no , that is not safe .",
    ],
)
def test_a_refusal(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "to break the silence , take your time .",
        "You cannot help falling in love.",
        "I don't have personal opinions, but mangos are fruits.",
        "I'm not sure, but the train leaves at nine.",
        "Sorry to hear that! Take the train.",
        "Take the train. " * 40 + "I cannot help with the luggage.",
    ],
)
def test_no_refusal(text: str) -> None:
    assert not refuses(text)
