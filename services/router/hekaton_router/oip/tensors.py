"""The tensors of a generation: read from a request, typed or raw, and written in the same form."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from hekaton.errors import InvalidArgument
from hekaton.oip import open_inference_pb2 as pb

Value: TypeAlias = bytes | bool | int
Field: TypeAlias = Literal["bytes_contents", "bool_contents", "int_contents", "uint_contents"]
FIELDS: dict[str, Field] = {
    "BYTES": "bytes_contents",
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "UINT32": "uint_contents",
}
FORMATS = {"BOOL": "?", "INT32": "i", "UINT32": "I"}
"""Of `struct`, for one element."""
LENGTH = struct.Struct("<I")
"""Before each element of a raw BYTES tensor."""


@dataclass(frozen=True, slots=True)
class Kind:
    datatype: str
    many: bool = False
    """One dimension of any size; else of size 1."""


INPUTS = {
    "text_input": Kind("BYTES"),
    "input_ids": Kind("INT32", many=True),
    "stream": Kind("BOOL"),
    "sampling_parameters": Kind("BYTES"),
    "exclude_input_in_output": Kind("BOOL"),
    "return_finish_reason": Kind("BOOL"),
    "return_num_input_tokens": Kind("BOOL"),
    "return_num_output_tokens": Kind("BOOL"),
}
OUTPUTS = {
    "text_output": Kind("BYTES", many=True),
    "finish_reason": Kind("BYTES", many=True),
    "num_input_tokens": Kind("UINT32"),
    "num_output_tokens": Kind("UINT32", many=True),
}


def read(request: pb.ModelInferRequest) -> dict[str, list[Value]]:
    """The elements of each input. Raises InvalidArgument, with the tensor's name."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidArgument(
            f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs: send one for each, or none"
        )
    tensors: dict[str, list[Value]] = {}
    for index, tensor in enumerate(request.inputs):
        kind = _kind(tensor)
        if tensor.name in tensors:
            raise InvalidArgument(f"input {tensor.name} is there twice: send it once")
        if raw and tensor.HasField("contents"):
            raise InvalidArgument(f"input {tensor.name} has contents beside raw_input_contents: send one of them")
        values = _from_raw(tensor, raw[index]) if raw else _from_contents(tensor)
        _check_shape(tensor, kind, len(values))
        tensors[tensor.name] = values
    return tensors


def write(response: pb.ModelInferResponse, name: str, values: Sequence[Value], *, raw: bool) -> None:
    """Adds an output of one dimension."""
    datatype = OUTPUTS[name].datatype
    tensor = response.outputs.add(name=name, datatype=datatype, shape=[len(values)])
    if raw:
        response.raw_output_contents.append(b"".join(_raw(datatype, value) for value in values))
    else:
        getattr(tensor.contents, FIELDS[datatype]).extend(values)


def _kind(tensor: pb.ModelInferRequest.InferInputTensor) -> Kind:
    kind = INPUTS.get(tensor.name)
    if kind is None:
        raise InvalidArgument(f"input {tensor.name[:128]!r} is not supported: there are {', '.join(INPUTS)}")
    if tensor.parameters:
        named = ", ".join(sorted(tensor.parameters))[:128]
        raise InvalidArgument(f"input {tensor.name}: its parameters ({named}) are not supported: leave them out")
    if tensor.datatype != kind.datatype:
        raise InvalidArgument(
            f"input {tensor.name} must have the datatype {kind.datatype}, not {tensor.datatype[:32]!r}"
        )
    return kind


def _check_shape(tensor: pb.ModelInferRequest.InferInputTensor, kind: Kind, size: int) -> None:
    shape = list(tensor.shape)
    if len(shape) != 1 or shape[0] < 1 or (shape[0] != 1 and not kind.many):
        wanted = "[n]" if kind.many else "[1]"
        raise InvalidArgument(f"input {tensor.name} must have the shape {wanted}, not {shape[:8]}")
    if size != shape[0]:
        raise InvalidArgument(f"input {tensor.name} has {size} elements, its shape says {shape[0]}")


def _from_contents(tensor: pb.ModelInferRequest.InferInputTensor) -> list[Value]:
    own = FIELDS[tensor.datatype]
    for field, _ in tensor.contents.ListFields():
        if field.name != own:
            raise InvalidArgument(f"input {tensor.name}: {tensor.datatype} goes into {own}, not into {field.name}")
    return list(getattr(tensor.contents, own))


def _from_raw(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes) -> list[Value]:
    if tensor.datatype == "BYTES":
        return list(_texts(tensor.name, raw))
    one = struct.Struct(f"<{FORMATS[tensor.datatype]}")
    if len(raw) % one.size:
        wanted = f"{tensor.datatype} of {one.size} bytes each"
        raise InvalidArgument(f"input {tensor.name}: {len(raw)} raw bytes are not a whole number of {wanted}")
    return [value for (value,) in one.iter_unpack(raw)]


def _texts(name: str, raw: bytes) -> Iterator[bytes]:
    offset = 0
    while offset < len(raw):
        start = offset + LENGTH.size
        end = start + LENGTH.unpack_from(raw, offset)[0] if start <= len(raw) else start
        if end > len(raw):
            raise InvalidArgument(f"input {name}: a raw BYTES element ends beyond the {len(raw)} bytes that were sent")
        yield raw[start:end]
        offset = end


def _raw(datatype: str, value: Value) -> bytes:
    if isinstance(value, bytes):
        return LENGTH.pack(len(value)) + value
    return struct.pack(f"<{FORMATS[datatype]}", value)
