"""The blocks of the stage: memory that is surplus in the budget of the node, and never promised.

Invariant: nobody waits for a block.  What is asked for is there at once, or is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .memory import Memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .budget import Budget

BLOCK_BYTES: Final = 1 << 20
"""Long enough that a read of one costs little beside its bytes."""


class Blocks:
    """Blocks of one size, used again and again.

    Args:
        budget: The memory of the node.
        limit_bytes: What they take together, at most.
        block_bytes: Size of one.
        shed: Called when others need the memory; gives back what it can, and calls `shed`.
    """

    def __init__(
        self,
        budget: Budget,
        limit_bytes: int,
        *,
        block_bytes: int = BLOCK_BYTES,
        shed: Callable[[], None],
    ) -> None:
        self._budget = budget
        self._account = budget.open_surplus("stage", shed=shed)
        self.block_bytes = block_bytes
        self.limit = limit_bytes // block_bytes
        """How many there may be."""
        self._idle: list[Memory] = []
        self._num_blocks = 0

    @property
    def held_bytes(self) -> int:
        """Bytes that exist as memory now."""
        return self._account.held

    def try_take(self, count: int) -> list[Memory] | None:
        """Return some blocks, or None where there are not so many."""
        more = max(0, count - len(self._idle))
        if self._num_blocks + more > self.limit:
            return None
        if more and not self._budget.try_hold(self._account, more * self.block_bytes):
            return None
        self._num_blocks += more
        made = 0
        try:
            while made < more:
                self._idle.append(Memory(self.block_bytes))
                made += 1
        except BaseException:  # the system has none
            self._num_blocks -= more - made
            self._budget.release(self._account, (more - made) * self.block_bytes)
            raise
        taken = self._idle[len(self._idle) - count :]
        del self._idle[len(self._idle) - count :]
        return taken

    def give_back(self, blocks: Iterable[Memory]) -> None:
        """Take back blocks that nothing reads or writes any more."""
        self._idle += blocks
        if self._budget.is_under_pressure:
            self.shed()

    def shed(self) -> None:
        """Return all that is idle to the system."""
        count = len(self._idle)
        while self._idle:
            self._idle.pop().close()
        self._num_blocks -= count
        if count:
            self._budget.release(self._account, count * self.block_bytes)

    def close(self) -> None:
        """End the account; every block must have been given back."""
        self.shed()
        self._budget.close(self._account)
