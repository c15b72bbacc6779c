"""What the client takes and gives. No protobuf here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from hekaton.facts import FinishReason, Logprobs, ModelSpec, ModelState, RequestStats, Slo
from hekaton.policy.costs import DeviceProfile


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model wants its client to call a function."""

    id: str
    name: str
    arguments: str
    """A JSON object, as the model wrote it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat."""

    role: str
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    """Of the role "assistant": the calls that it made."""
    tool_call_id: str = ""
    """Of the role "tool": which of them the content answers."""
    name: str = ""
    """Of the role "tool": the function that was called."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may ask its client to call."""

    name: str
    description: str = ""
    """What it is good for, in words for the model."""
    parameters: Mapping[str, object] | None = None
    """JSON Schema of its arguments, an object; None if there are none."""
    strict: bool = False
    """The arguments follow the schema wherever the model calls it."""


class ToolChoice(StrEnum):
    """Whether a model may call tools."""

    AUTO = "auto"
    NONE = "none"
    """It is not told of them."""
    REQUIRED = "required"
    """It calls at least one."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation with tools."""

    messages: Sequence[Message]
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice | str | None = None
    """Or the name of the tool that it calls; AUTO if None."""
    parallel_tool_calls: bool | None = None
    """False: the output ends with its first call."""


Prompt = str | Sequence[int] | Sequence[Message] | Chat


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """What some tokens add to a call: id and name come with its beginning."""

    index: int
    id: str
    name: str
    arguments: str


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
    tool_calls: tuple[ToolCallDelta, ...] = ()
    """What they add to calls. It is not in the text."""


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
    tool_calls: tuple[ToolCall, ...] = ()


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
    tool_parser: str = ""
    """How its calls of tools are read; as its chat template says if empty."""


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
