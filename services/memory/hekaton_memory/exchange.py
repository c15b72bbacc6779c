"""KV that changes hands: offered and claimed on this host, fetched from others."""

import asyncio
import zlib
from collections.abc import AsyncGenerator
from contextlib import ExitStack, suppress

import grpc.aio
import structlog

from hekaton.errors import KvLost
from hekaton.rpc.channel import open_channel
from hekaton.rpc.tls import ClientTls
from hekaton.v1 import memory_pb2 as pb
from hekaton.v1 import memory_pb2_grpc
from hekaton_memory.parcels import Coming, Held, Parcels

log = structlog.get_logger(__name__)
CHUNK_BYTES = 1 << 20
"""Read, summed and written in the event loop: about a millisecond."""
FETCH_TIMEOUT_S = 30.0
SWEEPS_A_LIFETIME = 4


class Exchange:
    """`tls`: of channels to other hosts' memory services."""

    def __init__(self, parcels: Parcels, tls: ClientTls | None = None) -> None:
        self.parcels = parcels
        self._tls = tls
        self.address = ""
        """Where other hosts reach this service, once it serves."""
        self.sent_bytes = self.received_bytes = 0
        """To and from other hosts."""

    async def offer(self, request_id: str, epoch: int) -> str:
        """A worker has left a parcel; where it can be fetched. Raises KvLost, ResourceExhausted."""
        await asyncio.to_thread(self.parcels.accept, request_id, epoch)
        return self.address

    async def claim(self, request_id: str, epoch: int, memory_address: str) -> Held:
        """A parcel on this host, fetched if it is not here yet. Raises KvLost, ResourceExhausted."""
        try:
            return await asyncio.to_thread(self.parcels.find, request_id, epoch)
        except KvLost:
            if memory_address in ("", self.address):
                raise
        await self._fetch(request_id, epoch, memory_address)
        return await asyncio.to_thread(self.parcels.find, request_id, epoch)

    async def send(self, request_id: str, epoch: int) -> AsyncGenerator[pb.FetchKvResponse, None]:
        """The pieces of a parcel, which has one taker: after the last one it is gone. Raises KvLost."""
        held = await asyncio.to_thread(self.parcels.find, request_id, epoch)
        try:
            file = held.path.open("rb", buffering=0)
        except OSError as error:
            raise KvLost(f"parcel {held.path.name} has just gone") from error
        with file:
            while data := file.read(CHUNK_BYTES):
                yield pb.FetchKvResponse(data=data, crc32=zlib.crc32(data), total_bytes=held.nbytes)
                self.sent_bytes += len(data)
        self.parcels.remove(held)

    async def sweep(self, stop: asyncio.Event) -> None:
        """Until `stop`: removes what nobody takes."""
        while not stop.is_set():
            try:
                await asyncio.to_thread(self.parcels.sweep)
            except OSError as error:
                log.error("parcels not swept", why=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(self.parcels.lifetime_s / SWEEPS_A_LIFETIME):
                    await stop.wait()

    async def _fetch(self, request_id: str, epoch: int, memory_address: str) -> None:
        request = pb.FetchKvRequest(request_id=request_id, epoch=epoch)
        coming: Coming | None = None
        async with open_channel(memory_address, tls=self._tls) as channel:
            call = memory_pb2_grpc.MemoryServiceStub(channel).FetchKv(request, timeout=FETCH_TIMEOUT_S)
            with ExitStack() as stack:
                try:
                    async for chunk in call:
                        if coming is None:
                            coming = stack.enter_context(self.parcels.coming(request_id, epoch, chunk.total_bytes))
                        if zlib.crc32(chunk.data) != chunk.crc32:
                            raise KvLost(f"KV of request {request_id} was damaged on its way: compute it again")
                        coming.write(chunk.data)
                        self.received_bytes += len(chunk.data)
                except grpc.aio.AioRpcError as error:
                    raise KvLost(f"KV of request {request_id} did not come: {error.details()}") from error
                finally:
                    call.cancel()
                if coming is None:
                    raise KvLost(f"nothing came of the KV of request {request_id}")
                coming.seal()
