"""Leadership over a real Redis: one leads, and only while its lease holds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis

from fakes.redis import connected
from fakes.waiting import eventually
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.leadership import Leadership
from hekaton_scheduler.leader import Election

TTL_S = 0.3


@asynccontextmanager
async def standing(redis: Redis, name: str) -> AsyncIterator[tuple[Election, list[int]]]:
    """An election that runs, and the terms under which it leads now (one or none)."""
    election, terms = Election(Leadership(redis), name, TTL_S), list[int]()

    async def lead(term: int) -> int:
        terms.append(term)
        try:
            await asyncio.Event().wait()
        finally:
            terms.remove(term)
        return term

    task = asyncio.create_task(election.run(lead))
    try:
        yield election, terms
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_one_leads_and_the_other_takes_over_when_it_stops(redis: Redis) -> None:
    async with standing(redis, "b") as (_, later):
        async with standing(redis, "a") as (_, first):

            async def one_leads() -> bool:
                return len(first) + len(later) == 1

            await eventually(one_leads)
            await asyncio.sleep(2 * TTL_S)
            assert len(first) + len(later) == 1
        assert not first

        async def the_other_leads() -> bool:
            return len(later) == 1

        await eventually(the_other_leads, 2 * TTL_S)


async def test_a_leader_that_cannot_renew_stops_in_time_and_leads_again_later(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "data", socket_dir=tmp_path) as server:
        async with connected(server.url) as redis, standing(redis, "a") as (election, terms):

            async def leads() -> bool:
                return bool(terms)

            async def stands_by() -> bool:
                return not terms and not election.term

            await eventually(leads)
            before = terms[0]
            await asyncio.to_thread(server.kill)
            await eventually(stands_by, 2 * TTL_S)
            await asyncio.to_thread(server.start)
            await eventually(leads)
            assert terms[0] > before
