"""Workers without an engine: real WorkerServices that take what they are given and say what they are told to."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import grpc.aio
from redis.asyncio import Redis

from hekaton.facts import FinishReason, RequestState, RequestStats
from hekaton.rpc import convert
from hekaton.rpc.interceptors import Context
from hekaton.store.keys import Kind
from hekaton.store.requests import Requests
from hekaton.store.workers import Registry
from hekaton.tasks import end, forever
from hekaton.v1 import pool_pb2, worker_pb2_grpc
from hekaton.v1 import worker_pb2 as pb

DEVICE, DEVICE_BYTES = "cuda", 80 << 30
HEARTBEAT_S, LEASE_S = 1.0, 5.0
Reports = asyncio.Queue[pb.ControlResponse]
Tokens = asyncio.Queue[pb.StreamTokensResponse]


@dataclass(slots=True)
class Held:
    """A request that a router follows."""

    epoch: int
    router_id: str
    prompt_tokens: int
    max_tokens: int
    sent: int = 0


class LightWorker(worker_pb2_grpc.WorkerServiceServicer):
    """`assigned` is told of each request. Nothing runs unless `hold` and `step` are called."""

    def __init__(self, redis: Redis, worker_id: str, assigned: Callable[["LightWorker", pb.Assign], None]) -> None:
        self.status = pool_pb2.WorkerStatus(worker_id=worker_id, device=DEVICE, device_memory_bytes=DEVICE_BYTES)
        self.following: dict[str, Held] = {}
        """What routers read, by request."""
        self._store = Requests(redis)
        self._assigned = assigned
        self._held: dict[str, Held] = {}
        self._reports = Reports()
        self._tokens: dict[str, Tokens] = {}

    def released(self, request_id: str, epoch: int) -> None:
        """Tells the scheduler."""
        self._reports.put_nowait(pb.ControlResponse(released=pb.Released(request_id=request_id, epoch=epoch)))

    def report(self) -> None:
        """Tells the scheduler how it is."""
        self._reports.put_nowait(pb.ControlResponse(state=pb.WorkerReport(status=self.status)))

    async def hold(self, assign: pb.Assign) -> None:
        """Tells the request's router, as soon as that one listens."""
        stored = await self._store.load(assign.request_id)
        if stored is None:
            return
        record = stored.summary.record
        held = Held(assign.epoch, record.router_id, record.prompt_tokens, record.sampling.max_tokens)
        self._held[assign.request_id] = held
        if record.router_id in self._tokens:
            self._announce(assign.request_id, held)

    def step(self, token_id: Callable[[int], int]) -> None:
        """The next token of every request that is followed, `token_id` of its index."""
        by_router: dict[str, list[pb.RequestTokens]] = {}
        for request_id, held in self.following.items():
            tokens = pb.RequestTokens(
                request_id=request_id, epoch=held.epoch, first_index=held.sent, token_ids=(token_id(held.sent),)
            )
            held.sent += 1
            by_router.setdefault(held.router_id, []).append(tokens)
        for router_id, requests in by_router.items():
            self._send(router_id, pb.StreamTokensResponse(step=pb.StepTokens(requests=requests)))

    async def finish(self) -> None:
        """Ends all that have their tokens."""
        done = [name for name, held in self.following.items() if held.sent >= held.max_tokens]
        for request_id in done:
            held = self.following.pop(request_id)
            stats = RequestStats(held.prompt_tokens, held.sent, 0, held.epoch, 0, self.status.worker_id)
            await self._store.finish(
                request_id, held.epoch, RequestState.FINISHED, reason=FinishReason.LENGTH, stats=stats
            )
            reason = convert.FINISH_TO_PB[FinishReason.LENGTH]
            ended = pb.Ended(request_id=request_id, epoch=held.epoch, reason=reason, stats=convert.stats_to_pb(stats))
            self._send(held.router_id, pb.StreamTokensResponse(ended=ended))
            self.released(request_id, held.epoch)

    # ---- the service

    async def Control(
        self, request_iterator: AsyncIterator[pb.ControlRequest], context: Context
    ) -> AsyncIterator[pb.ControlResponse]:
        await anext(request_iterator)
        self._reports = Reports()
        self.report()
        reader = asyncio.create_task(self._obey(request_iterator))
        try:
            while True:
                yield await self._reports.get()
        finally:
            await end(reader)

    async def StreamTokens(
        self, request_iterator: AsyncIterator[pb.StreamTokensRequest], context: Context
    ) -> AsyncIterator[pb.StreamTokensResponse]:
        router_id = (await anext(request_iterator)).hello.router_id
        tokens = self._tokens[router_id] = Tokens()
        for request_id, held in self._held.items():
            if held.router_id == router_id:
                self._announce(request_id, held)
        reader = asyncio.create_task(self._listen(request_iterator))
        try:
            while True:
                yield await tokens.get()
        finally:
            await end(reader)

    async def WatchTurns(self, request: pb.WatchTurnsRequest, context: Context) -> AsyncIterator[pb.WatchTurnsResponse]:
        """It takes no turns."""
        turns: tuple[pb.WatchTurnsResponse, ...] = ()
        for turn in turns:
            yield turn

    async def _obey(self, commands: AsyncIterator[pb.ControlRequest]) -> None:
        async for command in commands:
            if command.HasField("assign"):
                self._assigned(self, command.assign)

    async def _listen(self, messages: AsyncIterator[pb.StreamTokensRequest]) -> None:
        async for message in messages:
            if message.HasField("produced"):
                held = self._held.pop(message.produced.request_id)
                self.following[message.produced.request_id] = held
            elif message.HasField("cancel"):
                self._held.pop(message.cancel.request_id, None)
                if stopped := self.following.pop(message.cancel.request_id, None):
                    self.released(message.cancel.request_id, stopped.epoch)

    def _announce(self, request_id: str, held: Held) -> None:
        assigned = pb.Assigned(request_id=request_id, epoch=held.epoch)
        self._send(held.router_id, pb.StreamTokensResponse(assigned=assigned))

    def _send(self, router_id: str, message: pb.StreamTokensResponse) -> None:
        if tokens := self._tokens.get(router_id):
            tokens.put_nowait(message)


@asynccontextmanager
async def light_workers(
    redis: Redis, count: int, assigned: Callable[[LightWorker, pb.Assign], None]
) -> AsyncIterator[Sequence[LightWorker]]:
    """So many, each with a server and an address of its own."""
    workers = [LightWorker(redis, f"worker-{index:02d}", assigned) for index in range(count)]
    servers = [grpc.aio.server() for _ in workers]
    for worker, server in zip(workers, servers, strict=True):
        worker.status.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(worker, server)
        await server.start()
    beats = asyncio.create_task(forever(partial(_beat, Registry(redis, Kind.WORKER), workers)))
    try:
        yield workers
    finally:
        await end(beats)
        await asyncio.gather(*(server.stop(0) for server in servers))


async def _beat(registry: Registry, workers: Sequence[LightWorker]) -> float:
    beats: list[Awaitable[None]] = [
        registry.heartbeat(worker.status.worker_id, worker.status.SerializeToString(), LEASE_S, 1) for worker in workers
    ]
    await asyncio.gather(*beats)
    return HEARTBEAT_S
