"""Lists of objects: pages over all targets, in JSON and msgpack."""

from __future__ import annotations

import json
import re
import time
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import msgpack

from . import archives
from .names import has_dots, is_long
from .nodes import new_id
from .reading import location
from .replies import Refused, Reply

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .cluster import Cluster
    from .names import Bucket
    from .nodes import Proxy, Target
    from .objects import StoredObject
    from .replies import Call

_MAX_PAGE: Final = {"ais": 10_000, "aws": 1000, "gcp": 1000, "azure": 5000, "oci": 1000}
_TYPES: Final = {
    "uuid": str,
    "prefix": str,
    "props": str,
    "continuation_token": str,
    "start_after": str,
    "flags": str,
    "pagesize": int,
    "time_format": str,
    "target": str,
    "sid": str,
    "hdr": dict,
}
_UUID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{7,}[A-Za-z0-9]")
# Bits of the request.
_CACHED: Final = 1 << 0
_MISSING: Final = 1 << 1
_ARCHIVES: Final = 1 << 3
_NAME_ONLY: Final = 1 << 4
_NOT_CACHED: Final = 1 << 9
_NO_RECURSION: Final = 1 << 11
# Bits of an entry.
_MISPLACED: Final = 1
_IS_CACHED: Final = 1 << 6
_IN_ARCHIVE: Final = 1 << 7
_IS_DIR: Final = 1 << 8
_IS_ARCHIVE: Final = 1 << 9


@dataclass(frozen=True, slots=True)
class _Question:
    uuid: str
    prefix: str
    props: frozenset[str]
    token: str
    start_after: str
    flags: int
    page: int


@dataclass(slots=True)
class _Entry:
    name: str
    flags: int
    size: int = 0
    # None for what is inside of an archive, and for folders.
    stored: StoredObject | None = None
    target: Target | None = None


class Listing:
    """Answers requests for lists; remembers the ids that it has given out."""

    def __init__(self) -> None:
        self._uuids: set[str] = set()

    def page(self, call: Call, proxy: Proxy, cluster: Cluster, bucket: Bucket) -> Reply:
        """Answer with a page.

        Raises:
            Refused: 400, for a bad request, or if a target in the map is down.
        """
        question = _question(call, proxy, bucket)
        for target in cluster.targets:
            if target.owns and not target.is_up:
                raise Refused(
                    400,
                    f"{proxy.name}: failed to call {target.name} list-objects: "
                    f"Get {target.url}/v1/buckets/{bucket.name}: dial tcp "
                    f"127.0.0.1:{target.port}: connect: connection refused",
                    tcode="ErrFailedTo",
                )
        # One that it has forgotten, or never heard of, is as good as its own.
        if question.uuid and not _UUID.fullmatch(question.uuid):
            raise Refused(400, f'list-objects: invalid UUID "{question.uuid}"')
        is_known = question.uuid in self._uuids
        entries, token = _page(question, cluster, bucket, is_known=is_known)
        uuid = question.uuid or new_id(9)
        if token:
            self._uuids.add(uuid)
        else:
            self._uuids.discard(uuid)
        flags = int(cluster.is_rebalancing)
        if "application/msgpack" in call.headers.get("Accept", ""):
            packed = {
                "UUID": uuid,
                "ContinuationToken": token,
                "Entries": [_packed(entry, question.props) for entry in entries],
                "Flags": flags,
            }
            body = msgpack.packb(packed, unicode_errors="surrogateescape")
            return Reply(200, [("Content-Type", "application/msgpack")], body)
        listed = {
            "uuid": uuid,
            "continuation_token": token,
            "entries": [_written(entry, question.props) for entry in entries] or None,
            "flags": flags,
        }
        text = json.dumps(listed, ensure_ascii=False, separators=(",", ":")) + "\n"
        headers = [("Content-Type", "application/json; charset=utf-8")]
        return Reply(200, headers, text.encode("utf-8", "surrogateescape"))


