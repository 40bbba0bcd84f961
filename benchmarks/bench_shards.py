"""How many samples a second of tar shards reach a training loop, beside the SDK and WebDataset?

Isolated: the loading alone (no decoding, no training, samples stay `bytes`) of samples of 10 KiB in
shards of 1,000, in the page cache of a real cluster, one proxy and three targets, on the same cores
as the clients.  Batches of 32 and of 256.

Headrace: a daemon in a process of its own and `DaemonDataset`, with their defaults; the shards are
indexed before the clock starts (``bench_index`` measures that), a new feed for each measurement.
In the order of the shards (``Sequential``), shuffled within windows (``ShardShuffled``), over all
samples (``Shuffled``), and two streams joined by key (``MultiShard``).
Native: `torch.utils.data.DataLoader` over `AISShardReader`, and over `webdataset.WebDataset`, which
reads the shards by URL with curl as its documentation has it; each with the two numbers of workers
that a trial finds best, of which the better one counts.  Joined: `AISMultiShardStream`, one pass
over few samples, since it asks for every member by itself.  None of them shuffles over all samples,
so all are compared with their sequential rates.

Every pass is checked: the checksum over all (key, bytes), in order where there is one, equals that
of what was put into the cluster.  CPU is user and system time of all processes of a side (loop,
workers, daemon, curl), and apart from it that of the cluster.

Run: ``.venv/bin/python -m benchmarks.bench_shards``; five minutes.  Without an aisnode it says so
and ends with status 0.

How to read: ratios of samples/s, and of client CPU.  Targets: in shard order and with a window 4
times the best native, shuffled 1.1 times its sequential rate, joined 200 times.
"""

from __future__ import annotations

import io
import itertools
import random
import tarfile
import time
import warnings
from functools import partial
from typing import Any, Final

import numpy as np
import webdataset
from aistore.pytorch import AISShardReader
from aistore.pytorch.multishard_dataset import AISMultiShardStream, DataShard
from aistore.sdk import Client
from torch.utils.data import DataLoader

from headrace import DaemonDataset, MultiShard, Shards, Stream, Topology, plans
from headrace.plans.data import Data
from headrace.plans.engine import BoundPlan, next_batches

from .ais import (
    Delivered,
    LedgerError,
    cluster,
    compare,
    end_workers,
    environment,
    load,
    measured,
    versions,
)
from .harness import Cases, daemon, interleave, report

BUCKET: Final = "shards"
SIZE: Final = 10 << 10
SHARDS: Final = 12
PER_SHARD: Final = 1_000
WINDOW: Final = 2_000
EPOCHS: Final = 3
"""Epochs of a pass of ours; the others make one."""
WORKERS: Final = (0, 1, 2, 4)
JOINED: Final = 200
"""Pairs that the native joined stream is given."""
TRIAL_SAMPLES: Final = 12_000
TARGETS: Final = {"sequential": 4.0, "window": 4.0, "shuffled": 1.1}

Sample = tuple[str, bytes]


