"""What does a sample cost that lies in a shard, read by a range of it?

Isolated: the readers in one process on uvloop, from ranges to bytes in memory, without an index,
feeds, sockets and trainers.  Shards of 100 MB in the page cache of a real cluster, one proxy and
three targets, on the same cores as the client; samples of 10 KiB behind 512 bytes each, as in a
tar.  Groups as the fetcher makes them, 16 at a time.

Cases: ``one`` is a range for each sample, in an order shuffled over all shards; ``16`` is ranges
of 16 neighbours, and ``chunk`` ranges of 1 MiB, each with a place for every sample in it, what
lies between them is dropped; both shuffled as well.  ``objects`` are the same samples as objects of
their own, whole, for comparison.  ``folder`` says the same of files, read by `LocalReader`.
``aiohttp`` takes the other wire.

Every pass is checked: each sample must be in its place, or the benchmark ends there; that is done
behind the clock.  CPU is user and system time of this process, and apart from it that of the
cluster.

On 2 cores shared with other jobs that kept them busy, so that all figures are some three times
those of a quiet machine (median of 5 turns):

=============  =========  =================  ==================
case           samples/s  us/sample, client  us/sample, cluster
=============  =========  =================  ==================
objects            6,890               30.1                78.1
one                6,380               35.0                70.8
16                20,150                9.9                13.7
chunk             49,810                6.2                 5.4
one, aiohttp       1,071                304                 212
16, aiohttp       12,990               28.2                18.3
one, folder       51,610               14.7                   -
16, folder       159,100                4.0                   -
chunk, folder    205,300                3.0                   -
=============  =========  =================  ==================

Run: ``.venv/bin/python -m benchmarks.bench_ranges``; three minutes.  Without an aisnode it says so
and ends with status 0.

How to read: µs of CPU per sample.  Rates say less: the cluster has the same cores.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import uvloop

from headrace.buckets import Bucket
from headrace_daemon.fetch.fetcher import GROUP_BYTES, GROUP_REQUESTS
from headrace_daemon.settings import FetchSettings, StoreSettings
from headrace_daemon.source.ais.access import Access
from headrace_daemon.source.ais.store import AisStore
from headrace_daemon.source.local import LocalReader
from headrace_daemon.source.reader import Place, RangeRequest, ReadRequest

from .ais import LedgerError, cluster, load, measured, versions
from .harness import Cases, interleave, report

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from headrace_daemon.source.reader import Reader, Request

SAMPLE: Final = 10 << 10
STRIDE: Final = SAMPLE + 512
PER_SHARD: Final = 100_000_000 // STRIDE
SHARDS: Final = 4
CHUNK: Final = (1 << 20) // STRIDE
NUM_SINGLE: Final = 12_288
"""Samples of a pass of single ranges, or objects; all of them with longer ones."""

BUCKET: Final = "shards"
OBJECTS: Final = "samples"


class Shards:
    """Shards, and memory for all their samples."""

    def __init__(self) -> None:
        source = random.Random(SHARDS)
        self.contents = [source.randbytes(PER_SHARD * STRIDE) for _ in range(SHARDS)]
        self.memory = bytearray(SHARDS * PER_SHARD * SAMPLE)

    def name(self, shard: int) -> str:
        return f"{shard:03}.tar"

    def sample(self, number: int) -> bytes:
        shard, place = divmod(number, PER_SHARD)
        start = place * STRIDE + 512
        return self.contents[shard][start : start + SAMPLE]

    def target(self, number: int) -> memoryview:
        return memoryview(self.memory)[number * SAMPLE : (number + 1) * SAMPLE]

    def ranges(self, width: int) -> list[Request]:
        """Return ranges of so many samples each, in a random order."""
        found: list[Request] = []
        size = PER_SHARD * STRIDE
        for shard in range(SHARDS):
            for first in range(0, PER_SHARD, width):
                numbers = range(first, min(first + width, PER_SHARD))
                places = [
                    Place(number * STRIDE + 512, self.target(shard * PER_SHARD + number))
                    for number in numbers
                ]
                start, stop = places[0].start, places[-1].start + SAMPLE
                found.append(RangeRequest(self.name(shard), start, stop, size, places))
        random.Random(width).shuffle(found)
        return found[:NUM_SINGLE] if width == 1 else found

    def objects(self) -> list[Request]:
        return [ReadRequest(f"{n:06}", self.target(n)) for n in range(NUM_SINGLE)]

    def check(self, what: str, requests: Sequence[Request]) -> int:
        """Compare what has arrived, forget it, and return how many samples it is.

        Raises:
            LedgerError: If a sample is not in its place.
        """
        count = 0
        for request in requests:
            places = (
                [(request.name, place.start, place.target) for place in request.places]
                if isinstance(request, RangeRequest)
                else [(request.name, -1, request.target)]
            )
            for name, start, target in places:
                due = (
                    self.sample(int(name))
                    if start < 0
                    else self.contents[int(name[:3])][start : start + SAMPLE]
                )
                if target != due:
                    raise LedgerError(f"{what}: {name} at {start} is not as it was stored")
                target[:] = bytes(SAMPLE)
                count += 1
        return count


def groups(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    """Yield requests as the fetcher puts them together."""
    size = max(1, min(GROUP_REQUESTS, GROUP_BYTES // requests[0].num_bytes))
    for start in range(0, len(requests), size):
        yield requests[start : start + size]


async def drain(reader: Reader, todo: Iterator[Sequence[Request]]) -> None:
    for group in todo:
        await reader.read(group)


async def read_all(reader: Reader, requests: Sequence[Request]) -> None:
    todo = groups(requests)
    async with asyncio.TaskGroup() as tasks:
        for number in range(FetchSettings().max_in_flight):
            tasks.create_task(drain(reader, todo), name=f"read {number}")


def of_store(
    shards: Shards,
    requests: list[Request],
    endpoint: str,
    bucket: str,
    choice: Literal["lean", "aiohttp"],
) -> dict[str, float]:
    async def main() -> None:
        settings = StoreSettings(endpoints=(endpoint,), reader=choice)
        with ThreadPoolExecutor(1) as executor:
            async with AisStore(settings, Access(settings, {}), executor) as store:
                await read_all(store.reader(Bucket.parse(f"ais://{bucket}")), requests)

    return _measure(shards, requests, main, bucket)


def of_folder(shards: Shards, requests: list[Request], folder: str) -> dict[str, float]:
    async def main() -> None:
        with ThreadPoolExecutor(4) as executor:
            await read_all(LocalReader(folder, executor), requests)

    return _measure(shards, requests, main, folder)


def _measure(
    shards: Shards,
    requests: list[Request],
    main: Callable[[], Coroutine[None, None, None]],
    what: str,
) -> dict[str, float]:
    num_samples = sum(
        len(request.places) if isinstance(request, RangeRequest) else 1 for request in requests
    )

    def deliver() -> int:
        uvloop.run(main())
        return num_samples

    figures = measured(deliver)
    assert shards.check(what, requests) == num_samples
    return figures


def main() -> None:
    shards = Shards()
    one, neighbours, chunks = (shards.ranges(width) for width in (1, 16, CHUNK))
    with cluster() as running, tempfile.TemporaryDirectory() as folder:
        for bucket in (BUCKET, OBJECTS):
            running.create_bucket(bucket)
        named = [(shards.name(n), content) for n, content in enumerate(shards.contents)]
        running.put_many(BUCKET, named)
        running.put_many(OBJECTS, ((f"{n:06}", shards.sample(n)) for n in range(NUM_SINGLE)))
        for name, content in named:
            (Path(folder) / name).write_bytes(content)
        load_before = load()
        store = partial(of_store, shards, endpoint=running.endpoint, bucket=BUCKET)
        local = partial(of_folder, shards, folder=folder)
        cases: Cases = {
            "objects": partial(
                of_store,
                shards,
                shards.objects(),
                endpoint=running.endpoint,
                bucket=OBJECTS,
                choice="lean",
            ),
            "one": partial(store, one, choice="lean"),
            "16": partial(store, neighbours, choice="lean"),
            "chunk": partial(store, chunks, choice="lean"),
            "one, aiohttp": partial(store, one, choice="aiohttp"),
            "16, aiohttp": partial(store, neighbours, choice="aiohttp"),
            "one, folder": partial(local, one),
            "16, folder": partial(local, neighbours),
            "chunk, folder": partial(local, chunks),
        }
        results = interleave(cases)
        report(
            "ranges",
            results,
            sample_bytes=SAMPLE,
            samples=SHARDS * PER_SHARD,
            versions=versions(running.endpoint),
            load=[load_before, load()],
        )


if __name__ == "__main__":
    main()
