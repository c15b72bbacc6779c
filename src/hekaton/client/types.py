"""What the client takes and gives. No protobuf here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hekaton.facts import FinishReason, Logprobs, ModelSpec, ModelState, RequestStats, Slo
from hekaton.policy.costs import DeviceProfile


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
    """Go on past the model's end tokens."""
    min_p: float | None = None
    repetition_penalty: float | None = None
    """Of tokens in prompt and output; the other two of those in the output."""
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    """Texts that end the generation and are not delivered."""
    min_tokens: int | None = None
    logprobs: int | None = None
    """Log probabilities of each token and of so many of the likeliest."""
    n: int | None = None
    """Outputs of the prompt."""
    json_schema: Mapping[str, object] | None = None
    """The output is a JSON text that it describes. `{}` is any JSON."""


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
    choice: int = 0
    logprobs: tuple[Logprobs, ...] = ()
    """One for each token, if asked for."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event of an output that ended well."""

    reason: FinishReason
    stats: RequestStats
    choice: int = 0


GenerationEvent = Accepted | Tokens | Finished


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole generation."""

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    reason: FinishReason
    stats: RequestStats
    logprobs: tuple[Logprobs, ...] = ()


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
    profiles: tuple[DeviceProfile, ...] = ()
    """What it costs on each kind of device that has measured it, if one model was asked for."""
    aliases: tuple[str, ...] = ()
    """Other names of it."""
    created: int = 0
    """When it was registered, in seconds since 1970."""
    pinned: bool = False
    """Every host keeps its weights in memory."""


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
