"""Rounds of mixed load with cancels, while a worker is killed again and again; between them the pool rests.

At rest it must hold what it held before: memory, file descriptors, tasks, segments and keys.
"""

import asyncio
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from random import Random

from redis.asyncio import Redis
from tenacity import AsyncRetrying, RetryError, retry_if_not_result, stop_after_delay, wait_fixed

from hekaton.chaos import usage
from hekaton.chaos.faults import Fault, Kind
from hekaton.chaos.growth import Growth, Seen, growths
from hekaton.chaos.load import Case, End, Load, cases
from hekaton.chaos.pool import BreakablePool
from hekaton.chaos.run import DEVICE_MEMORY, EMULATED, registered
from hekaton.client import Client
from hekaton.errors import HekatonError, Unavailable
from hekaton.store.connect import connect
from hekaton.tasks import end

VICTIM = "worker-1"
"""It is killed in every round, so its memory begins anew: that of the other worker counts."""
CASES = 10_000
"""More than a round can do."""
LEAST_ROUNDS = 2
"""Growth is between two looks."""
REST_S = 2.0
"""After the last request: clean-up that nobody waits for, and connections that close."""
IDLE_TIMEOUT_S = 120.0
NOISE: dict[str, float] = {"rss_bytes": 2 << 20, "descriptors": 2, "tasks": 2}
"""What each may vary by: a heap's fragments, a connection that is about to close."""


@dataclass(frozen=True, slots=True)
class SoakOptions:
    duration_s: float
    round_s: float = 20.0
    """Of load, between two rests."""
    warm_up_s: float = 300.0
    seed: int = 1
    device: str = "cpu"
    concurrency: int = 24
    bound: float = 0.02
    """The most that anything may grow."""
    log_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class SoakReport:
    device: str
    seed: int
    duration_s: float
    rounds: int
    restarts: int
    ends: dict[str, int]
    """Requests, by how they ended."""
    growth: dict[str, Growth]
    """By service and figure; nothing if it was too short."""
    grown: tuple[str, ...]
    """What has grown beyond the bound."""

    @property
    def held(self) -> bool:
        return (
            bool(self.ends.get(End.FINISHED))
            and not self.grown
            and not self.ends.get(End.LOST)
            and not self.ends.get(End.FAILED)
        )

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "held": self.held}


async def soak(options: SoakOptions, say: Callable[[str], None]) -> SoakReport:
    """Raises Unavailable if the pool does not start, or does not come to rest."""
    clock = asyncio.get_running_loop().time
    emulated = options.device.startswith(EMULATED)
    with tempfile.TemporaryDirectory(prefix="hekaton-soak-") as temporary:
        pool = BreakablePool(options.device, DEVICE_MEMORY[emulated], options.log_dir, say)
        async with pool, connect(pool.redis.url) as redis, Client(*pool.stack.addresses) as client:
            models = await registered(client, options.device, Path(temporary))
            random, ends, seen = Random(options.seed), Counter[str](), list[Seen]()
            started_s, rounds = clock(), 0
            while rounds < LEAST_ROUNDS or clock() - started_s < options.duration_s:
                todo = cases(CASES, models, random, uuid.uuid4().hex[:8])
                before = _while_before(clock() + options.round_s, todo)
                load = Load(pool.stack.addresses, redis, before, options.concurrency)
                breaking = asyncio.create_task(_kill(pool, random.uniform(0.2, 0.8) * options.round_s), name="kill")
                try:
                    await load.run()
                finally:
                    await end(breaking)
                ends.update(outcome.end for outcome in load.outcomes)
                rounds += 1
                await _rest(pool, client)
                now = await _look(pool, redis)
                if clock() - started_s > options.warm_up_s:
                    seen.append(now)
                say(f"round {rounds}, {clock() - started_s:.0f} s: {dict(ends)}")
    found = growths(seen)
    return SoakReport(
        device=options.device,
        seed=options.seed,
        duration_s=round(clock() - started_s, 1),
        rounds=rounds,
        restarts=rounds,
        ends=dict(ends),
        growth=found,
        grown=tuple(name for name, growth in found.items() if too_much(name, growth, options.bound)),
    )


def _while_before(until_s: float, todo: Iterable[Case]) -> Iterator[Case]:
    clock = asyncio.get_running_loop().time
    return takewhile(lambda _: clock() < until_s, todo)


async def _kill(pool: BreakablePool, delay_s: float) -> None:
    await asyncio.sleep(delay_s)
    await pool.inflict(Fault(Kind.KILL, VICTIM, 0.0))


async def _rest(pool: BreakablePool, client: Client) -> None:
    """Returns when every service is there and nothing runs. Raises Unavailable if that takes too long."""
    until = AsyncRetrying(retry=retry_if_not_result(bool), wait=wait_fixed(0.2), stop=stop_after_delay(IDLE_TIMEOUT_S))
    try:
        await until(_idle, pool, client)
    except RetryError:
        raise Unavailable(f"the pool does not come to rest within {IDLE_TIMEOUT_S:.0f} s; see its logs") from None
    await asyncio.sleep(REST_S)


async def _idle(pool: BreakablePool, client: Client) -> bool:
    try:
        # One that has just been killed is still listed, and does not answer.
        for child in pool.stack.children:
            await usage.tasks(pool.stack.metrics[child.name])
        state = await client.pool()
    except (HekatonError, OSError):
        return False
    busy = sum(one.requests_running + one.requests_waiting + one.kv_bytes for one in state.workers)
    return VICTIM in {one.worker_id for one in state.workers} and not busy + state.queued_requests


async def _look(pool: BreakablePool, redis: Redis) -> Seen:
    """Both of a service together: which scheduler leads, and so has more to hold, may change."""
    seen = Counter[str](segments=usage.segments(pool.segments), keys=await usage.lasting_keys(redis))
    for child in pool.stack.children:
        if child.pid is None:
            continue
        found = usage.process(child.pid, await usage.tasks(pool.stack.metrics[child.name]))
        service = child.name.rpartition("-")[0]
        seen[f"{service} descriptors"] += found.descriptors
        seen[f"{service} tasks"] += found.tasks
        if child.name != VICTIM:
            seen[f"{service} rss_bytes"] += found.rss_bytes
    return seen


def too_much(name: str, growth: Growth, bound: float) -> bool:
    """Whether a figure has grown beyond the bound and what it varies by anyway."""
    noise = NOISE.get(name.rpartition(" ")[2], 0.0)
    return growth.last - growth.first > max(bound * growth.first, noise)
