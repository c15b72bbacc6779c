"""A small real service on `hekaton.rpc.server`, for tests of the plumbing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from hekaton.config import SchedulerSettings
from hekaton.rpc.server import RunningServer, Servicer, serving
from hekaton.v1 import inference_pb2, inference_pb2_grpc

Step = Callable[[], None]


class ScriptedInference(inference_pb2_grpc.InferenceServiceServicer):
    """Answers with what `on_call` does: it may raise. `Generate` counts until it is cancelled."""

    def __init__(self, on_call: Step) -> None:
        self.on_call = on_call
        self.cancelled = asyncio.Event()
        self.messages = 0

    async def Generate(self, request: object, context: object) -> AsyncIterator[inference_pb2.GenerateResponse]:
        self.on_call()
        try:
            while True:
                self.messages += 1
                yield inference_pb2.GenerateResponse(tokens=inference_pb2.Tokens(first_index=self.messages))
                await asyncio.sleep(0.01)
        finally:
            self.cancelled.set()

    async def Resume(self, request: object, context: object) -> AsyncIterator[inference_pb2.ResumeResponse]:
        self.on_call()
        yield inference_pb2.ResumeResponse(tokens=inference_pb2.Tokens())

    async def Cancel(self, request: object, context: object) -> inference_pb2.CancelResponse:
        self.on_call()
        return inference_pb2.CancelResponse(cancelled=True)

    async def Tokenize(self, request: object, context: object) -> inference_pb2.TokenizeResponse:
        try:
            await asyncio.sleep(30)
        finally:
            self.cancelled.set()
        return inference_pb2.TokenizeResponse()

    async def CountTokens(self, request: object, context: object) -> inference_pb2.CountTokensResponse:
        self.on_call()
        return inference_pb2.CountTokensResponse()

    async def Detokenize(self, request: object, context: object) -> inference_pb2.DetokenizeResponse:
        raise ValueError("a secret that no client may read")


@asynccontextmanager
async def scripted_server(on_call: Step) -> AsyncIterator[tuple[RunningServer, ScriptedInference]]:
    servicer = ScriptedInference(on_call)
    settings = SchedulerSettings(redis_url="redis://unused", drain_timeout_s=0.2)
    add = Servicer(
        "hekaton.v1.InferenceService",
        lambda server: inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server),
    )
    async with serving(settings, [add]) as server:
        yield server, servicer
