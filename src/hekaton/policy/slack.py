"""Least slack first: the model whose next token is most in danger runs, and loads happen beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

from hekaton.policy.types import Turn, WorkerView
from hekaton.policy.urgency import Rated, most_urgent_first, rate_all, slack_if_gone_s


@dataclass(frozen=True, slots=True)
class _Room:
    """What leaves the device for a load, and whether the load fits then."""

    evict: tuple[str, ...] = ()
    release_kv: tuple[str, ...] = ()
    fits: bool = True


NO_ROOM_NEEDED = _Room()


class SlackTurns:
    """The default turn policy (`slack`).

    - Of the models on the device the one with the least slack runs, for `min_turn_s` at least.
    - One load at a time, of the most urgent model that is not on the device, while something else runs. It may take the
      room of idle models, of the KV of models that are not on the device, and of models that would have more slack than
      it even after they had been evicted.
    - If the two do not fit beside each other, the next most urgent that fits is loaded; if there is none, the running
      one gives way once it has run for as long as the load takes.
    - Models whose requests yield (`hekaton.policy.fairness`) have more slack than all others, and their loads give way.
    - A request that is late for certain does not hurry its model any more (`hekaton.policy.urgency`).
    """

    def __init__(self, min_turn_s: float = 0.3, max_turn_s: float = 4.0, kv_reserve: float = 0.02) -> None:
        self._min_turn_s = min_turn_s
        self._max_turn_s = max_turn_s
        """The longest that a model which is late already waits for the one that has its place."""
        self._kv_reserve = kv_reserve
        """Share of the device that a load beside a running model leaves free for KV."""

    def next_turn(self, view: WorkerView, now_s: float) -> Turn | None:
        rated = rate_all(view, now_s)
        if not rated:
            return None
        on_device = [one for one in rated if one.model in view.resident]
        load = _next_load(view, rated)
        if not on_device:
            first = load or next(one for one in rated if one.model in view.loading)
            room = _room_for(view, load, rated) if load else NO_ROOM_NEEDED
            return self._turn(view, first, room, (), now_s)
        run = self._choose(view, on_device, now_s)
        if load is None:
            return self._turn(view, run, NO_ROOM_NEEDED, (), now_s)
        beside = self._room_beside(view, load, run, rated)
        if beside.fits:
            return self._turn(view, run, beside, (load.model,), now_s)
        if other := self._other_beside(view, load, run, rated):
            return self._turn(view, run, other[1], (other[0].model,), now_s)
        if self._gives_way(view, run, load, now_s):
            return self._turn(view, load, _room_for(view, load, rated), (), now_s)
        return self._turn(view, run, NO_ROOM_NEEDED, (), now_s)

    def _choose(self, view: WorkerView, on_device: Sequence[Rated], now_s: float) -> Rated:
        """The current model within its minimum turn or while nobody's slack is worse, else the least slack."""
        best = on_device[0]
        current = next((one for one in on_device if one.model == view.running), None)
        if current is None:
            return best
        fresh = now_s - view.turn_started_s < self._min_turn_s
        return current if fresh or current.slack_s <= best.slack_s else best

    def _room_beside(self, view: WorkerView, load: Rated, run: Rated, rated: Sequence[Rated]) -> _Room:
        """What leaves so that `load` fits beside `run`: only what is less urgent than `load`."""
        keep = {run.model} | {other.model for other in rated if not _more_urgent(view, load, other)}
        reserve = int(view.device_memory_bytes * self._kv_reserve)
        return _room_for(view, load, rated, frozenset(keep), reserve)

    def _other_beside(
        self, view: WorkerView, load: Rated, run: Rated, rated: Sequence[Rated]
    ) -> tuple[Rated, _Room] | None:
        """What fits beside `run` where `load` does not. After its turn `load` will fit beside it."""
        absent = (one for one in rated if one.model not in view.resident and one is not load)
        for one in absent:
            if _more_urgent(view, one, run) and (room := self._room_beside(view, one, run, rated)).fits:
                return one, room
        return None

    def _gives_way(self, view: WorkerView, run: Rated, load: Rated, now_s: float) -> bool:
        """Is it time to stop `run` so that `load` can have its place?"""
        if run.model != view.running:
            return _more_urgent(view, load, run)
        ran_s = now_s - view.turn_started_s
        if load.slack_s < 0 and ran_s >= max(self._max_turn_s, load.costs.load_s):
            return True
        return _more_urgent(view, load, run) and ran_s >= max(self._min_turn_s, load.costs.load_s)

    def _turn(self, view: WorkerView, run: Rated, room: _Room, prefetch: tuple[str, ...], now_s: float) -> Turn:
        rest_s = view.turn_started_s + self._min_turn_s - now_s if run.model == view.running else 0.0
        ids = most_urgent_first(run.demand.requests, now_s)
        budget_s = rest_s if rest_s > 0 else self._min_turn_s
        return Turn(run.model, ids, budget_s, room.evict, prefetch, room.release_kv)


def _next_load(view: WorkerView, rated: Sequence[Rated]) -> Rated | None:
    """The model to load next: none while a load is under way that somebody waits for, unless it gives way."""
    load = next((one for one in rated if one.model not in view.resident), None)
    if load is None:
        return None
    under_way = {one.model for one in rated if one.model in view.loading}
    return load if under_way <= {one.model for one in _broken_off(view, load, rated)} else None


def _broken_off(view: WorkerView, load: Rated, rated: Sequence[Rated]) -> list[Rated]:
    """Whose loads give the bus to `load`: those of models that yield, to one that does not."""
    coming = view.loading - view.resident
    return [one for one in rated if one.model in coming and one.demand.yields and not load.demand.yields]


def _more_urgent(view: WorkerView, load: Rated, other: Rated) -> bool:
    """Would `load` be more urgent than `other` even if `other` had to be brought back?"""
    return load.slack_s < slack_if_gone_s(view, other)


def _room_for(
    view: WorkerView,
    load: Rated,
    rated: Sequence[Rated],
    keep: frozenset[str] = frozenset(),
    reserve_bytes: int = 0,
) -> _Room:
    """Loads that give way end first; idle models leave next, then KV of models that are not there, then models with KV.

    Of the last, first whoever would have most slack left: what is small to bring back goes before what is large.
    """
    broken_off = _broken_off(view, load, rated)
    evict = [one.model for one in broken_off]
    missing = load.bytes_needed() + reserve_bytes - view.free_bytes - sum(one.costs.weight_bytes for one in broken_off)
    release: list[str] = []
    waited_for = [one.model for one in reversed(rated) if one.model != load.model]
    present = view.resident | view.loading
    for model in sorted(present - view.demands.keys() - keep):
        if missing > 0:
            evict.append(model)
            missing -= view.costs[model].weight_bytes
    absent = [model for model in waited_for if model not in present and view.kv_bytes.get(model)]
    there = [one for one in rated if one.model in view.resident and one.model not in keep and one is not load]
    there.sort(key=lambda one: (slack_if_gone_s(view, one), one.model), reverse=True)
    for model in [*absent, *(one.model for one in there)]:
        if missing > 0 and model in view.resident:
            evict.append(model)
            missing -= view.costs[model].weight_bytes
        if missing > 0 and view.kv_bytes.get(model):
            release.append(model)
            missing -= view.kv_bytes[model]
    return _Room(tuple(evict), tuple(release), missing <= 0)
