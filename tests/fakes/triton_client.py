"""A program that uses Triton's own client, in a process of its own: its protobuf is older than ours.

Gets the address of a router, its authority's certificate, a key and a model; tells as JSON what it saw.
"""

import json
import queue
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from google.protobuf import descriptor_pb2
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

PROMPT = b"once upon a time"
Answer = tuple[Any, Any]


class Program:
    def __init__(self, address: str, ca: str, key: str, model: str) -> None:
        self._client = triton.InferenceServerClient(address, ssl=True, root_certificates=ca)
        self._headers = {"authorization": f"Bearer {key}"}
        self._model = model

    def run(self) -> dict[str, object]:
        return {
            "server": self._server(),
            "whole": self._whole(),
            "streams": self._streams(),
            "repository": self._repository(),
            "refused": {name: self._refused(call) for name, call in self._mistakes().items()},
            "refused_in_streams": [self._refused_in_stream(strict) for strict in ("false", "true")],
            "cancelled": self._cancelled(),
            "protocol": _protocol(),
        }

    def _server(self) -> list[object]:
        client, headers = self._client, self._headers
        metadata = client.get_model_metadata(self._model, headers=headers, as_json=True)
        return [
            client.is_server_live(headers=headers),
            client.is_server_ready(headers=headers),
            client.is_model_ready(self._model, headers=headers),
            client.is_model_ready("nobody", headers=headers),
            client.get_server_metadata(headers=headers).name,
            [tensor["name"] for tensor in metadata["outputs"]],
        ]

    def _whole(self) -> dict[str, object]:
        result = self._infer(
            _inputs(return_finish_reason=True, return_num_output_tokens=True),
            outputs=[triton.InferRequestedOutput("text_output"), triton.InferRequestedOutput("num_input_tokens")],
            request_id="1",
        )
        return {
            "id": result.get_response().id,
            "text": result.as_numpy("text_output")[0].decode(),
            "finish_reason": result.as_numpy("finish_reason")[0].decode(),
            "tokens": [int(result.as_numpy(name)[0]) for name in ("num_input_tokens", "num_output_tokens")],
        }

    def _infer(self, inputs: list[Any], **more: Any) -> Any:
        sent: dict[str, Any] = {"headers": self._headers, "parameters": {"max_tokens": 20, "seed": 7}} | more
        return self._client.infer(self._model, inputs, **sent)

    def _streams(self) -> dict[str, list[list[object]]]:
        """Two requests on one stream: of each its answers, as text and whether that was the last."""
        answers = self._begin()
        for request_id in ("a", "b"):
            self._ask(request_id, enable_empty_final_response=True)
        self._client.stop_stream()
        told: dict[str, list[list[object]]] = {"a": [], "b": []}
        while not answers.empty():
            result, error = answers.get()
            assert error is None, error
            response = result.get_response()
            final = response.parameters["triton_final_response"].bool_param
            told[response.id].append([result.as_numpy("text_output")[0].decode(), final])
        return told

    def _begin(self, **headers: str) -> "queue.Queue[Answer]":
        answers: queue.Queue[Answer] = queue.Queue()
        self._client.start_stream(
            lambda result, error: answers.put((result, error)), headers={**self._headers, **headers}
        )
        return answers

    def _ask(self, request_id: str, model: str = "", max_tokens: int = 20, **more: Any) -> None:
        parameters = {"max_tokens": max_tokens, "seed": 7}
        inputs = _inputs(stream=True)
        self._client.async_stream_infer(
            model or self._model, inputs, request_id=request_id, parameters=parameters, **more
        )

    def _repository(self) -> list[list[str]]:
        """Its models and their states, when one has been unloaded and loaded again."""
        client, headers = self._client, self._headers
        client.unload_model(self._model, headers=headers)
        client.load_model(self._model, headers=headers)
        return [[model.name, model.state] for model in client.get_model_repository_index(headers=headers).models]

    def _mistakes(self) -> dict[str, Callable[[], object]]:
        client, headers, load = self._client, self._headers, self._client.load_model
        return {
            "no key": lambda: client.is_server_live(),
            "unknown model": lambda: client.infer("nobody", _inputs(), headers=headers),
            "priority": lambda: self._infer(_inputs(), priority=1),
            "sequence": lambda: self._infer(_inputs(), sequence_id=1),
            "parameter": lambda: self._infer(_inputs(), parameters={"lora_name": "x"}),
            "shape": lambda: self._infer([_tensor("text_input", [b"a", b"b"], "BYTES")]),
            "stream": lambda: self._infer(_inputs(stream=True)),
            "config": lambda: load(self._model, headers=headers, config="{}"),
            "no such call": lambda: client.get_model_config(self._model, headers=headers),
        }

    @staticmethod
    def _refused(call: Callable[[], object]) -> list[str]:
        try:
            call()
        except InferenceServerException as error:
            return [error.status(), error.message()]
        return []

    def _refused_in_stream(self, strict: str) -> list[str | None]:
        answers = self._begin(triton_grpc_error=strict)
        self._ask("lost", model="nobody")
        _, error = answers.get(timeout=60)
        self._client.stop_stream()
        return [error.status(), error.message()]

    def _cancelled(self) -> str:
        """The pool's id of a request that was left after its first tokens."""
        answers = self._begin()
        self._ask("left", max_tokens=4000)
        result, _ = answers.get(timeout=60)
        self._client.stop_stream(cancel_requests=True)
        request_id: str = result.get_response().parameters["request_id"].string_param
        return request_id


def _inputs(**flags: bool) -> list[Any]:
    return [
        _tensor("text_input", [PROMPT], "BYTES"),
        *(_tensor(name, [value], "BOOL") for name, value in flags.items()),
    ]


def _tensor(name: str, values: list[Any], datatype: str) -> Any:
    tensor = triton.InferInput(name, [len(values)], datatype)
    tensor.set_data_from_numpy(np.array(values, dtype=object if datatype == "BYTES" else bool))
    return tensor


def _protocol() -> str:
    """The client's own definition of it, serialized, in hexadecimal."""
    file = descriptor_pb2.FileDescriptorProto()
    service_pb2.DESCRIPTOR.CopyToProto(file)
    return file.SerializeToString().hex()


if __name__ == "__main__":
    print(json.dumps(Program(*sys.argv[1:5]).run()))
