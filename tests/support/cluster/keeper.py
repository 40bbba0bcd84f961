"""The process that owns the nodes, and both ends of the pipe to it.

It is their parent, so that none of them becomes a zombie, and it watches the process that has
started it: when that one ends, in whatever way, it kills the nodes and removes their folder.  If it
is killed itself, the kernel kills the nodes.  It has one thread, so that what runs between fork
and exec is safe; whoever starts it may have many.

It runs as a script and imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

DEADLINE_S: Final = 60.0
"""Far more than a process takes to end after SIGKILL."""

_PR_SET_PDEATHSIG: Final = 1


class Keeper:
    """The keeper, as seen by whoever has started it.

    Args:
        folder: What is removed in the end; it exists, and the keeper's own messages go there.
        environment: That of the nodes.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._log = folder / "keeper.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", __file__, str(os.getpid()), str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=dict(environment),
                start_new_session=True,  # an interrupt at the terminal is for its parent
                text=True,
            )

    def start(self, name: str, command: Sequence[str], log: Path) -> int:
        """Start a node, whose output is added to a file, and return its process id."""
        pid: int = self._ask(do="start", name=name, command=list(command), log=str(log))
        return pid

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a node a signal.  One that ends it makes it a node that was meant to end."""
        self._ask(do="signal", name=name, number=number)

    def end(self, name: str) -> int:
        """Wait for the end of a node, return its exit status and forget it.

        Raises:
            TimeoutError: It has not ended in time.
        """
        status: int | None = self._ask(do="end", name=name)
        if status is None:
            raise TimeoutError(f"{name} has not ended within {DEADLINE_S:g} s")
        return status

    def ended(self, wait_s: float) -> dict[str, int]:
        """Wait until a node ends or the time is up; return the exit statuses of all that have."""
        statuses: dict[str, int] = self._ask(do="ended", wait_s=wait_s)
        return statuses

    def close(self) -> None:
        """Kill all nodes, remove the folder and wait until that is done."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(DEADLINE_S)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()

    def _ask(self, **request: Any) -> Any:  # noqa: ANN401 - JSON
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            log = self._log.read_text() if self._log.exists() else "(removed)"
            raise RuntimeError(f"the keeper of the nodes has ended: {log}")
        return json.loads(line)


class Nodes:
    """The nodes, as seen by the keeper."""

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        # Loaded before the first fork.
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl

    def answer(self, request: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
        """Do what a request says and return its answer."""
        match request:
            case {"do": "start", "name": name, "command": command, "log": path}:
                keeper = os.getpid()
                with open(path, "ab") as log:
                    self._running[name] = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        preexec_fn=lambda: self._die_with(keeper),
                    )
                return self._running[name].pid
            case {"do": "signal", "name": name, "number": number}:
                return self._running[name].send_signal(number)
            case {"do": "end", "name": name}:
                try:
                    status = self._running[name].wait(DEADLINE_S)
                except subprocess.TimeoutExpired:
                    return None
                del self._running[name]
                return status
            case {"do": "ended", "wait_s": wait_s}:
                return self._ended(wait_s)
        raise ValueError(request)

    def kill_all(self) -> None:
        """Kill all that run; what they have stored is of no use to anybody."""
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.wait()

    def _ended(self, wait_s: float) -> dict[str, int]:
        with contextlib.ExitStack() as stack:
            watched = []
            for process in self._running.values():
                if process.poll() is None:
                    watched.append(os.pidfd_open(process.pid))
                    stack.callback(os.close, watched[-1])
                else:
                    wait_s = 0
            select.select(watched, [], [], wait_s)
        statuses = {name: process.poll() for name, process in self._running.items()}
        return {name: status for name, status in statuses.items() if status is not None}

    def _die_with(self, keeper: int) -> None:
        """Have the kernel kill this process, a node to be, when its parent ends."""
        self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != keeper:  # it has ended before that
            os._exit(1)


def _requests(starter: int) -> Iterator[dict[str, Any]]:
    """Yield the requests of the process that has started this one, until there is none to come."""
    watched = os.pidfd_open(starter)
    received = b""
    while os.getppid() == starter:
        readable, _, _ = select.select([0, watched], [], [])
        # Its end is seen even if a process that it has forked holds the other end of the pipe.
        data = os.read(0, 1 << 16) if 0 in readable else b""
        if not data:
            return
        *lines, received = (received + data).split(b"\n")
        yield from map(json.loads, lines)


def main() -> None:
    """Keep nodes until the process that has started this one says so, or is no more."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    starter, folder = int(sys.argv[1]), sys.argv[2]
    nodes = Nodes()
    try:
        for request in _requests(starter):
            os.write(1, json.dumps(nodes.answer(request)).encode() + b"\n")
    finally:
        nodes.kill_all()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
