"""Requests of the Open Inference Protocol, and what comes back."""

import struct
from collections.abc import AsyncIterator, Mapping, Sequence

import grpc.aio

from hekaton.errors import HekatonError
from hekaton.oip import open_inference_pb2 as pb
from hekaton.rpc.errors import from_rpc_error

Parameter = bool | int | float | str
Value = str | bool | Sequence[int]
"""Of a tensor: BYTES, BOOL or INT32."""


def typed(
    inputs: Mapping[str, Value],
    outputs: Sequence[str] = (),
    *,
    model: str = "m",
    id_: str = "",
    **parameters: Parameter,
) -> pb.ModelInferRequest:
    """A request whose tensors are typed."""
    request = pb.ModelInferRequest(model_name=model, id=id_)
    for name, value in inputs.items():
        if isinstance(value, str):
            contents, datatype = pb.InferTensorContents(bytes_contents=[value.encode()]), "BYTES"
        elif isinstance(value, bool):
            contents, datatype = pb.InferTensorContents(bool_contents=[value]), "BOOL"
        else:
            contents, datatype = pb.InferTensorContents(int_contents=value), "INT32"
        size = len(value) if datatype == "INT32" and not isinstance(value, str | bool) else 1
        request.inputs.add(name=name, datatype=datatype, shape=[size], contents=contents)
    for output in outputs:
        request.outputs.add(name=output)
    for name, given in parameters.items():
        request.parameters[name].CopyFrom(parameter(given))
    return request


def raw(request: pb.ModelInferRequest) -> pb.ModelInferRequest:
    """The same with raw tensors, as most clients send them."""
    for tensor in request.inputs:
        contents = tensor.contents
        if tensor.datatype == "BYTES":
            packed = b"".join(struct.pack("<I", len(one)) + one for one in contents.bytes_contents)
        elif tensor.datatype == "BOOL":
            packed = struct.pack(f"<{len(contents.bool_contents)}?", *contents.bool_contents)
        else:
            packed = struct.pack(f"<{len(contents.int_contents)}i", *contents.int_contents)
        request.raw_input_contents.append(packed)
        tensor.ClearField("contents")
    return request


def parameter(value: Parameter) -> pb.InferParameter:
    match value:
        case bool():
            return pb.InferParameter(bool_param=value)
        case int():
            return pb.InferParameter(int64_param=value)
        case float():
            return pb.InferParameter(double_param=value)
        case str():
            return pb.InferParameter(string_param=value)


def text_of(response: pb.ModelInferResponse, output: str = "text_output") -> list[str]:
    """The elements of a BYTES output, whichever way they came."""
    index = [tensor.name for tensor in response.outputs].index(output)
    if not response.raw_output_contents:
        return [one.decode() for one in response.outputs[index].contents.bytes_contents]
    packed, texts = response.raw_output_contents[index], []
    while packed:
        (size,) = struct.unpack_from("<I", packed)
        texts.append(packed[4 : 4 + size].decode())
        packed = packed[4 + size :]
    return texts


def final(response: pb.ModelInferResponse) -> bool:
    return response.parameters["triton_final_response"].bool_param


async def error_of(call: grpc.aio.UnaryUnaryCall[pb.ModelInferRequest, pb.ModelInferResponse]) -> HekatonError:
    """What a call ends with."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    raise AssertionError("the call succeeded")


async def sent(*requests: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferRequest]:
    """All of a stream."""
    for request in requests:
        yield request
