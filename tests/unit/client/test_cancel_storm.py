"""Half of all requests are cancelled at random points: nothing of them is left."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from random import Random

from redis.asyncio import Redis

from fakes.redis import running_redis
from fakes.router import address_of, running_router
from fakes.schedulers import running_scheduler
from fakes.waiting import eventually
from fakes.workers import SPEC, add_model, running_worker
from hekaton.client import Client, SamplingOptions, Tokens
from hekaton.engine.emulated import emulated_token
from hekaton.store.requests import Requests

SEED = 7
REQUESTS = 60


@asynccontextmanager
async def pool() -> AsyncIterator[tuple[Client, Redis]]:
    async with (
        running_redis() as (server, redis),
        running_scheduler(server.url, redis),
        running_worker(server.url, redis, "w1"),
        running_router(redis, server.url) as router,
    ):
        await add_model(redis)
        await router.until_serving()
        async with Client(await address_of(redis, "router-1")) as client:
            yield client, redis


async def generate(client: Client, index: int, random: Random) -> None:
    """To its end, or to a random token; half of them outlive their connections."""
    tokens = random.randint(1, 80)
    most = random.randrange(tokens) if index % 2 else tokens
    options = SamplingOptions(max_tokens=tokens, seed=SEED)
    token_ids: list[int] = []
    window_s = 30.0 if index % 4 < 2 else 0.0
    generation = client.generate("m1", "hello", options, request_id=f"r{index}", resume_window_s=window_s)
    async with aclosing(generation) as events:
        async for event in events:
            if isinstance(event, Tokens):
                token_ids += event.token_ids
                if len(token_ids) > most:
                    break
    assert token_ids == [emulated_token("m1", SEED, position, SPEC) for position in range(len(token_ids))]


async def test_a_storm_of_cancels_leaves_nothing_behind() -> None:
    random = Random(3)
    async with pool() as (client, redis):
        await asyncio.gather(*(generate(client, index, random) for index in range(REQUESTS)))
        store = Requests(redis)

        async def settled() -> bool:
            workers = (await client.pool()).workers
            busy = sum(
                one.requests_running + one.requests_waiting + one.kv_bytes + one.host_kv_bytes for one in workers
            )
            held = len(await store.held_by("w1")) + await store.queued()
            states = await store.peek([f"r{index}" for index in range(REQUESTS)])
            return busy + held == 0 and all(one.state.terminal for one in states.values()) and len(states) == REQUESTS

        await eventually(settled)
