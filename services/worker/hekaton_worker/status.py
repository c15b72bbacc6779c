"""What this worker says of itself."""

from hekaton.engine.messages import Ready, Status
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

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.address = ""
        self.draining = False
        self._device = Ready(device="", device_memory_bytes=0)
        self._engine = NOTHING_YET

    def restart(self, device: Ready) -> None:
        """A new engine process has its device, and nothing on it."""
        self._device, self._engine = device, NOTHING_YET

    def update(self, engine: Status) -> bool:
        """True if what is on the device has changed."""
        before, self._engine = self._engine, engine
        return (before.resident_models, before.loading_models) != (engine.resident_models, engine.loading_models)

    def status(self) -> pool_pb2.WorkerStatus:
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
        )
