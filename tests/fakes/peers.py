"""What a worker talks to: a scheduler and a router, played by the test over real streams."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fakes.waiting import PATIENCE_S
from hekaton.rpc.channel import open_channel
from hekaton.v1 import worker_pb2 as pb
from hekaton.v1 import worker_pb2_grpc


class Commander:
    """A leader's end of a Control stream."""

    def __init__(self, stub: worker_pb2_grpc.WorkerServiceStub, term: int) -> None:
        self.call = stub.Control()
        self.term = term

    async def hello(self) -> pb.WorkerReport:
        """Opens the stream; what the worker reports first."""
        hello = pb.ControlHello(term=self.term, scheduler_id="test")
        await self.call.write(pb.ControlRequest(hello=hello))
        message = await self._read()
        assert message.HasField("state")
        return message.state

    async def assign(self, request_id: str, epoch: int, model: str = "m1", parcel: pb.Parcel | None = None) -> None:
        assign = pb.Assign(request_id=request_id, epoch=epoch, model=model, parcel=parcel)
        await self.call.write(pb.ControlRequest(assign=assign))

    async def revoke(self, request_id: str, epoch: int, *, hand_over: bool = False) -> None:
        revoke = pb.Revoke(request_id=request_id, epoch=epoch, hand_over=hand_over)
        await self.call.write(pb.ControlRequest(revoke=revoke))

    async def released(self, timeout_s: float = PATIENCE_S) -> pb.Released:
        """The next request that the worker is done with."""
        async with asyncio.timeout(timeout_s):
            while not (message := await self._read()).HasField("released"):
                pass
            return message.released

    async def resident(self, model: str) -> None:
        """Returns when a report says that a model is there."""
        async with asyncio.timeout(PATIENCE_S):
            while model not in (await self._read()).state.status.resident_models:
                pass

    async def used_s(self, tenants: set[str]) -> dict[str, float]:
        """What reports charge, added up until all of these tenants are among them."""
        used_s: defaultdict[str, float] = defaultdict(float)
        async with asyncio.timeout(PATIENCE_S):
            while not tenants <= used_s.keys():
                for tenant, seconds in (await self._read()).state.used_seconds.items():
                    used_s[tenant] += seconds
        return used_s

    async def _read(self) -> pb.ControlResponse:
        message = await self.call.read()
        assert isinstance(message, pb.ControlResponse), "the worker ended the stream"
        return message


class Listener:
    """A router's end of a token stream. `known` is what it has of each request."""

    def __init__(self, stub: worker_pb2_grpc.WorkerServiceStub, known: dict[str, list[int]], answers: bool) -> None:
        self._call = stub.StreamTokens()
        self._answers = answers
        self._changed = asyncio.Event()
        self.known = known
        self.epochs: dict[str, int] = {}
        self.ended: dict[str, pb.Ended] = {}
        self.steps = 0

    async def run(self, router_id: str) -> None:
        await self._call.write(pb.StreamTokensRequest(hello=pb.StreamTokensHello(router_id=router_id)))
        while isinstance(message := await self._call.read(), pb.StreamTokensResponse):
            await self._take(message)
            self._changed.set()

    async def cancel(self, request_id: str) -> None:
        await self._call.write(pb.StreamTokensRequest(cancel=pb.CancelOnWorker(request_id=request_id)))

    async def stop(self, request_id: str, epoch: int, tokens: int) -> None:
        stop = pb.StopOnWorker(request_id=request_id, epoch=epoch, tokens=tokens)
        await self._call.write(pb.StreamTokensRequest(stop=stop))

    async def end(self, request_id: str, timeout_s: float = PATIENCE_S) -> pb.Ended:
        """The request's terminal event."""
        await self._until(lambda: request_id in self.ended, timeout_s)
        return self.ended[request_id]

    async def tokens(self, request_id: str, count: int, timeout_s: float = PATIENCE_S) -> list[int]:
        """Returns when at least so many have come."""
        await self._until(lambda: len(self.known[request_id]) >= count, timeout_s)
        return self.known[request_id]

    async def assigned(self, request_id: str) -> int:
        await self._until(lambda: request_id in self.epochs, PATIENCE_S)
        return self.epochs[request_id]

    async def _take(self, message: pb.StreamTokensResponse) -> None:
        if message.HasField("assigned"):
            self.epochs[message.assigned.request_id] = message.assigned.epoch
            if self._answers:
                await self._answer(message.assigned)
        elif message.HasField("step"):
            self.steps += 1
            for tokens in message.step.requests:
                known = self.known[tokens.request_id]
                assert tokens.first_index <= len(known), "tokens are missing"
                known += tokens.token_ids[len(known) - tokens.first_index :]
        else:
            assert message.ended.request_id not in self.ended, "two terminal events"
            self.ended[message.ended.request_id] = message.ended

    async def _answer(self, assigned: pb.Assigned) -> None:
        ids = self.known[assigned.request_id]
        produced = pb.Produced(request_id=assigned.request_id, epoch=assigned.epoch, token_ids=ids)
        await self._call.write(pb.StreamTokensRequest(produced=produced))

    async def _until(self, holds: Callable[[], bool], timeout_s: float) -> None:
        async with asyncio.timeout(timeout_s):
            while not holds():
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def commander(address: str, term: int = 1) -> AsyncIterator[Commander]:
    async with open_channel(address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        one = Commander(stub, term)
        try:
            yield one
        finally:
            one.call.cancel()


@asynccontextmanager
async def listener(
    address: str, *, known: dict[str, list[int]] | None = None, router_id: str = "router-1", answers: bool = True
) -> AsyncIterator[Listener]:
    """Reads until the end of the block. It starts from what it knew before, if that is given."""
    before = defaultdict(list, known or {})
    async with open_channel(address) as channel:
        one = Listener(worker_pb2_grpc.WorkerServiceStub(channel), before, answers)
        task = asyncio.create_task(one.run(router_id))
        try:
            yield one
        finally:
            task.cancel()
            await asyncio.wait([task])
