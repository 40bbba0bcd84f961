"""The classes of AIStore's Python package: its dynamic batch sampler, and its readers of shards.

Where the sampler differs from its original: `len` counts batches; a shuffle has a generator of its
own, so that nobody else's draws move it; a budget below 0, and one of 0 with `drop_last`, are
refused.  The readers (`AISShardReader`, `AISMultiShardStream`, `DataShard`) are loaded on first
use, because they bring torch: see `headrace.compat.aisreaders`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..checks import check_flag, check_number
from ..errors import PlanError
from ..plans import ByteBudget
from ..topology import Topology
from .helios import torch_seed
from .passes import EpochPasses

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ..plans import Plan
    from ..plans.engine import PlannedBatch
    from .aisreaders import AISMultiShardStream, AISShardReader, DataShard

__all__ = ["AISMultiShardStream", "AISShardReader", "DataShard", "DynamicBatchSampler"]

SATURATION_FACTOR: Final = 0.8


class DynamicBatchSampler(EpochPasses):
    """Batches of indices that hold at most so many bytes, packed greedily in order.

    Samples of 0 bytes are left out, as are those above the budget unless they may have a batch of
    their own.  Each pass is the next epoch.

    Args:
        data_source: A dataset with ``get_obj_list()``, as those of ``aistore.pytorch`` have, or the
            sizes of the samples in bytes.  They are read once.
        max_batch_size: Bytes of a batch at most; may be fractional.
        drop_last: Leave out the last batch unless it is filled above `saturation_factor`, strictly.
        allow_oversized_samples: Give samples above the budget a batch of their own.
        saturation_factor: ``0 <= saturation_factor <= 1``.
        shuffle: Run backwards through ``torch.randperm`` of a new epoch in each pass.
        seed: Seed of the shuffle: epoch e has the order of ``torch.manual_seed(seed + e)``.
            Without it the passes follow each other in one generator, seeded as torch is
            (``torch.initial_seed()``) when the first one begins: they are those of the original
            right after ``torch.manual_seed``.

    Raises:
        PlanError: If an argument is out of range.
    """

    def __init__(
        self,
        data_source: Any,  # noqa: ANN401 - a dataset, or any array
        max_batch_size: float,
        drop_last: bool = False,
        allow_oversized_samples: bool = False,
        saturation_factor: float = SATURATION_FACTOR,
        shuffle: bool = False,
        *,
        seed: int | None = None,
    ) -> None:
        check_flag("drop_last", drop_last, PlanError)
        check_flag("allow_oversized_samples", allow_oversized_samples, PlanError)
        check_flag("shuffle", shuffle, PlanError)
        check_number("saturation_factor", saturation_factor, 0, 1, PlanError)
        check_number("max_batch_size", max_batch_size, 0, math.inf, PlanError)
        if drop_last and not max_batch_size:
            raise PlanError(
                "max_batch_size=0 does not go with drop_last=True: no batch is filled to a part of "
                "it; give a budget above 0"
            )
        self._sizes = _sizes(data_source)
        self._options: dict[str, Any] = {
            # With nothing to spend, every sample that is not empty is above the budget; so it is
            # with the least number above 0.
            "max_total": max_batch_size or math.ulp(0.0),
            "drop_last": drop_last,
            "oversized": "own" if allow_oversized_samples else "drop",
            "saturation_factor": saturation_factor,
            "zero": "drop",
            "tail": "short",
        }
        self._shuffle = shuffle
        self._seed = seed if seed is None else torch_seed(seed)
        self._is_made = False

    @property
    def plan(self) -> Plan:
        """The plan that is run; of a shuffle without a seed, from now on with that of torch."""
        self._make()
        return super().plan

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each batch of the next epoch."""
        return (batch.indices.tolist() for batch in self.planned())

    def __len__(self) -> int:
        """Return the batches of the next epoch."""
        self._make()
        return self._sampler.steps(self._epoch)

    def planned(self) -> Iterator[PlannedBatch]:
        """Yield the planned batches of the next epoch."""
        self._make()
        yield from super().planned()

    def state_dict(self, *, after: int | None = None) -> dict[str, Any]:
        """Return the position as small plain data (see `headrace.plans.PlanBatchSampler`)."""
        self._make()
        return super().state_dict(after=after)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next pass continue where `state_dict` was taken."""
        self._make()
        super().load_state_dict(state)

    def _begin(self) -> bool:
        begins = super()._begin()
        self._epoch += 1
        return begins

    def _make(self) -> None:
        if self._is_made:
            return
        order: dict[str, Any] = {"order": "sequential"}
        if self._shuffle:
            seed, name = self._seed, "torch"
            if seed is None:
                import torch

                seed, name = torch_seed(torch.initial_seed()), "torch-continued"
            order = {"order": name, "seed": seed, "reverse": True}
        self._run(ByteBudget(**self._options, **order), self._sizes, Topology())
        self._is_made = True


def _sizes(data_source: Any) -> NDArray[Any]:  # noqa: ANN401 - a dataset, or any array
    """Return the sizes of the samples, as the listing of their objects has them."""
    listed = getattr(data_source, "get_obj_list", None)
    if listed is None:
        sizes = np.asarray(data_source)
        # Data.of refuses what is no column of numbers; an empty list has none of its own.
        return sizes if sizes.size else np.empty(0, dtype=np.uint64)
    objects = listed()
    return np.fromiter((one.props_cached.size for one in objects), np.uint64, len(objects))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:  # noqa: ANN401 - they are typed by the imports above
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import aisreaders
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(f"{name} needs torch: pip install 'headrace[torch]'") from error
    return getattr(aisreaders, name)
