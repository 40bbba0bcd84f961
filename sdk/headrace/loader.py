"""`DaemonDataset.loader`: worker processes for transforming and collating, one exact position.

Each worker reads every W-th step from a feed of its own and sends what it made of the batch
together with the batch's cursor.  The main process deals the workers' batches in turn, checks that
each is the one that is due, and moves the position when it hands the value to the loop: what
workers have prepared beyond that does not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import msgspec
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data._utils.pin_memory import pin_memory

from . import errors
from .batch import Batch, unpack
from .board import MAX_WORKERS, Board, epoch_start
from .checks import check_integer
from .passes import PartPass, Pass, ticket
from .plans.cursor import Cursor
from .protocol import Payload
from .protocol import messages as m
from .receiver import CLOSE_S
from .shelf import Shelf, ShelfBuffers

if TYPE_CHECKING:
    from collections.abc import Iterator

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
        if options.get("prefetch_factor") is not None:
            check_integer("prefetch_factor", options["prefetch_factor"], 1, 2**16, errors.PlanError)
        self.dataset = dataset
        self.num_workers = num_workers
        # What raw batches are read into, to be unpacked; it grows.
        self._buffer = bytearray()
        num_sent = (options.get("prefetch_factor") or 2) + 1
        self._inner: DataLoader[Any] = DataLoader(
            _Parts(dataset, num_workers, num_sent) if num_workers else dataset,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            collate_fn=_as_it_is,
            **options,
        )

    def _start(self, start: dict[str, Any]) -> Iterator[_Parcel]:
        """Have the workers begin a pass, and return what they send."""
        parts: _Parts = self._inner.dataset  # type: ignore[assignment]
        parts.board.put(start)
        if self.dataset._link.private is not None:
            self.dataset._link.private.keep_running()  # workers cannot
        if not self._inner.persistent_workers:
            # Workers of the pass before that have not ended yet may still write into theirs.
            parts.shelf = Shelf(self.num_workers)
        return iter(self._inner)

    def _unpack(self, place: _OnShelf) -> Batch:
        if len(self._buffer) < place.num_bytes:
            self._buffer = bytearray(place.num_bytes)
        with memoryview(self._buffer)[: place.num_bytes] as payload:
            parts: _Parts = self._inner.dataset  # type: ignore[assignment]
            parts.shelf.read(place.offset, payload)
            return unpack(Payload(msgspec.msgpack.decode(place.header, type=m.Batch), payload))

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


class _OnShelf(NamedTuple):
    """A batch that is still to be unpacked."""

    header: bytes
    offset: int
    num_bytes: int


class _Parcel:
    """What a worker sends: a value, and where the stream stands after it."""

    __slots__ = ("cursor", "epoch", "step", "value")

    def __init__(self, header: m.Batch, value: Any) -> None:  # noqa: ANN401 - of any type
        self.epoch = header.epoch
        self.step = header.step
        self.cursor = header.cursor
        self.value = value

    def pin_memory(self) -> Self:
        """Pin the value, as torch pins what comes without a wrapping."""
        self.value = pin_memory(self.value)  # type: ignore[no-untyped-call]
        return self


class _Parts(IterableDataset[_Parcel]):
    """The dataset of the workers: each iterates over its part of the pass of the main process."""

    def __init__(self, dataset: DaemonDataset, num_workers: int, num_sent: int) -> None:
        self._dataset = dataset
        # Tells the workers where the pass begins that the main process begins.
        self.board = Board(epoch_start(0))
        # Has raw batches on their way.
        self.shelf = Shelf(num_workers)
        self._num_sent = num_sent
        # In a worker: its buffers; and how many feeds that it left have not ended in time.
        self._buffers: ShelfBuffers | None = None
        self._num_spoilt = 0

    def __iter__(self) -> Iterator[_Parcel]:
        if not self._dataset._is_raw:
            return _Parcels(PartPass(self._dataset, self.board, follows=True))
        if not self._dataset._end_feed():
            self._num_spoilt += 1
            self._buffers = None
        if self._buffers is None:
            worker = ticket().worker
            self._buffers = ShelfBuffers(self.shelf, worker, self._num_sent, self._num_spoilt)
        self._buffers.reset()
        part = PartPass(self._dataset, self.board, follows=True, buffers=self._buffers)
        return _RawParcels(part, self._buffers)


class _Parcels:
    """Values that the dataset's functions make."""

    def __init__(self, part: PartPass) -> None:
        self._part = part

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _Parcel:
        return self._part.deliver(self._wrap)

    def _wrap(self, received: Payload) -> _Parcel:
        assert isinstance(received.header, m.Batch)
        return _Parcel(received.header, self._part.convert(received))


