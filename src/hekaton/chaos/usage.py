"""What a pool holds of its host: memory, file descriptors, tasks, segments, keys."""

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from redis.asyncio import Redis

from hekaton.store.keys import SHARD_0

PAGE_BYTES = 4096
SCRAPE_TIMEOUT_S = 5.0
TASKS = re.compile(r"^hekaton_event_loop_tasks (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Process:
    """A service and all that it started."""

    pid: int
    rss_bytes: int
    descriptors: int
    tasks: int
    """Of its event loop."""


def process(pid: int, tasks: int) -> Process:
    """Raises OSError if it has gone."""
    family = [pid, *_descendants(pid)]
    rss = sum(int((Path("/proc") / str(one) / "statm").read_text().split()[1]) for one in family)
    descriptors = sum(len(list((Path("/proc") / str(one) / "fd").iterdir())) for one in family)
    return Process(pid, rss * PAGE_BYTES, descriptors, tasks)


async def tasks(metrics_address: str) -> int:
    """How many tasks a service's event loop has, as it says at /metrics. Raises OSError."""
    text = await asyncio.to_thread(_scrape, f"http://{metrics_address}/metrics")
    found = TASKS.search(text)
    return int(float(found[1])) if found else 0


async def lasting_keys(redis: Redis) -> int:
    """Keys of the store that no time ends by itself."""
    names = [name async for name in redis.scan_iter(match=f"{SHARD_0.prefix}*", count=1000)]
    async with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.pttl(name)
        return sum(ttl == -1 for ttl in await pipe.execute())


def segments(directory: Path) -> int:
    """Files of weights and KV."""
    return sum(path.is_file() for path in directory.rglob("*"))


def _scrape(url: str) -> str:
    with urlopen(url, timeout=SCRAPE_TIMEOUT_S) as answer:
        return str(answer.read().decode())


def _descendants(pid: int) -> Iterable[int]:
    for task in (Path("/proc") / str(pid) / "task").iterdir():
        for child in (task / "children").read_text().split():
            yield int(child)
            yield from _descendants(int(child))
