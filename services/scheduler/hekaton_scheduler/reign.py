"""What a scheduler does while it leads, under one term."""

import asyncio
from collections.abc import Container, Iterator, Mapping

import structlog
from redis.asyncio import Redis

from hekaton.config import SchedulerSettings
from hekaton.errors import ModelNotFound, StaleTerm, StoreUnavailable
from hekaton.facts import RequestState
from hekaton.policy.admission import Admission
from hekaton.policy.live import has_roles, live_policy
from hekaton.policy.types import Role
from hekaton.rpc import convert
from hekaton.store.catalog import Catalog
from hekaton.store.keys import Kind
from hekaton.store.outlooks import Outlooks
from hekaton.store.queue import Queue
from hekaton.store.records import RequestSummary
from hekaton.store.requests import Requests
from hekaton.store.tenants import Tenants
from hekaton.store.workers import Registry
from hekaton.tasks import dismiss, forever
from hekaton.v1 import pool_pb2
from hekaton.v1 import worker_pb2 as pb
from hekaton_scheduler.chooser import Chooser
from hekaton_scheduler.costs import PoolCosts
from hekaton_scheduler.links import Link
from hekaton_scheduler.models import Models
from hekaton_scheduler.moves import Mover
from hekaton_scheduler.parcels import Parcels
from hekaton_scheduler.patience import patiently
from hekaton_scheduler.placer import Placer
from hekaton_scheduler.pool import Placed, Pool
from hekaton_scheduler.promises import Promises
from hekaton_scheduler.recovery import Recovery
from hekaton_scheduler.shares import Shares

log = structlog.get_logger(__name__)
READ_COUNT = 128
READ_BLOCK_MS = 2000


