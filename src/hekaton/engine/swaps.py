"""KV that leaves a device, for its host or in a parcel, and comes back: block by block, on the copy thread.

Books are changed at once, bytes follow in the order in which they were asked for. So what the copy thread brings next
to a place finds it left; what steps write there themselves waits for that in `await_departed`.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hekaton.engine.copier import Copier, CopyJob
from hekaton.engine.device import Extent
from hekaton.engine.hostkv import HostKv
from hekaton.engine.interface import ExportResult, SwapResult
from hekaton.engine.kv import BLOCK_TOKENS, UNIT_BYTES, BlockShape, KvCache
from hekaton.engine.meter import Estimate
from hekaton.engine.parcel import ParcelReader, ParcelWriter
from hekaton.facts import Parcel

WORDS_A_SUM = UNIT_BYTES // 8


@dataclass(frozen=True, slots=True)
class _Received:
    """A parcel that has come, and the host memory that it is booked in."""

    reader: ParcelReader
    room: Extent


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
class _Send(_Out):
    parcel: ParcelWriter
    expected: Sequence[int] | None
    """Checksums of KV that comes from the host."""
    received: _Received | None
    """A parcel that it comes from."""

    def copied(self, source: Tensor, target: Tensor) -> None:
        self.sums.append(_checksum(target))
        if self.expected is not None and self.sums[-1] != self.expected[self.done]:
            raise RuntimeError(f"KV of request {self.name} is not what was written to host memory")
        try:
            self.parcel.write(self.done, target.numpy().data)
        except OSError as error:
            raise RuntimeError(f"KV of request {self.name} cannot be written: {error.strerror}") from error


@dataclass(eq=False, slots=True, kw_only=True)
class _In(CopyJob):
    shape: BlockShape
    sums: Sequence[int]

    def copied(self, source: Tensor, target: Tensor) -> None:
        if self.done >= len(self.sums) or _checksum(source) != self.sums[self.done]:
            raise RuntimeError(f"KV of request {self.name} is not what was written to host memory")


@dataclass(slots=True)
class _Held:
    """A request's KV off the device: on the host, or in a parcel."""

    tokens: int
    shape: BlockShape
    sums: Sequence[int]
    out: _Out | None = None
    received: _Received | None = None
    back: _In | None = None


