"""`DaemonDataset.loader`: worker processes for transforming and collating, one exact position.

Each worker reads every W-th step from a feed of its own and sends what it made of the batch
together with the batch's cursor.  The main process deals the workers' batches in turn, checks that
each is the one that is due, and moves the position when it hands the value to the loop: what
workers have prepared beyond that does not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data._utils.pin_memory import pin_memory

from . import errors
from .board import MAX_WORKERS, Board, epoch_start
from .checks import check_integer
from .passes import PartPass, Pass
from .plans.cursor import Cursor
from .receiver import CLOSE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .batch import Batch
    from .dataset import DaemonDataset

_OPTIONS: Final = (
    "prefetch_factor",
    "persistent_workers",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
)

_DECIDED: Final = {
    "batch_size": "the plan cuts the batches",
    "batch_sampler": "the plan cuts the batches",
    "drop_last": "the plan has a tail",
    "shuffle": "the plan has the order",
    "sampler": "the plan has the order",
    "collate_fn": "give it to the dataset",
}


class Loader:
    """Batches of a dataset, transformed and collated in workers; see `DaemonDataset.loader`.

    Each pass over it is a pass over the dataset, whose position it moves.
    """

    def __init__(
        self,
        dataset: DaemonDataset,
        num_workers: int,
        *,
        pin_memory: bool,
        **options: Any,  # noqa: ANN401 - those of a DataLoader
    ) -> None:
        check_integer("num_workers", num_workers, 0, MAX_WORKERS + 1, errors.PlanError)
        if not options.pop("in_order", True):
            raise errors.PlanError(
                "in_order=False would hand out batches in whatever order workers finish them, and "
                "the position would be wrong: leave it out"
            )
        for name in options:
            if name in _DECIDED:
                raise errors.PlanError(f"{name}= is not for loader(): {_DECIDED[name]}")
            if name not in _OPTIONS:
                raise errors.PlanError(
                    f"{name}= is no option of loader(): it takes num_workers, pin_memory, "
                    f"{', '.join(_OPTIONS)}"
                )
        self.dataset = dataset
        self.num_workers = num_workers
        # Tells the workers where the pass begins that the main process begins.
        self._board = Board(epoch_start(0))
        self._inner: DataLoader[Any] = DataLoader(
            _Parts(dataset, self._board) if num_workers else dataset,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            collate_fn=_as_it_is,
            **options,
        )

    def __iter__(self) -> Iterator[Any]:
        """Return a pass.  It begins with its first batch; until then it has no effect."""
        return _LoaderPass(self) if self.num_workers else iter(self._inner)

    def __len__(self) -> int:
        """Return the steps of this rank in the whole current epoch, whatever the position."""
        return len(self.dataset)

    def state_dict(self, *, after: Batch | Cursor | None = None) -> dict[str, Any]:
        """Return the position after what the loop was given; see `DaemonDataset.state_dict`."""
        return self.dataset.state_dict(after=after)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next pass continue at a state, made with any number of workers."""
        self.dataset.load_state_dict(state)

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that of an epoch; see `DaemonDataset.set_epoch`."""
        self.dataset.set_epoch(epoch)


def _as_it_is(value: Any) -> Any:  # noqa: ANN401 - of any type
    return value


class _Parcel:
    """What a worker sends: a value, and where the stream stands after it."""

    __slots__ = ("cursor", "epoch", "step", "value")

    def __init__(self, epoch: int, step: int, cursor: Cursor, value: Any) -> None:  # noqa: ANN401
        self.epoch = epoch
        self.step = step
        self.cursor = cursor
        self.value = value

    def pin_memory(self) -> Self:
        """Pin the value, as torch pins what comes without a wrapping."""
        self.value = pin_memory(self.value)  # type: ignore[no-untyped-call]
        return self


class _Parts(IterableDataset[_Parcel]):
    """The dataset of the workers: each iterates over its part of the pass of the main process."""

    def __init__(self, dataset: DaemonDataset, board: Board) -> None:
        self._dataset = dataset
        self._board = board

    def __iter__(self) -> Iterator[_Parcel]:
        return _Parcels(PartPass(self._dataset, self._board, follows=True))


class _Parcels:
    def __init__(self, part: PartPass) -> None:
        self._part = part

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _Parcel:
        batch, value = self._part.deliver()
        return _Parcel(batch.meta["epoch"], batch.meta["step"], batch.cursor, value)


class _LoaderPass(Pass):
    """A pass whose batches come from the workers of a loader."""

    def __init__(self, loader: Loader) -> None:
        super().__init__(loader.dataset)
        self._loader = loader
        # The iterator of the DataLoader; None before the first batch and after the last.
        self._parcels: Iterator[_Parcel] | None = None
        # (epoch, step) of the batches that may come next.
        self._due: list[tuple[int, int]] = []
        # The epoch of the last batch; None before the first.
        self._epoch: int | None = None

    def _begin(self) -> None:
        start = self._dataset._begin_elsewhere(self, self._loader.num_workers)
        assert start.epoch is not None
        self._due = [(start.epoch, 0)]
        if isinstance(start, Cursor):
            # Under another world size the rest of an epoch may make no step.
            self._due = [(start.epoch, start.step), (start.epoch + 1, 0)]
        self._loader._board.put(self._dataset._board.read().next)
        self._parcels = iter(self._loader._inner)

    def _advance(self) -> Any:  # noqa: ANN401 - whatever the user's functions return
        assert self._parcels is not None
        parcel = next(self._parcels, None)
        if parcel is None:
            self._check_end()
            raise StopIteration
        if (parcel.epoch, parcel.step) not in self._due:
            raise errors.FeedError(
                f"the workers sent step {parcel.step} of epoch {parcel.epoch} where step "
                f"{self._due[0][1]} of epoch {self._due[0][0]} is due: a bug, please report it"
            )
        self._due = [(parcel.cursor.epoch, parcel.cursor.step)]
        self._epoch = parcel.epoch
        self._dataset._deliver(parcel.cursor, parcel.epoch)
        return parcel.value

    def _check_end(self) -> None:
        """Refuse an end before the last step: torch is silent about a worker that stops early."""
        epoch, step = self._due[0]
        if self._epoch is None or epoch == self._epoch:
            raise errors.FeedError(
                f"the workers ended epoch {epoch} where its step {step} is due: a bug, please "
                "report it"
            )

    def _end(self, wait_s: float = CLOSE_S) -> None:
        self._parcels = None  # ends the workers, unless they are persistent
