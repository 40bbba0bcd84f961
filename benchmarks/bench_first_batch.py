"""How long from `iter()` to the first batch, when the manifest is stored?

Isolated: a fresh daemon per repeat (nothing in its memory, the manifest in its state folder), one
open at the start of epoch 0, then in the same daemon opens at 1 %, 50 % and 99 % of the epoch.
Folders of 2,000 and of 1,000,000 samples of 1 KiB, batches of 32.  The million are 1,000 names for
each of 1,000 files: hard links, so that the disk holds 1,000 files and the manifest a million.

Run: ``.venv/bin/python -m benchmarks.bench_first_batch``.

How to read: the target is 0.2 s.  "fresh" contains mapping and verifying the manifest (SHA-256 of
all names and sizes) and the scan of the epoch for its largest batch; both grow with the samples and
happen once per daemon.  What is left is connecting, planning and reading one batch.
"""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial
from pathlib import Path

from headrace import DaemonDataset, Objects, Stream, plans
from headrace_daemon.source.local import list_folder
from headrace_daemon.source.store import ManifestStore

from .harness import Cases, daemon, interleave, report

BATCH = 32


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


def measure(folder: Path, state: Path, count: int) -> dict[str, float]:
    figures = {}
    with daemon(state_dir=state) as node:
        for name, fraction in {"fresh": 0.0, "1 %": 0.01, "50 %": 0.5, "99 %": 0.99}.items():
            stream = Stream(Objects(str(folder)), plans.Shuffled(batch_size=BATCH))
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
            cases[f"{count:,} samples (s)"] = partial(measure, folder, state, count)
        results = interleave(cases)
    report("first_batch", results, batch_size=BATCH)


if __name__ == "__main__":
    main()
