"""The bucket of the demo on AIStore: made, filled and removed by the demo alone.

Somebody waits at a terminal, so each question is asked once; only the removal is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import aiohttp
import msgspec
from yarl import URL

from headrace.buckets import Bucket

from ..settings import StoreSettings
from ..source.ais.access import Access
from ..source.ais.addresses import ObjectPaths, bucket_path
from ..source.ais.client import CONNECT_S, AisClient
from ..source.ais.clustermap import parse
from ..source.ais.faults import TROUBLE, Fault, Kind, of_answer, of_exception
from ..source.ais.retry import Retry
from .errors import DemoError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..source.ais.client import Answer

ANSWER_S: Final = 5.0
"""How long a proxy may take for an answer, seconds: all are small."""

REMOVE_S: Final = 5.0
"""How long the removal is tried again, seconds."""

_PUT_S: Final = 20.0
_WIDTH: Final = 16
"""Objects that are put side by side."""


class Cluster(NamedTuple):
    """What a cluster says of itself."""

    version: str
    """Of AIStore; empty if it does not say it."""

    num_targets: int


def name_one() -> Bucket:
    """Return a bucket of a name that no other has."""
    return Bucket("ais", "@#", f"headrace-demo-{secrets.token_hex(4)}", "")


def client() -> AisClient:
    """Return a client of the cluster that ``$AIS_ENDPOINT`` names."""
    return AisClient(Access(StoreSettings()), deadline_s=ANSWER_S)


async def look(client: AisClient) -> Cluster:
    """Ask the cluster what it is.

    Raises:
        DemoError: If there is none at the endpoint.
    """
    answer = await _ask(client, "/v1/daemon?what=smap")
    if isinstance(answer, Fault) and answer.kind is not Kind.MISSING:
        raise DemoError(f"--endpoint: {answer}{_hint(client, answer)}")
    try:
        if isinstance(answer, Fault):
            raise ValueError(answer)
        num_targets = len(parse(answer.body).targets)
    except (ValueError, msgspec.DecodeError) as error:
        raise DemoError(
            f"--endpoint: {client.proxy} does not answer as an AIStore proxy does: give the "
            "address of one"
        ) from error
    told = await _ask(client, "/v1/daemon?what=software_version")
    version = "" if isinstance(told, Fault) else told.body.decode(errors="replace").strip()
    return Cluster(version, num_targets)


async def make(client: AisClient, bucket: Bucket) -> None:
    """Make the bucket.

    Raises:
        DemoError: If the cluster refuses it.
    """
    answer = await _ask(client, bucket_path(bucket), "POST", {"action": "create-bck"})
    if isinstance(answer, Fault):
        if answer.kind is Kind.NODE:  # it may have been made all the same
            with contextlib.suppress(DemoError):
                await remove(client, bucket)
        raise DemoError(f"bucket {bucket} cannot be made: {answer}{_hint(client, answer)}")


async def remove(client: AisClient, bucket: Bucket) -> None:
    """Remove the bucket with all its objects, if it is there.

    Raises:
        DemoError: If it may still be there.
    """
    retry = Retry(REMOVE_S)
    while True:
        answer = await _ask(client, bucket_path(bucket), "DELETE", {"action": "destroy-bck"})
        if not isinstance(answer, Fault) or answer.kind in (Kind.NO_BUCKET, Kind.MISSING):
            return
        if answer.kind not in (Kind.NODE, Kind.BUSY) or not await retry.pause():
            raise DemoError(
                f"bucket {bucket} cannot be removed: {answer}: when the cluster is well, remove it "
                f"with: ais bucket rm {bucket}"
            )


async def fill(client: AisClient, bucket: Bucket, objects: Iterable[tuple[str, bytes]]) -> None:
    """Put objects into the bucket, some side by side.

    Args:
        client: Knows the endpoint.
        bucket: Is there.
        objects: Names and contents.

    Raises:
        DemoError: If one cannot be put.
    """
    rest = iter(objects)

    async def put_rest() -> None:
        for name, content in rest:
            await _put(client, bucket, name, content)

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(_WIDTH):
                group.create_task(put_rest(), name=f"put {number}")
    except* DemoError as errors:
        raise errors.exceptions[0] from None


async def _put(client: AisClient, bucket: Bucket, name: str, content: bytes) -> None:
    """Ask a proxy which target is to have an object, and give it to that one."""
    path = ObjectPaths(bucket).of(name)
    try:
        # Without the bytes: a proxy does not want them.
        target = await _send(client, client.proxy + path, b"", client.access.headers, 307)
        await _send(client, target, content, {}, 200)
    except _RefusedError as error:
        raise DemoError(f"object {bucket.address(name)} cannot be put: {error}") from error


class _RefusedError(Exception):
    """A node has not taken what it was sent."""


async def _send(
    client: AisClient, url: str, content: bytes, headers: Mapping[str, str], status: int
) -> str:
    """Put something somewhere; return the address in the answer, empty without one."""
    where = url.partition("/v1/")[0]
    try:
        async with client.session.put(
            URL(url, encoded=True),
            data=content,
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=_PUT_S, sock_connect=CONNECT_S),
        ) as answer:
            told = await answer.read()
            if answer.status != status:
                raise _RefusedError(of_answer(answer.status, told, where))
            return answer.headers.get("Location", "")
    except TROUBLE as error:
        raise _RefusedError(of_exception(error, where)) from error


async def _ask(
    client: AisClient, path: str, method: str = "GET", body: Mapping[str, Any] | None = None
) -> Answer | Fault:
    return await client.ask_once(client.proxy, path, method, body, client.access.headers, ANSWER_S)


def _hint(client: AisClient, fault: Fault) -> str:
    match fault.kind:
        case Kind.UNAUTHORIZED:
            return f": {client.access.explain_token()}"
        case Kind.DENIED:
            return ": the demo needs the right to make and to remove a bucket"
        case Kind.NODE:
            return ": check the address, and that the cluster is up"
        case _:
            return ""
