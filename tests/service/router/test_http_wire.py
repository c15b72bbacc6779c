"""What goes over the connection to the HTTP API: frames, limits, bodies that are none, readers who stop."""

import asyncio
import json

import openai
import pytest
from openai import AsyncOpenAI
from starlette.responses import PlainTextResponse

from fakes.http import ANSWER, HELLO, answer, curl
from fakes.router import RouterClient
from fakes.worker import FakeWorker
from hekaton.config import RouterSettings
from hekaton.errors import InvalidArgument
from hekaton_router.http.server import serving_http


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
        ("/v1/models/none", (), 404, "no model is registered"),
    ],
)
async def test_whatever_else_is_sent_is_refused_in_the_same_shape(
    served: tuple[RouterClient, str],
    path: str,
    arguments: tuple[str, ...],
    status: int,
    says: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = await curl("--write-out", "\n%{http_code}", *arguments, f"http://{served[1]}{path}")
    body, _, code = said.rpartition("\n")
    assert int(code) == status
    assert says in json.loads(body)["error"]["message"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"], "nothing has failed here"


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
        said = said[-16:] + await asyncio.wait_for(reader.read(1 << 16), 60)
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "nowhere", "127.0.0.1:x", "127.0.0.1:99999"])
async def test_an_address_that_is_not_meant_to_be_is_refused(listen: str) -> None:
    settings = RouterSettings(redis_url="redis://unused", http_listen=listen)
    with pytest.raises(InvalidArgument, match="listen"):
        async with serving_http(settings, PlainTextResponse()):
            pass
