"""Pinned models: their images are built ahead, and stay."""

import asyncio
from collections.abc import Iterable

import structlog

from hekaton.engine.profiles import SOURCE_PREFIX
from hekaton.errors import HekatonError, StoreUnavailable
from hekaton.facts import CatalogEntry
from hekaton.store.catalog import Catalog
from hekaton.tasks import forever
from hekaton_memory.weights import Weights

log = structlog.get_logger(__name__)
RETRY_S = 30.0
"""For an image that could not be built."""


class Pins:
    """Follows the catalog."""

    def __init__(self, catalog: Catalog, weights: Weights, period_s: float) -> None:
        self._catalog = catalog
        self._weights = weights
        self._period_s = period_s
        self._retry_s: dict[str, float] = {}
        """By digest: when, on the loop's clock, to try again."""

    async def run(self) -> None:
        """Until cancelled."""
        await forever(self.turn)

    async def turn(self) -> float:
        """Returns when to look again, in seconds."""
        try:
            entries = await self._catalog.list()
        except StoreUnavailable as error:
            log.warning("the catalog cannot be read; pins stay as they are", why=error.message)
            return self._period_s
        pinned = [(entry, entry.spec.digest) for entry in _pinned(entries) if entry.spec]
        self._weights.cache.pinned = frozenset(digest for _, digest in pinned)
        for entry, digest in pinned:
            await self._keep(entry, digest)
        return self._period_s

    async def _keep(self, entry: CatalogEntry, digest: str) -> None:
        clock = asyncio.get_running_loop().time
        if clock() < self._retry_s.get(digest, 0.0):
            return
        try:
            await self._weights.keep(digest, entry.source, entry.dtype)
        except HekatonError as error:
            log.error("a pinned model is not kept", model=entry.name, why=error.message)
            self._retry_s[digest] = clock() + RETRY_S


def _pinned(entries: Iterable[CatalogEntry]) -> list[CatalogEntry]:
    return [entry for entry in entries if entry.pinned and not entry.source.startswith(SOURCE_PREFIX)]
