"""A plan as a batch sampler of a map-style dataset: the batches of a daemon, without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..checks import check_integer
from ..errors import CursorError, NoStepError, PlanError, TopologyError
from ..topology import Topology, resolve
from .composite import parts_of
from .cursor import Cursor, Seek
from .data import Data
from .engine import (
    BoundPlan,
    PlannedBatch,
    advance,
    check,
    is_finished,
    next_batches,
    remaining_steps,
    seek,
    settle,
)
from .program import Place

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .composite import Plan

_CHUNK_BATCHES: Final = 256


class PlanBatchSampler:
    """Batches of indices for ``DataLoader(dataset, batch_sampler=…)``.

    Each pass is the next epoch, as with `DaemonDataset`; `set_epoch` chooses another.  Made by
    ``plan.batch_sampler(…)``.

    Args:
        plan: What is executed.
        data: Length, sizes or `Data` of the dataset; a map of these by name for compositions.
        rank: Rank of this process; by default that of torch.distributed or torchrun.
        world_size: Number of processes, likewise.

    With a map of data, the indices count through the datasets in the sequence of the map, as
    ``ConcatDataset`` does.

    Raises:
        PlanError: If the plan does not fit the data, or the map names a part that it does not
            have.  Whether it fits the number of processes is seen at the first pass or ``len()``.
        TopologyError: If only one of rank and world_size is given, or they are out of range.
    """

    def __init__(
        self,
        plan: Plan,
        data: int | Any | Data | Mapping[str, Any],  # noqa: ANN401 - sizes are any array
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if (rank is None) != (world_size is None):
            raise TopologyError(
                f"rank={rank!r} and world_size={world_size!r}: give both, or neither to take those "
                "of torch.distributed or torchrun"
            )
        explicit = None if rank is None or world_size is None else Topology(rank, world_size)
        self.plan = plan
        self.topology = resolve(explicit)
        facts = Data.of(data)
        _check_parts(plan, facts)
        self._bound = BoundPlan.to(plan, facts, allow_empty=True)
        # Where the indices of each part begin, if the parts have data of their own.
        self._offsets: dict[str, int] = {}
        offset = 0
        for name, part in facts.parts.items():
            self._offsets[name] = offset
            offset += part.length
        # Where the next pass begins if that was said; None: it follows from the last pass.
        self._next: Cursor | Seek | None = Seek(epoch=0)
        # Where the latest pass began, and the cursor after the last batch that was yielded.
        self._start = self._delivered = self._bound.start()
        # Whether a pass has begun and has not yielded the last batch of its epoch.
        self._is_active = False

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each batch of the next epoch, or of the rest of one."""
        return map(self.indices_of, self.batches())

    def indices_of(self, batch: PlannedBatch) -> list[int]:
        """Return the indices of a batch, counted through the datasets if there are several."""
        offset = self._offsets.get(batch.stream, 0)
        indices = batch.indices + np.uint64(offset) if offset else batch.indices
        found: list[int] = indices.tolist()
        return found

    def batches(self) -> Iterator[PlannedBatch]:
        """Yield the planned batches of the next epoch, or of the rest of one after a load."""
        start = self._begin()
        if start is None:
            return
        cursor, epoch = start, start.epoch
        while cursor.epoch == epoch and not is_finished(self._bound, cursor):
            for batch in next_batches(
                self._bound, cursor, self.topology, max_batches=_CHUNK_BATCHES
            ):
                cursor = self._delivered = batch.after
                if cursor.epoch != epoch:
                    self._is_active = False
                yield batch
                if self._delivered is not cursor:
                    return  # another pass, or a jump, took over
        self._is_active = False

    def __len__(self) -> int:
        """Return the batches of the whole current epoch, whatever the position."""
        where = self._start if self._is_active else self._upcoming()
        world_size = self.topology.world_size
        if where is None:
            return 0
        if _is_at_start(where):
            return self._bound.program.steps(where.epoch, world_size)
        return where.step + self._left(where)

    @property
    def remaining(self) -> int:
        """Batches that the pass in progress still has; between passes, those of the next one."""
        where = self._delivered if self._is_active else self._upcoming()
        return 0 if where is None else self._left(where)

    @property
    def epoch(self) -> int:
        """The epoch of the pass in progress, or of the next one."""
        if self._is_active:
            return self._start.epoch
        if isinstance(self._next, Seek) and self._next.epoch is not None:
            return self._next.epoch
        where = self._upcoming()
        return self._start.epoch + 1 if where is None else where.epoch

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that of an epoch; does nothing if it is already."""
        where = Seek(epoch=epoch)
        if self.epoch != epoch:
            self._jump(where)

    def begin(self, epoch: int) -> None:
        """Make the next pass an epoch from its start, without counting what comes before it.

        Unlike `set_epoch` and `seek` it costs nothing where epochs differ in length, and it
        begins the epoch of a pass in progress anew.  Counts of updates and samples go on where it
        is the epoch that follows, and else begin at 0.

        Raises:
            CursorError: If the plan runs in one pass until its limits.
        """
        check_integer("epoch", epoch, 0, 2**63, CursorError)
        if self._bound.program.ends:
            raise CursorError(f"epoch={epoch}: this plan runs in one pass to its limits: use seek")
        follows = not self._is_active and self._next is None and self._delivered.epoch == epoch
        if follows and _is_at_start(self._delivered):
            return
        start = self._bound.cursor(Place(epoch), self.topology.world_size)
        if self._has(epoch):
            self._jump(start)
        else:
            self._jump(Seek(epoch=epoch))

    def steps(self, epoch: int) -> int:
        """Return the batches of a whole epoch; 0 is possible.  Moves nothing."""
        return self._bound.program.steps(epoch, self.topology.world_size)

    def seek(
        self, *, epoch: int | None = None, update: int | None = None, sample: int | None = None
    ) -> None:
        """Make the next pass begin elsewhere; exactly one argument is given.

        Raises:
            CursorError: If it is no place to begin at.
        """
        self._jump(self._cursor(Seek(epoch=epoch, update=update, sample=sample)))

    def state_dict(self, *, after: int | None = None) -> dict[str, Any]:
        """Return the position as small plain data; it loads on any rank.

        Args:
            after: Batches of the latest pass that were used; by default all that were yielded.
                A ``DataLoader`` with workers asks for batches ahead of the training loop: count
                those that the loop got.

        Raises:
            CursorError: If the pass does not have so many batches.
        """
        if after is None:
            where = self._delivered if self._next is None else self._upcoming()
            return (self._bound.start() if where is None else where).to_state()
        world_size = self.topology.world_size
        check_integer("after", after, 0, self._left(self._start) + 1, CursorError)
        return advance(self._bound, self._start, world_size, after).to_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next pass continue where `state_dict` was taken.

        Raises:
            CursorError: If it is no state, a newer one, or that of another plan.
            ManifestMismatchError: If it belongs to other data.
        """
        cursor = Cursor.from_state(state)
        check(self._bound, cursor)
        self._jump(settle(self._bound, cursor, self.topology.world_size))

    def _begin(self) -> Cursor | None:
        """Begin a pass; None if its epoch has no batch."""
        where = self._next
        if isinstance(where, Seek) and where.epoch is not None and not self._has(where.epoch):
            self._next = Seek(epoch=where.epoch + 1)
            return None
        start = self._upcoming()
        if start is None:
            return None
        self._next = None
        self._start = self._delivered = start
        self._is_active = not is_finished(self._bound, start)
        return start

    def _jump(self, where: Cursor | Seek) -> None:
        self._is_active = False
        self._delivered = self._bound.start()  # another object: ends a pass in progress
        self._next = where

    def _upcoming(self) -> Cursor | None:
        """Return where the next pass begins; None if no epoch has a batch."""
        try:
            if isinstance(self._next, Seek):
                return self._cursor(self._next)
            if self._next is not None:
                return self._next
            if self._is_active and not self._bound.program.ends:
                # The pass was left early: the rest of its epoch is abandoned.
                return advance(
                    self._bound,
                    self._delivered,
                    self.topology.world_size,
                    self._left(self._delivered),
                )
        except NoStepError:
            return None
        return self._delivered

    def _has(self, epoch: int) -> bool:
        program = self._bound.program
        return program.ends or program.has_steps(Place(epoch), self.topology.world_size)

    def _left(self, where: Cursor) -> int:
        return remaining_steps(self._bound, where, self.topology.world_size)

    def _cursor(self, where: Seek) -> Cursor:
        return seek(self._bound, where, self.topology.world_size)


def _check_parts(plan: Plan, data: Data) -> None:
    """Refuse a map of data with a name that is none of the plan's: a slip would go unseen.

    The first entry may have any name, being the data of all parts that have none of their own.
    """
    known = parts_of(plan)
    for name in list(data.parts)[1:] if known else ():
        if name not in known:
            raise PlanError(
                f"data[{name!r}]: the plan has no part of that name; its parts: {', '.join(known)}"
            )


def _is_at_start(cursor: Cursor) -> bool:
    return cursor.step == 0 and cursor.position == 0 and cursor.child is None
