"""Tools over HTTP, as the `openai` package uses them."""

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, pydantic_function_tool
from pydantic import BaseModel
from redis.asyncio import Redis

from fakes.http import answer
from fakes.tools import ARGUMENTS, CALL, OUTPUT, SCHEMA
from fakes.worker import FakeWorker
from hekaton.store.requests import Requests
from hekaton_router.tools.formats import call_id

QUESTION = {"role": "user", "content": "How is it in Paris?"}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": json.loads(SCHEMA)}}
TIME = {"type": "function", "function": {"name": "get_time"}}
ASK: dict[str, Any] = {"model": "m", "messages": [QUESTION], "tools": [WEATHER, TIME]}


async def test_calls_come_with_the_answer_and_go_back_with_what_they_gave(
    client: AsyncOpenAI, worker: FakeWorker, redis: Redis
) -> None:
    create: Any = client.chat.completions.create
    answering = asyncio.create_task(answer(worker, OUTPUT.encode()))
    (choice,) = (await create(**ASK)).choices
    request_id = await answering
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look.\n"
    looked, asked = choice.message.tool_calls
    assert (looked.type, looked.function.name, looked.function.arguments) == ("function", "get_weather", ARGUMENTS)
    assert (asked.function.name, asked.function.arguments) == ("get_time", "{}")
    assert (looked.id, asked.id) == (call_id(request_id, 0), call_id(request_id, 1))
    given = [{"role": "tool", "tool_call_id": call.id, "content": "fine"} for call in (looked, asked)]
    # As a message object, and as what it dumps to, nulls and all.
    for said in (choice.message, {**choice.message.model_dump(), "content": None}):
        answering = asyncio.create_task(answer(worker, b"Fine."))
        (choice,) = (await create(**{**ASK, "messages": [QUESTION, said, *given]})).choices
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("Fine.", None, "stop")
        stored = await Requests(redis).load(await answering)
        assert stored is not None
        assert f"<tool_call>{CALL}</tool_call>" in bytes(stored.prompt).decode()
        assert bytes(stored.prompt).decode().endswith("tool: fine\ntool: fine\nassistant:")


async def test_calls_stream_as_they_are_written(client: AsyncOpenAI, worker: FakeWorker) -> None:
    answering = asyncio.create_task(answer(worker, OUTPUT.encode(), 3))
    stream: Any = await client.chat.completions.create(**ASK, stream=True)
    text, calls, reasons, pieces = "", {}, [], 0
    async for chunk in stream:
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        reasons += [choice.finish_reason] * bool(choice.finish_reason)
        for delta in choice.delta.tool_calls or ():
            pieces += bool(delta.function.arguments)
            if delta.id:
                assert delta.type == "function"
                calls[delta.index] = [delta.id, delta.function.name, ""]
            calls[delta.index][2] += delta.function.arguments
    request_id = await answering
    assert (text, reasons) == ("Let me look.\n", ["tool_calls"])
    assert list(calls.values()) == [
        [call_id(request_id, 0), "get_weather", ARGUMENTS],
        [call_id(request_id, 1), "get_time", "{}"],
    ]
    assert pieces > 4


class GetWeather(BaseModel):
    city: str


async def test_the_packages_own_stream_helper_understands_the_deltas(client: AsyncOpenAI, worker: FakeWorker) -> None:
    answering = asyncio.create_task(answer(worker, OUTPUT.encode()))
    async with client.chat.completions.stream(**ASK) as stream:
        done = [event.name async for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = await stream.get_final_completion()
    await answering
    assert done == ["get_weather", "get_time"]
    assert final.choices[0].message.tool_calls is not None
    assert [call.function.arguments for call in final.choices[0].message.tool_calls] == [ARGUMENTS, "{}"]


async def test_several_answers_have_calls_of_their_own(client: AsyncOpenAI, worker: FakeWorker) -> None:
    create: Any = client.chat.completions.create
    call = asyncio.create_task(create(**ASK, n=2))
    for _ in range(2):
        await answer(worker, f"<tool_call>{CALL}</tool_call>".encode())
    choices = (await call).choices
    assert [choice.message.content for choice in choices] == [None, None]
    ids = {choice.message.tool_calls[0].id for choice in choices}
    assert len(ids) == 2


async def test_where_no_call_is_wanted_the_model_is_told_of_none(
    client: AsyncOpenAI, worker: FakeWorker, redis: Redis
) -> None:
    create: Any = client.chat.completions.create
    answering = asyncio.create_task(answer(worker, OUTPUT.encode()))
    (choice,) = (await create(**ASK, tool_choice="none")).choices
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (OUTPUT, None, "stop")
    stored = await Requests(redis).load(await answering)
    assert stored is not None
    assert bytes(stored.prompt) == b"user: How is it in Paris?\nassistant:"


async def test_one_call_may_be_all(client: AsyncOpenAI, worker: FakeWorker) -> None:
    create: Any = client.chat.completions.create
    answering = asyncio.create_task(answer(worker, OUTPUT.encode()))
    reply = await create(**ASK, parallel_tool_calls=False)
    await answering
    (choice,) = reply.choices
    assert [call.function.name for call in choice.message.tool_calls] == ["get_weather"]
    assert choice.finish_reason == "tool_calls"
    assert reply.usage.completion_tokens < len(OUTPUT)


CALLED = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BAD: list[tuple[dict[str, object], str]] = [
    ({"tools": []}, "tools"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {"name": "f", "more": 1}}]}, "tools[0].function.more"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": "{}"}}]}, "tools[0].function.parameters"),
    ({"tools": [TIME, TIME]}, "tools"),
    ({"tools": [pydantic_function_tool(GetWeather)]}, "tools"),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": None, "tool_choice": "auto"}, "tool_choice"),
    ({"tools": None, "parallel_tool_calls": True}, "parallel_tool_calls"),
    ({"messages": [{**QUESTION, "name": "ada"}]}, "messages[0].name"),
    ({"messages": [{**QUESTION, "tool_calls": [CALLED]}]}, "messages[0].tool_calls"),
    ({"messages": [QUESTION, {"role": "tool", "content": "1"}]}, "messages[1].tool_call_id"),
    ({"messages": [{"role": "assistant", "tool_calls": [{**CALLED, "id": ""}]}]}, "messages[0].tool_calls[0].id"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{**CALLED, "function": {"name": "f", "arguments": "1"}}]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
]


async def test_what_cannot_be_asked_is_refused_by_its_field(client: AsyncOpenAI) -> None:
    create: Any = client.chat.completions.create
    for fields, param in BAD:
        with pytest.raises(openai.BadRequestError) as refused:
            await create(**{**ASK, **fields})
        assert refused.value.param == param, refused.value.message
