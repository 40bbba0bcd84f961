"""Reads from a cluster, or its stand-in, through the product's own client and reader."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from headrace.buckets import Bucket
from headrace_daemon.settings import StoreSettings
from headrace_daemon.source.ais.access import Access
from headrace_daemon.source.ais.store import AisStore
from headrace_daemon.source.reader import ReadRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from typing import Literal

    from headrace.manifest import Manifest
    from headrace_daemon.source.reader import Request


@asynccontextmanager
async def open_store(
    *endpoints: str,
    deadline_s: float = 10.0,
    stall_s: float = 5.0,
    direct: Literal["auto", "off"] = "auto",
    reader: Literal["auto", "lean", "aiohttp"] = "auto",
    token_file: str = "",
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[AisStore]:
    """Return a store that is closed again at the end."""
    settings = StoreSettings(
        endpoints=endpoints,
        deadline_s=deadline_s,
        stall_s=stall_s,
        direct=direct,
        reader=reader,
        token_file=token_file,
    )
    with ThreadPoolExecutor(2) as executor:
        async with AisStore(settings, Access(settings, environ or {}), executor) as store:
            yield store


def wanted(objects: Mapping[str, bytes], names: Iterable[str] | None = None) -> list[ReadRequest]:
    """Return requests for objects with the sizes that they have, and memory for them."""
    return [
        ReadRequest(name, memoryview(bytearray(len(objects[name]))))
        for name in (objects if names is None else names)
    ]


def listed(manifest: Manifest) -> list[ReadRequest]:
    """Return requests for all objects of a manifest, with what it knows of them."""
    checksums, versions = manifest.checksums, manifest.versions
    return [
        ReadRequest(
            entry.name,
            memoryview(bytearray(entry.size)),
            b"" if checksums is None else bytes(checksums[index]),
            b"" if versions is None else bytes(versions[index]),
        )
        for index, entry in enumerate(manifest[number] for number in range(len(manifest)))
    ]


def target_of(request: Request) -> memoryview:
    """Return the target of a request for a whole object."""
    assert isinstance(request, ReadRequest)
    return request.target


def values(requests: Sequence[ReadRequest]) -> dict[str, bytes]:
    """Return what the requests were filled with, by name."""
    return {request.name: bytes(request.target) for request in requests}


def bucket(uri: str) -> Bucket:
    """Return the bucket of a URI."""
    return Bucket.parse(uri)
