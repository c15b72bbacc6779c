"""A process that was told to end does end, whatever hangs in it."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from hekaton.rpc.stopping import GAVE_UP

DEAF = """
import asyncio
async def run(stop):
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
"""
LISTENS = """
async def run(stop):
    await stop.wait()
"""
LEAVES_A_DEAF_TASK = (
    DEAF.replace("run", "deaf")
    + """
async def run(stop):
    run.task = asyncio.create_task(deaf(stop), name="deaf")
    await stop.wait()
"""
)
MAIN = """
import asyncio, sys
from hekaton.rpc.stopping import until_stopped
async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().call_soon(print, "ready")
    await until_stopped(run(stop), stop, float(sys.argv[1]))
sys.stdout.reconfigure(line_buffering=True)
asyncio.run(main())
"""


@asynccontextmanager
async def process(program: str, limit_s: float) -> AsyncIterator[asyncio.subprocess.Process]:
    """Told to end once, at the beginning of the block."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program + MAIN, str(limit_s), stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )
    try:
        assert child.stdout is not None
        await child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def ended(child: asyncio.subprocess.Process) -> tuple[int | None, str]:
    async with asyncio.timeout(10):
        said, _ = await child.communicate()
    return child.returncode, said.decode()


async def test_a_process_that_listens_ends_by_itself() -> None:
    async with process(LISTENS, 60) as child:
        assert await ended(child) == (0, "")


@pytest.mark.parametrize("program", [DEAF, LEAVES_A_DEAF_TASK], ids=["deaf", "deaf-rest"])
async def test_a_process_that_hangs_ends_after_its_limit_and_says_why(program: str) -> None:
    async with process(program, 0.2) as child:
        status, said = await ended(child)
    assert status == GAVE_UP
    assert "it has not ended 0.2 s after it was told to" in said


async def test_a_second_signal_ends_a_process_that_hangs() -> None:
    async with process(DEAF, 60) as child:
        await asyncio.sleep(0.2)
        assert child.returncode is None
        child.send_signal(signal.SIGTERM)
        status, said = await ended(child)
    assert status == GAVE_UP
    assert "a second signal" in said
