"""A minute's worth of the fuzzers: what they found before, and new damage from fixed seeds."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from fuzzing import SEEDS, TARGETS, attempt, inputs

ATTEMPTS = 60  # of each target
READ_AS_IT_IS = {"yaml", "rows", "replies", "safetensors"}  # every text; of a server's bodies, half are errors


@pytest.mark.parametrize("name", TARGETS)
def test_texts_without_damage_are_read(name: str, tmp_path: Path) -> None:
    texts = TARGETS[name].texts()
    counts = [attempt(name, text, tmp_path) for text in texts]
    assert len(counts) > 1 and sum(map(bool, counts)) >= (len(counts) if name in READ_AS_IT_IS else 2)


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("name", TARGETS)
def test_damage_is_read_or_refused_in_a_sentence(name: str, number: int, tmp_path: Path) -> None:
    for data in islice(inputs(name, number), len(list((SEEDS / name).glob("*"))), None):
        attempt(name, data, tmp_path)
        if (number := number + 1) % (ATTEMPTS // 6) == 0:
            break


FOUND = sorted(SEEDS.glob("*/*"))


@pytest.mark.parametrize("seed", FOUND, ids=lambda seed: f"{seed.parent.name}-{seed.name}")
def test_what_fell_once_holds(seed: Path, tmp_path: Path) -> None:
    attempt(seed.parent.name, seed.read_bytes(), tmp_path)


def test_a_fall_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def falls(data: bytes, folder: Path) -> int:
        raise KeyError("content")

    monkeypatch.setitem(TARGETS, "rows", TARGETS["rows"]._replace(reads=falls))
    with pytest.raises(KeyError):
        attempt("rows", b"{}", tmp_path)


def test_the_suite_is_as_large_as_it_says(request: pytest.FixtureRequest) -> None:
    here = [item for item in request.session.items if item.path.parent == SEEDS.parent]
    if {item.path for item in here} < set(SEEDS.parent.glob("test_hostile_*.py")):
        pytest.skip("only a part of the suite was chosen")
    assert len(here) >= 1_000  # and three quarters of the large tables, which the lab runs
