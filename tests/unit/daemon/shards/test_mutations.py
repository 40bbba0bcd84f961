"""Archives with something wrong in them: errors of ours or members, in bounded time and memory."""

from __future__ import annotations

import tarfile
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from headrace_daemon.errors import ShardError
from tests.support.shards import (
    END,
    FORMATS,
    Placed,
    flowed,
    header,
    member,
    mutated,
    packed,
    padded,
    pax,
    streamed,
    tar_of,
    walked,
    zip_of,
)

LINK = tarfile.TarInfo("link.x")
LINK.type, LINK.linkname = tarfile.SYMTYPE, "t" * 150

TARS = [
    tar_of(
        [("a/" + "n" * 150 + ".x", b"1" * 600), LINK, ("ü.cls", b""), ("c.jpg", b"2" * 1500)], form
    )
    for form in FORMATS[1:]
] + [
    tar_of([(f"{number}.{field}", b"d" * 100) for number in range(4) for field in ("a", "b")]),
    b"".join(
        [
            pax({"comment": "c"}, kind=b"g"),
            pax({"path": "p/q.x", "size": "600", "mtime": "1.5"}),
            header(b"q") + padded(b"d" * 600),
            header(b"big", b"\x80" + bytes(9) + b"\x02\x58") + padded(b"d" * 600),
            member(b"dir/", b"names", kind=b"D"),
            member(b"v7.x", magic=b"", kind=b"\0"),
            END,
        ]
    ),
]


def outcome(call: object, *arguments: object, **options: object) -> list[Placed] | type[ShardError]:
    try:
        return call(*arguments, **options)  # type: ignore[operator,no-any-return]
    except ShardError as error:
        return type(error)


def try_tar(seed: int) -> bool:
    """Walk over a mutated tar; return whether it was still one."""
    rng = Random(seed)
    data = mutated(rng.choice(TARS), rng, TARS)
    found = outcome(walked, data)
    cuts = [rng.randrange(2000) for _ in range(20)]
    # It is the same however the bytes arrive; without a size, one error may be another.
    assert outcome(flowed, data, cuts) == found
    streaming = outcome(flowed, data, cuts, is_sized=False)
    assert isinstance(streaming, list) == isinstance(found, list)
    if not isinstance(found, list):
        return False
    assert streaming == found
    at = 0
    for name, start, size in found:
        assert name
        assert at + 512 <= start <= start + size <= len(data)
        at = start + size
    return True


def try_packed(seed: int) -> bool:
    """Stream a mutated shard of another kind; return whether it was still one."""
    rng = Random(seed)
    kind = rng.choice(["tar", "tar.gz", "tar.lz4", "zip"])
    members = [(f"{number}.x", bytes([number]) * rng.randrange(900)) for number in range(5)]
    if kind == "zip":
        whole = zip_of(members, is_deflated=rng.random() < 0.5)
        data = mutated(whole, rng, [whole])
    elif rng.random() < 0.5:
        data = packed(mutated(tar_of(members), rng, TARS), kind)
    else:
        whole = packed(tar_of(members), kind)
        data = mutated(whole, rng, [whole])
    found, error = streamed(data, kind, piece=rng.randrange(1, 3000), max_member_bytes=2000)
    assert sum(len(content) for _, content in found) <= 2000 * len(found)
    return error is None


@given(st.lists(st.integers(0, 2**48), min_size=20, max_size=20))
def test_a_mutated_tar_gives_members_within_it_or_an_error_of_ours(seeds: list[int]) -> None:
    for seed in seeds:
        try_tar(seed)


@given(st.lists(st.integers(0, 2**48), min_size=10, max_size=10))
def test_a_mutated_shard_of_another_kind_gives_members_or_an_error_of_ours(
    seeds: list[int],
) -> None:
    for seed in seeds:
        try_packed(seed)


def test_mutations_reach_both_sides() -> None:
    for attempt in (try_tar, try_packed):
        results = {attempt(seed) for seed in range(60)}
        assert results == {True, False}
