"""The import contracts of pyproject.toml hold for the package as it is, and each fails when it is breached.

Knows each contract by its `id` and one or more ways to break it; a contract without a breach here is itself a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTRACTS = {
    contract["id"]: contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}

# (contract, {file of the package: lines added to it}); a file that is not there is made.
BREACHES = [
    ("layers", {"errors.py": "import rlaif.statistics"}),  # upwards
    ("layers", {"store.py": "import rlaif.statistics"}),  # sideways
    ("layers", {"measures/gold.py": "import rlaif.generate.pairing"}),
    ("layers", {"records.py": "def late():\n    import rlaif.resources"}),  # inside a function
    ("layers", {"utils.py": ""}),  # a module without a layer
    ("pipeline", {"pipeline/upkeep.py": "def late():\n    import rlaif.pipeline.stages"}),  # upwards
    ("pipeline", {"pipeline/stages/sample.py": "def late():\n    import rlaif.pipeline.new", "pipeline/new.py": ""}),
    ("pipeline", {"pipeline/browse.py": "import rlaif.pipeline.plan"}),  # sideways
    ("pipeline", {"pipeline/other.py": ""}),  # a module without a layer
    ("trainers", {"train/sft.py": "import rlaif.train.dpo"}),
    ("trainers", {"train/dpo.py": "import rlaif.train.between", "train/between.py": "import rlaif.train.sft"}),
    ("cycles", {"engines/one.py": "import rlaif.engines.two", "engines/two.py": "import rlaif.engines.one"}),
    ("torch", {"templates/template.py": "import torch.nn"}),
    ("torch", {"engines/protocol.py": "def late():\n    from transformers import pipeline"}),
    ("torch", {"train/pairs.py": "def late():\n    import torch"}),
    ("trl", {"train/sft.py": "from trl import SFTTrainer"}),
    ("ppo", {"train/rollout.py": "import rlaif.train.trl"}),
    ("jobs", {"train/job.py": "def late():\n    import rlaif.train.models"}),
    ("jobs", {"train/examples.py": "def late():\n    import rlaif.train.models"}),
    ("openai", {"engines/scheduler.py": "import openai"}),
    ("vllm", {"engines/transformers.py": "import vllm"}),
    ("xgrammar", {"judges/rating.py": "def late():\n    import xgrammar"}),
    ("gold", {"audits/probes.py": "import rlaif.tiny.world"}),
    ("gold", {"pipeline/folder.py": "import rlaif.tiny.world"}),
]


def broken_contracts(package: Path) -> set[str]:
    """The names of the contracts that `package`, a folder called rlaif, does not keep."""
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [command, "--config", ROOT / "pyproject.toml", "--no-cache", "--no-logo"],
        cwd=package.parent,
        env=os.environ | {"PYTHONPATH": str(package.parent), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    verdicts = {
        name: word for line in done.stdout.splitlines() for name in CONTRACTS.values() for word in _verdict(line, name)
    }
    assert verdicts.keys() == set(CONTRACTS.values()), done.stdout + done.stderr
    broken = {name for name, verdict in verdicts.items() if verdict == "BROKEN"}
    assert (done.returncode != 0) == bool(broken), done.stdout + done.stderr
    return broken


def _verdict(line: str, name: str) -> list[str]:
    return line.removeprefix(name).split()[:1] if line.startswith(f"{name} ") else []


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package that a test may break."""
    return shutil.copytree(
        ROOT / "rlaif",
        tmp_path / "rlaif",
        ignore=shutil.ignore_patterns("*.safetensors", "*.jsonl", "bundled", "__pycache__"),
    )


def test_the_package_keeps_every_contract(package: Path) -> None:
    assert broken_contracts(package) == set()


@pytest.mark.parametrize(("contract", "additions"), BREACHES)
def test_a_breach_is_seen_and_breaks_no_other_contract(contract: str, additions: dict[str, str], package: Path) -> None:
    for name, lines in additions.items():
        with (package / name).open("a") as file:
            file.write(f"\n{lines}\n")
    assert broken_contracts(package) == {CONTRACTS[contract]}


def test_every_contract_has_a_breach() -> None:
    assert len(CONTRACTS) >= 9
    assert {contract for contract, _ in BREACHES} == CONTRACTS.keys()
