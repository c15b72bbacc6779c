"""What the scheduler tells when it is scraped."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric

from hekaton.metrics import NAMESPACE, Gauges, counters, gauge, gauges
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
        used = "Used by tenants with names, under this leadership."
        yield counters("tenant_accelerator_seconds", used, "tenant", now.tenant_seconds)
        told = {tenant: 1.0 for tenant in now.yielding_tenants if tenant in now.tenant_seconds}
        yield gauges("tenant_yields", "1 for tenants that have had more than their shares.", "tenant", told)

    registry = CollectorRegistry()
    registry.register(Gauges(tell))
    return registry
