"""Memory that grows with what is found: for data whose size shows only when it is there.

What is held never exceeds what the budget has promised, and the promise is raised before more is
held.  So nobody waits for memory that somebody else may keep.  Where the budget has no more, what
is about to be given back is waited for; if there is nothing, that is an error with the numbers.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from headrace.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .budget import Account, Budget

GROWTH: Final = 1.25
"""A promise is raised by this at least, where there is so much: so it is seldom raised."""


class GrowingMemory:
    """Bytes of one holder, which may have several tasks that take them.

    Args:
        budget: The budget of the node.
        account: The holder's account; it belongs to this object from now on.
        need: What the memory is for, to stand before "N bytes" in a refusal.
    """

    def __init__(self, budget: Budget, account: Account, need: str) -> None:
        self._budget = budget
        self._account = account
        account.num_feeds = 0  # its feed is counted with its slots
        self._need = need
        self._is_closed = False
        self.held_bytes = 0
        self.leaving_bytes = 0
        """What is given back soon, whatever the holder waits for; who does so counts it."""
        self.make_room: Callable[[], object] = lambda: None
        """Called where the budget has no more: lets go of what can be had again later, which counts
        as leaving from then on."""

    async def hold(self, num_bytes: int, *, may_grow: Callable[[], bool]) -> None:
        """Hold more bytes; waits until they are there.

        Cancelled, it holds no more than before.

        Args:
            num_bytes: How many more.
            may_grow: Whether the caller is what everybody waits for: only then more may be promised
                than is already.  Asked again after `wake`.

        Raises:
            BudgetError: If more would have to be promised than the budget has; not retryable, as
                what was read up to here would have to be read again, and take up as much.
        """
        account = self._account
        while True:
            wanted = account.held + num_bytes
            if wanted > account.guarantee and may_grow():
                try:
                    self._grow(wanted)
                except BudgetError as error:
                    self.make_room()
                    if account.held + num_bytes < wanted:
                        continue
                    if not self.leaving_bytes:
                        raise BudgetError(str(error), retryable=False) from None
            if wanted <= account.guarantee and self._budget.try_hold(account, num_bytes):
                self.held_bytes += num_bytes
                return
            if account.waiting is None or account.waiting.done():
                account.waiting = asyncio.get_running_loop().create_future()
            await asyncio.wait([account.waiting])  # not cancelled with one of those who wait

    def _grow(self, wanted: int) -> None:
        need = f"{self._need} needs {wanted} bytes"
        try:
            self._budget.change_guarantee(self._account, int(wanted * GROWTH), need=need)
        except BudgetError:
            self._budget.change_guarantee(self._account, wanted, need=need)

    def make_way(self, least_bytes: int) -> None:
        """Be promised no more than what stays held, so that another may be promised the rest.

        Args:
            least_bytes: What is promised in any case, if it was before.
        """
        before = self.leaving_bytes
        self.make_room()
        staying_bytes = self.held_bytes - (self.leaving_bytes - before)
        guarantee = min(self._account.guarantee, max(least_bytes, staying_bytes))
        self._budget.change_guarantee(self._account, guarantee, need=self._need)

    def release(self, num_bytes: int) -> None:
        """Hold less."""
        self.held_bytes -= num_bytes
        self._budget.release(self._account, num_bytes)

    def release_all(self) -> None:
        """Hold nothing; nobody gives anything back any more."""
        self.leaving_bytes = 0
        if self.held_bytes:
            self.release(self.held_bytes)

    def wake(self) -> None:
        """Let those who wait look again."""
        waiting = self._account.waiting
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def close(self) -> None:
        """Give everything back, promises too; a second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self.release_all()
            self._budget.close(self._account)
