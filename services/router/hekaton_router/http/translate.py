"""A request's body to the request of the native API: both doors lead to the same generation."""

from typing import TypeVar

from pydantic_core import from_json

from hekaton.v1 import inference_pb2 as pb
from hekaton_router.fields import BadField, checked
from hekaton_router.http.requests import ChatCompletion, Completion, TextCompletion

C = TypeVar("C", bound=Completion)


def parse(form: type[C], body: bytes) -> C:
    """Raises BadField."""
    try:
        document = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise BadField("", f"the body is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadField("", "the body must be a JSON object")
    return checked(form, document)


def chat_request(body: ChatCompletion) -> pb.GenerateRequest:
    request = _request(body)
    request.chat.CopyFrom(body.to_chat())
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
    request = body.to_request(body.model)
    if body.likeliest is not None:
        request.sampling.logprobs = body.likeliest
    return request
