"""Calls of tools over the native API: shown, read, refused, and told once, whatever happens to the connection."""

import asyncio
import re

import pytest
from redis.asyncio import Redis

from fakes.router import RouterClient, Stream, running_router
from fakes.tools import ARGUMENTS, OUTPUT, TIME, WEATHER, chat, joined
from fakes.worker import FakeWorker
from hekaton.errors import InvalidArgument
from hekaton.facts import token_crc
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.requests import Requests
from hekaton.v1 import common_pb2
from hekaton.v1 import inference_pb2 as pb
from hekaton_router.tools.formats import call_id

KEPT = pb.GenerateRequest(model="m", chat=chat(WEATHER, TIME), request_id="kept", on_disconnect=pb.ON_DISCONNECT_KEEP)


async def said(router: RouterClient, worker: FakeWorker, request: pb.GenerateRequest, output: str) -> Stream:
    """A stream, and a worker that says this, a few bytes at a time."""
    stream = router.generate(request)
    request_id = await worker.take()
    await worker.produced.get()
    for first in range(0, len(output), 7):
        worker.step(request_id, first, list(output[first : first + 7].encode()))
        await asyncio.sleep(0)
    worker.finish(request_id, len(output))
    return stream


async def prompt_of(redis: Redis, request_id: str) -> str:
    stored = await Requests(redis).load(request_id)
    assert stored is not None
    return bytes(stored.prompt).decode()


async def test_a_model_is_shown_tools_and_its_calls_are_read(
    router: RouterClient, worker: FakeWorker, redis: Redis
) -> None:
    stream = await said(router, worker, KEPT, OUTPUT)
    finished = await stream.finished()
    assert finished.reason == common_pb2.FINISH_REASON_TOOL_CALLS
    assert finished.stats.completion_tokens == len(OUTPUT)
    assert stream.text == "Let me look.\n"
    (first, *looked), (second, *asked) = joined(stream.tool_calls)
    assert (looked, asked) == (["get_weather", ARGUMENTS], ["get_time", "{}"])
    assert first != second
    assert '"name": "get_weather", "description": "What the weather is."' in await prompt_of(redis, "kept")


async def test_a_conversation_with_calls_and_answers_is_rendered(
    router: RouterClient, worker: FakeWorker, redis: Redis
) -> None:
    request = pb.GenerateRequest(model="m", chat=chat(WEATHER), request_id="kept")
    call = pb.ToolCall(id="1", name="get_weather", arguments=ARGUMENTS)
    request.chat.messages.add(role="assistant", tool_calls=[call])
    request.chat.messages.add(role="tool", content="sunny", tool_call_id="1", name="get_weather")
    stream = await said(router, worker, request, "It is sunny.")
    assert (await stream.finished()).reason == common_pb2.FINISH_REASON_STOP
    assert (stream.text, stream.tool_calls) == ("It is sunny.", [])
    called = f'assistant: <tool_call>{{"name": "get_weather", "arguments": {ARGUMENTS}}}</tool_call>'
    assert f"{called}\ntool: sunny\nassistant:" in await prompt_of(redis, "kept")


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_call_that_the_break_cuts_through_is_told_once(
    redis: Redis, redis_server: EmbeddedRedis, router: RouterClient, worker: FakeWorker, elsewhere: bool
) -> None:
    known = OUTPUT.index("ris")
    async with running_router(redis, redis_server.url, "router-2") as other:
        await other.until_serving()
        first = router.generate(KEPT)
        await worker.take()
        await worker.produced.get()
        worker.step("kept", 0, OUTPUT[:known].encode())
        await first.until(known)
        assert joined(first.tool_calls)[0][1:] == ("get_weather", '{"city": "Pa')
        first.call.cancel()
        again = Stream((other if elsewhere else router).inference.Resume(resuming(first, known), timeout=60))
        await again.accepted()
        again.token_ids = list(OUTPUT[:known].encode())
        if elsewhere:
            await asyncio.wait_for(worker.produced.get(), 30)
            worker.step("kept", 0, OUTPUT[:known].encode())
        worker.step("kept", known, OUTPUT[known:].encode())
        worker.finish("kept", len(OUTPUT))
        assert (await again.finished()).reason == common_pb2.FINISH_REASON_TOOL_CALLS
        assert [delta.arguments for delta in again.tool_calls] == ['ris"}', "{}"]
        (looked, *_), (asked, *_) = joined([*first.tool_calls, *again.tool_calls])
        assert (looked, asked) == (call_id("kept", 0), call_id("kept", 1))


def resuming(has: Stream, known: int) -> pb.ResumeRequest:
    return pb.ResumeRequest(
        request_id="kept",
        next_index=known,
        token_crc=token_crc(OUTPUT[:known].encode()),
        text_chars=len(has.text),
        tool_call_chars=sum(len(delta.name) + len(delta.arguments) for delta in has.tool_calls),
    )


