"""The cluster: its map, its buckets, and who owns what.

Nodes leave and enter the *map* on their own schedule, not when they stop answering: a dead node
stays in the map until a test takes it out, as it stays for tens of seconds in a real cluster.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from . import hrw
from .buckets import BucketState
from .nodes import Node, Proxy, Target, new_id
from .replies import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .names import Bucket
    from .objects import StoredObject

_PRIMARY_FLAGS: Final = 2  # what a real primary shows: it keeps the state of jobs


class Cluster:
    """All nodes that ever were, the map, and the buckets."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.members: dict[str, Node] = {}
        self.version = 0
        self.uuid = new_id(9)
        self.created = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        self.buckets: dict[Bucket, BucketState] = {}
        self.has_moved = False
        """Whether owners have changed since all objects were at their owner."""
        self.is_rebalancing = False
        """Whether lists say that they may be incomplete, and targets ask their neighbours."""

    def enter(self, node: Node) -> None:
        """Put a node into the map."""
        self.nodes[node.id] = node
        self.members[node.id] = node
        self._changed()

    def leave(self, node: Node) -> None:
        """Take a node out of the map.

        Raises:
            ValueError: If it is not in it, or its last proxy.
        """
        if node.id not in self.members:
            raise ValueError(f"{node.name} is not in the map")
        if self.proxies == [node]:
            raise ValueError(f"{node.name} is the last proxy in the map")
        del self.members[node.id]
        self._changed()

    def set_flags(self, node: Node, flags: int) -> None:
        """Change a node's flags in the map."""
        node.flags = flags
        self._changed()

    def _changed(self) -> None:
        self.version += 1
        self.has_moved = True

    @property
    def proxies(self) -> list[Proxy]:
        """The proxies in the map; the primary is the first."""
        return [node for node in self.members.values() if isinstance(node, Proxy)]

    @property
    def targets(self) -> list[Target]:
        """The targets in the map, those in maintenance too."""
        return [node for node in self.members.values() if isinstance(node, Target)]

    @property
    def owners(self) -> list[Target]:
        """The targets that own objects.

        Raises:
            Refused: 503, if there are none.
        """
        owners = [target for target in self.targets if target.owns]
        if not owners:
            raise Refused(503, "no targets in the cluster", tcode="ErrNoNodes")
        return owners

    def owner(self, bucket: Bucket, name: str) -> Target:
        """Return the target that owns an object by the present map."""
        return hrw.owner(self.resolve(bucket).full_name(name), self.owners)

    def smap(self) -> dict[str, Any]:
        """Return the map as it goes over the wire."""
        proxies = self.proxies
        for proxy in proxies:
            proxy.flags = _PRIMARY_FLAGS if proxy is proxies[0] else 0
        return {
            "pmap": {node.id: node.in_map() for node in proxies},
            "proxy_si": proxies[0].in_map(),
            "tmap": {node.id: node.in_map() for node in self.targets},
            "uuid": self.uuid,
            "creation_time": self.created,
            "version": str(self.version),
        }

    def create(
        self, bucket: Bucket, backend: Bucket | None = None, *, has_sizes: bool = True
    ) -> None:
        """Create a bucket.

        Raises:
            Refused: 409 `ErrBucketAlreadyExists`.
        """
        if bucket in self.buckets:
            raise Refused(409, f'bucket "{bucket}" already exists', tcode="ErrBucketAlreadyExists")
        self.buckets[bucket] = BucketState(
            len(self.buckets) + 1, time.time_ns(), backend, has_sizes=has_sizes
        )

    def destroy(self, bucket: Bucket) -> None:
        """Remove a bucket and all in it.

        Raises:
            Refused: 404 `ErrBckNotFound`.
        """
        self.check(bucket)
        del self.buckets[bucket]
        for node in self.nodes.values():
            if isinstance(node, Target):
                node.store.drop(bucket)

    def check(self, bucket: Bucket, status: int = 404) -> BucketState:
        """Return what is known about a bucket.

        Raises:
            Refused: `status`, if there is no such bucket.
        """
        state = self.buckets.get(bucket)
        if state is not None:
            return state
        if bucket.is_remote and not self.has_backend(bucket.provider):
            why = f"{bucket.provider.upper()} backend is missing in the cluster configuration"
            raise Refused(
                status, f"failed to lookup bucket {bucket}, err: {why}", tcode="ErrFailedTo"
            )
        tcode = "ErrRemoteBckNotFound" if bucket.is_remote else "ErrBckNotFound"
        raise Refused(status, f'bucket "{bucket}" does not exist', tcode=tcode)

    def has_backend(self, provider: str) -> bool:
        """Return whether there are buckets of a provider."""
        return any(bucket.provider == provider for bucket in self.buckets)

    def resolve(self, bucket: Bucket) -> Bucket:
        """Return the bucket that holds the objects: the backend's, where there is one."""
        state = self.buckets.get(bucket)
        return state.backend if state is not None and state.backend is not None else bucket

    def copies(self, bucket: Bucket, name: str) -> list[StoredObject]:
        """Return every copy of an object, on the disks of all nodes."""
        found = (target.store.get(bucket, name) for target in self._disks())
        return [stored for stored in found if stored is not None]

    def rebalance(self) -> None:
        """Move every object to its owner by the present map."""
        for target in self._disks():
            if target.id not in self.members or not target.is_up:
                continue
            for bucket in target.store.buckets():
                for name in target.store.names(bucket):
                    owner = self.owner(bucket, name)
                    if owner is not target:
                        stored = target.store.pop(bucket, name)
                        if stored is not None:
                            owner.store.put(bucket, name, stored)
        self.has_moved = False

    def _disks(self) -> Iterable[Target]:
        return [node for node in self.nodes.values() if isinstance(node, Target)]
