"""Cases of the readers of shards of AIStore's package: the drop-in classes, over a daemon.

The recorded shards are put as tars into buckets of a stand-in for AIStore.  Of a recorded worker
the class is told that it runs in one.

Two things deviate.  A sample has the fields of all files from the first sample on, so what was
recorded with fewer empty fields, or with those that only folders or links are named by, has to
agree in all else.  And where an original loses a member, the rule that loses none is run.
"""

from __future__ import annotations

import tarfile
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Self

from aistore.sdk import Client

from headrace.compat.aistore import AISMultiShardStream, AISShardReader, DataShard
from headrace.members import aistore_extension
from headrace_daemon.settings import StoreSettings
from tests.support.app import AppThread
from tests.support.posing import posing_as_worker
from tests.support.shards import tar_of
from tests.support.standin import StandIn

from .verdicts import Result, Verdict, deviates, mismatch, reproduced

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .cases import Case

KINDS: Final = ("AISShardReader", "AISMultiShardStream")

_TYPES: Final = {"dir": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE}

_Samples = list[list[Any]]
"""Of a reader: ``[basename, {extension: text}]``."""


def check(case: Case) -> Result:
    """Return the verdict on a case."""
    if case.kind == "AISMultiShardStream":
        if case.match != "deviate":
            return reproduced(case, join)
        return deviates(case, lambda case: join(case)["samples"], _joined(case))
    if case.match == "deviate" and _loses_a_member(case):
        return deviates(
            case,
            lambda case: sorted(_contents(read(case, rule="webdataset")["samples"])),
            sorted(member["text"] for member in _files(case)),
        )
    result = reproduced(case, read)
    is_judged = result.verdict is Verdict.MISMATCH or case.match == "deviate"
    if not is_judged or case.error is not None:
        return result
    difference = _beside_empty_fields(case)
    return mismatch(difference) if difference else Result(Verdict.DEVIATING)


def read(case: Case, **options: Any) -> dict[str, Any]:  # noqa: ANN401 - those of the class
    """Run a case of the shard reader."""
    with _store(case.inputs["buckets"]) as (endpoint, names, socket):
        client = Client(endpoint)
        buckets = [client.bucket(name) for name in names]
        prefixes = {buckets[int(n)]: chosen for n, chosen in case.config["prefixes"].items()}
        partition = case.config["partition_sources_by_worker"]
        reader = AISShardReader(
            buckets, prefixes, None, False, partition, socket=socket, samples_per_step=3, **options
        )
        try:
            number, num_workers = case.config["worker"] or (0, 0)
            poses = posing_as_worker(number, num_workers, reader) if num_workers else nullcontext()
            with poses:
                for _ in range(case.inputs["pass"]):
                    list(reader)
                samples = list(reader)
        finally:
            reader.close()
    return {
        "samples": [
            [key, {field: value.decode() for field, value in fields.items()}]
            for key, fields in samples
        ]
    }


def join(case: Case) -> dict[str, Any]:
    """Run a case of the joined streams."""
    streams = case.inputs["streams"]
    with _store(streams) as (endpoint, names, socket):
        sources = [
            DataShard(endpoint, name, prefix=stream["prefix"])
            for name, stream in zip(names, streams, strict=True)
        ]
        joined = AISMultiShardStream(sources, socket=socket, samples_per_step=3)
        try:
            samples = list(joined)
        finally:
            joined.close()
    return {"samples": [[value.decode() for value in sample] for sample in samples]}


class Place:
    """A stand-in for AIStore, and a daemon that reads it; a context manager, which starts late."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._server: StandIn | None = None
        self._socket = ""
        self._numbers = count()

    def filled(self, buckets: Sequence[Mapping[str, Any]]) -> tuple[str, list[str], str]:
        """Put shards into new buckets; return where these are, their names, and a socket."""
        if self._server is None:
            self._server = self._stack.enter_context(StandIn())
            settings = StoreSettings(endpoints=(self._server.endpoint,))
            app = self._stack.enter_context(AppThread().configure(store=settings))
            self._socket = app.socket
        names = [f"bucket-{next(self._numbers)}" for _ in buckets]
        for name, bucket in zip(names, buckets, strict=True):
            self._server.create_bucket(name)
            shards = {shard["name"]: _tar(shard) for shard in bucket["shards"]}
            self._server.put_many(name, shards)
        return self._server.endpoint, names, self._socket

    def __enter__(self) -> Self:
        _places.append(self)
        return self

    def __exit__(self, *details: object) -> None:
        _places.remove(self)
        self._stack.close()


_places: list[Place] = []
"""Those that are there; cases use the last one."""


@contextmanager
def _store(buckets: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str], str]]:
    """Yield what `Place.filled` returns, of a place for this once if there is none."""
    if _places:
        yield _places[-1].filled(buckets)
        return
    with Place() as place:
        yield place.filled(buckets)


def _tar(shard: Mapping[str, Any]) -> bytes:
    if shard.get("garbage"):
        return b"no tar" * 500
    members: list[tuple[str, bytes] | tarfile.TarInfo] = []
    for member in shard["members"]:
        kind = member.get("type")
        if kind is None:
            members.append((member["name"], member["text"].encode()))
            continue
        info = tarfile.TarInfo(member["name"])
        info.type = _TYPES[kind]
        info.linkname = member.get("target", "")
        members.append(info)
    return tar_of(members)


# ---- what is owed ------------------------------------------------------------------------------


def _files(case: Case) -> list[Mapping[str, Any]]:
    """Return the files in all shards of a case."""
    return [
        member
        for bucket in case.inputs["buckets"]
        for shard in bucket["shards"]
        for member in shard["members"]
        if "type" not in member
    ]


def _contents(samples: _Samples) -> list[str]:
    return [text for _, fields in samples for text in fields.values() if text]


def _loses_a_member(case: Case) -> bool:
    """Return whether something of a case that is read as a whole is not in the record."""
    is_whole = case.config["worker"] is None and not case.config["prefixes"]
    return is_whole and len(_contents(case.record["samples"])) < len(_files(case))


def _beside_empty_fields(case: Case) -> str:
    """Return where our samples differ from the record in more than empty fields; or nothing."""
    ours, recorded = read(case)["samples"], case.record["samples"]
    if [key for key, _ in ours] != [key for key, _ in recorded]:
        return f"keys are {[key for key, _ in ours]}, owed {[key for key, _ in recorded]}"
    known = {aistore_extension(member["name"]) for member in _files(case)}
    fixed = set(ours[0][1]) if ours else set()
    for (key, found), (_, owed) in zip(ours, recorded, strict=True):
        if set(found) != fixed or not fixed <= known:
            return f"sample {key!r} has fields {sorted(found)}, the first one {sorted(fixed)}"
        for field in {*found, *owed}:
            if found.get(field, "") != owed.get(field, ""):
                return f"{field} of {key!r} is {found.get(field)!r}, owed is {owed.get(field)!r}"
            if field not in found and field in known:
                return f"sample {key!r} has no field {field!r}, which a file has"
    return ""


def _joined(case: Case) -> list[list[str]]:
    """Return the members of all shards of each stream side by side, as a plain loop has them."""
    streams = [
        [
            member["text"]
            for shard in sorted(stream["shards"], key=lambda shard: str(shard["name"]))
            if shard["name"].startswith(stream["prefix"])
            for member in sorted(shard["members"], key=lambda member: str(member["name"]))
        ]
        for stream in case.inputs["streams"]
    ]
    return [list(sample) for sample in zip(*streams, strict=False)]
