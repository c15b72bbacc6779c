"""One task for every live worker."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping

from hekaton.tasks import dismiss

Run = Callable[[str, str], Coroutine[object, object, None]]
"""Gets a worker's id and address; runs until cancelled."""


class PerWorker:
    """Starts and ends tasks in the service's group as workers come and go."""

    def __init__(self, group: asyncio.TaskGroup, run: Run) -> None:
        self._group = group
        self._run = run
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    def update(self, addresses: Mapping[str, str]) -> None:
        """Runs for exactly these workers (id → address) from now on."""
        listed = set(addresses.items())
        for gone in self._tasks.keys() - listed:
            dismiss(self._tasks.pop(gone))
        for worker in listed - self._tasks.keys():
            self._tasks[worker] = self._group.create_task(self._run(*worker), name=f"worker {worker[0]}")
