"""What an engine is: one accelerator that can hold models, keep KV and run steps.

`hekaton.engine.turns` drives it from one thread. `step` takes its time; what asks for room on the device may have to
move things there first; everything else returns at once. Two engines implement it (`transformers`, `emulated`); an
adapter to an external engine would be a third.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hekaton.facts import Image, Logprobs, ModelSpec, Parcel, Sampling
from hekaton.policy.types import ModelCosts


@dataclass(frozen=True, slots=True)
class StepItem:
    """One request's share of a step: feed `token_ids` at positions `start…`, then sample if `sampling` is set."""

    request_id: str
    token_ids: tuple[int, ...]
    start: int
    """Tokens of this request whose KV is already there."""
    sampling: Sampling | None
    """None for a chunk of a prompt that is not its last."""
    position: int
    """Index of the token to be sampled in the request's output: the counter of its randomness."""
    prompt: Sequence[int] = ()
    """The whole prompt, and the whole output so far, whatever of them is fed: penalties look at them."""
    produced: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token that was chosen."""

    token_id: int
    logprobs: Logprobs | None = None
    """If they were asked for."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    model: str
    duration_s: float
    copied_bytes: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class SwapResult:
    """KV has come back from the host, or, with an error, is lost: compute it again."""

    request_id: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class ExportResult:
    """KV has left in a parcel, or, with an error, is lost."""

    request_id: str
    epoch: int
    parcel: Parcel | None
    error: str = ""


class Engine(Protocol):
    """One accelerator."""

    device: str
    device_memory_bytes: int
    host_kv_memory_bytes: int
    """Host memory for KV that leaves the device; 0 is none."""

    def add_model(self, name: str, spec: ModelSpec, source: str, costs: ModelCosts | None = None) -> None:
        """Makes a model known, and what it costs if that was measured before. Raises ModelTooLarge."""

    def remove_model(self, name: str) -> None:
        """Forgets a model that has no requests; its weights leave the device."""

    def provide_image(self, model: str, image: Image | None) -> None:
        """Maps (or, with None, unmaps) the host image that loads copy from."""

    def resident(self) -> frozenset[str]: ...

    def loading(self) -> frozenset[str]: ...

    def startable(self) -> frozenset[str]:
        """Models that can step: resident ones, and those whose first weights have come.

        A step of the latter waits, part by part, for what it needs.
        """

    def begin_load(self, model: str) -> bool:
        """Starts to copy a model's weights beside compute. False if they do not fit now: evict something first."""

    def hurry(self, model: str) -> None:
        """Lets a load go before others, where there is a choice; nothing happens if there is no such load."""

    def evict(self, model: str) -> None:
        """Frees a resident model's weights, or cancels its load. KV stays."""

    def finished_loads(self) -> list[LoadResult]:
        """Loads that ended since the last call."""

    def fileno(self) -> int | None:
        """Readable when a load or a swap has ended, if the engine has such a thing."""

    def next_event_s(self) -> float | None:
        """When, on time.monotonic(), the next load or swap ends, if the engine knows."""

    def grow_kv(self, request_id: str, model: str, tokens: int) -> bool:
        """Makes room for `tokens` tokens of KV in all. False, and nothing changed, if there is none."""

    def drop_kv(self, request_id: str) -> None:
        """Frees a request's KV, wherever it is. Unknown ids are ignored."""

    def swap_out(self, request_id: str, tokens: int) -> bool:
        """Starts to move the KV of a request's first `tokens` tokens to the host; its room is free at once.

        False, and nothing changed, if the host has no room.
        """

    def swap_in(self, request_id: str) -> bool:
        """Starts to bring a request's KV back. False, and nothing changed, if the device has no room."""

    def finished_swaps(self) -> list[SwapResult]:
        """KV that has come back since the last call."""

    def export_to(self, directory: Path) -> None:
        """Where parcels are made from now on."""

    def export_kv(self, request_id: str, epoch: int, model: str, token_ids: Sequence[int]) -> bool:
        """Starts to put the KV of these tokens, a request's first, into a parcel; its room is free at once.

        False, and nothing changed, if no parcel can be made.
        """

    def finished_exports(self) -> list[ExportResult]:
        """KV that has left since the last call."""

    def import_kv(self, request_id: str, model: str, parcel: Parcel, token_ids: Sequence[int]) -> int:
        """Takes a parcel in, as KV on the host: for how many of these tokens. Its name is gone then, used or not.

        0 if there is no room, or if it is not the KV of these tokens.
        """

    def step(self, model: str, items: Sequence[StepItem]) -> list[Sampled | None]:
        """Runs one step of a startable model. One sampled token per item (None where sampling is None).

        Raises EngineFailed naming the request if one request's numbers are not finite, and if the model's load fails.
        """

    def costs(self, model: str) -> ModelCosts: ...

    def measured(self, model: str) -> bool:
        """Whether its costs were measured in all their parts, and need not be again."""

    def learn(self, model: str, costs: ModelCosts) -> None:
        """What was measured of it, on this device."""

    def weights_bytes(self) -> int: ...

    def kv_bytes(self) -> int: ...

    def host_kv_bytes(self) -> int:
        """Host memory that KV takes."""

    def check_integrity(self) -> None:
        """Raises AssertionError if any allocator's books do not balance."""

    def close(self) -> None: ...
