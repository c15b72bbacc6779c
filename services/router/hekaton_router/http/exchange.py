"""One HTTP request: its body read within bounds, its work ended as soon as its client is gone."""

import asyncio
from collections.abc import Coroutine

from starlette.requests import Request
from starlette.types import Message, Receive, Send

from hekaton.errors import InvalidArgument
from hekaton.tasks import end

READ_TIMEOUT_S = 30.0
JSON = "application/json"
SSE_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
DONE = b"data: [DONE]\n\n"


class BodyTooLarge(InvalidArgument):
    reason = "BODY_TOO_LARGE"


async def read_body(request: Request, most_bytes: int) -> bytes:
    """Raises InvalidArgument for a body that is no JSON by its type, too large or too slow; ClientDisconnect."""
    # A page of a foreign site may send other types without asking first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise InvalidArgument(f"send the body as Content-Type: {JSON}")
    body = bytearray()
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most_bytes:
                    raise BodyTooLarge(f"the body may have at most {most_bytes} bytes")
    except TimeoutError:
        raise InvalidArgument(f"the body did not come within {READ_TIMEOUT_S:g} s") from None
    return bytes(body)


async def attended(receive: Receive, work: Coroutine[object, object, None]) -> None:
    """Does the work of a request whose body has been read; cancels it when the client goes away."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        await end(task, gone)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """Server-sent events. `send` waits while the client reads slower than it is written to."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.started = False

    async def event(self, data: str) -> None:
        await self._write(f"data: {data}\n\n".encode())

    async def done(self) -> None:
        await self._write(DONE)
        await self.close()

    async def close(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, body: bytes) -> None:
        if not self.started:
            self.started = True
            headers = [(name.encode(), value.encode()) for name, value in SSE_HEADERS.items()]
            headers.append((b"x-request-id", self._request_id.encode()))
            start: Message = {"type": "http.response.start", "status": 200, "headers": headers}
            await self._send(start)
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
