"""rlaif beside other tools, on one harness: P prompts, four models, one judge, best against worst.

    peer_adapter.py --base-url URL --prompts ROWS.jsonl --out DIR --concurrency N --judge-template FILE

Writes a pipeline into DIR, runs it as `rlaif run` does, and puts DIR/dataset.jsonl beside it: a row for each prompt
whose four completions are rated, {"id", "instruction", "chosen", "rejected", "ratings"}. Run again with the same DIR it
goes on. FILE holds the judge prompt with {instruction} and {texts}; ROWS are {"id", "instruction"}.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODELS = ("model-a", "model-b", "model-c", "model-d")
TEXTS = (
    "{% for text in completions %}{% if not loop.first %}\n{% endif %}<text {{ loop.index }}> {{ text }}{% endfor %}"
)
RUBRIC = "name: quality\nversion: 1\nscale: {low: 1, high: 5}\naspects: [{id: quality, description: overall quality}]\n"


def pipeline(base_url: str, prompts: Path, concurrency: int) -> dict[str, Any]:
    def model(name: str) -> dict[str, Any]:
        return {"engine": "openai", "model": name, "base_url": base_url, "concurrency": concurrency}

    judging = {"model": "judge", "rubric": "rubric.yaml", "template": "judge.jinja", "answers": "lines"}
    return {
        "name": "bench",
        "models": {name: model(name) for name in (*MODELS, "judge")},
        "stages": [
            {"prompts": {"path": str(prompts), "split": "all", "column": "instruction"}},
            {"sample": {"models": list(MODELS), "sampling": {"max_tokens": 512}}},
            {"rate": judging | {"reask": 3, "sampling": {"max_tokens": 512}}},
            {"pair": {"rule": "best-worst"}},
        ],
    }


def rated(rows: Path) -> Iterator[dict[str, Any]]:
    """Rows of a rate stage that have all their ratings, in the harness's form. It counts a tie as a row."""
    with rows.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            texts = [candidate["completion"]["text"] for candidate in row.get("candidates", ())]
            ratings = [rating["value"] for rating in row.get("ratings", ())]
            if len(ratings) == len(texts) == len(MODELS) and None not in ratings:
                best, worst = (
                    max(range(4), key=lambda i: (ratings[i], -i)),
                    min(range(4), key=lambda i: (ratings[i], -i)),
                )
                asked = row["prompt"]["messages"][0]["content"]
                yield {"instruction": asked, "chosen": texts[best], "rejected": texts[worst], "ratings": ratings}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--base-url", "--prompts", "--out", "--judge-template"):
        parser.add_argument(option, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    options = parser.parse_args()
    prompts, template, out = (
        Path(options.prompts).resolve(),
        Path(options.judge_template).read_text(),
        Path(options.out),
    )
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)  # the call store lies in the current folder's runs/
    judge = template.replace("{texts}", TEXTS).replace("{instruction}", "{{ prompt }}")
    Path("judge.jinja").write_text(judge + "\nJudge the {{ aspect.description }} alone.\n", encoding="utf-8")
    Path("rubric.yaml").write_text(RUBRIC, encoding="utf-8")
    # A JSON document is a YAML document.
    Path("bench.yaml").write_text(
        json.dumps(pipeline(options.base_url, prompts, options.concurrency)), encoding="utf-8"
    )

    from rlaif.cli import main as rlaif

    sys.argv = ["rlaif", "run", "bench.yaml"]
    try:
        rlaif()
    except SystemExit as ended:
        code = ended.code
    rows = rated(next(Path("runs/bench/stages").glob("*-rate.jsonl")))
    with prompts.open(encoding="utf-8") as given_rows, open("dataset.jsonl", "w", encoding="utf-8") as file:
        given = map(json.loads, given_rows)  # in the same order, so that neither has to be kept in memory
        for row in rows:
            asked = next(one for one in given if one["instruction"] == row["instruction"])
            file.write(json.dumps({"id": asked["id"]} | row, ensure_ascii=False) + "\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
