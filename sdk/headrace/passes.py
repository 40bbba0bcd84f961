"""Passes: the iterators that loops and DataLoader workers hold.

A pass in the main process moves the position of its dataset.  A pass in a DataLoader worker reads
one part of an epoch, every W-th step; the parts, dealt in turn, are the epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec
from torch.utils.data import get_worker_info

from . import errors
from .batch import unpack
from .board import MAX_WORKERS, Ticket, birth_of_worker
from .collate import apply
from .conversion import prepare
from .orphans import end_with_parent
from .plans.cursor import Cursor
from .protocol import Payload
from .protocol import messages as m
from .receiver import CLOSE_S, HURRY_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from .batch import Batch
    from .board import Board
    from .dataset import DaemonDataset
    from .receiver import Buffers, Receiver


T = TypeVar("T")


class Pass:
    """One pass over a dataset, in the main process."""

    def __init__(self, dataset: DaemonDataset) -> None:
        self._dataset = dataset
        self._has_begun = False
        self.is_over = False
        # What ended the pass, to be raised again; None for a regular end.
        self._failure: BaseException | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:  # noqa: ANN401 - a batch, or what the user's functions made of it
        if self._failure is not None:
            raise errors.without_frames(self._failure)
        if self.is_over:
            raise StopIteration
        try:
            if not self._has_begun:
                self._begin()
                self._has_begun = True
            elif not self._is_current():
                raise superseded()
            return self._advance()
        except StopIteration:
            self.is_over = True
            self._end(CLOSE_S)
            raise
        except BaseException as error:
            # A batch may be lost on its way to the loop: this pass must not go on after it.
            self.is_over = True
            self._failure = errors.without_frames(error)
            self._abort(CLOSE_S if isinstance(error, Exception) else HURRY_S)
            raise

    def _is_current(self) -> bool:
        current = self._dataset._pass
        return current is not None and current() is self

    def _begin(self) -> None:
        """Make this pass the current one."""
        raise NotImplementedError

    def _advance(self) -> Any:  # noqa: ANN401 - see __next__
        """Return what the loop gets next; StopIteration at the end of the epoch."""
        raise NotImplementedError

    def _end(self, wait_s: float) -> None:
        """Let go of what only this pass needs."""

    def _abort(self, wait_s: float) -> None:
        """End what feeds this pass."""
        self._end(wait_s)


class FeedPass(Pass):
    """A pass whose batches come from a feed of this process."""

    def __init__(self, dataset: DaemonDataset) -> None:
        super().__init__(dataset)
        # None until the first batch is asked for.
        self._receiver: Receiver | None = None
        self._start_epoch = 0

    def _begin(self) -> None:
        self._receiver = self._dataset._begin(self)
        assert self._dataset._next is not None
        assert self._dataset._next.epoch is not None
        self._start_epoch = self._dataset._next.epoch

    def _advance(self) -> Any:  # noqa: ANN401 - see __next__
        dataset, receiver = self._dataset, self._receiver
        assert receiver is not None
        while True:
            item = receiver.next()
            match item:
                case Payload():
                    batch = unpack(item)
                    receiver.consumed(item)
                    value = _applied(dataset, batch)
                    assert receiver.opened is not None
                    dataset._deliver(batch.cursor, batch.meta["epoch"], ends=receiver.opened.ends)
                    return value
                case m.EpochEnd(epoch=epoch) if epoch < self._start_epoch:
                    continue  # of the pass before, which was left after its last batch
                case m.EpochEnd() | m.End(reason="finished"):
                    raise StopIteration
                case m.End():  # another thread closed the dataset while this one waited
                    raise superseded()

    def _abort(self, wait_s: float) -> None:
        if self._is_current():
            self._dataset._end_feed(wait_s)


def _applied(dataset: DaemonDataset, batch: Batch) -> Any:  # noqa: ANN401 - of any type
    try:
        return apply(batch, dataset._transform, dataset._collate_fn)
    except StopIteration as error:  # it would pass for the end of the epoch
        raise RuntimeError("transform or collate_fn raised StopIteration") from error


def superseded() -> errors.FeedError:
    """Return the error of a pass that is no longer the current one."""
    return errors.FeedError(
        "this pass was ended by a newer one, or by seek(), load_state_dict() or close(): call "
        "iter() anew",
        code="pass",
        fault="client",
    )


# ---- parts ---------------------------------------------------------------------------------------


def ticket() -> Ticket:
    """Return the ticket of this DataLoader worker.

    Raises:
        FeedError: If there are too many workers.
    """
    info = get_worker_info()
    assert info is not None, "outside of a DataLoader worker"
    if info.num_workers > MAX_WORKERS:
        raise errors.FeedError(
            f"num_workers={info.num_workers} is above the limit of {MAX_WORKERS}",
            code="workers",
            fault="client",
        )
    return Ticket(info.seed - info.id, birth_of_worker(info.id), info.id, info.num_workers)


class PartState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where one DataLoader worker stands in its part of an epoch; for `StatefulDataLoader`."""

    part: int
    """Number of the worker."""

    num_parts: int
    """Number of workers."""

    world_size: int
    """World size of the run: parts continue under the same one only."""

    start: dict[str, Any]
    """Cursor at which the pass begins."""

    last: dict[str, Any] | None = None
    """Cursor after the last batch of this part, None before the first."""

    is_over: bool = False
    """Whether the part has come to its end."""


