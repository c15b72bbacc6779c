"""KV on its way between device and host: every byte survives any sequence of swaps beside allocations."""

import select
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from torch import Tensor

from hekaton.engine.copier import Copier, CopyJob, Piece
from hekaton.engine.device import Extents
from hekaton.engine.hostkv import HostKv
from hekaton.engine.kv import BLOCK_TOKENS, UNIT_BYTES, BlockShape, KvCache
from hekaton.engine.swaps import Swaps

WAIT_S = 30.0
SHAPES = (
    BlockShape(layers=1, kv_heads=1, head_size=8, dtype="float32", itemsize=4),
    BlockShape(layers=1, kv_heads=3, head_size=12, dtype="float32", itemsize=4),
)
DEVICE_BYTES = 24 * SHAPES[1].nbytes
SLAB_BLOCKS = 8
HOST_BYTES = 4 * SLAB_BLOCKS * (SHAPES[0].nbytes + SHAPES[1].nbytes)
REQUESTS = st.integers(0, 5).map(str)


class Bench:
    """A device's memory, a host and the copies between them, without an engine."""

    def __init__(self, device_bytes: int = DEVICE_BYTES) -> None:
        self.kv = KvCache(Extents(device_bytes), 8 * SHAPES[0].nbytes)
        self.buffer = torch.zeros(device_bytes, dtype=torch.uint8)
        self.host = HostKv(None, HOST_BYTES, SLAB_BLOCKS)
        self.copier = Copier(torch.device("cpu"))
        self.swaps = Swaps(self.kv, self.buffer, self.host, self.copier)

    def blocks(self, request_id: str) -> list[Tensor]:
        nbytes = self.kv.shape(request_id).nbytes
        return [self.buffer[block * UNIT_BYTES :][:nbytes] for block in self.kv.table(request_id)]

    def write(self, request_id: str, shape: BlockShape, tokens: int, mark: int) -> bool:
        """As a step does: the request's new blocks are filled with numbers that begin with `mark`."""
        fresh = self.kv.grow(request_id, shape, tokens)
        if fresh is None:
            return False
        self.swaps.await_departed(fresh, shape)
        for offset, block in enumerate(fresh):
            self.buffer[block * UNIT_BYTES :][: shape.nbytes] = (mark + offset) % 251
        return True

    def returned(self) -> dict[str, str]:
        """Errors, mostly none, of the requests whose KV has come back."""
        ended = [self.swaps.ended(job) for job in self.copier.results()]
        return {one.request_id: one.error for one in ended if one}

    def await_return(self) -> dict[str, str]:
        while not (found := self.returned()):
            assert select.select([self.copier.fileno()], [], [], WAIT_S)[0], "nothing ever came back"
        return found

    def close(self) -> None:
        self.copier.close()
        self.host.close()


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


