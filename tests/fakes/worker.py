"""A real in-process WorkerService whose tokens the test scripts."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc.aio
from redis.asyncio import Redis

from fakes.workers import next_queued
from hekaton.errors import HekatonError
from hekaton.facts import RequestState, RequestStats
from hekaton.rpc.interceptors import Context
from hekaton.store.keys import Kind
from hekaton.store.queue import Queue
from hekaton.store.requests import Requests
from hekaton.store.workers import Registry
from hekaton.v1 import common_pb2, pool_pb2, worker_pb2_grpc
from hekaton.v1 import worker_pb2 as pb

LEASE_S = 60.0
Outgoing = asyncio.Queue[pb.StreamTokensResponse | None]


class FakeWorker(worker_pb2_grpc.WorkerServiceServicer):
    """Announces what it holds on every stream, sends what it is told to, and remembers what routers say."""

    def __init__(self, redis: Redis, status: pool_pb2.WorkerStatus) -> None:
        self.status = status
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()
        self.produced: asyncio.Queue[pb.Produced] = asyncio.Queue()
        self.stopped: asyncio.Queue[pb.StopOnWorker] = asyncio.Queue()
        self.turns: asyncio.Queue[common_pb2.TurnRecord] = asyncio.Queue()
        self.watchers = 0
        self.report: pb.WorkerReport | None = None
        """What a scheduler is told; None: it is turned away."""
        self.commands: asyncio.Queue[pb.ControlRequest] = asyncio.Queue()
        """Of a scheduler."""
        self.connections: dict[str, int] = defaultdict(int)
        self._registry = Registry(redis, Kind.WORKER)
        self._store = Requests(redis)
        self._queue = Queue(redis, "test")
        self._routers: dict[str, str] = {}
        self._held: dict[str, int] = {}
        self._kept: set[str] = set()
        self._streams: dict[str, Outgoing] = {}

    async def take(self, *, term: int = 1) -> str:
        """Places the next queued request here, as a scheduler would, and announces it."""
        entry_id, request_id = await next_queued(self._queue, term)
        epoch = await self._store.place(request_id, entry_id, self.status.worker_id, term)
        stored = await self._store.load(request_id)
        assert epoch is not None
        assert stored is not None
        if stored.summary.record.resume_window_s:
            self._kept.add(request_id)
        self.hold(request_id, epoch, stored.summary.record.router_id)
        return request_id

    def hold(self, request_id: str, epoch: int, router_id: str) -> None:
        self._held[request_id] = epoch
        self._routers[request_id] = router_id
        self._announce(request_id)

    def drop(self, request_id: str) -> None:
        """Holds it no more."""
        del self._held[request_id]

    def step(
        self,
        request_id: str,
        first_index: int,
        token_ids: Sequence[int],
        *,
        epoch: int = 0,
        logprobs: Sequence[common_pb2.TokenLogprobs] = (),
    ) -> None:
        tokens = pb.RequestTokens(
            request_id=request_id,
            epoch=epoch or self._held[request_id],
            first_index=first_index,
            token_ids=token_ids,
            logprobs=logprobs,
        )
        self._send(self._routers[request_id], pb.StreamTokensResponse(step=pb.StepTokens(requests=[tokens])))

    def finish(self, request_id: str, tokens: int, *, unwritten: bool = False) -> None:
        stats = common_pb2.RequestStats(completion_tokens=tokens, worker_id=self.status.worker_id)
        ended = pb.Ended(reason=common_pb2.FINISH_REASON_STOP, stats=stats, unwritten=unwritten)
        self._end(request_id, ended)

    async def write_end(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Writes FINISHED to the store, as a worker does before it tells the router."""
        stats = RequestStats(5, len(token_ids), 0, self._held[request_id], 0, self.status.worker_id)
        await self._store.finish(
            request_id,
            self._held[request_id],
            RequestState.FINISHED,
            reason="stop",
            stats=stats,
            produced=token_ids,
        )

    def fail(self, request_id: str, error: HekatonError) -> None:
        self._end(request_id, pb.Ended(code=error.code.value[0], error=error.message, error_reason=error.reason))

    def sever(self) -> None:
        """Ends every token stream."""
        for outgoing in self._streams.values():
            outgoing.put_nowait(None)

    async def register(self) -> None:
        await self._registry.heartbeat(self.status.worker_id, self.status.SerializeToString(), LEASE_S, 1)

    async def leave(self) -> None:
        await self._registry.remove(self.status.worker_id, 1)

    async def StreamTokens(
        self, messages: AsyncIterator[pb.StreamTokensRequest], context: Context
    ) -> AsyncIterator[pb.StreamTokensResponse]:
        router_id = (await anext(messages)).hello.router_id
        self.connections[router_id] += 1
        outgoing = self._streams[router_id] = asyncio.Queue()
        for request_id in self._held:
            if self._routers[request_id] == router_id:
                self._announce(request_id)
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(self._read(messages, router_id))
            try:
                while message := await outgoing.get():
                    await context.write(message)
            finally:
                reader.cancel()
        return
        yield

    async def WatchTurns(self, request: pb.WatchTurnsRequest, context: Context) -> AsyncIterator[pb.WatchTurnsResponse]:
        self.watchers += 1
        try:
            while True:
                yield pb.WatchTurnsResponse(turn=await self.turns.get())
        finally:
            self.watchers -= 1

    async def Control(
        self, commands: AsyncIterator[pb.ControlRequest], context: Context
    ) -> AsyncIterator[pb.ControlResponse]:
        if self.report is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no scheduler commands this worker")
        async for command in commands:
            self.commands.put_nowait(command)
            yield pb.ControlResponse(state=self.report)

    async def _read(self, messages: AsyncIterator[pb.StreamTokensRequest], router_id: str) -> None:
        async for message in messages:
            if message.HasField("cancel"):
                self.cancelled.put_nowait(message.cancel.request_id)
            elif message.HasField("adopt"):
                self._routers[message.adopt.request_id] = router_id
                self._announce(message.adopt.request_id)
            elif message.HasField("stop"):
                self.stopped.put_nowait(message.stop)
            else:
                self.produced.put_nowait(message.produced)

    def _announce(self, request_id: str) -> None:
        kept = request_id in self._kept
        assigned = pb.Assigned(request_id=request_id, epoch=self._held[request_id], kept=kept)
        self._send(self._routers[request_id], pb.StreamTokensResponse(assigned=assigned))

    def _end(self, request_id: str, ended: pb.Ended) -> None:
        ended.request_id, ended.epoch = request_id, self._held[request_id]
        self._send(self._routers[request_id], pb.StreamTokensResponse(ended=ended))

    def _send(self, router_id: str, message: pb.StreamTokensResponse) -> None:
        if outgoing := self._streams.get(router_id):
            outgoing.put_nowait(message)


@asynccontextmanager
async def fake_worker(
    redis: Redis, worker_id: str = "worker-1", *, device: str = "emulated:h800", memory_bytes: int = 80 << 30
) -> AsyncIterator[FakeWorker]:
    """Serves and is registered until the end of the block."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    status = pool_pb2.WorkerStatus(
        worker_id=worker_id, address=f"127.0.0.1:{port}", device=device, device_memory_bytes=memory_bytes
    )
    worker = FakeWorker(redis, status)
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(worker, server)
    await server.start()
    await worker.register()
    try:
        yield worker
    finally:
        await server.stop(0)
