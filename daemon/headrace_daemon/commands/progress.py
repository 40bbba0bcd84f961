"""A line of progress on the terminal of a command; nothing where there is none."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Task
    from rich.progress_bar import ProgressBar


class Line:
    """What is shown.

    Args:
        progress: Shows it.
        what: What is done.
    """

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress = progress
        self._what = what
        self._task = progress.add_task(what, total=None)

    def show(self, far: str, *, done: int = 0, total: int | None = None) -> None:
        """Say how far it is, from any thread.

        Args:
            far: In words.
            done: How much is done, where a bar can show it.
            total: Where that will end.
        """
        told = f"{self._what}: {far}"
        self._progress.update(self._task, description=told, completed=done, total=total)

    def say(self, text: str) -> None:
        """Print a line that stays, on standard error."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def working(what: str) -> Iterator[Line]:
    """Show a line while something is done; yields what says how far it is."""
    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        _Bar(bar_width=24),
        TimeElapsedColumn(),
        transient=True,
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        yield Line(progress, what)


class _Bar(BarColumn):
    """A bar where the end is known, nothing where it is not."""

    def render(self, task: Task) -> ProgressBar | Text:  # type: ignore[override]
        return Text() if task.total is None else super().render(task)
