"""A whole pool on one machine: Redis, memory, scheduler, workers and routers as child processes.

Everything listens on a free loopback port and announces itself in Redis; only the first router's port may be fixed.
No child outlives the supervisor, however that ends.
"""

import asyncio
import ctypes
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from hekaton.cli.child import Child
from hekaton.errors import Unavailable
from hekaton.rpc.channel import open_channel
from hekaton.rpc.health import until_serving
from hekaton.store.connect import connect
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.keys import Kind
from hekaton.store.leadership import Leadership
from hekaton.store.workers import Registry
from hekaton.v1.pool_pb2 import WorkerStatus

START_TIMEOUT_S = 90.0
POLL_S = 0.05
SHM = Path("/dev/shm")
EMULATED = "emulated:"


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What `hekaton up` can be told. Empty texts take the services' own defaults."""

    device: str = "cpu"
    device_memory: str = "2GiB"
    workers: int = 1
    routers: int = 1
    listen: str = "127.0.0.1:0"
    redis_url: str = ""
    """Empty: an embedded server."""
    data_dir: Path | None = None
    """The embedded server keeps its data here; it forgets everything without."""
    shm_dir: Path | None = None
    host_memory: str = ""
    otlp_endpoint: str = ""
    min_turn_s: float | None = None
    time_scale: float | None = None
    log_level: str = "info"
    extra: dict[str, str] = field(default_factory=dict)
    """Further settings of every service, by name."""


class Stack:
    """An async context manager: inside it the pool is up. `address` is the first router's.

    Raises Unavailable, with the end of the log, if a service cannot start.
    """

    def __init__(self, options: StackOptions, say: Callable[[str], None] = lambda line: None) -> None:
        self.options = options
        self.address = ""
        self.redis_url = ""
        self.run_dir = Path()
        self._say = say
        self._exit = AsyncExitStack()
        self._children: list[Child] = []
        self._watch: asyncio.Task[None] | None = None

    @property
    def children(self) -> Sequence[Child]:
        return tuple(self._children)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self.run_dir = Path(tempfile.mkdtemp(prefix="hekaton-run-"))
            stack.callback(shutil.rmtree, self.run_dir, ignore_errors=True)
            self.redis_url = await self._redis(stack)
            redis = connect(self.redis_url)
            stack.push_async_callback(redis.aclose)
            stack.push_async_callback(self._stop_children)
            await self._start(Registry(redis, Kind.MEMORY), Registry(redis, Kind.WORKER), Registry(redis, Kind.ROUTER))
            await self._until(lambda: Leadership(redis).current(), "a scheduler leads")
            self._watch = asyncio.create_task(self._supervise(), name="supervise")
            self._exit = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self._exit.aclose()

    async def _redis(self, stack: AsyncExitStack) -> str:
        if self.options.redis_url:
            return self.options.redis_url
        server = EmbeddedRedis(self.options.data_dir)
        await asyncio.to_thread(server.start)
        stack.push_async_callback(asyncio.to_thread, server.stop)
        return server.url

    async def _start(self, memories: Registry, workers: Registry, routers: Registry) -> None:
        """In the order in which each needs the other."""
        scheduler = await self._launch("scheduler", "scheduler-0")
        memory_flags: dict[str, str] = {}
        if not self.options.device.startswith(EMULATED):
            await self._launch("memory", "memory-0", segment_dir=self._segment_dir(), host_memory=self.options.host_memory)
            memory_flags["memory_address"] = await self._serving(memories, "memory-0", lambda info: info.decode())
        names = [f"worker-{index}" for index in range(self.options.workers)]
        for name in names:
            await self._launch("worker", name, **memory_flags, **self._worker_flags())
        fronts = [f"router-{index}" for index in range(self.options.routers)]
        for index, name in enumerate(fronts):
            await self._launch("router", name, listen=self.options.listen if index == 0 else "")
        for name in names:
            await self._serving(workers, name, lambda info: WorkerStatus.FromString(info).address)
        addresses = [await self._serving(routers, name, lambda info: info.decode()) for name in fronts]
        self.address = addresses[0]
        scheduler.check()

    def _worker_flags(self) -> dict[str, str]:
        options = self.options
        flags = {"device": options.device, "device_memory": options.device_memory}
        if options.min_turn_s is not None:
            flags["min_turn_s"] = str(options.min_turn_s)
        if options.time_scale is not None:
            flags["time_scale"] = str(options.time_scale)
        return flags

    def _segment_dir(self) -> str:
        if self.options.shm_dir is not None:
            return str(self.options.shm_dir)
        parent = SHM if SHM.is_dir() else self.run_dir
        path = parent / self.run_dir.name
        self._exit_remove(path)
        return str(path)

    def _exit_remove(self, path: Path) -> None:
        """The memory service removes its segments; this is for one that was killed."""
        self._leftover = path

    async def _launch(self, service: str, name: str, **settings: str) -> Child:
        options = self.options
        common = {"redis_url": self.redis_url, "otlp_endpoint": options.otlp_endpoint, "log_level": options.log_level}
        wanted = {**common, f"{service}_id": name, **settings, **options.extra}
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in wanted.items() if value]
        child = Child(name, [sys.executable, "-m", f"hekaton_{service}", *flags], self.run_dir / f"{name}.log")
        self._children.append(child)
        await child.start()
        return child

    async def _serving(self, registry: Registry, name: str, address_of: Callable[[bytes], str]) -> str:
        """The address of a service that has announced itself, once it says SERVING."""

        async def announced() -> bytes | None:
            return (await registry.list()).get(name)

        address = address_of(await self._until(announced, f"{name} announces itself"))
        async with asyncio.timeout(START_TIMEOUT_S), open_channel(address) as channel:
            await until_serving(channel)
        return address
