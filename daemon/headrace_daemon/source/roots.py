"""The roots of a source: which reader an object has, where a source has several buckets or folders.

The name of an object begins with the label of its root then (`headrace.selections`), or with the
name of its stream where several are joined, so it says itself who reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .reader import Reader, Request


class Roots:
    """The readers of a source with several roots.

    Args:
        readers: By label.
    """

    def __init__(self, readers: Mapping[str, Reader | Roots]) -> None:
        self._readers = readers

    def divide(self, requests: Sequence[Request]) -> list[tuple[Reader, Sequence[Request]]]:
        """Return requests by the reader that they are for, with the names that it knows.

        Args:
            requests: With names as in the manifest; what they are divided into has their targets.
        """
        divided: dict[str, list[Request]] = {}
        for request in requests:
            label, _, name = request.name.partition("/")
            divided.setdefault(label, []).append(request._replace(name=name))
        found: list[tuple[Reader, Sequence[Request]]] = []
        for label, own in divided.items():
            reader = self._readers[label]
            found += reader.divide(own) if isinstance(reader, Roots) else [(reader, own)]
        return found

    async def read(self, requests: Sequence[Request]) -> None:
        """Fill the targets and places of all requests, one root after the other (see `Reader`)."""
        for reader, own in self.divide(requests):
            await reader.read(own)
