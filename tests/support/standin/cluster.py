"""The cluster: its map, its buckets, and who owns what.

Nodes leave and enter the *map* on their own schedule, not when they stop answering: a dead node
stays in the map until a test takes it out, as it stays for tens of seconds in a real cluster.
"""

from __future__ import annotations

import base64
import random
import string
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from . import hrw
from .objects import Store, StoredObject
from .replies import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .listener import Listener
    from .names import Bucket

MAINTENANCE: Final = 4
"""The flag of a target in maintenance: it owns nothing."""
DECOMMISSION: Final = 8
"""The flag of a target that is leaving for good: it owns nothing."""
_RATE: Final = {"interval": "1m", "max_tokens": 1000, "enabled": False}
_PRIMARY_FLAGS: Final = 2  # what a real primary shows: it keeps the state of jobs


class Node:
    """A proxy or a target.

    Args:
        node_id: Its id, unique.
        listener: Its port.
        run: Runs a function or coroutine function on the stand-in's loop, and waits for it.
    """

    kind = ""

    def __init__(
        self, node_id: str, listener: Listener, run: Callable[[Callable[[], object]], object]
    ) -> None:
        self.id = node_id
        self.digest = hrw.digest(node_id)
        self.flags = 0
        self.listener = listener
        self._run = run

    @property
    def port(self) -> int:
        """Its port on 127.0.0.1, the same for the life of the node."""
        return self.listener.port

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_up(self) -> bool:
        """Whether it listens."""
        return self.listener.is_open

    @property
    def name(self) -> str:
        """Its id as AIStore writes it: ``t[id]``."""
        return f"{self.kind[0]}[{self.id}]"

    def stop(self) -> None:
        """Let it die: its connections are reset, its port refuses; the map does not change."""
        self._run(self.die)

    def start(self) -> None:
        """Start it again on the same port, with what is on its disks; the map does not change."""
        self._run(self.listener.open)

    def die(self) -> None:
        """Do what `stop` does, on the stand-in's thread."""
        self.listener.close()

    def in_map(self) -> dict[str, Any]:
        """Return what the map says about it."""
        net = {
            "node_ip_addr": "127.0.0.1",
            "daemon_port": str(self.port),
            "direct_url": self.url,
        }
        return {
            "public_net": net,
            "intra_control_net": net,
            "intra_data_net": net,
            "daemon_type": self.kind,
            "daemon_id": self.id,
            "flags": self.flags,
            "id_digest": self.digest,
        }

    def __repr__(self) -> str:
        return f"<{self.name} at {self.port}>"


class Proxy(Node):
    """A gateway: it knows the map, lists, and sends clients to targets."""

    kind = "proxy"

    def in_map(self) -> dict[str, Any]:
        """Return what the map says about it."""
        key = base64.b64encode(self.id.encode().ljust(32, b"\0")).decode()
        return super().in_map() | {"verifying_key": key}


class Target(Node):
    """A node with disks.

    `lost_peers` says that its peers cannot send it anything: so it is after it died and came back.
    """

    kind = "target"

    def __init__(
        self, node_id: str, listener: Listener, run: Callable[[Callable[[], object]], object]
    ) -> None:
        super().__init__(node_id, listener, run)
        self.store = Store()
        self.lost_peers = False

    @property
    def owns(self) -> bool:
        """Whether it owns objects while it is in the map."""
        return not self.flags & (MAINTENANCE | DECOMMISSION)

    def die(self) -> None:
        """Do what `stop` does, on the stand-in's thread."""
        super().die()
        self.lost_peers = True


@dataclass(slots=True)
class BucketState:
    """What the cluster knows about a bucket.

    Args:
        bid: Its number.
        created_ns: When it came to be, in ns since the epoch.
        backend: The remote bucket behind an `ais` bucket.
        objects: What the backend of a remote bucket holds, by name.
    """

    bid: int
    created_ns: int
    backend: Bucket | None = None
    objects: dict[str, StoredObject] = field(default_factory=dict)

    def props(self, bucket: Bucket) -> dict[str, Any]:
        """Return its properties as a real cluster writes them."""
        backend = self.backend
        return {
            "backend_bck": {
                "name": backend.name if backend else "",
                "provider": backend.provider if backend else "",
                "namespace": {"uuid": "", "name": ""},
            },
            "write_policy": {"data": "immediate", "md": "immediate"},
            "provider": bucket.provider,
            "Renamed": "",
            "checksum": {
                "type": "xxhash2",
                "validate_cold_get": False,
                "validate_warm_get": False,
                "validate_obj_move": False,
                "enable_read_range": False,
            },
            "extra": {"aws": {}, "gcp": {}, "oci": {}},
            "rate_limit": {
                "backend": _RATE | {"num_retries": 3},
                "frontend": _RATE | {"burst_size": 375},
            },
            "ec": {
                "compression": "never",
                "bundle_multiplier": 2,
                "burst_buffer": 512,
                "objsize_limit": 262144,
                "data_slices": 2,
                "parity_slices": 2,
                "enabled": False,
                "disk_only": False,
            },
            "chunks": {"objsize_limit": "0B", "max_monolithic_size": "1TiB", "chunk_size": "1GiB"},
            "mirror": {"copies": 2, "burst_buffer": 512, "enabled": False},
            "lru": {
                "dont_evict_time": "2h0m",
                "capacity_upd_time": "10m",
                "batch_size": 32768,
                "enabled": bucket.is_remote,
            },
            "access": "18446744073709551615",
            "features": "0",
            "bid": str(self.bid),
            "created": str(self.created_ns),
            "versioning": {"enabled": True, "validate_warm_get": False, "synchronize": False},
        }


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
            ValueError: If it is not in it.
        """
        if node.id not in self.members:
            raise ValueError(f"{node.name} is not in the map")
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

    def create(self, bucket: Bucket, backend: Bucket | None = None) -> None:
        """Create a bucket.

        Raises:
            Refused: 409 `ErrBucketAlreadyExists`.
        """
        if bucket in self.buckets:
            raise Refused(409, f'bucket "{bucket}" already exists', tcode="ErrBucketAlreadyExists")
        self.buckets[bucket] = BucketState(len(self.buckets) + 1, time.time_ns(), backend)

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


def new_id(length: int) -> str:
    """Return random letters and digits; they need not be the same in two runs."""
    return "".join(random.choices(string.ascii_letters + string.digits, k=length))
