"""What do ranges side by side bring to large objects?

Isolated: the reader of a store in one process on uvloop, from names to bytes in memory, checksums
included.  Objects of 8 MiB and of 64 MiB in the page cache of a real cluster, one proxy and three
targets, on the same cores as the client.

Cases: ``pieces`` is the reader as it is, ``whole`` the same with every object in one answer; by how
many objects are read at a time.  With one, a step waits for it, as at the start of a run or where
batches are of one object; with 16 the fetcher is full.

Every pass is checked as in `bench_reader`, behind the clock.

Run: ``.venv/bin/python -m benchmarks.bench_pieces``; two minutes.  Without an aisnode it says so
and ends with status 0.

How to read: MB/s, by what it is at one object at a time.  Loopback has no limit for a connection,
and the cluster takes the same cores, so this is the least that ranges bring.

On a virtual machine with 2 cores on which others had work for four, in two runs of five repeats,
and with up to four objects in pieces, the rate of ``pieces`` was this part of that of ``whole``
(medians; the spread of each is larger):

    objects  at a time  pieces / whole
    8 MiB    1          0.99  0.92
             2          0.97  0.76
             16         0.87  0.91
    64 MiB   1          0.82  1.19
             2          0.64  0.98
             16         0.71  0.87

So on loopback ranges cost more than they bring, which is why no more than two objects are read so.
What they are for is not in this table: connections that a network limits, disks that are slower
than one stream, and an answer that breaks off, of which only a piece is lost.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final
from unittest import mock

import uvloop

from headrace.buckets import Bucket
from headrace_daemon.settings import StoreSettings
from headrace_daemon.source.ais import pieces
from headrace_daemon.source.ais.access import Access
from headrace_daemon.source.ais.store import AisStore
from headrace_daemon.source.reader import ReadRequest

from .ais import Delivered, cluster, compare, load, measured, objects, versions
from .harness import Cases, interleave, report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace_daemon.source.ais.reader import AisReader

SIZES: Final = {8 << 20: 24, 64 << 20: 4}
"""Objects of each size."""
AT_A_TIME: Final = (1, 2, 16)


def read(
    endpoint: str, bucket: str, contents: dict[str, bytes], at_a_time: int, *, whole: bool
) -> dict[str, float]:
    targets = {name: bytearray(len(data)) for name, data in contents.items()}

    async def drain(reader: AisReader, todo: Iterator[str]) -> None:
        for name in todo:
            await reader.read([ReadRequest(name, memoryview(targets[name]))])

    async def main() -> int:
        settings = StoreSettings(endpoints=(endpoint,))
        with ThreadPoolExecutor(1) as executor:
            async with AisStore(settings, Access(settings, {}), executor) as store:
                reader = store.reader(Bucket.parse(f"ais://{bucket}"))
                todo = iter(contents)
                async with asyncio.TaskGroup() as tasks:
                    for number in range(at_a_time):
                        tasks.create_task(drain(reader, todo), name=f"read {number}")
        return len(contents)

    limit = 1 << 62 if whole else pieces.LARGE_BYTES
    with mock.patch.object(pieces, "LARGE_BYTES", limit):
        figures = measured(lambda: uvloop.run(main()))
    found, due = Delivered(), Delivered()
    for name, data in contents.items():
        found.add(name, bytes(targets[name]))
        due.add(name, data)
    compare("pieces", found, due, in_order=True)
    size = len(next(iter(contents.values())))
    return {"MB/s": figures.pop("samples/s") * size / 1e6, **figures}


def main() -> None:
    with cluster() as running:
        for size, count in SIZES.items():
            print(f"\nobjects of {size >> 20} MiB")
            bucket = f"pieces-{size}"
            contents = dict(objects(count, size))
            running.create_bucket(bucket)
            running.put_many(bucket, contents.items())
            load_before = load()
            cases: Cases = {
                f"{'whole' if whole else 'pieces'}, {number} at a time": partial(
                    read, running.endpoint, bucket, contents, number, whole=whole
                )
                for number in AT_A_TIME
                for whole in (True, False)
            }
            report(
                "pieces",
                interleave(cases),
                sample_bytes=size,
                samples=count,
                versions=versions(running.endpoint),
                load=[load_before, load()],
            )


if __name__ == "__main__":
    main()
