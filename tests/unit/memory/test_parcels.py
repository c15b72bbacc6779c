"""The books of parcels: what is whole, what is taken, what nobody takes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.parcels import SHAPE, write_parcel
from hekaton.errors import InvalidArgument, KvLost
from hekaton_memory.parcels import Parcels

LIFETIME_S = 10.0
STOPS_IN_MID_COPY = """
import os, signal, sys
from pathlib import Path
from fakes.parcels import SHAPE, writer
parcel = writer(Path(sys.argv[1]), "r", 1, 2)
parcel.write(0, memoryview(bytes(SHAPE.nbytes)))
os.kill(os.getpid(), signal.SIGSTOP)
parcel.write(1, memoryview(bytes(SHAPE.nbytes)))
parcel.commit([0, 0])
"""


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def parcels(tmp_path: Path, clock: Clock) -> Iterator[Parcels]:
    parcels = Parcels(tmp_path / "kv", 1 << 30, LIFETIME_S, clock)
    yield parcels
    parcels.close()
    assert not (tmp_path / "kv").exists()


def test_what_nobody_takes_is_removed_after_its_time(parcels: Parcels, clock: Clock) -> None:
    write_parcel(parcels.directory, "old")
    parcels.sweep()
    clock.now_s = LIFETIME_S / 2
    write_parcel(parcels.directory, "young")
    parcels.sweep()
    clock.now_s = LIFETIME_S
    parcels.sweep()
    with pytest.raises(KvLost):
        parcels.find("old", 1)
    assert parcels.find("young", 1).tokens == 48
    assert parcels.swept == 1
    clock.now_s = 2 * LIFETIME_S
    parcels.sweep()
    assert parcels.sizes() == []


def test_another_parcel_of_the_same_name_has_its_own_time(parcels: Parcels, clock: Clock) -> None:
    write_parcel(parcels.directory, "r").unlink()
    parcels.sweep()
    clock.now_s = LIFETIME_S
    write_parcel(parcels.directory, "r")
    parcels.sweep()
    assert len(parcels.sizes()) == 1


def test_a_service_that_is_started_again_has_what_the_last_one_had(parcels: Parcels, clock: Clock) -> None:
    path = write_parcel(parcels.directory, "r")
    again = Parcels(parcels.directory, 1 << 30, LIFETIME_S, clock)
    assert again.accept("r", 1).path == path
    again.remove(again.find("r", 1))
    assert again.sizes() == []


@pytest.mark.parametrize("kept_bytes", [0, 100, -1])
def test_a_file_that_is_not_whole_is_nobodys_kv(parcels: Parcels, kept_bytes: int) -> None:
    path = write_parcel(parcels.directory, "r")
    os.truncate(path, kept_bytes if kept_bytes >= 0 else path.stat().st_size - 1)
    with pytest.raises(KvLost):
        parcels.accept("r", 1)


def test_a_writer_that_was_stopped_in_mid_copy_is_not_seen_until_it_is_done(parcels: Parcels) -> None:
    command = [sys.executable, "-c", STOPS_IN_MID_COPY, str(parcels.directory)]
    tests = str(Path(__file__).parents[2])
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": tests})
    try:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        with pytest.raises(KvLost):
            parcels.find("r", 1)
        assert parcels.sizes() == []
        child.send_signal(signal.SIGCONT)
        assert child.wait(30) == 0
    finally:
        child.kill()
        child.wait()
    assert parcels.find("r", 1).nbytes > 2 * SHAPE.nbytes


def test_a_directory_that_somebody_removed_is_made_again(parcels: Parcels) -> None:
    parcels.directory.rmdir()
    assert parcels.sizes() == []
    parcels.sweep()
    write_parcel(parcels.directory, "r")
    assert len(parcels.sizes()) == 1


def test_without_a_directory_it_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="segment_dir"):
        Parcels(tmp_path / "nowhere" / "kv", 1, LIFETIME_S)