def make(shard: int) -> tuple[bytes, bytes, list[Sample]]:
    """Return a shard of images, one of masks, and the images by key."""
    source = random.Random(shard)
    images, masks, samples = io.BytesIO(), io.BytesIO(), []
    with (
        tarfile.open(fileobj=images, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        tarfile.open(fileobj=masks, mode="w", format=tarfile.USTAR_FORMAT) as other,
    ):
        for number in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
            key, data = f"{number:07d}", source.randbytes(SIZE)
            for archive, name in ((tar, f"{key}.jpg"), (other, f"{key}.png")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            samples.append((key, data))
    return images.getvalue(), masks.getvalue(), samples


class Stored:
    """What is in the cluster."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.samples: list[Sample] = []
        self.names: list[str] = []

    @property
    def images(self) -> Shards:
        return Shards(f"ais://{BUCKET}/img-{{000..{SHARDS - 1:03d}}}.tar")

    @property
    def pairs(self) -> MultiShard:
        masks = Shards(f"ais://{BUCKET}/mask-{{000..{SHARDS - 1:03d}}}.tar")
        return MultiShard(image=self.images, mask=masks)

    def due(self, plan: plans.Plan, epochs: int, twice: bool = False) -> Delivered:
        """Return the checksums of what some epochs have to deliver."""
        bounds = np.arange(0, len(self.samples) + 1, PER_SHARD, dtype=np.uint64)
        bound = BoundPlan.to(plan, Data(len(self.samples), shards=bounds))
        cursor, found = bound.start(), Delivered()
        while cursor.epoch < epochs:
            for batch in next_batches(bound, cursor, Topology(0, 1), max_batches=64):
                if batch.epoch == epochs:
                    return found
                for index in batch.indices.tolist():
                    key, data = self.samples[index]
                    for _ in range(1 + twice):
                        found.add(key, data)
                cursor = batch.after
        return found


def headrace(
    stored: Stored, socket: str, plan: plans.Plan, due: Delivered, *, joined: bool = False
) -> dict[str, float]:
    found = Delivered()
    fields = ("image", "mask") if joined else ("jpg",)

    def deliver() -> int:
        source = stored.pairs if joined else stored.images
        dataset = DaemonDataset(socket, Stream(source, plan))
        count = 0
        for _ in range(EPOCHS):
            for batch in dataset:
                columns = [batch[field] for field in fields]
                for key, values in zip(batch.sample_keys, zip(*columns, strict=True), strict=True):
                    for value in values:
                        found.add(key, value)
                count += len(batch)
        dataset.close()
        return count

    figures = measured(deliver)
    compare("headrace", found, due, in_order=True)
    return figures


def as_list(values: list[Any]) -> list[Any]:
    return values


def shard_reader(stored: Stored, batch_size: int, num_workers: int) -> DataLoader[Any]:
    bucket = Client(stored.endpoint).bucket(BUCKET)
    data = AISShardReader(bucket, prefix_map={bucket: "img-"})
    return _loader(data, batch_size, num_workers)


def web_dataset(stored: Stored, batch_size: int, num_workers: int) -> DataLoader[Any]:
    urls = [
        f"pipe:curl -s -L '{stored.endpoint}/v1/objects/{BUCKET}/{name}?provider=ais'"
        for name in stored.names
    ]
    data = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    return _loader(data, batch_size, num_workers)


def _loader(data: Any, batch_size: int, num_workers: int) -> DataLoader[Any]:  # noqa: ANN401
    return DataLoader(
        data,
        batch_size=batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=as_list,
    )


MAKERS: Final = {"AISShardReader": shard_reader, "webdataset": web_dataset}


def sample_of(item: Any) -> Sample:  # noqa: ANN401 - what either of them yields
    if isinstance(item, dict):
        return item["__key__"], item["jpg"]
    return item[0], item[1]["jpg"]


def native(stored: Stored, what: str, loader: DataLoader[Any]) -> dict[str, float]:
    found = Delivered()

    def deliver() -> int:
        for batch in loader:
            for item in batch:
                found.add(*sample_of(item))
        return found.count

    figures = measured(deliver)
    due = Delivered()
    for sample in stored.samples:
        due.add(*sample)
    compare(what, found, due, in_order=False)
    return figures


def native_pairs(stored: Stored) -> dict[str, float]:
    sources = [
        DataShard(
            client_url=stored.endpoint,
            bucket_name=BUCKET,
            prefix=f"{kind}-000.tar",
        )
        for kind in ("img", "mask")
    ]
    count = 0

    def deliver() -> int:
        nonlocal count
        for image, mask in itertools.islice(AISMultiShardStream(sources), JOINED):
            data = stored.samples[count][1]
            if (bytes(image), bytes(mask)) != (data, data):
                raise LedgerError(f"AISMultiShardStream: pair {count} is another one")
            count += 1
        return count

    return measured(deliver)


def best(stored: Stored, what: str) -> list[int]:
    """Return the two numbers of workers with the best rates in the midst of passes."""
    rates: dict[int, float] = {}
    for num_workers in WORKERS:
        loader = MAKERS[what](stored, 32, num_workers)
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        # By then each worker has delivered.
        for _ in range(max(1, num_workers)):
            next(batches)
        started, count = time.perf_counter(), 0
        while count < TRIAL_SAMPLES:
            count += len(next(batches))
        rates[num_workers] = count / (time.perf_counter() - started)
        del batches, loader
        end_workers()
    print(f"{what}: " + ", ".join(f"{number} {rate:,.0f}" for number, rate in rates.items()))
    return sorted(rates, key=lambda number: -rates[number])[:2]


def run(stored: Stored, batch_size: int, workers: dict[str, list[int]]) -> None:
    print(f"\nbatches of {batch_size}")
    load_before = load()
    ours: dict[str, plans.Plan] = {
        "sequential": plans.Sequential(batch_size=batch_size),
        "window": plans.ShardShuffled(batch_size=batch_size, window=WINDOW, seed=17),
        "shuffled": plans.Shuffled(batch_size=batch_size, seed=17),
    }
    dues = {name: stored.due(plan, EPOCHS) for name, plan in ours.items()}
    joined = {
        "joined in order": ours["sequential"],
        "joined, shuffled": ours["shuffled"],
    }
    with environment(stored.endpoint), daemon(memory="1GiB") as node:
        for source in (stored.images, stored.pairs):  # indexed before anything is measured
            warm = DaemonDataset(node.socket, Stream(source, ours["sequential"]))
            next(iter(warm))
            warm.close()
        cases: Cases = {
            f"headrace, {name}": partial(headrace, stored, node.socket, plan, dues[name])
            for name, plan in ours.items()
        }
        for name, plan in joined.items():
            due = stored.due(plan, EPOCHS, twice=True)
            cases[f"headrace, {name}"] = partial(
                headrace, stored, node.socket, plan, due, joined=True
            )
        for what, numbers in workers.items():
            for number in numbers:
                loader = MAKERS[what](stored, batch_size, number)
                cases[f"{what}, {number} workers"] = partial(native, stored, what, loader)
        cases["AISMultiShardStream"] = partial(native_pairs, stored)
        results = interleave(cases)
    report(
        "shards",
        results,
        sample_bytes=SIZE,
        samples=len(stored.samples),
        window=WINDOW,
        batch_size=batch_size,
        versions=versions(stored.endpoint) | {"webdataset": webdataset.__version__},
        load=[load_before, load()],
    )
    rivals = [name for name in results if name.split(",")[0] in MAKERS]
    rival = max(rivals, key=lambda name: results[name]["samples/s"].median)
    for name, target in TARGETS.items():
        case = results[f"headrace, {name}"]
        ratio = case["samples/s"].median / results[rival]["samples/s"].median
        cpu = case["us/sample client"].median / results[rival]["us/sample client"].median
        verdict = "met" if ratio >= target else "MISSED"
        print(f"{name}: {ratio:.2f} times {rival}, CPU {cpu:.2f}; target {target:g}: {verdict}")
    theirs = results["AISMultiShardStream"]["samples/s"].median
    for name in joined:
        ratio = results[f"headrace, {name}"]["samples/s"].median / theirs
        print(f"{name}: {ratio:.0f} times; target 200: {'met' if ratio >= 200 else 'MISSED'}")


def main() -> None:
    warnings.filterwarnings("ignore", "This DataLoader will create")
    with cluster() as running:
        running.create_bucket(BUCKET)
        stored = Stored(running.endpoint)
        for shard in range(SHARDS):
            images, masks, samples = make(shard)
            stored.names.append(f"img-{shard:03d}.tar")
            stored.samples += samples
            running.put_many(BUCKET, [(stored.names[-1], images), (f"mask-{shard:03d}.tar", masks)])
        workers = {what: best(stored, what) for what in MAKERS}
        for batch_size in (32, 256):
            run(stored, batch_size, workers)
            end_workers()


if __name__ == "__main__":
    main()
