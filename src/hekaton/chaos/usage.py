"""What a pool holds of its host: memory, file descriptors, tasks, segments, keys."""

import asyncio
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
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
    held = _held(pid)
    for one in _descendants(pid):
        # It may end while it is looked at.
        with suppress(OSError):
            held += _held(one)
    return Process(pid, held["rss_bytes"], held["descriptors"], tasks)


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


def _held(pid: int) -> Counter[str]:
    folder = Path("/proc") / str(pid)
    pages = int((folder / "statm").read_text().split()[1])
    return Counter(rss_bytes=pages * PAGE_BYTES, descriptors=len(list((folder / "fd").iterdir())))


def _descendants(pid: int) -> Iterable[int]:
    for child in _children(pid):
        yield child
        yield from _descendants(child)


def _children(pid: int) -> list[int]:
    """Of all its threads. Those that end meanwhile have none."""
    found = list[int]()
    with suppress(OSError):
        for thread in (Path("/proc") / str(pid) / "task").iterdir():
            with suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return found
