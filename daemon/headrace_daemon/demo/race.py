"""How fast the daemon delivers, beside a native torch ``DataLoader`` on the same files.

Both read, decode and collate with the same functions and nobody trains.  Both read several
passes in one go, and the clock starts after the first, so that neither the start of workers nor
batches that were ready before count.
"""

from __future__ import annotations

import contextlib
import time
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Final

import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from headrace import DaemonDataset, Topology

from . import digits, files
from .reports import Measured, Measuring, Rates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

Batch = tuple[torch.Tensor, torch.Tensor]
Sample = tuple[torch.Tensor, int]

_PASSES: Final = 5
_ROUNDS: Final = 5
_WORKERS: Final = (0, 1, 2)
_DAEMON: Final = "daemon"


def run(folder: Path, socket: str, report: Callable[[Measuring], None]) -> Measured:
    """Let all contenders read in turn, round by round.

    Args:
        folder: Where the data is.
        socket: Of the daemon.
        report: Called before each measurement.
    """
    source = _Files(folder / files.TRAIN)
    # The workers are forked here, before a dataset of ours has a thread in this process.
    loaders = [_native(source, num_workers) for num_workers in _WORKERS]
    contenders: dict[str, Callable[[], Iterable[Batch]]] = {}
    for num_workers, loader in zip(_WORKERS, loaders, strict=True):
        next(iter(loader))
        contenders[f"DataLoader, num_workers={num_workers}"] = loader.__iter__
    dataset = DaemonDataset(
        socket,
        digits.training_stream(folder),
        transform=lambda sample: digits.decode(sample["__key__"], sample["data"]),
        collate_fn=digits.collate,
        topology=Topology(),
    )
    contenders[_DAEMON] = lambda: chain.from_iterable(repeat(dataset, _PASSES))
    results = {name: Rates(name=name, samples_per_s=[]) for name in contenders}
    num_untimed = len(source.names) // digits.BATCH_SIZE
    order = list(contenders) * _ROUNDS
    with contextlib.closing(dataset):
        for number, name in enumerate(order):
            report(Measuring(name=name, num_done=number, num_total=len(order)))
            results[name].samples_per_s.append(_rate(contenders[name](), num_untimed))
    return Measured(daemon=results.pop(_DAEMON), natives=list(results.values()))


def _rate(batches: Iterable[Batch], num_untimed: int) -> float:
    """Return the samples per second of all batches after the first ones."""
    rest = iter(batches)
    for _ in islice(rest, num_untimed):
        pass
    begin = time.perf_counter()
    num_samples = sum(len(labels) for _, labels in rest)
    return num_samples / (time.perf_counter() - begin)


class _Files(Dataset[Sample]):
    """The files of a folder, for the native loader; all passes are one long epoch."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.pgm"))]

    def __len__(self) -> int:
        return _PASSES * len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index % len(self.names)]
        with open(f"{self._folder}/{name}", "rb") as file:
            return digits.decode(name, file.read())


def _native(source: _Files, num_workers: int) -> DataLoader[Sample]:
    return DataLoader(
        source,
        batch_size=digits.BATCH_SIZE,
        sampler=RandomSampler(source),
        num_workers=num_workers,
        collate_fn=digits.collate,
        persistent_workers=num_workers > 0,
    )
