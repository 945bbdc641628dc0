"""The data shapes other people's files have, and the ones we write. Only here do their column names live.

`reading` turns files into prompts, conversations, preferences and judged rows, `writing` records
into data sets that trainers load unedited.
"""

from rlaif.formats.files import Rows, read_hub, rows_of
from rlaif.formats.reading import (
    Conversation,
    ReadResult,
    StatedPreference,
    each_prompt,
    each_row,
    named,
    read_conversations,
    read_preferences,
    read_prompts,
    read_rows,
)
from rlaif.formats.writing import (
    CardFacts,
    Shape,
    binarized_rows,
    hh_rows,
    preference_rows,
    ranked_rows,
    rewardbench_rows,
    sft_rows,
    soft_rows,
    ultrafeedback_rows,
    write_dataset,
    write_jsonl,
)

__all__ = [
    "CardFacts",
    "Conversation",
    "ReadResult",
    "Rows",
    "Shape",
    "StatedPreference",
    "binarized_rows",
    "each_prompt",
    "each_row",
    "hh_rows",
    "named",
    "preference_rows",
    "ranked_rows",
    "read_conversations",
    "read_hub",
    "read_preferences",
    "read_prompts",
    "read_rows",
    "rewardbench_rows",
    "rows_of",
    "sft_rows",
    "soft_rows",
    "ultrafeedback_rows",
    "write_dataset",
    "write_jsonl",
]
