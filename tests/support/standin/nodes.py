"""The nodes: proxies, and targets with their disks."""

from __future__ import annotations

import base64
import random
import string
from typing import TYPE_CHECKING, Any, Final

from . import hrw
from .objects import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from .listener import Listener

MAINTENANCE: Final = 4
"""The flag of a target in maintenance: it owns nothing."""
DECOMMISSION: Final = 8
"""The flag of a target that is leaving for good: it owns nothing."""


class Node:
    """A proxy or a target.

    Args:
        node_id: Its id, unique.
        listener: Its port.
        run: Runs a function or coroutine function on the stand-in's loop, and waits for it.
    """

    kind = ""

    def __init__(
        self, node_id: str, listener: Listener, run: Callable[[Callable[[], object]], object]
    ) -> None:
        self.id = node_id
        self.digest = hrw.digest(node_id)
        self.flags = 0
        self.listener = listener
        self._run = run

    @property
    def port(self) -> int:
        """Its port on 127.0.0.1, the same for the life of the node."""
        return self.listener.port

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_up(self) -> bool:
        """Whether it listens."""
        return self.listener.is_open

    @property
    def name(self) -> str:
        """Its id as AIStore writes it: ``t[id]``."""
        return f"{self.kind[0]}[{self.id}]"

    def stop(self) -> None:
        """Let it die: its connections are reset, its port refuses; the map does not change."""
        self._run(self._stop)

    async def _stop(self) -> None:
        await self.listener.quiesce()
        self.die()

    def start(self) -> None:
        """Start it again on the same port, with what is on its disks; the map does not change."""
        self._run(self.listener.open)

    def die(self) -> None:
        """Do what `stop` does, on the stand-in's thread."""
        self.listener.close()

    def in_map(self) -> dict[str, Any]:
        """Return what the map says about it."""
        net = {
            "node_ip_addr": "127.0.0.1",
            "daemon_port": str(self.port),
            "direct_url": self.url,
        }
        return {
            "public_net": net,
            "intra_control_net": net,
            "intra_data_net": net,
            "daemon_type": self.kind,
            "daemon_id": self.id,
            "flags": self.flags,
            "id_digest": self.digest,
        }

    def __repr__(self) -> str:
        return f"<{self.name} at {self.port}>"


class Proxy(Node):
    """A gateway: it knows the map, lists, and sends clients to targets."""

    kind = "proxy"

    def in_map(self) -> dict[str, Any]:
        """Return what the map says about it."""
        key = base64.b64encode(self.id.encode().ljust(32, b"\0")).decode()
        return super().in_map() | {"verifying_key": key}


class Target(Node):
    """A node with disks.

    `lost_peers` says that its peers do not send it their entries of batches.  So it is after a
    target died and came back, for more than ten minutes; a test may set it to False.
    """

    kind = "target"

    def __init__(
        self, node_id: str, listener: Listener, run: Callable[[Callable[[], object]], object]
    ) -> None:
        super().__init__(node_id, listener, run)
        self.store = Store()
        self.lost_peers = False

    @property
    def owns(self) -> bool:
        """Whether it owns objects while it is in the map."""
        return not self.flags & (MAINTENANCE | DECOMMISSION)

    def die(self) -> None:
        """Do what `stop` does, on the stand-in's thread."""
        super().die()
        self.lost_peers = True


def new_id(length: int) -> str:
    """Return letters and digits that have not been there before."""
    # Not the shared generator: a test may have seeded it, and wait for its next numbers.
    return "".join(random.SystemRandom().choices(string.ascii_letters + string.digits, k=length))
