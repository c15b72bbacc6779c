"""The engine process: one thread that reads commands, runs steps and tells what happened.

It lives as long as its parent's end of the socket: `python -m hekaton.engine.host --fd N --engine …`.
"""

import gc
import os
import selectors
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from hekaton.engine.channel import MAX_BACKLOG_BYTES, EventChannel
from hekaton.engine.emulated import EmulatedEngine
from hekaton.engine.interface import Engine
from hekaton.engine.messages import Ready
from hekaton.engine.options import EngineOptions, parse
from hekaton.engine.stepmark import StepMark
from hekaton.engine.turns import TurnLoop
from hekaton.policy.live import live_policy, live_turns

FLUSH_TIMEOUT_S = 2.0


class Host:
    """Couples a turn loop to the worker's socket and to the engine's own events."""

    def __init__(
        self, engine: Engine, options: EngineOptions, sock: socket.socket, mark: StepMark | None = None
    ) -> None:
        self._engine = engine
        self._socket = sock
        self._channel = EventChannel(sock)
        self._loop = TurnLoop(
            engine,
            live_turns(options.policy, options.policy_options, options.role),
            self._channel.emit,
            time.monotonic,
            options.worker_id,
            options.max_batch,
            options.prefill_chunk_tokens,
            options.role,
            mark,
            live_policy(options.policy, options.policy_options).patience_s,
        )
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ)
        fd = engine.fileno()
        if fd is not None:
            self._selector.register(fd, selectors.EVENT_READ)

    def run(self) -> None:
        """Returns on Stop, or when the worker has gone."""
        engine = self._engine
        self._channel.emit(Ready(engine.device, engine.device_memory_bytes, engine.host_kv_memory_bytes))
        busy = False
        while not self._channel.closed and not self._loop.stopping:
            self._poll(0.0 if busy else self._timeout_s())
            for command in self._channel.receive():
                self._loop.handle(command)
            # A worker that does not read stops the work, not the commands.
            stalled = self._channel.backlog > MAX_BACKLOG_BYTES or self._loop.stopping
            busy = not stalled and self._loop.run_once()
            self._channel.flush()
        self._drain()

    def _timeout_s(self) -> float | None:
        if self._channel.backlog > MAX_BACKLOG_BYTES:
            return None
        wake_s = self._loop.wake_s()
        return None if wake_s is None else max(wake_s - time.monotonic(), 0.0)

    def _poll(self, timeout_s: float | None) -> None:
        self._channel.flush()
        writing = selectors.EVENT_WRITE if self._channel.backlog else 0
        self._selector.modify(self._socket, selectors.EVENT_READ | writing)
        self._selector.select(timeout_s)

    def _drain(self) -> None:
        """The last words, for a worker that still listens."""
        end_s = time.monotonic() + FLUSH_TIMEOUT_S
        while self._channel.backlog and not self._channel.closed and time.monotonic() < end_s:
            self._poll(end_s - time.monotonic())
        self._selector.close()


def build_engine(options: EngineOptions) -> Engine:
    """The engine that the options name. Only a real one imports torch."""
    if options.engine == "emulated":
        return EmulatedEngine(
            options.device,
            options.device_memory_bytes,
            time_scale=options.time_scale,
            host_kv_memory_bytes=options.host_kv_memory_bytes,
        )
    # Read once, when torch loads OpenMP: threads that spin would starve every other process.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(options.threads)
    from hekaton.engine.transformers_engine import TransformersEngine

    return TransformersEngine(
        options.device,
        options.device_memory_bytes,
        options.threads,
        options.host_kv_memory_bytes,
        Path(options.host_kv_dir) if options.host_kv_dir else None,
        options.copy_bytes_per_s,
    )


def main(argv: Sequence[str] | None = None) -> None:
    # Ctrl-C goes to the whole terminal group; the worker decides when its engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fd, mark_fd, options = parse(argv)
    with socket.socket(fileno=fd) as sock:
        engine = build_engine(options)
        # What exists by now stays: no collection needs to walk it again.
        gc.collect()
        gc.freeze()
        try:
            Host(engine, options, sock, None if mark_fd is None else StepMark(mark_fd)).run()
        finally:
            engine.close()


if __name__ == "__main__":
    main()
