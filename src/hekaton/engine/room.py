"""Who gives way when a device is full, in the live engine and in the simulator.

Idle models go first. Then whoever has clearly more slack than the one who asks: its weights, or its KV, which comes
back or is computed again later: in order of due time, so that where all are late the older keep theirs. The oldest
request may take from everybody and nobody takes from it, so one always advances.
"""

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from hekaton.policy.demands import DemandTable
from hekaton.policy.urgency import GRACE

PARK_S = 1.0
"""How long a request that found no room, or lost it, waits before it asks again, unless some request ends before."""
MARGIN_S = 1.0
"""How much more slack others must have for their weights to give way."""
KV_MARGIN = 0.5
"""And for their KV, in TTFTs: two requests that take it from each other more often spend their time on copies."""
LOST_S = 1e12
"""Added to the arrival of a lost request in host memory: it gives way to whoever can be in time, then to older ones."""
YIELDS_S = 2e12
"""Added to the due time of a request that yields: it gives way to all that do not."""


class Claimant(Protocol):
    """A live request."""

    parked_until_s: float
    yields: bool
    """Its tenant has had more than his share."""

    @property
    def request_id(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def age_key(self) -> tuple[float, str]:
        """Sorts the oldest first."""

    @property
    def holds_kv(self) -> bool: ...

    @property
    def ttft_s(self) -> float: ...

    def due_s(self) -> float:
        """When its next token is due."""


_AGE = attrgetter("age_key")

R = TypeVar("R", bound=Claimant)
R_contra = TypeVar("R_contra", bound=Claimant, contravariant=True)


class Memory(Protocol[R_contra]):
    """A device's memory, as far as room is concerned."""

    def present(self) -> frozenset[str]:
        """Models on the device or on their way there."""

    def begin_load(self, model: str, now_s: float) -> bool:
        """False if there is no room for the weights."""

    def evict(self, model: str, now_s: float) -> None: ...

    def grow_kv(self, request: R_contra, tokens: int, now_s: float) -> bool:
        """KV for `tokens` tokens in all; False if there is no room."""

    def drop_kv(self, request: R_contra, now_s: float) -> None: ...


class Room(Generic[R]):
    """Makes room on one device for weights and for KV. Works on the worker's own table of live requests.

    Requests that found none are parked, and out of their model's demand.
    """

    def __init__(self, memory: Memory[R], live: Mapping[str, R], demands: DemandTable) -> None:
        self._memory = memory
        self._live = live
        self._demands = demands
        self._parked: dict[str, R] = {}

    def for_weights(self, model: str, now_s: float, running: str = "") -> bool:
        """Begins to load a model. False, and its requests parked, if nobody gives way.

        The weights of `running` stay.
        """
        if self._memory.begin_load(model, now_s):
            return True
        asking = [request for request in self._live.values() if request.model == model]
        if not asking:
            # A load on speculation takes free room only; nobody waits for it.
            return True
        oldest = self._oldest() in asking
        least_due_s = float("-inf") if oldest else min(map(_due_s, asking)) + MARGIN_S
        while not self._memory.begin_load(model, now_s):
            if self._give_way(asking, {model, running}, least_due_s, now_s, kv_first=False):
                continue
            if oldest and not running and self._start_over(asking, now_s):
                continue
            self.park(asking, now_s)
            return False
        return True

    def for_kv(self, request: R, tokens: int, now_s: float) -> bool:
        """Room for `tokens` tokens of KV in all. False, and the request parked, if nobody gives way.

        One that has KV already takes from all that are due after it, and if there is none gives up its own: KV of a
        request that cannot go on would keep others from going on too.
        """
        while not self._memory.grow_kv(request, tokens, now_s):
            oldest, holds_kv = self._oldest() is request, request.holds_kv
            margin_s = 0.0 if holds_kv else KV_MARGIN * request.ttft_s
            least_due_s = float("-inf") if oldest else _due_s(request) + margin_s
            if self._give_way((request,), {request.model}, least_due_s, now_s, kv_first=True):
                continue
            if holds_kv:
                self._drop_kv(request, now_s)
            if not (oldest and holds_kv):
                self.park((request,), now_s)
            return False
        return True

    def release_kv(self, model: str, now_s: float) -> None:
        """Frees the KV of a model's requests. The oldest of all keeps its own, so that one always advances."""
        oldest = self._oldest()
        for request in self._live.values():
            if request.model == model and request.holds_kv and request is not oldest:
                self._drop_kv(request, now_s)

    def park(self, requests: Iterable[R], now_s: float) -> None:
        for request in requests:
            request.parked_until_s = now_s + PARK_S
            self._parked[request.request_id] = request
            self._demands.touch(request.model)

    def unpark(self, now_s: float) -> float | None:
        """Lets those ask again whose time has come, all at infinity. When the next one's comes, if any is left."""
        for request in [one for one in self._parked.values() if one.parked_until_s <= now_s]:
            request.parked_until_s = 0.0
            del self._parked[request.request_id]
            self._demands.touch(request.model)
        self._parked = {name: one for name, one in self._parked.items() if name in self._live}
        return min((one.parked_until_s for one in self._parked.values()), default=None)

    def _drop_kv(self, request: R, now_s: float) -> None:
        self._memory.drop_kv(request, now_s)
        self._demands.touch(request.model)

    def _start_over(self, requests: Iterable[R], now_s: float) -> bool:
        """Frees the KV of those who ask themselves: it may lie where it splits the room. False if they have none."""
        holders = [request for request in requests if request.holds_kv]
        for request in holders:
            self._drop_kv(request, now_s)
        return bool(holders)

    def _give_way(
        self, asking: Iterable[R], spared: set[str], least_due_s: float, now_s: float, kv_first: bool
    ) -> bool:
        """Lets one model or one request's KV go: what is due after `least_due_s`, the last of it first."""
        models = self._models_due_s(spared)
        model = max(models, key=lambda name: (models[name], name), default=None)
        if model is not None and models[model] == float("inf"):
            self._memory.evict(model, now_s)
            return True
        victim = self._victim(asking, least_due_s, now_s)
        model_may = model is not None and models[model] > least_due_s
        if victim is not None and (kv_first or not model_may):
            self._drop_kv(victim, now_s)
            if victim.model in self._memory.present():
                self.park((victim,), now_s)
            return True
        if model is not None and model_may:
            self._memory.evict(model, now_s)
            return True
        return False

    def _models_due_s(self, spared: set[str]) -> dict[str, float]:
        """Every other model that is present, and when it is due; infinity if it is idle. The oldest's stays."""
        oldest = self._oldest()
        kept = spared | {oldest.model} if oldest else spared
        due_s = dict.fromkeys(self._memory.present() - kept, float("inf"))
        for request in self._live.values():
            if request.model in due_s:
                due_s[request.model] = min(due_s[request.model], _due_s(request))
        return due_s

    def _victim(self, asking: Iterable[R], least_due_s: float, now_s: float) -> R | None:
        """Whose KV goes: of a model that is not present, whenever it is due, else whoever is due last."""
        spared = {id(request) for request in asking} | {id(self._oldest())}
        present = self._memory.present()
        holders = [
            (one.model not in present, _due_s(one), one.request_id, one)
            for one in self._live.values()
            if one.holds_kv and id(one) not in spared
        ]
        may = [holder for holder in holders if holder[0] or holder[1] > least_due_s]
        return max(may, key=lambda holder: holder[:3], default=(False, 0.0, "", None))[3]

    def _oldest(self) -> R | None:
        return min(self._live.values(), key=_AGE, default=None)


def rank_s(request: Claimant, now_s: float) -> float:
    """When a request is due; a lost one comes after all others, the older first, and after those whoever yields.

    In this order KV keeps host memory.
    """
    due_s = request.due_s()
    rank_s = due_s if due_s >= now_s - GRACE * request.ttft_s else LOST_S + request.age_key[0]
    return rank_s + YIELDS_S if request.yields else rank_s


def _due_s(request: Claimant) -> float:
    return request.due_s() + YIELDS_S if request.yields else request.due_s()
