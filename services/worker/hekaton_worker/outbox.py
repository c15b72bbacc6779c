"""Messages on their way to one stream: the sender never waits for the receiver."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

M = TypeVar("M")
LIMIT = 4096


class Outbox(Generic[M]):
    """At most `limit` messages wait. One more closes it: the receiver opens a new stream and says what it has."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._messages: deque[M] = deque()
        self._changed = asyncio.Event()
        self.closed = False

    def put(self, message: M) -> None:
        """Nothing happens once it is closed."""
        if self.closed:
            return
        if len(self._messages) >= self._limit:
            self._messages.clear()
            self.close()
            return
        self._messages.append(message)
        self._changed.set()

    def close(self) -> None:
        """What waits is still delivered, then the stream ends."""
        self.closed = True
        self._changed.set()

    async def get(self) -> M | None:
        """The next message; None when it is closed and empty. One caller at a time."""
        while not self._messages and not self.closed:
            self._changed.clear()
            await self._changed.wait()
        return self._messages.popleft() if self._messages else None
