"""Tools as the Python client sees them."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from fakes.router import RouterClient, address_of
from fakes.tools import ARGUMENTS, CALL, OUTPUT
from fakes.worker import FakeWorker
from hekaton.chaos.proxy import Proxy
from hekaton.client import Chat, Client, Completion, Message, Tokens, Tool, ToolCall, ToolChoice
from hekaton.errors import InvalidArgument
from hekaton.facts import FinishReason
from hekaton.store.requests import Requests
from hekaton_router.tools.formats import call_id

WEATHER = Tool("get_weather", "What the weather is.", {"type": "object", "properties": {"city": {"type": "string"}}})
TIME = Tool("get_time")
ASKED = Message("user", "How is it in Paris?")


@pytest.fixture
async def proxy(redis: Redis, router: RouterClient) -> AsyncIterator[Proxy]:
    async with Proxy(await address_of(redis, "router-1")) as proxy:
        yield proxy


@pytest.fixture
async def native(proxy: Proxy) -> AsyncIterator[Client]:
    async with Client(proxy.address) as client:
        yield client


async def said(worker: FakeWorker, output: str) -> str:
    """The next request's answer."""
    request_id = await worker.take()
    await worker.produced.get()
    worker.step(request_id, 0, output.encode())
    worker.finish(request_id, len(output))
    return request_id


async def completed(client: Client, worker: FakeWorker, chat: Chat, output: str) -> tuple[Completion, str]:
    call = asyncio.create_task(client.complete("m", chat))
    request_id = await said(worker, output)
    return await call, request_id


async def test_calls_are_answered_and_their_answers_understood(
    native: Client, worker: FakeWorker, redis: Redis
) -> None:
    first, request_id = await completed(native, worker, Chat([ASKED], [WEATHER, TIME]), OUTPUT)
    looked = ToolCall(call_id(request_id, 0), "get_weather", ARGUMENTS)
    asked = ToolCall(call_id(request_id, 1), "get_time", "{}")
    assert (first.text, first.reason, first.tool_calls) == ("Let me look.\n", FinishReason.TOOL_CALLS, (looked, asked))
    answers = [Message("tool", "fine", tool_call_id=call.id, name=call.name) for call in first.tool_calls]
    talk = [ASKED, Message("assistant", first.text, first.tool_calls), *answers]
    second, request_id = await completed(native, worker, Chat(talk, [WEATHER, TIME]), "Fine.")
    assert (second.text, second.reason, second.tool_calls) == ("Fine.", FinishReason.STOP, ())
    stored = await Requests(redis).load(request_id)
    assert stored is not None
    assert f"<tool_call>{CALL}</tool_call>" in bytes(stored.prompt).decode()
    assert await native.count_tokens("m", Chat(talk, [WEATHER, TIME])) == len(stored.prompt)


async def test_a_call_that_a_broken_connection_cuts_through_comes_once(
    native: Client, proxy: Proxy, worker: FakeWorker
) -> None:
    cut, pieces = OUTPUT.index("ris"), list[str]()
    generation = native.generate("m", Chat([ASKED], [WEATHER, TIME]), resume_window_s=60)
    begun = asyncio.create_task(anext(generation))
    request_id = await worker.take()
    await worker.produced.get()
    await begun
    worker.step(request_id, 0, OUTPUT[:cut].encode())
    async for event in generation:
        if isinstance(event, Tokens):
            pieces += [delta.name + delta.arguments for delta in event.tool_calls]
            if event.first_index + len(event.token_ids) == cut:
                proxy.sever()
                worker.step(request_id, cut, OUTPUT[cut:].encode())
                worker.finish(request_id, len(OUTPUT))
    assert "".join(pieces) == f"get_weather{ARGUMENTS}get_time{{}}"


async def test_what_is_demanded_of_tools_reaches_the_router(native: Client, worker: FakeWorker) -> None:
    first, _ = await completed(native, worker, Chat([ASKED], [WEATHER], ToolChoice.NONE), OUTPUT)
    assert (first.text, first.tool_calls) == (OUTPUT, ())
    for choice, why in ((ToolChoice.REQUIRED, "emulated"), ("get_weather", "emulated"), ("other", "none of the tools")):
        with pytest.raises(InvalidArgument, match=why):
            await native.complete("m", Chat([ASKED], [WEATHER], choice))
    with pytest.raises(InvalidArgument, match=r"chat\.tools: an emulated"):
        await native.complete("m", Chat([ASKED], [Tool("f", strict=True)]))


async def test_a_model_is_registered_with_its_parser(native: Client, worker: FakeWorker) -> None:
    model = await native.register_model("other", "emulated:qwen2.5-7b", tool_parser="mistral")
    assert model.tool_parser == (await native.get_model("other")).tool_parser == "mistral"
    call = asyncio.create_task(native.complete("other", Chat([ASKED], [WEATHER], parallel_tool_calls=False)))
    output = f"[TOOL_CALLS] [{CALL}"
    await said(worker, output)
    assert [one.arguments for one in (await call).tool_calls] == [ARGUMENTS]
    with pytest.raises(InvalidArgument, match="tool_parser must be hermes, llama3, mistral, not 'pythonic'"):
        await native.register_model("another", "emulated:qwen2.5-7b", tool_parser="pythonic")
