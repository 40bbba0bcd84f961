"""The one seam through which bytes of samples enter the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class ReadRequest(NamedTuple):
    """A whole object and the memory it goes into."""

    name: str
    """Name in the manifest."""

    target: memoryview
    """Writable, exactly as long as the manifest says the object is."""


class Reader(Protocol):
    """Reads objects of one source."""

    async def read(self, requests: Sequence[ReadRequest]) -> None:
        """Fill the targets of all requests.

        When the call is over, also by an error or a cancellation, nothing writes into a target
        any more: the caller may hand the memory to somebody else.

        Raises:
            SourceError: Naming the object that is missing, changed or unreadable.
        """
        ...
