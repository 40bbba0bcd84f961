"""Asks a cluster, real or not, over HTTP and nothing more: what the contract is tested with.

It follows nothing, retries nothing and changes no address, so that a test sees what was on the
wire: aiohttp, which the daemon uses, would follow, and would ask again on another connection.  Each
node is asked over one connection that is kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote, urlencode, urlsplit

from .standin import hrw

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from email.message import Message
    from types import TracebackType

TIMEOUT_S: Final = 20.0
"""For each read: it turns a hang into a failure."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Args:
        status: Of HTTP.
        headers: In any case.
        body: All of it.
    """

    status: int
    headers: Message
    body: bytes

    @property
    def content(self) -> Any:  # noqa: ANN401 - JSON
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error that it tells of; for HEAD that is a header."""
        error: dict[str, Any] = json.loads(self.headers.get("Hdr-Error") or self.body)
        return error

    @property
    def tcode(self) -> str:
        """The type of that error; empty if it has none."""
        return str(self.error.get("tcode", ""))

    @property
    def location(self) -> str:
        """Where it sends the client."""
        return str(self.headers["Location"])

    @property
    def node(self) -> str:
        """The address of the node to which it sends the client."""
        url = urlsplit(self.location)
        return f"{url.scheme}://{url.netloc}"


