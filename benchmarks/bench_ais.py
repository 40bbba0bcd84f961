"""How many objects a second reach a training loop, beside the SDK's own datasets?

Isolated: the loading alone (no decoding, no training, samples stay `bytes`, batches stay lists) of
objects in the page cache of a real cluster, one proxy and three targets, on the same cores as the
clients.  Objects of 10 KiB, the same with answers held back by 5 ms, of 100 KiB, 8 MiB and 64 MiB.

Headrace: a daemon in a process of its own and `DaemonDataset`, both with their defaults; a new feed
for each measurement, so opening counts and nothing is read ahead of the clock.  By the side of it
the same with ``[store] reader = "aiohttp"``, as on a cluster with TLS.
Native: `torch.utils.data.DataLoader` over `AISMapDataset` (one GET per sample), over
`AISIterDataset` (the same, in the order of the listing) and over `AISBatchIterDataset` (GetBatch),
each with the settings that are best here: a trial before the turns tries ``num_workers``, with the
best of them ``prefetch_factor`` and, for GetBatch, the objects per request, all in batches of 32.
Of the map-style dataset the two best take part in the turns, of large objects the three best, and
the best one there counts; for those there is `AISParallelMapDataset` too.
Workers are persistent and have started before the clock does.
Bare: aiohttp on uvloop in one process, GETs straight to the owners, 64 in flight, no torch.

Headrace and the map-style dataset deliver the same order, that of ``plans.Shuffled``; the other two
cannot.  Every pass is checked: the checksum over all (name, bytes), in order where there is one,
equals that of what was put into the cluster, or the benchmark ends there.  CPU is user and system
time of all processes of a side (loop, workers, daemon), and apart from it that of the cluster.

Run: ``.venv/bin/python -m benchmarks.bench_ais [10KiB] [10KiB+5ms] [100KiB] [8MiB] [64MiB]``; all
of it takes 25 minutes.  Without an aisnode it says so and ends with status 0.

How to read: ratios of samples/s, and of client CPU.  Targets are printed with their verdicts: for
10 KiB 12 times the best DataLoader over `AISMapDataset` and twice that over `AISBatchIterDataset`.
All share the cores with the cluster: what its targets use for an object, nobody can have, so that
near that limit rates say less than CPU does.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import time
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import aiohttp
import uvloop
from aistore.pytorch import AISIterDataset, AISMapDataset
from aistore.pytorch.batch_iter_dataset import AISBatchIterDataset
from aistore.pytorch.parallel_map_dataset import AISParallelMapDataset
from aistore.sdk import Client
from aistore.sdk.obj.content_iterator.buffer import ParallelBuffer
from torch.utils.data import DataLoader
from yarl import URL

from headrace import DaemonDataset, Objects, Stream, Topology, plans
from headrace.buckets import Bucket
from headrace.plans.cursor import Seek
from headrace.plans.engine import BoundPlan, next_batches, seek
from headrace_daemon.source.ais.clustermap import parse

from .ais import (
    Delivered,
    cluster,
    compare,
    end_workers,
    environment,
    load,
    measured,
    objects,
    versions,
)
from .harness import Cases, Spread, daemon, interleave, report
from .relay import away

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.support.cluster import Cluster

IN_FLIGHT: Final = 64
WORKERS: Final = (0, 1, 2, 4, 8)
PREFETCH: Final = (2, 8)
PER_REQUEST: Final = (256, 64, 1_024)
AIOHTTP: Final = 'store.reader = "aiohttp"'
BATCHED: Final = "AISBatchIterDataset"
PARALLEL: Final = "AISParallelMapDataset"


@dataclass(frozen=True, kw_only=True)
class Question:
    """Objects of one size, and how far away they are."""

    size: int
    """Bytes of an object."""
    samples: int
    trial: int
    """Samples of a trial."""
    epochs: int
    """Epochs of a pass of the sides that are fast; the others make one."""
    batch_sizes: tuple[int, ...]
    chosen: dict[str, int]
    """How many settings of a dataset take part in the turns."""
    targets: dict[str, float]
    """How many times the best of a dataset; of any of them under an empty name."""
    workers: tuple[int, ...] = WORKERS
    delay_s: float = 0.0
    memory: str = "1GiB"


SMALL: Final = {"AISMapDataset": 2, "AISIterDataset": 1, BATCHED: 1}
MAP_ONLY: Final = {"AISMapDataset": 2}
LARGE: Final = {"AISMapDataset": 3, PARALLEL: 1}
QUESTIONS: Final = {
    "10KiB": Question(
        size=10 << 10,
        samples=4_096,
        trial=1_024,
        epochs=4,
        batch_sizes=(32, 256),
        chosen=SMALL,
        targets={"AISMapDataset": 12.0, BATCHED: 2.0},
    ),
    "100KiB": Question(
        size=100 << 10,
        samples=3_072,
        trial=1_024,
        epochs=3,
        batch_sizes=(32,),
        chosen=SMALL,
        targets={"AISMapDataset": 8.0},
    ),
    "10KiB+5ms": Question(
        size=10 << 10,
        samples=8_192,
        trial=2_048,
        epochs=3,
        batch_sizes=(32, 256),
        chosen=MAP_ONLY,
        targets={"AISMapDataset": 20.0},
        workers=(4, 8, 16),
        delay_s=0.005,
    ),
    "8MiB": Question(
        size=8 << 20,
        samples=48,
        trial=32,
        epochs=3,
        batch_sizes=(4,),
        chosen=LARGE,
        targets={"": 2.5},
    ),
    "64MiB": Question(
        size=64 << 20,
        samples=8,
        trial=8,
        epochs=3,
        batch_sizes=(1,),
        chosen=LARGE,
        targets={"": 2.5},
        memory="2GiB",
    ),
}

Contents = dict[str, bytes]
Sample = tuple[str, bytes | ParallelBuffer]


def as_list(values: list[Any]) -> list[Any]:
    return values


# ---- the order ---------------------------------------------------------------------------------


class PlanBatches:
    """The batches of one epoch of a plan as lists of indices: a batch sampler."""

    def __init__(self, plan: plans.Plan, length: int) -> None:
        self._bound = BoundPlan(plan, length, "")
        self.epoch = 0

    def __iter__(self) -> Iterator[list[int]]:
        cursor = seek(self._bound, Seek(epoch=self.epoch), 1)
        while cursor.epoch == self.epoch:
            batches = next_batches(self._bound, cursor, Topology(0, 1), max_batches=256)
            yield from (batch.indices.tolist() for batch in batches)
            cursor = batches[-1].after


def due(contents: Contents, order: PlanBatches, epochs: Iterable[int]) -> Delivered:
    """Return the checksums of what some epochs have to deliver."""
    names, found = list(contents), Delivered()
    for order.epoch in epochs:
        for batch in order:
            for index in batch:
                found.add(names[index], contents[names[index]])
    return found


# ---- the sides ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """What a measurement reads."""

    endpoint: str
    bucket: str
    contents: Contents
    batch_size: int
    question: Question

    @property
    def plan(self) -> plans.Plan:
        return plans.Shuffled(batch_size=self.batch_size, seed=17)


def headrace(side: Side, socket: str) -> dict[str, float]:
    found = Delivered()

    def deliver() -> int:
        stream = Stream(Objects(f"ais://{side.bucket}"), side.plan)
        dataset = DaemonDataset(socket, stream)
        for _ in range(side.question.epochs):
            for batch in dataset:
                for name, data in batch:
                    found.add(name, data)
        dataset.close()
        return found.count

    figures = measured(deliver)
    order = PlanBatches(side.plan, len(side.contents))
    compare(
        "headrace", found, due(side.contents, order, range(side.question.epochs)), in_order=True
    )
    return figures


def native(
    side: Side, what: str, loader: DataLoader[Sample], order: PlanBatches | None
) -> dict[str, float]:
    found = Delivered()

    def deliver() -> int:
        for batch in loader:
            for name, data in batch:
                if isinstance(data, ParallelBuffer):
                    found.add(name, data.buf)
                    data.close()
                else:
                    found.add(name, data)
        return found.count

    figures = measured(deliver)
    wanted = due(side.contents, order or PlanBatches(side.plan, len(side.contents)), [0])
    compare(what, found, wanted, in_order=order is not None)
    return figures


def bare(side: Side) -> dict[str, float]:
    found = Delivered()

    async def read(session: aiohttp.ClientSession, urls: Iterator[tuple[str, URL]]) -> None:
        for name, url in urls:
            async with session.get(url) as answer:
                found.add(name, await answer.read())

    async def main() -> int:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            async with session.get(f"{side.endpoint}/v1/daemon?what=smap") as answer:
                smap = parse(await answer.read())
            names = list(side.contents)
            owners = smap.owners(Bucket.parse(f"ais://{side.bucket}"), names)
            paths = [f"/v1/objects/{side.bucket}/{quote(name)}?provider=ais" for name in names]
            urls = [
                (name, URL(owner.url + path, encoded=True))
                for name, owner, path in zip(names, owners, paths, strict=True)
            ]
            todo = iter(urls * side.question.epochs)
            async with asyncio.TaskGroup() as group:
                for number in range(IN_FLIGHT):
                    group.create_task(read(session, todo), name=f"read {number}")
        return found.count

    figures = measured(lambda: uvloop.run(main()))
    order = PlanBatches(side.plan, len(side.contents))
    compare(
        "aiohttp", found, due(side.contents, order, range(side.question.epochs)), in_order=False
    )
    return figures


# ---- the settings of the native side -----------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How a native dataset is used."""

    dataset: str
    num_workers: int
    prefetch_factor: int | None = None
    per_request: int | None = None

    def __str__(self) -> str:
        words = [f"{self.num_workers} workers"]
        if self.prefetch_factor:
            words.append(f"prefetch {self.prefetch_factor}")
        if self.per_request:
            words.append(f"{self.per_request} per GetBatch")
        return f"{self.dataset}, {', '.join(words)}"

    @property
    def short(self) -> str:
        parts = (self.num_workers, self.prefetch_factor, self.per_request)
        return "/".join(str(part) for part in parts if part is not None)

    def loader(self, side: Side) -> tuple[DataLoader[Sample], PlanBatches | None]:
        """Make a loader, and the order that it delivers, if it is that of the plan."""
        client = Client(side.endpoint)
        bucket = client.bucket(side.bucket)
        options: dict[str, Any] = {
            "collate_fn": as_list,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "prefetch_factor": self.prefetch_factor,
        }
        if self.dataset == "AISMapDataset":
            order = PlanBatches(side.plan, len(side.contents))
            return DataLoader(AISMapDataset(bucket), batch_sampler=order, **options), order
        if self.dataset == PARALLEL:
            order = PlanBatches(side.plan, len(side.contents))
            return DataLoader(AISParallelMapDataset(bucket), batch_sampler=order, **options), order
        if self.dataset == "AISIterDataset":
            data = AISIterDataset(bucket)
        else:
            data = AISBatchIterDataset(bucket, client, max_batch_size=self.per_request)
        return DataLoader(data, batch_size=side.batch_size, **options), None


