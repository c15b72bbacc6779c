"""A router's HTTP API, its clients, and a worker's answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from openai import AsyncOpenAI
from redis.asyncio import Redis

from fakes.router import RouterClient, address_of, running_router
from fakes.worker import FakeWorker
from hekaton.store.keys import Kind

KEY = "unused"
HELLO = [{"role": "user", "content": "hello"}]
ANSWER = b"good morning"


@asynccontextmanager
async def openai_client(address: str, api_key: str = KEY) -> AsyncIterator[AsyncOpenAI]:
    """The `openai` package's client of this address, which tries nothing twice."""
    async with AsyncOpenAI(base_url=f"http://{address}/v1", api_key=api_key, max_retries=0, timeout=60) as client:
        yield client


@asynccontextmanager
async def http_router(
    redis: Redis, url: str, auth: Literal["off", "keys"] = "off"
) -> AsyncIterator[tuple[RouterClient, str]]:
    """A router that serves; and the address of its HTTP API."""
    async with running_router(redis, url, http=True, auth=auth) as router:
        await router.until_serving()
        yield router, await address_of(redis, "router-1", Kind.HTTP)


async def answer(worker: FakeWorker, text: bytes = ANSWER, step: int = 5) -> str:
    """Takes the next request and answers it in steps of a few bytes, which are its tokens."""
    request_id = await worker.take()
    await worker.produced.get()
    for first in range(0, len(text), step):
        worker.step(request_id, first, list(text[first : first + step]))
        await asyncio.sleep(0.01)
    worker.finish(request_id, len(text))
    return request_id


async def curl(*arguments: str) -> str:
    """What curl prints."""
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--no-buffer", "--max-time", "60", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return output.decode()
