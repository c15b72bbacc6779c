"""What a simulated worker runs next: steps that are all alike but for the growth of the context, as one stretch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hekaton.engine.room import Room
from hekaton.policy.types import ModelCosts
from hekaton.sim.device import Device
from hekaton.sim.request import SimRequest, Stretch

MAX_BATCH = 64
PREFILL_TOKENS = 512
"""Prompts that join one step, unless one alone is longer: the live loop feeds that in chunks, at the same cost."""


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of one model's requests."""

    stretch: Stretch
    requests: tuple[SimRequest, ...]

    def cut(self, time_s: float) -> "Run | None":
        """The same up to the step under way at `time_s`; None if that is its last."""
        stretch = self.stretch
        steps = stretch.steps_by(time_s)
        if steps == stretch.steps:
            return None
        return Run(Stretch(stretch.start_s, stretch.step_s, stretch.growth_s, steps), self.requests)


class Stepper:
    """Continuous batching on one device. `max_steps` bounds a stretch."""

    def __init__(self, device: Device, room: Room[SimRequest], costs: Mapping[str, ModelCosts], max_steps: int) -> None:
        self._device = device
        self._room = room
        self._costs = costs
        self._max_steps = max_steps

    def compose(self, model: str, requests: Sequence[SimRequest], until_s: float, now_s: float) -> Run | None:
        """A step with the prompts that wait, else decode steps. None if none of the requests can run now."""
        for request in requests:
            if request.host_tokens and not request.fetching and self._room.for_kv(request, request.host_tokens, now_s):
                self._device.fetch_kv(request, now_s)
        prompts = self._prompts(requests, now_s)
        batch = self._with_kv([one for one in requests if one.computed][: MAX_BATCH - len(prompts)], now_s)
        # A prompt may have lost its room to a request that came after it.
        prompts = [one for one in prompts if one.kv_bytes]
        if prompts:
            return self._mixed(self._costs[model], prompts, batch, now_s)
        return self._decode(self._costs[model], batch, until_s, now_s) if batch else None

    def fetch_beside(self, requests: Sequence[SimRequest], now_s: float) -> None:
        """Brings KV from the host into free room only."""
        for request in requests:
            wanted = request.host_tokens and not request.fetching
            if wanted and self._device.grow_kv(request, request.host_tokens, now_s):
                self._device.fetch_kv(request, now_s)

    def _prompts(self, requests: Sequence[SimRequest], now_s: float) -> list[SimRequest]:
        """Those that are computed in the next step."""
        budget = PREFILL_TOKENS
        taken: list[SimRequest] = []
        for request in requests:
            fits = request.pending and (not taken or request.pending <= budget)
            if fits and self._room.for_kv(request, request.pending, now_s):
                budget -= request.pending
                taken.append(request)
        return taken

    def _with_kv(self, batch: list[SimRequest], now_s: float) -> list[SimRequest]:
        """Those with room for one more token. One that was taken may lose its KV to one that comes after it."""
        grown = [
            one
            for one in batch
            if one.computed and (one.computed < one.kv_tokens or self._room.for_kv(one, one.computed + 1, now_s))
        ]
        return [one for one in grown if one.computed]

    def _mixed(self, costs: ModelCosts, prompts: list[SimRequest], batch: list[SimRequest], now_s: float) -> Run:
        tokens, context = sum(one.pending for one in prompts), sum(one.computed for one in batch)
        return Run(Stretch(now_s, costs.mixed_s(tokens, len(batch), context), 0.0, 1), (*prompts, *batch))

    def _decode(self, costs: ModelCosts, batch: list[SimRequest], until_s: float, now_s: float) -> Run:
        """Decode steps until the first request or the turn ends. KV is set aside for all of them."""
        step_s = costs.step_s(len(batch), sum(one.computed for one in batch))
        most = min(self._max_steps, *(one.output_tokens - one.produced for one in batch))
        stretch = Stretch(now_s, step_s, costs.step_s_per_context_token * len(batch), most)
        steps = self._set_aside(batch, stretch.steps_by(until_s))
        return Run(Stretch(now_s, step_s, stretch.growth_s, steps), tuple(batch))

    def _set_aside(self, batch: list[SimRequest], steps: int) -> int:
        """Takes KV for as many of `steps` steps as there is free room for, halving until it fits."""
        while sum(self._device.growth_bytes(one, one.computed + steps) for one in batch) > self._device.free_bytes:
            steps = max(steps // 2, 1)
        for one in batch:
            self._device.set_kv(one, one.computed + steps)
        return steps