def rate(side: Side, settings: Settings) -> float:
    """Return the samples/s of passes in their midst, without the start of the workers."""
    loader, _ = settings.loader(side)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    # By then each worker has delivered, and all have as much in hand as they will have at the end.
    for _ in range(max(1, settings.num_workers)):
        drop(next(batches))
    count, started = 0, time.perf_counter()
    while count < side.question.trial:
        count += drop(next(batches))
    return count / (time.perf_counter() - started)


def drop(batch: list[Sample]) -> int:
    """Free what a batch holds, and return its number of samples."""
    for _, data in batch:
        if isinstance(data, ParallelBuffer):
            data.close()
    return len(batch)


def best(side: Side, dataset: str, number: int) -> list[Settings]:
    """Try workers, then with the best number of them the other settings; return the best ones.

    Args:
        side: What to read.
        dataset: Which dataset.
        number: How many to return, of different numbers of workers: one trial may be unlucky.
    """
    is_batch = dataset == BATCHED
    rates: dict[Settings, float] = {}

    def attempt(num_workers: int, prefetch: int, per_request: int) -> None:
        settings = Settings(
            dataset,
            num_workers,
            prefetch if num_workers else None,
            per_request if is_batch else None,
        )
        if settings not in rates:
            rates[settings] = rate(side, settings)
            end_workers()

    def winner() -> Settings:
        return max(rates, key=lambda settings: rates[settings])

    # It forks processes of its own, which workers may not.
    for num_workers in (0,) if dataset == PARALLEL else side.question.workers:
        attempt(num_workers, PREFETCH[0], PER_REQUEST[0])
    for prefetch in PREFETCH[1:]:
        attempt(winner().num_workers, prefetch, PER_REQUEST[0])
    for per_request in PER_REQUEST[1:] if is_batch else ():
        attempt(winner().num_workers, winner().prefetch_factor or PREFETCH[0], per_request)
    print(f"{dataset}: " + ", ".join(f"{one.short} {value:,.0f}" for one, value in rates.items()))
    by_workers: dict[int, Settings] = {}
    for settings in sorted(rates, key=lambda settings: -rates[settings]):
        by_workers.setdefault(settings.num_workers, settings)
    return list(by_workers.values())[:number]


