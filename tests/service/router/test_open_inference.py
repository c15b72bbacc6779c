"""ModelInfer: what is asked reaches the record, what comes is answered, what is not understood is refused by name."""

import asyncio
import json
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from fakes.http import ANSWER, answer
from fakes.open_inference import error_of, final, raw, text_of, typed
from fakes.router import RouterClient
from fakes.worker import FakeWorker
from hekaton.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ModelNotFound,
    WorkerLost,
)
from hekaton.facts import RequestRecord
from hekaton.oip import open_inference_pb2 as pb
from hekaton.store.requests import Requests

HELLO = {"text_input": "hello"}


async def record_of(redis: Redis, request_id: str) -> tuple[RequestRecord, bytes]:
    stored = await Requests(redis).load(request_id)
    assert stored is not None
    return stored.summary.record, bytes(stored.prompt)


@pytest.mark.parametrize("form", [lambda request: request, raw], ids=["typed", "raw"])
async def test_a_text_is_answered_in_the_form_in_which_it_came(
    router: RouterClient,
    worker: FakeWorker,
    redis: Redis,
    form: Callable[[pb.ModelInferRequest], pb.ModelInferRequest],
) -> None:
    answering = asyncio.create_task(answer(worker))
    request = form(typed({**HELLO, "return_num_output_tokens": True, "return_finish_reason": True}, id_="mine"))
    told = await router.open_inference.ModelInfer(request)
    request_id = await answering
    assert (told.model_name, told.model_version, told.id) == ("m", "1", "mine")
    assert told.parameters["request_id"].string_param == request_id
    assert [(one.name, one.datatype, list(one.shape)) for one in told.outputs] == [
        ("text_output", "BYTES", [1]),
        ("finish_reason", "BYTES", [1]),
        ("num_output_tokens", "UINT32", [1]),
    ]
    assert (text_of(told), text_of(told, "finish_reason")) == ([ANSWER.decode()], ["stop"])
    assert bool(told.raw_output_contents) == bool(request.raw_input_contents)
    record, prompt = await record_of(redis, request_id)
    assert (prompt, record.sampling.temperature, record.sampling.max_tokens) == (b"hello", 1.0, 256)


async def test_parameters_reach_the_record_wherever_they_stand(
    router: RouterClient, worker: FakeWorker, redis: Redis
) -> None:
    sampling = {
        "temperature": "0.5",
        "top_k": 5,
        "stop": ["!"],
        "stop_token_ids": [3],
        "logit_bias": {"7": 2},
        "slo": {"class": "batch", "tbt_s": 0.25},
    }
    request = typed(
        {**HELLO, "sampling_parameters": json.dumps(sampling)},
        max_tokens=20,
        seed="7",
        top_p=0.25,
        ignore_eos=True,
        request_id="mine",
        timeout=9_000_000,
        # Its client's own affair; it is admitted under the parameter.
        id_="1",
    )
    answering = asyncio.create_task(answer(worker))
    told = await router.open_inference.ModelInfer(request)
    assert (await answering, told.id) == ("mine", "1")
    record, _ = await record_of(redis, "mine")
    sampling_of = record.sampling
    assert (sampling_of.temperature, sampling_of.top_p, sampling_of.top_k, sampling_of.seed) == (0.5, 0.25, 5, 7)
    assert (sampling_of.max_tokens, sampling_of.stop, sampling_of.stop_token_ids) == (20, ("!",), (3,))
    assert sampling_of.logit_bias == {7: 2.0}
    assert (record.slo.ttft_s, record.slo.tbt_s) == (300.0, 0.25)
    assert 8 < record.deadline_s <= 9


