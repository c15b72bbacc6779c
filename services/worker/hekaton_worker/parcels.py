"""KV that comes with a request or leaves with it: parcels, through this host's memory service.

Whatever goes wrong, there is no parcel, and the KV is computed again: no request fails for it.
"""

from collections.abc import Callable
from pathlib import Path

import grpc.aio
import structlog

from hekaton.engine.messages import Command, ParcelsAt
from hekaton.facts import Parcel
from hekaton.tasks import forever
from hekaton.v1 import memory_pb2, memory_pb2_grpc
from hekaton.v1 import worker_pb2 as pb
from hekaton_worker.attempt import Attempt, Outcome

log = structlog.get_logger(__name__)
OFFER_TIMEOUT_S = 2.0
CLAIM_TIMEOUT_S = 10.0
"""For what has to come from another host."""
ASK_AGAIN_S = 1.0
LOOK_AGAIN_S = 30.0
NOWHERE = ""
"""Where emulated KV is left, which has no bytes."""


class Parcels:
    """`memory` is None for emulated devices. Without a lease nothing is offered: the requests are others' by then."""

    def __init__(
        self,
        memory: memory_pb2_grpc.MemoryServiceStub | None,
        post: Callable[[Command], None],
        holds_lease: Callable[[], bool],
    ) -> None:
        self._memory = memory
        self._post = post
        self._holds_lease = holds_lease
        self._directory = NOWHERE if memory is None else None

    def tell(self) -> None:
        """Tells a new engine process where to leave KV, if that is known."""
        if self._directory is not None:
            self._post(ParcelsAt(self._directory))

    async def follow(self) -> None:
        """Until cancelled: learns where that is."""
        if self._memory is not None:
            await forever(self._ask)

    async def offer(self, attempt: Attempt, outcome: Outcome) -> pb.Parcel | None:
        """What the next worker is told of the KV that an attempt has left; None if there is none."""
        parcel = outcome.parcel
        if parcel is None:
            return None
        if not outcome.travels or not self._holds_lease():
            self.discard(parcel)
            return None
        address = await self._offered(attempt) if self._memory else ""
        return None if address is None else pb.Parcel(memory_address=address, tokens=parcel.tokens, bytes=parcel.nbytes)

    async def claim(self, assign: pb.Assign) -> Parcel | None:
        """The KV that the attempt before has left, on this host by now."""
        if not assign.HasField("parcel"):
            return None
        if self._memory is None:
            return Parcel(NOWHERE, assign.parcel.tokens, assign.parcel.bytes)
        request = memory_pb2.ClaimKvRequest(
            request_id=assign.request_id, epoch=assign.epoch - 1, memory_address=assign.parcel.memory_address
        )
        try:
            found = await self._memory.ClaimKv(request, timeout=CLAIM_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.warning("KV did not come: computed again", request_id=assign.request_id, why=error.details())
            return None
        return Parcel(found.path, found.tokens, found.bytes)

    def discard(self, parcel: Parcel) -> None:
        """Nobody will take it."""
        if parcel.path:
            Path(parcel.path).unlink(missing_ok=True)

    async def _offered(self, attempt: Attempt) -> str | None:
        """The address at which others get it; None if it was refused."""
        request = memory_pb2.OfferKvRequest(request_id=attempt.request_id, epoch=attempt.epoch)
        try:
            return (await self._memory.OfferKv(request, timeout=OFFER_TIMEOUT_S)).memory_address if self._memory else ""
        except grpc.aio.AioRpcError as error:
            log.warning("KV not offered: computed again", request_id=attempt.request_id, why=error.details())
            return None

    async def _ask(self) -> float:
        """Returns when to ask again, in seconds."""
        if self._memory is None:
            return LOOK_AGAIN_S
        try:
            status = await self._memory.GetMemoryStatus(memory_pb2.GetMemoryStatusRequest(), timeout=OFFER_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return ASK_AGAIN_S
        if status.parcel_directory != self._directory:
            self._directory = status.parcel_directory
            self.tell()
        return LOOK_AGAIN_S
