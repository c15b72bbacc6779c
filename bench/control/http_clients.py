"""Many event streams of one client process, read as they come and taken apart when the last one has ended."""

import asyncio
import json
from collections.abc import Sequence
from multiprocessing.connection import Connection

TIMEOUT_S = 600.0


def run(connection: Connection, host: str, port: int, path: str, bodies: Sequence[bytes]) -> None:
    """Opens a stream for each body and says, at the end, the events of each, without the last, `[DONE]`."""
    connection.send(asyncio.run(_run(host, port, path, bodies)))


async def _run(host: str, port: int, path: str, bodies: Sequence[bytes]) -> list[list[dict[str, object]]]:
    async with asyncio.timeout(TIMEOUT_S):
        streams = await asyncio.gather(*(_read(host, port, path, body) for body in bodies))
    return [_events(stream) for stream in streams]


async def _read(host: str, port: int, path: str, body: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    stream = await reader.read(-1)
    writer.close()
    await writer.wait_closed()
    return stream


def _events(stream: bytes) -> list[dict[str, object]]:
    """Raises RuntimeError for an answer that is no whole event stream."""
    lines = [line.removeprefix(b"data: ") for line in stream.splitlines() if line.startswith(b"data: ")]
    if not lines or lines[-1] != b"[DONE]":
        raise RuntimeError(f"the router answered {stream[:500].decode(errors='replace')}")
    return [json.loads(line) for line in lines[:-1]]
