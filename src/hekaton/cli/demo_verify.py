"""Asks the reference about every answer of the demo."""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from hekaton.cli.common import console
from hekaton.errors import EngineFailed


@dataclass(frozen=True, slots=True)
class Verdict:
    id: str
    equal: bool
    ties: int
    first_difference: int | None


class Answer(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def prompt_ids(self) -> tuple[int, ...]: ...
    @property
    def token_ids(self) -> list[int]: ...


async def verify(answers: Sequence[Answer], models_dir: Path, dtype: str, *, quiet: bool = False) -> list[Verdict]:
    """One verdict an answer. The reference runs in a process of its own, model by model."""
    command = [sys.executable, "-m", "hekaton.engine.reference"]
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    if child.stdin is None or child.stdout is None:
        raise EngineFailed("the reference has no pipes")
    for one in sorted(answers, key=lambda one: one.model):
        question = {
            "id": one.id,
            "checkpoint": str(models_dir / one.model),
            "dtype": dtype,
            "prompt_ids": list(one.prompt_ids),
            "token_ids": list(one.token_ids),
        }
        child.stdin.write(json.dumps(question).encode() + b"\n")
    child.stdin.write_eof()
    try:
        verdicts = await _collect(child.stdout, len(answers), quiet)
        status = await child.wait()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if status or len(verdicts) < len(answers):
        raise EngineFailed(f"the reference ended with status {status} after {len(verdicts)} answers")
    return verdicts


async def _collect(lines: asyncio.StreamReader, total: int, quiet: bool) -> list[Verdict]:
    verdicts: list[Verdict] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("verifying", total=total)
        async for line in lines:
            verdicts.append(Verdict(**json.loads(line)))
            progress.advance(task)
    return verdicts
