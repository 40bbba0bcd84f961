"""What the daemon is measured beside: datasets that read by themselves, for a ``DataLoader``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch.utils.data import Dataset

from ..settings import StoreSettings
from ..source.ais.access import Access
from . import digits
from .files import TRAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from headrace.buckets import Bucket

Batch = tuple[torch.Tensor, torch.Tensor]
Sample = tuple[torch.Tensor, int]


class Native(NamedTuple):
    """A dataset, and how it is measured."""

    dataset: Any
    """Map-style, of the images to train on."""

    collate: Callable[[list[Any]], Batch]
    """Makes a batch of its items."""

    num_passes: int
    """Over the dataset in one measurement, the first of which does not count."""

    num_rounds: int
    """Measurements of each contender."""

    note: str
    """What the comparison says, and what it does not."""


_FILES_NOTE: Final = (
    "Same files, same decoding, nobody trains. Files this small come out of the page cache in "
    "microseconds, so this compares what the loaders themselves cost per sample, and says nothing "
    "of storage."
)

_OBJECTS_NOTE: Final = (
    "Same objects, same decoding, nobody trains. The native loader is AISMapDataset of the SDK, "
    "which reads one object after the other in each worker. Objects this small are in the page "
    "cache of the targets, so this compares what a request costs, and says nothing of disks or of "
    "large objects."
)


def files(root: str) -> Native:
    """Return what reads the files below a folder."""
    return Native(_Files(Path(root, TRAIN)), digits.collate, 5, 5, _FILES_NOTE)


def objects(bucket: Bucket) -> Native:
    """Return what reads the objects of a bucket with the SDK of AIStore.

    Raises:
        ImportError: If it is not installed, or not with what it needs for torch.
    """
    from aistore.pytorch import AISMapDataset
    from aistore.sdk import Client

    access = Access(StoreSettings())
    token = access.headers.get("Authorization", "").removeprefix("Bearer ")
    source = Client(access.endpoints[0], token=token or None).bucket(bucket.name)
    dataset = AISMapDataset([source], prefix_map={source: f"{TRAIN}/"})
    # Two passes: it takes milliseconds for an object.
    return Native(dataset, _collate_raw, 2, 3, _OBJECTS_NOTE)


def _collate_raw(items: Iterable[tuple[str, bytes]]) -> Batch:
    return digits.collate(digits.decode(name, value) for name, value in items)


class _Files(Dataset[Sample]):
    """The files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.pgm"))]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        name = self._names[index]
        with open(f"{self._folder}/{name}", "rb") as file:
            return digits.decode(name, file.read())
