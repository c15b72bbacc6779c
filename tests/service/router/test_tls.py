"""The public APIs over TLS, as the `openai` package, curl and the gRPC client use them."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionUserMessageParam
from redis.asyncio import Redis

from fakes.router import address_of, running_router
from fakes.tls import certificates, replace
from fakes.tools import OUTPUT
from fakes.worker import FakeWorker
from hekaton.client import Client, ClientTls
from hekaton.config import RouterSettings
from hekaton.errors import InvalidArgument, Unavailable
from hekaton.facts import CatalogEntry
from hekaton.rpc.tls import CertificateFiles
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.keys import Kind

ANSWER = b"good morning"
HELLO = ChatCompletionUserMessageParam(role="user", content="hello")
TOOL: Any = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    return certificates(tmp_path / "public")


@asynccontextmanager
async def router_over_tls(
    redis: Redis, url: str, files: CertificateFiles, client_ca: Path | None = None
) -> AsyncIterator[tuple[str, str]]:
    """Its addresses for gRPC and for HTTP."""
    more = {"public_tls_cert": files.cert, "public_tls_key": files.key, "public_tls_client_ca": client_ca}
    async with running_router(redis, url, http=True, more=more, tls=ClientTls(files.ca, files.cert, files.key)) as one:
        await one.until_serving()
        yield await address_of(redis, "router-1"), await address_of(redis, "router-1", Kind.HTTP)


@pytest.fixture
async def served(
    redis: Redis, redis_server: EmbeddedRedis, model: CatalogEntry, worker: FakeWorker, files: CertificateFiles
) -> AsyncIterator[tuple[str, str]]:
    async with router_over_tls(redis, redis_server.url, files) as addresses:
        yield addresses


@asynccontextmanager
async def openai_client(address: str, ca: Path) -> AsyncIterator[AsyncOpenAI]:
    trusted = httpx2.AsyncClient(verify=ssl.create_default_context(cafile=str(ca)))
    async with AsyncOpenAI(
        base_url=f"https://{address}/v1", api_key="none", max_retries=0, timeout=30, http_client=trusted
    ) as client:
        yield client


async def answer(worker: FakeWorker, text: bytes = ANSWER) -> None:
    """Takes the next request and answers it in two steps."""
    request_id = await worker.take()
    await worker.produced.get()
    worker.step(request_id, 0, list(text[:5]))
    worker.step(request_id, 5, list(text[5:]))
    worker.finish(request_id, len(text))


async def curl(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--show-error", "--max-time", "30", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_the_openai_package_chats_streams_and_sees_errors_over_tls(
    served: tuple[str, str], worker: FakeWorker, files: CertificateFiles
) -> None:
    async with openai_client(served[1], files.ca) as client, asyncio.TaskGroup() as tasks:
        tasks.create_task(answer(worker))
        reply = await client.chat.completions.create(model="m", messages=[HELLO])
        assert reply.choices[0].message.content == ANSWER.decode()
        tasks.create_task(answer(worker))
        stream = await client.chat.completions.create(model="m", messages=[HELLO], stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == ANSWER.decode()
        tasks.create_task(answer(worker, OUTPUT.encode()))
        called: Any = await client.chat.completions.create(model="m", messages=[HELLO], tools=[TOOL], stream=True)
        deltas = [delta async for chunk in called for delta in chunk.choices[0].delta.tool_calls or ()]
        assert [delta.function.name for delta in deltas if delta.id] == ["get_weather", "get_time"]
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nobody", messages=[HELLO])


async def test_closing_the_stream_cancels_over_tls(
    served: tuple[str, str], worker: FakeWorker, files: CertificateFiles
) -> None:
    async with openai_client(served[1], files.ca) as client:
        opening = asyncio.create_task(client.chat.completions.create(model="m", messages=[HELLO], stream=True))
        request_id = await worker.take()
        await worker.produced.get()
        worker.step(request_id, 0, list(b"some"))
        stream = await opening
        await anext(aiter(stream))
        await stream.close()
        async with asyncio.timeout(30):
            assert await worker.cancelled.get() == request_id


async def test_curl_trusts_the_authority_and_nothing_else(served: tuple[str, str], files: CertificateFiles) -> None:
    status, output = await curl("--cacert", str(files.ca), f"https://{served[1]}/v1/models")
    assert (status, '"id":"m"' in output) == (0, True)
    assert (await curl(f"https://{served[1]}/health"))[0] != 0
    assert (await curl(f"http://{served[1]}/health"))[0] != 0


async def test_the_client_generates_over_tls_and_says_what_is_wrong(
    served: tuple[str, str], worker: FakeWorker, files: CertificateFiles, tmp_path: Path
) -> None:
    async with Client(served[0], tls=ClientTls(files.ca)) as client, asyncio.TaskGroup() as tasks:
        tasks.create_task(answer(worker))
        assert (await client.complete("m", "hello")).text == ANSWER.decode()
    async with Client(served[0]) as plain:
        with pytest.raises(Unavailable, match=r"if it serves TLS, give its authority's certificate \(tls_ca\)"):
            await plain.list_models()
    async with Client(served[0], tls=ClientTls(certificates(tmp_path / "others").ca)) as astray:
        with pytest.raises(Unavailable, match="authority that is not trusted"):
            await astray.list_models()


async def test_clients_find_certificates_in_the_environment(
    served: tuple[str, str], files: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEKATON_TLS_CA", str(files.ca))
    async with Client(served[0]) as client:
        assert [model.name for model in await client.list_models()] == ["m"]
    monkeypatch.setenv("HEKATON_TLS_CA", "public")
    async with Client(served[0]) as client:
        with pytest.raises(Unavailable, match="not trusted"):
            await client.list_models()
    monkeypatch.setenv("HEKATON_TLS_CA", "/absent.pem")
    with pytest.raises(InvalidArgument, match=r"/absent\.pem"):
        Client(served[0])


async def test_a_renewed_public_certificate_holds_at_once(
    served: tuple[str, str], files: CertificateFiles, tmp_path: Path
) -> None:
    replace(files, others := certificates(tmp_path / "others"))
    assert (await curl("--cacert", str(others.ca), f"https://{served[1]}/health")) == (0, "ok")
    async with Client(served[0], tls=ClientTls(others.ca)) as client:
        await client.list_models()


async def test_clients_without_a_certificate_are_refused_where_one_is_asked_for(
    redis: Redis,
    redis_server: EmbeddedRedis,
    model: CatalogEntry,
    worker: FakeWorker,
    files: CertificateFiles,
) -> None:
    shown = ("--cacert", str(files.ca), "--cert", str(files.cert), "--key", str(files.key))
    async with router_over_tls(redis, redis_server.url, files, files.ca) as (address, http_address):
        async with Client(address, tls=ClientTls(files.ca)) as stranger:
            with pytest.raises(Unavailable, match="if it asks for a certificate"):
                await stranger.list_models()
        async with Client(address, tls=ClientTls(files.ca, files.cert, files.key)) as known:
            await known.list_models()
        assert (await curl(*shown[:2], f"https://{http_address}/health"))[0] != 0
        assert (await curl(*shown, f"https://{http_address}/health")) == (0, "ok")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("tls_cert",), "set tls_key and tls_ca too"),
        (("public_tls_key",), "set public_tls_cert too"),
        (("public_tls_client_ca",), "needs public_tls_cert and public_tls_key"),
    ],
)
def test_half_of_the_settings_is_refused(given: tuple[str, ...], message: str, files: CertificateFiles) -> None:
    with pytest.raises(ValueError, match=message):
        RouterSettings.model_validate({"redis_url": "redis://unused"} | dict.fromkeys(given, files.cert))