class Wire:
    """Connections to nodes by their address.  A context manager."""

    def __init__(self) -> None:
        self._connections: dict[str, HTTPConnection] = {}

    def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Mapping[str, Any] = b"",
        fresh: bool = False,
    ) -> Answer:
        """Send a request and return the answer.

        Args:
            method: ``GET`` and so on.
            url: All of it, quoted.
            headers: More than what HTTP needs.
            body: Bytes, or what is sent as JSON.
            fresh: On a new connection.

        Raises:
            http.client.RemoteDisconnected: The connection was closed without an answer.
            ConnectionRefusedError: Nobody listens there.
        """
        parts = urlsplit(url)
        if fresh and parts.netloc in self._connections:
            self._connections.pop(parts.netloc).close()
        if parts.netloc not in self._connections:
            assert parts.hostname
            self._connections[parts.netloc] = HTTPConnection(
                parts.hostname, parts.port, timeout=TIMEOUT_S
            )
        connection = self._connections[parts.netloc]
        given = dict(headers or {})
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            given.setdefault("Content-Type", "application/json")
        try:
            connection.putrequest(
                method, url[len(f"{parts.scheme}://{parts.netloc}") :], skip_accept_encoding=True
            )
            if body or method in {"PUT", "POST"}:
                given.setdefault("Content-Length", str(len(body)))
            for name, value in given.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        except (HTTPException, OSError):
            connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.forget()

    def forget(self) -> None:
        """Close all connections: the next requests are on new ones."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()


class Ais:
    """A cluster, as a client finds it.

    Args:
        wire: What it is asked over.
        endpoint: The address of a proxy.
    """

    def __init__(self, wire: Wire, endpoint: str) -> None:
        self.wire = wire
        self.endpoint = endpoint

    # --- Nodes ----------------------------------------------------------------------------------

    def smap(self) -> dict[str, Any]:
        """Return the map."""
        smap: dict[str, Any] = self.ask("GET", "/v1/daemon?what=smap").content
        return smap

    @property
    def targets(self) -> dict[str, str]:
        """The addresses of the targets in the map by their id."""
        return {
            name: node["public_net"]["direct_url"] for name, node in self.smap()["tmap"].items()
        }

    def owner(self, bucket: str, name: str) -> str:
        """Return the id of the target that has an object, as a client computes it from the map."""
        nodes = [_Hashed(node) for node in self.smap()["tmap"].values() if not node["flags"]]
        return hrw.owner(f"ais/@#/{bucket}/{name}", nodes).id

    def owner_url(self, bucket: str, name: str) -> str:
        """Return the address of the target that has an object."""
        return self.targets[self.owner(bucket, name)]

    # --- Requests -------------------------------------------------------------------------------

    def ask(
        self,
        method: str,
        path: str,
        *,
        at: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes | Mapping[str, Any] = b"",
    ) -> Answer:
        """Send a request to a node, without more the proxy, and return the answer."""
        return self.wire.ask(method, f"{at or self.endpoint}{path}", headers=headers, body=body)

    def follow(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Mapping[str, Any] = b"",
        first_body: bytes | Mapping[str, Any] = b"",
    ) -> Answer:
        """Send a request to the proxy, and to where it sends the client; return that answer.

        The first answer is returned if it is no redirect.
        """
        first = self.ask(method, path, headers=headers, body=first_body)
        if first.status not in {301, 307}:
            return first
        return self.wire.ask(method, first.location, headers=headers, body=body)

    # --- Objects --------------------------------------------------------------------------------

    def put(self, bucket: str, name: str, content: bytes) -> Answer:
        """Put an object, and return the target's answer."""
        answer = self.follow("PUT", object_path(bucket, name), body=content)
        assert answer.status == 200, answer
        return answer

    def put_all(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        """Put objects."""
        for name, content in objects.items():
            self.put(bucket, name, content)

    def get(
        self, bucket: str, name: str, headers: Mapping[str, str] | None = None, **query: str
    ) -> Answer:
        """Get an object straight from its owner, and return the answer."""
        path = object_path(bucket, name, **query)
        return self.ask("GET", path, at=self.owner_url(bucket, name), headers=headers)

    def head(self, bucket: str, name: str, **query: str) -> Answer:
        """Ask its owner for what is known of an object, and return the answer."""
        path = object_path(bucket, name, **query)
        return self.ask("HEAD", path, at=self.owner_url(bucket, name))

    def delete(self, bucket: str, name: str) -> Answer:
        """Delete an object, and return the target's answer."""
        return self.follow("DELETE", object_path(bucket, name))

    # --- Buckets --------------------------------------------------------------------------------

    def act(self, method: str, bucket: str, action: str, *, at: str = "", **more: Any) -> Answer:  # noqa: ANN401
        """Ask for an action on a bucket, and return the answer."""
        return self.ask(method, bucket_path(bucket), at=at, body={"action": action, **more})

    def page(self, bucket: str, **value: Any) -> Answer:  # noqa: ANN401 - JSON
        """Ask for one page of a list, and return the answer."""
        pagesize = value.get("pagesize", 0)
        # It would end every target.
        assert not isinstance(pagesize, int) or pagesize >= 0, "never ask for a negative pagesize"
        return self.act("GET", bucket, "list", value=value)

    def names(self, bucket: str, **value: Any) -> list[str]:  # noqa: ANN401 - JSON
        """Return the names on one page of a list."""
        answer = self.page(bucket, **value)
        assert answer.status == 200, answer
        return [entry["name"] for entry in answer.content["entries"] or []]


class _Hashed:
    def __init__(self, node: Mapping[str, Any]) -> None:
        self.id = str(node["daemon_id"])
        self.digest = int(node["id_digest"])


def object_path(bucket: str, name: str, **query: str) -> str:
    """Return the path of an object, quoted, with a query."""
    path = f"/v1/objects/{bucket}/{quote(name)}"
    return f"{path}?{urlencode(query)}" if query else path


def bucket_path(bucket: str) -> str:
    """Return the path of a bucket, with its query."""
    return f"/v1/buckets/{bucket}?provider=ais"


def batch_path(bucket: str, **query: str) -> str:
    """Return the path of batches, with their query."""
    return f"/v1/ml/moss/{bucket}?{urlencode({'provider': 'ais', **query})}"


def batch(names: Iterable[str | Mapping[str, Any]], **options: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the body of a request for a batch: a streamed TAR that goes on after what is missing.

    Args:
        names: Of objects, or whole entries.
        **options: In place of these.
    """
    entries = [{"objname": name} if isinstance(name, str) else dict(name) for name in names]
    return {"mime": ".tar", "coer": True, "onob": True, "strm": True, "in": entries} | options
