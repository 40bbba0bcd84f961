"""How long from `iter()` to the first batch, when the manifest or the index is stored?

Isolated: a fresh daemon per repeat (nothing in its memory, the manifest in its state folder), one
open at the start of epoch 0, then in the same daemon opens at 1 %, 50 % and 99 % of the epoch.
Folders of 2,000 and of 1,000,000 samples of 1 KiB, batches of 32.  The million are 1,000 names for
each of 1,000 files: hard links, so that the disk holds 1,000 files and the manifest a million.
The same with tar shards of 1,000 samples of 1 KiB, again hard links of one: in the order of the
shards, shuffled within windows of 2,000, and over all samples.

Run: ``.venv/bin/python -m benchmarks.bench_first_batch``; two minutes.

How to read: the target is 0.2 s for files, and 0.05 s for shards where the daemon has been asked
for their samples before.  "fresh" contains mapping and verifying the manifest (SHA-256 of all names
and sizes) and the scan of the epoch for its largest batch, and of shards the list of samples; they
grow with the samples and happen once per daemon.  What is left is connecting, planning and reading
one batch; and of a window what has to be there before it can be shuffled.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Final

from headrace import DaemonDataset, Objects, Shards, Stream, plans
from headrace_daemon.source.local import list_folder
from headrace_daemon.source.store import ManifestStore

from .harness import Cases, daemon, interleave, report

BATCH: Final = 32
PER_SHARD: Final = 1_000
WINDOW: Final = 2_000
PLANS: Final[dict[str, plans.Plan]] = {
    "in order": plans.Sequential(batch_size=BATCH),
    "window": plans.ShardShuffled(batch_size=BATCH, window=WINDOW),
    "shuffled": plans.Shuffled(batch_size=BATCH),
}


def prepare(root: Path, count: int) -> tuple[Path, Path]:
    folder, state = root / f"data-{count}", root / f"state-{count}"
    folder.mkdir()
    originals = min(count, 1000)
    for number in range(originals):
        (folder / f"{number:04d}").mkdir()
        (folder / f"{number:04d}" / "0000").write_bytes(os.urandom(1 << 10))
        for link in range(1, count // originals):
            os.link(folder / f"{number:04d}" / "0000", folder / f"{number:04d}" / f"{link:04d}")
    source = Objects(str(folder))
    ManifestStore(state).keep(source, list_folder(source.selections[0]))
    return folder, state


def prepare_shards(root: Path, count: int) -> tuple[Path, Path]:
    folder, state = root / f"shards-{count}", root / f"shards-state-{count}"
    folder.mkdir()
    first = folder / "00000.tar"
    with tarfile.open(first, "w") as tar:
        for number in range(PER_SHARD):
            info = tarfile.TarInfo(f"{number:06d}.bin")
            info.size = 1 << 10
            tar.addfile(info, io.BytesIO(os.urandom(info.size)))
    for link in range(1, count // PER_SHARD):
        os.link(first, folder / f"{link:05d}.tar")
    with daemon(state_dir=state) as node:
        dataset = DaemonDataset(node.socket, Stream(Shards(str(folder)), PLANS["in order"]))
        next(iter(dataset))
        dataset.close()
    return folder, state


def measure(stream: Stream, state: Path, count: int) -> dict[str, float]:
    figures = {}
    with daemon(state_dir=state) as node:
        for name, fraction in {"fresh": 0.0, "1 %": 0.01, "50 %": 0.5, "99 %": 0.99}.items():
            dataset = DaemonDataset(node.socket, stream)
            if fraction:
                dataset.seek(update=int(count // BATCH * fraction))
            started = time.perf_counter()
            next(iter(dataset))
            figures[name] = time.perf_counter() - started
            dataset.close()
    return figures


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        cases: Cases = {}
        for count in (2_000, 1_000_000):
            folder, state = prepare(Path(name), count)
            stream = Stream(Objects(str(folder)), plans.Shuffled(batch_size=BATCH))
            cases[f"{count:,} samples (s)"] = partial(measure, stream, state, count)
        for count in (10_000, 1_000_000):
            folder, state = prepare_shards(Path(name), count)
            for order, plan in PLANS.items():
                stream = Stream(Shards(str(folder)), plan)
                what = f"{count:,} in shards, {order} (s)"
                cases[what] = partial(measure, stream, state, count)
        results = interleave(cases)
    report("first_batch", results, batch_size=BATCH, per_shard=PER_SHARD, window=WINDOW)


if __name__ == "__main__":
    main()
