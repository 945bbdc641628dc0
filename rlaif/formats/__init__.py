"""The data shapes other people's files have, and the ones we write. Only here do their column names live.

`reading` turns files into prompts, conversations and preferences, `writing` records into data sets that trainers load
unedited.
"""

from rlaif.formats.reading import (
    Conversation,
    ReadResult,
    Rows,
    StatedPreference,
    each_prompt,
    read_conversations,
    read_hub,
    read_preferences,
    read_prompts,
)
from rlaif.formats.writing import (
    CardFacts,
    preference_rows,
    sft_rows,
    ultrafeedback_rows,
    write_dataset,
    write_jsonl,
)

__all__ = [
    "CardFacts",
    "Conversation",
    "ReadResult",
    "Rows",
    "StatedPreference",
    "each_prompt",
    "preference_rows",
    "read_conversations",
    "read_hub",
    "read_preferences",
    "read_prompts",
    "sft_rows",
    "ultrafeedback_rows",
    "write_dataset",
    "write_jsonl",
]
