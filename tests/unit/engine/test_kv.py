"""Block tables and slabs, under any sequence of requests of several shapes beside weights."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hekaton.engine.device import Extent, Extents
from hekaton.engine.kv import BLOCK_TOKENS, UNIT_BYTES, BlockShape, KvCache

DEVICE_BYTES = 1 << 20
MAX_SLAB_BYTES = DEVICE_BYTES // 16
SHAPES = (
    BlockShape(layers=1, kv_heads=1, head_size=16, dtype="float32", itemsize=4),
    BlockShape(layers=2, kv_heads=3, head_size=12, dtype="float32", itemsize=4),
    BlockShape(layers=5, kv_heads=1, head_size=20, dtype="bfloat16", itemsize=2),
)
REQUESTS = st.integers(0, 8)


class AnyUse(RuleBasedStateMachine):
    """Request i has shape i modulo 3."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Extents(DEVICE_BYTES)
        self.kv = KvCache(self.memory, MAX_SLAB_BYTES)
        self.tables: dict[int, list[int]] = {}
        self.weights: list[Extent] = []

    @rule(request=REQUESTS, tokens=st.integers(1, 900))
    def grow(self, request: int, tokens: int) -> None:
        shape, held = SHAPES[request % 3], self.tables.get(request, [])
        free_bytes = self.memory.free_bytes
        fresh = self.kv.grow(str(request), shape, tokens)
        if fresh is None:
            assert self.memory.free_bytes == free_bytes
            return
        wanted = max(-(-tokens // BLOCK_TOKENS), len(held))
        table = self.kv.table(str(request))
        assert table == held + fresh
        assert len(table) == wanted
        self.tables[request] = list(table)

    @rule(request=REQUESTS)
    def drop(self, request: int) -> None:
        self.kv.drop(str(request))
        self.tables.pop(request, None)

    @rule(place=st.integers(0, 2))
    def squeeze(self, place: int) -> None:
        slab_bytes, shape = self.kv.slab_bytes, SHAPES[place]
        moved = self.kv.squeeze(shape) if place in {request % 3 for request in self.tables} else {}
        assert not moved or self.kv.slab_bytes < slab_bytes
        for request, table in self.tables.items():
            if request % 3 == place:
                self.tables[request] = [moved.get(block, block) for block in table]

    @rule(units=st.integers(1, DEVICE_BYTES // UNIT_BYTES // 3))
    def load(self, units: int) -> None:
        extent = self.memory.allocate(units * UNIT_BYTES)
        if extent is not None:
            self.weights.append(extent)

    @rule()
    def evict(self) -> None:
        if self.weights:
            self.memory.free(self.weights.pop(0))

    @invariant()
    def books_balance(self) -> None:
        self.kv.check_integrity()
        self.memory.check_integrity()
        weights = sum(extent.nbytes for extent in self.weights)
        assert self.memory.free_bytes == DEVICE_BYTES - weights - self.kv.slab_bytes

    @invariant()
    def every_byte_has_one_owner(self) -> None:
        spans = [(extent.start, extent.end) for extent in self.weights]
        for request, table in self.tables.items():
            assert self.kv.table(str(request)) == table
            size = SHAPES[request % 3].nbytes
            spans += [(block * UNIT_BYTES, block * UNIT_BYTES + size) for block in table]
        spans.sort()
        ends = [0, *(end for _, end in spans)]
        assert all(start >= end for (start, _), end in zip(spans, ends, strict=False))
        assert ends[-1] <= DEVICE_BYTES

    def teardown(self) -> None:
        for request in self.tables:
            self.kv.drop(str(request))
        for extent in self.weights:
            self.memory.free(extent)
        self.kv.check_integrity()
        self.memory.check_integrity()
        assert self.kv.slab_bytes == 0
        assert self.memory.free_bytes == DEVICE_BYTES


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=60, stateful_step_count=30)


def test_a_slab_shrinks_to_the_room_there_is() -> None:
    memory = Extents(3 * SHAPES[0].nbytes)
    kv = KvCache(memory, MAX_SLAB_BYTES)
    assert kv.grow("r", SHAPES[0], 3 * BLOCK_TOKENS) is not None
    assert memory.free_bytes == 0


def test_a_request_without_kv_has_no_table() -> None:
    kv = KvCache(Extents(DEVICE_BYTES), MAX_SLAB_BYTES)
    kv.drop("unknown")
    with pytest.raises(KeyError):
        kv.table("unknown")


def test_a_block_with_two_owners_is_noticed() -> None:
    kv = KvCache(Extents(DEVICE_BYTES), MAX_SLAB_BYTES)
    kv.grow("a", SHAPES[0], 1)
    kv.grow("b", SHAPES[0], 1)
    kv.table("b")[0] = kv.table("a")[0]
    with pytest.raises(AssertionError, match="KV"):
        kv.check_integrity()


def test_no_slab_is_smaller_than_asked_for() -> None:
    kv = KvCache(Extents(64 * SHAPES[0].nbytes), MAX_SLAB_BYTES, least_blocks=64)
    assert kv.grow("r", SHAPES[0], 1) is not None
    assert kv.slab_bytes == 64 * SHAPES[0].nbytes
    assert KvCache(Extents(63 * SHAPES[0].nbytes), MAX_SLAB_BYTES, least_blocks=64).grow("r", SHAPES[0], 1) is None


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_free_above_the_weights_is_used_to_the_last_block(shape: BlockShape) -> None:
    memory = Extents(DEVICE_BYTES + 256)
    weights = memory.allocate(DEVICE_BYTES // 3 // UNIT_BYTES * UNIT_BYTES)
    assert weights is not None
    kv = KvCache(memory, MAX_SLAB_BYTES)
    blocks = memory.free_bytes // shape.nbytes
    assert kv.grow("r", shape, blocks * BLOCK_TOKENS) is not None
    assert kv.grow("r", shape, blocks * BLOCK_TOKENS + 1) is None
