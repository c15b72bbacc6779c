"""Log probabilities over HTTP, as the `openai` package sees them."""

import asyncio
import math
from collections.abc import AsyncIterator

import openai
import pytest
from openai import AsyncOpenAI
from redis.asyncio import Redis

from fakes.http import HELLO, http_router, openai_client
from fakes.memory import SPEC, fake_memory
from fakes.worker import FakeWorker, fake_worker
from hekaton.facts import CatalogEntry, ModelState, Slo
from hekaton.store.catalog import Catalog
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.requests import Requests
from hekaton.v1 import common_pb2

FOX = "a🦊b".encode()


@pytest.fixture
async def teller(redis: Redis) -> AsyncIterator[FakeWorker]:
    """One that runs real models."""
    async with fake_worker(redis, device="cpu") as worker:
        yield worker


@pytest.fixture
async def telling(redis: Redis, redis_server: EmbeddedRedis, teller: FakeWorker) -> AsyncIterator[AsyncOpenAI]:
    """A client of a router that serves a model with probabilities, "real"."""
    await Catalog(redis).create(CatalogEntry("real", "", "", Slo(10.0, 0.1), ModelState.READY, SPEC))
    async with fake_memory(redis), http_router(redis, redis_server.url) as (_, address), openai_client(address) as one:
        yield one


async def tell(worker: FakeWorker, first: float = -0.5) -> None:
    """Answers with a fox, two tokens a step. Beside each token an x was likely; of the first, `first` is known."""
    request_id = await worker.take()
    await worker.produced.get()
    for start in range(0, len(FOX), 2):
        token_ids = FOX[start : start + 2]
        told = [
            common_pb2.TokenLogprobs(
                logprob=-0.5 if start + i else first,
                top=[common_pb2.TokenLogprob(token_id=one, logprob=p) for one, p in ((token_id, -0.5), (ord("x"), -2))],
            )
            for i, token_id in enumerate(token_ids)
        ]
        worker.step(request_id, start, list(token_ids), logprobs=told)
        await asyncio.sleep(0.01)
    worker.finish(request_id, len(FOX))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_tells_the_log_probability_of_each_token(
    telling: AsyncOpenAI, teller: FakeWorker, redis: Redis, stream: bool
) -> None:
    answering = asyncio.create_task(tell(teller))
    asked = {"model": "real", "messages": HELLO, "logprobs": True, "top_logprobs": 2, "stream": stream}
    reply = await telling.chat.completions.create(**asked, extra_body={"request_id": "mine"})  # type: ignore[call-overload]
    choices = [chunk.choices[0] async for chunk in reply] if stream else reply.choices
    await answering
    assert len([choice for choice in choices if choice.logprobs]) == (3 if stream else 1)
    content = [one for choice in choices if choice.logprobs for one in choice.logprobs.content]
    assert [one.token for one in content] == ["a", *"����", "b"]
    assert bytes(byte for one in content for byte in one.bytes) == FOX
    assert [one.logprob for one in content] == [-0.5] * len(FOX)
    assert [(top.token, top.bytes, top.logprob) for top in content[0].top_logprobs] == [
        ("a", [97], -0.5),
        ("x", [120], -2),
    ]
    stored = await Requests(redis).load("mine")
    assert stored is not None
    assert stored.summary.record.sampling.logprobs == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_text_tells_the_log_probability_of_each_token(
    telling: AsyncOpenAI, teller: FakeWorker, stream: bool
) -> None:
    answering = asyncio.create_task(tell(teller, first=math.nan))
    reply = await telling.completions.create(model="real", prompt="hello", logprobs=2, stream=stream)
    choices = (
        [chunk.choices[0] async for chunk in reply] if isinstance(reply, openai.AsyncStream) else list(reply.choices)
    )
    await answering
    told = [choice.logprobs for choice in choices if choice.logprobs]
    assert len(told) == (3 if stream else 1)
    assert [token for one in told for token in one.tokens or []] == ["a", *"����", "b"]
    assert [value for one in told for value in one.token_logprobs or []] == [None, *[-0.5] * 5]
    assert [offset for one in told for offset in one.text_offset or []] == [0, 1, 2, 2, 2, 2]
    assert [top for one in told for top in one.top_logprobs or []][-1] == {"b": -0.5, "x": -2}


async def test_log_probabilities_of_a_text_are_of_at_most_five_tokens(telling: AsyncOpenAI) -> None:
    for asked in (6, -1, True):
        with pytest.raises(openai.BadRequestError) as caught:
            await telling.completions.create(model="real", prompt="hello", logprobs=asked)
        assert caught.value.param == "logprobs"
