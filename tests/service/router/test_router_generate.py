"""Streams over real gRPC and real Redis: order, attempts, reconnection, text, slow readers."""

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from fakes.router import RouterClient, eventually
from fakes.waiting import PATIENCE_S
from fakes.worker import FakeWorker
from hekaton.errors import Cancelled, EngineFailed
from hekaton.facts import CatalogEntry
from hekaton.rpc import convert
from hekaton.store.catalog import Catalog
from hekaton.store.requests import Requests
from hekaton.v1 import common_pb2
from hekaton.v1 import inference_pb2 as pb

HELLO = pb.GenerateRequest(model="m", text="hello")


async def test_a_stream_is_accepted_then_tokens_then_finished(router: RouterClient, worker: FakeWorker) -> None:
    stream = router.generate(HELLO)
    accepted = await stream.accepted()
    assert accepted.prompt_tokens == 5
    assert PATIENCE_S - 20 < convert.seconds(accepted.deadline) < PATIENCE_S + 1
    assert convert.seconds(accepted.slo.ttft) == 10
    request_id = await worker.take()
    assert request_id == accepted.request_id
    worker.step(request_id, 0, b"he")
    await stream.until(2)
    worker.step(request_id, 2, b"llo")
    worker.finish(request_id, 5)
    finished = await stream.finished()
    assert (bytes(stream.token_ids), stream.text) == (b"hello", "hello")
    assert finished.reason == common_pb2.FINISH_REASON_STOP
    assert finished.stats.worker_id == "worker-1"


async def test_what_is_accepted_is_in_the_store(router: RouterClient, worker: FakeWorker, redis: Redis) -> None:
    sampling = common_pb2.Sampling(temperature=0.5, top_k=4, max_tokens=9, seed=3, stop_token_ids=[7])
    request = pb.GenerateRequest(model="m", token_ids=pb.TokenIds(ids=[1, 2]), sampling=sampling, request_id="mine")
    stream = router.generate(request)
    assert (await stream.accepted()).seed == 3
    stored = await Requests(redis).load("mine")
    assert stored is not None
    record = stored.summary.record
    assert (stored.prompt, record.router_id, record.prompt_tokens, record.model) == ((1, 2), "router-1", 2, "m")
    assert (record.sampling.max_tokens, record.sampling.top_k, record.sampling.stop_token_ids) == (9, 4, (7,))


async def test_a_request_without_a_seed_gets_one(router: RouterClient) -> None:
    seeds = {(await router.generate(HELLO).accepted()).seed for _ in range(3)}
    assert len(seeds) == 3
    assert max(seeds) < 1 << 63


async def test_a_prompt_of_messages_goes_through_the_template(
    router: RouterClient, worker: FakeWorker, redis: Redis
) -> None:
    chat = pb.ChatPrompt(messages=[pb.ChatMessage(role="user", content="Hi")])
    stream = router.generate(pb.GenerateRequest(model="m", chat=chat))
    stored = await Requests(redis).load((await stream.accepted()).request_id)
    assert stored is not None
    assert bytes(stored.prompt) == b"user: Hi\nassistant:"


async def test_a_failure_ends_the_stream_with_its_typed_error(router: RouterClient, worker: FakeWorker) -> None:
    stream = router.generate(HELLO)
    request_id = await worker.take()
    worker.step(request_id, 0, b"he")
    worker.fail(request_id, EngineFailed("the device is gone"))
    with pytest.raises(EngineFailed, match="the device is gone"):
        await stream.finished()


async def test_only_the_newest_attempt_counts(router: RouterClient, worker: FakeWorker) -> None:
    stream = router.generate(HELLO)
    request_id = await worker.take()
    assert list((await worker.produced.get()).token_ids) == []
    worker.step(request_id, 0, b"ab")
    await stream.until(2)
    worker.hold(request_id, 3, "router-1")
    produced = await worker.produced.get()
    assert (produced.epoch, bytes(produced.token_ids)) == (3, b"ab")
    worker.step(request_id, 2, b"XX", epoch=1)
    worker.step(request_id, 0, b"ab")
    worker.step(request_id, 1, b"bcd")
    worker.finish(request_id, 4)
    await stream.finished()
    assert stream.text == "abcd"


