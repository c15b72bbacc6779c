"""What a turn policy is shown of a worker."""

from collections import Counter
from collections.abc import Iterator

from hekaton.engine.desk import Desk
from hekaton.engine.images import Images
from hekaton.engine.interface import Engine
from hekaton.engine.turnlog import OpenTurn
from hekaton.policy.types import RequestView, Role, WorkerView


class Views:
    """Makes views of one engine and its live requests."""

    def __init__(self, engine: Engine, desk: Desk, images: Images, role: Role) -> None:
        self._engine = engine
        self._desk = desk
        self._images = images
        self._role = role

    def view(self, turn: OpenTurn | None, now_s: float) -> WorkerView:
        """Now, with `turn` under way."""
        resident, loading = self._engine.resident(), self._engine.loading()
        used = self._engine.weights_bytes() + self._engine.kv_bytes()
        started_s = turn.first_step_s if turn else None
        # A model whose weights have just come runs already, lest it be displaced before its first step.
        runs = turn is not None and (started_s is not None or turn.model in resident)
        if turn and started_s is not None and turn.model in loading:
            # It steps while the rest of its weights comes.
            resident |= {turn.model}
        return WorkerView(
            running=turn.model if turn and runs else None,
            turn_started_s=now_s if started_s is None else started_s,
            resident=resident,
            loading=loading,
            ready=frozenset(self._images.held),
            demands=self._desk.demands.current(self._runnable, self._engine.costs),
            costs={model: self._engine.costs(model) for model in resident | loading | self._desk.models()},
            device_memory_bytes=self._engine.device_memory_bytes,
            free_bytes=self._engine.device_memory_bytes - used,
            kv_bytes=self._kv_bytes(),
            role=self._role,
        )

    def _runnable(self, model: str) -> Iterator[RequestView]:
        return (one.view() for one in self._desk.live.values() if one.model == model and not one.parked_until_s)

    def _kv_bytes(self) -> Counter[str]:
        held: Counter[str] = Counter()
        for request in self._desk.live.values():
            if request.kv_tokens:
                held[request.model] += request.kv_tokens * self._engine.costs(request.model).kv_bytes_per_token
        return held
