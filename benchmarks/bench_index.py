"""How long does it take to index a million samples, and how much of the shards is read for it?

Isolated: walker, index and store of `source/shards`, with the daemon's reader of folders
in two threads; no feed, no socket.

* *small*: 200,000 samples of two members (400 B, 2 B) in 100 shards of 410 MB in the page cache,
  indexed from nothing five times, which makes a million; and found again in the state folder.
* *10 KiB*: 100,000 samples in 10 shards of 1 GB altogether, of which only the headers are stored.
* *64 KiB*, *64 KiB + cls*: one shard of 1 GB; 16,000 samples of one member, or of two.
* *memory*: bytes of an index for each member beside its name, and what building it took.

Run: ``.venv/bin/python -m benchmarks.bench_index``.

How to read: ``s for 10^6`` is what a million samples would take at that rate, ``share`` the part of
the bytes that was read, ``us/header`` the CPU of everything for each header.
"""

from __future__ import annotations

import asyncio
import tarfile
import tempfile
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from headrace_daemon.source.local import LocalReader
from headrace_daemon.source.shards.index import ShardIndex
from headrace_daemon.source.shards.indexstore import IndexStore, Shard
from headrace_daemon.source.shards.make import index_shards

from .harness import Cases, cpu_s, interleave, report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace_daemon.source.reader import RangeRequest

Members = list[tuple[str, int]]
"""Field and bytes of each member of a sample."""


class Folder:
    """Reads ranges of the files of a folder, and counts their bytes."""

    def __init__(self, root: Path, threads: ThreadPoolExecutor) -> None:
        self._reader = LocalReader(str(root), threads)
        self.num_bytes = 0

    async def read(self, requests: Sequence[RangeRequest]) -> None:
        self.num_bytes += sum(request.num_bytes for request in requests)
        await self._reader.read(requests)


def write_shard(path: Path, first: int, count: int, members: Members) -> None:
    """Write a tar of which only headers are stored; the data are holes."""
    at = 0
    # One header serves for all: name and checksum are set in it.
    blocks = {}
    for field, size in members:
        info = tarfile.TarInfo(f"{0:010d}.{field}")
        info.size = size
        block = info.tobuf(tarfile.USTAR_FORMAT)
        blocks[field] = (block, int(block[148:154], 8) - sum(block[:10]))
    with path.open("wb") as file:
        for number in range(first, first + count):
            name = b"%010d" % number
            for field, size in members:
                block, rest = blocks[field]
                total = b"%06o" % (rest + sum(name))
                file.seek(at)
                file.write(name + block[10:148] + total + block[154:])
                at += 512 + size + -size % 512
        file.truncate(at + 1024)


def index(root: Path, state: Path, *, samples: int) -> dict[str, float]:
    shards = [Shard.of_file(path.name, path) for path in sorted(root.iterdir())]
    with ThreadPoolExecutor(2) as threads:
        reader = Folder(root, threads)
        started, cpu = time.perf_counter(), cpu_s()
        made = asyncio.run(index_shards(shards, reader, IndexStore(state), executor=threads))
        wall, cpu = time.perf_counter() - started, cpu_s() - cpu
    members = sum(len(one) for one in made if isinstance(one, ShardIndex))
    assert members % samples == 0
    return {
        "s for 10^6": wall / samples * 1e6,
        "share %": reader.num_bytes / sum(shard.size for shard in shards) * 100,
        "us/header": cpu / members * 1e6,
    }


def index_anew(root: Path, base: Path, *, samples: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=base) as state:
        return index(root, Path(state), samples=samples)


def memory(root: Path, base: Path) -> dict[str, float]:
    path = min(root.iterdir())
    shard = Shard.of_file(path.name, path)
    with ThreadPoolExecutor(1) as threads, tempfile.TemporaryDirectory(dir=base) as state:
        reader, store = Folder(root, threads), IndexStore(Path(state))
        tracemalloc.start()
        (made,) = asyncio.run(index_shards([shard], reader, store, executor=threads))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert isinstance(made, ShardIndex)
    return {
        "B/member": (made.ends.nbytes + made.starts.nbytes + made.sizes.nbytes) / len(made),
        "B of names": len(made.names) / len(made),
        "peak MiB": peak / 2**20,
    }


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        base = Path(name)
        folders: dict[str, tuple[int, int, Members]] = {
            "small": (100, 2000, [("jpg", 400), ("cls", 2)]),
            "10 KiB": (10, 10_000, [("jpg", 10 << 10)]),
            "64 KiB": (1, 16_000, [("jpg", 64 << 10)]),
            "64 KiB + cls": (1, 16_000, [("jpg", 64 << 10), ("cls", 2)]),
        }
        cases: Cases = {}
        for title, (shards, samples, members) in folders.items():
            (base / title).mkdir()
            for number in range(shards):
                path = base / title / f"{number:04d}.tar"
                write_shard(path, number * samples, samples, members)
            num_samples = shards * samples
            cases[title] = partial(index_anew, base / title, base, samples=num_samples)
            if title == "small":
                run = partial(index, base / title, base / "state", samples=num_samples)
                cases["small, found again"] = run
        report("index", interleave(cases, repeats=5))
        memories: Cases = {"memory": partial(memory, base / "small", base)}
        report("index", interleave(memories, repeats=1))


if __name__ == "__main__":
    main()
