"""The pool that is fuzzed: one of each service, all of them processes of their own."""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from redis.asyncio import Redis
from tenacity import AsyncRetrying, RetryError, retry_if_not_result, stop_after_delay, wait_fixed

from hekaton.chaos import usage
from hekaton.chaos.growth import Growth, Seen
from hekaton.chaos.soak import too_much
from hekaton.cli.child import Child
from hekaton.cli.supervisor import Stack, StackOptions
from hekaton.client import Client, SamplingOptions
from hekaton.errors import HekatonError, Unavailable
from hekaton.store.keys import Kind
from hekaton.store.workers import Registry
from hekaton.v1.pool_pb2 import WorkerStatus

PUBLIC = ("InferenceService", "ModelService", "PoolService", "GRPCInferenceService")
MODEL = "sound"
"""Its requests must be answered whatever happens."""
TOKENS = 4
REST_TIMEOUT_S = 120.0
CALM_TIMEOUT_S = 40.0
"""For what closes by itself, after a pool has come to rest."""
RSS = "rss_bytes"
LIMITS = {"max_resume_window_s": "3", "max_deadline_s": "10", "default_deadline_s": "5", "max_queued_requests": "500"}
"""Of the router, so that nothing outlives a round for long."""
WRONG = ("Traceback", "unexpected error", "exception was never retrieved", "Task was destroyed")
"""In a log: a service met what nobody foresaw, whatever it answered."""

GONE = "ExecuteBatchError raised in core"
"""So does grpc.aio when a client goes at the moment in which it is answered."""


class FuzzedStack(Stack):
    """Services tell their metrics, and one that dies stays dead."""

    def __init__(self, options: StackOptions, say: Callable[[str], None]) -> None:
        super().__init__(options, say)
        self.metrics: dict[str, str] = {}
        """Addresses."""

    async def launch(self, service: str, name: str, log: Path, settings: dict[str, str]) -> Child:
        self.metrics[name] = f"127.0.0.1:{_free_port()}"
        own = {"metrics_listen": self.metrics[name], **(LIMITS if service == "router" else {})}
        if service == "memory":
            # The calls of other hosts come over TCP.
            own["listen"] = f"127.0.0.1:{_free_port()}"
        return await super().launch(service, name, log, {**settings, **own})

    async def addresses_of(self, redis: Redis) -> dict[str, str]:
        """Where each service of hekaton.v1 is."""
        [worker] = (await Registry(redis, Kind.WORKER).list()).values()
        [scheduler] = (await Registry(redis, Kind.SCHEDULER).list()).values()
        [memory] = (await Registry(redis, Kind.MEMORY).list()).values()
        public = dict.fromkeys(PUBLIC, self.address)
        internal = {"WorkerService": WorkerStatus.FromString(worker).address, "MemoryService": memory.decode()}
        return {**public, **internal, "SchedulerService": scheduler.decode()}


class Target:
    """A pool, and what it must be like between two rounds."""

    def __init__(self, stack: FuzzedStack, redis: Redis, client: Client, bound: float) -> None:
        self._stack = stack
        self._redis = redis
        self._client = client
        self._bound = bound

    async def rest(self, before: Sequence[Seen]) -> Seen:
        """What it holds when nothing runs, given some time to come down to what it held before.

        Raises Unavailable, or what a sound request ends with, if it does not serve any more.
        """
        await self._forget_models()
        await self._serve()
        until = AsyncRetrying(
            retry=retry_if_not_result(bool), wait=wait_fixed(0.2), stop=stop_after_delay(REST_TIMEOUT_S)
        )
        try:
            await until(self._idle)
        except RetryError:
            raise Unavailable(f"the pool does not come to rest within {REST_TIMEOUT_S:.0f} s; see its logs") from None
        ends_s = asyncio.get_running_loop().time() + CALM_TIMEOUT_S
        seen = await self._look()
        while self._more(seen, before) and asyncio.get_running_loop().time() < ends_s:
            await asyncio.sleep(0.5)
            seen = await self._look()
        return seen

    def _more(self, seen: Seen, before: Sequence[Seen]) -> bool:
        """Whether it holds more than it ever did, memory apart, which no waiting gives back."""
        most = {name: max(one[name] for one in before) for name in seen if before and not name.endswith(RSS)}
        return any(too_much(name, Growth(held, seen[name]), self._bound) for name, held in most.items())

    async def _forget_models(self) -> None:
        """All but the one that stays."""
        for model in await self._client.list_models():
            for alias in model.aliases:
                await self._client.delete_alias(alias)
            if model.name != MODEL:
                await self._client.delete_model(model.name)

    async def _serve(self) -> None:
        options = SamplingOptions(max_tokens=TOKENS, ignore_eos=True)
        answer = await self._client.complete(MODEL, "Are you there?", options)
        if len(answer.token_ids) != TOKENS:
            raise Unavailable(f"a sound request got {len(answer.token_ids)} of {TOKENS} tokens")

    async def _idle(self) -> bool:
        for child in self._stack.children:
            child.check()
        try:
            state = await self._client.pool()
        except HekatonError:
            return False
        busy = sum(one.requests_running + one.requests_waiting + one.kv_bytes for one in state.workers)
        return bool(state.leader_term and state.workers) and not busy + state.queued_requests

    async def _look(self) -> Seen:
        seen = Counter[str](keys=await usage.lasting_keys(self._redis))
        for child in self._stack.children:
            if child.pid is not None:
                found = usage.process(child.pid, await usage.tasks(self._stack.metrics[child.name]))
                service = child.name.rpartition("-")[0]
                seen[f"{service} {RSS}"] = found.rss_bytes
                seen[f"{service} descriptors"] = found.descriptors
                seen[f"{service} tasks"] = found.tasks
        return seen


def said_wrong(logs: Path) -> list[str]:
    """Lines of services' logs that should not be there."""
    return [
        f"{log.stem}: {line[:4000]}"
        for log in sorted(logs.glob("*.log"))
        for line in log.read_text(errors="replace").splitlines()
        if any(wrong in line for wrong in WRONG) and GONE not in line
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