async def test_where_one_call_is_enough_the_output_ends_with_it(router: RouterClient, worker: FakeWorker) -> None:
    stream = router.generate(pb.GenerateRequest(model="m", chat=chat(WEATHER, TIME, parallel=False)))
    request_id = await worker.take()
    await worker.produced.get()
    worker.step(request_id, 0, OUTPUT.encode())
    stop = await asyncio.wait_for(worker.stopped.get(), 30)
    end = OUTPUT.index("}}") + 2
    assert (stop.request_id, stop.tokens) == (request_id, end)
    worker.finish(request_id, end)
    finished = await stream.finished()
    assert (finished.reason, finished.stats.completion_tokens) == (common_pb2.FINISH_REASON_TOOL_CALLS, end)
    assert [call[1:] for call in joined(stream.tool_calls)] == [("get_weather", ARGUMENTS)]


async def test_a_model_that_may_call_nothing_is_told_of_nothing(
    router: RouterClient, worker: FakeWorker, redis: Redis
) -> None:
    none = pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_NONE)
    request = pb.GenerateRequest(model="m", chat=chat(WEATHER, choice=none), request_id="kept")
    stream = await said(router, worker, request, OUTPUT)
    assert (await stream.finished()).reason == common_pb2.FINISH_REASON_STOP
    assert (stream.text, stream.tool_calls) == (OUTPUT, [])
    assert await prompt_of(redis, "kept") == "user: How is it in Paris?\nassistant:"


async def test_tools_count_as_tokens_of_the_prompt(router: RouterClient) -> None:
    plain, shown = [
        await router.inference.CountTokens(pb.CountTokensRequest(model="m", chat=one)) for one in (chat(), chat(TIME))
    ]
    assert shown.tokens > plain.tokens + len("get_time")


REFUSED = [
    (chat(pb.Tool(name="a b")), r"chat\.tools\[0\]\.name"),
    (chat(pb.Tool(name="f", parameters="[]")), r"chat\.tools\[0\]\.parameters must be a JSON object"),
    (chat(pb.Tool(name="f", parameters="{")), r"chat\.tools\[0\]\.parameters must be a JSON object"),
    (chat(pb.Tool(name="f", parameters='{"a": "\\ud800"}')), r"chat\.tools\[0\]\.parameters must be a JSON object"),
    (chat(pb.Tool(name="f", parameters='{"a":' * 9999)), r"chat\.tools\[0\]\.parameters may have"),
    (chat(pb.Tool(name="f", parameters='{"a":' * 3000)), r"chat\.tools\[0\]\.parameters must be a JSON object"),
    (chat(pb.Tool(name="f", parameters=" " * 16385)), r"chat\.tools\[0\]\.parameters may have at most 16384 bytes"),
    (chat(pb.Tool(name="f", description="x" * 8193)), r"chat\.tools\[0\]\.description"),
    (chat(TIME, TIME), r"chat\.tools: two of them"),
    (chat(*(pb.Tool(name=f"f{index}") for index in range(129))), r"chat\.tools may hold at most 128"),
    (chat(*(pb.Tool(name=f"f{i}", parameters="{}" + " " * 16000) for i in range(5))), r"chat\.tools: .* 65536 bytes"),
    (chat(TIME, choice=pb.ToolChoice(name="other")), r"chat\.tool_choice names 'other'"),
    (chat(TIME, choice=pb.ToolChoice(mode=9)), r"chat\.tool_choice: there is no mode 9"),  # type: ignore[arg-type]
    (chat(choice=pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_AUTO)), r"chat\.tool_choice is only allowed with tools"),
    (chat(parallel=True), r"chat\.parallel_tool_calls is only allowed with tools"),
    (chat(TIME, choice=pb.ToolChoice(name="get_time")), r"chat\.tool_choice: an emulated model"),
    (chat(pb.Tool(name="f", strict=True)), r"chat\.tools: an emulated model"),
]
CALLED = pb.ToolCall(id="1", name="f", arguments="{}")
MESSAGES = [
    (pb.ChatMessage(role="user", tool_calls=[CALLED]), r"chat\.messages\[0\]\.tool_calls are of the role assistant"),
    (pb.ChatMessage(role="user", tool_call_id="1"), r"chat\.messages\[0\]\.tool_call_id is of the role tool"),
    (pb.ChatMessage(role="user", name="ada"), r"chat\.messages\[0\]\.name is of the role tool"),
    (pb.ChatMessage(role="tool"), r"chat\.messages\[0\]\.tool_call_id must have 1 to 128"),
    (
        pb.ChatMessage(role="assistant", tool_calls=[CALLED, pb.ToolCall(id="2", name="f", arguments="1")]),
        r"chat\.messages\[0\]\.tool_calls\[1\]\.arguments must be a JSON object",
    ),
    (
        pb.ChatMessage(role="assistant", tool_calls=[pb.ToolCall(name="f", arguments="{}")]),
        r"chat\.messages\[0\]\.tool_calls\[0\]\.id must have",
    ),
]


async def test_what_cannot_be_asked_of_tools_is_refused_by_its_field(router: RouterClient) -> None:
    asked = [*REFUSED, *((pb.ChatPrompt(messages=[message]), field) for message, field in MESSAGES)]
    for prompt, field in asked:
        error = await router.generate(pb.GenerateRequest(model="m", chat=prompt)).error()
        assert isinstance(error, InvalidArgument), field
        assert re.match(field, error.message), error.message
