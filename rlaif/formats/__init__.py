"""The data shapes other people's files have, and the ones we write. Only here do their column names live.

`reading` turns files into prompts and conversations, `writing` records into data sets that trainers load unedited.
"""

from rlaif.formats.reading import Conversation, ReadResult, Rows, read_conversations, read_hub, read_prompts
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
    "preference_rows",
    "read_conversations",
    "read_hub",
    "read_prompts",
    "sft_rows",
    "ultrafeedback_rows",
    "write_dataset",
    "write_jsonl",
]
