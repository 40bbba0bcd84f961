"""What do plans cost: indices a second, the first batch, a jump, and memory?

Isolated: the engine alone, without a daemon and without data: `next_batches` of one rank of eight,
as the daemon and the native batch sampler call it.  Each case runs in a process of its own; memory
is the most that it held above what the imports took (peak of the resident set).

Run: ``.venv/bin/python -m benchmarks.bench_plans``.

How to read: *first* is from the plan to its first batch, *seek* a jump to 1 % and to 99 % of an
epoch and the batch there; *indices/s* are those that the rank gets, where a budget is packed for
all eight.  Targets: 1 M indices/s for fixed cuts, 300 k/s for byte budgets; a keyed order of 10^9:
first batch under 1 s and 64 MB, seek to 99 % as fast as to 1 %; a byte budget over 10^7 sizes:
packed in under 2 s (*ready*), then any place in under 10 ms.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from headrace import plans
from headrace.plans import engine
from headrace.plans.budget import BudgetProgram
from headrace.plans.cursor import Seek
from headrace.plans.engine import BoundPlan
from headrace.topology import Topology

BATCH = 256
TOPOLOGY = Topology(3, 8)

CASES: dict[str, tuple[plans.Plan, tuple[int, ...]]] = {
    "sequential": (plans.Sequential(batch_size=BATCH), (10**6, 10**8, 10**9)),
    "keyed": (plans.Shuffled(batch_size=BATCH), (10**6, 10**8, 10**9)),
    "shards": (
        plans.ShardShuffled(batch_size=BATCH, samples_per_shard=1000),
        (10**6, 10**8, 10**9),
    ),
    "variable batch": (plans.VariableBatch(batch_size=BATCH), (10**6, 10**8, 10**9)),
    "torch": (plans.Shuffled(batch_size=BATCH, order="torch"), (10**6, 10**7)),
    "python": (plans.Shuffled(batch_size=BATCH, order="python"), (10**6,)),
    "byte budget": (plans.ByteBudget(max_bytes=64 << 20), (10**6, 10**7, 10**8)),
    "byte budget, floats": (
        plans.ByteBudget(max_total=64.0, column="length", order="sequential"),
        (10**6, 10**7),
    ),
    "interleaved": (
        plans.Interleaved(
            train=plans.Shuffled(batch_size=BATCH),
            extras={"val": plans.Every(plans.Sequential(batch_size=BATCH), updates=5000)},
            limits=plans.Limits(epochs=10),
        ),
        (10**6, 10**8),
    ),
}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def data_of(plan: plans.Plan, length: int) -> plans.Data:
    if not isinstance(plan, plans.ByteBudget):
        return plans.Data(length, "benchmark")
    draw = np.random.default_rng(0)
    if plan.column == "length":
        return plans.Data(length, "benchmark", {"length": draw.random(length)})
    sizes = draw.integers(10_000, 1_000_000, length, dtype=np.int64)
    return plans.Data(length, "benchmark", {"sizes": sizes})


def measure(name: str, length: int) -> dict[str, float]:
    plan, _ = CASES[name]
    data = data_of(plan, length)
    before = peak_mib()
    started = time.perf_counter()
    bound = BoundPlan.to(plan, data)
    engine.next_batch(bound, bound.start(), TOPOLOGY)
    found = {"first s": time.perf_counter() - started, "first MiB": peak_mib() - before}
    if isinstance(bound.program, BudgetProgram):
        started = time.perf_counter()
        bound.program.prepare(0)
        found["ready s"] = time.perf_counter() - started
    steps = bound.program.steps(0, TOPOLOGY.world_size)
    for percent in (1, 99):
        started = time.perf_counter()
        update = steps * percent // 100
        if bound.program.ends:
            cursor = engine.advance(bound, bound.start(), TOPOLOGY.world_size, update)
        else:
            cursor = engine.seek(bound, Seek(update=update), TOPOLOGY.world_size)
        engine.next_batch(bound, cursor, TOPOLOGY)
        found[f"seek {percent} % ms"] = 1e3 * (time.perf_counter() - started)
    count, started = 0, time.perf_counter()
    cursor = engine.settle(bound, bound.start(), TOPOLOGY.world_size)
    while time.perf_counter() - started < 1 and cursor.epoch == 0:
        batches = engine.next_batches(bound, cursor, TOPOLOGY, max_batches=256)
        count += sum(len(batch.indices) for batch in batches)
        cursor = batches[-1].after
    found["indices/s"] = count / (time.perf_counter() - started)
    found["MiB"] = peak_mib() - before
    return found


def run(name: str, length: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.bench_plans", name, str(length)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    if sys.argv[1:]:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("plan")
    columns = ("first s", "first MiB", "ready s", "seek 1 % ms", "seek 99 % ms", "indices/s", "MiB")
    for title in ("n", *columns):
        table.add_column(title, justify="right")
    for name, (_, lengths) in CASES.items():
        for length in lengths:
            found = run(name, length)
            cells = [f"{found[column]:,.3g}" if column in found else "" for column in columns]
            cells[5] = f"{found['indices/s']:,.0f}"
            table.add_row(name, f"1e{len(str(length)) - 1}", *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
