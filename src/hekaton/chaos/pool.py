"""A local pool that can be broken: two of each service behind proxies, and a Redis that persists behind others."""

import asyncio
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from itertools import repeat
from pathlib import Path
from typing import Self

from hekaton.chaos.faults import REDIS, TO_REDIS, Fault, Kind
from hekaton.chaos.proxy import Proxy
from hekaton.cli.child import Child
from hekaton.cli.supervisor import SHM, Stack, StackOptions
from hekaton.store.embedded import EmbeddedRedis

REPLICAS = 2
RESTART_S = 0.2
DELAY_S = 0.05


class ProxiedStack(Stack):
    """Services announce the address of their proxy, and reach Redis through one of their own."""

    def __init__(self, options: StackOptions, say: Callable[[str], None], exit_stack: AsyncExitStack) -> None:
        super().__init__(options, say)
        self.proxies: dict[str, Proxy] = {}
        self.metrics: dict[str, str] = {}
        """Where each service tells its metrics."""
        self._exit_stack = exit_stack

    async def launch(self, service: str, name: str, log: Path, settings: dict[str, str]) -> Child:
        listen = settings.get("listen") or f"127.0.0.1:{_free_port()}"
        own = {
            "listen": listen,
            "advertise": await self._proxy(name, listen),
            "redis_url": f"redis://{await self._proxy(name + TO_REDIS, self.redis_url)}/0",
            "metrics_listen": f"127.0.0.1:{_free_port()}",
        }
        self.metrics[name] = own["metrics_listen"]
        return await super().launch(service, name, log, {**settings, **own})

    async def _proxy(self, name: str, target: str) -> str:
        """The address of a new one."""
        proxy = self.proxies[name] = await self._exit_stack.enter_async_context(Proxy(target))
        return proxy.address


class BreakablePool:
    """An async context manager. Touches only processes that it started."""

    def __init__(self, device: str, device_memory: str, log_dir: Path | None, say: Callable[[str], None]) -> None:
        self._device = device
        self._device_memory = device_memory
        self._log_dir = log_dir
        self._say = say
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            directory = Path(tempfile.mkdtemp(prefix="hekaton-chaos-"))
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            shared = SHM if SHM.is_dir() else directory
            self.segments = Path(tempfile.mkdtemp(prefix="hekaton-chaos-", dir=shared))
            stack.callback(shutil.rmtree, self.segments, ignore_errors=True)
            self.redis = EmbeddedRedis(directory / "data", socket_dir=directory)
            await asyncio.to_thread(self.redis.start)
            stack.push_async_callback(asyncio.to_thread, self.redis.stop)
            options = StackOptions(
                device=self._device,
                device_memory=self._device_memory,
                workers=REPLICAS,
                routers=REPLICAS,
                schedulers=REPLICAS,
                memories=REPLICAS,
                redis_url=self.redis.url,
                host_memory="256MiB",
                shm_dir=self.segments,
                restarts_s=repeat(RESTART_S),
                log_dir=self._log_dir,
            )
            self.stack = await stack.enter_async_context(ProxiedStack(options, self._say, stack))
            self._exit = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._exit.aclose()

    async def inflict(self, fault: Fault) -> None:
        """Breaks something, and mends it after the fault's time, even when cancelled."""
        if fault.target == REDIS:
            await self._break_redis(fault)
        elif fault.kind in (Kind.KILL, Kind.FREEZE):
            await self._break_process(self._child(fault.target), fault)
        else:
            await self._break_network(self.stack.proxies[fault.target], fault)

    def _child(self, name: str) -> Child:
        return next(child for child in self.stack.children if child.name == name)

    async def _break_process(self, child: Child, fault: Fault) -> None:
        if fault.kind is Kind.KILL:
            child.kill()
            return
        pid = child.pid
        child.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.duration_s)
        finally:
            if child.pid == pid:
                child.signal(signal.SIGCONT)

    async def _break_network(self, proxy: Proxy, fault: Fault) -> None:
        match fault.kind:
            case Kind.PARTITION:
                proxy.hold()
            case Kind.DELAY:
                proxy.delay_s = DELAY_S
            case _:
                proxy.sever()
        try:
            await asyncio.sleep(fault.duration_s)
        finally:
            proxy.release()
            proxy.delay_s = 0.0

    async def _break_redis(self, fault: Fault) -> None:
        if fault.kind is Kind.RESTART:
            await asyncio.to_thread(self.redis.kill)
            try:
                await asyncio.sleep(fault.duration_s)
            finally:
                await asyncio.to_thread(self.redis.start)
            return
        pid = self.redis.server_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.duration_s)
        finally:
            os.kill(pid, signal.SIGCONT)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
