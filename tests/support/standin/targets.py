"""What a target answers: objects, and the batches for which it is the designated target."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from . import batches, names, reading
from .assembly import Assembly, Timing
from .objects import StoredObject
from .proxies import BUCKETS, OBJECTS, about, all_buckets, not_allowed, object_of, unknown
from .replies import HandlerDied, Refused, Reply, Wait

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .batches import Batches
    from .cluster import Cluster
    from .effects import BatchEffect
    from .names import Bucket
    from .nodes import Target
    from .replies import Call

_WRITES = frozenset({"PUT", "DELETE", "POST", "PATCH"})


class Storage:
    """Answers for all targets.

    Args:
        cluster: The cluster.
        waiting: The batches that wait for their second half.
        timing: How long a designated target waits.
        denies_direct: Refuse what has not come by way of a proxy.
    """

    def __init__(
        self, cluster: Cluster, waiting: Batches, timing: Timing, *, denies_direct: bool
    ) -> None:
        self._cluster = cluster
        self._waiting = waiting
        self._timing = timing
        self.denies_direct = denies_direct
        self.cold_get_s = 0.0
        """How long the backend of a remote bucket takes for one object."""

    def answer(self, call: Call, target: Target, effects: Sequence[BatchEffect]) -> Reply:
        """Answer a request.

        Raises:
            Refused: With an error.
            HandlerDied: Without an answer.
        """
        path = call.path
        if path == "/v1/health":
            return Reply()
        if path == "/v1/daemon":
            return about(call, self._cluster)
        if path == OBJECTS or path.startswith(f"{OBJECTS}/"):
            return self._object(call, target)
        if path.startswith(f"{batches.PATH}/"):
            if call.method != "GET":
                return not_allowed("GET, POST")
            if not call.is_redirected:
                raise Refused(401, "direct target access denied")
            batch, second = self._waiting.take(call, target)
            assembly = Assembly(batch, second, target, self._cluster, self._timing, effects)
            return assembly.reply()
        if path == BUCKETS and call.method == "GET":
            return all_buckets(call, self._cluster)
        if path.startswith(f"{BUCKETS}/"):
            if call.method == "HEAD":
                raise HandlerDied
            if call.method == "GET":
                raise Refused(400, 'list-objects: invalid UUID ""')
            raise Refused(400, f"{target.name}: {call.method}(bucket) requires proxy mediation")
        raise unknown(call)

    def _object(self, call: Call, target: Target) -> Reply:
        bucket, name = object_of(call)
        if not call.is_redirected:
            if self.denies_direct:
                raise Refused(403, "direct target access denied")
            if call.method in _WRITES:
                message = f"{target.name}: {call.method}(obj) is expected to be redirected"
                raise Refused(400, message)
        names.check_object_name(name, is_head=call.method == "HEAD")
        # On the way to GET, AIStore forgets the status of a missing bucket.
        self._cluster.check(bucket, 400 if call.method == "GET" else 404)
        real = self._cluster.resolve(bucket)
        if call.method == "PUT":
            stored = self._put(target, real, name, call.body)
            return Reply(200, reading.stored_headers(stored))
        if call.method == "DELETE":
            if target.store.pop(real, name) is None:
                raise Refused(404, f"{bucket}/{name} doesn't exist")
            self._cluster.check(real).objects.pop(name, None)
            return Reply()
        if call.method not in {"GET", "HEAD"}:
            raise Refused(400, f'invalid action "{call.method}"')
        if call.method == "GET" and "etl_name" in call.query:
            message = "cannot use ETL in a build without ETL support - operation not supported"
            raise Refused(501, message, tcode="ErrUnsupp")
        found, waited = self._find(call, target, real, name)
        if found is None:
            message = f"{target.name}: {bucket}/{name} does not exist"
            raise Refused(404, message, tcode="ErrNotFound")
        if call.method == "HEAD":
            return reading.head(call, target, bucket, name, found)
        reply = reading.get(call, target, bucket, name, found)
        if waited:
            reply.before.append(Wait(waited))
        return reply

    def _find(
        self, call: Call, target: Target, bucket: Bucket, name: str
    ) -> tuple[StoredObject | None, float]:
        """Return an object, from elsewhere if it has to be, and how long that takes."""
        found = target.store.get(bucket, name)
        if bucket.is_remote:
            backend = self._cluster.check(bucket).objects.get(name)
            is_stale = call.query.get("latest-ver") == "true" and found is not backend
            if found is not None and not is_stale:
                return found, 0.0
            if backend is not None and call.method == "GET":
                # Whoever is asked keeps a copy, the owner or not.
                target.store.put(bucket, name, backend)
            return backend, self.cold_get_s
        if found is None and self._cluster.is_rebalancing:
            for neighbour in self._cluster.targets:
                if neighbour.is_up and neighbour is not target:
                    found = neighbour.store.get(bucket, name)
                    if found is not None:
                        neighbour.store.pop(bucket, name)
                        target.store.put(bucket, name, found)
                        break
        return found, 0.0

    def _put(self, target: Target, bucket: Bucket, name: str, data: bytes) -> StoredObject:
        if names.has_long_folder(name):
            message = f"open {bucket.name}/{name}: file name too long"
            raise Refused(500, message, tcode="PathError")
        old = target.store.get(bucket, name)
        stored = StoredObject(data, next_version(old), time.time_ns())
        target.store.put(bucket, name, stored)
        if bucket.is_remote:
            self._cluster.check(bucket).objects[name] = stored
        return stored


def next_version(old: StoredObject | None) -> str:
    """Return the version of an object that is written in the place of another, or of none."""
    return str(int(old.version) + 1 if old is not None else 1)
