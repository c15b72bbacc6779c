"""What it costs to hand a request's KV to another worker, beside computing it again.

Two engines take turns at giving and taking one request; two memory services, processes of their own, are their hosts.
On one host the parcel is offered and claimed at the same service; between hosts the taker's service fetches it over
gRPC, on loopback. A hand-over is counted from the giver's first copy until the KV is on the taker's device.
"""

import select
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.control.services import free_port, service
from bench.weights import images_of, write_checkpoint
from hekaton.engine.interface import StepItem
from hekaton.engine.transformers_engine import TransformersEngine
from hekaton.facts import Parcel, Sampling
from hekaton.rpc.channel import open_channel
from hekaton.v1 import memory_pb2 as pb
from hekaton.v1 import memory_pb2_grpc

TOKENS = 512
REQUEST = "r"
START_TIMEOUT_S = 60.0
NO_REDIS = "redis://127.0.0.1:1/0"
"""The services serve without one."""


@dataclass(frozen=True, slots=True)
class Handover:
    kv_bytes: int
    recompute_ms: float
    """The prompt, prefilled again; medians."""
    host_ms: float
    network_ms: float


@dataclass(frozen=True, slots=True)
class Memory:
    """A memory service, a process of its own."""

    parcels: Path
    stub: memory_pb2_grpc.MemoryServiceStub

    async def offer(self, epoch: int) -> str:
        response = await self.stub.OfferKv(pb.OfferKvRequest(request_id=REQUEST, epoch=epoch))
        return response.memory_address

    async def claim(self, epoch: int, memory_address: str) -> Parcel:
        request = pb.ClaimKvRequest(request_id=REQUEST, epoch=epoch, memory_address=memory_address)
        held = await self.stub.ClaimKv(request)
        return Parcel(held.path, held.tokens, held.bytes)


@asynccontextmanager
async def _memory(directory: Path) -> AsyncIterator[Memory]:
    """On a free port of loopback."""
    address = f"127.0.0.1:{free_port()}"
    flags = (f"--listen={address}", f"--segment-dir={directory}")
    async with service("memory", NO_REDIS, directory.parent, *flags), open_channel(address) as channel:
        stub = memory_pb2_grpc.MemoryServiceStub(channel)
        await stub.GetMemoryStatus(pb.GetMemoryStatusRequest(), wait_for_ready=True, timeout=START_TIMEOUT_S)
        yield Memory(directory / "kv", stub)


class Giver:
    """An engine with the model on its device."""

    def __init__(self, engine: TransformersEngine, parcels: Path) -> None:
        self.engine = engine
        engine.export_to(parcels)
        engine.begin_load("a")
        while "a" in engine.loading():
            select.select([engine.fileno()], [], [])
            engine.finished_loads()

    def compute(self, ids: tuple[int, ...]) -> None:
        if not self.engine.grow_kv(REQUEST, "a", TOKENS):
            raise RuntimeError("there is no room for the KV of this bench")
        self.engine.step("a", [StepItem(REQUEST, ids, 0, Sampling(max_tokens=1, seed=1), 0)])

    def give(self, epoch: int, ids: tuple[int, ...]) -> None:
        if not self.engine.export_kv(REQUEST, epoch, "a", ids):
            raise RuntimeError("no parcel can be made")
        while not (exports := self.engine.finished_exports()):
            select.select([self.engine.fileno()], [], [])
        if exports[0].error:
            raise RuntimeError(exports[0].error)

    def take(self, parcel: Parcel, ids: tuple[int, ...]) -> None:
        if self.engine.import_kv(REQUEST, "a", parcel, (*ids, 0)) != TOKENS or not self.engine.swap_in(REQUEST):
            raise RuntimeError("there is no room for the parcel")
        while not (swaps := self.engine.finished_swaps()):
            select.select([self.engine.fileno()], [], [])
        if swaps[0].error:
            raise RuntimeError(swaps[0].error)


async def handover(rounds: int, directory: Path) -> Handover:
    """Medians of so many rounds, of each of the three in turn."""
    ids = tuple(place % 1000 for place in range(TOKENS))
    times_ms: dict[str, list[float]] = {"recompute": [], "host": [], "network": []}
    async with _hosts(directory) as (here, there, giver, taker, kv_bytes):
        giver.compute(ids)
        for epoch in range(2 * rounds + 2):
            # Each hand-over takes the KV to the other engine.
            fetches = epoch % 2 == 1
            giver.engine.export_to(here.parcels)
            with _timed(times_ms["network" if fetches else "host"]):
                giver.give(epoch, ids)
                address = await here.offer(epoch)
                parcel = await (there if fetches else here).claim(epoch, address)
                taker.take(parcel, ids)
            giver.engine.drop_kv(REQUEST)
            if not fetches:
                with _timed(times_ms["recompute"]):
                    giver.compute(ids)
                giver.engine.drop_kv(REQUEST)
            giver, taker = taker, giver
    return Handover(kv_bytes, *(median(times_ms[kind][1:]) for kind in ("recompute", "host", "network")))


@asynccontextmanager
async def _hosts(directory: Path) -> AsyncIterator[tuple[Memory, Memory, Giver, Giver, int]]:
    async with AsyncExitStack() as stack:
        spec, images = images_of(write_checkpoint(directory / "checkpoint"), "float32", directory)
        kv_bytes = TOKENS * spec.kv_bytes_per_token
        here = await stack.enter_async_context(_memory(directory / "here"))
        there = await stack.enter_async_context(_memory(directory / "there"))
        givers = []
        for _ in range(2):
            engine = TransformersEngine("cpu", spec.weight_bytes + (64 << 20), 1, 2 * kv_bytes, directory)
            stack.callback(engine.close)
            engine.add_model("a", spec, "")
            engine.provide_image("a", images["a"])
            givers.append(Giver(engine, here.parcels))
        yield here, there, givers[0], givers[1], kv_bytes


@contextmanager
def _timed(times_ms: list[float]) -> Iterator[None]:
    started_s = time.perf_counter()
    yield
    times_ms.append((time.perf_counter() - started_s) * 1e3)
