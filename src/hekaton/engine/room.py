"""Who gives way when the device is full.

Idle models go first. Then whoever has clearly more slack than the one who asks: its weights, or its KV, which is
computed again later. The oldest request may take from everybody and nobody takes from it, so one always advances.
"""

from collections.abc import Iterable, Mapping

from hekaton.engine.interface import Engine
from hekaton.engine.live import LiveRequest

PARK_S = 1.0
"""How long a request that found no room, or lost it, waits before it asks again, unless some request ends before."""
MARGIN_S = 1.0
"""How much more slack another must have to give way: what recomputing it is worth."""


class Room:
    """Makes room on one device for weights and for KV. Works on the loop's own table of live requests."""

    def __init__(self, engine: Engine, live: Mapping[str, LiveRequest]) -> None:
        self._engine = engine
        self._live = live

    def for_weights(self, model: str, now_s: float, running: str = "") -> bool:
        """Begins to load a model. False, and its requests parked, if nobody gives way.

        The weights of `running` stay.
        """
        asking = [request for request in self._live.values() if request.model == model]
        if not asking:
            # A load on speculation takes free room only; nobody waits for it.
            self._engine.begin_load(model)
            return True
        first = min(asking, key=LiveRequest.due_s)
        may_take_all = self._oldest() in asking
        while not self._engine.begin_load(model):
            kv = self._kv_holders(exclude=asking)
            if not self._give_way(first, self._others(model, running), kv, may_take_all, now_s):
                if may_take_all and not running and self._start_over(asking):
                    continue
                self.park(asking, now_s)
                return False
        return True

    def for_kv(self, request: LiveRequest, tokens: int, now_s: float) -> bool:
        """Room for `tokens` tokens of KV in all. False, and the request parked, if nobody gives way."""
        while not self._engine.grow_kv(request.request_id, request.model, tokens):
            kv = self._kv_holders(exclude=(request,))
            others = self._others(request.model)
            if not self._give_way(request, others, kv, self._oldest() is request, now_s, kv_first=True):
                if self._oldest() is not request or not self._start_over((request,)):
                    self.park((request,), now_s)
                return False
        request.kv_tokens = max(request.kv_tokens, tokens)
        return True

    def drop_kv(self, request: LiveRequest) -> None:
        """Frees a request's KV; its tokens are computed again when it runs next."""
        self._engine.drop_kv(request.request_id)
        request.computed = request.kv_tokens = 0

    def _start_over(self, requests: Iterable[LiveRequest]) -> bool:
        """Frees the KV of those who ask themselves: it may lie where it splits the room. False if they have none."""
        holders = [request for request in requests if request.kv_tokens]
        for request in holders:
            self.drop_kv(request)
        return bool(holders)

    def park(self, requests: Iterable[LiveRequest], now_s: float) -> None:
        for request in requests:
            request.parked_until_s = now_s + PARK_S

    def unpark_all(self) -> None:
        for request in self._live.values():
            request.parked_until_s = 0.0

    def _give_way(
        self,
        asking: LiveRequest,
        models: dict[str, float],
        kv: list[LiveRequest],
        may_take_all: bool,
        now_s: float,
        kv_first: bool = False,
    ) -> bool:
        """Lets one model or one request's KV go. `models` maps a model to the due time of its most urgent request."""
        least_due_s = float("-inf") if may_take_all else asking.due_s() + MARGIN_S
        model = max(models, key=lambda name: (models[name], name), default=None)
        if model is not None and models[model] == float("inf"):
            self._engine.evict(model)
            return True
        victim = max(kv, key=lambda request: (request.due_s(), request.request_id), default=None)
        model_may = model is not None and models[model] > least_due_s
        if victim is not None and victim.due_s() > least_due_s and (kv_first or not model_may):
            self.drop_kv(victim)
            self.park((victim,), now_s)
            return True
        if model is not None and model_may:
            self._engine.evict(model)
            return True
        return False

    def _others(self, *spared: str) -> dict[str, float]:
        """Every other model on the device or on its way there, and when it is due; infinity if it is idle."""
        due = {name: float("inf") for name in self._engine.resident() | self._engine.loading() if name not in spared}
        for request in self._live.values():
            if request.model in due:
                due[request.model] = min(due[request.model], request.due_s())
        return due

    def _kv_holders(self, exclude: Iterable[LiveRequest]) -> list[LiveRequest]:
        spared = {id(request) for request in exclude} | {id(self._oldest())}
        return [request for request in self._live.values() if request.kv_tokens and id(request) not in spared]

    def _oldest(self) -> LiveRequest | None:
        return min(self._live.values(), key=lambda request: request.age_key, default=None)
