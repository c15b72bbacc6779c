"""What the scheduler tells when it is scraped."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric

from hekaton.metrics import NAMESPACE, Gauges, gauge
from hekaton.v1 import scheduler_pb2 as pb


def metrics_of(status: Callable[[], pb.GetSchedulerStatusResponse]) -> CollectorRegistry:
    def tell() -> Iterable[Metric]:
        now = status()
        yield gauge("scheduler_leader", "1 if this one leads.", now.leader)
        yield gauge("scheduler_term", "Of its leadership.", now.term)
        yield gauge("scheduler_requests_waiting", "Read from the queue, waiting for a worker.", now.waiting_requests)
        yield gauge("scheduler_requests_placed", "On workers, not ended.", now.placed_requests)
        yield gauge("scheduler_workers", "Workers under its command.", len(now.connected_worker_ids))
        yield CounterMetricFamily(f"{NAMESPACE}_placements", "Under this leadership.", value=now.placements)

    registry = CollectorRegistry()
    registry.register(Gauges(tell))
    return registry
