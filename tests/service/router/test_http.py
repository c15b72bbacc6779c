"""The HTTP API as the `openai` package and curl see it."""

import asyncio

import openai
import pytest
from openai import AsyncOpenAI
from redis.asyncio import Redis

from fakes.http import ANSWER, HELLO, answer, curl
from fakes.router import RouterClient, eventually
from fakes.worker import FakeWorker
from hekaton.errors import NoWorker, WorkerLost
from hekaton.facts import RequestState, Slo
from hekaton.store.requests import Requests


async def refused(client: AsyncOpenAI, **fields: object) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(**{"model": "m", "messages": HELLO, **fields})  # type: ignore[call-overload]
    return caught.value


async def test_a_chat_is_answered_whole_with_its_usage(client: AsyncOpenAI, worker: FakeWorker, redis: Redis) -> None:
    answering = asyncio.create_task(answer(worker))
    reply = await client.chat.completions.create(
        model="m",
        messages=[
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
        ],
        temperature=0,
        max_completion_tokens=50,
        seed=7,
        user="ada",
    )
    request_id = await answering
    assert reply.choices[0].message.content == ANSWER.decode()
    assert (reply.choices[0].finish_reason, reply.model, reply.id) == ("stop", "m", f"chatcmpl-{request_id}")
    assert reply._request_id == request_id
    stored = await Requests(redis).load(request_id)
    assert stored is not None
    prompt = b"system: be kind\nuser: hello\nassistant:"
    assert bytes(stored.prompt) == prompt
    assert (stored.summary.record.sampling.max_tokens, stored.summary.record.sampling.seed) == (50, 7)
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (len(prompt), len(ANSWER))


async def test_a_chat_streams_and_says_its_usage_last(client: AsyncOpenAI, worker: FakeWorker) -> None:
    answering = asyncio.create_task(answer(worker))
    stream = await client.chat.completions.create(
        model="m", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )  # type: ignore[call-overload]
    chunks = [chunk async for chunk in stream]
    await answering
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in chunks[1:-2]]
    assert len(pieces) > 1
    assert "".join(pieces) == ANSWER.decode()
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(ANSWER)


async def test_every_chunk_tells_the_usage_so_far_if_asked_to(client: AsyncOpenAI, worker: FakeWorker) -> None:
    answering = asyncio.create_task(answer(worker))
    options = {"continuous_usage_stats": True}
    stream = await client.completions.create(model="m", prompt="hello", stream=True, stream_options=options)  # type: ignore[call-overload]
    counts = [chunk.usage.completion_tokens async for chunk in stream]
    await answering
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == len(ANSWER)


@pytest.mark.parametrize("prompt", ["hello", list(b"hello")])
async def test_a_text_is_completed_whole_and_streamed(
    client: AsyncOpenAI, worker: FakeWorker, prompt: str | list[int]
) -> None:
    answering = asyncio.create_task(answer(worker))
    reply = await client.completions.create(model="m", prompt=prompt)
    await answering
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == (ANSWER.decode(), "stop")
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == len("hello")
    answering = asyncio.create_task(answer(worker))
    chunks = [one async for one in await client.completions.create(model="m", prompt=prompt, stream=True)]
    await answering
    assert "".join(chunk.choices[0].text for chunk in chunks) == ANSWER.decode()


async def test_hekatons_own_fields_reach_the_record(client: AsyncOpenAI, worker: FakeWorker, redis: Redis) -> None:
    own = {
        "slo": {"ttft_s": 3, "tbt_s": 0.5},
        "deadline_s": 9,
        "request_id": "mine",
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.5,
        "min_tokens": 2,
        "stop_token_ids": [3],
        "ignore_eos": True,
    }
    answering = asyncio.create_task(answer(worker))
    await client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "hello"}],
        top_p=0.5,
        presence_penalty=0.25,
        frequency_penalty=0.75,
        logit_bias={"7": 2},
        stop=["!"],
        extra_body=own,
    )
    assert await answering == "mine"
    stored = await Requests(redis).load("mine")
    assert stored is not None
    record = stored.summary.record
    assert (record.slo.ttft_s, record.slo.tbt_s) == (3, 0.5)
    assert 8 < record.deadline_s <= 9
    sampling = record.sampling
    assert (sampling.top_k, sampling.repetition_penalty, sampling.min_tokens) == (5, 1.5, 2)
    assert sampling.min_p == pytest.approx(0.1)
    assert sampling.top_p == 0.5
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.25, 0.75)
    assert (sampling.stop_token_ids, sampling.stop, sampling.logit_bias) == ((3,), ("!",), {7: 2.0})
    assert sampling.temperature == 1.0


