"""What a request must be to be accepted: pure checks, each with its own error."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from hekaton.errors import InvalidArgument, ModelNotReady, ModelTooLarge, NoWorker, ResourceExhausted
from hekaton.facts import CatalogEntry, ModelSpec, ModelState, Slo
from hekaton.policy.admission import Outlook
from hekaton.rpc import convert
from hekaton.v1 import common_pb2, inference_pb2

KV_BLOCK_TOKENS = 16
MAX_SLO_S = 86_400.0
DEFAULT_RESUME_WINDOW_S = 60.0
REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
MIN_RETRY_S, MAX_RETRY_S = 1.0, 30.0
EMULATED = "emulated"
Prompted = inference_pb2.GenerateRequest | inference_pb2.TokenizeRequest | inference_pb2.CountTokensRequest


@dataclass(frozen=True, slots=True)
class Device:
    """A live worker's accelerator, as far as admission cares."""

    kind: str
    memory_bytes: int

    @property
    def emulated(self) -> bool:
        return self.kind.startswith(EMULATED)


def check_request_id(request_id: str) -> None:
    if not REQUEST_ID.fullmatch(request_id):
        raise InvalidArgument("request_id must be 1 to 128 of A-Z a-z 0-9 . _ : -, the first a letter or digit")


def ready_spec(entry: CatalogEntry) -> ModelSpec:
    """The spec of a model that can serve. Raises ModelNotReady."""
    if entry.state is ModelState.READY and entry.spec:
        return entry.spec
    why = f": {entry.error}" if entry.error else "; try again when it is ready"
    raise ModelNotReady(f"model {entry.name} is {entry.state.value}{why}")


def check_prompt(token_ids: list[int], spec: ModelSpec) -> None:
    if not token_ids:
        raise InvalidArgument("the prompt is empty: send at least one token")
    if max(token_ids) >= spec.vocab_size:
        raise InvalidArgument(f"token id {max(token_ids)} is not below the model's vocabulary size {spec.vocab_size}")


def decide_slo(message: common_pb2.Slo, default: Slo) -> Slo:
    """The request's objective, where it says nothing the model's, as its class has it."""
    if message.slo_class:
        if message.slo_class not in convert.SLO_CLASS_FROM_PB:
            raise InvalidArgument(f"slo.slo_class: there is no class {message.slo_class}")
        if message.HasField("ttft") and message.HasField("tbt"):
            raise InvalidArgument("slo.slo_class changes nothing where ttft and tbt are both set: leave it out")
        default = convert.SLO_CLASS_FROM_PB[message.slo_class].of(default)
    slo = convert.slo_from_pb(message, default)
    for name, value in (("ttft", slo.ttft_s), ("tbt", slo.tbt_s)):
        if not 0 < value <= MAX_SLO_S:
            raise InvalidArgument(f"slo.{name} must be above 0 s and at most {MAX_SLO_S:g} s, not {value:g} s")
    return slo


def decide_resume_window_s(request: inference_pb2.GenerateRequest, most_s: float) -> float:
    """How long the request goes on without its client; 0 if it does not."""
    if request.on_disconnect != inference_pb2.ON_DISCONNECT_KEEP:
        return 0.0
    if request.sampling.n > 1:
        raise InvalidArgument("sampling.n: only a single output can be resumed; send on_disconnect CANCEL with more")
    if not request.HasField("resume_window"):
        return min(DEFAULT_RESUME_WINDOW_S, most_s)
    window_s = convert.seconds(request.resume_window)
    if not 0 < window_s <= most_s:
        raise InvalidArgument(f"resume_window must be above 0 s and at most {most_s:g} s, not {window_s:g} s")
    return window_s


def check_promise(model: str, slo: Slo, outlook: Outlook | None) -> None:
    """That the pool can keep the objective, as far as anybody knows. Raises ResourceExhausted."""
    if outlook is None:
        return
    ttft_s = outlook.ttft_s(slo.tbt_s)
    if ttft_s > slo.ttft_s:
        raise ResourceExhausted(
            f"the pool is too busy to serve model {model} within {slo.ttft_s:g} s; it could within {ttft_s:.1f} s: "
            "try again, or ask for a longer ttft",
            retry_after_s=min(max(ttft_s - slo.ttft_s, MIN_RETRY_S), MAX_RETRY_S),
        )


def kv_bytes(spec: ModelSpec, tokens: int) -> int:
    """Bytes of KV cache for so many tokens, in whole blocks."""
    return math.ceil(tokens / KV_BLOCK_TOKENS) * KV_BLOCK_TOKENS * spec.kv_bytes_per_token


def check_pool(model: str, spec: ModelSpec, devices: Iterable[Device]) -> None:
    """That some live device can hold the model. Raises NoWorker or ModelTooLarge."""
    largest = _largest(model, spec, devices)
    least = spec.weight_bytes + kv_bytes(spec, 1)
    if least > largest:
        raise ModelTooLarge(
            f"model {model} needs {least} bytes (weights and one KV block), the largest device has {largest}: "
            "start a worker with more device memory"
        )


def check_room(model: str, spec: ModelSpec, tokens: int, devices: Iterable[Device]) -> None:
    """That prompt and output fit beside the weights on the largest device. Raises NoWorker or InvalidArgument."""
    room = _largest(model, spec, devices) - spec.weight_bytes
    needed = kv_bytes(spec, tokens)
    if needed > room:
        raise InvalidArgument(
            f"{tokens} tokens (prompt and max_tokens) need {needed} bytes of KV cache, the largest device has {room} "
            f"beside the weights of {model}: shorten the prompt or lower max_tokens"
        )


def _largest(model: str, spec: ModelSpec, devices: Iterable[Device]) -> int:
    """Memory of the largest device that may run the model: emulated models run on emulated devices only."""
    emulated = spec.architecture == EMULATED
    sizes = [device.memory_bytes for device in devices if device.emulated == emulated]
    if not sizes:
        raise NoWorker(f"no live worker can run model {model}: start one")
    return max(sizes)


def check_prompt_form(request: Prompted) -> None:
    if request.WhichOneof("prompt") is None:
        raise InvalidArgument("send exactly one prompt: text, chat or token_ids")