def _question(call: Call, proxy: Proxy, bucket: Bucket) -> _Question:
    value = json.loads(call.body).get("value") if call.body else {}
    if value is None:
        raise Refused(
            400,
            f'bad list-buckets request: "{bucket.name}" vs "" ({bucket}, actm[list])',
        )
    for key, given in value.items():
        expected = _TYPES.get(key)
        if expected is None or type(given) is not expected:
            why = "found unknown field" if expected is None else "unexpected type"
            raise Refused(
                400,
                f"{proxy.name}: failed to unmarshal list (map[string]interface {{}}), "
                f"err: apc.LsoMsg.ReadObject: {why}: {key}",
            )
    flags = value.get("flags", "0")
    if not flags.isdecimal():
        raise Refused(400, f"{proxy.name}: failed to unmarshal list: apc.LsoMsg.Flags: {flags}")
    prefix = value.get("prefix", "")
    if has_dots(prefix):
        raise Refused(
            400, f'bad list-objects request: invalid prefix "{prefix}"', tcode="errInvalidPath"
        )
    asked = value.get("pagesize", 0)
    # A real cluster loses all its targets by that.
    assert asked >= 0, f"pagesize is {asked}: a negative one ends every target of a real cluster"
    limit = _MAX_PAGE[bucket.provider]
    page = asked or limit
    bits = int(flags)
    props = value.get("props") or "name,size"
    if bits & _NAME_ONLY:
        props = "name"
    return _Question(
        uuid=value.get("uuid", ""),
        prefix=prefix,
        props=frozenset(props.replace(" ", "").split(",")),
        token=value.get("continuation_token", ""),
        start_after="" if value.get("continuation_token") else value.get("start_after", ""),
        flags=bits,
        page=min(page, limit) if bucket.is_remote else page,
    )


def _page(
    question: _Question, cluster: Cluster, bucket: Bucket, *, is_known: bool
) -> tuple[list[_Entry], str]:
    entries = _entries(question, cluster, bucket, is_known=is_known)
    if question.flags & _NO_RECURSION:
        entries = _folded(entries, question.prefix)
    page: list[_Entry] = []
    last = question.token or question.start_after
    for entry in entries:
        if entry.name <= last:
            continue  # on an earlier page, or a second copy
        page.append(entry)
        last = entry.name
        if len(page) == question.page:
            # A full page has a token even if nothing comes after it.
            return page, last
    return page, ""


def _entries(
    question: _Question, cluster: Cluster, bucket: Bucket, *, is_known: bool
) -> Iterator[_Entry]:
    """Yield what a list has, sorted, from about where it goes on; known is one under way."""
    real = cluster.resolve(bucket)
    after = question.token
    if question.flags & _NO_RECURSION or (question.flags & _ARCHIVES and is_known):
        # What comes after the token may lie in a folder or an archive that comes before it.
        # Without its id a list goes on at the next archive: the rest of the members is lost.
        after = ""
    if real.is_remote and not question.flags & (_CACHED | _ARCHIVES):
        return _remote(question, cluster, real, after)
    walks = [_walk(target, cluster, real, question, after) for target in cluster.owners]
    if question.flags & _ARCHIVES:
        walks = [_with_members(walk, question) for walk in walks]
    return merge(*walks, key=_by_name)


def _walk(
    target: Target, cluster: Cluster, bucket: Bucket, question: _Question, after: str
) -> Iterator[_Entry]:
    """Yield the objects of a target, sorted by their names as a list shows them.

    A target walks its files, and prefix and token are compared with the names of those.  One with
    a long name has a file that comes before most others, so that its name may end a page that has
    not come so far: what lies between is lost with AIStore.
    """
    files, odd = target.store.files(bucket)
    if target.store.has_folder(bucket, question.prefix):
        # Then AIStore walks that folder, and does not see what begins with its name beside it.
        question = replace(question, prefix=f"{question.prefix}/")
    start = max(bisect_left(files, question.prefix), bisect_right(files, after))
    walk = _in_files(target, cluster, bucket, question, start)
    if not odd:
        return walk
    is_plain = not question.flags & (_ARCHIVES | _NO_RECURSION)
    return iter(sorted(islice(walk, question.page if is_plain else None), key=_by_name))


def _in_files(
    target: Target, cluster: Cluster, bucket: Bucket, question: _Question, start: int
) -> Iterator[_Entry]:
    """Yield the objects in the files of a target; those that belong elsewhere only if asked for."""
    files, odd = target.store.files(bucket)
    for index in range(start, len(files)):
        file = files[index]
        if not file.startswith(question.prefix):
            return
        name = odd.get(file, file)
        shown = name if is_long(name) else file
        stored = target.store.get(bucket, name)
        assert stored is not None
        flags = _IS_CACHED
        # Whose it is follows from the name that the file tells.
        if (cluster.has_moved or shown != name) and cluster.owner(bucket, shown) is not target:
            if not question.flags & _MISSING:
                continue
            flags |= _MISPLACED
        yield _Entry(shown, flags, len(stored.data), stored, target)


