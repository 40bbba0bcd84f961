"""How many samples a second come out of a local folder, beside a native torch DataLoader?

Isolated: the loader alone (no decoding, no training) on files in the page cache, batches of 32,
shuffled.  Native: a map-style dataset that opens and reads each file, a collation that keeps the
list of `bytes`, ``num_workers`` 0, 1 and 2 with persistent workers and ``prefetch_factor=4``; its
best one counts.
Headrace: a daemon in a process of its own, `DaemonDataset` with its defaults.

Run: ``.venv/bin/python -m benchmarks.bench_local``.

How to read: ratios; on two cores the daemon, the trainer and the native workers share them.  With
``num_workers=0`` the native loader reads within the training loop: it hides nothing behind a step.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, Dataset

from headrace import DaemonDataset, Objects, Stream, plans

from .harness import Cases, cpu_s, daemon, files, interleave, report

if TYPE_CHECKING:
    from pathlib import Path

BATCH = 32


class Files(Dataset[bytes]):
    """The files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._names = sorted(str(path) for path in folder.rglob("*.bin"))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> bytes:
        with open(self._names[index], "rb", buffering=0) as file:
            return file.read()


def as_list(values: list[Any]) -> list[Any]:
    return values


def native(loader: DataLoader[bytes], epochs: int) -> dict[str, float]:
    started, count = time.perf_counter(), 0
    for _ in range(epochs):
        for batch in loader:
            count += len(batch)
    return {"samples/s": count / (time.perf_counter() - started)}


def headrace(dataset: DaemonDataset, pid: int, epochs: int) -> dict[str, float]:
    started, count, mine, theirs = time.perf_counter(), 0, cpu_s(), cpu_s(pid)
    for _ in range(epochs):
        for batch in dataset:
            count += len(batch)
    wall = time.perf_counter() - started
    return {
        "samples/s": count / wall,
        "us/sample daemon": (cpu_s(pid) - theirs) / count * 1e6,
        "trainer": (cpu_s() - mine) / count * 1e6,
    }


def run(size: int, count: int, epochs: int) -> None:
    with files(count, size) as folder, daemon() as node:
        data = Files(folder)
        loaders = {
            workers: DataLoader(
                data,
                batch_size=BATCH,
                shuffle=True,
                collate_fn=as_list,
                num_workers=workers,
                persistent_workers=workers > 0,
                prefetch_factor=4 if workers else None,
            )
            for workers in (0, 1, 2)
        }
        stream = Stream(Objects(str(folder)), plans.Shuffled(batch_size=BATCH))
        dataset = DaemonDataset(node.socket, stream)
        cases: Cases = {
            f"DataLoader, num_workers={workers}": partial(native, loader, epochs)
            for workers, loader in loaders.items()
        }
        cases["headrace"] = partial(headrace, dataset, node.pid, epochs)
        results = interleave(cases)
        dataset.close()
    print(f"\nfiles of {size >> 10} KiB")
    report("local", results, sample_bytes=size, batch_size=BATCH)
    best = max(figures["samples/s"].median for name, figures in results.items() if "Data" in name)
    with_workers = max(
        figures["samples/s"].median
        for name, figures in results.items()
        if "Data" in name and not name.endswith("0")
    )
    ours = results["headrace"]["samples/s"].median
    print(
        f"headrace / best native {ours / best:.2f}, / best with workers {ours / with_workers:.2f}"
    )


def main() -> None:
    run(10 << 10, 4000, 3)
    run(100 << 10, 1000, 3)


if __name__ == "__main__":
    main()
