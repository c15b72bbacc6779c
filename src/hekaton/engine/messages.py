"""What the worker process and its engine process say to each other.

Frames on a stream socket: four bytes of length (big endian), then one MessagePack object. Both unions are closed:
an unknown tag is a protocol error. The worker commands, the engine tells; nothing is answered one to one, so
neither side ever waits for the other.
"""

import struct
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from hekaton.facts import FinishReason, Image, Logprobs, ModelSpec, Parcel, Sampling, Slo, TurnRecord
from hekaton.policy.types import ModelCosts

HEADER = struct.Struct(">I")
MAX_FRAME_BYTES = 64 << 20


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of every message; the tag is the class name."""


# ---- worker → engine


class AddModel(Message, frozen=True):
    """A model may be asked for from now on."""

    name: str
    spec: ModelSpec
    source: str
    costs: ModelCosts | None = None
    """As measured before, on a device of this kind."""
    rehearse: bool = False
    """Prepare for it while there is nothing else to do, and measure it if there are no costs."""


class RemoveModel(Message, frozen=True):
    name: str


class ImageReady(Message, frozen=True):
    """Answers a WantImage: the image stays mapped and leased until ImageDropped."""

    model: str
    image: Image


class ImageFailed(Message, frozen=True):
    model: str
    code: int
    """A gRPC status code."""
    reason: str
    message: str


class Submit(Message, frozen=True):
    """A request to serve. `produced` are tokens of earlier attempts, to go on after."""

    request_id: str
    epoch: int
    failures: int
    model: str
    prompt: tuple[int, ...]
    produced: tuple[int, ...]
    sampling: Sampling
    slo: Slo
    age_s: float
    """Time since acceptance; due times count from then."""
    suspect: bool = False
    """An engine died in a step with it."""
    parcel: Parcel | None = None
    """KV that an earlier attempt has left."""
    tenant: str = ""
    """Who is charged; nobody if empty."""


class Yielding(Message, frozen=True):
    """These tenants, and no others, have had more than their shares: the requests of others go before theirs."""

    tenants: tuple[str, ...]


class Cancel(Message, frozen=True):
    """Ends a request at the next step boundary. Answered by Ended(cancelled) if it was live, else by nothing."""

    request_id: str
    epoch: int


class HandOver(Message, frozen=True):
    """Lets a request go on elsewhere, with its KV. Answered by Ended(handed_over), or by nothing if it is not live."""

    request_id: str
    epoch: int


class ParcelsAt(Message, frozen=True):
    """Where KV may be left for other workers."""

    directory: str


class Stop(Message, frozen=True):
    """Finish the step, then exit."""


Command = AddModel | RemoveModel | ImageReady | ImageFailed | Submit | Yielding | Cancel | HandOver | ParcelsAt | Stop


# ---- engine → worker


class Ready(Message, frozen=True):
    """First message: the device is allocated."""

    device: str
    device_memory_bytes: int
    host_kv_memory_bytes: int = 0


class WantImage(Message, frozen=True):
    """The engine needs a model's image, now or soon."""

    model: str


class ImageDropped(Message, frozen=True):
    """The engine has unmapped a model's image; its lease may end."""

    model: str


class Started(Message, frozen=True):
    """A request's first step begins."""

    request_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class StepOutput:
    request_id: str
    epoch: int
    first_index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[Logprobs, ...] = ()
    """One for each token, if asked for."""


class Step(Message, frozen=True):
    """What one step produced, all requests together."""

    model: str
    outputs: tuple[StepOutput, ...]


class Ended(Message, frozen=True):
    """A request's last message from the engine: its KV is free."""

    request_id: str
    epoch: int
    completion_tokens: int
    preemptions: int
    finish: FinishReason | None = None
    cancelled: bool = False
    handed_over: bool = False
    """It goes on on another worker."""
    parcel: Parcel | None = None
    """Its KV, if it was handed over and has any."""
    error_code: int = 0
    """A gRPC status code if the request failed."""
    error_reason: str = ""
    error: str = ""


class TurnEnded(Message, frozen=True):
    turn: TurnRecord


class LoadEnded(Message, frozen=True):
    """Weights have arrived on the device (for the trace)."""

    model: str
    duration_s: float
    copied_bytes: int


class Status(Message, frozen=True):
    """Sent when what is on the device has changed, and at least once a second while work is done."""

    running_model: str
    resident_models: tuple[str, ...]
    loading_models: tuple[str, ...]
    weights_bytes: int
    kv_bytes: int
    requests_running: int
    requests_waiting: int
    switches: int
    tokens: int
    prefill_tokens: dict[str, int] = {}
    """Tokens of prompts that wait to be computed, by model."""
    costs: dict[str, ModelCosts] = {}
    """Of models that have been on the device: those that are new here or have changed."""
    in_part: tuple[str, ...] = ()
    """Of these, those of which some costs are guesses still."""
    host_kv_bytes: int = 0
    prefilled_tokens: int = 0
    """Computed of prompts, again or for the first time."""
    kv_sent: int = 0
    """Requests that left with their KV."""
    kv_received: int = 0
    kv_lost: int = 0
    """Requests whose KV was away, in host memory or in a parcel, and could not be used."""
    kv_moved_bytes: dict[str, int] = {}
    """"out" to host memory and "in" from there, "sent" and "received" in parcels."""
    used_s: dict[str, float] = {}
    """Seconds of this accelerator by tenant, since the last Status."""


Event = Ready | WantImage | ImageDropped | Started | Step | Ended | TurnEnded | LoadEnded | Status

M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()
command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
event_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


def encode(message: Message) -> bytes:
    """A whole frame, header included. Raises ValueError if the message is larger than MAX_FRAME_BYTES."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"engine message of {len(body)} bytes exceeds {MAX_FRAME_BYTES}")
    return HEADER.pack(len(body)) + body
