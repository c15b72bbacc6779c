"""The engine process, kept running."""

import asyncio
from collections import deque
from collections.abc import Callable

import structlog

from hekaton.engine.messages import Command, Event, Ready
from hekaton.engine.options import EngineOptions
from hekaton.engine.process import EngineProcess
from hekaton.errors import EngineFailed, Unavailable

log = structlog.get_logger(__name__)
MAX_DEATHS = 3
DEATHS_WINDOW_S = 60.0


class EngineKeeper:
    """Starts an engine process and replaces one that dies, at most MAX_DEATHS times in DEATHS_WINDOW_S.

    Commands are posted and never waited for. `on_start` posts what a new process must know.
    """

    def __init__(self, options: EngineOptions, on_start: Callable[[], None], on_event: Callable[[Event], None]) -> None:
        self._options = options
        self._on_start = on_start
        self._on_event = on_event
        self._commands: asyncio.Queue[Command] = asyncio.Queue()
        self._deaths: deque[float] = deque()
        self._created_s = asyncio.get_running_loop().time()
        self.started_s = 0.0
        """When the present process became ready, since this object was made."""
        self.pid = 0
        self.ready = asyncio.Event()
        """The first process has its device."""

    def post(self, command: Command) -> None:
        self._commands.put_nowait(command)

    async def run(self) -> None:
        """Until cancelled; stops the process then. Raises EngineFailed when it dies too often."""
        while True:
            died = await self._live()
            log.error("engine died", why=died.message)
            self._count(died)

    async def _live(self) -> EngineFailed:
        """One process, from its start to its death."""
        process = await EngineProcess.start(self._options)
        self.pid = process.pid
        # What was posted while no process lived is said again by `on_start`, models before requests.
        self._commands = asyncio.Queue()
        self._on_start()
        sender = asyncio.create_task(self._send(process), name="engine commands")
        try:
            async for event in process.events():
                self._take(event)
        except EngineFailed as error:
            return error
        finally:
            sender.cancel()
            await process.stop()
            await asyncio.wait([sender])
        return EngineFailed("the engine process stopped unasked")

    def _take(self, event: Event) -> None:
        if isinstance(event, Ready):
            self.started_s = asyncio.get_running_loop().time() - self._created_s
            self.ready.set()
        self._on_event(event)

    async def _send(self, process: EngineProcess) -> None:
        commands = self._commands
        try:
            while True:
                await process.send(await commands.get())
        except Unavailable:
            # The end of its events says why it has gone.
            return

    def _count(self, died: EngineFailed) -> None:
        now_s = asyncio.get_running_loop().time()
        self._deaths.append(now_s)
        while self._deaths[0] < now_s - DEATHS_WINDOW_S:
            self._deaths.popleft()
        if len(self._deaths) > MAX_DEATHS:
            raise died