class _RawParcels(_Parcels):
    """Batches as they are: left where they were received."""

    def __init__(self, part: PartPass, buffers: ShelfBuffers) -> None:
        super().__init__(part)
        self._buffers = buffers

    def _wrap(self, received: Payload) -> _Parcel:
        header, payload = received.header, received.payload
        assert isinstance(header, m.Batch)
        offset = self._buffers.offset_of(payload)
        return _Parcel(header, _OnShelf(msgspec.msgpack.encode(header), offset, len(payload)))


class _LoaderPass(Pass):
    """A pass whose batches come from the workers of a loader."""

    def __init__(self, loader: Loader) -> None:
        super().__init__(loader.dataset)
        self._loader = loader
        # The iterator of the DataLoader; None before the first batch and after the last.
        self._parcels: Iterator[_Parcel] | None = None
        # Epoch and step of the batch that comes next.
        self._due = (0, 0)
        # Whether the stream is one pass that ends, and whether it is at its end.
        self._ends = self._is_finished = False
        # What all workers have left out, and whether the next epoch tries it again.
        self._skips: set[int] = set()
        self._repairs = False
        # The epoch of the last batch; None before the first.
        self._epoch: int | None = None

    def _begin(self) -> None:
        start = self._dataset._begin_elsewhere(self, self._loader.num_workers)
        known = self._dataset._describe(start)
        self._due = (known.cursor["epoch"], known.cursor["step"])
        self._ends, self._is_finished = known.ends, known.remaining == 0
        on_bad = known.stream.get("on_bad")
        self._repairs = isinstance(on_bad, dict) and bool(on_bad.get("repair"))
        self._skips = set(start.skips if isinstance(start, Cursor) else self._dataset._skips)
        self._parcels = self._loader._start(self._dataset._board.read().next)

    def _advance(self) -> Any:  # noqa: ANN401 - whatever the user's functions return
        assert self._parcels is not None
        parcel = next(self._parcels, None)
        if parcel is None:
            self._check_end()
            raise StopIteration
        if (parcel.epoch, parcel.step) != self._due:
            raise errors.FeedError(
                f"the workers sent step {parcel.step} of epoch {parcel.epoch} where step "
                f"{self._due[1]} of epoch {self._due[0]} is due: a bug, please report it"
            )
        value = parcel.value
        if isinstance(value, _OnShelf):
            value = self._loader._unpack(value)
        cursor = self._whole(Cursor.from_state(parcel.cursor), parcel.epoch)
        if isinstance(value, Batch):
            value._cursor = cursor
        self._due = (cursor.epoch, cursor.step)
        self._epoch = parcel.epoch
        self._dataset._deliver(cursor, parcel.epoch, ends=self._ends)
        return value

    def _whole(self, cursor: Cursor, epoch: int) -> Cursor:
        """Return a cursor of a worker with what all of them have left out."""
        self._skips |= set(cursor.skips)
        if self._repairs and cursor.epoch != epoch:
            self._skips = set(cursor.skips)
        return msgspec.structs.replace(cursor, skips=tuple(sorted(self._skips)))

    def _check_end(self) -> None:
        """Refuse an end before the last step: torch is silent about a worker that stops early."""
        epoch, step = self._due
        if not self._is_finished and (self._epoch is None or epoch == self._epoch):
            raise errors.FeedError(
                f"the workers ended epoch {epoch} where its step {step} is due: a bug, please "
                "report it"
            )

    def _end(self, wait_s: float = CLOSE_S) -> None:
        self._parcels = None  # ends the workers, unless they are persistent