class Swaps:
    """Moves the KV of requests between the device's `buffer`, `host` and parcels."""

    def __init__(self, kv: KvCache, buffer: Tensor, host: HostKv, copier: Copier) -> None:
        self._kv = kv
        self._buffer = buffer
        self._host = host
        self._copier = copier
        self._held: dict[str, _Held] = {}
        self._leaving: list[_Out] = []
        self._token_s: dict[BlockShape, Estimate] = {}

    def token_s(self, shape: BlockShape) -> float:
        """What a token's KV takes between device and host, checksum included; 0 if none has gone yet."""
        known = self._token_s.get(shape)
        return known.value_s if known else 0.0

    def out(self, request_id: str, tokens: int) -> bool:
        """Begins to move the KV of a request's first `tokens` tokens to the host. False if that has no room."""
        shape = self._kv.shape(request_id)
        if not self._host.take(request_id, shape, tokens):
            return False
        blocks = self._kv.table(request_id)[: -(-tokens // BLOCK_TOKENS)]
        places = self._host.table(request_id)
        pieces = ((self._place(block, shape), self._host.place(host, shape)) for block, host in _pairs(blocks, places))
        job = _Out(name=request_id, pieces=pieces, urgent=True, blocks=blocks, shape=shape)
        self._held[request_id] = _Held(tokens, shape, job.sums, job)
        self._leaving.append(job)
        self._kv.drop(request_id)
        self._copier.submit(job)
        return True

    def bring(self, request_id: str) -> None:
        """Begins to copy a request's KV back, to blocks that it has been given on the device."""
        held = self._held[request_id]
        blocks = self._kv.table(request_id)[: -(-held.tokens // BLOCK_TOKENS)]
        targets = [self._place(block, held.shape) for block in blocks]
        pieces = ((source, target) for target, source in zip(targets, self._sources(request_id, held), strict=False))
        held.back = _In(name=request_id, pieces=pieces, urgent=True, shape=held.shape, sums=held.sums)
        self._copier.submit(held.back)

    def held(self, request_id: str) -> tuple[BlockShape, int]:
        """Shape and tokens of a request's KV off the device. Raises KeyError if there is none."""
        held = self._held[request_id]
        return held.shape, held.tokens

    def shape(self, request_id: str) -> BlockShape:
        """Of a request's KV, wherever it is. Raises KeyError if there is none."""
        held = self._held.get(request_id)
        return held.shape if held else self._kv.shape(request_id)

    def send(self, request_id: str, parcel: ParcelWriter) -> None:
        """Begins to write a request's KV, wherever it is, into a parcel."""
        held, shape = self._held.pop(request_id, None), parcel.manifest.shape
        if held and held.back:
            self._copier.cancel(held.back)
        blocks = [] if held else self._kv.table(request_id)[: parcel.manifest.blocks]
        sources = self._sources(request_id, held) if held else (self._place(block, shape) for block in blocks)
        staging = torch.empty(shape.nbytes, dtype=torch.uint8)
        job = _Send(
            name=request_id,
            pieces=((source, staging) for source, _ in zip(sources, range(parcel.manifest.blocks), strict=False)),
            urgent=True,
            blocks=blocks,
            shape=shape,
            parcel=parcel,
            expected=held.sums if held else None,
            received=held.received if held else None,
        )
        self._leaving.append(job)
        self._copier.submit(job)
        self._kv.drop(request_id)
        self._leave_host(request_id, held.received if held else None)

    def receive(self, request_id: str, parcel: ParcelReader, tokens: int) -> bool:
        """Holds a parcel as a request's KV on the host, of its first `tokens` tokens. False if that has no room."""
        room = self._host.reserve(parcel.nbytes)
        if room is None:
            return False
        received = _Received(parcel, room)
        self._held[request_id] = _Held(tokens, parcel.manifest.shape, parcel.sums, received=received)
        return True

    def drop(self, request_id: str) -> None:
        """Forgets a request's KV on the host, and ends its copies; unknown ids are ignored."""
        held = self._held.pop(request_id, None)
        if held:
            for job in (held.out, held.back):
                if job is not None:
                    self._copier.cancel(job)
            if held.received:
                held.received.reader.close()
            self._leaving = [job for job in self._leaving if not job.ended]
            self._leave_host(request_id, held.received)

    def ended(self, job: CopyJob) -> SwapResult | ExportResult | None:
        """Books a copy that has ended. What has come back, or has left for good, is told; then its room is free."""
        self._leaving = [one for one in self._leaving if not one.ended]
        if isinstance(job, _Send):
            return _sent(job)
        self._time(job)
        held = self._held.get(job.name)
        if held is None or held.back is not job:
            return None
        self.drop(job.name)
        return SwapResult(job.name, job.error)

    def _time(self, job: CopyJob) -> None:
        if isinstance(job, _Out | _In) and job.done:
            estimate = self._token_s.setdefault(job.shape, Estimate(0.0, observed=False))
            estimate.observe(job.duration_s / (job.done * BLOCK_TOKENS))

    def await_departed(self, blocks: Iterable[int], shape: BlockShape) -> None:
        """Returns when nothing on its way off the device lies in these places any more."""
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

    def close(self) -> None:
        """Once nothing is copied any more: parcels in the making are gone."""
        for request_id in list(self._held):
            self.drop(request_id)
        for job in self._leaving:
            if isinstance(job, _Send):
                _sent(job)

    def _sources(self, request_id: str, held: _Held) -> Iterator[Tensor]:
        """The blocks of KV that is off the device."""
        if held.received:
            return _read(held.received.reader, held.shape)
        return (self._host.place(place, held.shape) for place in list(self._host.table(request_id)))

    def _leave_host(self, request_id: str, received: _Received | None) -> None:
        if received:
            self._host.free(received.room)
        if moves := self._host.drop(request_id):
            self._copier.submit(CopyJob(name="", pieces=iter(moves), urgent=True))

    def _place(self, block: int, shape: BlockShape) -> Tensor:
        return self._buffer[block * UNIT_BYTES :][: shape.nbytes]


def _sent(job: _Send) -> ExportResult:
    """Gives a parcel its name, if all of it is there."""
    writer, manifest = job.parcel, job.parcel.manifest
    error = job.error if job.ended else "not written to its end"
    try:
        if not error:
            writer.commit(job.sums)
    except OSError as failure:
        error = f"no parcel {writer.path.name}: {failure.strerror}"
    finally:
        writer.close()
        if job.received:
            job.received.reader.close()
    parcel = None if error else Parcel(str(writer.path), manifest.tokens, writer.nbytes)
    return ExportResult(manifest.request_id, manifest.epoch, parcel, error)


def _read(reader: ParcelReader, shape: BlockShape) -> Iterator[Tensor]:
    """The blocks of a parcel, one after the other in the same place."""
    staging = torch.empty(shape.nbytes, dtype=torch.uint8)
    for index in range(reader.manifest.blocks):
        try:
            reader.read(index, staging.numpy().data)
        except OSError as error:
            raise RuntimeError(f"KV of request {reader.manifest.request_id} cannot be read: {error}") from error
        yield staging


def _pairs(blocks: list[int], places: list[int]) -> list[tuple[int, int]]:
    """Taken down now: the numbers in tables change."""
    return list(zip(blocks, places, strict=True))


def _checksum(block: Tensor) -> int:
    """The CRC-32 of the sums of every 256 bytes.

    It sees what lies in another place, as a sum of all would not, and costs a quarter of what a CRC of all would.
    """
    sums = block.view(torch.int64).view(-1, WORDS_A_SUM).sum(1)
    return zlib.crc32(sums.numpy().data)
