"""Builds in progress, each shared by everyone who waits for the same checkpoint."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from hekaton import telemetry
from hekaton_memory.builder import Progress, build_image
from hekaton_memory.cache import Cache
from hekaton_memory.checkpoint import Checkpoint
from hekaton_memory.segments import Segments

HOLDER = "build"
Builder = Callable[[str, str, Path, Callable[[Progress], None]], Awaitable[str]]
"""Source, dtype, directory to build in and what to tell progress to; returns the digest."""


class Build:
    """One build, as those who wait for it see it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.waiters = 0
        self.digest = ""
        self.pin = ""
        """The lease that keeps the image until the last who waited has taken his own."""
        self._progress = Progress(0, checkpoint.estimated_bytes)
        self._error: Exception | None = None
        self._done = False
        self._changed = asyncio.Event()

    async def progress(self) -> AsyncGenerator[Progress, None]:
        """The newest progress whenever there is some, until the image is there. Raises what the build failed with."""
        while not self._done:
            changed = self._changed
            yield self._progress
            await changed.wait()
        if self._error is not None:
            raise self._error

    def advance(self, progress: Progress) -> None:
        self._progress = progress
        self._wake()

    def finish(self, error: Exception | None = None) -> None:
        self._error, self._done = error, True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Builds:
    """Runs builds, `limit` at once, from its making to `aclose`."""

    def __init__(self, segments: Segments, cache: Cache, limit: int, builder: Builder = build_image) -> None:
        self._segments = segments
        self._cache = cache
        self._builder = builder
        self._slots = asyncio.Semaphore(limit)
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[Checkpoint, tuple[Build, asyncio.Task[None]]] = {}
        self._digests: dict[Checkpoint, str] = {}

    def digest_of(self, checkpoint: Checkpoint) -> str:
        """What the checkpoint was built to before; empty if it was not, or has changed since."""
        return self._digests.get(checkpoint, "")

    @asynccontextmanager
    async def joined(self, checkpoint: Checkpoint) -> AsyncIterator[Build]:
        """The build of a checkpoint. Its image is pinned to the end of the block; the last to leave ends the build."""
        if checkpoint not in self._running:
            self._running[checkpoint] = self._start(checkpoint)
        build, task = self._running[checkpoint]
        build.waiters += 1
        try:
            yield build
        finally:
            build.waiters -= 1
            if not build.waiters:
                del self._running[checkpoint]
                task.cancel()
                self._cache.release(build.pin)

    async def aclose(self) -> None:
        """Ends every build and waits until its child is dead and its files are gone."""
        for task in self._tasks:
            if not task.cancelling():  # A second cancel would cut short what the first began.
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, checkpoint: Checkpoint) -> tuple[Build, asyncio.Task[None]]:
        build = Build(checkpoint)
        task = asyncio.create_task(self._run(build))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return build, task

    async def _run(self, build: Build) -> None:
        try:
            async with self._slots:
                with telemetry.tracer().start_as_current_span("build image") as span:
                    await self._build(build)
                    span.set_attribute("hekaton.digest", build.digest)
        except Exception as error:  # It belongs to those who wait.
            build.finish(error)
        else:
            build.finish()

    async def _build(self, build: Build) -> None:
        checkpoint = build.checkpoint
        with self._segments.workplace() as workplace:
            with self._cache.reserved(checkpoint.estimated_bytes):
                digest = await self._builder(checkpoint.source, checkpoint.dtype, workplace, build.advance)
            self._cache.install(workplace, digest)
        build.pin = self._cache.lease(HOLDER, digest, math.inf).lease_id
        build.digest = self._digests[checkpoint] = digest
