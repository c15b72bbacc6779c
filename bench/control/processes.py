"""Python functions as processes of their own, so that nobody pays for another's interpreter."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any

STOP_TIMEOUT_S = 10.0
POLL_S = 0.05


class Peer:
    """The parent's end of a child that runs `main(connection, *arguments)` until its connection closes."""

    def __init__(self, main: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, child = context.Pipe()
        self._process = context.Process(target=main, args=(child, *arguments), daemon=True)
        self._process.start()
        child.close()

    @property
    def pid(self) -> int:
        if self._process.pid is None:
            raise RuntimeError("the process was not started")
        return self._process.pid

    async def said(self) -> Any:
        """The next thing that it says. Raises EOFError if it has ended."""
        return await asyncio.to_thread(self._connection.recv)

    async def until(self, done: Callable[[], bool]) -> None:
        """Returns when `done`. Raises RuntimeError if the process ends before."""
        while not done():
            if not self._process.is_alive():
                raise RuntimeError("a process of the bench has ended; see above")
            await asyncio.sleep(POLL_S)

    def tell(self, what: Any) -> None:
        self._connection.send(what)

    def stop(self) -> None:
        self._connection.close()
        self._process.join(STOP_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@asynccontextmanager
async def peer(main: Callable[..., None], *arguments: Any) -> AsyncIterator[Peer]:
    child = Peer(main, *arguments)
    try:
        yield child
    finally:
        await asyncio.to_thread(child.stop)


async def until_closed(connection: Connection) -> None:
    """In the child: returns when the parent closes its end, or is gone."""
    closed = asyncio.Event()
    asyncio.get_running_loop().add_reader(connection.fileno(), closed.set)
    await closed.wait()
