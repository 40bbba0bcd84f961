"""What do DataLoader workers cost, and when do they pay?

Isolated: one daemon and one folder in the page cache; the bare dataset and `loader(2)` with
persistent workers in turn, whole epochs, timed from their first batch on.  "raw" are batches as
they come, "transform" ones whose samples take 0.5 ms of Python each.  `iter() to the first batch`
is that of `loader(4)` and of a plain `DataLoader` with 4 forked workers, on a manifest that the
daemon has in use; "bare" is the same without workers.

Run: ``.venv/bin/python -m benchmarks.bench_workers``.

How to read: "rate" is samples/s; "CPU µs" is that of all processes per sample, the daemon included,
and tells more than the rate where others use the machine.  Targets: raw, `loader(2)` at 0.8 of the
rate of the bare dataset; the first batch of 4 workers within 1 s.  A transform gains what the
processors allow: on two of them the daemon and the loop need a part of both.
"""

from __future__ import annotations

import time
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
from torch.utils.data import DataLoader

from headrace import DaemonDataset, Objects, Stream, plans

from .harness import Cases, Spread, daemon, files, interleave, report

if TYPE_CHECKING:
    from collections.abc import Iterable

TRANSFORM_S = 0.0005


def work(sample: dict[str, Any]) -> str:
    end = time.thread_time() + TRANSFORM_S
    while time.thread_time() < end:
        pass
    return str(sample["__key__"])


def cpu_s() -> float:
    """Return the CPU seconds of this process and of all that it has started."""
    me = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (me, *me.children(recursive=True)))


def epoch(batches: Iterable[Any]) -> dict[str, float]:
    samples, started, cpu = 0, 0.0, 0.0
    for batch in batches:
        if not started:
            started, cpu = time.perf_counter(), cpu_s()
        else:
            samples += len(batch)
    return {
        "rate": samples / (time.perf_counter() - started),
        "CPU µs": (cpu_s() - cpu) / samples * 1e6,
    }


def first_batch(batches: Iterable[Any]) -> dict[str, float]:
    started = time.perf_counter()
    iterator = iter(batches)
    next(iterator)
    return {"s": time.perf_counter() - started}


def main() -> None:
    warnings.filterwarnings("ignore", "This DataLoader will create")
    results: dict[str, dict[str, Spread]] = {}
    sets = (("raw 10 KiB × 256", 12_000, 10 << 10, 256), ("raw 100 KiB × 32", 4_000, 100 << 10, 32))
    for name, count, size, batch_size in sets:
        with daemon() as node, files(count, size) as folder:
            stream = Stream(Objects(str(folder)), plans.Shuffled(batch_size=batch_size))
            bare, other = DaemonDataset(node.socket, stream), DaemonDataset(node.socket, stream)
            cases: Cases = {
                f"{name}, bare": partial(epoch, bare),
                f"{name}, loader(2)": partial(epoch, other.loader(2, persistent_workers=True)),
            }
            results |= interleave(cases)
            bare.close()
            if batch_size == 32:
                continue
            stream = Stream(Objects(str(folder)), plans.Shuffled(batch_size=64))
            options: dict[str, Any] = {"transform": work, "collate_fn": list}
            bare, other = (DaemonDataset(node.socket, stream, **options) for _ in range(2))
            cases = {
                "transform, bare": partial(epoch, bare),
                "transform, loader(2)": partial(epoch, other.loader(2, persistent_workers=True)),
            }
            results |= interleave(cases)
            bare.close()
            bare, other, plain = (DaemonDataset(node.socket, stream) for _ in range(3))
            cases = {
                "first batch, bare": partial(first_batch, bare),
                "first batch, loader(4)": partial(first_batch, other.loader(4)),
                "first batch, DataLoader(4)": partial(
                    first_batch, DataLoader(plain, batch_size=None, num_workers=4)
                ),
            }
            results |= interleave(cases)
            bare.close()
    report("workers", results, transform_s=TRANSFORM_S)


if __name__ == "__main__":
    main()
