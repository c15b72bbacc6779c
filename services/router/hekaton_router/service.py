"""The router's parts put together, and its life from start to SIGTERM."""

import asyncio
import time
from functools import partial

import structlog
from redis.asyncio import Redis

from hekaton.config import RouterSettings
from hekaton.errors import StaleTerm, StoreUnavailable
from hekaton.metrics import serving_metrics
from hekaton.oip import open_inference_pb2_grpc
from hekaton.policy.admission import Admission
from hekaton.rpc.server import RunningServer, Servicer, new_id, serving
from hekaton.store.catalog import Catalog
from hekaton.store.connect import connect
from hekaton.store.keys import Kind
from hekaton.store.leadership import Leadership
from hekaton.store.notices import Notices
from hekaton.store.outlooks import Outlooks
from hekaton.store.profiles import Profiles
from hekaton.store.requests import Requests
from hekaton.store.tenants import Spending, Tenants
from hekaton.store.workers import Registry
from hekaton.tasks import end, forever
from hekaton.v1 import inference_pb2_grpc, models_pb2_grpc, pool_pb2_grpc
from hekaton_router.checkpoints import Checkpoints
from hekaton_router.chores import Chores
from hekaton_router.http.app import http_app
from hekaton_router.http.server import RunningHttp, serving_http
from hekaton_router.inference import InferenceServicer
from hekaton_router.intake import Intake
from hekaton_router.keeper import Keeper
from hekaton_router.links import Links
from hekaton_router.live import LiveRequests
from hekaton_router.memories import Memories
from hekaton_router.metrics import RouterMetrics
from hekaton_router.models import ModelServicer
from hekaton_router.oip.models import Models
from hekaton_router.oip.repository import Repository
from hekaton_router.oip.service import OpenInferenceServicer
from hekaton_router.patience import Patience
from hekaton_router.pool import PoolServicer
from hekaton_router.settler import Settler
from hekaton_router.tenancy import Guard, Quotas
from hekaton_router.tokenization import TokenizerCache
from hekaton_router.view import PoolView

log = structlog.get_logger(__name__)
CLEANUP_S = 2.0


