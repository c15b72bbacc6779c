"""Paged KV: 16-token blocks in slabs of the device buffer, and each request's table of blocks.

A block holds 16 tokens of all layers of one request: [layers, 2, 16, kv_heads, head_size]. A slab holds blocks of one
shape. It goes back when its last block does.

The number of a block is where it starts, in units of 256 bytes. So one view of the buffer, of overlapping windows 256
bytes apart, addresses all blocks of a shape, and a slab may start at any unit.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hekaton.engine.device import Extent, Extents
from hekaton.engine.image import ALIGN_BYTES, aligned

BLOCK_TOKENS = 16
MAX_UNUSED = 0.1
"""Share of the slabs' bytes beyond which it is worth it to empty a sparse slab into others."""
UNIT_BYTES = ALIGN_BYTES
CopyBytes = Callable[[int, int, int], None]
"""Moves bytes within a memory: from where, to where, how many. The two may overlap."""
MAX_SLAB_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class BlockShape:
    """What makes blocks interchangeable."""

    layers: int
    kv_heads: int
    head_size: int
    dtype: str
    itemsize: int

    @property
    def nbytes(self) -> int:
        """Of one block, in whole units."""
        return aligned(self.layers * 2 * BLOCK_TOKENS * self.kv_heads * self.head_size * self.itemsize)

    @property
    def units(self) -> int:
        return self.nbytes // UNIT_BYTES


