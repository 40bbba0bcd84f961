"""`headrace demo` from end to end, and stopped in the middle."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

END_S = 5
"""A demo that is told to stop takes 0.3 s; a busy machine may take longer."""


class Demo:
    """A demo under way, with all its temporary files below one folder."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        environ = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "headrace_daemon", "demo", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environ, "TMPDIR": str(folder), "COLUMNS": "80"},
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


@pytest.fixture
def demos(request: pytest.FixtureRequest) -> Iterator[list[Demo]]:
    started: list[Demo] = []
    yield started
    for demo in started:
        demo.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    # pytest's own folders may have paths too long for a socket.
    with tempfile.TemporaryDirectory(prefix="hr-") as path:
        yield Path(path)


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_demo_survives_both_kills_proves_it_and_leaves_nothing(
    folder: Path, demos: list[Demo]
) -> None:
    demo = Demo(folder)
    demos.append(demo)
    status, errors = demo.finish(timeout_s=120)
    assert (status, errors) == (0, ""), demo.output

    lines = demo.output.splitlines()
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
    assert re.search(r"daemon / best native = \d+\.\d\d", demo.output)
    assert not re.search(r"[^\x20-\x7e\n]", demo.output)  # a file gets no control characters
    assert demo.descendants() == []
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(100)
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGTERM, "A model learns"),
        (signal.SIGINT, "begins at epoch 0 step 0"),
        (signal.SIGKILL, "begins at epoch 0 step 0"),
    ],
)
def test_stopped_demo_leaves_nothing(
    number: signal.Signals, moment: str, folder: Path, demos: list[Demo]
) -> None:
    demo = Demo(folder)
    demos.append(demo)
    demo.read_until(moment, timeout_s=60)
    started = demo.descendants()
    demo.process.send_signal(number)
    status, errors = demo.finish(END_S)
    if number is signal.SIGKILL:
        assert status == -number
    else:
        assert status == 128 + number
        assert errors == (
            f"headrace demo: stopped by {number.name}; processes ended, files removed\n"
        )
    assert "Traceback" not in demo.output
    # The daemon, which is the last one, also removes the folder where the demo itself cannot.
    assert psutil.wait_procs(started, timeout=END_S)[1] == []
    assert demo.descendants() == []
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(100)
def test_too_short_training_is_a_sentence_and_kept_files_are_named(
    folder: Path, demos: list[Demo]
) -> None:
    demo = Demo(folder, "--epochs", "2", "--keep")
    demos.append(demo)
    status, errors = demo.finish(timeout_s=90)
    assert status == 1, demo.output
    assert re.fullmatch(
        r"headrace demo: the model gets [\d.]+% of the test images right after 2 epochs, at least "
        r"95% are due: train for longer with --epochs\n",
        errors,
    )
    (kept,) = folder.iterdir()
    assert {path.name for path in kept.iterdir()} >= {"train", "test", "interrupted.jsonl"}
    assert str(kept) in demo.output
    assert demo.descendants() == []
