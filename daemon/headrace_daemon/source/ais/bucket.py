"""Buckets: whose disks their objects are on, and what a fault of one comes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ...errors import ObjectUnreadableError, SourceError, SourceMissingError, StoreAccessError
from .addresses import bucket_path
from .faults import Fault, Kind

if TYPE_CHECKING:
    from headrace.buckets import Bucket

    from .client import AisClient, Answer


class Facts(NamedTuple):
    """What matters of a bucket for reading from it."""

    is_native: bool
    """Whether the objects are on the store's own disks, where the cluster map says.  Those of a
    provider, and of a bucket that is a view of one of a provider, are copies at best."""

    sums_ranges: bool
    """Whether a range may come with a checksum of its own, not with that of its object
    (``checksum.enable_read_range``)."""


async def look_at(bucket: Bucket, client: AisClient) -> Facts:
    """Return what matters of a bucket for reading from it.

    Raises:
        SourceError: If the bucket cannot be asked.
    """
    if bucket.is_remote:
        return Facts(is_native=False, sums_ranges=True)
    answer = await client.ask(bucket_path(bucket), f"bucket {bucket}", method="HEAD")
    if isinstance(answer, Fault):
        raise bucket_error(bucket, answer)
    return _facts(answer)


async def is_native(bucket: Bucket, client: AisClient) -> bool:
    """Return whether the objects are on the store's own disks; see `Facts`.

    Raises:
        SourceError: If the bucket cannot be asked.
    """
    return (await look_at(bucket, client)).is_native


def patience_s(*, is_native: bool, stall_s: float, deadline_s: float) -> float:
    """Return how long a node may send nothing about an object of a bucket, seconds.

    One that is not on the store's own disks comes from its provider first, as a whole, and the
    store says nothing meanwhile: only the deadline of the read ends that.

    Args:
        is_native: Whether it is there.
        stall_s: For those that are.
        deadline_s: Of a read with all its attempts.
    """
    return stall_s if is_native else max(stall_s, deadline_s)


def bucket_error(bucket: Bucket, fault: Fault) -> SourceError:
    """Return what a fault of a bucket as a whole comes to."""
    if fault.kind in (Kind.NO_BUCKET, Kind.MISSING):
        return SourceMissingError(
            str(bucket), f"bucket {bucket} does not exist ({fault}): check the name"
        )
    if fault.kind is Kind.DENIED:
        return StoreAccessError(str(bucket), f"bucket {bucket} may not be read: {fault}")
    return ObjectUnreadableError(str(bucket), f"bucket {bucket} cannot be read: {fault}")


class _Backend(msgspec.Struct):
    name: str = ""


class _Checksum(msgspec.Struct):
    enable_read_range: bool = False


class _Props(msgspec.Struct):
    backend_bck: _Backend = msgspec.field(default_factory=_Backend)
    checksum: _Checksum = msgspec.field(default_factory=_Checksum)


_decode = msgspec.json.Decoder(_Props).decode


def _facts(answer: Answer) -> Facts:
    try:
        props = _decode(answer.headers.get("Ais-Bucket-Props", "{}"))
    except (ValueError, RecursionError):
        # By way of a proxy, and by versions, it is right in any case.
        return Facts(is_native=False, sums_ranges=True)
    return Facts(is_native=not props.backend_bck.name, sums_ranges=props.checksum.enable_read_range)
