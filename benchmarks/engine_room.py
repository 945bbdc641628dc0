"""The engine room on the harness the other tools were measured on: speed, memory, faults, kills, what is paid twice.

    python benchmarks/engine_room.py SCENARIO [SCENARIO ...] [--harness ../shared/bench] [--work DIR] [--P N] [--reps N]

Scenarios of the harness (overhead64, overhead256, small, scale, fault, httpfault, badjudge, same, edit, extend) run
`raw_aiohttp`, a bare asynchronous client, and rlaif through benchmarks/peer_adapter.py, one after the other, and print
the ratios. Three of its own: `kills` (SIGKILL at twenty moments spread over the run, then the same command again),
`rerun` (the same command again on 100,000 stored calls) and `memory` (peak RSS at 2,000, 20,000 and 200,000 prompts).
The harness needs virtual environments of its own; they are made in the work folder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
ADAPTER = HERE / "peer_adapter.py"
RATIOS = ("wall", "span", "cpu_per_1k", "startup", "rss_mb")
PAID = {"ok", "slow", "empty", "badjudge", "badjson", "trunc"}
OWN = ("kills", "rerun", "memory")


class Bench:
    """A copy of the harness with two adapters: the bare client and ours."""

    def __init__(self, harness: Path, work: Path) -> None:
        self.folder, self.work, self.venvs = work / "harness", work / "runs", work / "venvs"
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(harness, self.folder)
        known = json.loads((self.folder / "adapters.json").read_text())
        ours = {"cmd": [sys.executable, str(ADAPTER)], "venv": "raw_aiohttp", "import": "rlaif", "pip": []}
        path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        adapters = {"raw_aiohttp": known["raw_aiohttp"], "rlaif": ours | {"env": {"PYTHONPATH": path}}}
        (self.folder / "adapters.json").write_text(json.dumps(adapters))
        self.work.mkdir(parents=True, exist_ok=True)
        self.env = os.environ | {"BENCH_VENVS": str(self.venvs), "BENCH_WORK": str(self.work), "PYTHONPATH": path}
        if not self.python("server").exists():
            subprocess.run([sys.executable, "bench.py", "setup"], cwd=self.folder, env=self.env, check=True)

    def python(self, venv: str) -> Path:
        return self.venvs / venv / "bin" / "python"

    def scenario(self, name: str, options: Sequence[str]) -> list[dict[str, Any]]:
        command = [str(self.python("server")), "bench.py", name, *options]
        done = subprocess.run(command, cwd=self.folder, env=self.env, check=True, stdout=subprocess.PIPE, text=True)
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    @contextmanager
    def server(self, **options: float) -> Iterator[tuple[str, Path]]:
        """The harness's server; gives its address and its log, which is whole when the block has ended."""
        log = self.work / "server.log"
        arguments = [f"--{name.replace('_', '-')}={value:g}" for name, value in options.items()]
        command = [str(self.python("server")), "mock_server.py", "--log", str(log), *arguments]
        with subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1", log
            finally:
                process.terminate()

    def start(self, url: str, prompts: int, out: Path, concurrency: int) -> subprocess.Popen[bytes]:
        rows = self.work / f"prompts-{prompts}.jsonl"
        if not rows.exists():
            code = f"import workload; workload.write({str(rows)!r}, {prompts})"
            subprocess.run([sys.executable, "-c", code], cwd=self.folder, check=True)
        template = self.folder / "judge.txt"
        options = {"base-url": url, "prompts": rows, "out": out, "concurrency": concurrency, "judge-template": template}
        command = [sys.executable, str(ADAPTER), *(str(part) for k, v in options.items() for part in (f"--{k}", v))]
        return subprocess.Popen(command, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def finished(self, process: subprocess.Popen[bytes]) -> dict[str, float]:
        """Wait for a run: its processor seconds and peak memory in MB. Raises when it failed."""
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"the run failed with exit code {process.returncode}")
        return {"cpu": used.ru_utime + used.ru_stime, "rss_mb": used.ru_maxrss / 1024}


def paid(url: str) -> int:
    with urllib.request.urlopen(f"{url}/stats", timeout=20) as answer:
        return int(json.load(answer).get("paid", 0))