class Router:
    """One router's objects. Its tasks live in `group`."""

    def __init__(self, settings: RouterSettings, redis: Redis, group: asyncio.TaskGroup) -> None:
        self._settings = settings
        self._registry = Registry(redis, Kind.ROUTER)
        self._http_registry = Registry(redis, Kind.HTTP)
        self._incarnation = time.time_ns() // 1_000_000
        self.router_id = settings.router_id or new_id("router")
        outlooks = Outlooks(redis) if settings.admission is Admission.SHED else None
        self.view = PoolView(Registry(redis, Kind.WORKER), Registry(redis, Kind.MEMORY), outlooks)
        self.chores = Chores()
        live = LiveRequests()
        store, catalog = Requests(redis), Catalog(redis)
        settler = Settler(store, self.chores, settings.redis_wait_s)
        self.links = Links(self.router_id, live, settler, group, settings.client_tls)
        patience = Patience(settings.redis_wait_s)
        memories = Memories(self.view, settings.client_tls)
        tokenizers = TokenizerCache(memories.tokenizer, timeout_s=settings.tokenizer_timeout_s)
        self.keeper = Keeper(
            self.router_id, store, live, self.links, self.chores, patience, settings.max_queued_requests
        )
        self.checkpoints = Checkpoints(self.router_id, store, live, self.links)
        intake = Intake(settings, self.router_id, catalog, self.view, tokenizers, patience)
        self.metrics = RouterMetrics(live, self.view)
        quotas = Quotas(Spending(redis), self.chores)
        self._notices = Notices(redis, self.router_id)
        self.guard = Guard(settings.auth, Tenants(redis))
        self._inference = InferenceServicer(settings, intake, self.keeper, self.metrics, quotas)
        self._models = ModelServicer(settings, catalog, Profiles(redis), self.view, memories, self._inference.generate)
        self.http = http_app(settings, self._inference, catalog, self.guard, self._ready)
        self._open_inference = OpenInferenceServicer(
            self._inference, Models(catalog, self.view.devices), Repository(self._models), self._ready
        )
        self.pool = PoolServicer(self.view, store, Leadership(redis), group, settings.client_tls)

    def servicers(self) -> list[Servicer]:
        return [
            Servicer(
                "hekaton.v1.InferenceService",
                lambda server: inference_pb2_grpc.add_InferenceServiceServicer_to_server(self._inference, server),
            ),
            Servicer(
                "hekaton.v1.ModelService",
                lambda server: models_pb2_grpc.add_ModelServiceServicer_to_server(self._models, server),
            ),
            Servicer(
                "hekaton.v1.PoolService",
                lambda server: pool_pb2_grpc.add_PoolServiceServicer_to_server(self.pool, server),
            ),
            Servicer(
                "inference.GRPCInferenceService",
                lambda server: open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
                    self._open_inference, server
                ),
            ),
        ]

    async def heartbeat(self, server: RunningServer, http: RunningHttp | None, stop: asyncio.Event) -> None:
        """Until cancelled: says that it lives, follows who else does, and answers health checks accordingly.

        Sets `stop` if a newer process took this router's id.
        """
        await forever(partial(self._turn, server, http, stop))

    async def listen(self) -> float:
        """Hears what happens to its requests elsewhere, while Redis is there; returns when to try again, in seconds."""
        try:
            await self._notices.listen(self.checkpoints.cancelled_elsewhere)
        except StoreUnavailable as error:
            log.warning("hears of cancelled requests late", why=error.message)
        return self._settings.heartbeat_s

    async def leave(self) -> None:
        """Cancels what its clients still wait for, and says goodbye."""
        self.keeper.abandon()
        await self.chores.flush(CLEANUP_S)
        self.links.update({})
        try:
            await self._registry.remove(self.router_id, self._incarnation)
            await self._http_registry.remove(self.router_id, self._incarnation)
        except StoreUnavailable:
            log.warning("could not say goodbye; the registration runs out by itself")

    async def _turn(self, server: RunningServer, http: RunningHttp | None, stop: asyncio.Event) -> float:
        try:
            await self._beat(server.address, http.address if http else "")
        except StoreUnavailable as error:
            log.warning("Redis is away", why=error.message, away_s=round(self.view.away_s(), 1))
        except StaleTerm as error:
            log.error(error.message)
            stop.set()
        if not stop.is_set():
            await server.set_serving(self._ready())
        return self._settings.heartbeat_s

    async def _beat(self, address: str, http_address: str) -> None:
        ttl_s = self._settings.lease_s
        if http_address:
            await self._http_registry.heartbeat(self.router_id, http_address.encode(), ttl_s, self._incarnation)
        await self._registry.heartbeat(self.router_id, address.encode(), ttl_s, self._incarnation)
        await self.view.refresh()
        self.links.update(self.view.addresses())

    def _ready(self) -> bool:
        return bool(self.view.devices()) and self.view.away_s() <= self._settings.redis_wait_s


async def main(settings: RouterSettings, stop: asyncio.Event) -> None:
    """Serves until `stop`, lets the running streams end, cancels what is left."""
    async with connect(settings.redis_url) as redis:
        group = asyncio.TaskGroup()
        router = Router(settings, redis, group)
        metrics = serving_metrics(settings, router.metrics.registry)
        served = serving(
            settings,
            router.servicers(),
            max_message_bytes=settings.max_message_bytes,
            guard=router.guard.admit,
        )
        with metrics:
            async with served as server, serving_http(settings, router.http) as http, group:
                chores = [group.create_task(router.chores.run()), group.create_task(router.checkpoints.run())]
                chores.append(group.create_task(forever(router.listen)))
                heartbeat = group.create_task(router.heartbeat(server, http, stop))
                await stop.wait()
                router.pool.close()
                await asyncio.gather(*(one.drain(settings.drain_timeout_s) for one in (server, http) if one))
                await end(heartbeat)
                await router.leave()
                await end(*chores)
