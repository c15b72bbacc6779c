"""A whole pool on one machine: Redis, memory, scheduler, workers and routers as child processes.

Everything listens on a free loopback port and announces itself in Redis; only the first router's port may be fixed.
No child outlives the supervisor, however that ends.
"""

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Self, TypeVar

from redis.asyncio import Redis

from hekaton.cli.child import Child
from hekaton.errors import Unavailable
from hekaton.policy.live import live_policy
from hekaton.rpc.channel import open_channel
from hekaton.rpc.health import until_serving
from hekaton.rpc.tls import CertificateFiles, ClientTls
from hekaton.store.connect import connect
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.keys import Kind
from hekaton.store.leadership import Leadership
from hekaton.store.workers import Registry
from hekaton.tasks import end
from hekaton.v1.pool_pb2 import WorkerStatus

START_TIMEOUT_S = 90.0
STOP_GRACE_S = 15.0
POLL_S = 0.05
RESTART_DELAYS_S = (0.2, 1.0, 5.0)
SHM = Path("/dev/shm")
EMULATED = "emulated:"
ANY_PORT = "127.0.0.1:0"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What `hekaton up` can be told. None and empty texts leave a setting to its service's default."""

    device: str = "cpu"
    device_memory: str = "2GiB"
    workers: int = 1
    routers: int = 1
    schedulers: int = 1
    memories: int = 1
    """Workers share them in turn."""
    listen: str = ""
    """The first router's address."""
    http_listen: str = ""
    """The first router's address for HTTP, the others take free ports; empty: none serves HTTP."""
    auth: bool = False
    """Routers ask for API keys."""
    tls_dir: Path | None = None
    """TLS everywhere with the certificate there, issued for this machine if there is none."""
    redis_url: str = ""
    """Empty: an embedded server."""
    data_dir: Path | None = None
    """The embedded server keeps its data here; without, it forgets everything at its end."""
    shm_dir: Path | None = None
    """Weight images live in a directory of their own below it."""
    host_memory: str = ""
    otlp_endpoint: str = ""
    time_scale: float | None = None
    policy: str = "slack"
    policy_options: Mapping[str, float] = field(default_factory=dict)
    restarts_s: Iterable[float] = RESTART_DELAYS_S
    """How long to wait before each restart of a service; it is given up after the last."""
    log_dir: Path | None = None
    """Services' logs; without, they are removed at the end."""


