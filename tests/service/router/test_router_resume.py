"""A client whose connection broke gets the rest of its request, here or at another router, and nothing else."""

import asyncio

import grpc
import grpc.aio
import pytest
from redis.asyncio import Redis

from fakes.memory import SPEC, fake_memory
from fakes.router import RouterClient, Stream, eventually, running_router
from fakes.worker import FakeWorker, fake_worker
from hekaton.errors import (
    Diverged,
    HekatonError,
    InvalidArgument,
    NotResumable,
    RequestNotFound,
    ResumedElsewhere,
    Unavailable,
)
from hekaton.facts import CatalogEntry, ModelState, RequestState, token_crc
from hekaton.rpc.convert import duration
from hekaton.rpc.errors import from_rpc_error
from hekaton.store.catalog import Catalog
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.requests import Requests
from hekaton.v1 import common_pb2
from hekaton.v1 import inference_pb2 as pb

KEPT = pb.GenerateRequest(model="m", text="hello", on_disconnect=pb.ON_DISCONNECT_KEEP, request_id="kept")


def resume(router: RouterClient, known: bytes, *, chars: int | None = None, crc: int | None = None) -> Stream:
    request = pb.ResumeRequest(
        request_id="kept",
        next_index=len(known),
        token_crc=token_crc(known) if crc is None else crc,
        text_chars=len(known) if chars is None else chars,
    )
    stream = Stream(router.inference.Resume(request, timeout=60))
    stream.token_ids = list(known)
    return stream


async def lose(stream: Stream) -> None:
    """The connection breaks: for a router that is a call that ends."""
    stream.call.cancel()
    await asyncio.sleep(0)


async def begun(router: RouterClient, worker: FakeWorker, request: pb.GenerateRequest = KEPT) -> Stream:
    """A request of which the client has two tokens."""
    stream = router.generate(request)
    await worker.take()
    await worker.produced.get()
    worker.step("kept", 0, b"he")
    await stream.until(2)
    return stream


async def error_of(stream: Stream) -> HekatonError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stream.call:
            pass
    return from_rpc_error(caught.value)


async def test_a_client_that_comes_back_gets_the_rest(router: RouterClient, worker: FakeWorker) -> None:
    await lose(await begun(router, worker))
    worker.step("kept", 2, b"l")
    again = resume(router, b"he")
    assert (await again.accepted()).prompt_tokens == 5
    await again.until(3)
    worker.step("kept", 3, b"lo")
    worker.finish("kept", 5)
    assert (await again.finished()).stats.completion_tokens == 5
    assert (bytes(again.token_ids), again.text) == (b"hello", "llo")
    assert worker.cancelled.empty()


async def test_text_goes_on_at_the_character_where_it_was(router: RouterClient, worker: FakeWorker) -> None:
    """What a client got depends on how its tokens came; the whole does not."""
    await lose(await begun(router, worker))
    output = "he🦊!".encode()
    worker.step("kept", 2, output[2:5])
    for chars in (0, 1, 2):
        again = resume(router, output[:4], chars=chars)
        await again.accepted()
        worker.step("kept", 5, output[5:])
        await again.until(len(output))
        assert again.text == "he🦊!"[chars:]


async def test_what_the_client_has_must_be_what_was_produced(router: RouterClient, worker: FakeWorker) -> None:
    await lose(await begun(router, worker))
    assert isinstance(await error_of(resume(router, b"hX")), Diverged)
    ahead = resume(router, b"help")
    await ahead.accepted()
    worker.step("kept", 2, b"llo")
    assert isinstance(await error_of(ahead), Diverged)


async def test_a_client_that_has_more_than_was_ever_produced_is_told_so(
    router: RouterClient, worker: FakeWorker
) -> None:
    await lose(await begun(router, worker))
    ahead = resume(router, b"hello!")
    await ahead.accepted()
    worker.finish("kept", 2)
    assert isinstance(await error_of(ahead), Diverged)


async def test_the_newest_connection_reads_and_the_older_one_ends(router: RouterClient, worker: FakeWorker) -> None:
    first = await begun(router, worker)
    second = resume(router, b"he")
    await second.accepted()
    assert isinstance(await first.error(), ResumedElsewhere)
    worker.finish("kept", 2)
    assert (await second.finished()).stats.completion_tokens == 2


async def test_the_end_can_be_read_again(router: RouterClient, worker: FakeWorker) -> None:
    stream = await begun(router, worker)
    worker.finish("kept", 2)
    await stream.finished()
    again = resume(router, b"")
    await again.accepted()
    assert (await again.finished()).stats.completion_tokens == 2
    assert again.text == "he"


async def test_a_request_nobody_comes_back_for_is_cancelled(
    router: RouterClient, worker: FakeWorker, redis: Redis
) -> None:
    request = pb.GenerateRequest(resume_window=duration(0.1))
    request.MergeFrom(KEPT)
    await lose(await begun(router, worker, request))
    assert await asyncio.wait_for(worker.cancelled.get(), 30) == "kept"

    async def look() -> RequestState:
        return (await Requests(redis).peek(["kept"]))["kept"].state

    await eventually(look, lambda state: state is RequestState.CANCELLED)


