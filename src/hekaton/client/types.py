"""What the client takes and gives. No protobuf here."""

from collections.abc import Sequence
from dataclasses import dataclass

from hekaton.facts import FinishReason, ModelSpec, ModelState, RequestStats, Slo


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat."""

    role: str
    content: str


Prompt = str | Sequence[int] | Sequence[Message]


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """None leaves a field to the pool's default."""

    max_tokens: int | None = None
    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """First event: the pool will not lose this request."""

    request_id: str
    prompt_tokens: int
    seed: int
    slo: Slo


@dataclass(frozen=True, slots=True)
class Tokens:
    """The next tokens of the output, and the text that they add."""

    first_index: int
    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event of a generation that ended well."""

    reason: FinishReason
    stats: RequestStats


GenerationEvent = Accepted | Tokens | Finished


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole generation."""

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    reason: FinishReason
    stats: RequestStats


@dataclass(frozen=True, slots=True)
class Model:
    """A registered model and where it is."""

    name: str
    source: str
    state: ModelState
    slo: Slo
    spec: ModelSpec | None
    error: str
    resident_on: tuple[str, ...]
    running_on: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Worker:
    """What a worker last said of itself."""

    worker_id: str
    address: str
    device: str
    device_memory_bytes: int
    weights_bytes: int
    kv_bytes: int
    running_model: str
    resident_models: tuple[str, ...]
    loading_models: tuple[str, ...]
    requests_running: int
    requests_waiting: int
    switches: int
    tokens: int
    draining: bool
    host_kv_bytes: int
    """Host memory that KV off the device takes, of `host_kv_memory_bytes` that it may."""
    host_kv_memory_bytes: int


@dataclass(frozen=True, slots=True)
class Pool:
    """Who runs what."""

    workers: tuple[Worker, ...]
    queued_requests: int
    leader_term: int
    """0 if no scheduler leads."""
