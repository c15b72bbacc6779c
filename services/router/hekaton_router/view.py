"""What the router knows of the pool: who lives, as of the last heartbeat."""

import asyncio

from hekaton.policy.admission import Promise
from hekaton.rpc import convert
from hekaton.store.outlooks import Outlooks
from hekaton.store.workers import Registry
from hekaton.v1 import pool_pb2
from hekaton_router.admission import Device


class PoolView:
    """Keeps its last knowledge while Redis is away: running streams go on."""

    def __init__(self, workers: Registry, memories: Registry, outlooks: Outlooks | None = None) -> None:
        """`outlooks` if requests are to be refused that the pool cannot serve in time."""
        self._workers = workers
        self._memories = memories
        self._outlooks = outlooks
        self.promise = Promise({})
        self._answered_s = asyncio.get_running_loop().time()
        self.workers: tuple[pool_pb2.WorkerStatus, ...] = ()
        self.memories: tuple[str, ...] = ()
        """Addresses of the memory services."""

    async def refresh(self) -> None:
        """Reads the registry. Raises StoreUnavailable."""
        workers = await self._workers.list()
        memories = await self._memories.list()
        statuses = convert.statuses_from_registry(workers)
        self.workers = tuple(statuses[name] for name in sorted(statuses))
        self.memories = tuple(memories[name].decode(errors="replace") for name in sorted(memories))
        if self._outlooks:
            self.promise = await self._outlooks.read()
        self._answered_s = asyncio.get_running_loop().time()

    def away_s(self) -> float:
        """How long Redis has not answered."""
        return asyncio.get_running_loop().time() - self._answered_s

    def addresses(self) -> dict[str, str]:
        """Where each live worker is, by id."""
        return {worker.worker_id: worker.address for worker in self.workers}

    def devices(self) -> list[Device]:
        """The accelerators that take new requests."""
        return [Device(worker.device, worker.device_memory_bytes) for worker in self.workers if not worker.draining]
