"""A page that the engine shares with its worker: which step it is in. It outlives the engine."""

import mmap
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

HEAD = struct.Struct("<QI")
"""When the step began (monotonic, ns; 0 between steps), and the length of what follows: the ids, one a line."""
SIZE = 1 << 18


class StepMark:
    """The engine's end. Two writes a step, and the ids when they have changed."""

    def __init__(self, fd: int) -> None:
        self._page = mmap.mmap(fd, SIZE)
        self._ids: list[str] = []
        self._length = 0

    @contextmanager
    def step(self, request_ids: Sequence[str]) -> Iterator[None]:
        """The block is a step with these requests."""
        ids = list(request_ids)
        if ids != self._ids:
            text = "\n".join(ids).encode()[: SIZE - HEAD.size]
            self._page[HEAD.size : HEAD.size + len(text)] = text
            self._ids, self._length = ids, len(text)
        HEAD.pack_into(self._page, 0, time.monotonic_ns(), self._length)
        yield
        # Not in a `finally`: an error that ends the process ends it in this step.
        HEAD.pack_into(self._page, 0, 0, 0)


class MarkedStep(NamedTuple):
    began_s: float
    """On the monotonic clock."""
    request_ids: tuple[str, ...]


class StepWatch:
    """The worker's end, for one engine process."""

    def __init__(self) -> None:
        # No anonymous mapping: it must pass to a process that is spawned.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._file.truncate(SIZE)
        self._page = mmap.mmap(self._file.fileno(), SIZE)

    @property
    def fd(self) -> int:
        return self._file.fileno()

    def step(self) -> MarkedStep | None:
        """The step that is under way, or was when the engine died."""
        began_ns, length = HEAD.unpack_from(self._page)
        if not began_ns:
            return None
        text = self._page[HEAD.size : HEAD.size + length].decode(errors="replace")
        return MarkedStep(began_ns / 1e9, tuple(text.splitlines()))

    def close(self) -> None:
        self._page.close()
        self._file.close()
