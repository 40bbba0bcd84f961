from __future__ import annotations

import io

from rich.console import Console

from headrace_daemon.demo.screen import Screen


def test_file_gets_plain_lines_under_their_labels_and_no_bar() -> None:
    file = io.StringIO()
    screen = Screen(Console(file=file, width=40, highlight=False))
    with screen.bar("working") as bar:
        bar.move("working", 1, 2)
        screen.say("killed", "trainer [pid 7] after a long long epoch", "red")
    assert file.getvalue() == ("killed      trainer [pid 7] after a long\n            long epoch\n")


def test_terminal_gets_a_bar_that_goes_away() -> None:
    file = io.StringIO()
    console = Console(file=file, width=60, force_terminal=True, force_interactive=True)
    screen = Screen(console)
    with screen.bar("working") as bar:
        bar.move("measuring", 1, 2, "half")
    assert "measuring" in file.getvalue()
    assert file.getvalue().endswith("\x1b[2K")  # the line is erased
