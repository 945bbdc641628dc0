"""The gold pairs are the project's own: none of their sentences stands in a published data set."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

import pytest

from rlaif.audits.goldset import read_gold

DATA = Path(os.environ.get("RLAIF_REALDATA", Path(__file__).parents[2] / "shared" / "data"))
SETS = ("advbench", "ifeval", "llmbar", "mt_bench", "truthfulqa", "xstest")
SHARED = 8  # words in a row; fewer are met by chance in ordinary English

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not DATA.is_dir(), reason="no published data here: set RLAIF_REALDATA to its folder"),
]


def runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + SHARED]) for i in range(len(words) - SHARED + 1)}


def test_no_text_is_taken_from_a_published_set() -> None:
    ours = {
        run: pair.id
        for pair in read_gold()
        for text in (pair.prompt.text, pair.better, pair.worse)
        for run in runs(text)
    }
    assert len(ours) > 10_000
    met = 0
    for name in SETS:
        files = [path for path in sorted((DATA / name).iterdir()) if path.is_file()]
        assert files, name
        for path in files:
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            theirs = runs(raw.decode("utf-8").replace("\\n", " "))
            met += len(theirs)
            assert {ours[run] + ": " + " ".join(run) for run in ours.keys() & theirs} == set(), path.name
    assert met > 100_000
