"""What is measured of processes while they change."""

import os
import subprocess
import sys

import pytest

from hekaton.chaos import usage

RESTLESS = """
import subprocess, sys, threading
print("begun", flush=True)
while True:
    threads = [threading.Thread(target=lambda: None) for _ in range(50)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""
LOOKS = 500


def test_a_process_whose_threads_come_and_go_is_measured() -> None:
    with subprocess.Popen([sys.executable, "-c", RESTLESS], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            found = [usage.process(process.pid, 3) for _ in range(LOOKS)]
        finally:
            process.kill()
    assert {one.tasks for one in found} == {3}
    assert all(one.rss_bytes > 1 << 20 and one.descriptors >= 3 for one in found)


def test_what_a_process_started_counts_with_it() -> None:
    alone = usage.process(os.getpid(), 0)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        both = usage.process(os.getpid(), 0)
        process.kill()
    assert both.descriptors >= alone.descriptors + 3


def test_a_process_that_has_gone_is_not_nothing() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
        with pytest.raises(OSError, match=str(process.pid)):
            usage.process(process.pid, 0)
