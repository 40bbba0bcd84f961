"""How near does the read-ahead that a feed finds by itself come to the best that one could ask for?

Isolated: objects of 10 KiB of a real cluster, batches of 32, through a daemon into a training loop
that only counts, with the nodes' answers held back by 0, 1, 5 and 20 ms (`benchmarks.relay`).  By
default a `DaemonDataset` asks for 4 batches, and its feed takes up to 8 times the slots where that
pays.  Beside it the same with ``prefetch_batches`` from 8 to 64, each with its own freedom to grow.
A new feed for each measurement, so that finding the number counts.

Run: ``.venv/bin/python -m benchmarks.bench_ahead``; four minutes.  Without an aisnode it says so
and ends with status 0.

How to read: the default is to have 0.9 times the samples/s of the best of them, whatever the delay.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from headrace import DaemonDataset, Objects, Stream, plans

from .ais import cluster, environment, load, measured, objects, versions
from .harness import Cases, daemon, interleave, report
from .relay import away

BUCKET: Final = "ahead"
SIZE: Final = 10 << 10
SAMPLES: Final = 4_096
BATCH: Final = 32
EPOCHS: Final = 4
DELAYS_MS: Final = (0, 1, 5, 20)
DEFAULT: Final = 4
TUNED: Final = (8, 16, 32, 64)
TARGET: Final = 0.9


def measure(socket: str, prefetch_batches: int) -> dict[str, float]:
    def deliver() -> int:
        stream = Stream(Objects(f"ais://{BUCKET}"), plans.Shuffled(batch_size=BATCH))
        dataset = DaemonDataset(socket, stream, prefetch_batches=prefetch_batches)
        count = sum(len(batch) for _ in range(EPOCHS) for batch in dataset)
        dataset.close()
        return count

    return measured(deliver)


def ask(endpoint: str, delay_ms: int) -> None:
    print(f"\n+{delay_ms} ms")
    load_before = load()
    with environment(endpoint), daemon() as node:
        cases: Cases = {
            f"prefetch_batches={number}": partial(measure, node.socket, number)
            for number in (DEFAULT, *TUNED)
        }
        results = interleave(cases)
    report(
        "ahead",
        results,
        sample_bytes=SIZE,
        samples=SAMPLES,
        batch_size=BATCH,
        delay_s=delay_ms / 1e3,
        versions=versions(endpoint),
        load=[load_before, load()],
    )
    rates = {name: figures["samples/s"].median for name, figures in results.items()}
    best = max(rates, key=lambda name: rates[name])
    ratio = rates[f"prefetch_batches={DEFAULT}"] / rates[best]
    verdict = "met" if ratio >= TARGET else "MISSED"
    print(f"default / {best}: {ratio:.2f}, target {TARGET}: {verdict}")


def main() -> None:
    with cluster() as running:
        running.create_bucket(BUCKET)
        running.put_many(BUCKET, objects(SAMPLES, SIZE))
        for delay_ms in DELAYS_MS:
            if not delay_ms:
                ask(running.endpoint, 0)
                continue
            with away(running.endpoint, delay_ms / 1e3) as endpoint:
                ask(endpoint, delay_ms)


if __name__ == "__main__":
    main()
