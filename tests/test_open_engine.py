"""Opening the engines a pipeline names: each kind has one, and what is not installed is named with its extra."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from test_run import Cli, run_cli  # noqa: F401 - the fixture

from rlaif.config import ENGINES
from rlaif.engines import open as opening

PIPELINE = """\
name: judged
models:
  base: {engine: vllm, path: tiny/base}
stages:
  - prompts: {path: tiny/prompts.jsonl, take: 2}
  - sample: {models: [base], per_prompt: 2}
"""


def test_every_engine_that_a_pipeline_can_name_can_be_opened() -> None:
    assert opening._OPEN.keys() == ENGINES.keys()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_an_engine_that_is_not_installed_names_its_extra(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    (tmp_path / "judged.yaml").write_text(PIPELINE)
    for command in ("plan", "run"):
        code, _, err = run_cli(command, "judged.yaml")
        assert code == 2 and "vllm is not installed" in err and "pip install 'rlaif-kit[vllm]'" in err
