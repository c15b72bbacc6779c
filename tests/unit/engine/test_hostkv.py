"""Host memory for KV: what it takes, what it refuses, and that nothing is left of it."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor

from hekaton.engine.hostkv import HostKv
from hekaton.engine.kv import BLOCK_TOKENS, BlockShape
from hekaton.errors import InvalidArgument

SHAPE = BlockShape(layers=2, kv_heads=2, head_size=16, dtype="float32", itemsize=4)
OTHER = BlockShape(layers=1, kv_heads=1, head_size=16, dtype="bfloat16", itemsize=2)
LIMIT_BYTES = 128 * SHAPE.nbytes


def test_blocks_are_a_requests_own_and_keep_what_is_written(tmp_path: Path) -> None:
    host = HostKv(tmp_path, LIMIT_BYTES)
    assert host.take("a", SHAPE, 100)
    assert host.take("b", SHAPE, 33)
    for mark, request in ((1, "a"), (2, "b")):
        for block in blocks(host, request):
            block.fill_(mark)
    assert [len(blocks(host, request)) for request in ("a", "b")] == [7, 3]
    assert all((block == 1).all() for block in blocks(host, "a"))
    assert host.used_bytes == 10 * SHAPE.nbytes
    assert host.assigned_bytes == 64 * SHAPE.nbytes
    host.close()


def test_a_sparse_slab_is_emptied_into_others(tmp_path: Path) -> None:
    host = HostKv(tmp_path, 3 * LIMIT_BYTES)
    for number in range(12):
        assert host.take(str(number), SHAPE, 16 * BLOCK_TOKENS)
        for block in blocks(host, str(number)):
            block.fill_(number + 1)
    assert host.assigned_bytes == 192 * SHAPE.nbytes
    for number in (1, 2, 5, 6, 9):
        for source, target in host.drop(str(number)):
            target.copy_(source)
        host.check_integrity()
    assert host.used_bytes == 112 * SHAPE.nbytes
    assert host.assigned_bytes == 128 * SHAPE.nbytes
    for number in (0, 3, 4, 7, 8, 10, 11):
        assert all((block == number + 1).all() for block in blocks(host, str(number)))
    host.close()


def test_what_finds_no_room_changes_nothing(tmp_path: Path) -> None:
    host = HostKv(tmp_path, LIMIT_BYTES)
    assert host.take("a", SHAPE, 100 * BLOCK_TOKENS)
    assert not host.take("b", SHAPE, 29 * BLOCK_TOKENS)
    assert not host.take("c", OTHER, 1), "no slab is smaller than 64 blocks, and no two shapes share one"
    assert host.used_bytes == 100 * SHAPE.nbytes
    host.drop("a")
    host.drop("unknown")
    assert host.take("c", OTHER, 1)
    host.check_integrity()
    host.close()


def test_a_host_of_no_bytes_takes_nothing_and_makes_no_file(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    host = HostKv(tmp_path / "nonexistent", 0)
    assert not host.take("a", SHAPE, 1)
    assert os.listdir("/proc/self/fd") == before
    host.close()


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=rf"host_kv_dir={tmp_path}/nonexistent"):
        HostKv(tmp_path / "nonexistent", LIMIT_BYTES)


def test_a_full_file_system_is_a_refusal_not_a_death(tmp_path: Path) -> None:
    """A descriptor that gets no pages stands in for one."""
    host = HostKv(tmp_path, LIMIT_BYTES)
    assert host._descriptor is not None
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), host._descriptor)
    assert not host.take("a", SHAPE, 16)
    assert host.used_bytes == host.assigned_bytes == 0
    host.close()


def test_nothing_is_taken_before_it_is_used_and_nothing_is_left(tmp_path: Path) -> None:
    # Maps of engines that earlier tests have closed go when they are collected, not while this counts.
    gc.collect()
    descriptors = os.listdir("/proc/self/fd")
    host = HostKv(tmp_path, 1 << 40)
    assert host.take("a", SHAPE, 1)
    host.place(host.table("a")[0], SHAPE).fill_(1)
    (inode,) = {line.split()[4] for line in maps_of(tmp_path)}
    assert inode != "0"
    assert list(tmp_path.iterdir()) == [], "the file has no name: nobody else can open it"
    host.close()
    assert maps_of(tmp_path) == []
    assert os.listdir("/proc/self/fd") == descriptors


def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from hekaton.engine.hostkv import HostKv
from hekaton.engine.kv import BlockShape
host = HostKv(Path({str(tmp_path)!r}), {LIMIT_BYTES})
assert host.take("a", {SHAPE!r}, 100)
print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list(tmp_path.iterdir()) == []


def blocks(host: HostKv, request_id: str) -> list[Tensor]:
    return [host.place(block, SHAPE) for block in host.table(request_id)]


def maps_of(directory: Path) -> list[str]:
    """This process's mappings of files that were made in `directory`."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(directory) in line]
