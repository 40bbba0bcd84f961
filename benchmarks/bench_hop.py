"""What does it cost to move a sample from a slot of the daemon into `bytes` of the trainer?

Isolated: a real daemon (plan, layout, feed, session) whose reader reads nothing, and a real
`DaemonDataset`, samples of 10 KiB, inline transport.  CPU seconds of both processes are added up
and divided by the samples.  Beside it the floor: two processes, one batch after the other through
a socket pair, `recv_into` one reused buffer and a slice to `bytes` per sample, and nothing else.

Run: ``.venv/bin/python -m benchmarks.bench_hop``.

How to read: the hop should cost at most 10 µs of CPU per sample; what is above the floor is ours
(planning, layout, header, names, credit, wake-ups), what is below is memcpy and the kernel.  Larger
batches spread our part over more samples.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

from headrace import DaemonDataset, Objects, Stream, plans

from .harness import Cases, cpu_s, daemon, files, interleave, report

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 10 << 10
SAMPLES = 2000
EPOCHS = 40


def hop(path: str, pid: int, folder: Path, plan: plans.Plan) -> dict[str, float]:
    dataset = DaemonDataset(path, Stream(Objects(str(folder)), plan))
    for _ in dataset:  # opens, sizes, and fills every queue
        pass
    mine, theirs, started, count = cpu_s(), cpu_s(pid), time.perf_counter(), 0
    for _ in range(EPOCHS):
        for batch in dataset:
            count += len(batch)
    wall = time.perf_counter() - started
    mine, theirs = cpu_s() - mine, cpu_s(pid) - theirs
    dataset.close()
    return {
        "us/sample": (mine + theirs) / count * 1e6,
        "daemon": theirs / count * 1e6,
        "trainer": mine / count * 1e6,
        "samples/s": count / wall,
    }


def _send(sock: socket.socket, batch_size: int, batches: int) -> None:
    payload = memoryview(bytearray(os.urandom(SIZE * batch_size)))
    for _ in range(batches):
        rest = payload
        while rest:
            rest = rest[sock.send(rest) :]


def floor(batch_size: int) -> dict[str, float]:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    batches = SAMPLES * EPOCHS // batch_size
    child = multiprocessing.get_context("fork").Process(
        target=_send, args=(ours, batch_size, batches)
    )
    buffer = memoryview(bytearray(SIZE * batch_size))
    mine, children, started = cpu_s(), os.times(), time.perf_counter()
    child.start()
    for _ in range(batches):
        rest = buffer
        while rest:
            rest = rest[theirs.recv_into(rest) :]
        values = [bytes(buffer[at : at + SIZE]) for at in range(0, len(buffer), SIZE)]
        assert len(values) == batch_size
    wall = time.perf_counter() - started
    child.join()
    after = os.times()
    sent = after.children_user - children.children_user
    sent += after.children_system - children.children_system
    mine = cpu_s() - mine
    ours.close()
    theirs.close()
    count = batches * batch_size
    return {
        "us/sample": (mine + sent) / count * 1e6,
        "daemon": sent / count * 1e6,
        "trainer": mine / count * 1e6,
        "samples/s": count / wall,
    }


def main() -> None:
    with files(SAMPLES, SIZE) as folder, daemon(module="benchmarks.hop_daemon") as node:
        cases: Cases = {}
        for size in (32, 256):
            shuffled, sequential = (
                plans.Shuffled(batch_size=size),
                plans.Sequential(batch_size=size),
            )
            both: dict[str, plans.Plan] = {"shuffled": shuffled, "sequential": sequential}
            for name, plan in both.items():
                cases[f"{name}, batch {size}"] = partial(hop, node.socket, node.pid, folder, plan)
            cases[f"floor, batch {size}"] = partial(floor, size)
        results = interleave(cases)
    report("hop", results, sample_bytes=SIZE)


if __name__ == "__main__":
    main()
