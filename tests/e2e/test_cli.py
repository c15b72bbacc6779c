"""The commands as a user runs them: processes of their own against a pool of emulated devices."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator

import pytest

from fakes.commands import HEKATON, Up, environment, hekaton, running_up
from fakes.waiting import eventually
from hekaton.client import Client

EMULATED = ("--device", "emulated:h800", "--device-memory", "80GiB", "-m", "seven=emulated:qwen2.5-7b")
STOP_TIMEOUT_S = 15
INTERRUPTED = 130
PROCESSES = 8
"""The supervisor, Redis and its two shells, scheduler, router, worker and its engine."""


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with running_up("--workers", "2", *EMULATED) as up:
        yield up


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_models_are_added_listed_shown_and_removed(up: Up) -> None:
    added = hekaton(
        "models", "add", "nine", "emulated:yi-1.5-9b", "--ttft", "3", "--tbt", "0.2", "--address", up.address
    )
    assert added.returncode == 0
    listed = hekaton("models", "list", "--address", up.address).stdout
    assert [name for name in ("seven", "nine") if f"{name} " in listed] == ["seven", "nine"]
    shown = hekaton("models", "show", "nine", "--address", up.address)
    assert shown.stdout == added.stdout
    for fact in ("emulated:yi-1.5-9b", "ready", "16.5 GiB", "first token in 3 s, then one every 0.2 s"):
        assert fact in shown.stdout
    assert hekaton("models", "rm", "nine", "--address", up.address).stdout == "nine is removed\n"
    assert "nine" not in hekaton("models", "list", "--address", up.address).stdout


def test_generate_prints_the_text_on_stdout_and_its_facts_on_stderr(up: Up) -> None:
    done = hekaton("generate", "seven", "hello", "--max-tokens", "5", "--seed", "3", "--address", up.address)
    assert done.returncode == 0
    assert len(done.stdout) > 1
    assert done.stdout.endswith("\n")
    assert done.stderr.startswith("5 tokens, length, on worker-")


def test_an_unknown_model_is_one_clear_line_and_status_1(up: Up) -> None:
    done = hekaton("generate", "nobody", "hello", "--address", up.address)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no model is registered as 'nobody'")
    assert done.stderr.count("\n") == 1


def test_pool_finds_its_address_in_the_environment_and_shows_every_worker(up: Up) -> None:
    done = hekaton("pool", address=up.address)
    assert done.returncode == 0
    assert [worker for worker in ("worker-0", "worker-1") if f"{worker} " in done.stdout] == ["worker-0", "worker-1"]
    assert "devices: 2 × emulated:h800   queued requests: 0   scheduler: term " in done.stdout


def test_health_is_an_exit_status(up: Up, nobody: str) -> None:
    assert hekaton("health", up.address).returncode == 0
    assert hekaton("health", up.address, "--service", "hekaton.v1.InferenceService").returncode == 0
    assert hekaton("health", nobody).returncode == 1


async def test_ctrl_c_in_mid_generation_cancels_the_request(up: Up) -> None:
    """Its text comes as it is made, or there would be none to read before the end."""

    async def idle() -> bool:
        state = await client.pool()
        busy = sum(worker.requests_running + worker.requests_waiting + worker.kv_bytes for worker in state.workers)
        return busy + state.queued_requests == 0

    async def busy() -> bool:
        return not await idle()

    command = [*HEKATON, "generate", "seven", "hello", "--max-tokens", "4000", "--address", up.address]
    pipe = asyncio.subprocess.PIPE
    generate = await asyncio.create_subprocess_exec(*command, env=environment(), stdout=pipe, stderr=pipe)
    assert generate.stdout is not None
    async with Client(up.address) as client:
        assert await generate.stdout.read(1)
        await eventually(busy)
        generate.send_signal(signal.SIGINT)
        _, said = await generate.communicate()
        assert (generate.returncode, said) == (INTERRUPTED, b"")
        await eventually(idle)


def test_ctrl_c_stops_the_pool_and_leaves_nothing_behind() -> None:
    with running_up(*EMULATED) as up:
        assert len(up.processes()) == PROCESSES
        assert len(list(up.temporary.glob("hekaton-run-*/*.log"))) == 3
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(STOP_TIMEOUT_S) == 0
        assert not up.processes()
        assert not list(up.temporary.iterdir())


def test_a_killed_supervisor_takes_all_with_it_even_what_is_frozen() -> None:
    with running_up(*EMULATED) as up:
        assert len(up.processes()) == PROCESSES
        workers = up.running("hekaton_worker")
        assert workers
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        up.process.kill()
        up.process.wait()
        up.until_gone(STOP_TIMEOUT_S)
