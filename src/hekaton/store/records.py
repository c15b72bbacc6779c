"""What is stored of a request, and how it is packed."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from hekaton.errors import HekatonError
from hekaton.facts import RequestRecord, RequestState, RequestStats

SUMMARY_FIELDS = (
    "record",
    "state",
    "epoch",
    "failures",
    "worker",
    "accepted_ms",
    "produced_tokens",
    "router",
    "strikes",
    "reason",
    "stats",
)
TOKEN_BYTES = 4


@dataclass(frozen=True, slots=True)
class RequestSummary:
    """A request without its token ids."""

    record: RequestRecord
    state: RequestState
    epoch: int
    failures: int
    worker_id: str
    """The one that holds it, or held it at its end; empty while it waits."""
    age_s: float
    """Since acceptance, by the server's clock."""
    produced_tokens: int
    """As of the last checkpoint."""
    router_id: str
    """Where its tokens go."""
    strikes: int
    """Engines that died by themselves in a step with it."""
    reason: str
    """Why it ended; empty while live."""
    stats: RequestStats | None


@dataclass(frozen=True, slots=True)
class StoredRequest:
    summary: RequestSummary
    prompt: tuple[int, ...]
    produced: tuple[int, ...]
    """As of the last checkpoint; all of them once a worker has ended it."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a request, as a transition found it."""

    state: RequestState
    """A terminal one if the transition came too late."""
    worker_id: str
    epoch: int


class Unreadable(HekatonError):
    """A stored request that cannot be decoded: damaged, or written by another version."""


def pack(token_ids: Sequence[int]) -> bytes:
    """Four bytes a token, little-endian."""
    return struct.pack(f"<{len(token_ids)}I", *token_ids)


def unpack(packed: bytes) -> tuple[int, ...]:
    """Raises Unreadable."""
    try:
        return struct.unpack(f"<{len(packed) // TOKEN_BYTES}I", packed)
    except (struct.error, TypeError) as error:
        raise Unreadable(f"stored token ids cannot be decoded: {error}") from error


def state(stored: bytes) -> RequestState:
    """FAILED if it cannot be decoded."""
    try:
        return RequestState(stored.decode(errors="replace"))
    except ValueError:
        return RequestState.FAILED


def summary(now: tuple[int, int], fields: Sequence[bytes]) -> RequestSummary:
    """From the reply to TIME (seconds, microseconds) and the values of SUMMARY_FIELDS; the last two may be missing.

    Raises Unreadable.
    """
    try:
        return _summary(now, fields)
    except (msgspec.MsgspecError, ValueError, TypeError, AttributeError) as error:
        raise Unreadable(f"a stored request cannot be decoded: {error}") from error


def _summary(now: tuple[int, int], fields: Sequence[bytes]) -> RequestSummary:
    record, state, epoch, failures, worker, accepted_ms, produced_tokens, router, strikes, reason, stats = fields
    return RequestSummary(
        record=msgspec.json.decode(record, type=RequestRecord),
        state=RequestState(state.decode()),
        epoch=int(epoch),
        failures=int(failures),
        worker_id=worker.decode(),
        age_s=now[0] + now[1] / 1e6 - int(accepted_ms) / 1000,
        produced_tokens=int(produced_tokens),
        router_id=router.decode(),
        strikes=int(strikes or 0),
        reason=(reason or b"").decode(),
        stats=msgspec.json.decode(stats, type=RequestStats) if stats else None,
    )
