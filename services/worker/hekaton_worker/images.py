"""Weight images: leased from the host's memory service while the engine uses them."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import grpc
import grpc.aio
import structlog
from opentelemetry import trace
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from hekaton import telemetry
from hekaton.engine.messages import Command, ImageFailed, ImageReady
from hekaton.errors import HekatonError, Unavailable
from hekaton.facts import CatalogEntry, Image
from hekaton.rpc.convert import image_from_pb, seconds
from hekaton.rpc.errors import from_rpc_error
from hekaton.tasks import dismiss, forever
from hekaton.v1 import memory_pb2 as pb
from hekaton.v1 import memory_pb2_grpc
from hekaton_worker.crew import Crew
from hekaton_worker.models import KnownModels

log = structlog.get_logger(__name__)
NOTHING = Image(path="", nbytes=0, tensors=(), config_json="{}")
"""Stands for the weights of emulated models."""
PASSING = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
MAX_BACKOFF_S = 2.0
CALL_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Lease:
    lease_id: str
    duration_s: float
    image: Image


class Images:
    """Answers the engine's WantImage and ImageDropped. `memory` is None for emulated devices.

    `waiting` gives the span of a request that waits for a model, None if there is none.
    """

    def __init__(
        self,
        memory: memory_pb2_grpc.MemoryServiceStub | None,
        worker_id: str,
        models: KnownModels,
        waiting: Callable[[str], trace.Span | None],
        crew: Crew,
    ) -> None:
        self._memory = memory
        self._worker_id = worker_id
        self._models = models
        self._waiting = waiting
        self._crew = crew
        self._leases: dict[str, Lease] = {}
        self._fetches: dict[str, asyncio.Task[None]] = {}

    def want(self, model: str, post: Callable[[Command], None]) -> None:
        """Gets the image and posts ImageReady or ImageFailed."""
        if self._memory is None:
            post(ImageReady(model, NOTHING))
        else:
            self._fetches[model] = self._crew.start(self._fetch(self._memory, model, post), f"load {model}")

    def drop(self, model: str) -> None:
        """The engine has unmapped an image."""
        lease = self._leases.pop(model, None)
        if lease and self._memory:
            self._crew.start(self._release(self._memory, lease), f"release {model}")

    def drop_all(self) -> None:
        """The engine has gone, and all its mappings with it."""
        for fetch in self._fetches.values():
            dismiss(fetch)
        for model in list(self._leases):
            self.drop(model)

    async def renew(self) -> None:
        """Until cancelled: keeps the leases alive."""
        if self._memory is not None:
            await forever(partial(self._renew, self._memory))

    async def release_all(self) -> None:
        """At the worker's end."""
        for model in list(self._leases):
            if self._memory:
                await self._release(self._memory, self._leases.pop(model))

    async def _fetch(
        self, memory: memory_pb2_grpc.MemoryServiceStub, model: str, post: Callable[[Command], None]
    ) -> None:
        entry = self._models.entry(model)
        try:
            lease = await self._patiently(memory, entry)
        except HekatonError as error:
            post(ImageFailed(model, error.code.value[0], error.reason, error.message))
            return
        if self._models.entry(model).spec != entry.spec:
            # Registered anew meanwhile: the engine has asked for the new image, or will.
            await self._release(memory, lease)
            return
        self._leases[model] = lease
        post(ImageReady(model, lease.image))

    async def _patiently(self, memory: memory_pb2_grpc.MemoryServiceStub, entry: CatalogEntry) -> Lease:
        """Waits for room and for a memory service that is away, as long as a request needs the model."""

        def hopeless(_: RetryCallState) -> bool:
            return self._waiting(entry.name) is None

        with _span(f"load {entry.name}", self._waiting(entry.name)):
            retrying = AsyncRetrying(
                retry=retry_if_exception(_passes),
                wait=wait_random_exponential(multiplier=0.1, max=MAX_BACKOFF_S),
                stop=hopeless,
                reraise=True,
            )
            return await retrying(self._acquire, memory, entry)

    async def _acquire(self, memory: memory_pb2_grpc.MemoryServiceStub, entry: CatalogEntry) -> Lease:
        digest = entry.spec.digest if entry.spec else ""
        request = pb.AcquireWeightsRequest(
            holder_id=self._worker_id, digest=digest, source=entry.source, dtype=entry.dtype
        )
        lease: pb.WeightsLease | None = None
        try:
            # To its end: a stream that is left before gives its lease back.
            async for event in memory.AcquireWeights(request):
                lease = event.lease if event.HasField("lease") else lease
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        if lease is None:
            raise Unavailable(f"the memory service gave no lease on {entry.name}")
        return Lease(lease.lease_id, seconds(lease.duration), image_from_pb(lease))

    async def _renew(self, memory: memory_pb2_grpc.MemoryServiceStub) -> float:
        """Returns when to do it again, in seconds."""
        if self._leases:
            await self._renew_all(memory)
        return min((lease.duration_s for lease in self._leases.values()), default=3.0) / 3

    async def _renew_all(self, memory: memory_pb2_grpc.MemoryServiceStub) -> None:
        request = pb.RenewLeasesRequest(
            holder_id=self._worker_id, lease_ids=[lease.lease_id for lease in self._leases.values()]
        )
        try:
            lost = (await memory.RenewLeases(request, timeout=CALL_TIMEOUT_S)).lost_lease_ids
        except grpc.aio.AioRpcError as error:
            log.warning("leases not renewed", why=error.details())
            return
        # The engine's mapping keeps the bytes of an image that was evicted.
        self._leases = {model: lease for model, lease in self._leases.items() if lease.lease_id not in lost}

    async def _release(self, memory: memory_pb2_grpc.MemoryServiceStub, lease: Lease) -> None:
        try:
            await memory.ReleaseWeights(pb.ReleaseWeightsRequest(lease_id=lease.lease_id), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.warning("lease not released; it runs out by itself", why=error.details())


def _passes(error: BaseException) -> bool:
    return isinstance(error, HekatonError) and error.code in PASSING


def _span(name: str, parent: trace.Span | None) -> AbstractContextManager[trace.Span]:
    context = trace.set_span_in_context(parent) if parent else None
    return telemetry.tracer().start_as_current_span(name, context)