# ---- the run -----------------------------------------------------------------------------------


def run(side: Side, chosen: list[Settings]) -> None:
    print(f"\nbatches of {side.batch_size}")
    load_before = load()
    question = side.question
    with (
        environment(side.endpoint),
        daemon(memory=question.memory) as node,
        daemon(memory=question.memory, config=AIOHTTP) as other,
    ):
        cases: Cases = {
            "headrace": partial(headrace, side, node.socket),
            "headrace, aiohttp path": partial(headrace, side, other.socket),
        }
        for settings in chosen:
            loader, order = settings.loader(side)
            cases[str(settings)] = partial(native, side, str(settings), loader, order)
        cases[f"bare aiohttp, {IN_FLIGHT} in flight"] = partial(bare, side)
        results = interleave(cases)
    report(
        "ais",
        results,
        sample_bytes=question.size,
        samples=question.samples,
        delay_s=question.delay_s,
        batch_size=side.batch_size,
        versions=versions(side.endpoint),
        load=[load_before, load()],
        headrace=f"defaults, memory {question.memory}",
    )
    ours = results["headrace"]
    for name, figures in results.items():
        if name != "headrace":
            print(f"headrace / {name}: {_ratios(ours, figures)}")
    for dataset, target in question.targets.items():
        rival = max(
            results[str(one)]["samples/s"].median
            for one in chosen
            if one.dataset == dataset or not dataset
        )
        ratio = ours["samples/s"].median / rival
        verdict = "met" if ratio >= target else "MISSED"
        what = dataset or "all"
        print(f"{ratio:.1f} times the best of {what}, target {target:g}: {verdict}")


