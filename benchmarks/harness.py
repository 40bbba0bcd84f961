"""What the benchmarks share: interleaved repeats, CPU seconds, results as JSON lines."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from headrace.client import Channel, ConnectionLostError, Retry

RESULTS = Path(__file__).parent / "results"
REPEATS = 5


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest of the repeats."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:,.4g} ({self.low:,.4g} to {self.high:,.4g})"


def spread(values: list[float]) -> Spread:
    """Return the spread of some values."""
    return Spread(statistics.median(values), min(values), max(values))


Cases = dict[str, Callable[[], dict[str, float]]]
"""Measurements by name; each returns its figures."""


def interleave(cases: Cases, *, repeats: int = REPEATS) -> dict[str, dict[str, Spread]]:
    """Run all cases in turn, A B C A B C …, after one turn that does not count.

    Args:
        cases: Measurements by name; each returns its figures.
        repeats: Turns that count.

    Returns:
        The spread of each figure of each case.
    """
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, measure in cases.items():
            figures = measure()
            if turn:
                runs[name].append(figures)
    return {
        name: {key: spread([run[key] for run in taken]) for key in taken[0]}
        for name, taken in runs.items()
    }


def report(name: str, results: dict[str, dict[str, Spread]], **facts: Any) -> None:  # noqa: ANN401
    """Print a table and add a line to ``results/<name>.jsonl``."""
    for case, figures in results.items():
        print(f"{case:<28} " + "   ".join(f"{key} {value}" for key, value in figures.items()))
    RESULTS.mkdir(exist_ok=True)
    line = {
        "benchmark": name,
        "commit": _commit(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        **facts,
        "results": {
            case: {key: [value.median, value.low, value.high] for key, value in figures.items()}
            for case, figures in results.items()
        },
    }
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return "unknown"


def cpu_s(pid: int | None = None) -> float:
    """Return the CPU seconds, user and system, of a process; of this one by default."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running daemon."""

    socket: str
    pid: int


@contextlib.contextmanager
def daemon(
    *,
    state_dir: Path | None = None,
    module: str = "headrace_daemon",
    memory: str = "1GiB",
    config: str = "",
) -> Iterator[Daemon]:
    """Run a daemon that allows every source, in a process of its own.

    Args:
        state_dir: Its state; a temporary folder by default.
        module: What to run; a benchmark's own main may replace a part of the daemon.
        memory: Its budget.
        config: Its configuration, TOML; of what the other arguments say, they decide.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        path = f"{folder}/headrace.sock"
        command = [sys.executable, "-m", module, "serve", "--socket", path, "--memory", memory]
        command += ["--state-dir", str(state_dir or Path(folder) / "state")]
        command += ["--allow-source", "*", "--log-level", "warning"]
        (Path(folder) / "headrace.toml").write_text(config)
        command += ["--config", f"{folder}/headrace.toml"]
        process = subprocess.Popen(command)
        try:
            retry = Retry(30.0, threading.Event().wait)
            while True:
                try:
                    Channel.connect(path).close()
                    break
                except ConnectionLostError:
                    if process.poll() is not None or not retry.pause():
                        raise
            yield Daemon(path, process.pid)
        finally:
            process.terminate()
            process.wait(10)


@contextlib.contextmanager
def files(count: int, size: int) -> Iterator[Path]:
    """Make a temporary folder with files of random bytes, 1,000 to a folder."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        for number in range(count):
            if number % 1000 == 0:
                (folder / f"{number // 1000:04d}").mkdir()
            (folder / f"{number // 1000:04d}" / f"{number:07d}.bin").write_bytes(os.urandom(size))
        yield folder
