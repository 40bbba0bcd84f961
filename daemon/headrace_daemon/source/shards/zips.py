"""Members of a zip: its directory is its index, and each member is read by a range of its own.

No bytes are read here.  The directory stands at the end of the file; `ZipWalker` says which part of
it to read, and Python's `zipfile` reads it, zip64 and old encodings of names included.  A member is
had by its range, which begins with a header of its own: `unpack` takes the range and returns what
the member holds, stored or deflated, with its size and CRC checked.  So an index of a zip is not
kept: one read of its end gives it.

The order of the members is that of the directory, as programs list it.
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from ...errors import ShardCorruptError, ShardRefusedError
from .policy import DEFAULT_POLICY
from .stream import StreamedMember, check_member_size
from .tar import HeaderError
from .walk import Wanted, check_name, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .policy import ShardPolicy

TAIL_BYTES: Final = 66 << 10
"""What is read first: the longest comment that a zip may end with, and what stands before it."""

MAX_DIRECTORY_BYTES: Final = 32 << 20
"""Of the directory, which is read as a whole: some 300,000 members."""

ENTRY_BYTES: Final = 640
"""What an entry of the directory takes up while members are found, its bytes left out."""

MEMBER_BYTES: Final = 288
"""What a member takes up from then on, its name left out."""

_ENTRY_MAGIC: Final = b"PK\x01\x02"
_LOCAL: Final = struct.Struct("<4sHHHHHIIIHH")
_LOCAL_MAGIC: Final = b"PK\x03\x04"
_MAX_EXTRA: Final = 0xFFFF
_ENCRYPTED: Final = 0x1 | 0x40
_UNIX: Final = 3
_SLACK: Final = 1024
_DAMAGED: Final = "store it again as a whole"


class ZipMember(NamedTuple):
    """A member, and how it is had."""

    name: str

    start: int
    """Where the range that it is read by begins: its header."""

    stop: int
    """Where that range ends; the end of the member may be before it."""

    packed_bytes: int
    """Bytes of it in the shard."""

    size: int
    """Bytes of it when it is unpacked."""

    crc: int
    is_deflated: bool


class _BeyondError(Exception):
    """Something is read that is not here.

    Attributes:
        start: Where it begins.
    """

    def __init__(self, start: int) -> None:
        super().__init__(start)
        self.start = start


class _Tail(io.RawIOBase):
    """The end of a file, as if it were the file."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data = data
        self._size = size
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("before the beginning")
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        first = self._at - (self._size - len(self._data))
        if first < 0:
            raise _BeyondError(self._at)
        piece = self._data[first:] if size < 0 else self._data[first : first + size]
        self._at += len(piece)
        return piece


