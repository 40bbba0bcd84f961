"""Shards for tests: archives of any form, also damaged ones, and a reader that has them."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import lz4.frame

from headrace_daemon.errors import ShardError
from headrace_daemon.source.shards.indexstore import Shard
from headrace_daemon.source.shards.policy import DEFAULT_POLICY
from headrace_daemon.source.shards.stream import TarStream
from headrace_daemon.source.shards.walk import TarWalker
from headrace_daemon.source.shards.zips import ZipWalker, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from random import Random

    from headrace_daemon.source.reader import RangeRequest
    from headrace_daemon.source.shards.policy import ShardPolicy

FORMATS: Final = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
BLOCK: Final = 512


class Placed(NamedTuple):
    """A member, and where its data are."""

    name: str
    start: int
    size: int


def header(
    name: bytes,
    size: int | bytes = 0,
    *,
    kind: bytes = b"0",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    is_signed: bool = False,
) -> bytes:
    """Return a header; a size that is given as bytes is taken as it is (12 bytes)."""
    digits = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(BLOCK)
    for at, value in ((0, name), (124, digits), (156, kind), (257, magic), (345, prefix)):
        block[at : at + len(value)] = value
    assert len(block) == BLOCK
    return summed(bytes(block), is_signed=is_signed)


def summed(block: bytes, *, is_signed: bool = False) -> bytes:
    """Return a header with the right checksum."""
    spaced = block[:148] + b" " * 8 + block[156:]
    value = sum(spaced) - (256 * sum(byte >= 128 for byte in spaced) if is_signed else 0)
    return block[:148] + b"%06o\0 " % value + block[156:]


def padded(data: bytes) -> bytes:
    """Return data as they stand in a tar."""
    return data + bytes(-len(data) % BLOCK)


def pax(records: dict[str, str], kind: bytes = b"x") -> bytes:
    """Return an extended header."""
    data = b""
    for key, value in records.items():
        line = f" {key}={value}\n".encode()
        length = len(line)
        while length != len(line) + len(str(length)):
            length = len(line) + len(str(length))
        data += str(length).encode() + line
    return header(b"pax", len(data), kind=kind) + padded(data)


def member(name: bytes, data: bytes = b"x", **facts: object) -> bytes:
    """Return a header and data."""
    return header(name, len(data), **facts) + padded(data)  # type: ignore[arg-type]


END: Final = bytes(2 * BLOCK)


def tar_of(
    members: Iterable[tuple[str, bytes] | tarfile.TarInfo], form: int = tarfile.USTAR_FORMAT
) -> bytes:
    """Return a tar that Python's `tarfile` writes."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as archive:
        for one in members:
            if isinstance(one, tarfile.TarInfo):
                archive.addfile(one, io.BytesIO(b"d" * one.size))
            else:
                info = tarfile.TarInfo(one[0])
                info.size = len(one[1])
                archive.addfile(info, io.BytesIO(one[1]))
    return target.getvalue()


def zip_of(members: Iterable[tuple[str, bytes]], *, is_deflated: bool = True) -> bytes:
    """Return a zip that Python's `zipfile` writes."""
    target = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if is_deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(target, "w", kind) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return target.getvalue()


def packed(data: bytes, kind: str) -> bytes:
    """Return a tar as a shard of a kind."""
    if kind == "tar.gz":
        return gzip.compress(data, 1, mtime=0)
    if kind == "tar.lz4":
        return bytes(lz4.frame.compress(data, content_checksum=True))
    return data


