"""How long does it take to make a manifest of a bucket, beside a bare listing of it?

Isolated: 25,000 objects of 16 bytes in a real cluster, one proxy and three targets on the same
cores.  Each measurement begins with nothing: no connection, no cluster map, no manifest.

Headrace: what ``headrace index SOURCE --refresh`` does: the map, all pages, the columns with names,
sizes, checksums and versions, their digest, the manifest in the state folder and mapped from there.
Bare: a loop with aiohttp over the same msgpack pages that decodes each with msgspec and keeps the
names: once asking for names only, once for the four properties that a manifest needs, which cost
the cluster more.
Native: ``bucket.list_all_objects()`` of the SDK with its default properties, name and size.

Run: ``.venv/bin/python -m benchmarks.bench_ais_listing``; half a minute.  Without an aisnode it
says so and ends with status 0.

How to read: ratios of seconds.  The target is a manifest within twice the time of the bare listing.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp
import msgspec
import uvloop
from aistore.sdk import Client

from headrace import Objects
from headrace_daemon.commands.sources import take_inventory
from headrace_daemon.settings import Settings, StoreSettings
from headrace_daemon.source.store import ManifestStore

from .ais import cluster, load, objects, versions
from .harness import Cases, cpu_s, interleave, report

if TYPE_CHECKING:
    from collections.abc import Callable

BUCKET: Final = "train"
OBJECTS: Final = 25_000
TARGET: Final = 2.0


class Entry(msgspec.Struct):
    n: str


class Page(msgspec.Struct):
    UUID: str = ""
    ContinuationToken: str = ""
    Entries: list[Entry] | None = None


def measured(make: Callable[[], int]) -> dict[str, float]:
    """Run a listing, check that it is whole, and return its seconds."""
    cpu, started = cpu_s(), time.perf_counter()
    count = make()
    wall = time.perf_counter() - started
    assert count == OBJECTS, f"{count} of {OBJECTS} objects: the row is rejected"
    return {"seconds": wall, "cpu": cpu_s() - cpu}


def headrace(endpoint: str) -> int:
    source = Objects(f"ais://{BUCKET}")
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        store = ManifestStore(Path(folder))
        settings = Settings(store=StoreSettings(endpoints=(endpoint,)))
        return len(store.keep(source, take_inventory(settings, source, store)))


def bare(endpoint: str, props: str) -> int:
    decoder = msgspec.msgpack.Decoder(Page)
    url = f"{endpoint}/v1/buckets/{BUCKET}?provider=ais"
    names: list[str] = []

    async def main() -> None:
        value = {"props": props, "uuid": "", "continuation_token": "", "flags": "0"}
        async with aiohttp.ClientSession(headers={"Accept": "application/msgpack"}) as session:
            while True:
                body = {"action": "list", "value": value}
                async with session.get(url, json=body) as answer:
                    page = decoder.decode(await answer.read())
                names.extend(entry.n for entry in page.Entries or [])
                if not page.ContinuationToken:
                    return
                value |= {"uuid": page.UUID, "continuation_token": page.ContinuationToken}

    uvloop.run(main())
    return len(names)


def native(endpoint: str) -> int:
    return len(Client(endpoint).bucket(BUCKET).list_all_objects())


def main() -> None:
    with cluster() as running:
        running.create_bucket(BUCKET)
        running.put_many(BUCKET, objects(OBJECTS, 16), in_flight=64)
        where, before = running.endpoint, load()
        cases: Cases = {
            "headrace: stored manifest": partial(measured, partial(headrace, where)),
            "bare: names": partial(measured, partial(bare, where, "name")),
            "bare: same properties": partial(
                measured, partial(bare, where, "name,size,checksum,version")
            ),
            "native: list_all_objects": partial(measured, partial(native, where)),
        }
        results = interleave(cases)
        facts = {"versions": versions(where), "load": [before, load()]}
    report("ais_listing", results, objects=OBJECTS, **facts)
    ours = results["headrace: stored manifest"]["seconds"].median
    ratios = {name: ours / figures["seconds"].median for name, figures in results.items()}
    for name, ratio in ratios.items():
        if name != "headrace: stored manifest":
            print(f"headrace / {name}: {ratio:.2f}")
    print(f"target {TARGET:g}: {'met' if ratios['bare: names'] <= TARGET else 'MISSED'}")


if __name__ == "__main__":
    main()
