"""Posing as a DataLoader worker: torch says that this process is one."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.utils.data._utils import worker

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def posing_as_worker(number: int, num_workers: int, dataset: Any) -> Iterator[None]:  # noqa: ANN401
    """Have torch say that this process is worker `number` of a DataLoader over a dataset."""
    worker._worker_info = worker.WorkerInfo(
        id=number, num_workers=num_workers, seed=number, dataset=dataset
    )
    try:
        yield
    finally:
        worker._worker_info = None
