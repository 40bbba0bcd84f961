"""What does each stage between a plan and a training loop cost for a sample, CPU alone?

Isolated: the stages that compute, each by itself in this process, over a manifest of a million
samples of 10 KiB: plan (indices of the next batches), assemble (names, layout and what is asked of
a reader, for objects and for samples in shards), header (what the daemon says of a batch, packed
and unpacked), and SDK (a batch out of a received payload: every value copied into `bytes`).  Beside
them the floor of the SDK: the same bytes cut into `bytes` by a loop that does nothing else.

What moves bytes is measured elsewhere: ``bench_reader`` (reader, with its floor, bare sockets) and
``bench_hop`` (everything from a slot to the loop, with its floor, bare socket pair).

Run: ``.venv/bin/python -m benchmarks.bench_stages``; half a minute.

How to read: µs of CPU per sample, in batches of 32 and of 256.  At 30,000 samples/s, 10 µs are 30 %
of a core.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from headrace.batch import unpack
from headrace.manifest import Manifest
from headrace.placement import Placement
from headrace.plans import Shuffled
from headrace.plans.data import Data
from headrace.plans.engine import BoundPlan, next_batches
from headrace.protocol import Payload
from headrace.protocol import messages as m
from headrace.topology import Topology
from headrace_daemon.assemble.layout import lay_out
from headrace_daemon.assemble.requests import requests_of

from .harness import Cases, interleave, report

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SAMPLES: Final = 1_000_000
SIZE: Final = 10 << 10
PER_SHARD: Final = 10_000
STEPS: Final = {32: 400, 256: 60}
"""Batches of a measurement."""


def objects() -> Manifest:
    """Return a manifest of objects with checksums and versions, as of a bucket."""
    names = b"".join(b"train/%07d.jpg" % number for number in range(SAMPLES))
    return Manifest(
        np.full(SAMPLES, SIZE, dtype=np.int64),
        np.arange(SAMPLES + 1, dtype=np.uint64) * np.uint64(17),
        np.frombuffer(names, dtype=np.uint8),
        np.full(SAMPLES, b"0123456789abcdef"),
        np.full(SAMPLES, b"1"),
    )


def shards() -> Manifest:
    """Return a manifest of samples of two fields in shards."""
    plain = objects()
    count = SAMPLES // PER_SHARD
    names = b"".join(b"train-%06d.tar" % number for number in range(count))
    stride = SIZE + 512 * 3
    table = Manifest(
        np.full(count, stride * PER_SHARD + 1024, dtype=np.int64),
        np.arange(count + 1, dtype=np.uint64) * np.uint64(16),
        np.frombuffer(names, dtype=np.uint8),
        np.full(count, b"0123456789abcdef"),
        np.full(count, b"1"),
    )
    within = np.arange(SAMPLES, dtype=np.uint64) % np.uint64(PER_SHARD) * np.uint64(stride)
    starts = np.stack([within + np.uint64(512), within + np.uint64(SIZE + 1024)], axis=1)
    lengths = np.tile(np.array([SIZE, 3], dtype=np.int64), (SAMPLES, 1))
    rows = (np.arange(SAMPLES) // PER_SHARD).astype(np.uint32)[:, np.newaxis]
    bounds = np.arange(0, SAMPLES + 1, PER_SHARD, dtype=np.uint64)
    placement = Placement(("jpg", "cls"), (0, 0), starts, lengths, rows, bounds, table)
    return Manifest(plain.sizes + 3, plain.offsets, plain.names, placement=placement)


def timed(work: Callable[[], int]) -> dict[str, float]:
    started = time.process_time()
    count = work()
    return {"us/sample": (time.process_time() - started) / count * 1e6}


def plan(batch_size: int) -> int:
    bound = BoundPlan.to(Shuffled(batch_size=batch_size, seed=1), Data(SAMPLES))
    cursor, count = bound.start(), 0
    for _ in range(8):
        batches = next_batches(bound, cursor, Topology(0, 1), max_batches=STEPS[batch_size])
        cursor, count = batches[-1].after, count + sum(len(one.indices) for one in batches)
    return count


def assemble(manifest: Manifest, chosen: list[NDArray[np.uint64]], slot: memoryview) -> int:
    count = 0
    for indices in chosen:
        names = manifest.names_of(indices)
        layout = lay_out(manifest.lengths_of(indices))
        requests_of(manifest, indices, names, layout, slot)
        count += len(indices)
    return count


def header_of(manifest: Manifest, indices: NDArray[np.uint64]) -> m.Batch:
    layout = lay_out(manifest.lengths_of(indices))
    return m.Batch(
        seq=1,
        epoch=0,
        step=1,
        global_step=1,
        stream="train",
        role="main",
        n=len(indices),
        fields=manifest.fields,
        ids=indices.tobytes(),
        keys=tuple(manifest.names_of(indices)),
        off=layout.offsets.tobytes(),
        lengths=layout.lengths.tobytes(),
        flags=bytes(len(indices)),
        meta={},
        cursor={"format": 1, "plan_version": 1, "plan": "0" * 64, "manifest": "0" * 64},
    )


def header(manifest: Manifest, chosen: list[NDArray[np.uint64]]) -> int:
    count = 0
    for indices in chosen:
        msgspec.msgpack.decode(msgspec.msgpack.encode(header_of(manifest, indices)), type=m.Batch)
        count += len(indices)
    return count


def sdk(told: m.Batch, payload: memoryview, steps: int) -> int:
    for _ in range(steps):
        unpack(Payload(told, payload))
    return steps * told.n


def floor(told: m.Batch, payload: memoryview, steps: int) -> int:
    offsets = np.frombuffer(told.off, dtype="<u8").tolist()
    for _ in range(steps):
        [bytes(payload[offset : offset + SIZE]) for offset in offsets[: told.n]]
    return steps * told.n


def main() -> None:
    plain, sharded = objects(), shards()
    rng = np.random.default_rng(1)
    for batch_size, steps in STEPS.items():
        print(f"\nbatches of {batch_size}")
        order = rng.permutation(SAMPLES).astype(np.uint64)
        chosen = [order[at * batch_size : (at + 1) * batch_size] for at in range(steps)]
        runs = [
            np.arange(at, at + batch_size, dtype=np.uint64) for at in range(0, steps * 256, 256)
        ]
        slot = memoryview(bytearray(batch_size * (SIZE + 128)))
        cases: Cases = {"plan": partial(timed, partial(plan, batch_size))}
        work: dict[str, Callable[[], Any]] = {
            "assemble, objects": partial(assemble, plain, chosen, slot),
            "assemble, shards shuffled": partial(assemble, sharded, chosen, slot),
            "assemble, shards in order": partial(assemble, sharded, runs, slot),
            "header, objects": partial(header, plain, chosen),
            "header, shards": partial(header, sharded, chosen),
        }
        for name, manifest in {"objects": plain, "shards": sharded}.items():
            told = header_of(manifest, chosen[0])
            work[f"sdk, {name}"] = partial(sdk, told, slot, steps)
        work["sdk, floor"] = partial(floor, header_of(plain, chosen[0]), slot, steps)
        cases |= {name: partial(timed, one) for name, one in work.items()}
        report("stages", interleave(cases), batch_size=batch_size, sample_bytes=SIZE)


if __name__ == "__main__":
    main()
