"""One generation, over as many connections as it takes."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Protocol

import grpc
import grpc.aio

from hekaton.client import convert
from hekaton.client.types import Accepted, Finished, GenerationEvent, Tokens
from hekaton.errors import AlreadyExists, Diverged, HekatonError, NoWorker, StoreUnavailable, Unavailable
from hekaton.facts import token_crc
from hekaton.rpc import convert as wire
from hekaton.rpc.errors import has_details
from hekaton.v1 import inference_pb2 as pb
from hekaton.v1 import inference_pb2_grpc

CANCEL_TIMEOUT_S = 2.0
FIRST_DELAY_S = 0.05
MAX_DELAY_S = 1.0
BROKEN = frozenset(
    (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
)
"""What a call ends with, without details, when its connection breaks."""


class Routers(Protocol):
    """The routers that a client knows, and the one in use. `turn` leaves that at an address."""

    @property
    def count(self) -> int: ...

    @property
    def inference(self) -> inference_pb2_grpc.InferenceServiceStub: ...

    @property
    def address(self) -> str: ...

    def turn(self, address: str) -> None: ...


class Generation:
    """Sent again while it is not accepted; with a resume window, resumed after a broken connection."""

    def __init__(
        self,
        routers: Routers,
        request: pb.GenerateRequest,
        timeout_s: float,
        typed: Callable[[grpc.aio.AioRpcError], HekatonError],
    ) -> None:
        self._routers = routers
        self._request = request
        self._typed = typed
        self._clock = asyncio.get_running_loop().time
        self._ends_s = self._clock() + timeout_s
        self._kept = request.on_disconnect == pb.ON_DISCONNECT_KEEP
        self._window_s = wire.seconds(request.resume_window)
        self._accepted = False
        self._finished = False
        self._used = routers.address
        self._outputs_left = request.sampling.n or 1
        self._next_index = Counter[int]()
        """By choice. Only a single output is ever resumed."""
        self._crc = self._chars = self._call_chars = 0
        self._failures = 0
        """Connections that broke since something came."""
        self._broken_s = 0.0
        """When the first of them did."""

    async def events(self) -> AsyncGenerator[GenerationEvent, None]:
        """Every event once. Closing it cancels the request."""
        try:
            while not self._finished:
                try:
                    async with aclosing(self._connection()) as events:
                        async for event in events:
                            yield event
                except grpc.aio.AioRpcError as error:
                    await self._wait_or_raise(error)
        except (GeneratorExit, asyncio.CancelledError):
            if self._kept and not self._finished:
                await self._cancel()
            raise

    async def _connection(self) -> AsyncGenerator[GenerationEvent, None]:
        call = self._call()
        try:
            async for response in call:
                self._failures = 0
                event = convert.event_from_pb(response)
                if self._is_new(event):
                    yield event
        finally:
            call.cancel()

    def _call(self) -> "grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse] | _ResumeCall":
        left_s, self._used = max(self._ends_s - self._clock(), 0.0), self._routers.address
        if not self._accepted:
            return self._routers.inference.Generate(self._request, timeout=left_s)
        resume = pb.ResumeRequest(
            request_id=self._request.request_id,
            next_index=self._next_index[0],
            token_crc=self._crc,
            text_chars=self._chars,
            tool_call_chars=self._call_chars,
        )
        return self._routers.inference.Resume(resume, timeout=left_s)

    def _is_new(self, event: GenerationEvent) -> bool:
        match event:
            case Accepted():
                first, self._accepted = not self._accepted, True
                return first
            case Tokens():
                if event.first_index != (known := self._next_index[event.choice]):
                    raise Diverged(f"token {event.first_index} came after {known}: send the request again")
                self._next_index[event.choice] += len(event.token_ids)
                self._crc = token_crc(event.token_ids, self._crc)
                self._chars += len(event.text)
                self._call_chars += sum(len(call.name) + len(call.arguments) for call in event.tool_calls)
            case Finished():
                self._outputs_left -= 1
                self._finished = not self._outputs_left
        return True

    async def _wait_or_raise(self, error: grpc.aio.AioRpcError) -> None:
        """Returns when it is time to try again. Raises the typed error if that is of no use."""
        known = self._typed(error)
        if isinstance(known, AlreadyExists) and self._kept and self._failures:
            # An earlier connection broke before it could say so.
            self._accepted = True
            return
        broken = not has_details(error) and error.code() in BROKEN
        if not (broken or (self._kept and self._passes(known))):
            raise known from error
        self._broken_s = self._broken_s if self._failures else self._clock()
        self._failures += 1
        if not self._patient():
            raise known from error
        self._routers.turn(self._used)
        await asyncio.sleep(min(FIRST_DELAY_S * 2 ** (self._failures - 1), MAX_DELAY_S))

    def _passes(self, error: HekatonError) -> bool:
        return type(error) in (Unavailable, StoreUnavailable) or (isinstance(error, NoWorker) and not self._accepted)

    def _patient(self) -> bool:
        if self._kept:
            return self._clock() < min(self._broken_s + self._window_s, self._ends_s)
        return not self._accepted and self._failures < max(self._routers.count, 2)

    async def _cancel(self) -> None:
        """A lost connection would not end it."""
        cancel = pb.CancelRequest(request_id=self._request.request_id)
        with suppress(grpc.aio.AioRpcError):
            await self._routers.inference.Cancel(cancel, timeout=CANCEL_TIMEOUT_S)


class _ResumeCall(Protocol):
    def __aiter__(self) -> AsyncIterator[pb.ResumeResponse]: ...

    def cancel(self) -> bool: ...
