"""Conversion of values from outside, by whatever thread is the first."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Final

PROGRAM: Final = """
import sys
import threading
import msgspec
from headrace.plans import Cursor, Seek, Shuffled
from headrace.sources import Objects, Stream, typed

sys.setswitchinterval(1e-6)
plain = msgspec.to_builtins(Stream(Objects("/x"), Shuffled(batch_size=2)))
cursor = Cursor(plan="p", manifest="m").to_state()
barrier = threading.Barrier(8)

def convert():
    barrier.wait()
    msgspec.convert(typed(plain), Stream)
    Cursor.from_state(cursor)
    msgspec.convert({"epoch": 1}, Seek)

threads = [threading.Thread(target=convert) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done")
"""


def test_threads_that_are_the_first_to_convert_do_not_crash() -> None:
    """As the daemon does when the ranks and workers of a run open their feeds."""
    command = [sys.executable, "-c", PROGRAM]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for run in runs:
        said, errors = run.communicate(timeout=30)
        assert run.returncode != -signal.SIGSEGV
        assert (said, errors) == ("done\n", "")