class ZipWalker:
    """Finds the members of one zip.  Reading a directory takes long: not for an event loop.

    Args:
        shard: Its name, for errors.
        size: Its bytes.
        max_member_bytes: The largest member that is taken.
        policy: What is refused.
    """

    def __init__(
        self,
        shard: str,
        size: int,
        *,
        max_member_bytes: int,
        policy: ShardPolicy = DEFAULT_POLICY,
    ) -> None:
        self._shard = shard
        self._size = size
        self._max_member_bytes = max_member_bytes
        self._policy = policy
        self._tail = b""
        # Entries that the directory may have, which is known before anything is made of them.
        self._num_entries = 0
        self.members: list[ZipMember] = []
        """In the order of the directory, when nothing is wanted any more."""
        self.held_bytes = 0
        """What is held between two calls."""
        self.wanted: Wanted | None = Wanted(max(size - TAIL_BYTES, 0), size)
        """What to read next; None when all members are found."""
        if not size:
            self._fail(f"it is empty: {_DAMAGED}")

    @property
    def finding_bytes(self) -> int:
        """What `find` takes up: the directory, a copy, the names, and objects for each entry."""
        return 3 * len(self._tail) + self._num_entries * ENTRY_BYTES

    def feed(self, data: bytes) -> None:
        """Give what was wanted, all of it; `find` comes next."""
        assert self.wanted is not None
        assert len(data) == self.wanted.stop - self.wanted.start
        self._tail = data + self._tail
        self.held_bytes = len(self._tail)
        # The end of a zip says how many there are, but each has its mark, whatever that says.
        self._num_entries = self._tail.count(_ENTRY_MAGIC)

    def find(self) -> None:
        """Find the members in what was given, or what else is wanted.

        Raises:
            ShardCorruptError: If the directory is damaged.
            ShardRefusedError: If the shard has what is refused.
        """
        if self._num_entries > self._policy.max_members:
            self._fail(
                f"its directory has {self._num_entries} entries, the limit is "
                f"{self._policy.max_members}: cut it into several",
                is_refused=True,
            )
        here = self._size - len(self._tail)
        try:
            with zipfile.ZipFile(_Tail(self._tail, self._size)) as archive:
                found = archive.infolist()
                end = archive.start_dir
        except _BeyondError as beyond:
            # Of what is read twice, the first time tells where the rest begins.
            if self._size - beyond.start > MAX_DIRECTORY_BYTES:
                self._fail(
                    f"its directory has {self._size - beyond.start} bytes, the limit is "
                    f"{MAX_DIRECTORY_BYTES}: cut it into several",
                    is_refused=True,
                )
            self.wanted = Wanted(beyond.start, here)
            return
        except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError) as error:
            self._fail(f"it is no zip, or its directory is damaged ({error}): {_DAMAGED}", error)
        except (ValueError, OSError, struct.error, OverflowError, IndexError) as error:
            self._fail(f"its directory is damaged ({error}): {_DAMAGED}", error)
        self.wanted = None
        self.members = self._members(found, end)
        # Names take up about what they do in the directory.
        self.held_bytes = len(self._tail) + len(self.members) * MEMBER_BYTES
        self._tail = b""

    def _members(self, found: list[zipfile.ZipInfo], end: int) -> list[ZipMember]:
        members = []
        # Where each ends at the latest: it is told only by its own header how long that is.
        offsets = sorted({info.header_offset for info in found})
        following = dict(pairwise([*offsets, end]))
        if len(offsets) < len(found):
            self._fail("two of its members begin at the same place, so it is made to deceive")
        for info in found:
            name = info.filename.encode("utf-8", "surrogateescape")
            start, stop = info.header_offset, following[info.header_offset]
            least = start + _LOCAL.size + info.compress_size
            if start < 0 or least > stop:
                self._fail(
                    f"it overlaps another one, or the directory: {_DAMAGED}", at=start, member=name
                )
            if info.filename.endswith("/") or not self._is_file(info, name):
                continue
            is_deflated = info.compress_type == zipfile.ZIP_DEFLATED
            if info.flag_bits & _ENCRYPTED or not (
                is_deflated or info.compress_type == zipfile.ZIP_STORED
            ):
                self._fail(
                    "it is encrypted, or packed in another way than deflated or stored: pack the "
                    "shard anew",
                    at=start,
                    member=name,
                    is_refused=True,
                )
            check_member_size(
                self._shard, shown(name), info.file_size, self._max_member_bytes, start
            )
            most = info.file_size + (info.file_size // 8 + _SLACK) * is_deflated
            if info.compress_size > most or (not is_deflated and info.compress_size < most):
                self._fail(
                    f"{info.compress_size} bytes are said to become {info.file_size}: {_DAMAGED}",
                    at=start,
                    member=name,
                )
            try:
                check_name(name, self._policy)
            except HeaderError as error:
                self._fail(str(error), error, at=start, member=name, is_refused=error.is_refused)
            # The name is as long there as here; what else there is may be longer.
            longest = least + len(info.orig_filename.encode("utf-8", "replace")) + _MAX_EXTRA
            members.append(
                ZipMember(
                    name.decode(),
                    start,
                    min(stop, longest),
                    info.compress_size,
                    info.file_size,
                    info.CRC,
                    is_deflated,
                )
            )
        return members

    def _is_file(self, info: zipfile.ZipInfo, name: bytes) -> bool:
        mode = info.external_attr >> 16 if info.create_system == _UNIX else 0
        if not stat.S_ISLNK(mode):
            return True
        if self._policy.links == "error":
            self._fail(
                "it is a symbolic link, and links='error': store the file itself, or leave links "
                "out with links='skip'",
                at=info.header_offset,
                member=name,
                is_refused=True,
            )
        return False

    def _fail(
        self,
        message: str,
        cause: Exception | None = None,
        *,
        at: int = 0,
        member: bytes = b"",
        is_refused: bool = False,
    ) -> NoReturn:
        kind = ShardRefusedError if is_refused else ShardCorruptError
        raise kind(self._shard, message, offset=at, member=shown(member)) from cause


def unpack_all(
    shard: str, members: Sequence[ZipMember], start: int, data: memoryview
) -> tuple[list[StreamedMember], ShardCorruptError | None]:
    """Return some members, up to the first that is damaged, and what is wrong with that.

    Args:
        shard: Name of the zip, for errors.
        members: What is wanted.
        start: Where the data begin in the shard.
        data: The ranges of all of them.
    """
    unpacked = []
    for member in members:
        try:
            part = data[member.start - start : member.stop - start]
            unpacked.append(unpack(shard, member, part))
        except ShardCorruptError as error:
            return unpacked, error
    return unpacked, None


def unpack(shard: str, member: ZipMember, data: bytes | memoryview) -> StreamedMember:
    """Return a member; takes long where it is large: not for an event loop.

    Args:
        shard: Name of the zip, for errors.
        member: What is wanted.
        data: Its range.  Borrowed; what is returned is a copy.

    Raises:
        ShardCorruptError: If that is not the member that the directory says it is.
    """

    def fail(message: str, cause: Exception | None = None) -> NoReturn:
        raise ShardCorruptError(
            shard, f"{message}: {_DAMAGED}", offset=member.start, member=shown(member.name.encode())
        ) from cause

    if len(data) < _LOCAL.size:
        fail("its header is cut off")
    magic, *_, name_bytes, extra_bytes = _LOCAL.unpack_from(data)
    if magic != _LOCAL_MAGIC:
        fail("there is no header where the directory says")
    first = _LOCAL.size + name_bytes + extra_bytes
    packed = bytes(data[first : first + member.packed_bytes])
    if len(packed) < member.packed_bytes:
        fail("it reaches into the next one")
    content = packed
    if member.is_deflated:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # One byte more than there should be, so that more is noticed and not inflated.
            content = inflater.decompress(packed, member.size + 1)
            if not inflater.eof and len(content) <= member.size:
                content += inflater.decompress(inflater.unconsumed_tail, 1)
        except zlib.error as error:
            fail(f"it cannot be inflated ({error})", error)
        if not inflater.eof or len(content) != member.size:
            fail(f"it does not inflate to the {member.size} bytes that the directory says")
    if zlib.crc32(content) != member.crc:
        fail("it does not have its checksum")
    return StreamedMember(member.name, content)
