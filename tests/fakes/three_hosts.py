"""A pool of three hosts: `python -m fakes.three_hosts FOLDER`, in a namespace of its own (`fakes.namespaces`).

The first host has router, scheduler and Redis, each of the others a worker and a memory service, and all talk over TLS.
The folder holds `model.json`, an entry of the catalog, and `images`, what memory services make of its checkpoint.
"""

import asyncio
import shutil
import signal
import ssl
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from fakes.metrics import scrape
from fakes.namespaces import Host, make_hosts
from fakes.redis import connected
from fakes.tls import certificates, member
from fakes.waiting import eventually
from hekaton.client import Client, Finished, SamplingOptions, Tokens
from hekaton.facts import CatalogEntry, RequestStats
from hekaton.rpc.tls import CertificateFiles
from hekaton.store.catalog import Catalog
from hekaton.store.embedded import find_server
from hekaton.store.requests import Requests

START_S = 150.0
"""Both workers load torch, on a machine that has much else to do."""
SERVICES = ("router", "scheduler", "worker", "memory")
PORT, METRICS_PORT, REDIS_PORT = 7000, 9100, 6379
"""Each host has its own: the first service's, and those of the others follow."""
GREEDY = SamplingOptions(max_tokens=800, temperature=0.0)
BEGUN = 50
"""Tokens of a stream that is well on its way."""
MODEL = "m1"
PROMPTS = tuple(tuple((step * index) % 256 for index in range(40)) for step in (3, 7))
HEARTBEAT_S, LEASE_S, DRAIN_S = 0.2, 4.0, 0.2


@dataclass
class Stream:
    request_id: str
    prompt: tuple[int, ...]
    token_ids: list[int] = field(default_factory=list)
    stats: RequestStats | None = None

    @property
    def worker_id(self) -> str:
        """That has ended it."""
        assert self.stats, "it has not ended"
        return self.stats.worker_id

    async def run(self, client: Client) -> None:
        async for event in client.generate(MODEL, self.prompt, GREEDY, request_id=self.request_id):
            match event:
                case Tokens():
                    assert event.first_index == len(self.token_ids)
                    self.token_ids += event.token_ids
                case Finished():
                    self.stats = event.stats


def streams(run: str) -> list[Stream]:
    """One of each prompt."""
    return [Stream(f"{run}-{index}", prompt) for index, prompt in enumerate(PROMPTS)]


@dataclass
class Pool:
    client: Client
    redis: Redis
    hosts: Mapping[str, Host]
    workers: Mapping[str, Process]
    """By id, which is the name of their host."""
    tls: ssl.SSLContext
    undisturbed: dict[tuple[int, ...], list[int]] = field(default_factory=dict)
    """Tokens, by prompt."""

    async def metrics(self, host: str, service: str) -> dict[str, float]:
        """What one service tells; a sample's name is followed by the values of its labels."""
        address = f"{self.hosts[host].address}:{metrics_port(service)}"
        found = await scrape({service: address}, self.tls)
        return {
            " ".join((name.removeprefix("hekaton_"), *sorted(text for _, text in labels))): value
            for (_, name, labels), value in found.items()
        }

    async def commanded(self) -> bool:
        """The scheduler has a stream to both workers."""
        try:
            return (await self.metrics("front", "scheduler"))["scheduler_workers"] == len(self.workers)
        except OSError:
            return False

    @asynccontextmanager
    async def running(self, some: Sequence[Stream]) -> AsyncIterator[dict[str, list[Stream]]]:
        """They are well on their way, by the worker that has them; at the end of the block they have ended."""

        async def begun() -> bool:
            return all(len(one.token_ids) >= BEGUN for one in some)

        async with asyncio.TaskGroup() as group:
            for one in some:
                group.create_task(one.run(self.client))
            await eventually(begun)
            assert not any(one.stats for one in some), "longer streams are needed"
            summaries = await Requests(self.redis).peek([one.request_id for one in some])
            yield {name: [one for one in some if summaries[one.request_id].worker_id == name] for name in self.workers}

    def check(self, some: Sequence[Stream]) -> None:
        for one in some:
            assert one.token_ids == self.undisturbed[one.prompt], one.request_id


async def undisturbed(pool: Pool) -> None:
    some = streams("undisturbed")
    async with pool.running(some):
        pass
    pool.undisturbed = {one.prompt: one.token_ids for one in some}
    assert all(len(one.token_ids) == GREEDY.max_tokens for one in some)


async def a_host_that_is_cut_off_loses_nothing(pool: Pool) -> None:
    """The other one goes on with its streams, and it comes back."""
    some, late = streams("cut"), Stream("late", PROMPTS[0])
    async with pool.running(some) as by_worker:
        cut, other = ("left", "right") if by_worker["left"] else ("right", "left")
        pool.hosts[cut].cut()
        await late.run(pool.client)
    pool.check([*some, late])
    assert {one.worker_id for one in [*some, late]} == {other}
    assert all(one.stats and one.stats.failures == 1 for one in by_worker[cut])
    pool.hosts[cut].mend()
    await eventually(pool.commanded)


