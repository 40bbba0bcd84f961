"""What a proxy answers: the map, buckets, lists, and redirects for all else."""

from __future__ import annotations

import html
import json
import time
from typing import TYPE_CHECKING, Any, Final

from . import batches, names
from .reading import base_36
from .replies import Refused, Reply

if TYPE_CHECKING:
    from .batches import Batches
    from .cluster import Cluster
    from .listing import Listing
    from .names import Bucket
    from .nodes import Node, Proxy
    from .replies import Call, Headers

OBJECTS: Final = "/v1/objects"
BUCKETS: Final = "/v1/buckets"
_JSON: Final = ("Content-Type", "application/json; charset=utf-8")
_VERSION: Final = b"5.0.standin"
_OBJECT_METHODS: Final = frozenset({"GET", "HEAD", "PUT", "DELETE", "PATCH"})


class Gateway:
    """Answers for all proxies.

    Args:
        cluster: The cluster.
        listing: The lists that are under way.
        waiting: The batches that wait for their second half.
        token: What a client must show; None: nothing.
    """

    def __init__(
        self, cluster: Cluster, listing: Listing, waiting: Batches, token: str | None
    ) -> None:
        self._cluster = cluster
        self._listing = listing
        self._waiting = waiting
        self._started_ns = time.monotonic_ns()
        self.token = token

    def answer(self, call: Call, proxy: Proxy) -> Reply:
        """Answer a request.

        Raises:
            Refused: With an error.
            HandlerDied: Without an answer.
        """
        path = call.path
        if path == "/v1/health":
            uptime = str(time.monotonic_ns() - self._started_ns)
            return Reply(200, [("Ais-Cluster-Uptime", uptime), ("Ais-Node-Uptime", uptime)])
        self._check_token(call)
        if path == "/v1/daemon":
            return about(call, self._cluster)
        if path == OBJECTS or path.startswith(f"{OBJECTS}/"):
            return self._redirect_object(call, proxy)
        if path == BUCKETS or path.startswith(f"{BUCKETS}/"):
            return self._bucket(call, proxy)
        if path == batches.PATH or path.startswith(f"{batches.PATH}/"):
            if call.method != "GET":
                return not_allowed("GET")
            target, path = self._waiting.admit(call, self._cluster)
            return _redirect(call, proxy, target, path)
        raise unknown(call)

    def _check_token(self, call: Call) -> None:
        if self.token is None:
            return
        given = call.headers.get("Authorization", "")
        if not given:
            raise Refused(401, "token required")
        if given != f"Bearer {self.token}":
            raise Refused(401, "invalid token")

    def _redirect_object(self, call: Call, proxy: Proxy) -> Reply:
        if call.method not in _OBJECT_METHODS:
            return not_allowed("DELETE, GET, HEAD, PATCH, POST, PUT")
        bucket, name = object_of(call)
        self._cluster.check(bucket)
        if call.method != "HEAD":
            names.check_object_name(name)
        return _redirect(call, proxy, self._cluster.owner(bucket, name), call.path)

    def _bucket(self, call: Call, proxy: Proxy) -> Reply:
        name = call.path.removeprefix(BUCKETS).strip("/")
        message = message_of(call, proxy)
        action = message.get("action", "")
        if call.method == "GET":
            if not name:
                if "value" in message and message["value"] is not None:
                    why = '"" is not a bucket (is a bucket query?)'
                    raise Refused(400, f"bad list-objects request: {why}")
                return all_buckets(call, self._cluster)
            bucket = names.bucket_of(name, call.query)
            self._cluster.check(bucket)
            return self._listing.page(call, proxy, self._cluster, bucket)
        bucket = names.bucket_of(name, call.query)
        if call.method == "POST" and action == "create-bck":
            self._cluster.create(bucket)
            return Reply()
        state = self._cluster.check(bucket)
        if call.method == "HEAD":
            props = json.dumps(state.props(bucket), separators=(",", ":"))
            return Reply(200, [("Ais-Bucket-Props", props)])
        if call.method == "DELETE" and action == "destroy-bck":
            self._cluster.destroy(bucket)
            return Reply()
        raise Refused(400, f'invalid action "{action}"')


