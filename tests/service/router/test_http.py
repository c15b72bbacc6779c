"""The HTTP API as the `openai` package and curl see it."""

import asyncio
import json
import math
from collections.abc import AsyncIterator

import openai
import pytest
from openai import AsyncOpenAI
from redis.asyncio import Redis
from starlette.responses import PlainTextResponse

from fakes.http import http_router, openai_client
from fakes.memory import SPEC, fake_memory
from fakes.router import RouterClient, eventually
from fakes.worker import FakeWorker, fake_worker
from hekaton.config import RouterSettings
from hekaton.errors import InvalidArgument, NoWorker, WorkerLost
from hekaton.facts import CatalogEntry, ModelState, RequestState, Slo
from hekaton.store.catalog import Catalog
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.requests import Requests
from hekaton.v1 import common_pb2
from hekaton_router.http.server import serving_http

HELLO = [{"role": "user", "content": "hello"}]
ANSWER = b"good morning"


@pytest.fixture
async def served(
    redis: Redis, redis_server: EmbeddedRedis, model: CatalogEntry, worker: FakeWorker
) -> AsyncIterator[tuple[RouterClient, str]]:
    async with http_router(redis, redis_server.url) as served:
        yield served


@pytest.fixture
async def client(served: tuple[RouterClient, str]) -> AsyncIterator[AsyncOpenAI]:
    async with openai_client(served[1]) as client:
        yield client


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
        "curl", "--silent", "--no-buffer", "--max-time", "10", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return output.decode()


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
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"response_format": {"type": "json_object"}}, "response_format.type"),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": 2}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"store": True}, "store"),
    ({"extra_body": {"slo": {"ttft_s": -1}}}, "slo.ttft_s"),
    ({"extra_body": {"request_id": "no spaces"}}, "request_id"),
    ({"extra_body": {"anything": 1}}, "anything"),
]


async def test_every_field_that_is_not_honoured_is_refused_by_name(client: AsyncOpenAI) -> None:
    for fields, param in BAD:
        error = await refused(client, **fields)
        assert isinstance(error, openai.BadRequestError), fields
        assert (error.type, error.param or "") == ("invalid_request_error", param), error.message
        assert param.split("[")[0] in error.message


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


async def test_the_stream_is_framed_as_server_sent_events(served: tuple[RouterClient, str], worker: FakeWorker) -> None:
    answering = asyncio.create_task(answer(worker))
    body = json.dumps({"model": "m", "messages": HELLO, "stream": True})
    url = f"http://{served[1]}/v1/chat/completions"
    said = await curl("--include", "-H", "Content-Type: application/json", "-d", body, url)
    await answering
    head, _, stream = said.replace("\r\n", "\n").partition("\n\n")
    assert head.startswith("HTTP/1.1 200")
    assert "content-type: text/event-stream" in head
    assert stream.endswith("data: [DONE]\n\n")
    events = stream.removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") for event in events)
    pieces = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events[:-1]]
    assert "".join(piece["delta"].get("content", "") for piece in pieces) == ANSWER.decode()
    assert [piece["finish_reason"] for piece in pieces if piece["finish_reason"]] == ["stop"]


@pytest.mark.parametrize(
    ("path", "arguments", "status", "says"),
    [
        ("/v1/completions", ("-H", "Content-Type: text/plain", "-d", "{}"), 400, "Content-Type: application/json"),
        ("/v1/completions", ("-H", "Content-Type: application/json", "-d", "{"), 400, "no JSON"),
        ("/v1/completions", ("-H", "Content-Type: application/json", "-d", '{"model": "\\ud800"}'), 400, "no JSON"),
        ("/v1/completions", ("-H", "Content-Type: application/json", "-d", "[" * 10_000), 400, "no JSON"),
        ("/v1/completions", ("-H", "Content-Type: application/json", "-d", "[]"), 400, "JSON object"),
        ("/v1/completions", (), 405, "GET /v1/completions"),
        ("/v1/embeddings", (), 404, "/openapi.json"),
    ],
)
async def test_whatever_else_is_sent_is_refused_in_the_same_shape(
    served: tuple[RouterClient, str], path: str, arguments: tuple[str, ...], status: int, says: str
) -> None:
    said = await curl("--write-out", "\n%{http_code}", *arguments, f"http://{served[1]}{path}")
    body, _, code = said.rpartition("\n")
    assert int(code) == status
    assert says in json.loads(body)["error"]["message"]


async def test_a_body_beyond_the_limit_is_refused(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="at most 4194304 bytes"):
        await client.completions.create(model="m", prompt="x" * (4 << 20))


async def test_the_openapi_document_names_every_route_and_field(served: tuple[RouterClient, str]) -> None:
    document = json.loads(await curl(f"http://{served[1]}/openapi.json"))
    assert set(document["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/v1/models/{model}",
        "/health",
        "/ready",
    }
    chat = document["components"]["schemas"]["ChatCompletion"]
    assert chat["additionalProperties"] is False
    assert {"messages", "model"} == set(chat["required"])
    named = json.dumps(document)
    references = {part.split('"')[0] for part in named.split("#/components/schemas/")[1:]}
    assert references <= set(document["components"]["schemas"])


async def test_a_reader_who_stops_holds_up_nobody_else(
    client: AsyncOpenAI, served: tuple[RouterClient, str], worker: FakeWorker
) -> None:
    host, port = served[1].split(":")
    body = json.dumps({"model": "m", "prompt": "hello", "stream": True, "max_tokens": 4000})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 10)
    writer.write(f"{head}\r\n\r\n{body}".encode())
    slow_id = await worker.take()
    await worker.produced.get()
    for first in range(600):
        worker.step(slow_id, first, b"x")
    answering = asyncio.create_task(answer(worker))
    reply = await client.completions.create(model="m", prompt="hello")
    await answering
    assert reply.choices[0].text == ANSWER.decode()
    worker.finish(slow_id, 600)
    said = b""
    while b"[DONE]" not in said:
        said = said[-16:] + await asyncio.wait_for(reader.read(1 << 16), 10)
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "nowhere", "127.0.0.1:x", "127.0.0.1:99999"])
async def test_an_address_that_is_not_meant_to_be_is_refused(listen: str) -> None:
    settings = RouterSettings(redis_url="redis://unused", http_listen=listen)
    with pytest.raises(InvalidArgument, match="listen"):
        async with serving_http(settings, PlainTextResponse()):
            pass


async def test_several_answers_come_as_choices(client: AsyncOpenAI, worker: FakeWorker) -> None:
    call = asyncio.create_task(client.completions.create(model="m", prompt="hello", n=2))
    for _ in range(2):
        await answer(worker)
    reply = await call
    assert [(choice.index, choice.text) for choice in reply.choices] == [(0, ANSWER.decode()), (1, ANSWER.decode())]
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 2 * len(ANSWER)


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
