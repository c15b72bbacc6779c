"""The scheduler's parts put together, and its life from start to SIGTERM."""

import asyncio
import time
from functools import partial

import structlog
from redis.asyncio import Redis

from hekaton.config import SchedulerSettings
from hekaton.errors import StaleTerm, StoreUnavailable
from hekaton.metrics import serving_metrics
from hekaton.rpc.interceptors import Context
from hekaton.rpc.server import Servicer, new_id, serving
from hekaton.store.connect import connect
from hekaton.store.keys import Kind
from hekaton.store.leadership import Leadership
from hekaton.store.workers import Registry
from hekaton.tasks import end, forever
from hekaton.v1 import scheduler_pb2 as pb
from hekaton.v1 import scheduler_pb2_grpc
from hekaton_scheduler.leader import Election
from hekaton_scheduler.metrics import metrics_of
from hekaton_scheduler.reign import Reign

log = structlog.get_logger(__name__)


class Scheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Stands by or leads, and says which."""

    def __init__(self, settings: SchedulerSettings, redis: Redis) -> None:
        self._settings = settings
        self._redis = redis
        self._id = settings.scheduler_id or new_id("scheduler")
        self._registry = Registry(redis, Kind.SCHEDULER)
        self._incarnation = time.time_ns() // 1_000_000
        self._election = Election(Leadership(redis), self._id, settings.leader_lease_s)
        self._reign: Reign | None = None

    async def GetSchedulerStatus(
        self, request: pb.GetSchedulerStatusRequest, context: Context
    ) -> pb.GetSchedulerStatusResponse:
        return self.status()

    def status(self) -> pb.GetSchedulerStatusResponse:
        status = pb.GetSchedulerStatusResponse(
            scheduler_id=self._id, leader=self._reign is not None, term=self._election.term
        )
        if reign := self._reign:
            status.waiting_requests = reign.placer.waiting
            status.placed_requests = reign.pool.placed()
            status.placements = reign.placer.placements
            status.connected_worker_ids.extend(reign.pool.worker_ids())
            status.tenant_seconds.update(reign.shares.total_s)
            status.yielding_tenants.extend(sorted(reign.shares.yielding))
        return status

    async def run(self) -> None:
        """Until cancelled; gives the leadership back then."""
        await self._election.run(self._lead)

    async def stay_registered(self, address: str, stop: asyncio.Event) -> None:
        """Heartbeats until cancelled. Sets `stop` if a newer process took the id."""
        await forever(partial(self._beat, address, stop))

    async def leave(self) -> None:
        try:
            await self._registry.remove(self._id, self._incarnation)
        except StoreUnavailable:
            log.warning("could not say goodbye; the registration runs out by itself")

    async def _beat(self, address: str, stop: asyncio.Event) -> float:
        try:
            await self._registry.heartbeat(self._id, address.encode(), self._settings.lease_s, self._incarnation)
        except StoreUnavailable as error:
            log.warning("not registered; trying again", why=error.message)
        except StaleTerm as error:
            log.error(error.message)
            stop.set()
        return self._settings.heartbeat_s

    async def _lead(self, term: int) -> int:
        self._reign = Reign(self._settings, self._id, self._redis, term)
        try:
            return await self._reign.run()
        finally:
            self._reign = None


async def main(settings: SchedulerSettings, stop: asyncio.Event) -> None:
    """Stands by and leads until `stop`."""
    async with connect(settings.redis_url) as redis, asyncio.TaskGroup() as group:
        scheduler = Scheduler(settings, redis)
        with serving_metrics(settings, metrics_of(scheduler.status)):
            async with serving(settings, [servicer(scheduler)]) as server:
                tasks = [
                    group.create_task(scheduler.run(), name="election"),
                    group.create_task(scheduler.stay_registered(server.address, stop), name="heartbeat"),
                ]
                await server.set_serving(True)
                await stop.wait()
                await server.set_serving(False)
                await end(*tasks)
        await scheduler.leave()


def servicer(scheduler: Scheduler) -> Servicer:
    return Servicer(
        "hekaton.v1.SchedulerService",
        lambda server: scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(scheduler, server),
    )