def _ratios(ours: dict[str, Spread], theirs: dict[str, Spread]) -> str:
    return ", ".join(f"{key} {ours[key].median / theirs[key].median:.2f}" for key in ours)


def main() -> None:
    # It is a trial: more workers than cores are what a store that makes them wait calls for.
    warnings.filterwarnings("ignore", "This DataLoader will create")
    names = sys.argv[1:] or list(QUESTIONS)
    with cluster() as running:
        for number, name in enumerate(names):
            print(f"\n== {name}")
            ask(running, f"train{number}", QUESTIONS[name])


def ask(running: Cluster, bucket: str, question: Question) -> None:
    contents = dict(objects(question.samples, question.size))
    running.create_bucket(bucket)
    running.put_many(bucket, contents.items())
    with contextlib.ExitStack() as stack:
        endpoint = running.endpoint
        if question.delay_s:
            endpoint = stack.enter_context(away(endpoint, question.delay_s))
        sides = [Side(endpoint, bucket, contents, size, question) for size in question.batch_sizes]
        print("trials: workers/prefetch_factor/objects per GetBatch samples/s")
        chosen = [
            one for name, number in question.chosen.items() for one in best(sides[0], name, number)
        ]
        for side in sides:
            run(side, chosen)
            end_workers()


if __name__ == "__main__":
    main()
