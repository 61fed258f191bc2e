"""How a person sees a run: a bar on a terminal, lines in a log file; loss, clips a second, time left."""

import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingProgress:
    """Context manager; `advance` after each step, `report` every so often, `say` for events."""

    def __init__(self, *, start: int, steps: int, batch_size: int, shown: bool) -> None:
        self.steps, self.batch_size, self.shown = steps, batch_size, shown
        self.console = Console(file=sys.stderr, highlight=False)
        self.bar = Progress(
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self.console,
            disable=not (shown and self.console.is_terminal),
        )
        self.task = self.bar.add_task("", total=steps, completed=start)
        self.training_seconds = 0.0
        self.counted = 0

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def advance(self, seconds: float) -> None:
        """One step took so long."""
        self.training_seconds += seconds
        self.counted += 1
        self.bar.advance(self.task)

    def report(self, step: int, losses: dict[str, float]) -> float:
        """Show the losses at a step; returns the clips a second since the last report."""
        seconds_per_step = self.training_seconds / max(self.counted, 1)
        clips = self.batch_size / max(seconds_per_step, 1e-9)
        self.training_seconds, self.counted = 0.0, 0
        parts = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
        if not self.bar.disable:
            self.bar.update(self.task, description=f"{parts}  {clips:.1f} clips/s")
        elif self.shown:
            left = timedelta(seconds=round(seconds_per_step * (self.steps - step)))
            self.say(f"step {step}/{self.steps}  {parts}  {clips:.1f} clips/s  {left} left")
        return clips

    def say(self, line: str) -> None:
        """A line of its own, with the time of day."""
        if self.shown:
            self.console.print(f"{time.strftime('%H:%M:%S')} {line}", soft_wrap=True, markup=False)
