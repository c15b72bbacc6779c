"""One service as a child process, which never outlives its parent."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from hekaton.cli import leash
from hekaton.errors import Unavailable

TAIL_LINES = 5


class Child:
    """Started in a process group of its own: Ctrl-C in the terminal is for the supervisor, who stops things in order.

    Not in a session of its own: when the supervisor dies, the kernel wakes up what is frozen in such a group.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self._command = command
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Also starts it again."""
        with self._log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-S", leash.__file__, str(os.getpid()), *self._command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )

    async def wait(self) -> int:
        """The exit status."""
        if self._process is None:
            raise Unavailable(f"{self.name} was never started")
        return await self._process.wait()

    def check(self) -> None:
        """Raises Unavailable, with its last words, if it has ended."""
        if self._process is None or self._process.returncode is not None:
            status = self._process.returncode if self._process else "none"
            raise Unavailable(f"{self.name} ended with status {status}; its log says: {self.last_words()}")

    def last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return " / ".join(_said(line) for line in lines[-TAIL_LINES:]) or "nothing"

    def kill(self) -> None:
        """SIGKILL, as in a crash."""
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, also to one that is frozen, then SIGKILL after `grace_s`."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        self._process.send_signal(signal.SIGCONT)
        try:
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def _said(line: str) -> str:
    """What a line of a log says: the event of a structured one, any other as it is."""
    try:
        return str(json.loads(line)["event"])
    except (ValueError, KeyError, TypeError):
        return line
