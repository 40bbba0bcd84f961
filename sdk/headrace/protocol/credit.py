"""Credit: how many batches a daemon may still send.

Grants are totals since the feed was opened, not deltas, so that nothing depends on how many of
them were lost in a reconnect.
"""

from __future__ import annotations

from typing import Final

MAX_CREDIT: Final = 1 << 16
"""Batches that may be outstanding."""


class CreditAccount:
    """Batches granted and batches sent within one feed; never negative."""

    __slots__ = ("granted", "spent")

    def __init__(self) -> None:
        self.granted = 0
        self.spent = 0

    @property
    def available(self) -> int:
        """Batches that may be sent now."""
        return self.granted - self.spent

    def grant(self, total: int) -> str | None:
        """Take a new total; return what is wrong with it, or None."""
        if total < self.granted:
            return f"credit total={total} is below the {self.granted} granted before"
        if total - self.spent > MAX_CREDIT:
            still_open = total - self.spent
            return f"credit total={total} leaves {still_open} batches open, above {MAX_CREDIT}"
        self.granted = total
        return None

    def spend(self) -> bool:
        """Account for one batch; return False where none is available."""
        if not self.available:
            return False
        self.spent += 1
        return True