async def test_token_ids_are_a_prompt_too_and_the_prompt_can_be_repeated(
    router: RouterClient, worker: FakeWorker, redis: Redis
) -> None:
    answering = asyncio.create_task(answer(worker))
    told = await router.open_inference.ModelInfer(raw(typed({"input_ids": list(b"hello")}, ["num_input_tokens"])))
    assert (await record_of(redis, await answering))[1] == b"hello"
    assert [one.name for one in told.outputs] == ["num_input_tokens"]
    assert told.raw_output_contents[0] == (5).to_bytes(4, "little")
    answering = asyncio.create_task(answer(worker))
    told = await router.open_inference.ModelInfer(typed({**HELLO, "exclude_input_in_output": False}))
    await answering
    assert text_of(told) == [f"hello{ANSWER.decode()}"]


async def test_several_outputs_are_elements_of_one_tensor(router: RouterClient, worker: FakeWorker) -> None:
    call = asyncio.ensure_future(router.open_inference.ModelInfer(typed(HELLO, n=2)))
    ids = [await worker.take() for _ in range(2)]
    for request_id in sorted(ids):
        worker.step(request_id, 0, list(b"other" if request_id.endswith(".1") else b"first"))
        worker.finish(request_id, 5)
    told = await call
    assert (text_of(told), list(told.outputs[0].shape)) == (["first", "other"], [2])
    assert final(told)


def changed(name: str = "text_input", **fields: object) -> pb.ModelInferRequest:
    """A request with another tensor."""
    request = typed(HELLO)
    del request.inputs[:]
    tensor = pb.ModelInferRequest.InferInputTensor(
        name=name, datatype="BYTES", shape=[1], contents=pb.InferTensorContents(bytes_contents=[b"hello"])
    )
    for field, value in fields.items():
        tensor.ClearField(field)  # type: ignore[arg-type]
        tensor.MergeFrom(pb.ModelInferRequest.InferInputTensor(**{field: value}))  # type: ignore[arg-type]
    request.inputs.append(tensor)
    return request


def with_raw(*parts: bytes) -> pb.ModelInferRequest:
    request = raw(typed(HELLO))
    del request.raw_input_contents[:]
    request.raw_input_contents.extend(parts)
    return request


def beside_raw() -> pb.ModelInferRequest:
    request = typed(HELLO)
    request.raw_input_contents.append(b"\x01\0\0\0x")
    return request


def twice() -> pb.ModelInferRequest:
    request = typed(HELLO)
    request.inputs.append(request.inputs[0])
    return request


def output_with_class() -> pb.ModelInferRequest:
    request = typed(HELLO, ["text_output"])
    request.outputs[0].parameters["classification"].int64_param = 2
    return request


def valueless() -> pb.ModelInferRequest:
    request = typed(HELLO)
    request.parameters["seed"].Clear()
    return request


