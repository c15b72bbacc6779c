"""A generation's events as answers of the protocol: piece by piece, or one when all of it is there."""

from hekaton.errors import HekatonError
from hekaton.oip import open_inference_pb2 as pb
from hekaton.rpc import convert
from hekaton.v1 import inference_pb2
from hekaton_router.oip.models import VERSION
from hekaton_router.oip.requests import Asked
from hekaton_router.oip.tensors import Value, write

GOES_ON = "None"
"""The finish reason of an output that has not ended, as clients of vLLM's backend know it."""


class Answers:
    """Of one request. Each answer has an element for every output of the model, empty where nothing came."""

    def __init__(self, asked: Asked, accepted: inference_pb2.Accepted) -> None:
        self._asked = asked
        self._accepted = accepted
        self._running = asked.choices
        self._texts = [[asked.repeated] for _ in range(asked.choices)]
        self._reasons = [GOES_ON] * asked.choices
        self._tokens = [0] * asked.choices

    def take(self, event: inference_pb2.GenerateResponse) -> pb.ModelInferResponse | None:
        """The answer that is due with this event, if any."""
        if event.HasField("tokens"):
            self._texts[event.tokens.choice].append(event.tokens.text)
            self._tokens[event.tokens.choice] += len(event.tokens.token_ids)
        else:
            self._reasons[event.finished.choice] = convert.finish_from_pb(event.finished.reason)
            self._running -= 1
        return self._answer() if self._asked.stream or not self._running else None

    def _answer(self) -> pb.ModelInferResponse:
        asked = self._asked
        answer = _begun(asked.id, asked.model, final=not self._running)
        answer.parameters["request_id"].string_param = self._accepted.request_id
        values: dict[str, list[Value]] = {
            "text_output": ["".join(texts).encode() for texts in self._texts],
            "finish_reason": [reason.encode() for reason in self._reasons],
            "num_input_tokens": [self._accepted.prompt_tokens],
            "num_output_tokens": list(self._tokens),
        }
        for name in asked.outputs:
            write(answer, name, values[name], raw=asked.raw)
        self._texts = [[] for _ in self._texts]
        self._tokens = [0] * len(self._tokens)
        return answer


def failed(request: pb.ModelInferRequest, error: HekatonError) -> pb.ModelStreamInferResponse:
    """What a stream says of a request that failed, besides the message: the error's code, its reason, when to retry."""
    answer = _begun(request.id, request.model_name, final=True)
    answer.parameters["error_code"].string_param = error.code.name
    answer.parameters["error_reason"].string_param = error.reason
    if error.retry_after_s is not None:
        answer.parameters["retry_after_s"].double_param = error.retry_after_s
    return pb.ModelStreamInferResponse(error_message=error.message or error.code.name, infer_response=answer)


def _begun(request_id: str, model: str, *, final: bool) -> pb.ModelInferResponse:
    answer = pb.ModelInferResponse(model_name=model, model_version=VERSION, id=request_id)
    answer.parameters["triton_final_response"].bool_param = final
    return answer
