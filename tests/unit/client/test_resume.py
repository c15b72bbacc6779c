"""The client resumes what it began: real routers, scheduler and worker, and a connection that breaks."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import NamedTuple

import pytest
from redis.asyncio import Redis

from fakes.redis import running_redis
from fakes.router import RouterClient, address_of, running_router
from fakes.schedulers import running_scheduler
from fakes.waiting import eventually
from fakes.workers import SPEC, add_model, running_worker
from hekaton.chaos.proxy import Proxy
from hekaton.client import Client, SamplingOptions, SyncClient, Tokens
from hekaton.engine.emulated import emulated_token
from hekaton.errors import ModelNotFound, Unavailable
from hekaton.facts import RequestState
from hekaton.store.requests import Requests

SEED = 7
TOKENS = 300
OPTIONS = SamplingOptions(max_tokens=TOKENS, seed=SEED)
EXPECTED = [emulated_token("m1", SEED, position, SPEC) for position in range(TOKENS)]


class Pool(NamedTuple):
    redis: Redis
    proxy: Proxy
    """Before the first router."""
    first: RouterClient
    second: str
    """The other router's address."""


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    async with two_routers() as pool:
        yield pool


@asynccontextmanager
async def two_routers() -> AsyncIterator[Pool]:
    async with (
        running_redis() as (server, redis),
        running_scheduler(server.url, redis),
        running_worker(server.url, redis, "w1"),
        running_router(redis, server.url, "router-1", drain_timeout_s=0.1) as first,
        running_router(redis, server.url, "router-2") as second,
        Proxy(await address_of(redis, "router-1")) as proxy,
    ):
        await add_model(redis)
        await first.until_serving()
        await second.until_serving()
        yield Pool(redis, proxy, first, await address_of(redis, "router-2"))


async def generated(client: Client, breaks: Callable[[], None], *, window_s: float = 20.0) -> tuple[list[int], str]:
    """A whole generation; its connection breaks at two points."""
    token_ids, text, left = list[int](), "", [10, 150]
    generation = client.generate("m1", "hello", OPTIONS, request_id="mine", resume_window_s=window_s)
    async with aclosing(generation) as events:
        async for event in events:
            if isinstance(event, Tokens):
                assert event.first_index == len(token_ids)
                token_ids += event.token_ids
                text += event.text
            if left and len(token_ids) >= left[0]:
                left.pop(0)
                breaks()
    return token_ids, text


async def test_a_generation_survives_its_connections(pool: Pool) -> None:
    async with Client(pool.proxy.address) as client:
        token_ids, text = await generated(client, pool.proxy.sever)
        assert token_ids == EXPECTED
        assert text == await client.detokenize("m1", token_ids)


async def test_a_generation_survives_its_router(pool: Pool) -> None:
    async with Client(pool.proxy.address, pool.second) as client:
        token_ids, text = await generated(client, pool.first.stop.set)
        assert client.address == pool.second
        assert token_ids == EXPECTED
        assert text == await client.detokenize("m1", token_ids)


async def test_without_a_window_a_broken_connection_ends_the_request(pool: Pool) -> None:
    async with Client(pool.proxy.address) as client:
        with pytest.raises(Unavailable):
            await generated(client, pool.proxy.sever, window_s=0.0)

    async def cancelled() -> bool:
        return (await Requests(pool.redis).peek(["mine"]))["mine"].state is RequestState.CANCELLED

    await eventually(cancelled)


async def test_closing_a_generation_that_is_kept_cancels_it(pool: Pool) -> None:
    async with Client(pool.proxy.address) as client:
        generation = client.generate("m1", "hello", OPTIONS, request_id="mine", resume_window_s=20.0)
        async with aclosing(generation) as events:
            async for event in events:
                if isinstance(event, Tokens):
                    break
    assert (await Requests(pool.redis).peek(["mine"]))["mine"].state is RequestState.CANCELLED


async def test_a_router_that_cannot_be_reached_is_passed_over(pool: Pool) -> None:
    async with Client("127.0.0.1:1", pool.second) as client:
        assert list((await client.complete("m1", "hello", OPTIONS)).token_ids) == EXPECTED


def generated_without_asyncio(address: str, breaks: Callable[[], object]) -> tuple[list[int], str, str]:
    """The same as `generated`, and what the ids are as text."""
    token_ids, text, left = list[int](), "", [10, 150]
    with SyncClient(address) as client:
        for event in client.generate("m1", "hello", OPTIONS, request_id="mine", resume_window_s=20.0):
            if isinstance(event, Tokens):
                assert event.first_index == len(token_ids)
                token_ids += event.token_ids
                text += event.text
            if left and len(token_ids) >= left[0]:
                left.pop(0)
                breaks()
        return token_ids, text, client.detokenize("m1", token_ids)


async def test_a_generation_of_the_sync_client_survives_its_connections(pool: Pool) -> None:
    sever = partial(asyncio.get_running_loop().call_soon_threadsafe, pool.proxy.sever)
    token_ids, text, decoded = await asyncio.to_thread(generated_without_asyncio, pool.proxy.address, sever)
    assert token_ids == EXPECTED
    assert text == decoded


async def test_the_sync_client_passes_over_routers_cancels_and_raises_as_the_other_does(pool: Pool) -> None:
    def use() -> None:
        with SyncClient("127.0.0.1:1", pool.second) as client:
            assert list(client.complete("m1", "hello", OPTIONS).token_ids) == EXPECTED
            assert client.count_tokens("m1", "hello") == len(client.tokenize("m1", "hello"))
            with pytest.raises(ModelNotFound):
                client.get_model("nobody")
            for event in client.generate("m1", "hello", OPTIONS, request_id="mine"):
                if isinstance(event, Tokens):
                    break
            assert [worker.worker_id for worker in client.pool().workers] == ["w1"]
        with pytest.raises(Unavailable, match="closed"):
            client.list_models()

    await asyncio.to_thread(use)

    async def cancelled() -> bool:
        return (await Requests(pool.redis).peek(["mine"]))["mine"].state is RequestState.CANCELLED

    await eventually(cancelled, timeout_s=30)
