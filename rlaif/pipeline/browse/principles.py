"""What each principle did in a run, recounted from its stage files."""

from __future__ import annotations

from typing import Any

from rlaif.audits import by_principle
from rlaif.errors import InputError
from rlaif.pipeline.browse.rows import rows
from rlaif.pipeline.browse.status import holding, manifest_of
from rlaif.pipeline.folder import RunFolder


def principles(folder: RunFolder) -> dict[str, Any]:
    """By stage, what each principle did, and remarks. Raises InputError for a run without a constitution."""
    stages: dict[str, Any] = {}
    for stage in holding(manifest_of(folder)["stages"], "rows"):
        if stage.get("revisions"):
            found = by_principle.of_revisions(rows(folder, stage["name"]))
            said = by_principle.on_revisions(found)
            stages[stage["name"]] = {"of": "revisions", "principles": found, "remarks": said}
        elif stage.get("comparisons"):
            found = by_principle.of_comparisons(rows(folder, stage["name"]))
            said = by_principle.on_comparisons(found)
            stages[stage["name"]] = {"of": "comparisons", "principles": found, "remarks": said}
    if not stages:
        fix = "give the run of a pipeline with `revise` or `compare`"
        raise InputError(f"no principle was drawn in {str(folder.path)!r}", fix=fix)
    return stages
