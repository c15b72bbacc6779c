"""Calls of RPCs with bytes for messages, and what they end with."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeAlias

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from bench.fuzz.messages import Known, Maker
from hekaton.oip import open_inference_pb2
from hekaton.rpc.errors import has_details
from hekaton.v1 import inference_pb2, memory_pb2, models_pb2, pool_pb2, scheduler_pb2, worker_pb2

Unary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
OneWay: TypeAlias = "grpc.aio.UnaryStreamMultiCallable[bytes, bytes]"
BothWays: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"
Answers: TypeAlias = "grpc.aio.UnaryStreamCall[bytes, bytes] | grpc.aio.StreamStreamCall[bytes, bytes]"
FORBIDDEN = (
    grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNIMPLEMENTED,
)  # fmt: skip
ENDED_WHILE_WRITING = "Internal error from Core"
"""What grpc.aio says to a client that still writes when the server has ended the call: the status itself is lost."""
TIMEOUTS_S = (0.02, 0.1, 0.5, 1.5)
MOST_RESPONSES = 300
MOST_MESSAGES = 8
SHOWN_BYTES = 300
GREETED = ("Control", "StreamTokens")
"""Streams that begin with a hello."""
MODULES = (inference_pb2, models_pb2, pool_pb2, memory_pb2, scheduler_pb2, worker_pb2, open_inference_pb2)
SERVICES: dict[str, ServiceDescriptor] = {
    name: service for module in MODULES for name, service in module.DESCRIPTOR.services_by_name.items()
}
WEIGHTS = {
    "Generate": 4.0, "Control": 2.0, "StreamTokens": 2.0,
    # Each of these may start a process that reads a checkpoint.
    "PrepareModel": 0.1, "AcquireWeights": 0.1, "GetTokenizer": 0.1, "RegisterModel": 0.3,
}  # fmt: skip
TRACE_CONTEXTS = ("", "00-0-0-0", " ", "00-" + "f" * 32 + "-" + "f" * 16 + "-01", "x" * 4000)


def label(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}.{method.name}"


@dataclass(slots=True)
class Tally:
    """What has been sent and what came back."""

    messages: int = 0
    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Calls by RPC and status."""
    faults: list[str] = field(default_factory=list)
    """Answers that nobody may get."""


class Caller:
    """Makes calls of one service after the other; each is decided by the random numbers of its index."""

    def __init__(self, seed: int, known: Known, channels: dict[str, grpc.aio.Channel], tally: Tally) -> None:
        self._seed = seed
        self._known = known
        self._channels = channels
        self._tally = tally
        self._methods = [method for name in channels for method in SERVICES[name].methods]
        self._weights = [WEIGHTS.get(method.name, 1.0) for method in self._methods]

    async def call(self, index: int) -> None:
        random = Random(f"{self._seed}:{index}")
        [method] = random.choices(self._methods, self._weights)
        maker = Maker(random, self._known)
        most = MOST_MESSAGES if method.client_streaming else 1
        messages = [maker.request(method.input_type) for _ in range(random.randint(1, most))]
        if method.name in GREETED and random.random() < 0.7:
            messages.insert(0, maker.hello(method.input_type))
        self._tally.messages += len(messages)
        try:
            await self._answers(method, messages, random)
            code, fault = grpc.StatusCode.OK, ""
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if error.details() == ENDED_WHILE_WRITING:
                code = grpc.StatusCode.CANCELLED
            lost = code is grpc.StatusCode.UNAVAILABLE and not has_details(error)
            fault = f"{code.name}: {error.details()}" if code in FORBIDDEN or lost else ""
        except DecodeError as error:
            code, fault = grpc.StatusCode.OK, f"the answer is none: {error}"
        self._tally.codes[label(method), code.name] += 1
        if fault:
            sent = b" ".join(message.hex().encode() for message in messages)[:SHOWN_BYTES].decode()
            self._tally.faults.append(f"call {index}, {label(method)}: {fault}; sent {sent}")

    async def _answers(self, method: MethodDescriptor, messages: Sequence[bytes], random: Random) -> None:
        """Reads them all, or some and goes."""
        channel = self._channels[method.containing_service.name]
        path = f"/{method.containing_service.full_name}/{method.name}"
        timeout_s = random.choice(TIMEOUTS_S)
        metadata = [("traceparent", random.choice(TRACE_CONTEXTS))] if random.random() < 0.05 else None
        if not method.server_streaming:
            unary: Unary = channel.unary_unary(path)
            answer = await unary(messages[0], timeout=timeout_s, metadata=metadata)
            GetMessageClass(method.output_type).FromString(answer)
            return
        most = 1 if random.random() < 0.1 else MOST_RESPONSES
        call: Answers
        if method.client_streaming:
            both_ways: BothWays = channel.stream_stream(path)
            call = both_ways(_spaced(messages, random), timeout=timeout_s, metadata=metadata)
        else:
            one_way: OneWay = channel.unary_stream(path)
            call = one_way(messages[0], timeout=timeout_s, metadata=metadata)
        try:
            async for answer in call:
                self._learn(GetMessageClass(method.output_type).FromString(answer))
                most -= 1
                if not most:
                    return
        finally:
            call.cancel()

    def _learn(self, message: object) -> None:
        if isinstance(message, inference_pb2.GenerateResponse) and message.accepted.request_id:
            self._known.request_ids.append(message.accepted.request_id)


async def _spaced(messages: Sequence[bytes], random: Random) -> AsyncIterator[bytes]:
    for message in messages:
        yield message
        if random.random() < 0.2:
            await asyncio.sleep(0.01)
