"""The worker's parts put together, and its life from start to SIGTERM."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

import structlog
from opentelemetry import trace
from redis.asyncio import Redis

from hekaton import telemetry
from hekaton.config import WorkerSettings
from hekaton.engine import messages
from hekaton.engine.options import EngineOptions
from hekaton.errors import EngineFailed, HekatonError, InvalidArgument
from hekaton.metrics import serving_metrics
from hekaton.rpc.channel import open_channel
from hekaton.rpc.server import Servicer, new_id, serving
from hekaton.store.catalog import Catalog
from hekaton.store.connect import connect
from hekaton.store.keys import Kind
from hekaton.store.profiles import Profiles
from hekaton.store.requests import Requests
from hekaton.store.workers import Registry
from hekaton.v1 import memory_pb2_grpc
from hekaton.v1 import worker_pb2 as pb
from hekaton_worker.attempt import Left
from hekaton_worker.control import Control
from hekaton_worker.crew import Crew
from hekaton_worker.desk import Desk
from hekaton_worker.engine import EngineKeeper
from hekaton_worker.flow import Flow
from hekaton_worker.images import Images
from hekaton_worker.metrics import WorkerMetrics
from hekaton_worker.models import KnownModels
from hekaton_worker.parcels import Parcels
from hekaton_worker.profiles import ProfileKeeper
from hekaton_worker.registration import Registration
from hekaton_worker.service import WorkerServicer, servicer
from hekaton_worker.status import StatusBoard
from hekaton_worker.tokens import TokenStreams
from hekaton_worker.turns import Turns

log = structlog.get_logger(__name__)
LEAVE_TIMEOUT_S = 5.0
EMULATED = "emulated:"


class Worker:
    """One worker's objects, and what the engine's events mean to them."""

    def __init__(
        self, settings: WorkerSettings, redis: Redis, memory: memory_pb2_grpc.MemoryServiceStub | None, crew: Crew
    ) -> None:
        self._settings = settings
        self._crew = crew
        worker_id = settings.worker_id or new_id("worker")
        self.failure: HekatonError | None = None
        self.board = StatusBoard(worker_id, settings.role)
        self.engine = EngineKeeper(
            _options(settings, worker_id),
            self._engine_started,
            self._engine_said,
            self._engine_died,
            settings.hung_step_s,
        )
        self.registration = Registration(Registry(redis, Kind.WORKER), self.board, settings)
        self.metrics = WorkerMetrics(self.board)
        self._turns = Turns(worker_id)
        self._streams = TokenStreams()
        has_bytes = not settings.device.startswith(EMULATED)
        self._models = KnownModels(Catalog(redis), rehearse=has_bytes)
        self._profiles = ProfileKeeper(
            Catalog(redis),
            Profiles(redis),
            self._models,
            self.board,
            self.engine.post,
            settings.heartbeat_s,
            follow=has_bytes,
        )
        self._desk = Desk(self._streams, self.engine.post, settings.lease_s, self._holds_lease)
        self._parcels = Parcels(memory if has_bytes else None, self.engine.post, self._holds_lease)
        self._control = Control(self._report)
        self._yielding = messages.Yielding(())
        """As the last leader said."""
        self._flow = Flow(
            worker_id,
            Requests(redis),
            self._models,
            self._desk,
            self._streams,
            self._control,
            self.engine,
            crew,
            self._parcels,
        )
        self._images = Images(memory, worker_id, self._models, self._desk.waiting_span, crew)

    def servicer(self) -> Servicer:
        adapter = WorkerServicer(
            self._flow, self._desk, self._control, self._streams, self._turns, self._crew, self._yield
        )
        return servicer(adapter)

    def start(self, address: str, stop: asyncio.Event) -> None:
        """Begins its tasks. `stop` is set if the worker cannot go on; `failure` says why."""
        self.board.address = address
        self._crew.start(self._run_engine(stop), "engine")
        self._crew.start(self._images.renew(), "leases")
        self._crew.start(self._parcels.follow(), "parcels")

    async def ready(self, stop: asyncio.Event) -> bool:
        """Waits for the device, then registers. False if told to stop before."""
        waits = [asyncio.create_task(event.wait()) for event in (self.engine.ready, stop)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if not stop.is_set():
            self._crew.start(self.registration.run(stop), "heartbeat")
            self._crew.start(self._profiles.run(), "profiles")
        return not stop.is_set()

    async def drain(self) -> None:
        """Takes nothing new, lets what runs end, gives back the rest, ends the streams."""
        self.board.draining = self._flow.draining = True
        self._control.report()
        if self.failure is None:
            await self._announce_drain()
            await self._finish(self._settings.drain_timeout_s)
            for attempt in self._desk.live():
                self._desk.leave(attempt, Left.DRAINED)
            await self._finish(LEAVE_TIMEOUT_S)
        self._streams.close()
        self._control.close()
        self._turns.close()

    async def leave(self) -> None:
        """After the last stream: out of the registry, leases back, everything ended."""
        await self.registration.leave()
        await self._images.release_all()
        self._crew.dismiss()

    async def _finish(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._desk.idle()
        except TimeoutError:
            log.warning("requests left", live=len(self._desk.live()))

    async def _announce_drain(self) -> None:
        try:
            await self.registration.beat()
        except HekatonError as error:
            log.warning("draining, but could not say so", why=error.message)

    def _holds_lease(self) -> bool:
        return self.registration.holds_lease

    def _report(self, is_first: bool) -> pb.WorkerReport:
        status = self.board.status()
        status.costs.extend(self.board.take_costs(everything=is_first))
        return pb.WorkerReport(status=status, held=self._flow.held(), used_seconds=self.board.take_used_s())

    # ---- the engine

    async def _run_engine(self, stop: asyncio.Event) -> None:
        try:
            await self.engine.run()
        except EngineFailed as error:
            self.failure = error
            stop.set()

    def _yield(self, message: pb.Yielding) -> None:
        self._yielding = messages.Yielding(tuple(message.tenants))
        self.engine.post(self._yielding)

    def _engine_started(self) -> None:
        self._images.drop_all()
        self.engine.post(self._yielding)
        self._models.tell_all(self.engine.post)
        self._parcels.tell()
        self._desk.resubmit()

    def _engine_died(self, request_ids: Sequence[str]) -> None:
        for attempt in self._desk.strike(request_ids):
            self._crew.start(self._flow.struck(attempt), f"strike {attempt.request_id}")

    def _engine_said(self, event: messages.Event) -> None:
        match event:
            case messages.Step():
                self._desk.step(event, self._turns.count)
            case messages.Ended():
                self._desk.ended(event)
            case messages.Started(request_id=request_id, epoch=epoch):
                self._crew.start(self._flow.started(request_id, epoch), f"start {request_id}")
            case messages.WantImage(model=model):
                self._images.want(model, self.engine.post)
            case messages.ImageDropped(model=model):
                self._images.drop(model)
            case messages.Status():
                self._profiles.measured(event)
                if self.board.update(event):
                    self._control.report()
            case messages.TurnEnded(turn=turn):
                self._turns.add(turn, self.engine.started_s)
                self.metrics.turn(turn)
                self._desk.turn_ended(turn)
            case messages.LoadEnded():
                self.metrics.loaded(event)
                self._copied(event)
            case messages.Ready():
                self.board.restart(event)
                self._control.report()

    def _copied(self, event: messages.LoadEnded) -> None:
        """A load's place in the trace of a request that waited for it."""
        parent = self._desk.waiting_span(event.model)
        if parent is None:
            return
        begin_s = asyncio.get_running_loop().time() - event.duration_s
        span = telemetry.tracer().start_span(
            f"copy {event.model}",
            trace.set_span_in_context(parent),
            start_time=telemetry.epoch_ns(begin_s),
            attributes={telemetry.GEN_AI_MODEL: event.model, "hekaton.copied_bytes": event.copied_bytes},
        )
        span.end()


