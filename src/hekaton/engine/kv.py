"""Paged KV: 16-token blocks in slabs of the device buffer, and each request's table of blocks.

A block holds 16 tokens of all layers of one request: [layers, 2, 16, kv_heads, head_size]. A slab holds blocks of one
shape and starts a multiple of the block's size before the device's end. So blocks of a shape are numbered from the
first that fits the device, one strided view addresses them all, and what is free at the top is used to the last block.
A slab goes back when its last block does.
"""

from dataclasses import dataclass, field

from hekaton.engine.device import Extent, Extents
from hekaton.engine.image import aligned

BLOCK_TOKENS = 16
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
        """Of one block, rounded up so that slabs of any shape stay aligned."""
        return aligned(self.layers * 2 * BLOCK_TOKENS * self.kv_heads * self.head_size * self.itemsize)


@dataclass(slots=True)
class Slab:
    extent: Extent
    free: list[int]
    """Numbers of its free blocks."""
    blocks: int


@dataclass(slots=True)
class Pool:
    """All slabs of one shape."""

    slabs: list[Slab] = field(default_factory=list)
    slab_of: dict[int, Slab] = field(default_factory=dict)
    """Block in use → its slab."""


class KvCache:
    """Books of the KV on one device."""

    def __init__(self, memory: Extents, max_slab_bytes: int) -> None:
        self._memory = memory
        self._max_slab_bytes = max_slab_bytes
        self._pools: dict[BlockShape, Pool] = {}
        self._tables: dict[str, tuple[BlockShape, list[int]]] = {}
        self.slab_bytes = 0

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
                self._release(pool, taken)
                return None
            taken.append(block)
        self._tables[request_id] = (shape, table + taken)
        return taken

    def drop(self, request_id: str) -> None:
        """Frees a request's blocks; unknown ids are ignored."""
        shape, table = self._tables.pop(request_id, (None, []))
        if shape is not None:
            self._release(self._pools[shape], table)

    def check_integrity(self) -> None:
        """Raises AssertionError if a block is lost, or has two owners, or a slab is kept for nothing."""
        for shape, pool in self._pools.items():
            held = [block for own, table in self._tables.values() if own == shape for block in table]
            if len(set(held)) != len(held) or set(held) != set(pool.slab_of):
                raise AssertionError("KV: block tables and pool disagree")
            for slab in pool.slabs:
                used = sum(1 for owner in pool.slab_of.values() if owner is slab)
                if used + len(slab.free) != slab.blocks or not used:
                    raise AssertionError("KV: a slab has lost blocks or is empty")
        if self.slab_bytes != sum(slab.extent.nbytes for pool in self._pools.values() for slab in pool.slabs):
            raise AssertionError("KV: the slabs' bytes do not add up")

    def _take(self, pool: Pool, shape: BlockShape) -> int | None:
        slab = next((slab for slab in pool.slabs if slab.free), None) or self._new_slab(pool, shape)
        if slab is None:
            return None
        block = slab.free.pop()
        pool.slab_of[block] = slab
        return block

    def _new_slab(self, pool: Pool, shape: BlockShape) -> Slab | None:
        """As large as wanted, or as large as there is room for."""
        blocks = max(1, min(MAX_SLAB_BLOCKS, self._max_slab_bytes // shape.nbytes))
        while blocks:
            extent = self._memory.allocate_top(blocks * shape.nbytes, shape.nbytes)
            if extent is not None:
                first = extent.start // shape.nbytes  # the device's remainder lies before block 0
                slab = Slab(extent, list(range(first + blocks - 1, first - 1, -1)), blocks)
                pool.slabs.append(slab)
                self.slab_bytes += extent.nbytes
                return slab
            blocks //= 2
        return None

    def _release(self, pool: Pool, blocks: list[int]) -> None:
        for block in blocks:
            slab = pool.slab_of.pop(block)
            slab.free.append(block)
            if len(slab.free) == slab.blocks:
                pool.slabs.remove(slab)
                self.slab_bytes -= slab.extent.nbytes
                self._memory.free(slab.extent)
