"""Facts that several processes share: what is stored in Redis and sent to the engine.

Plain frozen dataclasses; `msgspec` turns them into JSON (Redis) and MessagePack (engine socket).
Protobuf stays on the wire: `hekaton.rpc.convert` translates at the edge.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class RequestState(StrEnum):
    """Life of a request: QUEUED → PLACED → RUNNING → one of the three terminal states."""

    QUEUED = "queued"
    PLACED = "placed"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def terminal(self) -> bool:
        return self in (RequestState.FINISHED, RequestState.CANCELLED, RequestState.FAILED)


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    """As STOP, where the router has read calls of tools in the text. Engines know of none."""


class ModelState(StrEnum):
    PREPARING = "preparing"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Slo:
    """Token i of a request is due at acceptance + ttft_s + i · tbt_s."""

    ttft_s: float
    tbt_s: float


class SloClass(StrEnum):
    """How urgent a request is, where nobody wants to name seconds."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"

    def of(self, slo: Slo) -> Slo:
        """What it makes of a model's objective."""
        ttft, tbt = {"interactive": (0.5, 1.0), "standard": (1.0, 1.0), "batch": (30.0, 5.0)}[self.value]
        return Slo(slo.ttft_s * ttft, slo.tbt_s * tbt)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; every field decided (the router fills what the client left open)."""

    max_tokens: int
    seed: int
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    stop_token_ids: tuple[int, ...] = ()
    """Every token that ends the generation, the model's own end tokens included unless ignored."""
    min_p: float = 0.0
    """Keeps tokens at least this part as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Of tokens in prompt and output."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    """Both of tokens in the output."""
    logit_bias: dict[int, float] = field(default_factory=dict)
    """Added, by token id."""
    stop: tuple[str, ...] = ()
    """Texts that end the generation. The router finds them; an engine knows tokens only."""
    min_tokens: int = 0
    """No end before so many."""
    logprobs: int | None = None
    """So many of the likeliest tokens with each token's own log probability; None is neither."""
    json_schema: str = ""
    """The output is a JSON text that follows it; empty: any text."""
    grammar: str = ""
    """The output follows it, as the router wrote it for calls of tools: Lark's syntax as llguidance has it."""
    choice: int = 0
    """Which of several outputs of one prompt; part of the key of its randomness."""

    @property
    def constrained(self) -> bool:
        """Not every token may come next."""
        return bool(self.json_schema or self.grammar)


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log probabilities at one position of the model's own distribution."""

    logprob: float
    """Of the token that was chosen."""
    top_ids: tuple[int, ...] = ()
    """The likeliest first."""
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What was learnt of a checkpoint when its image was made."""

    digest: str
    architecture: str
    dtype: str
    weight_bytes: int
    kv_bytes_per_token: int
    max_context_tokens: int
    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A registered model."""

    name: str
    source: str
    dtype: str
    slo: Slo
    state: ModelState
    spec: ModelSpec | None = None
    error: str = ""
    created: int = 0
    """When it was registered: seconds since 1970, on its router's clock."""
    pinned: bool = False
    """Every memory service keeps its weights."""
    tool_parser: str = ""
    """How its calls of tools are read; empty: as its chat template says."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who asks, and what he may. Zeros and an empty tuple set no limit."""

    name: str = ""
    """Empty: nobody has to say who he is."""
    admin: bool = False
    """May change the catalog and watch the pool."""
    models: tuple[str, ...] = ()
    """The only ones that he may use and see."""
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    """Of prompts and outputs."""
    concurrent: int = 0
    """Requests at the same time."""
    weight: float = 1.0
    """His share of the accelerators, where more is asked for than there is."""

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models

    @property
    def limited(self) -> bool:
        return any((self.requests_per_minute, self.tokens_per_minute, self.concurrent))


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What the router accepts and the pool needs to serve a request; never changed afterwards."""

    request_id: str
    router_id: str
    model: str
    prompt_tokens: int
    sampling: Sampling
    slo: Slo
    deadline_s: float
    """Budget from acceptance to the terminal event."""
    tenant: str = ""
    """Whose request it is; nobody else may see or end it."""
    trace_context: str = ""
    """W3C traceparent of the router's span."""
    choices: int = 1
    """Outputs that its client asked for; this one is the first of them."""
    resume_window_s: float = 0.0
    """How long it goes on without a client; 0: it is cancelled when its client is gone."""
    tool_parser: str = ""
    """How calls of tools are read in its text; empty: it is all text."""
    parallel_tool_calls: bool = True
    """False: its text ends with the first call."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a weight image. `offset` is in bytes from the start of the segment."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Image:
    """A weight image in shared memory, in execution order."""

    path: str
    nbytes: int
    tensors: tuple[TensorEntry, ...]
    config_json: str


@dataclass(frozen=True, slots=True)
class Parcel:
    """The KV of a request on its way to another worker."""

    path: str
    """Of its file on this host; empty where KV is emulated."""
    tokens: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class RequestStats:
    prompt_tokens: int
    completion_tokens: int
    preemptions: int
    epoch: int
    failures: int
    worker_id: str


class Weights(StrEnum):
    """Where a turn found its model's weights."""

    RESIDENT = "resident"
    """On the device, from an earlier turn."""
    PREFETCH = "prefetch"
    """On the device, copied there beside another model's turn."""
    DEMAND = "demand"
    """Not there, or not all of them: the turn waited."""


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """One turn of a worker: one model, from one switch to the next. Times are seconds since the engine's start."""

    index: int
    worker_id: str
    model: str
    start_s: float
    duration_s: float
    exposed_switch_s: float
    switched: bool
    copied_bytes: int
    steps: int
    tokens: int
    preempted_request_ids: tuple[str, ...]
    weights: Weights = Weights.RESIDENT


def token_crc(token_ids: Sequence[int], crc: int = 0) -> int:
    """CRC-32 of token ids, four bytes each, little-endian; goes on after `crc`. A client and a router compare it."""
    return zlib.crc32(struct.pack(f"<{len(token_ids)}I", *token_ids), crc)