async def test_a_lost_link_is_opened_again_and_goes_on_where_it_was(router: RouterClient, worker: FakeWorker) -> None:
    stream = router.generate(HELLO)
    request_id = await worker.take()
    await worker.produced.get()
    worker.step(request_id, 0, b"abc")
    await stream.until(3)
    worker.sever()
    assert bytes((await worker.produced.get()).token_ids) == b"abc"
    worker.step(request_id, 2, b"cd")
    worker.finish(request_id, 4)
    await stream.finished()
    assert stream.text == "abcd"
    assert worker.connections == {"router-1": 2}


async def test_a_gap_makes_the_router_ask_again(router: RouterClient, worker: FakeWorker) -> None:
    stream = router.generate(HELLO)
    request_id = await worker.take()
    await worker.produced.get()
    worker.step(request_id, 0, b"ab")
    worker.step(request_id, 3, b"d")
    assert bytes((await worker.produced.get()).token_ids) == b"ab"
    worker.step(request_id, 2, b"c")
    worker.finish(request_id, 3)
    await stream.finished()
    assert stream.text == "abc"


async def test_no_character_is_ever_split(router: RouterClient, worker: FakeWorker) -> None:
    stream = router.generate(HELLO)
    request_id = await worker.take()
    output = "naïve 🦊 漢字".encode()
    for index, value in enumerate(output):
        worker.step(request_id, index, [value])
        await stream.until(index + 1)
        assert "\N{REPLACEMENT CHARACTER}" not in stream.text
    worker.finish(request_id, len(output))
    await stream.finished()
    assert stream.text.encode() == output


async def test_a_character_that_never_ends_is_flushed(router: RouterClient, worker: FakeWorker) -> None:
    stream = router.generate(HELLO)
    request_id = await worker.take()
    worker.step(request_id, 0, [0xF0, 0x9F])
    await stream.until(2)
    worker.finish(request_id, 2)
    await stream.finished()
    assert stream.text == "\N{REPLACEMENT CHARACTER}"


async def test_a_slow_reader_delays_nobody_and_gets_everything(
    router: RouterClient, worker: FakeWorker, redis: Redis, model: CatalogEntry
) -> None:
    assert model.spec is not None
    tokens, step = 100_000, 100
    await Catalog(redis).put(replace(model, spec=replace(model.spec, max_context_tokens=2 * tokens)))
    sampling = common_pb2.Sampling(max_tokens=tokens)
    slow = router.generate(pb.GenerateRequest(model="m", text="a", sampling=sampling))
    await slow.accepted()
    slow_id = await worker.take()
    quick = router.generate(HELLO)
    await quick.accepted()
    quick_id = await worker.take()
    for first in range(0, tokens, step):
        worker.step(slow_id, first, b"s" * step)
    worker.step(quick_id, 0, b"q")
    worker.finish(quick_id, 1)
    async with asyncio.timeout(30):
        await quick.finished()
    worker.finish(slow_id, tokens)
    await slow.finished()
    assert slow.text == "s" * tokens


async def test_produced_tokens_are_checkpointed(router: RouterClient, worker: FakeWorker, redis: Redis) -> None:
    stream = router.generate(HELLO)
    request_id = await worker.take()
    worker.step(request_id, 0, b"abc")
    await stream.until(3)

    async def stored() -> bytes:
        request = await Requests(redis).load(request_id)
        return bytes(request.produced) if request else b""

    await eventually(stored, lambda produced: produced == b"abc")


async def test_a_request_that_an_emptied_redis_forgot_is_put_back_and_goes_on(
    router: RouterClient, worker: FakeWorker, redis: Redis
) -> None:
    stream = router.generate(HELLO)
    request_id = await worker.take()
    await worker.produced.get()
    worker.step(request_id, 0, b"ab")
    await stream.until(2)
    before = await Requests(redis).load(request_id)
    assert before is not None
    await redis.flushall()
    await worker.register()
    await eventually(Requests(redis).queued, lambda queued: queued == 1)
    after = await Requests(redis).load(request_id)
    assert after is not None
    assert (after.prompt, bytes(after.produced)) == (before.prompt, b"ab")
    assert (after.summary.record, after.summary.epoch) == (before.summary.record, before.summary.epoch)
    assert after.summary.age_s >= before.summary.age_s
    assert await worker.take() == request_id
    # A router that saw the worker gone has linked it anew, and answers for the old attempt first.
    while (await worker.produced.get()).epoch < 2:
        pass
    worker.step(request_id, 2, b"c")
    worker.finish(request_id, 3)
    await stream.finished()
    assert stream.text == "abc"


