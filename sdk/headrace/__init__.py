"""Headrace: training data, read ahead of need, in an order that can be resumed at any batch.

The names below are the public API; `DaemonDataset` and `Batch` are loaded on first use, because
they bring torch.
"""

from __future__ import annotations

import typing as _typing

from . import errors, plans
from .plans import Cursor
from .shards import MultiShard, Shards
from .sources import Objects, Skip, Stream
from .topology import Topology

__version__ = "0.1.0"

if _typing.TYPE_CHECKING:
    from .batch import Batch
    from .dataset import DaemonDataset

__all__ = [
    "Batch",
    "Cursor",
    "DaemonDataset",
    "MultiShard",
    "Objects",
    "Shards",
    "Skip",
    "Stream",
    "Topology",
    "errors",
    "plans",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> _typing.Any:  # noqa: ANN401 - modules are typed by the imports above
    if name == "DaemonDataset":
        try:
            from .dataset import DaemonDataset
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise ImportError("DaemonDataset needs torch: pip install 'headrace[torch]'") from error
        return DaemonDataset
    if name == "Batch":
        from .batch import Batch

        return Batch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
