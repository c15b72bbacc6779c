"""Shared memory that is full, for real: a tmpfs of its own. What is tried there says `fakes.full_tmpfs`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MOUNT = 'mount -t tmpfs -o size=32m none "$0" && exec "$@"'


def test_images_host_kv_and_parcels_that_find_shared_memory_full_harm_nothing(tmp_path: Path) -> None:
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNT, str(tmp_path)]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let a process mount a tmpfs in a namespace of its own")
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [*alone, sys.executable, "-W", "error::ResourceWarning", "-m", "fakes.full_tmpfs", str(tmp_path)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr
