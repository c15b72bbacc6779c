"""How fast requests find a worker: `python -m bench.placement [--json] [--workers N] [--seconds S] [--rate R]`.

A real scheduler commands emulated workers, which hold what they are given for half a second, through a real Redis.
Requests are accepted in the store as a router does it. First so many always wait that the scheduler is never idle: its
most placements a second, and its CPU for each. Then they arrive at random (Poisson) at half that rate, and at `--rate`:
`p99_ms` is the time from before a request's acceptance until its worker has the command.
"""

import argparse
import asyncio
import json
import os
import random
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from bench.control.machine import cpu_s
from bench.control.services import SLO, add_models, address_of, embedded_redis, service
from bench.control.workers import LightWorker, light_workers
from bench.machine import cpu_name
from hekaton.facts import FinishReason, ModelSpec, RequestRecord, RequestState, Sampling
from hekaton.store.keys import Kind
from hekaton.store.requests import Requests
from hekaton.v1 import worker_pb2 as pb

SPEC = ModelSpec("seven", "llama", "bfloat16", 15 << 30, 57_344, 32_768, 152_064)
MODELS = 128
RESIDENT = 3
"""Models that a worker's device holds."""
HELD_S = 0.5
WAITING = 64
"""Requests that always wait while the most placements are counted."""
WARM_UP_S = 2.0
PROMPT = tuple(range(10, 110))
MOST_QUEUED = 100_000


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What came of requests at one rate."""

    rate: float
    placed: int
    p50_ms: float
    p99_ms: float
    sent_late_p99_ms: float
    """How late the bench itself was."""


@dataclass(frozen=True, slots=True)
class Result:
    workers: int
    most_a_second: float
    cpu_us_a_placement: float
    """Of the scheduler's process, at that rate."""
    redis_cpu_us_a_placement: float
    """Of everything that Redis does for a request here: acceptance, placement, end."""
    half: Arrivals
    given: Arrivals


class Requesters:
    """Accepts requests, and sees them arrive at their workers."""

    def __init__(self, redis: Redis, group: asyncio.TaskGroup) -> None:
        self._store = Requests(redis)
        self._group = group
        self._random = random.Random(1)
        self._sent_s: dict[str, float] = {}
        self._count = 0
        self._live: set[str] = set()
        self._idle = asyncio.Event()
        self._room = asyncio.Semaphore(WAITING)
        self.waits_s: list[float] = []

    def assigned(self, worker: LightWorker, assign: pb.Assign) -> None:
        now_s = asyncio.get_running_loop().time()
        if sent_s := self._sent_s.pop(assign.request_id, None):
            self.waits_s.append(now_s - sent_s)
            self._room.release()
        self._load(worker, assign.model)
        asyncio.get_running_loop().call_later(HELD_S, self._spawn, worker, assign)

    async def flood(self, seconds: float, mark: Callable[[], None]) -> None:
        """Keeps WAITING requests waiting; `mark` after the warm-up."""
        loop = asyncio.get_running_loop()
        warm_s, end_s = loop.time() + WARM_UP_S, loop.time() + WARM_UP_S + seconds
        marked = False
        while loop.time() < end_s:
            await self._room.acquire()
            self._group.create_task(self._accept())
            if not marked and loop.time() >= warm_s:
                marked = True
                mark()

    async def arrive(self, rate: float, seconds: float) -> Arrivals:
        loop = asyncio.get_running_loop()
        at_s = loop.time()
        end_s = at_s + seconds
        self.waits_s.clear()
        late_s = []
        while (at_s := at_s + self._random.expovariate(rate)) < end_s:
            await asyncio.sleep(at_s - loop.time())
            late_s.append(loop.time() - at_s)
            self._group.create_task(self._accept())
        await self.settle()
        p50, p99 = np.percentile(self.waits_s, (50, 99))
        late = float(np.percentile(late_s, 99))
        return Arrivals(rate, len(self.waits_s), 1e3 * float(p50), 1e3 * float(p99), 1e3 * late)

    async def settle(self) -> None:
        """Until all have ended."""
        while self._live:
            self._idle.clear()
            await self._idle.wait()

    async def _accept(self) -> None:
        self._count += 1
        name = f"r{self._count}"
        self._live.add(name)
        model = f"m{self._random.randrange(MODELS):03d}"
        sampling = Sampling(max_tokens=256, seed=self._count)
        record = RequestRecord(name, "router-0", model, len(PROMPT), sampling, SLO, deadline_s=600.0)
        self._sent_s[name] = asyncio.get_running_loop().time()
        await self._store.accept(record, PROMPT, MOST_QUEUED)

    def _load(self, worker: LightWorker, model: str) -> None:
        """The model comes onto the worker's device."""
        resident = list(worker.status.resident_models)
        if model not in resident:
            del worker.status.resident_models[:]
            worker.status.resident_models.extend([*resident[1 - RESIDENT :], model])
            worker.report()

    def _spawn(self, worker: LightWorker, assign: pb.Assign) -> None:
        self._group.create_task(self._end(worker, assign))

    async def _end(self, worker: LightWorker, assign: pb.Assign) -> None:
        """Of a request that moved since, the store keeps the newer attempt."""
        await self._store.finish(
            assign.request_id, assign.epoch, RequestState.FINISHED, reason=FinishReason.LENGTH, stats=None
        )
        worker.released(assign.request_id, assign.epoch)
        self._live.discard(assign.request_id)
        self._idle.set()


