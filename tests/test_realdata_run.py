"""Real instructions through the shipped UltraFeedback pipeline into data that TRL trains on unedited."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from echo import Echo
from serving import serve
from test_run import Cli, count, run_cli  # noqa: F401 - the fixture

ROOT = Path(__file__).parent.parent
REALDATA = Path(os.environ.get("RLAIF_REALDATA", ROOT / "../shared/data")).resolve()
INSTRUCTIONS = REALDATA / "instruction_formats/alpaca_cleaned_500.json.gz"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not INSTRUCTIONS.exists(), reason=f"no published data under {REALDATA}: set RLAIF_REALDATA"),
]


@pytest.mark.filterwarnings("ignore")  # the trainer's own
def test_real_instructions_become_a_data_set_that_trains(tmp_path: Path, random_model: Path, run_cli: Cli) -> None:  # noqa: F811
    names = (*(f"model-{letter}" for letter in "abcdef"), "judge")
    models = {name: Echo(name) for name in names}
    with serve(models) as url:
        moved = [f"models.{name}.base_url={url}" for name in names]
        moved += [f"models.{name}.identity={name}" for name in names]  # else the port would decide what is drawn
        code, out, err = run_cli(
            "run", "pipelines/ultrafeedback.yaml", f"stages.prompts.prompts.path={INSTRUCTIONS}", *moved
        )
    assert code == 0, out + err
    manifest = json.loads(Path("runs/ultrafeedback/manifest.json").read_text())
    assert [stage["in"] for stage in manifest["stages"]] == [500] * 5
    # four samples, a critique of each different one, four aspects
    assert 500 * (4 + 4) < sum(count(models).values()) <= 500 * (4 + 4 + 4)

    import datasets
    from trl import DPOConfig, DPOTrainer

    folder = Path("runs/ultrafeedback/dataset")
    table = datasets.load_dataset("parquet", data_files=str(folder / "ultrafeedback/data/*.parquet"), split="train")
    assert len(table) == 500
    for row in table:
        assert len({completion["model"] for completion in row["completions"]} & set(names)) == 4
        for completion in row["completions"]:
            aspects = {note["aspect"]: note["Rating"] for note in completion["annotations"]}
            assert set(aspects) == {"instruction_following", "honesty", "truthfulness", "helpfulness"}
            words = len(completion["response"].split())
            assert set(aspects.values()) == {str(min(5, words))}  # bound to its completion
            assert completion["overall_score"] == words
            assert repr(completion["response"].split()[0]) in completion["critique"]

    preferences = datasets.load_dataset("parquet", data_files=str(folder / "preference/data/*.parquet"), split="train")
    assert len(preferences) == manifest["stages"][-1]["out"] > 300
    settings: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 2, "bf16": False, "report_to": "none"}
    arguments = DPOConfig(output_dir=str(tmp_path / "dpo"), gradient_checkpointing=False, use_cpu=True, **settings)
    trainer = DPOTrainer(model=str(random_model), args=arguments, train_dataset=preferences.select(range(16)))
    trainer.train()
    assert trainer.state.global_step == 2
