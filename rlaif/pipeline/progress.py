"""Progress of a run: a live table on a terminal, plain lines elsewhere, nothing with `--json`."""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from rlaif.screen import Console, Text, guarded, line
from rlaif.train.pace import Pace, about

LINE_EVERY = 10.0  # seconds between plain lines of a running stage


class Progress(Protocol):
    """The display of a run. A stage begins, advances, may report metrics or a note, and ends.

    `note` is a detail of the running stage, `announce` about the run: shown at once. `warn` is kept until the end.
    """

    def begin(self, name: str, kind: str, total: int | None = None) -> None: ...
    def total(self, total: int) -> None: ...
    def advance(self, failed: str | None = None) -> None: ...
    def metrics(self, values: dict[str, float]) -> None: ...
    def note(self, text: str) -> None: ...
    def announce(self, text: str) -> None: ...
    def pulse(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def end(self, name: str, outcome: str) -> None: ...


class _Stage:
    def __init__(self, name: str, kind: str, total: int | None) -> None:
        self.name, self.kind, self.total = name, kind, total
        self.done, self.failed = 0, Counter[str]()
        self.began, self.ended = time.monotonic(), 0.0
        self.detail = self.pulse = ""
        self.pace = Pace()  # of a training
        self.left: float | None = None  # seconds, after its last step

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.began

    def count(self) -> str:
        text = f"{self.done:,} of {self.total:,}" if self.total else ""
        causes = ", ".join(f"{count:,} {cause}" for cause, count in sorted(self.failed.items()))
        return text + (f", {self.failed.total():,} failed ({causes})" if self.failed else "")


class Silent:
    """Counts and shows nothing; the base of the other two."""

    def __init__(self) -> None:
        self.stages: list[_Stage] = []
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """A warning for the user."""
        self.warnings.append(text)

    def begin(self, name: str, kind: str, total: int | None = None) -> None:
        self.stages.append(_Stage(name, kind, total))

    def total(self, total: int) -> None:
        self.stages[-1].total = total

    def advance(self, failed: str | None = None) -> None:
        """Count a row; `failed` is the cause of its failure."""
        self.stages[-1].done += 1
        if failed is not None:
            self.stages[-1].failed[failed] += 1

    def metrics(self, values: dict[str, float]) -> None:
        stage = self.stages[-1]
        stage.done, stage.total = (
            int(values.get("step", stage.done)),
            int(values.get("steps", stage.total or 0)) or None,
        )
        if "step" in values and "steps" in values:
            stage.left = stage.pace.left(values["step"], values["steps"])
        shown = {
            "loss": "loss",
            "rewards/accuracies": "accuracy",
            "rewards/margins": "margin",
            "accuracy": "accuracy",
            "margin": "margin",
            "rewards/chosen": "chosen",
            "rewards/rejected": "rejected",
            "score": "score",
            "kl": "KL",
            "ended": "ended",
            "length": "tokens",
        }
        stage.detail = "  ".join(f"{label} {values[key]:.3f}" for key, label in shown.items() if key in values)

    def note(self, text: str) -> None:
        self.stages[-1].detail = text

    def announce(self, text: str) -> None:
        self.note(text)

    def pulse(self, text: str) -> None:
        """Show the current throughput."""
        if self.stages:
            self.stages[-1].pulse = text

    def end(self, name: str, outcome: str) -> None:
        stage = self.stages[-1]
        stage.ended = time.monotonic()
        stage.detail = f"{outcome}  {stage.detail}".strip()

    def __enter__(self) -> Silent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Lines(Silent):
    """One line when a stage begins and ends, and one every few seconds between: for logs."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console, self._last = console, 0.0

    def _print(self, text: str) -> None:
        self._last = time.monotonic()
        try:
            self._console.print(line(text), highlight=False, soft_wrap=True)
        except (BrokenPipeError, SystemExit):  # the reader of the pipe is gone and rich exits; the run continues
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._console.file.fileno())
        except OSError:  # its disk is full: the run continues, and its outcome cannot be printed either, which says so
            pass

    def warn(self, text: str) -> None:
        super().warn(text)
        self._print(f"note: {text}")

    def announce(self, text: str) -> None:
        super().announce(text)
        self._print(text)

    def begin(self, name: str, kind: str, total: int | None = None) -> None:
        super().begin(name, kind, total)
        self._print(f"{name}: {f'{total:,} rows' if total else 'begins'}")

    def advance(self, failed: str | None = None) -> None:
        super().advance(failed)
        self._tick()

    def metrics(self, values: dict[str, float]) -> None:
        super().metrics(values)
        self._tick()

    def _tick(self) -> None:
        stage = self.stages[-1]
        if time.monotonic() - self._last >= LINE_EVERY:
            left = "" if stage.left is None else about(stage.left)
            parts = (stage.count(), stage.detail, f"{stage.seconds:.0f} s", left, stage.pulse)
            self._print(f"{stage.name}: {'  '.join(part for part in parts if part)}")

    def end(self, name: str, outcome: str) -> None:
        super().end(name, outcome)
        stage = self.stages[-1]
        self._print(f"{name}: done in {stage.seconds:.1f} s  {stage.detail}")


class Screen(Silent):
    """A live table: a line for each stage so far, a bar for the running one."""

    def __init__(self, console: Console, title: str) -> None:
        super().__init__()
        self._title = title
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8, transient=False)
        self._open = ExitStack()

    def __enter__(self) -> Screen:
        with ExitStack() as opened:
            opened.enter_context(self._live)
            opened.enter_context(guarded())  # rich prints above the table what others print, and obeys its escapes
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 2))
        table.add_column(width=1)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(ratio=1)
        for stage in self.stages:
            if stage.ended:
                mark = Text("!", style="yellow") if stage.failed else Text("✓", style="green")
                table.add_row(mark, line(stage.name), f"{stage.seconds:.1f} s", line(stage.detail, style="dim"))
            else:
                bar = (
                    ProgressBar(total=stage.total, completed=stage.done, width=30, complete_style="cyan")
                    if stage.total
                    else Text("…", style="dim")
                )
                table.add_row(Text("▸", style="cyan"), line(stage.name), f"{stage.seconds:.1f} s", bar)
                running = line(f"{stage.count()}  {stage.detail}{self._remaining(stage)}".strip(), style="dim")
                table.add_row("", "", "", running)
                if stage.pulse:
                    table.add_row("", "", "", line(stage.pulse, style="dim"))
        notes = [line(f"note: {warning}", style="yellow") for warning in self.warnings]
        return Group(line(self._title, style="bold cyan"), table, *notes)

    @staticmethod
    def _remaining(stage: _Stage) -> str:
        if stage.left is not None:
            return f"  {about(stage.left)}"
        if not stage.total or stage.done < max(3, stage.total // 50):
            return ""
        return f"  {about(stage.seconds / stage.done * (stage.total - stage.done))}"
