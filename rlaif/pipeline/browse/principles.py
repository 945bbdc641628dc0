"""What each principle did in a run, recounted from its stage files."""

from __future__ import annotations

from typing import Any

from rlaif.audits import by_principle
from rlaif.errors import InputError
from rlaif.pipeline.browse.rows import rows
from rlaif.pipeline.browse.status import holding, manifest_of
from rlaif.pipeline.folder import RunFolder


def report(folder: RunFolder) -> dict[str, Any]:
    """By stage, what each principle did, and remarks. Raises InputError for a run without a constitution."""
    stages: dict[str, Any] = {}
    for stage in holding(manifest_of(folder)["stages"], "rows"):
        if stage["kind"] in ("revise", "compare"):
            read = by_principle.of_revisions if stage["kind"] == "revise" else by_principle.of_comparisons
            found = read(rows(folder, stage["name"]))
            revised, compared = (found, {}) if stage["kind"] == "revise" else ({}, found)
            stages[stage["name"]] = {
                "kind": stage["kind"],
                "principles": found,
                "remarks": by_principle.remarks(revised, compared),
            }
    if not stages:
        fix = "give the run of a pipeline with `revise` or `compare`"
        raise InputError(f"no principle was drawn in {str(folder.path)!r}", fix=fix)
    return stages
