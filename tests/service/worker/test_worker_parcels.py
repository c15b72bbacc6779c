"""Requests that change between two real workers of a host with their KV; the test plays scheduler and router."""

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from fakes.checkpoints import write_checkpoint
from fakes.memories import MemoryClient, running_memory
from fakes.metrics import free_address, sample, scrape
from fakes.peers import Commander, Listener, commander, listener
from fakes.redis import connected
from fakes.tinymodels import image_of
from fakes.waiting import eventually
from fakes.workers import SLO, RunningWorker, new_record, place, serving_worker
from hekaton.config import WorkerSettings
from hekaton.engine.parcel import parcel_name
from hekaton.facts import CatalogEntry, ModelState
from hekaton.store.catalog import Catalog
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.requests import Requests
from hekaton.v1 import worker_pb2 as pb

START_S = 150.0
"""Both load torch, on a machine that has much else to do."""
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(2 * START_S)]
PROMPT = tuple((7 * index) % 256 for index in range(50))
LONG = 8000
"""More tokens than are made before a test ends its request."""
MEMORY_BYTES = 32 << 20
PATIENT_S = 60.0


@dataclass
class Host:
    """Two workers and their memory service."""

    redis: Redis
    memory: MemoryClient
    metrics: dict[str, str]
    """Addresses by worker."""
    workers: dict[str, RunningWorker] = field(default_factory=dict)
    schedulers: dict[str, Commander] = field(default_factory=dict)
    routers: dict[str, Listener] = field(default_factory=dict)
    reference: list[int] = field(default_factory=list)
    """What an uninterrupted request gets."""

    @property
    def parcels(self) -> Path:
        return self.memory.directory / "kv"

    async def begin(self, request_id: str) -> "Moving":
        assert await Requests(self.redis).accept(new_record(request_id, max_tokens=LONG), PROMPT, 1000)
        moving = Moving(self, request_id)
        await moving.assign("w1")
        return moving

    async def counted(self) -> dict[str, float]:
        """Of both workers together, when both are idle and have said so."""

        async def idle() -> bool:
            now = await scrape(self.metrics)
            names = ("worker_requests_running", "worker_requests_waiting")
            return not any(now[sample(worker, name)] for worker in self.metrics for name in names)

        await eventually(idle, PATIENT_S)
        found: dict[str, float] = defaultdict(float)
        for (_, name, labels), value in (await scrape(self.metrics)).items():
            found[name.removeprefix("hekaton_") + "".join(f" {text}" for _, text in sorted(labels))] += value
        return found


@dataclass
class Moving:
    """A request on one of the two workers."""

    host: Host
    request_id: str
    worker_id: str = ""
    epoch: int = 0

    async def assign(self, worker_id: str, parcel: pb.Parcel | None = None) -> None:
        self.worker_id = worker_id
        _, self.epoch = await place(self.host.redis, worker_id)
        await self.host.schedulers[worker_id].assign(self.request_id, self.epoch, parcel=parcel)

    async def tokens(self, count: int) -> list[int]:
        return await self.host.routers[self.worker_id].tokens(self.request_id, count, PATIENT_S)

    async def let_go(self) -> pb.Released:
        """The scheduler's answer from the worker, once the router has all tokens of it."""
        await self.host.schedulers[self.worker_id].revoke(self.request_id, self.epoch, hand_over=True)
        return await self.released()

    async def released(self) -> pb.Released:
        released = await self.host.schedulers[self.worker_id].released(PATIENT_S)
        assert (released.request_id, released.epoch) == (self.request_id, self.epoch)
        await self.tokens(released.parcel.tokens + 1 - len(PROMPT))
        return released

    async def go_on(self, released: pb.Released) -> None:
        """On the other worker."""
        await Requests(self.host.redis).requeue(self.request_id, self.epoch, term=1, lost=False, max_attempts=3)
        await self.assign("w2" if self.worker_id == "w1" else "w1", released.parcel)

    async def end(self) -> list[int]:
        """Its client goes away, some tokens later; what it has."""
        known = len(self.host.routers[self.worker_id].known[self.request_id])
        await self.tokens(known + 20)
        await self.host.routers[self.worker_id].cancel(self.request_id)
        await self.host.schedulers[self.worker_id].released(PATIENT_S)
        return self.host.routers[self.worker_id].known[self.request_id]


