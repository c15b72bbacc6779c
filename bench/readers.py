"""Do clients that never read cost those that do? `python -m bench.readers [--json] [--streams N] [--stuck N] …`

A worker sends the next token of every stream at each step through a real router. Once all clients read; once some of
them open their stream, take its first message and no other. `tbt_p99` is of those that read, between two messages;
each client that never reads has a connection of its own, so that only its own flow control stops.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import grpc.aio
import numpy as np
from rich.console import Console
from rich.table import Table

from bench.control.clients import GENERATE, TIMEOUT_S, bytes_stream
from bench.control.machine import resident_bytes
from bench.control.processes import peer
from bench.machine import cpu_name
from bench.tokens import Load, Pool, paced, pool

MIB = 1 << 20
SMALL_WINDOW = (("grpc.http2.lookahead_bytes", 256), ("grpc.http2.bdp_probe", 0))
CHANNELS = 8
"""Of those who read."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two runs."""

    tbt_p50_ms: float
    tbt_p99_ms: float
    router_mib_before: float
    router_mib_after: float
    stuck_messages_a_token: float


@dataclass(frozen=True, slots=True)
class Result:
    streams: int
    stuck: int
    tokens_per_s_and_stream: float
    without: Side
    with_stuck: Side
    p99_ratio: float


def read_all(connection: Connection, address: str, request: bytes, count: int) -> None:
    """Says, at the end, the gaps between the messages of each of so many streams, in seconds."""
    connection.send(asyncio.run(_read_all(address, request, count)))


async def _read_all(address: str, request: bytes, count: int) -> list[list[float]]:
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(_channel(address, index)) for index in range(CHANNELS)]
        return await asyncio.gather(*(_gaps(channels[index % CHANNELS], request) for index in range(count)))


async def _gaps(channel: grpc.aio.Channel, request: bytes) -> list[float]:
    call = bytes_stream(channel, GENERATE)(request, timeout=TIMEOUT_S)
    times_s = [time.monotonic() async for _ in call]
    return [later - earlier for earlier, later in pairwise(times_s)]


def read_nothing(connection: Connection, address: str, request: bytes, count: int) -> None:
    """Opens so many streams and reads the first message of each; when told, the others, and says how many they are."""
    asyncio.run(_read_nothing(connection, address, request, count))


async def _read_nothing(connection: Connection, address: str, request: bytes, count: int) -> None:
    async with AsyncExitStack() as stack:
        calls = []
        for index in range(count):
            channel = await stack.enter_async_context(_channel(address, index, SMALL_WINDOW))
            calls.append(bytes_stream(channel, GENERATE)(request, timeout=TIMEOUT_S))
        await asyncio.gather(*(anext(aiter(call)) for call in calls))
        connection.send("open")
        await asyncio.to_thread(connection.recv)
        connection.send(await asyncio.gather(*(_messages(call) for call in calls)))


async def _messages(call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> int:
    return len([message async for message in call])


def _channel(address: str, index: int, options: Sequence[tuple[str, int]] = ()) -> grpc.aio.Channel:
    """With a connection of its own."""
    return grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1), ("bench.index", index), *options])


async def run(router: Pool, load: Load, stuck: int) -> Side:
    ids, request = router.request(load)
    before = resident_bytes(router.router_pid)
    async with AsyncExitStack() as stack:
        silent = await stack.enter_async_context(peer(read_nothing, router.router, request, stuck))
        await silent.said()
        reading = load.streams - stuck
        readers = await stack.enter_async_context(peer(read_all, router.router, request, reading))
        await readers.until(lambda: len(router.worker.following) == load.streams)
        await paced(load, router.router_pid, lambda index: router.worker.step(lambda place: ids[place % len(ids)]))
        after = resident_bytes(router.router_pid)
        await router.worker.finish()
        gaps: Sequence[Sequence[float]] = await readers.said()
        silent.tell("read")
        messages = sum(await silent.said())
    # The first second holds the start of the streams.
    settled = [gap for one in gaps for gap in one[load.warm_up_steps : -1]]
    p50, p99 = (1e3 * float(value) for value in np.percentile(settled, (50, 99)))
    return Side(p50, p99, before / MIB, after / MIB, messages / (load.steps * stuck) if stuck else 1.0)


async def measure(load: Load, stuck: int, folder: Path) -> Result:
    async with pool(folder) as router:
        await run(router, Load(load.streams, load.rate, 1.0), 0)
        without = await run(router, load, 0)
        with_stuck = await run(router, load, stuck)
    ratio = with_stuck.tbt_p99_ms / without.tbt_p99_ms
    return Result(load.streams, stuck, load.rate, without, with_stuck, ratio)


def _table(result: Result) -> Table:
    table = Table(title=f"{result.streams} streams ({os.cpu_count()} cores of {cpu_name()})")
    table.add_column("never read")
    for name in ("TBT p50", "TBT p99", "router before", "router after", "messages a token to those"):
        table.add_column(name, justify="right")
    for stuck, one in ((0, result.without), (result.stuck, result.with_stuck)):
        times = (f"{one.tbt_p50_ms:.0f} ms", f"{one.tbt_p99_ms:.0f} ms")
        memory = (f"{one.router_mib_before:.0f} MiB", f"{one.router_mib_after:.0f} MiB")
        table.add_row(str(stuck), *times, *memory, f"{one.stuck_messages_a_token:.2f}" if stuck else "")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.readers", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--stuck", type=int, default=50, help="of the streams, those whose clients never read")
    parser.add_argument("--rate", type=float, default=5.0, help="tokens a second and stream")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(Load(args.streams, args.rate, args.seconds), args.stuck, Path(folder)))
    if args.json:
        print(json.dumps({"cpu": cpu_name(), "cores": os.cpu_count(), **asdict(result)}))
    else:
        Console().print(_table(result))


if __name__ == "__main__":
    main()