class AnyUse(RuleBasedStateMachine):
    """Request i has shape i modulo 2. Nothing waits for a copy unless it must."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.content: dict[str, list[Tensor]] = {}
        self.away: set[str] = set()
        self.coming: set[str] = set()
        self.mark = 0

    @rule(request=REQUESTS, tokens=st.integers(1, 300))
    def write(self, request: str, tokens: int) -> None:
        if request in self.away | self.coming:
            return
        self.mark += 31
        if self.bench.write(request, SHAPES[int(request) % 2], tokens, self.mark):
            self.content[request] = [block.clone() for block in self.bench.blocks(request)]

    @rule(request=REQUESTS)
    def out(self, request: str) -> None:
        if request in self.content.keys() - self.away - self.coming:
            tokens = len(self.content[request]) * BLOCK_TOKENS
            if self.bench.swaps.out(request, tokens):
                self.away.add(request)

    @rule(request=REQUESTS)
    def bring(self, request: str) -> None:
        if request in self.away and self.bench.kv.grow(request, *self.bench.swaps.held(request)) is not None:
            self.bench.swaps.bring(request)
            self.away.remove(request)
            self.coming.add(request)

    @rule(request=REQUESTS)
    def drop(self, request: str) -> None:
        self.bench.swaps.drop(request)
        self.bench.kv.drop(request)
        self.content.pop(request, None)
        self.away.discard(request)
        self.coming.discard(request)

    @rule()
    def wait(self) -> None:
        while self.coming:
            found = self.bench.await_return()
            assert not any(found.values())
            self.coming -= found.keys()

    @invariant()
    def nothing_is_lost(self) -> None:
        for request in self.content.keys() - self.away - self.coming:
            assert same(self.bench.blocks(request), self.content[request])
        self.bench.kv.check_integrity()
        self.bench.host.check_integrity()
        used = sum(len(self.content[one]) * SHAPES[int(one) % 2].nbytes for one in self.away | self.coming)
        assert self.bench.host.used_bytes == used

    def teardown(self) -> None:
        self.wait()
        for request in sorted(self.away):
            for other in self.content.keys() - self.away:
                self.bench.kv.drop(other)
            self.bring(request)
            self.wait()
            assert same(self.bench.blocks(request), self.content[request])
        self.bench.close()


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=60, stateful_step_count=40)


def hold(bench: Bench) -> threading.Event:
    """Keeps the copy thread busy until the event is set."""
    gate = threading.Event()

    def pieces() -> Iterator[Piece]:
        gate.wait(WAIT_S)
        yield torch.zeros(1), torch.zeros(1)

    bench.copier.submit(CopyJob(name="hold", pieces=pieces(), urgent=True))
    return gate


def test_a_step_does_not_write_over_kv_that_has_not_left_yet(bench: Bench) -> None:
    whole = DEVICE_BYTES // SHAPES[1].nbytes * BLOCK_TOKENS
    assert bench.write("a", SHAPES[1], whole, 1)
    before = [block.clone() for block in bench.blocks("a")]
    gate = hold(bench)
    assert bench.swaps.out("a", whole)
    threading.Timer(0.05, gate.set).start()
    assert bench.write("b", SHAPES[0], 5 * BLOCK_TOKENS, 100), "the room is free at once"
    bench.kv.drop("b")
    assert bench.kv.grow("a", SHAPES[1], whole) is not None
    bench.swaps.bring("a")
    assert bench.await_return() == {"a": ""}
    assert same(bench.blocks("a"), before)


def test_kv_may_come_back_before_it_has_left(bench: Bench) -> None:
    assert bench.write("a", SHAPES[1], 100, 1)
    before = [block.clone() for block in bench.blocks("a")]
    gate = hold(bench)
    assert bench.swaps.out("a", 100)
    assert bench.kv.grow("a", SHAPES[1], 100) is not None
    bench.swaps.bring("a")
    gate.set()
    assert bench.await_return() == {"a": ""}
    assert same(bench.blocks("a"), before)
    assert bench.host.assigned_bytes == 0


def test_only_the_blocks_that_hold_tokens_are_copied(bench: Bench) -> None:
    assert bench.write("a", SHAPES[1], 10 * BLOCK_TOKENS, 1)
    assert bench.swaps.out("a", 3 * BLOCK_TOKENS + 1)
    assert bench.host.used_bytes == 4 * SHAPES[1].nbytes


def flip_a_bit(block: Tensor) -> None:
    block[7] ^= 1


def exchange_halves(block: Tensor) -> None:
    """Every byte is there, in another place."""
    block[:] = block.roll(block.numel() // 2)


@pytest.mark.parametrize("change", [flip_a_bit, exchange_halves])
def test_kv_that_was_changed_on_the_host_is_refused(bench: Bench, change: Callable[[Tensor], None]) -> None:
    assert bench.write("a", SHAPES[1], 100, 1)
    for block in bench.blocks("a"):
        block.copy_(torch.arange(block.numel()) // 256)
    assert bench.swaps.out("a", 100)
    bench.swaps.settle()
    change(bench.host.place(bench.host.table("a")[3], SHAPES[1]))
    assert bench.kv.grow("a", SHAPES[1], 100) is not None
    bench.swaps.bring("a")
    assert "request a is not what was written" in bench.await_return()["a"]
    assert bench.host.assigned_bytes == 0


def test_a_request_that_ends_while_its_kv_is_copied_leaves_nothing(bench: Bench) -> None:
    for held in (True, False):
        assert bench.write("a", SHAPES[1], 100, 1)
        gate = hold(bench)
        assert bench.swaps.out("a", 100)
        if held:
            assert bench.kv.grow("a", SHAPES[1], 100) is not None
            bench.swaps.bring("a")
        bench.swaps.drop("a")
        bench.kv.drop("a")
        gate.set()
        bench.swaps.settle()
        assert bench.returned() == {}
        assert bench.host.assigned_bytes == bench.kv.slab_bytes == 0
