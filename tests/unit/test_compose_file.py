"""docker-compose.yml: what can be said of it without running it."""

import subprocess
import sys
from pathlib import Path

from fakes.compose import ComposeFile

ROOT = Path(__file__).parents[2]
COMPOSE, GPU = ROOT / "docker-compose.yml", ROOT / "docker-compose.gpu.yml"
SERVICES = ("memory", "scheduler", "worker", "router")


def test_the_files_hold_to_the_compose_schema() -> None:
    check = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        str(COMPOSE),
        str(GPU),
    ]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_gpu_file_changes_the_workers_device_only() -> None:
    plain, gpu = ComposeFile.read(COMPOSE).services, ComposeFile.read(COMPOSE, GPU).services
    changed = {name for name in plain if plain[name] != gpu[name]}
    assert changed == {"worker"}
    assert gpu["worker"]["environment"]["HEKATON_DEVICE"] == "cuda"
    assert gpu["worker"]["command"] == plain["worker"]["command"]


def test_memory_and_worker_share_the_segments() -> None:
    services = ComposeFile.read(COMPOSE).services
    mounts = [
        {volume for volume in services[name]["volumes"] if "/segments" in volume} for name in ("memory", "worker")
    ]
    assert mounts[0] == mounts[1] == {"segments:/segments"}
    assert services["memory"]["environment"]["HEKATON_SEGMENT_DIR"].startswith("/segments/")


def test_every_service_runs_its_module_and_checks_its_own_port() -> None:
    services = ComposeFile.read(COMPOSE).services
    for name in SERVICES:
        service = services[name]
        assert service["command"] == ["python", "-m", f"hekaton_{name}"]
        port = service["environment"]["HEKATON_LISTEN"].split(":")[1]
        assert service["healthcheck"]["test"] == ["CMD", "hekaton", "health", f"127.0.0.1:{port}"]
        assert service["environment"]["HEKATON_ADVERTISE"] == f"{name}:{port}"
