"""A progress bar of a long command, on a terminal while it lasts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NewType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Unit = NewType("Unit", str)
EVENTS = Unit("events")
BYTES = Unit("bytes")
HANDLERS = Unit("handlers")


class Bar:
    """`total` is in the unit of `advance`: events, handlers, or the bytes of a file, whose events are counted."""

    def __init__(self, progress: Progress, what: str, total: int | None, unit: Unit) -> None:
        self._progress = progress
        self._unit = unit
        counted = "events" if unit == BYTES else unit
        self._task = progress.add_task(what, total=total, events=0, counted=counted)
        self.events = 0

    def advance(self, size: int) -> None:
        """One more, of so many bytes."""
        self.events += 1
        self._progress.update(self._task, advance=size if self._unit == BYTES else 1, events=self.events)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = task.fields["events"] / task.elapsed if task.elapsed else 0
        return Text(f"{task.fields['events']:,} {task.fields['counted']}  {rate:,.0f}/s", "dim")


@contextmanager
def progress(console: Console, what: str, total: int | None, unit: Unit) -> Iterator[Bar]:
    """A bar on a terminal, which goes away in the end; nothing anywhere else."""
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        _Rate(),
    ]
    columns += [TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        yield Bar(shown, what, total, unit)
