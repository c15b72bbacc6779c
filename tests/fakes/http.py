"""A router's HTTP API and its clients."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from openai import AsyncOpenAI
from redis.asyncio import Redis

from fakes.router import RouterClient, address_of, running_router
from hekaton.store.keys import Kind

KEY = "unused"


@asynccontextmanager
async def openai_client(address: str, api_key: str = KEY) -> AsyncIterator[AsyncOpenAI]:
    """The `openai` package's client of this address, which tries nothing twice."""
    async with AsyncOpenAI(base_url=f"http://{address}/v1", api_key=api_key, max_retries=0, timeout=20) as client:
        yield client


@asynccontextmanager
async def http_router(
    redis: Redis, url: str, auth: Literal["off", "keys"] = "off"
) -> AsyncIterator[tuple[RouterClient, str]]:
    """A router that serves; and the address of its HTTP API."""
    async with running_router(redis, url, http=True, auth=auth) as router:
        await router.until_serving()
        yield router, await address_of(redis, "router-1", Kind.HTTP)
