"""The worker's side of its engine process."""

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator

from hekaton.engine.messages import HEADER, MAX_FRAME_BYTES, Command, Event, Stop, encode, event_decoder
from hekaton.engine.options import EngineOptions
from hekaton.engine.stepmark import StepWatch
from hekaton.errors import EngineFailed, Unavailable


class EngineProcess:
    """A running engine process. Commands go in by `send`, events come out of `events`, which one task reads."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._stopping = False

    @classmethod
    async def start(cls, options: EngineOptions, watch: StepWatch | None = None) -> "EngineProcess":
        """Spawns the process; its first event is Ready. `watch` sees its steps."""
        ours, theirs = socket.socketpair()
        marks = [watch.fd] if watch else []
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "hekaton.engine.host",
                    f"--fd={theirs.fileno()}",
                    *(f"--mark-fd={fd}" for fd in marks),
                    *options.to_argv(),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), *marks),
                )
            except BaseException:
                ours.close()
                raise
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.returncode

    async def send(self, command: Command) -> None:
        """Waits while the engine does not read. Raises Unavailable if it has gone."""
        try:
            self._writer.write(encode(command))
            await self._writer.drain()
        except ConnectionError as error:
            raise Unavailable("the engine process has gone: submit again when it has been restarted") from error

    async def events(self) -> AsyncIterator[Event]:
        """Every event until the engine is stopped. Raises EngineFailed with its exit status if it died by itself."""
        while (event := await self._next()) is not None:
            yield event
        status = await self._process.wait()
        if status != 0 or not self._stopping:
            raise EngineFailed(f"the engine process {self.pid} ended with {describe(status)}")

    def kill(self) -> None:
        """SIGKILL."""
        if self.returncode is None:
            self._process.kill()

    async def stop(self, grace_s: float = 10.0) -> None:
        """Ends the process after its current step; kills it if it takes longer than `grace_s`."""
        self._stopping = True
        try:
            async with asyncio.timeout(grace_s):
                if self.returncode is None:
                    await self._say_stop()
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        finally:
            self._writer.close()

    async def _say_stop(self) -> None:
        try:
            await self.send(Stop())
        except Unavailable:
            # It is going down by itself; its exit status is what counts.
            return

    async def _next(self) -> Event | None:
        try:
            (length,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            if length > MAX_FRAME_BYTES:
                raise EngineFailed(f"an event of {length} bytes exceeds {MAX_FRAME_BYTES}")
            return event_decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None


def describe(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    known = {int(number) for number in signal.Signals}
    name = signal.Signals(-status).name if -status in known else str(-status)
    return f"signal {name}"
