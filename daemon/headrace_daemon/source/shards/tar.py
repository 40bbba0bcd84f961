"""Headers of a tar: bytes in, facts out.

Knows the old form of Unix V7, POSIX ustar and pax, GNU and star.  Sources: POSIX.1-2017, ``pax``,
"ustar Interchange Format" and "pax Extended Header"; the manual of GNU tar, "Basic Tar Format" and
"GNU Extensions"; tar(5) of libarchive.

What is wrong is a `HeaderError`, which knows no shard: `walk` adds that.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple
from zlib import adler32

from headrace.shards import COMPRESSED, ends_like

BLOCK: Final = 512
ZEROS: Final = bytes(BLOCK)

# Kinds of members, as the byte in their headers.
REGULAR: Final = ord("0")
OLD_REGULAR: Final = 0
HARD_LINK: Final = ord("1")
SYMBOLIC_LINK: Final = ord("2")
CHARACTER: Final = ord("3")
BLOCK_DEVICE: Final = ord("4")
FOLDER: Final = ord("5")
FIFO: Final = ord("6")
PAX: Final = ord("x")
PAX_GLOBAL: Final = ord("g")
PAX_SOLARIS: Final = ord("X")
LONG_NAME: Final = ord("L")
LONG_LINK: Final = ord("K")
SPARSE: Final = ord("S")
MULTI_VOLUME: Final = ord("M")
DUMPED_FOLDER: Final = ord("D")
VOLUME_LABEL: Final = ord("V")
SOLARIS_ACL: Final = ord("A")

LINKS: Final = frozenset({HARD_LINK, SYMBOLIC_LINK})
NO_DATA: Final = frozenset({*LINKS, CHARACTER, BLOCK_DEVICE, FOLDER, FIFO})
"""No data follow, whatever size the header says: GNU tar writes that of the target for a link."""

SKIPPED: Final = frozenset({DUMPED_FOLDER, VOLUME_LABEL, SOLARIS_ACL})
"""Extensions that are no files; data may follow."""

EXTENDED: Final = frozenset({PAX, PAX_GLOBAL, PAX_SOLARIS, LONG_NAME, LONG_LINK})
"""Headers with data that are about the members behind them."""

_MAGIC_POSIX: Final = b"ustar\0"
_TRAILER_STAR: Final = b"tar\0"

_NOT_TAR: Final = (
    (b"\x1f\x8b", "gzip", (".tar.gz", ".tgz")),
    (b"\x04\x22\x4d\x18", "lz4", (".tar.lz4",)),
    (b"PK\x03\x04", "zip", (".zip",)),
    (b"PK\x05\x06", "zip", (".zip",)),
    (b"\x28\xb5\x2f\xfd", "zstd", ()),
    (b"BZh", "bzip2", ()),
    (b"\xfd7zXZ\0", "xz", ()),
)


class HeaderError(Exception):
    """A header cannot be used.

    Attributes:
        is_refused: It is valid, and not read on purpose.
    """

    def __init__(self, message: str, *, is_refused: bool = False) -> None:
        super().__init__(message)
        self.is_refused = is_refused


def check_sum(block: bytes) -> None:
    """Check the sum that a header has of itself.

    The sum is that of all bytes, with spaces in place of its own field.  Old programs took bytes
    for signed numbers, so the sum of those is as good.

    Raises:
        HeaderError: If it is another one.
    """
    # The low half of Adler-32 is 1 + the sum of the bytes modulo 65521: exact for 256 bytes, and
    # twenty times as fast as `sum`.
    field = block[148:156]
    found = (
        (adler32(block[:256]) & 0xFFFF)
        + (adler32(block[256:]) & 0xFFFF)
        - (adler32(field) & 0xFFFF)
        + 255  # of eight spaces, and of the ones
    )
    try:
        stated = int(field[:6], 8)
    except ValueError:
        stated = -1
    if stated == found:
        return
    signed = sum(struct.unpack("148b8x356b", block)) + 256
    try:
        stated = number(field)
    except HeaderError:
        stated = -1
    if stated not in (found, signed):
        raise HeaderError(
            f"there is no header: its checksum would be {found}, and {field!r} stands there; this "
            "is no tar, or it is damaged here, so restore or make it anew"
        )


def number(field: bytes) -> int:
    """Return the value of a numeric field: octal digits, or base 256.

    Raises:
        HeaderError: If it has neither.
    """
    first = field[0]
    if first & 0x80:
        # Two's complement; the top bit says that it is one, the next one is the sign.
        value = int.from_bytes(field) - (first << 8 * (len(field) - 1))
        value |= (first & 0x3F) << 8 * (len(field) - 1)
        return value - (1 << (8 * len(field) - 2)) if first & 0x40 else value
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if not digits:
        return 0
    try:
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:
        pass
    raise HeaderError(
        f"a number in the header is {field!r}, which is neither octal nor base 256: the archive is "
        "damaged here, so restore or make it anew"
    )


def size_of(block: bytes) -> int:
    """Return the size in a header; it may be negative.

    Raises:
        HeaderError: If there is no number.
    """
    digits = block[124:135]
    if digits.isdigit() and not block[135] & 0xDF:  # ends with a zero byte or a space
        try:
            return int(digits, 8)
        except ValueError:
            pass
    return number(block[124:136])


def name_of(block: bytes) -> bytes:
    """Return the name in a header, with its prefix where the form of the header has one."""
    name = block[:100].split(b"\0", 1)[0]
    # GNU keeps times where POSIX has the prefix, and V7 has nothing there.
    if block[345] and block[257:263] == _MAGIC_POSIX:
        width = 131 if block[508:512] == _TRAILER_STAR else 155
        return block[345 : 345 + width].split(b"\0", 1)[0] + b"/" + name
    return name


def until_nul(data: bytes) -> bytes:
    """Return a long name of GNU, which ends with a zero byte, or with the data."""
    return data.split(b"\0", 1)[0]


class PaxFacts(NamedTuple):
    """What an extended header says about the member that follows."""

    path: bytes | None = None
    size: int | None = None
    is_sparse: bool = False


def pax_facts(data: bytes, max_records: int) -> PaxFacts:
    r"""Return what is in an extended header.

    Each record is ``"<length> <key>=<value>\n"``, with its whole length in decimal.  The last
    record of a key counts; an empty value takes it back.

    Args:
        data: The records.
        max_records: How many there may be.

    Raises:
        HeaderError: If a record is no such record, or there are too many.
    """
    path: bytes | None = None
    size: int | None = None
    is_sparse = False
    at, end, count = 0, len(data), 0
    while at < end:
        space = data.find(b" ", at, at + 8)
        digits = data[at:space] if space >= 0 else b""
        stop = at + int(digits) if digits.isdigit() else 0
        equals = data.find(b"=", space + 1, stop)
        if not space < equals < stop <= end or data[stop - 1] != 0x0A:
            if not data[at:].strip(b"\0"):
                break  # some writers count the padding in
            raise HeaderError(
                f"record {count} of the extended header is no record ({data[at : at + 24]!r}): the "
                "archive is damaged here, so restore or make it anew"
            )
        count += 1
        if count > max_records:
            raise HeaderError(
                f"the extended header has more than {max_records} records, which is the limit: "
                "make the shard anew without attributes of files",
                is_refused=True,
            )
        key = data[space + 1 : equals]
        if key == b"path":
            path = data[equals + 1 : stop - 1] or None
        elif key == b"size":
            digits = data[equals + 1 : stop - 1]
            if digits and (not digits.isdigit() or len(digits) > 20):
                raise HeaderError(
                    f"the extended header has size {digits[:24]!r}, which is no size: the archive "
                    "is damaged here, so restore or make it anew"
                )
            size = int(digits) if digits else None
        elif key.startswith(b"GNU.sparse."):
            is_sparse = True
        at = stop
    return PaxFacts(path, size, is_sparse)


def explain_no_tar(block: bytes, name: str, *, is_unpacked: bool) -> str | None:
    """Return what the first bytes of a shard say that it is, if that is another kind of archive.

    Args:
        block: The first bytes.
        name: Of the shard.
        is_unpacked: Whether they were unpacked from what the name says, if it says that.
    """
    for magic, kind, endings in _NOT_TAR:
        if not block.startswith(magic):
            continue
        if is_unpacked and ends_like(name, COMPRESSED):
            return f"what is packed in it is no tar but {kind}: make it anew, of a plain tar"
        if ends_like(name, endings):
            step = (
                "shards like that can only be streamed: use Shards(…, index=False, fields=[…]), "
                "leave it out by suffix or prefixes, or store a plain .tar in its place"
            )
        elif endings:
            step = f"give it a name that ends with {endings[0]}, and it is read as such"
        else:
            step = "make it a .tar, .tar.gz, .tar.lz4 or .zip"
        return f"this is no tar but {kind}: {step}"
    return None
