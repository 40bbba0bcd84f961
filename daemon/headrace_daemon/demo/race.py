"""How fast the daemon delivers, beside a native torch ``DataLoader`` on the same data.

Both read, decode and collate with the same functions and nobody trains.  Both read several
passes in one go, and the clock starts after the first, so that neither the start of workers nor
batches that were ready before count.
"""

from __future__ import annotations

import contextlib
import time
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any, Final

from torch.utils.data import DataLoader, RandomSampler

from headrace import DaemonDataset, Objects, Topology

from . import digits, natives
from .reports import Measured, Measuring, Rates, Unmeasured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .natives import Batch, Native

_WORKERS: Final = (0, 1, 2)
_DAEMON: Final = "daemon"


def run(root: str, socket: str, report: Callable[[Measuring], None]) -> Measured | Unmeasured:
    """Let all contenders read in turn, round by round.

    Args:
        root: Where the data is, see `digits`.
        socket: Of the daemon.
        report: Called before each measurement.
    """
    bucket = Objects(root).bucket
    try:
        native = natives.files(root) if bucket is None else natives.objects(bucket)
    except ImportError:
        return Unmeasured(
            why="a comparison needs the SDK of AIStore: pip install 'aistore[pytorch]'"
        )
    # The workers are forked here, before a dataset of ours has a thread in this process.
    loaders = [_loader(native, num_workers) for num_workers in _WORKERS]
    contenders: dict[str, Callable[[], Iterable[Batch]]] = {}
    for num_workers, loader in zip(_WORKERS, loaders, strict=True):
        next(iter(loader))
        contenders[f"DataLoader, num_workers={num_workers}"] = loader.__iter__
    dataset = DaemonDataset(
        socket,
        digits.training_stream(root),
        transform=lambda sample: digits.decode(sample["__key__"], sample["data"]),
        collate_fn=digits.collate,
        topology=Topology(),
    )
    contenders[_DAEMON] = lambda: chain.from_iterable(repeat(dataset, native.num_passes))
    results = {name: Rates(name=name, samples_per_s=[]) for name in contenders}
    num_untimed = len(native.dataset) // digits.BATCH_SIZE
    order = list(contenders) * native.num_rounds
    with contextlib.closing(dataset):
        for number, name in enumerate(order):
            report(Measuring(name=name, num_done=number, num_total=len(order)))
            results[name].samples_per_s.append(_rate(contenders[name](), num_untimed))
    return Measured(daemon=results.pop(_DAEMON), natives=list(results.values()), note=native.note)


def _rate(batches: Iterable[Batch], num_untimed: int) -> float:
    """Return the samples per second of all batches after the first ones."""
    rest = iter(batches)
    for _ in islice(rest, num_untimed):
        pass
    begin = time.perf_counter()
    num_samples = sum(len(labels) for _, labels in rest)
    return num_samples / (time.perf_counter() - begin)


def _loader(native: Native, num_workers: int) -> DataLoader[Any]:
    """Return a loader to which all passes are one long epoch."""
    return DataLoader(
        native.dataset,
        batch_size=digits.BATCH_SIZE,
        sampler=RandomSampler(native.dataset, num_samples=native.num_passes * len(native.dataset)),
        num_workers=num_workers,
        collate_fn=native.collate,
        persistent_workers=num_workers > 0,
    )
