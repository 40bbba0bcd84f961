"""`headrace demo` as a process, and what it has to show."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from pathlib import Path


END_S: Final = 5
"""A demo that is told to stop takes 0.3 s; a busy machine may take longer."""


class Demo:
    """A demo under way, with all its temporary files below one folder.

    Args:
        folder: Is there, and empty.
        arguments: Of its command line.
        variables: Of its environment, beside those of this process.
    """

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        self.folder = folder
        environ = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "headrace_daemon", "demo", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environ, **variables, "TMPDIR": str(folder), "COLUMNS": "80"},
        )
        self.output = ""

    def read_until(self, text: str, timeout_s: float) -> None:
        """Read its output until a text has come."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout_s
        pipe = self.process.stdout.fileno()
        while text not in self.output:
            left = deadline - time.monotonic()
            assert left > 0, f"no {text!r} in {timeout_s:g} s in\n{self.output}"
            if select.select([pipe], [], [], left)[0]:
                data = os.read(pipe, 1 << 16)
                assert data, f"the demo ended without {text!r} in\n{self.output}"
                self.output += data.decode()

    def finish(self, timeout_s: float) -> tuple[int, str]:
        """Wait for its end; return the status and the standard error."""
        output, errors = self.process.communicate(timeout=timeout_s)
        self.output += output.decode()
        return self.process.returncode, errors.decode()

    def descendants(self) -> list[psutil.Process]:
        """Return all processes that it has started and that are there, orphans included."""
        found = []
        for process in psutil.process_iter():
            try:
                folder = process.environ().get("TMPDIR", "")
            except psutil.Error:
                continue  # another user's, or gone meanwhile
            if process.pid != self.process.pid and folder.startswith(str(self.folder)):
                found.append(process)
        return found

    def close(self) -> None:
        """Leave nothing, whatever the demo did."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        for process in self.descendants():
            process.kill()


def assert_tells_the_story(demo: Demo) -> None:
    """Check that an ended demo has shown both kills, a model that has learned, and the proof."""
    # A line that is too long for the screen goes on below, indented: pids differ in length.
    lines = re.sub(r"\n {12}", " ", demo.output).splitlines()
    events = [
        r"trainer +pid (\d+) begins at epoch 0 step 0",
        r"killed +trainer \(pid (\d+)\) after epoch \d+ step \d+",
        r"trainer +pid (\d+) resumed at epoch \d+ step \d+, its checkpoint, \d+ batches back",
        r"killed +daemon \(pid (\d+)\) after epoch \d+ step \d+",
        r"daemon +started again \(pid (\d+)\)",
        r"trainer +reconnected by itself; its log: daemon is back .*",
    ]
    places = []
    for event in events:
        found = [number for number, line in enumerate(lines) if re.fullmatch(event, line)]
        assert len(found) == 1, (event, demo.output)
        places += found
    assert places == sorted(places), demo.output

    accuracy = re.search(r"^accuracy +([\d.]+)% of the test images", demo.output, re.MULTILINE)
    assert accuracy is not None, demo.output
    assert float(accuracy[1]) >= 95

    facts = r"(\d+ batches, \d+ samples, digest [0-9a-f]{16})$"
    proof = re.findall(r"(?:un)?interrupted: +" + facts, demo.output, re.MULTILINE)
    assert len(proof) == 2
    assert proof[0] == proof[1]
    assert "the two runs are equal: nothing lost, repeated or reordered" in demo.output
    assert not re.search(r"[^\x20-\x7e\n]", demo.output)  # a file gets no control characters
