"""Three hosts, each with a network of its own. What is tried there says `fakes.three_hosts`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from fakes.checkpoints import write_checkpoint
from fakes.namespaces import ALONE
from fakes.tinymodels import image_of
from hekaton.facts import CatalogEntry, ModelState, Slo

TIMEOUT_S = 400
PERMITTED = "mount -t tmpfs none /run && ip link add bridge type bridge && ip netns add one"


@pytest.mark.timeout(TIMEOUT_S + 60)
def test_requests_and_kv_move_between_hosts_and_a_cut_link_loses_nothing(tmp_path: Path) -> None:
    try:
        tried = subprocess.run([*ALONE, "sh", "-c", PERMITTED], check=False, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("this machine has no `unshare`")
    if tried.returncode:
        pytest.skip(f"this machine does not let a process make networks of its own: {tried.stderr.strip()}")
    write_model(tmp_path)
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [*ALONE, sys.executable, "-m", "fakes.three_hosts", str(tmp_path)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}, start_new_session=True
    ) as process:
        try:
            _, said = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, said


def write_model(folder: Path) -> None:
    """Its image is made here, where torch is loaded already: the memory services take it over."""
    (folder / "images").mkdir()
    model = image_of(write_checkpoint(folder / "checkpoint", max_position_embeddings=1024), folder / "images")
    entry = CatalogEntry("m1", str(model.checkpoint), "", Slo(10.0, 0.1), ModelState.READY, model.prepared.spec)
    (folder / "model.json").write_bytes(msgspec.json.encode(entry))
