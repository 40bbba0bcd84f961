"""Items of a stream one by one: what the drop-in readers share.

The plan cuts batches, which come from a daemon; a loop, or a plain ``DataLoader``, gets their
samples as single items.  A state is a position between two items: the cursor before the batch in
hand, and how many of its items were taken.

In the workers of a ``DataLoader`` each reads a share of its own, as the originals deal them.  What
the shares are is said by the subclass; together they are the whole, each sample once.
"""

from __future__ import annotations

from contextlib import contextmanager
from tarfile import TarError
from typing import TYPE_CHECKING, Any, TypeVar

from torch.utils.data import IterableDataset, get_worker_info

from ..board import epoch_of
from ..checks import check_flag, check_integer
from ..dataset import DaemonDataset
from ..errors import CursorError, FeedError, NoStepError, PlanError
from ..orphans import end_with_parent
from ..passes import FeedPass, ticket
from ..plans.cursor import Cursor, Seek

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from ..batch import Batch
    from ..board import Ticket
    from ..plans import Plan
    from ..sources import Stream
    from ..topology import Topology

_T = TypeVar("_T", covariant=True)


class BadShardError(FeedError, TarError):
    """A shard is no tar, is damaged, or is refused; the originals raise `tarfile.TarError`."""


class NothingToReadError(PlanError):
    """There is no stream: the arguments take nothing of what they name."""


