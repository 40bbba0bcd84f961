"""Slots: the memory that batches are assembled in.

A pool belongs to one feed.  Two slots are guaranteed by the budget; more are surplus, held while
nobody else needs the memory.  A slot is as large as the largest batch of its epoch.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from headrace.errors import BudgetError

from ..fetch.memory import Memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..fetch.budget import Account, Budget

MIN_SLOTS = 2
"""Slots that a feed can always have: one that is sent while the next is filled."""


class Slot(Memory):
    """A piece of memory that a batch is assembled in."""

    __slots__ = ()


class SlotPool:
    """The slots of one feed.

    Args:
        budget: The budget of the node.
        account: The feed's account, with a guarantee of `MIN_SLOTS` slots.
        slot_bytes: Size of a slot.
        max_slots: How many slots the feed aims for, at least `MIN_SLOTS`.
        has_surplus: Whether it may hold more than it is guaranteed: not where what is in a slot
            cannot be read again.
    """

    def __init__(
        self,
        budget: Budget,
        account: Account,
        *,
        slot_bytes: int,
        max_slots: int,
        has_surplus: bool = True,
    ) -> None:
        self._budget = budget
        self._account = account
        self.slot_bytes = slot_bytes
        self.max_slots = max_slots if has_surplus else MIN_SLOTS
        self._has_surplus = has_surplus
        self._idle: list[Slot] = []
        self.num_slots = 0
        """Slots that exist."""
        self.on_shed: Callable[[], None] = self.shed
        """What the budget calls to get surplus back; a feed puts its own `shed` here."""

    @property
    def num_guaranteed(self) -> int:
        """Slots that nobody can take away."""
        return self._account.guarantee // max(1, self.slot_bytes)

    @property
    def surplus_bytes(self) -> int:
        """Bytes held above what is guaranteed; negative where less is held."""
        return self._account.held - self._account.guarantee

    async def take(self, step: int) -> Slot:
        """Return a slot of the current size for a step; waits until there is one.

        Cancelled, it has taken nothing.
        """
        account = self._account
        account.step = step
        while (slot := self._try_take()) is None:
            account.waiting = asyncio.get_running_loop().create_future()
            try:
                await account.waiting
            finally:
                account.waiting = None
        return slot

    def _try_take(self) -> Slot | None:
        if self._idle:
            return self._idle.pop()
        if self.num_slots >= self.max_slots:
            return None
        if not self._has_surplus and self._account.held + self.slot_bytes > self._account.guarantee:
            return None
        if not self._budget.try_hold(self._account, self.slot_bytes):
            return None
        try:
            slot = Slot(self.slot_bytes)
        except BaseException:  # the system has none
            self._budget.release(self._account, self.slot_bytes)
            raise
        self.num_slots += 1
        return slot

    def aim_for(self, max_slots: int) -> None:
        """Aim for another number of slots; those above it go as they come back."""
        if self._has_surplus:
            self.max_slots = max_slots
            self._wake()

    def give_back(self, slot: Slot) -> None:
        """Take back a slot that nothing reads or writes any more."""
        excess = self._account.held > self._account.guarantee and (
            self._budget.is_under_pressure or self.num_slots > self.max_slots
        )
        if slot.size != self.slot_bytes or excess:
            self._destroy(slot)
        else:
            self._idle.append(slot)
            self._wake()

    def _wake(self) -> None:
        waiting = self._account.waiting
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def shed(self) -> None:
        """Give idle memory above the guarantee back to the budget."""
        while self._idle and self._account.held > self._account.guarantee:
            self._destroy(self._idle.pop())

    def resize(self, slot_bytes: int, *, need: str) -> None:
        """Use slots of another size from now on; those of the old size go as they come back.

        Raises:
            BudgetError: If not even one slot of the new size can be guaranteed.
        """
        if slot_bytes == self.slot_bytes and self.num_guaranteed >= MIN_SLOTS:
            return
        try:
            self._budget.change_guarantee(self._account, MIN_SLOTS * slot_bytes, need=need)
        except BudgetError:
            # One slot does, without overlap of reading and sending.
            self._budget.change_guarantee(self._account, slot_bytes, need=need)
        if slot_bytes != self.slot_bytes:
            self.slot_bytes = slot_bytes
            while self._idle:
                self._destroy(self._idle.pop())

    def retire(self) -> None:
        """Promise nothing more: others may wait for what is still held."""
        self._budget.change_guarantee(self._account, 0, need="nothing")

    def close(self) -> None:
        """Return all memory; every slot must have been given back."""
        while self._idle:
            self._destroy(self._idle.pop())
        assert not self.num_slots, f"{self._account.name} closed with {self.num_slots} slots out"
        self._budget.close(self._account)

    def _destroy(self, slot: Slot) -> None:
        slot.close()
        self.num_slots -= 1
        self._budget.release(self._account, slot.size)
