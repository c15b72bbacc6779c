"""ModelStreamInfer: several requests at once, token by token, and what becomes of those that fail or are left."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from redis.asyncio import Redis

from fakes.open_inference import Value, final, raw, sent, text_of, typed
from fakes.router import RouterClient, address_of
from fakes.worker import FakeWorker
from hekaton.errors import InvalidArgument, ModelNotFound, WorkerLost
from hekaton.oip import open_inference_pb2 as pb
from hekaton.rpc.channel import open_channel
from hekaton.rpc.errors import from_rpc_error

HELLO: dict[str, Value] = {"text_input": "hello", "stream": True}


async def test_tokens_come_as_they_are_made_and_the_last_answer_says_so(
    router: RouterClient, worker: FakeWorker
) -> None:
    asked = raw(typed({**HELLO, "return_finish_reason": True}, id_="mine", triton_enable_empty_final_response=True))
    answers = aiter(router.open_inference.ModelStreamInfer(sent(asked)))
    request_id = await worker.take()
    for first, piece in enumerate((b"good ", b"morni")):
        worker.step(request_id, 5 * first, list(piece))
        told = (await anext(answers)).infer_response
        assert (text_of(told), told.id, final(told)) == ([piece.decode()], "mine", False)
        assert text_of(told, "finish_reason") == ["None"]
        assert told.parameters["request_id"].string_param == request_id
    worker.finish(request_id, 10)
    last = (await anext(answers)).infer_response
    assert (text_of(last), text_of(last, "finish_reason"), final(last)) == ([""], ["stop"], True)
    with pytest.raises(StopAsyncIteration):
        await anext(answers)


async def test_requests_of_one_stream_run_together_and_are_told_apart_by_their_ids(
    router: RouterClient, worker: FakeWorker
) -> None:
    whole, streamed = typed({"text_input": "a"}, id_="whole"), typed(HELLO, id_="streamed")
    answers = aiter(router.open_inference.ModelStreamInfer(sent(whole, streamed)))
    first, second = await worker.take(), await worker.take()
    for request_id in (second, first):
        worker.step(request_id, 0, list(request_id[:5].encode()))
        worker.finish(request_id, 5)
    texts = {"whole": "", "streamed": ""}
    finals = 0
    async for answer in answers:
        texts[answer.infer_response.id] += text_of(answer.infer_response)[0]
        finals += final(answer.infer_response)
    assert sorted(texts.values()) == sorted((first[:5], second[:5]))
    assert finals == 2


async def test_a_request_that_fails_leaves_the_others_alone(router: RouterClient, worker: FakeWorker) -> None:
    bad, unknown, good = typed(HELLO, id_="bad", priority=1), typed(HELLO, model="nobody"), typed(HELLO, id_="good")
    answers = aiter(router.open_inference.ModelStreamInfer(sent(bad, unknown, good)))
    refused = {}
    for _ in range(2):
        answer = await anext(answers)
        assert final(answer.infer_response)
        refused[answer.infer_response.parameters["error_code"].string_param] = answer
    assert "priority is not supported" in refused["INVALID_ARGUMENT"].error_message
    assert refused["INVALID_ARGUMENT"].infer_response.id == "bad"
    assert refused["NOT_FOUND"].infer_response.parameters["error_reason"].string_param == ModelNotFound.reason
    request_id = await worker.take()
    worker.fail(request_id, WorkerLost("the third one died"))
    answer = await anext(answers)
    assert (answer.error_message, answer.infer_response.id) == ("the third one died", "good")
    assert answer.infer_response.parameters["retry_after_s"].double_param == 1.0
    with pytest.raises(StopAsyncIteration):
        await anext(answers)


async def test_a_strict_stream_ends_as_the_status_of_what_fails(router: RouterClient, worker: FakeWorker) -> None:
    placed = asyncio.Event()

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        yield typed(HELLO)
        await placed.wait()
        yield typed(HELLO, model="nobody")

    call = router.open_inference.ModelStreamInfer(requests(), metadata=(("triton_grpc_error", "true"),))
    request_id = await worker.take()
    placed.set()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(call))
    assert isinstance(from_rpc_error(caught.value), ModelNotFound)
    async with asyncio.timeout(30):
        assert await worker.cancelled.get() == request_id


async def test_a_client_that_goes_away_cancels_all_his_requests(router: RouterClient, worker: FakeWorker) -> None:
    call = router.open_inference.ModelStreamInfer(sent(typed(HELLO), typed({"text_input": "hello"})))
    ids = {await worker.take(), await worker.take()}
    call.cancel()
    async with asyncio.timeout(30):
        assert {await worker.cancelled.get(), await worker.cancelled.get()} == ids


async def test_a_stream_without_requests_ends(router: RouterClient) -> None:
    assert [answer async for answer in router.open_inference.ModelStreamInfer(sent())] == []


async def test_a_message_that_cannot_be_decoded_ends_the_stream_after_the_answers_to_those_before(
    router: RouterClient, worker: FakeWorker, redis: Redis
) -> None:
    async with open_channel(await address_of(redis, "router-1")) as channel:
        stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer"
        )
        call = stream()
        await call.write(typed({"text_input": "a"}, id_="sound").SerializeToString())
        request_id = await worker.take()
        await call.write(b"\xff" * 11)
        worker.step(request_id, 0, list(b"answer"))
        worker.finish(request_id, 6)
        said = await call.read()
        assert isinstance(said, bytes)
        answer = pb.ModelStreamInferResponse.FromString(said)
        assert text_of(answer.infer_response) == ["answer"]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert isinstance(from_rpc_error(refused.value), InvalidArgument)