async def test_a_stop_text_ends_the_output_and_its_worker_is_told_where(
    router: RouterClient, worker: FakeWorker
) -> None:
    request = pb.GenerateRequest(model="m", text="hello", sampling=common_pb2.Sampling(stop=["ld!", "\n\n"]))
    stream = router.generate(request)
    request_id = await worker.take()
    worker.step(request_id, 0, b"hello wor")
    worker.step(request_id, 9, b"ld! and more")
    stop = await asyncio.wait_for(worker.stopped.get(), 30)
    assert (stop.request_id, stop.epoch, stop.tokens) == (request_id, 1, 12)
    worker.step(request_id, 21, b"late")
    worker.finish(request_id, 12)
    finished = await stream.finished()
    assert (stream.text, bytes(stream.token_ids)) == ("hello wor", b"hello world!")
    assert (finished.reason, finished.stats.completion_tokens) == (common_pb2.FINISH_REASON_STOP, 12)


async def test_a_worker_that_takes_over_after_a_stop_text_is_told_at_once(
    router: RouterClient, worker: FakeWorker
) -> None:
    stream = router.generate(pb.GenerateRequest(model="m", text="hi", sampling=common_pb2.Sampling(stop=["b"])))
    request_id = await worker.take()
    worker.step(request_id, 0, b"abc")
    await asyncio.wait_for(worker.stopped.get(), 30)
    worker.hold(request_id, 2, "router-1")
    stop = await asyncio.wait_for(worker.stopped.get(), 30)
    assert (stop.epoch, stop.tokens) == (2, 2)
    worker.finish(request_id, 2)
    await stream.finished()
    assert stream.text == "a"


async def test_several_outputs_come_on_one_stream_each_with_its_end(
    router: RouterClient, worker: FakeWorker, redis: Redis
) -> None:
    request = pb.GenerateRequest(model="m", text="hi", sampling=common_pb2.Sampling(n=2, seed=5), request_id="mine")
    call = router.inference.Generate(request, timeout=60)
    assert (await anext(aiter(call))).accepted.request_id == "mine"
    first, second = await worker.take(), await worker.take()
    assert (first, second) == ("mine", "mine.1")
    stored = await Requests(redis).peek([first, second])
    assert [stored[one].record.sampling.choice for one in (first, second)] == [0, 1]
    assert {one.record.sampling.seed for one in stored.values()} == {5}
    worker.step(second, 0, b"two")
    worker.step(first, 0, b"one")
    worker.finish(first, 3)
    worker.finish(second, 3)
    texts, ends = {0: "", 1: ""}, []
    async for response in call:
        if response.HasField("tokens"):
            texts[response.tokens.choice] += response.tokens.text
        else:
            ends.append(response.finished.choice)
    assert texts == {0: "one", 1: "two"}
    assert sorted(ends) == [0, 1]


@pytest.mark.parametrize("first_has_ended", [False, True])
async def test_a_cancel_ends_every_output(router: RouterClient, worker: FakeWorker, first_has_ended: bool) -> None:
    request = pb.GenerateRequest(model="m", text="hi", sampling=common_pb2.Sampling(n=3), request_id="mine")
    stream = router.generate(request)
    await stream.accepted()
    ids = [await worker.take() for _ in range(3)]
    if first_has_ended:
        worker.step(ids[0], 0, b"one")
        await worker.write_end(ids[0], b"one")
        worker.finish(ids[0], 3)
    assert (await router.inference.Cancel(pb.CancelRequest(request_id="mine"), timeout=30)).cancelled
    assert isinstance(await stream.error(), Cancelled)
    gone = {await asyncio.wait_for(worker.cancelled.get(), 30) for _ in range(3 - first_has_ended)}
    assert gone == set(ids[first_has_ended:])
    assert not (await router.inference.Cancel(pb.CancelRequest(request_id="mine"), timeout=30)).cancelled


async def test_several_outputs_cannot_be_resumed(router: RouterClient) -> None:
    request = pb.GenerateRequest(
        model="m", text="hi", sampling=common_pb2.Sampling(n=2), on_disconnect=pb.ON_DISCONNECT_KEEP
    )
    error = await router.generate(request).error()
    assert "sampling.n" in error.message