async def test_what_cannot_be_resumed_is_refused(router: RouterClient, worker: FakeWorker) -> None:
    assert isinstance(await error_of(resume(router, b"")), RequestNotFound)
    router.generate(pb.GenerateRequest(model="m", text="hello", request_id="kept"))
    await worker.take()
    assert isinstance(await error_of(resume(router, b"")), NotResumable)
    bad = pb.GenerateRequest(model="m", text="x", on_disconnect=pb.ON_DISCONNECT_KEEP, resume_window=duration(9e9))
    assert isinstance(await router.generate(bad).error(), InvalidArgument)


async def test_another_router_takes_a_request_over_from_its_worker(
    redis: Redis, redis_server: EmbeddedRedis, router: RouterClient, worker: FakeWorker
) -> None:
    async with running_router(redis, redis_server.url, "router-2") as other:
        await other.until_serving()
        first = await begun(router, worker)
        again = resume(other, b"he")
        await again.accepted()
        assert (await asyncio.wait_for(worker.produced.get(), 30)).epoch == 1
        worker.step("kept", 0, b"hello")
        await again.until(5)
        assert isinstance(await first.error(), ResumedElsewhere)
        worker.finish("kept", 5)
        assert (await again.finished()).stats.completion_tokens == 5
        assert again.text == "llo"
        assert worker.cancelled.empty()


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_stop_text_that_the_break_cuts_through_ends_the_output_where_it_begins(
    redis: Redis, redis_server: EmbeddedRedis, router: RouterClient, worker: FakeWorker, elsewhere: bool
) -> None:
    request = pb.GenerateRequest(sampling=common_pb2.Sampling(stop=["ld!"]))
    request.MergeFrom(KEPT)
    async with running_router(redis, redis_server.url, "router-2") as other:
        await other.until_serving()
        first = await begun(router, worker, request)
        worker.step("kept", 2, b"llo worl")
        await first.until(10)
        assert first.text == "hello wor"
        await lose(first)
        again = resume(other if elsewhere else router, b"hello worl", chars=9)
        await again.accepted()
        if elsewhere:
            await asyncio.wait_for(worker.produced.get(), 30)
            worker.step("kept", 0, b"hello worl")
        worker.step("kept", 10, b"d! and more")
        stop = await asyncio.wait_for(worker.stopped.get(), 30)
        assert (stop.request_id, stop.tokens) == ("kept", 12)
        worker.finish("kept", 12)
        finished = await again.finished()
        assert (finished.reason, finished.stats.completion_tokens) == (common_pb2.FINISH_REASON_STOP, 12)
        assert (again.text, bytes(again.token_ids)) == ("", b"hello world!")


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_log_probabilities_go_on_where_the_client_was(
    redis: Redis, redis_server: EmbeddedRedis, model: CatalogEntry, elsewhere: bool
) -> None:
    assert model.spec is not None
    told = [common_pb2.TokenLogprobs(logprob=-float(index)) for index in range(5)]
    request = pb.GenerateRequest(sampling=common_pb2.Sampling(logprobs=0))
    request.MergeFrom(KEPT)
    request.model = "real"
    await Catalog(redis).create(CatalogEntry("real", "", "", model.slo, ModelState.READY, SPEC))
    async with (
        fake_memory(redis),
        fake_worker(redis, device="cpu") as worker,
        running_router(redis, redis_server.url) as router,
        running_router(redis, redis_server.url, "router-2") as other,
    ):
        await router.until_serving()
        await other.until_serving()
        first = router.generate(request)
        await worker.take()
        await worker.produced.get()
        worker.step("kept", 0, b"he", logprobs=told[:2])
        await first.until(2)
        await lose(first)
        worker.step("kept", 2, b"l", logprobs=told[2:3])
        again = resume(other if elsewhere else router, b"he")
        await again.accepted()
        if elsewhere:
            await asyncio.wait_for(worker.produced.get(), 30)
            worker.step("kept", 0, b"hel", logprobs=told[:3])
        worker.step("kept", 3, b"lo", logprobs=told[3:])
        worker.finish("kept", 5)
        await again.finished()
        assert (again.text, first.logprobs, again.logprobs) == ("llo", [0.0, -1.0], [-2.0, -3.0, -4.0])


async def test_another_router_delivers_an_end_from_the_store(
    redis: Redis, redis_server: EmbeddedRedis, router: RouterClient, worker: FakeWorker
) -> None:
    """Neither its router nor its worker is needed any more."""
    async with running_router(redis, redis_server.url, "router-2") as other:
        await other.until_serving()
        stream = await begun(router, worker)
        await worker.write_end("kept", b"hello")
        worker.step("kept", 2, b"llo")
        worker.finish("kept", 5)
        await stream.finished()
        router.stop.set()
        again = resume(other, b"hel")
        await again.accepted()
        assert (await again.finished()).stats.completion_tokens == 5
        assert again.text == "lo"


async def test_a_router_that_was_started_anew_leaves_kept_requests_alone(
    redis: Redis, redis_server: EmbeddedRedis, model: object, worker: FakeWorker
) -> None:
    async with running_router(redis, redis_server.url, drain_timeout_s=0.0) as router:
        await router.until_serving()
        stream = await begun(router, worker)
        router.stop.set()
        assert isinstance(await stream.error(), Unavailable)
    async with running_router(redis, redis_server.url) as router:
        await router.until_serving()
        again = resume(router, b"he")
        await again.accepted()
        await asyncio.wait_for(worker.produced.get(), 30)
        worker.step("kept", 0, b"hello")
        worker.finish("kept", 5)
        await again.finished()
        assert again.text == "llo"
        assert worker.cancelled.empty()