def kills(bench: Bench, prompts: int, moments: int = 20) -> None:
    """Kill the run when a given share is paid, run it again, and count what was paid twice."""
    twice, lost, doubled, excess = [], 0, 0, 0
    for moment in range(moments):
        out = bench.work / "kills"
        shutil.rmtree(out, ignore_errors=True)
        share = (moment + random.Random(moment).random()) / moments
        with bench.server(latency_ms=50, slots=64) as (url, log):
            process = bench.start(url, prompts, out, 64)
            _until(lambda url=url, share=share: paid(url) >= share * 5 * prompts)
            process.send_signal(signal.SIGKILL)
            process.wait()
            bench.finished(bench.start(url, prompts, out, 64))
        found = [line.split() for line in log.read_text().splitlines()]
        calls = Counter(key for _, _, key, _, _, _, outcome, _ in found if outcome in PAID)
        probes = 1  # the same question twice, to learn whether the server honours seeds
        twice.append(sum(times - 1 for times in calls.values()) - probes)
        excess += twice[-1] > 64
        ids = [json.loads(line)["id"] for line in (out / "dataset.jsonl").read_text().splitlines()]
        lost, doubled = lost + prompts - len(set(ids)), doubled + len(ids) - len(set(ids))
        print(f"killed at {share:.0%}: {twice[-1]} paid twice, {prompts - len(set(ids))} rows lost", flush=True)
    print(
        f"paid twice: median {median(twice):g}, most {max(twice)}, more than the 64 in flight {excess} times; "
        f"rows lost {lost}, doubled {doubled}"
    )


def rerun(bench: Bench, prompts: int) -> None:
    out = bench.work / "rerun"
    shutil.rmtree(out, ignore_errors=True)
    with bench.server() as (url, _):
        bench.finished(bench.start(url, prompts, out, 256))
        before = paid(url)
        began = time.monotonic()
        used = bench.finished(bench.start(url, prompts, out, 256))
        print(
            f"unchanged rerun of {prompts:,} prompts: {time.monotonic() - began:.1f} s, cpu {used['cpu']:.1f} s, "
            f"{used['rss_mb']:.0f} MB, {paid(url) - before} calls"
        )


def memory(bench: Bench, sizes: Sequence[int]) -> None:
    for prompts in sizes:
        out = bench.work / "memory"
        shutil.rmtree(out, ignore_errors=True)
        with bench.server() as (url, _):
            began = time.monotonic()
            used = bench.finished(bench.start(url, prompts, out, 256))
            seconds = time.monotonic() - began
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 2**20
        print(f"{prompts:,} prompts: peak {used['rss_mb']:.0f} MB, {seconds:.0f} s, {size:.0f} MB on disk", flush=True)
        shutil.rmtree(out, ignore_errors=True)


def _until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the run did not come that far")
        time.sleep(0.02)


def shown(records: Sequence[dict[str, Any]]) -> None:
    """The medians of both, and the ratios."""
    by = {name: [r for r in records if r["adapter"] == name] for name in ("raw_aiohttp", "rlaif")}
    figures = {k for r in records for k, v in r.items() if isinstance(v, int | float) and k not in ("rep", "load1")}
    for figure in sorted(figures):
        values = {name: [r[figure] for r in found if figure in r] for name, found in by.items()}
        if not all(values.values()):
            continue
        raw, ours = (median(found) for found in values.values())
        ratio = f"  {ours / raw:.2f} x" if figure in RATIOS and raw else ""
        print(f"  {figure:14} {raw:10.3f} {ours:10.3f}{ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="+")
    parser.add_argument("--harness", type=Path, default=HERE.parent / "../shared/bench")
    parser.add_argument("--work", type=Path, default=Path("runs/engine-room"))
    parser.add_argument("--P", type=int)
    parser.add_argument("--reps", type=int, default=1)
    given = parser.parse_args()
    bench = Bench(given.harness.resolve(), given.work.resolve())
    for name in given.scenario:
        if name == "kills":
            kills(bench, given.P or 300)
        elif name == "rerun":
            rerun(bench, given.P or 20_000)
        elif name == "memory":
            memory(bench, [given.P] if given.P else [2_000, 20_000, 200_000])
        else:
            options = [f"--reps={given.reps}", *([f"--P={given.P}"] if given.P else [])]
            print(f"{name}: raw_aiohttp, rlaif")
            shown(bench.scenario(name, options))


if __name__ == "__main__":
    main()
