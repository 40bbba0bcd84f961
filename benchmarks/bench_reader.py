"""What does reading an object of a cluster cost, before anything else is done with it?

Isolated: the reader of a store in one process on uvloop, from names to bytes in memory, without
feeds, sockets and trainers.  Objects of 10 KiB and of 100 KiB in the page cache of a real cluster,
one proxy and three targets, on the same cores as the client; groups of 32 objects, 16 groups at a
time, as the fetcher has them.

Cases: ``lean`` and ``aiohttp`` are our two readers, checksums included; ``bare aiohttp`` is GETs
straight to the owners and nothing else, 64 in flight; ``sockets`` is blocking sockets, one to each
target: requests sent eight at a time, answers received with ``recv_into`` and found by their known
lengths, nothing parsed or checked.  It waits for each eight, so its rate is no limit; its CPU is
about what the kernel takes.

Every pass is checked: the checksum over all (name, bytes) equals that of what was put into the
cluster, or the benchmark ends there; that is done behind the clock.  CPU is user and system time of
this process, and apart from it that of the cluster.

Run: ``.venv/bin/python -m benchmarks.bench_reader``; two minutes.  Without an aisnode it says so
and ends with status 0.

How to read: µs of CPU per object.  Rates say less: the cluster has the same cores, and is full
before the lean reader is.
"""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit
from urllib.request import urlopen

import aiohttp
import uvloop
from yarl import URL

from headrace.buckets import Bucket
from headrace_daemon.fetch.fetcher import GROUP_REQUESTS
from headrace_daemon.settings import FetchSettings, StoreSettings
from headrace_daemon.source.ais.access import Access
from headrace_daemon.source.ais.clustermap import parse
from headrace_daemon.source.ais.store import AisStore
from headrace_daemon.source.reader import ReadRequest

from .ais import Delivered, cluster, compare, load, measured, objects, versions
from .harness import Cases, interleave, report

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from headrace_daemon.source.ais.reader import AisReader

BUCKET: Final = "reads"
SIZES: Final = {10 << 10: 4_096, 100 << 10: 1_024}
"""Objects of each size."""
PASSES: Final = 2
IN_FLIGHT: Final = 64
DEPTH: Final = 8

Contents = dict[str, bytes]


class Case:
    """A set of objects and the memory that it is read into.

    Args:
        endpoint: Of the cluster.
        bucket: Where the objects are.
        contents: The objects.
    """

    def __init__(self, endpoint: str, bucket: str, contents: Contents) -> None:
        self.endpoint = endpoint
        self.bucket = bucket
        self.contents = contents
        self.targets = {name: bytearray(len(data)) for name, data in contents.items()}
        self.due = Delivered()
        for name, data in contents.items():
            self.due.add(name, data)
        with urlopen(f"{endpoint}/v1/daemon?what=smap", timeout=10) as told:
            smap = parse(told.read())
        names = list(contents)
        owners = smap.owners(Bucket.parse(f"ais://{bucket}"), names)
        self.owners = dict(zip(names, [owner.url for owner in owners], strict=True))

    def path(self, name: str) -> str:
        return f"/v1/objects/{self.bucket}/{name}?provider=ais"

    def check(self, what: str) -> None:
        """Compare what has arrived, and forget it."""
        found = Delivered()
        for name, target in self.targets.items():
            found.add(name, bytes(target))
            target[:] = bytes(len(target))
        compare(what, found, self.due, in_order=True)


