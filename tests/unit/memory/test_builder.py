"""The builder's child process, with small Python programs in its place."""

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from hekaton.errors import EngineFailed, HekatonError, InvalidCheckpoint, ResourceExhausted
from hekaton_memory.builder import Progress, run_builder


async def run(program: str, directory: Path) -> tuple[str, list[Progress]]:
    seen: list[Progress] = []
    digest = await run_builder([sys.executable, "-c", program], directory, seen.append)
    return digest, seen


async def test_progress_and_the_digest_are_read_from_its_output(tmp_path: Path) -> None:
    program = """if True:
        print('{"progress":[1,10]}')
        print('{"progress":[10,10]}')
        print('{"prepared":"00c0ffee"}')"""
    assert await run(program, tmp_path) == ("00c0ffee", [Progress(1, 10), Progress(10, 10)])


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        ('print(\'{"error":{"reason":"INVALID_CHECKPOINT","message":"no"}}\'); exit(1)', InvalidCheckpoint, "^no$"),
        ('print(\'{"error":{"reason":"STRANGE","message":"odd"}}\'); exit(1)', EngineFailed, "odd"),
        ("print('hello')", EngineFailed, "printed what it should not"),
        ("print('x' * 3_000_000)", EngineFailed, "printed what it should not"),
        ('print(\'{"prepared":"00c0ffee"}\'); exit(3)', EngineFailed, "status 3"),
        ("pass", EngineFailed, "status 0 and no image"),
        ("raise ValueError('that is why')", EngineFailed, "status 1.*ValueError: that is why"),
        ("import os; os.kill(os.getpid(), 9)", ResourceExhausted, "killed by SIGKILL"),
        ("import os; os.kill(os.getpid(), 7)", ResourceExhausted, "killed by SIGBUS"),
        ("import os; os.kill(os.getpid(), 11)", EngineFailed, "killed by SIGSEGV"),
    ],
)
async def test_what_happened_to_it_is_said(
    program: str, error: type[HekatonError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        await run(program, tmp_path)


async def test_cancelling_kills_the_child(tmp_path: Path) -> None:
    program = f"""if True:
        import os, pathlib, time
        pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))
        print('{{"progress":[1,2]}}', flush=True)
        time.sleep(60)"""
    started = asyncio.Event()
    task = asyncio.create_task(run_builder([sys.executable, "-c", program], tmp_path, lambda progress: started.set()))
    await started.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
