"""A request's body to the request of the native API: both doors lead to the same generation."""

from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from hekaton.rpc import convert
from hekaton.v1 import common_pb2
from hekaton.v1 import inference_pb2 as pb
from hekaton_router.http.errors import BadField, from_validation
from hekaton_router.http.requests import ChatCompletion, Completion, Message, Slo, TextCompletion

C = TypeVar("C", bound=Completion)


def parse(form: type[C], body: bytes) -> C:
    """Raises BadField. A field that is null counts as one that was not sent."""
    try:
        document = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise BadField("", f"the body is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadField("", "the body must be a JSON object")
    try:
        return form.model_validate({name: value for name, value in document.items() if value is not None})
    except ValidationError as error:
        raise from_validation(error) from error


def chat_request(body: ChatCompletion) -> pb.GenerateRequest:
    request = _request(body)
    request.chat.messages.extend(_message(message) for message in body.messages)
    if body.max_completion_tokens is not None:
        request.sampling.max_tokens = body.max_completion_tokens
    if body.response_format is not None and (schema := body.response_format.schema_text):
        request.sampling.json_schema = schema
    return request


def text_request(body: TextCompletion) -> pb.GenerateRequest:
    request = _request(body)
    if isinstance(body.prompt, str):
        request.text = body.prompt
    elif body.prompt and isinstance(body.prompt[0], str):
        request.text = body.prompt[0]
    else:
        request.token_ids.ids.extend(token_id for token_id in body.prompt if isinstance(token_id, int))
    return request


def _request(body: Completion) -> pb.GenerateRequest:
    request = pb.GenerateRequest(model=body.model, sampling=_sampling(body), request_id=body.request_id or "")
    if body.slo:
        request.slo.CopyFrom(_slo(body.slo))
    return request


def _sampling(body: Completion) -> common_pb2.Sampling:
    return common_pb2.Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        seed=body.seed,
        max_tokens=body.max_tokens,
        stop_token_ids=body.stop_token_ids,
        ignore_eos=body.ignore_eos,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias={int(token_id): bias for token_id, bias in body.logit_bias.items()},
        stop=[body.stop] if isinstance(body.stop, str) else body.stop,
        min_tokens=body.min_tokens,
        n=body.n,
        logprobs=body.likeliest,
    )


def _slo(slo: Slo) -> common_pb2.Slo:
    message = common_pb2.Slo(
        ttft=None if slo.ttft_s is None else convert.duration(slo.ttft_s),
        tbt=None if slo.tbt_s is None else convert.duration(slo.tbt_s),
    )
    if slo.class_ is not None:
        message.slo_class = convert.SLO_CLASS_TO_PB[slo.class_]
    return message


def _message(message: Message) -> pb.ChatMessage:
    role = "system" if message.role == "developer" else message.role
    return pb.ChatMessage(role=role, content=message.text)
