"""How requests of a load reach a pool: through any of the protocols that a router answers."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from itertools import cycle
from typing import Protocol

import grpc
import grpc.aio
import httpx2

from hekaton.client import Client, SamplingOptions, Tokens
from hekaton.errors import HekatonError
from hekaton.facts import Slo
from hekaton.oip import open_inference_pb2, open_inference_pb2_grpc
from hekaton.rpc.errors import from_reason, from_rpc_error, from_status

STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
OUTPUT_TOKENS = "num_output_tokens"
ERRORS_AS_STATUS = (("triton_grpc_error", "true"),)
DONE = "[DONE]"


class ApiName(StrEnum):
    GRPC = "grpc"
    OPENAI = "openai"
    OIP = "oip"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request as it is sent."""

    model: str
    prompt: tuple[int, ...]
    output_tokens: int
    slo: Slo
    timeout_s: float


class Api(Protocol):
    """How requests reach a pool."""

    def tokens(self, ask: Ask) -> AsyncIterator[int]:
        """How many tokens each message brings, as it comes. Raises HekatonError."""


class GrpcApi:
    """The native API; requests go to the routers in turn."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self._clients = cycle(clients)

    async def tokens(self, ask: Ask) -> AsyncIterator[int]:
        options = SamplingOptions(max_tokens=ask.output_tokens, temperature=0.0, ignore_eos=True)
        stream = next(self._clients).generate(ask.model, ask.prompt, options, slo=ask.slo, timeout_s=ask.timeout_s)
        async with aclosing(stream) as events:
            async for event in events:
                if isinstance(event, Tokens):
                    yield len(event.token_ids)


class OipApi:
    """Open Inference Protocol: a stream with one request each, as its clients send them."""

    def __init__(self, channels: Sequence[grpc.aio.Channel], headers: Mapping[str, str]) -> None:
        self._metadata = (*ERRORS_AS_STATUS, *headers.items())
        self._stubs = cycle([open_inference_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in channels])

    async def tokens(self, ask: Ask) -> AsyncIterator[int]:
        call = next(self._stubs).ModelStreamInfer(iter([_infer(ask)]), timeout=ask.timeout_s, metadata=self._metadata)
        try:
            async for answer in call:
                if count := _count(answer.infer_response):
                    yield count
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()


class OpenAiApi:
    """`/v1/completions` of routers at these base URLs, streamed as server-sent events."""

    def __init__(self, http: httpx2.AsyncClient, urls: Sequence[str]) -> None:
        self._http = http
        self._urls = cycle(urls)

    async def tokens(self, ask: Ask) -> AsyncIterator[int]:
        url, seen = f"{next(self._urls).rstrip('/')}/v1/completions", 0
        body = {"model": ask.model, "prompt": list(ask.prompt), "stream": True, **_parameters(ask)}
        body["stream_options"] = {"continuous_usage_stats": True}
        try:
            async with (
                asyncio.timeout(ask.timeout_s),
                self._http.stream("POST", url, json=body, timeout=None) as answer,
            ):
                if answer.status_code != httpx2.codes.OK:
                    await answer.aread()
                    raise _refusal(answer.status_code, answer.text)
                async for line in answer.aiter_lines():
                    if (so_far := _usage(line)) > seen:
                        count, seen = so_far - seen, so_far
                        yield count
        except TimeoutError:
            raise from_status(grpc.StatusCode.DEADLINE_EXCEEDED, "", f"{url}: not ended in time") from None
        except httpx2.HTTPError as error:
            raise from_status(grpc.StatusCode.UNAVAILABLE, "", f"{url}: {error}") from error


def _parameters(ask: Ask) -> dict[str, object]:
    """As both protocols call them."""
    return {
        "max_tokens": ask.output_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "slo": {"ttft_s": ask.slo.ttft_s, "tbt_s": ask.slo.tbt_s},
        "deadline_s": ask.timeout_s,
    }


def _usage(line: str) -> int:
    """The output's tokens so far, as an event tells them. Raises HekatonError for an event that tells of one."""
    kind, _, data = line.partition(": ")
    if kind != "data" or data == DONE:
        return 0
    event = json.loads(data)
    if "error" in event:
        raise _refusal(0, data)
    return int((event.get("usage") or {}).get("completion_tokens", 0))


def _refusal(status: int, body: str) -> HekatonError:
    """What a router says of itself; a bare status, as of a proxy before it, takes the code that goes with it."""
    try:
        error = json.loads(body)["error"]
        return from_reason(error["code"].upper(), str(error["message"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return from_status(STATUS.get(status, grpc.StatusCode.UNKNOWN), "", f"HTTP status {status}")


def _infer(ask: Ask) -> open_inference_pb2.ModelInferRequest:
    request = open_inference_pb2.ModelInferRequest(model_name=ask.model, id=uuid.uuid4().hex)
    ids = request.inputs.add(name="input_ids", datatype="INT32", shape=[len(ask.prompt)])
    ids.contents.int_contents.extend(ask.prompt)
    stream = request.inputs.add(name="stream", datatype="BOOL", shape=[1])
    stream.contents.bool_contents.append(True)
    request.outputs.add(name="text_output")
    request.outputs.add(name=OUTPUT_TOKENS)
    parameters = request.inputs.add(name="sampling_parameters", datatype="BYTES", shape=[1])
    parameters.contents.bytes_contents.append(json.dumps(_parameters(ask)).encode())
    return request


def _count(answer: open_inference_pb2.ModelInferResponse) -> int:
    return sum(sum(output.contents.uint_contents) for output in answer.outputs if output.name == OUTPUT_TOKENS)