def _by_name(entry: _Entry) -> str:
    return entry.name


def _remote(question: _Question, cluster: Cluster, bucket: Bucket, after: str) -> Iterator[_Entry]:
    state = cluster.check(bucket)
    objects = state.objects
    for name in sorted(objects):
        if name <= after or not name.startswith(question.prefix):
            continue
        target = cluster.owner(bucket, name)
        stored = target.store.get(bucket, name)
        if stored is None:
            known = state.has_sizes
            yield _Entry(
                name, 0, len(objects[name].data) if known else 0, objects[name] if known else None
            )
        elif not question.flags & _NOT_CACHED:
            yield _Entry(name, _IS_CACHED, len(stored.data), stored, target)


def _with_members(walk: Iterator[_Entry], question: _Question) -> Iterator[_Entry]:
    """Return a page of a target's objects and of what is in its archives, sorted.

    An archive that cannot be read ends the walk: what comes after it on that target is not listed.
    Pages are cut before the names are cleaned, so that AIStore may lose what lies between.
    """
    found: list[tuple[str, _Entry]] = []
    for entry in walk:
        found.append((entry.name, entry))
        assert entry.stored is not None
        try:
            members = archives.listed(entry.name, entry.stored)
        except Refused:
            break
        if members is not None:
            entry.flags |= _IS_ARCHIVE
            flags = _IS_CACHED | _IN_ARCHIVE
            found += [
                (f"{entry.name}/{stored}", _Entry(f"{entry.name}/{cleaned}", flags, size))
                for stored, cleaned, size in members
            ]
    found.sort(key=itemgetter(0))
    left = (entry for _, entry in found if entry.name > question.token)
    return iter(sorted(islice(left, question.page), key=_by_name))


def _folded(entries: Iterator[_Entry], prefix: str) -> Iterator[_Entry]:
    """Replace what lies in folders by the folders."""
    inside = prefix.removesuffix("/")
    objects: list[_Entry] = []
    folders: dict[str, None] = {}
    for entry in entries:
        rest = entry.name[len(inside) :]
        lead = "/" if inside and rest.startswith("/") else ""
        first, slash, _ = rest.removeprefix(lead).partition("/")
        if slash:
            folders[f"{inside}{lead}{first}/"] = None
        else:
            objects.append(entry)
    found = [*objects, *(_Entry(name, _IS_DIR) for name in folders)]
    found.sort(key=_by_name)
    return iter(found)


def _packed(entry: _Entry, props: frozenset[str]) -> dict[str, Any]:
    packed: dict[str, Any] = {"n": entry.name}
    stored = entry.stored
    if stored is not None:
        if "checksum" in props:
            packed["cs"] = stored.checksum
        if "atime" in props:
            packed["a"] = _to_the_minute(stored.read_ns)
        if "version" in props:
            packed["v"] = stored.version
        if "location" in props and entry.target is not None:
            packed["t"] = location(entry.target)
        if "custom" in props and stored.custom:
            packed["m"] = f"[{' '.join(f'{key}:{value}' for key, value in stored.custom.items())}]"
    if entry.size and ("size" in props or entry.flags & _IN_ARCHIVE):
        packed["s"] = entry.size
    if "copies" in props and entry.target is not None:
        packed["c"] = 1
    packed["f"] = entry.flags
    return packed


_LONG: Final = {
    "n": "name",
    "cs": "checksum",
    "a": "atime",
    "v": "version",
    "t": "location",
    "m": "custom-md",
    "s": "size",
    "c": "copies",
    "f": "flags",
}


def _written(entry: _Entry, props: frozenset[str]) -> dict[str, Any]:
    written = {_LONG[key]: value for key, value in _packed(entry, props).items()}
    if "size" in written:
        written["size"] = str(written["size"])
    return written


def _to_the_minute(time_ns: int) -> str:
    return time.strftime("%d %b %y %H:%M UTC", time.gmtime(time_ns / 1e9))
