"""The cache's books over real files in a real directory."""

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hekaton.errors import EngineFailed, ResourceExhausted
from hekaton_memory.cache import Cache
from hekaton_memory.segments import Segments

BUDGET = 1000
A, B, C, D = (letter * 16 for letter in "abcd")


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """A cache with a clock to turn and a way to build images of any size."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = Clock()
        self.segments = Segments(directory)
        self.cache = Cache(self.segments, BUDGET, self.clock)

    def build(self, digest: str, nbytes: int, estimate: int | None = None) -> None:
        with self.segments.workplace() as workplace:
            with self.cache.reserved(nbytes if estimate is None else estimate):
                (workplace / f"{digest}.img").write_bytes(bytes(nbytes))
                (workplace / f"{digest}.json").write_text("{}")
            self.cache.install(workplace, digest)
        self.cache.check_integrity()

    def digests(self) -> list[str]:
        """As the books and the directory agree."""
        digests = [image.digest for image in self.cache.images()]
        assert sorted(digests) == sorted(path.stem for path in self.directory.glob("*.img"))
        self.cache.check_integrity()
        return digests


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "segments")
    yield bench
    bench.segments.close()


def test_the_least_recently_used_image_goes_first(bench: Bench) -> None:
    for digest in (A, B, C):
        bench.build(digest, 300)
    bench.cache.release(bench.cache.lease("worker", A, 10).lease_id)
    bench.build(D, 300)
    assert bench.digests() == [C, A, D]
    assert bench.cache.used_bytes == 900


def test_a_leased_image_is_never_evicted(bench: Bench) -> None:
    bench.build(A, 600)
    lease = bench.cache.lease("worker", A, 10)
    with pytest.raises(ResourceExhausted, match=r"500 bytes.*\b1000\b.*\b600 are leased"):
        bench.build(B, 500)
    assert bench.digests() == [A]
    bench.cache.release(lease.lease_id)
    bench.build(B, 500)
    assert bench.digests() == [B]


def test_nothing_is_evicted_for_an_image_that_cannot_fit(bench: Bench) -> None:
    bench.build(A, 300)
    bench.build(B, 300)
    bench.cache.lease("worker", B, 10)
    for nbytes in (800, BUDGET + 1):
        with pytest.raises(ResourceExhausted):
            bench.build(C, nbytes)
    assert bench.digests() == [A, B]


def test_the_file_system_is_never_overfilled(bench: Bench) -> None:
    beyond = bench.segments.free_bytes() + (1 << 30)
    huge = Cache(bench.segments, beyond * 2, bench.clock)
    with pytest.raises(ResourceExhausted, match="free in the file system"), huge.reserved(beyond):
        pass


def test_an_image_larger_than_its_estimate_is_counted_as_it_is(bench: Bench) -> None:
    bench.build(A, 600)
    bench.build(B, 700, estimate=100)
    assert bench.digests() == [B]
    bench.cache.lease("worker", B, 10)
    with pytest.raises(ResourceExhausted):
        bench.build(C, 400, estimate=100)
    assert bench.digests() == [B]
    assert not list(bench.directory.glob("build-*"))


def test_room_kept_for_one_build_is_not_given_to_another(bench: Bench) -> None:
    with bench.cache.reserved(700), pytest.raises(ResourceExhausted, match="700 kept for builds"):
        bench.build(A, 400)
    bench.build(A, 400)


def test_a_lease_that_is_not_renewed_runs_out(bench: Bench) -> None:
    bench.build(A, 600)
    lease = bench.cache.lease("worker", A, 10)
    bench.clock.now_s = 8
    assert bench.cache.renew("worker", [lease.lease_id], 10) == []
    bench.clock.now_s = 17
    assert [image.leases for image in bench.cache.images()] == [1]
    bench.clock.now_s = 18
    assert bench.cache.renew("worker", [lease.lease_id], 10) == [lease.lease_id]
    bench.build(B, 600)
    assert bench.digests() == [B]


def test_nobody_renews_the_lease_of_another(bench: Bench) -> None:
    bench.build(A, 600)
    lease = bench.cache.lease("worker", A, 10)
    assert bench.cache.renew("other", [lease.lease_id, "never given"], 10) == [lease.lease_id, "never given"]


def test_a_build_that_left_nothing_is_an_error(bench: Bench) -> None:
    for digest in (A, "../escape", ""):
        with bench.segments.workplace() as workplace, pytest.raises(EngineFailed, match="files are not there"):
            bench.cache.install(workplace, digest)


def test_broken_books_are_noticed(bench: Bench) -> None:
    bench.build(A, 600)
    bench.segments.drop_image(A)
    with pytest.raises(RuntimeError, match="the directory"):
        bench.cache.check_integrity()


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_the_books_hold_whatever_happens(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    draw = random.Random(seed)
    bench = Bench(tmp_path_factory.mktemp("segments"))
    held: list[str] = []
    for _ in range(60):
        action = draw.choice(("build", "lease", "release", "renew", "wait"))
        if action == "build":
            with suppress(ResourceExhausted):
                bench.build(draw.choice("abcdefgh") * 16, draw.randrange(1, 700), draw.randrange(700))
        elif action == "lease" and (digests := bench.digests()):
            held.append(bench.cache.lease("worker", draw.choice(digests), draw.randrange(1, 20)).lease_id)
        elif action == "release" and held:
            bench.cache.release(held.pop(draw.randrange(len(held))))
        elif action == "renew":
            lost = bench.cache.renew("worker", held, 5)
            held = [lease_id for lease_id in held if lease_id not in lost]
        else:
            bench.clock.now_s += draw.randrange(6)
        bench.digests()
    bench.segments.close()


def test_an_image_that_somebody_removed_is_forgotten_with_its_leases(bench: Bench) -> None:
    for digest in (A, B):
        bench.build(digest, 300)
    lease = bench.cache.lease("w", A, 10.0)
    bench.segments.image_path(A).unlink()
    for digest in (A, B):
        bench.cache.forget_removed(digest)
    assert bench.digests() == [B]
    assert bench.cache.renew("w", [lease.lease_id], 10.0) == [lease.lease_id]
    bench.build(A, 300)
    assert bench.digests() == [B, A]


def test_a_pinned_image_stays_until_it_is_unpinned(bench: Bench) -> None:
    bench.build(A, 600)
    bench.build(B, 300)
    bench.cache.pinned = frozenset((A,))
    bench.build(C, 400)
    assert bench.digests() == [A, C]
    with pytest.raises(ResourceExhausted, match="600 pinned"):
        bench.build(D, 500)
    bench.cache.pinned = frozenset()
    bench.build(D, 500)
    assert bench.digests() == [C, D]