class Stack:
    """An async context manager: inside it the pool is up, and a service that dies is started again.

    Raises Unavailable, with the end of its log, if a service cannot start; InvalidArgument for an unfit policy.
    """

    def __init__(self, options: StackOptions, say: Callable[[str], None]) -> None:
        self.address = ""
        """The first router's."""
        self.addresses: list[str] = []
        """All routers'."""
        self.http_address = ""
        """The first router's, if it serves HTTP."""
        self.redis_url = ""
        self.children: list[Child] = []
        self._options = options
        self._say = say
        self._exit = AsyncExitStack()
        self._retired: set[Child] = set()
        self.tls: ClientTls | None = None
        """Of channels to its services."""
        self._tls_files: CertificateFiles | None = None
        self._up = False
        self._watches: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._take_certificates()
            run_dir = Path(tempfile.mkdtemp(prefix="hekaton-run-"))
            stack.callback(shutil.rmtree, run_dir, ignore_errors=True)
            segments = (self._options.shm_dir or _shared_memory() or run_dir) / run_dir.name
            # The memory service removes its segments itself, unless it was killed.
            stack.callback(shutil.rmtree, segments, ignore_errors=True)
            self.redis_url = await self._redis(stack)
            redis = connect(self.redis_url)
            stack.push_async_callback(redis.aclose)
            stack.push_async_callback(self._stop)
            logs = self._options.log_dir or run_dir
            logs.mkdir(parents=True, exist_ok=True)
            await _Start(self, self._options, run_dir, logs, segments, redis).run()
            await self._until(Leadership(redis).current, "a scheduler to lead")
            stack.push_async_callback(self._unwatch)
            self._up = True
            for child in self.children:
                self._watch(child)
            self._exit = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._exit.aclose()

    async def launch(self, service: str, name: str, log: Path, settings: dict[str, str]) -> Child:
        """Starts a service; settings that are empty are left out."""
        common = {"redis_url": self.redis_url, "otlp_endpoint": self._options.otlp_endpoint}
        if files := self._tls_files:
            common |= {"tls_ca": str(files.ca), "tls_cert": str(files.cert), "tls_key": str(files.key)}
        wanted = {**common, f"{service}_id": name, **settings}
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in wanted.items() if value]
        child = Child(name, [sys.executable, "-m", f"hekaton_{service}", *flags], log)
        self.children.append(child)
        await child.start()
        if self._up:
            self._watch(child)
        return child

    async def serving(self, registry: Registry, name: str, address_of: Callable[[bytes], str]) -> str:
        """The address of a service that has announced itself, once it says SERVING."""

        async def announced() -> bytes | None:
            return (await registry.list()).get(name)

        address = address_of(await self._until(announced, name))
        async with open_channel(address, tls=self.tls) as channel:
            try:
                async with asyncio.timeout(START_TIMEOUT_S):
                    await until_serving(channel)
            except TimeoutError:
                raise Unavailable(f"{name} does not become ready; see its log") from None
        return address

    async def retire(self, child: Child) -> None:
        """Stops one service for good."""
        self._retired.add(child)
        await child.stop(STOP_GRACE_S)

    async def _until(self, ask: Callable[[], Awaitable[T | None]], what: str) -> T:
        """Asks until there is an answer. Raises Unavailable if a child dies first, or nothing comes."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while (answer := await ask()) is None:
                    for child in self.children:
                        child.check()
                    await asyncio.sleep(POLL_S)
                return answer
        except TimeoutError:
            raise Unavailable(f"waited {START_TIMEOUT_S:.0f} s in vain for {what}") from None

    def _take_certificates(self) -> None:
        if self._options.tls_dir is None:
            return
        directory = self._options.tls_dir.resolve()
        files = self._tls_files = CertificateFiles.of(directory)
        if not files.cert.exists():
            from hekaton.certs import issue

            issue(directory)
        self.tls = ClientTls(files.ca, files.cert, files.key)

    async def _redis(self, stack: AsyncExitStack) -> str:
        if self._options.redis_url:
            return self._options.redis_url
        server = EmbeddedRedis(self._options.data_dir)
        await asyncio.to_thread(server.start)
        stack.push_async_callback(asyncio.to_thread, server.stop)
        return server.url

    def _watch(self, child: Child) -> None:
        """Starts it again when it ends, from now on."""
        self._watches.append(asyncio.create_task(self._restart(child), name=f"keep {child.name} alive"))

    async def _unwatch(self) -> None:
        self._up = False
        await end(*self._watches)

    async def _restart(self, child: Child) -> None:
        for delay_s in self._options.restarts_s:
            status = await child.wait()
            if child in self._retired:
                return
            self._say(f"{child.name} ended with status {status}; starting it again")
            await asyncio.sleep(delay_s)
            await child.start()
        await child.wait()
        self._say(f"{child.name} keeps ending; it is not started any more: {child.last_words()}")

    async def _stop(self) -> None:
        """Routers first, so that nobody is promised anything; in the opposite order of their start."""
        for child in reversed(self.children):
            await child.stop(STOP_GRACE_S)


class _Start:
    """The order of starting: each after those that it needs, and side by side where it can be."""

    def __init__(
        self, stack: Stack, options: StackOptions, run_dir: Path, logs: Path, segments: Path, redis: Redis
    ) -> None:
        self._stack = stack
        self._options = options
        self._run_dir = run_dir
        self._logs = logs
        self._segments = segments
        self._redis = redis

    async def run(self) -> None:
        roles = live_policy(self._options.policy, self._options.policy_options).roles(self._options.workers)
        for index in range(self._options.schedulers):
            await self._launch("scheduler", f"scheduler-{index}", **self._policy())
        emulated = self._options.device.startswith(EMULATED)
        memories = [""] if emulated else [await self._memory(index) for index in range(self._options.memories)]
        workers = [f"worker-{index}" for index in range(self._options.workers)]
        routers = [f"router-{index}" for index in range(self._options.routers)]
        for name, role, memory_address in zip(workers, roles, cycle(memories), strict=False):
            await self._launch("worker", name, memory_address=memory_address, role=role.value, **self._worker())
        for index, name in enumerate(routers):
            await self._launch("router", name, **self._router(index))
        for name in workers:
            await self._stack.serving(Registry(self._redis, Kind.WORKER), name, _worker_address)
        self._stack.addresses = [
            await self._stack.serving(Registry(self._redis, Kind.ROUTER), name, bytes.decode) for name in routers
        ]
        self._stack.address = self._stack.addresses[0]
        if self._options.http_listen:
            self._stack.http_address = (await Registry(self._redis, Kind.HTTP).list())[routers[0]].decode()

    async def _memory(self, index: int) -> str:
        """Starts a memory service; its address, which outlives the process: workers are told it once."""
        name = f"memory-{index}"
        listen = f"unix:{self._run_dir}/{name}.sock"
        # Who starts anew removes the leftovers of its directory, which are nobody else's.
        segments = self._segments / name if self._options.memories > 1 else self._segments
        settings = {"listen": listen, "segment_dir": str(segments), "host_memory": self._options.host_memory}
        await self._launch("memory", name, **settings)
        return await self._stack.serving(Registry(self._redis, Kind.MEMORY), name, bytes.decode)

    def _router(self, index: int) -> dict[str, str]:
        settings = {"auth": "keys" if self._options.auth else ""}
        if index == 0:
            return {**settings, "listen": self._options.listen, "http_listen": self._options.http_listen}
        return {**settings, "http_listen": ANY_PORT if self._options.http_listen else ""}

    def _worker(self) -> dict[str, str]:
        scale = self._options.time_scale
        return {
            "device": self._options.device,
            "device_memory": self._options.device_memory,
            "host_kv_dir": str(self._segments.parent),
            "time_scale": "" if scale is None else str(scale),
            **self._policy(),
        }

    def _policy(self) -> dict[str, str]:
        options = dict(self._options.policy_options)
        return {"policy": self._options.policy, "policy_option": json.dumps(options) if options else ""}

    async def _launch(self, service: str, name: str, **settings: str) -> None:
        await self._stack.launch(service, name, self._logs / f"{name}.log", settings)


def _shared_memory() -> Path | None:
    """The host's tmpfs; elsewhere than on Linux, plain files have to do."""
    return SHM if SHM.is_dir() else None


def _worker_address(info: bytes) -> str:
    return WorkerStatus.FromString(info).address
