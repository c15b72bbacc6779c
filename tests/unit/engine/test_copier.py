"""The copy engine: what it copies, tells, and leaves alone once it was told to stop."""

import select
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from hekaton.engine.copier import CHUNK_BYTES, Copier, CopyJob
from hekaton.engine.interface import LoadResult

WAIT_S = 30.0


@pytest.fixture
def copier() -> Iterator[Copier]:
    copier = Copier(torch.device("cpu"))
    yield copier
    copier.close()


def job_of(model: str, nbytes: int) -> CopyJob:
    source = torch.arange(nbytes, dtype=torch.int32).to(torch.uint8)
    return CopyJob(model, source, torch.zeros(nbytes, dtype=torch.uint8))


def readable(copier: Copier, timeout_s: float) -> bool:
    return bool(select.select([copier.fileno()], [], [], timeout_s)[0])


def results(copier: Copier, count: int) -> list[tuple[CopyJob, LoadResult]]:
    found: list[tuple[CopyJob, LoadResult]] = []
    while len(found) < count:
        assert readable(copier, WAIT_S), "a copy never ended"
        found += copier.results()
    return found


@pytest.mark.parametrize("nbytes", [1, CHUNK_BYTES, 2 * CHUNK_BYTES + 7])
def test_every_byte_arrives(copier: Copier, nbytes: int) -> None:
    job = job_of("m", nbytes)
    copier.submit(job)
    ((ended, result),) = results(copier, 1)
    assert ended is job
    assert (result.model, result.copied_bytes, result.error) == ("m", nbytes, "")
    assert result.duration_s > 0
    assert torch.equal(job.source, job.target)


def test_jobs_end_in_the_order_of_submission_and_are_told_once(copier: Copier) -> None:
    jobs = [job_of(f"m{index}", 1000 * index + 1) for index in range(5)]
    for job in jobs:
        copier.submit(job)
    assert [job for job, _ in results(copier, 5)] == jobs
    assert copier.results() == []
    assert not readable(copier, 0)


def test_nothing_is_written_after_a_cancel(copier: Copier) -> None:
    job = job_of("m", 4 * CHUNK_BYTES)
    copier.submit(job)
    copier.cancel(job)
    seen: Tensor = job.target.clone()
    later = job_of("later", 10)
    copier.submit(later)
    told = [ended for ended, _ in results(copier, 1)]
    # Only a copy that was already complete may be told of beside the later one.
    assert told == [later] or torch.equal(seen, job.source)
    assert torch.equal(job.target, seen)


def test_a_job_cancelled_before_its_turn_is_not_begun(copier: Copier) -> None:
    job = job_of("m", 1000)
    job.cancelled = True
    copier.submit(job)
    later = job_of("later", 10)
    copier.submit(later)
    assert [ended for ended, _ in results(copier, 1)] == [later]
    assert not job.target.any()


def test_a_copy_that_fails_says_so_and_the_next_goes_on(copier: Copier) -> None:
    broken = CopyJob("broken", torch.zeros(10, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8))
    whole = job_of("whole", 10)
    copier.submit(broken)
    copier.submit(whole)
    (_, failed), (_, fine) = results(copier, 2)
    assert failed.model == "broken"
    assert failed.error
    assert (fine.model, fine.error) == ("whole", "")
