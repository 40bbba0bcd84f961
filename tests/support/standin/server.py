"""`StandIn`: the life of the stand-in, and what a test may ask of it and do to it."""

from __future__ import annotations

import itertools
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from .assembly import Timing
from .batches import Batches
from .cluster import Cluster
from .exchange import Exchanges
from .faults import AnyNode, Fault, Match
from .listener import Listener
from .listing import Listing
from .loop_thread import LoopThread
from .names import GLOBAL, Bucket
from .nodes import Node, Proxy, Target, new_id
from .objects import StoredObject
from .proxies import Gateway
from .record import Record, Request
from .targets import Storage, next_version

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from .effects import Effect

_N = TypeVar("_N", bound=Node)


class StandIn:
    """A stand-in for an AIStore cluster, on a thread of its own.  A context manager.

    Everything here may be called from any thread; it is done on the stand-in's loop, between two
    requests.  Buckets are named by a word, or by a `Bucket` where provider or namespace matter.

    Args:
        num_targets: At least 1.
        num_proxies: At least 1.
        idle_s: How long a connection may be idle; 0: it is closed after every answer, without a
            word, as the race of a reused connection has it.
        latency_s: What every exchange with a target takes longer; may be set at any time.
        token: What a client must show to a proxy; with one, targets refuse direct requests.
        denies_direct: Targets refuse direct requests; None: if there is a token.
        cold_get_s: How long the backend of a remote bucket takes for one object.
        timing: How long a designated target waits.
    """

    def __init__(
        self,
        *,
        num_targets: int = 3,
        num_proxies: int = 1,
        idle_s: float = 30.0,
        latency_s: float = 0.0,
        token: str | None = None,
        denies_direct: bool | None = None,
        cold_get_s: float = 0.0,
        timing: Timing | None = None,
    ) -> None:
        if num_targets < 1 or num_proxies < 1:
            raise ValueError(f"{num_proxies} proxies, {num_targets} targets: at least 1 of each")
        self._num_targets = num_targets
        self._num_proxies = num_proxies
        self._cluster = Cluster()
        self._changed = threading.Condition()
        # Requests that came or ended, and faults that fired; guarded by the condition.
        self._num_changes = 0
        self._record = Record(self._notify)
        waiting = Batches()
        self._gateway = Gateway(self._cluster, Listing(), waiting, token)
        denies = token is not None if denies_direct is None else denies_direct
        self._storage = Storage(self._cluster, waiting, timing or Timing(), denies_direct=denies)
        self._storage.cold_get_s = cold_get_s
        self._exchanges = Exchanges(
            self._cluster,
            self._gateway,
            self._storage,
            self._record,
            idle_s=idle_s,
            latency_s=latency_s,
        )
        self._connection_numbers = itertools.count()
        self._thread = LoopThread(self._set_up, self._tear_down, "stand-in")
        self._run = self._thread.run

    # --- Life -----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.stop()
        if self._exchanges.bugs:
            raise self._exchanges.bugs[0]

    async def _set_up(self) -> None:
        for _ in range(self._num_proxies):
            await self._add(Proxy)
        for _ in range(self._num_targets):
            await self._add(Target)
        self._cluster.has_moved = False

    async def _tear_down(self) -> None:
        for node in self._cluster.nodes.values():
            await node.listener.release()

    async def _add(self, kind: type[_N]) -> _N:
        node: _N

        async def answer(*arrived: Any) -> Any:  # noqa: ANN401
            return await self._exchanges.conduct(node, *arrived)

        listener = Listener(self._connection_numbers, answer)
        node = kind(f"{new_id(4)}{kind.kind[0]}{listener.port}", listener, self._run)
        await listener.open()
        self._cluster.enter(node)
        return node

    def _notify(self) -> None:
        with self._changed:
            self._num_changes += 1
            self._changed.notify_all()

    # --- The cluster ----------------------------------------------------------------------------

    @property
    def endpoint(self) -> str:
        """The address of the primary proxy."""
        return self.endpoints[0]

    @property
    def endpoints(self) -> list[str]:
        """The addresses of all proxies, whether they are up or not; the primary's is the first."""
        return [proxy.url for proxy in self.proxies]

    @property
    def proxies(self) -> list[Proxy]:
        """All proxies that ever were."""
        return [node for node in self._cluster.nodes.values() if isinstance(node, Proxy)]

    @property
    def targets(self) -> list[Target]:
        """All targets that ever were, in the map or not."""
        return [node for node in self._cluster.nodes.values() if isinstance(node, Target)]

    @property
    def map_version(self) -> int:
        """The version of the map."""
        return self._cluster.version

    @property
    def uuid(self) -> str:
        """The cluster's id."""
        return self._cluster.uuid

    def owner(self, bucket: str | Bucket, name: str) -> Target:
        """Return the target that owns an object by the present map."""
        return self._run(lambda: self._cluster.owner(_bucket(bucket), name))

    def remove_from_map(self, node: Node) -> None:
        """Take a node out of the map, which gets a new version.  Its disks keep what they have."""
        self._run(lambda: self._cluster.leave(node))

    def return_to_map(self, node: Node) -> None:
        """Put a node back into the map, which gets a new version."""
        self._run(lambda: self._cluster.enter(node))

    def add_target(self) -> Target:
        """Add a target to the cluster.  Owners change, and objects stay where they are."""
        return self._run(partial(self._add, Target))  # type: ignore[return-value]

    def set_flags(self, node: Node, flags: int) -> None:
        """Change a node's flags in the map: 4 is maintenance, 8 decommission."""
        self._run(lambda: self._cluster.set_flags(node, flags))

    def renew_uuid(self) -> None:
        """Make it another cluster."""
        self._run(lambda: setattr(self._cluster, "uuid", new_id(9)))

    def rebalance(self) -> None:
        """Move every object to its owner."""
        self._run(self._cluster.rebalance)

    def set_rebalancing(self, is_rebalancing: bool) -> None:
        """Say whether a rebalance is running: lists say so, and targets ask their neighbours."""
        self._run(lambda: setattr(self._cluster, "is_rebalancing", is_rebalancing))

    def set_starting(self, node: Node, is_starting: bool) -> None:
        """Let a node say that it is not ready (503), or no longer."""
        change = self._exchanges.starting.add if is_starting else self._exchanges.starting.discard
        self._run(lambda: change(node.id))

    def set_token(self, token: str | None) -> None:
        """Change what a client must show to a proxy."""
        self._run(lambda: setattr(self._gateway, "token", token))

    def set_denies_direct(self, denies: bool) -> None:
        """Let targets refuse direct requests, or not."""
        self._run(lambda: setattr(self._storage, "denies_direct", denies))

    def set_latency(self, latency_s: float) -> None:
        """Change what every exchange with a target takes longer."""
        self._run(lambda: setattr(self._exchanges, "latency_s", latency_s))

    # --- Buckets and objects --------------------------------------------------------------------

    def create_bucket(
        self,
        name: str,
        *,
        provider: str = "ais",
        namespace: str = "",
        backend_bck: Bucket | None = None,
        has_sizes: bool = True,
    ) -> Bucket:
        """Create a bucket and return its identity.

        Args:
            name: Its name.
            provider: For ``aws`` and the like it is a remote bucket, with a backend that has what
                is put into it.
            namespace: The name of its namespace.
            backend_bck: The remote bucket that is behind it; it must exist.
            has_sizes: Whether the backend of a remote bucket lists sizes, and checksums.
        """
        bucket = Bucket(name, provider, f"@#{namespace}" if namespace else GLOBAL)
        self._run(lambda: self._cluster.create(bucket, backend_bck, has_sizes=has_sizes))
        return bucket

    def put(
        self,
        bucket: str | Bucket,
        name: str,
        data: bytes,
        *,
        custom: Mapping[str, str] | None = None,
        cached: bool = True,
    ) -> str:
        """Put an object at its owner, and return its version.

        Args:
            bucket: Where.
            name: Its name.
            data: Its bytes.
            custom: Its metadata.
            cached: For a remote bucket: keep a copy in the cluster.
        """
        return self._run(
            lambda: self._put(_bucket(bucket), name, data, dict(custom or {}), cached=cached)
        )

    def put_many(self, bucket: str | Bucket, objects: Mapping[str, bytes]) -> None:
        """Put many objects at once."""

        def put() -> None:
            for name, data in objects.items():
                self._put(_bucket(bucket), name, data, {}, cached=True)

        self._run(put)

    def _put(
        self, bucket: Bucket, name: str, data: bytes, custom: dict[str, str], *, cached: bool
    ) -> str:
        self._cluster.check(bucket)
        real = self._cluster.resolve(bucket)
        owner = self._cluster.owner(real, name)
        state = self._cluster.check(real)
        old = state.objects.get(name) if real.is_remote else owner.store.get(real, name)
        stored = StoredObject(data, next_version(old), time.time_ns(), custom)
        if real.is_remote:
            state.objects[name] = stored
        if cached or not real.is_remote:
            owner.store.put(real, name, stored)
        return stored.version

    def change(
        self, bucket: str | Bucket, name: str, data: bytes, *, keep_version: bool = False
    ) -> None:
        """Overwrite an object wherever there is a copy of it.

        Args:
            bucket: Where it is.
            name: Its name.
            data: Its new bytes.
            keep_version: With the version that it has, so that only the checksum tells.

        Raises:
            KeyError: If there is none.
        """
        real = self._cluster.resolve(_bucket(bucket))
        self._run(lambda: self._exchanges.change(real, name, data, keep_version=keep_version))

    def delete(self, bucket: str | Bucket, name: str) -> None:
        """Remove every copy of an object.

        Raises:
            KeyError: If there is none.
        """

        def delete() -> None:
            real = self._cluster.resolve(_bucket(bucket))
            found = [target.store.pop(real, name) for target in self.targets]
            found.append(self._cluster.check(real).objects.pop(name, None))
            if not any(found):
                raise KeyError(f"{real}/{name}")

        self._run(delete)

    def stored(self, bucket: str | Bucket, name: str) -> StoredObject:
        """Return an object, from whichever target has it.  Not to be changed.

        Raises:
            KeyError: If there is none.
        """
        real = self._cluster.resolve(_bucket(bucket))
        copies = self._run(lambda: self._cluster.copies(real, name))
        if not copies:
            raise KeyError(f"{real}/{name}")
        return copies[0]

    # --- Requests and faults --------------------------------------------------------------------

    @property
    def requests(self) -> list[Request]:
        """Every request since the start or the last `forget_requests`, as it is now."""
        return self._run(self._record.snapshot)

    def forget_requests(self) -> None:
        """Forget the requests so far."""
        self._run(self._record.forget)

    def wait_until(self, condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
        """Wait in this thread until a condition holds; it is tried as requests come and go.

        Raises:
            TimeoutError: If it does not hold in time.
        """
        end = time.monotonic() + deadline_s
        while True:
            seen = self._num_changes
            # The lock is not held here: the condition may ask the stand-in.
            if condition():
                return
            with self._changed:
                left = end - time.monotonic()
                if not self._changed.wait_for(partial(self._has_changed, seen), left):
                    raise TimeoutError(f"not within {deadline_s} s; requests: {self.requests}")

    def _has_changed(self, seen: int) -> bool:
        return self._num_changes != seen

    def fault(
        self,
        effect: Effect,
        *,
        target: Target | AnyNode | None = None,
        proxy: Proxy | AnyNode | None = None,
        path: str | re.Pattern[str] | None = None,
        method: str | None = None,
        direct: bool | None = None,
        reused: bool | None = None,
        times: int | None = 1,
        rate: float = 1.0,
        seed: int = 0,
    ) -> Fault:
        """Let an effect befall the next requests that match; see `Match` for what can be said.

        Args:
            effect: What happens.
            target: At a target, or at ``"any"``.
            proxy: At a proxy, or at ``"any"``.
            path: A glob for ``bucket/object`` or for the whole path, or a regular expression.
            method: ``GET`` and so on.
            direct: Only requests without (True) or with (False) a proxy's redirect.
            reused: Only requests on a used (True) or fresh (False) connection.
            times: How often; None: until it is cancelled.
            rate: The share of the requests that meet it.
            seed: Decides which, for a rate below 1.
        """
        match = Match(
            target=target,
            proxy=proxy,
            path=path,
            method=method,
            direct=direct,
            reused=reused,
            rate=rate,
            seed=seed,
        )
        fault = Fault(effect, match, times, self._notify)
        self._run(lambda: self._exchanges.faults.append(fault))
        return fault


def _bucket(bucket: str | Bucket) -> Bucket:
    return Bucket(bucket) if isinstance(bucket, str) else bucket
