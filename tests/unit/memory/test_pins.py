"""A pinned model's image is there before anybody asks, and stays; with a builder that writes what its source names."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, closing
from pathlib import Path

import pytest
from redis.asyncio import Redis

from fakes.redis import redis, redis_server
from hekaton.errors import ResourceExhausted
from hekaton.facts import CatalogEntry, ModelSpec, ModelState, Slo
from hekaton.store.catalog import Catalog
from hekaton_memory.builder import Progress
from hekaton_memory.builds import Builds
from hekaton_memory.cache import Cache
from hekaton_memory.pins import Pins
from hekaton_memory.segments import Segments
from hekaton_memory.weights import Weights

__all__ = ["redis", "redis_server"]
NBYTES = 600
BUDGET = 1000


async def build(source: str, dtype: str, workplace: Path, on_progress: Callable[[Progress], None]) -> str:
    digest = source * 16
    (workplace / f"{digest}.img").write_bytes(bytes(NBYTES))
    (workplace / f"{digest}.json").write_text("{}")
    return digest


def entry(source: str, *, pinned: bool = True) -> CatalogEntry:
    spec = ModelSpec(source * 16, "llama", "float32", NBYTES, 1, 1, 1)
    return CatalogEntry(f"model-{source}", source, "", Slo(1, 1), ModelState.READY, spec, pinned=pinned)


@pytest.fixture
async def weights(tmp_path: Path) -> AsyncIterator[Weights]:
    """Room for one image."""
    with closing(Segments(tmp_path / "segments")) as segments:
        cache = Cache(segments, BUDGET)
        async with aclosing(Builds(segments, cache, 1, build)) as builds:
            yield Weights(segments, cache, builds, 10.0)


def held(weights: Weights) -> list[tuple[str, bool]]:
    return [(image.digest[0], image.pinned) for image in weights.cache.images()]


async def test_a_pinned_model_displaces_another_ahead_of_the_first_request_and_stays(
    weights: Weights, redis: Redis
) -> None:
    catalog = Catalog(redis)
    pins = Pins(catalog, weights, 1.0)
    await weights.keep("b" * 16, "b", "")
    await catalog.put(entry("a"))
    await catalog.put(entry("b", pinned=False))
    await pins.turn()
    assert held(weights) == [("a", True)]
    with pytest.raises(ResourceExhausted, match="600 pinned"):
        await weights.keep("b" * 16, "b", "")
    await catalog.put(entry("a", pinned=False))
    await pins.turn()
    await weights.keep("b" * 16, "b", "")
    assert held(weights) == [("b", False)]


async def test_a_pin_that_cannot_be_kept_stops_no_other(weights: Weights, redis: Redis) -> None:
    catalog = Catalog(redis)
    for one in ("a", "b"):
        await catalog.put(entry(one))
    await Pins(catalog, weights, 1.0).turn()
    assert held(weights) == [("a", True)]