def ours(case: Case, choice: Literal["lean", "aiohttp"]) -> dict[str, float]:
    requests = [ReadRequest(name, memoryview(target)) for name, target in case.targets.items()]
    groups = [
        requests[start : start + GROUP_REQUESTS]
        for start in range(0, len(requests), GROUP_REQUESTS)
    ]

    async def drain(reader: AisReader, todo: Iterator[Sequence[ReadRequest]]) -> None:
        for group in todo:
            await reader.read(group)

    async def main() -> int:
        settings = StoreSettings(endpoints=(case.endpoint,), reader=choice)
        with ThreadPoolExecutor(1) as executor:
            async with AisStore(settings, Access(settings, {}), executor) as store:
                reader = store.reader(Bucket.parse(f"ais://{case.bucket}"))
                todo = iter(groups * PASSES)
                async with asyncio.TaskGroup() as tasks:
                    for number in range(FetchSettings().max_in_flight):
                        tasks.create_task(drain(reader, todo), name=f"read {number}")
        return len(requests) * PASSES

    figures = measured(lambda: uvloop.run(main()))
    case.check(choice)
    return figures


def bare(case: Case) -> dict[str, float]:
    urls = [
        (target, URL(case.owners[name] + case.path(name), encoded=True))
        for name, target in case.targets.items()
    ]

    async def drain(session: aiohttp.ClientSession, todo: Iterator[tuple[bytearray, URL]]) -> None:
        for target, url in todo:
            async with session.get(url) as answer:
                target[:] = await answer.read()

    async def main() -> int:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            todo = iter(urls * PASSES)
            async with asyncio.TaskGroup() as tasks:
                for number in range(IN_FLIGHT):
                    tasks.create_task(drain(session, todo), name=f"read {number}")
        return len(urls) * PASSES

    figures = measured(lambda: uvloop.run(main()))
    case.check("bare aiohttp")
    return figures


def sockets(case: Case) -> dict[str, float]:
    by_owner: dict[str, list[str]] = defaultdict(list)
    for name, owner in case.owners.items():
        by_owner[owner].append(name)
    jobs = []
    for owner, names in by_owner.items():
        host = urlsplit(owner).netloc
        for start in range(0, len(names), DEPTH):
            part = names[start : start + DEPTH]
            text = "".join(
                f"GET {case.path(name)} HTTP/1.1\r\nHost: {host}\r\n\r\n" for name in part
            )
            jobs.append((owner, text.encode(), [case.targets[name] for name in part]))
    buffer = bytearray(1 << 20)
    view = memoryview(buffer)

    def deliver() -> int:
        links = {}
        for owner in by_owner:
            parts = urlsplit(owner)
            links[owner] = socket.create_connection((parts.hostname, parts.port), timeout=30)
        try:
            for _ in range(PASSES):
                for owner, text, targets in jobs:
                    links[owner].sendall(text)
                    _receive(links[owner], buffer, view, targets)
        finally:
            for link in links.values():
                link.close()
        return len(case.targets) * PASSES

    figures = measured(deliver)
    case.check("sockets")
    return figures


def _receive(
    link: socket.socket, buffer: bytearray, view: memoryview, targets: list[bytearray]
) -> None:
    """Receive some answers that are due, all of them with status 200."""
    at = end = 0
    for target in targets:
        while (behind := buffer.find(b"\r\n\r\n", at, end)) < 0:
            end += link.recv_into(view[end:])
        at = behind + 4
        while end - at < len(target):
            end += link.recv_into(view[end:])
        target[:] = view[at : at + len(target)]
        at += len(target)


def run(case: Case, size: int) -> None:
    print(f"\nobjects of {size} bytes")
    load_before = load()
    cases: Cases = {
        "lean": partial(ours, case, "lean"),
        "aiohttp": partial(ours, case, "aiohttp"),
        f"bare aiohttp, {IN_FLIGHT} in flight": partial(bare, case),
        "sockets": partial(sockets, case),
    }
    results = interleave(cases)
    report(
        "reader",
        results,
        sample_bytes=size,
        samples=len(case.contents),
        versions=versions(case.endpoint),
        load=[load_before, load()],
    )


def main() -> None:
    with cluster() as running:
        for size, count in SIZES.items():
            bucket = f"{BUCKET}-{size}"
            contents = dict(objects(count, size))
            running.create_bucket(bucket)
            running.put_many(bucket, contents.items())
            run(Case(running.endpoint, bucket, contents), size)


if __name__ == "__main__":
    main()
