"""Which attempts run on every change, and which in `make lab`.

A large table of attempts tries one guard in many ways. Half of it, chosen by the names of its cases, breaks with the
guard as the whole does, and takes half of the time: the other half is marked `lab`.
"""

from __future__ import annotations

import zlib
from collections import defaultdict

import pytest

MANY = 24  # attempts of one test, above which half of them are the lab's


@pytest.hookimpl(tryfirst=True)  # before those that are marked are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tables: dict[tuple[str, str], list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.path.parent.name == "hostile":
            tables[str(item.path), getattr(item, "originalname", item.name)].append(item)
    for table in tables.values():
        if len(table) > MANY:
            for item in table:
                if zlib.crc32(item.name.encode()) % 2:
                    item.add_marker(pytest.mark.lab)
