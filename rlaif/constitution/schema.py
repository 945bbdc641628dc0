"""The JSON schema of a constitution's file, for editors: what a person may write, short forms included."""

from __future__ import annotations

from typing import Any

from rlaif.config.document import NAME
from rlaif.constitution.reading import RULE, Constitution, Principle, Requests

TITLE = "A constitution of rlaif"
ABOUT = {
    "name": "The constitution's name in reports.",
    "preamble": "The system message before every request.",
    "requests": f"How a request is made of a principle's rule, which stands where {RULE} is.",
    "examples": "Chats of user and assistant that a model sees before a request.",
    "principles": "The principles; each prompt draws one.",
    "origin": "Of an import: what its export puts back. No prompt holds it.",
}
ABOUT_PRINCIPLE = {
    "id": "Its name in data and reports. A new name draws anew; with the old one under `was` it does not.",
    "rule": "What the requests that are not written out are made of.",
    "critique": "Asks what in a completion breaks the principle.",
    "revision": "Asks to rewrite the completion after the critique.",
    "comparison": "Asks which of two completions keeps the principle better.",
    "weight": "How much more often it is drawn than one of weight 1.",
    "was": "The id that it had before.",
}


def schema() -> dict[str, Any]:
    made = Constitution.model_json_schema()
    made |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": TITLE}
    made["description"] = "Principles that completions are critiqued, revised and compared under."
    definitions = made["$defs"]
    for request in Requests.model_fields:
        definitions["Requests"]["properties"][request]["pattern"] = RULE.replace("{", r"\{").replace("}", r"\}")
    for properties, about in (
        (made["properties"], ABOUT), (definitions["Principle"]["properties"], ABOUT_PRINCIPLE),
    ):  # fmt: skip
        for key, words in about.items():
            properties[key]["description"] = words
    written_out = {
        **definitions["Principle"],
        "anyOf": [{"required": ["rule"]}, {"required": ["critique", "revision"]}, {"required": ["comparison"]}],
        "dependentSchemas": {
            one: {"anyOf": [{"required": ["rule"]}, {"required": [other]}]}
            for one, other in (("critique", "revision"), ("revision", "critique"))
        },
    }
    one_line = {
        "type": "object",
        "title": "A principle in one line",
        "description": "Its id and its rule, such as `tone: Be polite.`",
        "minProperties": 1,
        "maxProperties": 1,
        "propertyNames": {"pattern": NAME, "not": {"enum": list(Principle.model_fields)}},
        "additionalProperties": {"type": "string", "minLength": 1},
    }
    definitions["Principle"] = {"anyOf": [written_out, one_line]}
    return made
