"""GetBatch requests: what is checked before the redirect, and what waits for its second half."""

from __future__ import annotations

import base64
import binascii
import json
import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .archives import known_extension
from .names import GLOBAL, Bucket, bucket_of, check_archpath, check_object_name, provider_of
from .nodes import new_id
from .replies import Refused

if TYPE_CHECKING:
    from .cluster import Cluster
    from .nodes import Target
    from .replies import Call

PATH: Final = "/v1/ml/moss"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One entry of a batch.

    Args:
        bucket: Where the object is.
        name: Of the object.
        archpath: Of the file in it; empty: the object itself.
        start: First byte.
        length: Bytes; 0 with a start of 0: all of it; -1: to the end.
        opaque: What comes back with it, as it was sent.
        given: The entry as it was sent.
    """

    bucket: Bucket
    name: str
    archpath: str
    start: int
    length: int
    opaque: str
    given: dict[str, Any]

    @property
    def has_range(self) -> bool:
        """Whether it asks for a part."""
        return self.start != 0 or self.length != 0

    def name_in_archive(self, *, only_name: bool) -> str:
        """Return the name of its member, but for the path in an archive."""
        if only_name:
            return self.name
        if self.given.get("uname"):
            # AIStore forgets the name of such a member.
            return ""
        return f"{self.given.get('bucket') or self.bucket.name}/{self.name}"


@dataclass(frozen=True, slots=True)
class Options:
    """How a batch is to come, as one of the two requests for it says.

    Args:
        extension: Of the archive.
        continues: Put a placeholder for what is missing, and go on.
        only_names: Leave the bucket out of the members' names.
        streams: Send as it is made; otherwise as a whole, in two parts.
    """

    extension: str
    continues: bool
    only_names: bool
    streams: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that was admitted.

    Args:
        job: The id of the job that it belongs to; there is one for each bucket.
        target: The id of its designated target.
        wanted: Its entries.
        first: What the request to the proxy says.  Entries, placeholders and names follow it.
    """

    job: str
    target: str
    wanted: list[Wanted]
    first: Options


class Batches:
    """The batches that a proxy has admitted and no client has fetched."""

    def __init__(self) -> None:
        # By the id of the work item.
        self._waiting: dict[str, Batch] = {}
        # The first designated targets of two stand-ins with the same targets are the same.
        self._random = random.Random(0)
        # By the bucket's name in the path.
        self._jobs: dict[str, str] = {}

    def admit(self, call: Call, cluster: Cluster) -> tuple[Target, str]:
        """Check a request, choose its designated target, and return it with the new path.

        Raises:
            Refused: 400 or 404: one bad entry spoils the whole batch.
        """
        bucket_name = call.path.removeprefix(PATH).strip("/")
        default = bucket_of(bucket_name, call.query) if bucket_name else None
        coloc = call.query.get("coloc", "") or "0"
        if coloc not in {"0", "1", "2"}:
            raise Refused(400, f"invalid 'coloc={coloc}' (expecting 0, 1, or 2)")
        if default is not None:
            cluster.check(default)
        message = _message(call.body)
        wanted = [_wanted(given, default) for given in message["in"]]
        for bucket in {entry.bucket for entry in wanted}:
            cluster.check(bucket)
        if coloc == "0":
            target = self._random.choice(cluster.owners)
        else:
            owners = Counter(cluster.owner(entry.bucket, entry.name).id for entry in wanted)
            node = cluster.members[owners.most_common(1)[0][0]]
            target = next(target for target in cluster.owners if target is node)
        if not target.is_up:
            why = f"dial tcp 127.0.0.1:{target.port}: connect: connection refused"
            raise Refused(400, f'Post "{target.url}{call.path}": {why}', tcode="Error")
        first = _options(message)
        work = new_id(13)
        job = self._jobs.setdefault(bucket_name, f"gbt-{new_id(9)}")
        self._waiting[work] = Batch(job, target.id, wanted, first)
        bucket_part = f"/{bucket_name}" if bucket_name else ""
        return target, f"{PATH}{bucket_part}/{job}/{work}/{len(cluster.owners)}"

    def take(self, call: Call, target: Target) -> tuple[Batch, Options]:
        """Return what a redirected request is about, and what itself says; it can be taken once.

        Raises:
            Refused: 400, for a bad second body; 404, if there is no such batch.
        """
        second = _options(_message(call.body))
        job, work = call.path.split("/")[-3:-1]
        if job not in self._jobs.values():
            raise Refused(404, f'x-moss: xid "{job}" not active')
        batch = self._waiting.get(work)
        if batch is None or batch.target != target.id:
            why = f'x-get-batch[{job}]: wid="{work}" (prep-rx not done?) does not exist'
            raise Refused(404, why, tcode="ErrNotFound")
        del self._waiting[work]
        return batch, second


def _message(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
        entries = message.get("in") or ()
        if not all(isinstance(entry, dict) for entry in entries):
            raise TypeError("an entry is not an object")
    except (ValueError, TypeError, AttributeError) as broken:
        raise Refused(400, f"failed to unmarshal [*apc.MossReq] (GET), err: {broken}") from broken
    if not entries:
        raise Refused(400, "moss: empty input")
    return dict(message)


def _options(message: dict[str, Any]) -> Options:
    return Options(
        extension=known_extension(message.get("mime") or ""),
        continues=bool(message.get("coer")),
        only_names=bool(message.get("onob")),
        streams=bool(message.get("strm")),
    )


def _wanted(given: dict[str, Any], default: Bucket | None) -> Wanted:
    # Within a batch AIStore loses the type of the error.
    try:
        name = given.get("objname") or ""
        check_object_name(name)
        archpath = given.get("archpath") or ""
        if archpath:
            check_archpath(archpath)
    except Refused as refused:
        raise Refused(400, f"unmarshalerDecoder: {refused.message}") from refused
    start, length = given.get("start") or 0, given.get("length") or 0
    if start < 0 or length < -1 or (start and not length):
        asked = f'start={start},length={length} (oname: "{name}")'
        raise Refused(400, f"unmarshalerDecoder: not satisfiable range [{asked}]")
    opaque = given.get("opaque") or ""
    try:
        base64.b64decode(opaque, validate=True)
    except binascii.Error as broken:
        raise Refused(400, f"unmarshalerDecoder: illegal base64 data: {broken}") from broken
    bucket = _bucket(given) or default
    if bucket is None:
        raise Refused(400, f'missing bucket specification for object "{name}"')
    return Wanted(bucket, name, archpath, start, length, opaque, given)


def _bucket(given: dict[str, Any]) -> Bucket | None:
    if uname := given.get("uname"):
        parts = uname.split("/")
        if len(parts) != 4 or parts[3] or not parts[2]:
            raise Refused(400, f'invalid bucket uname "{uname}"')
        return Bucket(parts[2], provider_of(parts[0]), parts[1] or GLOBAL)
    if given.get("bucket"):
        return Bucket(given["bucket"], provider_of(given.get("provider") or ""))
    return None
