"""What the demo shows: one labelled line per event, and a live bar on a terminal."""

from __future__ import annotations

import contextlib
import textwrap
from typing import TYPE_CHECKING, Final

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

_INDENT: Final = 12


class Screen:
    """Writes to a terminal, or plain lines to a file.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    @property
    def is_live(self) -> bool:
        """Whether bars are shown: on a terminal, not in a file."""
        return self._console.is_interactive

    def title(self, text: str) -> None:
        """Print what it is all about."""
        self._console.print(f"{text}\n")

    def say(self, label: str, text: str, style: str = "") -> None:
        """Print a line under a label; an empty label continues the one before.

        Args:
            label: What it is about, in a word.
            text: One sentence; it is wrapped if the terminal is narrow.
            style: Of the text, as rich names styles.
        """
        width = max(20, self._console.width - _INDENT)
        # A path stays whole, so that it can be copied.
        lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
        for number, line in enumerate(lines):
            head = label if number == 0 else ""
            self._console.print(
                Text.assemble((f"{head:<{_INDENT}}", "bold cyan"), (line, style)), soft_wrap=True
            )

    @contextlib.contextmanager
    def bar(self, what: str, *, is_kept: bool = False) -> Iterator[Bar]:
        """Show a bar while the context lasts; lines that are said meanwhile stand above it.

        Until it is moved, it only shows that something happens.

        Args:
            what: Stands before the bar.
            is_kept: Whether it stays when it ends.
        """
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=not is_kept,
            disable=not self.is_live,
            expand=True,
        ) as progress:
            yield Bar(progress, progress.add_task(what, total=None, note=""))


class Bar:
    """A bar on the screen; it is drawn ten times a second, however often it moves."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def move(self, what: str, completed: int, total: int, note: str = "") -> None:
        """Say how far it is: what stands before the bar, its state, and a note behind it."""
        self._progress.update(
            self._task, description=what, completed=completed, total=total, note=note
        )
