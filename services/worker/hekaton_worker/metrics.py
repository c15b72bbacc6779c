"""What the worker measures: its turns, and what is on its device."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from hekaton.engine.messages import LoadEnded, Status
from hekaton.facts import TurnRecord
from hekaton.metrics import MODEL, NAMESPACE, Gauges, ModelNames, counter, counters, gauge, histogram
from hekaton_worker.status import StatusBoard

DIRECTIONS = ("out", "in", "sent", "received")


class WorkerMetrics:
    def __init__(self, board: StatusBoard) -> None:
        self.registry = CollectorRegistry()
        self._board = board
        self._name = ModelNames()
        made = self.registry
        self._switches = counter(made, "model_switches", "Turns that began with another model.", MODEL, "reason")
        self._switch_s = histogram(made, "model_switch_seconds", "Waiting for weights; copying them.", "phase")
        self._preemptions = counter(made, "preemptions", "Requests left unfinished at a turn's end.", MODEL)
        self._copied = counter(made, "copied_bytes", "Bytes of weights copied to the device.", MODEL)
        made.register(Gauges(self._gauges))

    def turn(self, turn: TurnRecord) -> None:
        model = self._name(turn.model)
        if turn.switched:
            self._switches.labels(model, turn.weights).inc()
            self._switch_s.labels("exposed").observe(turn.exposed_switch_s)
        self._preemptions.labels(model).inc(len(turn.preempted_request_ids))

    def loaded(self, load: LoadEnded) -> None:
        self._switch_s.labels("copy").observe(load.duration_s)
        self._copied.labels(self._name(load.model)).inc(load.copied_bytes)

    def _gauges(self) -> Iterable[Metric]:
        status = self._board.status()
        room = status.device_memory_bytes - status.weights_bytes
        yield gauge("device_memory_bytes", "Of the device, for weights and KV.", status.device_memory_bytes)
        yield gauge("weights_bytes", "Weights on the device.", status.weights_bytes)
        yield gauge("kv_bytes", "KV on the device.", status.kv_bytes)
        yield gauge("host_kv_bytes", "KV in host memory.", status.host_kv_bytes)
        yield gauge(
            "kv_cache_usage_perc", "KV ÷ what weights leave of the device.", status.kv_bytes / room if room else 0
        )
        yield gauge("worker_requests_running", "In the running batch.", status.requests_running)
        yield gauge("worker_requests_waiting", "Held, and not in it.", status.requests_waiting)
        yield CounterMetricFamily(f"{NAMESPACE}_worker_tokens", "Tokens made.", value=status.tokens)
        yield from _kv_that_moves(self._board.engine)
        states = GaugeMetricFamily(f"{NAMESPACE}_model_state", "1 where it holds.", labels=[MODEL, "state"])
        for state, models in (
            ("running", [status.running_model] if status.running_model else []),
            ("resident", status.resident_models),
            ("loading", status.loading_models),
        ):
            for model in models:
                states.add_metric([model, state], 1)
        yield states


def _kv_that_moves(engine: Status) -> Iterable[Metric]:
    """Of the present engine process."""
    fed = engine.prefilled_tokens
    yield CounterMetricFamily(f"{NAMESPACE}_worker_prefilled_tokens", "Computed of prompts, or again.", value=fed)
    moved = {direction: engine.kv_moved_bytes.get(direction, 0) for direction in DIRECTIONS}
    yield counters("kv_swap_bytes", "KV between device and host, and between workers.", "direction", moved)
    parcels = {"sent": engine.kv_sent, "received": engine.kv_received, "lost": engine.kv_lost}
    yield counters("kv_parcels", "Requests whose KV left, came, or could not be used.", "outcome", parcels)
