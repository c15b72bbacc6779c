"""PoolService: who runs what."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial

import grpc.aio

from hekaton.errors import Unavailable
from hekaton.rpc import convert
from hekaton.rpc.channel import open_channel
from hekaton.rpc.interceptors import Context
from hekaton.rpc.tls import ClientTls
from hekaton.store.leadership import Leadership
from hekaton.store.requests import Requests
from hekaton.tasks import forever
from hekaton.v1 import pool_pb2, pool_pb2_grpc, worker_pb2, worker_pb2_grpc
from hekaton.v1.common_pb2 import TurnRecord
from hekaton_router.perworker import PerWorker
from hekaton_router.view import PoolView

DEFAULT_INTERVAL_S = 1.0
MIN_INTERVAL_S = 0.1
MAX_INTERVAL_S = 60.0
MAX_BUFFERED_TURNS = 1000
RETRY_S = 1.0

Turns = asyncio.Queue[TurnRecord | None]
"""Turns as they end; None when the router stops."""


class PoolServicer(pool_pb2_grpc.PoolServiceServicer):
    def __init__(
        self,
        view: PoolView,
        requests: Requests,
        leadership: Leadership,
        group: asyncio.TaskGroup,
        tls: ClientTls | None = None,
    ) -> None:
        self._view = view
        self._tls = tls
        self._requests = requests
        self._leadership = leadership
        self._group = group
        self._watchers: set[Turns] = set()

    async def GetPool(self, request: pool_pb2.GetPoolRequest, context: Context) -> pool_pb2.GetPoolResponse:
        return pool_pb2.GetPoolResponse(pool=await self._pool())

    async def WatchPool(
        self, request: pool_pb2.WatchPoolRequest, context: Context
    ) -> AsyncIterator[pool_pb2.WatchPoolResponse]:
        turns: Turns = asyncio.Queue()
        clock = asyncio.get_running_loop().time
        followed = PerWorker(self._group, partial(_follow, turns, self._tls))
        self._watchers.add(turns)
        try:
            while True:
                yield pool_pb2.WatchPoolResponse(pool=await self._pool())
                followed.update(self._view.addresses())
                until_s = clock() + _interval_s(request)
                while turn := await _next(turns, until_s):
                    yield pool_pb2.WatchPoolResponse(turn=turn)
        finally:
            followed.update({})
            self._watchers.discard(turns)

    def close(self) -> None:
        """Ends all watches, so that they do not hold up the drain."""
        for turns in self._watchers:
            turns.put_nowait(None)

    async def _pool(self) -> pool_pb2.Pool:
        await self._view.refresh()
        leader = await self._leadership.current()
        return pool_pb2.Pool(
            workers=self._view.workers,
            queued_requests=await self._requests.queued(),
            leader_term=leader[1] if leader else 0,
        )


def _interval_s(request: pool_pb2.WatchPoolRequest) -> float:
    asked_s = convert.seconds(request.interval) if request.HasField("interval") else DEFAULT_INTERVAL_S
    return min(max(asked_s, MIN_INTERVAL_S), MAX_INTERVAL_S)


async def _next(turns: Turns, until_s: float) -> TurnRecord | None:
    """The next turn that ends before `until_s` on the loop's clock. Raises Unavailable if the router stops first."""
    try:
        async with asyncio.timeout_at(until_s):
            turn = await turns.get()
    except TimeoutError:
        return None
    if turn is None:
        raise Unavailable("this router stops: watch another")
    return turn


async def _follow(turns: Turns, tls: ClientTls | None, worker_id: str, address: str) -> None:
    """Puts a worker's turns where a watcher finds them; of one who does not read, the newest are dropped."""
    async with open_channel(address, tls=tls) as channel:
        await forever(partial(_watch, turns, worker_pb2_grpc.WorkerServiceStub(channel)))


async def _watch(turns: Turns, stub: worker_pb2_grpc.WorkerServiceStub) -> float:
    with suppress(grpc.aio.AioRpcError):
        async for response in stub.WatchTurns(worker_pb2.WatchTurnsRequest()):
            if turns.qsize() < MAX_BUFFERED_TURNS:
                turns.put_nowait(response.turn)
    return RETRY_S
