"""GetBatch requests: what is checked before the redirect, and what waits for its second half."""

from __future__ import annotations

import base64
import binascii
import json
import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from . import archives
from .cluster import new_id
from .names import GLOBAL, Bucket, bucket_of, check_object_name, provider_of
from .replies import Refused

if TYPE_CHECKING:
    from .cluster import Cluster, Target
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
    """How a batch is to come.

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


class Batches:
    """The batches that a proxy has admitted and no client has fetched."""

    def __init__(self) -> None:
        # By the work item's id: the designated target's id and the entries.
        self._waiting: dict[str, tuple[str, list[Wanted]]] = {}

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
        wanted = [_wanted(given, default) for given in _entries(call.body)]
        for bucket in {entry.bucket for entry in wanted}:
            cluster.check(bucket)
        if coloc == "0":
            target = random.choice(cluster.owners)
        else:
            owners = Counter(cluster.owner(entry.bucket, entry.name).id for entry in wanted)
            node = cluster.members[owners.most_common(1)[0][0]]
            target = next(target for target in cluster.owners if target is node)
        if not target.is_up:
            raise Refused(
                400,
                f"failed to call {target.name}: dial tcp 127.0.0.1:{target.port}: "
                "connect: connection refused",
                tcode="ErrFailedTo",
            )
        work = new_id(13)
        self._waiting[work] = (target.id, wanted)
        bucket_part = f"/{bucket_name}" if bucket_name else ""
        path = f"{PATH}{bucket_part}/gbt-{new_id(9)}/{work}/{len(cluster.owners)}"
        return target, path

    def take(self, call: Call, target: Target) -> tuple[list[Wanted], Options]:
        """Return what a redirected request is about; it can be taken once.

        Raises:
            Refused: 400, for a bad second body; 404, if there is no such batch.
        """
        _entries(call.body)
        work = call.path.split("/")[-2]
        node, wanted = self._waiting.get(work, ("", []))
        if node != target.id:
            raise Refused(404, f'x-moss: wid="{work}" (prep-rx not done?) does not exist')
        del self._waiting[work]
        given = json.loads(call.body)
        return wanted, Options(
            extension=_extension(given.get("mime") or ""),
            continues=bool(given.get("coer")),
            only_names=bool(given.get("onob")),
            streams=bool(given.get("strm")),
        )


def _entries(body: bytes) -> list[dict[str, Any]]:
    try:
        given = json.loads(body)
        entries = given.get("in")
        if not all(isinstance(entry, dict) for entry in entries or ()):
            raise TypeError("an entry is not an object")
    except (ValueError, TypeError, AttributeError) as broken:
        raise Refused(400, f"failed to unmarshal moss request: {broken}") from broken
    if not entries:
        raise Refused(400, "moss: empty input")
    return list(entries)


def _wanted(given: dict[str, Any], default: Bucket | None) -> Wanted:
    name = given.get("objname") or ""
    if not name:
        raise Refused(400, "object name is empty")
    # Within a batch AIStore loses the type of the error.
    try:
        check_object_name(name)
        archpath = given.get("archpath") or ""
        if archpath:
            archives.check_path(archpath)
    except Refused as refused:
        raise Refused(400, refused.message) from refused
    start, length = given.get("start") or 0, given.get("length") or 0
    if start < 0 or length < -1 or (start and not length):
        raise Refused(
            400, f"not satisfiable range [start={start},length={length} (oname: {name!r})]"
        )
    opaque = given.get("opaque") or ""
    try:
        base64.b64decode(opaque, validate=True)
    except binascii.Error as broken:
        raise Refused(400, f"illegal base64 data in opaque: {broken}") from broken
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


def _extension(word: str) -> str:
    dotted = word if word.startswith(".") else f".{word}"
    return dotted if dotted in {".tgz", ".tar.gz", ".zip", ".tar.lz4"} else ".tar"
