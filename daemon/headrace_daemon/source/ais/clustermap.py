"""The cluster map: which nodes there are, and which target owns an object.

Ownership is rendezvous hashing (highest random weight) over the targets, with the hash functions of
AIStore (``core/meta/hrw.go`` and ``cmn/xoshiro256`` of NVIDIA/aistore).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import numpy as np
import xxhash

from .addresses import is_node_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from headrace.buckets import Bucket

SEED: Final = 1103515245
"""Of every xxh64 digest in the map."""

_LEAVING: Final = 0b1100
"""Flags of a target that is in maintenance or being decommissioned: it owns nothing."""

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)


class Node(NamedTuple):
    """A target or a proxy."""

    id: str
    url: str
    """Where clients reach it: ``http://host:port``."""

    is_leaving: bool = False
    """In maintenance or being decommissioned."""

    def __str__(self) -> str:
        return f"t[{self.id}] ({self.url})"


class ClusterMap:
    """One version of the map; does not change.

    Args:
        version: Grows with each change.
        uuid: Of the cluster.
        targets: All of them, with the digests of their ids.
        proxies: Addresses, the primary first.
    """

    __slots__ = ("_digests", "_owners", "proxies", "targets", "uuid", "version")

    def __init__(
        self, version: int, uuid: str, targets: Sequence[tuple[Node, int]], proxies: Sequence[str]
    ) -> None:
        self.version = version
        self.uuid = uuid
        self.targets = {node.id: node for node, _ in targets}
        self.proxies = tuple(proxies)
        owning = [(node, digest) for node, digest in targets if not node.is_leaving]
        self._owners = [node for node, _ in owning]
        self._digests = np.array([digest for _, digest in owning], dtype=np.uint64)[:, None]

    def owners(self, bucket: Bucket, names: Sequence[str]) -> list[Node]:
        """Return the target that owns each of some objects; empty when there is no target.

        Costs about 1 µs for each name, in batches of 32 or more.
        """
        if not self._owners:
            return []
        root = f"{bucket.provider}/{bucket.namespace}/{bucket.name}/"
        digests = np.array(
            [xxhash.xxh64_intdigest((root + name).encode(), SEED) for name in names],
            dtype=np.uint64,
        )
        best = weights(self._digests ^ digests).argmax(axis=0)
        return [self._owners[index] for index in best.tolist()]


def weights(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the weights of digests that were combined, u64 of the same shape.

    It is the first output of xoshiro256** with the state that SplitMix64 makes of the value.
    """
    state = _mix(_mix(values + _GOLDEN) + _GOLDEN) * np.uint64(5)
    return ((state << np.uint64(7)) | (state >> np.uint64(57))) * np.uint64(9)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


class _Net(msgspec.Struct):
    direct_url: str


class _Snode(msgspec.Struct):
    daemon_id: str
    public_net: _Net
    id_digest: int = 0
    flags: int = 0


class _Smap(msgspec.Struct):
    tmap: dict[str, _Snode]
    pmap: dict[str, _Snode]
    proxy_si: _Snode
    version: str
    uuid: str = ""


_decode = msgspec.json.Decoder(_Smap).decode


def parse(body: bytes) -> ClusterMap:
    """Return the map that ``/v1/daemon?what=smap`` answers with.

    Raises:
        ValueError: If it is none, or has a number or an address that cannot be.
    """
    try:
        wire = _decode(body)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    targets = [
        (
            Node(snode.daemon_id, _url(snode), is_leaving=bool(snode.flags & _LEAVING)),
            snode.id_digest or xxhash.xxh64_intdigest(snode.daemon_id.encode(), SEED),
        )
        for snode in sorted(wire.tmap.values(), key=lambda snode: snode.daemon_id)
    ]
    primary = _url(wire.proxy_si)
    others = sorted(_url(snode) for snode in wire.pmap.values())
    proxies = [primary, *(url for url in others if url != primary)]
    try:
        return ClusterMap(int(wire.version), wire.uuid, targets, proxies)
    except OverflowError as error:
        raise ValueError(f"a digest of a target is out of range: {error}") from None


def _url(snode: _Snode) -> str:
    url = snode.public_net.direct_url.rstrip("/")
    if not is_node_url(url):
        raise ValueError(f"{snode.daemon_id} has address {url!r}")
    return url
