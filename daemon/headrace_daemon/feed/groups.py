"""Groups: the feeds of one run on this node, which get their memory together or not at all.

A run of R ranks with W DataLoader workers each opens R·W feeds.  If they were admitted one by one,
the last ones might be refused while the first ones already wait for them in a collective.  So the
first one reserves the memory of all, and each takes its share of that when it is opened.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from headrace.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from ..fetch.budget import Account, Budget

REFUSAL_S: Final = 5.0
"""How long a group that was refused stays refused, seconds: all of its ranks have to hear the same,
also if memory comes free between two of them."""


@dataclass(slots=True, eq=False)
class Group:
    """The memory of a run, as far as none of its feeds has it."""

    key: Hashable
    account: Account
    share_bytes: int
    num_free: int
    num_open: int = 0
    # Ends a reservation that no feed makes use of; None while one does.
    lapse: asyncio.TimerHandle | None = None


class Groups:
    """All groups of the daemon.

    Args:
        budget: The memory of the node.
        lapse_s: How long a reservation waits for its first feed, seconds.
    """

    def __init__(self, budget: Budget, lapse_s: float) -> None:
        self._budget = budget
        self._lapse_s = lapse_s
        self._groups: dict[Hashable, Group] = {}
        self._refused: dict[Hashable, BudgetError] = {}
        # One reservation at a time: two members of a group may come at once.
        self._lock = asyncio.Lock()

    async def admit(
        self, key: Hashable, *, num_members: int, share_bytes: int, name: str, need: str
    ) -> Group:
        """Reserve the memory of a group, unless that has been done.

        Cancelled, it has reserved nothing or all.

        Args:
            key: What the members have in common.
            num_members: Feeds of the group on this node.
            share_bytes: Guarantee of one of them.
            name: For messages.
            need: How the sum comes about, for the refusal.

        Raises:
            BudgetError: If it does not fit, for this and all other members of the group.
        """
        async with self._lock:
            if key in self._groups:
                return self._groups[key]
            refusal = self._refused.get(key)
            if refusal is not None:
                raise BudgetError(str(refusal), retryable=refusal.retryable)
            try:
                account = await self._budget.open(
                    name, num_members * share_bytes, shed=lambda: None, need=need
                )
            except BudgetError as error:
                self._refused[key] = error
                loop = asyncio.get_running_loop()
                loop.call_later(REFUSAL_S, self._refused.pop, key, None)
                raise
            account.num_feeds = num_members
            group = Group(key, account, share_bytes, num_members)
            self._groups[key] = group
            self._let_lapse(group)
            return group

    def _let_lapse(self, group: Group) -> None:
        loop = asyncio.get_running_loop()
        group.lapse = loop.call_later(self._lapse_s, self._end, group)

    def take(
        self, group: Group, guarantee: int, *, name: str, shed: Callable[[], None], need: str
    ) -> Account | None:
        """Return the account of a feed with one of the group's shares; None if none is left.

        Raises:
            BudgetError: If the feed needs more than a share, and that is not free.
        """
        if not group.num_free:
            return None
        account = self._budget.split(
            group.account, group.share_bytes, guarantee, name=name, shed=shed, need=need
        )
        group.num_free -= 1
        group.num_open += 1
        group.account.num_feeds = group.num_free
        if group.lapse is not None:
            group.lapse.cancel()
            group.lapse = None
        return account

    def give_back(self, group: Group) -> None:
        """Take a share back; its feed promises nothing more.  With the last one the group ends."""
        group.num_open -= 1
        if not group.num_open:
            self._end(group)
            return
        guarantee = group.account.guarantee + group.share_bytes
        try:
            self._budget.change_guarantee(group.account, guarantee, need="nothing")
        except BudgetError:
            return  # the feed had grown into memory that others have meanwhile: one share less
        group.num_free += 1
        group.account.num_feeds = group.num_free

    def _end(self, group: Group) -> None:
        if self._groups.get(group.key) is group:
            del self._groups[group.key]
            self._budget.close(group.account)

    def close(self) -> None:
        """End all groups that wait for a feed."""
        for group in list(self._groups.values()):
            if group.lapse is not None:
                group.lapse.cancel()
                self._end(group)
