"""Who gives way when a simulated device is full: the rule of the live engine's `room`.

Idle models go first. Then whoever has clearly more slack than the one who asks: its weights, or its KV, which is
computed again later. The oldest request may take from everybody and nobody takes from it, so one always advances.
"""

import math
from collections.abc import Iterable, Mapping

from hekaton.engine.room import MARGIN_S, PARK_S
from hekaton.sim.device import Device
from hekaton.sim.request import SimRequest


class Room:
    """Makes room on one device, of the worker's own table of live requests, which is in order of arrival."""

    def __init__(self, device: Device, live: Mapping[str, SimRequest]) -> None:
        self._device = device
        self._live = live

    def for_weights(self, model: str, now_s: float, running: str = "") -> bool:
        """Begins to load a model. False, and its requests parked, if nobody gives way. `running` stays."""
        asking = [request for request in self._live.values() if request.model == model]
        if not asking:
            # A load on speculation takes free room only; nobody waits for it.
            self._device.begin_load(model, now_s)
            return True
        first = min(asking, key=SimRequest.due_s)
        oldest = self._oldest() in asking
        while not self._device.begin_load(model, now_s):
            least_due_s = -math.inf if oldest else first.due_s() + MARGIN_S
            if self._give_way(self._models_due_s(model, running), self._holders(asking), least_due_s, now_s):
                continue
            if oldest and not running and self._start_over(asking):
                continue
            self.park(asking, now_s)
            return False
        return True

    def for_kv(self, request: SimRequest, tokens: int, now_s: float) -> bool:
        """Room for `tokens` tokens of KV in all. False, and the request parked, if nobody gives way."""
        oldest = self._oldest() is request
        while not self._device.set_kv(request, tokens):
            least_due_s = -math.inf if oldest else request.due_s() + MARGIN_S
            models, holders = self._models_due_s(request.model), self._holders((request,))
            if not self._give_way(models, holders, least_due_s, now_s, kv_first=True):
                if not oldest or not self._start_over((request,)):
                    self.park((request,), now_s)
                return False
        return True

    def park(self, requests: Iterable[SimRequest], now_s: float) -> None:
        for request in requests:
            request.parked_until_s = now_s + PARK_S

    def unpark_all(self) -> None:
        for request in self._live.values():
            request.parked_until_s = 0.0

    def _give_way(
        self,
        models: Mapping[str, float],
        holders: list[SimRequest],
        least_due_s: float,
        now_s: float,
        kv_first: bool = False,
    ) -> bool:
        """Lets one model or one request's KV go. `models` maps a model to when it is due, infinity if idle."""
        model = max(models, key=lambda name: (models[name], name), default=None)
        if model is not None and models[model] == math.inf:
            self._device.evict(model, now_s)
            return True
        victim = max(holders, key=lambda request: (request.due_s(), request.request_id), default=None)
        model_may = model is not None and models[model] > least_due_s
        if victim is not None and victim.due_s() > least_due_s and (kv_first or not model_may):
            self._drop_kv(victim)
            self.park((victim,), now_s)
            return True
        if model is not None and model_may:
            self._device.evict(model, now_s)
            return True
        return False

    def _start_over(self, requests: Iterable[SimRequest]) -> bool:
        """Frees the KV of those who ask themselves. False if they have none."""
        holders = [request for request in requests if request.kv_bytes]
        for request in holders:
            self._drop_kv(request)
        return bool(holders)

    def _drop_kv(self, request: SimRequest) -> None:
        self._device.set_kv(request, 0)
        request.start_over()

    def _models_due_s(self, *spared: str) -> dict[str, float]:
        present = (self._device.resident | self._device.loading) - set(spared)
        due_s = dict.fromkeys(sorted(present), math.inf)
        for request in self._live.values():
            if request.model in due_s:
                due_s[request.model] = min(due_s[request.model], request.due_s())
        return due_s

    def _holders(self, exclude: Iterable[SimRequest]) -> list[SimRequest]:
        spared = {id(request) for request in exclude} | {id(self._oldest())}
        return [request for request in self._live.values() if request.kv_bytes and id(request) not in spared]

    def _oldest(self) -> SimRequest | None:
        return next(iter(self._live.values()), None)
