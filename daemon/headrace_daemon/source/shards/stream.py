"""Streams the members of a tar that may be compressed: bytes in, whole members out.

Nothing is read here.  Memory is bounded, whatever the shard says about itself: a member that is
larger than the limit is refused by its header, before it is inflated; what is inflated stays in a
proportion to what was given, so a bomb is refused early; one step inflates 256 KiB at most.

The order is that of the archive.  What is wrong with a shard is raised behind the members that
stand before it, and a shard is read to its end, since the proof that it came whole stands there.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from ...errors import ShardError, ShardRefusedError
from .inflate import Gzip, Inflater, Lz4, Plain
from .policy import DEFAULT_POLICY
from .walk import TarWalker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .policy import ShardPolicy

STEP_BYTES: Final = 256 << 10
"""What one step inflates at most: about 1 ms, more than should be spent on the loop."""

FREE_BYTES: Final = 64 << 20
"""What a shard may inflate to in any case."""

INFLATERS: Final[Mapping[str, Callable[[str], Inflater]]] = {
    "tar": Plain,
    "tar.gz": Gzip,
    "tar.lz4": Lz4,
}


class StreamedMember(NamedTuple):
    """A member and what it holds."""

    name: str
    data: bytes | bytearray


class TarStream:
    """Streams one tar.

    Args:
        shard: Its name, for errors.
        kind: ``"tar"``, ``"tar.gz"`` or ``"tar.lz4"``.
        max_member_bytes: The largest member that is taken.
        max_ratio: How much larger than the shard its content may be, `FREE_BYTES` aside.
        policy: What is refused.

    Raises:
        ExtraMissingError: If the package for this kind is not installed.
    """

    def __init__(
        self,
        shard: str,
        kind: str,
        *,
        max_member_bytes: int,
        max_ratio: int = 250,
        policy: ShardPolicy = DEFAULT_POLICY,
    ) -> None:
        self._shard = shard
        self._max_member_bytes = max_member_bytes
        self._max_ratio = max_ratio
        self._inflater = INFLATERS[kind](shard)
        self._walker = TarWalker(shard, None, policy)
        self._num_given = 0
        self._num_inflated = 0
        self._has_all = False
        self.is_over = False
        """All members were returned, and the shard is whole."""
        # The member that has begun: its name, what is here of it, and its size.
        self._begun: tuple[str, bytearray, int] | None = None
        self._error: ShardError | None = None

    @property
    def begun_bytes(self) -> int:
        """Bytes that the member which has begun takes up, or will."""
        return 0 if self._begun is None else self._begun[2]

    @property
    def needs_input(self) -> bool:
        """Whether the next step needs more of the shard, or to know that there is none."""
        return self._inflater.needs_input and not self._has_all and self._error is None

    def feed(self, data: bytes) -> None:
        """Give the next bytes of the shard, when they are needed; the stream keeps them."""
        assert self.needs_input
        self._num_given += len(data)
        self._inflater.feed(data)

    def finish(self) -> None:
        """Say that there are no more."""
        self._has_all = True

    def step(self) -> list[StreamedMember]:
        """Return the members that the next `STEP_BYTES` complete, in their order; may be none.

        Raises:
            ShardCorruptError: If the shard is damaged or ends early; all members before that were
                returned by the steps before.
            ShardRefusedError: If it has what is refused, or more than the limits allow.
        """
        ready: deque[StreamedMember] = deque()
        if self._error is None and not self.is_over:
            try:
                self._step(ready)
            except ShardError as error:
                self._error = error
        if self._error is not None and not ready:
            raise self._error
        return list(ready)

    def _step(self, ready: deque[StreamedMember]) -> None:
        data = self._inflater.read(STEP_BYTES)
        if not data:
            if self._has_all and self._inflater.needs_input:
                self._inflater.finish()
                self._walker.finish()
                self.is_over = True
            return
        start = self._num_inflated
        self._num_inflated += len(data)
        self._continue(data, ready)
        try:
            self._walker.feed(start, data)
        finally:
            for name, first, size in self._walker.take().listed():
                self._check_size(name, first, size)
                part = data[first - start : first - start + size]
                if len(part) == size:
                    ready.append(StreamedMember(name, part))
                else:
                    self._begun = (name, bytearray(part), size)
        most = self._num_given * self._max_ratio + FREE_BYTES
        if self._num_inflated > most:
            raise ShardRefusedError(
                self._shard,
                f"{self._num_given} bytes were inflated to more than {most}, which is the limit: "
                "such a shard is taken for a bomb; store it as a plain .tar",
                offset=start,
            )

    def _continue(self, data: bytes, ready: deque[StreamedMember]) -> None:
        """Complete the member that has begun."""
        if self._begun is None:
            return
        name, content, size = self._begun
        content += memoryview(data)[: size - len(content)]
        if len(content) == size:
            ready.append(StreamedMember(name, content))
            self._begun = None

    def _check_size(self, name: str, start: int, size: int) -> None:
        check_member_size(self._shard, name, size, self._max_member_bytes, start)


def check_member_size(shard: str, name: str, size: int, limit: int, offset: int) -> None:
    """Check the size of a member against the limit.

    Raises:
        ShardRefusedError: If it is larger.
    """
    if size > limit:
        raise ShardRefusedError(
            shard,
            f"it has {size} bytes, max_sample_bytes is {limit}: raise that, or cut the member",
            offset=offset,
            member=name,
        )
