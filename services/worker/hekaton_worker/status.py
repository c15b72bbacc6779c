"""What this worker says of itself."""

from hekaton.engine.messages import Ready, Status
from hekaton.policy.types import ModelCosts, Role
from hekaton.rpc import convert
from hekaton.v1 import pool_pb2

NOTHING_YET = Status(
    running_model="",
    resident_models=(),
    loading_models=(),
    weights_bytes=0,
    kv_bytes=0,
    requests_running=0,
    requests_waiting=0,
    switches=0,
    tokens=0,
)


class StatusBoard:
    """The engine's latest words, and the worker's own."""

    def __init__(self, worker_id: str, role: Role = Role.ANY) -> None:
        self.worker_id = worker_id
        self.role = role
        self.address = ""
        self.draining = False
        self._device = Ready(device="", device_memory_bytes=0)
        self._engine = NOTHING_YET
        self._costs: dict[str, ModelCosts] = {}
        self._fresh: set[str] = set()
        """Models whose costs have changed since they were taken."""
        self._used_s: dict[str, float] = {}
        """By tenant, since they were taken."""

    @property
    def device(self) -> str:
        return self._device.device

    @property
    def device_memory_bytes(self) -> int:
        return self._device.device_memory_bytes

    def learn(self, model: str, costs: ModelCosts) -> None:
        """What is known of a model that the engine has not measured."""
        self._costs.setdefault(model, costs)
        self._fresh.add(model)

    def restart(self, device: Ready) -> None:
        """A new engine process has its device, and nothing on it."""
        self._device, self._engine = device, NOTHING_YET

    @property
    def engine(self) -> Status:
        """Its latest words."""
        return self._engine

    def update(self, engine: Status) -> bool:
        """True if what the leader looks at has changed."""
        before, self._engine = self._engine, engine
        self._costs |= engine.costs
        self._fresh |= engine.costs.keys()
        for tenant, seconds in engine.used_s.items():
            self._used_s[tenant] = self._used_s.get(tenant, 0.0) + seconds
        return bool(engine.costs or engine.used_s) or _seen(before) != _seen(engine)

    def take_used_s(self) -> dict[str, float]:
        """Seconds of the accelerator by tenant since they were taken last."""
        taken, self._used_s = self._used_s, {}
        return taken

    def take_costs(self, *, everything: bool) -> list[pool_pb2.ModelCosts]:
        """Everything that is known of costs, or what is new since they were taken last."""
        models = self._costs if everything else self._fresh
        taken = [convert.costs_to_pb(model, self._costs[model]) for model in sorted(models)]
        self._fresh.clear()
        return taken

    def status(self) -> pool_pb2.WorkerStatus:
        """All but the costs."""
        engine = self._engine
        return pool_pb2.WorkerStatus(
            worker_id=self.worker_id,
            address=self.address,
            device=self._device.device,
            device_memory_bytes=self._device.device_memory_bytes,
            weights_bytes=engine.weights_bytes,
            kv_bytes=engine.kv_bytes,
            running_model=engine.running_model,
            resident_models=engine.resident_models,
            loading_models=engine.loading_models,
            requests_running=engine.requests_running,
            requests_waiting=engine.requests_waiting,
            switches=engine.switches,
            tokens=engine.tokens,
            draining=self.draining,
            role=convert.ROLE_TO_PB[self.role],
            prefill_tokens=engine.prefill_tokens,
            host_kv_bytes=engine.host_kv_bytes,
            host_kv_memory_bytes=self._device.host_kv_memory_bytes,
        )


def _seen(engine: Status) -> tuple[object, ...]:
    return engine.resident_models, engine.loading_models, engine.prefill_tokens
