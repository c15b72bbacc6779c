"""The engine process, kept running."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing

import structlog

from hekaton.engine.messages import Command, Event, Ready
from hekaton.engine.options import EngineOptions
from hekaton.engine.process import EngineProcess
from hekaton.engine.stepmark import StepWatch
from hekaton.errors import EngineFailed, Unavailable
from hekaton_worker import death

log = structlog.get_logger(__name__)
MAX_DEATHS = 3
DEATHS_WINDOW_S = 60.0


class EngineKeeper:
    """Starts an engine process and replaces one that dies, at most MAX_DEATHS times in DEATHS_WINDOW_S.

    Commands are posted and never waited for. `on_start` posts what a new process must know; `on_death` is told whose
    step a process was in that died by itself.
    """

    def __init__(
        self,
        options: EngineOptions,
        on_start: Callable[[], None],
        on_event: Callable[[Event], None],
        on_death: Callable[[Sequence[str]], None],
        hung_step_s: float,
    ) -> None:
        self._options = options
        self._on_death = on_death
        self._hung_step_s = hung_step_s
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
        with closing(StepWatch()) as watch:
            oom_kills = death.oom_kills()
            process = await EngineProcess.start(self._options, watch)
            self.pid = process.pid
            # What was posted while no process lived is said again by `on_start`, models before requests.
            self._commands = asyncio.Queue()
            self._on_start()
            died, hung = await self._serve(process, watch)
            out_of_memory = death.oom_kills() > oom_kills
            step = watch.step()
            if step and death.by_itself(process.returncode, hung=hung, out_of_memory=out_of_memory):
                self._on_death(step.request_ids)
            return died

    async def _serve(self, process: EngineProcess, watch: StepWatch) -> tuple[EngineFailed, bool]:
        """Why it died, and whether it was ended because a step hung."""
        sender = asyncio.create_task(self._send(process), name="engine commands")
        watchdog = asyncio.create_task(self._end_hung(process, watch), name="hung steps")
        try:
            async for event in process.events():
                self._take(event)
            died = EngineFailed("the engine process stopped unasked")
        except EngineFailed as error:
            died = error
        finally:
            sender.cancel()
            watchdog.cancel()
            await process.stop()
            await asyncio.wait([sender, watchdog])
        return died, not watchdog.cancelled()

    async def _end_hung(self, process: EngineProcess, watch: StepWatch) -> None:
        """Returns when it has ended a process whose step took too long. One that was stopped does not hang."""
        while True:
            await asyncio.sleep(self._hung_step_s / 4)
            step = watch.step()
            if step is None or death.stopped(process.pid):
                continue
            lasted_s = time.monotonic() - step.began_s
            if lasted_s > self._hung_step_s:
                log.error("a step hangs", request_ids=step.request_ids, lasted_s=round(lasted_s, 1))
                process.kill()
                return

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
