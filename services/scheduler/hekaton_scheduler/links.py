"""The leader's Control stream to one worker, opened again as long as the worker is listed."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Protocol

import grpc
import grpc.aio
import structlog

from hekaton.errors import StaleTerm
from hekaton.rpc.channel import open_channel
from hekaton.rpc.errors import from_rpc_error
from hekaton.rpc.tls import ClientTls, explain
from hekaton.tasks import forever, heed_cancellation
from hekaton.v1 import worker_pb2 as pb
from hekaton.v1 import worker_pb2_grpc
from hekaton_scheduler.pool import Placed

log = structlog.get_logger(__name__)
RETRY_MIN_S = 0.05
RETRY_MAX_S = 1.0
REFUSED = ("onnection refused", "No such file")
"""What a channel says when nobody listens at the address any more."""
Outgoing = asyncio.Queue[pb.ControlRequest | None]
"""What is sent on one stream; None ends it."""


class Malformed(Exception):
    """A worker sent what makes no sense: its link must start anew."""


class Owner(Protocol):
    """Who is told what happens on a link. `connected` is awaited before anything else is read."""

    async def connected(self, link: "Link", report: pb.WorkerReport) -> None: ...

    def reported(self, report: pb.WorkerReport) -> None: ...

    def released(self, link: "Link", released: pb.Released) -> None: ...

    def disconnected(self, link: "Link", *, gone: bool) -> None: ...


class Link:
    """Commands go out without waiting; those that a broken stream lost show in the next first report."""

    def __init__(
        self, worker_id: str, address: str, hello: pb.ControlHello, owner: Owner, tls: ClientTls | None = None
    ) -> None:
        self.worker_id = worker_id
        self.address = address
        self._tls = tls
        self.connected = False
        self._hello = hello
        self._owner = owner
        self._delay_s = RETRY_MIN_S
        self._outgoing = Outgoing()

    def assign(self, placed: Placed, parcel: pb.Parcel | None) -> None:
        assign = pb.Assign(request_id=placed.request_id, epoch=placed.epoch, model=placed.model, parcel=parcel)
        self._outgoing.put_nowait(pb.ControlRequest(assign=assign))

    def revoke(self, request_id: str, epoch: int, *, hand_over: bool = False) -> None:
        revoke = pb.Revoke(request_id=request_id, epoch=epoch, hand_over=hand_over)
        self._outgoing.put_nowait(pb.ControlRequest(revoke=revoke))

    def tell_yielding(self, tenants: frozenset[str]) -> None:
        self._outgoing.put_nowait(pb.ControlRequest(yielding=pb.Yielding(tenants=sorted(tenants))))

    async def run(self) -> None:
        """Until cancelled. Raises StaleTerm if the worker obeys a newer leader."""
        async with open_channel(self.address, tls=self._tls) as channel:
            await forever(partial(self._turn, worker_pb2_grpc.WorkerServiceStub(channel)))

    async def _turn(self, stub: worker_pb2_grpc.WorkerServiceStub) -> float:
        """One stream; returns how long to wait for the next, in seconds."""
        gone = await self._stream(stub)
        self._delay_s = RETRY_MIN_S if self.connected else min(2 * self._delay_s, RETRY_MAX_S)
        self.connected = False
        self._owner.disconnected(self, gone=gone)
        return self._delay_s

    async def _stream(self, stub: worker_pb2_grpc.WorkerServiceStub) -> bool:
        """One stream, until it ends. True if nobody listens at the address."""
        outgoing = self._outgoing = Outgoing()
        call = stub.Control(self._commands(outgoing))
        try:
            async for message in call:
                await self._take(message)
        except Malformed as error:
            log.error(str(error), worker_id=self.worker_id)
        except grpc.aio.AioRpcError as error:
            heed_cancellation()
            known = from_rpc_error(error)
            if isinstance(known, StaleTerm):
                raise known from error
            log.warning(
                "link lost", worker_id=self.worker_id, why=explain(known.message, self.address) or known.message
            )
            return any(text in known.message for text in REFUSED)
        finally:
            call.cancel()
            outgoing.put_nowait(None)
        return False

    async def _commands(self, outgoing: Outgoing) -> AsyncIterator[pb.ControlRequest]:
        yield pb.ControlRequest(hello=self._hello)
        while command := await outgoing.get():
            yield command

    async def _take(self, message: pb.ControlResponse) -> None:
        if message.HasField("released"):
            self._owner.released(self, message.released)
            return
        status = message.state.status
        if status.worker_id != self.worker_id or not status.device_memory_bytes:
            raise Malformed(
                f"the report is not this worker's: {status.worker_id!r}, {status.device_memory_bytes} bytes"
            )
        if self.connected:
            self._owner.reported(message.state)
        else:
            await self._owner.connected(self, message.state)
            self.connected = True