class Reign:
    """Commands the workers, places what waits, takes back what is lost. Forgotten when the term ends."""

    def __init__(self, settings: SchedulerSettings, scheduler_id: str, redis: Redis, term: int) -> None:
        self._settings = settings
        self._term = term
        self._hello = pb.ControlHello(term=term, scheduler_id=scheduler_id)
        self._store = Requests(redis)
        self._queue = Queue(redis, scheduler_id)
        self._registry = Registry(redis, Kind.WORKER)
        self._models = Models(Catalog(redis))
        self._links: dict[str, Link] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._absent_since_s: dict[str, float] = {}
        self._answers_since_s = asyncio.get_running_loop().time()
        self._costs = PoolCosts(self._models.known)
        policy = live_policy(settings.policy, settings.policy_option)
        placement = policy.placement(self._costs)
        self.pool = Pool()
        self._chooser = Chooser(
            self.pool, placement, has_roles=has_roles(policy), max_placed=settings.max_placed_requests
        )
        phase = Role.PREFILL if has_roles(policy) else Role.ANY
        self._promises = Promises(Outlooks(redis), self._models, self.pool, self._costs, phase, settings.heartbeat_s)
        self._recovery = Recovery(settings, self._store, term)
        self._mover = Mover(placement, self._chooser, self.pool, self._let_go)
        self._parcels = Parcels()
        self.shares = Shares(Tenants(redis), lambda: len(self._links), self._tell_yielding)
        self.placer = Placer(
            self._store, self._models, self.pool, self._chooser, term=term, give_back=self._recovery.requeue
        )

    async def run(self) -> int:
        """Until cancelled, or until a newer term is known: returns it."""
        newest = self._term
        try:
            async with asyncio.TaskGroup() as self._group:
                self._group.create_task(forever(self._follow), name="registry")
                self._group.create_task(self._intake(), name="queue")
                self._group.create_task(self.placer.run(self._assign), name="placer")
                self._group.create_task(self._recovery.sweep(self._links), name="sweep")
                self._group.create_task(forever(self._mover.turn), name="rebalance")
                self._group.create_task(forever(self.shares.turn), name="shares")
                if self._settings.admission is Admission.SHED:
                    self._group.create_task(forever(self._promises.turn), name="promises")
        except* StaleTerm as stale:
            newest = max(newest, *(error.newest for error in _flat(stale)))
            log.warning("a newer leader is known", own_term=self._term, newest_term=newest)
        return newest

    def _assign(self, worker_id: str, placed: Placed) -> None:
        self._links[worker_id].assign(placed, self._parcels.take(placed.request_id, placed.epoch))

    def _let_go(self, worker_id: str, placed: Placed) -> None:
        if link := self._links.get(worker_id):
            link.revoke(placed.request_id, placed.epoch, hand_over=True)

    def _tell_yielding(self, tenants: frozenset[str]) -> None:
        self.pool.yielding = tenants
        self.placer.pool_changed()
        for link in self._links.values():
            link.tell_yielding(tenants)

    async def _intake(self) -> None:
        """Everything that is pending with anyone, then what is new."""
        entries = await patiently(self._queue.claim_all, self._term)
        while True:
            if entries:
                await patiently(self.placer.take, entries)
            entries = await patiently(self._queue.read, self._term, READ_COUNT, READ_BLOCK_MS)

    # ---- who lives

    async def _follow(self) -> float:
        asked_s = asyncio.get_running_loop().time()
        try:
            listed = await self._registry.list()
            lapsed = await self._registry.lapsed(sorted(self._links.keys() - listed.keys()))
            if await self._models.refresh():
                self.placer.pool_changed()
        except StoreUnavailable as error:
            log.warning("cannot see who lives", why=error.message)
            self._absent_since_s.clear()
            self._answers_since_s = asyncio.get_running_loop().time()
        else:
            self._update(convert.statuses_from_registry(listed), lapsed if self._has_answered(asked_s) else ())
        return self._settings.heartbeat_s / 2

    def _has_answered(self, asked_s: float) -> bool:
        """The store has been there for the time of a lease: who let one run out was not kept from renewing it."""
        now_s = asyncio.get_running_loop().time()
        if now_s - asked_s > self._settings.heartbeat_s:
            self._answers_since_s = now_s
        return now_s - self._answers_since_s > self._settings.lease_s

    def _update(self, listed: Mapping[str, pool_pb2.WorkerStatus], lapsed: Container[str]) -> None:
        """Links who is listed. One that is not is lost if its lease ran out, if its stream is broken, or in a while."""
        now_s = asyncio.get_running_loop().time()
        for worker_id, status in listed.items():
            self._absent_since_s.pop(worker_id, None)
            link = self._links.get(worker_id)
            if link is None or link.address != status.address:
                self._link(worker_id, status.address)
        for worker_id in self._links.keys() - listed.keys():
            # An emptied Redis forgets workers that are well, and their leases: they say so with their next heartbeat.
            since_s = self._absent_since_s.setdefault(worker_id, now_s)
            if (
                worker_id in lapsed
                or not self._links[worker_id].connected
                or now_s - since_s > 2 * self._settings.heartbeat_s
            ):
                self._lose(worker_id)

    def _link(self, worker_id: str, address: str) -> None:
        self._unlink(worker_id)
        link = self._links[worker_id] = Link(worker_id, address, self._hello, self, self._settings.client_tls)
        self._tasks[worker_id] = self._group.create_task(link.run(), name=f"worker {worker_id}")

    def _unlink(self, worker_id: str) -> None:
        self.pool.disconnect(worker_id)
        self._costs.forget(worker_id)
        self._links.pop(worker_id, None)
        if task := self._tasks.pop(worker_id, None):
            dismiss(task)

    def _lose(self, worker_id: str) -> None:
        log.warning("worker lost", worker_id=worker_id)
        self._unlink(worker_id)
        self._absent_since_s.pop(worker_id, None)
        self._group.create_task(self._recovery.recover(worker_id), name=f"recover {worker_id}")

    # ---- what a link says

    async def connected(self, link: Link, report: pb.WorkerReport) -> None:
        """Compares what a worker holds with what the store says that it holds."""
        held = [Placed(one.request_id, one.epoch, one.model, one.tenant) for one in report.held]
        reported = {(one.request_id, one.epoch) for one in held}
        stored = set(await patiently(self._store.held_by, link.worker_id))
        known = await patiently(self._store.peek, [name for name, _ in reported ^ stored])
        strays = {(name, epoch) for name, epoch in reported - stored if name in known}
        for name, epoch in strays:
            link.revoke(name, epoch)
        self._costs.measured(link.worker_id, report.status.costs)
        self.shares.charge(report.used_seconds)
        link.tell_yielding(self.pool.yielding)
        self.pool.connect(report.status, [one for one in held if (one.request_id, one.epoch) not in strays])
        self.placer.pool_changed()
        for name, epoch in stored - reported:
            await self._missing(name, epoch, known.get(name), report)

    async def _missing(self, name: str, epoch: int, known: RequestSummary | None, report: pb.WorkerReport) -> None:
        """A worker does not hold what the store says: it gave it back, lost it with its process, or never got it."""
        back = next((one for one in report.given_back if (one.request_id, one.epoch) == (name, epoch)), None)
        if back:
            self._parcels.put(back)
            self._keep_phase(report.status.worker_id, back)
        begun = known is not None and known.state is RequestState.RUNNING
        await self._recovery.requeue(name, epoch, lost=begun and back is None)

    def reported(self, report: pb.WorkerReport) -> None:
        status = report.status
        self._costs.measured(status.worker_id, status.costs)
        self.shares.charge(report.used_seconds)
        self.pool.update(status)
        self.placer.pool_changed()

    def released(self, link: Link, released: pb.Released) -> None:
        if self.pool.epoch(link.worker_id, released.request_id) != released.epoch:
            return
        self.pool.remove(link.worker_id, released.request_id)
        self.placer.pool_changed()
        self._parcels.put(released)
        self._keep_phase(link.worker_id, released)
        if released.refused:
            self._refused(link.worker_id, released)
        elif released.handed_over:
            self._put_back(released)
        elif released.moved:
            self._chooser.let_go(released.request_id)
            self._put_back(released)
        else:
            self._chooser.forget(released.request_id)

    def disconnected(self, link: Link, *, gone: bool) -> None:
        self.pool.disconnect(link.worker_id)
        if gone:
            self._group.create_task(self._recovery.recover(link.worker_id), name=f"recover {link.worker_id}")

    def _refused(self, worker_id: str, released: pb.Released) -> None:
        log.warning("request refused", worker_id=worker_id, request_id=released.request_id, why=released.reason)
        self._chooser.avoid(released.request_id, worker_id)
        if released.reason == ModelNotFound.reason:
            self._models.clear()
        self._put_back(released)

    def _keep_phase(self, worker_id: str, released: pb.Released) -> None:
        """What was to decode is not prefilled again for leaving its worker: it may be younger than any checkpoint."""
        if released.handed_over or self.pool.role(worker_id) is Role.DECODE:
            self._chooser.prefilled(released.request_id)

    def _put_back(self, released: pb.Released) -> None:
        requeue = self._recovery.requeue(released.request_id, released.epoch)
        self._group.create_task(requeue, name=f"put back {released.request_id}")


def _flat(group: BaseExceptionGroup[StaleTerm]) -> Iterator[StaleTerm]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _flat(error)
        else:
            yield error
