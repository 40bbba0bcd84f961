"""The node-wide byte budget: who may hold how much memory.

Each feed has an account with a guarantee that nobody can take away; the sum of all guarantees never
exceeds the budget, so that no feed can starve another.  What is left is surplus: accounts hold it
while it is free, the one that is furthest behind first, and shed it when a newcomer needs it
for its guarantee.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from headrace.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Callable

OPEN_DEADLINE_S = 10.0
"""How long an opening waits for others to shed their surplus.  They do so at once, except for
memory that a read or a socket is using at that moment."""

_LAST = sys.maxsize
"""The step of what is never urgent."""


class Account:
    """What one holder is promised and what it holds, in bytes."""

    __slots__ = ("guarantee", "held", "name", "num_feeds", "shed", "step", "waiting")

    def __init__(self, name: str, shed: Callable[[], None]) -> None:
        self.name = name
        self.guarantee = 0
        # Feeds that the guarantee is for, for messages.
        self.num_feeds = 1
        self.held = 0
        # The step that the holder wants memory for next: lower is more urgent.
        self.step = 0
        # Asks the holder to give back what it holds above its guarantee, as far as it can now.
        self.shed = shed
        # Set while the holder waits for memory.
        self.waiting: asyncio.Future[None] | None = None

    @property
    def charge(self) -> int:
        """Bytes of the budget that nobody else can have."""
        return max(self.guarantee, self.held)


class Budget:
    """The accounts of a daemon.  All methods but `open` decide synchronously.

    Args:
        total_bytes: The limit on the sum of what all accounts hold.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._accounts: list[Account] = []
        # Bytes that openings are waiting for; surplus is not handed out meanwhile.
        self._wanted = 0
        self._changed = asyncio.Event()

    @property
    def held_bytes(self) -> int:
        """Bytes that exist as memory now."""
        return sum(account.held for account in self._accounts)

    @property
    def guaranteed_bytes(self) -> int:
        """Bytes that are promised to accounts."""
        return sum(account.guarantee for account in self._accounts)

    @property
    def is_under_pressure(self) -> bool:
        """True while somebody waits for a guarantee that is still held as surplus by others."""
        return self._wanted > 0 or self._charged() > self.total_bytes

    def _charged(self) -> int:
        return sum(account.charge for account in self._accounts)

    async def open(
        self, name: str, guarantee: int, *, shed: Callable[[], None], need: str
    ) -> Account:
        """Open an account with a guarantee.

        Cancelled or failed, it leaves nothing behind.

        Args:
            name: For messages.
            guarantee: Bytes that the account can always hold.
            shed: Called when others need the surplus of this account.
            need: How the guarantee comes about, for the refusal.

        Raises:
            BudgetError: If the guarantees of all accounts would exceed the budget.
        """
        self._admit(guarantee, need)
        account = Account(name, shed)
        account.guarantee = guarantee
        self._wanted += guarantee
        try:
            async with asyncio.timeout(OPEN_DEADLINE_S):
                while self._charged() + guarantee > self.total_bytes:
                    self._shed()
                    if self._charged() + guarantee <= self.total_bytes:
                        break
                    self._changed.clear()
                    await self._changed.wait()
                    self._admit(guarantee, need)
        except TimeoutError:
            raise BudgetError(
                f"{need}; others hold {self._charged()} of the {self.total_bytes} bytes of "
                f"[daemon] memory and did not shed their surplus within {OPEN_DEADLINE_S:g} s: "
                "try again"
            ) from None
        else:
            self._accounts.append(account)
        finally:
            self._wanted -= guarantee
            self._wake()  # surplus is handed out again, and other openings must look anew
        return account

    def open_surplus(self, name: str, *, shed: Callable[[], None]) -> Account:
        """Open an account without a guarantee, which sheds before all others.

        Args:
            name: For messages.
            shed: Called when others need what it holds.
        """
        account = Account(name, shed)
        account.num_feeds, account.step = 0, _LAST
        self._accounts.append(account)
        return account

    def split(
        self,
        source: Account,
        share: int,
        guarantee: int,
        *,
        name: str,
        shed: Callable[[], None],
        need: str,
    ) -> Account:
        """Open an account with a guarantee that takes the place of a part of another one.

        Args:
            source: Holds nothing; its guarantee is reduced.
            share: Bytes to take from it.
            guarantee: Bytes that the new account can always hold.
            name: For messages.
            shed: Called when others need the surplus of the new account.
            need: How the guarantee comes about, for the refusal.

        Raises:
            BudgetError: If more than the share is needed and there is not so much; then nothing
                has changed.
        """
        source.guarantee -= share
        try:
            self._admit(guarantee, need)
        except BudgetError:
            source.guarantee += share
            raise
        account = Account(name, shed)
        account.guarantee = guarantee
        self._accounts.append(account)
        if self._charged() > self.total_bytes:
            self._shed()
        self._wake()
        return account

    def _admit(self, guarantee: int, need: str) -> None:
        promised = self.guaranteed_bytes
        if promised + guarantee > self.total_bytes:
            num_feeds = sum(account.num_feeds for account in self._accounts)
            raise BudgetError(
                f"{need}; the budget is {self.total_bytes} bytes ([daemon] memory), of which "
                f"{promised} are promised to {num_feeds} open feed(s) and "
                f"{self.total_bytes - promised} are left: raise memory to at least "
                f"{promised + guarantee} bytes, or use a smaller batch",
                retryable=guarantee <= self.total_bytes,  # or no end of other feeds would help
            )

    def change_guarantee(self, account: Account, guarantee: int, *, need: str) -> None:
        """Promise an account another amount, and make others shed what it needs.

        Raises:
            BudgetError: If the guarantees of all accounts would exceed the budget.
        """
        before, account.guarantee = account.guarantee, 0
        try:
            self._admit(guarantee, need)
        except BudgetError:
            account.guarantee = before
            raise
        account.guarantee = guarantee
        if self._charged() > self.total_bytes:
            self._shed()
        self._wake()

    def try_hold(self, account: Account, num_bytes: int) -> bool:
        """Let an account hold more bytes if they are there; say whether."""
        held = account.held + num_bytes
        if held <= account.guarantee:
            fits = self.held_bytes + num_bytes <= self.total_bytes
        else:
            more = max(account.guarantee, held) - account.charge
            fits = not self.is_under_pressure and self._charged() + more <= self.total_bytes
        if fits:
            account.held = held
        return fits

    def release(self, account: Account, num_bytes: int) -> None:
        """Take back bytes that an account held."""
        account.held -= num_bytes
        assert account.held >= 0, f"{account.name} released more than it held"
        self._wake()

    def close(self, account: Account) -> None:
        """End an account; it must hold nothing."""
        assert not account.held, f"{account.name} still holds {account.held} bytes"
        self._accounts.remove(account)
        self._wake()

    def _shed(self) -> None:
        """Ask for surplus, of the account that is furthest ahead first, until there is enough."""
        for account in sorted(self._accounts, key=lambda account: -account.step):
            if self._charged() + self._wanted <= self.total_bytes:
                return
            if account.held > account.guarantee:
                account.shed()

    def _wake(self) -> None:
        """Let those who wait try again, the most urgent first."""
        self._changed.set()
        waiting = [account for account in self._accounts if account.waiting is not None]
        for account in sorted(waiting, key=lambda account: account.step):
            future, account.waiting = account.waiting, None
            if future is not None and not future.done():
                future.set_result(None)
