"""A plan as a batch sampler of a map-style dataset: the same batches as of a daemon, without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from ..checks import check_integer
from ..errors import CursorError, TopologyError
from ..topology import Topology, resolve
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

if TYPE_CHECKING:
    from .composite import Plan

Planned = Callable[[PlannedBatch, list[int]], Any]
"""Makes what a sampler yields of a planned batch and its indices."""

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
        item: Makes what is yielded; by default the list of indices.  With a map of data, indices
            count through the datasets in the sequence of the map, as ``ConcatDataset`` does.

    Raises:
        PlanError: If the plan does not fit the data or the number of processes.
        TopologyError: If only one of rank and world_size is given, or they are out of range.
    """

    def __init__(
        self,
        plan: Plan,
        data: int | Any | Data | Mapping[str, Any],  # noqa: ANN401 - sizes are any array
        rank: int | None = None,
        world_size: int | None = None,
        *,
        item: Planned | None = None,
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
        self._bound = BoundPlan.to(plan, facts, allow_empty=True)
        self._item = item
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
        self._epoch = 0
        self._is_active = False

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of the next epoch, or the rest of one after `load_state_dict`."""
        start = self._upcoming()
        self._next = None
        self._start = self._delivered = start
        epoch = self._epoch = start.epoch
        if not self._has_steps(start):
            # Nothing to do in this epoch: the next pass is the one after it.
            self._delivered = self._cursor(Seek(epoch=epoch + 1)) if not self._ends else start
            return
        self._is_active = True
        cursor = start
        try:
            while cursor.epoch == epoch:
                for batch in next_batches(
                    self._bound, cursor, self.topology, max_batches=_CHUNK_BATCHES
                ):
                    cursor = self._delivered = batch.after
                    yield self._made(batch)
                    if self._delivered is not cursor:
                        return  # another pass, or a jump, took over
        finally:
            self._is_active = False

    def __len__(self) -> int:
        """Return the batches of the whole current epoch, whatever the position."""
        where = self._start if self._is_active else self._upcoming()
        world_size = self.topology.world_size
        if where.step == 0 and where.position == 0 and where.child is None:
            return self._bound.program.steps(where.epoch, world_size)
        if is_finished(self._bound, where):
            return 0
        return where.step + remaining_steps(self._bound, where, world_size)

    @property
    def remaining(self) -> int:
        """Batches that the pass in progress still has; between passes, those of the next one."""
        if self._is_active:
            if self._delivered.epoch != self._epoch:
                return 0
            return remaining_steps(self._bound, self._delivered, self.topology.world_size)
        where = self._upcoming()
        if not self._has_steps(where):
            return 0
        return remaining_steps(self._bound, where, self.topology.world_size)

    @property
    def epoch(self) -> int:
        """The epoch of the pass in progress, or of the next one."""
        return self._epoch if self._is_active else self._upcoming().epoch

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that of an epoch; does nothing if it is already."""
        where = Seek(epoch=epoch)
        if self.epoch != epoch:
            self._jump(where)

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
            return self._position().to_state()
        world_size = self.topology.world_size
        left = remaining_steps(self._bound, self._start, world_size)
        check_integer("after", after, 0, left + 1, CursorError)
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

    @property
    def _ends(self) -> bool:
        return self._bound.program.ends

    def _has_steps(self, where: Cursor) -> bool:
        if is_finished(self._bound, where):
            return False
        if where.step or where.position or where.child is not None:
            return True
        return self._bound.program.steps(where.epoch, self.topology.world_size) > 0

    def _jump(self, where: Cursor | Seek) -> None:
        self._is_active = False
        self._delivered = self._bound.start()  # ends a pass in progress
        self._next = where

    def _position(self) -> Cursor:
        return self._delivered if self._next is None else self._upcoming()

    def _upcoming(self) -> Cursor:
        """Return where the next pass begins."""
        if isinstance(self._next, Seek):
            self._next = self._cursor(self._next)
        if self._next is not None:
            return self._next
        if self._delivered.epoch > self._epoch or self._ends:
            return self._delivered
        return self._cursor(Seek(epoch=self._epoch + 1))

    def _cursor(self, where: Seek) -> Cursor:
        return seek(self._bound, where, self.topology.world_size)

    def _made(self, batch: PlannedBatch) -> Any:  # noqa: ANN401 - of the caller
        indices: list[int] = batch.indices.tolist()
        offset = self._offsets.get(batch.stream, 0)
        if offset:
            indices = [offset + index for index in indices]
        return indices if self._item is None else self._item(batch, indices)

