"""One request at one node: read, recorded, answered under the faults that it meets, and sent."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from . import names, proxies
from .effects import BatchEffect, Scene
from .nodes import Proxy, Target
from .objects import StoredObject
from .replies import Abort, Call, HandlerDied, Refused, Reply, Wait, error
from .sending import Sender, Sent
from .targets import next_version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web

    from .cluster import Cluster
    from .effects import Effect
    from .faults import Fault
    from .listener import Connection
    from .nodes import Node
    from .proxies import Gateway
    from .record import Record
    from .targets import Storage

_MAX_UNWANTED_BYTES: Final = 1 << 18
"""What Go's HTTP server reads of a body that its handler does not want."""


class Exchanges:
    """Conducts all exchanges.

    Args:
        cluster: The cluster.
        gateway: Answers at proxies.
        storage: Answers at targets.
        record: Where requests are recorded.
        idle_s: How long a connection may be idle; 0: it is closed after every answer.
        latency_s: What every exchange with a target takes longer.
    """

    def __init__(
        self,
        cluster: Cluster,
        gateway: Gateway,
        storage: Storage,
        record: Record,
        *,
        idle_s: float,
        latency_s: float,
    ) -> None:
        self._cluster = cluster
        self._gateway = gateway
        self._storage = storage
        self._record = record
        self._idle_s = idle_s
        self.latency_s = latency_s
        self.faults: list[Fault] = []
        self.bugs: list[Exception] = []
        """What went wrong in the stand-in itself."""
        self.starting: set[str] = set()
        """The ids of nodes that say that they are not ready."""

    async def conduct(
        self, node: Node, request: web.BaseRequest, connection: Connection
    ) -> web.StreamResponse:
        """Answer one request."""
        connection.busy()
        call, refused = await _read(node, request, connection)
        entry = self._record.arrived(node, connection.number, call)
        goes_on = request.keep_alive
        try:
            reply = self._reply(node, call, refused, entry.request.number)
            await Sender(request, connection, entry).send(reply, goes_on=goes_on)
        except ConnectionError:
            goes_on = False
        except Exception as bug:
            self.bugs.append(bug)
            raise
        finally:
            self._record.over(entry)
            if goes_on:
                connection.idle(self._idle_s)
        return Sent(goes_on=goes_on)

    def _reply(self, node: Node, call: Call, refused: Refused | None, number: int) -> Reply:
        effects = [fault.effect for fault in self.faults if fault.claim(node, call, number)]
        scene = Scene(call, node, self._cluster, lambda *change: self._change(call, *change))
        for effect in effects:
            effect.prepare(scene)
        replaced = next(filter(None, (effect.replace(scene) for effect in effects)), None)
        reply = replaced or self._answer(node, call, refused, effects)
        if self.latency_s and isinstance(node, Target):
            reply.before.insert(0, Wait(self.latency_s))
        for effect in effects:
            effect.edit(scene, reply)
        return reply

    def _answer(
        self, node: Node, call: Call, refused: Refused | None, effects: Sequence[Effect]
    ) -> Reply:
        try:
            if refused is not None:
                raise refused
            if node.id in self.starting and "readiness" in call.query:
                return Reply(503)
            if isinstance(node, Proxy):
                return self._gateway.answer(call, node)
            assert isinstance(node, Target)
            batch = [effect for effect in effects if isinstance(effect, BatchEffect)]
            return self._storage.answer(call, node, batch)
        except Refused as why:
            return error(call, node.name, why)
        except HandlerDied:
            return Reply(before=[Abort()])

    def _change(self, call: Call, data: bytes, keep_version: bool) -> None:
        bucket, name = proxies.object_of(call)
        self.change(self._cluster.resolve(bucket), name, data, keep_version=keep_version)

    def change(self, bucket: names.Bucket, name: str, data: bytes, *, keep_version: bool) -> None:
        """Overwrite every copy of an object.

        Raises:
            KeyError: If there is none.
        """
        holders = [
            target
            for target in self._cluster.nodes.values()
            if isinstance(target, Target) and target.store.get(bucket, name) is not None
        ]
        if not holders:
            raise KeyError(f"{bucket}/{name}")
        for target in holders:
            old = target.store.get(bucket, name)
            assert old is not None
            version = old.version if keep_version else next_version(old)
            target.store.put(bucket, name, StoredObject(data, version, time.time_ns(), old.custom))


async def _read(
    node: Node, request: web.BaseRequest, connection: Connection
) -> tuple[Call, Refused | None]:
    """Return a request with its body, and what is wrong with its query."""
    refused = None
    query: dict[str, str] = {}
    try:
        path, query = names.split_target(request.raw_path)
    except Refused as why:
        path, refused = names.unquoted(request.raw_path.partition("?")[0]), why
    body = b""
    if request.body_exists:
        expects = request.headers.get("Expect", "").lower() == "100-continue"
        if isinstance(node, Proxy) and path.startswith(f"{proxies.OBJECTS}/"):
            # The object's bytes are for the target.  A client that waits for a sign gets none.
            if not expects:
                await _discard(request)
        else:
            if expects:
                connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await request.content.read()
    host, port = connection.transport.get_extra_info("peername")[:2]
    call = Call(
        method=request.method,
        target=request.raw_path,
        path=path,
        query=query,
        headers=request.headers,
        body=body,
        remote=f"{host}:{port}",
        is_reused=connection.num_requests > 1,
    )
    return call, refused


async def _discard(request: web.BaseRequest) -> None:
    left = _MAX_UNWANTED_BYTES
    while left > 0:
        data = await request.content.read(left)
        if not data:
            return
        left -= len(data)