async def a_worker_that_drains_sends_its_kv_to_the_other_host(pool: Pool) -> None:
    """Whichever has the streams: one of the two has been cut off before."""
    some = streams("drained")
    before = {name: await pool.metrics(name, "worker") for name in pool.workers}
    async with pool.running(some) as by_worker:
        drained, other = ("left", "right") if by_worker["left"] else ("right", "left")
        pool.workers[drained].send_signal(signal.SIGTERM)
    pool.check(some)
    assert {(one.worker_id, one.stats and one.stats.failures) for one in some} == {(other, 0)}

    async def grown(name: str) -> float:
        return (await pool.metrics(other, "worker"))[name] - before[other][name]

    async def received() -> bool:
        return await grown("kv_parcels_total received") == len(by_worker[drained])

    await eventually(received)
    assert await grown("worker_prefilled_tokens_total") == sum(len(one.prompt) for one in by_worker[other])
    sent = (await pool.metrics(drained, "memory"))["parcel_transferred_bytes_total sent"]
    assert (await pool.metrics(other, "memory"))["parcel_transferred_bytes_total received"] == sent > 0


# ---- the pool


def port(service: str) -> int:
    return PORT + SERVICES.index(service)


def metrics_port(service: str) -> int:
    return METRICS_PORT + SERVICES.index(service)


@contextmanager
def redis_server(host: Host, folder: Path) -> Iterator[str]:
    """Its URL, for all hosts."""
    command = [find_server(), "--bind", host.address, "--port", str(REDIS_PORT), "--protected-mode", "no"]
    command += ["--save", "", "--appendonly", "no", "--dir", str(folder), "--logfile", str(folder / "redis.log")]
    with subprocess.Popen(host.command(*command)) as process:
        try:
            yield f"redis://{host.address}:{REDIS_PORT}/0"
        finally:
            process.terminate()


async def add_model(redis: Redis, entry: CatalogEntry) -> None:
    """As soon as Redis answers."""

    async def answers() -> bool:
        try:
            return bool(await redis.ping())
        except RedisError:
            return False

    await eventually(answers)
    await Catalog(redis).put(entry)


@dataclass(frozen=True, slots=True)
class Services:
    """What those of all hosts have in common."""

    redis_url: str
    files: CertificateFiles
    folder: Path

    def on(self, host: Host, service: str, **more: object) -> AbstractAsyncContextManager[Process]:
        return host.service(
            service,
            redis_url=self.redis_url,
            listen=f"{host.address}:{port(service)}",
            metrics_listen=f"{host.address}:{metrics_port(service)}",
            tls_cert=self.files.cert,
            tls_key=self.files.key,
            tls_ca=self.files.ca,
            heartbeat_s=HEARTBEAT_S,
            lease_s=LEASE_S,
            drain_timeout_s=DRAIN_S,
            **more,
        )

    def memory(self, host: Host) -> AbstractAsyncContextManager[Process]:
        segments = self.folder / host.name
        shutil.copytree(self.folder / "images", segments)
        segments.chmod(0o700)
        return self.on(host, "memory", memory_id=host.name, segment_dir=segments, host_memory="64MiB")

    def worker(self, host: Host) -> AbstractAsyncContextManager[Process]:
        memory = f"{host.address}:{port('memory')}"
        return self.on(host, "worker", worker_id=host.name, device_memory="32MiB", memory_address=memory)


@asynccontextmanager
async def running_pool(folder: Path, model: CatalogEntry) -> AsyncIterator[Pool]:
    front, *others = hosts = make_hosts("front", ("left", "right"))
    files = certificates(folder / "certs", *(host.address for host in hosts))
    async with AsyncExitStack() as stack:
        url = stack.enter_context(redis_server(front, folder))
        redis = await stack.enter_async_context(connected(url))
        await add_model(redis, model)
        services, workers = Services(url, files, folder), {}
        for host in others:
            await stack.enter_async_context(services.memory(host))
            workers[host.name] = await stack.enter_async_context(services.worker(host))
        for name in ("scheduler", "router"):
            await stack.enter_async_context(services.on(front, name))
        client = await stack.enter_async_context(Client(f"{front.address}:{port('router')}", tls=member(files)))
        tls = ssl.create_default_context(cafile=files.ca)
        tls.load_cert_chain(files.cert, files.key)
        pool = Pool(client, redis, {host.name: host for host in hosts}, workers, tls)
        await eventually(pool.commanded, START_S)
        yield pool


async def main(folder: Path, model: CatalogEntry) -> None:
    async with running_pool(folder, model) as pool:
        await undisturbed(pool)
        await a_host_that_is_cut_off_loses_nothing(pool)
        await a_worker_that_drains_sends_its_kv_to_the_other_host(pool)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    asyncio.run(main(root, msgspec.json.decode((root / "model.json").read_bytes(), type=CatalogEntry)))
