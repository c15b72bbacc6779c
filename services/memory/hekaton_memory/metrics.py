"""What the memory service tells when it is scraped."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric

from hekaton.metrics import NAMESPACE, Gauges, counters, gauge
from hekaton_memory.cache import Cache
from hekaton_memory.exchange import Exchange


def metrics_of(cache: Cache, exchange: Exchange) -> CollectorRegistry:
    def tell() -> Iterable[Metric]:
        yield gauge("weight_cache_budget_bytes", "For weight images.", cache.budget_bytes)
        yield gauge("weight_cache_used_bytes", "Of weight images.", cache.used_bytes)
        yield CounterMetricFamily(f"{NAMESPACE}_leases_reaped", "Leases that ran out.", value=cache.reaped)
        sizes = exchange.parcels.sizes()
        yield gauge("parcels", "Of KV on its way between workers, here now.", len(sizes))
        yield gauge("parcel_bytes", "Of these.", sum(sizes))
        yield gauge("parcel_budget_bytes", "For these.", exchange.parcels.budget_bytes)
        yield CounterMetricFamily(f"{NAMESPACE}_parcels_swept", "That nobody took.", value=exchange.parcels.swept)
        yield counters(
            "parcel_transferred_bytes",
            "To and from other hosts.",
            "direction",
            {"sent": exchange.sent_bytes, "received": exchange.received_bytes},
        )

    registry = CollectorRegistry()
    registry.register(Gauges(tell))
    return registry