async def main(settings: WorkerSettings, stop: asyncio.Event) -> None:
    """Serves until `stop`, then drains. Raises EngineFailed if the engine could not be kept running."""
    if not settings.memory_address and not settings.device.startswith(EMULATED):
        raise InvalidArgument(f"device {settings.device} needs memory_address, this host's memory service")
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(connect(settings.redis_url))
        memory = None
        if settings.memory_address:
            channel = await stack.enter_async_context(open_channel(settings.memory_address, tls=settings.client_tls))
            memory = memory_pb2_grpc.MemoryServiceStub(channel)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        worker = Worker(settings, redis, memory, Crew(group))
        stack.enter_context(serving_metrics(settings, worker.metrics.registry))
        async with serving(settings, [worker.servicer()]) as server:
            worker.start(server.address, stop)
            if await worker.ready(stop):
                await server.set_serving(True)
                await stop.wait()
            await server.set_serving(False)
            await worker.drain()
        await worker.leave()
    if worker.failure:
        raise worker.failure


def _options(settings: WorkerSettings, worker_id: str) -> EngineOptions:
    emulated = settings.device.startswith(EMULATED)
    return EngineOptions(
        engine="emulated" if emulated else "transformers",
        device=settings.device.removeprefix(EMULATED),
        device_memory_bytes=settings.device_memory,
        worker_id=worker_id,
        threads=settings.threads,
        policy=settings.policy,
        policy_options=settings.policy_option,
        role=settings.role,
        time_scale=settings.time_scale,
        max_batch=settings.max_batch,
        prefill_chunk_tokens=settings.prefill_chunk_tokens,
        host_kv_memory_bytes=settings.host_kv_memory_bytes,
        host_kv_dir=str(settings.host_kv_dir),
        copy_bytes_per_s=settings.copy_bandwidth,
    )
