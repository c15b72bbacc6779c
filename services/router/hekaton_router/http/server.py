"""The HTTP server: uvicorn inside the router's process and event loop."""

import asyncio
import math
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import structlog
import uvicorn
from starlette.types import ASGIApp

from hekaton.config import RouterSettings
from hekaton.errors import InvalidArgument
from hekaton.rpc.server import check_listen, host_and_port
from hekaton.tasks import end

log = structlog.get_logger(__name__)
BACKLOG = 1024
LAST_S = 2.0
"""For a server whose connections were told to end."""


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The service has handlers of its own."""
        yield


class RunningHttp:
    """A server that answers. `address` is where this machine reaches it, HOST:PORT."""

    def __init__(self, listener: socket.socket, config: uvicorn.Config) -> None:
        host, port = listener.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="http")

    async def drain(self, grace_s: float) -> None:
        """Takes no new connections, lets the running requests finish for `grace_s`."""
        self._server.should_exit = True
        await asyncio.wait((self._task,), timeout=grace_s + LAST_S)
        await end(self._task)


@asynccontextmanager
async def serving_http(settings: RouterSettings, app: ASGIApp) -> AsyncIterator[RunningHttp | None]:
    """Serves until the end of the block, if the settings say where. Raises InvalidArgument for a bad address."""
    if not settings.http_listen:
        yield None
        return
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
        ssl_context_factory=(lambda *_: tls.ssl_context()) if (tls := settings.public_tls) else None,
    )
    with _socket(settings) as listener:
        running = RunningHttp(listener, config)
        log.info("listening", http=running.address)
        try:
            yield running
        finally:
            await running.drain(settings.drain_timeout_s)


def _socket(settings: RouterSettings) -> socket.socket:
    check_listen("http_listen", settings.http_listen, settings.insecure_listen or settings.public_tls is not None)
    host, port = host_and_port("http_listen", settings.http_listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InvalidArgument(f"cannot listen on {settings.http_listen}: {error}; is the port taken?") from error
