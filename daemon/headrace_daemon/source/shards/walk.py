"""Walks over a tar: says which range of it to read next, is given bytes, and finds the members.

No bytes are read here, and any split of them gives the same members.  All that is read of an
archive whose members are large are the headers; where they are small, large pieces are asked for.
It is the same walker for an archive that arrives as a stream: bytes that are not needed are let go.

Invariant: a member is found only when its whole header is known to be sound and, if the size of the
shard is known, its data lie within the shard.  The archive ends at a block of zeros, whatever
follows it, or exactly where a member with its padding ends, as for Python's `tarfile`.  Anything
else is an error: unlike there, nothing that is damaged passes for the end.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from ...errors import ShardCorruptError, ShardRefusedError
from . import tar
from .policy import DEFAULT_POLICY
from .tar import BLOCK, ZEROS, HeaderError, PaxFacts

if TYPE_CHECKING:
    from .policy import ShardPolicy

SPARING_STRIDE: Final = 16 << 10
"""From this many bytes between headers on, headers are read one by one; below, all is read: a
request costs about as much as 16 KiB of data."""

FIRST_BYTES: Final = 64 << 10
"""What is asked for first."""

MAX_BYTES: Final = 1 << 20
"""The most that is asked for at once, but for an extended header."""

CHUNK_HEADERS: Final = 256
"""About as many headers are asked for at once: they are read in one turn of the loop, in 1 ms."""

MAX_SHARE: Final = 0.015
"""Of the bytes of a shard with large members; below, more than one header at a time."""

_WINDOW: Final = 64
"""Headers whose mean stride says whether members are large."""

_MAX_SIZE: Final = 1 << 62
_SHOWN: Final = 200


class Wanted(NamedTuple):
    """A range of a shard that a walker wants."""

    start: int
    stop: int


class Found(NamedTuple):
    """Members in the order of the archive."""

    names: bytearray
    """One after the other, UTF-8."""

    ends: array[int]
    """Where each name ends, u64[n]."""

    starts: array[int]
    """Where the data of each begin in the archive, u64[n]."""

    sizes: array[int]
    """Bytes of each, i64[n]."""

    def listed(self) -> list[tuple[str, int, int]]:
        """Return (name, start, size) of each."""
        firsts = [0, *self.ends[:-1]] if self.ends else []
        return [
            (self.names[first:end].decode(), start, size)
            for first, end, start, size in zip(
                firsts, self.ends, self.starts, self.sizes, strict=True
            )
        ]


def _none() -> Found:
    return Found(bytearray(), array("Q"), array("Q"), array("q"))


class TarWalker:
    """Finds the members of one tar.

    Args:
        shard: Its name, for errors.
        size: Its bytes; None if that shows only at its end (`finish`).
        policy: What is refused.

    Raises:
        ShardCorruptError: If it is too small to be a tar.
    """

    def __init__(self, shard: str, size: int | None, policy: ShardPolicy = DEFAULT_POLICY) -> None:
        self._shard = shard
        self._size = size
        self._policy = policy
        self._found = _none()
        self.num_members = 0
        """Members found so far."""
        self.bytes_given = 0
        """Bytes given so far."""
        self.is_over = False
        """The end of the archive was met."""
        # Where the next header, with what belongs to it, begins; how much of it is needed to go on;
        # what is here of it; where the bytes given so far end.
        self._at = 0
        self._need = BLOCK
        self._carry = bytearray()
        self._end = 0
        self._last = b""  # the name of the last member
        # What came before the header of a member and is about it.
        self._long_name: bytes | None = None
        self._has_long_link = False
        self._pax: PaxFacts | None = None
        # How much to ask for.
        self._span = FIRST_BYTES
        self._asked = self._asked_stop = 0
        self._stride = 0.0
        self._num_strides = 0
        if size is not None and size < BLOCK:
            self._fail(_too_small(size))

    @property
    def wanted(self) -> Wanted | None:
        """What to read next of an archive whose size is known; None when all members are found.

        It may be given in parts, and together with what follows it.
        """
        if self.is_over:
            return None
        assert self._size is not None
        start = self._at + len(self._carry)
        stop = min(max(self._at + self._need, start + self._ask()), self._size)
        self._asked, self._asked_stop = stop - start, stop
        return Wanted(start, stop)

    def take(self) -> Found:
        """Return the members that were found since this was last called; the caller owns them."""
        found, self._found = self._found, _none()
        return found

    def feed(self, start: int, data: bytes | bytearray | memoryview) -> None:
        """Give bytes of the archive.

        Args:
            start: Where they begin: where those given before end, or further if nothing that is
                wanted lies between.
            data: Borrowed for the call.

        Raises:
            ShardCorruptError: If the archive is damaged, or ends before it should.
            ShardRefusedError: If it has what the policy refuses.
        """
        view = memoryview(data)
        self._end = max(self._end, start + len(view))
        self.bytes_given += len(view)
        while not self.is_over:
            due = self._at + len(self._carry)
            rest = start + len(view) - due
            if rest <= 0:
                break
            if start > due:
                raise ValueError(f"bytes {due} to {start} of {self._shard} are missing")
            if not self._carry and rest >= self._need:
                self._advance(view[due - start :])
                continue
            self._carry += view[due - start : due - start + self._need - len(self._carry)]
            if len(self._carry) < self._need:
                break
            whole, before = bytes(self._carry), self._at
            self._carry = bytearray()
            self._advance(whole)
            if self._at == before and not self.is_over:
                self._carry += whole  # its header says that more belongs to it
        if self._asked_stop and self._end >= self._asked_stop:
            is_near = self._at - self._asked_stop <= self._asked
            self._span = min(self._span * 2, MAX_BYTES) if is_near else max(self._span // 2, BLOCK)
            self._asked_stop = 0

    def finish(self) -> None:
        """Say that the archive ends where the bytes given so far end.

        Raises:
            ShardCorruptError: If that is too early.
        """
        if self.is_over:
            return
        if not self._at:
            self._fail(_too_small(self._end))
        if self._end < self._at:
            missing = self._at - self._end
            self._fail(_ends_early(f"{missing} bytes before the end of this member"), self._last)
        if self._end > self._at:
            self._fail(_ends_early("within a header"))
        try:
            self._end_at_member()
        except HeaderError as error:
            self._fail(str(error), cause=error)

    def _ask(self) -> int:
        """Return how many bytes to ask for."""
        if not self._num_strides:
            return FIRST_BYTES
        if self._stride < SPARING_STRIDE:
            return min(self._span, max(FIRST_BYTES, int(CHUNK_HEADERS * self._stride)))
        allowed = int(MAX_SHARE * self._at) - self.bytes_given
        return max(min(self._span, allowed) // BLOCK * BLOCK, BLOCK)

    def _advance(self, view: memoryview | bytes) -> None:
        """Read the headers that are whole in a view, which begins with the next one."""
        base = at = self._at
        end = base + len(view)
        need = BLOCK
        limit = _MAX_SIZE if self._size is None else self._size
        count = 0
        name = b""
        try:
            while at + need <= end:
                block = bytes(view[at - base : at - base + BLOCK])
                if not block[0] and block == ZEROS:
                    self._end_at_member()
                    break
                tar.check_sum(block)
                kind = block[156]
                size = tar.size_of(block)
                name = b""
                if kind in tar.EXTENDED:
                    need = BLOCK + self._extended_bytes(kind, size)
                    if at + need > limit:
                        raise HeaderError(self._beyond(size, limit - at - BLOCK))
                    if at + need > end:
                        break
                    self._extend(kind, bytes(view[at - base + BLOCK : at - base + BLOCK + size]))
                    at += need
                    need = BLOCK
                else:
                    if self._pax is None:
                        name = tar.name_of(block) if self._long_name is None else self._long_name
                    else:
                        name = self._long_name or self._pax.path or tar.name_of(block)
                        if self._pax.size is not None:
                            size = self._pax.size
                    if kind in tar.NO_DATA or (kind == tar.OLD_REGULAR and name.endswith(b"/")):
                        self._pass(kind)
                        size = 0
                    elif size < 0:
                        raise HeaderError(
                            f"its size is {size}: the archive is damaged here, or made to "
                            "deceive; restore or make it anew"
                        )
                    start = at + BLOCK
                    stop = start + size + -size % BLOCK
                    if stop > limit:
                        raise HeaderError(self._beyond(size, limit - start))
                    if kind == tar.REGULAR or self._is_member(kind, name):
                        self._add(name, start, size)
                    self._long_name = self._pax = None
                    self._has_long_link = False
                    at = stop
                count += 1
                if at == limit:
                    self._end_at_member()
                    break
                if at + BLOCK > limit:
                    name = b""
                    raise HeaderError(_ends_early("within a header"))
        except HeaderError as error:
            other = None
            if not at:
                other = tar.explain_no_tar(block, self._shard, is_unpacked=self._size is None)
            if other is not None:
                self._fail(other, at=at, cause=error)
            self._fail(str(error), name, at=at, cause=error, is_refused=error.is_refused)
        self._at, self._need = at, need
        if name:
            self._last = name
        if count:
            self._num_strides = min(self._num_strides + count, _WINDOW)
            share = min(count / self._num_strides, 1.0)
            self._stride += ((at - base) / count - self._stride) * share

    def _extended_bytes(self, kind: int, size: int) -> int:
        """Return the bytes that an extended header is followed by, with padding."""
        is_long = kind in (tar.LONG_NAME, tar.LONG_LINK)
        # A long name ends with a zero byte.
        most = self._policy.max_name_bytes + 1 if is_long else self._policy.max_pax_bytes
        if not 0 <= size <= most:
            what = "long name" if is_long else "extended header"
            raise HeaderError(
                f"a {what} has {size} bytes, the limit is {most}: "
                "make the shard anew with shorter names and without attributes of files",
                is_refused=size >= 0,
            )
        return size + -size % BLOCK

    def _extend(self, kind: int, data: bytes) -> None:
        """Note what an extended header says."""
        if kind == tar.LONG_LINK:
            is_second, self._has_long_link = self._has_long_link, True
        elif kind == tar.LONG_NAME:
            is_second, self._long_name = self._long_name is not None, tar.until_nul(data)
        else:
            facts = tar.pax_facts(data, self._policy.max_pax_records)
            if kind == tar.PAX_GLOBAL:
                if facts != PaxFacts():
                    raise HeaderError(
                        "a global header gives a name, a size or holes to all members behind it: "
                        "make the shard anew with headers of their own",
                        is_refused=True,
                    )
                return
            is_second, self._pax = self._pax is not None, facts
        if is_second:
            raise HeaderError(
                "a second extended header of the same kind precedes one member, so its name is "
                "uncertain: the archive is damaged here, so restore or make it anew"
            )

    def _pass(self, kind: int) -> None:
        """Pass what has no data."""
        if kind in tar.LINKS and self._policy.links == "error":
            what = "hard" if kind == tar.HARD_LINK else "symbolic"
            raise HeaderError(
                f"it is a {what} link, and links='error': store the file itself, or leave links "
                "out with links='skip'",
                is_refused=True,
            )

    def _is_member(self, kind: int, name: bytes) -> bool:
        """Return whether a kind is a file: POSIX takes for one what it does not know."""
        if kind == tar.OLD_REGULAR:
            return not name.endswith(b"/")
        if kind in (tar.SPARSE, tar.MULTI_VOLUME):
            what = "sparse" if kind == tar.SPARSE else "part of a file that begins elsewhere"
            raise HeaderError(f"it is {what}: {_STORE_WHOLE}", is_refused=True)
        return kind not in tar.NO_DATA and kind not in tar.SKIPPED

    def _add(self, name: bytes, start: int, size: int) -> None:
        """Note a member."""
        policy = self._policy
        if self._pax is not None and self._pax.is_sparse:
            raise HeaderError(f"it is sparse: {_STORE_WHOLE}", is_refused=True)
        check_name(name, policy)
        names, ends, starts, sizes = self._found
        names += name
        ends.append(len(names))
        starts.append(start)
        sizes.append(size)
        self.num_members += 1
        if self.num_members > policy.max_members or len(names) > policy.max_names_bytes:
            raise HeaderError(
                f"the shard has more than {policy.max_members} members, or more than "
                f"{policy.max_names_bytes} bytes of names, which is the limit: cut it into several",
                is_refused=True,
            )

    def _end_at_member(self) -> None:
        """End, if nothing is owed to what was read."""
        if self._pax is not None or self._long_name is not None or self._has_long_link:
            raise HeaderError(_ends_early("behind an extended header"))
        self.is_over = True

    def _beyond(self, size: int, left: int) -> str:
        return _ends_early(f"the header says {size} bytes, {max(left, 0)} are left")

    def _fail(
        self,
        message: str,
        member: bytes = b"",
        *,
        at: int | None = None,
        cause: Exception | None = None,
        is_refused: bool = False,
    ) -> NoReturn:
        kind = ShardRefusedError if is_refused else ShardCorruptError
        offset = self._at if at is None else at
        raise kind(self._shard, message, offset=offset, member=shown(member)) from cause


_STORE_WHOLE: Final = "store it as a whole file"


def check_name(name: bytes, policy: ShardPolicy) -> None:
    """Check the name of a member.

    Raises:
        HeaderError: If it is empty, too long, not UTF-8, or leads out of the shard.
    """
    if not name.isascii():
        try:
            name.decode()
        except UnicodeDecodeError:
            raise HeaderError(
                "its name is not UTF-8: make the shard anew with such names", is_refused=True
            ) from None
    if not name or b"\0" in name:
        raise HeaderError(
            "its name is empty, or has a zero byte in it: the archive is damaged here, so restore "
            "or make it anew"
        )
    if len(name) > policy.max_name_bytes:
        raise HeaderError(
            f"its name has {len(name)} bytes, the limit is {policy.max_name_bytes}: shorten it",
            is_refused=True,
        )
    if name[0] == 0x2F or (b".." in name and b".." in name.split(b"/")):
        raise HeaderError(
            "its name is absolute or leads upwards: make the shard anew with names below its top",
            is_refused=True,
        )


def shown(name: bytes) -> str:
    """Return the name of a member as it is shown in messages."""
    return name[:_SHOWN].decode(errors="replace") + ("…" if len(name) > _SHOWN else "")


def _too_small(size: int) -> str:
    return (
        f"it has {size} bytes, but even a tar without members has at least {BLOCK}: store it again"
    )


def _ends_early(where: str) -> str:
    return f"the archive ends too early ({where}): store it again as a whole"
