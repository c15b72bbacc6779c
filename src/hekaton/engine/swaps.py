"""KV that leaves a device for its host, and comes back: block by block, on the copy thread.

Books are changed at once, bytes follow in the order in which they were asked for. So what the copy thread brings next
to a place finds it left; what steps write there themselves waits for that in `await_departed`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hekaton.engine.copier import Copier, CopyJob
from hekaton.engine.hostkv import HostKv
from hekaton.engine.interface import SwapResult
from hekaton.engine.kv import BLOCK_TOKENS, UNIT_BYTES, BlockShape, KvCache


@dataclass(eq=False, slots=True, kw_only=True)
class _Out(CopyJob):
    blocks: list[int]
    """On the device, in the order in which they are copied."""
    shape: BlockShape
    sums: list[int] = field(default_factory=list)
    """A checksum of each block that has been copied."""

    def copied(self, source: Tensor, target: Tensor) -> None:
        self.sums.append(_checksum(target))


@dataclass(eq=False, slots=True, kw_only=True)
class _In(CopyJob):
    sums: Sequence[int]

    def copied(self, source: Tensor, target: Tensor) -> None:
        if self.done >= len(self.sums) or _checksum(source) != self.sums[self.done]:
            raise RuntimeError(f"KV of request {self.name} is not what was written to host memory")


@dataclass(slots=True)
class _Held:
    """A request's KV on the host."""

    tokens: int
    shape: BlockShape
    out: _Out
    back: _In | None = None


class Swaps:
    """Moves the KV of requests between the device's `buffer` and `host`."""

    def __init__(self, kv: KvCache, buffer: Tensor, host: HostKv, copier: Copier) -> None:
        self._kv = kv
        self._buffer = buffer
        self._host = host
        self._copier = copier
        self._held: dict[str, _Held] = {}
        self._leaving: list[_Out] = []

    def out(self, request_id: str, tokens: int) -> bool:
        """Begins to move the KV of a request's first `tokens` tokens to the host. False if that has no room."""
        shape = self._kv.shape(request_id)
        if not self._host.take(request_id, shape, tokens):
            return False
        blocks = self._kv.table(request_id)[: -(-tokens // BLOCK_TOKENS)]
        places = self._host.table(request_id)
        pieces = ((self._place(block, shape), self._host.place(host, shape)) for block, host in _pairs(blocks, places))
        job = _Out(name=request_id, pieces=pieces, urgent=True, blocks=blocks, shape=shape)
        self._held[request_id] = _Held(tokens, shape, job)
        self._leaving.append(job)
        self._kv.drop(request_id)
        self._copier.submit(job)
        return True

    def bring(self, request_id: str) -> None:
        """Begins to copy a request's KV back, to blocks that it has been given on the device."""
        held = self._held[request_id]
        shape, places = held.shape, self._host.table(request_id)
        blocks = self._kv.table(request_id)[: len(places)]
        pieces = ((self._host.place(host, shape), self._place(block, shape)) for block, host in _pairs(blocks, places))
        held.back = _In(name=request_id, pieces=pieces, urgent=True, sums=held.out.sums)
        self._copier.submit(held.back)

    def held(self, request_id: str) -> tuple[BlockShape, int]:
        """Shape and tokens of a request's KV on the host. Raises KeyError if there is none."""
        held = self._held[request_id]
        return held.shape, held.tokens

    def drop(self, request_id: str) -> None:
        """Forgets a request's KV on the host, and ends its copies; unknown ids are ignored."""
        held = self._held.pop(request_id, None)
        if held:
            for job in (held.out, held.back):
                if job is not None:
                    self._copier.cancel(job)
            self._leaving = [job for job in self._leaving if not job.ended]
            if moves := self._host.drop(request_id):
                self._copier.submit(CopyJob(name="", pieces=iter(moves), urgent=True))

    def ended(self, job: CopyJob) -> SwapResult | None:
        """Books a copy that has ended. What has come back is told; then the host's room is free."""
        self._leaving = [one for one in self._leaving if not one.ended]
        held = self._held.get(job.name)
        if held is None or held.back is not job:
            return None
        self.drop(job.name)
        return SwapResult(job.name, job.error)

    def await_departed(self, blocks: Iterable[int], shape: BlockShape) -> None:
        """Returns when nothing on its way to the host lies in these places any more."""
        starts = list(blocks)
        for job in self._leaving:
            theirs = [
                index
                for index, block in enumerate(job.blocks)
                if any(start < block + job.shape.units and block < start + shape.units for start in starts)
            ]
            if theirs:
                self._copier.wait(job, theirs[-1] + 1)

    def settle(self) -> None:
        """Returns when no KV is being copied: before anything moves on the device."""
        coming = [held.back for held in self._held.values() if held.back is not None]
        for job in (*self._leaving, *coming):
            self._copier.wait(job)

    def _place(self, block: int, shape: BlockShape) -> Tensor:
        return self._buffer[block * UNIT_BYTES :][: shape.nbytes]


def _pairs(blocks: list[int], places: list[int]) -> list[tuple[int, int]]:
    """Taken down now: the numbers in tables change."""
    return list(zip(blocks, places, strict=True))


def _checksum(block: Tensor) -> int:
    """Of bytes: the sum of their words."""
    return int(block.view(torch.int64).sum())
