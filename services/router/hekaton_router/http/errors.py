"""Errors in OpenAI's shape, with the status that goes with each gRPC code."""

import math
import re
from collections.abc import Mapping
from typing import Any

import grpc
from pydantic import BaseModel
from starlette.responses import JSONResponse

from hekaton.errors import HekatonError, InvalidArgument, ModelNotFound
from hekaton_router.fields import BadField

STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
NATIVE_FIELD = re.compile(r"sampling\.(\w+)|(slo)\.|(request_id)|chat\.([\w.[\]]*[\w\]])")
"""How admission begins a message about a field."""
OF_FUNCTIONS = re.compile(r"(tools|tool_calls)(\[\d+\])\.(?!id\b)")
"""Fields that lie one deeper here."""
OTHER_NAMES = {"json_schema": "response_format"}
"""Of fields that are called so here."""


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """What every refusal answers."""

    error: ErrorBody


def status_of(error: HekatonError) -> int:
    return STATUS.get(error.code, 500)


def body_of(error: HekatonError) -> Error:
    status = status_of(error)
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return Error(
        error=ErrorBody(message=error.message, type=kind, param=_param(error), code=error.reason.lower() or None)
    )


def response_of(error: HekatonError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    named = dict(headers or {})
    if error.retry_after_s is not None:
        named["Retry-After"] = str(math.ceil(error.retry_after_s))
    return plain_response(status_of(error), body_of(error), named)


def plain_response(status: int, body: Error, headers: Mapping[str, str] | None = None) -> JSONResponse:
    content: dict[str, Any] = body.model_dump()
    return JSONResponse(content, status_code=status, headers=headers)


def _param(error: HekatonError) -> str | None:
    """The field at fault, where the error says so."""
    if isinstance(error, BadField):
        return error.field or None
    if isinstance(error, ModelNotFound):
        return "model"
    if isinstance(error, InvalidArgument) and (found := NATIVE_FIELD.match(error.message)):
        name = found[found.lastindex or 0]
        return OTHER_NAMES.get(name, OF_FUNCTIONS.sub(r"\1\2.function.", name))
    return None