class ItemStream(IterableDataset[_T]):
    """Base of the readers: the items of a stream, one by one.

    Each pass is an epoch; leaving a loop early abandons the rest of it.  An empty stream has no
    items, as in the originals.

    Args:
        stream: What is read; None for nothing.
        socket: Path of the daemon's socket, as for `headrace.DaemonDataset`.
        local: Start a daemon of its own, which ends with this process.
        topology: Which rank this is; ranks share the samples.
    """

    def __init__(
        self,
        stream: Stream | None,
        *,
        socket: str | os.PathLike[str] | None,
        local: bool,
        topology: Topology | None,
    ) -> None:
        check_flag("local", local, PlanError)
        if local and socket is not None:
            raise PlanError(f"local=True starts a daemon of its own: leave out socket={socket!r}")
        self._stream = stream
        self._dataset: DaemonDataset | None = None
        if stream is not None and local:
            self._dataset = DaemonDataset.local(stream, topology=topology)
        elif stream is not None:
            self._dataset = DaemonDataset(socket, stream, topology=topology)
        # In a DataLoader worker: the dataset of its share, once it was needed.
        self._own: DaemonDataset | None = None
        # Whether this copy has never begun a pass; whether a state says where its next one begins.
        self._is_new, self._is_restored = True, False
        # The epoch of the latest pass of a worker.
        self._epoch = 0
        # Where the batch in hand begins, None without one; how many of its items were given out.
        self._before: dict[str, Any] | None = None
        self._taken = 0
        # Items that the next pass leaves out of its first batch, as a state asks for.
        self._left_out = 0

    # ---- what subclasses say -----------------------------------------------------------------

    def _item(self, batch: Batch, row: int) -> _T:
        """Return one sample of a batch as the original has it."""
        raise NotImplementedError

    def _share(self, worker: int, num_workers: int) -> Stream | None:
        """Return what one of several workers reads; None for nothing."""
        raise NotImplementedError

    _may_be_empty = True
    """Whether nothing to read means no items; else it is an error."""

    def _pass_if_empty(self, error: NoStepError | FeedError) -> None:
        """Raise an error again unless it says that there is nothing to read, and may be."""
        if isinstance(error, NoStepError):
            return  # a share of a worker without a shard
        if error.code != "empty" or not self._may_be_empty:
            raise error

    # ---- the stream --------------------------------------------------------------------------

    @property
    def stream(self) -> Stream:
        """Source and plan: `headrace.DaemonDataset` delivers the same samples of it, in batches.

        Raises:
            NothingToReadError: If there are none, because the arguments take nothing.
        """
        if self._stream is None:
            raise NothingToReadError(f"{type(self).__name__} has no stream: it takes no shard")
        return self._stream

    @property
    def plan(self) -> Plan:
        """The plan that is run."""
        plan = self.stream.plan
        return plan  # type: ignore[return-value] # ours is no sampler of the trainer

    def __len__(self) -> int:
        """Return the samples that this rank gets in an epoch, whatever the position."""
        if self._dataset is None:
            return 0
        with _as_the_original():
            try:
                total = len(self._dataset.manifest)
            except (NoStepError, FeedError) as error:
                self._pass_if_empty(error)
                return 0
        return -(-total // self._dataset._resolve().world_size)

    def close(self) -> None:
        """End what is read, and the daemon if it is a private one; the position stays."""
        for dataset in (self._own, self._dataset):
            if dataset is not None:
                dataset.close()

    # ---- passes ------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[_T]:
        """Return a pass.  It begins with its first item; until then it has no effect."""
        if self._dataset is None:
            return iter(())
        if get_worker_info() is None:
            return self._items(self._dataset)
        return self._items_of_worker(self._dataset)

    def _items(self, dataset: DaemonDataset) -> Iterator[_T]:
        """Yield the items of one pass over a dataset."""
        self._before, self._taken = None, 0
        try:
            with _as_the_original():
                before = _position(dataset, dataset._upcoming())
                batches = FeedPass(dataset)
                batch = next(batches, None)
        except (NoStepError, FeedError) as error:
            self._pass_if_empty(error)
            return
        # Not before: a pass that fails to begin leaves the position as it is, for the next one.
        skipped, self._left_out = self._left_out, 0
        while batch is not None:
            size = len(batch)
            if skipped >= size:
                raise CursorError(
                    f"the state leaves out {skipped} items of a batch of {size}: it belongs to "
                    "another stream"
                )
            for row in range(skipped, size):
                is_last = row + 1 == size  # then the dataset itself stands behind it
                self._before, self._taken = (None, 0) if is_last else (before, row + 1)
                yield self._item(batch, row)
            skipped, before = 0, batch.cursor.to_state()
            with _as_the_original():
                batch = next(batches, None)

    def _items_of_worker(self, main: DaemonDataset) -> Iterator[_T]:
        end_with_parent()
        mine = ticket()
        is_restored, self._is_restored = self._is_restored, False
        if not is_restored:
            start = main._board.join(mine, is_new=self._is_new)
            if "seek" not in start:
                raise FeedError(
                    "a state of the whole does not continue in DataLoader workers, which have "
                    "shards of their own: use num_workers=0, load the state of a "
                    "StatefulDataLoader into one, or use DaemonDataset(stream=reader.stream)"
                    ".loader(num_workers=…)",
                    code="workers",
                    fault="client",
                )
            self._epoch = epoch_of(start)
        self._is_new = False
        own = self._own_dataset(main, mine)
        if own is not None:
            if not is_restored:
                own._next, self._left_out = Seek(epoch=self._epoch), 0
            place = own._upcoming()
            # A worker that had come to its end waits for the others.
            if place.epoch is not None and place.epoch <= self._epoch:
                yield from self._items(own)
        main._board.finish(mine)

    def _own_dataset(self, main: DaemonDataset, mine: Ticket) -> DaemonDataset | None:
        """Return the dataset of this worker's share."""
        if self._own is None:
            share = self._share(mine.worker, mine.num_workers)
            if share is not None:
                self._own = DaemonDataset(main._socket, share, topology=main._resolve())
        return self._own

    # ---- positions ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the position behind the last item, as small plain data, ready for JSON.

        It loads on any rank; between two batches of the plan (`samples_per_step`) under any world
        size too.  In a worker of a ``DataLoader`` it is that of the worker's share, for
        ``StatefulDataLoader``.

        Raises:
            NothingToReadError: If the stream is empty.
            FeedError: If workers of a plain ``DataLoader`` have begun a pass: how much of it the
                loop was given is not known here.
        """
        if self._dataset is None:
            raise NothingToReadError(f"{type(self).__name__} has no position: it takes no shard")
        if get_worker_info() is not None:
            return self._worker_state(self._dataset)
        if self._dataset._worked() is not None:
            raise FeedError(
                "state_dict() is not known in the main process while the workers of a plain "
                "DataLoader iterate: use num_workers=0, a StatefulDataLoader and its own "
                "state_dict(), or DaemonDataset(stream=reader.stream).loader(num_workers=…)",
                code="workers",
                fault="client",
            )
        with _as_the_original():
            return self._state(self._dataset)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next pass continue at a state; that of a `DaemonDataset` of `stream` too.

        Raises:
            CursorError: If it is no state, or that of another plan.  Whether it belongs to the data
                is seen when the next pass begins.
        """
        if self._dataset is None:
            raise CursorError(f"{type(self).__name__} takes no state: it takes no shard")
        if not isinstance(state, dict):
            raise CursorError(f"state={state!r} is no state: give what state_dict() returned")
        if get_worker_info() is not None:
            self._load_worker_state(self._dataset, state)
            return
        if "worker" in state:
            raise CursorError(
                f"this is the state of DataLoader worker {state['worker']} of "
                f"{state.get('num_workers')}: load that of the StatefulDataLoader into one"
            )
        cursor = state.get("cursor", state)
        left_out = self._read_taken(self._dataset, state)
        self._dataset.load_state_dict(cursor)
        self._before, self._taken, self._left_out = None, 0, left_out

    def _state(self, dataset: DaemonDataset) -> dict[str, Any]:
        """Return where a dataset stands, and how much was taken of its batch in hand."""
        if self._before is not None:
            cursor, taken = self._before, self._taken
        else:
            where = dataset._delivered if dataset._next is None else dataset._next
            assert where is not None
            cursor, taken = _position(dataset, where), self._left_out
        return {"cursor": cursor, "taken": taken, "world_size": dataset._resolve().world_size}

    def _read_taken(self, dataset: DaemonDataset, state: dict[str, Any]) -> int:
        taken: int = state.get("taken", 0)
        check_integer("taken", taken, 0, 2**31, CursorError)
        world_size = dataset._resolve().world_size
        if taken and state.get("world_size") != world_size:
            raise CursorError(
                f"the state was taken within a batch, by world size {state.get('world_size')}, and "
                f"this run has {world_size}: take states after a whole number of samples_per_step, "
                "or continue under the same world size"
            )
        return taken

    def _worker_state(self, main: DaemonDataset) -> dict[str, Any]:
        mine = ticket()
        own = self._own_dataset(main, mine)
        state: dict[str, Any] = {"cursor": None, "taken": 0}
        if own is not None:
            if self._is_new and not self._is_restored:
                self._epoch = epoch_of(main._board.peek(mine, is_new=True))
                own._next = Seek(epoch=self._epoch)
            try:
                state = self._state(own)
            except (NoStepError, FeedError) as error:
                self._pass_if_empty(error)
        return {
            **state,
            "epoch": self._epoch,
            "worker": mine.worker,
            "num_workers": mine.num_workers,
        }

    def _load_worker_state(self, main: DaemonDataset, state: dict[str, Any]) -> None:
        mine = ticket()
        if (state.get("worker"), state.get("num_workers")) != (mine.worker, mine.num_workers):
            raise CursorError(
                f"the state belongs to DataLoader worker {state.get('worker')} of "
                f"{state.get('num_workers')}, this is worker {mine.worker} of {mine.num_workers}: "
                "use the same num_workers, each of which has shards of its own"
            )
        check_integer("epoch", state.get("epoch"), 0, 2**63, CursorError)
        own = self._own_dataset(main, mine)
        if own is not None and state["cursor"] is not None:
            self._left_out = self._read_taken(own, state)
            own._end_pass()
            own._next = Cursor.from_state(state["cursor"])
        self._before, self._taken = None, 0
        self._epoch, self._is_new, self._is_restored = state["epoch"], False, True
        main._board.restore(mine, {"seek": {"epoch": self._epoch}}, ends=False)


def _position(dataset: DaemonDataset, where: Cursor | Seek) -> dict[str, Any]:
    """Return a position as a cursor, which the daemon knows of one that only names an epoch."""
    if isinstance(where, Cursor):
        return where.to_state()
    return dict(dataset._describe(where).cursor)


@contextmanager
def _as_the_original() -> Iterator[None]:
    """Raise what the originals raise, where their loops may catch it."""
    try:
        yield
    except FeedError as error:
        if error.code != "shard":
            raise
        bad = BadShardError(
            str(error), code=error.code, fault=error.fault, retryable=error.retryable
        )
        bad.add_note("every object is taken for a shard, as in the original: choose by prefixes")
        raise bad from error