@dataclass(eq=False, slots=True)
class Slab:
    shape: BlockShape
    extent: Extent
    free: list[int]
    """Numbers of its free blocks."""

    @property
    def numbers(self) -> range:
        """Of all its blocks, ascending."""
        return range(self.extent.start // UNIT_BYTES, self.extent.end // UNIT_BYTES, self.shape.units)


@dataclass(slots=True)
class Pool:
    """All slabs of one shape."""

    slabs: list[Slab] = field(default_factory=list)
    slab_of: dict[int, Slab] = field(default_factory=dict)
    """Block in use → its slab."""


class KvCache:
    """Books of the KV in one memory."""

    def __init__(self, memory: Extents, max_slab_bytes: int, least_blocks: int = 1) -> None:
        self._memory = memory
        self._max_slab_bytes = max_slab_bytes
        self._least_blocks = least_blocks
        """No slab is smaller, but for what compaction has cut off."""
        self._pools: dict[BlockShape, Pool] = {}
        self._tables: dict[str, tuple[BlockShape, list[int]]] = {}
        self._renamed: dict[BlockShape, dict[int, int]] = defaultdict(dict)
        self.slab_bytes = 0
        self.used_bytes = 0

    @property
    def unused_bytes(self) -> int:
        """Of free blocks in slabs."""
        return self.slab_bytes - self.used_bytes

    def holds(self, request_id: str) -> bool:
        return request_id in self._tables

    def shape(self, request_id: str) -> BlockShape:
        """Of a request's blocks. Raises KeyError."""
        return self._tables[request_id][0]

    def table(self, request_id: str) -> list[int]:
        """A request's blocks, in the order of its tokens. Raises KeyError."""
        return self._tables[request_id][1]

    def grow(self, request_id: str, shape: BlockShape, tokens: int) -> list[int] | None:
        """Makes room for `tokens` tokens in all; the new blocks. None, and nothing changed, if there is no room."""
        _, table = self._tables.get(request_id, (shape, []))
        wanted = -(-tokens // BLOCK_TOKENS) - len(table)
        taken: list[int] = []
        pool = self._pools.setdefault(shape, Pool())
        while len(taken) < wanted:
            block = self._take(pool, shape)
            if block is None:
                self._release(shape, taken)
                return None
            taken.append(block)
        self._tables[request_id] = (shape, table + taken)
        self.used_bytes += len(taken) * shape.nbytes
        return taken

    def drop(self, request_id: str) -> None:
        """Frees a request's blocks; unknown ids are ignored."""
        shape, table = self._tables.pop(request_id, (None, []))
        if shape is not None:
            self._release(shape, table)
            self.used_bytes -= len(table) * shape.nbytes

    def missing_bytes(self, request_id: str, shape: BlockShape, tokens: int) -> int:
        """What `grow` would take, in blocks."""
        _, table = self._tables.get(request_id, (shape, []))
        return max(-(-tokens // BLOCK_TOKENS) - len(table), 0) * shape.nbytes

    def slabs(self) -> list[Slab]:
        return [slab for pool in self._pools.values() for slab in pool.slabs]

    def lift(self, slab: Slab, copy: CopyBytes) -> None:
        """Cuts a slab down to its blocks in use and moves these as high as they fit. Call `rename` after the last."""
        numbers, free = slab.numbers, set(slab.free)
        used = [number for number in numbers if number not in free]
        kept = numbers[-len(used) :]
        places = (number for number in kept if number in free)
        inner = dict(zip((number for number in used if number < kept[0]), places, strict=True))
        for old, new in inner.items():
            copy(old * UNIT_BYTES, new * UNIT_BYTES, slab.shape.nbytes)
        source = kept[0] * UNIT_BYTES
        self.slab_bytes -= len(free) * slab.shape.nbytes
        slab.extent, slab.free = self._memory.lift(slab.extent, len(used) * slab.shape.nbytes), []
        if slab.extent.start != source:
            copy(source, slab.extent.start, slab.extent.nbytes)
        shift = slab.numbers[0] - kept[0]
        self._renamed[slab.shape] |= {number: inner.get(number, number) + shift for number in used}

    def squeeze(self, shape: BlockShape) -> dict[int, int]:
        """Gives the sparsest slab of a shape back, if it is half empty and its blocks have places in the others.

        Only if too much of all slabs is unused. The new number of each block by its old one; the bytes are the caller's
        to move.
        """
        if self.unused_bytes <= MAX_UNUSED * self.slab_bytes:
            return {}
        pool = self._pools[shape]
        sparsest = max(pool.slabs, key=lambda slab: len(slab.free), default=None)
        if sparsest is None or 2 * len(sparsest.free) < len(sparsest.numbers):
            return {}
        used = sorted(set(sparsest.numbers) - set(sparsest.free))
        if sum(len(slab.free) for slab in pool.slabs) < len(sparsest.free) + len(used):
            return {}
        pool.slabs.remove(sparsest)
        moved = {block: place for block in used if (place := self._take(pool, shape)) is not None}
        pool.slabs.append(sparsest)
        self._rename_tables({shape: moved})
        self._release(shape, used)
        return moved

    def rename(self) -> None:
        """Gives blocks that `lift` has moved their new numbers."""
        renamed, self._renamed = self._renamed, defaultdict(dict)
        for shape, names in renamed.items():
            pool = self._pools[shape]
            pool.slab_of = {names.get(block, block): slab for block, slab in pool.slab_of.items()}
        self._rename_tables(renamed)

    def check_integrity(self) -> None:
        """Raises AssertionError if a block is lost, or has two owners, or a slab is kept for nothing."""
        for shape, pool in self._pools.items():
            held = [block for own, table in self._tables.values() if own == shape for block in table]
            if len(set(held)) != len(held) or set(held) != set(pool.slab_of):
                raise AssertionError("KV: block tables and pool disagree")
            for slab in pool.slabs:
                used = sum(1 for owner in pool.slab_of.values() if owner is slab)
                if used + len(slab.free) != len(slab.numbers) or not used:
                    raise AssertionError("KV: a slab has lost blocks or is empty")
                if not set(slab.free).isdisjoint(pool.slab_of) or not set(slab.free) <= set(slab.numbers):
                    raise AssertionError("KV: a slab's free blocks are not its own")
        if self.slab_bytes != sum(slab.extent.nbytes for pool in self._pools.values() for slab in pool.slabs):
            raise AssertionError("KV: the slabs' bytes do not add up")
        if self.used_bytes != sum(len(pool.slab_of) * shape.nbytes for shape, pool in self._pools.items()):
            raise AssertionError("KV: the blocks' bytes do not add up")

    def _rename_tables(self, renamed: Mapping[BlockShape, dict[int, int]]) -> None:
        for shape, table in self._tables.values():
            if names := renamed.get(shape):
                table[:] = [names.get(block, block) for block in table]

    def _take(self, pool: Pool, shape: BlockShape) -> int | None:
        slab = next((slab for slab in pool.slabs if slab.free), None) or self._new_slab(pool, shape)
        if slab is None:
            return None
        block = slab.free.pop()
        pool.slab_of[block] = slab
        return block

    def _new_slab(self, pool: Pool, shape: BlockShape) -> Slab | None:
        """As large as wanted, or as large as there is room for."""
        blocks = max(self._least_blocks, min(MAX_SLAB_BLOCKS, self._max_slab_bytes // shape.nbytes))
        while blocks >= self._least_blocks:
            extent = self._memory.allocate_top(blocks * shape.nbytes)
            if extent is not None:
                slab = Slab(shape, extent, [])
                slab.free += reversed(slab.numbers)
                pool.slabs.append(slab)
                self.slab_bytes += extent.nbytes
                return slab
            blocks //= 2
        return None

    def _release(self, shape: BlockShape, blocks: list[int]) -> None:
        pool = self._pools[shape]
        for block in blocks:
            slab = pool.slab_of.pop(block)
            slab.free.append(block)
            if len(slab.free) == len(slab.numbers):
                pool.slabs.remove(slab)
                self.slab_bytes -= slab.extent.nbytes
                self._memory.free(slab.extent)
