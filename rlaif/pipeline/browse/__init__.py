"""Reads run folders, for `status`, `show` and `export`. Never changes a run.

Only stages and data sets in the manifest are shown, and no other files in the folder.
"""

from rlaif.pipeline.browse.export import export
from rlaif.pipeline.browse.principles import principles
from rlaif.pipeline.browse.rows import (
    Shown,
    Wanted,
    all_preferences,
    listed,
    preferences,
    requests,
    row,
    rows,
    rows_after,
)
from rlaif.pipeline.browse.status import models, status, summary

__all__ = [
    "Shown",
    "Wanted",
    "all_preferences",
    "export",
    "listed",
    "models",
    "preferences",
    "principles",
    "requests",
    "row",
    "rows",
    "rows_after",
    "status",
    "summary",
]
