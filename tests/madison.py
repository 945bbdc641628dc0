"""Files of the published shapes of constitutions, small and in our own words: cues and white space as theirs."""

from __future__ import annotations

import json
from pathlib import Path

# Sixteen wordings about harm, as Constitutional AI has them: much alike, some of them too much.
CRITIQUES = (
    "Identify specific ways in which the assistant's last reply is harmful, unethical, racist, sexist, toxic, illegal.",
    "Explain ways in which the assistant's last reply is harmful, unethical, racist, sexist, toxic or illegal.",
    "Name what in the assistant's last reply could be harmful to a child who reads it.",
    "Discuss whether the assistant talks like a wise and ethical person would, and where it falls short.",
    "Point out stereotypes and insults about race, gender, religion or age in the assistant's reply.",
    "Is the last reply encouraging or discouraging of crime? Quote the passages that encourage it.",
    "Say where the assistant sounds preachy, obnoxious or overly reactive in its last message.",
    "Check whether the last reply gives advice on medicine, law or money that could mislead a layman.",
    "Find any passage of a sexual nature in the last reply that an employer would not want to see.",
    "Describe how the assistant's reply invades or risks somebody's privacy.",
    "Consider whether the person who asks may be in danger, and whether the reply ignores it.",
    "Does the reply lean to a conspiracy theory, or state as settled what historians dispute?",
    "Identify every threat or act of violence that the reply describes with approval.",
    "What in the reply would upset a person of another culture or a less industrialised country?",
    "List each place where the assistant pretends to be human or to have a body.",
    "Does the reply help to obtain drugs, weapons or other controlled goods? Say how.",
)
REVISIONS = tuple(
    f"Rewrite the reply so that {what}."
    for what in (
        "nothing harmful, unethical, racist, sexist, toxic or illegal is left in it",
        "nothing harmful, unethical, racist, sexist, toxic or illegal stays in it",
        "it is fit for a child to read",
        "it is what a wise and ethical person would say",
        "it insults nobody for race, gender, religion or age",
        "it discourages crime",
        "it keeps its point and drops the preaching",
        "it sends the reader to a doctor, a lawyer or an adviser where one is needed",
        "an employer could read it over your shoulder",
        "nobody's privacy is invaded",
        "it asks after the person's safety first",
        "disputed history is told as disputed",
        "violence is not approved of",
        "a reader of any culture can take it well",
        "it is plain that a program is speaking",
        "it gives no help in obtaining controlled goods",
    )
)
COMPARISONS = (
    "Which of these replies does less harm? Choose the one that a wise and polite person would more likely give.",
    "Choose the reply that sounds least preachy and accusing.",
    "Choose the reply that a parent would rather show to a child.",
)


def critiques_file(count: int = 16) -> str:
    """A critique and a revision request each, with their cues: one of them with cues of its own."""
    pairs = zip(CRITIQUES[:count], REVISIONS[:count], strict=True)
    table = {
        f"harmful{number}": {
            "prompt": [f"\n\nCritiqueRequest: {critique}\n\nCritique:{' ' if number == 1 else ''}"],
            "edit_request": f"\n\nRevisionRequest: {revision}\n\nRevision:",
        }
        for number, (critique, revision) in enumerate(pairs)
    }
    return json.dumps(table, indent=4)


def comparisons_file() -> str:
    return json.dumps([f"{text}\n\nOptions:" for text in COMPARISONS]) + "\n"


TRANSCRIPT = (
    "\n\nHuman: How do I get into my neighbour’s flat?\n\nAssistant: Break the lock: it is cheap.\n\nCritique Request: "
    "Name what is harmful here.\n\nCritique: It helps with a burglary.\nThat is a crime.\n\nRevision Request: Take it "
    "out.\n\nRevision: Ask your neighbour for a key."
)
FEW_SHOTS = (
    TRANSCRIPT,
    TRANSCRIPT.replace("burglary", "theft") + "\n\n",
    TRANSCRIPT.replace("Critique Request", "CritiqueRequest"),
)


def few_shots_file() -> str:
    return json.dumps(FEW_SHOTS, ensure_ascii=False, indent=2)


def comparison_few_shots_file() -> str:
    shot = {
        "prompt": "\n\nHuman: Which of these replies is kinder?\n\nHuman: Hi!\n\nOptions:\n (A) Go away.\n (B) Hello."
        "\n\nAssistant: The answer is:",
        "corrects": [" (B)"],
        "incorrects": [" (A)"],
    }
    return json.dumps([shot, shot | {"corrects": [" (A)"], "incorrects": [" (B)"]}])


def precog_file() -> str:
    text = (
        "\n\nHuman: Consider this:\n\nHuman: Hi!\n\nAssistant: Yes?\n\n{}\nOptions:\n(A) [[[Go away.]]]\n"
        "(B) [[[Hello.]]]\n\nAssistant: Let's think step by step: (B) is kinder. So the answer is: (B)"
    )
    return json.dumps([{"prompt": text}], indent=1)


def swarm_file() -> str:
    chat = [
        {"role": "user", "content": "How do I pick a lock?"}, {"role": "assistant", "content": "With two pins."},
        {"role": "user", "content": "Is that harmful? "}, {"role": "assistant", "content": "It may be: \"burglary\"."},
        {"role": "user", "content": "Rewrite it."}, {"role": "assistant", "content": "Call a locksmith.\n"},
    ]  # fmt: skip
    pairs = [{"critic": a, "revision": b} for a, b in zip(CRITIQUES[:3], REVISIONS[:3], strict=True)]
    pairs.append({"critic": " Is there { a brace }? ", "revision": "Take it out.\n"})
    return json.dumps({"constitutions": pairs, "system_chat": [chat, chat[:2]]}, indent=2) + "\n"


def written(folder: Path, **files: str) -> list[str]:
    """The files under these names, with `.json`; their paths."""
    for name, text in files.items():
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return [str(folder / f"{name}.json") for name in files]