@dataclass(frozen=True, slots=True)
class Pool:
    requesters: Requesters
    scheduler_pid: int
    redis_pid: int


@asynccontextmanager
async def pool(workers: int, folder: Path) -> AsyncIterator[Pool]:
    async with AsyncExitStack() as stack:
        redis, url = await stack.enter_async_context(embedded_redis())
        group = await stack.enter_async_context(asyncio.TaskGroup())
        requesters = Requesters(redis, group)
        await add_models(redis, SPEC, [f"m{index:03d}" for index in range(MODELS)])
        await stack.enter_async_context(light_workers(redis, workers, requesters.assigned))
        scheduler = await stack.enter_async_context(service("scheduler", url, folder))
        await address_of(redis, Kind.SCHEDULER, scheduler)
        redis_pid = int((await redis.info("server"))["process_id"])
        yield Pool(requesters, scheduler.pid or 0, redis_pid)


async def measure(workers: int, rate: float, seconds: float, folder: Path) -> Result:
    async with pool(workers, folder) as running:
        loop, requesters = asyncio.get_running_loop(), running.requesters
        before = (0.0, 0.0, 0.0, 0)

        def now() -> tuple[float, float, float, int]:
            return loop.time(), cpu_s(running.scheduler_pid), cpu_s(running.redis_pid), len(requesters.waits_s)

        def mark() -> None:
            nonlocal before
            before = now()

        await requesters.flood(seconds, mark)
        time_s, cpu_time_s, redis_s, placed = (b - a for a, b in zip(before, now(), strict=True))
        await requesters.settle()
        half = await requesters.arrive(placed / time_s / 2, seconds)
        given = await requesters.arrive(rate, seconds)
    return Result(workers, placed / time_s, 1e6 * cpu_time_s / placed, 1e6 * redis_s / placed, half, given)


def _table(result: Result) -> Table:
    machine = f"{os.cpu_count()} cores of {cpu_name()}"
    table = Table(
        title=f"{result.workers} emulated workers ({machine}): at most {result.most_a_second:.0f} placements/s, each "
        f"{result.cpu_us_a_placement:.0f} µs of scheduler and {result.redis_cpu_us_a_placement:.0f} µs of Redis"
    )
    for name in ("requests/s", "requests", "queue to worker p50", "p99", "bench late p99"):
        table.add_column(name, justify="right")
    for one in (result.half, result.given):
        times = (one.p50_ms, one.p99_ms, one.sent_late_p99_ms)
        table.add_row(f"{one.rate:.0f}", str(one.placed), *(f"{time:.1f} ms" for time in times))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.placement", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(args.workers, args.rate, args.seconds, Path(folder)))
    if args.json:
        print(json.dumps({"cpu": cpu_name(), "cores": os.cpu_count(), **asdict(result)}))
    else:
        Console().print(_table(result))


if __name__ == "__main__":
    main()
