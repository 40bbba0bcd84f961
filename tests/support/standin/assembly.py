"""The archive of a batch, as its designated target makes it: in order, with all that goes wrong.

The target reads its own entries and waits for those of its peers.  What a peer does not send comes
late and without its range; a few missing entries are tolerated; whatever ends a streamed batch
early ends it as a short archive with status 200.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from tarfile import BLOCKSIZE
from typing import TYPE_CHECKING, Any, Final

from . import archives
from .effects import CutBatch, ShortBatch, StallBatch, WholeMember
from .nodes import new_id
from .packing import CONTENT_TYPES, packer
from .replies import Abort, Refused, Reply, Wait

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .batches import Batch, Options, Wanted
    from .cluster import Cluster
    from .effects import BatchEffect
    from .nodes import Target
    from .packing import Packer
    from .replies import Buffer, Item

_MISSING: Final = "__404__/"
_MAX_SOFT_ERRORS: Final = 8
_MAX_FETCHED: Final = 5  # entries that a target fetches because a peer did not send them
_TAIL_BYTES: Final = 4096
_BLOCK_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a designated target waits.

    Args:
        peer_s: For an entry that a peer does not send.
        tail_s: Before it sends the last 4 KiB, whatever the batch.
    """

    peer_s: float = 20.0
    tail_s: float = 0.1


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What becomes of one entry: a member, and how the metadata of a buffered batch tell of it."""

    name: str
    data: Buffer
    told: dict[str, Any]


class Assembly:
    """One batch at its designated target.

    Args:
        batch: What was admitted.
        second: What the request says that fetches it: how to pack and to send it.
        target: The designated target.
        cluster: The cluster.
        timing: How long to wait.
        effects: What a test wants to happen to it.
    """

    def __init__(
        self,
        batch: Batch,
        second: Options,
        target: Target,
        cluster: Cluster,
        timing: Timing,
        effects: Sequence[BatchEffect],
    ) -> None:
        self._batch = batch
        self._second = second
        self._target = target
        self._cluster = cluster
        self._timing = timing
        self._effects = effects
        self._soft_errors = 0
        self._fetched = 0
        # Peers that have met an error in this batch, and send no more of it.
        self._silent: set[Target] = set()

    def reply(self) -> Reply:
        """Return the answer.

        Raises:
            Refused: If the batch is not streamed, and something ends it.
        """
        pack = packer(self._second.extension)
        if self._second.streams:
            headers = [("Content-Type", CONTENT_TYPES[self._batch.first.extension])]
            return Reply(200, headers, self._stream(pack), is_chunked=True)
        return self._whole(pack)

    def _stream(self, pack: Packer) -> Iterator[Item]:
        """Yield an archive; the status is sent before anything of it is there."""
        yield Wait(0)
        cuts = {e.after_members for e in self._effects if isinstance(e, CutBatch)}
        buffer = bytearray()
        try:
            num_members = 0
            for outcome in self._outcomes():
                if isinstance(outcome, Wait):
                    yield bytes(buffer)
                    buffer.clear()
                    yield outcome
                    continue
                if outcome.name.endswith("/"):
                    break  # Go's packer refuses a file with the name of a folder
                added = pack.add(outcome.name, outcome.data)
                if num_members in cuts:
                    yield bytes(buffer) + _first_half(added, len(outcome.data))
                    yield Abort()
                num_members += 1
                buffer += added
                if len(buffer) >= _BLOCK_BYTES:
                    yield bytes(buffer[:-_TAIL_BYTES])
                    del buffer[:-_TAIL_BYTES]
        except Refused:
            # The status has been sent: the archive ends here, and is closed as if it were whole.
            pass
        buffer += pack.close()
        yield bytes(buffer[:-_TAIL_BYTES])
        yield Wait(self._timing.tail_s)
        yield bytes(buffer[-_TAIL_BYTES:])

    def _whole(self, pack: Packer) -> Reply:
        waited = self._timing.tail_s
        archive = bytearray()
        told: list[dict[str, Any]] = []
        reply = Reply(is_chunked=True)
        for outcome in self._outcomes():
            if isinstance(outcome, Wait):
                reply.before.append(outcome)
            else:
                archive += pack.add(outcome.name, outcome.data)
                if not self._batch.first.streams:
                    told.append(_in_order(outcome.told))
        archive += pack.close()
        reply.before.append(Wait(waited))
        boundary = new_id(60)
        metadata = json.dumps(
            {"uuid": self._batch.job, "out": told}, ensure_ascii=False, separators=(",", ":")
        )
        reply.headers = [("Content-Type", f"multipart/mixed; boundary={boundary}")]
        reply.body = b"".join(
            (
                f'--{boundary}\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n'
                f"{metadata}\n\r\n--{boundary}\r\n"
                'Content-Disposition: form-data; name="archive"; '
                f'filename="get-batch[{self._batch.job}]"\r\n'
                "Content-Type: application/octet-stream\r\n\r\n".encode(),
                archive,
                f"\r\n--{boundary}--\r\n".encode(),
            )
        )
        return reply

    def _outcomes(self) -> Iterator[_Outcome | Wait]:
        """Yield what becomes of each entry.

        Raises:
            Refused: If something ends the batch; what was yielded is part of it.
        """
        for index, wanted in enumerate(self._batch.wanted):
            ignores_range = False
            for effect in self._effects:
                match effect:
                    case StallBatch(before_member=at, seconds=seconds) if at == index:
                        yield Wait(seconds)
                    case ShortBatch(after_members=at) if at == index:
                        raise Refused(400, "scripted end of a batch")
                    case WholeMember(member=at) if at == index:
                        ignores_range = True
            if self._soft_errors > _MAX_SOFT_ERRORS:
                raise self._too_many()
            owner = self._cluster.owner(wanted.bucket, wanted.name)
            if owner is self._target:
                yield self._own(wanted, ignores_range=ignores_range)
                continue
            sent = self._sent(owner, wanted, ignores_range=ignores_range)
            if sent is not None:
                yield sent
            else:
                yield from self._late(owner, wanted)

    def _own(self, wanted: Wanted, *, ignores_range: bool) -> _Outcome:
        """Return an entry that the target has itself."""
        name = wanted.name_in_archive(only_name=self._batch.first.only_names)
        told = _told(wanted) | {"bucket": wanted.bucket.name, "provider": wanted.bucket.provider}
        missing = f"{wanted.bucket}/{wanted.name}"
        data = _object(self._target, wanted, self._cluster)
        if data is not None and wanted.archpath:
            name = _joined(name, wanted.archpath)
            missing = f"{wanted.archpath} in {missing}"
            data = _file(self._target, wanted, self._cluster)
        if data is None:
            message = f"{self._target.name}: {missing} does not exist"
            if not self._batch.first.continues:
                raise Refused(404, message, tcode="ErrNotFound")
            self._soft_errors += 1
            return _Outcome(_MISSING + name, b"", told | {"err_msg": message, "size": 0})
        if not ignores_range:
            data = _ranged(data, wanted)
        return _Outcome(name, data, told | {"size": len(data)})

    def _sent(self, owner: Target, wanted: Wanted, *, ignores_range: bool) -> _Outcome | None:
        """Return what a peer sends; None, if it sends nothing."""
        if not owner.is_up or self._target.lost_peers or owner in self._silent:
            return None
        name = wanted.name_in_archive(only_name=self._batch.first.only_names)
        told = {"bucket": wanted.bucket.name, "provider": wanted.given.get("provider") or ""}
        told |= {"objname": wanted.name, "opaque": wanted.opaque}
        missing = f"{wanted.bucket}/{wanted.name}"
        data = _object(owner, wanted, self._cluster)
        if wanted.archpath:
            name = f"{name}/{wanted.archpath}"
            told["objname"] = f"{wanted.name}/{wanted.archpath}"
            if data is not None:
                missing = f"{wanted.archpath} in {missing}"
                data = _file_or_none(owner, wanted, self._cluster)
        if data is None:
            self._soft_errors += 1
            if self._soft_errors > _MAX_SOFT_ERRORS:
                raise self._too_many()
            # A peer sends a placeholder even where the client wants none.
            message = f"{owner.name}: {missing} does not exist"
            return _Outcome(_MISSING + name, b"", told | {"err_msg": message, "size": 0})
        if not name:
            # AIStore takes what has no name for what has not come.
            return None
        if not ignores_range:
            try:
                data = _ranged(data, wanted)
            except Refused:
                self._silent.add(owner)
                return None
        return _Outcome(name, data, told | {"size": len(data)})

    def _late(self, owner: Target, wanted: Wanted) -> Iterator[_Outcome | Wait]:
        """Yield an entry that the target fetches itself, because the peer has not sent it."""
        yield Wait(self._timing.peer_s)
        if self._fetched >= _MAX_FETCHED:
            raise Refused(400, "timed out waiting for missing entry", tcode="errHole")
        self._fetched += 1
        if not owner.is_up:
            raise Refused(
                400,
                f"{self._target.name}: GFN({wanted.bucket}/{wanted.name}): dial tcp "
                f"127.0.0.1:{owner.port}: connect: connection refused",
                tcode="wrapError",
            )
        name = wanted.name_in_archive(only_name=self._batch.first.only_names)
        told = _told(wanted) | {"bucket": wanted.bucket.name, "provider": wanted.bucket.provider}
        data = _object(owner, wanted, self._cluster)
        if wanted.archpath:
            name = _joined(name, wanted.archpath)
            data = None if data is None else _file(owner, wanted, self._cluster)
        if data is None:
            message = f"{owner.name}: {wanted.bucket}/{wanted.name} does not exist"
            if not self._batch.first.continues:
                raise Refused(404, message, tcode="ErrNotFound")
            self._soft_errors += 1
            yield _Outcome(_MISSING + name, b"", told | {"err_msg": message, "size": 0})
            return
        # The request to the peer names no range: the whole of it comes.
        yield _Outcome(name, data, told | {"size": len(data)})

    def _too_many(self) -> Refused:
        return Refused(
            400,
            f"exceeded soft-errors limit: {self._soft_errors} (max: {_MAX_SOFT_ERRORS})",
        )


def _first_half(added: bytes, data_bytes: int) -> bytes:
    """Return a member of an archive, up to the middle of its data."""
    padded_bytes = -(-data_bytes // BLOCKSIZE) * BLOCKSIZE
    # A compressed member may be shorter than its data.
    return added[: max(len(added) - padded_bytes + data_bytes // 2, len(added) // 2)]


def _object(target: Target, wanted: Wanted, cluster: Cluster) -> Buffer | None:
    stored = target.store.get(cluster.resolve(wanted.bucket), wanted.name)
    return None if stored is None else stored.data


def _file(target: Target, wanted: Wanted, cluster: Cluster) -> Buffer | None:
    stored = target.store.get(cluster.resolve(wanted.bucket), wanted.name)
    assert stored is not None
    return archives.find(stored, wanted.name, wanted.archpath)


def _file_or_none(target: Target, wanted: Wanted, cluster: Cluster) -> Buffer | None:
    try:
        return _file(target, wanted, cluster)
    except Refused:
        return None


def _ranged(data: Buffer, wanted: Wanted) -> Buffer:
    if not wanted.has_range:
        return data
    start, length, size = wanted.start, wanted.length, len(data)
    if start >= size or (length != -1 and length > size - start):
        raise Refused(
            400,
            f"size={size}: not satisfiable range [start={start},length={length}]",
            tcode="ErrRangeNotSatisfiable",
        )
    return memoryview(data)[start : size if length == -1 else start + length]


def _in_order(told: dict[str, Any]) -> dict[str, Any]:
    order = ("objname", "archpath", "bucket", "provider", "opaque", "err_msg", "size")
    # Only these are told when they are empty.
    always = {"objname", "bucket", "provider", "size"}
    return {key: told[key] for key in order if key in told and (told[key] or key in always)}


def _joined(name: str, archpath: str) -> str:
    return name + archpath if archpath.startswith("/") else f"{name}/{archpath}"


def _told(wanted: Wanted) -> dict[str, Any]:
    told: dict[str, Any] = {"objname": wanted.name, "opaque": wanted.opaque}
    if wanted.archpath:
        told["archpath"] = wanted.archpath
    return told