BAD: list[tuple[dict[str, object], str]] = [
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"n": 0}, "n"),
    ({"seed": -1}, "seed"),
    ({"logit_bias": {"x": 1}}, "logit_bias.x"),
    ({"stream_options": {"include_usage": True}}, ""),
    ({"max_tokens": 1, "max_completion_tokens": 1}, ""),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "x", "name": "ada"}]}, "messages[0].name"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
    ({"response_format": {"type": "grammar"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "text", "json_schema": {"name": "a", "schema": {}}}}, "response_format"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
        "response_format.json_schema.name",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": "{}"}}},
        "response_format.json_schema.schema",
    ),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": 2}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"store": True}, "store"),
    ({"extra_body": {"slo": {"ttft_s": -1}}}, "slo.ttft_s"),
    ({"extra_body": {"slo": {"class": "soon"}}}, "slo.class"),
    ({"extra_body": {"slo": {"class": "batch", "ttft_s": 1, "tbt_s": 1}}}, "slo"),
    ({"extra_body": {"request_id": "no spaces"}}, "request_id"),
    ({"extra_body": {"anything": 1}}, "anything"),
]


async def test_every_field_that_is_not_honoured_is_refused_by_name(client: AsyncOpenAI) -> None:
    for fields, param in BAD:
        error = await refused(client, **fields)
        assert isinstance(error, openai.BadRequestError), fields
        assert (error.type, error.param or "") == ("invalid_request_error", param), error.message
        assert param.split("[")[0] in error.message


async def test_a_class_says_how_urgent_a_request_is(client: AsyncOpenAI, worker: FakeWorker, redis: Redis) -> None:
    answering = asyncio.create_task(answer(worker))
    own = {"request_id": "patient", "slo": {"class": "batch", "tbt_s": 0.25}}
    await client.completions.create(model="m", prompt="hello", extra_body=own)
    await answering
    stored = await Requests(redis).load("patient")
    assert stored is not None
    assert stored.summary.record.slo == Slo(300.0, 0.25)


async def test_an_emulated_model_follows_no_schema(client: AsyncOpenAI) -> None:
    error = await refused(client, response_format={"type": "json_object"})
    assert isinstance(error, openai.BadRequestError)
    assert error.param == "response_format"
    assert "emulated" in error.message


async def test_a_field_that_is_null_was_not_sent(client: AsyncOpenAI, worker: FakeWorker) -> None:
    answering = asyncio.create_task(answer(worker))
    await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "hello"}], extra_body={"tools": None, "seed": None}
    )
    await answering


async def test_an_unknown_model_is_not_found(client: AsyncOpenAI) -> None:
    error = await refused(client, model="nobody")
    assert isinstance(error, openai.NotFoundError)
    assert (error.code, error.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nobody")


async def test_models_are_listed(client: AsyncOpenAI) -> None:
    assert [one.id async for one in client.models.list()] == ["m"]
    assert (await client.models.retrieve("m")).owned_by == "hekaton"


async def test_what_may_pass_says_when_to_try_again(
    client: AsyncOpenAI, served: tuple[RouterClient, str], worker: FakeWorker
) -> None:
    await worker.leave()
    await served[0].until_serving(False)
    error = await refused(client)
    assert (error.status_code, error.code) == (503, NoWorker.reason.lower())
    assert error.response.headers["retry-after"] == "1"
    assert (await curl(f"http://{served[1]}/ready")) == "not ready"
    assert (await curl(f"http://{served[1]}/health")) == "ok"


async def test_a_failure_before_the_first_token_has_its_own_status(client: AsyncOpenAI, worker: FakeWorker) -> None:
    async def fail() -> None:
        worker.fail(await worker.take(), WorkerLost("lost: send it again"))

    failing = asyncio.create_task(fail())
    error = await refused(client)
    await failing
    assert (error.status_code, error.code, error.type) == (503, "worker_lost", "server_error")


async def test_a_failure_in_mid_stream_is_an_event(client: AsyncOpenAI, worker: FakeWorker) -> None:
    async def fail() -> None:
        request_id = await worker.take()
        await worker.produced.get()
        worker.step(request_id, 0, list(b"half"))
        worker.fail(request_id, WorkerLost("lost: send it again"))

    failing = asyncio.create_task(fail())
    stream = await client.completions.create(model="m", prompt="hello", stream=True)
    with pytest.raises(openai.APIError, match="lost: send it again"):
        [chunk async for chunk in stream]
    await failing


@pytest.mark.parametrize("streamed", [True, False])
async def test_closing_the_connection_ends_the_work(
    client: AsyncOpenAI, worker: FakeWorker, redis: Redis, streamed: bool
) -> None:
    call = asyncio.create_task(client.completions.create(model="m", prompt="hello", stream=streamed))
    request_id = await worker.take()
    await worker.produced.get()
    if streamed:
        worker.step(request_id, 0, [104])
        stream = await call
        assert isinstance(stream, openai.AsyncStream)
        await anext(aiter(stream))
        await stream.close()
    else:
        call.cancel()
    assert await asyncio.wait_for(worker.cancelled.get(), 30) == request_id

    async def state() -> RequestState:
        return (await Requests(redis).peek([request_id]))[request_id].state

    await eventually(state, lambda state: state is RequestState.CANCELLED)


async def test_several_answers_come_as_choices(client: AsyncOpenAI, worker: FakeWorker) -> None:
    call = asyncio.create_task(client.completions.create(model="m", prompt="hello", n=2))
    for _ in range(2):
        await answer(worker)
    reply = await call
    assert [(choice.index, choice.text) for choice in reply.choices] == [(0, ANSWER.decode()), (1, ANSWER.decode())]
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 2 * len(ANSWER)
