"""Long orders, made in a process of their own: Python code that would hold up the event loop.

The process writes into memory without a name that it inherits, so nothing is left behind if either
side dies.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
from typing import Final, get_args

import msgspec
import numpy as np

from headrace.errors import FeedError
from headrace.plans.exact import Kind, Made, Recipe

MIN_ELSEWHERE: Final = 1 << 16
"""Samples from which on a process is worth it: it takes as long to start as 300,000 of them."""


class OrderMaker:
    """Makes orders; methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # What is running; None once closed.
        self._running: set[subprocess.Popen[bytes]] | None = set()

    @staticmethod
    def is_worth_it(recipe: Recipe) -> bool:
        """Return whether an order is better made elsewhere."""
        return recipe.length >= MIN_ELSEWHERE

    def make(self, recipe: Recipe, epoch: int) -> Made:
        """Return the order of an epoch; blocks until the process has made it.

        Raises:
            FeedError: If it fails, or the daemon ends.
        """
        memory = os.memfd_create("headrace order")
        try:
            os.ftruncate(memory, 4 * recipe.length)
            state = self._run(memory, recipe, epoch)
            # Copied, in some milliseconds: a mapping would hold a descriptor for each order.
            permutation = np.empty(recipe.length, dtype=np.uint32)
            num_bytes = os.preadv(memory, [permutation.data], 0)
            assert num_bytes == permutation.nbytes, f"{num_bytes} of {permutation.nbytes} bytes"
        finally:
            os.close(memory)
        permutation.flags.writeable = False  # it is shared
        return Made(permutation, _state(state))

    def close(self) -> None:
        """End what is running; nothing is made any more."""
        with self._lock:
            running, self._running = self._running, None
            for child in running or ():
                child.kill()

    def _run(self, memory: int, recipe: Recipe, epoch: int) -> bytes:
        arguments = [str(memory), recipe.kind, str(recipe.length), str(recipe.seed), str(epoch)]
        with self._lock:
            if self._running is None:
                raise _stopping()
            try:
                child = subprocess.Popen(
                    [sys.executable, "-P", "-m", "headrace_daemon.feed.orders", *arguments],
                    pass_fds=(memory,),
                    stdin=subprocess.PIPE,  # its end tells that the daemon is gone
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            except OSError as error:
                raise _failure(recipe, str(error)) from error
            self._running.add(child)
        try:
            with child:
                assert child.stdout is not None
                assert child.stderr is not None
                output, trouble = child.stdout.read(), child.stderr.read()
        finally:
            with self._lock:
                if self._running is not None:
                    self._running.discard(child)
        if child.returncode:
            if self._running is None:
                raise _stopping()
            said = trouble.decode(errors="replace").strip().rpartition("\n")[2]
            raise _failure(recipe, said or f"its process ended with status {child.returncode}")
        return output


def _failure(recipe: Recipe, reason: str) -> FeedError:
    return FeedError(
        f"the {recipe.kind} order of {recipe.length} samples could not be made ({reason})",
        code="internal",
    )


def _stopping() -> FeedError:
    return FeedError("the daemon is stopping", code="draining", retryable=True)


def _state(output: bytes) -> object:
    """Return the state of Python's generator as `random.Random.setstate` takes it."""
    if not output:
        return None
    version, words, gauss = msgspec.json.decode(output, type=tuple[int, tuple[int, ...], None])
    return version, words, gauss


def _end_with_daemon() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def main(arguments: list[str]) -> None:
    """Make one order: ``DESCRIPTOR KIND LENGTH SEED EPOCH``; print the state of the generator."""
    descriptor, kind, *numbers = arguments
    assert kind in get_args(Kind), kind
    length, seed, epoch = map(int, numbers)
    threading.Thread(target=_end_with_daemon, daemon=True).start()
    made = Recipe(kind, length, seed).make(epoch)  # type: ignore[arg-type]
    with mmap.mmap(int(descriptor), 4 * length) as target:
        target[:] = made.permutation.tobytes()
    if made.state is not None:
        sys.stdout.buffer.write(msgspec.json.encode(made.state))
        sys.stdout.buffer.flush()
    os._exit(0)  # the thread waits in a read that nothing ends


if __name__ == "__main__":
    main(sys.argv[1:])
