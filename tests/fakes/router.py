"""A real router in this process, and its clients."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio import Redis
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed

from fakes.waiting import PATIENCE_S
from hekaton.config import RouterSettings
from hekaton.errors import HekatonError
from hekaton.oip import open_inference_pb2_grpc
from hekaton.policy.admission import Admission
from hekaton.rpc.channel import open_channel
from hekaton.rpc.errors import from_rpc_error
from hekaton.rpc.tls import ClientTls
from hekaton.store.keys import Kind
from hekaton.store.workers import Registry
from hekaton.v1 import inference_pb2 as pb
from hekaton.v1 import inference_pb2_grpc, models_pb2_grpc, pool_pb2_grpc
from hekaton_router.service import main

T = TypeVar("T")
GenerateCall = grpc.aio.UnaryStreamCall[Any, Any]


class RouterClient:
    def __init__(self, channel: grpc.aio.Channel, stop: asyncio.Event) -> None:
        self.stop = stop
        self.inference = inference_pb2_grpc.InferenceServiceStub(channel)
        self.models = models_pb2_grpc.ModelServiceStub(channel)
        self.pool = pool_pb2_grpc.PoolServiceStub(channel)
        self.open_inference = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    def generate(self, request: pb.GenerateRequest, *, timeout_s: float = PATIENCE_S) -> "Stream":
        return Stream(self.inference.Generate(request, timeout=timeout_s))

    async def until_serving(self, expected: bool = True) -> None:
        """Waits until the health check says so."""
        wanted = health_pb2.HealthCheckResponse.SERVING if expected else health_pb2.HealthCheckResponse.NOT_SERVING
        async for answer in self.health.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S):
            if answer.status == wanted:
                return


class Stream:
    """A call of Generate, read step by step."""

    def __init__(self, call: GenerateCall) -> None:
        self.call = call
        self.token_ids: list[int] = []
        self.text = ""
        self.logprobs: list[float] = []
        self.tool_calls: list[pb.ToolCallDelta] = []

    async def accepted(self) -> pb.Accepted:
        response: pb.GenerateResponse | pb.ResumeResponse = await anext(aiter(self.call))
        assert response.WhichOneof("event") == "accepted"
        return response.accepted

    async def until(self, tokens: int) -> None:
        """Reads until so many tokens have come."""
        while len(self.token_ids) < tokens:
            self._take((await anext(aiter(self.call))).tokens)

    async def finished(self) -> pb.Finished:
        """Reads to the end. Raises the router's typed error."""
        try:
            response: pb.GenerateResponse | pb.ResumeResponse
            async for response in self.call:
                if response.HasField("finished"):
                    return response.finished
                self._take(response.tokens)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        raise AssertionError("the stream ended without a terminal event")

    async def error(self) -> HekatonError:
        """The typed error that the call ends with."""
        try:
            async for _ in self.call:
                pass
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)
        raise AssertionError("the call succeeded")

    def _take(self, tokens: pb.Tokens) -> None:
        assert tokens.first_index == len(self.token_ids)
        self.token_ids += tokens.token_ids
        self.text += tokens.text
        self.tool_calls += tokens.tool_calls
        self.logprobs += [told.logprob for told in tokens.logprobs]


@asynccontextmanager
async def running_router(
    redis: Redis,
    url: str,
    router_id: str = "router-1",
    *,
    redis_wait_s: float = 0.3,
    drain_timeout_s: float = 0.2,
    max_deadline_s: float = 60.0,
    http: bool = False,
    admission: Admission = Admission.QUEUE,
    auth: Literal["off", "keys"] = "off",
    more: Mapping[str, Any] | None = None,
    tls: ClientTls | None = None,
) -> AsyncIterator[RouterClient]:
    """Runs until the end of the block. `more` are settings that few tests have."""
    settings = RouterSettings(
        redis_url=url,
        router_id=router_id,
        heartbeat_s=0.05,
        lease_s=5,
        redis_wait_s=redis_wait_s,
        drain_timeout_s=drain_timeout_s,
        max_deadline_s=max_deadline_s,
        tokenizer_timeout_s=5,
        auth=auth,
        http_listen="127.0.0.1:0" if http else "",
        admission=admission,
        **(more or {}),
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(main(settings, stop))
        try:
            async with open_channel(await address_of(redis, router_id), tls=tls) as channel:
                yield RouterClient(channel, stop)
        finally:
            stop.set()


async def address_of(redis: Redis, router_id: str, kind: Kind = Kind.ROUTER) -> str:
    """Where a router says that it can be found."""
    registry = Registry(redis, kind)
    return (await eventually(registry.list, lambda members: router_id in members))[router_id].decode()


async def eventually(look: Callable[[], Awaitable[T]], good: Callable[[T], bool], timeout_s: float = PATIENCE_S) -> T:
    """What `look` returns once it is good."""
    retrying = AsyncRetrying(
        retry=retry_if_result(lambda seen: not good(seen)), wait=wait_fixed(0.02), stop=stop_after_delay(timeout_s)
    )

    async def seen() -> T:
        return await look()

    return await retrying(seen)
