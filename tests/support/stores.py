"""A cluster of either kind, a stand-in or a real one, with a bucket of a test's own."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

from aistore.sdk import Client

from headrace import Objects, Stream
from headrace.plans import Shuffled
from headrace_daemon.settings import StoreSettings

from .app import AppThread
from .standin import StandIn

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .cluster import Cluster

_NUMBERS = itertools.count()


class Store:
    """A cluster of either kind, and a bucket of the test's own in it.

    Args:
        server: The cluster.
        props: Of the bucket, values by section; on a real cluster only.
    """

    def __init__(self, server: StandIn | Cluster, props: Mapping[str, Any] | None = None) -> None:
        self.server = server
        self.endpoint = server.endpoint
        self.bucket = f"test-{os.getpid()}-{next(_NUMBERS)}"
        if isinstance(server, StandIn):
            assert not props
            server.create_bucket(self.bucket)
        else:
            server.create_bucket(self.bucket, props)
        self.client = Client(self.endpoint)

    def another_bucket(self, objects: Mapping[str, bytes]) -> str:
        """Create a bucket with some objects, and return its name."""
        name = f"test-{os.getpid()}-{next(_NUMBERS)}"
        self.server.create_bucket(name)
        self.put(objects, bucket=name)
        return name

    def put(self, objects: Mapping[str, bytes], *, bucket: str | None = None) -> None:
        """Put objects, without more into the bucket of the test."""
        if isinstance(self.server, StandIn):
            self.server.put_many(bucket or self.bucket, objects)
        else:
            self.server.put_many(bucket or self.bucket, list(objects.items()))

    def uri(self, prefix: str = "") -> str:
        return f"ais://{self.bucket}/{prefix}"

    def stream(self, prefix: str = "") -> Stream:
        return Stream(Objects(self.uri(prefix)), Shuffled(batch_size=8, seed=1))

    def daemon(self, **options: Any) -> AppThread:  # noqa: ANN401 - those of the settings
        settings = StoreSettings(endpoints=(self.endpoint,), **options)
        return AppThread().configure(store=settings)

    def daemon_at(self, state_dir: Path) -> AppThread:
        """Return a daemon with a state folder that stays."""
        app = AppThread(state_dir=str(state_dir))
        return app.configure(store=StoreSettings(endpoints=(self.endpoint,)))

    def as_the_sdk_has_it(self, prefix: str = "") -> dict[str, bytes]:
        """Return the objects as the SDK lists and reads them."""
        bucket = self.client.bucket(self.bucket)
        return {
            entry.name: bucket.object(entry.name).get_reader().read_all()
            for entry in bucket.list_all_objects(prefix=prefix)
        }
