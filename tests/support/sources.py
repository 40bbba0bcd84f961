"""Catalogs for tests."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from headrace.sources import Objects
from headrace_daemon.settings import StoreSettings
from headrace_daemon.source.ais.access import Access
from headrace_daemon.source.ais.store import AisStore
from headrace_daemon.source.catalog import Catalog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from concurrent.futures import Executor

    from headrace.selections import Selection
    from headrace_daemon.source.store import ManifestStore


def folders(manifests: ManifestStore, executor: Executor) -> Catalog:
    """Return a catalog of folders, which has no cluster."""
    settings = StoreSettings()
    return Catalog(manifests, executor, AisStore(settings, Access(settings, {}), executor))


def selected(uri: str, **options: Any) -> Selection:  # noqa: ANN401 - those of `Objects`
    """Return the only selection of a source."""
    (selection,) = Objects(uri, **options).selections
    return selection


@asynccontextmanager
async def store_without_cluster(executor: Executor) -> AsyncIterator[AisStore]:
    """Return a store whose cluster nobody asks for."""
    settings = StoreSettings()
    async with AisStore(settings, Access(settings, {}), executor) as ais:
        yield ais
