"""The members of a tar, against Python's `tarfile`, however its bytes arrive."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_daemon.errors import ShardCorruptError, ShardError, ShardRefusedError
from headrace_daemon.source.shards.policy import ShardPolicy
from headrace_daemon.source.shards.walk import TarWalker
from tests.support.shards import (
    BLOCK,
    END,
    FORMATS,
    by_tarfile,
    flowed,
    header,
    member,
    padded,
    pax,
    summed,
    tar_of,
    walked,
)

WORDS = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12
).filter(lambda word: word not in (".", ".."))
LONG = st.builds(lambda word, count: word * count, WORDS, st.sampled_from([1, 1, 1, 12, 40]))
NAMES = st.lists(LONG, min_size=1, max_size=4).map("/".join)


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """Make a tar by Python's `tarfile`, with whatever stands in one."""
    form = draw(st.sampled_from(FORMATS))
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as archive:
        for name in draw(st.lists(NAMES, max_size=12)):
            info = tarfile.TarInfo(name)
            info.type = draw(
                st.sampled_from(
                    [tarfile.REGTYPE] * 6
                    + [tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]
                    + [tarfile.SYMTYPE, tarfile.LNKTYPE]
                )
            )
            info.linkname = draw(NAMES) if info.type in (b"1", b"2") else ""
            info.mtime = draw(st.sampled_from([0, 1_700_000_000, 1.5]))
            info.size = draw(st.integers(0, 2000)) if info.isreg() else 0
            try:
                archive.addfile(info, io.BytesIO(b"d" * info.size))
            except ValueError:  # too long for ustar
                assert form == tarfile.USTAR_FORMAT
    return target.getvalue()


@given(archives(), st.lists(st.integers(0, 3000), max_size=60), st.booleans())
def test_members_are_those_that_tarfile_finds_however_the_bytes_arrive(
    data: bytes, cuts: list[int], is_sized: bool
) -> None:
    expected = by_tarfile(data)
    assert walked(data) == expected
    assert flowed(data, cuts, is_sized=is_sized) == expected


def test_names_and_sizes_are_found_byte_by_byte() -> None:
    long = "d" * 200 + "/ü.jpg"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        data = tar_of([(long, b"123"), ("b.cls", b""), ("c.jpg", b"x" * 513)], form)
        assert [one.name for one in by_tarfile(data)] == [long, "b.cls", "c.jpg"]
        assert flowed(data, [1] * len(data), is_sized=False) == by_tarfile(data)


@pytest.mark.parametrize(
    "size",
    [b"\x80" + bytes(9) + b"\x02\x58", b"00000001130\0", b"      1130 \0", b"1130\0\0junk\0\0"],
)
def test_sizes_are_read_in_every_form(size: bytes) -> None:
    data = header(b"a.bin", size) + padded(b"d" * 600) + member(b"b.bin") + END
    assert walked(data) == by_tarfile(data) == [("a.bin", 512, 600), ("b.bin", 2048, 1)]


def test_old_and_odd_headers_are_read() -> None:
    # V7 has no magic; a folder is a name that ends with a slash.
    old = member(b"a.x", magic=b"", kind=b"\0") + header(b"dir/", magic=b"", kind=b"\0")
    data = old + member(b"dir/b.x", magic=b"", kind=b"\0") + END
    assert walked(data) == by_tarfile(data)
    assert [one.name for one in walked(data)] == ["a.x", "dir/b.x"]
    # The prefix of ustar and of star; GNU has times there.
    data = member(b"c.x", prefix=b"a/b") + END
    assert [one.name for one in walked(data)] == ["a/b/c.x"]
    data = member(b"c.x", magic=b"ustar  \0", prefix=b"13371337133") + END
    assert [one.name for one in walked(data)] == ["c.x"]
    star = bytearray(header(b"c.x", 1, prefix=b"p" * 131 + b"13371337133"))
    star[508:512] = b"tar\0"
    data = summed(bytes(star)) + padded(b"x") + END
    assert [one.name for one in walked(data)] == ["p" * 131 + "/c.x"]
    # Sums of signed bytes.
    data = member("ü.x".encode(), is_signed=True) + END
    assert walked(data) == by_tarfile(data) == [("ü.x", 512, 1)]


