"""Says what is on the device: when it has changed, and once a second while there is work."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable

from hekaton.engine.desk import Desk
from hekaton.engine.interface import Engine
from hekaton.engine.live import LiveRequest
from hekaton.engine.messages import Event, Status
from hekaton.engine.turnlog import TurnLog
from hekaton.policy.costs import differ
from hekaton.policy.types import ModelCosts

STATUS_INTERVAL_S = 1.0


class Reporter:
    def __init__(self, engine: Engine, emit: Callable[[Event], None]) -> None:
        self._engine = engine
        self._emit = emit
        self._reported: tuple[object, ...] = ("", frozenset(), frozenset(), 0, 0, 0)
        self._reported_s = float("-inf")
        self._costs: dict[str, ModelCosts] = {}
        """As they were told last."""

    def report(
        self, running: str, desk: Desk, log: TurnLog, now_s: float, learned: Collection[str] = frozenset()
    ) -> None:
        """Emits a Status if one is due. `running` is the turn's model, or empty; `learned` models were measured."""
        live, travels = desk.live, desk.travels
        resident, loading = self._engine.resident(), self._engine.loading()
        state = (running, resident, loading, travels.sent, travels.received, travels.lost)
        overdue = bool(live) and now_s - self._reported_s >= STATUS_INTERVAL_S
        if state == self._reported and not overdue and not learned:
            return
        self._reported, self._reported_s = state, now_s
        costs = self._changed_costs(learned)
        in_turn = sum(request.model == running for request in live.values())
        self._emit(
            Status(
                running_model=running,
                resident_models=tuple(sorted(resident)),
                loading_models=tuple(sorted(loading)),
                weights_bytes=self._engine.weights_bytes(),
                kv_bytes=self._engine.kv_bytes(),
                requests_running=in_turn,
                requests_waiting=len(live) - in_turn,
                switches=log.switches,
                tokens=log.tokens,
                prefill_tokens=_prefill_tokens(live.values()),
                costs=costs,
                in_part=tuple(model for model in costs if not self._engine.measured(model)),
                host_kv_bytes=self._engine.host_kv_bytes(),
                prefilled_tokens=log.prefilled_tokens,
                kv_sent=travels.sent,
                kv_received=travels.received,
                kv_lost=travels.lost,
                kv_moved_bytes=dict(travels.moved_bytes),
                used_s=log.take_used_s(),
            )
        )

    def _changed_costs(self, learned: Collection[str]) -> dict[str, ModelCosts]:
        """Of what is on the device or was just measured: a model that has never been there is not known better."""
        now = {model: self._engine.costs(model) for model in self._engine.resident().union(learned)}
        changed = {model: costs for model, costs in now.items() if differ(costs, self._costs.get(model))}
        self._costs |= changed
        return changed


def _prefill_tokens(requests: Iterable[LiveRequest]) -> Counter[str]:
    waiting: Counter[str] = Counter()
    for request in requests:
        if not request.decoding:
            waiting[request.model] += request.pending
    return waiting
