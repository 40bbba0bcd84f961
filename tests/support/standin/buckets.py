"""What the cluster knows about a bucket, and how it tells it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .names import Bucket
    from .objects import StoredObject

_RATE: Final = {"interval": "1m", "max_tokens": 1000, "enabled": False}


@dataclass(slots=True)
class BucketState:
    """What the cluster knows about a bucket.

    Args:
        bid: Its number.
        created_ns: When it came to be, in ns since the epoch.
        backend: The remote bucket behind an `ais` bucket.
        objects: What the backend of a remote bucket holds, by name.
        has_sizes: Whether that backend lists sizes.
    """

    bid: int
    created_ns: int
    backend: Bucket | None = None
    objects: dict[str, StoredObject] = field(default_factory=dict)
    has_sizes: bool = True

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
