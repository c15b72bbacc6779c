"""A ModelInferRequest read: what to generate, and what to answer. Whatever is not understood is refused by its name."""

import json
import math
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, Field
from pydantic_core import from_json

from hekaton.errors import InvalidArgument
from hekaton.oip import open_inference_pb2 as pb
from hekaton.v1 import inference_pb2
from hekaton_router.fields import Generation, checked
from hekaton_router.oip.models import check_version
from hekaton_router.oip.tensors import OUTPUTS, Value, read

MAX_ID_CHARS = 256
MAX_SAMPLING_BYTES = 64 << 10
RETURNED = {
    "return_finish_reason": "finish_reason",
    "return_num_input_tokens": "num_input_tokens",
    "return_num_output_tokens": "num_output_tokens",
}
"""Input → the output that it asks for."""


class Parameters(Generation):
    """Of a request, or in its tensor sampling_parameters. Clients of this protocol write numbers as texts, too."""

    model_config = ConfigDict(strict=False)

    json_schema: str | dict[str, Any] | None = Field(None, description="what the answer follows")
    timeout: int | None = Field(None, gt=0, description="microseconds: the whole request ends by then")
    triton_enable_empty_final_response: bool = Field(False, description="the final answer comes in any case")

    @property
    def limit_s(self) -> float:
        timeout_s = math.inf if self.timeout is None else self.timeout / 1e6
        return min(timeout_s, math.inf if self.deadline_s is None else self.deadline_s)


@dataclass(frozen=True, slots=True)
class Asked:
    id: str
    model: str
    generate: inference_pb2.GenerateRequest
    limit_s: float
    """From its arrival to its end."""
    stream: bool
    choices: int
    outputs: tuple[str, ...]
    raw: bool
    """Whether tensors come, and are answered, as raw bytes."""
    repeated: str
    """The prompt, if the answer is to begin with it."""


def asked(request: pb.ModelInferRequest) -> Asked:
    """Raises InvalidArgument, ModelNotFound."""
    check_version(request.model_name, request.model_version)
    if len(request.id) > MAX_ID_CHARS:
        raise InvalidArgument(f"id may have at most {MAX_ID_CHARS} characters, not {len(request.id)}")
    tensors = read(request)
    parameters = _parameters(request, tensors)
    generate = parameters.to_request(request.model_name)
    if schema := parameters.json_schema:
        generate.sampling.json_schema = schema if isinstance(schema, str) else json.dumps(schema)
    _set_prompt(generate, tensors)
    stream = _flag(tensors, "stream", default=False)
    return Asked(
        id=request.id,
        model=request.model_name,
        generate=generate,
        limit_s=parameters.limit_s,
        stream=stream,
        choices=parameters.n or 1,
        outputs=_outputs(request, tensors),
        raw=bool(request.raw_input_contents),
        repeated=_repeated(generate, tensors, stream),
    )


def _parameters(request: pb.ModelInferRequest, tensors: dict[str, list[Value]]) -> Parameters:
    fields = {name: _value(name, parameter) for name, parameter in request.parameters.items()}
    if "sampling_parameters" in tensors:
        for name, value in _document(tensors["sampling_parameters"][0]).items():
            if name in fields:
                raise InvalidArgument(f"{name} is in sampling_parameters and in the parameters: send it once")
            fields[name] = value
    return checked(Parameters, fields)


def _value(name: str, parameter: pb.InferParameter) -> bool | int | float | str:
    kind = parameter.WhichOneof("parameter_choice")
    if kind is None:
        raise InvalidArgument(f"parameter {name[:128]!r} has no value: set one of its fields")
    value: bool | int | float | str = getattr(parameter, kind)
    return value


def _document(value: Value) -> dict[str, Any]:
    text = value if isinstance(value, bytes) else b""
    if len(text) > MAX_SAMPLING_BYTES:
        raise InvalidArgument(f"sampling_parameters may have at most {MAX_SAMPLING_BYTES} bytes, not {len(text)}")
    try:
        document = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidArgument(f"sampling_parameters is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidArgument("sampling_parameters must be a JSON object")
    return document


def _set_prompt(generate: inference_pb2.GenerateRequest, tensors: dict[str, list[Value]]) -> None:
    if ("text_input" in tensors) == ("input_ids" in tensors):
        raise InvalidArgument("send one of the inputs text_input and input_ids")
    if "text_input" in tensors:
        generate.text = _text("text_input", tensors["text_input"][0])
        return
    ids = [value for value in tensors["input_ids"] if isinstance(value, int)]
    if min(ids) < 0:
        raise InvalidArgument(f"input input_ids: a token id is not negative, as {min(ids)} is")
    generate.token_ids.ids.extend(ids)


def _text(name: str, value: Value) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else ""
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"input {name} is no UTF-8: {error.reason} at byte {error.start}") from error


def _flag(tensors: dict[str, list[Value]], name: str, *, default: bool) -> bool:
    return bool(tensors[name][0]) if name in tensors else default


def _repeated(generate: inference_pb2.GenerateRequest, tensors: dict[str, list[Value]], stream: bool) -> str:
    if _flag(tensors, "exclude_input_in_output", default=True):
        return ""
    if stream or not generate.HasField("text"):
        raise InvalidArgument("exclude_input_in_output may be false only with text_input, and without stream")
    return generate.text


def _outputs(request: pb.ModelInferRequest, tensors: dict[str, list[Value]]) -> tuple[str, ...]:
    """Those that are named, or else the text; and those that a flag asks for."""
    for output in request.outputs:
        if output.name not in OUTPUTS:
            raise InvalidArgument(f"output {output.name[:128]!r} is not supported: there are {', '.join(OUTPUTS)}")
        if output.parameters:
            named = ", ".join(sorted(output.parameters))[:128]
            raise InvalidArgument(f"output {output.name}: its parameters ({named}) are not supported: leave them out")
    named_outputs = [output.name for output in request.outputs] or ["text_output"]
    flagged = [output for flag, output in RETURNED.items() if _flag(tensors, flag, default=False)]
    return tuple(dict.fromkeys([*named_outputs, *flagged]))
