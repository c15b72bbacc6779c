"""The memory service's process: `python -m hekaton_memory`."""

import asyncio
from contextlib import ExitStack, aclosing, closing

from hekaton.config import MemorySettings
from hekaton.metrics import serving_metrics
from hekaton.rpc.server import new_id, run, serving
from hekaton.store.catalog import Catalog
from hekaton.store.connect import connect
from hekaton.tasks import end
from hekaton_memory.builds import Builds
from hekaton_memory.cache import Cache
from hekaton_memory.exchange import Exchange
from hekaton_memory.metrics import metrics_of
from hekaton_memory.parcels import Parcels
from hekaton_memory.pins import Pins
from hekaton_memory.registration import Registration
from hekaton_memory.segments import Segments
from hekaton_memory.service import servicer
from hekaton_memory.weights import Weights

PARCELS = "kv"
"""Their directory in segment_dir."""
LEASE_FACTOR = 2
"""A lease on weights outlives the holder's own lease in Redis, so that nobody loses what he still uses."""


async def main(settings: MemorySettings, stop: asyncio.Event) -> None:
    """Serves until `stop`, then removes every image: who has one mapped keeps its bytes until he lets go."""
    memory_id = settings.memory_id or new_id("memory")
    with ExitStack() as stack:
        segments = stack.enter_context(closing(Segments(settings.segment_dir)))
        cache = Cache(segments, settings.host_memory)
        directory = settings.segment_dir / PARCELS
        parcels = stack.enter_context(closing(Parcels(directory, settings.parcel_memory, settings.parcel_lifetime_s)))
        exchange = Exchange(parcels, settings.client_tls)
        stack.enter_context(serving_metrics(settings, metrics_of(cache, exchange)))
        builds = Builds(segments, cache, settings.builders)
        weights = Weights(segments, cache, builds, settings.lease_s * LEASE_FACTOR)
        async with (
            connect(settings.redis_url) as redis,
            aclosing(builds),
            serving(settings, [servicer(weights, exchange)]) as server,
            asyncio.TaskGroup() as tasks,
        ):
            exchange.address = server.address
            tasks.create_task(exchange.sweep(stop))
            pins = tasks.create_task(Pins(Catalog(redis), weights, settings.heartbeat_s).run())
            tasks.create_task(Registration(redis, settings, memory_id, server.address).keep(stop))
            try:
                await server.set_serving(True)
                await stop.wait()
            finally:
                stop.set()
                await end(pins)
        cache.check_integrity()


if __name__ == "__main__":
    run(MemorySettings, main)