class PartPass:
    """One pass of a DataLoader worker.

    Args:
        dataset: The worker's copy of a dataset.
        board: Where it is written which pass this is.
        follows: Whether the main process alone says where each pass begins; otherwise the
            workers agree on it.
        restored: The state that was loaded into the worker, if this is the pass it belongs to.
        buffers: Where payloads are received into; by default memory of its own.
    """

    def __init__(
        self,
        dataset: DaemonDataset,
        board: Board,
        *,
        follows: bool = False,
        restored: PartState | None = None,
        buffers: Buffers | None = None,
    ) -> None:
        self._dataset = dataset
        self._board = board
        self._follows = follows
        self._buffers = buffers
        # None until the first batch is asked for.
        self._receiver: Receiver | None = None
        self.ticket = ticket()
        end_with_parent()
        self.has_begun = restored is not None
        # Where the pass begins; None until it has begun.
        self.start = None if restored is None else restored.start
        self.last = None if restored is None else restored.last
        self.is_over = restored is not None and restored.is_over
        self._failure: BaseException | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:  # noqa: ANN401 - a batch, or what the user's functions made of it
        return self.deliver(self.convert)

    def convert(self, received: Payload) -> Any:  # noqa: ANN401 - see __next__
        """Return what the functions of the dataset make of a batch."""
        return _applied(self._dataset, unpack(received))

    def deliver(self, convert: Callable[[Payload], T]) -> T:
        """Return what is made of the next batch of the part; StopIteration after the last.

        Args:
            convert: Makes it; the bytes may be used by others as soon as it returns.
        """
        if self._failure is not None:
            raise errors.without_frames(self._failure)
        if self.is_over:
            raise StopIteration
        try:
            if self._receiver is None:
                self._begin()
            return self._advance(convert)
        except StopIteration:
            self.is_over = True
            self._dataset._end_feed()
            if not self._follows:
                self._board.finish(self.ticket)
            raise
        except BaseException as error:
            self.is_over = True
            self._failure = errors.without_frames(error)
            self._dataset._end_feed(CLOSE_S if isinstance(error, Exception) else HURRY_S)
            raise

    def _begin(self) -> None:
        if not self.has_begun:
            if self._follows:
                self.start = self._board.read().next
            else:
                self.start = self._board.join(self.ticket, is_new=self._dataset._is_new)
            self._dataset._is_new = False
            self.has_begun = True
        assert self.start is not None
        if self.last is not None and self.last["epoch"] > self.start["epoch"]:
            raise StopIteration  # its last batch was the last one of the epoch
        worker, num_workers = self.ticket.worker, self.ticket.num_workers
        self._receiver = self._dataset._open_feed(
            self.start if self.last is None else self.last,
            first=worker if self.last is None else num_workers - 1,
            stride=num_workers,
            epochs=1,
            buffers=self._buffers,
        )

    def _advance(self, convert: Callable[[Payload], T]) -> T:
        receiver = self._receiver
        assert receiver is not None
        item = receiver.next()
        if self.last is None:
            assert receiver.opened is not None
            self.start = receiver.opened.cursor
            if not self._follows:
                self._board.settle(self.ticket, self.start, ends=receiver.opened.ends)
        match item:
            case Payload():
                header = item.header
                assert isinstance(header, m.Batch)
                value = convert(item)
                receiver.consumed(item)
                self.last = header.cursor
                return value
            case m.EpochEnd() | m.End(reason="finished"):
                raise StopIteration
            case m.End():
                raise superseded()

    def state(self, world_size: int) -> PartState:
        """Return where this part stands; the pass has begun."""
        assert self.start is not None
        return PartState(
            part=self.ticket.worker,
            num_parts=self.ticket.num_workers,
            world_size=world_size,
            start=self.start,
            last=self.last,
            is_over=self.is_over,
        )


def read_part_state(state: dict[str, Any], ticket: Ticket, world_size: int) -> PartState:
    """Read what a worker's `state_dict` returned.

    Raises:
        CursorError: If it is not that, or not that of this worker.
    """
    if "part" not in state:
        raise errors.CursorError(
            "this is the state of a whole stream, a DataLoader worker needs that of its part: load "
            "it into the dataset in the main process"
        )
    try:
        part = msgspec.convert(state, PartState)
    except msgspec.ValidationError as error:
        raise errors.CursorError(f"the state is none of a DataLoader worker: {error}") from None
    for cursor in (part.start, part.last):
        if cursor is not None:
            Cursor.from_state(cursor)
    if (part.part, part.num_parts) != (ticket.worker, ticket.num_workers):
        raise errors.CursorError(
            f"the state belongs to DataLoader worker {part.part} of {part.num_parts}, this is "
            f"worker {ticket.worker} of {ticket.num_workers}: use the same num_workers, or take "
            "states from loader(), which load under any"
        )
    if part.world_size != world_size:
        raise errors.CursorError(
            f"the state was made by world size {part.world_size}, this run has {world_size}: parts "
            "of DataLoader workers continue under the same one only; states from loader() load "
            "under any"
        )
    return part


prepare(PartState)
