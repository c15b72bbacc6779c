"""The copy engine: what it copies, tells, and leaves alone once it was told to stop."""

import select
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from hekaton.engine.copier import CHUNK_BYTES, Copier, CopyJob, Piece, chunks

WAIT_S = 30.0


@pytest.fixture
def copier() -> Iterator[Copier]:
    copier = Copier(torch.device("cpu"))
    yield copier
    copier.close()


class Whole(CopyJob):
    """A job that remembers what it copies from where."""

    source: Tensor
    target: Tensor


def job_of(name: str, nbytes: int, *, urgent: bool = False) -> Whole:
    source = torch.arange(nbytes, dtype=torch.int32).to(torch.uint8)
    target = torch.zeros(nbytes, dtype=torch.uint8)
    job = Whole(name=name, pieces=chunks(source, target), urgent=urgent)
    job.source, job.target = source, target
    return job


def readable(copier: Copier, timeout_s: float) -> bool:
    return bool(select.select([copier.fileno()], [], [], timeout_s)[0])


def results(copier: Copier, count: int) -> list[CopyJob]:
    found: list[CopyJob] = []
    while len(found) < count:
        assert readable(copier, WAIT_S), "a copy never ended"
        found += copier.results()
    return found


@pytest.mark.parametrize("nbytes", [1, CHUNK_BYTES, 2 * CHUNK_BYTES + 7])
def test_every_byte_arrives(copier: Copier, nbytes: int) -> None:
    job = job_of("m", nbytes)
    copier.submit(job)
    assert results(copier, 1) == [job]
    assert (job.done, job.error, job.ended) == (-(-nbytes // CHUNK_BYTES), "", True)
    assert job.duration_s > 0
    assert torch.equal(job.source, job.target)


def test_jobs_end_in_the_order_of_submission_and_are_told_once(copier: Copier) -> None:
    jobs = [job_of(f"m{index}", 1000 * index + 1) for index in range(5)]
    for job in jobs:
        copier.submit(job)
    assert results(copier, 5) == jobs
    assert copier.results() == []
    assert not readable(copier, 0)


def test_urgent_jobs_go_before_others_that_have_begun_and_keep_their_order(copier: Copier) -> None:
    gate = threading.Event()
    order: list[str] = []

    def held(job: Whole) -> Iterator[Piece]:
        for piece in chunks(job.source, job.target):
            order.append(job.name)
            gate.wait(WAIT_S)
            yield piece

    jobs = [job_of("weights", 2 * CHUNK_BYTES), job_of("k1", 10, urgent=True), job_of("k2", 10, urgent=True)]
    for job in jobs:
        job.pieces = held(job)
        copier.submit(job)
    gate.set()
    assert len(results(copier, 3)) == 3
    assert [name for name in order if name != "weights"] == ["k1", "k2"]
    assert order[-1] == "weights"


def test_a_hurried_job_goes_before_one_of_its_kind_that_has_begun(copier: Copier) -> None:
    at_first, go_on = threading.Event(), threading.Event()

    def held(pieces: Iterator[Piece]) -> Iterator[Piece]:
        yield next(pieces)
        at_first.set()
        assert go_on.wait(WAIT_S)
        yield from pieces

    first, second, third = (job_of(name, 3 * CHUNK_BYTES) for name in ("first", "second", "third"))
    first.pieces = held(first.pieces)
    copier.submit(first)
    copier.submit(second)
    copier.submit(third)
    assert at_first.wait(WAIT_S)
    copier.hurry(third)
    go_on.set()
    assert results(copier, 3) == [third, first, second]
    assert all(torch.equal(job.source, job.target) for job in (first, second, third))


def test_a_limited_bus_takes_its_time() -> None:
    copier = Copier(torch.device("cpu"), bytes_per_s=10 << 20)
    job = job_of("m", 1 << 20)
    job.pieces = chunks(job.source, job.target, copier.piece_bytes)
    copier.submit(job)
    assert results(copier, 1) == [job]
    assert job.duration_s >= 0.09
    assert job.done >= 10
    assert torch.equal(job.source, job.target)
    copier.close()


def test_the_first_piece_of_weights_is_told(copier: Copier) -> None:
    job, go_on = job_of("m", 2 * CHUNK_BYTES), threading.Event()

    def held(pieces: Iterator[Piece]) -> Iterator[Piece]:
        yield next(pieces)
        assert go_on.wait(WAIT_S)
        yield from pieces

    job.pieces = held(job.pieces)
    copier.submit(job)
    assert readable(copier, WAIT_S)
    assert copier.results() == []
    assert job.done == 1
    go_on.set()
    assert results(copier, 1) == [job]


def test_one_can_wait_for_some_of_a_jobs_pieces(copier: Copier) -> None:
    job = job_of("m", 3 * CHUNK_BYTES)
    copier.submit(job)
    for pieces in (1, 3, 100):
        copier.wait(job, pieces)
        assert job.done >= min(pieces, 3)
    assert job.ended


def test_nothing_is_written_after_a_cancel(copier: Copier) -> None:
    job = job_of("m", 4 * CHUNK_BYTES)
    copier.submit(job)
    copier.cancel(job)
    seen: Tensor = job.target.clone()
    later = job_of("later", 10)
    copier.submit(later)
    told = results(copier, 1)
    # Only a copy that was already complete may be told of beside the later one.
    assert told == [later] or torch.equal(seen, job.source)
    assert torch.equal(job.target, seen)
    copier.wait(job, 100)


def test_a_job_cancelled_before_its_turn_is_not_begun(copier: Copier) -> None:
    job = job_of("m", 1000)
    job.cancelled = True
    copier.submit(job)
    later = job_of("later", 10)
    copier.submit(later)
    assert results(copier, 2)[-1] is later
    assert not job.target.any()


def test_a_copy_that_fails_says_so_and_the_next_goes_on(copier: Copier) -> None:
    broken = CopyJob(name="broken", pieces=iter([(torch.zeros(10), torch.zeros(3))]))
    whole = job_of("whole", 10)
    copier.submit(broken)
    copier.submit(whole)
    assert results(copier, 2) == [broken, whole]
    assert broken.error
    assert whole.error == ""


class Defective(CopyJob):
    def copied(self, source: Tensor, target: Tensor) -> None:
        raise IndexError("a defect")


def test_a_defect_in_a_job_is_told_of_and_the_next_goes_on(copier: Copier) -> None:
    defective = Defective(name="m", pieces=iter([(torch.zeros(3), torch.zeros(3))]))
    whole = job_of("whole", 10)
    copier.submit(defective)
    copier.submit(whole)
    assert results(copier, 2) == [defective, whole]
    assert "IndexError('a defect')" in defective.error
