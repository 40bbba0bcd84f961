"""What the benchmarks on AIStore share: a real cluster with objects, CPU by side, checksums."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import platform
import random
import time
import urllib.request
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
import xxhash

from tests.support.cluster import Cluster, find_aisnode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NODE: Final = "aisnode"
RELAYS: Final = "relays"
"""Name of the process that `benchmarks.relay` runs in."""
_MODULUS: Final = 1 << 64


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Run one proxy and three targets on loopback.

    Raises:
        SystemExit: With status 0 and a word on the screen, if there is no program to run.
    """
    aisnode = find_aisnode()
    if aisnode is None:
        print(
            f"not run: it needs a real cluster, and there is no {NODE} on PATH "
            "nor in $HEADRACE_AISNODE"
        )
        raise SystemExit(0)
    with Cluster(aisnode) as running:
        yield running


@contextlib.contextmanager
def environment(endpoint: str) -> Iterator[None]:
    """Name the cluster to all that is started inside, as an operator does."""
    before = os.environ.get("AIS_ENDPOINT")
    os.environ["AIS_ENDPOINT"] = endpoint
    try:
        yield
    finally:
        if before is None:
            del os.environ["AIS_ENDPOINT"]
        else:
            os.environ["AIS_ENDPOINT"] = before


def objects(count: int, size: int) -> Iterator[tuple[str, bytes]]:
    """Make names, in the order of a listing, and contents, the same in every run."""
    source = random.Random(count)
    for number in range(count):
        yield f"{number // 1000:04d}/{number:07d}.bin", source.randbytes(size)


def end_workers() -> None:
    """End the workers of loaders that nobody has any more.

    They are forks, and hold the pipe by whose end the cluster would know that it is over.
    """
    gc.collect()
    left = [child for child in multiprocessing.active_children() if child.name != RELAYS]
    assert not left, "a loader is still in use"


def versions(endpoint: str) -> dict[str, str]:
    """Return the versions of everything that takes part."""
    packages = ("headrace", "aistore", "torch", "aiohttp", "uvloop", "requests")
    with urllib.request.urlopen(f"{endpoint}/v1/daemon?what=software_version", timeout=10) as told:
        node = told.read().decode(errors="replace").strip()
    found = {"python": platform.python_version(), NODE: node}
    return found | {package: version(package) for package in packages}


def load() -> float:
    """Return the mean number of processes that wanted a core in the last minute."""
    return round(os.getloadavg()[0], 2)


# ---- what a pass delivered ---------------------------------------------------------------------


@dataclass(slots=True)
class Delivered:
    """The checksums of all samples that came: with their order and without.

    Costs both sides the same, about 2 µs for a sample of 10 KiB.
    """

    count: int = 0
    unordered: int = 0
    """Sum of the digests of (name, bytes), modulo 2^64."""
    _order: Any = field(default_factory=xxhash.xxh3_64)

    def add(self, name: str, data: bytes | memoryview) -> None:
        """Take note of a sample."""
        digest = xxhash.xxh3_64_digest(data, xxhash.xxh32_intdigest(name.encode()))
        self.count += 1
        self.unordered = (self.unordered + int.from_bytes(digest, "big")) % _MODULUS
        self._order.update(digest)

    @property
    def ordered(self) -> int:
        """Digest of the digests, in the order in which the samples came."""
        return int(self._order.intdigest())


class LedgerError(Exception):
    """A side delivered something else than what was stored: its figures count for nothing."""


def compare(what: str, found: Delivered, due: Delivered, *, in_order: bool) -> None:
    """Refuse a pass that did not deliver what it had to.

    Raises:
        LedgerError: It did not.
    """
    same = (found.count, found.unordered) == (due.count, due.unordered)
    if not same or (in_order and found.ordered != due.ordered):
        raise LedgerError(
            f"{what}: {found.count} samples with checksum {found.unordered:016x} (in order "
            f"{found.ordered:016x}), due are {due.count} with {due.unordered:016x} "
            f"({due.ordered:016x}): the row is rejected"
        )


# ---- what a pass cost --------------------------------------------------------------------------


def measured(deliver: Callable[[], int]) -> dict[str, float]:
    """Run a pass and return its rate, and CPU per sample of its processes and of the cluster.

    Args:
        deliver: Runs the pass and returns how many samples came.

    Returns:
        ``samples/s``; µs of CPU per sample: ``client`` is this process with all its children, such
        as workers and a daemon, but for the nodes of the cluster, which are ``cluster``, and for
        the relays that it may be behind, which are ``relays``.
    """
    before = _cpu_by_process()
    started = time.perf_counter()
    count = deliver()
    wall = time.perf_counter() - started
    # Processes that have come meanwhile count from their start; none goes during a pass.
    used = {"us/sample client": 0.0, "cluster": 0.0}
    for process, (side, seconds) in _cpu_by_process().items():
        spent = seconds - before.get(process, (side, 0.0))[1]
        used[side] = used.get(side, 0.0) + spent
    return {"samples/s": count / wall} | {
        side: seconds / count * 1e6 for side, seconds in used.items()
    }


def _cpu_by_process() -> dict[int, tuple[str, float]]:
    """Return the side and the CPU seconds so far of this process and all below it."""
    me = psutil.Process()
    node = Path(find_aisnode() or NODE).name
    relays = {child.pid for child in multiprocessing.active_children() if child.name == RELAYS}
    found = {}
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            side = "cluster" if process.name() == node else "us/sample client"
            side = "relays" if process.pid in relays else side
            found[process.pid] = (side, float(times.user + times.system))
    return found
