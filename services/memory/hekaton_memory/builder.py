"""The child process that lays a checkpoint out as an image. The service itself never loads torch."""

import asyncio
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hekaton.errors import EngineFailed, HekatonError, InvalidCheckpoint, ResourceExhausted

STDERR = "stderr.txt"
TAIL_BYTES = MESSAGE_CHARS = 2000
"""A status travels in metadata, which must stay small."""
LINE_BYTES = 1 << 20
REASONS: dict[str, type[HekatonError]] = {cls.reason: cls for cls in (InvalidCheckpoint, ResourceExhausted)}


@dataclass(frozen=True, slots=True)
class Progress:
    done_bytes: int
    total_bytes: int


class Failure(msgspec.Struct, frozen=True):
    reason: str
    message: str


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the builder's output; exactly one field is set."""

    progress: tuple[int, int] | None = None
    prepared: str | None = None
    error: Failure | None = None


async def build_image(source: str, dtype: str, directory: Path, on_progress: Callable[[Progress], None]) -> str:
    """Builds the image of `source` in `directory` and returns its digest. Cancelling kills the child.

    Raises InvalidCheckpoint, ResourceExhausted, or EngineFailed with what happened.
    """
    command = [sys.executable, "-m", "hekaton.engine.build", source, "--out", str(directory)]
    if dtype:
        command += ["--dtype", dtype]
    return await run_builder(command, directory, on_progress)


async def run_builder(command: list[str], directory: Path, on_progress: Callable[[Progress], None]) -> str:
    """Runs a builder's command line to its end and returns the digest that it prints."""
    with (directory / STDERR).open("wb") as stderr:
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            limit=LINE_BYTES,
        )
    try:
        last = await _listen(child, on_progress)
        status = await child.wait()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return _conclude(last, status, _tail(directory / STDERR))


async def _listen(child: asyncio.subprocess.Process, on_progress: Callable[[Progress], None]) -> Line:
    """Reads to the end. The last line that is no progress; an empty one if there was none."""
    last = Line()
    if child.stdout is None:
        raise EngineFailed("the image builder has no output")
    try:
        async for text in child.stdout:
            line = msgspec.json.decode(text, type=Line)
            if line.progress is None:
                last = line
            else:
                on_progress(Progress(*line.progress))
    except (msgspec.DecodeError, ValueError) as error:
        raise EngineFailed(f"the image builder printed what it should not: {error}") from error
    return last


def _conclude(last: Line, status: int, stderr: str) -> str:
    if last.error is not None:
        raise REASONS.get(last.error.reason, EngineFailed)(last.error.message[:MESSAGE_CHARS])
    if status < 0:
        name = signal.Signals(-status).name
        if -status in (signal.SIGKILL, signal.SIGBUS):
            raise ResourceExhausted(f"the image builder was killed by {name}: the host is probably short of memory")
        raise EngineFailed(f"the image builder was killed by {name}{stderr}")
    if status or not last.prepared:
        raise EngineFailed(f"the image builder ended with status {status} and no image{stderr}")
    return last.prepared


def _tail(path: Path) -> str:
    """The last line that the child complained with, as the end of a sentence."""
    lines = path.read_bytes()[-TAIL_BYTES:].decode(errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return f": {said[-1]}" if said else ""
