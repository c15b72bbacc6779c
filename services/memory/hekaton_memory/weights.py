"""What the memory service does: prepares checkpoints and leases their images."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from hekaton.engine.image import Prepared
from hekaton.errors import InvalidArgument, ModelNotReady
from hekaton.facts import ModelSpec
from hekaton_memory.builder import Progress
from hekaton_memory.builds import Builds
from hekaton_memory.cache import Cache, Lease
from hekaton_memory.checkpoint import Checkpoint, examine
from hekaton_memory.segments import Segments


@dataclass(frozen=True, slots=True)
class Leased:
    """An image that its holder may map while the lease lasts."""

    lease: Lease
    duration_s: float
    path: Path
    nbytes: int
    prepared: Prepared


class Weights:
    """The cache with its builds. Streams give progress and, last, what was asked for."""

    def __init__(self, segments: Segments, cache: Cache, builds: Builds, lease_s: float) -> None:
        self.cache = cache
        self._segments = segments
        self._builds = builds
        self._lease_s = lease_s

    async def prepare(self, source: str, dtype: str) -> AsyncGenerator[Progress | ModelSpec, None]:
        """Reads and checks a checkpoint. One that is unchanged since it was last read needs no second reading."""
        checkpoint = await asyncio.to_thread(examine, source, dtype)
        digest = self._builds.digest_of(checkpoint)
        if not digest:
            async with self._builds.joined(checkpoint) as build, aclosing(build.progress()) as steps:
                async for step in steps:
                    yield step
                digest = build.digest
        yield (await self._read(digest)).spec

    async def acquire(
        self, holder_id: str, digest: str, source: str, dtype: str
    ) -> AsyncGenerator[Progress | Leased, None]:
        """Leases the image of `digest`, built again if it was dropped. Whoever leaves before its end has no lease.

        Raises ModelNotReady if the checkpoint no longer gives this digest.
        """
        if not holder_id or not digest:
            raise InvalidArgument("a lease needs a holder_id and a digest")
        self.cache.forget_removed(digest)
        if digest in self.cache:
            lease = self.cache.lease(holder_id, digest, self._lease_s)
        else:
            checkpoint = await self._examine(digest, source, dtype)
            async with self._builds.joined(checkpoint) as build, aclosing(build.progress()) as steps:
                async for step in steps:
                    yield step
                _require_same(digest, build.digest)
                lease = self.cache.lease(holder_id, digest, self._lease_s)
        delivered = False
        try:
            yield await self._leased(lease)
            delivered = True
        finally:
            if not delivered:
                self.cache.release(lease.lease_id)

    async def keep(self, digest: str, source: str, dtype: str) -> None:
        """Builds an image that is not here. Raises as `acquire` does."""
        self.cache.forget_removed(digest)
        if digest not in self.cache:
            checkpoint = await self._examine(digest, source, dtype)
            async with self._builds.joined(checkpoint) as build, aclosing(build.progress()) as steps:
                async for _ in steps:
                    pass
                _require_same(digest, build.digest)

    async def describe(self, digest: str, source: str, dtype: str) -> Prepared:
        """What belongs to an image besides its weights, tokenizer and templates among them."""
        if not self._segments.knows(digest):
            checkpoint = await self._examine(digest, source, dtype)
            async with self._builds.joined(checkpoint) as build, aclosing(build.progress()) as steps:
                async for _ in steps:
                    pass
                _require_same(digest, build.digest)
        return await self._read(digest)

    def renew(self, holder_id: str, lease_ids: list[str]) -> list[str]:
        """Returns the leases that are lost."""
        return self.cache.renew(holder_id, lease_ids, self._lease_s)

    async def _examine(self, digest: str, source: str, dtype: str) -> Checkpoint:
        """The checkpoint to build `digest` from; refuses at once one that is known to give another."""
        checkpoint = await asyncio.to_thread(examine, source, dtype)
        _require_same(digest, self._builds.digest_of(checkpoint) or digest)
        return checkpoint

    async def _leased(self, lease: Lease) -> Leased:
        path, nbytes = self._segments.image_path(lease.digest), self.cache.size_bytes(lease.digest)
        return Leased(lease, self._lease_s, path, nbytes, await self._read(lease.digest))

    async def _read(self, digest: str) -> Prepared:
        return await asyncio.to_thread(self._segments.read, digest)


def _require_same(asked: str, found: str) -> None:
    if asked != found:
        raise ModelNotReady(f"the checkpoint changed: it was {asked} and is now {found}; register it again")
