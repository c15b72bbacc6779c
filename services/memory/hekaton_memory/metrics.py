"""What the memory service tells when it is scraped."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric

from hekaton.metrics import NAMESPACE, Gauges, gauge
from hekaton_memory.cache import Cache


def metrics_of(cache: Cache) -> CollectorRegistry:
    def tell() -> Iterable[Metric]:
        yield gauge("weight_cache_budget_bytes", "For weight images.", cache.budget_bytes)
        yield gauge("weight_cache_used_bytes", "Of weight images.", cache.used_bytes)
        yield CounterMetricFamily(f"{NAMESPACE}_leases_reaped", "Leases that ran out.", value=cache.reaped)

    registry = CollectorRegistry()
    registry.register(Gauges(tell))
    return registry
