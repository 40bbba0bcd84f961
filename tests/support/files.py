"""Folders of samples that say which one they are."""

from __future__ import annotations

import random
import resource
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from headrace.sources import Objects, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from headrace.batch import Batch
    from headrace.sources import StreamPlan


def write_samples(folder: Path, number: int, *, max_bytes: int = 2000, seed: int = 0) -> Path:
    """Write samples of 0 to `max_bytes` bytes, some of them in folders, and return the folder."""
    rng = random.Random(seed)
    for index in range(number):
        name = f"{index % 7}/s{index:05}.bin" if index % 3 else f"s{index:05}.bin"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Log-uniform: most are small, a few are large, and some are empty.
        size = int(max_bytes ** rng.random()) if index % 50 else 0
        path.write_bytes(content(name, size))
    return folder


def content(name: str, size: int) -> bytes:
    """Return the content of a sample: its name and its checksum, over and over."""
    own = f"{name}:{zlib.crc32(name.encode()):08x};".encode()
    return (own * (size // len(own) + 1))[:size]


def check(batch: Batch) -> None:
    """Fail if a sample of a batch has the bytes of another."""
    for name, value in batch:
        assert value == content(name, len(value)), name


def stream_of(folder: Path, plan: StreamPlan) -> Stream:
    """Return the stream of a folder."""
    return Stream(Objects(str(folder)), plan)


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Let nothing write a longer file: what a full disk is to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
