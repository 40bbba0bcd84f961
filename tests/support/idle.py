"""Connections that nobody uses, and how long their server keeps them."""

from __future__ import annotations

import threading
import time
from typing import Final

from .standin.asking import Client

IDLE_DEADLINE_S: Final = 45.0


class Idle(threading.Thread):
    """A connection that is used once, and for how long it was there after that."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._client = Client(int(url.rpartition(":")[2]))
        assert self._client.ask("/v1/health").status == 200
        self._client.sock.settimeout(IDLE_DEADLINE_S)
        self.open_s = 0.0
        self.start()

    def run(self) -> None:
        since = time.monotonic()
        with self._client:
            self._client.wait_closed()
        self.open_s = time.monotonic() - since
