"""Requests that end engines are ended; those that merely were there, or whose engine was killed, are not."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from redis.asyncio import Redis

from fakes.driven import Driven, state_of
from fakes.peers import commander, listener
from fakes.waiting import eventually
from fakes.workers import accept, add_model, expected, new_record, place, running_worker
from hekaton.engine.stepmark import HEAD
from hekaton.errors import PoisonRequest
from hekaton.facts import RequestState
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.requests import Requests
from hekaton_worker.death import by_itself

LONG = 20_000
"""More tokens than a test waits for."""


def engines() -> dict[int, int]:
    """Engine processes that this process has started, and where they mark their steps."""
    found = {}
    for pid in map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()):
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        marks = [int(one.partition("=")[2]) for one in arguments if one.startswith("--mark-fd=")]
        if "hekaton.engine.host" in arguments and marks:
            found[pid] = marks[0]
    return found


def marked(pid: int, fd: int) -> list[str]:
    """The requests in whose step an engine is."""
    page = Path(f"/proc/{pid}/fd/{fd}").read_bytes()
    began_ns, length = HEAD.unpack_from(page)
    return page[HEAD.size : HEAD.size + length].decode().splitlines() if began_ns else []


async def end_in_step(number: int, request_id: str) -> int:
    """Sends a signal to the engine while it is in a step with a request; its process id."""
    [(pid, fd)] = engines().items()
    async with asyncio.timeout(60):
        while True:
            os.kill(pid, signal.SIGSTOP)
            inside = request_id in marked(pid, fd)
            if inside:
                os.kill(pid, number)
            os.kill(pid, signal.SIGCONT)
            if inside:
                return pid
            await asyncio.sleep(0.002)


async def until_another(pid: int) -> None:
    async def another() -> bool:
        return bool(engines().keys() - {pid}) and pid not in engines()

    await eventually(another)


async def test_a_request_whose_steps_end_engines_fails_and_its_companion_does_not(driven: Driven, redis: Redis) -> None:
    _, scheduler, router = driven
    for request_id in ("r1", "r2"):
        await accept(redis, new_record(request_id, max_tokens=LONG))
        await scheduler.assign(*await place(redis, "w1"))
        await router.tokens(request_id, 5)
    pid = await end_in_step(signal.SIGSEGV, "r1")
    await until_another(pid)
    before = len(router.known["r1"])
    await router.tokens("r1", before + 5)
    await router.tokens("r2", len(router.known["r2"]) + 5)
    await end_in_step(signal.SIGSEGV, "r1")
    assert (await router.end("r1")).error_reason == PoisonRequest.reason
    known = await router.tokens("r2", len(router.known["r2"]) + 5)
    assert known == expected(len(known))
    assert await state_of(redis, "r1") is RequestState.FAILED
    stored = await Requests(redis).peek(["r1", "r2"])
    assert stored["r2"].state is RequestState.RUNNING
    assert (stored["r1"].reason, stored["r1"].strikes) == (PoisonRequest.reason, 2)


async def test_a_killed_engine_is_nobodys_fault(driven: Driven, redis: Redis) -> None:
    _, scheduler, router = driven
    await accept(redis, new_record("r1", max_tokens=LONG))
    await scheduler.assign(*await place(redis, "w1"))
    for count in (5, 50):
        await router.tokens("r1", count)
        await until_another(await end_in_step(signal.SIGKILL, "r1"))
    known = await router.tokens("r1", len(router.known["r1"]) + 5)
    assert known == expected(len(known))
    assert (await Requests(redis).peek(["r1"]))["r1"].strikes == 0


async def test_a_step_that_hangs_is_ended_and_so_is_its_request(redis: Redis, redis_server: EmbeddedRedis) -> None:
    async with (
        # Every step takes 7 ms and more.
        running_worker(redis_server.url, redis, "w1", hung_step_s=0.003, time_scale=1.0) as worker,
        commander(worker.address) as scheduler,
        listener(worker.address) as router,
    ):
        await add_model(redis)
        await scheduler.hello()
        await accept(redis, new_record("r1", max_tokens=LONG))
        await scheduler.assign(*await place(redis, "w1"))
        assert (await router.end("r1", 20.0)).error_reason == PoisonRequest.reason


@pytest.mark.parametrize(
    ("status", "hung", "out_of_memory", "itself"),
    [
        (1, False, False, True),
        (-signal.SIGSEGV, False, False, True),
        (-signal.SIGKILL, False, False, False),
        (-signal.SIGKILL, True, False, True),
        (-signal.SIGKILL, False, True, True),
        (-signal.SIGTERM, False, True, False),
        (0, False, False, False),
    ],
)
def test_who_ended_an_engine(status: int, hung: bool, out_of_memory: bool, itself: bool) -> None:
    assert by_itself(status, hung=hung, out_of_memory=out_of_memory) is itself