def by_tarfile(data: bytes) -> list[Placed]:
    """Return the files in a tar as Python's `tarfile` finds them."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        return [Placed(one.name, one.offset_data, one.size) for one in archive if one.isreg()]


def walked(data: bytes, policy: ShardPolicy = DEFAULT_POLICY) -> list[Placed]:
    """Return the members of a tar as our walker finds them, by the ranges that it wants."""
    walker = TarWalker("s.tar", len(data), policy)
    # Each answer has a header at least.
    for _ in range(len(data) // BLOCK + 2):
        if (wanted := walker.wanted) is None:
            return [Placed(*one) for one in walker.take().listed()]
        assert 0 <= wanted.start < wanted.stop <= len(data)
        walker.feed(wanted.start, memoryview(data)[wanted.start : wanted.stop])
    raise AssertionError("a walker wants more than there is")


def flowed(data: bytes, cuts: Iterable[int], *, is_sized: bool = True) -> list[Placed]:
    """Return the members of a tar that arrives in pieces of the given sizes."""
    walker = TarWalker("s.tar", len(data) if is_sized else None)
    at = 0
    for size in [*cuts, len(data)]:
        walker.feed(at, data[at : at + size])
        at = min(at + size, len(data))
    if not is_sized:
        walker.finish()
    assert walker.is_over
    return [Placed(*one) for one in walker.take().listed()]


def streamed(
    data: bytes, kind: str, *, piece: int = 1 << 16, max_member_bytes: int = 1 << 20
) -> tuple[list[tuple[str, bytes]], ShardError | None]:
    """Return the members of a shard that is streamed, and the error that ended it."""
    members: list[tuple[str, bytes]] = []
    try:
        if kind == "zip":
            walker = ZipWalker("s.zip", len(data), max_member_bytes=max_member_bytes)
            for _ in range(8):
                if (wanted := walker.wanted) is None:
                    break
                walker.feed(data[wanted.start : wanted.stop])
                walker.find()
            assert walker.wanted is None, "a walker wants more than there is"
            for one in walker.members:
                name, content = unpack("s.zip", one, data[one.start : one.stop])
                members.append((name, bytes(content)))
            return members, None
        stream = TarStream(f"s.{kind}", kind, max_member_bytes=max_member_bytes)
        at = 0
        while not stream.is_over:
            if stream.needs_input:
                if at < len(data):
                    stream.feed(data[at : at + piece])
                    at += piece
                else:
                    stream.finish()
            members += [(one.name, bytes(one.data)) for one in stream.step()]
    except ShardError as error:
        return members, error
    return members, None


def mutated(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """Return an archive with something wrong in it, most often in a header whose sum is right."""
    changed = bytearray(data)

    def block() -> int:
        return rng.randrange(max(len(changed) // BLOCK, 1)) * BLOCK

    def flip() -> None:
        at = rng.randrange(len(changed))
        changed[at] ^= 1 << rng.randrange(8)

    def alter_header() -> None:
        first = block()
        at, width = rng.choice(
            [(0, 100), (124, 12), (148, 8), (156, 1), (257, 8), (345, 155), (0, BLOCK)]
        )
        value = rng.choice([b"\0", b"\xff", b"7", b"/", b"..", b"9", b" ", rng.randbytes(12)])
        kinds = b"\0" + b"01234567gxXLKSMDVA9"
        if at == 156:
            value = bytes([rng.choice(kinds)])
        at = first + at + rng.randrange(width)
        changed[at : at + len(value)] = value[: max(len(changed) - at, 0)]
        resum(first)

    def resum(first: int) -> None:
        if len(changed) >= first + BLOCK:
            changed[first : first + BLOCK] = summed(bytes(changed[first : first + BLOCK]))

    def cut() -> None:
        del changed[rng.randrange(len(changed)) :]

    def remove() -> None:
        first = block()
        del changed[first : first + BLOCK * rng.randrange(1, 4)]

    def repeat() -> None:
        first, at = block(), block()
        changed[at:at] = changed[first : first + BLOCK * rng.randrange(1, 4)]

    def splice() -> None:
        other = rng.choice(others)
        at = rng.randrange(len(changed) + 1)
        changed[at:] = other[rng.randrange(len(other)) // BLOCK * BLOCK :]

    def blank() -> None:
        first = block()
        changed[first : first + BLOCK] = bytes(len(changed[first : first + BLOCK]))

    steps: list[Callable[[], None]] = [
        flip, alter_header, alter_header, alter_header, cut, remove, repeat, splice, blank,
    ]  # fmt: skip
    for _ in range(rng.randrange(1, 4)):
        if changed:
            rng.choice(steps)()
    return bytes(changed)


@dataclass
class MemoryReader:
    """Has shards in memory; counts what is read of them."""

    shards: dict[str, bytes]
    requests: list[RangeRequest] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Bytes read."""
        return sum(request.stop - request.start for request in self.requests)

    async def read(self, requests: Sequence[RangeRequest]) -> None:
        """Fill the places."""
        for request in requests:
            data = self.shards[request.name]
            assert 0 <= request.start < request.stop <= len(data) == request.object_bytes
            self.requests.append(request)
            for place in request.places:
                stop = place.start + len(place.target)
                assert request.start <= place.start <= stop <= request.stop
                place.target[:] = data[place.start : stop]

    def all(self) -> list[Shard]:
        """Return the shards."""
        return [
            Shard.of_object("ais://b", name, len(data), b"", b"1")
            for name, data in self.shards.items()
        ]
