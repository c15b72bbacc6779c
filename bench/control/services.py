"""Real services as processes of their own, and a Redis, for as long as a bench takes."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis

from hekaton.cli.child import Child
from hekaton.facts import CatalogEntry, ModelSpec, ModelState, Slo
from hekaton.rpc.channel import open_channel
from hekaton.rpc.health import until_serving
from hekaton.store.catalog import Catalog
from hekaton.store.connect import connect
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.keys import Kind
from hekaton.store.workers import Registry

SLO = Slo(ttft_s=10.0, tbt_s=0.1)
STOP_GRACE_S = 5.0
POLL_S = 0.05


@asynccontextmanager
async def embedded_redis() -> AsyncIterator[tuple[Redis, str]]:
    """A client and the URL."""
    server = EmbeddedRedis()
    await asyncio.to_thread(server.start)
    try:
        async with connect(server.url) as redis:
            yield redis, server.url
    finally:
        await asyncio.to_thread(server.stop)


@asynccontextmanager
async def service(name: str, url: str, folder: Path, *flags: str) -> AsyncIterator[Child]:
    """One of the pool's services."""
    command = [sys.executable, "-m", f"hekaton_{name}", f"--redis-url={url}", f"--{name}-id={name}-0", *flags]
    child = Child(name, command, folder / f"{name}.log")
    await child.start()
    try:
        yield child
    finally:
        await child.stop(STOP_GRACE_S)


async def address_of(redis: Redis, kind: Kind, child: Child) -> str:
    """Where a service is, once it serves. Raises Unavailable if it has ended."""
    registry = Registry(redis, kind)
    while (address := (await registry.list()).get(f"{child.name}-0")) is None:
        child.check()
        await asyncio.sleep(POLL_S)
    async with open_channel(address.decode()) as channel:
        await until_serving(channel)
    return address.decode()


def free_port() -> int:
    """Of loopback; free when it was looked for."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def add_models(redis: Redis, spec: ModelSpec, names: list[str]) -> None:
    """As if they had been registered."""
    for name in names:
        await Catalog(redis).put(CatalogEntry(name, "/models", spec.dtype, SLO, ModelState.READY, spec))
