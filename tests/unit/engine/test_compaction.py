"""Weights and KV in one memory: an allocation succeeds if, and only if, the bytes that nobody uses suffice."""

from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hekaton.engine.compaction import gather
from hekaton.engine.device import Extent, Extents
from hekaton.engine.kv import BLOCK_TOKENS, UNIT_BYTES, BlockShape, KvCache

DEVICE_BYTES = 1 << 18
MAX_SLAB_BYTES = DEVICE_BYTES // 8
SHAPES = (
    BlockShape(layers=1, kv_heads=1, head_size=8, dtype="float32", itemsize=4),
    BlockShape(layers=1, kv_heads=3, head_size=12, dtype="float32", itemsize=4),
    BlockShape(layers=3, kv_heads=1, head_size=20, dtype="bfloat16", itemsize=2),
)
REQUESTS = st.integers(0, 8)


class AnyUse(RuleBasedStateMachine):
    """Request i has shape i modulo 3. Every block and every unit of weights is marked with a byte of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Extents(DEVICE_BYTES)
        self.kv = KvCache(self.memory, MAX_SLAB_BYTES)
        self.bytes = bytearray(DEVICE_BYTES)
        self.tables: dict[int, list[bytes]] = {}
        """What each block of a request must hold."""
        self.weights: list[tuple[Extent, bytes]] = []
        self.marks = count(1)

    @rule(request=REQUESTS, tokens=st.integers(1, 1500))
    def grow(self, request: int, tokens: int) -> None:
        shape, held = SHAPES[request % 3], self.tables.get(request, [])
        missing_bytes = self.kv.missing_bytes(str(request), shape, tokens)
        free_bytes = self.memory.free_bytes + self.kv.unused_bytes
        fresh = self.kv.grow(str(request), shape, tokens)
        if fresh is None:
            self.make_room(missing_bytes)
            fresh = self.kv.grow(str(request), shape, tokens)
        assert (fresh is not None) == (missing_bytes <= free_bytes)
        for block in fresh or ():
            held.append(self.mark(block * UNIT_BYTES, shape.nbytes))
            self.tables[request] = held

    @rule(request=REQUESTS)
    def drop(self, request: int) -> None:
        self.kv.drop(str(request))
        self.tables.pop(request, None)

    @rule(units=st.integers(1, DEVICE_BYTES // UNIT_BYTES // 3))
    def load(self, units: int) -> None:
        nbytes = units * UNIT_BYTES
        free_bytes = self.memory.free_bytes + self.kv.unused_bytes
        extent = self.memory.allocate(nbytes)
        if extent is None:
            self.make_room(nbytes)
            extent = self.memory.allocate(nbytes)
        assert (extent is not None) == (nbytes <= free_bytes)
        if extent is not None:
            self.weights.append((extent, self.mark(extent.start, nbytes)))

    @rule(place=st.integers(0, 100))
    def evict(self, place: int) -> None:
        if self.weights:
            self.memory.free(self.weights.pop(place % len(self.weights))[0])

    @invariant()
    def nothing_is_lost(self) -> None:
        self.kv.check_integrity()
        self.memory.check_integrity()
        for extent, content in self.weights:
            assert self.bytes[extent.start : extent.end] == content
        for request, blocks in self.tables.items():
            starts = [block * UNIT_BYTES for block in self.kv.table(str(request))]
            nbytes = SHAPES[request % 3].nbytes
            assert [self.bytes[start : start + nbytes] for start in starts] == blocks
        used = sum(extent.nbytes for extent, _ in self.weights)
        used += sum(len(blocks) * SHAPES[request % 3].nbytes for request, blocks in self.tables.items())
        assert self.memory.free_bytes + self.kv.unused_bytes == DEVICE_BYTES - used

    def make_room(self, nbytes: int) -> None:
        moved = gather(self.memory, self.kv, [extent for extent, _ in self.weights], nbytes, self.copy)
        self.weights = [(moved.get(extent, extent), content) for extent, content in self.weights]

    def copy(self, source: int, target: int, nbytes: int) -> None:
        self.bytes[target : target + nbytes] = self.bytes[source : source + nbytes]

    def mark(self, start: int, nbytes: int) -> bytes:
        content = next(self.marks).to_bytes(8, "big") * (nbytes // 8)
        self.bytes[start : start + nbytes] = content
        return content


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=80, stateful_step_count=40)


def scattered() -> tuple[Extents, KvCache, list[Extent]]:
    """Weights, free, weights, free, a block, free: 2048 bytes free in each place."""
    memory = Extents(5 * 2048 + SHAPES[0].nbytes)
    extents = [extent for extent in (memory.allocate(2048) for _ in range(4)) if extent]
    kv = KvCache(memory, 1)
    top = memory.allocate_top(2048)
    assert top is not None
    assert kv.grow("r", SHAPES[0], BLOCK_TOKENS) is not None
    for extent in (top, extents.pop(1), extents.pop(2)):
        memory.free(extent)
    return memory, kv, extents


def test_weights_that_are_not_given_stay_where_they_are() -> None:
    memory, kv, (first, second) = scattered()
    moved = gather(memory, kv, [first], 6144, lambda source, target, nbytes: None)
    assert moved == {}
    assert memory.largest_free_bytes == 4096, "the block has moved, the weights have not"
    assert gather(memory, kv, [second], 6144, lambda source, target, nbytes: None)
    assert memory.largest_free_bytes == 6144


def test_nothing_moves_if_the_bytes_do_not_suffice() -> None:
    memory, kv, extents = scattered()
    copies: list[int] = []
    assert gather(memory, kv, extents, 6145, lambda source, target, nbytes: copies.append(nbytes)) == {}
    assert copies == []


@pytest.mark.parametrize(("nbytes", "copied"), [(2048, 0), (4096, 2048), (6144, 2048 + SHAPES[0].nbytes)])
def test_no_more_moves_than_it_takes(nbytes: int, copied: int) -> None:
    memory, kv, extents = scattered()
    copies: list[int] = []
    gather(memory, kv, extents, nbytes, lambda source, target, size: copies.append(size))
    assert sum(copies) == copied
