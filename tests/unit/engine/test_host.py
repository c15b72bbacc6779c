"""The engine process and the worker's side of it: real processes, the emulated engine."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fakes.turnloop import expected, image, spec, submit
from hekaton.engine.channel import EventChannel
from hekaton.engine.messages import (
    AddModel,
    Cancel,
    Ended,
    Event,
    ImageReady,
    Ready,
    Started,
    Step,
    Stop,
    WantImage,
    encode,
)
from hekaton.engine.options import EngineOptions, parse
from hekaton.engine.process import EngineProcess, describe
from hekaton.errors import EngineFailed, Unavailable
from hekaton.facts import FinishReason
from hekaton.policy.types import Role

OPTIONS = EngineOptions("emulated", "h800", 40 * 10**9, "w1", time_scale=0.05)
MODEL = AddModel("a", spec(), "emulated:qwen2.5-7b")


@asynccontextmanager
async def running(options: EngineOptions = OPTIONS) -> AsyncIterator[EngineProcess]:
    """A started engine that knows model `a`, stopped in the end."""
    process = await EngineProcess.start(options)
    try:
        await process.send(MODEL)
        yield process
    finally:
        await process.stop()


async def until(process: EngineProcess, kind: type[Event]) -> list[Event]:
    """Events up to the first of a kind, answering WantImage."""
    seen: list[Event] = []
    async for event in process.events():
        seen.append(event)
        if isinstance(event, WantImage):
            await process.send(ImageReady(event.model, image()))
        if isinstance(event, kind):
            return seen
    return seen


def tokens(events: list[Event]) -> list[int]:
    steps = [event for event in events if isinstance(event, Step)]
    return [token for step in steps for output in step.outputs for token in output.token_ids]


async def test_a_request_goes_through_a_real_engine_process() -> None:
    async with running() as process:
        await process.send(submit("r", "a"))
        events = await until(process, Ended)
        assert events[0] == Ready("emulated:h800", 40 * 10**9)
        assert tokens(events) == expected("r", "a", 30)
        assert isinstance(events[-1], Ended)
        assert events[-1].finish is FinishReason.LENGTH
    assert process.returncode == 0


async def test_a_stop_ends_the_events_even_in_mid_generation() -> None:
    process = await EngineProcess.start(OPTIONS)
    await process.send(MODEL)
    await process.send(submit("r", "a", max_tokens=4000))
    await until(process, Started)
    stopping = asyncio.create_task(process.stop())
    assert not [event async for event in process.events() if isinstance(event, Ended)]
    await stopping
    assert process.returncode == 0
    with pytest.raises(Unavailable):
        await process.send(MODEL)


async def test_a_cancel_is_heard_between_two_steps() -> None:
    async with running() as process:
        await process.send(submit("r", "a", max_tokens=4000))
        await until(process, Step)
        await process.send(Cancel("r", 1))
        events = await until(process, Ended)
        assert isinstance(events[-1], Ended)
        assert events[-1].cancelled


async def test_an_engine_that_dies_says_how_and_stop_still_returns() -> None:
    process = await EngineProcess.start(OPTIONS)
    await until(process, Ready)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(EngineFailed, match="SIGKILL"):
        await until(process, Ended)
    assert process.returncode == -signal.SIGKILL
    await process.stop()


async def test_an_engine_that_cannot_start_says_its_status(capfd: pytest.CaptureFixture[str]) -> None:
    process = await EngineProcess.start(EngineOptions("nonsense", "h800", 1, "w1"))
    with pytest.raises(EngineFailed, match="exit status 2"):
        await until(process, Ready)
    await process.stop()
    assert "invalid choice" in capfd.readouterr().err


async def test_an_interrupt_of_the_terminal_is_left_to_the_worker() -> None:
    async with running() as process:
        await until(process, Ready)
        os.kill(process.pid, signal.SIGINT)
        await process.send(submit("r", "a"))
        assert tokens(await until(process, Ended)) == expected("r", "a", 30)


async def test_a_frozen_engine_is_killed_after_the_grace() -> None:
    process = await EngineProcess.start(OPTIONS)
    await until(process, Ready)
    os.kill(process.pid, signal.SIGSTOP)
    await process.stop(grace_s=0.2)
    assert process.returncode == -signal.SIGKILL


async def test_a_worker_that_does_not_read_stalls_nothing_for_ever() -> None:
    async with running() as process:
        await until(process, Ready)
        await process.send(submit("r", "a", max_tokens=4000, prompt=1))
        await until(process, Started)
        await asyncio.sleep(0.3)
        assert tokens(await until(process, Ended)) == expected("r", "a", 4000)[: 4096 - 1]


def test_an_engine_ends_with_its_parents_socket() -> None:
    ours, theirs = socket.socketpair()
    argv = [sys.executable, "-m", "hekaton.engine.host", f"--fd={theirs.fileno()}", *OPTIONS.to_argv()]
    with theirs:
        child = subprocess.Popen(argv, pass_fds=(theirs.fileno(),))
    with ours:
        assert ours.recv(4)
    assert child.wait(timeout=10) == 0


def test_an_emulated_engine_process_imports_no_torch() -> None:
    code = "import sys, hekaton.engine.host; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_options_survive_the_command_line() -> None:
    options = EngineOptions("transformers", "cuda:1", 7, "w-2", 2, "aegaeon", {"q_max_s": 2.5}, Role.DECODE, 1.5, 8, 64)
    assert parse(["--fd=9", *options.to_argv()]) == (9, None, options)


@pytest.mark.parametrize(("status", "words"), [(3, "exit status 3"), (-9, "signal SIGKILL"), (-250, "signal 250")])
def test_an_exit_status_is_put_into_words(status: int, words: str) -> None:
    assert describe(status) == words


def test_a_channel_splits_frames_wherever_they_are_cut_and_never_blocks() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = EventChannel(theirs)
        wire = encode(MODEL) + encode(submit("r", "a")) + encode(Stop())
        got = []
        for byte in wire:
            ours.send(bytes([byte]))
            got += channel.receive()
        assert got == [MODEL, submit("r", "a"), Stop()]
        begin_s = time.monotonic()
        for _ in range(20_000):
            channel.emit(Started("request", 1))
            channel.flush()
        assert channel.backlog > 0
        assert time.monotonic() - begin_s < 5.0
        ours.close()
        channel.flush()
        assert channel.closed