def test_unknown_kinds_are_files_and_known_ones_that_are_none_are_passed() -> None:
    data = b"".join(
        [
            header(b"label", kind=b"V"),
            member(b"dumped/", b"names", kind=b"D"),
            member(b"acl", b"rights", kind=b"A"),
            header(b"link.x", 4000, kind=b"1"),  # GNU writes the size of the target
            header(b"fifo", kind=b"6"),
            header(b"tty", kind=b"3"),
            member(b"new.x", b"data", kind=b"9"),
            member(b"row.x", b"data", kind=b"7"),
            END,
        ]
    )
    assert [(one.name, one.size) for one in walked(data)] == [("new.x", 4), ("row.x", 4)]


def test_what_pax_says_counts_for_one_member() -> None:
    data = b"".join(
        [
            pax({"comment": "of an archive"}, kind=b"g"),
            pax({"mtime": "1.5", "path": "first", "size": "600"}),
            header(b"a.x", 0) + padded(b"d" * 600),
            pax({"path": "second", "comment": "line\nbreak"}) + member(b"b.x"),
            member(b"c.x"),
            END,
        ]
    )
    assert walked(data) == by_tarfile(data)
    assert [one.name for one in walked(data)] == ["first", "second", "c.x"]
    assert walked(data)[0].size == 600


@pytest.mark.parametrize(
    ("tail", "count"),
    [
        (END, 1),
        (END + b"garbage", 1),
        (b"", 1),  # the end of the file is an end
        (bytes(BLOCK), 1),
        (bytes(BLOCK) + member(b"b.x"), 1),
        (END + member(b"b.x") + END, 1),  # another tar behind the first
    ],
)
def test_the_end_is_where_tarfile_sees_it(tail: bytes, count: int) -> None:
    data = member(b"a.x") + tail
    assert walked(data) == by_tarfile(data)
    assert flowed(data, [BLOCK] * 9, is_sized=False) == by_tarfile(data)
    assert len(walked(data)) == count


def test_a_tar_without_members_is_no_error() -> None:
    assert walked(END) == []
    assert walked(tar_of([])) == []
    assert flowed(bytes(10240), [100], is_sized=False) == []


GZIP = b"\x1f\x8b" + bytes(1000)
SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.name": "a"}
MANY = "".join(f"8 k{number % 10}=ab\n" for number in range(1001)).encode()

DAMAGED = {
    "nothing": (b"", "has 0 bytes"),
    "short": (b"x" * 100, "has 100 bytes"),
    "no tar": (b"x" * 2000, "checksum"),
    "gzip": (GZIP, r"no tar but gzip.*\.tar\.gz"),
    "bad sum": (member(b"a.x")[:200] + b"!" + member(b"a.x")[201:] + END, "checksum"),
    "bad sum later": (member(b"a.x") + b"!" * BLOCK + END, "byte 1024.*checksum"),
    "cut in data": (member(b"a.x", b"d" * 5000)[:2048], "5000 bytes, 1536 are left"),
    "cut in padding": (member(b"a.x", b"d" * 700)[:1300], "700 bytes, 788 are left"),
    "cut in a header": (member(b"a.x") + member(b"b.x")[:300], "within a header"),
    "ten gigabytes": (header(b"a.x", 10 << 30) + END, "10737418240 bytes"),
    "more than there is": (header(b"a.x", b"\x80" + b"\xff" * 11) + END, "too early"),
    "below zero": (header(b"a.x", b"\xff" * 12) + END, "its size is -1"),
    "no number": (header(b"a.x", b"00000000x00\0") + END, "neither octal"),
    "no octal": (header(b"a.x", b"00000000080\0") + END, "neither octal"),
    "no name": (member(b"") + END, "name is empty"),
    "zero in a name": (pax({"path": "a\0b"}) + member(b"a") + END, "zero byte"),
    "two long names": (
        2 * (header(b"L", 4, kind=b"L") + padded(b"abc\0")) + member(b"a") + END,
        "second extended header",
    ),
    "two extended": (2 * pax({"path": "b"}) + member(b"a") + END, "second extended header"),
    "nothing behind": (pax({"path": "b"}), "behind an extended header"),
    "only zeros behind": (pax({"path": "b"}) + END, "behind an extended header"),
    "long name alone": (header(b"L", 4, kind=b"L") + padded(b"abc") + END, "behind an extended"),
    "long link alone": (header(b"L", 4, kind=b"K") + padded(b"abc") + END, "behind an extended"),
    "no record": (header(b"x", 9, kind=b"x") + padded(b"12345678\n") + END, "no record"),
    "record too long": (header(b"x", 9, kind=b"x") + padded(b"99 a=bcd\n") + END, "no record"),
    "no pax size": (pax({"size": "-5"}) + member(b"a") + END, "no size"),
    "name below zero": (header(b"L", b"\xff" * 12, kind=b"L") + END, "-1 bytes"),
    "long name cut": (header(b"L", 600, kind=b"L") + b"a" * 512, "600 bytes, 512 are left"),
}

