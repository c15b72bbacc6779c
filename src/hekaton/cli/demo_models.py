"""Runs the converter of the demo's models, with progress."""

import asyncio
import json
import os
import sys
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from hekaton.cli.common import console
from hekaton.errors import Unavailable

NAMES = ("smollm2-135m", "smollm2-amber", "smollm2-birch", "smollm2-cedar")
"""One that was trained, and three with weights of their own that were derived from it."""


def default_directory() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "hekaton" / "demo-models"


async def prepare(directory: Path) -> list[Path]:
    """The models' directories, made now if they are not there. Raises Unavailable, saying what to install."""
    paths = [directory / name for name in NAMES]
    if all(path.is_dir() for path in paths):
        return paths
    command = [sys.executable, "-m", "hekaton.engine.demo_weights", "--out", str(directory)]
    pipe = asyncio.subprocess.PIPE
    converter = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    if converter.stdout is None or converter.stderr is None:
        raise Unavailable("the converter has no output")
    try:
        async with asyncio.TaskGroup() as group:
            said = group.create_task(converter.stderr.read())
            await _show(converter.stdout)
        status = await converter.wait()
    finally:
        if converter.returncode is None:
            converter.kill()
            await converter.wait()
    if status:
        last = said.result().decode(errors="replace").strip().splitlines()[-1:]
        raise Unavailable(f"the demo's models cannot be prepared: {''.join(last) or f'status {status}'}")
    return paths


async def _show(lines: asyncio.StreamReader) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("preparing the demo's models, once", total=None)
        async for line in lines:
            step = json.loads(line)
            progress.update(task, total=step["total"], completed=step["done"], description=step["doing"])
            if not console.is_terminal:
                console.print(f"  {step['doing']}")
