"""The cluster itself: starts it, tells when it is ready, stops nodes and starts them again."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from .keeper import Keeper
from .layout import Node, write_config
from .loading import object_url, put_many
from .machine import (
    PUBLIC,
    ClusterError,
    add_addresses,
    clean_environment,
    free_ports,
    make_folder,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from types import TracebackType

DEADLINE_S: Final = 45.0
"""Far more than starting, or taking back a node, takes: it turns a hang into a failure."""

_MAX_STARTS: Final = 3
"""A port that was free may be taken by the time a node asks for it."""
_POLL_S: Final = 0.02
_TAIL_BYTES: Final = 2_000
_ADDRESS_IN_USE: Final = "address already in use"

_T = TypeVar("_T")

Smap = dict[str, Any]
"""A cluster map, as the cluster says it."""


class Cluster:
    """Proxies and targets on loopback, in a folder of their own.  A context manager.

    The ids of the nodes are the same in every cluster (``ais-proxy-1``, ``ais-target-1``, ...), so
    an object of some bucket and name always has the same owner.  Ports differ.

    A method that asks the cluster for something raises `ClusterError` when it refuses, or does not
    do it within `DEADLINE_S`.

    Args:
        aisnode: The path of the program.
        num_targets: At least 1; what is interesting in batches needs 3.
        num_proxies: At least 1; the first is the primary.
        folder: Where the folder is made; without it the first of the usual places that will do.
        config: Changes of the cluster's configuration, values by section.
    """

    def __init__(
        self,
        aisnode: str,
        *,
        num_targets: int = 3,
        num_proxies: int = 1,
        folder: Path | None = None,
        config: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._aisnode = aisnode
        self._names = [("proxy", f"ais-proxy-{i + 1}") for i in range(num_proxies)]
        self._names += [("target", f"ais-target-{i + 1}") for i in range(num_targets)]
        self._parent = folder
        self._config = config or {}
        # All three are of the latest start.
        self._folder: Path | None = None
        self._keeper: Keeper | None = None
        self._nodes: dict[str, Node] = {}

    @property
    def nodes(self) -> Mapping[str, Node]:
        """All nodes by their id, proxies first."""
        return self._nodes

    @property
    def targets(self) -> tuple[str, ...]:
        """The ids of the targets."""
        return tuple(name for role, name in self._names if role == "target")

    @property
    def endpoint(self) -> str:
        """The URL of the first proxy."""
        return self.endpoints[0]

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The URLs of all proxies."""
        return tuple(node.url for node in self._nodes.values() if node.role == "proxy")

    def start(self) -> None:
        """Start all nodes and wait until they serve objects.

        Raises:
            ClusterError: They do not; with the last lines of their output.
        """
        add_addresses()
        for attempt in range(_MAX_STARTS):
            try:
                self._start_all()
                return
            except BaseException as error:
                self.stop()
                # Another try is of use only if another process took a port in the meantime.
                if _ADDRESS_IN_USE not in str(error) or attempt + 1 == _MAX_STARTS:
                    raise

    def stop(self) -> None:
        """Kill all nodes and remove what they have stored."""
        keeper, self._keeper = self._keeper, None
        folder, self._folder = self._folder, None
        try:
            if keeper:
                keeper.close()
        finally:
            if folder:
                shutil.rmtree(folder, ignore_errors=True)  # if the keeper could not

    def smap(self) -> Smap:
        """Return the map of the cluster."""
        smap: Smap = json.loads(self._request("GET", self.endpoint, "/v1/daemon?what=smap"))
        return smap

    def wait_for_map(self, condition: Callable[[Smap], bool]) -> Smap:
        """Wait until the map of the cluster meets a condition, and return it."""

        def meets() -> Smap | None:
            smap = self.smap()
            return smap if condition(smap) else None

        return self._wait_for("the cluster map", meets)

    def create_bucket(self, name: str, props: Mapping[str, Any] | None = None) -> None:
        """Create a bucket.

        Args:
            name: Its name; a bucket of that name does not exist.
            props: Values by section, in place of the cluster's.
        """
        action = {"action": "create-bck", "value": props}
        self._request("POST", self.endpoint, f"/v1/buckets/{name}?provider=ais", action)

    def put_many(
        self, bucket: str, objects: Iterable[tuple[str, bytes]], *, in_flight: int = 16
    ) -> int:
        """Put objects and return how many they were; not to be called from a running loop.

        Args:
            bucket: An existing bucket.
            objects: Names and contents; taken one by one.
            in_flight: Objects under way at once; at least 1.
        """
        try:
            return asyncio.run(put_many(self.endpoint, bucket, objects, in_flight=in_flight))
        except* ClusterError as errors:
            raise errors.exceptions[0] from None

    def object_url(self, bucket: str, name: str) -> str:
        """Return the URL of an object at the first proxy."""
        return object_url(self.endpoint, bucket, name)

    def kill(self, name: str) -> None:
        """End a node as a crash does; for some time the map still has it."""
        self._running.signal(name, signal.SIGKILL)
        self._running.end(name)

    def terminate(self, name: str) -> None:
        """Tell a node to stop, and wait until it has."""
        self._running.signal(name, signal.SIGTERM)
        self._running.end(name)

    def freeze(self, name: str) -> None:
        """Stop a node, so that it is there and does nothing."""
        self._running.signal(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let a node go on."""
        self._running.signal(name, signal.SIGCONT)

    def restart(self, name: str) -> None:
        """Start a node that has ended, with what it has stored, and wait until it is ready."""
        self._start(self._nodes[name])
        self._wait_until_ready(self._nodes[name])
        self.wait_for_map(lambda smap: name in smap["tmap"] or name in smap["pmap"])

    def log(self, name: str) -> str:
        """Return the last lines that a node has written."""
        with self._nodes[name].log.open("rb") as log:
            size = log.seek(0, 2)
            log.seek(max(0, size - _TAIL_BYTES))
            return log.read().decode(errors="replace")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # How it starts

    def _start_all(self) -> None:
        folder = self._folder = make_folder(self._parent)
        ports = free_ports(len(self._names))
        self._nodes = {
            name: Node(name, role, port, folder / name)
            for (role, name), port in zip(self._names, ports, strict=True)
        }
        primary = next(iter(self._nodes.values()))
        write_config(self._config_path, primary.control_url, self._config)
        self._keeper = Keeper(folder, clean_environment())
        for node in self._nodes.values():
            node.write()
        self._start(primary)
        # It has to be there when the others come to join.
        self._wait_until_it_answers(primary, "/v1/health")
        for node in list(self._nodes.values())[1:]:
            self._start(node)
        for node in self._nodes.values():
            self._wait_until_ready(node)
        num_targets, num_proxies = len(self.targets), len(self.endpoints)
        self.wait_for_map(
            lambda smap: len(smap["tmap"]) == num_targets and len(smap["pmap"]) == num_proxies
        )

    @property
    def _config_path(self) -> Path:
        assert self._folder is not None, "the cluster was not started"
        return self._folder / "ais.json"

    @property
    def _running(self) -> Keeper:
        assert self._keeper is not None, "the cluster was not started"
        return self._keeper

    def _start(self, node: Node) -> None:
        command = node.command(self._aisnode, self._config_path, num_targets=len(self.targets))
        self._running.start(node.name, command, node.log)

    def _wait_until_ready(self, node: Node) -> None:
        self._wait_until_it_answers(node, "/v1/health?readiness=true")

    def _wait_until_it_answers(self, node: Node, path: str) -> None:
        def answers() -> bool | None:
            try:
                self._request("GET", node.url, path)
            except ClusterError:
                return None
            return True

        self._wait_for(node.name, answers)

    def _wait_for(self, what: str, attempt: Callable[[], _T | None]) -> _T:
        """Try until something comes of it; fail when a node ends or the time is up."""
        end = time.monotonic() + DEADLINE_S
        while True:
            result = attempt()
            if result is not None:
                return result
            ended = self._running.ended(_POLL_S)
            if ended:
                raise ClusterError(f"a node has ended ({ended}){self._tails(ended)}")
            if time.monotonic() > end:
                raise ClusterError(
                    f"{what} is not ready after {DEADLINE_S:g} s{self._tails(self._nodes)}"
                )

    def _tails(self, names: Iterable[str]) -> str:
        return "".join(
            f"\n--- {name} ---\n{self.log(name)}"
            for name in names
            if self._nodes[name].log.exists()
        )

    # How it is asked

    def _request(
        self, method: str, url: str, path: str, body: Mapping[str, Any] | None = None
    ) -> bytes:
        """Send one request to a node and return the body of its answer."""
        connection = HTTPConnection(PUBLIC, int(url.rpartition(":")[2]), timeout=DEADLINE_S)
        try:
            connection.request(
                method,
                path,
                json.dumps(body) if body else None,
                {"Content-Type": "application/json"} if body else {},
            )
            response = connection.getresponse()
            content = response.read()
        except (OSError, HTTPException) as error:
            raise ClusterError(f"{method} {url}{path} was not answered ({error})") from error
        finally:
            connection.close()
        if response.status != 200:
            raise ClusterError(
                f"{method} {url}{path} was answered with {response.status}: "
                f"{content.decode(errors='replace')}"
            )
        return content
