"""The copy engine: one thread that moves bytes between host and device while steps are computed.

A job is copied piece by piece, so that one that is not wanted any more ends within milliseconds, and KV, which a
request waits for, goes before weights even when they have begun. Jobs of one kind are done in the order of submission,
unless one is hurried.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

CHUNK_BYTES = 16 << 20
PIECE_S = 0.01
"""A piece takes no longer than this where the bandwidth is limited."""
Piece = tuple[Tensor, Tensor]
"""Source and target, flat bytes."""


class Bus:
    """What pieces travel over: a stream of the device if it has such, no more than so many bytes a second; 0: any."""

    def __init__(self, stream: torch.Stream | None, bytes_per_s: int) -> None:
        self._stream = stream
        self._bytes_per_s = bytes_per_s

    def carry(self, source: Tensor, target: Tensor) -> None:
        """Returns when the bytes are there."""
        started_s = time.monotonic()
        target.copy_(source, non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()
        if self._bytes_per_s:
            end_s = started_s + source.nbytes / self._bytes_per_s
            time.sleep(max(end_s - time.monotonic(), 0.0))


@dataclass(eq=False, slots=True, kw_only=True)
class CopyJob:
    """Pieces on their way."""

    name: str
    """The model or the request that they belong to."""
    pieces: Iterator[Piece]
    urgent: bool = False
    """KV, which goes before weights."""
    done: int = 0
    """Pieces that have been copied."""
    duration_s: float = 0.0
    """From its first piece to its last."""
    error: str = ""
    ended: bool = False
    cancelled: bool = False
    copying: threading.Lock = field(default_factory=threading.Lock)
    """Held while a piece is written to its target."""
    _started_s: float = 0.0

    def copied(self, source: Tensor, target: Tensor) -> None:
        """Called after each piece, on the copy thread. Raises RuntimeError if it is not what was meant.

        Whatever it raises ends this job with an error, and no other.
        """

    def copy_next(self, bus: Bus) -> bool:
        """Copies a piece. False if the job is over: complete, cancelled or failed."""
        self._started_s = self._started_s or time.monotonic()
        with self.copying:
            try:
                over = self.cancelled or not self._copy(next(self.pieces, None), bus)
            except RuntimeError as failure:
                self.error, over = str(failure), True
            except Exception as failure:  # A defect: the thread outlives it, and whoever waits for the job is told.
                self.error, over = f"copying {self.name} failed: {failure!r}", True
        if over:
            self.duration_s = time.monotonic() - self._started_s
        return not over

    def _copy(self, piece: Piece | None, bus: Bus) -> bool:
        if piece is None:
            return False
        source, target = piece
        bus.carry(source, target)
        self.copied(source, target)
        self.done += 1
        return True


J = TypeVar("J", bound=CopyJob)


def chunks(source: Tensor, target: Tensor, piece_bytes: int = CHUNK_BYTES) -> Iterator[Piece]:
    """Two runs of bytes of one length, in pieces."""
    for start in range(0, source.numel(), piece_bytes):
        yield source[start : start + piece_bytes], target[start : start + piece_bytes]


class Copier:
    """Does the jobs that it is given. One thread calls everything here.

    `bytes_per_s` limits its speed, to emulate the bus of an accelerator on a CPU; 0 is no limit.
    """

    def __init__(self, device: torch.device, bytes_per_s: int = 0) -> None:
        self.piece_bytes = min(CHUNK_BYTES, max(int(bytes_per_s * PIECE_S), 1)) if bytes_per_s else CHUNK_BYTES
        """What a piece of weights should have."""
        self._device = device
        self._bytes_per_s = bytes_per_s
        self._jobs: deque[CopyJob] = deque()
        """Urgent ones first."""
        self._results: deque[CopyJob] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._readable, self._writable = os.pipe()
        os.set_blocking(self._readable, False)
        self._thread = threading.Thread(target=self._run, name="copier", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Readable when a job has ended, and when the first piece of one that is not urgent has been copied."""
        return self._readable

    def submit(self, job: CopyJob) -> None:
        with self._changed:
            place = sum(other.urgent for other in self._jobs) if job.urgent else len(self._jobs)
            self._jobs.insert(place, job)
            self._changed.notify_all()

    def hurry(self, job: CopyJob) -> None:
        """Lets a job go before all that are as urgent, even one that has begun."""
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
                place = 0 if job.urgent else sum(other.urgent for other in self._jobs)
                self._jobs.insert(place, job)

    def cancel(self, job: CopyJob) -> None:
        """Returns when nothing will be written to the job's targets any more: after the piece that is being copied."""
        job.cancelled = True
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
        with job.copying:
            job.ended = True

    def wait(self, job: CopyJob, pieces: int | None = None) -> None:
        """Returns when so many pieces of a job have been copied, or it has ended."""
        with self._changed:
            self._changed.wait_for(lambda: job.ended or (pieces is not None and job.done >= pieces))

    def results(self) -> list[CopyJob]:
        """Jobs that have ended since the last call; cancelled ones are not among them."""
        try:
            os.read(self._readable, 4096)
        except BlockingIOError:
            return []
        return [self._results.popleft() for _ in range(len(self._results))]

    def wake(self) -> None:
        """Makes `fileno` readable."""
        os.write(self._writable, b"x")

    def close(self) -> None:
        """Ends after the piece that is being copied."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        os.close(self._readable)
        os.close(self._writable)

    def _run(self) -> None:
        stream: torch.Stream | None = torch.Stream(self._device) if self._device.type == "cuda" else None
        bus = Bus(stream, self._bytes_per_s)
        with stream or nullcontext():
            while (job := self._next()) is not None:
                self._advance(job, bus)
                # While this thread waits, it must not keep the last image mapped.
                del job

    def _next(self) -> CopyJob | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            return None if self._closed else self._jobs[0]

    def _advance(self, job: CopyJob, bus: Bus) -> None:
        goes_on = job.copy_next(bus)
        with self._changed:
            if not goes_on and job in self._jobs:
                self._jobs.remove(job)
                job.ended = True
                self._results.append(job)
            if job.ended or (job.done == 1 and not job.urgent):
                self.wake()
            self._changed.notify_all()