SHARED = {"shared_memory_region": pb.InferParameter(string_param="region")}
BAD: list[tuple[pb.ModelInferRequest, str]] = [
    (typed({}), "text_input and input_ids"),
    (typed({**HELLO, "input_ids": [1]}), "text_input and input_ids"),
    (changed("image"), "'image' is not supported: there are text_input"),
    (changed(datatype="FP32"), "text_input must have the datatype BYTES, not 'FP32'"),
    (changed(shape=[1, 1]), r"text_input must have the shape \[1\], not \[1, 1\]"),
    (changed(shape=[2]), r"text_input must have the shape \[1\], not \[2\]"),
    (changed(shape=[-1]), r"must have the shape \[1\]"),
    (changed(contents=pb.InferTensorContents()), "text_input has 0 elements, its shape says 1"),
    (changed(contents=pb.InferTensorContents(int_contents=[1])), "goes into bytes_contents, not into int_contents"),
    (changed(contents=pb.InferTensorContents(bytes_contents=[b"\xff"])), "text_input is no UTF-8"),
    (changed(parameters=SHARED), "shared_memory_region"),
    (changed("input_ids", datatype="INT32", contents=pb.InferTensorContents(int_contents=[-1])), "input_ids: a token"),
    (twice(), "text_input is there twice"),
    (with_raw(b"\x01\0\0\0x", b""), "raw_input_contents has 2 entries for 1 inputs"),
    (with_raw(b"\x05\0\0\0x"), "text_input: a raw BYTES element ends beyond the 5 bytes"),
    (with_raw(b"\x05\0"), "text_input: a raw BYTES element"),
    (with_raw(b"\x01\0\0\0x\x01\0\0\0y"), "text_input has 2 elements"),
    (beside_raw(), "text_input has contents beside raw_input_contents"),
    (typed(HELLO, ["tokens"]), "output 'tokens' is not supported: there are text_output"),
    (output_with_class(), "classification"),
    (valueless(), "'seed' has no value"),
    (typed({**HELLO, "stream": True}), "stream: ModelInfer answers once"),
    (typed({**HELLO, "sampling_parameters": "{"}), "sampling_parameters is no JSON"),
    (typed({**HELLO, "sampling_parameters": "[1]"}), "sampling_parameters must be a JSON object"),
    (typed({**HELLO, "sampling_parameters": '{"lora_name": "x"}'}), "lora_name is not supported"),
    (typed({**HELLO, "sampling_parameters": '{"seed": 1}'}, seed=1), "seed is in sampling_parameters and in"),
    (typed({**HELLO, "sampling_parameters": " " * 70_000}), "sampling_parameters may have at most 65536 bytes"),
    (typed(HELLO, temperature="hot"), "temperature: "),
    (typed(HELLO, max_tokens=1.5), "max_tokens: "),
    (typed(HELLO, max_tokens=0), "max_tokens must be at least 1"),
    (typed(HELLO, top_p=2), "top_p must be"),
    (typed(HELLO, n=17), "sampling.n must be"),
    (typed(HELLO, timeout=0), "timeout: "),
    (typed(HELLO, priority=1), "priority is not supported"),
    (typed(HELLO, sequence_id=1), "sequence_id is not supported"),
    (typed(HELLO, logprobs=1), "logprobs is not supported"),
    (typed({"input_ids": [1], "exclude_input_in_output": False}), "exclude_input_in_output may be false only with"),
]


async def test_whatever_is_not_honoured_is_refused_by_name(router: RouterClient) -> None:
    for request, message in BAD:
        error = await error_of(router.open_inference.ModelInfer(request))
        assert isinstance(error, InvalidArgument), message
        with pytest.raises(InvalidArgument, match=message):
            raise error


async def test_a_long_id_is_refused_and_an_unknown_model_or_version_not_found(router: RouterClient) -> None:
    long = await error_of(router.open_inference.ModelInfer(typed(HELLO, id_="x" * 257)))
    assert isinstance(long, InvalidArgument)
    assert isinstance(await error_of(router.open_inference.ModelInfer(typed(HELLO, model="nobody"))), ModelNotFound)
    other = typed(HELLO)
    other.model_version = "2"
    assert isinstance(await error_of(router.open_inference.ModelInfer(other)), ModelNotFound)


async def test_a_request_ends_by_its_timeout_or_as_its_worker_says(router: RouterClient, worker: FakeWorker) -> None:
    call = asyncio.ensure_future(error_of(router.open_inference.ModelInfer(typed(HELLO, timeout=60_000_000))))
    worker.fail(await worker.take(), WorkerLost("the third one died"))
    assert isinstance(await call, WorkerLost)
    late = await error_of(router.open_inference.ModelInfer(typed(HELLO, timeout=100_000)))
    assert isinstance(late, DeadlineExceeded)


async def test_a_caller_that_goes_away_cancels_his_request(router: RouterClient, worker: FakeWorker) -> None:
    call = router.open_inference.ModelInfer(typed(HELLO))
    request_id = await worker.take()
    await worker.produced.get()
    call.cancel()
    async with asyncio.timeout(30):
        assert await worker.cancelled.get() == request_id