def object_of(call: Call) -> tuple[Bucket, str]:
    """Return the object that a path names.

    Raises:
        Refused: 400, if it names none.
    """
    bucket, _, name = call.path.removeprefix(OBJECTS).removeprefix("/").partition("/")
    if not name:
        got = 3 if bucket else 2
        raise Refused(400, f"URL '{call.path[1:]}' is too short: expected 4 items, got {got}")
    return names.bucket_of(bucket, call.query), name


def about(call: Call, cluster: Cluster) -> Reply:
    """Answer what a node says about the cluster.

    Raises:
        Refused: 400, for anything but the map, the buckets and the version.
    """
    what = call.query.get("what", "")
    if what == "software_version":
        return Reply(200, [("Content-Type", "text/plain; charset=utf-8")], _VERSION)
    if what == "smap":
        content = cluster.smap()
    elif what == "bmd":
        providers: dict[str, dict[str, dict[str, Any]]] = {}
        for bucket, state in cluster.buckets.items():
            spaces = providers.setdefault(bucket.provider, {})
            spaces.setdefault(bucket.namespace, {})[bucket.name] = state.props(bucket)
        content = {"providers": providers, "uuid": cluster.uuid, "version": "1"}
    else:
        raise Refused(400, f"invalid '{call.path}' request: unrecognized 'what={what}' query")
    return _json(content)


def all_buckets(call: Call, cluster: Cluster) -> Reply:
    """Answer the list of all buckets, or of those of a provider."""
    wanted = call.query.get("provider")
    provider = None if not wanted else names.provider_of(wanted)
    if provider not in {None, "ais"} and not cluster.has_backend(str(provider)):
        why = f"{str(provider).upper()} backend is missing in the cluster configuration"
        raise Refused(400, why, tcode="ErrMissingBackend")
    listed = []
    for bucket in sorted(cluster.buckets, key=lambda b: (b.provider, b.namespace, b.name)):
        if provider in {None, bucket.provider}:
            uuid, _, name = bucket.namespace[1:].partition("#")
            space = {"uuid": uuid, "name": name}
            listed.append({"name": bucket.name, "provider": bucket.provider, "namespace": space})
    return _json(listed)


def message_of(call: Call, node: Node) -> dict[str, Any]:
    """Return the action that a body asks for; empty without one.

    Raises:
        Refused: 400, for what is no JSON object.
    """
    if not call.body:
        return {}
    try:
        message = json.loads(call.body)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        why = f"{node.name}: failed to unmarshal [*apc.ActMsg] ({call.method})"
        raise Refused(400, why)
    return message


def not_allowed(allowed: str) -> Reply:
    """Answer a method that a path does not have."""
    headers = [
        ("Allow", allowed),
        ("Content-Type", "text/plain; charset=utf-8"),
        ("X-Content-Type-Options", "nosniff"),
    ]
    return Reply(405, headers, b"Method Not Allowed\n")


def unknown(call: Call) -> Refused:
    """Return the error for a path that does not exist."""
    return Refused(400, f"invalid request URI: '{call.method} {call.path}' from {call.remote}")


def _redirect(call: Call, proxy: Proxy, target: Node, path: str) -> Reply:
    stamp = base_36(time.time_ns()).rjust(12, "0")
    query = call.target.partition("?")[2]
    address = names.location(target.url, path, query, {"pid": proxy.id, "utm": stamp})
    headers: Headers = [("Location", address)]
    status = 301 if call.method == "GET" and path.startswith(OBJECTS) else 307
    if call.method not in {"GET", "HEAD"}:
        return Reply(status, headers)
    headers.append(("Content-Type", "text/html; charset=utf-8"))
    if call.method == "HEAD":
        return Reply(status, headers)
    phrase = "Moved Permanently" if status == 301 else "Temporary Redirect"
    link = f'<a href="{html.escape(address)}">{phrase}</a>.\n\n'
    return Reply(status, headers, link.encode("utf-8", "surrogateescape"))


def _json(content: object) -> Reply:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"
    return Reply(200, [_JSON], text.encode("utf-8", "surrogateescape"))