REFUSED = {
    "absolute": (member(b"/etc/passwd.x") + END, "absolute or leads upwards"),
    "upwards": (member(b"a/../../b.x") + END, "absolute or leads upwards"),
    "upwards by pax": (pax({"path": "../b"}) + member(b"a") + END, "absolute or leads upwards"),
    "not UTF-8": (member(b"a\xff.x") + END, "not UTF-8"),
    "sparse of GNU": (member(b"a.x", kind=b"S") + END, "sparse"),
    "sparse of pax": (pax(SPARSE) + member(b"a.x") + END, "sparse"),
    "other volume": (member(b"a.x", kind=b"M") + END, "begins elsewhere"),
    "long name": (header(b"L", 4098, kind=b"L") + bytes(8000), "4098 bytes, the limit is 4097"),
    "long path": (pax({"path": "a" * 4097}) + member(b"a") + END, "4097 bytes, the limit is 4096"),
    "large pax": (header(b"x", (1 << 20) + 1, kind=b"x") + bytes(8000), "limit is 1048576"),
    "many records": (header(b"x", len(MANY), kind=b"x") + padded(MANY), "more than 1000 records"),
    "global path": (pax({"path": "a"}, kind=b"g") + member(b"a") + END, "global header"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_is_refused_with_the_place(name: str) -> None:
    data, words = DAMAGED[name]
    with pytest.raises(ShardCorruptError, match=words) as caught:
        walked(data)
    assert caught.value.what == "s.tar"
    with pytest.raises(ShardCorruptError):
        flowed(data, [100, 1000], is_sized=False)


@pytest.mark.parametrize(
    ("name", "size", "step"),
    [
        ("s.tar", 1002, r"give it a name that ends with \.tar\.gz"),
        ("s.tar", None, r"give it a name that ends with \.tar\.gz"),
        ("s.tar.gz", 1002, r"can only be streamed: use Shards\(…, index=False"),
        ("s.TGZ", 1002, r"can only be streamed: use Shards\(…, index=False"),
        ("s.tar.gz", None, "what is packed in it is no tar but gzip: make it anew"),
    ],
)
def test_another_kind_of_archive_is_told_what_to_do_by_its_name(
    name: str, size: int | None, step: str
) -> None:
    walker = TarWalker(name, size)
    with pytest.raises(ShardCorruptError, match=step):
        walker.feed(0, GZIP)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_hostile_or_not_supported_is_refused_with_the_reason(name: str) -> None:
    data, words = REFUSED[name]
    with pytest.raises(ShardRefusedError, match=words):
        walked(data)
    with pytest.raises(ShardRefusedError, match=words):
        flowed(data, [100, 1000], is_sized=False)


def test_an_error_names_shard_place_and_member() -> None:
    with pytest.raises(ShardError) as caught:
        walked(member(b"a.x") + member(b"sub/../b.x") + END)
    error = caught.value
    assert (error.what, error.offset, error.member) == ("s.tar", 1024, "sub/../b.x")
    assert str(error).startswith("shard s.tar, byte 1024, member 'sub/../b.x': its name")
    with pytest.raises(ShardCorruptError, match=r"member 'a\.x': the archive ends too early"):
        flowed(member(b"a.x", b"d" * 5000)[:2048], [700], is_sized=False)


def test_a_policy_decides_about_links() -> None:
    strict = ShardPolicy(links="error")
    data = member(b"a.x") + header(b"l.x", kind=b"2") + member(b"./c.x") + END
    assert [one.name for one in walked(data)] == ["a.x", "./c.x"]
    with pytest.raises(
        ShardRefusedError, match=r"'l\.x': it is a symbolic link, and links='error'"
    ):
        walked(data, strict)
    with pytest.raises(ShardRefusedError, match="hard link"):
        walked(header(b"l.x", kind=b"1") + END, strict)
    assert strict.identity != ShardPolicy().identity
    with pytest.raises(ValueError, match="is unknown: choose"):
        ShardPolicy(links="follow")  # type: ignore[arg-type]


def test_members_and_names_are_bounded() -> None:
    data = b"".join(member(b"%d.x" % number) for number in range(5)) + END
    assert len(walked(data, ShardPolicy(max_members=5))) == 5
    with pytest.raises(ShardRefusedError, match="more than 4 members"):
        walked(data, ShardPolicy(max_members=4))
    with pytest.raises(ShardRefusedError, match="12 bytes of names"):
        walked(data, ShardPolicy(max_names_bytes=12))


def test_bytes_that_are_missing_are_a_bug_of_the_caller() -> None:
    walker = TarWalker("s.tar", 4096)
    with pytest.raises(ValueError, match=r"bytes 0 to 512 of s\.tar are missing"):
        walker.feed(512, bytes(512))


class Ranges:
    """A tar that exists only where it is read: headers by number, and zeros."""

    def __init__(self, count: int, sizes: list[int]) -> None:
        self._sizes = sizes
        self._strides = [BLOCK + size + -size % BLOCK for size in sizes]
        self._count = count
        self.size = count * sum(self._strides) + 2 * BLOCK

    def read(self, start: int, stop: int) -> bytes:
        data = bytearray(stop - start)
        per = sum(self._strides)
        for sample in range(start // per, min(stop // per + 1, self._count)):
            at = sample * per
            for number, stride in enumerate(self._strides):
                if at < stop and at + BLOCK > start:
                    block = header(b"%d.%d" % (sample, number), self._sizes[number])
                    first, last = max(at, start), min(at + BLOCK, stop)
                    data[first - start : last - start] = block[first - at : last - at]
                at += stride
        return bytes(data)

    def walk(self) -> tuple[int, int, int]:
        """Return the members, bytes and reads."""
        walker, num_reads = TarWalker("s.tar", self.size), 0
        while (wanted := walker.wanted) is not None:
            walker.feed(wanted.start, self.read(*wanted))
            num_reads += 1
        return walker.num_members, walker.bytes_given, num_reads


def test_of_large_samples_less_than_two_percent_is_read() -> None:
    for sizes in ([64 << 10], [64 << 10, 2], [300_000, *[200] * 5]):
        shard = Ranges((64 << 20) // sum(sizes), sizes)
        members, num_bytes, _ = shard.walk()
        assert members == (64 << 20) // sum(sizes) * len(sizes)
        assert num_bytes < 0.02 * shard.size


def test_of_small_samples_large_pieces_are_read() -> None:
    for sizes in ([10 << 10], [20_000, 2], [1]):
        shard = Ranges(2000, sizes)
        members, num_bytes, num_reads = shard.walk()
        assert members == 2000 * len(sizes)
        assert num_bytes <= shard.size
        assert num_reads < 10 + shard.size / 100_000


def test_reading_changes_with_the_members() -> None:
    # Many small ones, then large ones, then small ones again.
    small = [(f"{number}.s", b"s" * 100) for number in range(500)]
    large = [(f"{number}.l", bytes(200_000)) for number in range(100)]
    data = tar_of([*small, *large, *small])
    walker, num_reads = TarWalker("s.tar", len(data)), 0
    while (wanted := walker.wanted) is not None:
        walker.feed(wanted.start, data[wanted.start : wanted.stop])
        num_reads += 1
    assert walker.num_members == 1100
    assert walker.bytes_given < 5_000_000
    assert num_reads < 500
