"""The turns of this worker: the newest are kept, watchers follow."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import replace

from hekaton.facts import TurnRecord

KEPT_TURNS = 1024


class Turns:
    """Watchers read from one history, so that a slow one costs nothing: it misses what is no longer kept."""

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id
        self._kept: deque[TurnRecord] = deque(maxlen=KEPT_TURNS)
        self._changed = asyncio.Event()
        self._closed = False
        self.count = 0

    def add(self, turn: TurnRecord, engine_started_s: float) -> None:
        """Takes an engine's turn, which counts from that engine's start, `engine_started_s` after the worker's."""
        start_s = turn.start_s + engine_started_s
        self._kept.append(replace(turn, index=self.count, worker_id=self._worker_id, start_s=start_s))
        self.count += 1
        self._wake()

    def close(self) -> None:
        self._closed = True
        self._wake()

    async def watch(self, history: int) -> AsyncGenerator[TurnRecord, None]:
        """The newest `history` turns, then each as it ends, until the worker stops."""
        seen = self.count - min(history, len(self._kept))
        while not self._closed:
            changed = self._changed
            fresh = [turn for turn in self._kept if turn.index >= seen]
            for turn in fresh:
                yield turn
            seen = fresh[-1].index + 1 if fresh else seen
            if not fresh:
                await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