def settings(url: str, worker_id: str, memory_address: str, metrics: str, directory: Path) -> WorkerSettings:
    return WorkerSettings(
        redis_url=url,
        worker_id=worker_id,
        device="cpu",
        device_memory=MEMORY_BYTES,
        memory_address=memory_address,
        host_kv_dir=directory,
        metrics_listen=metrics,
        heartbeat_s=0.1,
        lease_s=PATIENT_S,
        drain_timeout_s=0.3,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    folder = tmp_path_factory.mktemp("host")
    segments = folder / "segments"
    segments.mkdir(mode=0o700)
    # Built here, where torch is loaded already: the memory service takes it over.
    model = image_of(write_checkpoint(folder / "checkpoint", max_position_embeddings=16_384), segments)
    spec, source = model.prepared.spec, str(model.checkpoint)
    metrics = {"w1": free_address(), "w2": free_address()}
    async with AsyncExitStack() as stack:
        url = stack.enter_context(EmbeddedRedis()).url
        redis = await stack.enter_async_context(connected(url))
        memory = await stack.enter_async_context(running_memory(url, segments, host_memory=64 << 20))
        await Catalog(redis).put(CatalogEntry("m1", source, "", SLO, ModelState.READY, spec))
        host = Host(redis, memory, metrics)
        services = [
            serving_worker(settings(url, name, memory.settings.listen, metrics[name], folder), redis, START_S)
            for name in metrics
        ]
        started = await asyncio.gather(*(stack.enter_async_context(service) for service in services))
        for worker in started:
            host.workers[worker.worker_id] = worker
            scheduler = await stack.enter_async_context(commander(worker.address))
            await scheduler.hello()
            router = await stack.enter_async_context(listener(worker.address))
            host.schedulers[worker.worker_id], host.routers[worker.worker_id] = scheduler, router
        host.routers["w2"].known = host.routers["w1"].known
        request = await host.begin("uninterrupted")
        await request.tokens(400)
        host.reference = list(await request.end())
        yield host


def same(found: list[int], host: Host) -> bool:
    compared = min(len(found), len(host.reference))
    return found[:compared] == host.reference[:compared]


async def test_a_request_that_moves_to_and_fro_is_exact_and_computes_nothing_again(host: Host) -> None:
    before = await host.counted()
    request = await host.begin("r1")
    for tokens in (1, 25, 90):
        await request.tokens(tokens)
        released = await request.let_go()
        assert (released.moved, released.refused, released.handed_over) == (True, False, False)
        assert released.parcel.memory_address == host.memory.settings.listen
        await request.go_on(released)
    assert same(await request.end(), host)
    after = await host.counted()
    assert after["worker_prefilled_tokens_total"] - before["worker_prefilled_tokens_total"] == len(PROMPT)
    assert after["kv_parcels_total sent"] - before["kv_parcels_total sent"] == 3
    assert after["kv_parcels_total received"] - before["kv_parcels_total received"] == 3
    assert after["kv_parcels_total lost"] == before["kv_parcels_total lost"]
    assert after["kv_swap_bytes_total sent"] == after["kv_swap_bytes_total received"] > 0
    assert list(host.parcels.iterdir()) == []


def flip(path: Path) -> None:
    """One bit of the last block."""
    with path.open("r+b") as file:
        file.seek(-9, os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("spoil", [flip, cut, remove])
async def test_a_parcel_that_is_spoilt_on_its_way_is_computed_again(host: Host, spoil: Callable[[Path], None]) -> None:
    before = await host.counted()
    request = await host.begin(spoil.__name__)
    await request.tokens(30)
    released = await request.let_go()
    spoil(host.parcels / parcel_name(request.request_id, request.epoch))
    await request.go_on(released)
    assert same(await request.end(), host)
    after = await host.counted()
    again = after["worker_prefilled_tokens_total"] - before["worker_prefilled_tokens_total"] - len(PROMPT)
    assert again == released.parcel.tokens + 1
    assert list(host.parcels.iterdir()) == []


async def test_a_worker_that_stops_gives_the_kv_away(host: Host) -> None:
    """The last test: the first worker is gone after it."""
    await host.counted()
    metrics, received = {"w2": host.metrics["w2"]}, sample("w2", "kv_parcels_total", outcome="received")
    before = (await scrape(metrics))[received]
    request = await host.begin("drained")
    await request.tokens(30)
    host.workers["w1"].stop.set()
    released = await request.released()
    assert (released.refused, released.moved, released.reason) == (True, False, "drained")
    await request.go_on(released)
    assert same(await request.end(), host)
    assert released.parcel.tokens >= len(PROMPT) + 29
    assert (await scrape(metrics))[received] == before + 1
    assert list(host.parcels.iterdir()) == []
