"""The data shapes other people's files have, and the ones we write. Only here do their column names live.

`reading` turns files into prompts, conversations, preferences and judged rows; `write` turns records into data sets
that trainers load unedited, one file for each shape.
"""

from rlaif.formats.columns import Column, named
from rlaif.formats.files import Table, read_hub, rows_of
from rlaif.formats.reading import (
    Conversation,
    PlainText,
    ReadResult,
    StatedPreference,
    each_prompt,
    each_row,
    read_conversations,
    read_preferences,
    read_prompts,
    read_texts,
)
from rlaif.formats.write import SHAPES
from rlaif.formats.write.binarized import binarized_rows
from rlaif.formats.write.card import CardFacts
from rlaif.formats.write.dataset import write_dataset
from rlaif.formats.write.files import file_form, write_file
from rlaif.formats.write.hh import hh_rows
from rlaif.formats.write.preference import preference_rows
from rlaif.formats.write.ranked import ranked_rows
from rlaif.formats.write.rated import rated_rows
from rlaif.formats.write.rewardbench import rewardbench_rows
from rlaif.formats.write.sft import sft_rows
from rlaif.formats.write.shape import Shape
from rlaif.formats.write.soft import soft_rows
from rlaif.formats.write.ultrafeedback import ultrafeedback_rows

__all__ = [
    "SHAPES",
    "CardFacts",
    "Column",
    "Conversation",
    "PlainText",
    "ReadResult",
    "Shape",
    "StatedPreference",
    "Table",
    "binarized_rows",
    "each_prompt",
    "file_form",
    "each_row",
    "hh_rows",
    "named",
    "preference_rows",
    "ranked_rows",
    "rated_rows",
    "read_conversations",
    "read_hub",
    "read_preferences",
    "read_prompts",
    "read_texts",
    "rewardbench_rows",
    "rows_of",
    "sft_rows",
    "soft_rows",
    "ultrafeedback_rows",
    "write_dataset",
    "write_file",
]
