"""The tasks that end with the service."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from hekaton.tasks import dismiss

T = TypeVar("T")


class Crew:
    """Starts tasks in the service's group and ends them together. A task that fails ends the service."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks: set[asyncio.Task[object]] = set()

    def start(self, work: Coroutine[object, object, T], name: str) -> asyncio.Task[T]:
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def dismiss(self) -> None:
        dismiss(*self._tasks)
