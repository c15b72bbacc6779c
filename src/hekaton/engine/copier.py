"""The copy engine: one thread that moves weight images to the device while steps are computed.

Copies are made in chunks, so that one that is not wanted any more ends within milliseconds.
"""

import os
import threading
import time
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, field
from queue import SimpleQueue

import torch
from torch import Tensor

from hekaton.engine.interface import LoadResult

CHUNK_BYTES = 16 << 20


@dataclass(eq=False, slots=True)
class CopyJob:
    """One image on its way. Both tensors are flat bytes."""

    model: str
    source: Tensor
    target: Tensor
    cancelled: bool = False
    copying: threading.Lock = field(default_factory=threading.Lock)
    """Held while a chunk is written to the target."""


class Copier:
    """Jobs are done one after the other, in the order of submission."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._jobs: SimpleQueue[CopyJob | None] = SimpleQueue()
        self._results: deque[tuple[CopyJob, LoadResult]] = deque()
        self._readable, self._writable = os.pipe()
        os.set_blocking(self._readable, False)
        self._thread = threading.Thread(target=self._run, name="copier", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Readable when a job has ended."""
        return self._readable

    def submit(self, job: CopyJob) -> None:
        self._jobs.put(job)

    def cancel(self, job: CopyJob) -> None:
        """Returns when nothing will be written to the job's target any more: after the chunk that is being copied."""
        job.cancelled = True
        with job.copying:
            return

    def results(self) -> list[tuple[CopyJob, LoadResult]]:
        """Copies that have ended since the last call; cancelled ones are not among them."""
        try:
            os.read(self._readable, 4096)
        except BlockingIOError:
            return []
        return [self._results.popleft() for _ in range(len(self._results))]

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()
        os.close(self._readable)
        os.close(self._writable)

    def _run(self) -> None:
        stream: torch.Stream | None = torch.Stream(self._device) if self._device.type == "cuda" else None
        while (job := self._jobs.get()) is not None:
            self._do(job, stream)
            # While this thread waits, it must not keep the last image mapped.
            del job

    def _do(self, job: CopyJob, stream: torch.Stream | None) -> None:
        started_s = time.monotonic()
        error = ""
        try:
            with stream or nullcontext():
                self._copy(job, stream)
        except RuntimeError as failure:
            error = str(failure)
        if not job.cancelled:
            duration_s = time.monotonic() - started_s
            self._results.append((job, LoadResult(job.model, duration_s, job.source.numel(), error)))
            os.write(self._writable, b"x")

    def _copy(self, job: CopyJob, stream: torch.Stream | None) -> None:
        for start in range(0, job.source.numel(), CHUNK_BYTES):
            with job.copying:
                if job.cancelled:
                    return
                end = min(start + CHUNK_BYTES, job.source.numel())
                job.target[start:end].copy_(job.source[start:end], non_blocking=True)
                if stream is not None:
                    stream.synchronize()
